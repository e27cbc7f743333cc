"""What a request says: the fields of OpenAI's completions and embeddings, checked; each that cannot be honoured is refused.

A field with the value that has no effect is accepted, as clients send such. Beside OpenAI's fields stand those that other servers have,
too: `top_k`, `min_p`, `repetition_penalty`, `min_tokens` (as in vLLM) and `truncate` (as in text-embeddings-inference).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast

from ...seq2seq.generation.batch import Asked, encode_prompts
from ...seq2seq.generation.defaults import options_of, settings_of
from ...seq2seq.generation.options import FilledOptions, GenerationOptions, GenerationSettings
from ...seq2seq.generation.sampling import seeded
from ...shared.errors import UserError
from ...shared.settings import check_settings
from ...shared.unicode import half_character, is_blank
from .served import Served

T = TypeVar("T")

MOST_STOPS = 16
UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "these models continue texts and do not fill in"),
    "best_of": ((1,), "ask for n texts and choose"),
    "logit_bias": (({},), "tokens cannot be made more or less probable one by one"),
    "presence_penalty": ((0,), "use repetition_penalty"),
    "frequency_penalty": ((0,), "use repetition_penalty"),
    "dimensions": ((), "vectors have the model's size"),
}
"""Fields of OpenAI that cannot be honoured: the values that ask for nothing, and what to do instead."""


class Refused(Exception):
    """A request that gets an answer in the shape of OpenAI's errors.

    Args:
        status: of HTTP.
        message: what is wrong and what was expected.
        param: the field.
        code: for programs.
        headers: that come with the answer.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None,
                 headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    def body(self) -> dict[str, Any]:
        """The answer."""
        kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class StreamOptions:
    """How a stream goes."""

    include_usage: bool = False


@dataclass(frozen=True)
class CompletionFields:
    """The body of a request for completions, but the prompt."""

    model: str
    max_tokens: int = 16
    temperature: float | None = None
    top_p: float | None = None
    n: int = 1
    stream: bool = False
    stream_options: StreamOptions = field(default_factory=StreamOptions)
    logprobs: int | None = None
    echo: bool = False
    stop: str | list[str] = field(default_factory=list[str])
    seed: int | None = None
    user: str = ""
    """Of the client; has no effect."""
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int = 0
    truncate: bool = False


@dataclass(frozen=True)
class EmbeddingFields:
    """The body of a request for embeddings, but the input."""

    model: str
    encoding_format: Literal["float", "base64"] = "float"
    user: str = ""
    truncate: bool = False


@dataclass(frozen=True)
class Completion:
    """A request for completions, ready to run."""

    fields: CompletionFields
    served: Served
    settings: GenerationSettings
    asked: list[Asked]
    before: list[str]
    """What `echo` puts before each text."""


@dataclass(frozen=True)
class Embedding:
    """A request for embeddings, ready to run."""

    fields: EmbeddingFields
    served: Served
    texts: list[str]
    lengths: list[int]


def completion(body: Mapping[str, Any], models: Mapping[str, Served], most_rows: int) -> Completion:
    """Read a request for completions; `most_rows` texts can be asked for."""
    given, prompt = _split(body, "prompt", CompletionFields)
    fields = _fields(CompletionFields, given)
    served = _chosen(models, fields.model)
    if not served.writes:
        raise Refused(400, f"{fields.model} writes no text; it has {', '.join(served.abilities)}", param="model")
    prompts = _prompts(prompt, served)
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop
    rules = [(fields.max_tokens >= 1, "max_tokens", f"max_tokens is {fields.max_tokens}, expected at least 1"),
             (fields.n >= 1, "n", f"n is {fields.n}, expected at least 1"),
             (len(prompts) * fields.n <= most_rows, "n", f"{len(prompts)} prompts with n {fields.n} are more than {most_rows} texts"),
             (len(stops) <= MOST_STOPS, "stop", f"there are {len(stops)} stop strings, expected at most {MOST_STOPS}"),
             (not (fields.logprobs is not None and fields.stream), "logprobs", "logprobs are not streamed: leave stream or logprobs out"),
             (not (fields.logprobs is not None and fields.echo), "echo", "log-probabilities of the prompt are not computed: leave echo or "
                                                                         "logprobs out"),
             (not (fields.truncate and served.answers), "truncate", f"{fields.model} answers whole texts: leave truncate out"),
             (fields.n == 1 or fields.temperature != 0, "n", "n above 1 needs a temperature above 0: the most probable text is one")]
    for fine, param, message in rules:
        if not fine:
            raise Refused(400, message, param=param)
    settings = _settings(served, fields, stops)
    texts = [p for p in prompts if isinstance(p, str)]
    encoded = iter(encode_prompts(served.model, texts, served.tokenizer, settings))
    asked = [next(encoded) if isinstance(p, str) else Asked(p) for p in prompts]
    if fields.truncate:
        room = max(1, served.longest_new - fields.max_tokens)
        asked = [replace(one, ids=one.ids[-room:], cut=max(0, len(one.ids) - room)) for one in asked]
    for one in asked:
        _check_length(served, len(one.ids), fields.max_tokens)
    asked = [replace(one, seed=settings.seed or 0, stream=number * fields.n, stop_strings=settings.stop_strings)
             for number, one in enumerate(asked)]
    before = [(p if isinstance(p, str) else served.tokenizer.decode(p)) if fields.echo else "" for p in prompts]
    return Completion(fields, served, settings, asked, before)


def _settings(served: Served, fields: CompletionFields, stops: Sequence[str]) -> GenerationSettings:
    """The settings: what the request says, then what the model's generation_config.json says, then OpenAI's defaults (temperature 1)."""
    brought: FilledOptions = options_of(served.model, {}, ignore=served.ignore_generation_config)
    temperature = fields.temperature if fields.temperature is not None else brought.get("temperature", 1.0)
    options: GenerationOptions = {"max_new_tokens": fields.max_tokens, "min_new_tokens": fields.min_tokens, "num_beams": 1,
                                  "num_return_sequences": fields.n, "do_sample": temperature != 0, "stop_strings": tuple(stops)}
    if temperature != 0:
        options |= {"temperature": temperature, "top_k": brought.get("top_k", 0) if fields.top_k is None else fields.top_k}
        options |= cast("GenerationOptions", {name: value for name in ("top_p", "min_p") if (value := getattr(fields, name)) is not None})
    if fields.repetition_penalty is not None:
        options["repetition_penalty"] = fields.repetition_penalty
    if fields.seed is not None:
        options["seed"] = fields.seed
    if fields.logprobs is not None:
        options["logprobs"] = fields.logprobs
    return seeded(settings_of(served.model, options, ignore=served.ignore_generation_config))


def _check_length(served: Served, length: int, new: int) -> None:
    """Refuse a prompt that does not fit with its new tokens."""
    most, read = served.longest_new, served.longest_text
    if served.shares_positions and length + new > most:
        raise Refused(400, f"the model has room for {most} tokens: a prompt of {length} and max_tokens {new} need {length + new}; shorten "
                      "one of them, or pass truncate, which reads the end of a prompt", param="prompt", code="context_length_exceeded")
    if not served.shares_positions and new > most:
        raise Refused(400, f"max_tokens is {new}, and the model writes at most {most}", param="max_tokens")
    if not served.shares_positions and length > read:
        raise Refused(400, f"the prompt has {length} tokens, and the model reads {read}: shorten it", param="prompt",
                      code="context_length_exceeded")


def embedding(body: Mapping[str, Any], models: Mapping[str, Served], most_texts: int) -> Embedding:
    """Read a request for embeddings."""
    given, inputs = _split(body, "input", EmbeddingFields)
    fields = _fields(EmbeddingFields, given)
    served = _chosen(models, fields.model)
    if not served.embeds:
        raise Refused(400, f"{fields.model} makes no vectors; it has {', '.join(served.abilities)}", param="model")
    texts: list[Any] = [inputs] if isinstance(inputs, str) else inputs if isinstance(inputs, list) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "input must be a text or a list of texts; ids of tokens depend on the model's vocabulary, so send texts (in "
                      "LangChain: check_embedding_ctx_length=False)", param="input")
    if len(texts) > most_texts:
        raise Refused(400, f"input holds {len(texts)} texts, expected at most {most_texts}", param="input")
    if any(map(is_blank, texts)):
        raise Refused(400, f"text {next(n for n, text in enumerate(texts) if is_blank(text))} of input is blank", param="input")
    _check_text(texts, "input")
    lengths, most = [len(ids) for ids in served.tokenizer.encode_batch(texts)], served.longest_text
    if max(lengths) > most:
        if not fields.truncate:
            raise Refused(400, f"a text has {max(lengths)} tokens, and the model reads {most}: shorten it, or pass truncate, which "
                          "cuts its end", param="input", code="context_length_exceeded")
        lengths = [min(length, most) for length in lengths]
    return Embedding(fields, served, texts, lengths)


# ---- single fields


def _split(body: Mapping[str, Any], field: str, known: type) -> tuple[dict[str, Any], Any]:
    """The fields without nulls and the prompt, and the prompt; refuses what is known of OpenAI and cannot be honoured."""
    given = {key: value for key, value in body.items() if value is not None}
    if field not in given:
        raise Refused(400, f"the field {field} is missing", param=field)
    for name in [name for name in given if name in UNSUPPORTED and name not in known.__dataclass_fields__]:
        harmless, instead = UNSUPPORTED[name]
        if given.pop(name) not in harmless:
            raise Refused(400, f"{name} is not supported: {instead}", param=name, code="unsupported_parameter")
    return given, given.pop(field)


def _fields(cls: type[T], given: Mapping[str, Any]) -> T:
    found, problems = check_settings(cls, given)
    if found is None:
        words = [word.strip(";:,") for word in problems[0].split()]
        raise Refused(400, "; ".join(problems), param=next((name for name in given if name in words), None))
    return found


def _chosen(models: Mapping[str, Served], name: str) -> Served:
    if name not in models:
        raise Refused(404, f"there is no model {name!r}; there are {', '.join(models)}", param="model", code="model_not_found")
    return models[name]


def _prompts(prompt: Any, served: Served) -> list[str | list[int]]:
    """Texts, or lists of ids."""
    several = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    found: list[str | list[int]] = []
    for one in several:
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, list) and one and all(isinstance(i, int) and not isinstance(i, bool) for i in one):
            if wrong := [i for i in one if not 0 <= i < served.tokenizer.vocab_size]:
                raise Refused(400, f"prompt holds the id {wrong[0]}, and the vocabulary has {served.tokenizer.vocab_size} entries",
                              param="prompt")
            found.append(one)
        else:
            raise Refused(400, "prompt must be a text, a list of texts, a list of token ids, or a list of such lists", param="prompt")
    _check_text([p for p in found if isinstance(p, str)], "prompt")
    return found


def _check_text(texts: Sequence[str], param: str) -> None:
    for text in texts:
        if reason := half_character(text):
            raise Refused(400, f"{param} holds {reason}", param=param)


def refusal(error: Exception) -> Refused:
    """The answer for what went wrong while a request was read or run."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, UserError):
        return Refused(400, " ".join(str(error).split()))
    return Refused(500, "internal error; the server's log says more", code="internal_error")
