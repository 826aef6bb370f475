"""How a pod becomes a node of the job's Ray cluster. Every port is fixed or bounded, so a NetworkPolicy can name it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from .agent.pod import Pod

GCS_PORT = 6379
TRAIN_OBJECT_STORE = 128 * 2**20  # bytes of /dev/shm; training passes next to nothing through it
PREPARE_OBJECT_STORE = 512 * 2**20  # Ray Data's blocks; what does not fit is spilled to /tmp
RANK_RESOURCE = "rank"
INDEX_LABEL = "trainingjob.io/index"
INCARNATION_LABEL = "trainingjob.io/incarnation"

_ENV = {
    # A raylet gives a lost head up after this many seconds (default 60), so that its agent can look for the new one.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    # A raylet counts as dead after five failed looks in a row, a second apart: after 5 s where its address refuses,
    # after 15 s where nothing answers (default 65), so a living one may stand still for as long.
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
    # Ray gives its workers niceness 15: on a busy node the ranks would wait for everybody else.
    "RAY_worker_niceness": "0",
}

DRIVER_ENV = {
    # The head's log has the lines of all ranks, each with its rank's process before it.
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
}


def environment(base: Mapping[str, str], ranks: int) -> dict[str, str]:
    """Environment of Ray's processes, and through them of the ranks."""
    return {**_ENV, "OMP_NUM_THREADS": str(threads_per_rank(ranks)), **base}


def start_command(pod: Pod, ranks: int, cpus: int, head_address: str | None) -> list[str]:
    """`ray start` in the foreground: as head if `head_address` is None, else as a node of that head.

    `cpus` are slots for Ray Data's tasks; Ray starts so many idle workers in advance. Ranks and actors take none.
    """
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--block",
        "--log-style=record",
        "--disable-usage-stats",
        f"--node-ip-address={pod.ip}",
        "--object-manager-port=8076",
        "--node-manager-port=8077",
        "--dashboard-agent-grpc-port=8078",
        "--dashboard-agent-listen-port=8079",
        "--metrics-export-port=8081",
        "--runtime-env-agent-port=8082",
        "--min-worker-port=20000",
        "--max-worker-port=20999",
        f"--object-store-memory={TRAIN_OBJECT_STORE if ranks else PREPARE_OBJECT_STORE}",
        f"--num-cpus={cpus}",
        f"--resources={json.dumps({RANK_RESOURCE: ranks})}",
        f"--labels={INDEX_LABEL}={pod.index},{INCARNATION_LABEL}={pod.incarnation}",
    ]
    if head_address is None:
        return [
            *command,
            "--head",
            f"--port={GCS_PORT}",
            "--include-dashboard=false",
            "--no-monitor",
        ]
    return [*command, f"--address={head_address}"]


def cpu_limit() -> int | None:
    """Whole CPUs that the pod's cgroup allows, at least 1; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else max(1, int(quota) // int(period))


def prepare_slots() -> int:
    """CPU slots of a pod that prepares data; at least two, because Ray Data's stages run at the same time."""
    return max(2, cpu_limit() or 0)


def threads_per_rank(ranks: int) -> int:
    """Threads of a rank's CPU kernels: its share of the pod's limit; without a limit 1, as under torchrun."""
    limit = cpu_limit()
    return 1 if limit is None else max(1, limit // max(1, ranks))
