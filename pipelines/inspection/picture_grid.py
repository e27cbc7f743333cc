"""A grid of pictures with captions in any script.

As PNG, a caption is drawn in the first font of this machine that has all its characters, and who lacks which is said. As a page, captions
stay text: the reader's browser has fonts for every script.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...shared.errors import UserError
from .page import Page, pictures

FORMATS = (".png", ".html")

_CELL, _CAPTION, _COLUMNS = 128, 30, 8
_MARGIN, _SIZE, _LINES = 3, 10, 2
_ON_A_PAGE = 256


def check_format(path: Path) -> None:
    """Refuse a file name of which no format follows.

    Raises:
        UserError: It ends in neither of `FORMATS`.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: expected a name that ends in .png or in .html (whose captions stay text)")


def write_grid(cells: Sequence[tuple[Image.Image, str]], path: Path, warn: Callable[[str], None]) -> int:
    """Write (picture, caption) as a grid; returns how many there are. `warn` hears of characters that no font has.

    Raises:
        UserError: The file's name has no known format.
    """
    check_format(path)
    if path.suffix.lower() == ".html":
        page = Page(path.stem, f"{len(cells)} pictures")
        for picture, _ in cells:
            picture.thumbnail((_ON_A_PAGE, _ON_A_PAGE))
        page.section("Pictures", pictures([(picture, caption, [(caption, "")]) for picture, caption in cells]))
        page.save(path)
        return len(cells)
    width = min(_COLUMNS, len(cells))
    grid = Image.new("RGB", (width * _CELL, -(-len(cells) // width) * (_CELL + _CAPTION)), (255, 255, 255))
    draw = ImageDraw.Draw(grid)
    lacking: set[str] = set()
    for i, (picture, caption) in enumerate(cells):
        x, y = i % width * _CELL, i // width * (_CELL + _CAPTION)
        picture.thumbnail((_CELL - 4, _CELL - 4))
        grid.paste(picture, (x + (_CELL - picture.width) // 2, y + (_CELL - picture.height) // 2))
        font, without = font_for(caption)
        lacking |= without
        for number, line in enumerate(_lines(caption, font)):
            draw.text((x + _MARGIN, y + _CELL + number * _CAPTION // _LINES), line, fill=(0, 0, 0), font=font)
    grid.save(path, format="PNG")
    if lacking:
        some = " ".join(sorted(lacking)[:8]) + (" ..." if len(lacking) > 8 else "")
        warn(f"{path}: no font of this machine has {len(lacking)} of the captions' characters ({some}), they "
             f"are drawn as boxes: write {path.with_suffix('.html')}, whose captions are text, or install a font that has them")
    return len(cells)


def font_for(text: str) -> tuple[ImageFont.FreeTypeFont, set[str]]:
    """The first font that draws all of a text, or else the one that draws most of it; and the characters that it lacks."""
    wanted = {c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Zs", "Zl", "Zp") and not "\ufe00" <= c <= "\ufe0f"}
    best, lacking = "", wanted
    for path in _font_files():
        without = {c for c in wanted if ord(c) not in _characters(path)}
        if not best or len(without) < len(lacking):
            best, lacking = path, without
        if not lacking:
            break
    return ImageFont.truetype(best, _SIZE), lacking


def _font_files() -> Iterator[str]:
    """Matplotlib's own font, which has the alphabets of Europe and of the Near East, then those of the machine, upright ones first."""
    import matplotlib as mpl

    yield f"{mpl.get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    from matplotlib.font_manager import fontManager

    for entry in sorted(fontManager.ttflist, key=lambda e: (e.style != "normal", e.weight not in (400, "normal", "regular"), e.fname)):
        yield entry.fname


@cache
def _characters(path: str) -> frozenset[int]:
    """The code points for which a font has a glyph that Pillow can draw at our size: none of a damaged file or one of fixed sizes."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(path, _SIZE)
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


def _lines(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """The beginning of a text in lines as wide as a cell, broken at spaces where there are some; an ellipsis where it goes on."""
    rest, lines, room = " ".join(text.split()), list[str](), _CELL - 2 * _MARGIN
    while rest and len(lines) < _LINES:
        last = len(lines) == _LINES - 1
        end = max((n for n in range(1, min(len(rest), _CELL) + 1) if font.getlength(_cut(rest, n, last)) <= room), default=1)
        if not last and end < len(rest) and (space := rest.rfind(" ", 0, end + 1)) > 0:
            end = space
        lines.append(_cut(rest, end, last))
        rest = rest[end:].lstrip()
    return lines


def _cut(text: str, end: int, marked: bool) -> str:
    return text[:end] + ("…" if marked and end < len(text) else "")
