"""A job and its pods, played: plans are carried out at once, pods change only when a test says so. No API server."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from trainingjob_operator.api.spec import TrainingJobSpec
from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_operator.core.decide import decide
from trainingjob_operator.core.facts import Job, PodFacts, ProgressFacts
from trainingjob_operator.core.findings import Findings
from trainingjob_operator.core.obstacle import Look, Obstacle
from trainingjob_operator.core.plan import EventFact, Plan, Settings
from trainingjob_operator.core.reported import ProgressReport, TerminationMessage

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings(trainer_image="registry.example/trainer:1")

RESULT = {
    "step": 100,
    "modelUri": "s3://models/run/model/a1",
    "reportUri": "s3://models/run/reports/a1",
    "evaluation": {"split": "test", "step": 100, "metrics": {"loss": 3.1, "confusion": [[1, 0], [0, 1]], "nan": "x"}},
}
FINISHED = {"outcome": "Finished", "result": RESULT}


def spec(**changes: Any) -> dict[str, Any]:
    """A small valid spec on the wire; top-level fields replaced by `changes`."""
    return {
        "outputUri": "s3://models/run",
        "storage": {"credentialsSecret": "s3"},
        "data": {"train": {"uri": "s3://corpus/raw.jsonl"}, "prepare": {"replicas": 2}},
        "model": {"preset": "gpt-nano"},
        "training": {"steps": 100},
        "workers": {"replicas": 2},
        **changes,
    }


def custom(**changes: Any) -> dict[str, Any]:
    """A small valid spec of kind custom."""
    task = {"kind": "custom", "custom": {"command": ["python", "train.py"]}}
    return {"task": task, "workers": {"replicas": 2}, **changes}


@dataclass
class Play:
    """State of the world: the job as the API server has it, its pods, the operator's memory, the time."""

    spec: dict[str, Any] = field(default_factory=spec)
    status: TrainingJobStatus = field(default_factory=TrainingJobStatus)
    pods: list[PodFacts] = field(default_factory=list)
    gone: dict[tuple[str, int], PodFacts] = field(default_factory=dict)
    progress: ProgressFacts = field(default_factory=ProgressFacts)
    findings: Findings = field(default_factory=Findings)
    now: datetime = START
    generation: int = 1
    deleting: bool = False
    uids: int = 0
    events: list[EventFact] = field(default_factory=list)
    statuses: list[TrainingJobStatus] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    manifests: list[dict[str, Any]] = field(default_factory=list)
    children: tuple[dict[str, Any], ...] = ()
    plan: Plan = field(default_factory=Plan)
    settings: Settings = SETTINGS
    uid: str = "job-uid"
    created_at: datetime = START

    @property
    def job(self) -> Job:
        return Job(
            name="gpt",
            namespace="research",
            uid=self.uid,
            generation=self.generation,
            resource_version=str(len(self.statuses)),
            created_at=self.created_at,
            deleting=self.deleting,
            spec=TrainingJobSpec.model_validate(self.spec),
            status=self.status,
        )

    def step(self, seconds: float = 0) -> Plan:
        """Time passes, the operator decides, its plan is carried out."""
        self.now += timedelta(seconds=seconds)
        pods = [*self.pods, *self.gone.values()]
        plan = decide(self.job, pods, self.progress, self.now, self.settings, self.findings)
        self.plan = plan
        assert plan.ensure or not plan.create_pods, "children come before pods"
        self.children = plan.ensure or self.children
        if plan.status is not None:
            # Through the wire, as the API server would give it back.
            self.status = TrainingJobStatus.model_validate(plan.status.wire())
            self.statuses.append(self.status)
            self.progress = replace(self.progress, status_written_at=self.now)
        self.events += plan.events
        for ref in plan.drop_member:
            self.change(ref.name, member=False)
        for wanted in plan.relabel:
            self.change(wanted.pod.name, member=True, mislabelled=False)
        for manifest in plan.create_pods:
            self._create(manifest)
        for ref in plan.give_up:
            queued = self.pod(ref.name).queued
            assert queued is not None
            self.given_up.append(ref.name)
            self.change(ref.name, queued=replace(queued, given_up=True))
        for pod_ref in plan.delete_pods:
            pod = self.pod(pod_ref.name)
            assert pod.uid == pod_ref.uid
            self.deleted.append(pod.name)
            if pod.finished:
                self.vanish(pod.name)
            else:
                self.change(pod.name, deleting=True, deletion_due=self.now + timedelta(seconds=120))
        return plan

    def settle(self, rounds: int = 5) -> Plan:
        """Steps without time passing until the operator wants nothing more."""
        for _ in range(rounds):
            plan = self.step()
            changes = (plan.create_pods, plan.delete_pods, plan.drop_member, plan.relabel, plan.give_up)
            if plan.status is None and not any(changes):
                return plan
        raise AssertionError(f"the operator does not come to rest: {plan}")

    def _create(self, manifest: dict[str, Any]) -> None:
        name = manifest["metadata"]["name"]
        assert name not in self.names, f"{name} is there already"
        self.uids += 1
        body = {
            **manifest,
            "metadata": {
                **manifest["metadata"],
                "uid": f"uid-{self.uids}",
                "creationTimestamp": self.now.isoformat(),
            },
        }
        created = PodFacts.from_object(body)
        self.gone.pop((created.role, created.index), None)
        self.pods.append(created)
        self.created.append(name)
        self.manifests.append(manifest)

    def pod(self, name: str) -> PodFacts:
        return next(p for p in self.pods if p.name == name)

    def change(self, name: str, **changes: Any) -> None:
        self.pods = [replace(p, **changes) if p.name == name else p for p in self.pods]

    def run_pods(self) -> None:
        """Every pending pod is started and ready."""
        for pod in self.pods:
            if pod.phase == "Pending" and not pod.deleting:
                self.change(pod.name, phase="Running", ready=True, node="node-1", ip="10.0.0.1")

    def end(self, name: str, exit_code: int | None, message: dict[str, Any] | None = None, **changes: Any) -> None:
        """The pod's container ends."""
        facts: dict[str, Any] = {
            "phase": "Succeeded" if exit_code == 0 else "Failed",
            "ready": False,
            "exit_code": exit_code,
            "reason": "Completed" if exit_code == 0 else "Error",
            "termination": None if message is None else TerminationMessage.model_validate(message),
            "finished_at": self.now,
            "ip": None,
        }
        self.change(name, **{**facts, **changes})

    def vanish(self, name: str) -> None:
        """The pod object is gone; its last state is remembered until it has a successor."""
        self.gone[self.pod(name).role, self.pod(name).index] = replace(self.pod(name), gone=True)
        self.pods = [p for p in self.pods if p.name != name]

    def refuse(self, refusal: Obstacle | None) -> None:
        """The API server refuses the job's next object, or takes it again (None)."""
        self.findings = replace(self.findings, refusal=refusal)

    def look(self, warning: tuple[str, str] | None = None) -> list[str]:
        """The events that the plan asks for are read; the names of their pods."""
        asked = self.plan.look_at
        for pod in asked:
            before = self.findings.looks.get(pod.uid)
            look = Look(self.now, before.count + 1 if before else 1, warning)
            self.findings = replace(self.findings, looks={**self.findings.looks, pod.uid: look})
        return [pod.name for pod in asked]

    def report(self, pod: str, **fields: Any) -> None:
        """The head pod answers a poll."""
        facts = self.pod(pod)
        stage = "Train" if facts.role == "train" else (self.status.stage or "Check")
        body = {"jobUid": "job-uid", "podUid": facts.uid, "stage": stage, **fields}
        report = ProgressReport.model_validate(body)
        self.progress = replace(self.progress, report=report, fetched_at=self.now, unreachable_since=None)

    def to_workers(self) -> None:
        """Check finds prepared data; the workers are created."""
        self.settle()
        self.run_pods()
        self.step(1)
        self.end(self.head(), 0, {"outcome": "Train"})
        self.step(1)

    def to_training(self) -> None:
        """Check finds prepared data; the workers run and have finished their first step."""
        self.to_workers()
        self.run_pods()
        self.step(1)
        self.train(step=1, attempt=1)
        self.settle()
        assert self.status.phase == "Running"

    def head(self) -> str:
        """Name of the current head pod."""
        role = "train" if self.status.stage == "Train" else "prepare"
        incarnation = next(m.incarnation for m in self.status.pods if (m.role, m.index) == (role, 0))
        return f"gpt-{role}-0-{incarnation}"

    def train(self, step: int, attempt: int, committed: int | None = None, resumed: int = 0, **fields: Any) -> None:
        """The head reports that it trains."""
        self.report(
            self.head(),
            attempt=attempt,
            state="Training",
            progress={"step": step, "steps": 100, "loss": 3.0, "tokensPerSecond": 100.0, "etaSeconds": 61.0},
            checkpoint=None if committed is None else {"latestStep": committed, "latestUri": "s3://models/run/c"},
            resumedFromStep=resumed,
            firstStepAt=self.now.isoformat(),
            **fields,
        )

    def condition(self, kind: str) -> str | None:
        return next((c.status for c in self.status.conditions if c.type == kind), None)

    @property
    def names(self) -> list[str]:
        return [p.name for p in self.pods]


def policy(**fields: Any) -> dict[str, Any]:
    return spec(runPolicy=fields)
