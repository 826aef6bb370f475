"""A container's process, through the launcher: start, true exit code, SIGTERM and SIGKILL."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import trainingjob_local
from trainingjob_local.node.logs import LogFile
from trainingjob_local.node.plan import ExecPlan, Plan

_SOURCES = Path(trainingjob_local.__file__).parent.parent
_LAUNCHER = [sys.executable, "-S", "-m", "trainingjob_local.node.launch"]


class StartFailed(Exception):
    """The container's command could not be executed; the message says why."""


class ContainerProcess:
    """A started container. `exited` has its exit code (128 + n after signal n), once its log is complete."""

    def __init__(self, launcher: asyncio.subprocess.Process, pid: int, log: LogFile) -> None:
        self.pid = pid
        self.log = log
        self._launcher = launcher
        self.exited = asyncio.create_task(self._wait())

    @classmethod
    async def start(cls, plan: Plan, log: LogFile) -> "ContainerProcess":
        """Start the plan's container; returns when its command runs. Raises StartFailed."""
        launcher, pid = await _launch(plan, plan["namespaces"])
        return cls(launcher, pid, log)

    async def stop(self, grace: float) -> None:
        """SIGTERM to the container's first process; after `grace` seconds SIGKILL to all; returns when it has ended."""
        if grace > 0:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.exited), grace)
        if not self.exited.done():
            self._signal(signal.SIGUSR1)
            await asyncio.shield(self.exited)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._launcher.send_signal(number)

    async def _wait(self) -> int:
        stdout, stderr = self._launcher.stdout, self._launcher.stderr
        assert stdout is not None
        assert stderr is not None
        await asyncio.gather(self.log.copy(stdout, "stdout"), self.log.copy(stderr, "stderr"))
        code = await self._launcher.wait()
        self.log.close()
        return code if code >= 0 else 128 - code


async def execute(plan: ExecPlan, timeout: float) -> tuple[int, str]:
    """Run a command inside a container: exit code and the first bytes of its output.

    Raises StartFailed, or TimeoutError after `timeout` seconds (the command is killed).
    """
    launcher, _ = await _launch(plan, [])
    try:
        async with asyncio.timeout(timeout):
            output, errors = await launcher.communicate()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            launcher.send_signal(signal.SIGUSR1)
        await launcher.communicate()
        raise
    code = launcher.returncode or 0
    return code if code >= 0 else 128 - code, (output + errors)[:10240].decode(errors="replace")


async def _launch(plan: Plan | ExecPlan, descriptors: list[int]) -> tuple[asyncio.subprocess.Process, int]:
    """Start the launcher and wait until its command runs: the launcher and the command's process id."""
    reader, writer = os.pipe()
    try:
        plan["statusFd"] = writer
        launcher = await asyncio.create_subprocess_exec(
            *_LAUNCHER,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PYTHONPATH": str(_SOURCES)},
            pass_fds=[writer, *descriptors],
            start_new_session=True,
        )
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    assert launcher.stdin is not None
    launcher.stdin.write(json.dumps(plan).encode())
    launcher.stdin.close()
    answers = _merge(await _read_all(reader))
    if "error" in answers or "pid" not in answers:
        assert launcher.stderr is not None
        said = (await launcher.stderr.read()).decode(errors="replace").strip()
        await launcher.wait()
        raise StartFailed(str(answers.get("error") or said or "the launcher died"))
    return launcher, int(str(answers["pid"]))


async def _read_all(fd: int) -> bytes:
    """Everything until the end of the pipe, which is closed then."""
    stream = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(stream)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(fd, "rb"))
    try:
        return await stream.read()
    finally:
        transport.close()


def _merge(raw: bytes) -> Mapping[str, object]:
    merged: dict[str, object] = {}
    for line in raw.splitlines():
        merged.update(json.loads(line))
    return merged
