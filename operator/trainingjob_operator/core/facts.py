"""What is known about a job: typed, immutable views of API objects."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from trainingjob_operator.api.spec import GROUP, KIND, TrainingJobSpec
from trainingjob_operator.api.status import Role, TrainingJobStatus
from trainingjob_operator.core.affinity import required_elsewhere
from trainingjob_operator.core.kueue import Queued
from trainingjob_operator.core.names import (
    CONTAINER,
    LABEL_JOB_UID,
    LABEL_MEMBER,
    job_labels,
    parse_pod_name,
    place_labels,
)
from trainingjob_operator.core.reading import understood
from trainingjob_operator.core.reported import ProgressReport, TerminationMessage, last_words

logger = logging.getLogger(__name__)


def parse_time(value: str | None) -> datetime | None:
    """RFC 3339 -> aware datetime; None stays None."""
    return None if value is None else datetime.fromisoformat(value).astimezone(UTC)


@dataclass(frozen=True)
class InvalidSpec:
    """A spec that the CRD let through and the models refuse."""

    message: str


@dataclass(frozen=True)
class Job:
    """A TrainingJob."""

    name: str
    namespace: str
    uid: str
    generation: int
    resource_version: str
    created_at: datetime
    deleting: bool
    spec: TrainingJobSpec | InvalidSpec
    status: TrainingJobStatus

    @classmethod
    def from_object(cls, body: Mapping[str, Any], known: Job | None = None) -> Job:
        """View of an API object. A spec that is not valid becomes an `InvalidSpec`; no error is raised.

        known: an earlier state of it. Its spec is not validated again while the generation is the same.

        What another version of the operator wrote into the status counts as far as this one understands it.
        """
        meta = body["metadata"]
        uid, generation = meta["uid"], int(meta.get("generation", 0))
        same_spec = known is not None and (known.uid, known.generation) == (uid, generation)
        return cls(
            name=meta["name"],
            namespace=meta["namespace"],
            uid=uid,
            generation=generation,
            resource_version=meta.get("resourceVersion", ""),
            created_at=parse_time(meta.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
            deleting="deletionTimestamp" in meta,
            spec=known.spec if known is not None and same_spec else _spec(body),
            status=read_status(body.get("status") or {}),
        )


@dataclass(frozen=True)
class ProgressFacts:
    """What the operator's memory holds about a job's progress.

    report: the newest accepted report, whose job uid and pod uid fitted; None: none yet.
    fetched_at: when it came. unreachable_since: since when polls fail without a success; None: the last one succeeded.
    status_written_at: when this process last wrote the job's status; None: not yet. Spaces writes of mere progress.
    """

    report: ProgressReport | None = None
    fetched_at: datetime | None = None
    unreachable_since: datetime | None = None
    status_written_at: datetime | None = None


@dataclass(frozen=True)
class PodFacts:
    """A pod of a job, as the decision core sees it."""

    name: str
    uid: str
    resource_version: str
    job_uid: str
    role: Role
    index: int
    incarnation: int
    created_at: datetime
    node: str | None = None
    ip: str | None = None
    phase: str = "Pending"  # by the trainer's end, once it has ended
    lingering: bool = False  # the trainer has ended, while a container that somebody else put beside it runs on
    ready: bool = False
    deleting: bool = False
    deletion_due: datetime | None = None  # when the grace period of a deleted pod is over
    gone: bool = False  # the pod does not exist any more: this was its last state
    member: bool = True
    watched: bool = True  # has the label by which pods are watched: of others no event tells
    mislabelled: bool = False  # a label that tells whose pod it is, and which, was changed or removed by hand
    exit_code: int | None = None
    reason: str | None = None  # of the container's or else the pod's end: OOMKilled, Error, Evicted, ..., or a sentence
    termination: TerminationMessage | None = None
    termination_text: str = ""  # the message as it was, when it is not the agent's JSON (FallbackToLogsOnError)
    disruption: str | None = None  # reason of a true DisruptionTarget condition
    waiting_reason: str | None = None
    waiting_message: str = ""
    unschedulable: str | None = None  # message of a false PodScheduled condition
    finished_at: datetime | None = None
    memory_limit: str | None = None
    gated: bool = False  # held back by its scheduling gates, so that no scheduler has looked at it
    kept_off: bool = False  # its affinity forbids it some node
    pod_group: str | None = None  # the gang that the scheduler sees it in
    queued: Queued | None = None  # None: it is in no queue

    @property
    def waits_as_group(self) -> bool:
        """Whether the scheduler or a queue does not look at this pod alone, so that its group knows more than it."""
        return self.node is None and (self.pod_group is not None or (self.queued is not None and self.queued.gated))

    @property
    def finished(self) -> bool:
        """Whether the pod's processes have ended for good, or it can get no more: it was deleted without a node."""
        held = self.deleting and self.node is None and self.queued is not None and self.queued.held
        return self.phase in ("Succeeded", "Failed") or held

    @classmethod
    def from_object(cls, body: Mapping[str, Any]) -> PodFacts:
        """View of a job's pod. KeyError or ValueError if it is none."""
        meta, status = body["metadata"], body.get("status") or {}
        name, owner = parse_pod_name(meta["name"]), controlling_job(body)
        if name is None or owner is None:
            raise ValueError(f"pod {meta['name']} is not a TrainingJob's")
        labels = meta.get("labels") or {}
        own = job_labels(name.job, owner) | place_labels(name.role, name.index, name.incarnation)
        conditions = {c["type"]: c for c in status.get("conditions") or ()}
        containers = [c for c in status.get("containerStatuses") or () if c.get("name") == CONTAINER]
        state = containers[0].get("state") or {} if containers else {}
        ended, waiting = state.get("terminated") or {}, state.get("waiting") or {}
        text = ended.get("message") or ""
        return cls(
            name=meta["name"],
            uid=meta["uid"],
            resource_version=meta.get("resourceVersion", ""),
            job_uid=owner,
            role=name.role,
            index=name.index,
            incarnation=name.incarnation,
            created_at=parse_time(meta.get("creationTimestamp")) or datetime.fromtimestamp(0, UTC),
            node=(body.get("spec") or {}).get("nodeName"),
            ip=status.get("podIP"),
            phase=_phase(status, ended),
            lingering=bool(ended) and any("running" in (c.get("state") or {}) for c in status["containerStatuses"]),
            ready=conditions.get("Ready", {}).get("status") == "True",
            deleting="deletionTimestamp" in meta,
            deletion_due=parse_time(meta.get("deletionTimestamp")),
            member=labels.get(LABEL_MEMBER) == "true",
            watched=LABEL_JOB_UID in labels,
            mislabelled=any(labels.get(label) != value for label, value in own.items()),
            exit_code=ended.get("exitCode"),
            reason=ended.get("reason") or status.get("reason") or _before_it(status),
            termination=last_words(text),
            termination_text=text[-1024:],
            disruption=_part(conditions, "DisruptionTarget", "True", "reason"),
            waiting_reason=waiting.get("reason"),
            waiting_message=waiting.get("message") or "",
            unschedulable=_part(conditions, "PodScheduled", "False", "message"),
            finished_at=parse_time(ended.get("finishedAt")),
            memory_limit=_memory_limit(body.get("spec") or {}),
            gated=_part(conditions, "PodScheduled", "False", "reason") == "SchedulingGated",
            kept_off=required_elsewhere(body.get("spec") or {}),
            pod_group=((body.get("spec") or {}).get("schedulingGroup") or {}).get("podGroupName"),
            queued=Queued.from_pod(body),
        )


def controlling_job(body: Mapping[str, Any]) -> str | None:
    """Uid of the TrainingJob that controls an object. Labels prove nothing: anybody may set them."""
    for owner in body["metadata"].get("ownerReferences") or ():
        if owner.get("controller") and owner["kind"] == KIND and owner["apiVersion"].startswith(f"{GROUP}/"):
            return str(owner["uid"])
    return None


def _phase(status: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    """By the trainer's end, which is final (restartPolicy Never): a container that a webhook put there may run on, or
    fail when all is done. What a kubelet says of the pod as a whole comes before that."""
    if ended and not status.get("reason"):
        return "Failed" if ended.get("exitCode") else "Succeeded"
    return status.get("phase") or "Pending"


def _before_it(status: Mapping[str, Any]) -> str | None:
    """Which container has failed that a webhook put before the trainer, which then never begins."""
    for container in status.get("initContainerStatuses") or ():
        code = ((container.get("state") or {}).get("terminated") or {}).get("exitCode")
        if code:
            return f"its init container {container['name']} ended with exit code {code}"
    return None


def _part(conditions: Mapping[str, Mapping[str, Any]], name: str, status: str, part: str) -> str | None:
    """`part` of the condition `name` if it has `status`, else None."""
    condition = conditions.get(name, {})
    return str(condition.get(part) or "") if condition.get("status") == status else None


def _memory_limit(spec: Mapping[str, Any]) -> str | None:
    containers = [c for c in spec.get("containers") or () if c.get("name") == CONTAINER]
    limits = (containers[0].get("resources") or {}).get("limits") or {} if containers else {}
    return limits.get("memory")


def _spec(body: Mapping[str, Any]) -> TrainingJobSpec | InvalidSpec:
    """Fields of a newer CRD are ignored, as the API server does with those that its own does not have."""
    try:
        spec, ignored = understood(TrainingJobSpec, body.get("spec") or {}, lambda e: e["type"] == "extra_forbidden")
    except ValidationError as error:
        return InvalidSpec(_first_error(error))
    if ignored:
        meta, fields = body["metadata"], ", ".join(".".join(["spec", *map(str, path)]) for path in ignored)
        job = f"{meta['namespace']}/{meta['name']}"
        logger.warning("the CRD is newer than this operator, which ignores %s", fields, extra={"job": job})
    return spec


def read_status(value: Mapping[str, Any]) -> TrainingJobStatus:
    """What is understood of a status, whichever version wrote it.

    A stage that is not known cannot go on: then the run begins with its first one again, which finds what the run
    directory holds. A job that is done stays so, whatever the word for it is.
    """
    status, unknown = understood(TrainingJobStatus, value, lambda error: True)
    update: dict[str, Any] = {}
    if ("stage",) in unknown:
        update["resolved"] = None
    if ("phase",) in unknown:
        done = "Succeeded" if any(c.type == "Complete" and c.status == "True" for c in status.conditions) else "Failed"
        update["phase"] = done if status.completion_time is not None else "Restarting"
    return status.model_copy(update=update) if update else status


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(["spec", *(str(part) for part in first["loc"])])
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
