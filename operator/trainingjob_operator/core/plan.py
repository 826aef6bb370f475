"""What the decision core asks for: a plan, carried out by the executor in the order of its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.findings import Claim
from trainingjob_operator.core.pod_template import NEWEST

Manifest = dict[str, Any]


@dataclass(frozen=True)
class PodRef:
    """A pod of the job's namespace; the uid is the precondition of every write to it."""

    name: str
    uid: str


@dataclass(frozen=True)
class Relabel:
    """The labels that a pod should have."""

    pod: PodRef
    labels: dict[str, str]


@dataclass(frozen=True)
class ObjectRef:
    """A child in the job's namespace, to be deleted if it is there."""

    kind: Literal["Service", "ConfigMap", "PodGroup"]
    name: str


@dataclass(frozen=True)
class EventFact:
    """An event about the job."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What is to be done for one job now. An empty plan changes nothing.

    confirm_gone: pods that the status gives up because nothing is seen of them: each is read before. One that is there
        after all has lost the label by which pods are watched: it gets it back, and the rest of the plan is void.
    status: the whole new status, written before anything else; None: unchanged. If the write fails, nothing of the
        rest is done and the job is decided again.
    delete_pods: graceful, with uid precondition. They come before new pods, which may need their place in a quota.
    give_up: pods that tell Kueue that their group is over when its pods have ended.
    delete_children: objects that go with the TTL.
    drop_member: pods to take out of the Service (label `trainingjob.io/member` removed) before a successor comes.
    ensure: ConfigMap, Secret, Service, PodGroup; created when missing, left alone when there (only a PodGroup follows
        the job). Given with `create_pods`, before which it is done, and otherwise when the findings say that it is due
        (they are costly to make). The Secret comes without its data: the executor puts a random `token` in.
    create_pods: licensed by the status that this plan writes or was decided on.
    relabel: pods whose labels were changed or removed by hand: put right at once the first time, then now and then.
    events: sent only after the status was written, at most once each.
    requeue_after: seconds after which to decide again at the latest; None: only when something happens.
    wants_progress: the head pod whose `/progress` is to be polled; None: nobody's.
    claim: what the job holds without being able to run.
    look_at: pending pods whose events are to be read, because their own status does not say why.
    """

    confirm_gone: tuple[Relabel, ...] = ()
    status: TrainingJobStatus | None = None
    delete_pods: tuple[PodRef, ...] = ()
    give_up: tuple[PodRef, ...] = ()
    delete_children: tuple[ObjectRef, ...] = ()
    drop_member: tuple[PodRef, ...] = ()
    ensure: tuple[Manifest, ...] = ()
    create_pods: tuple[Manifest, ...] = ()
    relabel: tuple[Relabel, ...] = ()
    events: tuple[EventFact, ...] = ()
    requeue_after: float | None = None
    wants_progress: PodFacts | None = None
    claim: Claim | None = None
    look_at: tuple[PodFacts, ...] = ()


@dataclass(frozen=True)
class Settings:
    """The operator's configuration, as far as decisions depend on it."""

    trainer_image: str
    progress_interval: float = 15.0  # seconds between two status writes that only carry progress
    unreachable_after: float = 60.0  # seconds until a silent head is reported as ProgressUnknown
    template_version: int = NEWEST  # of the pods of new runs
    max_total_restarts: int = 100
    pod_groups: bool = False  # the API server serves PodGroups: new runs are scheduled as gangs
