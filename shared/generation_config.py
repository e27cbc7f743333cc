"""transformers' generation_config.json: the defaults of generation that a model brings along, key by key.

Without the file, keys of the same names in config.json count, where transformers 4 wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from .keys import Keys, honoured, no_effect, only, read_json

FILE = "generation_config.json"
SPEED = "about speed and memory"
OUTPUTS = "about the form of transformers' outputs"
ASSISTED = "about drafts of a second model or of the prompt, which change the speed"
GENERATION: Keys = {
    "max_length": honoured("tokens of the whole text, prompt included, where no max_new_tokens is given; at most what the model's "
                           "positions leave"),
    "max_new_tokens": honoured("comes before max_length; at most what the model's positions leave"),
    "min_length": honoured("tokens of the whole text, prompt included"),
    "min_new_tokens": honoured(),
    "early_stopping": honoured(),
    "stop_strings": honoured("a text ends before the first of them (in transformers behind it)"),
    "do_sample": honoured("with num_beams above 1 it is refused"),
    "num_beams": honoured(), "num_return_sequences": honoured(),
    "temperature": honoured(), "top_k": honoured(), "top_p": honoured(), "min_p": honoured(),
    "repetition_penalty": honoured(), "length_penalty": honoured(), "no_repeat_ngram_size": honoured(),
    "bad_words_ids": honoured(), "suppress_tokens": honoured(), "begin_suppress_tokens": honoured(),
    "forced_bos_token_id": honoured(), "forced_eos_token_id": honoured("one id or several"), "renormalize_logits": honoured(),
    "eos_token_id": honoured("one id or several, each of which ends a text"),
    "pad_token_id": honoured("what follows an end"),
    "bos_token_id": honoured("what a decoder starts from where there is no prompt"),
    "decoder_start_token_id": honoured("what an encoder-decoder's text starts from"),
    "max_time": only(None),
    "typical_p": only(None, 1.0), "epsilon_cutoff": only(None, 0.0), "eta_cutoff": only(None, 0.0), "top_h": only(None),
    "encoder_repetition_penalty": only(None, 1.0), "encoder_no_repeat_ngram_size": only(None, 0),
    "exponential_decay_length_penalty": only(None), "sequence_bias": only(None), "guidance_scale": only(None, 1.0),
    "watermarking_config": only(None), "token_healing": only(None, False), "penalty_alpha": only(None, 0.0), "dola_layers": only(None),
    "diversity_penalty": only(None, 0.0), "num_beam_groups": only(None, 1), "constraints": only(None), "force_words_ids": only(None),
    "remove_invalid_values": no_effect("about scores that are no numbers"),
    **{name: no_effect(SPEED) for name in (
        "use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory", "compile_config", "disable_compile",
        "continuous_batching_config", "prefill_chunk_size", "use_mtp")},
    **{name: no_effect(ASSISTED) for name in (
        "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
        "prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
        "assistant_ensemble_weight", "speculation_type")},
    **{name: no_effect(OUTPUTS) for name in (
        "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate")},
    "transformers_version": no_effect("says who wrote the file"),
    "_from_model_config": no_effect("says where transformers had the values from"),
}  # fmt: skip
"""Keys of generation_config.json."""


@dataclass(frozen=True)
class GenerationDefaults:
    """What a model's directory says about generation; `net.generation_defaults`."""

    record: Mapping[str, Any] = field(default_factory=dict)
    """The keys of the file, those that are null left out."""
    file: str = FILE
    """The file they stand in."""


def read_defaults(net: Any, record: Mapping[str, Any], directory: Path) -> None:
    """Take generation_config.json over into `net.generation_defaults`, or what config.json (`record`) says of it (`Format.finish`)."""
    path = directory / FILE
    if path.is_file():
        found, name = read_json(path), FILE
    else:
        found, name = {key: record[key] for key in GENERATION if key in record}, "config.json"
    net.generation_defaults = GenerationDefaults({key: value for key, value in found.items() if value is not None}, name)


def defaults_files(net: Any) -> dict[str, Mapping[str, Any]]:
    """generation_config.json of a network that came with one (`Format.files`)."""
    found = defaults_of(net)
    return {FILE: found.record} if found.file == FILE and found.record else {}


def defaults_of(model: nn.Module) -> GenerationDefaults:
    """What a model brought along; nothing where it was not read from a directory."""
    return getattr(model, "generation_defaults", GenerationDefaults())
