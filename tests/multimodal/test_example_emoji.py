"""The example that makes tables of emoji in three styles: what it leaves out, and that the parts of the split have nothing in common."""

import importlib.util
import json
from pathlib import Path

import pytest
from PIL import Image

CODES = ("1f600", "1f43b", "2764-fe0f", "1f1e9-1f1ea", "1f44b-1f3fd", "1f34e", "1f697")


@pytest.fixture(scope="module")
def example():
    path = Path(__file__).resolve().parents[2] / "examples" / "emoji_styles.py"
    spec = importlib.util.spec_from_file_location("emoji_styles", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def packages(example, tmp_path):
    root = tmp_path / "NPM"
    for style, folder in example.STYLES.items():
        (root / folder).mkdir(parents=True)
        for n, code in enumerate(CODES):
            if not (style == "twitter" and code == "1f697"):  # not in all styles
                name = code.upper() if style == "openmoji" else code.removesuffix("-fe0f") if style == "twitter" else code
                if style == "openmoji":
                    (root / folder / f"{name}.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect width="8" '
                                                               'height="8" fill="#00f"/></svg>')
                else:
                    Image.new("RGB", (8, 8), (n * 30, 0, 0)).save(root / folder / f"{name}.png")
    groups = [{"key": key, "message": key, "order": n} for n, key in enumerate(("smileys-emotion", "animals-nature", "flags"))]
    for language, word in (("en", "thing"), ("zh", "东西")):
        (root / "emojibase-data" / language).mkdir(parents=True)
        rows = [{"hexcode": code.upper(), "label": f"{word} {n}", "tags": ["a", "b"] if n else [], "group": 2 if "1f1e9" in code else n % 2}
                for n, code in enumerate(CODES)]
        (root / "emojibase-data" / language / "data.json").write_text(json.dumps(rows), "utf-8")
        (root / "emojibase-data" / language / "messages.json").write_text(json.dumps({"groups": groups}))
    return root


def tables(example, monkeypatch, packages, out, *options):
    pytest.importorskip("resvg_py")
    monkeypatch.setattr("sys.argv", ["emoji_styles.py", str(packages), str(out), *options])
    example.main()
    return {name: [json.loads(line) for line in (out / f"{name}.jsonl").read_text("utf-8").splitlines()]
            for name in ("train", "style", "unseen", "held")}


def test_concepts_and_the_style_are_held_out(example, monkeypatch, packages, tmp_path):
    found = tables(example, monkeypatch, packages, tmp_path / "out", "--test", "openmoji", "--held", "1", "--languages", "en", "zh")
    assert {name: len(rows) for name, rows in found.items()} == {"train": 6, "style": 3, "unseen": 2, "held": 1}
    names = {name: {row["name"] for row in rows} for name, rows in found.items()}
    assert names["train"] == names["style"] and names["unseen"] == names["held"] and not names["train"] & names["held"]
    assert names["train"] | names["held"] == {"thing 0", "thing 1", "thing 2", "thing 5"}, "flags, skin tones and what a style lacks"
    assert {row["style"] for row in found["train"]} == {"google", "twitter"} and {row["style"] for row in found["held"]} == {"openmoji"}
    rows = {row["name"]: row for part in found.values() for row in part}
    assert rows["thing 1"]["caption"] == ["thing 1", "thing 1: a, b", "东西 1", "东西 1: a, b"]
    assert rows["thing 0"]["caption"] == ["thing 0", "东西 0"] and rows["thing 0"]["group"] == "smileys-emotion"
    assert all(Path(row["image"]).is_file() for row in rows.values())
    with Image.open(found["held"][0]["image"]) as drawing:
        assert drawing.size == (64, 64) and drawing.convert("RGB").getpixel((9, 9)) == (0, 0, 255)


def test_what_is_lacking_is_told(example, monkeypatch, packages, tmp_path):
    with pytest.raises(SystemExit, match="--held is 4, expected 1 to 3: there are 4 concepts"):
        tables(example, monkeypatch, packages, tmp_path / "out", "--held", "4")
    (packages / "emojibase-data/en/messages.json").unlink()
    with pytest.raises(SystemExit, match=r"there is no .*messages.json: unpack the packages there"):
        tables(example, monkeypatch, packages, tmp_path / "out")
    with pytest.raises(SystemExit, match=r"there are no pictures in .*google"):
        tables(example, monkeypatch, tmp_path / "nowhere", tmp_path / "out")
