"""`polymodal evaluate`: measure a model on held-out data, one command for each kind of measurement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ...shared.errors import UserError
from ..base.options import (
    Json,
    MaxAnswerLength,
    Model,
    ModelTokenizer,
    NBest,
    NoAnswer,
    Quantize,
    SourceLanguage,
    Stride,
    TargetLanguage,
    VectorModel,
)
from ..evaluation.kinds import KINDS

if TYPE_CHECKING:
    from ..evaluation.evaluate import EvaluationSettings, OutputFiles
    from ..evaluation.measure import Evaluation

ORDER = 45

Data = Annotated[str, typer.Option(metavar="DATA", help="Held-out data set (directory or URL).")]
Limit = Annotated[int | None, typer.Option(min=1, help="Measure at most this many samples, drawn by the seed.")]
OnBad = Annotated[str, typer.Option(metavar="raise|skip", help="A bad sample ends the evaluation, or is left out and counted.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of every draw. Default: the run's, else 0.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write numbers, settings, data, model and hashes.")]
Predictions = Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="Write what was predicted for each sample.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite these files.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples that run together. Default: by task.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="What to run on; auto takes a GPU where there is one.")]
Devices = Annotated[int | None, typer.Option(min=1, help="Processes on this machine. Default: one for each GPU, or one.")]
Precision = Annotated[str, typer.Option(metavar="32|bf16-mixed|bf16-true|auto", help="Number format. bf16-true: weights in bf16 too.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes of each rank that read and decode.")]
Labels = Annotated[str | None, typer.Option(metavar="cat,dog|FILE", help="Names in place of the data's, in the order of their numbers.")]


def register(app: typer.Typer) -> None:
    """Add the command group `evaluate`."""
    group = typer.Typer(no_args_is_help=True, help="Measure a model on held-out data: every sample once, on any number of ranks.")
    for name in KINDS:
        group.command(name)(globals()[name.replace("-", "_")])
    group.command("words")(words)
    group.command("compare")(compare)
    app.add_typer(group, name="evaluate")


def perplexity(
    model: Model, data: Data,
    window: Annotated[int | None, typer.Option(min=2, help="Slide a window of this many tokens over each text.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens by which it moves on. Default: half a window.")] = None,
    pseudo: Annotated[bool, typer.Option("--pseudo", help="Mask each token alone (a masked language model; slow).")] = False,
    memory: Annotated[list[int] | None, typer.Option(min=0, help="Length of the memory, of a system that has one; repeatable.")] = None,
    eos: Annotated[bool, typer.Option("--eos/--no-eos", help="With a window: whether the end of each text is predicted.")] = True,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE",
                                                   help="A setting of the objective, where the model is not a run; repeatable.")] = None,
    tokenizer: ModelTokenizer = None, limit: Limit = None, on_bad: OnBad = "raise", seed: Seed = None, out: Out = None,
    force: Force = False, batch_size: BatchSize = None, device: Device = "auto", devices: Devices = None,
    precision: Precision = "32", workers: Workers = 0,
    quantize: Quantize = None, json: Json = False,
) -> None:
    """How well texts are predicted: by the system's own objective, by a sliding window, or masking each word alone.

    \b
    polymodal evaluate perplexity --model RUN --data held-out
    polymodal evaluate perplexity --model gpt2 --data held-out --window 1024 --stride 512 --out gpt2.json
    polymodal evaluate perplexity --model RUN --data held-out --memory 0 --memory 128
    """
    from ..base.values import parse_settings
    from ..evaluation.perplexity import Perplexity

    evaluation = Perplexity(window, stride, pseudo, tuple(memory or ()), eos, parse_settings(set_ or []))
    settings = _settings(tokenizer, batch_size, limit, seed, on_bad, workers, device, devices, precision, quantize)
    _run(evaluation, model, data, settings, _files(out, None, force), json)


def zero_shot(
    model: Model, data: Data,
    template: Annotated[list[str] | None, typer.Option(
        metavar="TEMPLATE|FILE", help='Prompt with {} for the class name, or a file with one a line; repeatable. Default: "a photo of a '
                                       '{}."')] = None,
    templates: Annotated[str | None, typer.Option(metavar="openai|simple", help="A set of prompts: OpenAI's 80, or the 7 best.")] = None,
    labels: Labels = None,
    tokenizer: ModelTokenizer = None, limit: Limit = None, on_bad: OnBad = "raise", seed: Seed = None, out: Out = None,
    predictions: Predictions = None, force: Force = False, batch_size: BatchSize = None, device: Device = "auto", devices: Devices = None,
    precision: Precision = "32", workers: Workers = 0, json: Json = False,
) -> None:
    """Classify labelled pictures by the names of their classes, with a CLIP: top-1, top-5, each class.

    \b
    polymodal evaluate zero-shot --model RUN --data flowers --template "a photo of a {}, a flower."
    polymodal evaluate zero-shot --model laion/CLIP-ViT-B-32-laion2B-s34B-b79K --data flowers --templates openai --out clip.json
    """
    from ..base.values import read_names
    from ..evaluation.classes import ZeroShot

    evaluation = ZeroShot((*(template or ()), *([templates] if templates else ())), () if labels is None else tuple(read_names(labels)))
    settings = _settings(tokenizer, batch_size, limit, seed, on_bad, workers, device, devices, precision)
    _run(evaluation, model, data, settings, _files(out, predictions, force), json)


def retrieval(
    model: Model, data: Data,
    max_captions: Annotated[int | None, typer.Option(min=1, help="Captions of each picture, the first ones. Default: all.")] = None,
    tokenizer: ModelTokenizer = None, limit: Limit = None, on_bad: OnBad = "raise", seed: Seed = None, out: Out = None,
    force: Force = False, batch_size: BatchSize = None, device: Device = "auto", devices: Devices = None,
    precision: Precision = "32", workers: Workers = 0,
    json: Json = False,
) -> None:
    """Find captions by pictures and pictures by captions, with a CLIP or a UNITER: recall at 1, 5, 10, median rank.

    \b
    polymodal evaluate retrieval --model RUN --data pairs --out retrieval.json
    """
    from ..evaluation.retrieval import Retrieval

    settings = _settings(tokenizer, batch_size, limit, seed, on_bad, workers, device, devices, precision)
    _run(Retrieval(max_captions), model, data, settings, _files(out, None, force), json)


def classify(
    model: Model, data: Data,
    speed: Annotated[str | None, typer.Option(metavar="0.1,0.5,0.8", help="Of a FastBERT: measure accuracy, time and operations at these "
                                              "speeds, too, at which texts leave early.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="With --speed: draw accuracy against operations and time.")] = None,
    tokenizer: ModelTokenizer = None, limit: Limit = None, on_bad: OnBad = "raise", seed: Seed = None, out: Out = None,
    predictions: Predictions = None, force: Force = False, batch_size: BatchSize = None, device: Device = "auto", devices: Devices = None,
    precision: Precision = "32", workers: Workers = 0, json: Json = False,
) -> None:
    """Classify labelled pictures or texts by a trained head: accuracy, F1, precision, recall, confusion.

    \b
    polymodal evaluate classify --model RUN --data held-out --predictions guesses.jsonl
    polymodal evaluate classify --model FASTBERT --data held-out --speed 0.1,0.5,0.8 --plot speeds.svg
    """
    from ..base.values import parse_speeds
    from ..data.dataset import DataSet
    from ..evaluation.classes import classify as evaluation_of

    settings = _settings(tokenizer, batch_size, limit, seed, on_bad, workers, device, devices, precision)
    speeds = parse_speeds(speed)
    if plot is not None and not speeds:
        raise UserError("--plot draws what --speed measures: give speeds, such as --speed 0.1,0.5,0.8")
    if plot is not None and plot.suffix.lower() != ".svg":
        raise UserError(f"--plot {plot}: the figure is an SVG; name it {plot.with_suffix('.svg').name}")
    _run(evaluation_of(DataSet.open(data), speeds), model, data, settings, _files(out, predictions, force, plot), json)


def score(
    model: Model, data: Data,
    tokenizer: ModelTokenizer = None, limit: Limit = None, on_bad: OnBad = "raise", seed: Seed = None, out: Out = None,
    predictions: Predictions = None, force: Force = False, batch_size: BatchSize = None, device: Device = "auto", devices: Devices = None,
    precision: Precision = "32", workers: Workers = 0, json: Json = False,
) -> None:
    """Score texts or pairs of texts with a network that was fine-tuned for it: Pearson, Spearman, RMSE.

    \b
    polymodal evaluate score --model RUN --data held-out --predictions scores.jsonl
    """
    from ..evaluation.tasks import Score

    settings = _settings(tokenizer, batch_size, limit, seed, on_bad, workers, device, devices, precision)
    _run(Score(), model, data, settings, _files(out, predictions, force), json)


def tag(
    model: Model, data: Data,
    tokenizer: ModelTokenizer = None, limit: Limit = None, on_bad: OnBad = "raise", seed: Seed = None, out: Out = None,
    predictions: Predictions = None, force: Force = False, batch_size: BatchSize = None, device: Device = "auto", devices: Devices = None,
    precision: Precision = "32", workers: Workers = 0, json: Json = False,
) -> None:
    """Tag words with a network that was fine-tuned for it: accuracy; precision, recall and F1 of entities, as conlleval.

    \b
    polymodal evaluate tag --model RUN --data held-out --predictions tags.jsonl
    """
    from ..evaluation.tasks import Tag

    settings = _settings(tokenizer, batch_size, limit, seed, on_bad, workers, device, devices, precision)
    _run(Tag(), model, data, settings, _files(out, predictions, force), json)


def choice(
    model: Model, data: Data,
    tokenizer: ModelTokenizer = None, limit: Limit = None, on_bad: OnBad = "raise", seed: Seed = None, out: Out = None,
    predictions: Predictions = None, force: Force = False, batch_size: BatchSize = None, device: Device = "auto", devices: Devices = None,
    precision: Precision = "32", workers: Workers = 0, json: Json = False,
) -> None:
    """Choose one of several texts with a network that was fine-tuned for it: accuracy.

    \b
    polymodal evaluate choice --model RUN --data held-out --predictions choices.jsonl
    """
    from ..evaluation.tasks import Choice

    settings = _settings(tokenizer, batch_size, limit, seed, on_bad, workers, device, devices, precision)
    _run(Choice(), model, data, settings, _files(out, predictions, force), json)


def span(
    model: Model, data: Data,
    n_best: NBest = 20, max_answer_length: MaxAnswerLength = 30, stride: Stride = 128, no_answer_threshold: NoAnswer = None,
    tokenizer: ModelTokenizer = None, limit: Limit = None, on_bad: OnBad = "raise", seed: Seed = None, out: Out = None,
    predictions: Predictions = None, force: Force = False, batch_size: BatchSize = None, device: Device = "auto", devices: Devices = None,
    precision: Precision = "32", workers: Workers = 0, json: Json = False,
) -> None:
    """Answer questions about texts with a network that was fine-tuned for it: exact match, F1, as SQuAD's script.

    \b
    polymodal evaluate span --model RUN --data held-out --no-answer-threshold 0 --predictions answers.jsonl
    """
    from ..evaluation.tasks import Span

    settings = _settings(tokenizer, batch_size, limit, seed, on_bad, workers, device, devices, precision)
    _run(Span(n_best, max_answer_length, stride, no_answer_threshold), model, data, settings, _files(out, predictions, force), json)


def ground(
    model: Model, data: Data,
    tokenizer: ModelTokenizer = None, limit: Limit = None, on_bad: OnBad = "raise", seed: Seed = None, out: Out = None,
    predictions: Predictions = None, force: Force = False, batch_size: BatchSize = None, device: Device = "auto", devices: Devices = None,
    precision: Precision = "32", workers: Workers = 0, json: Json = False,
) -> None:
    """Find the region of a picture that a phrase means, with a network that was fine-tuned for it: the share of right ones.

    \b
    polymodal evaluate ground --model RUN --data held-out --predictions regions.jsonl
    """
    from ..evaluation.tasks import Ground

    settings = _settings(tokenizer, batch_size, limit, seed, on_bad, workers, device, devices, precision)
    _run(Ground(), model, data, settings, _files(out, predictions, force), json)


def fewshot(
    model: Model, data: Data,
    shots: Annotated[str, typer.Option(metavar="0,1,8", help="Examples before each question; one pass for each number.")] = "0",
    examples: Annotated[str | None, typer.Option(metavar="DIR", help="Data set of the examples. Default: the other samples of --data.")]
        = None,
    template: Annotated[str, typer.Option(help="What stands before a choice, with {text}; \\n is a new line.")] = "{text}\\nAnswer:",
    alone: Annotated[str, typer.Option(help="The context of the normalised likelihood.")] = "Answer:",
    tokenizer: ModelTokenizer = None, limit: Limit = None, on_bad: OnBad = "raise", seed: Seed = None, out: Out = None,
    predictions: Predictions = None, force: Force = False, batch_size: BatchSize = None, device: Device = "auto", devices: Devices = None,
    precision: Precision = "32", workers: Workers = 0, quantize: Quantize = None, json: Json = False,
) -> None:
    """Ask a language model questions with choices, behind examples: the most probable choice counts. Data is packed with --kind choice.

    Examples that have no room in the model are left out; mean_shots says how many were taken. --predictions holds the prompts.

    \b
    polymodal evaluate fewshot --model gpt2 --data held-out --examples train --shots 0,1,8 --predictions asked.jsonl
    """
    from ..evaluation.fewshot import FewShot

    try:
        numbers = tuple(int(part) for part in shots.split(","))
    except ValueError:
        raise UserError(f"--shots is {shots!r}, expected numbers such as 0,1,8") from None
    settings = _settings(tokenizer, batch_size, limit, seed, on_bad, workers, device, devices, precision, quantize)
    _run(FewShot(numbers, examples, template.replace("\\n", "\n"), alone.replace("\\n", "\n")), model, data, settings,
         _files(out, predictions, force), json)


def generate(
    model: Model, data: Data,
    prefix: Annotated[str | None, typer.Option(help='Stands before every text, such as "summarize: ". Default: as trained.')] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Default: as trained, or 50.")] = None,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Above 0 favours longer texts among the beams.")] = 1.0,
    no_repeat_ngram_size: Annotated[int, typer.Option(min=0, help="No sequence of this many tokens twice; 0: no limit.")] = 0,
    max_source_tokens: Annotated[int | None, typer.Option(min=1, help="Cut texts to so many tokens. Default: as trained.")] = None,
    source_language: SourceLanguage = "", target_language: TargetLanguage = "",
    tokenizer: ModelTokenizer = None, limit: Limit = None, on_bad: OnBad = "raise", seed: Seed = None, out: Out = None,
    predictions: Predictions = None, force: Force = False, batch_size: BatchSize = None, device: Device = "auto", devices: Devices = None,
    precision: Precision = "32", workers: Workers = 0, quantize: Quantize = None, json: Json = False,
) -> None:
    """Let a model write a text for each sample and compare it with the target: ROUGE, BLEU, chrF.

    \b
    polymodal evaluate generate --model RUN --data held-out --prefix "summarize: " --num-beams 4 --predictions texts.jsonl
    """
    from ..evaluation.written import Generation

    evaluation = Generation(prefix, max_new_tokens, num_beams, length_penalty, no_repeat_ngram_size, max_source_tokens,
                            source_language, target_language)
    settings = _settings(tokenizer, batch_size, limit, seed, on_bad, workers, device, devices, precision, quantize)
    _run(evaluation, model, data, settings, _files(out, predictions, force), json)


def words(
    model: VectorModel,
    analogies: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Four words a line, of which the fourth is asked for; lines such as ': capitals' begin a section.")] = None,
    pairs: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Two words and how similar people find them a line, with tabs, commas or spaces between.")] = None,
    most: Annotated[int | None, typer.Option(min=1, help="Look among the first N words, the most frequent ones. Default: all.")] = None,
    tokenizer: ModelTokenizer = None, out: Out = None, force: Force = False, json: Json = False,
) -> None:
    """Compare word vectors with what people say: analogies answered right, and the rank correlation with scores of similarity.

    Both say how many of the questions have words that the vectors know; only those are counted.

    \b
    polymodal evaluate words --model RUN --analogies questions-words.txt --pairs wordsim353.tsv
    """
    from ..base.console import Console
    from ..evaluation.words import evaluate_words, table
    from ..inference.vectors import open_vectors

    if analogies is None and pairs is None:
        raise UserError("nothing to measure by: give --analogies FILE, --pairs FILE, or both")
    files = _files(out, None, force)
    files.check()
    record = {"model": model, **evaluate_words(open_vectors(model, tokenizer), analogies, pairs, most)}
    files.write_record(record)
    Console(json=json).finish(record, table(record) + (f"\nwrote {out}" if out is not None else ""))


def compare(
    results: Annotated[list[Path], typer.Argument(metavar="FILE.json...", help="What `evaluate ... --out` wrote, of one task.")],
    json: Json = False,
) -> None:
    """Show results side by side, with what differs in their data and settings."""
    from ..base.console import Console
    from ..evaluation.record import compare as run

    records, text = run(results)
    Console(json=json).finish({"results": records}, text)


def _settings(tokenizer: str | None, batch_size: int | None, limit: int | None, seed: int | None, on_bad: str, workers: int,
              device: str, devices: int | None, precision: str, quantize: str | None = None) -> EvaluationSettings:
    """The settings that all evaluations have; they check the words themselves."""
    from ..evaluation.evaluate import EvaluationSettings

    return EvaluationSettings(tokenizer, batch_size, limit, seed, cast("Any", on_bad), workers, cast("Any", device), devices,
                              cast("Any", precision), quantize)


def _files(record: Path | None, predictions: Path | None, overwrite: bool, curve: Path | None = None) -> OutputFiles:
    from ..evaluation.evaluate import OutputFiles

    return OutputFiles(record, predictions, overwrite, curve)


def _run(evaluation: Evaluation, model: str, data: str, settings: EvaluationSettings, files: OutputFiles, json: bool) -> None:
    """Evaluate and print."""
    from ..base.console import Console
    from ..evaluation.evaluate import evaluate
    from ..evaluation.record import table

    console = Console(json=json)
    record = evaluate(evaluation, model, data, settings, output=files, console=console)
    if record["rank"] == 0:
        console.finish(record, table(record) + "".join(f"\nwrote {path}" for path in (files.record, files.curve) if path is not None))
