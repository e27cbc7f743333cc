"""Reading and writing tokenizer directories: transformers', sentencepiece's and open_clip's layouts."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, normalizers

from ..errors import UserError
from ..keys import check_keys, read_json, shown
from . import build, keys
from .described import ADDED, CONFIG, OURS, SPECIAL, Described, read_described, token_flags, unknown
from .styles import ALBERT, BERT, CLIP, GPT1, GPT2, OPEN_CLIP, PLAIN, ROBERTA, T5, XLNET, Framing, Style, recognise

FILES = ("tokenizer.json", "vocab.txt", "spiece.model", "vocab.json", "merges.txt", "open_clip_config.json", CONFIG, SPECIAL, ADDED)
_FORCED = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
_LONGEST = 1_000_000  # transformers writes 1e30 where it knows no limit
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
    described = read_described(folder)
    try:
        if "tokenizer.json" in has:
            return _fast(folder, described)
        if "open_clip_config.json" in has:
            return _open_clip_directory(folder)
        if "spiece.model" in has or (only or "").endswith(".model"):
            return _spiece(folder / (only or "spiece.model"), described)
        if "vocab.txt" in has or (only or "").endswith(".txt"):
            return _word_piece(folder / (only or "vocab.txt"), described)
        if "vocab.json" in has or "merges.txt" in has:
            return _bpe(folder, described)
        if only is not None and only.endswith(".json"):
            return _fast(folder, described, only)
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


def _framing(pipeline: Pipeline, described: Described, style: Style) -> Framing:
    """Framing of a finished pipeline, once it has its tokens: what the files say, else what the style has."""
    described.add_to(pipeline)
    single, pair = build.templates(pipeline)
    config, padding, truncation = described.config, pipeline.padding, pipeline.truncation
    limit = _limit(described)
    ours = replace(described, config=config.get(OURS, {}))
    inputs = config.get("model_input_names")
    known = described.style is not None
    typed = "token_type_ids" in inputs if inputs else style.type_ids or (not known and any(kind for _, kind in pair.parts))
    roles = described.roles(pipeline, style)
    if padding and "pad" not in described.named and not known and pipeline.token_to_id(padding["pad_token"]) is not None:
        roles["pad"] = padding["pad_token"]
    fallback = next((i for role in ("pad", "eos") if role in roles and (i := pipeline.token_to_id(roles[role])) is not None), 0)
    sides = ("left", "right")
    return Framing(
        roles=roles, single=single, pair=pair,
        padding_side=described.choice("padding_side", padding["direction"] if padding else style.padding_side, sides),
        truncation_side=described.choice("truncation_side", truncation["direction"] if truncation else "right", sides),
        max_length=limit if limit and limit < _LONGEST else None, type_ids=typed, pad_type=ours.count("pad_type", style.pad_type),
        clean=ours.config.get("clean") or "", pad_fallback=ours.count("pad_fallback", fallback), clean_up=_cleans_up(pipeline, described))


def _cleans_up(pipeline: Pipeline, described: Described) -> bool:
    """Whether decoded texts lose the spaces before marks; transformers 5 does not ask it of BPE, whose spaces are real, unless forced."""
    names = ("clean_up_tokenization_spaces", *([_FORCED] if isinstance(pipeline.model, models.BPE) else ()))
    return all(described.flag(name, default=False) for name in names)


def _limit(described: Described) -> int:
    """The longest input; 0 where the files do not say."""
    return described.count("model_max_length", 0) or described.count("max_len", 0)


def _fast(folder: Path, described: Described, name: str = "tokenizer.json") -> Parts:
    """Transformers' one-file layout."""
    path = folder / name
    text = path.read_text(encoding="utf-8")
    try:
        pipeline = Pipeline.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises plain Exception, and panics (a BaseException) on contradictory files
        raise UserError(f"{path} is not a tokenizer of the tokenizers library ({error})") from None
    _check_fast(json.loads(text), pipeline, path)
    model: Any = pipeline.model
    if getattr(model, "dropout", None):
        model.dropout = None  # a recipe for training-time noise; ids must be a function of the text
    if getattr(model, "end_of_word_suffix", None) and isinstance(pipeline.decoder, decoders.ByteLevel):
        pipeline.decoder = build.clip_decoder()  # transformers mends this outside of the file
    described.apply_to(pipeline)
    if described.style is not None:
        described.check_roles(path, [pipeline.id_to_token(i) for i, _ in build.templates(pipeline)[0].parts if i >= 0], unknown(pipeline))
    added = [token.content for token in pipeline.get_added_tokens_decoder().values()]
    style = described.style or recognise(added, (XLNET, BERT, ALBERT, ROBERTA, CLIP, GPT2)) or PLAIN
    spiece = folder / "spiece.model"
    return pipeline, _framing(pipeline, described, style), spiece.read_bytes() if spiece.is_file() else None


def _check_fast(record: dict[str, Any], pipeline: Pipeline, path: Path) -> None:
    """Refuse what the tokenizers library would leave out of a file in silence."""
    check_keys(record, keys.TOKENIZER_JSON, str(path))
    check_keys(record["model"], keys.MODEL, f"{path}: model")
    for token in record.get("added_tokens") or ():
        token_flags(token, f"{path}: added_tokens")
        if pipeline.token_to_id(token["content"]) != token["id"]:
            raise UserError(f"{path}: {token['content']!r} is listed in added_tokens with id {token['id']}, the vocabulary makes it "
                            f"{pipeline.token_to_id(token['content'])}: the parts of the file do not belong together")
    kept: dict[str, Any] = {name: getattr(pipeline, name) for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor")}
    for name, part in kept.items():
        if (said := record.get(name)) is not None and (lost := list(_lost(said, json.loads(part.__getstate__()), name))):
            raise UserError(f"{path}: the tokenizers library does not know {', '.join(lost[:4])}; remove it if it does not change the ids")


def _lost(said: Any, kept: Any, place: str) -> Iterator[str]:
    """The keys of a part that its own class does not write back, and their places."""
    if isinstance(said, dict) and isinstance(kept, dict):
        for name, value in said.items():
            if name in kept:
                yield from _lost(value, kept[name], f"{place}.{name}")
            elif value is not None and name not in keys.LEGACY.get(str(kept.get("type")), ()):
                yield f"{place}.{name} = {shown(value)}"
    elif isinstance(said, list) and isinstance(kept, list):
        for number, pair in enumerate(zip(said, kept)):
            yield from _lost(*pair, f"{place}[{number}]")


def _word_piece(path: Path, described: Described) -> Parts:
    """BERT's `vocab.txt`."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {line.removesuffix("\r"): i for i, line in enumerate(lines)}
    style = recognise(vocab, (BERT,))
    if style is None:
        raise UserError(f"{path} is not a BERT vocabulary: expected one token a line, among them {', '.join(sorted(BERT.signature))}")
    style = described.bare(path, (BERT,), style)
    accents = None if described.config.get("strip_accents") is None else described.flag("strip_accents", default=True)
    pipeline = build.word_piece(vocab, style.roles["unk"], lowercase=described.flag("do_lower_case", default=True), strip_accents=accents,
                                chinese=described.flag("tokenize_chinese_chars", default=True))
    described.check_options(pipeline)
    build.dress(pipeline, _present(described.renamed(style), vocab))
    return pipeline, _framing(pipeline, described, style), None


def _present(style: Style, vocab: dict[str, int]) -> Style:
    """The style without the tokens that the vocabulary lacks (a vocabulary file is not added to)."""
    return replace(style, tokens=tuple(t for t in style.tokens if t in vocab), roles={r: t for r, t in style.roles.items() if t in vocab})


def _bpe(folder: Path, described: Described) -> Parts:
    """`vocab.json` with `merges.txt`: GPT-2, RoBERTa, CLIP, GPT-1."""
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: vocab.json and merges.txt go together")
    vocab = read_json(folder / "vocab.json")
    if not vocab or not all(isinstance(i, int) for i in vocab.values()):
        raise UserError(f"{folder / 'vocab.json'} must map tokens to integer ids")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [(pair[0], pair[1]) for line in lines if not line.startswith("#version") and len(pair := line.split()) == 2]
    suffixed = any(token.endswith("</w>") for token in vocab)
    styles = (CLIP, GPT1) if suffixed else (ROBERTA, GPT2)
    style = described.bare(folder / "vocab.json", styles, recognise(vocab, styles) or PLAIN)
    try:
        if suffixed and style is CLIP:
            pipeline = build.clip_bpe(vocab, merges, CLIP.roles["unk"])
        elif suffixed:
            pipeline = build.gpt1_bpe(vocab, merges)
        else:
            pipeline = build.byte_bpe(vocab, merges, add_prefix_space=described.flag("add_prefix_space", default=False))
    except Exception as error:  # tokenizers raises plain Exception for merges of unknown tokens
        raise UserError(f"vocab.json and merges.txt in {folder} do not belong together ({error})") from None
    if style is GPT2:
        style = _with_ends(style, described)
    described.check_options(pipeline)
    build.dress(pipeline, _present(described.renamed(style), vocab))
    return pipeline, _framing(pipeline, described, style), None


def _with_ends(style: Style, described: Described) -> Style:
    """GPT-2's style with the tokens around a text that `add_bos_token` and `add_eos_token` ask for."""
    first = f"{style.roles['bos']}:{{0}} " if described.flag("add_bos_token", default=False) else ""
    last = f" {style.roles['eos']}:{{0}}" if described.flag("add_eos_token", default=False) else ""
    single = f"{first}$A:0{last}".format(0)
    return replace(style, single=single, pair=f"{single} {first}$B:1{last}".replace("{0}", "1"))


def _spiece(path: Path, described: Described) -> Parts:
    """`spiece.model` with ALBERT's, T5's or XLNet's conventions, recognised by its pieces."""
    data = path.read_bytes()
    pieces = build.parse_spiece(data, str(path))
    known = {piece for piece, _ in pieces.pieces}
    style = recognise(known, (ALBERT, XLNET)) or (PLAIN if "<s>" in known else recognise(known, (T5,))) or PLAIN
    style = described.bare(path, (ALBERT, XLNET, T5), style)
    before: list[normalizers.Normalizer] = []
    if style in (ALBERT, XLNET):
        before = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        if not described.flag("keep_accents", default=False):
            before += [normalizers.NFKD(), normalizers.StripAccents()]
        if described.flag("do_lower_case", default=style is ALBERT):
            before.append(normalizers.Lowercase())
    if style.sentinels:
        style = replace(style, sentinels=described.count("extra_ids", style.sentinels))
    extra = style.sentinel_tokens
    pipeline = build.sentence_piece(pieces, before, extra)
    described.check_options(pipeline)
    build.dress(pipeline, _present(described.renamed(style), dict.fromkeys([*known, *extra], 0)))
    return pipeline, _framing(pipeline, described, style), data


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
    framing = _framing(pipeline, Described({"model_max_length": context, OURS: {"clean": "open_clip", "pad_fallback": 0}}), OPEN_CLIP)
    return pipeline, framing, None


def _byte_letters() -> list[str]:
    """GPT-2's letters for the 256 bytes, in the order of CLIP's vocabulary: printable bytes first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def _open_clip_directory(folder: Path) -> Parts:
    """open_clip's own layout, whose configuration names the vocabulary."""
    text = read_json(folder / "open_clip_config.json").get("model_cfg", {}).get("text_cfg", {})
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
        "clean_up_tokenization_spaces": framing.clean_up,
        **({_FORCED: True} if framing.clean_up and isinstance(pipeline.model, models.BPE) else {}),
        OURS: {"clean": framing.clean, "pad_type": framing.pad_type, "pad_fallback": framing.pad_fallback}}
    contents: dict[str, bytes] = {
        SPECIAL: _pretty(roles), CONFIG: _pretty(config),
        "tokenizer.json": pipeline.to_str(pretty=True).encode("utf-8")}
    if spiece is not None:
        contents["spiece.model"] = spiece
    if folder.exists():  # beside a model's weights, say
        for name, data in contents.items():
            _replace(folder / name, data)
        (folder / ADDED).unlink(missing_ok=True)  # of the tokenizer that lay here; tokenizer.json holds the tokens of this one
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
