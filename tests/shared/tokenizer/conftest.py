"""Vocabularies that are learned once."""

import pytest
from polymodal.shared.tokenizer import STYLES, Tokenizer
from vocabularies import CORPUS, SIZES


@pytest.fixture(scope="module")
def trained():
    made = {}

    def get(kind, style=None, **options):
        key = (kind, style, *sorted(options.items()))
        if key not in made:
            made[key] = Tokenizer.train(CORPUS, kind, SIZES[kind], style=STYLES[style] if style else None, coverage=0.999, **options)
        return made[key]

    return get
