"""`python -m benchmarks.operator_scale`, inside the sandbox."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from trainingjob_local.binaries import BinaryError
from trainingjob_local.process import StartError
from trainingjob_local.sandbox import SandboxError

from benchmarks.operator_scale import report
from benchmarks.operator_scale.lab import Lab
from benchmarks.operator_scale.measure import Figures, measure
from benchmarks.operator_scale.polling import poll


def main() -> int:
    """Measure, print the table, leave the JSON."""
    parser = argparse.ArgumentParser(prog="python -m trainingjob_local.sandbox -- python -m benchmarks.operator_scale")
    add = parser.add_argument
    add("--jobs", type=int, default=500, metavar="N", help="TrainingJobs of four pods (default: 500)")
    add("--rounds", type=int, default=3, metavar="N", help="how often, each between two floors (default: 3)")
    add("--suspended", type=int, default=0, metavar="N", help="then N suspended jobs, for the memory (default: none)")
    add("--kuberay", action="store_true", help="KubeRay as well, with as many RayClusters of four pods")
    add("--heads", type=int, default=1000, metavar="N", help="heads to poll (default: 1000)")
    add("--poll-seconds", type=float, default=20.0, metavar="S", help="for how long they are polled (default: 20)")
    add("--out", type=Path, default=report.OUT, metavar="FILE", help="where the JSON is left (default: %(default)s)")
    given = parser.parse_args()
    if min(given.jobs, given.rounds) < 1:
        parser.error("--jobs and --rounds must be 1 at least")
    begun = time.monotonic()

    def say(line: str) -> None:
        sys.stderr.write(f"{time.monotonic() - begun:6.1f} s  {line}\n")
        sys.stderr.flush()

    with tempfile.TemporaryDirectory(prefix="operator-scale-") as scratch:
        try:
            with Lab(Path(scratch)) as lab:
                work = measure(lab, given.jobs, given.rounds, given.suspended, given.kuberay, say)
                figures: Figures = asyncio.run(work)
        except (BinaryError, SandboxError, StartError) as error:
            sys.stderr.write(f"{error}\n")
            return 1
    say(f"polling {given.heads} heads")
    figures["polling"] = asyncio.run(poll(given.heads, given.poll_seconds))
    report.write(figures, given.out)
    sys.stdout.write(f"{report.table(figures)}\n\n{given.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
