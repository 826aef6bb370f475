"""The operators and the bare script as processes, and what they cost."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
from trainingjob_local.process import Component

METRICS = "127.0.0.1:18080"
_TICKS = os.sysconf("SC_CLK_TCK")

T = TypeVar("T")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_mib(pid: int, field: str = "VmRSS") -> float:
    """Resident memory; `VmHWM` is its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


class Served:
    """An operator as a process, which runs while in its `async with` block. ready: the URL that tells whether it is."""

    def __init__(self, command: Sequence[str | Path], log: Path, ready: str, env: dict[str, str] | None = None) -> None:
        self._command = command
        self._log = log
        self._env = env
        self._ready = ready
        self._process: Component | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the operator is not running"
        return self._process.pid

    async def start(self, jobs: int = 0) -> float:
        """Start it; seconds until it is ready, has decided `jobs` jobs, and has nothing left to do."""
        begun = time.monotonic()
        self._process = Component("operator", self._command, self._log, self._env)
        async with asyncio.timeout(120), aiohttp.ClientSession() as session:
            while not (await self._is_ready(session) and await self._has_decided(session, jobs)):
                await asyncio.sleep(0.05)
        return time.monotonic() - begun

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """`work`, while the operator lives. StartError, with the last lines of its log, as soon as it has ended."""
        working = asyncio.create_task(work)
        try:
            while not working.done():
                if self._process is not None:  # else `work` is starting it anew
                    self._process.check()
                await asyncio.wait([working], timeout=0.2)
            return working.result()
        finally:
            working.cancel()

    def stop(self) -> None:
        """SIGTERM."""
        if self._process is not None:
            self._process.stop(30)
            self._process = None

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        assert self._process is not None
        self._process.check()
        try:
            async with session.get(self._ready) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def _has_decided(self, session: aiohttp.ClientSession, jobs: int) -> bool:
        """Whether it has nothing left to do about `jobs` jobs."""
        return True


class Operator(Served):
    """`python -m trainingjob_operator`, unmodified, with the options that a user gets by default."""

    def __init__(self, kubeconfig: Path, log: Path, *flags: str) -> None:
        own = ["--kubeconfig", str(kubeconfig), "--metrics-address", METRICS, *flags]
        super().__init__([sys.executable, "-m", "trainingjob_operator", *own], log, f"http://{METRICS}/readyz")

    async def _has_decided(self, session: aiohttp.ClientSession, jobs: int) -> bool:
        if not jobs:
            return True
        async with session.get(f"http://{METRICS}/metrics") as answer:
            return _tells_of(await answer.text(), jobs)


class Floor:
    """The bare script, held until `go`."""

    def __init__(self, kubeconfig: Path, namespace: str, jobs: int) -> None:
        command = [sys.executable, "-m", "benchmarks.operator_scale.floor", str(kubeconfig), namespace, str(jobs)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the bare script ended with code {self._process.wait()}")

    async def go(self) -> None:
        """Let it work, until it is done."""
        await asyncio.to_thread(self._process.communicate, "go\n")
        if self._process.returncode:
            raise RuntimeError(f"the bare script ended with code {self._process.returncode}")


def _tells_of(metrics: str, jobs: int) -> bool:
    """Whether /metrics tells of at least `jobs` decisions and an empty queue."""
    lines = [line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("trainingjob_operator_")]

    def total(name: str) -> float:
        return sum(float(value) for series, value in lines if series.partition("{")[0] == name)

    decided = total("trainingjob_operator_reconcile_duration_seconds_count")
    return decided >= jobs and total("trainingjob_operator_queue_depth") == 0
