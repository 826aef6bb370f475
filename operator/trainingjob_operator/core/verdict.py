"""Why a run is given up: what a person reads in the end, with the failing rank's last words."""

from __future__ import annotations

from trainingjob_operator.api.status import Incident, TrainingJobStatus
from trainingjob_operator.core import restarts
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.core.failures import Failure
from trainingjob_operator.core.situation import Situation

LONGEST = 4096
LONGEST_LINE = 300


def on_pod(here: Situation, status: TrainingJobStatus, failure: Failure, incident: Incident) -> str | None:
    """Why the run is given up for the end of a pod; None: it goes on."""
    if failure.fatal:
        return _text(here, failure, incident, None)
    why = _exhausted(here, status) if failure.counted else None
    return None if why is None else _text(here, failure, incident, why)


def on_ranks(here: Situation, status: TrainingJobStatus) -> str | None:
    """Why the run is given up for ranks that failed in pods that stand; None: it goes on."""
    if status.restarts == here.job.status.restarts or not status.history:
        return None
    why = _exhausted(here, status)
    if why is None:
        return None
    newest, report = status.history[-1], here.report(status)
    told = [said for said in (report.incidents if report is not None else ()) if said.attempt == newest.attempt]
    last_words = told[0].traceback if told else ()
    return _text(here, Failure(newest.class_, newest.cause, last_words=last_words), newest, why)


def _exhausted(here: Situation, status: TrainingJobStatus) -> str | None:
    policy, max_total = here.spec.run_policy, here.settings.max_total_restarts
    progress = "a further step" if here.spec.custom else "a new checkpoint"
    return restarts.exhausted(status.restarts, policy.max_restarts, max_total, progress)


def _text(here: Situation, failure: Failure, incident: Incident, given_up: str | None) -> str:
    """Class, cause, where, what follows, next step; below it the last words, the newest of them if there are many."""
    where = _where(here, failure, incident)
    sentences = [f"{failure.class_}: {failure.cause.rstrip(' .')}" + (f" ({where})" if where else "")]
    if given_up is not None:
        sentences.append(f"The job is {given_up}")
    if failure.next_step:
        sentences.append(failure.next_step[:1].upper() + failure.next_step[1:].rstrip(" ."))
    text = ". ".join(sentences)[: LONGEST // 2] + "."
    lines = [line.rstrip()[:LONGEST_LINE] for line in failure.last_words]
    while lines and len(text) + sum(len(line) + 1 for line in lines) > LONGEST:
        lines.pop(0)
    return "\n".join([text, *lines])


def _where(here: Situation, failure: Failure, incident: Incident) -> str:
    parts = []
    if incident.rank is not None:
        pod = here.pod_of_rank(here.job.status, incident.rank)
        parts.append(f"rank {incident.rank}" + (f" in pod {pod.name}{_limit(failure, pod)}" if pod is not None else ""))
    if incident.step is not None:
        parts.append(f"step {incident.step}")
    return ", ".join(parts)


def _limit(failure: Failure, pod: PodFacts) -> str:
    if failure.class_ != "OutOfMemory" or pod.memory_limit is None:
        return ""
    return f" with a memory limit of {pod.memory_limit}"
