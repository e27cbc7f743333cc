"""Kubernetes: a plain indexed Job, or the job kinds of Kubeflow."""

from __future__ import annotations

import itertools
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from . import pod
from .job import MARK, Job, seconds_of

KINDS = ("job", "pytorchjob", "trainjob")
_PORT = 29400
_TRAINER = "trainer.kubeflow.org/v1alpha1"
# a pod that is evicted or preempted comes back and does not count as a failure
_DISRUPTED = {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]}


class Kubernetes:
    """A manifest for `kubectl apply`; `--kind` says which objects the cluster knows."""

    takes = frozenset({"time", "image", "namespace", "volume", "secret", "gpu_type", "cpus", "kind", "memory", "env", "toleration",
                       "node_selector", "pull_secret", "service_account", "priority_class", "label", "cache_volume", "shm", "pod_patch"})
    here = False

    def problems(self, job: Job) -> Iterator[str]:
        """Containers need an image and a volume that stays."""
        o = job.options
        kind = o.kind or "job"
        if kind not in KINDS:
            yield f"--kind is {kind!r}, expected {', '.join(KINDS)}"
        if o.image is None:
            yield "--image is missing: a container image in which polymodal is installed"
        if kind != "pytorchjob" and job.nodes[0] != job.nodes[1]:
            yield f"--nodes is {job.nnodes}, and only --kind pytorchjob runs on a changing number of machines: use {job.nodes[1]}"
        yield from pod.problems(job)
        mounts = pod.mounted(o)
        for option, value in _paths(job):
            path = posixpath.normpath(value)
            mount = max((mount for mount in mounts if f"{path}/".startswith(f"{mount}/")), key=len, default=None)
            if mount is None:
                yield f"{option} {value} would lie in a container and be lost with it: put it below a volume (--volume CLAIM:/PATH)"
            elif option == "--out" and not mounts[mount]:
                yield f"--out {value} lies below {mount}, which is mounted read only"

    def files(self, job: Job) -> dict[str, str]:
        """The manifest: the recipe where it is a file, a service where the kind has none of its own, and the job."""
        kind = job.options.kind or "job"
        documents = [{"job": _job, "pytorchjob": _pytorchjob, "trainjob": _trainjob}[kind](job)]
        if kind == "job" and job.nodes[1] > 1:
            documents.insert(0, _service(job))
        if kind == "trainjob":
            documents.insert(0, _runtime(job))
        if job.recipe_file is not None:
            documents.insert(0, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(job), "data": {"recipe.yaml": job.recipe_file}})
        text = "---\n".join(yaml.dump(d, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140) for d in documents)
        return {f"{job.name}.yaml": f"# {MARK}\n{text}"}

    def command(self, job: Job, folder: Path = Path()) -> list[str]:
        """Submit with kubectl."""
        return ["kubectl", "apply", "-f", str(folder / f"{job.name}.yaml")]

    def preempted(self, job: Job) -> str:
        """A new pod comes, by the Job or by the operator."""
        back = {
            "pytorchjob": "Kubeflow's operator makes a new one by its own rules (not tested), and",
            "trainjob": "its Job makes a new one that does not count as a failure (not tested on a cluster), and",
            "job": "the Job makes a new one that does not count as a failure (not tested on a cluster), and",
        }[job.options.kind or "job"]
        return (f"a pod is told to stop and has {job.grace} s, in which its ranks save and plain torchrun ends with code 1; {back} the run "
                "goes on from its newest checkpoint once all pods are there")


class _Dumper(yaml.SafeDumper):
    """YAML without anchors: two mappings that are equal are written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always."""
        return True


def _paths(job: Job) -> Iterator[tuple[str, str]]:
    """The directories on a disk that the run reads or writes."""
    for option, value in itertools.pairwise(job.arguments):
        if option in ("--data", "--eval-data", "--out"):
            path = value.rpartition("=")[0] if option == "--data" and "=" in value else value
            if "://" not in path:
                yield option, path


def _meta(job: Job) -> dict[str, Any]:
    named: dict[str, Any] = {"name": job.name, "labels": pod.labels(job)}
    return named | ({"namespace": job.options.namespace} if job.options.namespace else {})


def _command(job: Job, *rendezvous: str) -> list[str]:
    words = job.torchrun(*rendezvous, recipe=None if job.recipe_file is None else pod.RECIPE)
    return [word if word in rendezvous else pod.literal(word) for word in words]


def _from_environment(job: Job, *rendezvous: str) -> list[str]:
    """What torchrun is told without what Kubeflow says in the environment (PET_NNODES, PET_RDZV_ENDPOINT ...)."""
    return [word for word in _command(job, *rendezvous) if not word.startswith(("--nnodes", "--nproc-per-node"))]


def _service(job: Job) -> dict[str, Any]:
    """Gives the pods names in the network: the first one is where the agents meet."""
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(job), "spec": {
        "clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": job.name},
        "ports": [{"name": "rendezvous", "port": _PORT}]}}


def _job(job: Job) -> dict[str, Any]:
    nodes = job.nodes[1]
    place = f"{job.name}-0.{job.name}:{_PORT}" if nodes > 1 else "localhost:0"
    command = _command(job, "--rdzv-backend=c10d", f"--rdzv-endpoint={place}", f"--rdzv-id={job.name}")
    spec: dict[str, Any] = {
        "completions": nodes, "parallelism": nodes, "completionMode": "Indexed", "backoffLimit": job.max_restarts * nodes,
        "podFailurePolicy": _DISRUPTED,
        "template": pod.template(job, pod.MAIN, command, restartPolicy="Never", subdomain=job.name),
    }
    if job.options.time is not None:
        spec["activeDeadlineSeconds"] = seconds_of(job.options.time)
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _meta(job), "spec": spec}


def _pytorchjob(job: Job) -> dict[str, Any]:
    least, most = job.nodes
    policy: dict[str, Any] = {"backoffLimit": job.max_restarts, "cleanPodPolicy": "Running"}
    if job.options.time is not None:
        policy["activeDeadlineSeconds"] = seconds_of(job.options.time)
    worker = {"replicas": most, "restartPolicy": "OnFailure", "template": pod.template(job, "pytorch", _from_environment(job))}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": _meta(job), "spec": {
        "nprocPerNode": str(job.gpus), "runPolicy": policy, "pytorchReplicaSpecs": {"Worker": worker},
        "elasticPolicy": {"rdzvBackend": "c10d", "minReplicas": least, "maxReplicas": most, "maxRestarts": job.max_restarts}}}


def _runtime(job: Job) -> dict[str, Any]:
    """What a TrainJob runs. The whole pod stands here: how a TrainJob changes a shared runtime differs between releases."""
    place = ["--rdzv-backend=c10d", "--rdzv-endpoint=$(PET_MASTER_ADDR):$(PET_MASTER_PORT)", f"--rdzv-id={job.name}"]
    inner: dict[str, Any] = {
        "backoffLimit": job.max_restarts * job.nodes[1], "podFailurePolicy": _DISRUPTED,
        "template": pod.template(job, "node", _from_environment(job, *place), restartPolicy="Never"),
    }
    if job.options.time is not None:
        inner["activeDeadlineSeconds"] = seconds_of(job.options.time)
    node = {"name": "node", "template": {"metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}, "spec": inner}}
    meta = _meta(job)
    return {"apiVersion": _TRAINER, "kind": "TrainingRuntime", "metadata": meta | {
        "labels": meta["labels"] | {"trainer.kubeflow.org/framework": "torch"}}, "spec": {
            "mlPolicy": {"numNodes": job.nodes[1], "torch": {}},
            "template": {"spec": {"failurePolicy": {"maxRestarts": job.max_restarts}, "replicatedJobs": [node]}}}}


def _trainjob(job: Job) -> dict[str, Any]:
    return {"apiVersion": _TRAINER, "kind": "TrainJob", "metadata": _meta(job), "spec": {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": job.name},
        "trainer": {"numNodes": job.nodes[1], "numProcPerNode": job.gpus}}}
