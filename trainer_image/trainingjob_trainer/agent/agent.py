"""The life of a pod, whatever runs in it: serve, work, be told to stop, leave the last words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any, Literal, NamedTuple

import aiohttp

from ..errors import TrainerError, WorkerLost
from ..network import nobody_there
from ..outcome import Outcome
from .pod import Pod
from .processes import Processes
from .progress import Progress, State
from .server import Server

logger = logging.getLogger(__name__)

Stage = Literal["Check", "PrepareData", "Train"]
POLL = 0.5  # seconds between two looks at the head, and at what still runs
ANSWER = 2.0  # seconds that the head has for an answer
TELL = 5.0  # seconds that a head keeps serving its final state, at most
# Seconds that the head may be there without an answer. The head waits twice as long for a pod that does not join
# (`ray_pods.JOIN_LIMIT`): where one pod is cut off that one is replaced, and not the head.
CUT_OFF = 300.0


class Head(NamedTuple):
    """Index 0 as its agent answers. Ray gets the address: its DNS resolver does not read /etc/hosts."""

    uid: str
    address: str
    state: State


Answer = Head | Literal["nobody", "silence"]
"""Of an address of the head's name: the head, a sign that it is not there, or nothing."""


class Agent(ABC):
    """One pod's supervisor. steps: of the whole run, if this stage takes them."""

    def __init__(self, pod: Pod, stage: Stage, steps: int | None, port: int) -> None:
        self.pod = pod
        self.stage = stage
        self._port = port
        self.progress = Progress(pod.job_uid, pod.uid, stage, steps)
        self.processes = Processes()
        self.server = Server(self.progress, pod.token)
        self._stopping = asyncio.Event()
        self._silent_since: float | None = None

    async def run(self) -> int:
        """Live until the stage is over here; returns the pod's exit code."""
        self._prepare_files()
        self.processes.watch()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        await self.server.start(self.pod.ip, self._port)
        logger.info("%s of stage %s serves on %s:%d", self.pod.name, self.stage, self.pod.ip, self._port)
        try:
            outcome = await self._first(self._work(), self._drained())
        except TrainerError as error:
            outcome = Outcome.failure(error, self.progress.attempt)
        except Exception as error:
            logger.exception("The agent failed")
            outcome = Outcome.failure(TrainerError.internal(error), self.progress.attempt)
        code = self._leave(outcome)
        await self._tell(outcome)
        await self.processes.kill_all()
        await self.server.stop()
        return code

    def stop(self) -> None:
        """Ask the pod to end (SIGTERM): ranks see the flag, commit a checkpoint and stop."""
        logger.info("Asked to stop")
        self._stopping.set()  # first: a volume that takes no file any more must not keep the pod from ending
        self.progress.end("Draining", "The pod was asked to stop.")
        self.pod.drain_flag.touch()

    @abstractmethod
    async def _work(self) -> Outcome:
        """Do the pod's part of the stage. Raises `TrainerError` if it fails."""

    @abstractmethod
    async def _drained(self) -> Outcome:
        """Raises `Drained` when the pod was asked to stop and has nothing left to wait for; never returns."""

    def _leave(self, outcome: Outcome) -> int:
        """Write the last words; returns the exit code."""
        try:
            self.pod.termination_log.write_bytes(outcome.message())
        except OSError:
            logger.exception("The termination message cannot be written: %s", outcome.message().decode())
        return outcome.exit_code

    async def _ask_head(self, *, leaving: bool = False) -> Head | None:
        """The head as it answers now; None if it does not. `leaving`: tell it that this pod ends.

        While a head is replaced its name may have the addresses of both pods, or of a pod of somebody else.

        Raises `WorkerLost` when the head has been there for `CUT_OFF` seconds and not answered: one of the two is cut
        off for good, which nobody else may see, and a successor of this pod may do better on another node.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.pod.head, self._port, family=socket.AF_INET, type=socket.SOCK_STREAM)
            answers = await asyncio.gather(*(self._ask(str(address[0]), leaving) for *_, address in found))
        except OSError as error:  # from the look-up
            answers = ["nobody" if nobody_there(error) else "silence"]
        silent = set(answers) == {"silence"}
        self._silent_since = (self._silent_since or loop.time()) if silent else None
        if self._silent_since is not None and loop.time() - self._silent_since > CUT_OFF:
            raise WorkerLost(
                f"The head {self.pod.head} did not answer for {CUT_OFF / 60:.0f} minutes, though it is there.",
                "Look at the network of this pod's node and of the head's. A NetworkPolicy must let the pods of a job "
                "reach each other.",
            )
        return next((head for head in answers if isinstance(head, Head)), None)

    async def _ask(self, address: str, leaving: bool) -> Answer:
        timeout = aiohttp.ClientTimeout(total=ANSWER)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                url = f"http://{address}:{self._port}/progress"
                async with session.get(url, params={"leaving": self.pod.name} if leaving else None) as response:
                    seen: dict[str, Any] = await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return "nobody" if nobody_there(error) else "silence"
        return Head(str(seen["podUid"]), address, seen["state"]) if self._is_head(seen) else "nobody"

    def _is_head(self, seen: dict[str, Any]) -> bool:
        """Whether this is what the head of this gang answers."""
        return (seen.get("jobUid"), seen.get("stage")) == (self.pod.job_uid, self.stage)

    async def _tell(self, outcome: Outcome) -> None:
        """Let the followers see that the stage is over, and end first: then all pods of a finished gang are done."""
        self.progress.end("Done", outcome.cause.partition("\n")[0][:500] or "The stage is over.")
        followers = (self.progress.pods or self.pod.replicas) - 1
        if not self.pod.is_head or not followers or self._stopping.is_set() or outcome.error_class:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.server.wait_left(followers), TELL)

    async def _first(self, *coroutines: Coroutine[Any, Any, Outcome]) -> Outcome:
        """The outcome of whichever ends first."""
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        return done.pop().result()

    def _say(self, state: State, message: str) -> None:
        if not self._stopping.is_set():
            self.progress.say(state, message)

    def _prepare_files(self) -> None:
        """A container that was restarted in the same pod finds its predecessor's files."""
        self.pod.ranks.mkdir(parents=True, exist_ok=True)
        for leftover in (self.pod.drain_flag, self.pod.resize_flag, self.pod.outcome_path, *self.pod.ranks.iterdir()):
            leftover.unlink(missing_ok=True)
