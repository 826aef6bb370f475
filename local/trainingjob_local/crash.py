"""Crash a pod as the machine would: from outside, without a word to Kubernetes."""

import os
import signal
from pathlib import Path


def crash(pod_uid: str) -> None:
    """SIGKILL the pod's PID 1, and with it all its processes. ProcessLookupError if the pod does not run here.

    A TrainingJob's pod is known by POD_UID in its environment; its PID 1 by the last of its namespaced pids.
    """
    os.kill(first_process(pod_uid), signal.SIGKILL)


def runs_here(pod_uid: str) -> bool:
    """Whether the pod's PID 1 runs on this machine, whatever Kubernetes knows of it."""
    return _find(pod_uid) is not None


def first_process(pod_uid: str) -> int:
    """The pod's PID 1 as it is known here. ProcessLookupError if the pod does not run here."""
    first = _find(pod_uid)
    if first is None:
        raise ProcessLookupError(f"no process of pod {pod_uid} runs here")
    return first


def _find(pod_uid: str) -> int | None:
    mark = f"POD_UID={pod_uid}".encode()
    found = (p for p in Path("/proc").iterdir() if p.name.isdigit() and _is_first_process(p, mark))
    return next((int(process.name) for process in found), None)


def _is_first_process(process: Path, mark: bytes) -> bool:
    try:
        if mark not in (process / "environ").read_bytes().split(b"\0"):
            return False
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("NSpid:") and line.split()[-1] == "1" and len(line.split()) > 2 for line in lines)
