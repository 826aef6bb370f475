"""The operator as Kubernetes runs it: a process that is started again whenever it ends."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from support import forkserver
from support.runs import PATIENCE

BACKOFF_SECONDS = 0.5
"""Before a start that follows on one that came to nothing."""

# The operator's code, unmodified, in a process of its own; forked where it is imported already, because a test that
# kills it thirty times would spend most of its time on imports.
_processes = forkserver.serving("trainingjob_operator.main", __name__)


class SupervisedOperator:
    """An operator with a kubeconfig; its log lies in `log`. `ends` counts how often it ended while it should run."""

    def __init__(self, kubeconfig: Path, log: Path, *flags: str) -> None:
        self._arguments = ["--kubeconfig", str(kubeconfig), "--metrics-address", "127.0.0.1:0", *flags]
        self._process: ForkServerProcess | None = None
        self.log = log
        self.ends = 0

    async def __aenter__(self) -> Self:
        self._wanted = asyncio.create_task(self._keep_running())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the operator is not running"
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL; it is started again."""
        if self._process is not None:
            self._process.kill()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to one that does not heed it; it stays down."""
        self._wanted.cancel()
        await asyncio.wait([self._wanted])
        if self._process is None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(_end_of(self._process), PATIENCE)
        except TimeoutError:
            self._process.kill()
            await _end_of(self._process)
            raise AssertionError(f"the operator did not end within {PATIENCE:.0f} s of SIGTERM") from None
        finally:
            self._process = None

    async def metric(self, name: str) -> float:
        """The value that /metrics has for `name`, which ends with its labels."""
        lines = (await self._get("/metrics")).splitlines()
        (value,) = [line.removeprefix(name) for line in lines if line.startswith(f"{name} ")]
        return float(value)

    async def answers(self) -> bool:
        """Whether its event loop is at work, however long it takes to say so; not while it is started anew."""
        try:
            return await self._get("/livez") == "ok\n"
        except (aiohttp.ClientError, FileNotFoundError, IndexError):  # the last two: it has not said where, yet
            return False

    async def _get(self, path: str) -> str:
        port = re.findall(r"serving metrics and health on \S+?:(\d+)", self.log.read_text())[-1]
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as answer:
            return await answer.text()

    async def _keep_running(self) -> None:
        while True:
            begun = asyncio.get_running_loop().time()
            self._process = _processes.Process(target=_run, args=(self._arguments, str(self.log)), daemon=True)
            forkserver.start(self._process)
            await _end_of(self._process)
            self.ends += 1
            if asyncio.get_running_loop().time() - begun < BACKOFF_SECONDS:
                await asyncio.sleep(BACKOFF_SECONDS)


async def _end_of(process: ForkServerProcess) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
    process.join()


def _run(arguments: list[str], log: str) -> None:
    """In the operator's process."""
    from trainingjob_operator.main import main

    logging.getLogger().handlers.clear()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    sys.exit(main(arguments))
