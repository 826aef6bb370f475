"""The command line, as one typed object."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

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
    given = vars(_parser().parse_args(arguments))
    metrics_host, metrics_port = given.pop("metrics_address")
    lease = given.pop("lease_namespace"), given.pop("lease_name")
    return Options(
        namespaces=tuple(dict.fromkeys(given.pop("namespace"))),
        lease=lease if given.pop("leader_elect") else None,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        **given,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainingjob-operator",
        description="Runs TrainingJobs: creates their pods, replaces failed ones, and keeps their status.",
    )

    def add(flag: str, about: str, **kind: Any) -> None:
        parser.add_argument(flag, help=about if "(default: " in about else f"{about} (default: %(default)s)", **kind)

    version_here = version("trainingjob")
    parser.add_argument("--version", action="version", version=version_here)
    only = "work in this namespace only; may be repeated (default: in all namespaces)"
    add("--namespace", only, action="append", default=[], metavar="NAME")
    image = f"trainingjob-trainer:{version_here}"
    add("--trainer-image", "image of jobs that name none", default=image, metavar="IMAGE")
    progress = "least time between two status writes of a job that carry nothing but progress"
    add("--progress-interval", progress, type=_positive, default=15.0, metavar="SECONDS")
    resync = "list and decide all anew after this time, although nothing was heard"
    add("--resync", resync, type=_positive, default=600.0, metavar="SECONDS")
    elect = "of several operators one leads; without, this one works whether others do or not (default: it does)"
    add("--leader-elect", elect, action=argparse.BooleanOptionalAction, default=True)
    add("--lease-name", "the Lease that the leader holds", default="trainingjob-operator", metavar="NAME")
    lease = "where that Lease is (default: the pod's own namespace, else default)"
    add("--lease-namespace", lease, default=_own_namespace(), metavar="NAME")
    address = "where /metrics, /livez and /readyz are served; an empty host means all addresses"
    add("--metrics-address", address, type=_address, default=":8080", metavar="HOST:PORT")
    login = "log in with this file (default: the pod's service account, else $KUBECONFIG or ~/.kube/config)"
    add("--kubeconfig", login, type=Path, metavar="PATH")
    add("--log-format", "how log lines are written", choices=("text", "json"), default="text")
    levels = ("debug", "info", "warning", "error")
    add("--log-level", "least level that is logged", choices=levels, default="info")
    at_once = "jobs that are worked on at the same time"
    add("--max-concurrent-reconciles", at_once, type=_count, default=16, metavar="N")
    return parser


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
