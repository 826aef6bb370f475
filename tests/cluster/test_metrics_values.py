"""Every metric of docs/metrics.md, at the real API server: it has the value that status, pods and audit log have."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from support.disturb import edit_status, find_no_node, node_of, place, writes
from support.operator_process import Operator
from support.played import Object, PlayedJob
from support.played_head import Head
from support.runs import wait_until
from trainingjob_operator.observe.jobs import FAMILIES

Samples = dict[str, dict[tuple[str, ...], float]]
OWN = "trainingjob_operator_"
PROGRESS = {"step": 25, "loss": 3.25, "tokensPerSecond": 512.0, "learningRate": 0.5, "etaSeconds": 61.0}


def scrape(operator: Operator) -> Samples:
    """All samples: by name, then by the values of their labels in the order of the labels' names, but for the job's."""
    found: Samples = {}
    for family in text_string_to_metric_families(operator.metrics()):
        for sample in family.samples:
            labels = {label: value for label, value in sample.labels.items() if label not in ("namespace", "name")}
            found.setdefault(sample.name, {})[tuple(labels[label] for label in sorted(labels))] = sample.value
    return found


def seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


def polled(samples: Samples) -> float:
    """When the head was heard last."""
    return samples["trainingjob_progress_timestamp_seconds"][()]


def of_job(samples: Samples) -> Samples:
    return {name: values for name, values in samples.items() if name.startswith("trainingjob_") and OWN not in name}


def expected(job: PlayedJob, status: Object, in_phase: float) -> Samples:
    """The metrics of a job on whose behalf the head has said what it says below, with this status."""
    alone = {
        "progress_ratio": 0.25,
        "step": 25,
        "steps": 100,
        "loss": 3.25,
        "learning_rate": 0.5,
        "tokens_per_second": 512,
        "eta_seconds": 61,
        "checkpoint_step": 20,
        "checkpoint_timestamp_seconds": seconds(status["checkpoint"]["latestTime"]),
        "workers_desired": 2,
        "workers_ready": 2,
        "gpus": 8,
        "failures_total": 1,
        "failures_without_progress": 1,
        "queue_wait_seconds": status["waited"]["Queued"],
        "progress_timestamp_seconds": in_phase,
        "start_time_seconds": seconds(status["startTime"]),
    }
    phases = ("Pending", "Queued", "Preparing", "Starting", "Running", "Restarting", "Suspending", "Suspended")
    pods = (("0", "train-0-1"), ("1", "train-1-2"))
    return {
        **{f"trainingjob_{name}": {(): float(value)} for name, value in alone.items()},
        "trainingjob_phase": {(phase,): float(phase == "Running") for phase in (*phases, "Succeeded", "Failed")},
        "trainingjob_reported": {("reward",): 0.5},
        "trainingjob_evaluation": {("loss", "validation"): 3.5},
        "trainingjob_restarts_total": {("Internal",): 1.0},
        "trainingjob_start_latency_seconds": {
            (phase,): float(value) for phase, value in status["waited"].items() if phase != "Queued"
        },
        "trainingjob_pod_info": {(index, node_of(job), f"gpt-{pod}", "train"): 1.0 for index, pod in pods},
    }


def test_every_metric_has_its_real_value(operator: Operator, played: Callable[..., PlayedJob], head: Head) -> None:
    workers: Object = {"replicas": 2, "resources": {"gpus": 4}, "template": {"schedulerName": "played-by-the-test"}}
    job = played(workers=workers)
    job.apply()
    job.wait_pods("prepare-0-1")
    job.run("prepare-0-1")
    job.wait_phase("Preparing")
    job.end("prepare-0-1", outcome="Train")
    pods = job.wait_pods("train-0-1", "train-1-1")
    for name in ("train-0-1", "train-1-1"):
        find_no_node(job, name)
    job.wait_phase("Queued")
    place(job, "train-0-1", "train-1-1")
    head.trains(job.get()["metadata"]["uid"], pods["gpt-train-0-1"]["metadata"]["uid"])
    evaluation = {"split": "validation", "step": 20, "metrics": {"loss": 3.5}}
    head.says(progress={**PROGRESS, "metrics": {"reward": 0.5}}, checkpoint={"latestStep": 20}, evaluation=evaluation)
    job.run("train-1-1")
    job.run("train-0-1", address=head.address)
    job.wait_phase("Running")
    job.end("train-1-1", 20, **{"class": "Internal", "cause": "it broke"})
    job.wait_pods("train-1-2")
    place(job, "train-1-2")
    job.run("train-1-2")
    head.says(attempt=2)
    job.wait("it has recovered", lambda status: status["phase"] == "Running" and status["workers"]["ready"] == 2)
    found = {}

    def agree() -> bool:
        nonlocal found
        found = scrape(operator)
        return of_job(found) == expected(job, job.status(), polled(found))

    with contextlib.suppress(AssertionError):
        wait_until("", agree)
    assert of_job(found) == expected(job, job.status(), polled(found))
    assert found["process_start_time_seconds"][()] < polled(found) < time.time()
    job.end("train-1-2")
    job.end("train-0-1", outcome="Finished", result={"modelUri": "s3://m", "step": 100})
    status = job.wait_phase("Succeeded")
    completed = seconds(status["completionTime"])
    operator.wait_value(completed, "trainingjob_completion_time_seconds", namespace=job.namespace)
    finished = of_job(scrape(operator))
    assert finished["trainingjob_phase"][("Succeeded",)] == 1
    assert (finished["trainingjob_step"], finished["trainingjob_gpus"]) == ({(): 100.0}, {(): 0.0})
    assert set(of_job(found)) | set(finished) == {family.sample for family in FAMILIES}
    check_requests(job, operator)


def check_requests(job: PlayedJob, operator: Operator) -> None:
    """What the operator counts of its own work."""

    def as_audited() -> bool:
        counted = {
            (verb, resource, code): count
            for (code, resource, verb), count in scrape(operator)[f"{OWN}api_requests_total"].items()
            if verb in ("create", "update", "patch", "delete") and resource != "selfsubjectaccessreviews"
        }
        audited = Counter((verb, resource, str(code)) for verb, resource, _, code in writes(job))
        return counted == audited

    wait_until("requests are counted as in the audit log", as_audited)
    found: dict[str, Any] = scrape(operator)
    by_verb: Counter[str] = Counter()
    for (_, _, verb), count in found[f"{OWN}api_requests_total"].items():
        by_verb[verb] += count
    del by_verb["watch"]
    assert {verb: count for (verb,), count in found[f"{OWN}api_request_duration_seconds_count"].items()} == by_verb
    assert found[f"{OWN}reconcile_duration_seconds_count"][()] >= by_verb["update"] > 0
    lived = time.time() - found["process_start_time_seconds"][()]
    assert 0 < found[f"{OWN}reconcile_duration_seconds_sum"][()] < lived, "more than there was for one job at a time"
    assert found[f"{OWN}leader"] == {(): 1.0}
    assert found[f"{OWN}build_info"] == {(version("trainingjob"),): 1.0}
    at_rest = (f"{OWN}queue_depth", f"{OWN}queue_age_seconds")
    wait_until("nothing is left to do", lambda: not any(scrape(operator)[name][()] for name in at_rest))


def test_a_defect_is_counted_and_logged_and_holds_up_no_other_job(
    operator: Operator, played: Callable[..., PlayedJob]
) -> None:
    """A time that somebody has written into the status by hand, and from which no deadline can be counted."""
    job, other = played(runPolicy={"activeDeadlineSeconds": 3600}), played("other")
    job.apply()
    began = job.wait("it is begun", lambda status: job.uids() and status.get("startTime"))["startTime"]
    errors = f"{OWN}reconcile_errors_total"
    assert ("error",) not in scrape(operator).get(errors, {})
    edit_status(job, startTime="9999-12-31T23:59:59Z")

    def as_logged() -> float:
        logged = operator.log.read_text().count("OverflowError: ")
        counted = scrape(operator).get(errors, {}).get(("error",), 0)
        return counted if counted == logged >= 3 else 0

    wait_until("three tries are counted as they are logged", as_logged)
    other.apply()
    other.run_to_training()
    edit_status(job, startTime=began)
    job.run_to_training()
    counted = wait_until("no try is left out", as_logged)
    job.wait("it trains", lambda status: status["workers"]["ready"] == 2)
    assert scrape(operator)[errors][("error",)] == counted
