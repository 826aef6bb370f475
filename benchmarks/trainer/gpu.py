"""`python -m benchmarks.trainer.gpu`: the trainer on one GPU, tokens a second and MFU of the GPT decoders.

Its own loop, as `python -m trainingjob_trainer.train` runs it: data from a directory, bfloat16, compiled blocks, AdamW,
clipping. The figures are those that it reports as it trains, each the median of some intervals after the first ones, in
which kernels are compiled. Nothing of Kubernetes, Ray and S3 is needed: PyTorch, pydantic and NumPy are.

The case *checkpoint* is what a save into the directory costs such a run: steps are short, the one after a save waits
until the state is copied, and those until the COMMIT share the machine with the threads that hash and write it.

Without a GPU the same runs with models so small that the figures mean nothing.
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import torch
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.commits import latest
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import MANIFEST_KEY
from trainingjob_trainer.errors import Hang
from trainingjob_trainer.loop import train
from trainingjob_trainer.standstill import Stand
from trainingjob_trainer.stop import Stop
from trainingjob_trainer.storage import open_store

from benchmarks.trainer import subject
from benchmarks.trainer.figures import Figure, about, table, write

OUT = Path("benchmarks/out/trainer-gpu.json")
VOCABULARY = 50257  # GPT-2's
INTERVALS, DISCARDED, STEPS = 5, 1, 2  # intervals of so many steps; the first ones don't count
SAVES, EVERY = 5, 150  # checkpoints, and the steps before each; the first one page-locks memory, and doesn't count
DATA = 2**24  # bytes of tokens; evaluations, which read them too, are further away than a run is long


@dataclass(frozen=True)
class Case:
    """A model and how its batches are cut. `aim`: the MFU to reach, in per cent."""

    preset: str
    length: int
    rows: int  # of one pass
    passes: int  # of one step
    aim: int | None = None

    @property
    def name(self) -> str:
        return f"{self.preset}_{self.length}"

    @property
    def what(self) -> str:
        return f"{self.preset}, {self.length} tokens, {self.rows} x {self.passes} rows"


# Batches of a quarter to half a million tokens, those of 1.3b an eighth; as many rows at once as 80 GB hold with ease.
ON_GPU = [
    Case("gpt-124m", 1024, 128, 4, 45),
    Case("gpt-124m", 2048, 64, 4, 45),
    Case("gpt-350m", 1024, 64, 4, 48),
    Case("gpt-350m", 2048, 32, 4, 48),
    Case("gpt-1.3b", 1024, 16, 8, 52),
    Case("gpt-1.3b", 2048, 8, 8, 52),
]
ON_CPU = [Case("gpt-nano", 64, 2, 2), Case("gpt-nano", 128, 1, 2)]
SAVED = {True: Case("gpt-124m", 1024, 16, 1), False: Case("gpt-nano", 64, 2, 1)}  # with a GPU, without
CHECKPOINT = "checkpoint"

Measure = Callable[[Path], list[Figure]]  # in an empty directory


class _Enough(Exception):
    """Ends a run when its figures are there: no checkpoint, no evaluation."""


class _Record:
    """Hooks that keep what the loop reports of its speed, until there are so many reports or commits."""

    def __init__(self, *, intervals: int | None = None, commits: int | None = None) -> None:
        self.tokens_per_second: list[float] = []
        self.metrics: list[dict[str, float]] = []
        self.first_step_s = 0.0
        self.committed: list[tuple[int, float]] = []  # after so many reports, and when
        self.reported: list[float] = []  # when
        self._intervals, self._commits = intervals, commits
        self._begun = time.perf_counter()

    def report(self, fields: Mapping[str, Any]) -> None:
        """Keep the figures of an interval, and when a checkpoint was committed."""
        now = time.perf_counter()
        if "firstStepAt" in fields:
            self.first_step_s = now - self._begun
        if fields.get("checkpoint"):
            self.committed.append((len(self.reported), now))
        progress = fields.get("progress")
        if progress is not None and "metrics" in progress:
            self.reported.append(now)
            self.tokens_per_second.append(progress["tokensPerSecond"])
            self.metrics.append(progress["metrics"])
        if len(self.metrics) == self._intervals or len(self.committed) == self._commits:
            raise _Enough

    def stop_requested(self) -> Stop:
        """Nobody asks."""
        return Stop.NO

    def stands(self, stand: Stand | None) -> None:
        """There are no others to compare it with."""

    def hung(self, error: Hang) -> NoReturn:
        """Ends the benchmark."""
        sys.exit(str(error))


def measure(case: Case, directory: Path) -> list[Figure]:
    """Train a case for some steps."""
    record = train_until(_Record(intervals=INTERVALS), job(case, directory, log_every=STEPS))
    speeds, metrics = record.tokens_per_second[DISCARDED:], record.metrics[DISCARDED:]
    figures = [
        Figure.of(f"{case.name}_tokens_per_s", f"{case.what}: speed", speeds, "tokens/s"),
        Figure(f"{case.name}_first_step_s", f"{case.what}: until the first step", record.first_step_s, "s"),
    ]
    shares = [100 * one["mfu"] for one in metrics if "mfu" in one]
    if shares:
        aim = f">= {case.aim}" if case.aim else ""
        figures.insert(1, Figure.of(f"{case.name}_mfu_percent", f"{case.what}: MFU", shares, "%", aim))
    if "deviceMemoryGiB" in metrics[-1]:
        memory = metrics[-1]["deviceMemoryGiB"]
        figures.append(Figure(f"{case.name}_memory_gib", f"{case.what}: GPU memory, at most", memory, "GiB"))
    return figures


def measure_saves(case: Case, directory: Path) -> list[Figure]:
    """What a save costs training."""
    config = job(case, directory, log_every=1, saved_every=EVERY)
    record = train_until(_Record(commits=SAVES), config)
    steps = [one["stepSeconds"] for one in record.metrics]
    waits, longer, meanwhile, seconds = [], [], [], []
    for number, (reports, when) in enumerate(record.committed[DISCARDED:], start=DISCARDED + 1):
        after = number * EVERY  # the index of the step after the save
        calm = median(steps[after - EVERY // 4 : after])
        waits.append(record.metrics[after]["checkpointWaitSeconds"])
        longer.append(steps[after] - calm)
        meanwhile.append(median(steps[after + 1 : reports] or [calm]) / calm)
        seconds.append(when - record.reported[after - 1])
    newest = latest(open_store(config.output_uri, config.storage))
    assert newest is not None, "it was told of"
    return [
        Figure("saved_mib", f"{case.what}: a checkpoint", sum(one.size for one in newest.objects) / 2**20, "MiB"),
        Figure.of("save_blocks_s", f"{case.what}: a save keeps the training thread for", waits, "s"),
        Figure.of("save_longer_s", f"{case.what}: the step after a save takes longer by", longer, "s"),
        Figure.of("save_committed_s", f"{case.what}: a save is committed after", seconds, "s"),
        Figure.of("save_slowdown", f"{case.what}: steps until then take longer by", meanwhile),
    ]


def train_until(record: _Record, config: JobConfig) -> _Record:
    """Train on random tokens until the record has enough."""
    store = open_store(config.output_uri, config.storage)
    shard = subject.put_shard(store, 0, DATA, VOCABULARY)
    store.put(MANIFEST_KEY, subject.tokens(VOCABULARY, [shard], DATA).to_json())
    with suppress(_Enough):
        train(config, Attempt.take(store, 0), record)
    return record


def job(case: Case, directory: Path, *, log_every: int, saved_every: int = 10_000) -> JobConfig:
    """A run that would go on for longer than it is let."""
    spec: dict[str, Any] = {
        "name": "bench",
        "namespace": "default",
        "ranksPerPod": 1,
        "maxRestarts": 0,
        "storage": {},
        "outputUri": str(directory),
        "data": {"train": {"uri": f"{directory}/none"}},
        "model": {"preset": case.preset},
        "evaluation": {"everySteps": 10_000},
        "checkpoint": {"everySteps": saved_every, "keepLast": 1, "keepBest": 0},
        "training": {
            "steps": 1000,
            "globalBatchSize": case.rows * case.passes,
            "microBatchSize": case.rows,
            "sequenceLength": case.length,
            "compile": "auto" if torch.cuda.is_available() else "always",
            "logEvery": log_every,
        },
    }
    return JobConfig.model_validate(spec)


def run(chosen: Mapping[str, Measure]) -> list[Figure]:
    """Cases, one after another."""
    figures: list[Figure] = []
    for number, (name, measured) in enumerate(chosen.items(), start=1):
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {number} of {len(chosen)}: {name}\n")
        with tempfile.TemporaryDirectory(prefix="bench-gpu-") as scratch:
            figures += measured(Path(scratch))
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return figures


def cases() -> dict[str, Measure]:
    """What there is to measure on this machine, by name."""
    gpu = torch.cuda.is_available()
    speeds = {case.name: partial(measure, case) for case in (ON_GPU if gpu else ON_CPU)}
    return {**speeds, CHECKPOINT: partial(measure_saves, SAVED[gpu])}


def main() -> int:
    """Measure, print the table, leave the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer.gpu")
    known = cases()
    names = ", ".join(known)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {names} (default: all)")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FILE", help="the JSON (default: %(default)s)")
    given = parser.parse_args()
    unknown = set(given.cases) - set(known)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not one of {names}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU: these figures mean nothing"
    figures = run({name: known[name] for name in known if not given.cases or name in given.cases})
    write(figures, given.out, {"device": device, **about(("torch",))})
    sys.stdout.write(f"{device}\n{table(figures)}\n\n{given.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
