"""Kubernetes: a plain indexed Job, or the job kinds of Kubeflow."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .job import MARK, Job, seconds_of

KINDS = ("job", "pytorchjob", "trainjob")
_PORT = 29400
_RECIPE = "/etc/polymodal/recipe.yaml"
_TRAINER = "trainer.kubeflow.org/v1alpha1"
# a pod that is evicted or preempted comes back and does not count as a failure
_DISRUPTED = {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]}


class Kubernetes:
    """A manifest for `kubectl apply`; `--kind` says which objects the cluster knows."""

    takes = frozenset({"time", "image", "namespace", "volume", "secret", "gpu_type", "cpus", "kind"})
    here = False

    def problems(self, job: Job) -> Iterator[str]:
        """Containers need an image and a volume that stays."""
        o = job.options
        kind = o.kind or "job"
        if kind not in KINDS:
            yield f"--kind is {kind!r}, expected {', '.join(KINDS)}"
        if o.image is None:
            yield "--image is missing: a container image in which polymodal is installed"
        if o.gpu_type is not None and not o.gpu_type.count("="):
            yield f"--gpu-type is {o.gpu_type!r}: on Kubernetes give the label of the machines, such as nvidia.com/gpu.product=NVIDIA-H100"
        if kind != "pytorchjob" and job.nodes[0] != job.nodes[1]:
            yield f"--nodes is {job.nnodes}, and only --kind pytorchjob runs on a changing number of machines: use {job.nodes[1]}"
        mounts: list[str] = []
        for volume in o.volume or ():
            claim, colon, path = volume.partition(":")
            if not (claim and colon and path.startswith("/")):
                yield f"--volume is {volume!r}, expected CLAIM:/PATH, the name of a PersistentVolumeClaim and where it is mounted"
            mounts.append(path.rstrip("/") + "/")
        for option, value in _paths(job):
            if not any(f"{value}/".startswith(mount) for mount in mounts):
                yield f"{option} {value} would lie in a container and be lost with it: put it below a volume (--volume CLAIM:/PATH)"

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
    named = {"name": job.name, "labels": {"app.kubernetes.io/name": "polymodal", "app.kubernetes.io/instance": job.name}}
    return named | ({"namespace": job.options.namespace} if job.options.namespace else {})


def _command(job: Job, *rendezvous: str) -> list[str]:
    return job.torchrun(*rendezvous, recipe=None if job.recipe_file is None else _RECIPE)


def _from_environment(job: Job, *rendezvous: str) -> list[str]:
    """What torchrun is told without what Kubeflow says in the environment (PET_NNODES, PET_RDZV_ENDPOINT ...)."""
    return [word for word in _command(job, *rendezvous) if not word.startswith(("--nnodes", "--nproc-per-node"))]


def _container(job: Job, name: str, command: list[str]) -> dict[str, Any]:
    o = job.options
    found: dict[str, Any] = {
        "name": name, "image": o.image, "command": command,
        "env": [{"name": key, "value": value} for key, value in job.environment.items()],
        "resources": _resources(job), "volumeMounts": [{"name": name, "mountPath": path} for name, path, _ in _volumes(job)],
    }
    return found | ({"envFrom": [{"secretRef": {"name": o.secret}}]} if o.secret else {})


def _resources(job: Job) -> dict[str, Any]:
    limits: dict[str, Any] = {"nvidia.com/gpu": job.gpus} if job.with_gpus else {}
    requests = {"cpu": job.options.cpus} if job.options.cpus else {}
    return {key: value for key, value in (("limits", limits), ("requests", requests)) if value}


def _volumes(job: Job) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, where, what): shared memory for the loader's workers, the claims, the recipe."""
    found: list[tuple[str, str, dict[str, Any]]] = [("shm", "/dev/shm", {"emptyDir": {"medium": "Memory"}})]
    for number, volume in enumerate(job.options.volume or ()):
        claim, _, path = volume.partition(":")
        found.append((f"volume-{number}", path, {"persistentVolumeClaim": {"claimName": claim}}))
    if job.recipe_file is not None:
        found.append(("recipe", _RECIPE.rpartition("/")[0], {"configMap": {"name": job.name}}))
    return found


def _pod(job: Job, name: str, command: list[str], **more: Any) -> dict[str, Any]:
    label, _, value = (job.options.gpu_type or "").rpartition("=")
    spec: dict[str, Any] = {
        **more, "terminationGracePeriodSeconds": job.grace, "containers": [_container(job, name, command)],
        "volumes": [{"name": name, **what} for name, _, what in _volumes(job)],
    }
    return spec | ({"nodeSelector": {label: value}} if label else {})


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
        "template": {"metadata": {"labels": _meta(job)["labels"]},
                     "spec": _pod(job, "polymodal", command, restartPolicy="Never", subdomain=job.name)},
    }
    if job.options.time is not None:
        spec["activeDeadlineSeconds"] = seconds_of(job.options.time)
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": _meta(job), "spec": spec}


def _pytorchjob(job: Job) -> dict[str, Any]:
    least, most = job.nodes
    policy: dict[str, Any] = {"backoffLimit": job.max_restarts, "cleanPodPolicy": "Running"}
    if job.options.time is not None:
        policy["activeDeadlineSeconds"] = seconds_of(job.options.time)
    worker = {"replicas": most, "restartPolicy": "OnFailure",
              "template": {"metadata": {"labels": _meta(job)["labels"]}, "spec": _pod(job, "pytorch", _from_environment(job))}}
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": _meta(job), "spec": {
        "nprocPerNode": str(job.gpus), "runPolicy": policy, "pytorchReplicaSpecs": {"Worker": worker},
        "elasticPolicy": {"rdzvBackend": "c10d", "minReplicas": least, "maxReplicas": most, "maxRestarts": job.max_restarts}}}


def _runtime(job: Job) -> dict[str, Any]:
    """What a TrainJob runs. The whole pod stands here: how a TrainJob changes a shared runtime differs between releases."""
    place = ["--rdzv-backend=c10d", "--rdzv-endpoint=$(PET_MASTER_ADDR):$(PET_MASTER_PORT)", f"--rdzv-id={job.name}"]
    inner: dict[str, Any] = {
        "backoffLimit": job.max_restarts * job.nodes[1], "podFailurePolicy": _DISRUPTED,
        "template": {"metadata": {"labels": _meta(job)["labels"]},
                     "spec": _pod(job, "node", _from_environment(job, *place), restartPolicy="Never")},
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
