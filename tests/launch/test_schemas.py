"""Manifests are what Kubernetes, JobSet and SkyPilot take, by their schemas; and the schemas do find mistakes."""

import copy
import json
import pathlib
import re

import pytest
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from tests.launch.cases import CASES, CLOUD, rendered

SCHEMAS = pathlib.Path(__file__).parent / "schemas"
GKE = ["gke", "gke_multislice"]


def load(name: str) -> dict:
    return json.loads((SCHEMAS / name).read_text())


@pytest.fixture(scope="module")
def jobset() -> Draft202012Validator:
    kubernetes = load("kubernetes.json")
    registry = Registry().with_resource(kubernetes["$id"], DRAFT202012.create_resource(kubernetes))
    return Draft202012Validator(load("jobset.json"), registry=registry)


def manifest(name: str) -> dict:
    (document,) = yaml.safe_load_all(rendered(CASES[name]).files["jobset.yaml"])
    return document


def job_of(document: dict) -> dict:
    return document["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(document: dict) -> dict:
    return job_of(document)["template"]["spec"]


@pytest.mark.parametrize("name", GKE)
def test_manifest_is_valid(name, jobset):
    jobset.validate(manifest(name))


def broken(document: dict, path: str, value) -> dict:
    """The document with one thing changed, or taken away where `value` is None; `~` in a path is `/` in a key."""
    document = copy.deepcopy(document)
    *parents, last = [int(part) if part.isdigit() else part.replace("~", "/") for part in path.split("/")]
    node = document
    for part in parents:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return document


JOB = "spec/replicatedJobs/0/template/spec"
POD = f"{JOB}/template/spec"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("apiVersion", "jobset.x-k8s.io/v1alpha1"),
        ("spec/replicaJobs", []),
        ("spec/replicatedJobs/0/replicas", "2"),
        ("spec/replicatedJobs/0/template", None),
        ("spec/failurePolicy/rules/0/action", "Restart"),
        ("spec/failurePolicy/rules/0/name", None),
        ("spec/failurePolicy/rules/0/onJobFailureReasons", ["Preempted"]),
        (f"{JOB}/paralelism", 4),
        (f"{JOB}/podFailurePolicy/rules/0/action", 3),
        (f"{POD}/nodeSelector/cloud.google.com~gke-spot", True),
        (f"{POD}/containers/0/args/0", 7),
        (f"{POD}/containers/0/resource", {}),
        (f"{POD}/containers/0/volumeMounts/0/mountPath", None),
        (f"{POD}/volumes/0/csi/bucket", "b"),
        (f"{POD}/terminationGracePeriodSeconds", "5m"),
    ],
)
def test_the_schema_finds_mistakes(path, value, jobset):
    assert list(jobset.iter_errors(broken(manifest("gke_multislice"), path, value)))


def test_multislice_manifest_says_what_it_must():
    document = manifest("gke_multislice")
    assert document["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tpus"}
    assert document["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    (slices,) = document["spec"]["replicatedJobs"]
    job, pod = job_of(document), pod_of(document)
    assert (slices["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (2, 4, 4, 0)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    (container,) = pod["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}
    assert container["command"] == ["python", "-m", "vlm_jax.main"] and container["args"] == CLOUD
    assert pod["terminationGracePeriodSeconds"] == 300 and pod["serviceAccountName"] == "trainer"
    (volume,) = pod["volumes"]
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/gcs"}]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"


def test_without_kueue_and_spot_there_is_no_trace_of_them():
    document = manifest("gke")
    assert "labels" not in document["metadata"]
    assert set(pod_of(document)["nodeSelector"]) == {
        "cloud.google.com/gke-tpu-accelerator",
        "cloud.google.com/gke-tpu-topology",
    }


# SkyPilot 0.14.1's own schema, as far as the template uses it (Apache-2.0).
TASK = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "num_nodes": {"type": "integer"},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "infra": {"type": "string"},
                "accelerators": {"type": "string"},
                "accelerator_args": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"runtime_version": {"type": "string"}},
                },
                "use_spot": {"type": "boolean"},
                "job_recovery": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"max_restarts_on_errors": {"type": "integer", "minimum": 0}},
                },
            },
        },
        "file_mounts": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["source", "mode"],
                "additionalProperties": False,
                "properties": {
                    "source": {"type": "string", "pattern": "^(gs|s3)://"},
                    "mode": {"enum": ["MOUNT", "COPY", "MOUNT_CACHED"]},
                },
            },
        },
        "setup": {"type": "string"},
        "run": {"type": "string"},
    },
}


@pytest.mark.parametrize("name", ["skypilot_gpu", "skypilot_tpu"])
def test_task_is_valid(name):
    task = yaml.safe_load(rendered(CASES[name]).files["skypilot.yaml"])
    Draft202012Validator(TASK).validate(task)
    assert list(Draft202012Validator(TASK).iter_errors(broken(task, "resources/spot", True)))
    assert list(Draft202012Validator(TASK).iter_errors(broken(task, "file_mounts/~gcs", {})))


def test_task_of_several_nodes_names_the_first_as_coordinator():
    task = yaml.safe_load(rendered(CASES["skypilot_gpu"]).files["skypilot.yaml"])
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"] == "H100:8"
    assert re.search(r'"--coordinator=\$first:8476".*NUM_NODES.*NODE_RANK', task["run"])
    one = yaml.safe_load(rendered(CASES["skypilot_tpu"]).files["skypilot.yaml"])
    assert "--coordinator" not in one["run"] and one["resources"]["accelerators"] == "tpu-v5litepod-8"
    # SkyPilot's own default for every v5 is the runtime of v5p.
    assert one["resources"]["accelerator_args"] == {"runtime_version": "v2-alpha-tpuv5-lite"}
