"""What the contract is tested on: every registered system in its tiny sizes and tasks, and one data set for all of them.

No family is named here. A family that is registered and has a tiny recipe is tested; what does not apply to it, its classes
say themselves (`System.coupled`, `Objective.needs_partner`, `Objective.sequential`, the decoders' protocols).
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polymodal
import torch
from PIL import Image
from polymodal.pipelines.crew.pieces import Workers
from polymodal.pipelines.data.index import SEVERAL_LABELS, build_index
from polymodal.pipelines.model.companions import open_companions
from polymodal.pipelines.pack.pack import pack
from polymodal.pipelines.pack.settings import PackSettings, Reading
from polymodal.pipelines.run.recipe import Recipe, recipes
from polymodal.registry import families
from polymodal.shared.errors import BadSample, UserError
from polymodal.shared.family import Context, Family
from polymodal.shared.regions import BOXES_FIELD, CLASSES_FIELD, FEATURES_FIELD, Regions
from polymodal.shared.sample import SECOND, Sample
from polymodal.shared.system import Batch, Objective, System
from polymodal.shared.tokenizer import STYLES, Tokenizer

# ------------------------------------------------------------------------------------------ the data set

TOPICS = ("river", "kitchen", "music", "garden")
COLOURS = ((230, 40, 40), (40, 200, 60), (60, 80, 240), (240, 220, 50))
PLACES = ("left", "right", "top", "bottom")
WORDS = (
    ("water", "flows", "past", "stone", "bridge", "boats"), ("salt", "boils", "with", "onion", "pepper", "rice"),
    ("violin", "plays", "slow", "notes", "choir", "sings"), ("rose", "grows", "near", "apple", "hedge", "birds"),
)
COMMON = ("and", "then", "the", "old", "new", "again")


def document(rng: np.random.Generator, topic: int, sentences: int) -> str:
    """Sentences in which mostly each word tells the next one, of words that tell the topic."""
    made: list[str] = []
    for _ in range(sentences):
        at, words = int(rng.integers(6)), list[str]()
        for _ in range(int(rng.integers(4, 9))):
            words.append(WORDS[topic][at])
            if rng.random() < 0.15:
                words.append(COMMON[int(rng.integers(6))])
            at = (at + 1) % 6
        made.append(" ".join(words) + ".")
    return " ".join(made)


def fields_of(number: int) -> dict[str, bytes]:
    """One sample with everything that any objective reads."""
    rng = np.random.default_rng(number)
    topic, place = number % 4, number // 4 % 4
    about = f"{TOPICS[topic]} {PLACES[place]}."
    # very different lengths: some fit many times into a model, some not at all
    text = f"{about} {document(rng, topic, (1, 2, 3, 6, 20)[number % 5])}"
    pixels = np.zeros((32, 32, 3)) + np.array(COLOURS[topic]) * 0.3
    half = (np.s_[:, :16], np.s_[:, 16:], np.s_[:16], np.s_[16:])[place]
    pixels[half] = COLOURS[topic]
    picture = io.BytesIO()
    Image.fromarray(np.clip(pixels + rng.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)).save(picture, "PNG")
    return {
        "txt": text.encode(), "json": json.dumps({"caption": about, "number": number}).encode(), "png": picture.getvalue(),
        "cls": str(topic).encode(), "pair.txt": document(rng, topic, 2).encode(), "target.txt": f"{TOPICS[topic]} {PLACES[place]}".encode(),
    }


def annotated(number: int) -> dict[str, bytes]:
    """The same sample with what the tasks read of `json`. (In shards of their own, as the bytes of a data set say its order.)"""
    content, topic, place = fields_of(number), number % 4, number // 4 % 4
    words = content["txt"].decode().split()
    tells = {word: name for name, mine in zip(TOPICS, WORDS) for word in mine}
    sought = next((word for word in words if word in (row[3] for row in WORDS)), None)
    annotations = {
        "question": "where", "answers": [{"text": sought, "answer_start": content["txt"].decode().index(sought)}] if sought else [],
        "score": topic + 0.3 * place, "words": words, "tags": [tells.get(word.strip("."), TOPICS[topic]) for word in words],
        # the right choice can be told without the text
        "choices": [f"{name} {'new' if n == topic else 'old'}" for n, name in enumerate(TOPICS)],
    }
    return {**content, "json": json.dumps({**json.loads(content["json"]), **annotations}).encode()}


TRAIN, HELD = range(96), range(96, 128)
REGION_SHAPE = (12, 9)
"""Width of the features of regions, and number of their classes."""


def pictured(number: int) -> dict[str, bytes]:
    """The same sample with regions, two to five of them, which tell the topic and where its half is."""
    rng, topic, place = np.random.default_rng(number), number % 4, number // 4 % 4
    count, (width, classes) = 2 + number % 4, REGION_SHAPE
    features = rng.normal(0, 0.1, (count, width)) + np.eye(width)[topic] + np.eye(width)[4 + place]
    chances = np.full((count, classes), 0.02)
    chances[:, 1 + topic] += 1 - chances.sum(1)
    low = np.array([(0, 0), (0.5, 0), (0, 0), (0, 0.5)][place]) + rng.uniform(0, 0.2, (count, 2))
    return {**fields_of(number), **Regions(features, np.concatenate([low, low + 0.3], axis=1), chances).fields()}


def shown(number: int) -> dict[str, bytes]:
    """The same sample with a second picture, the next sample's, and the box of the leftmost region of its own."""
    content, other = pictured(number), pictured(number + 1)
    boxes = Sample("", content).regions().boxes
    box = boxes[boxes[:, 0].argmin()].tolist()
    return {**content, "json": json.dumps({**json.loads(content["json"]), "box": box}).encode(),
            **{f"{SECOND}{name}": other[name] for name in (FEATURES_FIELD, BOXES_FIELD, CLASSES_FIELD)}}


def labels_of(number: int) -> list[str]:
    """The labels of the same sample, one or two: its topic, and the next one where the place says so."""
    topic, place = number % 4, number // 4 % 4
    return sorted({TOPICS[topic], TOPICS[(topic + place // 2) % 4]})


def unnamed(number: int) -> dict[str, bytes]:
    """The regions of the same sample, without a text."""
    return {name: data for name, data in pictured(number).items() if name.endswith(".npy") or name == "png"}


@cache
def nearness() -> np.ndarray:
    """How often the words of the data set stand near each other, under ids that every vocabulary has, [30, 30]."""
    known = [*(word for row in WORDS for word in row), *COMMON]
    table = np.zeros((len(known), len(known)), dtype=np.float32)
    for number in TRAIN:
        ids = np.array([known.index(w) for word in fields_of(number)["txt"].decode().split() if (w := word.strip(".")) in known])
        for distance in range(1, 4):
            np.add.at(table, (np.minimum(ids[:-distance], ids[distance:]), np.maximum(ids[:-distance], ids[distance:])), 1 / distance)
    return table


def cooccurring(number: int) -> dict[str, bytes]:
    """The same sample with some records of that table."""
    first, second = nearness().nonzero()
    chosen = np.random.default_rng(number).choice(len(first), 48, replace=False)
    columns = {"first": 5 + first[chosen].astype(np.int32), "second": 5 + second[chosen].astype(np.int32),
               "weight": nearness()[first[chosen], second[chosen]]}
    made = dict[str, bytes]()
    for name, values in columns.items():
        data = io.BytesIO()
        np.save(data, values.astype(np.int32) if name != "weight" else values)
        made[f"{name}.npy"] = data.getvalue()
    return {**fields_of(number), **made}


SAMPLES: Mapping[str, Callable[[int], dict[str, bytes]]] = {
    "": fields_of, "regions": pictured, "annotated": annotated, "shown": shown, "pictures": unnamed, "pairs": cooccurring}
"""What samples may hold; each kind has shards of its own, as the bytes of a data set say its order."""


def write_shards(out: Path, numbers: range, fields_of: Callable[[int], dict[str, bytes]] = fields_of) -> Path:
    """A WebDataset of the samples with these numbers."""
    out.mkdir(parents=True)
    for shard, part in enumerate(np.array_split(np.array(numbers), 2)):
        with tarfile.open(out / f"{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in part.tolist():
                for name, data in fields_of(number).items():
                    entry = tarfile.TarInfo(f"{number:06d}.{name}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    regions = {"regions": dict(zip(("features", "classes"), REGION_SHAPE))} if fields_of in (pictured, shown, unnamed) else {}
    build_index(out, schema={"classes": list(TOPICS), **regions})
    return out


@dataclass(frozen=True)
class Data:
    """Where the data of a case lies."""

    train: Path | list[tuple[Path, float]]
    held: Path | list[Path]
    tokenizer: Path | None


# ------------------------------------------------------------------------------------------ the tokenizers

KINDS = {"bert": "wordpiece", "gpt2": "byte-bpe", "clip": "byte-bpe", "t5": "unigram", "albert": "unigram", "xlnet": "unigram",
         "roberta": "byte-bpe", "plain": "word"}


@cache
def tokenizer(style: str) -> Tokenizer:
    """A small vocabulary of the data set in a style."""
    texts = [fields_of(n)[name].decode() for n in range(40) for name in ("txt", "target.txt")]
    kind = KINDS.get(style, "word")
    size = {"unigram": 60 + STYLES[style].sentinels, "byte-bpe": 320}.get(kind, 120)
    return Tokenizer.train(texts, kind, size, style=STYLES[style])


@cache
def counts(style: str) -> np.ndarray:
    """How often each of its tokens stands in the data set."""
    tok = tokenizer(style)
    ids = [i for n in TRAIN for i in tok.encode(fields_of(n)["txt"].decode())]
    return np.bincount(ids, minlength=tok.vocab_size)


# ------------------------------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """One system: a family in a tiny size, for pretraining or a task."""

    recipe: Recipe
    family: Family
    narrow: bool = False
    """Whether the network is narrower than the family's tiny one."""
    several_labels: bool = False
    """Whether each sample has any number of classes."""

    @property
    def name(self) -> str:
        """For test reports."""
        kind = "default" if self.recipe.name.endswith("-default") else "several-labels" if self.several_labels else ""
        return "-".join(filter(None, (self.family.name, self.recipe.size, self.recipe.task, kind)))

    @property
    def context(self) -> Context:
        """Classes, and a tokenizer of the first style that the system accepts; none where it reads no text."""
        return self.told(style_of(self))

    @property
    def reads_counts(self) -> bool:
        """Whether it reads how often each token stands in the data."""
        return self.family.task(self.recipe.task).reads_counts

    def told(self, style: str) -> Context:
        """Classes, and a tokenizer of a style, or none."""
        recipe = replace(self.recipe, companions=self.recipe.companions or beside(self.family, self.recipe.task, style))
        return Context(tokenizer(style) if style else None, TOPICS, several_labels=self.several_labels, regions=REGION_SHAPE,
                       companions=open_companions(recipe, self.family), counts=counts(style) if style and self.reads_counts else None)

    @property
    def sequential(self) -> bool:
        """Whether the objective reads the text in sequence."""
        return _traits(self)[0]

    @property
    def coupled(self) -> bool:
        """Whether the loss of a sample depends on the others of its batch."""
        return _traits(self)[1]

    @property
    def counted(self) -> bool:
        """Whether its examples are counted in tokens, so that a micro-batch can be computed in several passes."""
        return _traits(self)[2]

    @property
    def reads(self) -> tuple[str, ...]:
        """The kinds of `SAMPLES` that the objective can read: one, or where tasks need different ones the first for each."""
        objectives = self.build().objective.by_turn().values()
        kinds = {kind: {number for number, o in enumerate(objectives) if self._can_read(o, make(0))} for kind, make in SAMPLES.items()}
        for kind, able in kinds.items():
            if len(able) == len(objectives):
                return (kind,)
        assert set.union(*kinds.values()) == set(range(len(objectives))), f"{self.name} reads none of the samples"
        return tuple(dict.fromkeys(next(kind for kind, able in kinds.items() if number in able) for number in range(len(objectives))))

    def _can_read(self, objective: Objective[Any], content: dict[str, bytes]) -> bool:
        try:
            return self.sequential or (objective.reads(content) and all(examples_of(objective, [Sample("", content)])))
        except BadSample:
            return False

    def build(self) -> System:
        """The system with randomly initialized weights, as the recipe has it."""
        return self.recipe.build(self.family, self.context)

    def still(self) -> Case:
        """The same without dropout, which draws anew in every forward pass."""
        return replace(self, recipe=replace(self.recipe, model=_merge(self.recipe.model, _without_dropout(config_of(self.build())))))


def config_of(system: System) -> Any:
    """The config of the system's network."""
    return system.net.config


def _without_dropout(config: Any) -> dict[str, Any]:
    """Overrides that set every rate of dropout to 0."""
    off: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value) and (inner := _without_dropout(value)):
            off[f.name] = inner
        elif isinstance(value, float) and value and ("drop" in f.name):
            off[f.name] = 0.0
    return off


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {**base, **{k: _merge(base.get(k) or {}, v) if isinstance(v, Mapping) else v for k, v in over.items()}}


_TRAITS: dict[str, tuple[bool, bool, bool]] = {}


def _traits(case: Case) -> tuple[bool, bool, bool]:
    """Sequential, coupled and counted; each case is built once to tell them."""
    if case.name not in _TRAITS:
        system = case.build()
        counted = all(type(o).tokens_of is not Objective.tokens_of for o in system.objective.by_turn().values())
        _TRAITS[case.name] = system.objective.sequential, system.coupled, counted
    return _TRAITS[case.name]


_STYLES: dict[str, str] = {}


def style_of(case: Case) -> str:
    """The first style of tokenizers with which the system can be built and read a text; empty where it needs none."""
    if case.name not in _STYLES:
        refusals: list[str] = []
        for style in ("", *STYLES):
            try:
                system = case.recipe.build(case.family, case.told(style))
                for objective in system.objective.by_turn().values():
                    examples_of(objective, samples_of(objective, tokenizer(style) if style else None, range(2)))
            except UserError as error:
                refusals.append(f"{style or 'none'}: {error}")
                continue
            _STYLES[case.name] = style
            break
        else:
            raise AssertionError(f"{case.name} takes no tokenizer: {refusals}")
    return _STYLES[case.name]


def cases() -> list[Case]:
    """Every family in its tiny sizes, and with each of its tasks."""
    found: list[Case] = []
    known = {name: make() for name, make in recipes().items()}
    for family in families().values():
        mine = [r for r in known.values() if r.system == family.name and r.size == "tiny"]
        base = next((r for r in mine if not r.task), None)
        assert base is not None, f"{family.name} has no recipe of size tiny"
        found += [Case(replace(base, size=size), family) for size in family.sizes if size.split("-")[0] == "tiny"]
        # the settings' defaults, where they make another kind of objective than the recipe, not only other numbers
        if any(isinstance(value, (bool, str)) for value in base.objective.values()):
            found.append(Case(replace(base, objective={}, name=f"{base.name}-default"), family))
        for task in family.tasks:
            own = next((r for r in mine if r.task == task.name), None)
            found.append(Case(own, family) if own else narrow(Case(replace(base, task=task.name, objective={}), family)))
    found = [replace(case, recipe=replace(case.recipe, companions=beside(case.family, case.recipe.task, style_of(case))))
             if case.family.task(case.recipe.task).companions else case for case in found]
    return [*found, _with_several_labels(found)]


def beside(family: Family, task: str, style: str = "") -> dict[str, str]:
    """Where the companions of a task lie: tiny networks with randomly initialized weights, and with the tokenizer where they read text.

    They are made for the same task, where their families have it.
    """
    return {name: str(saved(of[0], style, task if any(t.name == task for t in families()[of[0]].tasks) else ""))
            for name, of in family.task(task).companions.items()}


@cache
def saved(name: str, style: str = "", task: str = "") -> Path:
    """A tiny network of a family for a task on disk, the same in every process."""
    folder = tempfile.TemporaryDirectory(prefix="companion-")
    _KEPT.append(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tok = tokenizer(style) if style else None
        made = polymodal.system(name, size="tiny", task=task, tokenizer=tok, classes=TOPICS if task else None)
        polymodal.save(made.net, Path(folder.name), tokenizer=tok)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []
"""Folders that are there as long as the tests run."""


def _with_several_labels(found: Sequence[Case]) -> Case:
    """The first case whose system is another one where each sample has any number of classes; that system is the same for all families."""
    return next(other for case in found if case.recipe.task and type((other := narrow(replace(
        case, recipe=replace(case.recipe, objective={}), several_labels=True))).build()) is not type(case.build()))


NARROW: tuple[dict[str, Any], ...] = (
    {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 66, "initializer_range": 0.1},
    {"d_model": 32, "n_head": 2, "d_inner": 32, "initializer_range": 0.1},
    {"n_embd": 32, "n_head": 2, "n_positions": 66, "initializer_range": 0.1},
    {"dim": 32, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 66, "initializer_range": 0.1},
    {"d_model": 32, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
     "init_std": 0.1},
    {"hidden_size": 32, "axial_pos_embds_dim": [8, 24], "attention_head_size": 16, "feed_forward_size": 32, "initializer_range": 0.1},
)
"""Networks for tasks, which are many: BERT-shaped ones, and those with the names of XLNet's, GPT's, BART's and Reformer's sizes."""


def narrow(case: Case) -> Case:
    """The case with a network that is narrower than the tiny one, where one of these suits the family's config."""
    sizes = next((sizes for sizes in NARROW if set(sizes) <= {f.name for f in fields(case.family.config)}), None)
    if sizes is None:
        return case
    return replace(case, recipe=replace(case.recipe, model={**case.recipe.model, **sizes}), narrow=True)


@cache
def once() -> list[Case]:
    """The cases without the tasks that another family has already shown: a task's system is written once, for any trunk.

    For what costs a whole run or a compilation. That each network fits its task is shown with all the cases.
    """
    seen: set[type[System]] = set()
    chosen: list[Case] = []
    for case in cases():
        kind = type(case.build())
        if not case.recipe.task or kind not in seen:
            chosen.append(case)
        seen.add(kind)
    return chosen


@cache
def watched() -> list[Case]:
    """The cases whose loss curves are recorded, and whose steps are watched: of the narrow ones those that `once` has."""
    return [case for case in cases() if not case.narrow or case in once()]


# ------------------------------------------------------------------------------------- samples to batches

BLOCK = 33


def samples_of(objective: Objective[Any], tok: Tokenizer | None, numbers: Sequence[int]) -> list[Sample]:
    """Samples for an objective, each with a partner; rows of tokens where it reads the text in sequence."""
    made: list[Sample] = []
    for n in numbers:
        content = {**shown(n), **cooccurring(n), **annotated(n)}
        told = {name: value for make in (shown, annotated) for name, value in json.loads(make(n)["json"]).items()}
        content["json"] = json.dumps({**told, "labels": labels_of(n)}).encode()
        if objective.sequential:
            assert tok is not None
            ids = [i for k in range(8) for i in tok.encode(fields_of(n + 131 * k)["txt"].decode())][:BLOCK]
            content = {"tokens.u16": np.array(ids, dtype="<u2").tobytes()}
        # rows of tokens go on from one another by their numbers: these do not
        made.append(Sample(f"{n:06d}", content, 10 * n, "contract"))
    for sample, other in zip(made, [*made[1:], *made[:1]]):
        sample.pair_with(lambda other=other: other)
        sample.followed_by(lambda other=other: other if other is not made[0] else None)  # behind the last there is none
    return made


def examples_of(objective: Objective[Any], samples: Sequence[Sample]) -> list[list[Any]]:
    """The examples of each sample, drawn with a generator of its own, as the stream has it."""
    return [list(objective.example(s, np.random.default_rng((7, s.index)))) for s in samples]


def batch_of(objective: Objective[Any], samples: Sequence[Sample]) -> Batch:
    """A micro-batch of samples, as the stream makes it."""
    batch = objective.collate([e for part in examples_of(objective, samples) for e in part])
    batch.samples, batch.sample_ids = len(samples), [s.index for s in samples]
    return batch


def prepare(root: Path, case: Case) -> Data:
    """The data of a case on disk, made at the first call."""
    if not (root / "train").exists():
        write_shards(root / "train", TRAIN)
        write_shards(root / "held", HELD)
    style = style_of(case)
    words = root / f"tokenizer-{style}" if style else None
    if words is not None and not words.exists():
        tokenizer(style).save(words)
    if case.several_labels:
        for name, numbers in (("labels", TRAIN), ("labels-held", HELD)):
            if not (root / name).exists():
                table = root / f"{name}.jsonl"
                table.write_text("\n".join(json.dumps({"text": fields_of(n)["txt"].decode(), "labels": labels_of(n)}) for n in numbers))
                pack([table], root / name, PackSettings(Reading(SEVERAL_LABELS, classes=TOPICS)), workers=Workers(1))
        return Data(root / "labels", root / "labels-held", words)
    if (kinds := case.reads) != ("",):
        folders = {kind: root / (kind or "train") for kind in kinds}
        for kind, folder in folders.items():
            if kind and not folder.exists():
                write_shards(folder, TRAIN, SAMPLES[kind])
                write_shards(root / f"{kind}-held", HELD, SAMPLES[kind])
        held = [root / (f"{kind}-held" if kind else "held") for kind in kinds]
        if len(kinds) == 1:
            return Data(folders[kinds[0]], held[0], words)
        return Data([(folder, 1.0) for folder in folders.values()], held, words)
    if not case.sequential and not case.reads_counts:
        return Data(root / "train", root / "held", words)
    kind = "rows" if case.sequential else "counted"
    for name, numbers in ((kind, TRAIN), (f"{kind}-held", HELD)):
        if not (root / f"{name}-{style}").exists():
            table = root / f"{name}.jsonl"
            table.write_text("\n".join(json.dumps({"text": fields_of(n)["txt"].decode()}) for n in numbers))
            pack([table], root / f"{name}-{style}", PackSettings(tokenizer=words, block=BLOCK, in_order=case.sequential, shuffle=None),
                 workers=Workers(1))
    return Data(root / f"{kind}-{style}", root / f"{kind}-held-{style}", words)
