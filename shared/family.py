"""The registry entry of a system: what everything outside its file needs to know about it.

A family file ends with `FAMILIES = (Family(...), ...)`, and the registry finds it by looking. An entry has a `Card` for the
documentation, a `Task` for pretraining and one for each kind of fine-tuning, and a `Net` for each network that can be loaded
and saved, with the `Format`s of the libraries that know it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from torch import Tensor, nn

from .attention.mask import Mask
from .config import Config
from .convert import Rule
from .errors import UserError
from .sample import Sample
from .settings import build_settings
from .system import Batch, Companion, Objective, System

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

ObjectiveT = TypeVar("ObjectiveT", bound=Objective[Any])


class NoData(Objective[Any]):
    """The objective of a system that was built for its network alone; every use says what is lacking."""

    def __init__(self, system: str) -> None:
        """Remember which system asks."""
        self.system = system

    def example(self, sample: Sample, rng: np.random.Generator) -> Iterable[Any]:
        """Refuse."""
        raise UserError(f"this {self.system} was built without a tokenizer and cannot read data: pass tokenizer=")

    def collate(self, examples: list[Any]) -> Batch:
        """Refuse."""
        raise UserError(f"this {self.system} was built without a tokenizer and cannot read data: pass tokenizer=")


@dataclass(frozen=True)
class Context:
    """What the data tells a system that is being built."""

    tokenizer: Tokenizer | None = None
    classes: tuple[str, ...] | None = None
    """Class names in the order of their numbers, where the data set is labelled."""
    several_labels: bool = False
    """Each sample has any number of these classes, not one."""
    companions: Mapping[str, Companion] = field(default_factory=dict)
    """The networks beside the one that is trained (`Task.companions`), by name."""
    regions: tuple[int, int] | None = None
    """Width of the features of a picture's regions, and number of their classes (0 where they have none), where the data has regions."""
    counts: np.ndarray | None = field(default=None, compare=False)
    """How often each token id stands in the training data, int64 [V], where the task reads that (`Task.reads_counts`) and all data sets
    were packed with `--tokenize`; the same on every rank, and when the run goes on or is loaded."""
    net_only: bool = False
    """The system is built for its network: a tokenizer that is lacking is not a mistake, and the objective is `NoData`."""

    def objective(self, system: str, make: Callable[[Tokenizer], ObjectiveT]) -> ObjectiveT:
        """The objective that `make` builds with the tokenizer, or `NoData` under `net_only`: then nobody may use it as another."""
        if self.net_only and self.tokenizer is None:
            return cast("ObjectiveT", NoData(system))
        return make(self.need_tokenizer(system))

    def counted(self, system: str, make: Callable[[Tokenizer, np.ndarray], ObjectiveT]) -> ObjectiveT:
        """As `objective`, for one that also needs how often each token stands in the training data."""
        if self.net_only and (self.tokenizer is None or self.counts is None):
            return cast("ObjectiveT", NoData(system))
        tokenizer = self.need_tokenizer(system)
        if self.counts is None:
            raise UserError(f"{system} needs to know how often each token stands in the training data: pack all of it with --tokenize, "
                            "which counts; of a trained model, give the run")
        if len(self.counts) != tokenizer.vocab_size or not self.counts.any():
            raise UserError(f"the data's counts are of {len(self.counts)} tokens, the tokenizer has {tokenizer.vocab_size}: pack the data "
                            "again with this tokenizer")
        return make(tokenizer, self.counts)

    def companion(self, name: str, system: str) -> Companion | None:
        """The companion of that name, or a clear error; None under `net_only`, where it may be lacking."""
        if name not in self.companions and not self.net_only:
            raise UserError(f"{system} needs a {name} beside the network that it trains: set companions.{name}=DIR, a run or a model")
        return self.companions.get(name)

    def need_tokenizer(self, system: str) -> Tokenizer:
        """The tokenizer, or a clear error."""
        if self.tokenizer is None:
            raise UserError(f"{system} reads text and got no tokenizer: pass --tokenizer DIR (see `polymodal tokenizer train`)")
        return self.tokenizer


# ------------------------------------------------------------------------------------------------ networks


@dataclass(frozen=True)
class Format:
    """How a library lays a network out in a directory: a JSON file that describes it, and safetensors.

    In transformers' format config.json is `Family.config` with `model_type` and `architectures`, and is recognised by them;
    such a format leaves `recognises`, `read` and `write` out (`transformers` makes it). Other libraries' say them.

    Args:
        name: what `--format` calls it: "transformers", "open_clip", "timm".
        rules: config -> the rule table of the state dict (`shared.convert`); one table, both directions.
        config_file: the JSON file that describes the network.
        weights_file: the safetensors file.
        recognises: whether the contents of a JSON file of that name describe this kind of network.
        read: (those contents, the directory) -> config.
        write: net -> those contents; raises `UserError` where the library has no such network.
        files: net -> further JSON files, by name relative to the directory.
        finish: (net, the contents of `config_file`, directory): take over what is not a config, such as the preprocessing of pictures.
        suits: config -> whether a network of this config is written in this format where none is asked for.
        fold: net -> the network that is written: the same function, without parts for training that the library has no place for.
    """

    name: str
    rules: Callable[[Any], Sequence[Rule]]
    config_file: str = "config.json"
    weights_file: str = "model.safetensors"
    recognises: Callable[[Mapping[str, Any]], bool] | None = None
    read: Callable[[Mapping[str, Any], Path], Any] | None = None
    write: Callable[[Any], Mapping[str, Any]] | None = None
    files: Callable[[Any], Mapping[str, Mapping[str, Any]]] = lambda net: {}
    finish: Callable[[Any, Mapping[str, Any], Path], None] = lambda net, record, directory: None
    suits: Callable[[Any], bool] = lambda config: True
    fold: Callable[[Any], nn.Module] = lambda net: net


def transformers(
    rules: Callable[[Any], Sequence[Rule]],
    *,
    files: Callable[[Any], Mapping[str, Mapping[str, Any]]] = lambda net: {},
    finish: Callable[[Any, Mapping[str, Any], Path], None] = lambda net, record, directory: None,
    suits: Callable[[Any], bool] = lambda config: True,
) -> Format:
    """Transformers' format with a rule table; see `Format` for the arguments."""
    return Format("transformers", rules, files=files, finish=finish, suits=suits)


def or_our_own(net: Net, config: type[Config], model_type: str, beyond: Callable[[Any], str]) -> Net:
    """A network in transformers' format where that library has all of it, else in one of ours, called "polymodal".

    Ours has the same keys under another `model_type`, by which transformers refuses it: it would compute something else.

    Args:
        net: with transformers' format alone.
        config: its class.
        model_type: of our format.
        beyond: config -> what transformers does not have, such as "sharing attention"; empty where it has all.
    """
    (theirs,) = net.formats

    def rules(c: Any) -> Sequence[Rule]:
        if lacking := beyond(c):
            raise UserError(f"transformers' {net.architecture} cannot hold this network, which has {lacking}: write it as polymodal")
        return theirs.rules(c)

    return Net(net.architecture, net.build, replace(theirs, rules=rules, suits=lambda c: not beyond(c)),
               our_own(theirs, net.architecture, config, model_type))


def our_own(theirs: Format, architecture: str, config: type[Config], model_type: str) -> Format:
    """A format of ours, "polymodal": the keys of transformers' format `theirs` for a network that transformers has not."""

    def write(model: Any) -> Mapping[str, Any]:  # every field, also those that the config leaves out for transformers
        return {**Config.to_dict(model.config), "model_type": model_type, "architectures": [architecture]}

    return replace(theirs, name="polymodal", write=write,
                   read=lambda record, directory: config.from_dict(record, f"{directory}/config.json"),
                   recognises=lambda record: record.get("model_type") == model_type and architecture in record.get("architectures", []))


class Net:
    """A network that can be loaded and saved.

    Args:
        architecture: the class name in config.json's `architectures` ("BertForMaskedLM").
        build: config -> module with randomly initialized weights.
        formats: how libraries lay it out. It is written in the first that suits its config, where none is asked for.
        written: files of other programs for a part of it, such as word vectors, by what `--format` calls them: (net, its tokenizer, the
            directory) -> writes them.
    """

    def __init__(self, architecture: str, build: Callable[[Any], nn.Module], *formats: Format,
                 written: Mapping[str, Callable[[Any, Tokenizer, Path], None]] | None = None) -> None:
        self.architecture = architecture
        self.build = build
        self.formats = formats
        self.written = written or {}

    def format(self, name: str) -> Format:
        """The format called `name`."""
        for format in self.formats:
            if format.name == name:
                return format
        offered = ", ".join([*(f.name for f in self.formats), *self.written])
        raise UserError(f"{self.architecture} has no format {name!r}; it can be written as {offered or 'nothing'}")

    def default_format(self, config: Any) -> Format:
        """The format in which a network of this config is written where none is asked for."""
        for format in self.formats:
            if format.suits(config):
                return format
        raise UserError(f"{self.architecture} with this config has no format of its own: "
                        f"name one of {', '.join(f.name for f in self.formats) or 'none'}")


# --------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class Task:
    """What a family's network is trained for: pretraining, or something that it is fine-tuned for.

    Its system is one like any other, with an objective and a loss of its own: the same loop trains it.

    Args:
        objective: in a few words.
        settings: the frozen dataclass of the objective's settings (`mask_prob`, `max_length` ...).
        create: (config, settings, context) -> a system with randomly initialized weights.
        name: what recipes and `--set task=` call it: "classify", "text2text"; pretraining has the empty name.
        adapt: fit the config of a network, fresh or loaded, to the data: the number and names of classes. The vocabulary stays.
        architecture: `Net.architecture` of the network that is trained; empty where the settings decide.
        companions: the networks that it reads and does not train (`Companion`), by what a recipe calls them, each with the families that
            it may be of.
        reads_counts: whether it reads how often each token stands in the training data (`Context.counts`).
    """

    objective: str
    settings: type
    create: Callable[[Any, Any, Context], System]
    name: str = ""
    adapt: Callable[[Any, Context], Any] = lambda config, context: config
    architecture: str = ""
    companions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reads_counts: bool = False

    def unknown_companions(self, names: Iterable[str], system: str) -> Iterator[str]:
        """What is wrong with the names of companions in a recipe of `system`."""
        known = ", ".join(f"companions.{name}" for name in self.companions) or "no companions"
        return (f"companions.{name} is unknown; {system} {self.name or 'pretraining'} has {known}"
                for name in names if name not in self.companions)

    def build(self, config: Any, settings: Mapping[str, Any], context: Context) -> System:
        """A system with randomly initialized weights; `settings` are those of a recipe's `objective`."""
        return self.create(config, build_settings(self.settings, settings, f"{self.name or 'pretraining'} objective"), context)


@dataclass(frozen=True)
class Adopt:
    """How a network begins with the weights of another family's, or of one of its own in another shape.

    Args:
        weights: (the other network's tensors by our names, the network that begins) -> the tensors that go into it. What has no place in
            it may stay among them; what is missing must belong to `Family.heads`.
        config: the other network's config -> ours.
    """

    weights: Callable[[Mapping[str, Tensor], Any], Mapping[str, Tensor]] = lambda tensors, net: tensors
    config: Callable[[Any], Any] = lambda config: config


# -------------------------------------------------------------------------------------------------- entry


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the documentation says of a system."""

    title: str
    paper: str
    """Authors, title and year as they would stand in a reference list."""
    year: int
    url: str
    equation: str
    """What is minimised, in TeX, and in `symbols` what its letters mean."""
    symbols: str
    masks: Mapping[str, Mask]
    """The attention masks of training, over 16 keys, by what they are for; drawn in the documentation."""
    reference: str
    """The library and class that parity is measured against."""


@dataclass(frozen=True)
class Vocabulary:
    """How a vocabulary for a family is learnt: `polymodal tokenizer train --for` reads it.

    Args:
        kind: of `Tokenizer.train`, such as "wordpiece".
        style: the special tokens and the template, a name of `STYLES`.
        lowercase: fold case.
        strip_accents: remove accents; None means where `lowercase` does.
    """

    kind: str
    style: str
    lowercase: bool = False
    strip_accents: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """The registry entry of one system: everything that `polymodal` needs to know about a family file."""

    name: str
    """The name in recipes and on the command line, such as `bert`."""
    card: Card
    config: type
    """The frozen dataclass with transformers' field names."""
    sizes: Mapping[str, Mapping[str, Any]]
    """Named sizes: overrides of the config's defaults. Every family has `tiny` and `base`."""
    adapt: Callable[[Any, Context], Any] = lambda config, context: config
    """Fit the config of a fresh network to the data: vocabulary size and special ids, number of labels."""
    pretraining: Task
    tasks: tuple[Task, ...] = ()
    """What its networks are fine-tuned for."""
    nets: tuple[Net, ...] = ()
    heads: tuple[str, ...] = ()
    """Parts of its networks that are randomly initialized where a run starts from a network without them, or with others.
    All else must be there: a network that is the trunk alone, or has it as `trunk`, fits every other."""
    starts: Mapping[str, Adopt] = field(default_factory=dict)
    """The families, by name, whose networks its own may begin with where more is to be done than to copy tensors of one name and shape."""
    model_type: str = ""
    """config.json's `model_type` in transformers' format; empty where there is none."""
    vocabulary: Vocabulary | None = None
    """The paper's kind of vocabulary; None for a family that reads no text."""

    def task(self, name: str) -> Task:
        """The task called `name`; pretraining has the empty name."""
        for task in (self.pretraining, *self.tasks):
            if task.name == name:
                return task
        offered = f"its tasks are {', '.join(t.name for t in self.tasks)}" if self.tasks else "it has no tasks"
        raise UserError(f"task is {name!r}; {self.name} is pretrained with an empty task, and {offered}")


# ------------------------------------------------------------------------------------------------ finding


def families_in(package: ModuleType) -> list[tuple[Family, ModuleType]]:
    """The families in a package, each with its module: every module that ends with `FAMILIES` has some."""
    modules = [importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)]
    return [(entry, module) for module in modules for entry in getattr(module, "FAMILIES", ())]


def named_net(record: Mapping[str, Any], known: Iterable[Family], what: str) -> tuple[Family, Net]:
    """The family and the network that a config.json of transformers names.

    Args:
        record: the contents, with `model_type` and `architectures`.
        known: the families to look among.
        what: what the contents are called in a message, such as the path of the file.

    Raises:
        UserError: no family has that `model_type`, or none of its networks is in `architectures`.
    """
    known = [family for family in known if family.model_type]
    kind, names = record.get("model_type"), record.get("architectures") or []
    fitting = [family for family in known if family.model_type == kind]
    if not fitting:
        raise UserError(f"{what} has model_type {kind!r}; known: {', '.join(sorted({f.model_type for f in known}))}")
    for family in fitting:
        for net in family.nets:
            if net.architecture in names:
                return family, net
    offered = ", ".join(net.architecture for family in fitting for net in family.nets)
    raise UserError(f"{what} has architectures {names}; known for {kind}: {offered}")
