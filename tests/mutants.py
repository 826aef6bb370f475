"""Bugs that are put into a copy of the trainer, one at a time: the tests must find each of them.

    python tests/mutants.py [NAME ...]

A mutant survives if its tests pass. The exit code is 0 if none does, and if the same tests pass on the unchanged copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

TRAINER = Path(__file__).parent.parent / "trainer_image" / "trainingjob_trainer"
PYTEST = (
    str(Path(sys.executable).with_name("pytest")),
    "-q",
    "-x",
    "--no-header",
    "-p",
    "no:cacheprovider",
    "-m",
    "not slow",
)
SANDBOX = (sys.executable, "-m", "trainingjob_local.sandbox", "--")
PASSED, FAILED = 0, 1


@dataclass(frozen=True)
class Mutant:
    """A bug: in `file`, `old` (which is there once) becomes `new`. `tests` have to find it."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "gradients are divided by the number of ranks once more",
        "parallel/gradients.py",
        "    torch._foreach_mul_(gradients, factor.to(",
        "    torch._foreach_mul_(gradients, (factor / world.size).to(",
        ("tests/unit/test_layouts.py::test_losses_and_weights_are_those_of_one_process",),
    ),
    Mutant(
        "a resumed run reads one batch late",
        "loop.py",
        "        steps = range(start, training.total_steps)\n        rows = training_rows(steps, ",
        "        steps = range(start, training.total_steps)\n"
        "        late = range(start + bool(start), training.total_steps + bool(start))\n"
        "        rows = training_rows(late, ",
        ("tests/unit/test_loop_runs.py::test_a_killed_run_resumes_bit_for_bit",),
    ),
    Mutant(
        "moments are not restored",
        "checkpoint/checkpointer.py",
        "            dict(tensors),\n            storage_reader",
        "            {name: t for name, t in tensors.items() if not name.startswith('optimizer.')},\n"
        "            storage_reader",
        ("tests/unit/test_checkpoint_state.py",),
    ),
    Mutant(
        "rows that only fill up a batch count in an evaluation",
        "evaluation/evaluate.py",
        "weightless(batch.targets[:1]).expand",
        "batch.targets[:1].expand",
        ("tests/unit/test_evaluation_ranks.py",),
    ),
    Mutant(
        "gradients are clipped by the norm of a rank's shards",
        "parallel/gradients.py",
        "    world.sum(totals)\n",
        "    world.sum(totals)\n    totals[0] = squares\n",
        ("tests/unit/test_layouts.py::test_losses_and_weights_are_those_of_one_process",),
    ),
    Mutant(
        "an image changes by its place in the batch",
        "data/augmentation.py",
        "_Numbers(self._seed, np.asarray(draws))",
        "_Numbers(self._seed, np.arange(len(rows)))",
        ("tests/unit/test_augmentation.py::test_a_draw_means_the_same_pixels_whatever_batch_it_is_in",),
    ),
    Mutant(
        "COMMIT.json is written before all that it names",
        "checkpoint/checkpointer.py",
        "            self._store.put(progress.key, record)\n"
        "            self._commit(step, metrics, [*writer.objects, progress])\n",
        "            self._commit(step, metrics, [*writer.objects, progress])\n"
        "            self._store.put(progress.key, record)\n",
        ("tests/cluster/test_checkpoint_crash.py::test_a_kill_around_the_commit_leaves_the_last_committed_step",),
    ),
)


def run(tests: tuple[str, ...], mutant: Mutant | None) -> tuple[int, str]:
    """pytest's exit code and output, with a copy of the trainer in place of the installed one."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as directory:
        copy = Path(directory, TRAINER.name)
        shutil.copytree(TRAINER, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            change(copy / mutant.file, mutant)
        command = (*PYTEST, *tests)
        if any(test.startswith("tests/cluster") for test in tests):
            command = (*SANDBOX, *command)
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": directory}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def change(file: Path, mutant: Mutant) -> None:
    """Put the bug in. Exits if the code that it changes has changed."""
    text = file.read_text()
    if text.count(mutant.old) != 1:
        sys.exit(f"{mutant.file} has not exactly one place for the mutant «{mutant.name}»: correct it in {__file__}")
    file.write_text(text.replace(mutant.old, mutant.new))


def judge(tests: tuple[str, ...], mutant: Mutant | None, wanted: int) -> bool:
    """Run, and tell how it went; whether it is as wanted."""
    begun = time.monotonic()
    code, output = run(tests, mutant)
    what = "without a bug, all pass" if mutant is None else f"{mutant.name}: found"
    sys.stdout.write(f"{'✓' if code == wanted else '✗'} {what}  ({time.monotonic() - begun:.0f} s)\n")
    sys.stdout.flush()
    if code != wanted:
        sys.stdout.write(f"pytest ended with {code} instead of {wanted}:\n{output[-4000:]}\n")
    return code == wanted


def main(names: list[str]) -> int:
    """Judge the mutants whose names have one of `names` in them, or all; an exit code."""
    chosen = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    tests = tuple(sorted({test for mutant in chosen for test in mutant.tests}))
    well = [judge(tests, None, PASSED), *(judge(mutant.tests, mutant, FAILED) for mutant in chosen)]
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
