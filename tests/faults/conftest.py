"""Fixtures of the fault tests, and their report: how often each scenario was tried, and survived."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from support.kube_http import KubeHttp
from support.scene import Reference, scene
from support.tally import Tally

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

_tallies: pytest.StashKey[dict[str, Tally]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_tallies] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of all scenarios that ran."""
    tallies = config.stash[_tallies]
    if not tallies:
        return
    terminalreporter.section("faults survived")
    for name, tally in tallies.items():
        line = f"{tally.survived:5d} of {tally.tried:4d}  {name}"
        terminalreporter.line(line, red=tally.survived < tally.tried)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Counts for the report, under the test's name."""
    name = request.node.name.removeprefix("test_").replace("_", " ")
    return request.config.stash[_tallies].setdefault(name, Tally())


@pytest_asyncio.fixture(scope="session")
async def api(cluster: LocalCluster) -> AsyncIterator[KubeHttp]:
    """The API server, without a proxy."""
    async with KubeHttp.connect(cluster.kubeconfig) as api:
        yield api


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the operators' logs and kubeconfigs lie."""
    return tmp_path_factory.mktemp("faults")


@pytest_asyncio.fixture(scope="session")
async def reference(api: KubeHttp, directory: Path) -> Reference:
    """The run to which all others are compared."""
    async with scene(api, directory) as stage:
        return await Reference.of(stage)
