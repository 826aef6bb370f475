"""The life of a pod: lead the gang (index 0), or follow its head."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiohttp

from ..errors import Drained, TrainerError, WorkerLost
from ..outcome import Outcome
from ..ray_node import GCS_PORT, environment, prepare_slots, start_command
from .pod import AGENT_PORT, Pod
from .processes import Child, Processes
from .progress import Progress, State
from .server import Server

logger = logging.getLogger(__name__)

Stage = Literal["Check", "PrepareData", "Train"]
POLL = 0.5  # seconds between two looks at the head, and at what still runs
TELL = 5.0  # seconds that a head keeps serving its final state, at most


class Head(NamedTuple):
    """Index 0 as its agent answers. Ray gets the address: its DNS resolver does not read /etc/hosts."""

    uid: str
    address: str
    state: State


class Agent:
    """One pod's supervisor. `program` is the stage's program, which runs on index 0 and leaves an outcome."""

    def __init__(self, pod: Pod, stage: Stage, program: Sequence[str], port: int = AGENT_PORT) -> None:
        self.pod = pod
        self.stage = stage
        self.config = pod.config()
        self._program = program
        self._port = port
        steps = self.config.training.steps if stage == "Train" else None
        self.progress = Progress(pod.job_uid, pod.uid, stage, steps)
        self.processes = Processes()
        self.server = Server(self.progress, pod.token)
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Live until the stage is over here; returns the pod's exit code."""
        self._prepare_files()
        self.processes.watch()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        await self.server.start(self.pod.ip, self._port)
        logger.info("%s of stage %s serves on %s:%d", self.pod.name, self.stage, self.pod.ip, self._port)
        try:
            outcome = await self._first(self._lead() if self.pod.is_head else self._follow(), self._drained())
        except TrainerError as error:
            outcome = Outcome.failure(error, self.progress.attempt)
        except Exception as error:
            logger.exception("The agent failed")
            outcome = Outcome.failure(TrainerError.internal(error), self.progress.attempt)
        self._write_termination(outcome)
        await self._tell(outcome)
        await self.processes.kill_all()
        await self.server.stop()
        return outcome.exit_code

    def stop(self) -> None:
        """Ask the pod to end (SIGTERM): ranks see the flag, commit a checkpoint and stop."""
        logger.info("Asked to stop")
        self.pod.drain_flag.touch()
        self.progress.end("Draining", "The pod was asked to stop.")
        self._stopping.set()

    async def _lead(self) -> Outcome:
        """Run the stage's program and take over its outcome."""
        env = {**os.environ, "TRAININGJOB_REPORT_URL": f"http://{self.pod.ip}:{self._port}/report"}
        program = self.processes.start(self._program, env)
        code = await program.exited
        try:
            outcome = Outcome.model_validate_json(self.pod.outcome_path.read_bytes())
        except FileNotFoundError:
            raise _vanished(code) from None
        logger.info("The program ended with exit code %d: %s", code, outcome.outcome or outcome.error_class)
        return outcome if outcome.attempt else outcome.model_copy(update={"attempt": self.progress.attempt})

    async def _follow(self) -> Outcome:
        """Be a node of the head's Ray cluster, whichever pod the head is, until the stage is over."""
        while True:
            head = await self._find_head()
            if head is None:
                await self._ask_head(leaving=True)
                return Outcome(outcome=None)
            ranks, cpus = (self.config.ranks_per_pod, 0) if self.stage == "Train" else (0, prepare_slots())
            command = start_command(self.pod, ranks, cpus, f"{head.address}:{GCS_PORT}")
            logger.info("Joining Ray at %s, pod %s", head.address, head.uid)
            ray = self.processes.start(command, environment(os.environ, ranks), quiet=True)
            self._say("Starting", f"Joining the head {self.pod.head}.")
            over = await self._stay(ray, head.uid)
            await self.processes.kill_all()  # Ray's helpers outlive the raylet, and ranks may hang in a collective
            if over:
                await self._ask_head(leaving=True)
                return Outcome(outcome=None)

    async def _find_head(self) -> Head | None:
        """Wait until the head and its Ray answer; None when the stage is over."""
        while True:
            self._say("Starting", f"Waiting for the head {self.pod.head}.")
            head = await self._ask_head()
            if head is not None and head.state == "Done":
                return None
            if head is not None and await _answers(head.address, GCS_PORT):
                return head
            await asyncio.sleep(POLL)

    async def _stay(self, ray: Child, uid: str) -> bool:
        """Stay in the cluster; True when the stage is over, False when Ray ended here or the head was replaced."""
        while ray.running:
            head = await self._ask_head()
            if head is not None and head.uid != uid:
                logger.info("The head was replaced by pod %s", head.uid)
                return False
            if head is not None and head.state == "Done":
                return True
            if head is not None and head.state != "Draining":  # it means its own pod, or all ranks
                self._say(head.state, f"Follows the head {self.pod.head}.")
            await asyncio.wait({ray.exited}, timeout=POLL)
        logger.warning("Ray ended here with exit code %d", ray.exited.result())
        return False

    async def _ask_head(self, *, leaving: bool = False) -> Head | None:
        """The head as it answers now; None if it does not. `leaving`: tell it that this pod ends.

        While a head is replaced its name may have the addresses of both pods, or of a pod of somebody else.
        """
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.pod.head, self._port, family=socket.AF_INET, type=socket.SOCK_STREAM)
        except OSError:
            return None
        answers = await asyncio.gather(*(self._ask(str(address[0]), leaving) for *_, address in found))
        return next((head for head in answers if head is not None), None)

    async def _ask(self, address: str, leaving: bool) -> Head | None:
        timeout = aiohttp.ClientTimeout(total=2)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session:
                url = f"http://{address}:{self._port}/progress"
                async with session.get(url, params={"leaving": self.pod.name} if leaving else None) as response:
                    seen: dict[str, Any] = await response.json()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return None
        if (seen.get("jobUid"), seen.get("stage")) != (self.pod.job_uid, self.stage):
            return None
        return Head(str(seen["podUid"]), address, seen["state"])

    async def _drained(self) -> Outcome:
        """Completes when the pod was asked to stop and has nothing left to wait for."""
        await self._stopping.wait()
        if self.pod.is_head and self.stage == "Train":
            await asyncio.Event().wait()  # the driver sees the flag and ends by itself
        while self._ranks_running():  # noqa: ASYNC110 other processes, which send no event
            await asyncio.sleep(POLL)
        raise Drained("The pod was asked to stop.", "Nothing to do.", step=self.progress.step)

    def _ranks_running(self) -> bool:
        """Whether a process of this pod that has begun to train still lives. Ray Train ends it after the last rank."""
        return any(Path("/proc", entry.name).exists() for entry in self.pod.ranks.iterdir())

    async def _tell(self, outcome: Outcome) -> None:
        """Let the followers see that the stage is over, and end first: then all pods of a finished gang are done."""
        self.progress.end("Done", outcome.cause.partition("\n")[0][:500] or "The stage is over.")
        if not self.pod.is_head or self.pod.replicas == 1 or self._stopping.is_set() or outcome.error_class:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.server.wait_left(self.pod.replicas - 1), TELL)

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
        for leftover in (self.pod.drain_flag, self.pod.outcome_path, *self.pod.ranks.iterdir()):
            leftover.unlink(missing_ok=True)

    def _write_termination(self, outcome: Outcome) -> None:
        try:
            self.pod.termination_log.write_bytes(outcome.message())
        except OSError:
            logger.exception("The termination message cannot be written: %s", outcome.message().decode())


def _vanished(code: int) -> TrainerError:
    if code == -signal.SIGKILL:
        return WorkerLost(
            "The driver was killed (SIGKILL) without a word.",
            "If this repeats, the pod is probably out of memory: raise spec.workers.resources.memory.",
            rank=0,
        )
    return TrainerError(f"The program ended with exit code {code} and left no outcome.", "Look at the pod's log.")


async def _answers(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), timeout=2)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
