"""The chart as a release of a real Helm's, from install to uninstall, while a job runs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support.chart import CHART, RELEASE
from support.operator_process import Operator
from support.played import PlayedJob
from trainingjob_local import binaries

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

Helm = Callable[..., str]


@pytest.fixture
def helm(cluster: LocalCluster, namespace: str) -> Iterator[Helm]:
    """Helm as administrator, in the test's namespace. The operator's own pods find no node: there is no image here."""
    program = binaries.ensure(["helm"])["helm"]

    def run(*arguments: str) -> str:
        command = [str(program), "--kubeconfig", str(cluster.kubeconfig), "-n", namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    yield run
    run("uninstall", RELEASE, "--ignore-not-found")


def test_jobs_do_not_notice_that_the_chart_is_upgraded_rolled_back_uninstalled_and_installed_again(
    cluster: LocalCluster, operator: Operator, namespace: str, helm: Helm
) -> None:
    job = PlayedJob(cluster, namespace)
    job.apply()
    job.run_to_training()
    job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    job.wait("their uids are known", lambda status: all("uid" in m for m in status["pods"] if m["role"] == "train"))
    before = seen(job)
    values = ("--set", "nodeSelector.nowhere=yes")
    with pytest.raises(RuntimeError, match="cannot be imported into the current release"):
        helm("install", RELEASE, str(CHART), *values)  # kubectl has applied the CRD, as docs/troubleshooting.md says.
    helm("install", RELEASE, str(CHART), "--take-ownership", *values)
    helm("upgrade", RELEASE, str(CHART), "--set", "replicas=1", *values)
    with pytest.raises(RuntimeError, match="additional properties 'replica' not allowed"):
        helm("upgrade", RELEASE, str(CHART), "--set", "replica=3")
    deployment = ("-n", namespace, "get", "deployment", RELEASE, "-o", "jsonpath={.spec.replicas}")
    assert cluster.kubectl(*deployment) == "1"
    helm("rollback", RELEASE, "1")
    assert cluster.kubectl(*deployment) == "2"
    helm("uninstall", RELEASE)
    kinds = "deployments,serviceaccounts,poddisruptionbudgets,services,roles,clusterroles"
    ours = ("-o", "name", "-l", f"app.kubernetes.io/instance={RELEASE}")
    assert cluster.kubectl("-n", namespace, "get", kinds, *ours) == ""
    helm("install", RELEASE, str(CHART), *values)
    assert seen(job) == before


def seen(job: PlayedJob) -> tuple[Any, ...]:
    """The job and its pods, but for what is said late: that nobody answers under the addresses of its pods."""
    there = job.get()
    status = there["status"]
    return there["metadata"]["uid"], there["spec"], status["phase"], status["pods"], status["history"], job.uids()
