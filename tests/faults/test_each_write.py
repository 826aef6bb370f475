"""A whole job, with something wrong at each single write of the operator in turn: the end is always the same."""

from __future__ import annotations

from collections import Counter
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
    "arriving late": delay(1.0),
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


KINDS = {
    ("update", "trainingjobs"),
    *(("create", kind) for kind in ("configmaps", "secrets", "services", "pods", "events")),
    ("patch", "pods"),
    ("delete", "pods"),
}


async def test_every_kind_of_write(api: KubeHttp, directory: Path, reference: Reference, tally: Tally) -> None:
    """Each fault at one write of each kind, in one run: the status, each child, an event, a pod changed and deleted."""
    counts = Counter(map(kind, reference.writes))
    assert set(counts) >= KINDS

    async def run(name: str) -> None:
        async with scene(api, directory) as stage:
            place = list(FAULTS).index(name)
            rules = {
                (verb, resource): Rule(FAULTS[name], verb, rf"/{resource}(/|$)", skip=place % max(1, count // 2))
                for (verb, resource), count in counts.items()
            }
            await reference.is_reached(stage, *rules.values())

            async def met() -> (
                bool
            ):  # Of events the first may be written after the end; a lost pod may be gone by then.
                return {kind for kind, rule in rules.items() if not rule.hits} <= {("patch", "pods")}

            await wait_until(lambda: f"all are met: {[kind for kind, rule in rules.items() if not rule.hits]}", met)
            assert stage.operator.ends == 0

    await tally.each((name for name, fault in FAULTS.items() if fault is not lose_the_answer), run)


def kind(write: str) -> tuple[str, str]:
    """Verb and resource."""
    verb, path = write.split()
    return verb, path.split("/namespaces/")[1].split("/")[1]
