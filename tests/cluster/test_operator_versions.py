"""The operator on a real API server with a CRD of another version, and after a newer operator has been there."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.disturb import edit_status
from support.operator_process import Operator, outcome
from support.played import Object, PlayedJob
from support.runs import wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

CRD = Path(__file__).parents[2] / "crds" / "trainingjobs.trainingjob.io.yaml"
OLD: Object = yaml.safe_load(CRD.read_text())
PROBE: Object = {
    "apiVersion": "trainingjob.io/v1alpha1",
    "kind": "TrainingJob",
    "spec": {
        "outputUri": "s3://models/probe",
        "storage": {"credentialsSecret": "s3"},
        "data": {"train": {"uri": "s3://corpus/raw.jsonl"}},
        "model": {"preset": "gpt-nano"},
        "training": {"steps": 1},
    },
}
TOLD: Object = {"status": "True", "reason": "New", "lastTransitionTime": "2026-01-01T00:00:00Z"}


@pytest.fixture
def crd(cluster: LocalCluster) -> Iterator[Callable[[Object], None]]:
    """Replaces the CRD and returns when it is served; the project's own is there again after the test."""

    def serve(definition: Object) -> None:
        name = definition["metadata"]["name"]

        def replaced() -> bool:
            try:
                cluster.kubectl("replace", "-f", "-", stdin=json.dumps(definition))
            except RuntimeError as refused:
                if "has been modified" not in str(refused):
                    raise
                return False  # Kubernetes has written its status since kubectl had read it.
            return True

        def served() -> bool:
            """The API server judges jobs by what it has read of CRDs so far, and publishes that a moment later."""
            probe = {**PROBE, "metadata": {"name": "probe", "namespace": "default"}}
            create = ("create", "--dry-run=server", "-o", "json", "-f", "-")
            try:
                given = json.loads(cluster.kubectl(*create, stdin=json.dumps(probe)))["spec"]["training"]
                published = cluster.kubectl("get", "--raw", "/openapi/v3/apis/trainingjob.io/v1alpha1")
            except RuntimeError:  # Between the two.
                return False
            return ("magic" in given) == ('"magic"' in published) == (definition is not OLD)

        wait_until(f"{name} is replaced", replaced)
        wait_until(f"{name} is served", served)

    yield serve
    serve(OLD)


def newer() -> Object:
    """The CRD of an operator that has another phase, condition, stage and role, and a field in the spec."""
    crd = copy.deepcopy(OLD)
    (version,) = crd["spec"]["versions"]
    schema: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]
    status = schema["status"]["properties"]
    status["phase"]["enum"].append("Dreaming")
    status["stage"]["enum"].append("Dream")
    status["conditions"]["items"]["properties"]["type"]["enum"].append("Dreamt")
    status["pods"]["items"]["properties"]["role"]["enum"].append("dream")
    schema["spec"]["properties"]["training"]["properties"]["magic"] = {"type": "integer", "default": 3}
    return crd


@pytest.mark.parametrize("crd_too", [True, False], ids=["with its CRD", "and the CRD stays"])
def test_an_operator_that_is_rolled_back_goes_on_with_what_runs_and_leaves_what_is_done(
    operator: Operator, played: Callable[..., PlayedJob], crd: Callable[[Object], None], crd_too: bool
) -> None:
    jobs = done, on, elsewhere = played("done"), played("on"), played("elsewhere")
    for job in jobs:
        job.apply()
        job.run_to_training()
        job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    done.end("train-0-1", outcome="Finished", result={"modelUri": "s3://m", "step": 100})
    done.wait_phase("Succeeded")
    wait_until("the worker that still ran is gone", lambda: "done-train-1-1" not in done.uids())
    operator.kill()
    crd(newer())
    for job in jobs:
        conditions = [{"type": "Dreamt", **TOLD}, *job.status()["conditions"]]
        pods = [{"role": "dream", "index": 0, "incarnation": 1}, *job.status()["pods"]]
        edit_status(job, phase="Dreaming", conditions=conditions, pods=pods)
    edit_status(elsewhere, stage="Dream")
    if crd_too:
        crd(OLD)
    before, finished = {job: job.uids() for job in jobs}, done.get()["metadata"]["resourceVersion"]
    operator.start()
    on.end("train-1-1", 137)
    on.wait_pods("train-1-2")
    elsewhere.wait_pods("prepare-0-2")
    for job in (on, elsewhere):
        status = job.status()
        assert status["phase"] != "Dreaming"
        assert [c["type"] for c in status["conditions"]].count("Dreamt") == 0
        assert {m["role"] for m in status["pods"]} == {"prepare", "train"}
    assert [incident["class"] for incident in on.status()["history"]] == ["Killed"]
    assert before[on].items() <= on.uids().items(), "a pod was replaced that was not lost"
    assert (done.uids(), done.get()["metadata"]["resourceVersion"]) == (before[done], finished)


def test_an_operator_that_is_newer_than_the_crd_does_not_start_and_names_what_the_crd_lacks(
    cluster: LocalCluster, crd: Callable[[Object], None], namespace: str
) -> None:
    other = newer()
    status = other["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    status["phase"]["enum"].remove("Starting")
    del status["pods"]["items"]["properties"]["notBefore"]
    crd(other)
    code, log = outcome("--kubeconfig", str(cluster.kubeconfig), "--namespace", namespace)
    assert code == 1
    (line,) = log.splitlines()
    assert "older than this operator" in line
    assert "(status.phase Starting, status.pods[].notBefore)" in line
    assert "kubectl apply -f crds/" in line
