"""The pod of a Kubernetes job: what its container is given, where it may run, and the patch by which a user has the last word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...shared.errors import UserError
from ..base.values import parse_size
from .job import VARIABLE, Job, JobOptions, memory_of, pairs

RECIPE = "/etc/polymodal/recipe.yaml"
CACHE = "/cache"
MAIN = "polymodal"
"""What the run's container is called in a patch, whatever the kind of job calls it."""

_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_LABEL = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)"
_LABEL_NAME = rf"({_NAME}/)?{_LABEL}"
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
# the lists that Kubernetes merges entry by entry, and by which field; it replaces all others
_KEYS = {
    "containers": "name", "initContainers": "name", "env": "name", "volumes": "name", "imagePullSecrets": "name", "resourceClaims": "name",
    "volumeMounts": "mountPath", "volumeDevices": "devicePath", "ports": "containerPort", "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}


def problems(job: Job) -> Iterator[str]:
    """What is wrong with the options that a pod is made of."""
    o = job.options
    for read in (_secrets, _tolerations, _selector, _labels, _names, _shared_memory, _mounts, _patch):
        try:
            read(o)
        except UserError as error:
            yield str(error)


def labels(job: Job) -> dict[str, str]:
    """The labels of every object of the job."""
    return {"app.kubernetes.io/name": "polymodal", "app.kubernetes.io/instance": job.name, **_labels(job.options)}


def mounted(options: JobOptions) -> dict[str, bool]:
    """The paths that outlive a pod -> whether it may write there; claims with a mistake in them are left out."""
    found: dict[str, bool] = {}
    for text in options.volume or ():
        try:
            _, path, readonly = _claim(text)
        except UserError:
            continue
        found[path] = not readonly
    return found


def template(job: Job, name: str, command: Sequence[str], **more: Any) -> dict[str, Any]:
    """The pod template of one machine, after the user's patch.

    Args:
        job: what it works on.
        name: of its container, which the kind of job looks for.
        command: what the container runs.
        more: fields of the pod's spec that belong to the kind of job.
    """
    o = job.options
    mounts = _mounts(o)
    mounts |= {} if job.recipe_file is None else {RECIPE.rpartition("/")[0]: ("recipe", {"configMap": {"name": job.name}}, False)}
    whole, single = _secrets(o)
    container: dict[str, Any] = {
        "name": name, "image": o.image, "command": list(command),
        "env": [{"name": key, "value": literal(value)} for key, value in (_cache_environment(o) | job.environment).items()]
        + [{"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": entry}}} for key, (secret, entry) in single.items()],
        "envFrom": [{"secretRef": {"name": secret}} for secret in whole], "resources": _resources(job),
        "volumeMounts": [{"name": volume, "mountPath": path} | ({"readOnly": True} if readonly else {})
                         for path, (volume, _, readonly) in mounts.items()],
    }
    spec: dict[str, Any] = {
        **more, "terminationGracePeriodSeconds": job.grace, "nodeSelector": _selector(o), "tolerations": _tolerations(o),
        "serviceAccountName": o.service_account, "priorityClassName": o.priority_class,
        "imagePullSecrets": [{"name": secret} for secret in o.pull_secret or ()],
        "containers": [{key: value for key, value in container.items() if value}],
        "volumes": [{"name": volume, **what} for volume, what, _ in mounts.values()],
    }
    made = {"metadata": {"labels": labels(job)}, "spec": {key: value for key, value in spec.items() if value}}
    patch = _patch(o)
    for other in patch.get("spec", {}).get("containers", ()):
        other["name"] = name if other["name"] == MAIN else other["name"]
    try:
        merged = merge(made, patch)
        for kind in ("initContainers", "containers"):
            for other in merged["spec"].get(kind, ()):
                if not other.get("image"):
                    raise UserError(f"spec.{kind}[{other['name']}] has no image; the container of the run is called {MAIN} here")
    except UserError as error:
        raise UserError(f"--pod-patch {o.pod_patch}: {error}") from None
    return merged


def literal(text: str) -> str:
    """`text` where Kubernetes would put variables in place of `$(NAME)`."""
    return text.replace("$", "$$") if "$(" in text or "$$" in text else text


def merge(old: Any, new: Any, where: str = "") -> Any:
    """`old` with a patch, as `kubectl patch --type strategic` merges them.

    Mappings key by key, and a key that is null goes; the lists of `_KEYS` entry by entry; everything else is replaced.

    Raises:
        UserError: where the patch has another kind of value than `old`.
    """
    if new is None:
        return None
    if isinstance(old, dict | list) and type(old) is not type(new):
        raise UserError(f"{where} is {new!r}, expected a {'mapping' if isinstance(old, dict) else 'list'}")
    if isinstance(new, dict):
        before: dict[str, Any] = old if isinstance(old, dict) else {}
        merged = before | {key: merge(before.get(key), value, f"{where}.{key}".lstrip(".")) for key, value in new.items()}
        return {key: value for key, value in merged.items() if value is not None}
    key = _KEYS.get(where.rpartition(".")[2])
    if not isinstance(new, list) or key is None:
        return new
    entries = {entry[key]: entry for entry in old or ()}
    for entry in new:
        entries[entry[key]] = merge(entries.get(entry[key]), entry, f"{where}[{entry[key]}]")
    return list(entries.values())


def quantity(size: int) -> str:
    """Bytes as Kubernetes writes them: `64Gi`."""
    for power, unit in ((40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")):
        if size % (1 << power) == 0:
            return f"{size >> power}{unit}"
    return str(size)


def _resources(job: Job) -> dict[str, Any]:
    memory = memory_of(job.options)
    both = {} if memory is None else {"memory": quantity(memory)}
    limits = ({"nvidia.com/gpu": job.gpus} if job.with_gpus else {}) | both
    # no limit of the processor: it would stop the loader's workers although cores are free
    requests = ({"cpu": job.options.cpus} if job.options.cpus else {}) | both
    return {key: value for key, value in (("limits", limits), ("requests", requests)) if value}


def _mounts(o: JobOptions) -> dict[str, tuple[str, dict[str, Any], bool]]:
    """Path -> (name, what, whether it is read only): shared memory for the loader's workers, the cache, the claims."""
    shared: dict[str, Any] = {"medium": "Memory"} | ({"sizeLimit": quantity(size)} if (size := _shared_memory(o)) else {})
    found: dict[str, tuple[str, dict[str, Any], bool]] = {"/dev/shm": ("shm", {"emptyDir": shared}, False)}
    if o.cache_volume is not None:
        size = _cache_bytes(o.cache_volume)
        what = {"persistentVolumeClaim": {"claimName": o.cache_volume}} if size is None else {"emptyDir": {"sizeLimit": quantity(size)}}
        found[CACHE] = ("cache", what, False)
    for number, text in enumerate(o.volume or ()):
        claim, path, readonly = _claim(text)
        if path in (*found, RECIPE.rpartition("/")[0]):
            raise UserError(f"--volume is {text!r}, and {path} is taken: mount it elsewhere")
        found[path] = (f"volume-{number}", {"persistentVolumeClaim": {"claimName": claim}}, readonly)
    return found


def _claim(text: str) -> tuple[str, str, bool]:
    found = re.fullmatch(rf"(?P<claim>{_NAME}):(?P<path>/[^:]*?)/*(?P<readonly>:ro)?", text)
    if found is None or not found["path"].strip("/"):
        raise UserError(f"--volume is {text!r}, expected CLAIM:/PATH, the name of a PersistentVolumeClaim and where it is mounted, or "
                        "CLAIM:/PATH:ro")
    return found["claim"], found["path"], found["readonly"] is not None


def _shared_memory(o: JobOptions) -> int | None:
    if o.shm is None:
        return None
    size, memory = parse_size(o.shm, "--shm"), memory_of(o)
    if size < 1 << 20:
        raise UserError(f"--shm is {o.shm!r}, expected a size such as 16G")
    if memory is not None and size > memory:
        raise UserError(f"--shm is {o.shm} and counts as memory of the container, which has {o.memory} (--memory)")
    return size


def _cache_bytes(text: str) -> int | None:
    """Bytes of a cache on the machine's own disk; None where `text` names a claim."""
    try:
        size = parse_size(text, "--cache-volume")
    except UserError:
        if re.fullmatch(_NAME, text):
            return None
        size = 0
    if size < 1 << 30:
        raise UserError(f"--cache-volume is {text!r}, expected the name of a PersistentVolumeClaim, or a size on the machine's own disk "
                        "such as 500G")
    return size


def _cache_environment(o: JobOptions) -> dict[str, str]:
    """Where polymodal, the hub and torch keep what they fetch."""
    if o.cache_volume is None:
        return {}
    size = _cache_bytes(o.cache_volume)
    # Kubernetes evicts a pod whose folder grows above its limit; other libraries keep things there, too
    return {"XDG_CACHE_HOME": CACHE} | ({} if size is None else {"POLYMODAL_CACHE_BYTES": str(size * 9 // 10)})


def _secrets(o: JobOptions) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """The secrets of which every key becomes a variable, and variable -> (secret, key)."""
    whole: list[str] = []
    single: dict[str, tuple[str, str]] = {}
    for text in o.secret or ():
        found = re.fullmatch(rf"(?:(?P<variable>{VARIABLE})=)?(?P<secret>{_NAME})(?:/(?P<key>[-.A-Za-z0-9_]+))?", text)
        if found is None or (found["variable"] is None) != (found["key"] is None):
            raise UserError(f"--secret is {text!r}, expected SECRET, each of whose keys becomes a variable, or VARIABLE=SECRET/KEY")
        if found["variable"] is None:
            whole.append(found["secret"])
        elif found["variable"] in single or found["variable"] in {pair.partition("=")[0] for pair in o.env or ()}:
            raise UserError(f"--secret gives {found['variable']} a second value: leave one of them out")
        else:
            single[found["variable"]] = (found["secret"], found["key"])
    return whole, single


def _tolerations(o: JobOptions) -> list[dict[str, str]]:
    made: list[dict[str, str]] = []
    for text in o.toleration or ():
        found = re.fullmatch(rf"(?P<key>{_LABEL_NAME})(?:=(?P<value>{_LABEL}?))?(?::(?P<effect>{'|'.join(_EFFECTS)}))?", text)
        if found is None:
            raise UserError(f"--toleration is {text!r}, expected KEY[=VALUE][:EFFECT] such as nvidia.com/gpu:NoSchedule, with the effect "
                            f"{', '.join(_EFFECTS)} or none for all of them")
        what = {"operator": "Exists"} if found["value"] is None else {"operator": "Equal", "value": found["value"]}
        made.append({"key": found["key"], **what} | ({"effect": found["effect"]} if found["effect"] else {}))
    return made


def _selector(o: JobOptions) -> dict[str, str]:
    gpu = pairs([] if o.gpu_type is None else [o.gpu_type], "--gpu-type",
                "on Kubernetes the label of machines, such as nvidia.com/gpu.product=NVIDIA-H100", _LABEL_NAME, f"{_LABEL}?")
    rest = pairs(o.node_selector, "--node-selector", "LABEL=VALUE of machines, such as topology.kubernetes.io/zone=a", _LABEL_NAME,
                 f"{_LABEL}?")
    if both := sorted(gpu.keys() & rest.keys()):
        raise UserError(f"--gpu-type and --node-selector both say {', '.join(both)}: leave one of them out")
    return gpu | rest


def _labels(o: JobOptions) -> dict[str, str]:
    return pairs(o.label, "--label", "NAME=VALUE such as kueue.x-k8s.io/queue-name=team", _LABEL_NAME, f"{_LABEL}?")


def _names(o: JobOptions) -> None:
    for option, values in (("pull-secret", o.pull_secret or ()), ("service-account", [o.service_account]),
                           ("priority-class", [o.priority_class]), ("namespace", [o.namespace])):
        for value in values:
            if value is not None and (not re.fullmatch(_NAME, value) or (option == "namespace" and "." in value)):
                raise UserError(f"--{option} is {value!r}, expected the name of an object in the cluster: lower case letters, digits and -")


def _patch(o: JobOptions) -> dict[str, Any]:
    """The user's patch of the pod template; nothing without one."""
    if o.pod_patch is None:
        return {}
    try:
        found: Any = yaml.safe_load(Path(o.pod_patch).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not found or not found.keys() <= {"metadata", "spec"}:
            what = ", ".join(map(str, found)) if isinstance(found, dict) and found else repr(found)
            raise UserError(f"it has {what[:200]}, expected a pod template: `metadata`, `spec` or both, and nothing beside them")
        for name, part in found.items():
            if not isinstance(part, dict):
                raise UserError(f"{name} is {part!r}, expected a mapping")
        containers = found.get("spec", {}).get("containers", [])
        if not isinstance(containers, list):
            raise UserError(f"spec.containers is {containers!r}, expected a list")
        _check(found, "")
        return found
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--pod-patch {o.pod_patch}: {getattr(error, 'strerror', None) or 'it is no UTF-8 text'}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--pod-patch {o.pod_patch}: it is no YAML: {' '.join(str(error).split())}") from None
    except UserError as error:
        raise UserError(f"--pod-patch {o.pod_patch}: {error}") from None


def _check(value: Any, where: str) -> None:
    """Refuse what Kubernetes would take for something else, or not at all."""
    field = where.rpartition(".")[2]
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str) or key.startswith("$"):
                raise UserError(f"{where} has the key {key!r}, expected names of fields only; null removes one")
            if field in ("labels", "annotations", "nodeSelector") and not isinstance(inner, str | None):
                raise UserError(f"{where} gives {key} the value {inner!r}, expected text: put it into quotes")
            _check(inner, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            if (key := _KEYS.get(field)) is not None and not (isinstance(entry, dict) and entry.get(key)):
                raise UserError(f"{where}[{number}] has no {key}, by which it is merged")
            _check(entry, f"{where}[{number}]")
