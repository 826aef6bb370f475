"""The operator's command line and its log lines."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from trainingjob_operator.logs import JsonFormatter, TextFormatter
from trainingjob_operator.options import parse


def test_by_default_it_works_in_all_namespaces_and_serves_on_all_addresses() -> None:
    options = parse([])
    assert options.namespaces == ()
    assert (options.metrics_host, options.metrics_port) == ("", 8080)
    assert options.kubeconfig is None
    assert (options.progress_interval, options.resync) == (15.0, 600.0)
    assert options.lease == ("default", "trainingjob-operator")


def test_in_a_pod_the_lease_is_in_the_pods_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "namespace").write_text("ops")
    monkeypatch.setattr("trainingjob_operator.options.OWN_NAMESPACE", tmp_path / "namespace")
    assert parse([]).lease == ("ops", "trainingjob-operator")
    assert parse(["--lease-namespace", "team", "--lease-name", "mine"]).lease == ("team", "mine")
    assert parse(["--no-leader-elect"]).lease is None


def test_all_flags_are_taken() -> None:
    flags = "--namespace a --namespace b --namespace a --trainer-image i:1 --progress-interval 2.5 --resync 60"
    more = "--metrics-address [::1]:9000 --kubeconfig /k --log-format json --log-level debug"
    options = parse([*flags.split(), *more.split(), "--max-concurrent-reconciles", "4"])
    assert options.namespaces == ("a", "b")
    assert options.trainer_image == "i:1"
    assert (options.progress_interval, options.resync) == (2.5, 60.0)
    assert (options.metrics_host, options.metrics_port) == ("::1", 9000)
    assert options.kubeconfig == Path("/k")
    assert (options.log_format, options.log_level) == ("json", "debug")
    assert options.max_concurrent_reconciles == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--progress-interval", "0"], "0 is not a positive number of seconds"),
        (["--resync", "inf"], "inf is not a positive number of seconds"),
        (["--max-concurrent-reconciles", "0"], "0 is not a positive number"),
        (["--metrics-address", "8080"], "8080 is not HOST:PORT"),
        (["--metrics-address", ":99999"], ":99999 is not HOST:PORT"),
        (["--log-level", "loud"], "invalid choice"),
    ],
)
def test_wrong_values_are_refused_with_a_reason(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(flags)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def record(**extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "trainingjob_operator.x", "levelname": "INFO", "msg": "went on"})
    made.__dict__.update(extra)
    return made


def test_a_log_line_names_the_job() -> None:
    assert TextFormatter().format(record(job="team/gpt")).endswith("INFO    trainingjob_operator.x [team/gpt] went on")
    assert TextFormatter().format(record()).endswith("INFO    trainingjob_operator.x went on")
    line = json.loads(JsonFormatter().format(record(job="team/gpt")))
    assert (line["namespace"], line["name"], line["message"], line["level"]) == ("team", "gpt", "went on", "info")
    assert "namespace" not in json.loads(JsonFormatter().format(record()))


def test_a_defect_is_logged_with_its_traceback() -> None:
    try:
        raise KeyError("defect")
    except KeyError as error:
        line = json.loads(JsonFormatter().format(record(exc_info=(KeyError, error, error.__traceback__))))
    assert "KeyError: 'defect'" in line["exception"]
