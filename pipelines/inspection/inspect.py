"""Looking at data and runs: what a data set holds, what its samples are, what an objective makes of them, how far a run is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...shared.errors import BadSample, UserError
from ...shared.sample import IMAGE_FIELDS, PAIR_FIELD, TARGET_FIELD, TEXT_FIELDS, Sample
from ..base.files import read_json_lines
from ..data.dataset import DataSet
from .picture_grid import write_grid

if TYPE_CHECKING:
    from ...shared.system import Preview
    from ...shared.tokenizer import Tokenizer
    from ..run.directory import Run

_SHOWN = 300
_RANKS, _EVENTS = 8, 5
_BAD_PICTURE = ((128, 128), (200, 60, 60))


def summary(data: DataSet) -> dict[str, Any]:
    """What a data set is, as one JSON object."""
    index = data.index
    return {"data": data.directory, "kind": index.kind, "samples": len(data), "fields": list(index.fields),
            "bytes": sum(s.size for s in index.shards), "fingerprint": data.fingerprint,
            "schema": dict(index.schema), "source": list(index.source),
            "shards": [{"name": s.name, "samples": s.samples, "bytes": s.size, "sha256": s.sha256} for s in index.shards]}


def summary_lines(facts: dict[str, Any], shards: int = 10) -> list[str]:
    """A summary in lines for people."""
    shard_rows = facts["shards"]
    lines = [f"{facts['data']}: {facts['samples']} samples of kind {facts['kind']} in {len(shard_rows)} shards, {_bytes(facts['bytes'])}",
             f"fields: {', '.join(facts['fields'])}",
             f"made from: {'; '.join(facts['source']) or 'unknown'}",
             f"fingerprint: {facts['fingerprint'][:16]}"]
    for name, value in facts["schema"].items():
        if isinstance(value, list):
            value = f"{len(value)}: {', '.join(map(str, value[:12]))}{', ...' if len(value) > 12 else ''}"
        lines.append(f"{name}: {value if not isinstance(value, float) else f'{value:.4f}'}")
    lines += [f"  {s['name']}  {s['samples']:>8} samples  {_bytes(s['bytes']):>10}  sha256 {s['sha256'][:12]}" for s in shard_rows[:shards]]
    if len(shard_rows) > shards:
        lines.append(f"  ... {len(shard_rows) - shards} more shards")
    return lines


def sample_rows(sample: Sample, classes: Sequence[str] = (), tokenizer: Tokenizer | None = None) -> list[tuple[str, str]]:
    """Each field of a sample as (name, what it holds); damaged fields tell why."""
    rows: list[tuple[str, str]] = []
    for name, data in sample.fields.items():
        try:
            rows.append((name, _shown(sample, name, data, classes, tokenizer)))
        except BadSample as error:
            rows.append((name, f"BAD: {error}"))
    return rows


def _shown(sample: Sample, name: str, data: bytes, classes: Sequence[str], tokenizer: Tokenizer | None) -> str:
    alone = Sample(sample.key, {name: data}, sample.index, sample.source)
    if name in IMAGE_FIELDS:
        picture = alone.image()
        return f"picture {picture.width}x{picture.height}, {_bytes(len(data))}"
    if name in (*TEXT_FIELDS, PAIR_FIELD, TARGET_FIELD):
        return _short(Sample(sample.key, {"txt": data}, sample.index, sample.source).text())
    if name == "cls":
        label = alone.label()
        return f"{label} ({classes[label]})" if 0 <= label < len(classes) else str(label)
    if name in ("tokens.u16", "tokens.u32"):
        ids, lengths = sample.tokens()
        text = f"{ids[:16].tolist()} ..." if tokenizer is None else _short(tokenizer.decode(ids.tolist(), skip_special_tokens=False))
        return f"{len(ids)} tokens, {len(lengths)} documents: {text}"
    if name == "lengths.u32":
        return str(np.frombuffer(data, "<u4").tolist()) if len(data) % 4 == 0 else f"BAD: {len(data)} bytes"
    if name == "json":
        return _short(str(alone.json()))
    if name.rsplit(".", 1)[-1] == "npy":
        array = alone.array(name)
        return f"array {array.dtype} {list(array.shape)}"
    return f"{_bytes(len(data))}"


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else f"{flat[:_SHOWN]}... ({len(text)} characters)"


def _bytes(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    power = min((int(count).bit_length() - 1) // 10, 4)
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` sample numbers spread evenly over a data set."""
    wanted = min(count, wanted)
    return [i * count // wanted for i in range(wanted)]


def pictures(samples: Sequence[Sample], path: Path, classes: Sequence[str], warn: Callable[[str], None]) -> int:
    """Write a grid of the samples' pictures with their captions or classes (PNG or HTML); returns how many there are."""
    cells: list[tuple[Image.Image, str]] = []
    for sample in samples:
        if not any(name in sample.fields for name in IMAGE_FIELDS):
            continue
        try:
            picture = sample.image()
        except BadSample as error:
            picture = Image.new("RGB", *_BAD_PICTURE)
            cells.append((picture, str(error)))
            continue
        rows = dict(sample_rows(Sample(sample.key, {k: v for k, v in sample.fields.items() if k in (*TEXT_FIELDS, "cls")}), classes))
        cells.append((picture, next(iter(rows.values()), sample.key)))
    if not cells:
        raise UserError("the samples hold no pictures to draw (fields jpg, png or webp)")
    return write_grid(cells, path, warn)


def draw_previews(previews: Sequence[Preview], path: Path, warn: Callable[[str], None]) -> int:
    """Write a grid of the pictures that an objective made, as the network gets them (PNG or HTML); returns how many there are."""
    cells = [(Image.fromarray(p.image), next((value for _, value in p.rows), "")) for p in previews if p.image is not None]
    if not cells:
        raise UserError("the objective makes no pictures of these samples")
    return write_grid(cells, path, warn)


def run_summary(run: Run) -> dict[str, Any]:
    """How far a run is, as one JSON object."""
    from ..run.checkpoint import all_checkpoints
    from ..run.directory import BAD

    resolved = run.recipe()
    last = {split: rows[-1] for split in ("train", "eval") if (rows := run.metrics(split))}
    return {"run": str(run.directory), "recipe": resolved.name, "system": resolved.system, "size": resolved.size,
            "max_updates": resolved.max_updates, "last": last, "skipped": len(read_json_lines(run.directory / BAD)),
            "previews": [p["rows"] for p in run.samples()[-2:]],
            "checkpoints": [c.path.name for c in all_checkpoints(run.checkpoints)], "exported": run.export.is_dir(),
            "events": run.events(), **_health(run, last.get("train", {}).get("step_s"))}


def _health(run: Run, update_seconds: float | None) -> dict[str, Any]:
    """How the ranks are, and what each of them does, the ones to look at first."""
    from .diagnosis import diagnose, read_ranks

    ranks = read_ranks(run.directory)
    found = diagnose(ranks, update_seconds or 0.0)
    first = sorted(ranks, key=lambda rank: (rank.rank not in found.ranks, rank.rank))
    return {"health": asdict(found), "ranks": [{**asdict(rank), "does": rank.describe()} for rank in first]}


def run_lines(facts: dict[str, Any]) -> list[str]:
    """A run's summary in lines for people."""
    lines = [f"{facts['run']}: {facts['recipe']} ({facts['system']} {facts['size']}), {facts['max_updates']} updates long",
             f"checkpoints: {', '.join(facts['checkpoints']) or 'none'}", f"exported: {'yes' if facts['exported'] else 'no'}"]
    for split, row in facts["last"].items():
        numbers = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k != "split")
        lines.append(f"last {split}: {numbers}")
    lines += _health_lines(facts)
    if facts["skipped"]:
        lines.append(f"skipped samples: {facts['skipped']} (bad.jsonl)")
    for rows in facts["previews"]:
        lines += ["what the model made of a held-out example:", *(f"  {name}: {value}" for name, value in rows)]
    return lines


def _health_lines(facts: dict[str, Any]) -> list[str]:
    from ..train.events import describe_event

    health, ranks, events = facts["health"], facts["ranks"], facts["events"]
    lines = [f"ranks: {health['state']}: {health['says']}"]
    if health["state"] in ("running", "hanging", "failed"):
        for rank in ranks[:_RANKS]:
            mark = "*" if rank["rank"] in health["ranks"] else " "
            lines.append(f" {mark}rank {rank['rank']} ({rank['host']}, process {rank['pid']}, {rank['process']}): {rank['does']}")
            if health["state"] == "hanging":
                lines += [f"      in {call}" for call in rank["at"]]
        if len(ranks) > _RANKS:
            lines.append(f"  ... {len(ranks) - _RANKS} more (all with --json)")
    lines += [f"event: {describe_event(event)}" for event in events[-_EVENTS:]]
    if len(events) > _EVENTS:
        lines.append(f"  ... and {len(events) - _EVENTS} before (events.jsonl)")
    return lines
