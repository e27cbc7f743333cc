"""The cards of the systems: pages of the documentation that are read off the registry, the family files and the recipes.

python -m polymodal.pipelines.cards.cards DOCS     writes every page that is read off the code into the folder DOCS
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...registry import families, file_of, folder_of, module_of
from ...shared.family import Context, Family
from ...shared.meta import without_weights
from ...shared.settings import build_settings
from ..base.markdown import table
from ..run.recipe import recipes
from ..run.records import paragraphs
from .compatibility import compatibility_page
from .house import with_picture
from .mask_figure import draw_mask
from .reference import NOTE, commands_page, recipe_keys_page, settings_table

FOLDERS = {"text": "Text", "seq2seq": "Sequence to sequence", "vision": "Vision", "multimodal": "Vision and language"}


def pages() -> dict[str, str]:
    """Every page that is read off the code: path below docs/ -> Markdown."""
    cards = {f"systems/{name}.md": card(entry) for name, entry in families().items()}
    figures = {f"systems/{_figure(entry, title)}": draw_mask(title, mask)
               for entry in families().values() for title, mask in entry.card.masks.items()}
    return {"systems/index.md": overview(), **cards, **figures, "commands.md": commands_page(), "recipe_keys.md": recipe_keys_page(),
            "compatibility.md": compatibility_page()}


def overview() -> str:
    """The page that lists the systems."""
    lines = ["# Systems\n\n",
             "Each system is one file that follows its paper. `polymodal systems` prints this list; a card tells what is faithful, what "
             "deviates and why, the sizes, the settings and the recipes.\n"]
    for folder, title in FOLDERS.items():
        found = [f for f in families().values() if folder_of(f) == folder]
        if found:
            rows = [(f"[{f.card.title}]({f.name}.md)", str(f.card.year), f.pretraining.objective, f"`{file_of(f)}`", f.card.reference)
                    for f in found]
            lines += [f"\n## {title}\n\n", table(("system", "year", "objective", "file", "compared with"), rows)]
    return "".join([*lines, NOTE.format(sources="the registry")])


def card(entry: Family) -> str:
    """The page of one system."""
    told = entry.card
    year = "" if told.paper.endswith(str(told.year)) else f", {told.year}"
    facts = [
        ("name", f"`{entry.name}`"), ("objective", entry.pretraining.objective), ("file", f"`{file_of(entry)}`"),
        ("compared with", told.reference),
        *_vocabulary(entry),
        ("networks that load", ", ".join(f"`{n.architecture}`" for n in entry.nets)),
        ("written in the layout of", ", ".join(dict.fromkeys(f.name for n in entry.nets for f in n.formats))),
    ]  # fmt: skip
    lines = [f"# {told.title}\n\n",
             f"{told.paper}{year}. <{told.url}>\n\n", *(f"- **{name}:** {value}\n" for name, value in facts),
             "\n## Loss\n\n", f"```math\n{told.equation}\n```\n\n", f"{told.symbols}\n",
             *(["\n## Attention masks\n\n", "Attention masks of training, drawn by the library: rows are queries, columns keys.\n"]
               if told.masks else []),
             *(f"\n{title}:\n\n![{title}: queries by keys]({_figure(entry, title)})\n" for title in told.masks),
             "\n## Faithful, and what deviates\n\n", faithful(entry), "\n## Sizes\n\n",
             "Parameters of the network, with the vocabulary and the classes of the config's defaults; data brings its own. "
             "Counted on torch's meta device.\n\n",
             _sizes(entry),
             "\n## Objective\n\n", "What a recipe can set under `objective`:\n\n", settings_table(entry.pretraining.settings, "objective."),
             *_tasks(entry), "\n## Config\n\n", "What a recipe can set under `model`, with the reference library's names:\n\n",
             settings_table(entry.config, "model."), "\n## Recipes\n", *_recipes(entry)]
    return "".join([*lines, NOTE.format(sources=f"{file_of(entry)} and pipelines/recipes/")])


def _vocabulary(entry: Family) -> Iterator[tuple[str, str]]:
    """How its vocabulary is learnt."""
    own = entry.vocabulary
    if own is not None:
        case = ", lower case" if own.lowercase else ""
        command = f"polymodal tokenizer train TEXTS --for {entry.name} --size N --out DIR"
        yield "vocabulary", f"{own.kind}, special tokens of {own.style}{case}: `{command}`"


def _tasks(entry: Family) -> Iterator[str]:
    """What the networks are fine-tuned for."""
    if entry.tasks:
        yield "\n## Fine-tuning\n\n[Tasks](../finetuning.md) of its networks, and what a recipe can set under `objective` for them:\n"
    for task in entry.tasks:
        yield f"\n`task: {task.name}`, {task.objective}:\n\n{settings_table(task.settings, 'objective.')}"


def faithful(entry: Family) -> str:
    """The part of the family file's docstring from "Faithful" on, as Markdown."""
    text = inspect.getdoc(module_of(entry)) or ""
    found = text.find("\nFaithful")
    assert found >= 0, f"the docstring of {file_of(entry)} does not say what is faithful"
    lines: list[str] = []
    for line in text[found + 1 :].splitlines():
        if line.startswith("* ") and lines and lines[-1] and not lines[-1].startswith(("* ", "  ")):
            lines.append("")  # Markdown's lists need an empty line before them
        lines.append(line)
    return "\n".join(lines).strip() + "\n"


def parameters(entry: Family, size: str) -> tuple[int, int]:
    """The parameters of a size's network, and of the whole system that is trained; tied ones count once."""
    with without_weights():
        context = Context(net_only=True)
        config = entry.adapt(build_settings(entry.config, entry.sizes[size], entry.name), context)
        system = entry.pretraining.build(config, {}, context)
    return sum(p.numel() for p in system.net.parameters()), sum(p.numel() for p in system.parameters())


def _sizes(entry: Family) -> str:
    counts = {size: parameters(entry, size) for size in entry.sizes}
    helped = any(net != whole for net, whole in counts.values())
    heads = ("size", "parameters", *(["with what only training needs"] if helped else []), "what the size sets")
    rows = [(f"`{size}`", f"{net:,}", *([f"{whole:,}"] if helped else []), _overrides(entry.sizes[size]) or "the config's defaults")
            for size, (net, whole) in counts.items()]
    return table(heads, rows)


def _figure(entry: Family, title: str) -> str:
    return f"{entry.name}-{'-'.join(title.lower().split())}.svg"


def _overrides(values: Mapping[str, Any]) -> str:
    """What a size sets, a line for each part of the config."""
    own = ", ".join(f"`{key}={_plain(value)}`" for key, value in values.items() if not isinstance(value, Mapping))
    parts = [f"{key}: {_overrides(value)}" for key, value in values.items() if isinstance(value, Mapping)]
    return "<br>".join([*([own] if own else []), *parts])


def _plain(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value).replace("None", "null")


def _recipes(entry: Family) -> Iterator[str]:
    for name, function in recipes().items():
        if function().system != entry.name:
            continue
        head, *rest = paragraphs(inspect.getdoc(function) or "")
        yield f"\n### {name}\n\n{head}\n\n"
        command = ""
        for line in rest:
            key, _, value = line.partition(": ")
            if key == "Command":
                command = value
            else:
                yield f"- **{key}:** {value}\n"
        yield f"\n```sh\n{command}\n```\n"


def write(docs: Path) -> list[Path]:
    """Write the pages; returns those that changed."""
    changed: list[Path] = []
    contributing = docs.parent / "CONTRIBUTING.md"
    made = {docs / name: text for name, text in pages().items()}
    if contributing.is_file():
        made[contributing] = with_picture(contributing.read_text(encoding="utf-8"))
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


if __name__ == "__main__":
    for written in write(Path(sys.argv[1])):
        print(f"wrote {written}")
