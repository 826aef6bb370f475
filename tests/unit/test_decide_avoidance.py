"""A node that ends a run's pods again and again is avoided while there is another place: plans, played out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.play import Play, spec
from trainingjob_operator.api.status import AvoidedNode
from trainingjob_operator.core.affinity import PREFERRED, REQUIRED, affinity, required_elsewhere

NOT_BAD = {"key": "metadata.name", "operator": "NotIn", "values": ["bad"]}
BAD = AvoidedNode(name="bad", required=True)
ONCE_BAD = AvoidedNode(name="bad", required=False)


def place(play: Play, name: str, node: str) -> None:
    """The pod has got a place and runs there."""
    play.change(name, phase="Running", ready=True, node=node, ip="10.0.0.1")


def kill_twice(play: Play, **end: Any) -> None:
    """Worker 1 falls on node `bad` with its first and its second pod."""
    play.change("gpt-train-0-1", node="good")
    for incarnation in (1, 2):
        name = f"gpt-train-1-{incarnation}"
        place(play, name, "bad")
        play.end(name, **{"exit_code": 137, **end})
        play.step(1)
    play.step(10)


def affinity_of(play: Play, name: str) -> Any:
    """The affinity with which the pod was created last."""
    manifests = [m for m in play.plan.create_pods if m["metadata"]["name"] == name]
    return manifests[0]["spec"].get("affinity")


@pytest.mark.parametrize(
    "end", [{}, {"exit_code": 21}, {"exit_code": None, "reason": "OutOfcpu"}, {"disruption": "DeletionByTaintManager"}]
)
def test_the_second_time_the_node_is_avoided_and_the_history_says_so(training: Play, end: dict[str, Any]) -> None:
    kill_twice(training, **end)
    assert training.created[-1] == "gpt-train-1-3"
    assert affinity_of(training, "gpt-train-1-3") == {
        "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchFields": [NOT_BAD]}]}}
    }
    assert training.status.resolved is not None
    assert training.status.resolved.avoided_nodes == (BAD,)
    first, second = training.status.history
    assert "avoid" not in first.cause
    assert second.cause.endswith("; later pods avoid node bad")
    assert [e.message for e in training.events if "avoid" in e.message] == [second.cause]
    assert training.pod("gpt-train-1-3").kept_off
    # Every later pod agrees, whichever it stands for.
    training.end("gpt-train-0-1", 20)
    training.step(1)
    training.step(60)
    assert training.pod("gpt-train-0-2").kept_off


@pytest.mark.parametrize("end", [{"exit_code": 30}, {"disruption": "PreemptionByScheduler"}, {"deleting": True}])
def test_a_node_is_not_blamed_for_what_others_did(training: Play, end: dict[str, Any]) -> None:
    kill_twice(training, **end)
    assert training.status.resolved is not None
    assert training.status.resolved.avoided_nodes == ()


def test_pods_that_fall_together_are_one_blow(training: Play) -> None:
    for name in ("gpt-train-0-1", "gpt-train-1-1"):
        place(training, name, "bad")
        training.end(name, 137)
    training.step(1)
    assert len(training.status.history) == 2
    assert training.status.resolved is not None
    assert training.status.resolved.avoided_nodes == ()


def test_ranks_that_fail_in_standing_pods_blame_their_node(training: Play) -> None:
    training.change("gpt-train-1-1", node="bad")
    said = []
    for attempt in (1, 2):
        said.append({"attempt": attempt, "class": "Hang", "cause": "no step", "rank": 1, "time": training.now})
        training.train(12, attempt=attempt + 1, committed=10 + attempt, resumed=10, incidents=said)
        training.step(20)
    assert [i.node for i in training.status.history] == ["bad", "bad"]
    assert training.status.resolved is not None
    assert training.status.resolved.avoided_nodes == (BAD,)
    assert len(training.created) == 3, "pods that stand are left alone"


def test_rather_on_that_node_than_nowhere(training: Play) -> None:
    kill_twice(training)
    training.change("gpt-train-1-3", unschedulable="0/2 nodes are available: 1 node didn't match, 1 full.")
    training.step(1)
    assert training.created[-1] == "gpt-train-1-4"
    assert affinity_of(training, "gpt-train-1-4") == {
        "nodeAffinity": {PREFERRED: [{"weight": 100, "preference": {"matchFields": [NOT_BAD]}}]}
    }
    assert training.deleted == ["gpt-train-1-3"]
    assert training.status.resolved is not None
    assert training.status.resolved.avoided_nodes == (ONCE_BAD,)
    assert training.events[-1].message == "No other node takes the pods: bad may run them again."
    training.vanish("gpt-train-1-3")
    training.settle()
    training.change("gpt-train-1-4", unschedulable="0/2 nodes are available: 2 full.")
    training.settle()
    assert training.created[-1] == "gpt-train-1-4", "it is made anew once"
    assert "0/2 nodes are available: 2 full" in training.status.message
    place(training, "gpt-train-1-4", "bad")
    training.end("gpt-train-1-4", 137)
    training.step(60)
    assert training.status.resolved.avoided_nodes == (ONCE_BAD,)


def test_a_pod_whose_gates_hold_it_back_has_not_been_refused_a_place(training: Play) -> None:
    kill_twice(training)
    training.change(
        "gpt-train-1-3", unschedulable="Scheduling is blocked due to non-empty scheduling gates", gated=True
    )
    training.settle()
    assert training.created[-1] == "gpt-train-1-3"


def test_a_resume_gives_the_node_another_chance(training: Play) -> None:
    kill_twice(training)
    training.spec = spec(runPolicy={"suspend": True})
    training.settle()
    training.pods = []
    training.settle()
    training.spec = spec()
    training.step(100)
    assert training.status.resolved is not None
    assert training.status.resolved.avoided_nodes == ()
    assert affinity_of(training, training.created[-1]) is None


# --- the affinity itself


def test_the_users_affinity_stays_and_every_alternative_is_narrowed() -> None:
    terms = [{"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}, {"matchFields": [{"key": "x"}]}, {}]
    wanted = {
        "podAffinity": {"x": 1},
        "nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}, PREFERRED: [{"weight": 1, "preference": {}}]},
    }
    whole = affinity(wanted, [BAD, AvoidedNode(name="worse", required=False)])
    assert whole is not None
    assert whole["podAffinity"] == {"x": 1}
    assert whole["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] == [
        {**terms[0], "matchFields": [NOT_BAD]},
        {"matchFields": [{"key": "x"}, NOT_BAD]},
        {},  # matches no node, and would match all others if it were narrowed
    ]
    assert [p["weight"] for p in whole["nodeAffinity"][PREFERRED]] == [1, 100]
    assert required_elsewhere({"affinity": whole})
    assert wanted["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] == terms, "nothing of the spec is changed"


ANYTHING = st.sampled_from([None, 1, "x", [], [{}], ["x"], [{"matchFields": [{"key": "x"}]}], {}, {"x": 1}])
SELECTOR = ANYTHING | st.fixed_dictionaries({"nodeSelectorTerms": ANYTHING})
NODE = ANYTHING | st.fixed_dictionaries({}, optional={REQUIRED: SELECTOR, PREFERRED: ANYTHING})


@given(st.none() | st.fixed_dictionaries({}, optional={"nodeAffinity": NODE, "podAffinity": ANYTHING}))
def test_what_is_no_affinity_is_left_to_the_api_server(wanted: dict[str, Any] | None) -> None:
    assert affinity(wanted, []) == wanted
    affinity(wanted, [BAD, AvoidedNode(name="worse", required=False)])
    required_elsewhere({"affinity": wanted})
