"""The head's side of the job's Ray cluster: start it, and connect to it."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import time

from .agent.pod import Pod
from .agent.processes import kill_session
from .errors import Drained, TrainerError
from .ray_node import DRIVER_ENV, GCS_PORT, environment, start_command

logger = logging.getLogger(__name__)

START_TIMEOUT = 300.0  # seconds; on a busy node Ray gives a start of its own up after 30 s
POLL = 0.25
LOOK_AT_LOG = "Look at the pod's log."


class RayCluster:
    """Ray's head in this pod, and a connection to it. The agent ends both with the pod."""

    def __init__(self, pod: Pod, ranks: int, cpus: int) -> None:
        os.environ.update(DRIVER_ENV)  # before Ray is imported
        self._pod = pod
        self._command = start_command(pod, ranks, cpus, head_address=None)
        self._env = environment(os.environ, ranks)
        self._head = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # how to use it; warnings and errors go to stderr
            start_new_session=True,
        )

    def connect(self) -> None:
        """Connect this process as Ray's driver, as soon as the head answers."""
        import ray

        deadline = time.monotonic() + START_TIMEOUT
        while True:
            self._check_drain()
            late = time.monotonic() > deadline
            if self._head.poll() is not None:
                if late:
                    raise TrainerError(f"Ray's head ended with exit code {self._head.returncode}.", LOOK_AT_LOG)
                logger.warning("Ray's head ended with exit code %d; starting it again", self._head.returncode)
                kill_session(self._head.pid)  # on a busy machine it gives its own parts up after 30 s
                self._head = self._start()
            if _answers(self._pod.ip, GCS_PORT):
                try:
                    ray.init(address=f"{self._pod.ip}:{GCS_PORT}", log_to_driver=True, logging_level=logging.WARNING)
                    return
                except ConnectionError:  # the head answers, but is not a node of its own cluster yet
                    if late:
                        raise
            elif late:
                raise TrainerError(f"Ray's head did not answer within {START_TIMEOUT:.0f} s.", LOOK_AT_LOG)
            time.sleep(POLL)

    def _check_drain(self) -> None:
        if self._pod.drain_flag.exists():
            raise Drained("The pod was asked to stop before training began.")


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
