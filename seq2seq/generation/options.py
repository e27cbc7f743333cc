"""The settings of generation: one frozen record, and the keyword arguments that make one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from ...shared.errors import raise_problems

DEFAULT_NEW_TOKENS = 50
MOST_LOGPROBS = 20


@dataclass(frozen=True)
class GenerationSettings:
    """How a text is continued. Names, order of effects and defaults are those of transformers' `generate`."""

    max_new_tokens: int | None = None
    """At most this many tokens; None for `max_length`, or else `default_new_tokens`."""
    max_length: int | None = None
    """Tokens of the whole text, prompt included, where `max_new_tokens` is None; at most what the model's positions leave."""
    default_new_tokens: int = DEFAULT_NEW_TOKENS
    """Where neither is given: at most this many tokens, or what the model's positions leave."""
    min_new_tokens: int = 0
    """A text does not end before it has this many tokens."""
    min_length: int = 0
    """A text does not end before it has this many tokens, prompt included."""
    do_sample: bool = False
    """Draw from the distribution; else take the most probable token."""
    temperature: float = 1.0
    """Divides the logits before drawing."""
    top_k: int = 50
    """Draw among the k most probable tokens; 0 for all."""
    top_p: float = 1.0
    """Draw among the fewest most probable tokens whose probabilities reach p (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Draw among the tokens that have at least this fraction of the most probable one's probability; 0 for all."""
    repetition_penalty: float = 1.0
    """Divides positive scores of tokens that occurred already and multiplies negative ones (Keskar et al. 2019)."""
    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens occurs twice (Paulus et al. 2018); 0 for no limit."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that never occur."""
    suppress_tokens: tuple[int, ...] = ()
    """Tokens that are never written."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Tokens that a text does not begin with."""
    forced_bos_token_id: int | None = None
    """The token behind a prompt of one token, such as what an encoder-decoder starts from."""
    forced_eos_token_id: int | tuple[int, ...] | None = None
    """The last token, or one of several, where a text is as long as it may be."""
    renormalize_logits: bool = False
    """Make probabilities of the scores after all these rules; of beams that changes the results."""
    num_beams: int = 1
    """Number of beams of a beam search (Graves 2012); 1 for none."""
    num_return_sequences: int = 1
    """Continuations of each prompt: draws, or the best of the beams."""
    length_penalty: float = 1.0
    """A beam's log-probability is divided by its number of new tokens to this power: above 0 favours long texts."""
    early_stopping: bool | Literal["never"] = False
    """End a beam search when there are `num_beams` ended texts (True), when a better one is unlikely (False), or when a
    better one is impossible ("never")."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Ends a text, or each of several does; None for the model's, -1 for none."""
    pad_token_id: int | None = None
    """Follows an end; None for the model's."""
    bos_token_id: int | None = None
    """What a decoder starts from where there is no prompt; None for the model's."""
    decoder_start_token_id: int | None = None
    """What an encoder-decoder's text starts from; None for the model's."""
    seed: int | None = None
    """Seed of the draws. The draws of a prompt do not depend on the other prompts."""
    stop_strings: tuple[str, ...] = ()
    """A text ends before the first of these."""
    logprobs: int | None = None
    """Tell the log-probability of each token under the model, before any of these rules, and this many most probable tokens."""
    truncate: bool = False
    """Of a decoder's prompt that leaves no room for the new tokens, read the last tokens that do; else it is refused."""
    use_cache: bool = True
    """Keep keys and values; without, every token reads everything before it again: slow, for checks."""

    def __post_init__(self) -> None:
        """Check ranges and combinations."""
        rules: list[tuple[bool, str]] = [
            (self.max_new_tokens is None or self.max_new_tokens >= 1, f"max_new_tokens is {self.max_new_tokens}, expected at least 1"),
            (self.max_length is None or self.max_length >= 1, f"max_length is {self.max_length}, expected at least 1"),
            (self.default_new_tokens >= 1, f"default_new_tokens is {self.default_new_tokens}, expected at least 1"),
            (self.min_length >= 0, f"min_length is {self.min_length}, expected a number of tokens, or 0 for no limit"),
            (all(self.bad_words_ids), "bad_words_ids holds an empty sequence: give at least one token"),
            (self.min_new_tokens >= 0, f"min_new_tokens is {self.min_new_tokens}, expected a number of tokens, or 0 for no limit"),
            (self.max_new_tokens is None or self.min_new_tokens <= max(self.max_new_tokens, 1),
             f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens, {self.max_new_tokens}"),
            (not self.do_sample or self.temperature > 0, f"temperature is {self.temperature}, expected a number above 0"),
            (self.top_k >= 0, f"top_k is {self.top_k}, expected a number of tokens, or 0 for all"),
            (0 < self.top_p <= 1, f"top_p is {self.top_p}, expected a probability above 0 and at most 1"),
            (0 <= self.min_p <= 1, f"min_p is {self.min_p}, expected a fraction from 0 to 1"),
            (self.repetition_penalty > 0, f"repetition_penalty is {self.repetition_penalty}, expected a number above 0 (1 for none)"),
            (self.no_repeat_ngram_size >= 0,
             f"no_repeat_ngram_size is {self.no_repeat_ngram_size}, expected a number of tokens, or 0 for no limit"),
            (self.num_beams >= 1, f"num_beams is {self.num_beams}, expected at least 1"),
            (self.num_return_sequences >= 1, f"num_return_sequences is {self.num_return_sequences}, expected at least 1"),
            (any(self.early_stopping is v for v in (True, False)) or self.early_stopping == "never",
             f"early_stopping is {self.early_stopping!r}, expected True, False or 'never'"),
            (all(self.stop_strings), "a stop string is empty: give text, or none"),
            (self.num_beams == 1 or not self.do_sample, "beams and draws exclude each other: give num_beams or do_sample"),
            (self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS,
             f"logprobs is {self.logprobs}, expected a number of tokens from 0 to {MOST_LOGPROBS}"),
            (self.num_beams == 1 or self.logprobs is None, "logprobs need one beam: leave num_beams or logprobs out"),
            (self.num_beams == 1 or not self.stop_strings, "stop strings need one beam: leave num_beams or stop_strings out"),
            (self.num_beams == 1 or self.num_return_sequences <= self.num_beams,
             f"num_return_sequences is {self.num_return_sequences}, expected at most num_beams, {self.num_beams}"),
            (self.num_beams > 1 or self.do_sample or self.num_return_sequences == 1,
             "num_return_sequences above 1 needs do_sample or num_beams: the most probable continuation is one"),
        ]
        raise_problems([problem for fine, problem in rules if not fine], "generate")

    @property
    def copies(self) -> int:
        """Rows that continue one prompt."""
        return self.num_beams if self.num_beams > 1 else self.num_return_sequences


class GenerationOptions(TypedDict, total=False):
    """The fields of `GenerationSettings` as keyword arguments, but those that only a model's file sets (`FilledOptions`)."""

    max_new_tokens: int | None
    min_new_tokens: int
    min_length: int
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    bad_words_ids: tuple[tuple[int, ...], ...]
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]
    forced_bos_token_id: int | None
    forced_eos_token_id: int | tuple[int, ...] | None
    renormalize_logits: bool
    num_beams: int
    num_return_sequences: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    eos_token_id: int | tuple[int, ...] | None
    pad_token_id: int | None
    bos_token_id: int | None
    decoder_start_token_id: int | None
    seed: int | None
    stop_strings: tuple[str, ...]
    logprobs: int | None
    truncate: bool
    use_cache: bool


class FilledOptions(GenerationOptions, total=False):
    """The options, and what only a model's own file says."""

    max_length: int | None
    default_new_tokens: int


def as_ids(given: int | Sequence[int] | None) -> tuple[int, ...]:
    """One id, several, or None for none, as a tuple."""
    return () if given is None else (given,) if isinstance(given, int) else tuple(given)
