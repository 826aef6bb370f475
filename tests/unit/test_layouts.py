"""Every layout over real ranks is the same training as one process; which one `auto` picks."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.rank_functions import save_state
from support.ranks import run_ranks
from support.spread import Series, continued, in_turn, series_of
from support.training import job, put_tokens, store_of, without_dropout
from trainingjob_trainer.config import JobConfig, Parallelism
from trainingjob_trainer.errors import OutOfMemory
from trainingjob_trainer.parallel.layout import STATE_SHARE, Layout, layout_of, memory, pick

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "ddp-2": (2, {"fsdp": "none"}),
    "fsdp-2": (2, {"fsdp": "full"}),
    "tensor-2": (2, {"tensor": 2}),
    "fsdp-3": (3, {"fsdp": "full"}),
    "ddp-4": (4, {"fsdp": "none"}),
    "fsdp-4": (4, {"fsdp": "full"}),
    "hsdp-4": (4, {"fsdp": "full", "fsdpRanks": 2}),
    "fsdp-x-tensor-4": (4, {"fsdp": "full", "tensor": 2}),
    "ddp-x-tensor-4": (4, {"fsdp": "none", "tensor": 2}),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {"adamw": {"lr": 1e-3}, "sgd": {"name": "sgd", "lr": 1e-3}}
ALL = list(product(LAYOUTS, OPTIMIZERS))
FEW = [("alone", "sgd"), ("ddp-2", "sgd"), ("fsdp-3", "sgd"), ("hsdp-4", "sgd"), ("fsdp-x-tensor-4", "sgd")]
# Computed in float64, nothing but the order of summation may differ, and that hardly.
BOUNDS = {"float64": 1e-10, "float32": 1e-5}


def config_of(directory: Path, layout: str, optimizer: str, steps: int = 20) -> JobConfig:
    """Documents of unequal length, rows that do not divide; four passes of one process, one of the most ranks."""
    changes = {"model": without_dropout(), "optimizer": OPTIMIZERS[optimizer], "parallelism": LAYOUTS[layout][1]}
    return job(directory, steps=steps, microBatchSize=3, **changes)


@pytest.mark.parametrize(
    ("precision", "cases"),
    [
        pytest.param("float64", FEW, id="float64"),
        pytest.param("float64", ALL, id="float64-all", marks=pytest.mark.slow),
        pytest.param("float32", ALL, id="float32-all", marks=pytest.mark.slow),
    ],
)
def test_losses_and_weights_are_those_of_one_process(
    tmp_path: Path, precision: str, cases: list[tuple[str, str]]
) -> None:
    """20 steps, clipping active. AdamW alone would hide a wrong scale."""
    put_tokens(store_of(config_of(tmp_path, *cases[0])))
    alone: dict[str, Series] = {}
    for world_size in range(1, 5):
        chosen = [case for case in cases if LAYOUTS[case[0]][0] == world_size]
        calls = [(series_of, (config_of(tmp_path, *case), precision == "float64")) for case in chosen]
        for rank in run_ranks(world_size, in_turn, calls):
            for (layout, optimizer), series in zip(chosen, rank, strict=True):
                expected = alone.setdefault(optimizer, series)
                assert min(expected.norms) > 0.5, "clipped"
                assert_close(series, expected, BOUNDS[precision], f"{layout} {optimizer}")


def assert_close(series: Series, expected: Series, bound: float, what: str) -> None:
    np.testing.assert_allclose(series.losses, expected.losses, rtol=0, atol=bound, err_msg=what)
    np.testing.assert_allclose(series.norms, expected.norms, rtol=10 * bound, err_msg=what)
    for name, weight in expected.weights.items():
        np.testing.assert_allclose(series.weights[name], weight, rtol=0, atol=2 * bound, err_msg=f"{what} {name}")


def test_a_checkpoint_of_one_layout_goes_on_in_another(tmp_path: Path) -> None:
    """Three steps split and sharded, three more as shards, as copies of shards, and in one process."""

    def config(layout: str) -> JobConfig:
        return config_of(tmp_path, layout, "adamw", steps=6)

    put_tokens(store_of(config("alone")))
    calls = [
        (save_state, (config("fsdp-x-tensor-4"), 1, 3)),
        (continued, (config("fsdp-4"), 2)),
        (continued, (config("hsdp-4"), 3)),
    ]
    [(saved, *others), *_] = run_ranks(4, in_turn, calls)
    calls = [(series_of, (config("alone"), False)), (continued, (config("alone"), 4))]
    [(expected, alone)] = run_ranks(1, in_turn, calls)
    for loaded, losses in [*others, alone]:
        assert loaded == saved
        assert losses == pytest.approx(expected.losses[3:], abs=1e-5)


GB = 10**9


@pytest.mark.parametrize(
    ("ranks", "per_pod", "state", "shape", "why"),
    [
        (1, 1, 900 * GB, (1, 1), "one rank"),
        (8, 8, 2 * GB, (8, 1), "each rank has room for its training state of 2.00 GB, of 80 GB a rank"),
        (16, 8, 130 * GB, (2, 8), "the ranks of a pod have room for its training state of 130 GB"),
        (16, 8, 900 * GB, (1, 16), "fewer ranks have no room for its training state of 900 GB"),
        (8, 8, 130 * GB, (1, 8), "fewer ranks have no room"),
        (4, 1, 130 * GB, (1, 4), "fewer ranks have no room"),
    ],
)
def test_auto_takes_the_layout_of_least_communication_that_has_room(
    ranks: int, per_pod: int, state: int, shape: tuple[int, int], why: str
) -> None:
    layout = pick(Parallelism(), ranks, per_pod, state, 80 * GB)
    assert (layout.copies, layout.shards) == shape
    assert why in str(layout)


def test_on_a_cpu_auto_leaves_room_for_the_copy_of_a_checkpoint_too(tmp_path: Path) -> None:
    """With AdamW 28 bytes a parameter where the training state alone has 16."""
    config, cpu = job(tmp_path, parallelism={}), torch.device("cpu")
    room = STATE_SHARE * memory(cpu, config.ranks_per_pod)

    def layout(bytes_each: int) -> Layout:
        """Of a model that has room if a parameter takes so many bytes."""
        model = torch.nn.Linear(round(room / bytes_each), 1, bias=False, device="meta")
        return layout_of(config, model, ranks=2, device=cpu)

    assert (layout(29).copies, layout(29).shards) == (2, 1)
    assert (layout(27).copies, layout(27).shards) == (1, 2)


def test_a_model_that_a_rank_cannot_hold_is_refused_before_it_is_made(tmp_path: Path) -> None:
    """By hand nothing else asks: the kernel ended the process, or another one."""
    cpu = torch.device("cpu")

    def layout(ranks: int, fsdp: str) -> Layout:
        """Of a model whose training state is half as large again as the memory of a rank."""
        config = job(tmp_path, parallelism={"fsdp": fsdp})
        there = memory(cpu, config.ranks_per_pod)
        model = torch.nn.Linear(round(1.5 * there / 28), 1, bias=False, device="meta")
        return layout_of(config, model, ranks, cpu)

    for ranks, fsdp in ((1, "auto"), (2, "none")):
        with pytest.raises(
            OutOfMemory, match=r"takes [\d.]+ GB, activations not counted, and it has [\d.]+ GB"
        ) as raised:
            layout(ranks, fsdp)
        assert "fsdp: full" in raised.value.next_step
    assert layout(2, "full").shards == layout(2, "auto").shards == 2


def test_auto_divides_what_a_rank_holds_by_the_size_of_its_tensor_group() -> None:
    layout = pick(Parallelism(tensor=4), 16, 8, 130 * GB, 80 * GB)
    assert (layout.copies, layout.shards, layout.tensor) == (4, 1, 4)
    assert "DDP: 4 copies of the model, its matrices split over 4" in str(layout)


def test_groups_are_of_fsdp() -> None:
    with pytest.raises(ValidationError, match=r"fsdpRanks \(4\) is for fsdp full, not auto"):
        Parallelism(fsdp_ranks=4)
