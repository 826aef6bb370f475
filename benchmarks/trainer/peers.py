"""Steps: the trainer's loop against a bare loop, a bare FSDP2 script on two ranks, and two other trainers.

A ratio is the median over blocks of how many times as fast ours is. What ours adds to a step is measured on a model so
small that little else is left. `python -m benchmarks.trainer.peers` is one of the two ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import MANIFEST_KEY
from trainingjob_trainer.storage import open_store
from trainingjob_trainer.train import join

from benchmarks.trainer import loops, subject
from benchmarks.trainer.arms import Arm, Pair, TooNoisy, Turn, compare, most_steps
from benchmarks.trainer.figures import Figure, Lab

BUCKET = "peers"
MODEL = {"layers": 4, "dim": 128, "heads": 4}  # 1.1 million weights
SMALL = {"layers": 2, "dim": 64, "heads": 4}  # 0.1 million
VOCABULARY, SMALL_VOCABULARY = 2048, 256
ROWS, LENGTH = 8, 128
BLOCKS, SMALL_BLOCKS = 40, 200  # of two steps of each arm
RANKS = 2

LOOPS: Mapping[str, Callable[[loops.Work, Turn], None]] = {
    "ours": loops.ours,
    "bare": loops.bare,
    "bare again": loops.bare,
    "Trainer": loops.hugging_face,
    "Fabric": loops.fabric,
}
NULL, OURS = ("bare", "bare again"), ("bare", "ours")


def measure(lab: Lab) -> list[Figure]:
    """About a minute."""
    config = _config(lab, "one", MODEL, VOCABULARY, globalBatchSize=ROWS, sequenceLength=LENGTH)
    against = [NULL, OURS, ("Trainer", "ours"), ("Fabric", "ours")]
    null, loop, trainer, fabric = _measured(config, against, BLOCKS, lab.say)
    bare = [1000 * seconds for seconds, _ in loop.seconds]
    return [
        Figure.of("bare_step_ms", "steps: of a bare loop", bare, "ms"),
        Figure.of("null_vs_bare", "steps: a bare loop / its twin", null.ratios, "", "0.99-1.01"),
        Figure.of("loop_vs_bare", "steps: a bare loop / ours", loop.ratios, "", ">= 0.98"),
        Figure.of("vs_hf_trainer", "steps: transformers.Trainer / ours", trainer.ratios, "", ">= 0.98"),
        Figure.of("vs_fabric", "steps: Lightning Fabric / ours", fabric.ratios, "", ">= 0.98"),
    ]


def measure_overhead(lab: Lab) -> list[Figure]:
    """Some seconds. What the others add is why ours is faster than they are, where it is."""
    config = _config(lab, "small", SMALL, SMALL_VOCABULARY, globalBatchSize=1, sequenceLength=32)
    against = [NULL, OURS, ("bare", "Trainer"), ("bare", "Fabric")]
    _, *pairs = _measured(config, against, SMALL_BLOCKS, lab.say)
    bare = [1000 * one for pair in pairs for one, _ in pair.seconds]
    ours, trainer, fabric = ([1000 * seconds for seconds in pair.differences] for pair in pairs)
    return [
        Figure.of("small_bare_step_ms", "small steps: of a bare loop", bare, "ms"),
        Figure.of("own_step_overhead_ms", "small steps: ours adds", ours, "ms", "<= 0.3"),
        Figure.of("hf_trainer_step_overhead_ms", "small steps: transformers.Trainer adds", trainer, "ms"),
        Figure.of("fabric_step_overhead_ms", "small steps: Lightning Fabric adds", fabric, "ms"),
    ]


def measure_ranks(lab: Lab) -> list[Figure]:
    """About a minute. Raises `TooNoisy`."""
    config = _config(lab, "two", MODEL, VOCABULARY, globalBatchSize=ROWS, sequenceLength=LENGTH)
    given, result = lab.directory / "job.json", lab.directory / "ratios.json"
    given.write_text(config.model_dump_json(by_alias=True))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    subprocess.run([*launch, "-m", "benchmarks.trainer.peers", given, result], check=True)
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
    join(number, RANKS, config.training.collective_timeout)

    def say(line: str) -> None:
        if number == 0:
            sys.stderr.write(f"          {line}\n")

    try:
        ratios = [pair.ratios for pair in _measured(config, [NULL, OURS], BLOCKS, say)]
    except TooNoisy:
        ratios = None
    if number == 0:
        result.write_text(json.dumps(ratios))


def _measured(
    config: JobConfig, against: Sequence[tuple[str, str]], blocks: int, say: Callable[[str], None]
) -> list[Pair]:
    """The pairs of loops, the first of which has to come out equal. Raises `TooNoisy`. Collective."""
    work = loops.Work.of(config, most_steps(blocks, len(against)))
    arms = {name: Arm(name, partial(LOOPS[name], work)) for pair in against for name in pair}
    pairs = [Pair(arms[one], arms[other]) for one, other in against]
    with ExitStack() as stack:
        for arm in arms.values():
            stack.enter_context(arm)
        compare(pairs, blocks, work.world, say)
    return pairs


def _config(lab: Lab, name: str, model: dict[str, int], vocabulary: int, **training: int) -> JobConfig:
    """A run whose data is in place."""
    lab.s3.ensure_bucket(BUCKET)
    os.environ |= {"AWS_ACCESS_KEY_ID": lab.s3.access_key, "AWS_SECRET_ACCESS_KEY": lab.s3.secret_key}
    same = {"optimizer": {"lr": 1e-3}, "schedule": {"name": "constant", "warmupSteps": 0}}
    sharded = {"parallelism": {"fsdp": "full"}}
    config = subject.job(lab.s3.endpoint, f"{BUCKET}/{name}", model, **same, **sharded, **training)
    store = open_store(config.output_uri, config.storage)
    shard = subject.put_shard(store, 0, 2**23, vocabulary)
    store.put(MANIFEST_KEY, subject.tokens(vocabulary, [shard], shard.size).to_json())
    return config


if __name__ == "__main__":
    rank(Path(sys.argv[1]), Path(sys.argv[2]))
