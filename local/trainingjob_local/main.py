"""`trainingjob local up | down | status`: a local cluster that stays until it is taken down."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from trainingjob_local import binaries
from trainingjob_local.controlplane import BINARIES
from trainingjob_local.state import BUCKET, Facts, StateDirectory

app = typer.Typer(
    help="A local cluster: a real control plane and S3 server; pods run as processes of this machine.",
    no_args_is_help=True,
)

Output = Annotated[Literal["text", "json"], typer.Option("--output", "-o")]
CrdFile = Annotated[Path, typer.Option(help="The CustomResourceDefinition to install.")]

_CRD = Path("crds/trainingjobs.trainingjob.io.yaml")
_START_SECONDS = 180


@app.command()
def up(crd: CrdFile = _CRD) -> None:
    """Start the cluster with the operator, S3 and sample data, and keep it running (about 15 seconds)."""
    state = StateDirectory()
    facts = state.read()
    if facts is None:
        if not crd.exists():
            raise typer.BadParameter(f"{crd} is not there; start from the project's root, or name it with --crd")
        try:
            binaries.ensure([*BINARIES, "kubectl"], typer.echo)
        except binaries.BinaryError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
        facts = _start(state, crd.resolve())
    typer.echo(_how_to_use(facts))


@app.command()
def down() -> None:
    """End the cluster and everything in it; its data are gone."""
    state = StateDirectory()
    facts = state.read()
    if facts is None:
        typer.echo("no local cluster is running")
        return
    state.stop(facts)
    deadline = time.monotonic() + 60
    while state.read() is not None:
        if time.monotonic() > deadline:
            typer.echo(f"the cluster (process {facts.pid}) does not end; see {state.log}", err=True)
            raise typer.Exit(1)
        time.sleep(0.1)
    typer.echo("the local cluster has ended; nothing of it is running")


@app.command()
def status(output: Output = "text") -> None:
    """Tell whether the cluster is running, and where it is. Exit code 1 if it is not."""
    facts = StateDirectory().read()
    if output == "json":
        typer.echo(json.dumps({"running": facts is not None, **(facts.wire() if facts else {})}, indent=2))
    else:
        typer.echo(_how_to_use(facts) if facts else "no local cluster is running; start one with: make up")
    if facts is None:
        raise typer.Exit(1)


def _start(state: StateDirectory, crd: Path) -> Facts:
    state.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    state.inner.unlink(missing_ok=True)
    command = [sys.executable, "-m", "trainingjob_local.keeper", str(state.path), str(crd)]
    with state.log.open("wb") as log:
        keeper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    began, shown = time.monotonic(), 0
    while True:
        facts = state.read()
        lines = state.log.read_text(errors="replace").splitlines()
        for line in lines[shown:]:
            typer.echo(f"{time.monotonic() - began:5.1f} s  {line}")
        shown = len(lines)
        if facts:
            return facts
        if keeper.poll() is not None or time.monotonic() - began > _START_SECONDS:
            keeper.terminate()
            typer.echo(f"the cluster did not come up; its log is {state.log}", err=True)
            raise typer.Exit(1)
        time.sleep(0.1)


def _how_to_use(facts: Facts) -> str:
    return f"""
The local cluster is running: {", ".join(facts.components)}

  export KUBECONFIG={facts.kubeconfig}
  alias kubectl={facts.kubectl}
  kubectl apply -f examples/quickstart.yaml
  kubectl get tj -w

  S3        {facts.s3}  (bucket {BUCKET}; AWS_ACCESS_KEY_ID={facts.access_key} AWS_SECRET_ACCESS_KEY={facts.secret_key})
  metrics   {facts.metrics}
  stop it   make down"""
