"""`polymodal serve`: asked by OpenAI's own client and by plain HTTP, over a socket."""

import http.client
import importlib.util
import json
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import openai
import polymodal
import pytest
import torch
import uvicorn
from polymodal.pipelines import cli
from polymodal.pipelines.base.install import install_line
from polymodal.pipelines.inference.embed import embed
from polymodal.pipelines.serving.app import Limits, application
from polymodal.pipelines.serving.engine import Engine
from polymodal.pipelines.serving.served import Served, open_served
from polymodal.pipelines.serving.server import KEY, is_loopback
from polymodal.shared.errors import UserError
from polymodal.shared.tokenizer import STYLES, Tokenizer
from scripted import scripted

WORDS = ["the quick brown fox jumps over the lazy dog", "she sells sea shells by the sea shore", "naïve 🦊 words"] * 4
PROMPTS = ["the quick brown", "she", "naïve 🦊", "by the sea", "dog"]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(WORDS, "byte-bpe", 290)


@pytest.fixture(scope="module")
def directories(tok, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    unigram = Tokenizer.train([*WORDS, *(f"word{c}{d}" for c in "abcdefghij" for d in "klmnopqrst")], "unigram", 150, style=STYLES["t5"])
    pieces = Tokenizer.train(WORDS, "wordpiece", 90)
    for name, vocabulary in (("gpt2", tok), ("t5", unigram), ("bert", pieces)):
        torch.manual_seed(0)
        polymodal.save(polymodal.system(name, size="tiny", tokenizer=vocabulary).net, folder / name, tokenizer=vocabulary)
    return folder


@pytest.fixture(scope="module")
def models(directories, tok):
    found = open_served([str(directories / name) for name in ("gpt2", "t5", "bert")], "cpu", None, 4)
    net = scripted(tok, "x" + "the 🦊 fox jumps over " * 20)
    return {**found, "script": Served("script", net, tok, "0" * 64, embeds=False)}


@contextmanager
def served(models, *, start=True, key=None, limits=None, most_waiting=64, batch_size=8):
    """A server on a free port: its engine, which works from the beginning or not, and the port."""
    engine = Engine(batch_size, most_waiting)
    if start:
        engine.start()
    app = application(models, engine, limits=limits, key=key, hosts=["127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield engine, listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
            if not start and not engine._thread.is_alive():
                engine.start()
            engine.stop()


@pytest.fixture(scope="module")
def port(models):
    with served(models) as (_, port):
        yield port


def client_of(port, key="none"):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def client(port):
    return client_of(port)


def asked(port, path="/v1/completions", body=None, **headers):
    """Status, body and headers of a plain request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    kind = {} if body is None else {"Content-Type": "application/json"}
    connection.request("GET" if body is None else "POST", path, data, kind | {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text.startswith(b"{") else text.decode(), answer.headers


def test_the_most_probable_text_is_that_of_generate(client, directories, tok):
    model = polymodal.load(directories / "gpt2")
    expected = polymodal.generate(model, PROMPTS, tokenizer=tok, max_new_tokens=8, return_full_text=False)
    found = client.completions.create(model="gpt2", prompt=PROMPTS, temperature=0, max_tokens=8)
    assert [c.text for c in found.choices] == expected and [c.index for c in found.choices] == list(range(5))
    assert {c.finish_reason for c in found.choices} <= {"length", "stop"} and found.object == "text_completion"
    ids = [tok.encode(p, add_special_tokens=False) for p in PROMPTS]
    assert found.usage.prompt_tokens == sum(map(len, ids)) and found.usage.completion_tokens <= 40
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert [c.text for c in client.completions.create(model="gpt2", prompt=ids, temperature=0, max_tokens=8).choices] == expected
    echoed = client.completions.create(model="gpt2", prompt=ids[0], temperature=0, max_tokens=8, echo=True).choices[0].text
    assert echoed == PROMPTS[0] + expected[0]


def test_draws_are_those_of_generate_with_the_same_seed(client, directories, tok):
    model = polymodal.load(directories / "gpt2")
    expected = polymodal.generate(model, PROMPTS[:2], tokenizer=tok, max_new_tokens=8, return_full_text=False, temperature=0.9, top_p=0.8,
                                  top_k=0, seed=7, num_return_sequences=3)
    found = client.completions.create(model="gpt2", prompt=PROMPTS[:2], temperature=0.9, top_p=0.8, n=3, seed=7, max_tokens=8)
    assert [c.text for c in found.choices] == expected and len(set(expected)) > 3
    first = client.completions.create(model="gpt2", prompt="she")  # OpenAI's defaults: temperature 1, 16 tokens
    again = client.completions.create(model="gpt2", prompt="she", seed=first.seed)
    assert again.choices == first.choices and first.usage.completion_tokens <= 16
    assert again.system_fingerprint == first.system_fingerprint


def test_streams_join_to_the_same_text(client):
    asked = {"model": "gpt2", "prompt": PROMPTS[:3], "temperature": 1.0, "n": 2, "seed": 3, "max_tokens": 12, "stop": ["sea"]}
    whole = client.completions.create(**asked)
    texts, reasons, usage, chunks = {}, {}, None, 0
    for chunk in client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            chunks += 1
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == {c.index: c.text for c in whole.choices} and reasons == {c.index: c.finish_reason for c in whole.choices}
    assert usage == whole.usage and chunks > 12


def test_stop_strings_and_log_probabilities(client, tok):
    (choice,) = client.completions.create(model="script", prompt="x", temperature=0, max_tokens=60, stop=["jumps", "dog"]).choices
    assert (choice.text, choice.finish_reason) == ("the 🦊 fox ", "stop")
    (choice,) = client.completions.create(model="script", prompt="x", temperature=0, max_tokens=60, logprobs=2).choices
    told, text = choice.logprobs, choice.text
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == 60
    assert all(t in top and len(top) == 2 for t, top in zip(told.tokens, told.top_logprobs)) and max(told.token_logprobs) < 0
    assert all(text[offset:].startswith(token) for token, offset in zip(told.tokens, told.text_offset) if token.isascii())
    assert told.text_offset[0] == 0 and text[told.text_offset[-1]:] == "🦊", "its last byte"
    plain = client.completions.create(model="script", prompt="x", temperature=0, max_tokens=3, logprobs=0).choices[0].logprobs
    assert plain.top_logprobs is None and len(plain.tokens) == 3


def test_an_encoder_decoder_answers(client, directories):
    model, tok = polymodal.load(directories / "t5"), polymodal.tokenizer(directories / "t5")
    expected = polymodal.generate(model, PROMPTS, tokenizer=tok, max_new_tokens=6)
    found = client.completions.create(model="t5", prompt=PROMPTS, temperature=0, max_tokens=6)
    assert [c.text for c in found.choices] == expected
    assert found.usage.prompt_tokens == sum(len(tok.encode(p)) for p in PROMPTS)


def test_embeddings_are_those_of_embed(client, port, directories):
    model, tok = polymodal.load(directories / "bert"), polymodal.tokenizer(directories / "bert")
    expected = embed(model, PROMPTS, tok)
    found = client.embeddings.create(model="bert", input=PROMPTS)  # the client asks for base64
    torch.testing.assert_close(torch.tensor([d.embedding for d in found.data]), expected, rtol=1e-4, atol=1e-5)
    assert [d.index for d in found.data] == list(range(5))
    assert found.usage.prompt_tokens == found.usage.total_tokens == sum(len(tok.encode(p)) for p in PROMPTS)
    plain = client.embeddings.create(model="bert", input="she", encoding_format="float").data[0].embedding
    torch.testing.assert_close(torch.tensor(plain), expected[1], rtol=1e-4, atol=1e-5)
    long = "the sea " * 600
    status, answer, _ = asked(port, "/v1/embeddings", {"model": "bert", "input": long})
    assert status == 400 and answer["error"]["code"] == "context_length_exceeded"
    cut = client.embeddings.create(model="bert", input=long, extra_body={"truncate": True})
    assert cut.usage.prompt_tokens == model.config.max_position_embeddings


def test_a_long_prompt_keeps_its_end(models, port, tok):
    net, ids = models["gpt2"].model, tok.encode("the quick brown fox " * 200, add_special_tokens=False)
    room = net.decoder_info.max_positions - 6
    expected = polymodal.generate(net, torch.tensor([ids[-room:]]), max_new_tokens=6)[0, room:].tolist()
    for prompt in (ids, "the quick brown fox " * 200):
        status, answer, _ = asked(port, body={**GOOD, "prompt": prompt, "max_tokens": 6, "temperature": 0, "truncate": True, "logprobs": 0})
        assert status == 200 and answer["usage"]["prompt_tokens"] == room
        assert answer["choices"][0]["text"] == tok.decode(expected)


def test_limits_of_the_caller(models, port):
    short = {"gpt2": replace(models["gpt2"], max_model_len=12), "bert": replace(models["bert"], max_model_len=6)}
    with served(short, limits=Limits(body=2000, texts=3, inputs=2)) as (_, port):
        assert asked(port, body={**GOOD, "prompt": [5] * 10, "temperature": 0})[0] == 200
        assert asked(port, body={**GOOD, "prompt": [5] * 11, "temperature": 0})[1]["error"]["code"] == "context_length_exceeded"
        assert asked(port, body={**GOOD, "prompt": [5] * 11, "truncate": True})[1]["usage"]["prompt_tokens"] == 10
        assert asked(port, body={**GOOD, "n": 4})[0] == 400 and asked(port, body={**GOOD, "user": "u" * 2000})[0] == 413
        assert asked(port, "/v1/embeddings", {"model": "bert", "input": ["a"] * 3})[0] == 400
        assert asked(port, "/v1/embeddings", {"model": "bert", "input": "the quick brown fox jumps"})[0] == 400
        assert [m["max_model_len"] for m in asked(port, "/v1/models")[1]["data"]] == [12, 6]


def test_the_models_and_their_abilities(client, port):
    found = {m.id: m for m in client.models.list()}
    assert list(found) == ["gpt2", "t5", "bert", "script"]
    assert found["gpt2"].capabilities == ["completions", "embeddings"] and found["bert"].capabilities == ["embeddings"]
    assert "completions" in found["t5"].capabilities and client.models.retrieve("gpt2").max_model_len > 0
    status, answer, _ = asked(port, "/health")
    assert status == 200 and answer["status"] == "ok" and answer["waiting"] == 0


def in_threads(*calls):
    """What calls give that run side by side."""
    found = [None] * len(calls)

    def keep(place, call):
        found[place] = call()

    threads = [threading.Thread(target=keep, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    return threads, found


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.005)


def test_requests_that_wait_run_together_and_give_what_they_give_alone(models, client):
    """Of other lengths, stops, seeds, log-probabilities and with or without a stream."""
    cases = [{"prompt": p, "temperature": 0.8, "seed": number, "max_tokens": 4 + 3 * number, "model": "gpt2",
              **({"stop": ["e"]} if number % 2 else {}), **({"logprobs": 1} if number == 4 else {})} for number, p in enumerate(PROMPTS)]
    alone = [client.completions.create(**case).choices for case in cases]
    with served(models, start=False) as (engine, port):
        together = client_of(port)
        threads, found = in_threads(*[lambda case=case: together.completions.create(**case).choices for case in cases],
                                    lambda: together.completions.create(model="gpt2", prompt="she", temperature=0, max_tokens=3).choices,
                                    lambda: together.embeddings.create(model="bert", input=PROMPTS[0]).data)
        until(lambda: engine.waiting == 7)
        engine.start()
        for thread in threads:
            thread.join()
        assert engine.batches == 3, "draws at temperature 0.8, the most probable tokens, vectors"
    for choices, expected in zip(found, alone):
        assert [(c.text, c.finish_reason) for c in choices] == [(c.text, c.finish_reason) for c in expected]
    torch.testing.assert_close(torch.tensor(found[4][0].logprobs.token_logprobs), torch.tensor(alone[4][0].logprobs.token_logprobs),
                               rtol=1e-4, atol=1e-5)
    assert found[0][0].logprobs is None


class Gated(torch.nn.Module):
    """A scripted decoder that waits before each token but the first few."""

    def __init__(self, net, free):
        super().__init__()
        self.net, self.free, self.gate, self.steps = net, free, threading.Event(), 0

    @property
    def decoder_info(self):
        return self.net.decoder_info

    def next_logits(self, *arguments):
        self.steps += 1
        if self.steps > self.free:
            assert self.gate.wait(60)
        return self.net.next_logits(*arguments)


@pytest.fixture
def gated(tok):
    net = Gated(scripted(tok, "x" + "the fox jumps over " * 20), 4)
    return {"slow": Served("slow", net, tok, "0" * 64, embeds=False)}, net


def test_a_short_text_does_not_wait_for_a_long_one(gated):
    models, net = gated
    with served(models, start=False) as (engine, port):
        client = client_of(port)
        threads, found = in_threads(*[lambda n=n: client.completions.create(model="slow", prompt="x", temperature=0, max_tokens=n)
                                      for n in (3, 40)])
        until(lambda: engine.waiting == 2)
        engine.start()
        until(lambda: found[0] is not None)
        assert found[1] is None and engine.batches == 1
        assert found[0].usage.completion_tokens == 3 and found[0].choices[0].finish_reason == "length"
        net.gate.set()
        for thread in threads:
            thread.join()
        assert found[1].usage.completion_tokens == 40


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_work(gated, stream):
    models, net = gated
    with served(models) as (engine, port):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        body = json.dumps({"model": "slow", "prompt": "x", "temperature": 0, "max_tokens": 100, "stream": stream})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        until(lambda: net.steps == 5)
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
        time.sleep(0.3)
        net.gate.set()
        assert client_of(port).completions.create(model="slow", prompt="x", temperature=0, max_tokens=2).usage.completion_tokens == 2
        assert net.steps < 40 and engine.batches == 2


def test_too_many_that_wait_are_told_to_come_again(gated):
    models, net = gated
    with served(models, most_waiting=2) as (engine, port):
        client = client_of(port)
        ask = {"model": "slow", "prompt": "x", "temperature": 0, "max_tokens": 6}
        running, _ = in_threads(lambda: client.completions.create(**ask))
        until(lambda: net.steps == 5)
        waiting, _ = in_threads(*[lambda: client.completions.create(**ask)] * 2)
        until(lambda: engine.waiting == 2)
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(**ask)
        assert refused.value.response.headers["retry-after"] == "1" and refused.value.code == "rate_limit_exceeded"
        net.gate.set()
        for thread in (*running, *waiting):
            thread.join()


GOOD = {"model": "gpt2", "prompt": "the", "max_tokens": 2}


@pytest.mark.parametrize(("change", "status", "param", "message"), [
    ({"model": "gpt9"}, 404, "model", "no model 'gpt9'; there are gpt2"), ({"model": None}, 400, None, "model is missing"),
    ({"model": "bert"}, 400, "model", "bert writes no text"), ({"prompt": None}, 400, "prompt", "prompt is missing"),
    ({"prompt": {"a": 1}}, 400, "prompt", "prompt must be"), ({"prompt": []}, 400, "prompt", "prompt must be"),
    ({"prompt": [[]]}, 400, "prompt", "prompt must be"), ({"prompt": [7, 999]}, 400, "prompt", "id 999"),
    ({"prompt": [1, "a"]}, 400, "prompt", "prompt must be"), ({"prompt": [True]}, 400, "prompt", "prompt must be"),
    ({"prompt": "the " * 900}, 400, "prompt", "room for 128 tokens"), ({"prompt": "\ud83d"}, 400, "prompt", "half a character"),
    ({"model": "t5", "truncate": True}, 400, "truncate", "whole texts"),
    ({"model": "t5", "max_tokens": 5000}, 400, "max_tokens", "at most"),
    ({"max_tokens": 0}, 400, "max_tokens", "at least 1"), ({"max_tokens": "many"}, 400, "max_tokens", "max_tokens"),
    ({"n": 0}, 400, "n", "at least 1"), ({"n": 200}, 400, "n", "more than 128 texts"),
    ({"n": 2, "temperature": 0}, 400, "n", "temperature above"),
    ({"temperature": -1}, 400, None, "temperature"), ({"top_p": 2}, 400, None, "top_p"), ({"logprobs": 99}, 400, None, "logprobs"),
    ({"logprobs": 1, "stream": True}, 400, "logprobs", "not streamed"), ({"logprobs": 1, "echo": True}, 400, "echo", "not computed"),
    ({"stop": [""]}, 400, None, "stop string is empty"), ({"stop": ["a"] * 17}, 400, "stop", "at most 16"),
    ({"suffix": "end"}, 400, "suffix", "not supported"), ({"best_of": 3}, 400, "best_of", "not supported"),
    ({"logit_bias": {"5": 3}}, 400, "logit_bias", "not supported"), ({"presence_penalty": 0.5}, 400, "presence_penalty", "not supported"),
    ({"max_token": 3}, 400, "max_token", "did you mean max_tokens")])
def test_mistakes_are_answered_in_openais_shape(port, change, status, param, message):
    found, answer, _ = asked(port, body={**GOOD, **change})
    assert found == status and set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    assert message in answer["error"]["message"] and answer["error"]["param"] == param, answer


def test_what_asks_for_nothing_is_taken(port):
    fields = {"suffix": None, "best_of": 1, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "user": "me", "stop": None}
    assert asked(port, body={**GOOD, **fields})[0] == 200


@pytest.mark.parametrize(("change", "message"), [
    ({"input": ["a", ""]}, "text 1 of input is blank"), ({"input": [1, 2]}, "send texts"), ({"input": []}, "list of texts"),
    ({"dimensions": 8}, "not supported"), ({"encoding_format": "hex"}, "encoding_format"), ({"model": "script"}, "makes no vectors"),
    ({"input": ["a"] * 3000}, "at most 2048")])
def test_mistakes_with_embeddings(port, change, message):
    status, answer, _ = asked(port, "/v1/embeddings", {"model": "bert", "input": "a", **change})
    assert status == 400 and message in answer["error"]["message"], answer


def test_bodies_hosts_and_paths_are_checked(models, port):
    assert asked(port, body=GOOD, Content_Type="text/plain")[0] == 415
    for broken in (b"{", b"[1]", b"\xff", b"[" * 50000):
        assert asked(port, body=broken)[0] == 400
    status, answer, _ = asked(port, body=b" " * (1 << 20) + b"{}")
    assert status == 413 and answer["error"]["code"] == "request_too_large"
    assert asked(port, body=GOOD, Host="evil.example")[0] == 400, "a page that points its own name at this machine"
    status, answer, _ = asked(port, "/v1/chat/completions", {"model": "gpt2", "messages": []})
    assert status == 400 and "/v1/completions" in answer["error"]["message"]
    assert asked(port, "/v2")[0] == 404 and asked(port, "/v1/completions")[0] == 405 and "error" in asked(port, "/v2")[1]


def test_a_key_is_asked_for(models):
    with served({"gpt2": models["gpt2"]}, key="secret") as (_, port):
        with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
            client_of(port, "guess").models.list()
        assert asked(port, body=GOOD)[0] == 401 and asked(port, "/health")[0] == 200
        assert client_of(port, "secret").completions.create(**GOOD).usage.completion_tokens <= 2


def test_a_defect_is_told_and_the_next_request_is_answered(models, monkeypatch, caplog):
    with served(models) as (_, port):
        monkeypatch.setattr(models["script"].model, "next_logits", lambda *a: 1 / 0)
        status, answer, _ = asked(port, body={**GOOD, "model": "script", "prompt": "x"})
        assert status == 500 and "division" not in json.dumps(answer) and "division by zero" in caplog.text
        text = asked(port, body={**GOOD, "model": "script", "prompt": "x", "stream": True})[1]
        assert '"internal_error"' in text and "[DONE]" not in text
        monkeypatch.undo()
        assert asked(port, body={**GOOD, "model": "script", "prompt": "x"})[0] == 200


def test_names_of_models(directories, tmp_path):
    gpt2 = str(directories / "gpt2")
    assert list(open_served([gpt2, f"other={gpt2}"], "cpu", None, 1)) == ["gpt2", "other"]
    for sources, message in (([gpt2, gpt2], "called 'gpt2' already"), ([f"a/b={gpt2}"], "without slashes"),
                             (["nowhere"], "no model directory")):
        with pytest.raises(UserError, match=message):
            open_served(sources, "cpu", None, 1)


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False),
                                             ("10.0.0.3", False), ("example.org", False)])
def test_other_machines_need_a_key(directories, capsys, monkeypatch, host, local):
    assert is_loopback(host) is local
    if not local:
        monkeypatch.delenv(KEY, raising=False)
        code = cli.run(["serve", "--model", str(directories / "gpt2"), "--host", host])
        err = capsys.readouterr().err
        assert code == 2 and KEY in err and err.count("\n") == 1


def test_a_port_that_is_taken_is_told(directories, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code = cli.run(["serve", "--model", str(directories / "gpt2"), "--port", str(taken.getsockname()[1])])
    err = capsys.readouterr().err
    assert code == 2 and "cannot be used" in err and err.count("\n") == 1


def test_the_script_that_asks_a_server(models, port, capsys):
    path = Path(polymodal.__file__).parent / "examples" / "ask_server.py"
    spec = importlib.util.spec_from_file_location("ask_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(f"http://127.0.0.1:{port}/v1", "the quick", ["the quick", "sea shells"])
    lines = capsys.readouterr().out.rstrip().splitlines()
    tok, net = models["gpt2"].tokenizer, models["gpt2"].model
    text = polymodal.generate(net, "the quick", tokenizer=tok, max_new_tokens=30, return_full_text=False)
    assert "\n".join(lines).startswith(text.rstrip("\n")) and "tokens in 3 draws:" in "\n".join(lines)
    assert lines[-2] == " 1.000 the quick" and lines[-1].endswith(" sea shells")


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_the_extra_it_says_how_to_install_it(directories, capsys, monkeypatch, missing):
    for name in [name for name in sys.modules if name.startswith(("polymodal.pipelines.serving.", f"{missing}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    code = cli.run(["serve", "--model", str(directories / "gpt2")])
    err = capsys.readouterr().err
    assert code == 2 and f"serving needs {missing}: {install_line('serve')}\n" in err and err.count("\n") == 1
