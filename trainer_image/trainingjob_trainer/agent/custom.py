"""A command of the user's: one process a pod, with the environment that torch.distributed and torchrun ask for."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import Mapping
from typing import Any

from ..config import PodConfig
from ..errors import Drained, UserError, WorkerLost
from ..network import interface_of
from ..outcome import Outcome
from .agent import POLL, Agent
from .kubeflow import Endpoint
from .pod import AGENT_PORT, Pod
from .processes import Child
from .progress import Report

FIRST_PORT, PORTS = 29500, 100  # of torch.distributed's rendezvous


class CustomAgent(Agent):
    """Runs the command once. The gang is of one incarnation: index 0 knows its followers, and they it, by that number.

    The pod ends as the command does: with its exit code, and with the end of its log as the termination message.
    """

    def __init__(self, pod: Pod, port: int = AGENT_PORT) -> None:
        super().__init__(pod, "Train", None, port)
        self._config = pod.any_config()
        self._token = secrets.token_hex(32)
        self._command: Child | None = None
        self._failed = 0
        self.progress.take(Report(attempt=pod.incarnation, world_size=pod.replicas * self._config.ranks_per_pod))
        self.server.routes.add_post("/progress", Endpoint(self.progress, self._token).post)

    async def _work(self) -> Outcome:
        """Run the command. Raises `Drained` if it ended because it was asked to."""
        self._say("Starting", f"Waiting for the head {self.pod.head}.")
        while await self._ask_head() is None:  # noqa: ASYNC110 another pod, which sends no event
            await asyncio.sleep(POLL)
        self._command = self._start()
        self._say("Training", "The command runs.")
        code = await self._command.exited
        if self._stopping.is_set():
            raise Drained("The pod was asked to stop.", step=self.progress.step)
        if code:
            self._failed = _exit_code(code)
            return Outcome.failure(WorkerLost(f"The command ended with exit code {self._failed}."))
        if not self.pod.is_head:
            await self._ask_head(leaving=True)
            return Outcome(outcome=None)
        known = self.progress.wire()
        result = {name: known[name] for name in ("progress", "evaluation") if known[name] is not None}
        return Outcome(outcome="Finished", step=self.progress.step, attempt=self.pod.incarnation, result=result)

    async def _drained(self) -> Outcome:
        """Pass SIGTERM on; the command then ends by itself, or with the pod's grace period."""
        await self._stopping.wait()
        if self._command is None:
            raise Drained("The pod was asked to stop before its command was started.")
        self._command.send(signal.SIGTERM)
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    def _leave(self, outcome: Outcome) -> int:
        """A failed command has said itself why: without a message of ours, Kubernetes takes the end of the log."""
        return self._failed or super()._leave(outcome)

    def _is_head(self, seen: dict[str, Any]) -> bool:
        return super()._is_head(seen) and seen.get("attempt") == self.pod.incarnation

    def _start(self) -> Child:
        custom = self._config.task.custom
        assert custom is not None  # says the configuration's validator
        command = [*custom.command, *custom.args]
        try:
            return self.processes.start(command, environment(os.environ, self.pod, self._config, self._port))
        except OSError as error:
            raise UserError(
                f"The command cannot be started: {error}.", "Correct spec.task.custom.command, or the image."
            ) from error

    def _prepare_files(self) -> None:
        super()._prepare_files()
        self.pod.kubeflow_token.unlink(missing_ok=True)
        self.pod.kubeflow_token.touch(0o600)
        self.pod.kubeflow_token.write_text(self._token)


def environment(base: Mapping[str, str], pod: Pod, config: PodConfig, agent_port: int) -> dict[str, str]:
    """The command's environment. `base`, the pod's own, wins; but a proxy in it is not for the agent's address."""
    port, interface = str(FIRST_PORT + pod.incarnation % PORTS), interface_of(pod.ip)
    own = {
        # For a script that is one process a pod; torchrun sets its own for its children.
        "MASTER_ADDR": pod.head,
        "MASTER_PORT": port,
        "WORLD_SIZE": str(pod.replicas),
        "RANK": str(pod.index),
        "LOCAL_WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        # Defaults of torchrun's options.
        "PET_NNODES": str(pod.replicas),
        "PET_NODE_RANK": str(pod.index),
        "PET_NPROC_PER_NODE": str(config.ranks_per_pod),
        "PET_MASTER_ADDR": pod.head,
        "PET_MASTER_PORT": port,
        # Left alone, gloo takes the interface that the host's name leads to, and NCCL the first that it likes.
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "KUBEFLOW_TRAINER_SERVER_URL": f"http://{pod.ip}:{agent_port}/progress",
        "KUBEFLOW_TRAINER_SERVER_TOKEN": str(pod.kubeflow_token),
    }
    optional = {
        "TRAININGJOB_OUTPUT_URI": config.output_uri,
        "AWS_ENDPOINT_URL_S3": config.storage.endpoint_url,
        "AWS_REGION": config.storage.region,
    }
    direct = ",".join(filter(None, (base.get("no_proxy") or base.get("NO_PROXY"), pod.ip)))
    given = {name: value for name, value in optional.items() if value is not None}
    return {**own, **given, **base, "no_proxy": direct, "NO_PROXY": direct}


def _exit_code(code: int) -> int:
    """The pod's exit code for a command's. A signal's is a shell's; 30 would say that the pod was asked to stop."""
    if code < 0:
        return 128 - code
    return 1 if code == Drained.exit_code else code
