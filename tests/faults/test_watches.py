"""A whole job, while the watches and LISTs that the operator lives on fail in every way: the end is always the same."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from support import played
from support.fault_proxy import (
    Fault,
    Rule,
    cut_after,
    cut_in_half_a_line,
    error_event,
    expires_at,
    paged,
    refuse,
    swallows,
    waits_for,
    watching,
)
from support.kube_http import KubeHttp
from support.scene import Reference, scene, wait_until
from support.tally import Tally

PODS, JOBS = "/pods", "/trainingjobs"


@pytest.mark.parametrize("step", [pytest.param(4, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)])
async def test_each_single_watch_event_lost(
    api: KubeHttp, directory: Path, reference: Reference, tally: Tally, step: int
) -> None:
    async def run(variant: tuple[str, int]) -> None:
        resource, number = variant
        async with scene(api, directory, "--resync", "1") as stage:
            lose = watching(swallows(number))
            await reference.is_reached(stage, Rule(lose, verb="watch", path=f"/{resource}", times=math.inf))
            assert stage.operator.ends == 0

    variants = [(resource, number) for resource, count in sorted(reference.watched.items()) for number in range(count)]
    await tally.each(variants[::step], run)


BREAKS: dict[str, Callable[[], tuple[Fault, float]]] = {
    "too old in the stream": lambda: (watching(error_event(410, "Expired", events=2)), 3),
    "too old from the start": lambda: (refuse(410, "Expired"), 3),
    "an error in the stream": lambda: (watching(error_event(500, "InternalError", events=2)), 2),
    "an error from the start": lambda: (refuse(500, "InternalError"), 3),
    "hanging for good": lambda: (watching(waits_for(asyncio.Event())), math.inf),
    "ending in half a line": lambda: (watching(cut_in_half_a_line(clean=True)), 2),
    "breaking in half a line": lambda: (watching(cut_in_half_a_line(clean=False)), 5),
    "breaking all the time": lambda: (cut_after(0.3), math.inf),
}


COUNTED = {
    "too old in the stream": "expired",
    "too old from the start": "expired",
    "an error in the stream": "error",
    "an error from the start": "error",
    "breaking in half a line": "error",
}
"""How the breaks of the operator's own watch are counted. One that ends like any other is none."""


@pytest.mark.parametrize("resource", [pytest.param(PODS, id="of pods"), pytest.param(JOBS, id="of jobs")])
async def test_a_watch(api: KubeHttp, directory: Path, reference: Reference, tally: Tally, resource: str) -> None:
    async def run(name: str) -> None:
        fault, times = BREAKS[name]()
        async with scene(api, directory, "--resync", "1" if name.startswith("hanging") else "600") as stage:
            await reference.is_reached(stage, Rule(fault, verb="watch", path=resource, times=times))
            # What kopf cannot survive ends the process, and the next one goes on.
            assert stage.operator.ends == 0 or (resource == JOBS and stage.operator.ends <= times)
            if resource == PODS and name in COUNTED:
                labels = f'reason="{COUNTED[name]}",resource="pods"'
                counted = await stage.operator.metric(f"trainingjob_operator_watch_restarts_total{{{labels}}}")
                assert 1 <= counted <= times

    await tally.each(BREAKS, run)


async def test_what_a_watch_that_hangs_did_not_tell_is_found_by_the_resync_and_counted(
    api: KubeHttp, directory: Path, tally: Tally
) -> None:
    async def run() -> None:
        async with scene(api, directory, "--resync", "1") as stage:
            hangs = watching(waits_for(asyncio.Event()))
            stage.proxy.rules.append(Rule(hangs, verb="watch", path=PODS, times=math.inf))
            await stage.apply()
            await stage.wait_pods("gpt-prepare-0-1")
            await api.delete(f"{stage.pods}/gpt-prepare-0-1")
            await stage.wait_pods("gpt-prepare-0-2")
            assert await stage.operator.metric('trainingjob_operator_missed_events_total{resource="pods"}') > 0

    await tally.once(run)


async def test_the_deletion_of_a_pod_lost_in_a_watch_that_expires(api: KubeHttp, directory: Path, tally: Tally) -> None:
    async def run() -> None:
        async with scene(api, directory) as stage:
            stage.proxy.rules.append(Rule(watching(expires_at("DELETED")), verb="watch", path=PODS, times=math.inf))
            await stage.apply()
            await stage.wait_pods("gpt-prepare-0-1")
            await api.delete(f"{stage.pods}/gpt-prepare-0-1")
            await stage.wait_pods("gpt-prepare-0-2")
            assert [incident["class"] for incident in (await stage.job())["status"]["history"]] == ["Deleted"]

    await tally.once(run)


async def test_the_deletion_of_a_job_lost_in_a_watch_that_expires(
    api: KubeHttp, directory: Path, reference: Reference, tally: Tally
) -> None:
    async def run() -> None:
        async with scene(api, directory) as stage:
            stage.proxy.rules.append(Rule(watching(expires_at("DELETED")), verb="watch", path=JOBS, times=math.inf))
            await stage.apply()
            await stage.wait_pods("gpt-prepare-0-1")
            await api.delete(f"{stage.jobs}/gpt")

            async def gone() -> bool:
                return await stage.pod_names() == set()

            await wait_until("the pods are gone", gone)
            await stage.rest()
            before = len(stage.proxy.applied)
            await stage.rest()
            assert len(stage.proxy.applied) == before
            await reference.is_reached(stage)

    await tally.once(run)


async def test_a_page_of_a_list_expired(api: KubeHttp, directory: Path, tally: Tally) -> None:
    names = [f"gpt-{letter}" for letter in "abcd"]

    async def run(resource: str) -> None:
        async with scene(api, directory) as stage:
            for name in names:
                await stage.apply(name)
            await stage.wait_pods(*(f"{name}-prepare-0-1" for name in names))
            stage.proxy.rules += [
                Rule(refuse(410, "Expired"), verb="list", path=rf"{resource}\?.*continue="),
                Rule(paged(2), verb="list", path=resource, times=math.inf),
            ]
            stage.operator.kill()
            for name in names:
                await stage.set_pod(f"{name}-prepare-0-1", played.ended(outcome="Train"))
            await stage.wait_pods(*(f"{name}-train-{index}-1" for name in names for index in (0, 1)))
            assert {pod for pod in await stage.pod_names() if not pod.endswith("-1")} == set()
            assert stage.operator.ends <= 1 + (resource == JOBS)

    await tally.each([PODS, JOBS], run)
