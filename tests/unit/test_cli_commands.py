"""The commands and their answers to what users do wrong."""

from pathlib import Path

import pytest
from trainingjob_cli.main import app
from typer.testing import CliRunner

UNREACHABLE = """
apiVersion: v1
kind: Config
current-context: here
clusters: [{name: c, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: u, user: {}}]
contexts: [{name: here, context: {cluster: c, user: u, namespace: team}}]
"""


@pytest.fixture
def unreachable(tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(UNREACHABLE)
    return path


def test_every_command_explains_itself() -> None:
    for command in (["watch"], ["status"], ["demo"], ["local", "up"], ["local", "down"], ["local", "status"]):
        result = CliRunner().invoke(app, [*command, "--help"])
        assert result.exit_code == 0, command
        assert "Usage:" in result.output


@pytest.mark.parametrize("command", ["watch", "status"])
def test_a_missing_kubeconfig_is_said_in_one_line(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [command, "job", "--kubeconfig", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert result.output.startswith("error: no usable kubeconfig")
    assert "--kubeconfig" in result.output


def test_a_silent_api_server_is_said_in_one_line(unreachable: Path) -> None:
    result = CliRunner().invoke(app, ["status", "job", "--kubeconfig", str(unreachable)])
    assert result.exit_code == 1
    assert result.output.startswith("error: the API server does not answer")
