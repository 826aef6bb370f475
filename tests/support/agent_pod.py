"""A pod of one process: the agent, as a process of its own; what runs in it is Python source. No Kubernetes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from support.runs import PATIENCE, wait_until

TOKEN = "t" * 32
# Whether a name has an address is not for a busy resolver to say.
RUN_STAGE = """
import asyncio, logging, os, socket, sys
from trainingjob_trainer.agent import agent
from trainingjob_trainer.agent.pod import Pod
from trainingjob_trainer.agent.stage import StageAgent
logging.basicConfig(level=logging.INFO)
look_up = socket.getaddrinfo
def resolve(host, *args, **more):
    if host.endswith(".invalid"):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return look_up(host, *args, **more)
socket.getaddrinfo = resolve
stage, port, answer, *program = sys.argv[1:]
agent.CUT_OFF, agent.ANSWER = 1.0, float(answer)
sys.exit(asyncio.run(StageAgent(Pod.of(os.environ), stage, program, int(port)).run()))
"""
RUN_CUSTOM = """
import asyncio, logging, os, sys
from trainingjob_trainer.agent.custom import CustomAgent
from trainingjob_trainer.agent.pod import Pod
logging.basicConfig(level=logging.INFO)
sys.exit(asyncio.run(CustomAgent(Pod.of(os.environ), int(sys.argv[1])).run()))
"""
CONFIG = {
    "name": "job",
    "namespace": "default",
    "ranksPerPod": 1,
    "maxRestarts": 3,
    "outputUri": "/out",
}
TRAINING = {
    "data": {"train": {"uri": "/raw"}},
    "model": {"preset": "gpt-nano"},
    "training": {"steps": 300},
}


class AgentPod:
    """The pod, its directory and its answers."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.termination = directory / "termination-log"
        self.work = directory / "trainingjob"
        self.ranks = self.work / "ranks"
        (directory / "token").write_text(TOKEN)

    @classmethod
    def at(cls, directory: Path) -> AgentPod:
        """A pod on a port that nobody has."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            return cls(directory, probe.getsockname()[1])

    def start(
        self, stage: str, program: str = "", index: int = 0, head: str = "127.0.0.2", answer: float = PATIENCE
    ) -> subprocess.Popen[bytes]:
        """Start the agent of a stage of the trainer's; its program is Python source, its head has `answer` seconds."""
        arguments = [RUN_STAGE, stage, str(self.port), str(answer), sys.executable, "-c", program]
        return self._start(TRAINING, arguments, self.env(index, head))

    def start_custom(self, command: list[str], **env: str) -> subprocess.Popen[bytes]:
        """Start the agent of a custom command, index 0 if `env` does not say otherwise."""
        task = {"kind": "custom", "custom": {"command": command[:1], "args": command[1:]}}
        return self._start({"task": task}, [RUN_CUSTOM, str(self.port)], self.env(0, "127.0.0.1") | env)

    def env(self, index: int, head: str) -> dict[str, str]:
        """The environment that the operator gives."""
        return {
            **os.environ,
            "TRAININGJOB_CONFIG": str(self.directory / "config.json"),
            "TRAININGJOB_JOB_UID": "job-uid",
            "TRAININGJOB_ROLE": "train",
            "TRAININGJOB_INDEX": str(index),
            "TRAININGJOB_INCARNATION": "3",
            "TRAININGJOB_REPLICAS": "2",
            "TRAININGJOB_HEAD": head,
            "TRAININGJOB_TERMINATION_LOG": str(self.termination),
            "POD_NAME": "job-train-0-1",
            "POD_UID": "pod-uid",
            "POD_IP": "127.0.0.1",
            "RAY_AUTH_TOKEN_PATH": str(self.directory / "token"),
            "TMPDIR": str(self.directory),
            "OUTCOME": str(self.work / "outcome.json"),
            "FLAG": str(self.work / "drain"),
        }

    def healthy(self) -> bool:
        """Whether it serves."""
        try:
            return self.get("healthz") == "ok"
        except OSError:
            return False

    def get(self, path: str) -> str:
        """The body of a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{path}", timeout=PATIENCE) as response:
            text: str = response.read().decode()
        return text

    def progress(self) -> dict[str, Any]:
        """The body of `GET /progress`."""
        progress: dict[str, Any] = json.loads(self.get("progress"))
        return progress

    def post(self, path: str, body: bytes, token: str = TOKEN) -> int:
        """The status of a POST with a bearer token."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}", body, {"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                status: int = response.status
        except urllib.error.HTTPError as error:
            return error.code
        return status

    def message(self) -> dict[str, Any]:
        """The termination message."""
        message: dict[str, Any] = json.loads(self.termination.read_bytes())
        return message

    def end(self) -> None:
        """Leave nothing."""
        if self.process.poll() is None:
            programs = _children(self.process.pid)
            self.process.kill()
            for program in programs:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(program, signal.SIGKILL)
        self.process.wait()

    def _start(self, parts: dict[str, Any], arguments: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        (self.directory / "config.json").write_text(json.dumps({**CONFIG, **parts}))
        self.process = subprocess.Popen([sys.executable, "-c", *arguments], env=env)
        # A pod may be over before it is asked.
        wait_until("the agent serves", lambda: self.healthy() or self.process.poll() is not None, every=0.02)
        return self.process


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether the process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
