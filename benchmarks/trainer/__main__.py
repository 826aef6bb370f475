"""`python -m benchmarks.trainer [SUBJECT ...]`, inside the sandbox for those that need an S3 server."""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import cast

from trainingjob_local.process import StartError

from benchmarks.trainer.arms import TooNoisy
from benchmarks.trainer.figures import OUT, Figure, Lab, about, table, write

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


def main() -> int:
    """Measure, print the table, leave the JSON."""
    parser = argparse.ArgumentParser(prog="python -m trainingjob_local.sandbox -- python -m benchmarks.trainer")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="the JSON (default: %(default)s)")
    given = parser.parse_args()
    unknown = [subject for subject in given.subjects if subject not in SUBJECTS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(SUBJECTS)}")
    begun = time.monotonic()

    def say(line: str) -> None:
        sys.stderr.write(f"{time.monotonic() - begun:6.1f} s  {line}\n")
        sys.stderr.flush()

    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all of it is about the host; benchmarks.trainer.gpu is about GPUs
    figures: list[Figure] = []
    noisy = False
    with tempfile.TemporaryDirectory(prefix="bench-trainer-") as scratch, ExitStack() as closing:
        lab = Lab(Path(scratch), say, closing)
        for subject in given.subjects or SUBJECTS:
            try:
                figures += _measure(subject)(lab)
            except TooNoisy as error:
                noisy = True
                figures += error.figures
                say(f"{subject}: machine too noisy, so there are no figures by the clock")
            except StartError as error:
                sys.stderr.write(f"{error}\n")
                return 1
    if figures:
        write(figures, given.out, about())
        sys.stdout.write(f"{table(figures)}\n\n{given.out}\n")
    return int(noisy)


def _measure(subject: str) -> Callable[[Lab], list[Figure]]:
    module, function = SUBJECTS[subject].split(".")
    return cast("Callable[[Lab], list[Figure]]", getattr(import_module(f"benchmarks.trainer.{module}"), function))


if __name__ == "__main__":
    sys.exit(main())
