"""Captions with regions, and a small UNITER for them: what its tests share."""

import numpy as np
from polymodal.multimodal.uniter import UniterConfig
from polymodal.shared.regions import Regions
from polymodal.shared.sample import Sample
from polymodal.shared.tokenizer import STYLES, Tokenizer

WIDTH, CLASSES = 10, 7
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WORDS = [f"w{n}" for n in range(60)]
TOKENIZER = Tokenizer.train([" ".join(WORDS)], "word", 80, style=STYLES["bert"])
CONFIG = UniterConfig(vocab_size=TOKENIZER.vocab_size, visual_feat_dim=WIDTH, num_object_labels=CLASSES, **SHAPE)


def regions(seed, count, width=WIDTH, classes=CLASSES):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.5, (count, 2))
    return Regions(rng.normal(size=(count, width)), np.concatenate([low, low + rng.uniform(0, 0.5, (count, 2))], axis=1),
                   rng.dirichlet(np.ones(classes), count))


def sample(n, **options):
    rng = np.random.default_rng(n)
    text = " ".join(rng.choice(WORDS, int(rng.integers(1, 12))))
    return Sample(str(n), {"txt": text.encode(), **regions(n, int(rng.integers(1, 7)), **options).fields()}, n, "here")


def paired(numbers):
    made = [sample(n) for n in numbers]
    for one, other in zip(made, [*made[1:], made[0]]):
        one.pair_with(lambda other=other: other)
    return made
