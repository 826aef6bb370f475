"""How writes are made: some at once, and with the API server's refusals in words for people."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from trainingjob_operator.kube.api import ApiError

from .facts import Job
from .obstacle import Obstacle, refused

WRITES_AT_ONCE = 16


class Obstructed(Exception):
    """The API server refuses an object, or somebody else's has its name."""

    def __init__(self, obstacle: Obstacle) -> None:
        super().__init__(obstacle.message)
        self.obstacle = obstacle


@contextmanager
def explained(kind: str, name: str) -> Iterator[None]:
    """A refusal of the API server within becomes `Obstructed`."""
    try:
        yield
    except ApiError as error:
        refusal = refused(kind, name, error)
        if refusal is None:
            raise
        raise Obstructed(refusal) from error


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
