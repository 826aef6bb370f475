"""A stage of the trainer's own: lead the gang (index 0) with the stage's program, or be a node of its head's Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from ..errors import Drained, TrainerError, WorkerLost
from ..outcome import Outcome
from ..ray_node import GCS_PORT, environment, prepare_slots, start_command
from .agent import POLL, Agent, Head, Stage
from .pod import AGENT_PORT, Pod
from .processes import Child

logger = logging.getLogger(__name__)


class StageAgent(Agent):
    """The agent of `check`, `prepare-data` and `train`. `program` runs on index 0 and leaves an outcome."""

    def __init__(self, pod: Pod, stage: Stage, program: Sequence[str], port: int = AGENT_PORT) -> None:
        self.config = pod.config()
        self._program = program
        super().__init__(pod, stage, self.config.training.steps if stage == "Train" else None, port)

    async def _work(self) -> Outcome:
        return await (self._lead() if self.pod.is_head else self._follow())

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
