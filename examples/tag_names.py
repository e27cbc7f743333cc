"""Tag names in texts with a network that was fine-tuned for it: `python examples/tag_names.py RUN "Anna Lee flew to Paris ."`."""

from __future__ import annotations

import sys

import polymodal
from polymodal.text.entities import entities
from polymodal.text.tag import Tagger
from polymodal.text.tasks import TokenClassifier


def main(source: str, texts: list[str]) -> None:
    """Print the entities of each text; words are what stands between spaces."""
    model = polymodal.load(source)
    if not isinstance(model, TokenClassifier):
        raise SystemExit(f"{source} was not fine-tuned to tag words")
    tagger = Tagger(model, polymodal.tokenizer(source))
    sentences = [text.split() for text in texts]
    for words, tags in zip(sentences, tagger.answer(sentences)):
        print(" ".join(words))
        for kind, first, last in entities(tags):
            print(f"  {kind}: {' '.join(words[first:last])}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: tag_names.py RUN TEXT...")
    main(sys.argv[1], sys.argv[2:])
