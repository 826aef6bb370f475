"""Every layout over real ranks is the same training as one process; which one `auto` picks."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pydantic import ValidationError
from support.rank_functions import in_turn, series_of
from support.ranks import run_ranks
from support.training import job, put_tokens, store_of, without_dropout
from trainingjob_trainer.config import JobConfig, Parallelism
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.parallel.layout import pick

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "ddp-2": (2, {"fsdp": "none"}),
    "fsdp-2": (2, {"fsdp": "full"}),
    "fsdp-3": (3, {"fsdp": "full"}),
    "ddp-4": (4, {"fsdp": "none"}),
    "fsdp-4": (4, {"fsdp": "full"}),
    "hsdp-4": (4, {"fsdp": "full", "fsdpRanks": 2}),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {"adamw": {"lr": 1e-3}, "sgd": {"name": "sgd", "lr": 1e-3}}
# Computed in float64, nothing but the order of summation may differ, and that hardly.
BOUNDS = {"float64": 1e-10, "float32": 1e-5}


class Series(NamedTuple):
    """Of the steps of one rank."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, np.ndarray[Any, Any]]


@dataclass
class Measured:
    """Series of each rank by layout and optimizer, and how far they may lie apart."""

    bound: float
    series: dict[tuple[str, str], list[Series]] = field(default_factory=dict)


def config_of(directory: Path, optimizer: str, parallelism: dict[str, Any]) -> JobConfig:
    changes = {"model": without_dropout(), "optimizer": OPTIMIZERS[optimizer], "parallelism": parallelism}
    return job(directory, steps=20, **changes)


@pytest.fixture(scope="module", params=["float64", pytest.param("float32", marks=pytest.mark.slow)])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """All layouts and optimizers, in ranks that are started once."""
    directory = tmp_path_factory.mktemp("layouts")
    put_tokens(store_of(config_of(directory, "sgd", {})))
    result = Measured(BOUNDS[request.param])
    for world_size in (1, 2, 3, 4):
        layouts = {name: wanted for name, (ranks, wanted) in LAYOUTS.items() if ranks == world_size} or {"alone": {}}
        keys = list(product(layouts, OPTIMIZERS))
        exact = request.param == "float64"
        calls = [(series_of, (config_of(directory, optimizer, layouts[name]), exact)) for name, optimizer in keys]
        ranks = run_ranks(world_size, in_turn, calls, seconds=400)
        result.series |= {key: [Series(*rank[i]) for rank in ranks] for i, key in enumerate(keys)}
    return result


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_weights_are_those_of_one_process(measured: Measured, layout: str, optimizer: str) -> None:
    """20 steps of 10 rows, unevenly masked and dealt, clipping active. AdamW alone would hide a wrong scale."""
    [alone] = measured.series["alone", optimizer]
    assert min(alone.norms) > 0.5, "clipped"
    for rank in measured.series[layout, optimizer]:
        assert rank.losses == pytest.approx(alone.losses, abs=measured.bound, rel=0)
        assert rank.norms == pytest.approx(alone.norms, rel=10 * measured.bound)
        for name, weight in alone.weights.items():
            np.testing.assert_allclose(rank.weights[name], weight, rtol=0, atol=2 * measured.bound, err_msg=name)


GB = 10**9


@pytest.mark.parametrize(
    ("ranks", "per_pod", "state", "shape", "why"),
    [
        (1, 1, 900 * GB, (1, 1), "one rank"),
        (8, 8, 2 * GB, (8, 1), "each rank has room for its training state of 2.00 GB, of 80 GB a rank"),
        (16, 8, 130 * GB, (2, 8), "the 8 ranks of a pod have room for its training state of 130 GB"),
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


def test_ranks_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(UserError, match=r"6 ranks do not divide into groups of 4 .*fsdpRanks"):
        pick(Parallelism(fsdp="full", fsdp_ranks=4), 6, 1, 0, GB)


def test_groups_are_of_fsdp() -> None:
    with pytest.raises(ValidationError, match=r"fsdpRanks \(4\) is for fsdp full, not auto"):
        Parallelism(fsdp_ranks=4)
