"""The operator on a real API server, with pods that the test plays: how a job goes on, rests and ends."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from support.operator_process import Operator
from support.played import PlayedJob
from support.played_head import Head
from support.runs import wait_until

RESULT = {
    "modelUri": "s3://models/gpt/model",
    "reportUri": "s3://models/gpt/report",
    "step": 100,
    "evaluation": {"split": "test", "step": 100, "metrics": {"loss": 2.5, "perplexity": 12.2}},
}
MakeJob = Callable[..., PlayedJob]


def api_writes(operator: Operator) -> Counter[tuple[str, str]]:
    """The operator's writes so far, by verb and resource."""
    writes: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(operator.metrics()):
        for sample in family.samples:
            if sample.name == "trainingjob_operator_api_requests_total":
                verb, resource = sample.labels["verb"], sample.labels["resource"]
                if verb in ("create", "update", "patch", "delete") and resource != "selfsubjectaccessreviews":
                    writes[(verb, resource)] += int(sample.value)
    return writes


def test_a_job_goes_through_its_stages_to_its_result(
    operator: Operator, played: MakeJob, record_property: Callable[[str, Any], None]
) -> None:
    job = played()
    job.apply()
    pods = job.wait_pods("prepare-0-1")
    assert len(pods) == 1, "the check is one pod"
    assert job.wait_phase("Pending")["workers"] == {"desired": 1, "ready": 0}
    job.run("prepare-0-1")
    job.wait_phase("Preparing")
    job.end("prepare-0-1", outcome="PrepareData")
    job.wait_pods("prepare-0-2", "prepare-1-1")
    job.run("prepare-0-2", "prepare-1-1")
    job.end("prepare-1-1")
    job.end("prepare-0-2", outcome="Train")
    job.wait_pods("train-0-1", "train-1-1")
    job.run("train-0-1", "train-1-1")
    job.wait("both workers are ready", lambda status: status["workers"] == {"desired": 2, "ready": 2})
    job.end("train-1-1")
    job.end("train-0-1", outcome="Finished", result=RESULT)
    job.kubectl_wait("condition=Finished", "condition=Complete", "jsonpath={.status.phase}=Succeeded")
    status = job.wait_phase("Succeeded")
    assert status["result"] == {"modelUri": RESULT["modelUri"], "reportUri": RESULT["reportUri"]}
    assert status["evaluation"] == RESULT["evaluation"]
    assert status["restarts"]["total"] == 0
    conditions = {condition["type"]: condition["status"] for condition in status["conditions"]}
    assert conditions["Complete"] == conditions["Finished"] == "True"
    assert set(job.uids()) == {
        f"gpt-{name}" for name in ("prepare-0-1", "prepare-0-2", "prepare-1-1", "train-0-1", "train-1-1")
    }
    wait_until("one event tells of it", lambda: len(job.events("Succeeded")) == 1)
    writes = job.settled(operator, lambda: api_writes(operator))
    record_property("api_writes", {f"{verb} {resource}": count for (verb, resource), count in writes.items()})
    assert {what: writes[("create", what)] for what in ("configmaps", "services", "pods")} == {
        "configmaps": 1,
        "services": 1,
        "pods": 5,
    }
    # Each of the sixteen things that happened above is written once at most, however far apart they are.
    assert writes[("update", "trainingjobs")] <= 16, writes
    assert sum(writes.values()) <= 36, writes


def test_progress_is_pulled_from_the_head_pod(operator: Operator, played: MakeJob, head: Head) -> None:
    job = played()
    job.apply()
    job.wait_pods("prepare-0-1")
    job.run("prepare-0-1")
    job.end("prepare-0-1", outcome="Train")
    pods = job.wait_pods("train-0-1", "train-1-1")
    head.says(
        jobUid=job.get()["metadata"]["uid"],
        podUid=pods["gpt-train-0-1"]["metadata"]["uid"],
        stage="Train",
        state="Training",
        firstStepAt="2030-01-01T00:00:00Z",
        progress={"step": 25, "loss": 3.25, "tokensPerSecond": 512.0},
        checkpoint={"latestStep": 20, "latestUri": "s3://models/gpt/checkpoints/step-00000020"},
    )
    job.run("train-1-1")
    job.run("train-0-1", address=head.address)
    status = job.wait_phase("Running")
    assert status["progress"]["step"] == 25
    assert status["progress"]["percent"] == 25
    assert status["checkpoint"]["latestStep"] == 20
    head.says(progress={"step": 50, "loss": 3.0})
    job.wait("the next step is written", lambda status: status["progress"]["step"] == 50)
    table = job.cluster.kubectl("-n", job.namespace, "get", "tj", "gpt", "-o", "wide", "--no-headers")
    assert table.split()[:6] == ["gpt", "Running", "50/100", "(50%)", "3", "2"]
    assert table.split()[6] == "0", "restarts"
    assert table.rstrip().endswith("Training on 2 ranks.")
    labels = f'namespace="{job.namespace}",name="gpt"'
    wait_until("metrics show it", lambda: f"trainingjob_loss{{{labels}}} 3.0" in operator.metrics())
    writes = job.settled(operator, lambda: api_writes(operator))
    head.says(jobUid="another", progress={"step": 99})
    wait_until("it is asked again", head.was_asked_again)
    assert job.settled(operator, lambda: api_writes(operator)) == writes
    assert job.status()["progress"]["step"] == 50, "what another pod says at this address was believed"


def test_children_belong_to_the_job_and_the_secret_holds_a_token(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    job.wait_pods("prepare-0-1")
    uid = job.get()["metadata"]["uid"]
    text = job.cluster.kubectl("-n", job.namespace, "get", "pods,services,configmaps,secrets", "-o", "json")
    children = [item for item in json.loads(text)["items"] if item["metadata"]["name"].startswith("gpt-")]
    assert sorted(child["kind"] for child in children) == ["ConfigMap", "Pod", "Secret", "Service"]
    for child in children:
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (uid, True, True)
        assert owner["kind"] == "TrainingJob"
    (secret,) = [child for child in children if child["kind"] == "Secret"]
    assert uid in secret["metadata"]["name"]
    assert len(secret["data"]["token"]) > 40
    assert job.get()["metadata"].get("finalizers") is None


def test_applying_the_same_file_again_changes_nothing(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    job.run_to_training()
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    writes, before = job.settled(operator, lambda: api_writes(operator)), job.get()
    job.apply()
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [job.manifest]})
    job.cluster.kubectl("diff", "-f", "-", stdin=text)
    assert job.settled(operator, lambda: api_writes(operator)) == writes
    assert job.get() == before


def test_a_suspended_job_gives_up_its_pods_and_resumes_with_new_ones(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    job.run_to_training()
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    job.patch({"runPolicy": {"suspend": True}})
    status = job.wait_phase("Suspended")
    assert {c["type"]: c["status"] for c in status["conditions"]}["Suspended"] == "True"
    assert [name for name in job.uids() if "train" in name] == []
    job.patch({"runPolicy": {"suspend": False}})
    job.wait_pods("prepare-0-2")
    job.run("prepare-0-2")
    job.end("prepare-0-2", outcome="Train")
    job.wait_pods("train-0-2", "train-1-2")
    assert job.status()["restarts"]["total"] == 0


def test_the_same_event_again_is_counted_on_the_first(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    for incarnation in (1, 2):
        job.patch({"runPolicy": {"suspend": False}})
        job.wait_pods(f"prepare-0-{incarnation}")
        job.patch({"runPolicy": {"suspend": True}})
        job.wait_phase("Suspended")
    wait_until("both are told", lambda: [event["count"] for event in job.events("Suspended")] == [2])
    (event,) = job.events("Suspended")
    assert event["lastTimestamp"] >= event["firstTimestamp"]


def test_a_job_that_is_suspended_from_the_start_gets_no_pod(operator: Operator, played: MakeJob) -> None:
    job = played(runPolicy={"suspend": True})
    job.apply()
    job.wait_phase("Suspended")
    job.settled(operator, lambda: api_writes(operator))
    assert job.leftovers() == set()


def test_the_time_to_live_removes_pods_and_service_but_not_the_job(operator: Operator, played: MakeJob) -> None:
    job = played(runPolicy={"podsTTLSecondsAfterFinished": 1})
    job.apply()
    job.run_to_training()
    job.end("train-1-1")
    job.end("train-0-1", outcome="Finished", result=RESULT)
    job.wait_phase("Succeeded")
    kept = {f"Secret/gpt-tj-{job.get()['metadata']['uid']}"}  # may only be created: it goes with the job
    wait_until("pods, Service and ConfigMap are gone", lambda: job.leftovers() == kept)
    status = job.status()
    assert status["phase"] == "Succeeded"
    assert status["result"]["modelUri"] == RESULT["modelUri"]


def test_a_job_that_uses_up_its_deadline_is_drained_and_fails(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    job.wait_pods("prepare-0-1")
    job.patch({"runPolicy": {"activeDeadlineSeconds": 1}})
    status = job.wait_phase("Failed")
    assert "activeDeadlineSeconds" in status["message"]
    assert [incident["class"] for incident in status["history"]] == ["DeadlineExceeded"]
    assert job.uids() == {}


def test_a_job_of_the_same_name_starts_from_nothing(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    job.run_to_training()
    first = job.get()["metadata"]["uid"]
    job.delete()
    wait_until("everything is gone", lambda: job.leftovers() == set())
    job.apply()
    job.wait_pods("prepare-0-1")
    assert job.get()["metadata"]["uid"] != first
    assert set(job.uids()) == {"gpt-prepare-0-1"}
