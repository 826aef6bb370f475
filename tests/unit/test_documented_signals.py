"""What the operator tells is in its documentation: events by reason, metrics by name."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry
from trainingjob_operator.core import events, failures
from trainingjob_operator.core.facts import ProgressFacts
from trainingjob_operator.core.obstacle import REASONS
from trainingjob_operator.observe.jobs import JobCollector
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
    assert documented == phases | obstacles | classes | others | errors(TrainerError)


def test_every_metric_is_documented() -> None:
    text = (DOCS / "metrics.md").read_text()
    registry = CollectorRegistry()
    registry.register(JobCollector(list, lambda uid: ProgressFacts()))
    families = [*registry.collect(), *OperatorMetrics(lambda: 0).registry.collect()]
    names = {family.name for family in families if family.name.startswith("trainingjob")}
    assert {name for name in names if not re.search(rf"`{name}(_total|_info)?[`{{]", text)} == set()
