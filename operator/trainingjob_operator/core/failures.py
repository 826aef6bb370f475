"""Why a pod ended: class, cause, next step, and what follows from the class."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from trainingjob_operator.core.facts import PodFacts, TerminationMessage

# Reasons of the DisruptionTarget condition, and of pods that a kubelet or the node controller ended.
DISRUPTIONS = {
    "PreemptionByScheduler": "Preempted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
    "EvictionByEvictionAPI": "Evicted",
    "TerminationByKubelet": "Evicted",
}
POD_REASONS = {
    "Evicted": "Evicted",
    "Preempting": "Preempted",
    "NodeShutdown": "Evicted",
    "Terminated": "Evicted",
    "Shutdown": "Evicted",
    "NodeLost": "NodeLost",
    "NodeAffinity": "Rejected",
    "UnexpectedAdmissionError": "Rejected",
}
EXIT_CODES = {10: "UserError", 11: "DataError", 12: "OutOfMemory", 20: "Internal", 21: "Hang", 30: "Drained"}

# What comes from outside is not the job's fault; what the same input will cause again is not tried again.
UNCOUNTED = frozenset({"Preempted", "NodeLost", "Evicted", "Drained", "Deleted"})
FATAL = frozenset({"UserError", "DataError", "OutOfMemory"})

NEXT_STEPS = {
    "OutOfMemory": "raise the memory of the pod, or lower training.microBatchSize",
    "Hang": "look at the log of the pod for the collective that did not return",
    "Fenced": "another run writes to the same outputUri: stop it, or give this job its own",
    "Killed": "look at the node: something outside the job killed the pod's first process",
    "Crashed": "look at the log of the pod",
    "Internal": "look at the log of the pod",
    "Rejected": "look at the events of the pod: its node refused it",
}
OVERDUE = timedelta(seconds=30)


@dataclass(frozen=True)
class Failure:
    """How a pod ended that should not have ended."""

    class_: str
    cause: str
    next_step: str = ""
    step: int | None = None
    rank: int | None = None

    @property
    def counted(self) -> bool:
        return self.class_ not in UNCOUNTED

    @property
    def fatal(self) -> bool:
        return self.class_ in FATAL

    @property
    def sentence(self) -> str:
        """Class, cause and next step, for the status."""
        parts = [f"{self.class_}: {self.cause}".rstrip(" .")]
        return ". ".join([*parts, _capital(self.next_step)]) if self.next_step else parts[0] + "."


def over(pod: PodFacts, now: datetime) -> bool:
    """Whether nothing is to be waited for in this pod: it ended, or its node is gone with it."""
    if pod.finished:
        return True
    if not pod.deleting:
        return False
    node_lost = DISRUPTIONS.get(pod.disruption or "") == "NodeLost"
    return node_lost or (pod.deletion_due is not None and now > pod.deletion_due + OVERDUE)


def vanished(name: str, last: PodFacts | None) -> Failure:
    """A pod that was there and is not any more. last: the last that was seen of it, if that says how it came."""
    if last is not None and (last.phase == "Failed" or last.disruption in DISRUPTIONS):
        return classify(last)
    return Failure("Deleted", f"pod {name} was deleted")


def classify(pod: PodFacts) -> Failure:
    """Why `pod`, which is over, did not end as it should. What Kubernetes says comes before what the pod says."""
    class_ = _class(pod)
    message = pod.termination or TerminationMessage()
    said = message.class_ == class_
    return Failure(
        class_=class_,
        cause=(message.cause if said else "") or _cause(pod, class_),
        next_step=(message.next_step if said else "") or NEXT_STEPS.get(class_, ""),
        step=message.step,
        rank=message.rank,
    )


def _class(pod: PodFacts) -> str:
    if pod.disruption in DISRUPTIONS:
        return DISRUPTIONS[pod.disruption]
    if pod.exit_code is None and pod.reason in POD_REASONS:
        return POD_REASONS[pod.reason]
    if pod.exit_code is None and (pod.reason or "").startswith("OutOf"):
        return "Rejected"  # OutOfcpu and its like: the kubelet had no room when the pod arrived
    if pod.reason == "OOMKilled":
        return "OutOfMemory"
    if pod.termination is not None and pod.termination.class_ not in (None, "Drained"):
        return str(pod.termination.class_)
    if pod.deleting:
        return "Deleted"
    if pod.exit_code in EXIT_CODES:
        return EXIT_CODES[pod.exit_code]
    if pod.exit_code in (137, 143):
        return "Killed"
    return "Internal" if pod.exit_code == 0 else "Crashed"


def _cause(pod: PodFacts, class_: str) -> str:
    if class_ == "Deleted":
        return f"pod {pod.name} was deleted"
    if pod.disruption is not None or class_ == "Rejected":
        return f"pod {pod.name} on node {pod.node}: {pod.disruption or pod.reason}"
    if pod.exit_code is None:
        return f"pod {pod.name} ended: {pod.reason or pod.phase}"
    if pod.exit_code == 0:
        return f"pod {pod.name} ended without a result"
    ended = f"pod {pod.name} ended with exit code {pod.exit_code}"
    detail = pod.termination_text.strip().splitlines()[-1:] if pod.termination is None else []
    return f"{ended}: {detail[0][:300]}" if detail else ended


def _capital(text: str) -> str:
    text = text.rstrip(" .") + "."
    return text[:1].upper() + text[1:]
