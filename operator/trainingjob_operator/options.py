"""The command line, as one typed object."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""The kubelet writes it into every pod with a service account's token."""


@dataclass(frozen=True)
class Options:
    """How one operator runs. Times are in seconds.

    namespaces: those it works in; empty: all. trainer_image: of jobs that name none. progress_interval: least time
    between two status writes of a job that carry nothing but progress. resync: time after which all jobs and pods are
    listed and decided anew although nothing was heard. lease: namespace and name of the lease that the leader holds;
    None: it leads without one. metrics_host: empty: all addresses.
    """

    namespaces: tuple[str, ...]
    trainer_image: str
    progress_interval: float
    resync: float
    lease: tuple[str, str] | None
    metrics_host: str
    metrics_port: int
    kubeconfig: Path | None
    log_format: Literal["text", "json"]
    log_level: str
    max_concurrent_reconciles: int


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Options from the command line; exits with a message and code 2 when it is not valid."""
    parser = argparse.ArgumentParser(
        prog="trainingjob-operator",
        description="Runs TrainingJobs: creates their pods, replaces failed ones, and keeps their status.",
    )
    add = parser.add_argument
    add("--version", action="version", version=version("trainingjob"))
    add(
        "--namespace",
        dest="namespaces",
        action="append",
        default=[],
        metavar="NAME",
        help="work in this namespace only; may be repeated (default: in all namespaces)",
    )
    add(
        "--trainer-image",
        default=f"trainingjob-trainer:{version('trainingjob')}",
        metavar="IMAGE",
        help="image of jobs that name none (default: %(default)s)",
    )
    add(
        "--progress-interval",
        type=_positive,
        default=15.0,
        metavar="SECONDS",
        help="least time between two status writes of a job that carry nothing but progress (default: %(default)s)",
    )
    add(
        "--resync",
        type=_positive,
        default=600.0,
        metavar="SECONDS",
        help="list and decide all anew after this time, although nothing was heard (default: %(default)s)",
    )
    add(
        "--leader-elect",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="of several operators one leads; without, this one works whether others do or not (default: it does)",
    )
    add(
        "--lease-name",
        default="trainingjob-operator",
        metavar="NAME",
        help="the Lease that the leader holds (default: %(default)s)",
    )
    add(
        "--lease-namespace",
        default=_own_namespace(),
        metavar="NAME",
        help="where that Lease is (default: the pod's own namespace, else default)",
    )
    add(
        "--metrics-address",
        type=_address,
        default=":8080",
        metavar="HOST:PORT",
        help="where /metrics, /livez and /readyz are served; an empty host means all addresses (default: %(default)s)",
    )
    add(
        "--kubeconfig",
        type=Path,
        default=None,
        metavar="PATH",
        help="log in with this file (default: the pod's service account, else $KUBECONFIG or ~/.kube/config)",
    )
    add(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="how log lines are written (default: %(default)s)",
    )
    add(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="least level that is logged (default: %(default)s)",
    )
    add(
        "--max-concurrent-reconciles",
        type=_count,
        default=16,
        metavar="N",
        help="jobs that are worked on at the same time (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    host, port = given.metrics_address
    return Options(
        namespaces=tuple(dict.fromkeys(given.namespaces)),
        trainer_image=given.trainer_image,
        progress_interval=given.progress_interval,
        resync=given.resync,
        lease=(given.lease_namespace, given.lease_name) if given.leader_elect else None,
        metrics_host=host,
        metrics_port=port,
        kubeconfig=given.kubeconfig,
        log_format=given.log_format,
        log_level=given.log_level,
        max_concurrent_reconciles=given.max_concurrent_reconciles,
    )


def _own_namespace() -> str:
    return OWN_NAMESPACE.read_text().strip() if OWN_NAMESPACE.exists() else "default"


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is not HOST:PORT")
    return host.strip("[]"), int(port)
