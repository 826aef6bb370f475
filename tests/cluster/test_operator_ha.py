"""Two operators at the real API server: one leads, the other takes over, and never do both write."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.disturb import audited
from support.operator_process import Operator
from support.played import PlayedJob
from support.runs import wait_until
from trainingjob_operator.kube.lease import LEASE_SECONDS, LOOK_SECONDS

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

MakeJob = Callable[..., PlayedJob]
Request = dict[str, Any]
WRITES = {"create", "update", "patch", "delete", "deletecollection"}
NOT_OF_JOBS = {"leases", "selfsubjectaccessreviews"}
AFTER_SIGTERM, AFTER_SIGKILL = 3.0, 20.0
"""Seconds within which the other one works on jobs, of which there are a thousand, on a machine that is not busy."""


class Pair:
    """Two operators, each with a log-in of its own, by which the audit log tells them apart."""

    def __init__(self, cluster: LocalCluster, namespace: str, directory: Path) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self.users: dict[Operator, str] = {}
        flags = ("--namespace", namespace, "--lease-namespace", namespace)
        for letter in "ab":
            user = f"operator-{letter}-{namespace}"
            kubeconfig = cluster.control_plane.client_kubeconfig(user, "system:masters")
            self.users[Operator(kubeconfig, directory / f"{letter}.log", *flags, elect=True)] = user

    def start(self) -> tuple[Operator, Operator]:
        """The leader and the standby."""
        leader, standby = self.users
        leader.start()
        wait_until("the first one leads", lambda: leads(leader))
        standby.start()
        return leader, standby

    def holder(self) -> str:
        """Who holds the lease."""
        lease = self._cluster.kubectl("-n", self._namespace, "get", "lease", "trainingjob-operator", "-o", "json")
        return str(json.loads(lease)["spec"]["holderIdentity"])

    def requests(self, operator: Operator) -> list[Request]:
        """What an operator has asked of the API server, in the words of its audit log."""
        user = self.users[operator]
        return [entry for entry in audited(self._cluster, user) if entry["user"]["username"] == user]

    def writes(self, operator: Operator) -> list[Request]:
        """What of it are writes of jobs."""
        return [
            entry
            for entry in self.requests(operator)
            if entry["verb"] in WRITES and entry["objectRef"]["resource"] not in NOT_OF_JOBS
        ]

    def looks_at_the_released_lease(self, leader: Operator, standby: Operator) -> int:
        """How often the standby read it, from the leader's last word on it, before it took it."""
        released = max(entry["stageTimestamp"] for entry in self.requests(leader) if of_lease(entry, "update"))
        return sum(
            1
            for entry in self.requests(standby)
            if of_lease(entry, "get") and entry["requestReceivedTimestamp"] > released
        )


def of_lease(entry: Request, verb: str) -> bool:
    return bool(entry["verb"] == verb and entry.get("objectRef", {}).get("resource") == "leases")


def times(writes: list[Request]) -> list[str]:
    """When the API server received them, in order."""
    return sorted(write["requestReceivedTimestamp"] for write in writes)


def leads(operator: Operator) -> bool:
    return "trainingjob_operator_leader 1.0" in operator.metrics()


@pytest.fixture
def pair(cluster: LocalCluster, namespace: str, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(cluster, namespace, tmp_path)
    try:
        yield made
    finally:
        for operator in made.users:
            operator.stop()


def settle_suspended_jobs(played: MakeJob, count: int) -> None:
    """So many jobs that want no pods, with their status written."""
    job = played("idle", runPolicy={"suspend": True})
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(job.create, (f"idle-{number}" for number in range(count))))
    phases = ("-n", job.namespace, "get", "tj", "-o", "jsonpath={.items[*].status.phase}")
    wait_until("all are suspended", lambda: job.cluster.kubectl(*phases).count("Suspended") == count, every=0.5)


def wait_until_worked_on(job: PlayedJob) -> None:
    """A new job has its first pod."""
    job.create()
    wait_until("the new leader works", lambda: job.uids(), every=0.02)


@pytest.mark.parametrize(
    ("count", "limit"), [(20, math.inf), pytest.param(1000, AFTER_SIGTERM, marks=pytest.mark.slow)]
)
def test_a_leader_that_is_told_to_end_hands_over_at_once(
    pair: Pair, played: MakeJob, count: int, limit: float, record_property: Callable[[str, Any], None]
) -> None:
    leader, standby = pair.start()
    settle_suspended_jobs(played, count)
    assert pair.writes(standby) == []
    for number in range(5):
        played(f"late-{number}").create()  # It has much to do when it is told to end.
    told = time.monotonic()
    leader.stop()
    wait_until_worked_on(played("new"))
    taken = time.monotonic() - told
    record_property("seconds", taken)
    assert taken < limit
    looks = pair.looks_at_the_released_lease(leader, standby)
    assert looks < LEASE_SECONDS / LOOK_SECONDS / 3, "the lease was waited for, although it is released"
    assert "the lease is released" in leader.log.read_text()
    assert times(pair.writes(leader))[-1] < times(pair.writes(standby))[0]
    touched = {write["objectRef"].get("name", "") for write in pair.writes(standby)}
    assert [name for name in touched if name.startswith("idle")] == [], "jobs that need nothing are written"


@pytest.mark.slow
def test_a_killed_leader_is_replaced_when_its_lease_has_expired(
    pair: Pair, played: MakeJob, record_property: Callable[[str, Any], None]
) -> None:
    leader, _ = pair.start()
    settle_suspended_jobs(played, 1000)
    killed = time.monotonic()
    leader.kill()
    wait_until_worked_on(played("new"))
    taken = time.monotonic() - killed
    record_property("seconds", taken)
    assert taken < AFTER_SIGKILL


def test_a_leader_that_was_frozen_past_its_lease_ends_without_a_write(pair: Pair, played: MakeJob) -> None:
    leader, standby = pair.start()
    settle_suspended_jobs(played, 20)
    os.kill(leader.pid, signal.SIGSTOP)
    wait_until_worked_on(played("new"))
    # What it would do at once if it still led: it has heard of nothing for so long.
    played("newer").create()
    os.kill(leader.pid, signal.SIGCONT)
    assert leader.wait_for_its_end() == 1
    assert "no longer leads" in leader.log.read_text()
    assert times(pair.writes(leader))[-1] < times(pair.writes(standby))[0]


def test_a_standby_is_ready_writes_nothing_and_tells_of_no_job(pair: Pair, played: MakeJob) -> None:
    leader, standby = pair.start()
    job = played()
    job.apply()
    job.run_to_training()
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    assert standby.is_ready()
    assert leads(leader)
    assert not leads(standby)
    assert "trainingjob_phase{" in leader.metrics()
    assert "trainingjob_phase{" not in standby.metrics()
    assert pair.writes(leader) != []
    assert pair.writes(standby) == []
