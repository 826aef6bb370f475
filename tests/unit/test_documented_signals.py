"""What the operator tells is in its documentation: events by reason, metrics by name."""

from __future__ import annotations

import re
from pathlib import Path

from support.signals import operators_own
from trainingjob_operator.core import events, failures
from trainingjob_operator.core.obstacle import REASONS
from trainingjob_operator.core.reported import SAID_CLASSES
from trainingjob_operator.observe.jobs import FAMILIES
from trainingjob_operator.observe.metrics import OperatorMetrics
from trainingjob_trainer.errors import TrainerError

DOCS = Path(__file__).parents[2] / "docs"


def errors(kind: type[TrainerError]) -> set[str]:
    return {kind.error_class}.union(*(errors(sub) for sub in kind.__subclasses__()))


def test_every_reason_of_an_event_is_documented_and_no_other() -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "events.md").read_text(), re.MULTILINE))
    phases = {*events.TOLD.values(), "Failed", "NodeUsedAgain"}
    obstacles = set(REASONS)
    classes = {*failures.DISRUPTIONS.values(), *failures.POD_REASONS.values(), *failures.EXIT_CODES.values()}
    others = {"Killed", "Crashed", "Deleted", "DeadlineExceeded", "StartDeadlineExceeded"}
    assert documented == phases | obstacles | classes | others | SAID_CLASSES
    assert errors(TrainerError) == SAID_CLASSES, "a pod may say what it has errors for"


def test_every_metric_is_documented_with_its_labels_and_no_other() -> None:
    text = (DOCS / "metrics.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `trainingjob")]
    found = re.findall(r"`(\w+)(?:{([\w,]+)})?`", " ".join(rows))
    documented = {name: tuple(labels.split(",")) if labels else () for name, labels in found}
    assert len(found) == len(documented)
    assert documented == {family.sample: family.labels for family in FAMILIES} | operators_own()


def test_names_follow_prometheus_conventions() -> None:
    families = [(f.name, f.kind, f.text) for f in FAMILIES]
    registry = OperatorMetrics(lambda: 0, lambda: 0.0).registry
    families += [(f.name, f.type, f.documentation) for f in registry.collect()]
    for name, kind, text in families:
        assert text.endswith("."), name
        assert not name.endswith(("_total", "_count", "_sum", "_bucket", "_info")), name
        assert not re.search(r"_(milliseconds|minutes|ms|percent|kilobytes|mib)\b", name), name
        assert kind != "histogram" or name.endswith("_seconds"), name
