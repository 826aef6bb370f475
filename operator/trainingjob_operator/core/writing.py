"""How writes are made: some at once, and with the API server's refusals in words for people."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from trainingjob_operator.kube.api import PODS, Api, ApiError, Conflict, Manifest, NotFound

from .cache import Cache
from .facts import Job
from .obstacle import Obstacle, refused
from .plan import PodRef

WRITES_AT_ONCE = 16

logger = logging.getLogger(__name__)


class Obstructed(Exception):
    """The API server refuses an object, or somebody else's has its name."""

    def __init__(self, obstacle: Obstacle) -> None:
        super().__init__(obstacle.message)
        self.obstacle = obstacle


@contextmanager
def explained(kind: str, name: str, deed: str = "created") -> Iterator[None]:
    """A refusal of the API server within becomes `Obstructed`: the object cannot be created, changed or deleted."""
    try:
        yield
    except ApiError as error:
        refusal = refused(kind, name, error, deed)
        if refusal is None:
            raise
        raise Obstructed(refusal) from error


@asynccontextmanager
async def unless_gone(api: Api, cache: Cache, namespace: str, pod: PodRef) -> AsyncIterator[None]:
    """Within is a write to a pod, which is done with if that pod is gone.

    A `Conflict` alone does not say so: it may come from a rival writer, or from something between us and the server.
    It is raised again if the pod with this uid is still there.
    """
    try:
        yield
    except (NotFound, Conflict) as error:
        if isinstance(error, Conflict) and await _is_there(api, cache, namespace, pod):
            raise
        logger.debug("pod %s is gone already", pod.name)


async def _is_there(api: Api, cache: Cache, namespace: str, pod: PodRef) -> bool:
    try:
        found = await api.get(PODS, namespace, pod.name)
    except NotFound:
        return False
    cache.put_pod(found)
    return bool(found["metadata"]["uid"] == pod.uid)


async def patch_pod(api: Api, cache: Cache, namespace: str, pod: PodRef, metadata: Manifest) -> None:
    """Change metadata of the pod with this uid, if it is still there. Raises `Obstructed` when that is refused."""
    patch = {"metadata": {"uid": pod.uid, **metadata}}
    with explained("Pod", pod.name, "changed"):
        async with unless_gone(api, cache, namespace, pod):
            cache.put_pod(await api.merge_patch(PODS, namespace, pod.name, patch))


def about(job: Job) -> dict[str, str]:
    """Names a job in a log line."""
    return {"job": f"{job.namespace}/{job.name}"}


async def each(writes: Iterable[Coroutine[Any, Any, None]], until_refused: bool = False) -> None:
    """All of them, some at once; then the first error, if there was one. until_refused: no more after an error."""
    pending = list(writes)
    if not pending:
        return
    limit = asyncio.Semaphore(WRITES_AT_ONCE)
    failed = False

    async def one(write: Coroutine[Any, Any, None]) -> None:
        nonlocal failed
        async with limit:
            if failed and until_refused:
                write.close()
                return
            try:
                await write
            except BaseException:
                failed = True
                raise

    results = await asyncio.gather(*(one(write) for write in pending), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
