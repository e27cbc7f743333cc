"""Every system that writes texts or makes vectors of them can be served; no family is named here."""

import asyncio

import polymodal
import pytest
import torch
from contract.cases import cases, style_of, tokenizer
from polymodal.pipelines.inference.embed import embed
from polymodal.pipelines.serving.engine import Engine
from polymodal.pipelines.serving.fields import completion, embedding
from polymodal.pipelines.serving.served import Served, _embeds
from polymodal.shared.decoder import Decoder, EncoderDecoder

WRITING = ("text2text", "translate")
"""Tasks whose networks write; those of the others are encoders with other heads."""
TEXTS = ["the old river and then the new garden", "music"]


@pytest.mark.slow
def test_what_is_served_is_what_is_written_and_embedded_elsewhere():
    asyncio.run(_all())


async def _all():
    engine = Engine(4, 8)
    engine.start()
    wrote, embedded = set(), set()
    for case in cases():
        if (case.recipe.task and case.recipe.task not in WRITING) or not (style := style_of(case)):
            continue
        tok, net = tokenizer(style), case.build().exports().get("")
        if net is None:
            continue
        served = Served("m", net.eval(), tok, "0" * 64, _embeds(net, tok))
        assert served.writes == isinstance(net, (Decoder, EncoderDecoder))
        if served.writes:
            asked = completion({"model": "m", "prompt": TEXTS, "max_tokens": 5, "temperature": 0}, {"m": served}, 8)
            request = served.completion_request(asked.settings, asked.asked, 5, listen=False)
            engine.submit(request)
            found = [text.text for several in await request.results() for text in several]
            assert found == polymodal.generate(net, TEXTS, tokenizer=tok, max_new_tokens=5, num_beams=1, return_full_text=False), case.name
            wrote.add(case.recipe.system)
        if served.embeds:
            texts = embedding({"model": "m", "input": TEXTS}, {"m": served}, 8)
            request = served.embedding_request(texts.texts, texts.lengths)
            engine.submit(request)
            vectors = torch.stack([several[0] for several in await request.results()])
            torch.testing.assert_close(vectors, embed(net, TEXTS, tok), rtol=1e-4, atol=1e-5)
            embedded.add(case.recipe.system)
    engine.stop()
    assert len(wrote) >= 8 and len(embedded) >= 18
