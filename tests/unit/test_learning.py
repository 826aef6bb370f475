"""Every architecture learns its task under FSDP2 on two ranks, to a score that is far from that of a blind guess."""

import importlib.util
import json
import math
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from support.corpus import diabetes, digits, images
from support.learning import SYMBOLS, learn_to_copy, train_config
from support.rank_functions import train_run
from support.ranks import run_ranks
from support.training import VOCABULARY, job, newest, put_tokens, store_of
from trainingjob_trainer.checkpoint.checkpointer import read_progress
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.prepare.local import prepare_data

RANKS = 2
FIFTH = {"fraction": 0.2}


def learnt(config: JobConfig) -> dict[str, Any]:
    """Metrics on the test split after a whole run: prepared data, loop, checkpoint, export, report."""
    (result, _), *_ = run_ranks(RANKS, train_run, config, 1)
    metrics: dict[str, Any] = result.evaluation.metrics
    return metrics


def majority(config: JobConfig, manifest: Manifest) -> float:
    """The accuracy of always naming the most frequent class of the test split."""
    reader = Reader(store_of(config), manifest, "test", config.training.sequence_length)
    targets = reader.read(range(len(reader))).targets.tolist()
    return max(Counter(targets).values()) / len(targets)


@pytest.mark.slow
def test_a_convolutional_network_reads_digits(tmp_path: Path) -> None:
    config = images(
        tmp_path,
        digits(),
        model={"cnn": {"channels": [32, 64], "blocks": 1}},
        evaluation={"everySteps": 150},
        checkpoint={"everySteps": 150},
        **train_config(steps=150, globalBatchSize=64, optimizer={"lr": 1e-2}, schedule={"warmupSteps": 10}),
    )
    manifest = prepare_data(config, store_of(config))
    metrics = learnt(config)
    assert metrics["accuracy"] >= 0.95
    assert majority(config, manifest) < 0.15


@pytest.mark.slow
def test_who_sees_few_images_learns_more_from_them_where_they_move(tmp_path: Path) -> None:
    """A tenth of the digits to learn from, half of them to judge by; without it they are learnt by heart."""
    found = []
    for name, augmentation in (("plain", {}), ("moved", {"shift": 1})):
        directory = tmp_path / name
        directory.mkdir()
        train = {"uri": f"{directory}/images.parquet", "format": "parquet"}
        splits = {"validation": {"fraction": 0.4}, "test": {"fraction": 0.5}}
        config = images(
            directory,
            digits(),
            data={"train": train, **splits, "augmentation": augmentation},
            model={"cnn": {"channels": [16, 32], "blocks": 1}, "export": "none"},
            evaluation={"everySteps": 200},
            checkpoint={"everySteps": 200},
            **train_config(steps=200, globalBatchSize=64, optimizer={"lr": 1e-2}, schedule={"warmupSteps": 10}),
        )
        prepare_data(config, store_of(config))
        metrics = learnt(config)
        found.append((metrics, read_progress(store_of(config), newest(config)).history[-1].loss))
    (plain, by_heart), (moved, still_learning) = found
    assert moved["loss"] < 0.85 * plain["loss"]
    assert moved["accuracy"] > plain["accuracy"] + 0.01
    assert by_heart < 0.01 < still_learning


def test_a_perceptron_foretells_diabetes_better_than_the_mean(tmp_path: Path) -> None:
    """scikit-learn's 442 patients; a linear model explains half of the variance there."""
    config = diabetes(
        tmp_path,
        model={"mlp": {"layers": 1, "dim": 32}},
        evaluation={"everySteps": 40},
        checkpoint={"everySteps": 40},
        **train_config(steps=40, globalBatchSize=64, optimizer={"lr": 3e-3}, schedule={"warmupSteps": 5}),
    )
    prepare_data(config, store_of(config))
    metrics = learnt(config)
    assert metrics["r2"] >= 0.3, "the mean of the test split itself has 0"
    assert metrics["mse"] == pytest.approx((1 - metrics["r2"]) * variance_of_test(config), rel=1e-9)


def variance_of_test(config: JobConfig) -> float:
    manifest = Manifest.model_validate_json(store_of(config).get("data/manifest.json"))
    reader = Reader(store_of(config), manifest, "test", config.training.sequence_length)
    return float(reader.read(range(len(reader))).targets.double().var(correction=0))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_network_learns_what_follows_from_a_token(tmp_path: Path, cell: str) -> None:
    """Nine of ten tokens follow from the one before; who knows nothing has log(32) nats. Whole runs, with an export."""
    config = job(
        tmp_path,
        model={"rnn": {"cell": cell, "layers": 1, "dim": 32, "dropout": 0.1}},
        evaluation={"everySteps": 60},
        checkpoint={"everySteps": 60},
        **train_config(steps=60, globalBatchSize=16, optimizer={"lr": 2e-2}, schedule={"warmupSteps": 5}),
    )
    put_tokens(store_of(config))
    assert learnt(config)["loss"] < 0.5 * math.log(VOCABULARY)


@pytest.mark.slow
def test_an_encoder_tells_packages_apart_by_their_functions(tmp_path: Path) -> None:
    """What the example does."""
    path = Path(__file__).parents[2] / "examples" / "stdlib.py"
    spec = importlib.util.spec_from_file_location("stdlib_functions", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(function) + "\n" for function in module.functions()))
    config = job(
        tmp_path,
        task={"kind": "text-classification"},
        data={
            "train": {"uri": f"{tmp_path}/raw.jsonl"},
            "validation": {"fraction": 0.1},
            "test": {"fraction": 0.1},
            "prepare": {"tokenizer": {"vocabSize": 2048}},
        },
        model={"transformer": {"layers": 2, "dim": 96, "heads": 4, "dropout": 0.1}},
        evaluation={"everySteps": 300},
        checkpoint={"everySteps": 300},
        **train_config(
            steps=300, globalBatchSize=32, sequenceLength=128, optimizer={"lr": 2e-3}, schedule={"warmupSteps": 30}
        ),
    )
    manifest = prepare_data(config, store_of(config))
    metrics = learnt(config)
    assert metrics["accuracy"] >= 0.75
    assert metrics["f1"] >= 0.65
    assert majority(config, manifest) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_recurrent_network_copies_what_it_saw_long_before(tmp_path: Path, cell: str) -> None:
    config = job(
        tmp_path,
        model={"rnn": {"cell": cell, "layers": 1, "dim": 64, "tieEmbeddings": False}},
        **train_config(
            steps=1000, globalBatchSize=64, optimizer={"lr": 1e-2, "weightDecay": 0}, schedule={"warmupSteps": 50}
        ),
    )
    put_tokens(store_of(config))
    for accuracy in run_ranks(RANKS, learn_to_copy, config):
        assert accuracy >= 0.95, f"who forgets has {1 / SYMBOLS}"


@pytest.mark.slow
def test_a_decoder_learns_more_of_a_text_than_which_token_follows_which(tmp_path: Path) -> None:
    """Python's manual. The rival is a bigram model of the training split, smoothed as suits it best."""
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in topics.values()))
    config = job(
        tmp_path,
        data={
            "train": {"uri": f"{tmp_path}/raw.jsonl"},
            "validation": {"fraction": 0.05},
            "test": {"fraction": 0.1},
            "prepare": {"tokenizer": {"vocabSize": 512}},
        },
        model={"transformer": {"layers": 2, "dim": 96, "heads": 4}},
        evaluation={"everySteps": 400, "maxSamples": 64},
        checkpoint={"everySteps": 400},
        **train_config(
            steps=400, globalBatchSize=16, sequenceLength=128, optimizer={"lr": 4e-3}, schedule={"warmupSteps": 40}
        ),
    )
    manifest = prepare_data(config, store_of(config))
    bigrams = min(bigram_loss(config, manifest, smoothing) for smoothing in (0.01, 0.03, 0.1, 0.3))
    assert learnt(config)["loss"] < bigrams - 0.2


def bigram_loss(config: JobConfig, manifest: Manifest, smoothing: float) -> float:
    """Nats a token of the test split, from counts of the training split with `smoothing` added to each."""
    counts = np.full((manifest.vocab_size or 0,) * 2, smoothing)
    tokens = {split: stream(config, manifest, split) for split in ("train", "test")}
    np.add.at(counts, (tokens["train"][:-1], tokens["train"][1:]), 1)
    chances = counts / counts.sum(1, keepdims=True)
    return float(-np.log(chances[tokens["test"][:-1], tokens["test"][1:]]).mean())


def stream(config: JobConfig, manifest: Manifest, split: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(b"".join(store_of(config).get(s.key) for s in manifest.splits[split].shards), dtype="<u2")
