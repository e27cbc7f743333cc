"""Tag names in texts with a network that was fine-tuned for it: `python examples/tag_names.py RUN "Anna Lee flew to Paris ."`."""

from __future__ import annotations

import sys

import polymodal


def main(source: str, texts: list[str]) -> None:
    """Print the entities of each text."""
    for found in polymodal.tag(polymodal.load(source), texts):
        print(" ".join(found["words"]))
        for entity in found.get("entities", ()):
            print(f"  {entity['type']}: {entity['text']}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: tag_names.py RUN TEXT...")
    main(sys.argv[1], sys.argv[2:])
