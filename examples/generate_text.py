"""Continue a text with a language model, greedily and by sampling.

    python examples/generate_text.py MODEL "The stream"

MODEL is a run of GPT-2, an export, or a directory of transformers.
"""

from __future__ import annotations

import sys

import polymodal


def main(source: str, prompt: str) -> None:
    """Print the most probable continuation and three drawn ones."""
    model, tokenizer = polymodal.load(source), polymodal.tokenizer(source)
    print(polymodal.generate(model, prompt, tokenizer=tokenizer, max_new_tokens=30))
    for seed in range(3):  # the same seed gives the same text
        print(polymodal.generate(model, prompt, tokenizer=tokenizer, max_new_tokens=30, do_sample=True, top_k=40, seed=seed))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit('usage: generate_text.py MODEL "PROMPT"')
    main(sys.argv[1], sys.argv[2])
