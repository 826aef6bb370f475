"""The operator as a process: how it starts, what it says when it cannot, restarts, health, and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.chart import install_account
from support.disturb import label
from support.operator_process import Operator, outcome
from support.played import PlayedJob
from support.runs import PATIENCE, wait_until

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

MakeJob = Callable[..., PlayedJob]


def test_missing_rights_are_named_in_one_line(cluster: LocalCluster, namespace: str) -> None:
    kubeconfig = cluster.control_plane.client_kubeconfig("somebody")
    code, log = outcome("--kubeconfig", str(kubeconfig), "--namespace", namespace)
    assert code == 1
    (line,) = log.splitlines()
    assert f"create pods in namespace {namespace}" in line
    assert f"update trainingjobs/status in namespace {namespace}" in line
    assert "role of the Helm chart" in line


def test_an_api_server_that_does_not_answer_is_named_in_one_line(tmp_path: Path, cluster: LocalCluster) -> None:
    kubeconfig = tmp_path / "config"
    kubeconfig.write_text(cluster.kubeconfig.read_text().replace(":6443", ":6444"))
    code, log = outcome("--kubeconfig", str(kubeconfig))
    assert code == 1
    (line,) = log.splitlines()
    assert "does not answer" in line


def test_a_missing_kubeconfig_is_named_in_one_line(tmp_path: Path) -> None:
    code, log = outcome("--kubeconfig", str(tmp_path / "missing"))
    assert code == 1
    (line,) = log.splitlines()
    assert str(tmp_path / "missing") in line


def test_a_lease_that_can_be_nowhere_is_said(cluster: LocalCluster, namespace: str, tmp_path: Path) -> None:
    flags = ("--namespace", namespace, "--lease-namespace", "nowhere")
    operator = Operator(cluster.kubeconfig, tmp_path / "operator.log", *flags, elect=True)
    operator.start()
    try:
        said = (
            'cannot read or take the lease nowhere/trainingjob-operator: 404 NotFound: namespaces "nowhere" not found'
        )
        wait_until("it says so", lambda: said in operator.log.read_text())
    finally:
        operator.stop()


def test_a_namespace_that_is_misspelt_is_named_and_worked_in_once_it_is_there(
    cluster: LocalCluster, namespace: str, tmp_path: Path
) -> None:
    later = f"{namespace}-later"
    flags = ("--namespace", namespace, "--namespace", later)
    operator = Operator(cluster.kubeconfig, tmp_path / "operator.log", *flags)
    operator.start()
    try:
        assert f"namespace {later} (--namespace) does not exist: is it misspelt?" in operator.log.read_text()
        cluster.kubectl("create", "namespace", later)
        job = PlayedJob(cluster, later)
        job.apply()
        job.wait_pods("prepare-0-1")
    finally:
        operator.stop()
        cluster.kubectl("delete", "namespace", later, "--wait=false", "--ignore-not-found")


def test_a_watched_namespace_that_is_deleted_with_its_role_stops_nothing_in_the_others(
    cluster: LocalCluster, namespace: str, make_namespace: Callable[[str], str], tmp_path: Path
) -> None:
    other = make_namespace("other")
    values = {"watchNamespaces": [namespace, other]}
    account = install_account(cluster, namespace, values)
    flags = ("--namespace", namespace, "--namespace", other, "--resync", "1")
    operator = Operator(account, tmp_path / "operator.log", *flags)
    operator.start()
    try:
        job = PlayedJob(cluster, namespace)
        job.apply()
        job.run_to_training()
        cluster.kubectl("delete", "namespace", other)
        wait_until("it is noticed", lambda: "cannot list TrainingJobs: 403" in operator.log.read_text())
        cluster.kubectl("-n", namespace, "delete", "service", "gpt-tj")
        wait_until("jobs are looked after once in the resync interval", lambda: "Service/gpt-tj" in job.leftovers())
        operator.restart()
        assert f"nothing is done in namespace {other}: it does not exist, or" in operator.log.read_text()
        job.end("train-1-1", 137)
        job.wait_pods("train-1-2")
        cluster.kubectl("create", "namespace", other)
        install_account(cluster, namespace, values)
        assert operator.wait_for_its_end() == 1
        assert operator.log.read_text().splitlines()[-1].endswith(f"it may work in namespace {other} now")
        operator.start()
        again = PlayedJob(cluster, other)
        again.apply()
        again.wait_pods("prepare-0-1")
    finally:
        operator.stop()


def test_a_restart_writes_nothing_for_jobs_that_need_nothing(operator: Operator, played: MakeJob) -> None:
    finished, running = played("done"), played("on")
    for job in (finished, running):
        job.apply()
        job.run_to_training()
    finished.end("train-0-1", outcome="Finished", result={"modelUri": "s3://m", "step": 100})
    finished.wait_phase("Succeeded")
    running.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    running.wait("the pods' uids are known", lambda status: all("uid" in member for member in status["pods"]))
    before = running.settled(operator, lambda: [(job.get(), job.uids()) for job in (finished, running)])
    operator.restart()
    running.wait("nothing has changed", lambda status: status["phase"] == running.status()["phase"])
    requests = operator.metrics().splitlines()
    writes = [line for line in requests if line.startswith("trainingjob_operator_api_requests_total")]
    own = [line for line in writes if "selfsubjectaccessreviews" not in line]
    assert [line for line in own if 'verb="get"' not in line and 'verb="list"' not in line] == []
    assert [(job.get(), job.uids()) for job in (finished, running)] == before


def test_sigterm_ends_it(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    job.wait_pods("prepare-0-1")
    job.run("prepare-0-1")
    job.wait_phase("Preparing")
    operator.stop()
    assert "Traceback" not in operator.log.read_text()


def test_jobs_of_other_namespaces_are_left_alone(
    operator: Operator, played: MakeJob, make_namespace: Callable[[str], str], cluster: LocalCluster
) -> None:
    elsewhere = PlayedJob(cluster, make_namespace("elsewhere"))
    elsewhere.apply()
    job = played()
    job.apply()
    job.wait_pods("prepare-0-1")
    assert elsewhere.uids() == {}
    assert elsewhere.status() == {"observedGeneration": -1}
    elsewhere.delete()


def test_changes_made_while_the_operator_was_stuck_are_caught_up_with(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    job.run_to_training()
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    os.kill(operator.pid, signal.SIGSTOP)
    job.patch({"runPolicy": {"suspend": True}})
    job.end("train-1-1", 20, **{"class": "Internal", "cause": "it broke"})
    os.kill(operator.pid, signal.SIGCONT)
    status = job.wait_phase("Suspended")
    assert status["restarts"]["total"] == 0


@pytest.mark.slow  # the control plane is started twice
def test_an_operator_whose_api_server_was_restored_from_a_backup_begins_anew(
    cluster: LocalCluster, operator: Operator, played: MakeJob
) -> None:
    """Versions come again, for other states: what is newer than the backup in the caches would stand for ever."""
    job = played()
    job.apply()
    job.run_to_training()
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    try:
        with cluster.control_plane.set_back():
            job.end("train-1-1", 137)
            job.wait_pods("train-1-2")
        assert operator.wait_for_its_end() == 1
        assert "its etcd was restored" in operator.log.read_text().splitlines()[-1]
        operator.start()
        assert set(job.uids()) == {"gpt-prepare-0-1", "gpt-train-0-1", "gpt-train-1-1"}
        job.end("train-1-1", 137)
        job.wait_pods("train-1-2")
    finally:
        for name in cluster.nodes:  # They know too much as well.
            cluster.nodes[name].stop()
            cluster.start_node(name)
        cluster.wait_nodes_ready()


def test_livez_tells_a_stuck_operator_from_a_living_one(
    cluster: LocalCluster, namespace: str, played: MakeJob, tmp_path: Path
) -> None:
    """Its log is a pipe that is full: the event loop waits in write(), until somebody reads."""
    log, job = tmp_path / "log", played()
    os.mkfifo(log)
    operator = Operator(cluster.kubeconfig, log, "--namespace", namespace)
    reads = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    writes = os.open(log, os.O_WRONLY | os.O_NONBLOCK)
    try:
        operator.start()
        job.apply()
        job.wait_pods("prepare-0-1")
        job.settled(operator, job.status)  # it has said what there was to say
        with contextlib.suppress(BlockingIOError):
            while os.write(writes, b"." * 4096):
                pass
        wait_until("it lives, with a full log", lambda: lives(operator))
        lag = operator.value("trainingjob_operator_event_loop_lag_seconds_total")
        label(job, "prepare-0-1", role=None)  # it will say that it puts that right
        wait_until("/livez does not answer, however often", lambda: not any(lives(operator) for _ in range(3)))
        os.read(reads, 1 << 20)
        wait_until("/livez answers", lambda: lives(operator))
        assert operator.value("trainingjob_operator_event_loop_lag_seconds_total") > lag + 1
    finally:
        operator.kill()
        os.close(reads)
        os.close(writes)


def lives(operator: Operator) -> bool:
    """What a liveness probe with a timeout of a second finds."""
    try:
        with urllib.request.urlopen(f"http://{operator.address}/livez", timeout=1) as answer:
            return bool(answer.status == 200)
    except TimeoutError:
        return False


def test_liveness_and_metrics_are_served(operator: Operator, played: MakeJob) -> None:
    job = played()
    job.apply()
    job.wait_pods("prepare-0-1")
    with urllib.request.urlopen(f"http://{operator.address}/livez", timeout=PATIENCE) as answer:
        assert answer.status == 200
    operator.wait_value(1, "trainingjob_phase", namespace=job.namespace, trainingjob_phase="Pending")
    job.delete()
    wait_until("its metrics are gone", lambda: f'namespace="{job.namespace}"' not in operator.metrics())
