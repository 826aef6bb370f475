"""Fixtures of all tests that need the local cluster: one cluster per session, a namespace and a bucket per test."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

CRD = Path(__file__).parent.parent / "crds" / "trainingjobs.trainingjob.io.yaml"

# A law is tried on the same examples everywhere, however slow the machine: what chance found in one run, and not in
# the next, would say nothing about the change that is tested. `make test-all` searches on: others each time, and more.
settings.register_profile("same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", settings.get_profile("same"), derandomize=False, max_examples=1000)
settings.load_profile("same")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[LocalCluster]":
    """The session's cluster, with the TrainingJob resource installed and an audit log."""
    from trainingjob_local import sandbox
    from trainingjob_local.cluster import LocalCluster

    if not sandbox.inside():
        pytest.fail(
            "these tests need a network of their own; run: python -m trainingjob_local.sandbox -- pytest ...",
            pytrace=False,
        )
    directory = tmp_path_factory.mktemp("cluster")
    capacity = {"cpu": "64", "memory": "256Gi", "nvidia.com/gpu": "16"}
    with LocalCluster(directory, nodes=2, capacity=capacity, audit=True) as cluster:
        cluster.install(CRD)
        yield cluster


@pytest.fixture(scope="session")
def make_namespace(cluster: "LocalCluster") -> Callable[[str], str]:
    """Make a fresh namespace with the S3 Secret, in which pods can be created; its name."""
    from kubernetes import client, config
    from support.runs import wait_until

    core = client.CoreV1Api(config.new_client_from_config(str(cluster.kubeconfig)))
    numbers = itertools.count(1)

    def make(prefix: str) -> str:
        name = f"{prefix}-{next(numbers)}"
        core.create_namespace({"metadata": {"name": name}})
        cluster.add_s3_secret(name)
        # The controller-manager makes it a moment later; a pod that comes first is refused.
        default = "metadata.name=default"
        accounts = core.list_namespaced_service_account
        wait_until(f"{name} has its account", lambda: accounts(name, field_selector=default).items)
        return name

    return make


@pytest.fixture
def namespace(cluster: "LocalCluster", make_namespace: Callable[[str], str]) -> Iterator[str]:
    """A fresh namespace, deleted after the test."""
    name = make_namespace("test")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def bucket(cluster: "LocalCluster", request: pytest.FixtureRequest) -> str:
    """A fresh, empty bucket."""
    digits = abs(hash(request.node.nodeid)) % 10**12
    name = f"test-{digits}"
    cluster.s3.ensure_bucket(name)
    return name
