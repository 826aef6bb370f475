"""An operator with another pod template takes over: runs go on as they were begun, and resume as new ones begin."""

from dataclasses import replace
from typing import Any

import pytest
from support.play import SETTINGS, Play, policy
from trainingjob_operator.core import pod_template
from trainingjob_operator.core.pod_template import BUILDERS, NEWEST


def next_version(*of_the_pod: Any) -> dict[str, Any]:
    """The newest template with a mark on it."""
    built = BUILDERS[NEWEST](*of_the_pod)
    built["metadata"]["annotations"]["version"] = "next"
    return built


@pytest.fixture
def upgraded(training: Play, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Two workers train, begun by the operator of today; from now on it is its successor that decides."""
    monkeypatch.setitem(pod_template.BUILDERS, NEWEST + 1, next_version)
    training.settings = replace(SETTINGS, template_version=NEWEST + 1)
    return training


def made(play: Play) -> list[str | None]:
    """The mark of each pod that was asked for."""
    return [pod["metadata"]["annotations"].get("version") for pod in play.plan.create_pods]


def test_a_replacement_is_built_like_the_pods_that_the_run_was_started_with(upgraded: Play) -> None:
    upgraded.end("gpt-train-1-1", 137)
    upgraded.step(1)
    assert made(upgraded) == [None]


def test_a_resumed_run_is_built_like_a_new_one(upgraded: Play) -> None:
    upgraded.spec = policy(suspend=True)
    upgraded.settle()
    for name in ("gpt-train-0-1", "gpt-train-1-1"):
        upgraded.end(name, 30, {"class": "Drained"})
    upgraded.settle()
    upgraded.spec = policy(suspend=False)
    upgraded.step(1)
    assert made(upgraded) == ["next"]
    assert upgraded.status.resolved is not None
    assert upgraded.status.resolved.template_version == NEWEST + 1
