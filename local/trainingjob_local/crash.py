"""Crash a pod as the machine would: from outside, without a word to Kubernetes."""

import os
import signal
from pathlib import Path


def crash(pod_uid: str) -> None:
    """SIGKILL the pod's PID 1, and with it all its processes. ProcessLookupError if the pod does not run here.

    A TrainingJob's pod is known by POD_UID in its environment; its PID 1 by the last of its namespaced pids.
    """
    mark = f"POD_UID={pod_uid}".encode()
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _is_first_process(process, mark):
            os.kill(int(process.name), signal.SIGKILL)
            return
    raise ProcessLookupError(f"no process of pod {pod_uid} runs here")


def _is_first_process(process: Path, mark: bytes) -> bool:
    try:
        if mark not in (process / "environ").read_bytes().split(b"\0"):
            return False
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("NSpid:") and line.split()[-1] == "1" and len(line.split()) > 2 for line in lines)
