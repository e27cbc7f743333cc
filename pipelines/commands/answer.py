"""`polymodal answer`: answers to questions, read off texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..base.options import Device, Json, MaxAnswerLength, Model, ModelTokenizer, NBest, NoAnswer, Stride

if TYPE_CHECKING:
    from ...text.tasks import QuestionAnswering

ORDER = 57


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("answer")(answer)


def answer(
    question: Annotated[str, typer.Argument(help="The question.")],
    inputs: Annotated[list[str] | None, typer.Argument(
        metavar="[TEXT|FILE|FOLDER|-]...", show_default=False,
        help="Where the answer is looked for: texts, files (each is one text), tables (jsonl, csv, tsv, parquet) with a field text, "
             "folders of them, or - for stdin. Each gets its answer; long ones are read in windows.")] = None,
    model: Model = ...,  # type: ignore[assignment]
    tokenizer: ModelTokenizer = None,
    n_best: NBest = 20, max_answer_length: MaxAnswerLength = 30, stride: Stride = 128, no_answer_threshold: NoAnswer = None,
    show: Annotated[int, typer.Option(min=1, help="Answers to show for each text, best first.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that are read together, with all their windows.")] = 8,
    device: Device = None,
    json: Json = False,
) -> None:
    """Answer a question by a span of each text, with a network that was fine-tuned for it.

    \b
    polymodal answer "Who flew to Paris?" report.txt --model RUN --show 3
    """
    import torch

    from ...text.span import AnswerSettings, Reader
    from ..base.console import Console
    from ..base.inputs import documents
    from ..model.frontdoor import load
    from ..model.frontdoor import tokenizer as find_tokenizer

    console = Console(json=json)
    settings = AnswerSettings(n_best, max_answer_length, stride, no_answer_threshold)
    found = documents(inputs, warn=console.warn)
    loaded = load(model, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    Reader.check(loaded, model)
    by = Reader(cast("QuestionAnswering", loaded), find_tokenizer(tokenizer or model), settings)
    results: list[dict[str, Any]] = []
    with console.progress("answering", total=len(found)) as bar:
        for begin in range(0, len(found), batch_size):
            part = found[begin:begin + batch_size]
            for given, answers in zip(part, by.answer([(question, d.text) for d in part]), strict=True):
                results.append({"source": given.source, "answers": [vars(a) for a in answers[:show]]})
            bar.advance(len(part))
    lines = [f"{row['source']}: {a['text'] or '(no answer)'} ({a['probability']:.3f}, character {a['start']})"
             for row in results for a in row["answers"]]
    console.finish({"model": model, "question": question, "results": results}, "\n".join(lines))
