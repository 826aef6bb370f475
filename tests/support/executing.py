"""A job on an API server in memory and an executor whose decisions a test makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_operator.core.cache import Cache, Key
from trainingjob_operator.core.executor import Executor
from trainingjob_operator.core.facts import Job, PodFacts, ProgressFacts
from trainingjob_operator.core.findings import Findings
from trainingjob_operator.core.names import (
    LABEL_INCARNATION,
    LABEL_INDEX,
    LABEL_JOB_NAME,
    LABEL_JOB_UID,
    LABEL_MEMBER,
    LABEL_ROLE,
)
from trainingjob_operator.core.plan import EventFact, Plan, Settings
from trainingjob_operator.core.shortage import Shortage
from trainingjob_operator.kube.api import (
    TRAINING_JOBS,
)

from support.memory_api import MemoryApi, owner

NOW = datetime(2030, 1, 1, tzinfo=UTC)
KEY = Key("team", "job")
Think = Callable[[Job, Sequence[PodFacts]], Plan]


class Recorder:
    """Keeps what the executor says to progress and events."""

    def __init__(self) -> None:
        self.followed: list[str | None] = []
        self.starting: list[bool] = []
        self.forgotten: list[str] = []
        self.events: list[str] = []

    def facts(self, job_uid: str) -> ProgressFacts:
        return ProgressFacts()

    def follow(self, key: Key, job_uid: str, pod: PodFacts | None, starting: bool = False) -> None:
        self.followed.append(pod.name if pod is not None else None)
        self.starting.append(starting)

    def forget(self, job_uid: str) -> None:
        self.forgotten.append(job_uid)

    def publish(self, job: Job, event: EventFact) -> None:
        self.events.append(event.reason)


class World:
    """A job on an API server, a cache that knows it, and an executor with a decision of the test's own."""

    def __init__(self, think: Think) -> None:
        self.think = think
        self.api = MemoryApi()
        self.findings = Findings()
        self.api.put(TRAINING_JOBS, {"metadata": {"name": "job", "uid": "job-1"}, "spec": {}})
        self.start_anew()

    def start_anew(self) -> None:
        """Another operator process."""
        self.cache = Cache()
        self.woken: list[Key] = []
        self.shortage = Shortage(self.cache, self.woken.append)
        self.told = Recorder()
        self.executor = self.make_executor()
        self.api.calls.clear()
        self.see()

    def make_executor(self, ensure_interval: float = 600.0) -> Executor:
        """An executor that has forgotten everything."""
        settings = Settings("image")
        return Executor(
            self.api,
            self.cache,
            self._decide,
            lambda: settings,
            self.told,
            self.told,
            lambda: NOW,
            self.shortage,
            ensure_interval,
        )

    def _decide(
        self,
        job: Job,
        pods: Sequence[PodFacts],
        progress: ProgressFacts,
        now: datetime,
        settings: Settings,
        findings: Findings,
    ) -> Plan:
        self.findings = findings
        plan = self.think(job, pods)
        return plan if plan.create_pods or findings.children_due else replace(plan, ensure=())

    def see(self) -> None:
        """Let the cache see the job as it is, as a watch would."""
        self.cache.put_job(self.api.objects[("trainingjobs", "team", "job")])

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.api.objects[("trainingjobs", "team", "job")].get("status", {})
        return status


def pod(incarnation: int = 1, job: str = "job-1") -> dict[str, Any]:
    labels = {
        LABEL_JOB_NAME: "job",
        LABEL_JOB_UID: job,
        LABEL_ROLE: "train",
        LABEL_INDEX: "0",
        LABEL_INCARNATION: str(incarnation),
        LABEL_MEMBER: "true",
    }
    owners = [owner(job)]
    return {"metadata": {"name": f"job-train-0-{incarnation}", "labels": labels, "ownerReferences": owners}}


def child(kind: str, name: str, job: str = "job-1") -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "ownerReferences": [owner(job)]}}


def service(**spec: Any) -> dict[str, Any]:
    whole = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {LABEL_JOB_UID: "job-1"}, **spec}
    return {**child("Service", "job-tj"), "spec": whole}


CHILDREN = (child("ConfigMap", "job-tj-1"), child("Secret", "job-tj-uid"), service())


def start_one_pod(job: Job, pods: Sequence[PodFacts]) -> Plan:
    """Licenses incarnation 1, then creates it."""
    started = TrainingJobStatus(phase="Starting")
    return Plan(
        status=None if job.status == started else started,
        ensure=CHILDREN,
        create_pods=() if pods else (pod(),),
        requeue_after=7.0,
    )
