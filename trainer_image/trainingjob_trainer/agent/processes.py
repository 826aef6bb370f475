"""The pod's processes. As PID 1 (or as subreaper) the agent inherits every orphan and must reap it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


class Processes:
    """Starts children, reaps children and orphans, and kills all that is left below the agent.

    No other part of the process may wait for children: `reap` takes every exit status there is.
    """

    def __init__(self) -> None:
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def watch(self) -> None:
        """Adopt orphans and reap from now on. Must run in the event loop's thread."""
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self.reap)

    def start(self, command: Sequence[str], env: Mapping[str, str], *, quiet: bool = False) -> Child:
        """Start a child in a session of its own; its output is the pod's, if `quiet` only its stderr."""
        output = subprocess.DEVNULL if quiet else None
        process = subprocess.Popen(
            list(command), env=dict(env), stdin=subprocess.DEVNULL, stdout=output, start_new_session=True
        )
        exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exits[process.pid] = exited
        self._children[process.pid] = process
        return Child(process.pid, exited)

    def reap(self) -> None:
        """Take the exit status of every process that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            process = self._children.pop(pid, None)
            if process is not None:
                process.returncode = code
                self._exits.pop(pid).set_result(code)

    async def kill_all(self) -> None:
        """Kill every process below the agent, orphans included, and wait until none is left."""
        while left := descendants(os.getpid()):
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.05)
            self.reap()


class Child:
    """A child process of the agent."""

    def __init__(self, pid: int, exited: asyncio.Future[int]) -> None:
        self.pid = pid
        self.exited = exited
        """Its exit code, negative for a signal."""

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return not self.exited.done()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.running:
            os.kill(self.pid, number)


def descendants(root: int) -> list[int]:
    """Pids of all processes below `root`, zombies left out."""
    children: dict[int, list[int]] = {}
    for pid, parent, _ in _living():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def kill_session(session: int) -> None:
    """Kill every process of a session, its leader included."""
    for pid, _, found in _living():
        if found == session:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _living() -> Iterator[tuple[int, int, int]]:
    """Pid, parent's pid and session of every process that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            state, parent, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended meanwhile
            continue
        if state != "Z":
            yield int(entry.name), int(parent), int(session)
