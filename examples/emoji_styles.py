"""Emoji in three drawing styles (Noto, Twemoji, OpenMoji) with names and tags in English and Chinese, as tables for `pack`.

    mkdir NPM && cd NPM
    for name in emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 openmoji@17.0.0 emojibase-data@17.0.0; do
      npm pack $name && mkdir ${name%@*} && tar xzf ${name%@*}-*.tgz -C ${name%@*} --strip-components 1
    done
    cd .. && python examples/emoji_styles.py NPM OUT --test twitter --held 200

writes four tables of concepts that all styles have (no flags, no skin tones):

    train.jsonl    the other concepts in the two other styles
    style.jsonl    the same concepts in the style --test, which no training picture has
    unseen.jsonl   --held concepts, drawn at random, in the two other styles
    held.jsonl     these concepts in the style --test

Columns: image, caption (a list: the name, and the name with its tags, in each of --languages), group (smileys-emotion, animals-nature
...), name and style. OpenMoji is drawn into OUT/openmoji by resvg-py (`pip install polymodal[demo]`); other pictures stay where they are.
They are Noto's (Apache 2.0), Twemoji (CC BY 4.0) and OpenMoji (CC BY-SA 4.0); names and tags are emojibase's (MIT), from Unicode's CLDR.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

STYLES = {"google": "emoji-datasource-google/img/google/64", "twitter": "emoji-datasource-twitter/img/twitter/64",
          "openmoji": "openmoji/color/svg"}
SIZE = 64
"""Pixels of a side, as the two other packages have them."""
NO_PICTURE_OF_ITS_OWN = {"flags", "component"}
SKIN_TONES = frozenset(f"1f3f{n:x}" for n in range(0xB, 0x10))


def plain(code: str) -> str:
    """A file's or an emoji's code points as the styles share them: lower case, without the mark of an emoji's form (FE0F)."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def read(path: Path) -> Any:
    """A JSON file of a package."""
    if not path.is_file():
        sys.exit(f"error: there is no {path}: unpack the packages there as `python {sys.argv[0]} --help` shows")
    return json.loads(path.read_text("utf-8"))


def concepts(root: Path, languages: list[str]) -> dict[str, dict[str, Any]]:
    """By code: its pictures in each style, its captions in all languages, its name and its group."""
    pictures = {style: {plain(path.stem): path for path in (root / folder).glob("*.[ps][nv]g")} for style, folder in STYLES.items()}
    if lacking := [STYLES[style] for style, found in pictures.items() if not found]:
        sys.exit(f"error: there are no pictures in {root / lacking[0]}: unpack the packages there as `python {sys.argv[0]} --help` shows")
    groups = {group["order"]: group["key"] for group in read(root / "emojibase-data/en/messages.json")["groups"]}
    told: dict[str, dict[str, Mapping[str, Any]]] = {
        language: {plain(row["hexcode"]): row for row in read(root / f"emojibase-data/{language}/data.json")} for language in languages}
    found: dict[str, dict[str, Any]] = {}
    for code in sorted(set.intersection(*(set(part) for part in (*pictures.values(), *told.values())))):
        rows = [told[language][code] for language in languages]
        group = groups.get(rows[0].get("group"))
        if group is None or group in NO_PICTURE_OF_ITS_OWN or SKIN_TONES & set(code.split("-")):
            continue
        captions = [text for row in rows for text in (row["label"], f"{row['label']}: {', '.join(row.get('tags') or [])}")]
        found[code] = {"pictures": {style: part[code] for style, part in pictures.items()}, "name": rows[0]["label"], "group": group,
                       "caption": [text for text in captions if not text.endswith(": ")]}
    return found


def drawn(picture: Path, code: str, folder: Path) -> Path:
    """A picture of pixels: of an SVG a new file in a folder, any other as it is."""
    if picture.suffix != ".svg":
        return picture.resolve()
    try:
        import resvg_py
    except ImportError:
        sys.exit("error: OpenMoji's pictures are drawings, and resvg-py draws them: pip install resvg-py")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{code}.png"
    path.write_bytes(bytes(resvg_py.svg_to_bytes(svg_path=str(picture), width=SIZE, height=SIZE)))
    return path.resolve()


def main() -> None:
    """Write the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("packages", type=Path, help="the folder in which the packages were unpacked")
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--test", choices=sorted(STYLES), default="twitter", help="the style that training does not see")
    arguments.add_argument("--held", type=int, default=200, help="concepts that training does not see")
    arguments.add_argument("--languages", nargs="+", default=["en"], help="of the captions: en, zh, or both")
    arguments.add_argument("--seed", type=int, default=0, help="of the draw of these concepts")
    given = arguments.parse_args()
    found = concepts(given.packages, given.languages)
    if not 0 < given.held < len(found):
        sys.exit(f"error: --held is {given.held}, expected 1 to {len(found) - 1}: there are {len(found)} concepts")
    held = set(np.random.Generator(np.random.Philox(given.seed)).random(len(found)).argsort(kind="stable")[:given.held].tolist())
    given.out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[str]] = {"train": [], "style": [], "unseen": [], "held": []}
    for number, (code, concept) in enumerate(found.items()):
        for style, picture in concept["pictures"].items():
            row = {"image": str(drawn(picture, code, given.out / style)), "style": style,
                   **{name: concept[name] for name in ("name", "caption", "group")}}
            table = ("held" if number in held else "style") if style == given.test else "unseen" if number in held else "train"
            tables[table].append(json.dumps(row, ensure_ascii=False))
    for name, lines in tables.items():
        (given.out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    counts = ", ".join(f"{name} {len(lines)}" for name, lines in tables.items())
    print(f"{len(found)} concepts; pictures: {counts}")


if __name__ == "__main__":
    main()
