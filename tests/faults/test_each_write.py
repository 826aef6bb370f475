"""A whole job, with something wrong at each single write of the operator in turn: the end is always the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.fault_proxy import Fault, Rule, delay, drop, duplicate, lose_the_answer, refuse, then
from support.kube_http import KubeHttp
from support.scene import Reference, scene, wait_until
from support.tally import Tally


async def test_a_kill_after_any_write(api: KubeHttp, directory: Path, reference: Reference, tally: Tally) -> None:
    async def run(number: int) -> None:
        async with scene(api, directory) as stage:
            rule = Rule(then(stage.operator.kill), verb="write", skip=number)
            await reference.is_reached(stage, rule)

            async def ended_when_killed() -> bool:  # The last write may be an event, told after the end.
                return stage.operator.ends == rule.hits

            await wait_until("the operator ends once, when it is killed", ended_when_killed)
            assert rule.hits == 1 or number >= len(stage.proxy.writes())

    await tally.each(range(len(reference.writes)), run)


FAULTS: dict[str, Fault] = {
    "the answer lost": lose_the_answer,
    "the request lost": drop,
    "arriving twice": duplicate,
    "arriving late": delay(2.0),
    "answered 409": refuse(409, "Conflict"),
    "answered 429": refuse(429, "TooManyRequests", **{"Retry-After": "1"}),
    "answered 500": refuse(500, "InternalError"),
    "answered 504": refuse(504, "Timeout"),
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=name, marks=() if fault is lose_the_answer else pytest.mark.slow)
        for name, fault in FAULTS.items()
    ],
)
async def test_any_write(api: KubeHttp, directory: Path, reference: Reference, tally: Tally, fault: Fault) -> None:
    async def run(number: int) -> None:
        async with scene(api, directory) as stage:
            rule = Rule(fault, verb="write", skip=number)
            await reference.is_reached(stage, rule)
            assert stage.operator.ends == 0
            assert rule.hits == 1 or number >= len(stage.proxy.writes())

    await tally.each(range(len(reference.writes)), run)


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault is not lose_the_answer])
async def test_some_writes(api: KubeHttp, directory: Path, reference: Reference, tally: Tally, name: str) -> None:
    """Each fault at the fourth write, and at each fifth from there: all kinds of writes meet all kinds of faults."""

    async def run() -> None:
        async with scene(api, directory) as stage:
            first = 3 + list(FAULTS).index(name) % 5
            await reference.is_reached(
                stage, *(Rule(FAULTS[name], verb="write", skip=first + 4 * more) for more in range(5))
            )
            assert stage.operator.ends == 0

    await tally.once(run)
