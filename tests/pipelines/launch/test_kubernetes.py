"""`polymodal launch --on kubernetes`: manifests that the published schemas take, and what their pods are given."""

from __future__ import annotations

import re

import kubernetes_validate
import pytest
import yaml
from jobs import KUBE, ODD, job, only_file, pretrain_arguments, torchrun_arguments
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob
from kubeflow_trainer_api.models.trainer_v1alpha1_training_runtime import TrainerV1alpha1TrainingRuntime
from polymodal.pipelines import cli
from polymodal.pipelines.launch.launch import check
from polymodal.pipelines.launch.pod import literal, merge, quantity
from polymodal.shared.errors import UserError

# No package has the schema of a PyTorchJob (kubeflow.org/v1): what stands around its pod template, as the operator's reference says it.
TEXT, NUMBER = str, int
PYTORCHJOB = {
    "nprocPerNode": TEXT, "runPolicy": {"backoffLimit": NUMBER, "cleanPodPolicy": TEXT, "activeDeadlineSeconds": NUMBER},
    "pytorchReplicaSpecs": {"Worker": {"replicas": NUMBER, "restartPolicy": TEXT, "template": {"metadata": {str: dict}, "spec": dict}}},
    "elasticPolicy": {"rdzvBackend": TEXT, "minReplicas": NUMBER, "maxReplicas": NUMBER, "maxRestarts": NUMBER}}
QUANTITY = r"\d+(\.\d+)?([EPTGMk]|[EPTGMK]i)?"


def fits(value, schema, place="$"):
    if isinstance(schema, dict):
        assert isinstance(value, dict), place
        for key, inner in value.items():
            assert key in schema or str in schema, f"{place}: {key} is not a field"
            fits(inner, schema[key] if key in schema else schema[str], f"{place}.{key}")
    else:
        assert type(value) is schema, f"{place}: {value!r} is no {schema.__name__}"


def valid(document):
    """By the schemas of the oldest Kubernetes with the fields that are used and of the newest; an unknown field is a mistake."""
    for version in ("1.26", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(document, version, strict=True)


def quantities(template):
    for container in template["spec"]["containers"]:
        for part in container.get("resources", {}).values():
            assert all(re.fullmatch(QUANTITY, str(value)) for value in part.values())
    assert all(re.fullmatch(QUANTITY, v["emptyDir"].get("sizeLimit", "1")) for v in template["spec"]["volumes"] if "emptyDir" in v)


def template_of(document):
    """The pod template, wherever the kind of job has it, after its part of the document has been held against its schema."""
    kind, spec = document["kind"], document["spec"]
    if kind == "Job":
        valid(document)
        return spec["template"]
    if kind == "PyTorchJob":
        assert document["apiVersion"] == "kubeflow.org/v1"
        fits(spec, PYTORCHJOB)
        template = spec["pytorchReplicaSpecs"]["Worker"]["template"]
        valid({"apiVersion": "v1", "kind": "PodTemplate", "metadata": document["metadata"], "template": template})
        return template
    assert kind == "TrainingRuntime"
    assert TrainerV1alpha1TrainingRuntime.from_dict(document).to_dict() == document, "it knows every field"
    (node,) = spec["template"]["spec"]["replicatedJobs"]
    valid({"apiVersion": "batch/v1", "kind": "Job", "metadata": document["metadata"], "spec": node["template"]["spec"]})
    return node["template"]["spec"]["template"]


def manifest(work):
    """kind -> document, and under "pod" the pod template."""
    documents = list(yaml.safe_load_all(only_file(work, "kubernetes")[1]))
    found = {document["kind"]: document for document in documents}
    for document in documents:
        if document["kind"] in ("ConfigMap", "Service"):
            valid(document)
        elif document["kind"] == "TrainJob":
            assert TrainerV1alpha1TrainJob.from_dict(document).to_dict() == document
        else:
            found["pod"] = template_of(document)
            quantities(found["pod"])
    return found


def test_a_plain_job():
    found = manifest(job(namespace="ml", secret=("bucket",), cpus=32, gpu_type="nvidia.com/gpu.product=H100", time="10:00", **KUBE))
    spec = found["Job"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"], spec["activeDeadlineSeconds"]) == (2, 2, "Indexed", 600)
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 120, "a failure policy needs Never"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}, "requests": {"cpu": 32}}
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    # the agents meet at the first pod, whose name the service gives
    service = found["Service"]["spec"]
    assert service["clusterIP"] == "None" and service["selector"] == {"job-name": found["Job"]["metadata"]["name"]}
    endpoint = torchrun_arguments(container["command"]).rdzv_endpoint
    assert endpoint == f"{found['Job']['metadata']['name']}-0.{pod['subdomain']}:{service['ports'][0]['port']}"
    assert pod["subdomain"] == found["Service"]["metadata"]["name"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert pretrain_arguments(container["command"])["data"] == [ODD], "no shell in between"
    assert "Service" not in manifest(job((1, 1), **KUBE))


def test_a_pytorchjob_may_change_its_size():
    spec = manifest(job((1, 2), kind="pytorchjob", **KUBE))["PyTorchJob"]["spec"]
    assert spec["elasticPolicy"] == {"rdzvBackend": "c10d", "minReplicas": 1, "maxReplicas": 2, "maxRestarts": 3}
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch", "the operator looks for this name"
    assert worker["replicas"] == 2 and spec["nprocPerNode"] == "8"
    assert not [word for word in container["command"] if "nnodes" in word or "rdzv" in word], "the operator says them in the environment"


def test_a_trainjob_brings_its_runtime():
    found = manifest(job(kind="trainjob", namespace="ml", time="60", secret=("bucket",), **KUBE))
    runtime, train = found["TrainingRuntime"], found["TrainJob"]["spec"]
    assert train["runtimeRef"]["name"] == runtime["metadata"]["name"] and train["trainer"] == {"numNodes": 2, "numProcPerNode": 8}
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert node["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert runtime["metadata"]["labels"]["trainer.kubeflow.org/framework"] == "torch" and node["name"] == "node"


def test_a_recipe_file_travels(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: bert-tiny\noptim: {lr: 0.00123}\n")
    found = manifest(job(source=mine, **KUBE))
    assert yaml.safe_load(found["ConfigMap"]["data"]["recipe.yaml"])["optim"]["lr"] == 0.00123
    (container,) = found["Job"]["spec"]["template"]["spec"]["containers"]
    assert pretrain_arguments(container["command"])["recipe"] == "/etc/polymodal/recipe.yaml"
    assert any(m["mountPath"] == "/etc/polymodal" for m in container["volumeMounts"])


ALL = {
    "cpus": 32, "memory": "64G", "env": ("NCCL_DEBUG=INFO", "OMP_NUM_THREADS=4", "PRICE=$(HOME) $$1"), "namespace": "ml",
    "secret": ("bucket", "WANDB_API_KEY=wandb/key"), "toleration": ("nvidia.com/gpu", "team=vision:NoSchedule", "spot:NoExecute"),
    "node_selector": ("topology.kubernetes.io/zone=a",), "gpu_type": "nvidia.com/gpu.product=H100", "pull_secret": ("registry", "other"),
    "service_account": "trainer", "priority_class": "high", "label": ("kueue.x-k8s.io/queue-name=team",), "cache_volume": "500G",
    "shm": "16G", "image": "registry.example/polymodal:1", "volume": ("runs:/mnt", "texts:/mnt/data:ro")}
INSIDE = ("--data", "/mnt/data/wiki", "--out", "/mnt/run")


@pytest.mark.parametrize("kind", ["job", "pytorchjob", "trainjob"])
def test_what_a_pod_is_given(kind):
    found = manifest(job(kind=kind, arguments=INSIDE, **ALL))
    pod = found["pod"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8, "memory": "64Gi"}, "requests": {"cpu": 32, "memory": "64Gi"}}
    env = {e["name"]: e.get("value") or e["valueFrom"] for e in container["env"]}
    assert len(env) == len(container["env"]) and env["NCCL_DEBUG"] == "INFO" and env["OMP_NUM_THREADS"] == "4", "the user wins"
    assert env["PRICE"] == "$$(HOME) $$$$1", "Kubernetes makes one of two and leaves the name alone"
    assert env["WANDB_API_KEY"] == {"secretKeyRef": {"name": "wandb", "key": "key"}}
    assert container["envFrom"] == [{"secretRef": {"name": "bucket"}}]
    # what polymodal, the hub and torch fetch lies on the volume, and shards leave before Kubernetes evicts the pod
    assert env["XDG_CACHE_HOME"] == "/cache" and int(env["POLYMODAL_CACHE_BYTES"]) == 450 << 30
    volumes = {v["name"]: v for v in pod["volumes"]}
    mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
    assert {path: m.get("readOnly") for path, m in mounts.items()} == {"/dev/shm": None, "/cache": None, "/mnt": None, "/mnt/data": True}
    assert {m["name"] for m in mounts.values()} == set(volumes)
    assert volumes["cache"]["emptyDir"] == {"sizeLimit": "500Gi"}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert volumes[mounts["/mnt/data"]["name"]]["persistentVolumeClaim"] == {"claimName": "texts"}
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"}, {"key": "team", "operator": "Equal", "value": "vision", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists", "effect": "NoExecute"}]
    assert pod["nodeSelector"] == {"topology.kubernetes.io/zone": "a", "nvidia.com/gpu.product": "H100"}
    assert (pod["serviceAccountName"], pod["priorityClassName"]) == ("trainer", "high")
    assert pod["imagePullSecrets"] == [{"name": "registry"}, {"name": "other"}]
    for document in found.values():  # Kueue reads it at the job, others at the pod
        assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_nothing_is_written_that_was_not_asked_for():
    pod = manifest(job(**KUBE))["pod"]["spec"]
    assert set(pod) == {"restartPolicy", "subdomain", "terminationGracePeriodSeconds", "containers", "volumes"}
    (container,) = pod["containers"]
    assert set(container) == {"name", "image", "command", "env", "resources", "volumeMounts"}
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert "resources" not in manifest(job(overrides=["accelerator=cpu"], **KUBE))["pod"]["spec"]["containers"][0]


def test_a_cache_on_a_claim():
    pod = manifest(job(cache_volume="shards", **KUBE))["pod"]["spec"]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "shards"}} in pod["volumes"]
    assert "POLYMODAL_CACHE_BYTES" not in {e["name"] for e in pod["containers"][0]["env"]}


PATCH = """
metadata:
  annotations: {cluster-autoscaler.kubernetes.io/safe-to-evict: "false"}
  labels: {env: prod}
spec:
  securityContext: {fsGroup: 1000}
  tolerations: [{operator: Exists}]
  terminationGracePeriodSeconds: null
  containers:
    - name: polymodal
      resources: {limits: {nvidia.com/gpu: null, rdma/ib: 1}}
      securityContext: {capabilities: {add: [IPC_LOCK]}}
      env: [{name: OMP_NUM_THREADS, value: "2"}, {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    - {name: logs, image: "fluent:1"}
  volumes:
    - {name: shm, emptyDir: {sizeLimit: 8Gi}}
"""


@pytest.mark.parametrize(("kind", "name"), [("job", "polymodal"), ("pytorchjob", "pytorch"), ("trainjob", "node")])
def test_a_patch_has_the_last_word(tmp_path, kind, name):
    (tmp_path / "pod.yaml").write_text(PATCH)
    given = {"toleration": ("spot",), "memory": "1G", "pod_patch": str(tmp_path / "pod.yaml"), **KUBE}
    template, plain = (manifest(job(kind=kind, **options))["pod"] for options in (given, KUBE))
    assert template["metadata"]["labels"] == plain["metadata"]["labels"] | {"env": "prod"}
    assert template["metadata"]["annotations"] == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    pod = template["spec"]
    assert "terminationGracePeriodSeconds" not in pod and pod["securityContext"] == {"fsGroup": 1000}
    assert pod["tolerations"] == [{"operator": "Exists"}], "Kubernetes replaces such lists as well"
    first, second = pod["containers"]
    assert (first["name"], second) == (name, {"name": "logs", "image": "fluent:1"})
    assert first["command"] == plain["spec"]["containers"][0]["command"]
    assert first["resources"] == {"limits": {"memory": "1Gi", "rdma/ib": 1}, "requests": {"memory": "1Gi"}}
    env = {e["name"]: e for e in first["env"]}
    assert env["OMP_NUM_THREADS"]["value"] == "2" and env["POD"]["valueFrom"] and "PET_SHUTDOWN_TIMEOUT" in env
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in pod["volumes"]


@pytest.mark.parametrize("kind", ["job", "pytorchjob", "trainjob"])
def test_the_schemas_know_every_field(tmp_path, kind):
    (tmp_path / "pod.yaml").write_text("spec: {tolerationz: [{operator: Exists}]}")
    with pytest.raises((kubernetes_validate.ValidationError, AssertionError)):
        manifest(job(kind=kind, pod_patch=str(tmp_path / "pod.yaml"), **KUBE))


def test_merging():
    assert merge({"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"b": None, "c": [2], "e": {"f": None, "g": 1}}}) == {
        "a": {"c": [2], "e": {"g": 1}}, "d": 1}
    assert merge({"env": [{"name": "a", "value": "1"}]}, {"env": [{"name": "b", "value": None}, {"name": "a", "value": "2"}]}) == {
        "env": [{"name": "a", "value": "2"}, {"name": "b"}]}
    assert [quantity(size) for size in (64 << 30, 1536 << 20, 2 << 40, 1000, 3 << 10)] == ["64Gi", "1536Mi", "2Ti", "1000", "3Ki"]
    assert (literal("it's $HOME"), literal("$(A)"), literal("$$")) == ("it's $HOME", "$$(A)", "$$$$")


@pytest.mark.parametrize(("text", "said"), [
    (None, "No such file"), ("a: [", "it is no YAML"), ("nodeSelector: {a: b}", "it has nodeSelector, expected a pod template"),
    ("", "it has None, expected a pod template"), ("spec: [1]", r"spec is \[1\], expected a mapping"),
    ("spec: {containers: {name: x}}", "spec.containers is .*expected a list"),
    ("spec: {volumes: {name: x}}", "spec.volumes is .*expected a list"),
    ("spec: {containers: [{image: x}]}", r"spec.containers\[0\] has no name, by which it is merged"),
    ("spec: {containers: [{name: pytorch}]}", r"spec.containers\[pytorch\] has no image; the container of the run is called polymodal"),
    ("spec: {containers: [{name: polymodal, env: [{value: x}]}]}", r"env\[0\] has no name"),
    ("metadata: {annotations: {a: true}}", "metadata.annotations gives a the value True, expected text: put it into quotes"),
    ("spec: {volumes: [{name: shm, $patch: delete}]}", r"has the key '\$patch'"),
])  # fmt: skip
def test_a_patch_with_a_mistake(tmp_path, capsys, text, said):
    path = tmp_path / "pod.yaml"
    if text is not None:
        path.write_text(text)
    assert refused(tmp_path, capsys, ["--pod-patch", str(path)]).startswith("error: ")
    with pytest.raises(UserError, match=said) as error:
        work = job(pod_patch=str(path), **KUBE)
        check(work, "kubernetes").files(work)
    assert f"--pod-patch {path}: " in str(error.value)


def refused(tmp_path, capsys, words):
    """The one line that the command says; it ends with 2 and writes nothing."""
    out = tmp_path / "written"
    given = ["launch", "bert-base", "--on", "kubernetes", "--image", "i:1", "--volume", "claim:/mnt", "--data", "/mnt/d",
             "--out", "/mnt/run", "--write", str(out)]
    assert cli.run([*given, *words]) == 2
    assert not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(("words", "said"), [
    (["--memory", "lots"], "--memory 'lots' is not a size"), (["--memory", "64"], "--memory is '64', expected the memory of each machine"),
    (["--cpus", "0"], "--cpus is 0"), (["--env", "HOME"], "--env is 'HOME', expected NAME=VALUE"),
    (["--env", "1A=b"], "--env is '1A=b'"), (["--env", "A=1", "--env", "A=2"], "--env says A twice"),
    (["--env", "RANK=0"], "--env sets RANK, which torchrun"), (["--env", "PET_NNODES=1"], "--env sets PET_NNODES"),
    (["--env", "HF_TOKEN=s3cr3t"], "use --secret HF_TOKEN=SECRET/KEY"), (["--env", "P=http://u:s3cr3t@h:1"], "holds a password or token"),
    (["--secret", "A=b"], "--secret is 'A=b', expected SECRET"), (["--secret", "Bucket"], "--secret is 'Bucket'"),
    (["--secret", "A=s/k", "--env", "A=1"], "--secret gives A a second value"),
    (["--toleration", "a:Never"], "--toleration is 'a:Never', expected KEY[=VALUE][:EFFECT]"),
    (["--toleration", "=x"], "--toleration is '=x'"),
    (["--node-selector", "zone"], "--node-selector is 'zone', expected LABEL=VALUE"),
    (["--node-selector", "zone=a", "--gpu-type", "zone=b"], "both say zone"), (["--gpu-type", "h100"], "--gpu-type is 'h100', expected on"),
    (["--pull-secret", "a b"], "--pull-secret is 'a b'"), (["--service-account", "Me"], "--service-account is 'Me'"),
    (["--priority-class", "-"], "--priority-class is '-'"), (["--namespace", "a.b"], "--namespace is 'a.b'"),
    (["--label", "team"], "--label is 'team', expected NAME=VALUE"), (["--label", "team=a b"], "--label is 'team=a b'"),
    (["--cache-volume", "10M"], "--cache-volume is '10M', expected the name of a PersistentVolumeClaim, or a size"),
    (["--cache-volume", "A_B"], "--cache-volume is 'A_B'"), (["--shm", "x"], "--shm 'x' is not a size"),
    (["--shm", "2G", "--memory", "1G"], "counts as memory of the container"),
    (["--volume", "/mnt"], "--volume is '/mnt', expected CLAIM:/PATH"),
    (["--volume", "other:/mnt/"], "and /mnt is taken"), (["--volume", "other:/cache", "--cache-volume", "5G"], "/cache is taken"),
    (["--volume", "c:/mnt/run:ro"], "--out /mnt/run lies below /mnt/run, which is mounted read only"),
    (["--eval-data", "/mnt/../tmp/d"], "--eval-data /mnt/../tmp/d would lie in a container"),
])  # fmt: skip
def test_a_wrong_value_is_one_line_and_nothing_is_written(tmp_path, capsys, words, said):
    line = refused(tmp_path, capsys, words)
    assert said in line and "s3cr3t" not in line
    assert line.count(said) == 1, "said once"
