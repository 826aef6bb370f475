"""Steps: the trainer's loop against a bare loop, a bare FSDP2 script on two ranks, and two other trainers.

A ratio is the median over blocks of how many times as fast ours is. What ours adds to a step is measured on a model so
small that little else is left. Data lies in a directory, and one thread computes in each rank: what is compared is what
loops do around the same kernels. `python -m benchmarks.trainer.steps` is one of the two ranks.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import MANIFEST_KEY
from trainingjob_trainer.storage import open_store

from benchmarks.trainer import loops, subject
from benchmarks.trainer.arms import Arm, Pair, TooNoisy, Turn, compare, most_steps
from benchmarks.trainer.figures import Figure, Lab

MODEL = {"layers": 4, "dim": 128, "heads": 4}  # 1.1 million weights
SMALL = {"layers": 2, "dim": 64, "heads": 4}  # 0.1 million
VOCABULARY, SMALL_VOCABULARY = 2048, 256
BATCH = {"globalBatchSize": 8, "sequenceLength": 128}
SMALL_BATCH = {"globalBatchSize": 1, "sequenceLength": 32}
BLOCKS, SMALL_BLOCKS = 50, 100
TURN, SMALL_TURN = 2, 10  # steps, and all loops read their loss in the last of so many
RANKS = 2

LOOPS: Mapping[str, Callable[[loops.Work, Turn], None]] = {
    "ours": loops.ours,
    "bare": loops.bare,
    "bare again": loops.bare,
    "Trainer": loops.hugging_face,
    "Fabric": loops.fabric,
}
NULL, OURS = ("bare", "bare again"), ("bare", "ours")
# Of mallopt(3), see `_keep_memory`.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def measure_loops(lab: Lab) -> list[Figure]:
    """About a minute."""
    null, loop = _measured(_config(lab, MODEL, VOCABULARY, TURN, BATCH), [NULL, OURS], BLOCKS, lab.say)
    bare = [1000 * one.clock for one, _ in loop.blocks]
    return [
        Figure.of("bare_step_ms", "steps: of a bare loop", bare, "ms"),
        Figure.of("null_vs_bare", "steps: a bare loop / its twin", null.ratios, "", "0.99-1.01"),
        Figure.of("loop_vs_bare", "steps: a bare loop / ours", loop.ratios, "", ">= 0.98"),
    ]


def measure_peers(lab: Lab) -> list[Figure]:
    """About two minutes. What the others add to a small step is why ours is faster than they are, where it is."""
    config = _config(lab, MODEL, VOCABULARY, TURN, BATCH)
    _, trainer, fabric = _measured(config, [NULL, ("Trainer", "ours"), ("Fabric", "ours")], BLOCKS, lab.say)
    config = _config(lab, SMALL, SMALL_VOCABULARY, SMALL_TURN, SMALL_BATCH)
    pairs = _measured(config, [NULL, ("bare", "Trainer"), ("bare", "Fabric")], SMALL_BLOCKS, lab.say)
    adds, fabric_adds = ([1000 * more.clock for more in pair.differences] for pair in pairs[1:])
    return [
        Figure.of("vs_hf_trainer", "steps: transformers.Trainer / ours", trainer.ratios, "", ">= 0.98"),
        Figure.of("vs_fabric", "steps: Lightning Fabric / ours", fabric.ratios, "", ">= 0.98"),
        Figure.of("hf_trainer_step_overhead_ms", "small steps: transformers.Trainer adds", adds, "ms"),
        Figure.of("fabric_step_overhead_ms", "small steps: Lightning Fabric adds", fabric_adds, "ms"),
    ]


def measure_overhead(lab: Lab) -> list[Figure]:
    """Half a minute. Where the machine is too noisy, the CPU time remains."""
    config = _config(lab, SMALL, SMALL_VOCABULARY, SMALL_TURN, SMALL_BATCH)
    (null, loop), calm = _taken(config, [NULL, OURS], SMALL_BLOCKS, lab.say)
    (twin, twin_cpu), (ours, ours_cpu) = (
        ([1000 * more.clock for more in pair.differences], [1000 * more.cpu for more in pair.differences])
        for pair in (null, loop)
    )
    cpu = [
        Figure.of("null_step_overhead_cpu_ms", "small steps: a bare loop's twin adds, CPU of thread", twin_cpu, "ms"),
        Figure.of("own_step_overhead_cpu_ms", "small steps: ours adds, CPU of thread", ours_cpu, "ms"),
    ]
    if not calm:
        raise TooNoisy(cpu)
    bare = [1000 * one.clock for one, _ in loop.blocks]
    return [
        Figure.of("small_bare_step_ms", "small steps: of a bare loop", bare, "ms"),
        Figure.of("null_step_overhead_ms", "small steps: a bare loop's twin adds", twin, "ms"),
        Figure.of("own_step_overhead_ms", "small steps: ours adds", ours, "ms", "<= 0.3"),
        *cpu,
    ]


def measure_ranks(lab: Lab) -> list[Figure]:
    """About a minute. Raises `TooNoisy`."""
    config = _config(lab, MODEL, VOCABULARY, TURN, BATCH)
    given, result = lab.directory / "job.json", lab.directory / "ratios.json"
    given.write_text(config.model_dump_json(by_alias=True))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    subprocess.run([*launch, "-m", "benchmarks.trainer.steps", given, result], check=True)
    ratios: list[list[float]] | None = json.loads(result.read_text())
    if ratios is None:
        raise TooNoisy
    null, loop = ratios
    return [
        Figure.of("fsdp2_null_vs_bare", "steps, 2 ranks: a bare FSDP2 script / its twin", null, "", "0.99-1.01"),
        Figure.of("fsdp2_vs_bare", "steps, 2 ranks: a bare FSDP2 script / ours", loop, "", ">= 0.97"),
    ]


def rank(given: Path, result: Path) -> None:
    """What each of the ranks does; the first one leaves the ratios, or null where the machine is too noisy."""
    config, number = JobConfig.model_validate_json(given.read_text()), int(os.environ["RANK"])
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo")

    def say(line: str) -> None:
        if number == 0:
            sys.stderr.write(f"          {line}\n")

    try:
        ratios = [pair.ratios for pair in _measured(config, [NULL, OURS], BLOCKS, say)]
    except TooNoisy:
        ratios = None
    if number == 0:
        result.write_text(json.dumps(ratios))
    dist.destroy_process_group()


def _measured(
    config: JobConfig, against: Sequence[tuple[str, str]], blocks: int, say: Callable[[str], None]
) -> list[Pair]:
    """The pairs of loops, the first of which has to come out equal. Raises `TooNoisy`. Collective."""
    pairs, calm = _taken(config, against, blocks, say)
    if not calm:
        raise TooNoisy
    return pairs


def _taken(
    config: JobConfig, against: Sequence[tuple[str, str]], blocks: int, say: Callable[[str], None]
) -> tuple[list[Pair], bool]:
    """The pairs of loops, and whether the first came out equal. Collective."""
    torch.set_num_threads(1)
    _keep_memory()
    turn = config.training.log_every
    work = loops.Work.of(config, most_steps(blocks, turn, len(against)))
    arms = {name: Arm(name, partial(LOOPS[name], work)) for pair in against for name in pair}
    pairs = [Pair(arms[one], arms[other]) for one, other in against]
    with ExitStack() as stack:
        for arm in arms.values():
            stack.enter_context(arm)
        calm = compare(pairs, blocks, turn, work.world, say)
    return pairs, calm


def _keep_memory() -> None:
    """Have the C library keep what is freed, in one pool for all threads. By itself it has one for each thread, and may
    hand a step's buffers back to the kernel and take new pages for the next step's in one thread and not in another:
    then a loop is not as fast as its twin."""
    libc = ctypes.CDLL(None)
    for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 32 * 2**20), (M_TRIM_THRESHOLD, 2**30)):
        libc.mallopt(parameter, value)


def _config(lab: Lab, model: dict[str, int], vocabulary: int, turn: int, batch: dict[str, int]) -> JobConfig:
    """A run whose data is in place."""
    training = {"optimizer": {"lr": 1e-3}, "schedule": {"name": "constant", "warmupSteps": 0}, "logEvery": turn}
    sharded = {"parallelism": {"fsdp": "full"}}
    directory = tempfile.mkdtemp(dir=lab.directory)
    config = subject.run_in(directory, {}, model, **training, **sharded, **batch)
    store = open_store(config.output_uri, config.storage)
    shard = subject.put_shard(store, 0, 2**23, vocabulary)
    store.put(MANIFEST_KEY, subject.tokens(vocabulary, [shard], shard.size).to_json())
    return config


if __name__ == "__main__":
    rank(Path(sys.argv[1]), Path(sys.argv[2]))
