"""`trainingjob`, also installed as `kubectl-trainingjob`."""

from __future__ import annotations

import importlib
import importlib.util
import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from trainingjob_cli.jobs import JobError, Jobs
from trainingjob_cli.view import panel, show

app = typer.Typer(
    help="Distributed Transformer training on Kubernetes: watch TrainingJobs, and try them on a local cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(help="Name of the TrainingJob.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Default: that of the context.")]
Kubeconfig = Annotated[Path | None, typer.Option(help="Default: $KUBECONFIG or ~/.kube/config.")]
Context = Annotated[str | None, typer.Option(help="Context of the kubeconfig. Default: the current one.")]

_LOCAL_IS_MISSING = "the local cluster's parts are not installed: it runs from a checkout, after `make setup`"


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"trainingjob {version('trainingjob')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of no command in particular."""


@app.command()
def watch(name: Name, namespace: Namespace = None, kubeconfig: Kubeconfig = None, context: Context = None) -> None:
    """Follow a job until it has finished: exit code 0 if it succeeded, 1 if not."""
    try:
        last = show(Jobs(kubeconfig, context, namespace).follow(name), Console())
    except JobError as error:
        raise _failure(str(error)) from None
    if last is None or last.status.phase != "Succeeded":
        raise typer.Exit(1)


@app.command()
def status(
    name: Name,
    output: Annotated[Literal["text", "json"], typer.Option("--output", "-o")] = "text",
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Show how a job is doing now."""
    try:
        job = Jobs(kubeconfig, context, namespace).get(name)
    except JobError as error:
        raise _failure(str(error)) from None
    if output == "json":
        typer.echo(json.dumps(job.status.wire(), indent=2))
    else:
        Console().print(panel(job))


@app.command()
def demo(
    chaos: Annotated[bool, typer.Option("--chaos", help="Kill a worker after the first checkpoint.")] = False,
) -> None:
    """Take text to a trained model on a local cluster that is made for it and removed again (2 to 4 minutes)."""
    if not _local_is_installed():
        raise _failure(_LOCAL_IS_MISSING)
    raise typer.Exit(importlib.import_module("trainingjob_cli.demo").run(chaos))


def _local_is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("pyroute2", "cryptography", "boto3", "aiohttp"))


def _failure(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(1)


if _local_is_installed():
    app.add_typer(importlib.import_module("trainingjob_local.main").app, name="local")
else:

    @app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def local() -> None:
        """A local cluster (not installed)."""
        raise _failure(_LOCAL_IS_MISSING)


if __name__ == "__main__":
    app()
