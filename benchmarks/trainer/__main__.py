"""`python -m benchmarks.trainer [SUBJECT ...]`, inside the sandbox for those that need an S3 server.

Each subject has a process of its own: memory that another has left free makes reads faster, boto3's above all.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from trainingjob_local.process import StartError

from benchmarks.trainer.arms import TooNoisy
from benchmarks.trainer.figures import OUT, Figure, about, table, write
from benchmarks.trainer.subjects import SUBJECTS, measure, say


def main() -> int:
    """Measure, print the table, leave the JSON."""
    parser = argparse.ArgumentParser(prog="python -m trainingjob_local.sandbox -- python -m benchmarks.trainer")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="the JSON (default: %(default)s)")
    given = parser.parse_args()
    unknown = [subject for subject in given.subjects if subject not in SUBJECTS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(SUBJECTS)}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all of it is about the host; benchmarks.trainer.gpu is about GPUs
    begun, figures, noisy = time.monotonic(), list[Figure](), False
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        for subject in given.subjects or SUBJECTS:
            try:
                figures += processes.submit(measure, subject, begun).result()
            except TooNoisy as error:
                noisy = True
                figures += error.figures
                say(begun, f"{subject}: machine too noisy, so there are no figures by the clock")
            except StartError as error:
                sys.stderr.write(f"{error}\n")
                return 1
    if figures:
        write(figures, given.out, about())
        sys.stdout.write(f"{table(figures)}\n\n{given.out}\n")
    return int(noisy)


if __name__ == "__main__":
    sys.exit(main())
