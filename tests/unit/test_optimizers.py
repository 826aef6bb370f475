"""Optimizers take the steps of a plain torch loop, decay spares vectors, and bad steps change nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.peaks import peaks_of_updates
from support.rank_functions import poisoned_step, read_by_a_step, weights_after
from support.ranks import run_ranks
from support.spread import in_turn
from support.training import OPTIMIZERS, job, put_tokens, store_of, without_dropout
from torch import Tensor, nn
from trainingjob_trainer.config import Optimizer
from trainingjob_trainer.optim import OptimizerGroup, WeightAverage, add_penalties, build_optimizer

YES = torch.tensor(True)
CASES = OPTIMIZERS | {
    "sgd without momentum": {"name": "sgd", "lr": 0.05, "momentum": 0},
    "rmsprop without momentum": {"name": "rmsprop", "lr": 0.01},
}


def plain(model: nn.Module, name: str) -> list[torch.optim.Optimizer]:
    """The optimizer as one would write it by hand, fused where torch can; decoupled decay is 0.1 on matrices."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optim = torch.optim
    match name:
        case "adamw" | "adam":  # Adam with decoupled decay is AdamW
            return [optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)]
        case "sgd" | "nesterov":
            return [optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=name == "nesterov", fused=True)]
        case "sgd without momentum":
            return [optim.SGD(model.parameters(), lr=0.05, fused=True)]
        case "rmsprop":
            return [optim.RMSprop(model.parameters(), lr=0.01, momentum=0.5)]
        case "rmsprop without momentum":
            return [optim.RMSprop(model.parameters(), lr=0.01)]
        case "adagrad":
            return [optim.Adagrad(model.parameters(), lr=0.05, eps=1e-8, fused=True)]
        case "muon":
            hidden = [p for p in model.get_submodule("blocks").parameters() if p.ndim == 2]
            rest = [p for p in matrices if all(p is not h for h in hidden)]
            others: list[dict[str, Any]] = [{"params": rest}, {"params": vectors, "weight_decay": 0.0}]
            muon = optim.Muon(hidden, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
            return [muon, optim.AdamW(others, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1, fused=True)]
    raise AssertionError(name)


class Net(nn.Module):
    """Matrices inside and outside of `blocks`, vectors too."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 4)])
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        out: Tensor = self.head(x)
        return out


def net() -> Net:
    torch.manual_seed(0)
    return Net()


@torch.no_grad()
def decay(model: nn.Module, factor: float) -> None:
    for matrix in (p for p in model.parameters() if p.ndim >= 2):
        matrix.mul_(factor)


def bits(*tensors: Tensor) -> list[bytes]:
    """Zeros have a sign here."""
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


def leave_gradients(model: nn.Module, step: int) -> None:
    model.zero_grad()
    dtype = next(model.parameters()).dtype
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
    torch.autograd.backward((model(x) - 1).square().mean())


def take(model: nn.Module, optimizer: OptimizerGroup, rate: float, finite: Tensor, step: int = 0) -> None:
    leave_gradients(model, step)
    optimizer.step(rate, finite)


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ten_steps_equal_those_of_a_plain_torch_loop(name: str, dtype: torch.dtype) -> None:
    """Bit for bit."""
    ours, theirs = net().to(dtype), net().to(dtype)
    config = Optimizer.model_validate(CASES[name])
    optimizer, references = build_optimizer(ours, config), plain(theirs, name)
    for step in range(10):
        take(ours, optimizer, config.lr, YES, step)
        leave_gradients(theirs, step)
        if name == "nesterov":
            decay(theirs, 1 - config.lr * 0.1)
        for reference in references:
            reference.step()
    for (label, weight), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0, msg=label)


def test_nesterov_looks_ahead() -> None:
    """The first step of momentum m is lr * (1 + m) * gradient, less the decoupled decay of matrices."""
    model = net()
    leave_gradients(model, 0)
    before = [(p.detach().clone(), p.grad.clone()) for p in model.parameters() if p.grad is not None]
    build_optimizer(model, Optimizer.model_validate(OPTIMIZERS["nesterov"])).step(0.05, YES)
    for weight, (old, gradient) in zip(model.parameters(), before, strict=True):
        decayed = old * (1 - 0.05 * 0.1) if old.ndim == 2 else old
        torch.testing.assert_close(weight.detach(), decayed - 0.05 * 1.9 * gradient)


@pytest.mark.parametrize("steps", [0, 1], ids=["the first", "a later one"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_a_step_that_is_not_finite_changes_nothing(name: str, steps: int) -> None:
    """Weights, moments and the optimizer's own count of steps stay bit for bit, whatever is in the gradients."""
    model = net()
    for parameter in model.parameters():
        parameter.detach().view(-1)[:2] = torch.tensor([0.0, -0.0])
    optimizer = build_optimizer(model, Optimizer.model_validate(CASES[name]))
    for step in range(steps):
        take(model, optimizer, 0.01, YES, step)
    for moments in map(optimizer.state_of, model.parameters()):
        for name in moments.keys() & {"momentum_buffer", "exp_avg"}:  # the others are never negative
            moments[name].view(-1)[0] = -0.0

    def state() -> list[bytes]:
        return bits(*model.parameters(), *(m for p in model.parameters() for m in optimizer.state_of(p).values()))

    before = state()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.step(0.01, torch.tensor(False))
    assert before == state()
    take(model, optimizer, 0.01, YES)
    assert before != state()


@pytest.mark.parametrize("name", sorted(CASES))
def test_moments_are_there_before_the_first_step_and_are_zero(name: str) -> None:
    """A checkpoint is loaded into them."""
    model = net()
    optimizer = build_optimizer(model, Optimizer.model_validate(CASES[name]))
    before = [optimizer.state_of(p) for p in model.parameters()]
    assert not any(moment.any() for moments in before for moment in moments.values())
    take(model, optimizer, 0.1, YES)
    assert [optimizer.state_of(p).keys() for p in model.parameters()] == [moments.keys() for moments in before]


def test_a_step_counts_for_a_parameter_that_it_leaves_out_and_leaves_it_as_it_is() -> None:
    """That is where AdamW differs from torch's, which does not count it."""
    ours, theirs = net(), net()
    config = Optimizer.model_validate(CASES["adamw"])
    optimizer, [reference] = build_optimizer(ours, config), plain(theirs, "adamw")
    for step in range(4):
        for model in (ours, theirs):
            leave_gradients(model, step)
            if step == 1:
                model.head.weight.grad = None
        before = ours.head.weight.detach().clone()
        optimizer.step(config.lr, YES)
        reference.step()
        if step == 1:
            assert torch.equal(ours.head.weight, before)
            reference.state[theirs.head.weight]["step"] += 1
    for weight, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(weight, expected)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_model_without_vectors_learns_too(name: str) -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(2, 2, bias=False)])
    [matrix] = model.parameters()
    before, matrix.grad = matrix.detach().clone(), torch.ones_like(matrix)
    build_optimizer(model, Optimizer.model_validate(CASES[name])).step(0.1, YES)
    assert not torch.equal(matrix, before)


def test_penalties_add_their_gradients_to_matrices_only() -> None:
    model = net()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    add_penalties(model.parameters(), Optimizer(name="sgd", l1=0.5, l2=0.25), torch.tensor(4.0))
    for parameter in model.parameters():
        w = parameter.detach()
        expected = 1 + 4 * (0.5 * w.sign() + 0.25 * w) if w.ndim == 2 else torch.ones_like(w)
        torch.testing.assert_close(parameter.grad, expected)


def test_the_average_follows_the_weights_and_stands_in_for_them() -> None:
    model = net()
    average = WeightAverage(model, 0.9)
    average.restart()
    start = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight += 1
    average.update(YES)
    average.update(torch.tensor(False))
    torch.testing.assert_close(average.tensors["head.weight"], start + 0.1)
    with average.in_place():
        torch.testing.assert_close(model.head.weight.detach(), start + 0.1)
    torch.testing.assert_close(model.head.weight.detach(), start + 1)


def test_a_step_that_is_not_finite_leaves_the_average_bit_for_bit() -> None:
    model = net()
    average = WeightAverage(model, 0.9)
    average.restart()
    average.tensors["head.weight"].fill_(-0.0)
    before = bits(*average.tensors.values())
    average.update(torch.tensor(False))
    assert bits(*average.tensors.values()) == before


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_on_two_ranks_the_steps_are_those_of_one(tmp_path: Path, name: str) -> None:
    """With L1, where the optimizer allows it: each shard gets its own part. Muon orthogonalises in bfloat16."""
    penalty = {} if name == "muon" else {"l1": 1e-3}
    optimizer = OPTIMIZERS[name] | penalty | {"lr": 1e-3}
    config = job(tmp_path, steps=5, model=without_dropout(), optimizer=optimizer)
    put_tokens(store_of(config))
    [alone] = run_ranks(1, weights_after, config)
    bound = 2e-3 if name == "muon" else 2e-5
    for rank in run_ranks(2, weights_after, config):
        for label, weight in alone.items():
            np.testing.assert_allclose(rank[label], weight, rtol=0, atol=bound, err_msg=label)


def test_nothing_that_moves_or_follows_the_weights_holds_a_copy_of_all() -> None:
    names = sorted({str(optimizer["name"]) for optimizer in OPTIMIZERS.values()})
    [(weights, peaks)] = run_ranks(1, peaks_of_updates, names)
    assert {name: peak for name, peak in peaks.items() if peak > weights / 3} == {}


def test_one_nan_on_one_of_two_ranks_is_a_step_that_neither_takes(tmp_path: Path) -> None:
    configs = [job(tmp_path, emaDecay=0.9, optimizer=optimizer) for optimizer in OPTIMIZERS.values()]
    put_tokens(store_of(configs[0]))
    ranks = run_ranks(2, in_turn, [(poisoned_step, (config,)) for config in configs])
    assert ranks[0] != ranks[1], "each rank has shards of its own"
    for name, (before, after) in (
        (name, states) for rank in ranks for name, states in zip(OPTIMIZERS, rank, strict=True)
    ):
        assert before == after, name


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_step_reads_a_number_from_the_device(tmp_path: Path, ranks: int) -> None:
    """Here the device is a CPU, and does what it does with CUDA, where the host would wait: tests/gpu looks there."""
    configs = [job(tmp_path, emaDecay=0.9, optimizer=optimizer) for optimizer in OPTIMIZERS.values()]
    put_tokens(store_of(configs[0]))
    for read in run_ranks(ranks, in_turn, [(read_by_a_step, (config,)) for config in configs]):
        assert dict(zip(OPTIMIZERS, read, strict=True)) == {name: [] for name in OPTIMIZERS}
