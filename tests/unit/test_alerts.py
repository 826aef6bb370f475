"""The chart's alerts: of metrics that exist, documented, and firing when they should."""

from __future__ import annotations

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
RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
METRICS = {family.sample: {"namespace", "name", *family.labels} for family in FAMILIES} | {
    name: set(labels) for name, labels in operators_own().items()
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_is_of_metrics_that_exist_with_labels_that_they_have(rule: dict[str, Any]) -> None:
    texts = [rule["expr"], *rule["annotations"].values()]
    found = [match for text in texts for match in re.findall(r"\b(trainingjob_\w+)(?:{([^}]*)})?", text)]
    used = [(name, re.findall(r"(\w+)=~?\"([^\"]*)\"", matchers)) for name, matchers in found if name in METRICS]
    assert {name for name, _ in found} - METRICS.keys() <= {"trainingjob_phase"}
    assert used
    for name, matchers in used:
        assert {label for label, _ in matchers} <= METRICS[name]
        phases = [value for label, value in matchers if label == "trainingjob_phase"]
        assert {phase for value in phases for phase in value.split("|")} <= set(get_args(Phase))
    labels = set(re.findall(r"\$labels\.(\w+)", " ".join(texts)))
    assert labels <= set.intersection(*(METRICS[name] for name, _ in used))


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
