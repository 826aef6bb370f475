"""Weighted sources: shares held exactly, each source's epochs whole, batches that no number of ranks changes."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.order import blocks_of
from support.rank_functions import train_run
from support.ranks import run_ranks
from support.training import job, put_tokens, store_of, without_dropout
from trainingjob_trainer.checkpoint.checkpointer import read_progress
from trainingjob_trainer.checkpoint.commits import latest
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.batches import training_rows
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest, Shard, SplitData
from trainingjob_trainer.data.mixture import MixedOrder, MixedReader
from trainingjob_trainer.data.order import BLOCK_BYTES, Ints, Order
from trainingjob_trainer.data.prefetch import prefetch
from trainingjob_trainer.errors import DataError, UserError
from trainingjob_trainer.prepare import tokenizer as bpe
from trainingjob_trainer.prepare.local import prepare_data
from trainingjob_trainer.storage import Store

# Samples of each source and its weight.
mixtures = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 12)), min_size=2, max_size=5)
seeds = st.integers(0, 2**31 - 1)


def order_of(mixture: list[tuple[int, int]], seed: int = 1, each: int = 1) -> MixedOrder:
    return MixedOrder([Order(blocks_of(size, each), seed) for size, _ in mixture], [weight for _, weight in mixture])


def source_of(mixture: list[tuple[int, int]], samples: Ints) -> Any:
    return np.searchsorted(np.cumsum([size for size, _ in mixture]), samples, side="right")


@given(mixtures, seeds, st.integers(0, 10**9))
@example([(60, 28), *[(5, 1)] * 31], 1, 0)
@example([(1, 3), (1, 1), (1, 1)], 0, 0)
def test_every_window_has_each_source_as_often_as_its_weight(
    mixture: list[tuple[int, int]], seed: int, window: int
) -> None:
    """And up to any position its share, give or take less than one: so no batch has much more or less. At any depth."""
    weights = [weight for _, weight in mixture]
    total = sum(weights)
    samples = order_of(mixture, seed).indices(np.arange(window * total, (window + 3) * total))
    source = source_of(mixture, samples)
    for part in source.reshape(3, total):
        assert np.bincount(part, minlength=len(weights)).tolist() == weights
    for number, weight in enumerate(weights):
        shares = np.arange(1, len(source) + 1) * weight / total
        assert (abs(np.cumsum(source == number) - shares) < 1 - 1e-9).all()


@settings(max_examples=50)
@given(mixtures, seeds, st.sampled_from([1, BLOCK_BYTES]))
def test_every_source_has_epochs_of_its_own_each_of_which_visits_each_sample_once(
    mixture: list[tuple[int, int]], seed: int, each: int
) -> None:
    samples = order_of(mixture, seed, each).indices(np.arange(600))
    source = source_of(mixture, samples)
    first = 0
    for number, (size, _) in enumerate(mixture):
        own = samples[source == number]
        epochs = own[: len(own) // size * size].reshape(-1, size)
        assert (np.sort(epochs) == np.arange(first, first + size)).all()
        first += size


@settings(max_examples=20)
@given(mixtures, st.integers(0, 100), st.integers(1, 20))
def test_the_global_batch_is_the_same_at_any_world_size_and_from_any_start(
    mixture: list[tuple[int, int]], step: int, batch: int
) -> None:
    order, steps = order_of(mixture), range(step, step + 3)
    for world_size in (1, 2, 3, 4, 8):
        ranks = [list(training_rows(steps, batch, order, world_size, rank)) for rank in range(world_size)]
        for number, one in zip(steps, zip(*ranks, strict=True), strict=True):
            alone = (np.asarray([position]) for position in range(number * batch, (number + 1) * batch))
            draws = [int(order.draws(position)[0]) for position in alone]
            assert list(chain.from_iterable(one)) == sorted(draws, key=lambda draw: (draw % len(order), draw))


def test_the_order_is_the_one_that_stored_runs_were_trained_in() -> None:
    """Resuming rests on it: where these numbers change, config.data.ORDER_VERSION must."""
    order = order_of([(1000, 7), (500, 3)])
    assert order.indices(np.arange(10)).tolist() == [593, 425, 1139, 137, 524, 1371, 52, 940, 949, 1085]
    assert order.indices(np.asarray([123_456])).tolist() == [706]


LENGTH = 8


def put_sources(store: Store, tokens: list[int]) -> Manifest:
    """A source of 0, 1, 2 ..., one of 1000, 1001 ... and so on; held out is the first one's."""
    shards = []
    for source, count in enumerate(tokens):
        data = (1000 * source + np.arange(count)).astype("<u2").tobytes()
        store.put(f"data/{source}.bin", data)
        shards.append(Shard.of(f"data/{source}.bin", data, count, 1, "w", source))
    train, held_out = (SplitData(shards=some, documents=len(some), bytes=1) for some in (shards, shards[:1]))
    splits: Any = {"train": train, "validation": held_out, "test": held_out}
    return Manifest(
        kind="tokens", dtype="uint16", splits=splits, vocab_size=2**16, tokenizer_digest="d", eos_id=0
    )  # fmt: skip


def test_no_sample_is_of_two_sources(tmp_path: Path) -> None:
    """Each source's windows begin at its own beginning; what is left at its end is in no sample."""
    manifest = put_sources(store_of(job(tmp_path)), [84, 33, 17])
    reader = MixedReader(store_of(job(tmp_path)), manifest, LENGTH, [1, 1, 1])
    assert len(reader) == manifest.num_samples("train", LENGTH) == 10 + 4 + 2
    wanted = [15, 0, 10, 9, 14, 13]
    with prefetch(reader, [wanted]) as read:
        batch = next(read)
    firsts = [2008, 0, 1000, 72, 2000, 1024]
    assert torch.equal(batch.inputs.int(), torch.tensor(firsts)[:, None] + torch.arange(LENGTH))
    assert torch.equal(batch.targets.int(), batch.inputs.int() + 1)


@pytest.mark.parametrize("skips", [True, False])
def test_corrupt_data_of_one_source_is_its_samples_alone(tmp_path: Path, skips: bool) -> None:
    store = store_of(job(tmp_path))
    manifest = put_sources(store, [84, 33])
    store.put("data/1.bin", bytes(66))
    reader = MixedReader(store, manifest, LENGTH, [1, 1], skip_corrupt=skips)
    with prefetch(reader, [[11, 2, 10]]) as read:
        if not skips:
            with pytest.raises(DataError, match=r"data/1\.bin is corrupt"):
                next(read)
            return
        batch = next(read)
    assert batch.skipped == 2
    assert batch.targets[:, 0].tolist() == [-100, 17, -100]


def mixed(directory: Path, weights: dict[str, int], **changes: Any) -> JobConfig:
    mixture = [{"name": name, "uri": f"{directory}/{name}.jsonl", "weight": weight} for name, weight in weights.items()]
    data = {
        "train": {"mixture": mixture},
        "validation": {"fraction": 0.2},
        "test": {"fraction": 0.2},
        "prepare": {"tokenizer": {"vocabSize": 300}},
    }
    return job(directory, data=data, **changes)


def put_documents(directory: Path, common: str = "kept by the first") -> None:
    for name, word in {"web": "alpha", "code": "beta"}.items():
        documents = [f"{word} {number} {word}" for number in range(200)] + [common]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))


def documents(store: Store, manifest: Manifest, shards: list[Shard]) -> list[str]:
    tokens = np.frombuffer(b"".join(store.get(shard.key) for shard in shards), dtype="<u2")
    ends = np.flatnonzero(tokens == manifest.eos_id)
    tokenizer = bpe.load(store.get("data/tokenizer.json"))
    return [tokenizer.decode(part.tolist()) for part in np.split(tokens, ends + 1)[:-1]]


def test_a_source_is_a_stream_of_its_own_and_held_out_is_of_all(tmp_path: Path) -> None:
    put_documents(tmp_path)
    config = mixed(tmp_path, {"web": 7, "code": 3})
    store = store_of(config)
    manifest = prepare_data(config, store)
    train = manifest.splits["train"]
    web, code = (documents(store, manifest, train.of_source(source)) for source in (0, 1))
    assert Counter(text.split()[0] for text in web) == {"alpha": len(web) - 1, "kept": 1}
    assert {text.split()[0] for text in code} == {"beta"}
    assert len(web) + len(code) == train.documents
    held_out = documents(store, manifest, manifest.splits["test"].shards)
    assert {text.split()[0] for text in held_out} == {"alpha", "beta"}
    assert 100 < len(web) < 140
    of_each = [manifest.num_samples("train", config.training.sequence_length, source) for source in (0, 1)]
    told = f"{sum(of_each):,} training ({of_each[0]:,} + {of_each[1]:,}, by source), "
    assert manifest.summary(config.training.sequence_length).startswith(told)
    assert not {*web, *code} & {*held_out}


def test_a_source_too_small_for_its_share_of_a_batch_is_named(tmp_path: Path) -> None:
    put_documents(tmp_path)
    (tmp_path / "code.jsonl").write_text(json.dumps({"text": "beta " * 20}) + "\n")
    config = mixed(tmp_path, {"web": 1, "code": 1})
    with pytest.raises(UserError, match=r"globalBatchSize is 10, of which up to 6 are of code, but that has only \d"):
        prepare_data(config, store_of(config))


def test_a_run_on_a_mixture_resumes_exactly_and_at_another_world_size(tmp_path: Path) -> None:
    """Two ranks, against three that are killed and one that goes on: the losses are the same."""
    runs = []
    for name in ("baseline", "resumed"):
        config = mixed(
            tmp_path / name, {"web": 7, "code": 3}, model=without_dropout(), steps=20, checkpoint={"everySteps": 5}
        )
        tokens = put_tokens(store_of(config))  # the second source's are the first one's, backwards
        manifest = tokens.model_copy(update={"splits": {**tokens.splits, "train": two_streams(config, tokens)}})
        store_of(config).put(MANIFEST_KEY, manifest.to_json())
        runs.append(config)
    baseline, resumed = runs
    run_ranks(2, train_run, baseline, 1)
    assert run_ranks(3, train_run, resumed, 1, None, 8) == [-9] * 3
    [(_, reports)] = run_ranks(1, train_run, resumed, 2)
    assert reports[0]["resumedFromStep"] == 5
    assert losses(resumed) == pytest.approx(losses(baseline), rel=0, abs=1e-5)


def two_streams(config: JobConfig, manifest: Manifest) -> SplitData:
    [shard] = manifest.splits["train"].shards
    store = store_of(config)
    data = np.frombuffer(store.get(shard.key), "<u2")[::-1].tobytes()
    store.put("data/backwards.bin", data)
    backwards = Shard.of("data/backwards.bin", data, shard.count, 1, "w", source=1)
    return SplitData(shards=[shard, backwards], documents=2, bytes=1)


def losses(config: JobConfig) -> list[float]:
    commit = latest(store_of(config))
    assert commit is not None
    assert commit.step == 20
    return [logged.loss for logged in read_progress(store_of(config), commit).history]
