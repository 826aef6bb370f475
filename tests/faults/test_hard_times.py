"""Outages, storms, foreign writers, and times in which nothing happens: how much the operator writes, and what for."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections import Counter
from pathlib import Path

import pytest
from support import played
from support.fault_proxy import Fault, Rule, drop, refuse
from support.kube_http import KubeHttp, Refused
from support.runs import PATIENCE
from support.scene import Player, Reference, Scene, scene, wait_until
from support.tally import Tally

JOBS = 20
ANNOTATIONS = 7
# One attempt of each worker when it begins; then one after the other, with pauses that grow to 5 s.
FIRST_ATTEMPTS, ATTEMPTS_PER_SECOND = 16, 2.0


@pytest.mark.parametrize("parts", [["metadata"], ["metadata", "spec"]], ids=["metadata", "metadata and spec"])
async def test_a_foreign_writer_every_50_ms_of(
    api: KubeHttp, directory: Path, reference: Reference, tally: Tally, parts: list[str]
) -> None:
    async def run() -> None:
        async with scene(api, directory) as stage:
            written = 0
            enough = asyncio.Event()  # a fast job is over before each annotation is written once

            async def write() -> None:
                nonlocal written
                while True:
                    kept = f"example.com/{written % ANNOTATIONS}"
                    annotations = {"example.com/count": str(written + 1), kept: "kept"}
                    change = {"metadata": {"annotations": annotations, "labels": {"team": "vision"}}}
                    if "spec" in parts:
                        change["spec"] = {"runPolicy": {"maxRestarts": 10 + written % 2}}
                    with contextlib.suppress(Refused):  # not applied yet
                        await api.patch(f"{stage.jobs}/gpt", change)
                        written += 1
                    if written >= ANNOTATIONS:
                        enough.set()
                    await asyncio.sleep(0.05)

            writer = asyncio.create_task(write())
            try:
                await reference.is_reached(stage) if "spec" not in parts else await ends_well(stage, reference)
                await asyncio.wait_for(enough.wait(), PATIENCE)
            finally:
                writer.cancel()
                await asyncio.wait([writer])
            meta = (await stage.job())["metadata"]
            assert int(meta["annotations"]["example.com/count"]) >= written >= ANNOTATIONS
            assert {f"example.com/{number}" for number in range(ANNOTATIONS)} <= set(meta["annotations"])
            assert meta["labels"] == {"team": "vision"}

    await tally.once(run)


STORMS: dict[str, tuple[Fault, str]] = {
    "an outage": (drop, ""),
    "a storm of 429": (refuse(429, "TooManyRequests"), "write"),
    "a storm of 429 with Retry-After": (refuse(429, "TooManyRequests", **{"Retry-After": "2"}), "write"),
    "a storm of 504": (refuse(504, "Timeout"), "write"),
    "a storm of 429 at reads, too": (refuse(429, "TooManyRequests"), ""),
}


@pytest.mark.parametrize(
    "seconds", [pytest.param(6.0, id="seconds"), pytest.param(60.0, id="a minute", marks=pytest.mark.slow)]
)
async def test_the_api_server_in_trouble_for(api: KubeHttp, directory: Path, tally: Tally, seconds: float) -> None:
    async def run(name: str) -> None:
        fault, verb = STORMS[name]
        names = [f"gpt-{number}" for number in range(JOBS)]
        # Mere progress, such as the uids of new pods, is not written before the end, however long this takes.
        async with scene(api, directory, "--progress-interval", "3600") as stage:
            await stage.apply("before")
            await stage.wait_pods("before-prepare-0-1")
            await stage.rest()
            undisturbed = Counter(str(write).replace("before", "gpt") for write in stage.proxy.applied)
            await api.delete(f"{stage.jobs}/before")  # of a pod that finds no node for 30 s there is something to say
            await stage.rest()
            stage.proxy.applied.clear()
            rule = Rule(fault, verb=verb, times=math.inf)
            stage.proxy.rules.append(rule)
            stage.proxy.hang_up()
            seen, loop = len(stage.proxy.writes()), asyncio.get_running_loop()
            begun = loop.time()
            for name in names:
                await stage.apply(name)
            await asyncio.sleep(seconds)
            stage.proxy.rules.clear()
            attempts = len(stage.proxy.writes()) - seen
            assert attempts <= FIRST_ATTEMPTS + ATTEMPTS_PER_SECOND * (loop.time() - begun)
            await stage.wait_pods(*(f"{name}-prepare-0-1" for name in names))
            await stage.rest()
            applied = Counter(re.sub(r"gpt-\d+", "gpt", str(write)) for write in stage.proxy.applied)
            assert applied == Counter({what: JOBS * count for what, count in undisturbed.items()})
            assert stage.operator.ends == 0

    await tally.each(STORMS, run, at_once=2)


@pytest.mark.parametrize(
    ("jobs", "seconds"),
    [pytest.param(50, 4.0, id="50"), pytest.param(1000, 60.0, id="1000", marks=pytest.mark.slow)],
)
async def test_no_write_while_nothing_happens_to_jobs(
    api: KubeHttp, directory: Path, tally: Tally, jobs: int, seconds: float
) -> None:
    """Finished and suspended jobs, through resyncs and two restarts."""

    async def run() -> None:
        async with scene(api, directory, "--resync", str(seconds / 3)) as stage:
            finished = [f"done-{number}" for number in range(jobs // 2)]
            suspended = [f"off-{number}" for number in range(jobs - jobs // 2)]
            for name in suspended:
                await stage.apply(name, runPolicy={"suspend": True})
            for name in finished:
                await stage.apply(name)
            await finish(stage, finished)
            await settled(stage, jobs)
            writes, events = len(stage.proxy.writes()), await stage.events()
            assert sum(events.values()) >= jobs
            for _ in range(2):
                await asyncio.sleep(seconds / 2)
                await stage.restart()
            await asyncio.sleep(min(seconds / 2, 2.0))
            assert [str(write) for write in stage.proxy.writes()[writes:]] == []
            assert await stage.events() == events

    await tally.once(run)


async def ends_well(stage: Scene, reference: Reference) -> None:
    """As the reference, but for what a spec that changes all the time leaves in the status: its generation."""
    async with Player(stage) as player:
        await stage.apply()
        status = await stage.wait_phase("Succeeded")
        assert player.wrongs == []
    assert [incident["class"] for incident in status["history"]] == ["NodeLost", "Internal"]
    assert status["restarts"]["total"] == 1


async def finish(stage: Scene, names: list[str]) -> None:
    """Each job's first pod finds that its work is done already."""
    waiting = {f"{name}-prepare-0-1" for name in names}

    async def all_done() -> bool:
        for pod in await stage.pod_names() & waiting:
            waiting.discard(pod)
            await stage.set_pod(pod, played.ended(outcome="Finished", result={"modelUri": "s3://m", "step": 100}))
        return not waiting

    await wait_until("all pods have been there", all_done)


async def settled(stage: Scene, jobs: int) -> None:
    async def so() -> bool:
        items = (await stage.api.get(stage.jobs))["items"]
        over = [item for item in items if item["status"].get("phase") in ("Suspended", "Succeeded")]
        return len(over) == jobs

    await wait_until("all jobs have come to rest", so)
    await stage.rest()
