"""A job deleted and created again under its name, while the operator does not hear of it."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from pathlib import Path

import pytest
from support import played
from support.fault_proxy import Rule, waits_for, watching
from support.kube_http import KubeHttp, Refused
from support.scene import Player, Reference, Scene, scene, wait_until
from support.tally import Tally

PODS, JOBS = "/pods", "/trainingjobs"
Variant = tuple[str, tuple[str, ...]]
SOME: list[Variant] = [("training", (JOBS,)), ("training", (JOBS, PODS)), ("finished", (JOBS, PODS))]
MORE: list[Variant] = [("checking", (JOBS,)), ("training", (PODS,)), ("finished", (JOBS,)), ("finished", (PODS,))]


@pytest.mark.parametrize(
    "variants", [pytest.param(SOME, id="some"), pytest.param(MORE, id="more", marks=pytest.mark.slow)]
)
async def test_a_new_job_under_the_old_name_owes_nothing_to_the_old_one(
    api: KubeHttp, directory: Path, reference: Reference, tally: Tally, variants: list[Variant]
) -> None:
    async def run(variant: Variant) -> None:
        when, held = variant
        async with scene(api, directory) as stage:
            await come_to(stage, when)
            old = await known_uids(stage)
            gate = await hold_back(stage, *held)
            await stage.delete()
            await api.delete(f"/api/v1/namespaces/{stage.namespace}/events")
            async with Player(stage) as player:
                await stage.apply()
                await stage.rest()
                assert old.isdisjoint(await known_uids(stage))
                stage.proxy.rules.clear()
                gate.set()
                await reference.is_the_end(stage, player)
            assert old.isdisjoint(await known_uids(stage))

    await tally.each(variants, run)


async def test_pods_that_the_old_job_left_behind_are_not_adopted(api: KubeHttp, directory: Path, tally: Tally) -> None:
    async def run(held: tuple[str, ...]) -> None:
        async with scene(api, directory) as stage:
            await stage.apply()
            await stage.wait_pods("gpt-prepare-0-1")
            gate = await hold_back(stage, *held)
            await api.delete(f"{stage.jobs}/gpt", propagationPolicy="Orphan")
            await wait_until("the job is gone", lambda: gone(stage))
            for kind in ("services", "configmaps"):
                for left in await stage.list(kind, "gpt"):
                    await api.delete(f"/api/v1/namespaces/{stage.namespace}/{kind}/{left['metadata']['name']}")
            (pod,) = await stage.list("pods")
            await stage.apply()
            await stage.rest()
            stage.proxy.rules.clear()
            gate.set()
            await stage.wait("it says so", lambda status: "Pod gpt-prepare-0-1 exists" in status.get("message", ""))
            await stage.set_pod("gpt-prepare-0-1", played.ended(outcome="Finished", result={"step": 100}))
            await stage.rest()
            assert (await stage.job())["status"]["phase"] == "Starting"
            (found,) = await stage.list("pods")
            assert found["metadata"]["uid"] == pod["metadata"]["uid"]
            assert "ownerReferences" not in found["metadata"]

    await tally.each([(JOBS, PODS), (JOBS,)], run)


async def come_to(stage: Scene, when: str) -> None:
    """The old job has come so far."""
    async with Player(stage, waits={"checking": ["end"], "training": ["lose"], "finished": []}[when]):
        await stage.apply()
        if when == "checking":
            await stage.wait_running("prepare-0-1")
        elif when == "training":
            await stage.wait_running("train-0-1", "train-1-1")
        else:
            await stage.wait_phase("Succeeded")
            with suppress(Refused):  # Kubernetes was first: of what the lost node held nothing is left.
                await stage.api.delete(f"{stage.pods}/gpt-train-1-1", gracePeriodSeconds=0)
    await stage.rest()


async def hold_back(stage: Scene, *paths: str) -> asyncio.Event:
    """From now on watches tell nothing, until the event is set."""
    gate = asyncio.Event()
    stage.proxy.rules += [Rule(watching(waits_for(gate)), verb="watch", path=path, times=math.inf) for path in paths]
    seen = len(stage.proxy.seen)
    stage.proxy.hang_up()

    async def watched() -> bool:
        again = " ".join(exchange.path for exchange in stage.proxy.seen[seen:] if exchange.verb == "watch")
        return PODS in again and JOBS in again

    await wait_until("the operator watches again", watched)
    return gate


async def known_uids(stage: Scene) -> set[str]:
    """Of the job, its pods, and those that its status names."""
    job = await stage.job()
    return {job["metadata"]["uid"], *(await stage.pod_uids()).values(), *uids_in(job["status"])}


def uids_in(status: dict[str, object]) -> set[str]:
    pods: list[dict[str, str]] = status.get("pods", [])  # type: ignore[assignment]
    return {member["uid"] for member in pods if "uid" in member}


async def gone(stage: Scene) -> bool:
    return not (await stage.api.get(stage.jobs))["items"]
