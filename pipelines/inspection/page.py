"""One self-contained HTML page: text, tables, pictures and curves, without scripts or outside files.

It reads well from 400 to 1280 pixels and follows the reader's light or dark setting: curves are drawn
as SVG whose lines take the page's colours. Whatever people have named or written is text of the page and never drawn: the reader's browser
has fonts for every script, and each text takes its own direction (`dir=auto`).
"""

from __future__ import annotations

import base64
import html
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STYLE = Path(__file__).with_name("page.css")

_LINE_COLOURS = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04")  # stand-ins, replaced by the page's colours
_INK, _GRID = "#0a0b05", "#0a0b06"
_STYLES = ("-", (0, (5, 2)), (0, (1, 1.6)), (0, (6, 2, 1, 2)))
"""How the lines of a figure are drawn after every colour was used: four colours in four styles."""
_DASHES = ("", "9 4", "2 3", "11 4 2 4")
"""The same in the keys below a figure."""
MOST_LINES = len(_LINE_COLOURS) * len(_STYLES)
"""Lines of a figure that can be told apart."""
_REPLACED = {**{c: f"var(--c{i})" for i, c in enumerate(_LINE_COLOURS)}, _INK: "var(--soft)", _GRID: "var(--line)"}


class Page:
    """A page that is written section by section and saved as one file."""

    def __init__(self, title: str, lead: str, refresh: float | None = None) -> None:
        """Start a page with a title and one sentence (plain text) that says what it shows; read again every `refresh` seconds."""
        self.title = title
        self.lead = lead
        self.refresh = refresh
        self.sections: list[tuple[str, str]] = []

    def section(self, title: str, *parts: str) -> None:
        """Add a section; `parts` are HTML made by the functions of this module."""
        self.sections.append((title, "\n".join(parts)))

    def html(self) -> str:
        """The whole page."""
        style = STYLE.read_text(encoding="utf-8")
        links = "".join(f'<a href="#s{i}" dir="auto">{escape(t)}</a>' for i, (t, _) in enumerate(self.sections))
        body = "".join(f'<section id="s{i}"><h2 dir="auto">{escape(t)}</h2>\n{c}\n</section>\n' for i, (t, c) in enumerate(self.sections))
        again = "" if self.refresh is None else f'<meta http-equiv="refresh" content="{self.refresh:g}">'
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'{again}<link rel="icon" href="data:,"><title>{escape(self.title)}</title><style>{style}</style></head>\n<body><main>\n'
            f'<h1 dir="auto">{escape(self.title)}</h1><p class="lead">{escape(self.lead)}</p><nav>{links}</nav>\n'
            f"{_SWITCH if _LOGARITHMIC in body else ''}{body}"
            "<footer>Written by polymodal. Everything on this page is in this one file.</footer></main></body></html>\n"
        )

    def save(self, path: Path) -> None:
        """Write the page to `path`, whole or not at all."""
        part = path.with_name(path.name + ".part")
        part.write_text(self.html(), encoding="utf-8")
        part.replace(path)


_LOGARITHMIC = '<div class="log">'
_SWITCH = (
    '<form class="switch">Scales of the curves: <label><input type="radio" name="scale" checked> linear</label> '
    '<label><input type="radio" name="scale" id="log-scale"> logarithmic</label></form>\n'
)
"""Without a script: the style sheet shows the drawings that were chosen."""


def escape(text: object) -> str:
    """`text` as HTML."""
    return html.escape(str(text))


def paragraph(text: str, soft: bool = False) -> str:
    """A paragraph of plain text."""
    return f"<p dir=auto{' class=soft' if soft else ''}>{escape(text)}</p>"


def heading(text: str) -> str:
    """A heading inside a section."""
    return f'<h3 dir="auto">{escape(text)}</h3>'


def code(text: str) -> str:
    """A block of code or of a command's output."""
    return f'<pre dir="auto">{escape(text)}</pre>'


def details(summary: str, content: str) -> str:
    """Content that unfolds on a click; `content` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def cards(numbers: Sequence[tuple[str, str]]) -> str:
    """A row of (number, what it is)."""
    cells = (f'<div class="card"><b>{escape(number)}</b><span>{escape(what)}</span></div>' for number, what in numbers)
    return f'<div class="cards">{"".join(cells)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table that scrolls sideways on narrow screens."""
    head = "".join(f'<th dir="auto">{escape(h)}</th>' for h in header)
    body = "".join("<tr>" + "".join(f'<td dir="auto">{escape(c)}</td>' for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def column(title: str, *parts: str) -> str:
    """Parts below a small heading, to stand in a `grid`."""
    return f'<div class="column"><h4 dir="auto">{escape(title)}</h4>{"".join(parts)}</div>'


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
        text = "<br>".join(f'<span class="{kind}" dir="auto">{escape(line)}</span>' for line, kind in lines)
        cells.append(f'<div class="picture"><img src="{picture_source(image)}" alt="{escape(alternative)}" loading="lazy">{text}</div>')
    return f'<div class="pictures">{"".join(cells)}</div>'


def sample(rows: Sequence[tuple[str, str]], image: np.ndarray | bytes | None = None) -> str:
    """One example of what a model does: (caption, text) pairs, and a picture."""
    shown = f'<img src="{picture_source(image)}" alt="the sample\'s picture">' if image is not None else ""
    return f'<div class="sample">{shown}<dl>' + "".join(
        f'<dt dir="auto">{escape(k)}</dt><dd dir="auto">{escape(v)}</dd>' for k, v in rows) + "</dl></div>"


def curves(
    title: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str = "update",
    levels: Mapping[str, float] | None = None,
    log_y: bool = False,
    scales: bool = False,
) -> str:
    """A figure with one line for each name, (x values, y values); `levels` are horizontal lines (a baseline, chance).

    Matplotlib draws it with stand-in colours, which become the page's colours, light and dark. Names are text of the page, below it.
    With `log_y`, its y axis is logarithmic, and with `scales`, the page offers it with both axes so, where all its numbers have logarithms.
    """
    levels = levels or {}
    positive = all(value > 0 for x, y in lines.values() for value in (*x, *y)) and all(level > 0 for level in levels.values())
    drawing = _drawing(title, lines, x_label, levels, "y" if log_y and positive else "")
    if scales and positive:
        drawing = f'<div class="linear">{drawing}</div>{_LOGARITHMIC}{_drawing(title, lines, x_label, levels, "xy")}</div>'
    keys = ""
    if len(lines) + len(levels) > 1:
        drawn = [(name, f"var(--c{i % 4})", _DASHES[i // 4 % 4]) for i, (name, (x, _)) in enumerate(lines.items()) if x]
        drawn += [(f"{name}: {level:.4g}", "var(--soft)", ("6 3", "2 3", "7 3 2 3")[i % 3])
                  for i, (name, level) in enumerate(levels.items())]
        keys = '<div class="keys">' + "".join(
            f'<span><svg viewBox="0 0 28 6"><path d="M0 3H28" stroke="{colour}" stroke-dasharray="{dashes}"/></svg>'
            f'<bdi>{escape(name)}</bdi></span>' for name, colour, dashes in drawn) + "</div>"
    name = escape(title)
    return f'<figure role="img" aria-label="{name}">{drawing}{keys}<figcaption dir="auto">{name}</figcaption></figure>'


def _drawing(title: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x_label: str, levels: Mapping[str, float],
             log: str) -> str:
    """The figure as SVG; the axes in `log` are logarithmic."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter

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
        for i, (x, y) in enumerate(lines.values()):
            few = len(x) <= 12
            axes.plot(x, y, color=_LINE_COLOURS[i % 4], linestyle=_STYLES[i // 4 % 4], linewidth=1.8, marker="o" if few else None,
                      markersize=4)
        for i, level in enumerate(levels.values()):
            axes.axhline(level, color=_INK, linewidth=1.3, linestyle=("--", ":", "-.")[i % 3])
        for letter in log:
            axes.set(**{f"{letter}scale": "log"})
            axis = axes.xaxis if letter == "x" else axes.yaxis  # as plain text: matplotlib's own labels are formulas, and slow
            axis.set_major_formatter(LogFormatter())
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
        axes.set_xlabel(x_label)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    for stand_in, colour in _REPLACED.items():
        drawing = drawing.replace(stand_in, colour)
    # two figures of one page must not share ids, whatever script their titles are in
    own = f"f{zlib.crc32(f'{title} {log}'.encode()):08x}-"
    drawing = re.sub(r'\b(id|href|xlink:href)="(#?)', lambda m: f'{m[1]}="{m[2]}{own}', drawing)
    return re.sub(r"url\(#", f"url(#{own}", drawing)
