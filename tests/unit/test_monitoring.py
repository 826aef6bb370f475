"""The chart's alerts and dashboard: of metrics that exist; and the alerts are documented, and fire when they should."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from support.signals import operators_own
from trainingjob_local import binaries
from trainingjob_operator.api.status import Phase
from trainingjob_operator.observe.jobs import FAMILIES

ROOT = Path(__file__).parents[2]
FILE = ROOT / "helm" / "trainingjob-operator" / "files" / "alerts.yaml"
CASES = ROOT / "tests" / "support" / "alerts.yaml"
DASHBOARD = FILE.with_name("dashboard.json")
RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
METRICS = {family.sample: {"namespace", "name", *family.labels} for family in FAMILIES} | {
    name: set(labels) for name, labels in operators_own().items()
}


PANELS: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]


def used(texts: list[str]) -> list[set[str]]:
    """The labels that each of the metrics in these texts has; all that the texts say of it is true."""
    found = [match for text in texts for match in re.findall(r"\b(trainingjob_\w+?)(?:_bucket)?\b(?:{([^}]*)})?", text)]
    labels = []
    for name, matchers in found:
        if name == "trainingjob_phase" and not matchers:
            continue  # the label of this name
        said = re.findall(r"(\w+)=~?\"([^\"]*)\"", matchers)
        assert {label for label, _ in said} <= METRICS[name], name
        phases = [value for label, value in said if label == "trainingjob_phase"]
        assert {phase for value in phases for phase in value.split("|")} <= set(get_args(Phase))
        labels.append(METRICS[name])
    assert labels
    return labels


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_is_of_metrics_that_exist_with_labels_that_they_have(rule: dict[str, Any]) -> None:
    texts = [rule["expr"], *rule["annotations"].values()]
    told = set(re.findall(r"\$labels\.(\w+)", " ".join(texts)))
    assert told <= set.intersection(*used(texts))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_is_of_metrics_that_exist_with_labels_that_they_have(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        grouped = re.findall(r"\bby \(([\w, ]+)\)", target["expr"])
        told = set(re.findall(r"{{(\w+)}}", target["legendFormat"])).union(*(group.split(", ") for group in grouped))
        assert told - {"le"} <= set.union(*used([target["expr"]]))


def test_every_alert_is_documented_and_no_other_and_its_runbook_is_there() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `TrainingJob")]
    assert re.findall(r"`(\w+)`", " ".join(rows)) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        titles = re.findall(r"^## (.+)$", (ROOT / file).read_text(), re.MULTILINE)
        assert anchor in [title.lower().replace(" ", "-") for title in titles]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


@pytest.mark.slow  # Prometheus' own tool is built for it.
def test_alerts_fire_when_they_should_as_prometheus_evaluates_them() -> None:
    tool = binaries.ensure(["promtool"])["promtool"]
    done = subprocess.run([tool, "test", "rules", CASES], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    fired = re.findall(r'alertname="(\w+)"', CASES.read_text())
    assert set(fired) == {rule["alert"] for rule in RULES}


@pytest.mark.slow  # as above
def test_prometheus_understands_the_panels(tmp_path: Path) -> None:
    queries = [target["expr"] for panel in PANELS for target in panel["targets"]]
    rules = [{"record": f"q{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    tool = binaries.ensure(["promtool"])["promtool"]
    done = subprocess.run([tool, "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
