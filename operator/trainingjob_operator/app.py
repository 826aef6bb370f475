"""One operator: its parts, wired, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import uuid
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from trainingjob_operator.core.cache import Cache, Key
from trainingjob_operator.core.decide import decide
from trainingjob_operator.core.executor import Executor
from trainingjob_operator.core.facts import Job
from trainingjob_operator.core.names import LABEL_JOB_UID
from trainingjob_operator.core.plan import Settings
from trainingjob_operator.core.queue import WorkQueue
from trainingjob_operator.core.shortage import Shortage
from trainingjob_operator.jobwatch import watch_jobs
from trainingjob_operator.kube.api import POD_GROUPS, PODS, TRAINING_JOBS, ApiError, Forbidden
from trainingjob_operator.kube.client import Client, allow
from trainingjob_operator.kube.connection import Connection, ConnectionProblem, connect
from trainingjob_operator.kube.informer import BeginAnew, Informer, take_all
from trainingjob_operator.kube.lease import REQUEST_TIMEOUT_SECONDS, LeaderElection
from trainingjob_operator.kube.preflight import StartProblem, check, missing_rights
from trainingjob_operator.observe.events import EventRecorder
from trainingjob_operator.observe.jobs import JobMetrics
from trainingjob_operator.observe.metrics import OperatorMetrics
from trainingjob_operator.observe.progress import ProgressPoller
from trainingjob_operator.observe.server import measure_lag, serve
from trainingjob_operator.options import Options
from trainingjob_operator.stores import JobStore, PodStore

RELIST_DELAY_SECONDS = 1.0
LAST_WRITES_SECONDS = 5.0
"""How long a leader that is told to end may go on with what it is at; then others may lead."""
LAST_EVENTS_SECONDS = 1.0
"""And then with events that it has not written yet."""

logger = logging.getLogger(__name__)


class Operator:
    """The parts of one operator process, made from its options; `run` is its life.

    Only the leader decides and writes. A standby watches, so that it knows all when it becomes the leader; all that an
    executor or a queue remembers therefore begins there.
    """

    def __init__(self, options: Options, connection: Connection, namespaces: tuple[str | None, ...]) -> None:
        self._options = options
        self._connection = connection
        self._namespaces = namespaces
        self._cache = Cache()
        self._queue: WorkQueue[Key] = WorkQueue(on_done=self._reconciled)
        self._metrics = OperatorMetrics(self._queue.__len__, self._queue.age)
        self._lease_client = Client(connection, self._metrics.requested, timeout=REQUEST_TIMEOUT_SECONDS)
        self._election: LeaderElection | None = None
        if options.lease is not None:
            self._election = LeaderElection(self._lease_client, *options.lease, _identity())
        guard = self._election.check if self._election else allow
        self._client = Client(connection, self._metrics.requested, guard)
        self._poller = ProgressPoller(self._queue.add_after, _now, options.progress_interval)
        self._job_metrics = JobMetrics(self._led_jobs, self._poller.facts, self._cache.pods, _now)
        self._events = EventRecorder(self._client, _now, self._queue.rest)
        self._jobs = JobStore(self._cache, self._enqueue)
        shortage = Shortage(self._cache, self._queue.add_anew)
        pods = PodStore(self._cache, self._enqueue, shortage.freed)
        self._informers = [
            Informer(
                self._client,
                PODS,
                pods,
                namespace,
                LABEL_JOB_UID,
                partial(self._metrics.watch_restarted, PODS.plural),
                options.resync,
                partial(self._metrics.missed, PODS.plural),
            )
            for namespace in self._namespaces
        ]
        self._executor = Executor(
            self._client,
            self._cache,
            decide,
            self._settings,
            self._poller,
            self._events,
            _now,
            shortage,
            options.resync,
        )
        self._jobs_listed = False
        self._pod_groups = False
        self._leading = False

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT. Raises `StartProblem`, or a group of what made it stop."""
        async with self._lease_client, self._client, self._poller:
            stop, ready = asyncio.Event(), asyncio.Event()
            watched = [namespace for namespace in self._namespaces if namespace is not None]
            async with asyncio.TaskGroup() as group:
                ours = [group.create_task(part) for part in self._parts()]
                watching = group.create_task(watch_jobs(self._connection, watched, self._jobs.take, ready, stop))
                watching.add_done_callback(lambda _: stop.set())
                await ready.wait()
                # kopf has just installed its own handlers, which would end only its own tasks.
                for number in (signal.SIGTERM, signal.SIGINT):
                    asyncio.get_running_loop().add_signal_handler(number, stop.set)
                await stop.wait()
                logger.info("stopping")
                for task in ours:
                    task.cancel()

    def _parts(self) -> list[Coroutine[Any, Any, None]]:
        return [
            self._serve(),
            measure_lag(self._metrics.loop_lag),
            *(informer.run() for informer in self._informers),
            self._work(),
            self._poller.run(),
            self._await_rights(),
        ]

    async def _serve(self) -> None:
        host, port = self._options.metrics_host, self._options.metrics_port
        try:
            async with serve(host, port, self._metrics.registry, self._job_metrics.text, self._missing) as bound:
                logger.info("serving metrics and health on %s:%d", host or "*", bound)
                await asyncio.Event().wait()
        except OSError as error:
            raise StartProblem(f"cannot serve on {host}:{port} (--metrics-address): {error}") from error

    async def _work(self) -> None:
        """Fill the caches, keep them full, and lead: a decision on half the pods would create the other half."""
        await self._list_jobs()
        self._jobs_listed = True
        self._jobs.relist.clear()
        for informer in self._informers:
            await informer.synced.wait()
        logger.info("caches are filled: %d TrainingJobs", sum(1 for _ in self._cache.jobs()))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._resync())
            group.create_task(self._lead())

    async def _lead(self) -> None:
        """Wait until no other operator leads; then reconcile, until cancelled."""
        async with self._election.leading() if self._election else contextlib.nullcontext():
            self._leading = True
            self._metrics.leader.set(1)
            for key, uid in self._cache.orphans():
                self._executor.remember(key, uid)
                self._queue.add(key)
            for key, _ in self._cache.jobs():
                self._queue.add(key)
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(self._events.run())
                try:
                    workers = self._options.max_concurrent_reconciles
                    await self._queue.run(self._executor.reconcile, workers, grace=LAST_WRITES_SECONDS)
                finally:
                    await self._events.flush(LAST_EVENTS_SECONDS)
                    telling.cancel()

    def _enqueue(self, key: Key, seconds: float = 0.0) -> None:
        """A standby queues nothing; when it becomes the leader it queues all jobs."""
        if self._leading:
            self._queue.add_after(key, seconds)

    def _led_jobs(self) -> Iterable[tuple[Key, Job]]:
        """The jobs that this operator tells about in its metrics: a sum over two operators counts them once."""
        return self._cache.jobs() if self._leading else ()

    async def _resync(self) -> None:
        """LIST all jobs after kopf's watch began anew, and once in the resync interval; then decide all anew."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._jobs.relist.wait(), self._options.resync)
            begun_anew = self._jobs.relist.is_set()
            if begun_anew:
                await asyncio.sleep(RELIST_DELAY_SECONDS)  # kopf's LIST goes on for a while: once is enough.
                self._jobs.relist.clear()
                self._metrics.watch_restarted(TRAINING_JOBS.plural, "listed")
            news = await self._list_jobs()
            if not begun_anew:
                self._metrics.missed(TRAINING_JOBS.plural, news)
                for key, _ in self._cache.jobs():
                    self._enqueue(key)

    async def _list_jobs(self) -> int:
        """LIST all jobs, after a look at what the API server serves: it may have been started anew with other gates.

        Returns of how many jobs that is news.
        """
        news = 0
        for namespace in self._namespaces:
            while True:
                try:
                    await self._discover()
                    news += (await take_all(self._client, TRAINING_JOBS, self._jobs, namespace))[1]
                    break
                except ApiError as error:
                    logger.warning("cannot list TrainingJobs: %s", error)
                    if isinstance(error, Forbidden):
                        break  # The namespace may be gone, with the role in it: the others do not wait for it.
                    await asyncio.sleep(RELIST_DELAY_SECONDS)
        return news

    async def _await_rights(self) -> None:
        """End when jobs can be worked on in a namespace where they could not when this process began."""
        left_out = [namespace for namespace in self._options.namespaces if namespace not in self._namespaces]
        while left_out:
            await asyncio.sleep(self._options.resync)
            with contextlib.suppress(ApiError):
                for namespace, rights in (await missing_rights(self._client, left_out)).items():
                    if not rights:
                        raise BeginAnew(f"it may work in namespace {namespace} now")

    async def _discover(self) -> None:
        served = await self._client.serves(POD_GROUPS)
        if served != self._pod_groups:
            logger.info("PodGroups are %s", "served: new runs are scheduled as gangs" if served else "no longer served")
        self._pod_groups = served

    def _missing(self) -> str:
        """What is not there yet, for /readyz."""
        if not self._jobs_listed:
            return "the list of TrainingJobs"
        return "" if all(informer.synced.is_set() for informer in self._informers) else "the list of pods"

    def _settings(self) -> Settings:
        base = Settings(trainer_image=self._options.trainer_image, pod_groups=self._pod_groups)
        return replace(base, progress_interval=self._poller.write_interval)

    def _reconciled(self, seconds: float, error: Exception | None) -> None:
        self._metrics.reconciled(seconds, error)


async def run(options: Options) -> None:
    """Run one operator. Raises `StartProblem`, alone or in a group."""
    try:
        connection = connect(options.kubeconfig)
    except ConnectionProblem as problem:
        raise StartProblem(str(problem)) from problem
    async with Client(connection) as client:
        namespaces = await check(client, options.namespaces or (None,), options.lease)
    await Operator(options, connection, namespaces).run()


def _identity() -> str:
    """A name that no other process has, not even the next one of this pod."""
    return f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"


def _now() -> datetime:
    return datetime.now(UTC)
