"""Grids of pictures: captions in any script are drawn with a font that has them, or stay text, and gaps are said."""

from __future__ import annotations

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import FontEntry, fontManager
from PIL import Image
from polymodal.pipelines.inspection import picture_grid
from polymodal.pipelines.inspection.picture_grid import font_for, write_grid
from polymodal.shared.errors import UserError

RARE = "\U0002a6d6"  # the last character of CJK extension B, of 2001
CAPTION = 128  # rows above the caption


def blank() -> Image.Image:
    return Image.new("RGB", (64, 64), (0, 0, 250))


def font_with(character: str, path) -> None:
    """A font in which a character is a filled square."""
    pen = TTGlyphPen(None)
    for point, draw in zip([(0, 0), (0, 900), (900, 900), (900, 0)], [pen.moveTo, *[pen.lineTo] * 3]):
        draw(point)
    pen.closePath()
    made = FontBuilder(1000, isTTF=True)
    made.setupGlyphOrder([".notdef", "square"])
    made.setupCharacterMap({ord(character): "square"})
    made.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    made.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    made.setupHorizontalHeader(ascent=900, descent=-100)
    made.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    made.setupOS2()
    made.setupPost()
    made.save(path)


@pytest.fixture
def only_ours(monkeypatch):
    """No fonts of this machine, which may have all characters."""
    monkeypatch.setattr(fontManager, "ttflist", [])


@pytest.mark.parametrize("caption", ["a cat", "žluťoučký kůň", "γάτα", "кошка", "קטע", "قطة"])
def test_alphabets_are_drawn_on_every_machine(only_ours, caption):
    font, lacking = font_for(caption)
    assert not lacking and "DejaVu" in font.getname()[0]


def test_a_caption_is_drawn_with_the_first_font_that_has_it(only_ours, tmp_path):
    font_with(RARE, tmp_path / "squares.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    fontManager.ttflist += [FontEntry(fname=str(tmp_path / name), style="normal", weight=400) for name in ("broken.ttf", "squares.ttf")]
    warnings: list[str] = []
    assert write_grid([(blank(), RARE * 3), (blank(), "a cat")], tmp_path / "grid.png", warnings.append) == 2
    assert not warnings
    dark = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))[CAPTION:, :128] < 128
    assert 200 < dark.sum() < 300, "three filled squares of nine pixels"
    assert font_for(RARE)[0].getname()[0] == "Squares" and "DejaVu" in font_for("a cat")[0].getname()[0]


def test_characters_that_no_font_has_are_said_once(only_ours, tmp_path):
    warnings: list[str] = []
    write_grid([(blank(), f"{RARE} cat\ufe0f\u200d"), (blank(), f"a {RARE}")], tmp_path / "grid.png", warnings.append)
    assert len(warnings) == 1 and f"1 of the captions' characters ({RARE})" in warnings[0] and "grid.html" in warnings[0]


def test_a_page_keeps_captions_as_text(only_ours, tmp_path):
    warnings: list[str] = []
    assert write_grid([(blank(), f"<{RARE}> 猫"), (Image.new("RGB", (900, 300)), "قطة")], tmp_path / "grid.html", warnings.append) == 2
    text = (tmp_path / "grid.html").read_text(encoding="utf-8")
    assert f"&lt;{RARE}&gt; 猫</span>" in text and 'dir="auto">قطة</span>' in text and not warnings
    assert len(text) < 40_000, "large pictures are made small"


def test_captions_are_broken_at_spaces_or_anywhere_and_cuts_are_marked():
    font, _ = font_for("a")
    lines = picture_grid._lines("a caption of several words that does not fit into two lines of a cell", font)
    assert lines[0] == "a caption of several" and lines[1].endswith("…") and all(font.getlength(line) <= 122 for line in lines)
    lines = picture_grid._lines("w" * 20, font)
    assert "".join(lines) == "w" * 20 and len(lines) == 2, "no spaces"
    assert picture_grid._lines(" short \n one ", font) == ["short one"] and picture_grid._lines("", font) == []


@pytest.mark.parametrize("name", ["grid.jpg", "grid", "grid.svg"])
def test_other_formats_are_refused(name, tmp_path):
    with pytest.raises(UserError, match=r"\.png or in \.html"):
        write_grid([(blank(), "a")], tmp_path / name, print)
    assert not (tmp_path / name).exists()
