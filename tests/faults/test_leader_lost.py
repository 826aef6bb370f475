"""A leader's last create arrives when another operator leads and has gone on."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
from support import played
from support.fault_proxy import FaultProxy, Rule, arrives_with, drop
from support.kube_http import KubeHttp
from support.scene import operator_in, scene, wait_until
from support.tally import Tally

LEASE = ("--leader-elect", "--lease-name", "operator", "--lease-namespace")


@pytest.mark.parametrize("how", ["released", pytest.param("lost", marks=pytest.mark.slow)])
async def test_the_lease_goes_while_a_create_is_on_its_way(
    api: KubeHttp, directory: Path, tally: Tally, how: str
) -> None:
    """The pod comes too late: it is deleted, and nothing is counted for it."""

    async def run() -> None:
        home = directory / f"successor-{how}"
        home.mkdir()
        gate = asyncio.Event()
        async with scene(api, directory, *LEASE, "default") as stage, FaultProxy(api, home) as other:
            late = Rule(arrives_with(gate), verb="create", path="/pods", skip=2)
            stage.proxy.rules.append(late)
            await stage.apply()
            await stage.wait_pods("gpt-prepare-0-1")
            log = home / "operator.log"
            async with operator_in(stage.namespace, other, log, *LEASE, "default"):
                await stage.set_pod("gpt-prepare-0-1", played.ended(outcome="Train"))

                async def on_its_way() -> bool:
                    return late.hits > 0

                await wait_until("the create is on its way", on_its_way)
                if how == "released":
                    await stage.operator.stop()
                else:
                    stage.proxy.rules.append(Rule(drop, path="/leases", times=math.inf))
                await stage.wait_pods("gpt-train-0-1", "gpt-train-1-1")
                missing = {"gpt-train-0-1", "gpt-train-1-1"} - applied(stage.proxy)
                (name,) = missing
                await api.delete(f"{stage.pods}/{name}")
                await stage.wait_pods(f"{name[:-1]}2")
                gate.set()

                async def arrived() -> bool:
                    return name in applied(stage.proxy)

                await wait_until("the create has arrived", arrived)

                async def deleted() -> bool:
                    return name not in await stage.pod_names()

                await wait_until(lambda: f"it is deleted again\n{log.read_text()}", deleted)
                status = (await stage.job())["status"]
                assert [incident["class"] for incident in status["history"]] == ["Deleted"]
                assert status.get("restarts", {}).get("total", 0) == 0
                assert f"{name[:-1]}2" in await stage.pod_names()

    await tally.once(run)


def applied(proxy: FaultProxy) -> set[str]:
    """Names of the pods whose creates have arrived through this proxy."""
    creates = [exchange for exchange in proxy.applied if exchange.verb == "create" and "/pods" in exchange.path]
    return {json.loads(exchange.body)["metadata"]["name"] for exchange in creates}
