"""Progress is pulled from real HTTP servers, and only what matters wakes the job up."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from support.runs import PATIENCE
from trainingjob_operator.core.cache import Key
from trainingjob_operator.core.facts import PodFacts
from trainingjob_operator.observe import progress
from trainingjob_operator.observe.progress import ProgressPoller

NOW = datetime(2030, 1, 1, tzinfo=UTC)
KEY = Key("team", "job")
POD = PodFacts("job-train-0-1", "pod-1", "1", "job-1", "train", 0, 1, NOW, ip="127.0.0.1", phase="Running")


def report(**changes: Any) -> dict[str, Any]:
    plain = {"jobUid": "job-1", "podUid": "pod-1", "stage": "Train", "state": "Training", "progress": {"step": 1}}
    return plain | changes


class Trainer:
    """An agent's HTTP server: answers with `body` and `status`, and counts what it was asked."""

    def __init__(self) -> None:
        self.body = json.dumps(report())
        self.status = 200
        self.delay = 0.0
        self.asked = 0
        self.port = 0
        self._changed = asyncio.Condition()

    def says(self, **changes: Any) -> None:
        self.body = json.dumps(report(**changes))

    async def answer(self, request: web.Request) -> web.Response:
        async with self._changed:
            self.asked += 1
            self._changed.notify_all()
        await asyncio.sleep(self.delay)
        return web.Response(text=self.body, status=self.status)

    async def was_asked(self, times: int) -> None:
        """Wait until it was asked so many times."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: self.asked >= times)


@pytest.fixture
async def trainer() -> AsyncIterator[Trainer]:
    double = Trainer()
    app = web.Application()
    app.router.add_get("/progress", double.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    double.port = runner.addresses[0][1]
    try:
        yield double
    finally:
        await runner.cleanup()


class Operator:
    """A poller of one job and what it enqueued."""

    def __init__(self, trainer: Trainer, progress_interval: float) -> None:
        self.trainer = trainer
        self.enqueued: list[float] = []
        self.poller = ProgressPoller(self._enqueue, lambda: NOW, progress_interval, port=trainer.port)

    def _enqueue(self, key: Key, seconds: float) -> None:
        assert key == KEY
        self.enqueued.append(seconds)

    async def polls(self, number: int) -> None:
        """Wait until the trainer has been asked so many times more, and the last answer was taken in."""
        await self.trainer.was_asked(self.trainer.asked + number + 1)

    async def hears(self, reachable: bool) -> None:
        """Wait until the trainer is heard, or is known to be unreachable."""
        async with asyncio.timeout(PATIENCE):
            while self.poller.facts("job-1").fetched_at is None or reachable is not (
                self.poller.facts("job-1").unreachable_since is None
            ):
                await self.polls(1)


@contextlib.asynccontextmanager
async def polling(trainer: Trainer, progress_interval: float = 3600.0) -> AsyncIterator[Operator]:
    operator = Operator(trainer, progress_interval)
    async with operator.poller:
        task = asyncio.create_task(operator.poller.run())
        operator.poller.follow(KEY, "job-1", POD)
        try:
            yield operator
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MIN_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(progress, "MAX_BACKOFF_SECONDS", 0.02)
    monkeypatch.setattr(progress, "TIMEOUT_SECONDS", PATIENCE)


async def test_the_newest_report_is_kept_and_the_first_one_wakes_the_job(trainer: Trainer) -> None:
    async with polling(trainer) as operator:
        await operator.polls(2)
        facts = operator.poller.facts("job-1")
        assert facts.report is not None
        assert facts.report.progress is not None
        assert facts.report.progress.step == 1
        assert facts.fetched_at == NOW
        assert facts.unreachable_since is None
        assert operator.enqueued == [0.0]


async def test_steps_alone_do_not_wake_the_job_before_a_write_is_due(trainer: Trainer) -> None:
    async with polling(trainer) as operator:
        await operator.polls(2)
        for step in range(2, 6):
            trainer.says(progress={"step": step, "loss": 1.0 / step})
            await operator.polls(2)
        facts = operator.poller.facts("job-1")
        assert facts.report is not None
        assert facts.report.progress is not None
        assert facts.report.progress.step == 5
        assert operator.enqueued == [0.0]


async def test_steps_wake_the_job_when_a_write_is_due(trainer: Trainer) -> None:
    async with polling(trainer, progress_interval=0.001) as operator:
        await operator.polls(2)
        trainer.says(progress={"step": 2})
        await operator.polls(20)  # of 10 ms; a write is due every 50 ms
        assert operator.enqueued == [0.0, 0.0]
        await operator.polls(20)
        assert operator.enqueued == [0.0, 0.0], "the same report again is nothing new"


@pytest.mark.parametrize(
    "change",
    [
        {"state": "Evaluating"},
        {"checkpoint": {"latestStep": 100}},
        {"evaluation": {"split": "validation", "step": 100, "metrics": {"loss": 3.0}}},
        {"incidents": [{"attempt": 1, "class": "WorkerLost", "time": "2030-01-01T00:00:00Z"}]},
        {"firstStepAt": "2030-01-01T00:00:00Z"},
    ],
)
async def test_what_a_person_wants_to_know_wakes_the_job_at_once(trainer: Trainer, change: dict[str, Any]) -> None:
    async with polling(trainer) as operator:
        await operator.polls(2)
        trainer.says(**change)
        await operator.polls(2)
        assert operator.enqueued == [0.0, 0.0]


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(report(jobUid="job-2")),
        json.dumps(report(podUid="pod-2")),
        "not JSON",
        json.dumps([]),
        json.dumps(report(message="x" * 70_000)),
    ],
)
async def test_an_answer_that_is_not_this_pods_report_is_dropped(trainer: Trainer, body: str) -> None:
    trainer.body = body
    async with polling(trainer) as operator:
        await operator.polls(2)
        facts = operator.poller.facts("job-1")
        assert facts.report is None
        assert facts.unreachable_since == NOW
        assert operator.enqueued == [61.0], "a decision is due when the silence is long enough to be told"


async def test_a_trainer_that_answers_too_slowly_is_unreachable_and_later_heard_again(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "TIMEOUT_SECONDS", 0.3)  # on a slow machine some other answers come too late as well
    async with polling(trainer) as operator:
        await operator.hears(reachable=True)
        trainer.delay = PATIENCE
        await operator.hears(reachable=False)
        assert operator.poller.facts("job-1").unreachable_since == NOW
        assert operator.poller.facts("job-1").report is not None, "the last report stays known"
        trainer.delay = 0.0
        await operator.hears(reachable=True)
        assert operator.enqueued[-3:] == [0.0, 61.0, 0.0]


async def test_nobody_is_asked_any_more_when_the_job_wants_no_progress(trainer: Trainer) -> None:
    async with polling(trainer) as operator:
        await operator.polls(2)
        operator.poller.follow(KEY, "job-1", None)
        await asyncio.sleep(0)
        asked = trainer.asked
        operator.poller.follow(KEY, "other", replace(POD, job_uid="other"))
        await trainer.was_asked(asked + 3)
        assert operator.poller.facts("job-1").report is not None
        operator.poller.forget("job-1")
        assert operator.poller.facts("job-1").report is None


async def test_polls_and_writes_are_stretched_over_many_jobs(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "MIN_INTERVAL_SECONDS", 1.0)
    poller = ProgressPoller(lambda key, seconds: None, lambda: NOW, progress_interval=15.0)
    assert (poller.interval, poller.write_interval) == (1.0, 15.0)
    for number in range(10_000):
        poller.follow(Key("team", f"job-{number}"), f"job-{number}", POD)
    assert poller.interval == 50.0, "200 polls a second"
    assert poller.write_interval == 1000.0, "10 writes a second"
    for number in range(10_000, 20_000):
        poller.follow(Key("team", f"job-{number}"), f"job-{number}", None, starting=True)
    assert (poller.interval, poller.write_interval) == (50.0, 2000.0), "who starts is not polled, but written about"
    for number in range(10_000, 20_000):
        poller.follow(Key("team", f"job-{number}"), f"job-{number}", None)
    assert poller.write_interval == 1000.0, "it is suspended"
