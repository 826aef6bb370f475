"""Why a pod ended: class, cause, next step, and what follows from the class."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.reported import TerminationMessage

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
UNCOUNTED = frozenset({"Preempted", "NodeLost", "Evicted", "Drained", "Deleted", "Resized"})
FATAL = frozenset({"UserError", "DataError", "OutOfMemory"})

NEXT_STEPS = {
    "OutOfMemory": "lower spec.training.microBatchSize or raise spec.workers.resources.memory, in a new TrainingJob "
    "with the same outputUri, which goes on from the last checkpoint",
    "Hang": "look at the log of the pod for the collective that did not return",
    "Fenced": "another run writes to the same outputUri: stop it, or give this job its own",
    "Killed": "look at the node: something outside the job killed the pod's first process",
    "Crashed": "look at the log of the pod",
    "Internal": "look at the log of the pod",
    "Rejected": "look at the events of the pod: its node refused it",
}
KILLED = (137, 143)  # by SIGKILL, SIGTERM
OVERDUE = timedelta(seconds=30)
LAST_WORDS = 7  # lines of a log


@dataclass(frozen=True)
class Failure:
    """How a pod ended that should not have ended. cause: a sentence; last_words: the end of a traceback or log."""

    class_: str
    cause: str
    next_step: str = ""
    step: int | None = None
    rank: int | None = None
    last_words: tuple[str, ...] = ()

    @property
    def counted(self) -> bool:
        return self.class_ not in UNCOUNTED

    @property
    def fatal(self) -> bool:
        return self.class_ in FATAL


def over(pod: PodFacts, now: datetime) -> bool:
    """Whether nothing is to be waited for in this pod: it ended, or its node is gone with it."""
    if pod.finished:
        return True
    if not pod.deleting:
        return False
    node_lost = DISRUPTIONS.get(pod.disruption or "") == "NodeLost"
    return node_lost or (pod.deletion_due is not None and now > pod.deletion_due + OVERDUE)


def vanished(name: str, last: PodFacts | None, ranks: str) -> Failure:
    """A pod that was there and is not any more. last: the last that was seen of it, if that says how it came."""
    if last is not None and (last.phase == "Failed" or last.disruption in DISRUPTIONS):
        return classify(last, ranks)
    return Failure("Deleted", f"pod {name} was deleted")


def classify(pod: PodFacts, ranks: str) -> Failure:
    """Why `pod`, which is over, did not end as it should. What Kubernetes says comes before what the pod says.

    ranks: those of the pod, in words; empty: it has none.
    """
    class_ = _class(pod)
    message = pod.termination or TerminationMessage()
    said = message if message.class_ == class_ else TerminationMessage()
    return Failure(
        class_=class_,
        cause=said.sentence or (_out_of_memory(pod, ranks) if class_ == "OutOfMemory" else _cause(pod, class_)),
        next_step=said.next_step or _next_step(pod, class_),
        step=message.step,
        rank=message.rank,
        last_words=said.traceback or _log(pod)[-LAST_WORDS:],
    )


def _next_step(pod: PodFacts, class_: str) -> str:
    if class_ == "OutOfMemory" and pod.role == "prepare":
        return "raise spec.data.prepare.memory in a new TrainingJob with the same outputUri"
    return NEXT_STEPS.get(class_, "")


def _out_of_memory(pod: PodFacts, ranks: str) -> str:
    who = f"pod {pod.name}" + (f" ({ranks})" if ranks else "")
    return f"{who} used more than its memory limit of {pod.memory_limit}" if pod.memory_limit else f"{who} is too large"


def _log(pod: PodFacts) -> tuple[str, ...]:
    """The end of the log, which a kubelet gives for a message. What a killed process logged last is not why it died."""
    if pod.termination is not None or pod.exit_code in KILLED:
        return ()
    return tuple(pod.termination_text.strip().splitlines())


def _class(pod: PodFacts) -> str:
    if pod.disruption in DISRUPTIONS:
        return DISRUPTIONS[pod.disruption]
    if pod.exit_code is None and pod.reason in POD_REASONS:
        return POD_REASONS[pod.reason]
    if pod.exit_code is None and (pod.reason or "").startswith("OutOf"):
        return "Rejected"  # OutOfcpu and its like: the kubelet had no room when the pod arrived
    if pod.reason == "OOMKilled":
        return "OutOfMemory"
    if pod.termination is not None and pod.termination.class_ not in (None, "Drained", "Resized"):
        return str(pod.termination.class_)
    if pod.deleting:
        return "Deleted"
    if pod.exit_code in EXIT_CODES:
        return EXIT_CODES[pod.exit_code]
    if pod.exit_code in KILLED:
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
    detail = _log(pod)[-1:]
    return f"{ended}: {detail[0].strip()[:300]}" if detail else ended
