"""An operator that starts, or begins to lead, on old facts: it creates and deletes nothing by them."""

from __future__ import annotations

import asyncio
import math
import re
from contextlib import suppress
from pathlib import Path

import pytest
from support.fault_proxy import FaultProxy, Rule, after
from support.kube_http import KubeHttp, Refused
from support.runs import PATIENCE
from support.scene import Player, Reference, Scene, operator_in, scene, wait_until
from support.stale import JOBS, PODS, OldFacts
from support.tally import Tally

LEASE = ("--leader-elect", "--lease-name", "operator", "--lease-namespace", "default")
LAST_WRITES = 3
"""The reference's writes after its last act."""
WRITES = 12
"""What an operator may try on old facts in a second: no hot loop."""

Paths = tuple[str, ...]


@pytest.mark.parametrize(
    ("writes", "old"),
    [
        pytest.param("/pods$", [(JOBS, PODS)], id="create of a pod"),
        pytest.param("", [(JOBS, PODS), (JOBS,), (PODS,)], id="write", marks=pytest.mark.slow),
    ],
)
async def test_a_start_on_facts_from_before_any(
    api: KubeHttp, directory: Path, reference: Reference, tally: Tally, writes: str, old: list[Paths]
) -> None:
    async def run(variant: tuple[int, Paths]) -> None:
        number, paths = variant
        async with scene(api, directory) as stage, Player(stage, waits={"finish"}) as player:
            facts = taken(stage, verb="write", skip=number)
            await stage.apply()
            await stage.wait_running("train-0-2", "train-1-2")
            with suppress(Refused):  # Kubernetes was first: of what the lost node held nothing is left.
                await api.delete(f"{stage.pods}/gpt-train-1-1", gracePeriodSeconds=0)
            await note(facts, stage)  # This run may take fewer writes than the reference: more happen at a time.
            await start_on(await facts, stage, *paths)
            await player.release()
            await reference.is_the_end(stage, player)

    numbers = [number for number, write in enumerate(reference.writes[:-LAST_WRITES]) if re.search(writes, write)]
    await tally.each([(number, paths) for number in numbers for paths in old], run)


async def test_a_start_on_facts_of_an_earlier_job_of_the_same_name(
    api: KubeHttp, directory: Path, reference: Reference, tally: Tally
) -> None:
    """That job was about to end its pods. Those of the new one have the same names."""

    async def run(paths: Paths) -> None:
        async with scene(api, directory) as stage:
            async with Player(stage, waits={"lose"}):
                await stage.apply()
                await stage.wait_running("train-0-1", "train-1-1")
                facts = taken(stage, verb="delete", path="/pods")
                await api.patch(f"{stage.jobs}/gpt", {"spec": {"runPolicy": {"suspend": True}}})
                await asyncio.wait_for(asyncio.shield(facts), PATIENCE)
                await stage.delete()
            async with Player(stage, waits={"lose"}) as player:
                await stage.apply()
                await stage.wait_running("train-0-1", "train-1-1")
                await start_on(await facts, stage, *paths)
                await player.release()
                await reference.is_the_end(stage, player)

    await tally.each([(JOBS, PODS), (JOBS,), (PODS,)], run)


async def test_a_start_on_facts_from_before_a_pod_that_was_deleted_meanwhile(
    api: KubeHttp, directory: Path, tally: Tally
) -> None:
    """The status of then licensed that pod. Its name is not used again, and its successor has a status of its own."""

    async def run() -> None:
        async with scene(api, directory) as stage, Player(stage, waits={"lose"}) as player:
            facts = taken(stage, verb="create", path="/pods", skip=1)
            await stage.apply()
            await stage.wait("the pods are known", lambda status: status.get("workers", {}).get("ready") == 2)
            await stage.operator.stop()
            await api.delete(f"{stage.pods}/gpt-train-1-1")
            before = len(stage.proxy.applied)
            with (await facts).served(stage.proxy):
                async with operator_in(stage.namespace, stage.proxy, stage.operator.log):
                    await stage.wait_pods("gpt-train-1-2")
            writes = [str(write).partition("/namespaces/")[2] for write in stage.proxy.applied[before:]]
            status, created = f"{stage.namespace}/trainingjobs/gpt/status", f"{stage.namespace}/pods"
            assert writes.index(status) < writes.index(created)
            assert player.wrongs == []

    await tally.once(run)


async def test_a_standby_that_begins_to_lead_on_facts_from_before_a_pod(
    api: KubeHttp, directory: Path, tally: Tally
) -> None:
    """The pod was deleted and has a successor."""

    async def run() -> None:
        home = directory / "standby"
        home.mkdir()
        async with scene(api, directory, *LEASE) as stage, FaultProxy(api, home) as other:
            async with Player(stage, waits={"lose", "crash"}) as player:
                facts = taken(stage, verb="create", path="/pods", skip=1)
                await stage.apply()
                await stage.wait_running("train-0-1", "train-1-1")
                with (await facts).served(other):
                    async with operator_in(stage.namespace, other, home / "operator.log", *LEASE) as standby:
                        await wait_until("the standby is ready", lambda: said(standby.log, "caches are filled"))
                        await api.delete(f"{stage.pods}/gpt-train-1-1")
                        await stage.wait_running("train-0-1", "train-1-2")
                        await stage.operator.stop()
                        await wait_until("it has looked at the job", lambda: looked(other))
                        assert await stage.pod_names() == {"gpt-prepare-0-1", "gpt-train-0-1", "gpt-train-1-2"}
                        assert player.wrongs == []

    await tally.once(run)


def taken(stage: Scene, verb: str, path: str = "", skip: int = 0) -> asyncio.Future[OldFacts]:
    """The facts when a write of the operator is asked for. Those asked for with it wait until they are taken."""
    facts: asyncio.Future[OldFacts] = asyncio.get_running_loop().create_future()
    limit = asyncio.Lock()

    async def take() -> None:
        async with limit:
            await note(facts, stage)

    stage.proxy.rules.append(Rule(after(take), verb=verb, path=path, skip=skip, times=math.inf))
    return facts


async def note(facts: asyncio.Future[OldFacts], stage: Scene) -> None:
    """Take those of now, if there are none."""
    if not facts.done():
        found = await OldFacts.of(stage)
        if not facts.done():
            facts.set_result(found)


async def start_on(facts: OldFacts, stage: Scene, *paths: str) -> None:
    """The operator starts anew, sees old facts on these paths for a while, and does no harm."""
    pods, writes = await stage.pod_uids(), len(stage.proxy.writes())
    with facts.served(stage.proxy, *paths):
        await stage.restart()
        await stage.rest()
        assert await stage.pod_uids() == pods
        assert len(stage.proxy.writes()) - writes <= WRITES


async def said(log: Path, words: str) -> bool:
    return log.exists() and words in log.read_text()


async def looked(proxy: FaultProxy) -> bool:
    """Whether the operator behind the proxy has read the job and its pods."""
    return any(exchange.verb == "list" and "job-uid%3D" in exchange.path for exchange in proxy.seen)
