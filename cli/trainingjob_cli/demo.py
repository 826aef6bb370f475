"""`trainingjob demo`: text in S3 becomes a trained model on a local cluster, and every claim about it is checked."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from trainingjob_local import binaries, sandbox
from trainingjob_local.cluster import LocalCluster
from trainingjob_local.controlplane import BINARIES
from trainingjob_local.crash import crash
from trainingjob_local.process import Component, StartError
from trainingjob_local.sample_data import manual
from trainingjob_local.state import BUCKET, StateDirectory

from trainingjob_cli import proofs
from trainingjob_cli.jobs import Job, JobError, Jobs
from trainingjob_cli.view import show

ROOT = Path(__file__).parents[2]
CRD = ROOT / "crds" / "trainingjobs.trainingjob.io.yaml"
EXAMPLE = ROOT / "examples" / "quickstart.yaml"
NAMESPACE, NAME = "default", "quickstart"
_METRICS = "127.0.0.1:9080"


def run(chaos: bool) -> int:
    """Run the demo, in a sandbox of its own; returns the exit code: 0 only if all that it shows is true."""
    console = Console()
    if not EXAMPLE.exists():
        console.print(f"{EXAMPLE} is missing: the demo runs from a checkout of the repository")
        return 1
    if not sandbox.inside():
        _enter_sandbox(console, chaos)
    began = time.monotonic()
    try:
        with _cluster(console) as cluster:
            good = _show(console, cluster, chaos)
    except KeyboardInterrupt:
        console.print("\nStopped. Nothing of it is running any more.")
        return 130
    except (StartError, RuntimeError, JobError) as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        return 1
    console.print(f"\n{'All of it is true' if good else 'Not all of it is true'}; {time.monotonic() - began:.0f} s.")
    console.print(
        "The cluster is gone. One that stays, to look around:\n\n"
        f"  make up\n  kubectl --kubeconfig {StateDirectory().kubeconfig} apply -f examples/quickstart.yaml\n"
        f"  kubectl --kubeconfig {StateDirectory().kubeconfig} get tj -w",
        highlight=False,
        soft_wrap=True,
    )
    return 0 if good else 1


def _enter_sandbox(console: Console, chaos: bool) -> None:
    """Become the sandbox that runs the demo. Programs are fetched before: inside, nothing leads outside."""
    try:
        binaries.ensure([*BINARIES, "kubectl"], lambda text: console.print(f"  {text}", markup=False, highlight=False))
    except binaries.BinaryError as error:
        console.print(str(error), markup=False, highlight=False)
        raise SystemExit(1) from None
    again = [sys.executable, "-m", "trainingjob_cli.main", "demo", *(["--chaos"] if chaos else [])]
    command = sandbox.command_line(again)
    os.execv(command[0], command)


@contextlib.contextmanager
def _cluster(console: Console) -> Iterator[LocalCluster]:
    """A cluster with the resource, the operator, the Secret and the text in it."""
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:5.1f} s  {text}", highlight=False, soft_wrap=True)

    with LocalCluster(say=say) as cluster:
        cluster.install(CRD)
        text = manual()
        cluster.add_s3_secret(NAMESPACE)
        cluster.s3.ensure_bucket(BUCKET)
        cluster.s3.client().put_object(Bucket=BUCKET, Key="raw/manual.jsonl", Body=text)
        say(f"Python's manual is in S3: {len(text) / 1e6:.1f} MB in s3://{BUCKET}/raw/manual.jsonl")
        flags = ["--kubeconfig", str(cluster.kubeconfig), "--metrics-address", _METRICS, "--progress-interval", "2"]
        command = [sys.executable, "-m", "trainingjob_operator", *flags]
        operator = Component("operator", command, cluster.directory / "operator.log")
        try:
            operator.wait_ready(_operator_is_ready)
            say("the operator is ready")
            yield cluster
        finally:
            operator.stop()


def _operator_is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"http://{_METRICS}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _show(console: Console, cluster: LocalCluster, chaos: bool) -> bool:
    console.print(f"\n$ kubectl apply -f {EXAMPLE.relative_to(ROOT)}", highlight=False)
    console.print(cluster.kubectl("apply", "-f", str(EXAMPLE)), highlight=False)
    jobs = Jobs(cluster.kubeconfig, namespace=NAMESPACE)
    crasher = Crasher(cluster, console)
    seen = jobs.follow(NAME)
    job = show(crasher.watch(seen) if chaos else seen, console)
    if job is None or job.status.phase != "Succeeded":
        described = cluster.kubectl("describe", "trainingjob", NAME, "--namespace", NAMESPACE)
        console.print(described, markup=False, highlight=False)
        return False
    evaluation = job.status.evaluation
    if evaluation is not None:
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in evaluation.metrics.items())
        console.print(
            f"\nEvaluation in the status ({evaluation.split} split): {metrics}", highlight=False, soft_wrap=True
        )
    result = job.status.result
    console.print(f"Model:  {result.model_uri if result else None}\nReport: {result.report_uri if result else None}\n")
    claims = proofs.of_run(cluster.s3.client(), job)
    if chaos:
        claims.append(crasher.claim(job))
    _print_claims(console, claims)
    return all(claim.holds for claim in claims)


def _print_claims(console: Console, claims: Sequence[proofs.Claim]) -> None:
    for claim in claims:
        mark = "[green]✓[/green]" if claim.holds else "[red]✗[/red]"
        console.print(f"{mark} ", end="")
        console.print(claim.text, markup=False, highlight=False, soft_wrap=True)


class Crasher:
    """Kills worker 1 once, some steps after a checkpoint, while the job is watched."""

    def __init__(self, cluster: LocalCluster, console: Console) -> None:
        self._cluster = cluster
        self._console = console
        self._victim: str | None = None

    def watch(self, jobs: Iterator[Job]) -> Iterator[Job]:
        """The same jobs, and the crash in between."""
        for job in jobs:
            if self._victim is None and job.status.phase == "Running" and _has_work_to_lose(job):
                self._strike()
            yield job

    def claim(self, job: Job) -> proofs.Claim:
        """That the crash happened, and that the job's history tells of it."""
        told = [incident for incident in job.status.history if incident.pod == self._victim]
        if self._victim is None or not told:
            return proofs.Claim(False, f"the status tells of the killed worker ({self._victim})")
        incident = told[0]
        return proofs.Claim(
            True,
            f"{self._victim} was killed and replaced: {incident.steps_lost} steps trained again, "
            f"{incident.seconds_to_recover} s until training went on",
        )

    def _strike(self) -> None:
        pod = self._worker()
        if pod is None:
            return
        try:
            crash(pod["metadata"]["uid"])
        except ProcessLookupError:
            return  # It has ended by itself since; its successor will do.
        self._victim = pod["metadata"]["name"]
        self._console.print(f"[yellow]SIGKILL to {self._victim}[/yellow]")

    def _worker(self) -> dict[str, Any] | None:
        selector = f"trainingjob.io/job-name={NAME},trainingjob.io/role=train,trainingjob.io/index=1"
        pods = json.loads(self._cluster.kubectl("get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "json"))["items"]
        running = [pod for pod in pods if pod["status"].get("phase") == "Running"]
        return running[0] if running else None


def _has_work_to_lose(job: Job) -> bool:
    """Whether a checkpoint is committed, and steps were trained since."""
    checkpoint, progress = job.status.checkpoint, job.status.progress
    return bool(checkpoint and checkpoint.latest_step and progress and progress.step > checkpoint.latest_step)
