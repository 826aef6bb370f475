"""The commands and their answers to what users do wrong."""

import json
import subprocess
import sys
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console
from support.kubeconfigs import NO_KUBECONFIGS, unanswered
from support.runs import PATIENCE
from trainingjob_cli import demo
from trainingjob_cli.jobs import Jobs
from trainingjob_cli.main import app
from trainingjob_local import sandbox
from trainingjob_local.cluster import LocalCluster
from trainingjob_local.process import StartError
from typer.testing import CliRunner


@pytest.fixture
def unreachable(tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(unanswered())
    return path


def test_every_command_explains_itself() -> None:
    for command in (["watch"], ["status"], ["demo"], ["local", "up"], ["local", "down"], ["local", "status"]):
        result = CliRunner().invoke(app, [*command, "--help"])
        assert result.exit_code == 0, command
        assert "Usage:" in result.output


def test_it_tells_its_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"trainingjob {version('trainingjob')}\n")


@pytest.mark.parametrize("command", ["watch", "status"])
def test_a_missing_kubeconfig_is_said_in_one_line(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [command, "job", "--kubeconfig", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert result.output.startswith("error: no usable kubeconfig")
    assert "--kubeconfig" in result.output


@pytest.mark.parametrize("text", NO_KUBECONFIGS)
def test_a_file_that_is_no_kubeconfig_is_said_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(text.encode("latin-1"))
    result = CliRunner().invoke(app, ["status", "job", "--kubeconfig", str(tmp_path / "broken")])
    assert result.exit_code == 1
    assert result.output.startswith("error: no usable kubeconfig: ")
    assert result.output.count("\n") == 1


def test_the_namespace_is_that_of_the_context_that_is_named(unreachable: Path) -> None:
    assert Jobs(unreachable).namespace == "team-a"
    assert Jobs(unreachable, "there").namespace == "team-b"
    assert Jobs(unreachable, "there", "mine").namespace == "mine"


def test_an_unknown_format_is_refused_by_every_status() -> None:
    for command in (["status", "job"], ["local", "status"]):
        result = CliRunner().invoke(app, [*command, "-o", "yaml"])
        assert (result.exit_code, "'yaml' is not one of" in result.output) == (2, True)


def test_an_empty_name_is_no_list(unreachable: Path) -> None:
    result = CliRunner().invoke(app, ["status", "", "--kubeconfig", str(unreachable)])
    assert (result.exit_code, result.output) == (1, "error: which TrainingJob? its name is empty\n")


def test_a_silent_api_server_is_said_in_one_line(unreachable: Path) -> None:
    result = CliRunner().invoke(app, ["status", "job", "--kubeconfig", str(unreachable)])
    assert result.exit_code == 1
    assert result.output.startswith("error: the API server does not answer")


def test_a_cluster_that_another_version_keeps_can_be_shown_and_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keeper = [sys.executable, "-c", "import signal; signal.pause()", "trainingjob_local.keeper"]
    with subprocess.Popen(keeper) as process:
        try:
            monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
            (tmp_path / "trainingjob").mkdir()
            told = {"pid": process.pid, "api": "https://127.0.0.1:1", "said by another version": True}
            (tmp_path / "trainingjob" / "facts.json").write_text(json.dumps(told))
            shown = CliRunner().invoke(app, ["local", "status", "-o", "json"])
            assert json.loads(shown.output)["api"] == "https://127.0.0.1:1"
            assert "S3        unknown" in CliRunner().invoke(app, ["local", "status"]).output
            assert CliRunner().invoke(app, ["local", "down"]).exit_code == 0
            assert process.wait(PATIENCE) < 0
        finally:
            process.kill()


def test_what_the_demo_says_of_a_failure_is_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "etcd ended with exit code 1:\n[core] cannot open [/tmp/data]"

    def fail(console: Console) -> AbstractContextManager[LocalCluster]:
        raise StartError(why)

    monkeypatch.setattr(sandbox, "inside", lambda: True)
    monkeypatch.setattr(demo, "_cluster", fail)
    assert demo.run(chaos=False) == 1
    assert why in capsys.readouterr().out
