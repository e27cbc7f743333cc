"""Few-shot prompts: before each prompt that a language model continues stand others, with their answers.

Brown et al. 2020 (https://arxiv.org/abs/2005.14165), section 2: the examples tell the task, and no weight changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from torch import nn

from ...shared.decoder import Decoder, EncoderDecoder
from ...shared.errors import UserError
from ...shared.tokenizer import Tokenizer
from ...shared.unicode import is_blank
from .batch import room_for_prompt
from .options import GenerationSettings

BETWEEN = "\n\n"
"""Stands between examples, and ends what is written behind them."""
PROMPT = "{prompt}"


@dataclass(frozen=True)
class FewShotPrompt:
    """A prompt with the examples that have room before it."""

    text: str
    """What the model reads."""
    shown: str
    """The prompt in its template, without the examples."""
    shots: int
    """How many examples there are."""


class Examples:
    """Prompts with their answers.

    Args:
        pairs: (prompt, answer) each, in the order in which they stand before a prompt.
        template: what becomes of a prompt, such as "Question: {prompt} Answer:"; an answer follows behind a space.

    Raises:
        UserError: there are none, one is blank, or the template has no place for a prompt.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], template: str = PROMPT) -> None:
        if PROMPT not in template:
            raise UserError(f"template is {template!r}, expected one with {PROMPT} where a prompt goes")
        if not pairs:
            raise UserError("there are no examples: give at least one prompt with its answer")
        if blank := next((n for n, pair in enumerate(pairs, 1) if any(map(is_blank, pair))), None):
            raise UserError(f"example {blank} has a blank prompt or answer: give both, or take it out")
        self.template = template
        self._texts = tuple(f"{self._framed(prompt)} {answer}{BETWEEN}" for prompt, answer in pairs)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._texts)

    def _framed(self, prompt: str) -> str:
        return self.template.replace(PROMPT, prompt)

    def before(self, prompts: Sequence[str], model: nn.Module, tokenizer: Tokenizer, settings: GenerationSettings) -> list[FewShotPrompt]:
        """The prompts behind the first examples that leave the model room for the new tokens: all, fewer, or none.

        Raises:
            UserError: the model does not continue texts.
        """
        if isinstance(model, EncoderDecoder) or not isinstance(model, Decoder):
            raise UserError(f"examples stand before what a language model such as GPT-2 continues, and {type(model).__name__} is none: "
                            "leave them out")
        room = room_for_prompt(model.decoder_info, settings)
        counts = list(accumulate(len(ids) for ids in tokenizer.encode_batch(self._texts, add_special_tokens=False)))
        return [self._behind(self._framed(prompt), counts, room, tokenizer) for prompt in prompts]

    def _behind(self, shown: str, counts: Sequence[int], room: int, tokenizer: Tokenizer) -> FewShotPrompt:
        # tokens of parts are nearly those of the whole; the loop counts the whole ones
        shots = sum(count <= room + 2 * n for n, count in enumerate(counts, 1))
        while True:
            text = "".join((*self._texts[:shots], shown))
            if not shots or len(tokenizer.encode(text, add_special_tokens=False)) <= room:
                return FewShotPrompt(text, shown, shots)
            shots -= 1

    def lacking(self, prompts: Sequence[FewShotPrompt]) -> str:
        """A line for people where prompts have room for fewer examples than there are; else empty."""
        short = [p.shots for p in prompts if p.shots < len(self)]
        return f"{len(short)} of {len(prompts)} prompts have room for fewer than the {len(self)} examples; the fewest is {min(short)}" \
            if short else ""


def ending(settings: GenerationSettings) -> GenerationSettings:
    """The settings with an end where the next example would begin, unless they name other ends; beams have none."""
    return settings if settings.stop_strings or settings.num_beams > 1 else replace(settings, stop_strings=(BETWEEN,))
