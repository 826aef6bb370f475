"""What keeps a job's pods from being created or from running, although nothing is wrong with the run.

Each obstacle says who is waited for. What the cluster or somebody else's deed may bring at any moment (room, quota, a
registry, a Secret that another controller is about to make) leaves the job Reconciling: tools that wait for it go on
waiting, and `runPolicy.startDeadlineSeconds` bounds that. What stays as it is until a person changes something makes it
Stalled. Both go away by themselves with their cause.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from trainingjob_operator.api.status import TrainingJobStatus
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.names import parse_pod_name
from trainingjob_operator.kube.api import ApiError, Forbidden, Invalid

LONGEST_REASON = 1024
MISSING = ("not found", "couldn't find key", "references non-existent")
# Of what the scheduler says only why there is no room, not what preemption would bring (or that it was no use to ask).
_PREEMPTION = re.compile(r"([.,]? *(no new claims to deallocate, |pod group )?preemption: .*|\. not found)$", re.DOTALL)
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "[^"]*" not found')
BUSY_SCHEDULER = timedelta(seconds=90)  # a scheduler with many pods before it may take that long to say a word
_IS_FORBIDDEN = re.compile(r'^\S+ "[^"]*" is (forbidden|invalid): ')
_LACKS_A_RIGHT = re.compile(r" cannot \w+ resource ")
_BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*": \w+: ')


@dataclass(frozen=True)
class Obstacle:
    """Something in the way.

    reason: one CamelCase word of a fixed list (docs/events.md). message: a sentence in the words of whoever refuses,
    with what to do. room: room or quota is lacking, so that a job with no pod in place is Queued. stalled: nothing
    but a person's deed removes it.
    """

    reason: str
    message: str
    room: bool = False
    stalled: bool = False


@dataclass(frozen=True)
class Look:
    """What the events of a pod said, or the group that it waits in. at: when they were read; count: how often so far;
    warning: the newest event, if it is a warning, or the group's condition, as reason and message."""

    at: datetime
    count: int
    warning: tuple[str, str] | None = None


REASONS: Mapping[str, tuple[bool, bool]] = {
    "Unschedulable": (True, False),
    "AwaitingAdmission": (True, False),
    "GaveWay": (True, False),
    "QuotaExceeded": (True, False),
    "QuotaTooSmall": (True, True),
    "ImagePull": (False, False),
    "MissingReference": (False, False),
    "PodNotStarted": (False, False),
    "CreateRefused": (False, True),
    "DeleteRefused": (False, True),
    "NameTaken": (False, True),
    "SpecNotUnderstood": (False, True),
}
"""Every reason, with `room` and `stalled`."""


def _obstacle(reason: str, what: str, why: str, next_step: str) -> Obstacle:
    room, stalled = REASONS[reason]
    return Obstacle(reason, f"{what}: {why.strip(' .')[:LONGEST_REASON]}; {next_step}.", room, stalled)


def told(status: TrainingJobStatus) -> Obstacle | None:
    """The obstacle that `status` tells of."""
    for condition in status.conditions:
        holds = condition.type in ("Ready", "Reconciling", "Stalled", "CleanupRefused") and condition.status == "True"
        if holds and condition.reason in REASONS:
            return Obstacle(condition.reason, condition.message, *REASONS[condition.reason])
    return None


def foreign(kind: str, name: str) -> Obstacle:
    """An object of this name exists and is not the job's own; it is never touched."""
    room, stalled = REASONS["NameTaken"]
    said = f"{kind} {name} exists and does not belong to this job: delete or rename it, or give the job another name."
    return Obstacle("NameTaken", said, room, stalled)


def not_understood(what: str) -> Obstacle:
    """The CRD has let a spec through that this operator cannot read."""
    next_step = "create a new TrainingJob with a valid spec, or, if the CRD is of a newer version, upgrade the operator"
    return _obstacle("SpecNotUnderstood", "This operator cannot read the job and leaves it as it is", what, next_step)


def refused(kind: str, name: str, error: ApiError, deed: str = "created") -> Obstacle | None:
    """Why the API server refuses that an object is created, changed or deleted; None when it did not refuse it for what
    it is."""
    why = _IS_FORBIDDEN.sub("", error.message)
    what = f"{kind} {name} cannot be {deed}"
    if "failed calling webhook" in why:
        reason = "DeleteRefused" if deed == "deleted" else "PodNotStarted"
        return _obstacle(reason, what, why, "the webhook must answer again")
    if not (isinstance(error, Forbidden | Invalid) or error.status == 400):
        return None
    if "exceeded quota" in why or "status unknown for quota" in why:
        next_step = "it waits until others have ended; ask for less, or have the quota raised"
        return _obstacle("QuotaExceeded", what, why, next_step)
    if "serviceaccount" in why and "not found" in why:
        next_step = "create the ServiceAccount, or correct spec.storage.serviceAccountName"
        return _obstacle("MissingReference", what, why, next_step)
    if "no PriorityClass with name" in why or ("RuntimeClass" in why and "not found" in why):
        next_step = "create it; or suspend the job, correct spec.workers.template, and resume it"
        return _obstacle("MissingReference", what, why, next_step)
    if _LACKS_A_RIGHT.search(why):
        next_step = "give the operator's account this right: the role in its Helm chart has it"
    elif deed == "created":
        place = parse_pod_name(name)
        part = (
            "spec.workers" if place is None or place.role == "train" else "spec.workers.template or spec.data.prepare"
        )
        next_step = f"have the policy changed; or suspend the job, correct {part}, and resume it"
    else:
        next_step = "have the policy changed"
    return _obstacle("DeleteRefused" if deed == "deleted" else "CreateRefused", what, why, next_step)


def quota_too_small(quota: str, resource: str, each: str, most: str, pods: int) -> Obstacle:
    """However long it waits: so many pods of which each needs so much never fit."""
    amount = f"{resource}={each}"
    need = f"the pod needs {amount}" if pods == 1 else f"{pods} pods must run together and need {amount} each"
    why = f"{need}, of which it allows {most} in all"
    return _obstacle("QuotaTooSmall", f"Quota {quota} is too small", why, "ask for less, or have the quota raised")


def of_pod(pod: PodFacts, look: Look | None) -> Obstacle | None:
    """What keeps a pending pod from running, as scheduler and kubelet say it in its status, or else in its events."""
    if pod.phase != "Pending" or pod.deleting:
        return None
    if pod.queued is not None and pod.queued.gated:
        why = look.warning[1] if look is not None and look.warning is not None else "its turn has not come"
        what = f"Group {pod.queued.group} waits for its admission by Kueue"
        return _obstacle("AwaitingAdmission", what, why, "it starts by itself when the queue has room")
    if pod.unschedulable is not None:
        return _unschedulable(pod, look.warning[1] if look and look.warning else pod.unschedulable)
    if pod.waiting_reason is not None and pod.waiting_reason in _WAITING:
        return _waiting(pod, pod.waiting_reason)
    if look is not None and look.warning is not None:
        return _warned(pod, *look.warning)
    if look is not None and pod.node is None and look.at - pod.created_at >= BUSY_SCHEDULER:
        next_step = "see that it runs, or suspend the job, correct spec.workers.template.schedulerName, and resume it"
        why = f"its scheduler has said nothing of it since {pod.created_at:%H:%M:%S} UTC"
        return _obstacle("Unschedulable", f"Pod {pod.name} finds no node", why, next_step)
    return None


def _unschedulable(pod: PodFacts, said: str) -> Obstacle:
    what, why = f"Pod {pod.name} finds no node", _PREEMPTION.sub("", said) or "the scheduler gives no reason"
    if _MISSING_CLAIM.search(why):
        return _obstacle("MissingReference", what, why, "create what is missing")
    less = "spec.workers.resources, nodeSelector" if pod.role == "train" else "spec.data.prepare"
    next_step = f"ask for less ({less}), or add nodes"
    if "untolerated taint" in why:
        next_step = f"tolerate the taint (spec.workers.template.tolerations), {next_step}"
    elif "unbound immediate PersistentVolumeClaims" in why:
        next_step = "look at the claim's events for what keeps it from being bound"
    elif pod.gated:
        next_step = "whoever has put a scheduling gate on it must lift that"
    return _obstacle("Unschedulable", what, why, next_step)


def gave_way(until: datetime) -> Obstacle:
    """The job has let an older one have what it held."""
    what = "The pods gave their nodes or their quota to an older job that could not start without"
    return _obstacle("GaveWay", what, f"they are tried again at {until:%H:%M:%S} UTC", "add nodes or quota to run both")


# Reasons of waiting containers that people have to do something about.
_WAITING: Mapping[str, tuple[str, str]] = {
    "ErrImagePull": ("ImagePull", "check spec.image and the pull secrets"),
    "ImagePullBackOff": ("ImagePull", "check spec.image and the pull secrets"),
    "InvalidImageName": ("ImagePull", "suspend the job, correct spec.image, and resume it"),
    "ErrImageNeverPull": ("ImagePull", "put the image on the node, or change workers.template.imagePullPolicy"),
    "CreateContainerConfigError": ("PodNotStarted", "suspend the job, correct the image or the pod, and resume it"),
    "CreateContainerError": ("PodNotStarted", "look at the events of the pod"),
    "RunContainerError": ("PodNotStarted", "look at the events of the pod"),
}


def _waiting(pod: PodFacts, kubelets: str) -> Obstacle:
    reason, next_step = _WAITING[kubelets]
    # A kubelet goes to and fro between trying and backing off: the cause is the same.
    why = _BACK_OFF.sub("", pod.waiting_message) or kubelets
    if any(sign in why for sign in MISSING) and reason == "PodNotStarted":
        return _missing(pod, why)
    return _obstacle(reason, f"Pod {pod.name} cannot start", f"{_class(kubelets)}{why}", next_step)


def _class(kubelets: str) -> str:
    return "the image cannot be pulled: " if kubelets in ("ErrImagePull", "ImagePullBackOff") else f"{kubelets}: "


def _warned(pod: PodFacts, reason: str, message: str) -> Obstacle:
    if any(sign in message for sign in MISSING):
        return _missing(pod, message)
    next_step = "look at the events of the pod and at its node"
    return _obstacle("PodNotStarted", f"Pod {pod.name} cannot start", f"{reason}: {message}", next_step)


def _missing(pod: PodFacts, why: str) -> Obstacle:
    return _obstacle("MissingReference", f"Pod {pod.name} cannot start", why, "create what is missing")


def newest_warning(events: list[dict[str, Any]]) -> tuple[str, str] | None:
    """Reason and message of the newest of a pod's events if it is a warning: an older one is overcome."""
    if not events:
        return None
    newest = max(events, key=lambda event: (_time(event), event.get("type") == "Warning"))
    if newest.get("type") != "Warning":
        return None
    return str(newest.get("reason") or "Unknown"), str(newest.get("message") or "")


def unmet(group: Mapping[str, Any], condition: str) -> tuple[str, str] | None:
    """Reason and message of a group's condition that does not hold."""
    conditions = (group.get("status") or {}).get("conditions") or ()
    found = [c for c in conditions if c["type"] == condition and c["status"] != "True"]
    return (str(found[0].get("reason") or "Unknown"), str(found[0].get("message") or "")) if found else None


def _time(event: Mapping[str, Any]) -> str:
    """When it last happened, to the second: kubelets give whole seconds, schedulers microseconds."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((str(time)[:19] for time in times if time), "")
