"""`polymodal compare`: runs beside each other on one page: results, settings that differ, all curves, what the models do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...shared.errors import UserError
from ..base.console import aligned
from ..run.directory import Run
from ..run.recipe import Recipe
from . import page
from .report import CHANCE, SPLITS, chance, labels, measured, preview, words
from .status import Status, duration, read_run, speed, status

AXES = {"updates": "update", "samples": "samples", "tokens": "tokens", "seconds": "elapsed_s"}
"""What the curves can be drawn over, and the name of it in the log."""
_MAX_QUANTITIES, _MAX_PREVIEWS, _LONGEST, _NARROW = 12, 4, 120, 40
_ALSO = ("lr", "grad_norm", "tokens_per_s", "samples_per_s")
"""Quantities of training that are drawn after the measured ones."""
_ABSENT = "-"


@dataclass(frozen=True)
class Compared:
    """A run that can be read."""

    name: str
    """Unlike that of any other run on the page."""
    run: Run
    recipe: Recipe
    rows: list[dict[str, Any]]
    status: Status

    def split(self, name: str) -> list[dict[str, Any]]:
        """The lines of one split."""
        return [row for row in self.rows if row["split"] == name]

    @cached_property
    def began(self) -> list[dict[str, Any]]:
        """What environment.json says of its starts."""
        return self.run.starts()

    @cached_property
    def described(self) -> dict[str, Any]:
        """What system.json says."""
        return self.run.described()

    def last(self, split: str) -> Mapping[str, Any]:
        """The last line of a split; empty without any."""
        return (self.split(split) or [{}])[-1]

    def best(self) -> Mapping[str, Any]:
        """The evaluation with the lowest loss; empty without any."""
        return min((row for row in self.split("eval") if isinstance(row.get("loss"), float)), key=lambda row: row["loss"], default={})

    def data(self, kind: str) -> list[Mapping[str, Any]]:
        """The data sets of the last start, as environment.json has them: `data` or `eval_data`."""
        found = (self.began or [{}])[-1].get(kind) or []
        return [found] if isinstance(found, Mapping) else found  # older versions kept one

    def held_out(self) -> str:
        """The held-out data of the last start, by fingerprint; empty where it is not known."""
        return ", ".join(str(data["fingerprint"])[:12] for data in self.data("eval_data"))

    def curve(self, split: str, name: str, by: str) -> tuple[list[float], list[float]]:
        """A quantity over `by` of `AXES`, without values that are missing."""
        rows = [row for row in self.split(split) if isinstance(row.get(name), (int, float))]
        key = AXES[by]
        if by == "seconds" and split == "eval":  # an evaluation says after which update, and training when that was
            known = [row for row in self.split("train") if isinstance(row.get(key), float)]
            if not known:
                return [], []
            at = np.interp([row["update"] for row in rows], [0, *(row["update"] for row in known)], [0, *(row[key] for row in known)])
            return at.tolist(), [row[name] for row in rows]
        there = [row for row in rows if isinstance(row.get(key), (int, float))]
        return [row[key] for row in there], [row[name] for row in there]


def compare(directories: Sequence[str | Path], out: str | Path, by: str = "updates") -> dict[str, Any]:
    """Write a page that compares runs.

    Args:
        directories: two runs or more: finished, going on, of any systems. One that cannot be read is named and left out.
        out: the HTML file.
        by: what the curves are drawn over, of `AXES`.

    Returns:
        `out`, `runs` (results by run), `settings` (those that differ: key -> value by run), `notes` (what to know before numbers are
        compared), `broken` (run -> what is wrong with it).

    Raises:
        UserError: fewer than two runs can be read, or more than a figure can show.
    """
    if by not in AXES:
        raise UserError(f"--by is {by!r}, expected one of: {', '.join(AXES)}")
    if not 2 <= len(directories) <= page.MOST_LINES:
        raise UserError(f"compare is for 2 to {page.MOST_LINES} runs, and {len(directories)} are given"
                        + ("; `polymodal report` shows one" if len(directories) < 2 else ""))
    found: list[Compared] = []
    broken: dict[str, str] = {}
    for name, directory in zip(labels(directories), map(Path, directories), strict=True):
        try:
            run, recipe, rows = read_run(directory)
            found.append(Compared(name, run, recipe, rows, status(directory)))
            _ = found[-1].began
        except UserError as error:
            broken[name] = " ".join(str(error).split())
    found = [one for one in found if one.name not in broken]
    if len(found) < 2:
        raise UserError(f"fewer than two runs can be read: {'; '.join(f'{name}: {reason}' for name, reason in broken.items())}")
    results, settings = _results(found), differing(found)
    remarks = [*notes(found), *(f"{name} is left out: {why}" for name, why in broken.items())]
    _page(found, results, settings, remarks, by).save(Path(out))
    return {"out": str(out), "runs": {one.name: _facts(one) for one in found}, "results": {"header": results[0], "rows": results[1:]},
            "settings": settings, "notes": remarks, "broken": broken}


def _facts(one: Compared) -> dict[str, Any]:
    best = one.best()
    return {**one.status.to_dict(), "best": {"update": best["update"], "loss": best["loss"]} if best else None}


# --- what came out ---------------------------------------------------------------------------------------------------


def _results(found: Sequence[Compared]) -> list[list[str]]:
    """A table with a column for each run; its first row says which."""

    def row(name: str, value: Callable[[Compared], str | None]) -> list[str]:
        return [name, *(value(one) or _ABSENT for one in found)]

    names = dict.fromkeys(name for one in found if one.last("eval") for name in measured(one.last("eval")) if name != "loss")
    table = [
        row("run", lambda one: one.name),
        row("recipe", lambda one: f"{one.recipe.name} ({one.recipe.system})"),
        row("state", lambda one: one.status.state),
        row("updates", lambda one: f"{one.status.update:,} of {one.status.max_updates:,}"),
        row("samples", lambda one: _count(one.last("train").get("samples"))),
        row("tokens", lambda one: _count(one.last("train").get("tokens"))),
        row("time of training", lambda one: _time(one.last("train").get("elapsed_s"))),
        row("speed", lambda one: speed(one.last("train"))),
        row("training loss", lambda one: _number(one.last("train").get("loss"))),
        row("held-out loss", lambda one: _number(one.last("eval").get("loss"))),
        row("lowest held-out loss", lambda one: f"{_number(one.best()['loss'])} (update {one.best()['update']:,})" if one.best() else None),
    ]
    return table + [row(f"held-out {words(name)}", lambda one, name=name: _number(one.last("eval").get(name))) for name in names]


def _count(value: Any) -> str | None:
    return f"{value:,}" if value else None


def _time(value: Any) -> str | None:
    return duration(value) if isinstance(value, float) else None


def _number(value: Any) -> str | None:
    return f"{value:,.4f}" if isinstance(value, (int, float)) else None


# --- what differs ----------------------------------------------------------------------------------------------------


def differing(found: Sequence[Compared]) -> dict[str, dict[str, Any]]:
    """Settings, data, beginnings and machines that are not the same in all runs: by key, the value of each run that has it."""
    each = {one.name: _settings(one, len({other.recipe.system for other in found}) == 1) for one in found}
    keys = dict.fromkeys(key for settings in each.values() for key in settings)
    table = {key: {name: settings[key] for name, settings in each.items() if key in settings} for key in keys}
    return {key: values for key, values in table.items()
            if len(values) < len(each) or any(value != next(iter(values.values())) for value in values.values())}


def _settings(one: Compared, with_network: bool) -> dict[str, Any]:
    """Everything that determines a run, under dotted names; of its network only where all runs have the same kind."""
    start = (one.began or [{}])[-1]
    network = one.described.get("config", {}) if with_network else {}
    data = {kind: [f"{part.get('source', '?')} ({str(part.get('fingerprint'))[:12]}{_weight(part)})" for part in one.data(kind)]
            for kind in ("data", "eval_data") if one.data(kind)}
    machine = {name: start[name] for name in ("world_size", "device", "precision", "torch", "polymodal") if name in start}
    model = {"begins with": one.described["model"]} if one.described.get("model") else {}
    return {**_flat(one.recipe.to_dict()), **_flat(network, "network."), **model, **data,
            **{f"machine.{name}": value for name, value in machine.items()}}


def _weight(part: Mapping[str, Any]) -> str:
    return f", weight {part['weight']:g}" if "weight" in part and part["weight"] != 1 else ""


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {before + key: value}
    return flat


def notes(found: Sequence[Compared]) -> list[str]:
    """What a reader must know before numbers of these runs are compared."""
    said: list[str] = []

    def groups(value: Callable[[Compared], str]) -> str | None:
        """Who has what, unless all have the same; runs of which it is not known say nothing."""
        known: dict[str, list[str]] = {}
        for one in found:
            if text := value(one):
                known.setdefault(text, []).append(one.name)
        return "; ".join(f"{', '.join(names)}: {text}" for text, names in known.items()) if len(known) > 1 else None

    if text := groups(lambda one: one.recipe.system + (f" {one.recipe.task}" if one.recipe.task else "")):
        said.append(f"The systems or tasks differ ({text}): a loss of one is no loss of another.")
    if text := groups(lambda one: one.held_out()):
        said.append(f"The held-out data differ ({text}): their held-out numbers are of different samples.")
    if text := groups(_tokens):
        said.append(f"The tokenizers differ ({text}): losses and perplexities are of different tokens.")
    if text := groups(lambda one: str(one.recipe.data.ramp)):
        said.append(f"The batches differ ({text} samples an update): --by samples draws the curves over what was read.")
    for one in found:
        state = one.status
        if state.state != "finished":
            said.append(f"{one.name} is not at its end: {state.state}, update {state.update:,} of {state.max_updates:,} ({state.says}).")
        if len(one.began) > 1:
            at = ", ".join(f"{start.get('update', 0):,}" for start in one.began)
            said.append(f"{one.name} was started {len(one.began)} times, after updates {at}.")
        if not one.rows:
            said.append(f"{one.name} has logged nothing yet.")
        elif not one.split("eval"):
            said.append(f"{one.name} has no evaluation: it has no held-out data, or has not come to one.")
        if events := one.run.events():
            said.append(f"{one.name} has {len(events)} updates that went wrong (`polymodal inspect` lists them).")
    return said


def _tokens(one: Compared) -> str:
    try:
        tokenizer = one.run.tokenizer()
    except UserError:
        return ""
    return "" if tokenizer is None else tokenizer.fingerprint[:12]


# --- the page --------------------------------------------------------------------------------------------------------


def _page(found: Sequence[Compared], results: Sequence[Sequence[str]], settings: Mapping[str, Mapping[str, Any]], remarks: Sequence[str],
          by: str) -> page.Page:
    sheet = page.Page(f"Comparison: {', '.join(one.name for one in found)}", "What came out, what differs, and all curves.")
    header, *rows = results
    sheet.section("Results", page.table(header, rows), *(page.paragraph(remark) for remark in remarks))
    same = "Nothing that determines a run differs."
    cells = [[key, *(_shown(values.get(one.name)) if one.name in values else _ABSENT for one in found)] for key, values in settings.items()]
    sheet.section("Settings that differ", page.table(["setting", *(one.name for one in found)], cells) if cells else page.paragraph(same))
    figures = _figures(found, by)
    sheet.section("Curves", page.grid(*figures) if figures else page.paragraph("No run has logged anything yet."))
    shown = _previews(found)
    if shown:
        sheet.section("What the models do with held-out samples", *shown)
    return sheet


def _shown(value: Any, most: int = _LONGEST) -> str:
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return (text or "empty") if len(text) <= most else f"{text[:most]} ..."


def _figures(found: Sequence[Compared], by: str) -> list[str]:
    """Held-out and training curves of each quantity that several runs have, the loss first."""
    names = dict.fromkeys(name for one in found for split in ("eval", "train") if one.last(split) for name in measured(one.last(split))
                          if not name.endswith(CHANCE))
    wanted = [(name, label) for name in [*names][:_MAX_QUANTITIES] for label in ("held-out", "training")]
    figures: list[str] = []
    for name, label in [*wanted, *((name, "training") for name in _ALSO)]:
        lines = {one.name: one.curve(SPLITS[label], name, by) for one in found}  # all of them: a run has one colour on the whole page
        chances = {one.name: value for one in found for value in chance(one.last("eval"), name).values()}
        levels = {f"chance of {run}": value for run, value in chances.items()}
        if chances and len(set(chances.values())) == 1:
            levels = {"chance": next(iter(chances.values()))}
        drawn = [len(x) for x, y in lines.values() if any(y)]
        if len(drawn) > (name != "loss") and max(drawn) > 1:  # not one run, one evaluation, or tokens where there are none
            figures.append(page.curves(f"{label} {words(name)}" if name not in _ALSO else words(name), lines, x_label=_axis(by),
                                       levels=levels, log_y="perplexity" in name, scales=name not in _ALSO))
    return figures


def _axis(by: str) -> str:
    return {"updates": "update", "seconds": "seconds of training"}.get(by, by)


def _previews(found: Sequence[Compared]) -> list[str]:
    """The last previews of the runs, sample by sample beside each other."""
    last: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        samples = one.run.samples()
        last[one.name] = [s for s in samples if s["update"] == samples[-1]["update"]][:_MAX_PREVIEWS] if samples else []

    def beside(number: int) -> str:
        return page.grid(*(page.column(f"{one.name}, update {sample['update']:,}", preview(one.run, sample))
                           for one in found for sample in last[one.name][number : number + 1]))

    return [beside(number) for number in range(max(map(len, last.values())))]


def lines(result: Mapping[str, Any]) -> list[str]:
    """A comparison for people."""
    made = aligned([result["results"]["header"], *result["results"]["rows"]])
    if result["settings"]:
        names = list(result["runs"])
        rows = [[key, *(_shown(values[name], _NARROW) if name in values else _ABSENT for name in names)]
                for key, values in result["settings"].items()]
        made += ["", *aligned([["setting", *names], *rows])]
    return [*made, *(["", *result["notes"]] if result["notes"] else []), f"wrote {result['out']}"]
