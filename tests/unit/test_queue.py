"""The work queue: each key at most once, by one worker at a time, and never forgotten."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from support.runs import PATIENCE
from support.virtual_time import in_virtual_time
from trainingjob_operator.core.queue import Retry, ServerTrouble, WorkQueue


@contextlib.asynccontextmanager
async def working(
    queue: WorkQueue[str], work: Callable[[str], Awaitable[float | None]], workers: int = 4
) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run(work, workers))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_key_added_many_times_is_worked_on_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    seen: list[str] = []
    both = asyncio.Event()

    async def work(key: str) -> None:
        seen.append(key)
        if key == "last":
            both.set()

    for _ in range(5):
        queue.add("a")
    queue.add("last")
    assert len(queue) == 2
    async with working(queue, work, workers=1), asyncio.timeout(PATIENCE):
        await both.wait()
    assert seen == ["a", "last"]


async def test_a_key_added_during_its_work_is_worked_on_again_and_never_by_two_workers() -> None:
    queue: WorkQueue[str] = WorkQueue()
    active, runs, most = 0, 0, 0
    started, finished = asyncio.Event(), asyncio.Event()
    go_on = asyncio.Event()

    async def work(key: str) -> None:
        nonlocal active, runs, most
        active, runs = active + 1, runs + 1
        most = max(most, active)
        started.set()
        await go_on.wait()
        active -= 1
        if runs == 2:
            finished.set()

    async with working(queue, work), asyncio.timeout(PATIENCE):
        queue.add("a")
        await started.wait()
        queue.add("a")
        queue.add("a")
        go_on.set()
        await finished.wait()
    assert (runs, most) == (2, 1)


async def test_the_earliest_of_several_delays_wins() -> None:
    queue: WorkQueue[str] = WorkQueue()
    done = asyncio.Event()

    async def work(key: str) -> None:
        done.set()

    async with working(queue, work), asyncio.timeout(PATIENCE):
        queue.add_after("a", 0.01)
        queue.add_after("a", 3600.0)
        await done.wait()
        done.clear()
        queue.add_after("b", 3600.0)
        queue.add_after("b", 0.01)
        await done.wait()


async def test_work_that_asks_for_it_comes_back() -> None:
    queue: WorkQueue[str] = WorkQueue()
    runs = 0
    done = asyncio.Event()

    async def work(key: str) -> float | None:
        nonlocal runs
        runs += 1
        if runs == 3:
            done.set()
            return None
        return 0.001

    async with working(queue, work), asyncio.timeout(PATIENCE):
        queue.add("a")
        await done.wait()
    assert runs == 3


async def test_work_that_must_come_back_sooner_than_the_backoff_does() -> None:
    queue: WorkQueue[str] = WorkQueue(first_retry=60.0)
    again = asyncio.Event()
    runs = 0

    async def work(key: str) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise Retry("not now", within=0.01)
        again.set()

    queue.add("a")
    async with working(queue, work), asyncio.timeout(PATIENCE):
        await again.wait()


@pytest.mark.parametrize("error", [Retry("not now"), ValueError("a defect")])
async def test_failed_work_is_retried_with_growing_delays_until_it_succeeds(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Exception | None] = []
    queue: WorkQueue[str] = WorkQueue(first_retry=0.001, on_done=lambda seconds, error: seen.append(error))
    done = asyncio.Event()

    async def work(key: str) -> None:
        if len(seen) < 3:
            raise error
        done.set()

    async with working(queue, work), asyncio.timeout(PATIENCE):
        queue.add("a")
        await done.wait()
    assert seen[:3] == [error] * 3
    retries = [record for record in caplog.records if "try again" in record.message]
    assert [bool(record.exc_info) for record in retries] == [not isinstance(error, Retry)] * 3
    delays = [record.args[0] for record in retries if isinstance(record.args, tuple)]
    assert delays == sorted(delays)


async def test_one_failing_key_does_not_hold_up_the_others() -> None:
    queue: WorkQueue[str] = WorkQueue(first_retry=3600.0)
    done = asyncio.Event()

    async def work(key: str) -> None:
        if key == "bad":
            raise Retry("never")
        done.set()

    async with working(queue, work, workers=1), asyncio.timeout(PATIENCE):
        queue.add("bad")
        queue.add("good")
        await done.wait()


class Held:
    """Work that goes on once it may. seen: the keys that are done."""

    def __init__(self) -> None:
        self.started, self.go_on = asyncio.Event(), asyncio.Event()
        self.seen: list[str] = []

    async def work(self, key: str) -> None:
        self.started.set()
        await self.go_on.wait()
        self.seen.append(key)


async def test_it_rests_when_nothing_is_worked_on_and_nothing_could_be() -> None:
    queue, held = WorkQueue[str](), Held()
    await asyncio.wait_for(queue.rest(0), PATIENCE)
    queue.add("a")
    queue.add("b")
    queue.add_after("later", 3600)
    async with working(queue, held.work, workers=1):
        await held.started.wait()
        resting = asyncio.create_task(queue.rest(0))
        assert not (await asyncio.wait([resting], timeout=0.05))[0]
        held.go_on.set()
        await asyncio.wait_for(resting, PATIENCE)
        assert held.seen == ["a", "b"]


async def test_it_rests_for_a_while_once_nothing_was_worked_on_for_so_long() -> None:
    queue, held = WorkQueue[str](), Held()
    await asyncio.wait_for(queue.rest(3600), PATIENCE)
    queue.add("a")
    held.go_on.set()
    async with working(queue, held.work, workers=1):
        await asyncio.wait_for(queue.rest(0), PATIENCE)
        assert held.seen == ["a"]
        await asyncio.wait_for(queue.rest(0.05), PATIENCE)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.rest(3600), 0.05)


async def test_when_it_ends_it_rests_whatever_still_waits() -> None:
    queue, held = WorkQueue[str](), Held()
    queue.add("a")
    queue.add("b")
    running = await run_until_it_works(queue, held, 0.01)
    running.cancel()
    await asyncio.wait([running], timeout=PATIENCE)
    queue.add("c")
    await asyncio.wait_for(queue.rest(0), PATIENCE)


async def run_until_it_works(queue: WorkQueue[str], held: Held, grace: float) -> asyncio.Task[None]:
    running = asyncio.create_task(queue.run(held.work, 2, grace))
    await held.started.wait()
    return running


async def test_when_it_is_cancelled_the_work_at_hand_is_finished_and_no_other_begun() -> None:
    queue, held = WorkQueue[str](), Held()
    queue.add("a")
    running = await run_until_it_works(queue, held, PATIENCE)
    running.cancel()
    assert not (await asyncio.wait([running], timeout=0.05))[0]
    queue.add("b")
    held.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert held.seen == ["a"]


async def test_work_that_takes_longer_than_the_grace_is_cut_off() -> None:
    queue, held = WorkQueue[str](), Held()
    queue.add("a")
    running = await run_until_it_works(queue, held, 0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(running, PATIENCE)


def test_a_key_that_is_added_anew_is_tried_as_if_it_had_never_failed() -> None:
    in_virtual_time(a_key_that_is_added_anew())


async def a_key_that_is_added_anew() -> None:
    queue: WorkQueue[str] = WorkQueue()
    tries: list[float] = []

    async def work(key: str) -> None:
        tries.append(asyncio.get_running_loop().time())
        raise Retry("not now")

    queue.add("a")
    async with working(queue, work):
        await asyncio.sleep(120)
        late = len(tries)
        assert tries[-1] - tries[-2] > 20
        queue.add_anew("a")
        await asyncio.sleep(1)
        assert len(tries) - late >= 3, "at once, and soon again"


def test_while_the_server_is_in_trouble_one_key_at_a_time_is_tried_and_afterwards_all_at_once() -> None:
    in_virtual_time(a_server_in_trouble())


async def a_server_in_trouble() -> None:
    queue: WorkQueue[int] = WorkQueue()
    loop = asyncio.get_running_loop()
    down, tries, done = True, 0, set[int]()
    active, most = 0, 0
    all_done = asyncio.Event()

    async def work(key: int) -> None:
        nonlocal tries, active, most
        tries += 1
        await asyncio.sleep(0)
        if down:
            raise ServerTrouble("no answer")
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.01)
        active -= 1
        done.add(key)
        if len(done) == 100:
            all_done.set()

    for key in range(100):
        queue.add(key)
    async with working(queue, work, workers=4):
        await asyncio.sleep(1.5)
        assert 4 < tries < 12
        down, begun = False, loop.time()
        await all_done.wait()
    assert loop.time() - begun < 5
    assert most == 4


async def test_a_server_is_left_alone_for_as_long_as_it_asks() -> None:
    queue: WorkQueue[str] = WorkQueue()
    loop = asyncio.get_running_loop()
    times: list[float] = []
    twice = asyncio.Event()

    async def work(key: str) -> None:
        times.append(loop.time())
        if len(times) > 1:
            twice.set()
            return
        raise ServerTrouble("too many requests", after=0.5)

    queue.add("a")
    async with working(queue, work), asyncio.timeout(PATIENCE):
        await twice.wait()
    assert times[1] - times[0] >= 0.5
