"""`polymodal similar`: words that are alike, and analogies, by word vectors."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..base.options import Json, ModelTokenizer, VectorModel

ORDER = 52


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("similar")(similar)


def similar(
    inputs: Annotated[list[str] | None, typer.Argument(
        metavar="[WORD|FILE|-]...", show_default=False,
        help="Words, files of words with spaces or lines between them, or - for stdin.")] = None,
    model: VectorModel = ...,  # type: ignore[assignment]
    analogy: Annotated[bool, typer.Option(
        "--analogy", help="Words come in threes: man king woman asks what is to woman as king is to man.")] = False,
    top: Annotated[int, typer.Option(min=1, help="Words of an answer.")] = 10,
    tokenizer: ModelTokenizer = None,
    json: Json = False,
) -> None:
    """Find the words whose vectors are nearest to a word's, or the word that completes an analogy. Unknown words are told and counted.

    \b
    polymodal similar --model RUN king
    polymodal similar --model RUN --analogy man king woman
    polymodal similar --model vectors.bin words.txt --json
    """
    from ...shared.errors import UserError
    from ..base.console import Console
    from ..base.inputs import documents
    from ..inference.vectors import analogies, open_vectors
    from ..inference.vectors import similar as find

    console = Console(json=json)
    read = documents(inputs, lines=True, warn=console.warn)
    words = [word for document in read for word in document.text.split()]
    ragged = next((d for d in read if d.source != "text" and len(d.text.split()) % 3), None)
    if analogy and (len(words) % 3 or ragged is not None):
        got = f"{len(words)} words" if ragged is None else f"the line {ragged.text.strip()[:40]!r} of {ragged.source}"
        raise UserError(f"--analogy takes words in threes, such as man king woman, and got {got}")
    vectors = open_vectors(model, tokenizer)
    found = list((analogies if analogy else find)(vectors, words, top))
    unknown = sum(not answer["known"] for answer in found)
    for answer in found:
        console.say(_line(answer))
    noun = "analogies" if analogy else "words"
    console.finish({"model": model, "words": len(vectors.words), "dimension": vectors.vectors.shape[1], "count": len(found),
                    "unknown": unknown, "results": found},
                   f"{unknown} of {len(found)} {noun} are not known to the vectors" if unknown else "")


def _line(answer: dict[str, Any]) -> str:
    asked = answer.get("word") or " ".join(answer["words"])
    if not answer["known"]:
        return f"{asked}: unknown" + (f" ({', '.join(answer['unknown'])})" if "unknown" in answer else "")
    return f"{asked}: " + ", ".join(f"{near['word']} {near['cosine']:.3f}" for near in answer["nearest"])
