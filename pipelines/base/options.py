"""Options that several commands have, with one wording."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Last line on stdout is one JSON object.")]

# a model
Model = Annotated[str, typer.Option(metavar="MODEL", help="Model directory, run, checkpoint, or hub id.")]
VectorModel = Annotated[str, typer.Option(
    "--model", metavar="MODEL|FILE", help="Run or model with word vectors, or a file of word2vec's or GloVe's.")]
ModelTokenizer = Annotated[str | None, typer.Option(metavar="TOKENIZER", help="Where the tokenizer is. Default: with the model.")]
Device = Annotated[str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1 ... Default: a GPU if there is one.")]
Quantize = Annotated[str | None, typer.Option(metavar="int8", help="Fewer bits for the weights: faster on CPUs, not exact.")]

IgnoreGenerationConfig = Annotated[bool, typer.Option(
    "--ignore-generation-config", help="Leave out the model's generation_config.json, which else fills in these options.")]

# long texts in pieces
ReadAtOnce = Annotated[int | None, typer.Option("--max-length", min=8, help="Tokens that the model reads at once. Default: what it takes.")]
LengthPenalty = Annotated[float | None, typer.Option(help="Of beams: above 0 favours long texts. Default: 0.6.")]
Pieces = Annotated[int, typer.Option("--batch-size", min=1, help="Pieces that run together.")]
SourceLanguage = Annotated[str, typer.Option(metavar="NAME", help="Language of the texts, where the model has languages. Default: as "
                                                                  "trained.")]
TargetLanguage = Annotated[str, typer.Option(metavar="NAME", help="Language to write. Default: as trained.")]

# pictures for a model that reads regions
Detector = Annotated[str, typer.Option(metavar="grid|torchvision:NAME|DIR", help="For a model that reads regions of pictures (UNITER): "
                                       "what finds them, see `polymodal regions`.")]
Tower = Annotated[str | None, typer.Option(metavar="MODEL", help="Of --detector grid: the CLIP, ViT or MAE whose patches are read.")]
RegionCount = Annotated[int, typer.Option("--regions", min=1, help="Regions of a picture, at most; of grid exactly, a square number.")]

# a model over a packed data set
DataOnBad = Annotated[str, typer.Option(metavar="raise|skip",
                                        help="With --data: raise stops at a sample that cannot be used; skip leaves it out and counts it.")]
DataWorkers = Annotated[int | None, typer.Option(min=1, help="With --data: processes, or workers of the cluster, each with the model. "
                                                 "Default: one for each core, or GPU.")]
DataOn = Annotated[str, typer.Option(metavar="local|ray", help="With --data: processes here, or a Ray cluster.")]
RayAddress = Annotated[str | None, typer.Option(metavar="HOST:PORT", help="The cluster's head. Default: the cluster of this machine.")]

# a run
DataSets = Annotated[list[str], typer.Option(
    "--data", metavar="DATA", help="Data set (directory or URL); several make a mixture: DIR=WEIGHT each.")]
RecipeName = Annotated[str, typer.Argument(help="A recipe's name (gpt2-tiny, bert-base, clip-tiny ...) or a YAML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a value of the recipe; repeatable.")]
ContinueFrom = Annotated[str | None, typer.Option(metavar="RUN|CHECKPOINT", help="Go on from the weights and the optimizer's state of a "
                                                  "run of the same system, under this recipe.")]
EvalData = Annotated[list[str] | None, typer.Option("--eval-data", metavar="DATA", help="Held-out data set; several where tasks take turns "
                                                    "and use different ones.")]
RunTokenizer = Annotated[str | None, typer.Option(metavar="TOKENIZER", help="Tokenizer. Default: the model's, or the one in the data set.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Length of the run in tokens, of data packed with --tokenize; the schedule "
                                               "follows.")]
MaxTime = Annotated[str | None, typer.Option(metavar="30m|2h|5400", help="Length of the run in time of training (seconds without a unit); "
                                             "the schedule follows.")]
MaxUpdates = Annotated[int | None, typer.Option(help="Length of the run; the schedule follows.")]
RunSeed = Annotated[int | None, typer.Option(help="Seed of weights, order and every draw.")]
NBest = Annotated[int, typer.Option(min=1, help="Starts and ends of a window that are looked at.")]
MaxAnswerLength = Annotated[int, typer.Option(min=1, help="Tokens of an answer.")]
Stride = Annotated[int, typer.Option(min=1, help="Tokens by which the windows of a long text move on.")]
NoAnswer = Annotated[float | None, typer.Option(help="No answer where its score exceeds that of the best one by more than this. Default: "
                                                "each question has an answer.")]
