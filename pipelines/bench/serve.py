"""`polymodal serve` under load, beside transformers' `generate` behind the same HTTP library, one request at a time.

One step: every client sends its prompts one after the other, over HTTP. Clients are threads of the process that serves, on both sides. The
peer's server does what a page of code does: tokenize, `generate`, decode, under a lock. Weights, tokenizer and prompts are the same, no
text ends before its last token, and all texts must be the same before anything is timed.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...seq2seq.gpt2 import GPT2Config, GPT2LMHeadModel
from ...shared.tokenizer import Tokenizer
from ..model.frontdoor import for_inference
from .case import Agreement, Case, Cases, Contender, Options
from .corpus import documents
from .machine import need
from .pairing import copy_weights, fresh, rules_of

PEERS = ("transformers",)
CLIENTS = (1, 4, 16)
NAME = "gpt2"
_PATH = "/v1/completions"


@dataclass(frozen=True)
class Load:
    """What is asked, and by how many."""

    config: GPT2Config
    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    """Those of one step, dealt to the clients in turn."""
    new: int
    clients: int


class Server:
    """An application that listens in a thread, until nobody holds this."""

    def __init__(self, application: Any, stop: Callable[[], None] | None = None) -> None:
        uvicorn = need("uvicorn")
        listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = listening.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(application, lifespan="off", ws="none", log_level="warning", access_log=False))
        weakref.finalize(self, setattr, server, "should_exit", True)
        if stop is not None:
            weakref.finalize(self, stop)
        threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server", daemon=True).start()

    def ask(self, prompts: tuple[str, ...], new: int) -> list[str]:
        """What a client hears that asks for all of them, one after the other, over one connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        texts: list[str] = []
        for prompt in prompts:
            body = json.dumps({"model": NAME, "prompt": prompt, "max_tokens": new, "temperature": 0})
            connection.request("POST", _PATH, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = json.loads(answer.read())
            if answer.status != 200:
                raise RuntimeError(f"the server said {answer.status}: {said}")
            texts.append(said["choices"][0]["text"])
        connection.close()
        return texts


def ours(load: Load) -> tuple[Server, Load]:
    """`polymodal serve`: waiting prompts run together."""
    from ..serving.app import application
    from ..serving.engine import Engine
    from ..serving.served import Served

    rows = max(CLIENTS)
    net = for_inference(fresh(partial(GPT2LMHeadModel, load.config), 0), None, prepack=True, rows=rows)
    engine = Engine(rows, 4 * rows)
    engine.start()
    return Server(application({NAME: Served(NAME, net, load.tokenizer, "", embeds=False)}, engine), engine.stop), load


def theirs(load: Load) -> tuple[Server, Load]:
    """Transformers' `generate` behind a lock."""
    transformers = need("transformers")
    applications, responses, routing = need("starlette.applications"), need("starlette.responses"), need("starlette.routing")
    net = transformers.GPT2LMHeadModel(transformers.GPT2Config(**load.config.to_dict(), attn_implementation="sdpa"))
    copy_weights(fresh(partial(GPT2LMHeadModel, load.config), 0), net, rules_of("gpt2", load.config))
    net.generation_config.eos_token_id = None
    net.eval()
    lock = threading.Lock()

    def generate(prompt: str, new: int) -> str:
        ids = torch.tensor([load.tokenizer.encode(prompt, add_special_tokens=False)])
        with lock, torch.inference_mode():
            written = net.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0)
        return load.tokenizer.decode(written[0, ids.shape[1]:].tolist())

    async def complete(request: Any) -> Any:
        asked = await request.json()
        text = await asyncio.to_thread(generate, asked["prompt"], asked["max_tokens"])
        return responses.JSONResponse({"choices": [{"text": text}]})

    return Server(applications.Starlette(routes=[routing.Route(_PATH, complete, methods=["POST"])])), load


def step(state: tuple[Server, Load]) -> list[list[str]]:
    """All clients at once: the texts of each."""
    server, load = state
    hands = [load.prompts[i::load.clients] for i in range(load.clients)]
    with ThreadPoolExecutor(load.clients) as pool:
        return list(pool.map(lambda hand: server.ask(hand, load.new), hands))


def agree(load: Load) -> Agreement:
    """Texts that differ, of all."""
    a, b = ([text for hand in step(side(load)) for text in hand] for side in (ours, theirs))
    return Agreement("share of texts that differ", sum(x != y for x, y in zip(a, b, strict=True)) / len(a), 0.0)


def cases(options: Options) -> Cases:
    """A small GPT-2, asked by 1, 4 and 16 clients."""
    options.peer("serve", PEERS)
    texts = documents(50 if options.quick else 500)
    tokenizer = Tokenizer.train(texts, "byte-bpe", 400 if options.quick else 6000)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2} if options.quick else {"n_embd": 256, "n_layer": 4, "n_head": 4}
    config = GPT2Config(**sizes, n_positions=256, vocab_size=len(tokenizer), eos_token_id=None, bos_token_id=None)
    new, asked = (4, 16) if options.quick else (16, 16)
    prompts = tuple(" ".join(text.split()[:8 + 3 * (i % 8)]) for i, text in enumerate(texts[:asked]))
    for clients in CLIENTS:
        load = Load(config, tokenizer, prompts, new, clients)
        about = f"{asked} requests for {new} tokens each, {clients} at a time, GPT-2 of {config.n_layer} layers of {config.n_embd}"
        sides = (Contender("polymodal", partial(ours, load), step), Contender("transformers, one by one", partial(theirs, load), step))
        yield Case(f"{clients} client{'s' * (clients > 1)}", about, "tokens", asked * new, sides, partial(agree, load), weigh=False)
