"""Evaluation takes every sample once: the same numbers on one rank and on several."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.evaluated import evaluated
from support.rank_functions import train_run
from support.ranks import run_ranks
from support.training import SEQUENCE, in_two_shards, job, prepared, put_tokens, store_of
from trainingjob_trainer.checkpoint.checkpointer import read_progress
from trainingjob_trainer.checkpoint.commits import commits
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.learner import Learner
from trainingjob_trainer.parallel import World


@pytest.mark.parametrize(("world_size", "max_samples"), [(2, None), (4, None), (3, 10), (3, 2)])
def test_metrics_are_the_same_at_every_world_size(tmp_path: Path, world_size: int, max_samples: int | None) -> None:
    put_tokens(store_of(job(tmp_path)), tokens=1000)
    alone, _, training = evaluated(str(tmp_path), max_samples)
    assert training
    assert alone["loss"] > 1
    ranks: list[Any] = run_ranks(world_size, evaluated, str(tmp_path), max_samples)
    for metrics, passes, _ in ranks:
        assert metrics == pytest.approx(alone, rel=1e-6)
        assert len(passes) == len(ranks[0][1]), "FSDP needs as many passes on every rank"


@pytest.mark.parametrize(("world_size", "max_samples"), [(1, None), (2, None), (4, 3)])
def test_corrupt_samples_are_left_out_and_counted_once(
    tmp_path: Path, world_size: int, max_samples: int | None
) -> None:
    """The first half is lost, and with it the sample that fills up the batch of a rank that has none."""
    put_tokens(store_of(job(tmp_path)), tokens=1000)
    whole, *_ = evaluated(str(tmp_path), max_samples)
    assert "corruptSamples" not in whole
    manifest = in_two_shards(store_of(job(tmp_path)), "validation")
    store_of(job(tmp_path)).delete(["data/a.bin"])
    in_first = -(-manifest.splits["validation"].shards[0].count // SEQUENCE)
    for metrics, *_ in run_ranks(world_size, evaluated, str(tmp_path), max_samples):
        assert metrics["corruptSamples"] == (in_first if max_samples is None else 2)
        assert metrics["loss"] != whole["loss"]


def test_in_bfloat16_they_are_the_same_to_a_thousandth(tmp_path: Path) -> None:
    put_tokens(store_of(job(tmp_path)), tokens=1000)
    [(alone, *_)] = run_ranks(1, evaluated, str(tmp_path), None, torch.bfloat16)
    assert alone["loss"] != evaluated(str(tmp_path), None)[0]["loss"]
    for metrics, *_ in run_ranks(4, evaluated, str(tmp_path), None, torch.bfloat16):
        assert metrics == pytest.approx(alone, rel=1e-3)


def test_an_evaluation_holds_as_many_rows_at_once_as_training(tmp_path: Path) -> None:
    """Else the first evaluation of a model that just fits would be the end of it."""
    config = prepared(tmp_path, microBatchSize=2)
    store = store_of(config)
    manifest = Manifest.model_validate_json(store.get(MANIFEST_KEY))
    learner = Learner.of(config, manifest, World.join())
    learner.begin()
    passes: list[int] = []
    learner.model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    learner.evaluate(Reader(store, manifest, "validation", SEQUENCE), max_samples=5)
    assert passes == [2, 2, 2]


@pytest.mark.parametrize("fsdp", ["full", pytest.param("none", marks=pytest.mark.slow)])
def test_evaluating_an_average_leaves_no_trace_in_training(tmp_path: Path, fsdp: str) -> None:
    """Without a save, after which nothing is left of what an evaluation has gathered."""
    histories = []
    for every in (3, 8):
        config = job(
            tmp_path / str(every),
            steps=8,
            emaDecay=0.9,
            evaluation={"everySteps": every},
            checkpoint={"everySteps": 1000, "keepBest": 0},
            parallelism={"fsdp": fsdp},
        )
        put_tokens(store_of(config))
        run_ranks(2, train_run, config, 1)
        [commit] = commits(store_of(config))
        histories.append(read_progress(store_of(config), commit).history)
    assert histories[0] == histories[1]
