"""People edit or delete a job's children on a real API server: they are put right, or a condition says why not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.disturb import label, writes
from support.operator_process import Operator
from support.played import PlayedJob
from support.runs import wait_until
from trainingjob_operator.core.labels import REPAIR_SECONDS

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

MakeJob = Callable[..., PlayedJob]


@pytest.fixture
def operator(cluster: LocalCluster, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    """An operator that looks after children every second."""
    flags = ("--namespace", namespace, "--resync", "1")
    process = Operator(cluster.kubeconfig, tmp_path / "operator.log", *flags)
    process.start()
    yield process
    process.stop()


@pytest.fixture
def training(operator: Operator, played: MakeJob) -> PlayedJob:
    """A job with two ready worker pods, whose uids the operator has written down."""
    job = played()
    job.apply()
    job.run_to_training()
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    job.wait("their uids are known", lambda status: all("uid" in m for m in status["pods"] if m["role"] == "train"))
    return job


def labels(job: PlayedJob) -> dict[str, dict[str, str]]:
    """Labels of the worker pods, found by name: a pod without labels is not in any list of the job's."""
    return {
        name: job.core.read_namespaced_pod(f"gpt-{name}", job.namespace).metadata.labels
        for name in ("train-0-1", "train-1-1")
    }


def since(job: PlayedJob, before: int) -> list[tuple[str, str, str, int]]:
    return writes(job)[before:]


def test_labels_of_pods_come_back_and_the_pods_stay(operator: Operator, training: PlayedJob) -> None:
    job, right, uids = training, labels(training), training.uids()
    before = len(job.settled(operator, lambda: writes(job)))
    label(job, "train-0-1", member=None, role=None, index="seven")
    label(job, "train-1-1", job_uid="another", job_name=None, incarnation=None)
    wait_until("the labels are right again", lambda: labels(job) == right)
    label(job, "train-1-1", job_uid=None)  # out of the operator's watch, as if it were deleted
    wait_until("the label is there again", lambda: labels(job) == right)
    assert job.uids() == uids
    assert job.status()["history"] == []
    assert {write[:2] for write in since(job, before)} == {("patch", "pods")}
    job.end("train-1-1", 20, **{"class": "Internal", "cause": "the worker crashed"})
    job.wait_pods("train-1-2")


def test_a_label_that_is_taken_away_again_and_again_is_not_fought_for(operator: Operator, training: PlayedJob) -> None:
    job = training
    before, tries, begun = len(job.settled(operator, lambda: writes(job))), 0, time.monotonic()

    def strip() -> bool:
        nonlocal tries
        label(job, "train-1-1", member=None)
        tries += 1
        return tries >= 100 and since(job, before) != []

    wait_until("it was taken away a hundred times, and came back", strip, every=0.02)
    repairs = since(job, before)
    assert len(repairs) <= 1 + (time.monotonic() - begun) / REPAIR_SECONDS, repairs


def test_service_and_config_map_come_back(operator: Operator, training: PlayedJob) -> None:
    job, kubectl = training, training.cluster.kubectl
    config = next(name for name in job.leftovers() if name.startswith("ConfigMap/"))
    wanted = children(job, "service/gpt-tj", config)
    before = len(job.settled(operator, lambda: writes(job)))
    kubectl("-n", job.namespace, "delete", "service/gpt-tj", config)
    wait_until("both are there again", lambda: {"Service/gpt-tj", config} <= job.leftovers())
    assert children(job, "service/gpt-tj", config) == wanted
    edit = {"spec": {"selector": {"app": "theirs"}}}
    kubectl("-n", job.namespace, "patch", "service", "gpt-tj", "--type=merge", "-p", json.dumps(edit))
    wait_until("the edit is undone", lambda: children(job, "service/gpt-tj", config) == wanted)
    changed = [write[:2] for write in job.settled(operator, lambda: since(job, before))]
    assert sorted(changed) == [
        ("create", "configmaps"),
        ("create", "services"),
        ("create", "services"),
        ("delete", "services"),
    ]
    assert job.status()["history"] == []


def children(job: PlayedJob, *names: str) -> list[Any]:
    """What these objects say, and whose they are."""
    text = job.cluster.kubectl("-n", job.namespace, "get", *names, "-o", "json", "--ignore-not-found")
    items = json.loads(text or '{"items": []}')["items"]
    return [
        (
            item["kind"],
            item["metadata"]["labels"],
            [owner["uid"] for owner in item["metadata"].get("ownerReferences", [])],
            item.get("data"),
            {
                key: value
                for key, value in item.get("spec", {}).items()
                if key in ("selector", "publishNotReadyAddresses")
            },
        )
        for item in items
    ]


def test_a_pod_that_is_taken_from_the_job_is_left_alone_and_replaced(training: PlayedJob) -> None:
    job = training
    taken = job.uids()["gpt-train-1-1"]
    job.core.patch_namespaced_pod("gpt-train-1-1", job.namespace, {"metadata": {"ownerReferences": None}})
    job.wait_pods("train-1-2")
    assert [incident["class"] for incident in job.status()["history"]] == ["Deleted"]
    assert job.uids()["gpt-train-1-1"] == taken
    assert "gpt-train-1-1" not in [name for verb, _, name, _ in writes(job) if verb in ("patch", "delete")]


@pytest.mark.parametrize("kind", ["Pod", "Service"])
def test_a_stranger_with_a_childs_name_costs_no_more_than_a_sentence(
    operator: Operator, played: MakeJob, kind: str
) -> None:
    job = played()
    name = {"Pod": "gpt-prepare-0-1", "Service": "gpt-tj"}[kind]
    pod = {"schedulerName": "none", "containers": [{"name": "theirs", "image": "theirs"}]}
    spec = pod if kind == "Pod" else {"clusterIP": "None", "selector": {"app": "theirs"}}
    meta = {"name": name, "namespace": job.namespace}
    job.cluster.apply({"apiVersion": "v1", "kind": kind, "metadata": meta, "spec": spec})
    job.apply()
    job.wait("it is said", lambda status: f"{kind} {name} exists" in status.get("message", ""))
    refused = ("create", f"{kind.lower()}s", name, 409)
    wait_until("it was tried four times", lambda: writes(job).count(refused) >= 4)
    others = [write for write in writes(job) if write != refused]
    assert len([write for write in others if write[1] == "trainingjobs"]) == 2, "the start, and what is in the way"
    assert [event["count"] for event in wait_until("it is told", lambda: job.events("NameTaken"))] == [1]
    assert name not in [written for verb, _, written, _ in others if verb != "create"]
