"""Jobs that share a ResourceQuota, in which their pods take places one by one: no gang waits for another for ever."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from support import played
from support.fault_proxy import Rule, arrives_with
from support.kube_http import KubeHttp, Object
from support.scene import Scene, scene, wait_until
from support.tally import Tally


async def test_of_two_gangs_that_hold_a_part_of_a_quota_each_the_younger_gives_way_and_comes_back(
    api: KubeHttp, directory: Path, tally: Tally
) -> None:
    async def run() -> None:
        gate = asyncio.Event()
        async with scene(api, directory) as stage:
            await limit_pods(stage, 2)
            late = Rule(arrives_with(gate), "create", "/pods", body='"older-train-1-1"', times=math.inf)
            stage.proxy.rules.append(late)
            older = await start(stage, "older", 2)
            await stage.wait_pods("older-train-0-1")
            await start(stage, "younger", 2, younger_than=older)
            await stage.wait("its second pod is refused", refused("QuotaExceeded"), "younger")
            assert len(await stage.pod_names()) == 2, "each has one"
            gate.set()
            await stage.wait("the older one is refused as well", refused("QuotaExceeded"), "older")
            await stage.wait("it gives way", refused("GaveWay"), "younger")
            await runs_through(stage, "older", "older-train-0-1", "older-train-1-1")
            await runs_through(stage, "younger", "younger-train-0-2", "younger-train-1-2")
            told = await stage.events("Warning")
            assert [told[what] for what in told if what.startswith("GaveWay")] == [1]

    await tally.once(run)


async def test_a_gang_that_never_fits_into_its_quota_holds_nothing_of_it_from_others(
    api: KubeHttp, directory: Path, tally: Tally
) -> None:
    async def run() -> None:
        async with scene(api, directory) as stage:
            await limit_pods(stage, 2)
            older = await start(stage, "older", 3)
            status = await stage.wait("it is told", refused("QuotaTooSmall"), "older")
            assert "3 pods must run together and need pods=1 each, of which it allows 2 in all" in status["message"]
            assert len(await stage.pod_names()) == 2
            await start(stage, "younger", 2, younger_than=older)
            await runs_through(stage, "younger", "younger-train-0-1", "younger-train-1-1")
            status = (await stage.job("older"))["status"]
            assert refused("QuotaTooSmall")(status)
            assert "history" not in status or status["history"] == []

    await tally.once(run)


async def limit_pods(stage: Scene, number: int) -> None:
    """The quota of the namespace has room for so many pods, and counts them."""
    path = f"/api/v1/namespaces/{stage.namespace}/resourcequotas"
    await stage.api.create(path, {"metadata": {"name": "team"}, "spec": {"hard": {"pods": str(number)}}})

    async def counts() -> bool:
        return "used" in (await stage.api.get(f"{path}/team"))["status"]

    await wait_until("the quota counts", counts)


async def start(stage: Scene, name: str, replicas: int, younger_than: Object | None = None) -> Object:
    """A new job of kind custom, younger than another one by a second."""
    job = played.manifest(stage.namespace, name)
    workers = {"replicas": replicas, "template": job["spec"]["workers"]["template"]}
    job["spec"] = {"task": {"kind": "custom", "custom": {"command": ["python", "train.py"]}}, "workers": workers}
    if younger_than is not None:
        born = datetime.fromisoformat(younger_than["metadata"]["creationTimestamp"])

        async def a_second_later() -> bool:
            return datetime.now(UTC) - born > timedelta(seconds=1)

        await wait_until("a second has passed", a_second_later)
    return await stage.api.create(stage.jobs, job)


def refused(reason: str) -> Callable[[Object], bool]:
    """Whether a status tells of this obstacle, while no pod has begun."""

    def told(status: Object) -> bool:
        reasons = {c["reason"] for c in status.get("conditions", ()) if c["status"] == "True"}
        return reasons == {reason} and status["phase"] == "Queued"

    return told


async def runs_through(stage: Scene, name: str, *pods: str) -> None:
    """The job gets these pods, which do their work."""
    await stage.wait_pods(*pods)
    for number, pod in enumerate(pods):
        await stage.set_pod(pod, played.running(f"10.99.1.{number + 1}"))
    await stage.wait_phase("Running", name=name)
    for pod in pods:
        await stage.set_pod(pod, played.ended(outcome="Finished", result={}))
    await stage.wait_phase("Succeeded", name=name)
