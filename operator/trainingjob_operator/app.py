"""One operator: its parts, wired, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from trainingjob_operator.core.cache import Cache, Key
from trainingjob_operator.core.decide import decide
from trainingjob_operator.core.executor import Executor
from trainingjob_operator.core.names import LABEL_JOB_UID
from trainingjob_operator.core.plan import Settings
from trainingjob_operator.core.queue import WorkQueue
from trainingjob_operator.jobwatch import watch_jobs
from trainingjob_operator.kube.api import POD_GROUPS, PODS, TRAINING_JOBS, ApiError
from trainingjob_operator.kube.client import Client
from trainingjob_operator.kube.connection import Connection, ConnectionProblem, connect
from trainingjob_operator.kube.informer import Informer
from trainingjob_operator.kube.preflight import StartProblem, check
from trainingjob_operator.observe.events import EventRecorder
from trainingjob_operator.observe.jobs import JobCollector
from trainingjob_operator.observe.metrics import OperatorMetrics
from trainingjob_operator.observe.progress import ProgressPoller
from trainingjob_operator.observe.server import measure_lag, serve
from trainingjob_operator.options import Options

RELIST_DELAY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class PodStore:
    """Takes pods into the cache and queues the jobs that they belong to."""

    def __init__(self, cache: Cache, queue: WorkQueue[Key]) -> None:
        self._cache = cache
        self._queue = queue

    def put(self, body: Mapping[str, Any]) -> None:
        """A pod is there, or has changed."""
        try:
            self._enqueue(self._cache.put_pod(body))
        except (KeyError, ValueError):
            logger.exception("pod %s cannot be read and is ignored", body["metadata"]["name"])

    def remove(self, body: Mapping[str, Any]) -> None:
        """A pod was deleted."""
        self._enqueue(self._cache.remove_pod(body))

    def replace(self, namespace: str | None, bodies: Sequence[Mapping[str, Any]], version: str) -> None:
        """These are all pods."""
        for key in self._cache.replace_pods(namespace, bodies, version):
            self._enqueue(key)

    def _enqueue(self, key: Key | None) -> None:
        if key is not None and self._cache.job(key) is not None:
            self._queue.add(key)


class JobStore:
    """Takes TrainingJobs into the cache and queues them; asks for a LIST when kopf has begun anew."""

    def __init__(self, cache: Cache, queue: WorkQueue[Key]) -> None:
        self.relist = asyncio.Event()
        self._cache = cache
        self._queue = queue

    def take(self, kind: str | None, body: Mapping[str, Any]) -> None:
        """An event of kopf's watch. A LIST (kind None) does not tell what vanished before it."""
        if kind is None:
            self.relist.set()
        key = self._cache.remove_job(body) if kind == "DELETED" else self._cache.put_job(body)
        if key is not None:
            self._queue.add(key)

    def replace(self, namespace: str | None, bodies: Sequence[Mapping[str, Any]], version: str) -> None:
        """These are all TrainingJobs."""
        for key in self._cache.replace_jobs(namespace, bodies, version):
            self._queue.add(key)


class Operator:
    """The parts of one operator process, made from its options; `run` is its life."""

    def __init__(self, options: Options, connection: Connection) -> None:
        self._options = options
        self._connection = connection
        self._namespaces: tuple[str | None, ...] = options.namespaces or (None,)
        self._cache = Cache()
        self._queue: WorkQueue[Key] = WorkQueue(on_done=self._reconciled)
        self._metrics = OperatorMetrics(self._queue.__len__)
        self._client = Client(connection, self._metrics.requested)
        self._poller = ProgressPoller(self._queue.add_after, _now, options.progress_interval)
        self._metrics.registry.register(JobCollector(self._cache.jobs, self._poller.facts))
        self._jobs = JobStore(self._cache, self._queue)
        pods = PodStore(self._cache, self._queue)
        self._informers = [
            Informer(self._client, PODS, pods, namespace, LABEL_JOB_UID, self._pods_watch_restarted)
            for namespace in self._namespaces
        ]
        self._executor = Executor(
            self._client,
            self._cache,
            decide,
            self._settings,
            self._poller,
            EventRecorder(self._client, _now),
            _now,
            options.resync,
        )
        self._jobs_listed = False
        self._pod_groups = False

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT. Raises `StartProblem`, or a group of what made it stop."""
        async with self._client, self._poller:
            await check(self._client, self._namespaces)
            stop, ready = asyncio.Event(), asyncio.Event()
            async with asyncio.TaskGroup() as group:
                ours = [group.create_task(part) for part in self._parts()]
                watching = group.create_task(
                    watch_jobs(self._connection, self._options.namespaces, self._jobs.take, ready, stop)
                )
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
        ]

    async def _serve(self) -> None:
        host, port = self._options.metrics_host, self._options.metrics_port
        try:
            async with serve(host, port, self._metrics.registry, self._missing) as bound:
                logger.info("serving metrics and health on %s:%d", host or "*", bound)
                await asyncio.Event().wait()
        except OSError as error:
            raise StartProblem(f"cannot serve on {host}:{port} (--metrics-address): {error}") from error

    async def _work(self) -> None:
        """Wait for full caches, then reconcile for ever: a decision on half the pods would create the other half."""
        await self._list_jobs()
        self._jobs_listed = True
        self._jobs.relist.clear()
        for informer in self._informers:
            await informer.synced.wait()
        logger.info("caches are filled: %d TrainingJobs", sum(1 for _ in self._cache.jobs()))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._queue.run(self._executor.reconcile, self._options.max_concurrent_reconciles))
            group.create_task(self._resync())

    async def _resync(self) -> None:
        """LIST all jobs after kopf's watch began anew, and once in the resync interval; then decide all anew."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._jobs.relist.wait(), self._options.resync)
            begun_anew = self._jobs.relist.is_set()
            if begun_anew:
                await asyncio.sleep(RELIST_DELAY_SECONDS)  # kopf's LIST goes on for a while: once is enough.
                self._jobs.relist.clear()
            await self._list_jobs()
            if not begun_anew:
                for key, _ in self._cache.jobs():
                    self._queue.add(key)

    async def _list_jobs(self) -> None:
        """LIST all jobs, after a look at what the API server serves: it may have been started anew with other gates."""
        for namespace in self._namespaces:
            while True:
                try:
                    self._pod_groups = await self._client.serves(POD_GROUPS)
                    listed = await self._client.list(TRAINING_JOBS, namespace)
                    break
                except ApiError as error:
                    logger.warning("cannot list TrainingJobs: %s", error)
                    await asyncio.sleep(RELIST_DELAY_SECONDS)
            self._jobs.replace(namespace, listed.items, listed.resource_version)

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

    def _pods_watch_restarted(self, reason: str) -> None:
        self._metrics.watch_restarted(PODS.plural, reason)


async def run(options: Options) -> None:
    """Run one operator. Raises `StartProblem`, alone or in a group."""
    try:
        connection = connect(options.kubeconfig)
    except ConnectionProblem as problem:
        raise StartProblem(str(problem)) from problem
    await Operator(options, connection).run()


def _now() -> datetime:
    return datetime.now(UTC)
