"""The head's side of the job's Ray cluster: start it, and wait until every pod of the gang is part of it."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from .agent.pod import AGENT_PORT, Pod
from .agent.processes import kill_session
from .errors import Drained, TrainerError
from .ray_node import DRIVER_ENV, GCS_PORT, INDEX_LABEL, RANK_RESOURCE, environment, start_command

logger = logging.getLogger(__name__)

START_TIMEOUT = 120.0  # seconds
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

    def wait_for_pods(self, say: Callable[[str], None]) -> list[dict[str, Any]]:
        """Wait until Ray's living nodes are exactly the gang's pods; returns them. Raises `Drained`.

        A lost pod stays in Ray's list until it misses its health checks, and a draining one until it ends; either would
        be given a rank. So each node must be answered for by its agent.
        """
        import ray

        said = ""
        while True:
            self._check_drain()
            nodes = [node for node in ray.nodes() if node["Alive"]]
            ready = {node["Labels"].get(INDEX_LABEL) for node in nodes if self._is_ready(node)}
            expected = {str(index) for index in range(self._pod.replicas)}
            message = f"Waiting for {len(expected - ready)} of {len(expected)} pods to join."
            if ready == expected and len(nodes) > len(expected):
                message = "Waiting for lost pods to leave Ray's list of nodes."
            elif ready == expected:
                slots = sum(node["Resources"].get(RANK_RESOURCE, 0) for node in nodes)
                if ray.available_resources().get(RANK_RESOURCE, 0) == slots:
                    return nodes
                message = "Waiting for the last attempt's ranks to end."
            if message != said:
                say(message)
                said = message
            time.sleep(POLL)

    def _is_ready(self, node: dict[str, Any]) -> bool:
        address = node["NodeManagerAddress"]
        if address == self._pod.ip:
            return True
        try:
            with urllib.request.urlopen(f"http://{address}:{AGENT_PORT}/progress", timeout=1) as response:
                seen = json.load(response)
        except (OSError, ValueError):
            return False
        return seen.get("jobUid") == self._pod.job_uid and seen.get("state") not in ("Draining", "Done")

    def _check_drain(self) -> None:
        if self._pod.drain_flag.exists():
            raise Drained("The pod was asked to stop before training began.")


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
