"""The page about the files of other libraries: every key that they write for our networks, and what becomes of it here.

The tables are those that the readers obey, so the page cannot say anything else. tests/pipelines/cards/test_compatibility.py walks
the classes of the libraries and fails for a key that no table has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...multimodal import clip_formats
from ...multimodal.clip_config import CLIPTextConfig, CLIPVisionConfig
from ...registry import families
from ...shared.config import COMMON
from ...shared.generation_config import GENERATION
from ...shared.keys import Key, Keys
from ...shared.tokenizer import keys as tokenizer_keys
from ...vision import processor_files
from ...vision.vit_timm import MODEL_ARGS, TIMM_KEYS
from ..base.markdown import table
from .reference import NOTE


class Section(NamedTuple):
    """One file, or one part of a file."""

    title: str
    intro: str
    rows: Sequence[tuple[str, str, str]]
    """Key, what becomes of it, and how or why."""


_TOKENIZERS = {
    "tokenizer_config.json (transformers)":
        "Of tokenizers of every family. Other keys that end with `_token` and name a token are special tokens without a role.",
    "special_tokens_map.json (transformers)":
        "Where tokenizer_config.json has `added_tokens_decoder`, its keys come first, otherwise those of this file, as in transformers.",
    "tokenizer.json (tokenizers)": "Inside a part, a key that the tokenizers library does not know is refused.",
}
"""What stands above the tables of tokenizers."""


def compatibility_page() -> str:
    """What other libraries write, key by key."""
    lines = ["# Files of other libraries\n\n",
             "What stands beside the weights in a directory of transformers 5, open_clip 3 or timm 1 counts here as it does there, or the "
             "directory is refused with a line that names the key. A key that no table has is refused, too, unless it is null.\n\n",
             "- **honoured**: the value counts.\n",
             "- **only**: these values are known; with another one, what is computed would be something else, and the file is refused.\n",
             "- **no effect**: the value cannot change what is computed here.\n"]
    for section in sections():
        lines += [f"\n## {section.title}\n\n", *([f"{section.intro}\n\n"] if section.intro else []),
                  table(("key", "here", "how, or why"), section.rows)]
    return "".join([*lines, NOTE.format(sources="the tables beside the readers")])


def sections() -> Iterator[Section]:
    """The sections of the page."""
    yield Section("config.json of every network (transformers)",
                  "A family's own table comes before this one. Any other key is refused, unless its value switches it off (null, false, 0, "
                  "empty).", rows(COMMON))
    for entry in families().values():
        if not entry.model_type:  # its files are of our own
            continue
        yield Section(f"config.json of {entry.card.title} (transformers)", "", rows(entry.config.keys()))
    for tower in (CLIPTextConfig, CLIPVisionConfig):
        yield Section(f"config.json of CLIP: {tower.__name__} (transformers)", "", rows(tower.keys()))
    yield Section("generation_config.json (transformers)",
                  "Of the decoders, T5, BART and XLNet. These are the defaults of `polymodal generate`, `summarize` and "
                  "`polymodal.generate`; options win, and `--ignore-generation-config` leaves them out. Without the file, the same keys of "
                  "config.json count. What is refused is refused when a text is asked for.", rows(GENERATION))
    for title, keys in tokenizer_keys.TABLES.items():
        yield Section(title, _TOKENIZERS.get(title, ""), rows(keys))
    intros = {
        "preprocessor_config.json, and image_processor in processor_config.json (transformers)":
            "Of CLIP, ViT, MAE and BEiT. A null stands for the class's default. Where neither file is there, pictures are prepared as "
            "`CLIPImageProcessor()`, `ViTImageProcessor()` or `BeitImageProcessor()` do it, at the model's size.",
    }
    for title, keys in processor_files.TABLES.items():
        yield Section(title, intros.get(title, ""), rows(keys))
    yield Section("model_cfg in open_clip_config.json (open_clip)", "", rows(clip_formats.MODEL_CFG))
    yield Section("vision_cfg in open_clip_config.json (open_clip)", "", rows(clip_formats.VISION_CFG))
    yield Section("text_cfg in open_clip_config.json (open_clip)", "Of CLIP's own text tower.", rows(clip_formats.TEXT_CFG))
    yield Section("text_cfg with hf_model_name in open_clip_config.json (open_clip)", "Of a text tower of transformers.",
                  rows(clip_formats.HF_TEXT_CFG))
    yield Section("config.json (timm)", "Of `save_for_hf` and `push_to_hf_hub`, for ViT.", rows(TIMM_KEYS))
    yield Section("model_args in config.json (timm)", "", rows(MODEL_ARGS))


def rows(keys: Keys) -> list[tuple[str, str, str]]:
    """The rows of a table of keys: what counts first."""
    order = ("honoured", "only", "no effect")
    return [(f"`{name}`", _fate(key), key.note) for name, key in sorted(keys.items(), key=lambda item: order.index(item[1].fate))]


def _fate(key: Key) -> str:
    return key.fate if key.fate != "only" else f"only {' or '.join(f'`{_json(v)}`' for v in key.values)}"


def _json(value: object) -> str:
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
