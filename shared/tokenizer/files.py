"""Reading and writing tokenizer directories: transformers', sentencepiece's and open_clip's layouts."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, normalizers

from ..errors import UserError
from . import build
from .styles import ALBERT, BERT, CLIP, GPT1, GPT2, OPEN_CLIP, PLAIN, ROBERTA, ROLES, T5, XLNET, Framing, Style, recognise

FILES = ("tokenizer.json", "vocab.txt", "spiece.model", "vocab.json", "merges.txt", "open_clip_config.json", "tokenizer_config.json",
         "special_tokens_map.json")
_LONGEST = 1_000_000  # transformers writes 1e30 where it knows no limit
_OURS = "polymodal"
Parts = tuple[Pipeline, Framing, bytes | None]


class NoTokenizer(UserError):
    """There is no tokenizer at all, which some callers can do without; one that cannot be read is another error."""


def read(source: str | Path) -> Parts:
    """Find and read a tokenizer; see `Tokenizer.load`."""
    if str(source) == "open_clip" and not Path(source).exists():
        return _open_clip(77)
    path = Path(source)
    if not path.exists():
        path = _download(str(source))
    folder, only = (path, None) if path.is_dir() else (path.parent, path.name)
    if only is None and not any((folder / name).is_file() for name in FILES[:6]) and (folder / "tokenizer").is_dir():
        folder = folder / "tokenizer"  # a run directory or packed data
    has = {name for name in FILES if (folder / name).is_file() and only in (None, name)}
    config = _config(folder)
    try:
        if "tokenizer.json" in has:
            return _fast(folder, config)
        if "open_clip_config.json" in has:
            return _open_clip_directory(folder)
        if "spiece.model" in has or (only or "").endswith(".model"):
            return _spiece(folder / (only or "spiece.model"), config)
        if "vocab.txt" in has or (only or "").endswith(".txt"):
            return _word_piece(folder / (only or "vocab.txt"), config)
        if "vocab.json" in has or "merges.txt" in has:
            return _bpe(folder, config)
        if only is not None and only.endswith(".json"):
            return _fast(folder, config, only)
    except UnicodeDecodeError as error:
        raise UserError(f"a tokenizer file in {folder} is not UTF-8 ({error.reason} at byte {error.start})") from None
    raise NoTokenizer(f"no tokenizer in {path}: expected one of {', '.join(FILES[:6])}")


def _download(name: str) -> Path:
    """Fetch the tokenizer files of a hub id."""
    hint = "expected a tokenizer directory or file, 'open_clip', or a hub id such as bert-base-uncased"
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(("/", ".json", ".txt", ".model")):
        raise NoTokenizer(f"no tokenizer at {name!r}: {hint}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub's client raises many kinds: bad name, no such repository, no network
        reason = f"there is no such directory, and the hub says: {type(error).__name__}"
        raise NoTokenizer(f"no tokenizer at {name!r}: {reason}; {hint}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` over `special_tokens_map.json`; empty where there is neither."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            config.update(_json(folder / name))
    return config


def _roles(config: dict[str, Any]) -> dict[str, str]:
    """Special tokens by role; a token is a string, or an object with `content`."""
    found: dict[str, str] = {}
    for role in ROLES:
        token = config.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[role] = token
    return found


def _framing(pipeline: Pipeline, config: dict[str, Any], style: Style) -> Framing:
    """Framing of a finished pipeline: what the configuration says, else what the style has."""
    single, pair = build.templates(pipeline)
    limit = config.get("model_max_length")
    ours = config.get(_OURS, {})
    inputs = config.get("model_input_names")
    typed = "token_type_ids" in inputs if inputs else style.type_ids or any(kind for _, kind in pair.parts)
    framing = Framing(
        roles=_roles(config) or dict(style.roles), single=single, pair=pair, padding_side=config.get("padding_side", style.padding_side),
        truncation_side=config.get("truncation_side", "right"), max_length=int(limit) if limit and limit < _LONGEST else None,
        type_ids=typed, pad_type=int(ours.get("pad_type", style.pad_type)), clean=ours.get("clean", ""))
    if framing.padding_side not in ("left", "right") or framing.truncation_side not in ("left", "right"):
        raise UserError("tokenizer_config.json: padding_side and truncation_side must be left or right")
    # tokens of a role that nobody put into the vocabulary (transformers writes such defaults) have no role
    present = {role: token for role, token in framing.roles.items() if pipeline.token_to_id(token) is not None}
    fallback = next((pipeline.token_to_id(present[role]) for role in ("pad", "eos") if role in present), 0)
    return replace(framing, roles=present, pad_fallback=int(ours.get("pad_fallback", fallback)))


def _fast(folder: Path, config: dict[str, Any], name: str = "tokenizer.json") -> Parts:
    """Transformers' one-file layout."""
    path = folder / name
    try:
        pipeline = Pipeline.from_str(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises plain Exception, and panics (a BaseException) on contradictory files
        raise UserError(f"{path} is not a tokenizer of the tokenizers library ({error})") from None
    model: Any = pipeline.model
    if getattr(model, "dropout", None):
        model.dropout = None  # a recipe for training-time noise; ids must be a function of the text
    if getattr(model, "end_of_word_suffix", None) and isinstance(pipeline.decoder, decoders.ByteLevel):
        pipeline.decoder = build.clip_decoder()  # transformers mends this outside of the file
    added = [token.content for token in pipeline.get_added_tokens_decoder().values()]
    style = recognise(added, (XLNET, BERT, ALBERT, ROBERTA, CLIP, GPT2)) or PLAIN
    spiece = folder / "spiece.model"
    return pipeline, _framing(pipeline, config, style), spiece.read_bytes() if spiece.is_file() else None


def _flag(config: dict[str, Any], name: str, default: bool | None) -> bool | None:
    value = config.get(name, default)
    return value if value is None else bool(value)


def _word_piece(path: Path, config: dict[str, Any]) -> Parts:
    """BERT's `vocab.txt`."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {line.removesuffix("\r"): i for i, line in enumerate(lines)}
    style = recognise(vocab, (BERT,))
    if style is None:
        raise UserError(f"{path} is not a BERT vocabulary: expected one token a line, among them {', '.join(sorted(BERT.signature))}")
    pipeline = build.word_piece(vocab, style.roles["unk"], lowercase=bool(_flag(config, "do_lower_case", True)),
                                strip_accents=_flag(config, "strip_accents", None),
                                chinese=bool(_flag(config, "tokenize_chinese_chars", True)))
    build.dress(pipeline, _present(style, vocab))
    return pipeline, _framing(pipeline, config, style), None


def _present(style: Style, vocab: dict[str, int]) -> Style:
    """The style without the tokens that the vocabulary lacks (a vocabulary file is not added to)."""
    return replace(style, tokens=tuple(t for t in style.tokens if t in vocab), roles={r: t for r, t in style.roles.items() if t in vocab})


def _bpe(folder: Path, config: dict[str, Any]) -> Parts:
    """`vocab.json` with `merges.txt`: GPT-2, RoBERTa, CLIP, GPT-1."""
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: vocab.json and merges.txt go together")
    vocab = _json(folder / "vocab.json")
    if not vocab or not all(isinstance(i, int) for i in vocab.values()):
        raise UserError(f"{folder / 'vocab.json'} must map tokens to integer ids")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [(pair[0], pair[1]) for line in lines if not line.startswith("#version") and len(pair := line.split()) == 2]
    suffixed = any(token.endswith("</w>") for token in vocab)
    style = recognise(vocab, (CLIP, GPT1) if suffixed else (ROBERTA, GPT2)) or PLAIN
    try:
        if suffixed and style is CLIP:
            pipeline = build.clip_bpe(vocab, merges, CLIP.roles["unk"])
        elif suffixed:
            pipeline = build.gpt1_bpe(vocab, merges)
        else:
            pipeline = build.byte_bpe(vocab, merges, add_prefix_space=bool(_flag(config, "add_prefix_space", False)))
    except Exception as error:  # tokenizers raises plain Exception for merges of unknown tokens
        raise UserError(f"vocab.json and merges.txt in {folder} do not belong together ({error})") from None
    build.dress(pipeline, _present(style, vocab))
    return pipeline, _framing(pipeline, config, style), None


def _spiece(path: Path, config: dict[str, Any]) -> Parts:
    """`spiece.model` with ALBERT's, T5's or XLNet's conventions, recognised by its pieces."""
    data = path.read_bytes()
    pieces = build.parse_spiece(data, str(path))
    known = {piece for piece, _ in pieces.pieces}
    style = recognise(known, (ALBERT, XLNET)) or (PLAIN if "<s>" in known else recognise(known, (T5,))) or PLAIN
    before: list[normalizers.Normalizer] = []
    if style in (ALBERT, XLNET):
        before = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        if not _flag(config, "keep_accents", False):
            before += [normalizers.NFKD(), normalizers.StripAccents()]
        if _flag(config, "do_lower_case", style is ALBERT):
            before.append(normalizers.Lowercase())
    if style.sentinels:
        style = replace(style, sentinels=int(config.get("extra_ids", style.sentinels)))
    extra = style.sentinel_tokens
    pipeline = build.sentence_piece(pieces, before, extra)
    build.dress(pipeline, _present(style, dict.fromkeys([*known, *extra], 0)))
    return pipeline, _framing(pipeline, config, style), data


def _open_clip(context: int) -> Parts:
    """The vocabulary that open_clip brings along."""
    spec = importlib.util.find_spec("open_clip")
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError("open_clip's vocabulary needs the package open_clip_torch: pip install open_clip_torch")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    pairs = [line.split() for line in lines[1:49152 - 256 - 2 + 1]]
    merges = [(left, right) for left, right in pairs]
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges), *OPEN_CLIP.tokens]
    pipeline = build.clip_bpe({token: i for i, token in enumerate(tokens)}, merges)
    build.dress(pipeline, OPEN_CLIP)
    framing = _framing(pipeline, {"model_max_length": context, _OURS: {"clean": "open_clip", "pad_fallback": 0}}, OPEN_CLIP)
    return pipeline, framing, None


def _byte_letters() -> list[str]:
    """GPT-2's letters for the 256 bytes, in the order of CLIP's vocabulary: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _open_clip_directory(folder: Path) -> Parts:
    """open_clip's own layout, whose configuration names the vocabulary."""
    text = _json(folder / "open_clip_config.json").get("model_cfg", {}).get("text_cfg", {})
    if text.get("hf_tokenizer_name"):
        raise UserError(f"{folder}: this open_clip model uses the tokenizer {text['hf_tokenizer_name']!r}, whose tokenizer.json is missing")
    if text.get("tokenizer_kwargs"):
        raise UserError(f"{folder}: tokenizer_kwargs {text['tokenizer_kwargs']} in open_clip_config.json are not supported")
    return _open_clip(int(text.get("context_length", 77)))


# ---------------------------------------------------------------------- writing

def write(folder: Path, pipeline: Pipeline, framing: Framing, spiece: bytes | None) -> None:
    """Write a tokenizer directory that transformers and `read` understand."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: a tokenizer is saved to a directory")
    roles = {f"{role}_token": token for role, token in sorted(framing.roles.items())}
    inputs = ["input_ids", *(["token_type_ids"] if framing.type_ids else []), "attention_mask"]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", **roles, "model_max_length": framing.max_length or int(1e30),
        "padding_side": framing.padding_side, "truncation_side": framing.truncation_side, "model_input_names": inputs,
        "clean_up_tokenization_spaces": False,
        _OURS: {"clean": framing.clean, "pad_type": framing.pad_type, "pad_fallback": framing.pad_fallback}}
    contents: dict[str, bytes] = {
        "special_tokens_map.json": _pretty(roles), "tokenizer_config.json": _pretty(config),
        "tokenizer.json": pipeline.to_str(pretty=True).encode("utf-8")}
    if spiece is not None:
        contents["spiece.model"] = spiece
    if folder.exists():  # beside a model's weights, say
        for name, data in contents.items():
            _replace(folder / name, data)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, data in contents.items():
            _replace(fresh / name, data)
        fresh.chmod(0o755)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _pretty(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _replace(path: Path, data: bytes) -> None:
    """Write a file in one step: a reader sees the old one or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
