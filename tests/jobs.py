"""Jobs for the tests of `polymodal launch`, and the parsers of those who read what it writes."""

from __future__ import annotations

from polymodal.pipelines.launch.job import Job, JobOptions
from polymodal.pipelines.launch.launch import check
from polymodal.pipelines.run.recipe import recipe

ARGUMENTS = ("--data", "/mnt/data, it's $HOME", "--out", "/mnt/run", "--set", "data.global_batch=256")
ODD = "/mnt/data, it's $HOME"


def job(nodes=(2, 2), gpus=8, source="bert-base", arguments=ARGUMENTS, max_restarts=3, grace=120, overrides=(), **options):
    resolved = recipe(source, [*overrides, "data.global_batch=256"])
    return Job("bert-base", resolved, str(source), arguments, nodes, gpus, max_restarts, grace, JobOptions(**options))


def only_file(work, on):
    files = check(work, on).files(work)
    assert len(files) == 1
    return next(iter(files.items()))


def pretrain_arguments(words):
    """The words after `-m polymodal`, parsed by the command itself."""
    from polymodal.pipelines.cards.reference import commands as known

    rest = words[words.index("polymodal") + 1:]
    return known()[rest[0]].make_context(rest[0], rest[1:]).params


def torchrun_arguments(command):
    from torch.distributed.run import parse_args

    program = next(word for word in ("torchrun", "polymodal.pipelines.launch.agent") if word in command)
    return parse_args(command[command.index(program) + 1:])


KUBE = {"image": "registry.example/polymodal:1", "volume": ("claim:/mnt",)}
