"""Classification: of pictures by class names alone (zero-shot), and of pictures and texts by a trained head."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...multimodal.pair_classes import PairClassifier, UniterForVisualQuestionAnswering
from ...multimodal.pair_comparison import PictureComparer, UniterForNlvr2PairedAttn
from ...multimodal.pair_zero_shot import PairZeroShotClassifier
from ...multimodal.region_pairs import PairScorer
from ...multimodal.zero_shot import ImageTextModel, ZeroShotClassifier, templates
from ...shared import dist
from ...shared.config import MULTI_LABEL, need_one_class_each
from ...shared.errors import UserError
from ...shared.regions import FEATURES_FIELD, Regions
from ...shared.sample import Sample
from ...shared.system import Batch, Objective
from ...text.classify import TextClassifier
from ...text.encoder_task import class_names
from ...text.labels import Labeller
from ...text.tasks import EarlyExit, SequenceClassifier, reads_alone
from ...vision.classify import ImageClassifier, TrainedClassifier
from ...vision.transforms import Preprocessing
from ..data.dataset import DataSet
from ..data.index import SEVERAL_LABELS
from ..inference.pictures import clip_tokenizer
from .answers import PairAnswers
from .intervals import bootstrap, wilson
from .measure import KINDS, Evaluation, Measure, Numbers, in_order
from .subject import Subject
from .tasks import Answers

TOP = 5
SHOWN_CONFUSION = 100
"""The confusion matrix is written for at most this many classes."""
_UNNAMED = "LABEL_"


@dataclass(frozen=True)
class ZeroShot:
    """Pictures by class names that the model was never trained on (Radford et al., 2021, section 3.1)."""

    templates: tuple[str, ...] = ()
    """Prompts with {} for the class name, names of sets of them, or files with one a line; none is "a photo of a {}."."""
    labels: tuple[str, ...] = ()
    """Class names in place of the data's, in the same order."""

    name: ClassVar[str] = "zero-shot"
    needs: ClassVar[tuple[str, ...]] = ("pictures or regions", "class numbers")
    batch_size: ClassVar[int] = 64

    def measures(self, subject: Subject) -> Mapping[str, Measure]:
        """One pass."""
        labels, prompts = subject.classes(self.labels), templates(self.templates)
        model, shown = subject.model, [p("{}") for p in prompts]
        kind = f"{len(labels)} classes, {len(prompts)} template{'s' if len(prompts) > 1 else ''}"
        if isinstance(model, PairScorer):
            pairs = PairZeroShotClassifier(model, subject.tokenizer, labels, prompts)
            subject.facts |= {"templates": shown, "classes": list(labels)}
            return {"": Classification(kind, _Seen(pairs, len(labels)), lambda batch: pairs.of_regions(batch.inputs, subject.device),
                                       labels)}
        if not isinstance(model, ImageTextModel):
            raise UserError(f"{subject.source} holds a {type(model).__name__}; zero-shot classification compares pictures with class "
                            "names: give a CLIP, or a network that scores pairs (`polymodal evaluate classify` measures a trained head)")
        tokenizer = subject.tokenizer if subject.tokenizer_source is not None else clip_tokenizer(model, subject.source)
        subject.facts |= {"tokenizer": tokenizer.fingerprint, "templates": shown, "classes": list(labels)}
        subject.picture_facts(model.preprocessing)
        by = ZeroShotClassifier(model, tokenizer, labels, prompts)
        return {"": Classification(kind, _Pictures(model.preprocessing, len(labels)), lambda batch: by.of_pixels(batch.inputs), labels)}


@dataclass(frozen=True)
class ClassifyPictures:
    """Pictures by the classes of a trained head."""

    name: ClassVar[str] = "classify"
    needs: ClassVar[tuple[str, ...]] = ("pictures", "class numbers")
    batch_size: ClassVar[int] = 64

    def measures(self, subject: Subject) -> Mapping[str, Measure]:
        """One pass."""
        model = subject.model
        if not isinstance(model, ImageClassifier):
            raise UserError(f"{subject.source} holds a {type(model).__name__}, which has no head that classifies pictures: give a ViT with "
                            f"a classifier{', or use `polymodal evaluate zero-shot`' if isinstance(model, ImageTextModel) else ''}")
        need_one_class_each(model.config, "evaluation")
        subject.picture_facts(model.preprocessing)
        by = TrainedClassifier(model)
        labels, order = _same_classes(subject, by.labels)
        return {"": Classification(f"{len(labels)} classes", _Pictures(model.preprocessing, len(labels)),
                                   lambda batch: by.of_pixels(batch.inputs)[:, order], labels)}


@dataclass(frozen=True)
class ClassifyTexts:
    """Texts, or pairs of them, by the classes of a trained head: one for each text, or several labels."""

    speeds: tuple[float, ...] = ()
    """Of a network from which texts can leave early: a pass for each, behind one in which none does."""

    name: ClassVar[str] = "classify"
    needs: ClassVar[tuple[str, ...]] = ("text", "class numbers")
    batch_size: ClassVar[int] = 32

    def measures(self, subject: Subject) -> Mapping[str, Measure]:
        """One pass, and one for each speed."""
        model = subject.model
        if self.speeds and not isinstance(model, EarlyExit):
            raise UserError(f"{subject.source} holds a {type(model).__name__}: --speed is for networks with a classifier behind each layer "
                            "(fastbert); leave it out")
        if not isinstance(model, SequenceClassifier):
            raise UserError(f"{subject.source} holds a {type(model).__name__}, which has no head that classifies texts: give a network "
                            "that was fine-tuned for it (task classify)")
        if model.config.problem_type == MULTI_LABEL:
            labels, order = _same_classes(subject, class_names(model.config))
            return {"": Answers(Labeller(
                model, subject.tokenizer, subject.trained.max_length, tuple(labels[order.index(n)] for n in range(len(order)))))}
        need_one_class_each(model.config, "evaluation")
        if subject.data.index.kind == SEVERAL_LABELS:
            raise UserError(f"{subject.data.directory} has several labels for each text, and {subject.source} tells classes apart, one for "
                            "each text: give a model that was fine-tuned on such data, or data that was packed with --label-field")
        by = TextClassifier(model, None if reads_alone(model) else subject.tokenizer, None, subject.trained.max_length)
        labels, order = _same_classes(subject, by.labels)
        if isinstance(model, EarlyExit):
            return {"" if speed is None else f"speed-{speed:g}": EarlyClassification(by, model, order, speed, labels)
                    for speed in (None, *self.speeds)}
        return {"": Classification(f"{len(labels)} classes", _Labelled(len(labels)),
                                   lambda batch: by.probabilities(batch.inputs)[:, order], labels)}


@dataclass(frozen=True)
class ClassifyPairs:
    """Texts about a picture, or about two, by the answers of a trained head; of another network, what it classifies alone."""

    name: ClassVar[str] = "classify"
    needs: ClassVar[tuple[str, ...]] = ("text", "class numbers")
    batch_size: ClassVar[int] = 32

    def measures(self, subject: Subject) -> Mapping[str, Measure]:
        """One pass."""
        model = subject.model
        if isinstance(model, UniterForNlvr2PairedAttn):
            both = PictureComparer(model, subject.tokenizer)
            labels, order = _same_classes(subject, both.labels)
            return {"": Classification(f"{len(labels)} classes", _Compared(both, len(labels)),
                                       lambda batch: both.probabilities(batch.inputs)[:, order], labels)}
        if not isinstance(model, UniterForVisualQuestionAnswering):
            pictures = set(KINDS["pictures"]) & set(subject.data.index.fields)
            return (ClassifyPictures() if pictures and isinstance(model, ImageClassifier) else ClassifyTexts()).measures(subject)
        by = PairClassifier(model, subject.tokenizer)
        _same_classes(subject, by.labels)
        return {"": PairAnswers(by, subject.tokenizer)}


def classify(data: DataSet, speeds: tuple[float, ...] = ()) -> Evaluation:
    """The evaluation `classify` for the kind of data that a data set holds; `speeds` are for texts."""
    if speeds:
        return ClassifyTexts(speeds)
    if FEATURES_FIELD in data.index.fields:
        return ClassifyPairs()
    return ClassifyPictures() if set(KINDS["pictures"]) & set(data.index.fields) else ClassifyTexts()


def _same_classes(subject: Subject, model: tuple[str, ...]) -> tuple[tuple[str, ...], list[int]]:
    """The data's classes, and for each the number that the model gives it; refuses lists that differ."""
    known = subject.data.index.schema.get("classes")
    data = model if not known else tuple(known)
    if all(name.startswith(_UNNAMED) for name in model) and len(model) == len(data):
        model = data  # the model knows numbers alone
    lacking, extra = [n for n in data if n not in model], [n for n in model if n not in data]
    if lacking or extra:
        parts = [f"{what} {', '.join(map(repr, names[:5]))}{' ...' if len(names) > 5 else ''}"
                 for what, names in (("the model does not know", lacking), ("the data does not have", extra)) if names]
        raise UserError(f"the classes of {subject.source} ({len(model)}) and of {subject.data.directory} ({len(data)}) differ: "
                        f"{'; '.join(parts)}: pack the data with the model's list of classes")
    subject.facts["classes"] = list(data)
    return data, [model.index(name) for name in data]


# --- the data ---------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Inputs(Batch):
    inputs: Any
    """uint8 [B, 3, H, W], or texts with their second ones."""
    labels: list[int] = field(default_factory=list)


def _label(sample: Sample, classes: int) -> int:
    label = sample.label()
    if not 0 <= label < classes:
        raise sample.bad(f"class {label}, there are {classes}")
    return label


class _Pictures(Objective[tuple[Tensor, int]]):
    """Pictures as an evaluation sees them, and their classes."""

    def __init__(self, preprocessing: Preprocessing, classes: int) -> None:
        self.preprocessing, self.classes = preprocessing, classes

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[tuple[Tensor, int]]:
        return [(self.preprocessing.pixels(sample.image()), _label(sample, self.classes))]

    def collate(self, examples: list[tuple[Tensor, int]]) -> _Inputs:
        return _Inputs(counts={}, inputs=torch.stack([p for p, _ in examples]), labels=[label for _, label in examples])


class _Labelled(Objective[tuple[str, str | None, int]]):
    """Texts or pairs, and their classes."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[tuple[str, str | None, int]]:
        return [(sample.text(), sample.pair(), _label(sample, self.classes))]

    def collate(self, examples: list[tuple[str, str | None, int]]) -> _Inputs:
        return _Inputs(counts={}, inputs=[(text, pair) for text, pair, _ in examples], labels=[label for _, _, label in examples])


class _Seen(Objective[tuple[Regions, int]]):
    """Regions of pictures, and their classes."""

    def __init__(self, by: PairZeroShotClassifier, classes: int) -> None:
        self.reader, self.classes = by.reader, classes

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[tuple[Regions, int]]:
        return [(self.reader.regions(sample), _label(sample, self.classes))]

    def collate(self, examples: list[tuple[Regions, int]]) -> _Inputs:
        return _Inputs(counts={}, inputs=[regions for regions, _ in examples], labels=[label for _, label in examples])


class _Compared(Objective[tuple[Any, int]]):
    """Texts about two pictures, and their classes."""

    def __init__(self, by: PictureComparer, classes: int) -> None:
        self.read, self.classes = by.read, classes

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[tuple[Any, int]]:
        return [(self.read(sample), _label(sample, self.classes))]

    def collate(self, examples: list[tuple[Any, int]]) -> _Inputs:
        return _Inputs(counts={}, inputs=[given for given, _ in examples], labels=[label for _, label in examples])


# --- the measurement --------------------------------------------------------------------------------------------------


class Classification(Measure):
    """Top-1 and top-5, F1, precision and recall of each class, the confusion matrix, and what guessing reaches.

    Args:
        method: in a few words.
        objective: reads the samples.
        probabilities: batch -> [B, C], classes in the order of `labels`.
        labels: C names.
    """

    def __init__(self, method: str, objective: Objective[Any], probabilities: Callable[[Any], Tensor], labels: tuple[str, ...]) -> None:
        self.method, self.objective, self.probabilities, self.labels = method, objective, probabilities, labels
        self.records: list[dict[str, Any]] = []

    def add(self, batch: _Inputs) -> None:
        """Keep the best classes of each sample."""
        scores, best = self.probabilities(batch).float().cpu().topk(min(TOP, len(self.labels)))
        for index, label, row, classes in zip(batch.sample_ids, batch.labels, scores.tolist(), best.tolist(), strict=True):
            self.records.append({"index": index, "label": label, "classes": classes, "scores": row})

    def result(self) -> Numbers:
        """All numbers, from the records of all ranks."""
        records = in_order(self.records)
        count, classes = len(records), len(self.labels)
        truth, guess = (np.array([r[k] if k == "label" else r[k][0] for r in records]) for k in ("label", "classes"))
        found = Numbers({})
        hits = int((truth == guess).sum())
        found.put("accuracy", hits / count, wilson(hits, count))
        if classes > TOP:
            near = sum(r["label"] in r["classes"] for r in records)
            found.put("top5_accuracy", near / count, wilson(near, count))
        found.put("macro_f1", macro_f1(truth, guess, classes),
                  bootstrap(lambda chosen: macro_f1(truth[chosen], guess[chosen], classes), count))
        # with one class for each sample, micro-averaged precision, recall and F1 are all the accuracy
        found.put("micro_f1", hits / count)
        found.put("chance", 1 / classes)
        found.put("most_frequent", max(Counter(truth.tolist()).values()) / count)
        matrix = np.bincount(truth * classes + guess, minlength=classes * classes).reshape(classes, classes)
        found.details["classes"] = _by_class(matrix, self.labels)
        if classes <= SHOWN_CONFUSION:
            found.details["confusion"] = matrix.tolist()
        for r in records:
            names = [self.labels[c] for c in r["classes"]]
            found.predictions.append({"index": r["index"], "label": self.labels[r["label"]], "predictions": names, "scores": r["scores"]})
        return found


class EarlyClassification(Classification):
    """The same of a network from which texts leave early, with what it costs: layers, operations, and seconds of the network alone.

    Args:
        by: classifies.
        model: the network in it.
        order: of the classes, the number that the model gives each.
        speed: at which texts leave; None for none.
        labels: C names.
    """

    def __init__(self, by: TextClassifier, model: EarlyExit, order: Sequence[int], speed: float | None, labels: tuple[str, ...]) -> None:
        super().__init__(f"{len(labels)} classes{'' if speed is None else f', speed {speed:g}'}", _Labelled(len(labels)),
                         self._timed, labels)
        self._by, self._model, self._order, self._speed = by, model, order, speed
        self._spent: list[dict[str, float]] = []

    def _timed(self, batch: _Inputs) -> Tensor:
        model, framed = self._model, self._by.framed(batch.inputs)
        model.speed = None
        full = [model.operations(length, model.config.num_hidden_layers) for length in framed.lengths]
        if self._speed is not None:
            model.hurry(self._speed)
        began = time.perf_counter()
        scores, out = self._by.scored(framed)  # on the CPU: the device has finished
        seconds = time.perf_counter() - began
        depths = out.exit_layers.tolist()
        done = [model.operations(length, depth) for length, depth in zip(framed.lengths, depths, strict=True)]
        self._spent.append({"seconds": seconds, "layers": sum(depths), "operations": sum(done), "full": sum(full), "texts": len(depths)})
        model.speed = None
        return scores[:, self._order]

    def result(self) -> Numbers:
        """All numbers, from the records of all ranks."""
        found = super().result()
        spent = [each for part in dist.gather_json(self._spent) for each in part]
        seconds, layers, operations, full, texts = (sum(each[name] for each in spent) for name in (
            "seconds", "layers", "operations", "full", "texts"))
        found.put("layers", layers / texts)
        found.put("gflop_per_text", operations / texts / 1e9)
        found.put("operations_share", operations / full)
        found.put("seconds_per_text", seconds / texts)
        return found


def macro_f1(truth: np.ndarray, guess: np.ndarray, classes: int) -> float:
    """The mean F1 of the classes that occur or are guessed (as scikit-learn and torchmetrics count them)."""
    right = np.bincount(truth[truth == guess], minlength=classes)
    either = np.bincount(truth, minlength=classes) + np.bincount(guess, minlength=classes)
    return float((2 * right[either > 0] / either[either > 0]).mean())


def _by_class(matrix: np.ndarray, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Precision, recall (which is the class's accuracy) and F1 of each class; None where there is nothing to divide by."""
    right, truth, guess = matrix.diagonal(), matrix.sum(1), matrix.sum(0)

    def share(a: int, b: int) -> float | None:
        return a / b if b else None

    return [{"class": name, "samples": int(t), "precision": share(int(r), int(g)), "recall": share(int(r), int(t)),
             "f1": share(2 * int(r), int(t + g))} for name, r, t, g in zip(labels, right, truth, guess, strict=True)]
