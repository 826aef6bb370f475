"""Checkpoints of a GPU's memory, made while it computes on."""

import threading
from pathlib import Path

import pytest
import torch
from support.rank_functions import SlowStore, build, masked_batch, take, train_run
from support.ranks import run_ranks
from support.state_hash import hash_state
from support.training import contents, newest, prepared, store_of
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.checkpointer import Checkpointer
from trainingjob_trainer.checkpoint.commits import commits
from trainingjob_trainer.checkpoint.staging import Staging
from trainingjob_trainer.checkpoint.state import Progress, state_tensors
from trainingjob_trainer.step import Stepper

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

STEPS, EVERY = 20, 5
HALF_A_SECOND = 10**9  # cycles


def tensors_of(stepper: Stepper) -> dict[str, torch.Tensor]:
    return state_tensors(stepper.model, stepper.optimizer, stepper.average)


def test_what_is_committed_is_the_state_at_the_call_though_neither_host_nor_device_waits(tmp_path: Path) -> None:
    """At each call the device is half a second behind, and the next step is launched before it has copied anything."""
    config = prepared(tmp_path, precision="auto", compile="never", checkpoint={"keepLast": 1000})
    gone_on = threading.Event()
    stepper, store = build(config), SlowStore(store_of(config), 0.2, gone_on)
    rows, length = config.training.global_batch_size, config.training.sequence_length
    batches = [masked_batch(step, rows, length).pin() for step in range(STEPS)]
    caught_up = torch.cuda.Event()
    ahead: dict[str, list[bool]] = {"the call": [], "the next step": []}
    with Checkpointer(Attempt(1, store), stepper.world, config.identity_hash(), config.checkpoint) as checkpointer:
        for step, batch in enumerate(batches):
            stepper(step, batch)
            gone_on.set()
            if step and step % EVERY == 0:
                ahead["the next step"].append(not caught_up.query())
            if (step + 1) % EVERY == 0:
                checkpointer.wait()
                gone_on.clear()
                torch.cuda._sleep(HALF_A_SECOND)
                caught_up.record()
                checkpointer.save(tensors_of(stepper), Progress(step=step + 1))
                ahead["the call"].append(not caught_up.query())
        gone_on.set()
        checkpointer.wait()
        for what, found in ahead.items():
            assert all(found[1:]), f"{what} waited for the device; the first save may, as it page-locks its buffers"
        loaded = {}
        for commit in commits(store):
            tensors = tensors_of(stepper)
            checkpointer.load(commit, tensors)
            loaded[commit.step] = hash_state(tensors)
    twin, expected = build(config), {}
    for step in range(1, STEPS + 1):
        take(twin, range(step - 1, step))
        if step % EVERY == 0:
            expected[step] = hash_state(tensors_of(twin))
    assert len(set(expected.values())) == STEPS // EVERY
    assert loaded == expected


def test_the_copy_lies_in_page_locked_memory_which_the_next_one_uses_again(tmp_path: Path) -> None:
    stepper = build(prepared(tmp_path, precision="auto", compile="never"))
    staging, places = Staging(stepper.world.device), []
    for _ in range(2):
        staged = staging.copy(tensors_of(stepper))
        staged.wait()
        assert all(tensor.is_pinned() for tensor in staged.tensors.values())
        assert hash_state(staged.tensors) == hash_state(tensors_of(stepper))
        places.append({name: tensor.data_ptr() for name, tensor in staged.tensors.items()})
        take(stepper, range(1))
    assert places[0] == places[1]


def test_a_run_that_is_killed_goes_on_bit_for_bit_from_its_last_save(tmp_path: Path) -> None:
    """With dropout, in bfloat16; three steps behind the save at step 20."""
    settings = {"precision": "auto", "compile": "never"}
    whole, killed = prepared(tmp_path / "whole", **settings), prepared(tmp_path / "killed", **settings)
    run_ranks(1, train_run, whole, 1)
    assert run_ranks(1, train_run, killed, 1, None, 23) == [-9]
    assert newest(killed).step == 20
    [(result, reports)] = run_ranks(1, train_run, killed, 2)
    assert reports[0]["resumedFromStep"] == 20
    assert result.step == 40
    assert contents(newest(killed)) == contents(newest(whole))
