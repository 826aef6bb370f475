"""What is measured, each subject by itself; it lies here because new processes import it by name."""

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import cast

from benchmarks.trainer.figures import Figure, Lab

# Imported where they are asked for: the first three need PyTorch, NumPy and pydantic only, and no server.
SUBJECTS = {
    "loops": "steps.measure_loops",
    "overhead": "steps.measure_overhead",
    "ranks": "steps.measure_ranks",
    "peers": "steps.measure_peers",
    "checkpoint": "checkpoint.measure",
    "loader": "loader.measure",
    "images": "images.measure",
}


def measure(subject: str, begun: float) -> list[Figure]:
    """The figures of one. `begun`: on the monotonic clock, of all that is measured."""
    module, function = SUBJECTS[subject].split(".")
    measured = cast("Callable[[Lab], list[Figure]]", getattr(import_module(f"benchmarks.trainer.{module}"), function))
    with tempfile.TemporaryDirectory(prefix="bench-trainer-") as scratch, ExitStack() as closing:
        return measured(Lab(Path(scratch), partial(say, begun), closing))


def say(begun: float, line: str) -> None:
    """Tell whoever waits what is going on."""
    sys.stderr.write(f"{time.monotonic() - begun:6.1f} s  {line}\n")
    sys.stderr.flush()
