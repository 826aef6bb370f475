"""What is saved is what is loaded, bit for bit, at whatever world size; damage is found."""

import re
from pathlib import Path

import pytest
import torch
from support.rank_functions import load_state, save_state
from support.ranks import run_ranks
from support.training import job, newest, put_tokens, store_of
from torch import nn
from trainingjob_trainer.beginning import CommittedRun
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.checkpointer import Checkpointer
from trainingjob_trainer.checkpoint.commits import latest
from trainingjob_trainer.checkpoint.state import Progress, state_tensors
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.errors import StorageError, UserError
from trainingjob_trainer.optim import WeightAverage, build_optimizer
from trainingjob_trainer.parallel import World
from trainingjob_trainer.prepare.run_record import RUN_KEY, RunRecord


@pytest.fixture
def config(tmp_path: Path) -> JobConfig:
    """A width of 10, 9 and 2: over 4 ranks shards are uneven, and two ranks hold nothing of keys and values."""
    size = {"layers": 1, "dim": 10, "heads": 5, "kvHeads": 1, "ffnDim": 9}
    config = job(tmp_path, model={"transformer": size})
    put_tokens(store_of(config))
    return config


def test_state_loads_bit_for_bit_at_another_world_size(config: JobConfig) -> None:
    saved = run_ranks(4, save_state, config, 1, 3)
    assert len(set(saved)) == 1
    for world_size in (1, 2):
        assert run_ranks(world_size, load_state, config, 2) == [saved[0]] * world_size


def test_a_commit_names_every_object_with_size_and_checksum(config: JobConfig) -> None:
    run_ranks(1, save_state, config, 1, 1)
    commit = latest(store_of(config))
    assert commit is not None
    stored = {info.key: info.size for info in store_of(config).list(commit.prefix)}
    assert stored == {named.key: named.size for named in commit.objects}
    assert {key.rsplit("/")[-1] for key in stored} == {"rank-0-0.bin", "index.json", "trainer.json"}


@pytest.mark.parametrize(
    ("name", "damage"),
    [("rank-0-0.bin", "changed"), ("rank-0-0.bin", "torn"), ("rank-0-0.bin", "missing"), ("index.json", "changed")],
)
def test_a_damaged_object_is_found_and_named(config: JobConfig, name: str, damage: str) -> None:
    run_ranks(2, save_state, config, 1, 1)
    store = store_of(config)
    key = f"checkpoints/step-00000001/a1/{name}"
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    if damage == "missing":
        store.delete([key])
    else:
        store.put(key, bytes(data) if damage == "changed" else bytes(data[:-1]))
    for error in run_ranks(2, load_state, config, 2):
        assert isinstance(error, StorageError)
        assert key in error.cause
        assert "COMMIT.json" in error.next_step


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_checkpoint_without_what_is_kept_today_says_what_it_lacks(config: JobConfig, world_size: int) -> None:
    """As one has that an earlier version has written, which kept less."""
    run_ranks(world_size, save_state, config, 1, 1)
    averaging = config.model_copy(update={"training": config.training.model_copy(update={"ema_decay": 0.9})})
    for error in run_ranks(world_size, load_state, averaging, 2):
        assert isinstance(error, UserError)
        assert re.search(
            r"step 1 in .* does not hold average\.\S+, average\.\S+, average\.\S+ and \d+ more", error.cause
        )
        assert "spec.image" in error.next_step


def test_a_run_begins_with_the_averages_of_another_ones_statistics_too(tmp_path: Path) -> None:
    """Those of its last weights are not those of the averaged ones. Passes are counted, not averaged."""
    config, world = job(tmp_path, emaDecay=0.5), World.join()
    store_of(config).put(RUN_KEY, RunRecord.of(config).to_json())
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(model, 0.5)
    average.restart()
    model(torch.randn(5, 3))  # moves the statistics, of which the average knows nothing
    with Checkpointer(Attempt.take(store_of(config), 0), world, config.identity_hash(), config.checkpoint) as saves:
        saves.save(state_tensors(model, build_optimizer(model, config.training.optimizer), average), Progress(step=1))
        saves.wait()
    begun = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    CommittedRun(store_of(config), newest(config)).load(begun, world)
    count = "1.num_batches_tracked"
    assert begun.state_dict()[count] == 1
    assert not torch.equal(model.state_dict()["1.running_mean"], average.tensors["1.running_mean"])
    for name, tensor in average.tensors.items():
        assert torch.equal(begun.state_dict()[name], tensor), name
    assert begun.state_dict().keys() == {*average.tensors, count}
