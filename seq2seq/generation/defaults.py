"""What the defaults that a model brings along (`shared.generation_config`) mean beside the options of a caller.

As in transformers, what the caller says wins, then the file, then the defaults of `GenerationSettings`. What cannot be done here is refused
when a text is asked for, not when the model is loaded: a model may be needed for something else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

from torch import nn

from ...shared.errors import UserError, raise_problems
from ...shared.generation_config import GENERATION, defaults_of
from ...shared.keys import key_problems
from ...shared.settings import check_settings
from .options import FilledOptions, GenerationOptions, GenerationSettings

_TAKEN = frozenset(name for name, key in GENERATION.items() if key.fate == "honoured")


@dataclass(frozen=True)
class _Unchecked(GenerationSettings):
    """For the types of the file's values: what goes together is known only with the options."""

    def __post_init__(self) -> None:
        pass


def options_of(model: nn.Module, options: GenerationOptions, *, ignore: bool = False) -> FilledOptions:
    """`options`, and for what they leave open the model's defaults.

    Args:
        model: from `polymodal.load`.
        options: what the caller says.
        ignore: leave out the model's defaults.

    Raises:
        UserError: a default cannot be honoured, and no option replaces it.
    """
    known = defaults_of(model)
    record: dict[str, Any] = {} if ignore else {key: value for key, value in known.record.items() if key not in options}
    if isinstance(record.get("stop_strings"), str):
        record["stop_strings"] = [record["stop_strings"]]
    problems = list(key_problems(record, GENERATION))
    taken = {key: value for key, value in record.items() if key in _TAKEN}
    read, wrong = check_settings(_Unchecked, taken)
    raise_problems([*problems, *wrong], f"{known.file} ({HINT})")
    values = {key: getattr(read, key) for key in taken}
    if "max_new_tokens" in options:
        values.pop("max_new_tokens", None)
        values.pop("max_length", None)
    elif "max_new_tokens" in values:
        values.pop("max_length", None)
        values["default_new_tokens"] = values.pop("max_new_tokens")
    return cast("FilledOptions", {**values, **options})


HINT = "give the option of that name another value, or leave the file's defaults out: --ignore-generation-config, " \
       "in Python ignore_generation_config=True"


_DRAWS: dict[str, float] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Options of draws, and the values at which they do nothing."""
_BEAMS: dict[str, Any] = {"length_penalty": 1.0, "early_stopping": False}


def _meant(options: GenerationOptions, filled: FilledOptions) -> FilledOptions:
    """`filled` with draws where the caller gives an option of draws; one that would have no effect is refused.

    Temperature 0 is what draws tend to: the most probable token.
    """
    given: dict[str, Any] = dict(options)
    draws = [name for name in _DRAWS if name in given and not (name == "temperature" and given[name] == 0)]
    beams, sampled = filled.get("num_beams", 1) > 1, filled.get("do_sample", False)
    if given.get("do_sample") is False:
        idle = [name for name in draws if given[name] not in (_DRAWS[name], getattr(GenerationSettings, name))]
        raise_problems([f"{name} is for draws, and do_sample is False: leave one of them out" for name in idle], "generate")
    elif draws and given.get("num_beams", 1) > 1 and not sampled:
        raise UserError(f"{draws[0]} is for draws, and num_beams is {given['num_beams']}: leave one of them out")
    elif draws:
        filled = {**filled, "do_sample": True}
    check_beams(options, beams=beams)
    return filled


def check_beams(options: GenerationOptions, *, beams: bool) -> None:
    """Refuse what the caller says of beams where there are none."""
    given: dict[str, Any] = dict(options)
    idle = [] if beams else [name for name, neutral in _BEAMS.items() if given.get(name, neutral) != neutral]
    raise_problems([f"{name} is of beams: give num_beams above 1, or leave it out" for name in idle], "generate")


def settings_of(model: nn.Module, options: GenerationOptions, *, ignore: bool = False) -> GenerationSettings:
    """The settings that `options_of` gives; arguments as there. An option of draws alone (temperature, top_p ...) asks for draws."""
    merged = _meant(options, options_of(model, options, ignore=ignore))
    brought = sorted(set(merged) - set(options) & {f.name for f in fields(GenerationSettings)})
    try:
        return GenerationSettings(**merged)
    except UserError as error:
        if set(merged) == set(options):
            raise
        raise UserError(f"{error} ({defaults_of(model).file} says {', '.join(brought)}; {HINT})") from None
