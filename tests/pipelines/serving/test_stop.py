"""`polymodal serve` as a process: SIGTERM takes no new requests and finishes those that are there."""

import json
import re
import signal
import time
import urllib.error
import urllib.request

import polymodal
import pytest
import torch
from polymodal.shared.tokenizer import Tokenizer
from processes import polymodal as command


def test_sigterm_finishes_what_is_being_written(tmp_path):
    tok = Tokenizer.train(["the quick brown fox", "she sells sea shells"] * 4, "byte-bpe", 280)
    torch.manual_seed(0)
    polymodal.save(polymodal.system("gpt2", size="tiny", tokenizer=tok).net, tmp_path / "gpt2", tokenizer=tok)
    positions = polymodal.load(tmp_path / "gpt2").decoder_info.max_positions
    server = command("serve", "--model", tmp_path / "gpt2", "--port", 0, "--device", "cpu")
    end = time.monotonic() + 120
    while not (found := re.search(r"at (http://127\.0\.0\.1:\d+/v1)", server.out)):
        assert server.poll() is None and time.monotonic() < end, server.err
        time.sleep(0.02)
    assert "serving gpt2 (completions, embeddings)" in server.out
    body = {"model": "gpt2", "prompt": "the", "temperature": 1, "seed": 3, "max_tokens": positions - 10, "stream": True}
    ask = urllib.request.Request(f"{found[1]}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(ask, timeout=120) as answer:
        first = answer.readline()
        server.send_signal(signal.SIGTERM)
        rest = answer.read().decode()
    events = [json.loads(line.removeprefix("data: ")) for line in (first.decode() + rest).splitlines() if line.startswith("data: {")]
    assert rest.rstrip().endswith("data: [DONE]") and events[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert server.wait() == 0 and not server.err
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(ask, timeout=5)
