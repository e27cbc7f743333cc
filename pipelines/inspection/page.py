"""One self-contained HTML page: text, tables, pictures and curves, without scripts or outside files.

It reads well from 400 to 1280 pixels and follows the reader's light or dark setting: curves are drawn
as SVG whose lines take the page's colours.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STYLE = Path(__file__).with_name("page.css")

_LINE_COLOURS = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04")  # stand-ins, replaced by the page's colours
_INK, _GRID = "#0a0b05", "#0a0b06"
_REPLACED = {**{c: f"var(--c{i})" for i, c in enumerate(_LINE_COLOURS)}, _INK: "var(--soft)", _GRID: "var(--line)"}


class Page:
    """A page that is written section by section and saved as one file."""

    def __init__(self, title: str, lead: str) -> None:
        """Start a page with a title and one sentence (plain text) that says what it shows."""
        self.title = title
        self.lead = lead
        self.sections: list[tuple[str, str]] = []

    def section(self, title: str, *parts: str) -> None:
        """Add a section; `parts` are HTML made by the functions of this module."""
        self.sections.append((title, "\n".join(parts)))

    def html(self) -> str:
        """The whole page."""
        style = STYLE.read_text(encoding="utf-8")
        links = "".join(f'<a href="#s{i}">{escape(t)}</a>' for i, (t, _) in enumerate(self.sections))
        body = "".join(f'<section id="s{i}"><h2>{escape(t)}</h2>\n{c}\n</section>\n' for i, (t, c) in enumerate(self.sections))
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<link rel="icon" href="data:,"><title>{escape(self.title)}</title><style>{style}</style></head>\n<body><main>\n'
            f'<h1>{escape(self.title)}</h1><p class="lead">{escape(self.lead)}</p><nav>{links}</nav>\n{body}'
            "<footer>Written by polymodal. Everything on this page is in this one file.</footer></main></body></html>\n"
        )

    def save(self, path: Path) -> None:
        """Write the page to `path`, whole or not at all."""
        part = path.with_name(path.name + ".part")
        part.write_text(self.html(), encoding="utf-8")
        part.replace(path)


def escape(text: object) -> str:
    """`text` as HTML."""
    return html.escape(str(text))


def paragraph(text: str, soft: bool = False) -> str:
    """A paragraph of plain text."""
    return f"<p{' class=soft' if soft else ''}>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f"<h3>{escape(text)}</h3>"


def code(text: str) -> str:
    """A block of code or of a command's output."""
    return f"<pre>{escape(text)}</pre>"


def details(summary: str, content: str) -> str:
    """Content that unfolds on a click; `content` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def cards(numbers: Sequence[tuple[str, str]]) -> str:
    """A row of (number, what it is)."""
    cells = (f'<div class="card"><b>{escape(number)}</b><span>{escape(what)}</span></div>' for number, what in numbers)
    return f'<div class="cards">{"".join(cells)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls sideways on narrow screens."""
    head = "".join(f"<th>{escape(h)}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def grid(*parts: str) -> str:
    """Parts side by side where there is room."""
    return f'<div class="grid">{"".join(parts)}</div>'


def picture_source(image: np.ndarray | Image.Image | bytes) -> str:
    """A data address for a picture: PNG bytes, a Pillow image or uint8 [H, W, 3]."""
    if not isinstance(image, bytes):
        buffer = io.BytesIO()
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG", optimize=True)
        image = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(image).decode("ascii")


def pictures(items: Sequence[tuple[np.ndarray | Image.Image | bytes, str, Sequence[tuple[str, str]]]]) -> str:
    """A grid of (picture, alternative text, lines); a line is (text, class: good, bad, soft or empty)."""
    cells: list[str] = []
    for image, alternative, lines in items:
        text = "<br>".join(f'<span class="{kind}">{escape(line)}</span>' for line, kind in lines)
        cells.append(f'<div class="picture"><img src="{picture_source(image)}" alt="{escape(alternative)}" loading="lazy">{text}</div>')
    return f'<div class="pictures">{"".join(cells)}</div>'


def sample(rows: Sequence[tuple[str, str]], image: np.ndarray | bytes | None = None) -> str:
    """One example of what a model does: (caption, text) pairs, and a picture."""
    shown = f'<img src="{picture_source(image)}" alt="the sample\'s picture">' if image is not None else ""
    return f'<div class="sample">{shown}<dl>' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows) + "</dl></div>"


def curves(
    title: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str = "update",
    levels: Mapping[str, float] | None = None,
    log: bool = False,
) -> str:
    """A figure with one line for each name, (x values, y values); `levels` are horizontal lines (a baseline, chance).

    Matplotlib draws it with stand-in colours, which become the page's colours, light and dark.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "polymodal", "font.family": "sans-serif", "font.size": 11,
        "axes.edgecolor": _INK, "axes.labelcolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "text.color": _INK,
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.6, 3.1), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        for i, (name, (x, y)) in enumerate(lines.items()):
            few = len(x) <= 12
            colour = _LINE_COLOURS[i % len(_LINE_COLOURS)]
            axes.plot(x, y, color=colour, linewidth=1.8, label=name, marker="o" if few else None, markersize=4)
        for i, (name, level) in enumerate((levels or {}).items()):
            axes.axhline(level, color=_INK, linewidth=1.3, linestyle=("--", ":", "-.")[i % 3], label=name)
        if log:
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        if len(lines) + len(levels or {}) > 1:
            axes.legend(frameon=False, fontsize=10)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    for stand_in, colour in _REPLACED.items():
        drawing = drawing.replace(stand_in, colour)
    # two figures of one page must not share ids
    drawing = re.sub(r'\b(id|href|xlink:href)="(#?)', lambda m: f'{m[1]}="{m[2]}{_slug(title)}-', drawing)
    drawing = re.sub(r"url\(#", f"url(#{_slug(title)}-", drawing)
    name = escape(title)
    return f'<figure role="img" aria-label="{name}">{drawing}<figcaption>{name}</figcaption></figure>'


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
