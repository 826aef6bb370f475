"""`python -m benchmarks.trainer [SUBJECT ...]`, inside the sandbox."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from trainingjob_local.process import StartError
from trainingjob_local.s3 import S3Server

from benchmarks.trainer import checkpoint, loader, peers
from benchmarks.trainer.arms import TooNoisy
from benchmarks.trainer.figures import OUT, Figure, Lab, about, table, write

SUBJECTS: dict[str, Callable[[Lab], list[Figure]]] = {
    "peers": peers.measure,
    "overhead": peers.measure_overhead,
    "ranks": peers.measure_ranks,
    "checkpoint": checkpoint.measure,
    "loader": loader.measure,
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

    figures: list[Figure] = []
    noisy = False
    with tempfile.TemporaryDirectory(prefix="bench-trainer-") as scratch:
        s3 = S3Server(Path(scratch))
        try:
            s3.wait_ready()
            for subject in given.subjects or SUBJECTS:
                try:
                    figures += SUBJECTS[subject](Lab(s3, Path(scratch), say))
                except TooNoisy:
                    noisy = True
                    say(f"{subject}: machine too noisy, so there are no figures")
        except StartError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        finally:
            s3.close()
    if figures:
        write(figures, given.out, about())
        sys.stdout.write(f"{table(figures)}\n\n{given.out}\n")
    return int(noisy)


if __name__ == "__main__":
    sys.exit(main())
