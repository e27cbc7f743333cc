"""`polymodal answer`: answers to questions, read off texts or pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..base.options import (
    Detector,
    Device,
    Json,
    MaxAnswerLength,
    Model,
    ModelTokenizer,
    NBest,
    NoAnswer,
    RegionCount,
    Stride,
    Tower,
)

if TYPE_CHECKING:
    from ...text.tasks import QuestionAnswering
    from ..base.console import Console

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
    image: Annotated[list[str] | None, typer.Option(
        metavar="IMAGE|FOLDER|-", help="Pictures that the question is about, in place of texts; repeatable. - is stdin: one picture, or "
                                       "paths, one a line.")] = None,
    detector: Detector = "grid", tower: Tower = None, regions: RegionCount = 36,
    show: Annotated[int, typer.Option(min=1, help="Answers to show for each text or picture, best first.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts, with all their windows, or pictures that are read together.")] = 8,
    device: Device = None,
    json: Json = False,
) -> None:
    """Answer a question by a span of each text, or about pictures, with a network that was fine-tuned for it.

    \b
    polymodal answer "Who flew to Paris?" report.txt --model RUN --show 3
    polymodal answer "What colour is the boat?" --image photos --model UNITER --tower CLIP
    """
    import torch

    from ...shared.errors import UserError
    from ...text.span import AnswerSettings, Reader
    from ..base.console import Console
    from ..base.inputs import documents
    from ..inference.trained import trained
    from ..model.frontdoor import load
    from ..model.frontdoor import tokenizer as find_tokenizer

    console = Console(json=json)
    if image:
        if inputs:
            raise UserError(f"{inputs[0]!r} is a text to read the answer off, and --image asks about pictures: give one of them")
        _about_pictures(question, image, model, detector, tower, regions, show, batch_size, device, console)
        return
    settings = AnswerSettings(n_best, max_answer_length, stride, no_answer_threshold)
    found = documents(inputs, warn=console.warn)
    loaded = load(model, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    Reader.check(loaded, model)
    by = Reader(cast("QuestionAnswering", loaded), find_tokenizer(tokenizer or model), settings, trained(loaded).max_length)
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


def _about_pictures(question: str, image: list[str], model: str, detector: str, tower: str | None, regions: int, show: int, batch_size: int,
                    device: str | None, console: Console) -> None:
    """Answer a question about each picture."""
    from ..inference.pictures import classify, pictures
    from ..inference.region_pictures import answers_to
    from ..model.open import open_model
    from ..regions.regions import open_detector

    found = pictures(image, console.warn)
    by = answers_to(question, open_model(model, device), model, open_detector(detector, tower, regions, device))
    result = classify(by, found, top=show, batch_size=batch_size, console=console, read=by.read)
    lines = [f"{row.image}: {', '.join(f'{name} {score:.3f}' for name, score in row.predictions)}" for row in result.found]
    console.finish({
        "model": model, "question": question, "pictures": len(found),
        "results": [{"image": row.image, "answers": [{"text": name, "score": score} for name, score in row.predictions]}
                    for row in result.found],
        "bad": [{"image": name, "reason": reason} for name, reason in result.bad],
    }, "\n".join(lines))  # fmt: skip
