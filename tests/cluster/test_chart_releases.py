"""The chart as a release of a real Helm's, from install to uninstall, while a job runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from support.chart import CHART, RELEASE, render
from support.operator_process import Operator
from support.played import PlayedJob
from support.runs import PATIENCE
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


def test_the_charts_own_pods_run_the_operator_and_take_over_from_each_other(
    cluster: LocalCluster, namespace: str, played: Callable[..., PlayedJob]
) -> None:
    """As pods of the cluster's nodes: by number, on a read-only root, with the account's token and nothing else."""
    manifests = render(namespace, {"watchNamespaces": [namespace]})
    (deployment,) = [manifest for manifest in manifests if manifest["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["command"] = [sys.executable, *entry_point()[1:]]  # of its image, which nodes do not have here
    ours = [manifest for manifest in manifests if manifest["kind"] != "CustomResourceDefinition"]
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(ours))
    try:
        status = ("-n", namespace, "rollout", "status", f"deployment/{RELEASE}", f"--timeout={PATIENCE:.0f}s")
        cluster.kubectl(*status)
        job = played()
        job.apply()
        job.wait_pods("prepare-0-1")
        lease = ("-n", namespace, "get", "lease", RELEASE, "-o", "jsonpath={.spec.holderIdentity}")
        leader = cluster.kubectl(*lease).partition("_")[0]
        cluster.kubectl("-n", namespace, "delete", "pod", leader)
        job.run("prepare-0-1")
        job.end("prepare-0-1", outcome="Train")
        job.wait_pods("train-0-1", "train-1-1")
        assert cluster.kubectl(*lease).partition("_")[0] != leader
        cluster.kubectl("-n", namespace, "rollout", "restart", f"deployment/{RELEASE}")
        cluster.kubectl(*status)
        job.run("train-0-1", "train-1-1")
        job.wait("both workers are ready", lambda status: status["workers"]["ready"] == 2)
    finally:
        cluster.kubectl("-n", namespace, "delete", "deployment", RELEASE, "--wait=false")


def entry_point() -> list[str]:
    """What the operator's image starts."""
    lines = (Path(__file__).parents[2] / "operator" / "Dockerfile").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("ENTRYPOINT ")]
    parts: list[str] = json.loads(line.removeprefix("ENTRYPOINT "))
    return parts


def seen(job: PlayedJob) -> tuple[Any, ...]:
    """The job and its pods, but for what is said late: that nobody answers under the addresses of its pods."""
    there = job.get()
    status = there["status"]
    return there["metadata"]["uid"], there["spec"], status["phase"], status["pods"], status["history"], job.uids()
