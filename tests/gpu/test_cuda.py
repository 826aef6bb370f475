"""What only a GPU shows: `make test-gpu` on a machine that has one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.rank_functions import build, hash_whole, masked_batch, poisoned_step, take
from support.training import OPTIMIZERS, VOCABULARY, Hooks, prepared, store_of
from torch._dynamo.utils import counters
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.batches import training_rows
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest
from trainingjob_trainer.data.order import Order
from trainingjob_trainer.data.prefetch import prefetch
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.errors import Drained
from trainingjob_trainer.loop import train
from trainingjob_trainer.tasks.base import cross_entropy_sum
from trainingjob_trainer.tasks.head import head_cross_entropy, pieces

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

BLOCKS = 3
WIDE = {"transformer": {"layers": BLOCKS, "dim": 64, "heads": 4, "kvHeads": 2, "ffnDim": 128}}


def run_of(directory: Path, **changes: Any) -> JobConfig:
    return prepared(directory, **{"compile": "never", "precision": "auto", **changes})


def losses(config: JobConfig, stop_after: int | None = None) -> list[float]:
    """Of each step that this attempt takes."""
    hooks = Hooks(stop_after=stop_after)
    train(config, Attempt.take(store_of(config), 0), hooks)
    progress = [report["progress"] for report in hooks.reports if "progress" in report]
    return [fields["loss"] for fields in progress if fields["loss"] is not None]


@pytest.mark.parametrize(("optimizer", "compiled"), [("adamw", "always"), *((name, "never") for name in OPTIMIZERS)])
def test_a_step_never_waits_for_the_device(tmp_path: Path, optimizer: str, compiled: str) -> None:
    stepper = build(run_of(tmp_path, compile=compiled, optimizer=OPTIMIZERS[optimizer], emaDecay=0.9))
    take(stepper, range(2))
    training = stepper.training
    batch = masked_batch(2, training.global_batch_size, training.sequence_length).pin()
    torch.cuda.set_sync_debug_mode("error")
    try:
        sums = stepper(2, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sums.loss.isfinite()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_vocabulary_that_is_filled_up_gives_the_loss_and_the_gradients_of_its_entries(
    compiled: bool, smoothing: float
) -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    features = torch.randn(1, 37, 16, device="cuda", generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY + 1, 16, device="cuda", generator=generator).requires_grad_()
    targets = torch.randint(len(weight), (1, 37), device="cuda", generator=generator)
    ours = head_cross_entropy(features, weight, targets, smoothing, compiled)
    whole, _ = cross_entropy_sum(features @ weight.T, targets, smoothing)
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-4)
    for found, expected in zip(*(torch.autograd.grad(loss, (features, weight)) for loss in (ours, whole)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(logits.shape[-1] for logits, _ in pieces(features, weight, targets)) == len(weight)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_no_bit(tmp_path: Path, optimizer: str) -> None:
    before, after = poisoned_step(run_of(tmp_path, optimizer=OPTIMIZERS[optimizer], emaDecay=0.9))
    assert before == after


def test_weights_moments_and_gradients_are_float32_while_passes_are_bfloat16(tmp_path: Path) -> None:
    stepper = build(run_of(tmp_path))
    assert stepper.dtype == torch.bfloat16
    seen = []
    block = stepper.model.get_submodule("blocks.0.ffn.up")
    block.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    take(stepper, range(1))
    assert set(seen) == {torch.bfloat16}
    for parameter in stepper.model.parameters():
        assert parameter.dtype == torch.float32
        assert {t.dtype for t in stepper.optimizer.state_of(parameter).values()} == {torch.float32}


def test_the_same_run_gives_the_same_bits(tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "other"):
        stepper = build(run_of(tmp_path / name))
        take(stepper, range(5))
        hashes.append(hash_whole(stepper))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize("compiled", ["never", "always"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, compiled: str) -> None:
    """With dropout, in bfloat16."""
    whole = losses(run_of(tmp_path / "whole", compile=compiled))
    stopped = run_of(tmp_path / "stopped", compile=compiled)
    with pytest.raises(Drained):
        losses(stopped, stop_after=20)
    rest = losses(stopped)
    assert 10 < len(rest) < 30
    assert rest == whole[-len(rest) :]


def test_compiled_blocks_share_one_graph_and_learn_the_same(tmp_path: Path) -> None:
    eager = losses(run_of(tmp_path / "eager", model=WIDE, precision="float32"))
    counters.clear()
    torch._dynamo.reset()  # other tests may have compiled the loss
    compiled = losses(run_of(tmp_path / "compiled", model=WIDE, precision="float32", compile="always"))
    assert counters["stats"]["unique_graphs"] == 5, (
        "a block and the last norm, both in training and in evaluation, and the loss"
    )
    assert compiled[0] != eager[0], "other kernels round otherwise"
    assert compiled == pytest.approx(eager, rel=0.02)
    assert eager[-1] < eager[0] - 0.3


def test_batches_come_in_page_locked_memory(tmp_path: Path) -> None:
    config = run_of(tmp_path)
    manifest = Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))
    reader = Reader(store_of(config), manifest, "train", config.training.sequence_length)
    rows = training_rows(range(2), 4, Order(reader.blocks, seed=1), 1, 0)
    with prefetch(reader, rows, pin=True) as read:
        batch = next(read)
    assert batch.inputs.is_pinned()
    assert batch.targets.is_pinned()
    assert batch.to(torch.device("cuda")).inputs.is_cuda
