"""Ask a server of `polymodal serve` with OpenAI's own client: a text as it is written, several draws, and which texts are alike.

    pip install openai
    polymodal serve --model MODEL &
    python examples/ask_server.py http://127.0.0.1:8000/v1 "The stream" "A text" "Another text" "Something else"

The first text is continued by the first model that writes; the first one that makes vectors compares the others with it.
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI


def main(address: str, prompt: str, texts: list[str]) -> None:
    """Print a stream, three draws with their log-probabilities, and the texts by their likeness to the prompt."""
    client = OpenAI(base_url=address, api_key=os.environ.get("POLYMODAL_API_KEY", "none"))
    models = [model.model_dump() for model in client.models.list()]
    writer = next((model["id"] for model in models if "completions" in model["capabilities"]), None)
    encoder = next((model["id"] for model in models if "embeddings" in model["capabilities"]), None)
    if writer is not None:
        for chunk in client.completions.create(model=writer, prompt=prompt, max_tokens=30, temperature=0, stream=True):
            print(chunk.choices[0].text, end="", flush=True)
        drawn = client.completions.create(model=writer, prompt=prompt, max_tokens=10, n=3, seed=1, logprobs=0)
        print(f"\n{drawn.usage.completion_tokens} tokens in {len(drawn.choices)} draws:")
        for choice in drawn.choices:
            print(f"{sum(choice.logprobs.token_logprobs):8.2f} {choice.finish_reason:6} {choice.text!r}")
    if encoder is not None and texts:
        first, *others = (each.embedding for each in client.embeddings.create(model=encoder, input=[prompt, *texts]).data)
        likeness = [sum(a * b for a, b in zip(first, other)) for other in others]  # vectors of length 1
        for value, text in sorted(zip(likeness, texts), reverse=True):
            print(f"{value:6.3f} {text}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit('usage: ask_server.py ADDRESS "PROMPT" [TEXT]...')
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
