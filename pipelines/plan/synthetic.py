"""A micro-batch of made-up samples, for planning a run whose data is not there yet."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import Image

from ...shared.errors import BadSample, UserError
from ...shared.family import Context, Family
from ...shared.regions import DEFAULT_REGIONS, Regions
from ...shared.sample import SECOND, Sample
from ...shared.settings import build_settings
from ...shared.system import Batch, Objective
from ...shared.tokenizer import STYLES, Tokenizer
from ..run.recipe import Recipe

_MAX_WORDS = 1 << 13
_TRIED = 8
"""Samples by which the longest text that fits is found."""
_LANE = 1 << 20  # rows of different texts have numbers that are far apart
_COUNTED = 4096
"""Records of a sample of counted pairs."""
_WORDS = tuple("".join(letters) for letters in np.random.default_rng(0).choice(list("abcdefgh"), (100, 4)))


def synthetic_batch(objective: Objective[Any], samples: int) -> Batch:
    """A batch of samples that are as long as the objective takes them: random words, noise for pictures, class 0."""
    if objective.row_length is not None:
        batch = objective.collate(_examples(objective, 0, samples))
        batch.samples, batch.sample_ids = samples, [index * _LANE for index in range(samples)]
        return batch
    few = min(samples, _TRIED)  # all are as long as these
    words, examples = 8, _examples(objective, 8, few)
    while words < _MAX_WORDS:  # longer, until a sample would become two
        longer = _examples(objective, words * 2, few)
        if len(longer) > len(examples) or _tokens(objective, longer) <= _tokens(objective, examples):
            break
        words, examples = words * 2, longer
    # the last doubling goes beyond what fits: come near from below
    fitting = words
    for step in range(1, 8):
        longer = _examples(objective, words + words * step // 8, few)
        if len(longer) > len(examples):
            break
        fitting = words + words * step // 8
    return objective.collate(_examples(objective, fitting, samples))


def _tokens(objective: Objective[Any], examples: list[Any]) -> int:
    return objective.collate(examples).tokens


def _examples(objective: Objective[Any], words: int, samples: int) -> list[Any]:
    found: list[Any] = []
    for index in range(samples):
        make = partial(_sample, words=words) if objective.row_length is None else partial(_row, length=objective.row_length)
        sample = make(index)
        sample.pair_with(partial(make, index + samples))
        sample.followed_by(partial(make, index + 2 * samples))
        found += objective.example(sample, np.random.default_rng(index))
    return found


def _sample(index: int, words: int) -> Sample:
    text = " ".join(np.random.default_rng(index).choice(_WORDS, words)).encode()
    annotations = json.dumps({"score": 0, "words": text.decode().split(), "tags": [0] * words, "choices": ["a", "b"],
                              "question": "a", "answers": [], "box": [0.25, 0.25, 0.75, 0.75]}).encode()
    second = {f"{SECOND}{name}": data for name, data in _regions().items()}
    return Sample(str(index), {"txt": text, "target.txt": text, "png": _picture(), "cls": b"0", "json": annotations, **_regions(),
                               **second, **_counted_pairs()}, index)


def _row(index: int, length: int) -> Sample:
    # ids that every vocabulary has
    ids = np.random.default_rng(index).integers(0, len(_WORDS), length, dtype=np.uint16)
    return Sample(str(index), {"tokens.u16": ids.astype("<u2").tobytes()}, index)


@cache
def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def _regions() -> dict[str, bytes]:
    """As bottom-up attention makes them: features of width 2048 and 1601 classes."""
    boxes = np.tile([0.25, 0.25, 0.75, 0.75], (DEFAULT_REGIONS, 1))
    classes = np.full((DEFAULT_REGIONS, 1601), 1 / 1601)
    return Regions(np.random.default_rng(0).random((DEFAULT_REGIONS, 2048)), boxes, classes).fields()


@cache
def _counted_pairs() -> dict[str, bytes]:
    """As many pairs of words as `pack --kind cooccurrence` writes into a sample, with ids that every vocabulary has."""
    rng, found = np.random.default_rng(0), dict[str, bytes]()
    first, second = rng.integers(0, len(_WORDS), (2, _COUNTED), dtype=np.int32)
    for name, column in (("first.npy", first), ("second.npy", second), ("weight.npy", np.ones(_COUNTED, dtype=np.float32))):
        buffer = io.BytesIO()
        np.save(buffer, column)
        found[name] = buffer.getvalue()
    return found


def _toys() -> Iterator[Tokenizer]:
    """A vocabulary of the made-up words, framed in every style."""
    for style in STYLES.values():
        kind, base = ("byte-bpe", 256) if style.last else ("word", len(_WORDS))
        yield Tokenizer.train([" ".join(_WORDS)], kind, base + len(style.tokens) + style.sentinels, style=style)


def synthetic_objective(recipe: Recipe, entry: Family, context: Context, config: Any) -> Objective[Any]:
    """The recipe's objective, for samples that are made up.

    Args:
        recipe: whose objective it is.
        entry: the registry entry of its system.
        context: with a tokenizer; without one a toy of a hundred words is learned, whose ids every vocabulary has.
        config: of the network; None for the recipe's.

    Raises:
        UserError: the objective takes no such samples, and wants real data.
    """
    from ...shared.meta import without_weights  # torch is slow to import

    reasons: list[str] = []
    for tokenizer in (context.tokenizer,) if context.tokenizer is not None else itertools.chain((None,), _toys()):
        try:
            with without_weights():
                made = config if config is not None else entry.adapt(
                    build_settings(entry.config, {**entry.sizes[recipe.size], **recipe.model}, recipe.name),
                    Context(classes=context.classes, companions=context.companions, net_only=True))
                counts = np.ones(tokenizer.vocab_size, dtype=np.int64) if tokenizer and entry.task(recipe.task).reads_counts else None
                told = Context(tokenizer, context.classes, companions=context.companions, counts=counts)
                objective = recipe.build(entry, told, made).objective
            for own in objective.by_turn().values():
                own.collate(_examples(own, 8, 1))
            return objective
        except (UserError, BadSample) as error:
            reasons.append(str(error))
    raise UserError(f"recipe {recipe.name} cannot be planned with synthetic samples ({reasons[-1]}): give --data")
