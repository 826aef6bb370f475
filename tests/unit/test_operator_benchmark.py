"""The benchmark of the operator: what it tells of its rounds, and that it notices when nothing is left to measure."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from support.runs import PATIENCE
from trainingjob_local.process import Component, StartError

ROOT = Path(__file__).parents[2]


async def test_an_operator_that_ends_ends_the_measurement_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.operator_scale.processes import Operator

    operator = Operator(tmp_path / "kubeconfig", tmp_path / "log")
    assert await operator.during(asyncio.sleep(0, "measured")) == "measured", "it is started by what is measured"
    dying = [sys.executable, "-c", "print('the lease is lost'); raise SystemExit(3)"]
    monkeypatch.setattr(operator, "_process", Component("operator", dying, tmp_path / "log"))
    with pytest.raises(StartError, match="exit code 3:\nthe lease is lost"):
        async with asyncio.timeout(PATIENCE):
            await operator.during(asyncio.sleep(600))
    with pytest.raises(StartError, match=r"(?s)exit code 1.*cannot log in"):
        await operator.start()


def test_what_is_told_of_rounds_is_the_median_of_each_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.operator_scale.measure import median

    rounds = [{"s": s, "quantiles": {"p50": p50}} for s, p50 in ((3.0, 9.0), (1.0, 7.0), (2.0, 8.5))]
    assert median(rounds) == {"s": 2.0, "quantiles": {"p50": 8.5}}
