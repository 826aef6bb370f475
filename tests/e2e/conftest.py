"""Whole runs: one namespace, one bucket with real data, one operator with the chart's account, for all of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.chart import install_account
from support.corpus import digits
from support.manifests import digits_job, language_job
from support.operator_process import Operator
from support.runs import Kubectl, Run
from trainingjob_local.sample_data import manual

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

BUCKET = "runs"


@pytest.fixture(scope="package")
def operator(cluster: "LocalCluster", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator with the token of the chart's ServiceAccount and no other right, in all namespaces. Not elected:
    a leader that stood still for ten seconds would end, and nobody starts it again here."""
    cluster.kubectl("create", "namespace", "trainingjob-system")
    kubeconfig = install_account(cluster, "trainingjob-system")
    log: Path = tmp_path_factory.mktemp("operator") / "operator.log"
    operator = Operator(kubeconfig, log, "--progress-interval", "2")
    operator.start()
    yield operator
    operator.stop()


@pytest.fixture(scope="package")
def runs_namespace(cluster: "LocalCluster", make_namespace: Callable[[str], str]) -> str:
    """A namespace that enforces Pod Security `restricted`, and the raw data in S3."""
    cluster.s3.ensure_bucket(BUCKET)
    s3 = cluster.s3.client()
    s3.put_object(Bucket=BUCKET, Key="raw/manual.jsonl", Body=manual())
    s3.put_object(Bucket=BUCKET, Key="raw/digits.parquet", Body=digits())
    name = make_namespace("runs")
    cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    return name


@pytest.fixture(scope="package")
def start_job(cluster: "LocalCluster", operator: Operator, runs_namespace: str) -> Callable[..., Run]:
    """Apply a job built by `language_job` or `digits_job`."""
    kubectl = Kubectl(cluster.kubectl_binary, cluster.kubeconfig, runs_namespace)

    def start(build: Callable[[str, str, str], dict[str, object]], name: str) -> Run:
        run = Run(kubectl, cluster.s3, build(name, BUCKET, cluster.s3.endpoint))
        run.apply()
        return run

    return start


@pytest.fixture(scope="package")
def start_language_job(start_job: Callable[..., Run]) -> Callable[[str], Run]:
    return lambda name: start_job(language_job, name)


@pytest.fixture(scope="package")
def start_digits_job(start_job: Callable[..., Run]) -> Callable[[str], Run]:
    return lambda name: start_job(digits_job, name)
