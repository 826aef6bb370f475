"""A run whose ranks are killed, beside its twin that nobody disturbs."""

from __future__ import annotations

from typing import Any

from trainingjob_trainer.config import JobConfig

from support.rank_functions import train_run
from support.ranks import run_ranks
from support.training import contents, newest


def resumed_like_its_twin(
    ranks: int, twin: JobConfig, disturbed: JobConfig, *, killed_at: int, saved: int
) -> tuple[Any, Any]:
    """What rank 0 gives of both runs, a result and its reports, the twin's first.

    The disturbed one gets SIGKILL on all ranks at step `killed_at` and goes on from step `saved`; both end with the
    same evaluation and, bit for bit, the same checkpoint.
    """
    undisturbed = run_ranks(ranks, train_run, twin, 1)[0]
    assert run_ranks(ranks, train_run, disturbed, 1, None, killed_at) == [-9] * ranks
    assert newest(disturbed).step == saved
    resumed = run_ranks(ranks, train_run, disturbed, 2)[0]
    assert contents(newest(disturbed)) == contents(newest(twin))
    assert resumed[0].evaluation == undisturbed[0].evaluation
    return undisturbed, resumed
