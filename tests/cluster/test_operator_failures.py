"""The operator on a real API server, with pods that the test plays: what it does when something fails."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from datetime import datetime

import pytest
from support.disturb import addresses, writes
from support.operator_process import Operator
from support.played import Object, PlayedJob
from support.runs import wait_until

MakeJob = Callable[..., PlayedJob]


def training(played: MakeJob, **spec: object) -> PlayedJob:
    """A job with two ready worker pods."""
    job = played(**spec)
    job.apply()
    job.run_to_training()
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    return job


@pytest.mark.parametrize("index", [0, 1])
def test_a_failed_pod_is_replaced_by_the_next_incarnation_and_the_others_stay(
    operator: Operator, played: MakeJob, index: int
) -> None:
    job = training(played)
    before = job.uids()
    job.end(f"train-{index}-1", 20, **{"class": "Internal", "cause": "the driver crashed", "step": 7})
    job.wait_pods(f"train-{index}-2")
    assert {name: uid for name, uid in job.uids().items() if name in before} == before
    job.run(f"train-{index}-2", address="10.99.1.1")
    wait_until("the name leads to the successor", lambda: addresses(job, f"train-{index}") == ["10.99.1.1"])
    status = job.wait_phase("Restarting")
    (incident,) = status["history"]
    assert incident["class"] == "Internal"
    assert incident["pod"] == f"gpt-train-{index}-1"
    assert incident["step"] == 7
    assert "the driver crashed" in incident["cause"]
    assert status["restarts"]["total"] == 1
    wait_until("one event tells of it", lambda: len(job.events("Internal")) == 1)


def test_a_pod_on_a_lost_node_leaves_the_service_before_its_successor_comes(
    operator: Operator, played: MakeJob
) -> None:
    job = training(played)
    job.bind("train-1-1", "lost-node")
    job.disrupt("train-1-1", "DeletionByTaintManager")
    job.core.delete_namespaced_pod("gpt-train-1-1", job.namespace)  # nobody answers for it: it stays
    pods = job.wait_pods("train-1-2")
    assert "deletionTimestamp" in pods["gpt-train-1-1"]["metadata"]
    assert "trainingjob.io/member" not in pods["gpt-train-1-1"]["metadata"]["labels"]
    assert pods["gpt-train-1-2"]["metadata"]["labels"]["trainingjob.io/member"] == "true"
    job.run("train-1-2", address="10.99.1.1")
    wait_until("the name leads to the successor alone", lambda: addresses(job, "train-1") == ["10.99.1.1"])
    (incident,) = job.status()["history"]
    assert (incident["class"], incident["node"]) == ("NodeLost", "lost-node")
    assert job.status()["restarts"]["total"] == 0


def test_a_deleted_pod_is_replaced_and_not_counted(operator: Operator, played: MakeJob) -> None:
    job = training(played)
    job.wait("the pods' uids are known", lambda status: all("uid" in member for member in status["pods"]))
    job.remove_pod("train-1-1")
    job.wait_pods("train-1-2")
    status = job.status()
    assert [incident["class"] for incident in status["history"]] == ["Deleted"]
    assert status["restarts"]["total"] == 0


def test_an_index_that_fails_again_and_again_has_its_first_successor_at_once_and_the_next_ones_ever_later(
    operator: Operator, played: MakeJob
) -> None:
    """Whatever ends its pods, counted or not, as long as training has not gone on in between."""
    job = training(played, runPolicy={"maxRestarts": 9})
    others = {name: uid for name, uid in job.uids().items() if name != "gpt-train-1-1"}
    job.end("train-1-1", 20, **{"class": "Internal", "cause": "it broke"})
    job.wait_pods("train-1-2")
    assert pause_before(job.status()) == 0
    job.run("train-1-2")
    job.wait("it is ready", lambda status: status["workers"]["ready"] == 2)
    job.remove_pod("train-1-2")
    status = job.wait("the third is licensed", lambda status: licensed(status)["incarnation"] == 3)
    assert pause_before(status) == 10
    due = datetime.fromisoformat(licensed(status)["notBefore"])
    assert f"from Deleted of gpt-train-1-2; the next try is at {due:%H:%M:%S} UTC" in status["message"]
    made = job.wait_pods("train-1-3")["gpt-train-1-3"]["metadata"]["creationTimestamp"]
    assert datetime.fromisoformat(made) >= due
    job.end("train-1-3", 137)
    status = job.wait("the fourth is licensed", lambda status: licensed(status)["incarnation"] == 4)
    assert pause_before(status) == 20
    assert [entry["class"] for entry in status["history"]] == ["Internal", "Deleted", "Killed"]
    assert status["restarts"]["total"] == 2
    assert status["restarts"]["byClass"] == {"Internal": 1, "Deleted": 1, "Killed": 1}
    for class_, count in status["restarts"]["byClass"].items():
        operator.wait_value(count, "trainingjob_restarts_total", namespace=job.namespace, **{"class": class_})
    assert others.items() <= job.uids().items(), "a pod that had not failed was replaced"


def licensed(status: Object) -> Object:
    """What the status says of the newest pod of index 1."""
    (member,) = [each for each in status["pods"] if (each["role"], each["index"]) == ("train", 1)]
    found: Object = member
    return found


def pause_before(status: Object) -> float:
    """Seconds between the newest incident and the successor that it licenses."""
    due = licensed(status).get("notBefore")
    failed = datetime.fromisoformat(status["history"][-1]["time"])
    return (datetime.fromisoformat(due) - failed).total_seconds() if due is not None else 0


def test_a_job_that_fails_again_and_again_without_a_checkpoint_is_given_up(operator: Operator, played: MakeJob) -> None:
    job = training(played, runPolicy={"maxRestarts": 1})
    job.end("train-0-1", 20, **{"class": "Internal", "cause": "first"})
    job.wait_pods("train-0-2")
    job.run("train-0-2")
    job.wait("the successor is seen", lambda status: status["workers"]["ready"] == 2)
    traceback = "ValueError: no\nTraceback (most recent call last):\n  in step\nValueError: no"
    job.end("train-0-2", 20, **{"class": "Internal", "cause": traceback, "rank": 1, "step": 7})
    status = job.wait_phase("Failed")
    assert "given up after 2 failures" in status["message"]
    assert "maxRestarts 1" in status["message"]
    for told in ("Internal", "rank 1", "step 7", "Traceback (most recent call last):\n  in step"):
        assert told in status["message"]
    assert "Traceback" not in status["history"][-1]["cause"]
    assert {c["type"]: c["status"] for c in status["conditions"]}["Stalled"] == "True"
    wait_until("no pod runs", lambda: {"gpt-train-1-1"}.isdisjoint(job.uids()))


def test_nothing_that_is_nested_deeper_than_python_reads_ends_the_operator(operator: Operator, played: MakeJob) -> None:
    """Text of JSON in a spec; a part of it that the API server does not know; the end of a pod's log. Each fails for
    itself, and again when the operator begins with a LIST."""
    job = training(played)
    texts = played("texts", model={"huggingface": {"config": "[" * 60_000}})
    parts = played("parts", workers={"replicas": 1, "template": {"affinity": {"nodeAffinity": {"deep": "HERE"}}}})
    texts.apply()
    deep = json.dumps(parts.manifest).replace('"HERE"', '{"a":' * 9000 + "1" + "}" * 9000)
    job.cluster.kubectl("apply", "-f", "-", stdin=deep)
    job.end_with_log("train-1-1", 1, "[" * 5000)
    job.wait_pods("train-1-2")
    (incident,) = job.status()["history"]
    assert (incident["class"], incident["pod"]) == ("Crashed", "gpt-train-1-1")
    said = {
        "texts": "cannot read the job and leaves it as it is: spec.model.huggingface.config: is not JSON: recursion",
        "parts": "cannot read the job and leaves it as it is: spec.workers.template.affinity: is nested more than 32",
    }
    for name, words in said.items():
        command = ("-n", job.namespace, "get", "tj", name, "-o", "jsonpath={.status.message}")
        wait_until(f"{name} is not understood", lambda c=command, w=words: w in job.cluster.kubectl(*c))
    operator.restart()
    job.run("train-1-2")
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)


def test_a_users_error_fails_the_job_at_once_with_what_to_do(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    job.wait_pods("prepare-0-1")
    job.run("prepare-0-1")
    words = {"class": "UserError", "cause": "the bucket corpus does not exist", "nextStep": "create the bucket corpus"}
    job.end("prepare-0-1", 10, **words)
    job.kubectl_wait("condition=Finished", "condition=Failed", "jsonpath={.status.phase}=Failed")
    status = job.wait_phase("Failed")
    assert "the bucket corpus does not exist" in status["message"]
    assert "reate the bucket corpus" in status["message"]
    assert status["restarts"]["total"] == 0
    assert set(job.uids()) == {"gpt-prepare-0-1"}


def test_a_data_error_fails_the_job_at_once(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    job.wait_pods("prepare-0-1")
    job.run("prepare-0-1")
    job.end("prepare-0-1", 11, **{"class": "DataError", "cause": "line 3 of raw.jsonl is no JSON"})
    status = job.wait_phase("Failed")
    assert status["message"].startswith("DataError: ")
    assert "line 3 of raw.jsonl is no JSON" in status["message"]
    assert set(job.uids()) == {"gpt-prepare-0-1"}


def test_a_worker_out_of_memory_fails_the_job_at_once_with_its_rank_its_limit_and_what_to_lower(
    operator: Operator, played: MakeJob
) -> None:
    job = training(played)
    job.end("train-1-1", 137, "OOMKilled")
    status = job.wait_phase("Failed")
    assert status["message"].startswith("OutOfMemory: ")
    for told in ("gpt-train-1-1 (rank 1)", "memory limit of 4Gi", "microBatchSize"):
        assert told in status["message"]
    assert status["restarts"]["total"] == 0
    assert "gpt-train-1-2" not in job.uids()


def test_a_finished_head_wins_over_what_its_workers_do(operator: Operator, played: MakeJob) -> None:
    job = training(played)
    os.kill(operator.pid, signal.SIGSTOP)
    job.end("train-0-1", outcome="Finished", result={"modelUri": "s3://m", "step": 100})
    job.end("train-1-1", 20, **{"class": "WorkerLost", "cause": "the head is gone"})
    os.kill(operator.pid, signal.SIGCONT)
    status = job.wait_phase("Succeeded")
    assert status["restarts"]["total"] == 0


@pytest.mark.parametrize(("kind", "name"), [("Service", "gpt-tj"), ("Pod", "gpt-prepare-0-1")])
def test_a_foreign_object_with_a_childs_name_is_explained_and_never_touched(
    operator: Operator, played: MakeJob, kind: str, name: str
) -> None:
    job = played()
    specs: dict[str, Object] = {
        "Service": {"clusterIP": "None", "selector": {"app": "theirs"}},
        "Pod": {"schedulerName": "none", "containers": [{"name": "theirs", "image": "theirs"}]},
    }
    meta = {"name": name, "namespace": job.namespace, "labels": {"trainingjob.io/job-name": "gpt"}}
    foreign = {"apiVersion": "v1", "kind": kind, "metadata": meta, "spec": specs[kind]}
    job.cluster.apply(foreign)

    def theirs() -> Object:
        found: Object = json.loads(job.cluster.kubectl("-n", job.namespace, "get", kind, name, "-o", "json"))
        return found

    before = theirs()
    job.apply()
    status = job.wait(
        "the name is said to be taken", lambda status: f"{kind} {name} exists" in status.get("message", "")
    )
    assert {c["type"]: (c["status"], c["reason"]) for c in status["conditions"]}["Stalled"] == ("True", "NameTaken")
    assert theirs() == before
    job.cluster.kubectl("-n", job.namespace, "delete", kind, name, "--grace-period=0", "--force")
    wait_until("the job goes on", lambda: "gpt-tj" in str(job.leftovers()) and job.uids())
    job.run("prepare-0-1")
    status = job.wait_phase("Preparing")
    assert {c["type"]: c["status"] for c in status["conditions"]}["Stalled"] == "False"


def test_a_pod_that_was_deleted_behind_the_operators_back_is_never_created_a_second_time(
    operator: Operator, played: MakeJob
) -> None:
    job = training(played)
    job.wait("the pods' uids are known", lambda status: all("uid" in member for member in status["pods"]))
    operator.kill()
    job.remove_pod("train-0-1")
    operator.start()
    job.wait_pods("train-0-2")
    assert created(job, "gpt-train-0-1") == 1
    assert created(job, "gpt-train-0-2") == 1


def test_the_operator_killed_at_any_moment_creates_each_pod_once(operator: Operator, played: MakeJob) -> None:
    job = played()
    for delay in range(5):
        operator.kill()
        operator.start()
        if delay == 0:
            job.apply()
    job.wait_pods("prepare-0-1")
    job.run("prepare-0-1")
    operator.kill()
    job.end("prepare-0-1", outcome="Train")
    operator.start()
    job.wait_pods("train-0-1", "train-1-1")
    names = set(job.uids())
    assert names == {"gpt-prepare-0-1", "gpt-train-0-1", "gpt-train-1-1"}
    assert {name: created(job, name) for name in names} == dict.fromkeys(names, 1)


def created(job: PlayedJob, name: str) -> int:
    """How often a pod of this name, which is or was there, was created, as the API server's audit log says."""
    count: int = wait_until(f"{name} is in the log", lambda: writes(job).count(("create", "pods", name, 201)))
    return count
