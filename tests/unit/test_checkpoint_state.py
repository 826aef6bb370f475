"""What is saved is what is loaded, bit for bit, at whatever world size; damage is found."""

from pathlib import Path

import pytest
from support.rank_functions import load_state, save_state
from support.ranks import run_ranks
from support.training import job, put_tokens, store_of
from trainingjob_trainer.checkpoint.commits import latest
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.errors import StorageError


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


@pytest.mark.parametrize("damage", ["changed", "torn", "missing"])
def test_a_damaged_object_is_found_and_named(config: JobConfig, damage: str) -> None:
    run_ranks(1, save_state, config, 1, 1)
    store = store_of(config)
    key = "checkpoints/step-00000001/a1/rank-0-0.bin"
    data = bytearray(store.get(key))
    data[len(data) // 2] ^= 1
    if damage == "missing":
        store.delete([key])
    else:
        store.put(key, bytes(data) if damage == "changed" else bytes(data[:-1]))
    [error] = run_ranks(1, load_state, config, 2)
    assert isinstance(error, StorageError)
    assert key in error.cause
    assert "COMMIT.json" in error.next_step
