"""Carries plans out: reads the cache, lets the plan be decided, and makes the writes in the order that keeps it safe.

The status goes first, with resourceVersion: what is counted is written before it is acted on. Pods come and go only for
a job whose state this process has written or read by a quorum GET, and of which it has read the pods, if it is not a
new one; else both are read first and decided on again: a POST has no precondition, and a stale one would bring a
deleted pod back.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from trainingjob_operator.kube.api import (
    EVENTS,
    POD_GROUPS,
    PODS,
    TRAINING_JOBS,
    WORKLOADS,
    AlreadyExists,
    Api,
    ApiError,
    Conflict,
    Manifest,
    NotFound,
    Resource,
    Unreachable,
)

from .cache import Cache, Key
from .children import Children
from .facts import Job, PodFacts, ProgressFacts, controlling_job
from .findings import Claim, Findings
from .kueue import GROUP, RETRIABLE
from .labels import LabelRepair
from .names import LABEL_JOB_UID, LABEL_MEMBER
from .obstacle import Look, Obstacle, foreign, newest_warning, told, unmet
from .plan import EventFact, Plan, PodRef, Settings
from .queue import Retry, ServerTrouble
from .queueing import to_give_up
from .quota import alike
from .shortage import Shortage
from .turns import Turns
from .writing import Obstructed, about, each, explained, patch_pod, unless_gone

DECISIONS_PER_RUN = 6
"""A job that still asks for another decision after so many waits for its turn again."""
SERVER_IN_TROUBLE = (0, 429, 502, 503, 504)
"""Answers that are not about the request: none at all, too many, a gateway's. A 500 may well be: a webhook's."""

BETWEEN_LOOKS = timedelta(seconds=1)
"""Between two jobs' looks at events: each reads all events of a namespace, and of many jobs that start many wait."""

logger = logging.getLogger(__name__)

Decide = Callable[[Job, Sequence[PodFacts], ProgressFacts, datetime, Settings, Findings], Plan]


class ProgressSource(Protocol):
    """Who knows the trainers' reports."""

    def facts(self, job_uid: str) -> ProgressFacts:
        """What is known now."""

    def follow(self, key: Key, job_uid: str, pod: PodFacts | None, starting: bool = False) -> None:
        """Poll this pod for the job from now on; None: nobody. starting: it has none yet, and its status changes."""

    def forget(self, job_uid: str) -> None:
        """The job is gone."""


class EventSink(Protocol):
    """Who tells events to Kubernetes."""

    def publish(self, job: Job, event: EventFact) -> None:
        """Tell it, once, when there is time."""


@dataclass
class _Memory:
    """What the executor remembers of one job in this process."""

    uid: str
    licence: str = ""
    """resourceVersion at which this process wrote the job's status, or read the job and its pods from the quorum; none
    before it has read them, unless the job is new."""
    written_at: datetime | None = None
    """When this process last wrote the job's status."""
    refusal: Obstacle | None = None
    looks: dict[str, Look] = field(default_factory=dict)
    """What the events of pending pods said, by the pods' uids."""


class _DecideAgain(Exception):
    """What the plan was made of is outdated."""


class Executor:
    """Brings jobs to the state that `decide` wants, one call of `reconcile` at a time for each job."""

    def __init__(
        self,
        api: Api,
        cache: Cache,
        decide: Decide,
        settings: Callable[[], Settings],
        progress: ProgressSource,
        events: EventSink,
        now: Callable[[], datetime],
        shortage: Shortage,
        ensure_interval: float = 600.0,
    ) -> None:
        self._api = api
        self._cache = cache
        self._decide = decide
        self._settings = settings
        self._progress = progress
        self._events = events
        self._now = now
        self._children = Children(api, cache, ensure_interval)
        self._labels = LabelRepair(api, cache)
        self._memories: dict[Key, _Memory] = {}
        self._claims: dict[str, Claim] = {}
        """Jobs that hold nodes without being able to run, by uid."""
        self._turns = Turns(BETWEEN_LOOKS)
        self._shortage = shortage

    async def reconcile(self, key: Key) -> float | None:
        """Decide and act for one job. Returns after how many seconds to do so again at the latest.

        Raises `Retry` when the API server does not let it.
        """
        try:
            for _ in range(DECISIONS_PER_RUN):
                try:
                    return await self._reconcile_once(key)
                except _DecideAgain as why:
                    logger.debug("decide again: %s", why, extra={"job": str(key)})
            return 1.0
        except Obstructed as obstructed:
            raise Retry(obstructed.obstacle.message) from None
        except ApiError as error:
            if error.status in SERVER_IN_TROUBLE:
                raise ServerTrouble(str(error), error.retry_after) from error
            raise Retry(str(error)) from error

    async def _reconcile_once(self, key: Key) -> float | None:
        job, memory = self._cache.job(key), self._memories.get(key)
        here = job.uid if job is not None and not job.deleting else None
        for uid in {known.uid for known in (memory, job) if known is not None} - {here}:
            await self._let_go(key, uid)
        if memory is not None and memory.uid != here:
            self._forget(key)
            memory = None
        if job is None or here is None:
            return None
        if memory is None:
            # What the process before told of stands until this one has tried: a restart is no news.
            memory = self._memories[key] = _Memory(job.uid, refusal=told(job.status))
        await self._labels.look(job)
        plan = self._think(job, memory)
        labels_wait = self._labels.wait(job) if plan.relabel else None
        async with self._telling(key, job, plan, memory):
            if await self._labels.found(job, plan.confirm_gone):
                return self._labels.wait(job)
        if (plan.create_pods or plan.delete_pods) and not self._licensed(job, plan, memory):
            await self._read_quorum(job, memory)
            raise _DecideAgain("pods come and go only for a job that was read or written by this process")
        if plan.status is not None:
            await self._write_status(job, plan.status, plan.events, memory)
        starting = plan.wants_progress is None and (plan.status or job.status).phase == "Starting"
        self._progress.follow(key, job.uid, plan.wants_progress, starting)
        async with self._telling(key, job, plan, memory):
            await self._act(job, plan, memory)
        if any(
            m["metadata"]["labels"].get(GROUP) or m.get("spec", {}).get("schedulingGroup") for m in plan.create_pods
        ):
            raise _DecideAgain("pods that wait as a group may wait from the start: no event will tell")
        looks_wait = self._looks_wait(job, plan.look_at)
        if looks_wait == 0:
            for pod in plan.look_at:
                await self._look(job, pod, memory)
        if memory.refusal is not None or looks_wait == 0:
            memory.refusal = None
            self._shortage.over(key)
            raise _DecideAgain("what is in the way is known better")
        return min((w for w in (plan.requeue_after, labels_wait, looks_wait) if w is not None), default=None)

    def _licensed(self, job: Job, plan: Plan, memory: _Memory) -> bool:
        """Whether pods may come and go, once the plan's status is written, if it has one."""
        return _pods_known(job, memory) if plan.status is not None else memory.licence == job.resource_version

    def _think(self, job: Job, memory: _Memory) -> Plan:
        pods = [*self._cache.pods(job.uid), *self._cache.gone_pods(job.uid)]
        pending = {pod.uid for pod in pods if pod.phase == "Pending"}
        memory.looks = {uid: look for uid, look in memory.looks.items() if uid in pending}
        progress = replace(self._progress.facts(job.uid), status_written_at=memory.written_at)
        there = ("", job.namespace)
        rivals = tuple(c for uid, c in self._claims.items() if uid != job.uid and c.quota in there)
        findings = Findings(memory.refusal, memory.looks, rivals, self._children.due(job.uid))
        plan = self._decide(job, pods, progress, self._now(), self._settings(), findings)
        self._claims.pop(job.uid, None)
        if plan.claim is not None:
            self._claims[job.uid] = plan.claim
        return plan

    def _looks_wait(self, job: Job, pods: Sequence[PodFacts]) -> float | None:
        """Seconds until these pods may be looked at, 0 being now; None if there are none."""
        if any(_group(pod) is None for pod in pods):
            return self._turns.wait(job.uid, self._now())
        self._turns.leave(job.uid)
        return 0.0 if pods else None

    async def _look(self, job: Job, pod: PodFacts, memory: _Memory) -> None:
        """Ask why a pod waits. If that fails, the next look may do better: nothing depends on it but a message."""
        warning = None
        try:
            warning = await self._why(job, pod)
        except NotFound:
            self._children.distrust(job.uid)  # A PodGroup that somebody deleted is made again.
        except ApiError as error:
            logger.warning("cannot find out why pod %s waits: %s", pod.name, error, extra=about(job))
        before = memory.looks.get(pod.uid)
        memory.looks[pod.uid] = Look(self._now(), before.count + 1 if before is not None else 1, warning)

    async def _why(self, job: Job, pod: PodFacts) -> tuple[str, str] | None:
        """What the events of a pod say, or the group that it waits in."""
        group = _group(pod)
        if group is not None:
            resource, name, condition = group
            return unmet(await self._api.get(resource, job.namespace, name), condition)
        found = await self._api.list(EVENTS, job.namespace, field_selector=f"involvedObject.uid={pod.uid}")
        return newest_warning(found.items)

    def remember(self, key: Key, job_uid: str) -> None:
        """A job that went while no operator was there has left pods: the next `reconcile` lets go of them."""
        self._memories.setdefault(key, _Memory(job_uid))

    async def _let_go(self, key: Key, job_uid: str) -> None:
        """Give up the groups in the queue of a job that is going or gone: else their pods would stay for ever."""
        pods = to_give_up(self._cache.pods(job_uid), None)
        await each(self._give_up(key.namespace, PodRef(pod.name, pod.uid)) for pod in pods)

    def _forget(self, key: Key) -> None:
        memory = self._memories.pop(key, None)
        if memory is not None:
            self._progress.forget(memory.uid)
            self._claims.pop(memory.uid, None)
            self._labels.forget(memory.uid)
            self._turns.leave(memory.uid)
            self._shortage.forget(key)
            self._children.forget(memory.uid)

    # Status

    async def _write_status(self, job: Job, status: Any, events: Sequence[EventFact], memory: _Memory) -> None:
        """Write it, and tell the events that come with it: no later decision will."""
        body = {
            "apiVersion": TRAINING_JOBS.api_version,
            "kind": TRAINING_JOBS.kind,
            "metadata": {
                "name": job.name,
                "namespace": job.namespace,
                "uid": job.uid,
                "resourceVersion": job.resource_version,
            },
            "status": status.wire(),
        }
        try:
            answer = await self._api.put_status(TRAINING_JOBS, job.namespace, job.name, body)
        except (Conflict, NotFound) as error:
            await self._read_quorum(job, memory)  # If the job is older than it was thought to be, so are its pods.
            raise _DecideAgain(str(error)) from error
        self._cache.put_job(answer)
        if _pods_known(job, memory):
            memory.licence = answer["metadata"]["resourceVersion"]
        memory.written_at = self._now()
        for event in events:
            self._events.publish(job, event)

    async def _read_job(self, job: Job) -> Manifest | None:
        """Quorum GET into the cache; None if this job (by uid) does not exist any more."""
        try:
            answer = await self._api.get(TRAINING_JOBS, job.namespace, job.name)
        except NotFound:
            answer = {"metadata": {"uid": ""}}
        if answer["metadata"]["uid"] == job.uid:
            self._cache.put_job(answer)
            return answer
        self._cache.remove_job({"metadata": {"namespace": job.namespace, "name": job.name, "uid": job.uid}})
        if answer["metadata"]["uid"]:
            self._cache.put_job(answer)
        return None

    async def _read_quorum(self, job: Job, memory: _Memory) -> None:
        answer = await self._read_job(job)
        if answer is None:
            return
        pods = await self._api.list(PODS, job.namespace, f"{LABEL_JOB_UID}={job.uid}")
        for pod in pods.items:
            self._cache.put_pod(pod)
        uids = {pod["metadata"]["uid"] for pod in pods.items}
        self._cache.retain_pods(job.namespace, uids, pods.resource_version, job.uid)
        memory.licence = answer["metadata"]["resourceVersion"]

    @asynccontextmanager
    async def _telling(self, key: Key, job: Job, plan: Plan, memory: _Memory) -> AsyncIterator[None]:
        """What is refused within is said in the status, once; nothing else of that decision is done."""
        try:
            yield
        except Obstructed as obstructed:
            self._shortage.refused(key, obstructed.obstacle)
            if not alike(memory.refusal, obstructed.obstacle):
                memory.refusal = obstructed.obstacle
                await self._say(key, job, memory)
            raise Retry(obstructed.obstacle.message, within=plan.requeue_after) from None

    async def _say(self, key: Key, job: Job, memory: _Memory) -> None:
        current = self._cache.job(key)
        if current is None or current.uid != job.uid or current.deleting:
            return
        plan = self._think(current, memory)
        if plan.status is not None and not plan.confirm_gone:
            await self._write_status(current, plan.status, plan.events, memory)

    # Everything else

    async def _act(self, job: Job, plan: Plan, memory: _Memory) -> None:
        ending = [
            *(self._delete_pod(job, pod) for pod in plan.delete_pods),
            *(self._give_up(job.namespace, pod) for pod in plan.give_up),
            *(self._children.delete(job, child) for child in plan.delete_children),
        ]
        await each(ending)
        await each(self._drop_member(job, pod) for pod in plan.drop_member)
        await self._children.ensure(job, plan.ensure, bool(plan.create_pods))
        try:
            await each((self._create_pod(job, manifest) for manifest in plan.create_pods), until_refused=True)
        except Unreachable:
            memory.licence = ""  # The request may still be on its way: look before asking again.
            raise
        await self._labels.put_right(job, plan.relabel)

    async def _create_pod(self, job: Job, manifest: Manifest) -> None:
        name = manifest["metadata"]["name"]
        try:
            with explained("Pod", name):
                answer = await self._api.create(PODS, job.namespace, manifest)
        except AlreadyExists:
            answer = await self._api.get(PODS, job.namespace, name)
            if controlling_job(answer) != job.uid:
                raise Obstructed(foreign("Pod", name)) from None
        self._cache.put_pod(answer)

    async def _drop_member(self, job: Job, pod: PodRef) -> None:
        await patch_pod(self._api, self._cache, job.namespace, pod, {"labels": {LABEL_MEMBER: None}})

    async def _give_up(self, namespace: str, pod: PodRef) -> None:
        await patch_pod(self._api, self._cache, namespace, pod, {"annotations": {RETRIABLE: "false"}})

    async def _delete_pod(self, job: Job, pod: PodRef) -> None:
        with explained("Pod", pod.name, "deleted"):
            async with unless_gone(self._api, self._cache, job.namespace, pod):
                answer = await self._api.delete(PODS, job.namespace, pod.name, pod.uid)
                if answer.get("kind") == PODS.kind:
                    self._cache.put_pod(answer)


def _pods_known(job: Job, memory: _Memory) -> bool:
    """Whether this process has read the job's pods; one of which no status was ever written has none."""
    return bool(memory.licence) or job.status.phase is None


def _group(pod: PodFacts) -> tuple[Resource, str, str] | None:
    """The group whose condition says why a pod waits: its kind, its name, and which condition."""
    if pod.queued is not None and pod.queued.gated:
        return WORKLOADS, pod.queued.group, "QuotaReserved"
    if pod.waits_as_group and pod.pod_group is not None:
        return POD_GROUPS, pod.pod_group, "PodGroupInitiallyScheduled"
    return None
