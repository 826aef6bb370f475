"""A pod's phase and conditions from its containers' states."""

import pytest
from trainingjob_local.node import status, volumes
from trainingjob_local.node.environment import ConfigError

WAITING = ("waiting", None)
RUNNING = ("running", None)


def container(what, name="c"):
    kind, code = what
    state = status.ContainerState(name, "image")
    if kind == "running":
        state.state = status.running("t0")
        state.ready = True
    elif kind == "ended":
        state.state = status.terminated(code, "t0", "t1")
    elif kind == "backing off":
        state.state, state.last = status.waiting("CrashLoopBackOff"), status.terminated(code, "t0", "t1")
    return state


def ended(code):
    return ("ended", code)


@pytest.mark.parametrize(
    ("policy", "init", "main", "phase"),
    [
        ("Never", [], [WAITING], "Pending"),
        ("Never", [], [RUNNING, WAITING], "Pending"),
        ("Never", [], [RUNNING, ended(1)], "Running"),
        ("Never", [], [ended(0), ended(1)], "Failed"),
        ("Never", [], [ended(0), ended(0)], "Succeeded"),
        ("OnFailure", [], [ended(1)], "Running"),
        ("OnFailure", [], [ended(0)], "Succeeded"),
        ("Always", [], [ended(0)], "Running"),
        ("Always", [], [("backing off", 1)], "Running"),
        ("Never", [RUNNING], [WAITING], "Pending"),
        ("Never", [ended(1)], [WAITING], "Failed"),
        ("OnFailure", [ended(1)], [WAITING], "Pending"),
        ("Never", [ended(0)], [RUNNING], "Running"),
    ],
)
def test_the_phase_is_a_kubelets(policy, init, main, phase):
    assert status.phase(policy, [container(item) for item in init], [container(item) for item in main]) == phase


@pytest.mark.parametrize(("code", "reason", "signal"), [(0, "Completed", None), (3, "Error", None), (137, "Error", 9)])
def test_the_end_of_a_container_says_how(code, reason, signal):
    state = status.terminated(code, "t0", "t1")["terminated"]
    assert (state["exitCode"], state["reason"], state.get("signal")) == (code, reason, signal)


def conditions(phase, main, previous=(), now="t1"):
    made = status.conditions(phase, [], main, has_network=True, previous=previous, now=now)
    return {item["type"]: item for item in made}


def test_ready_names_the_containers_that_are_not():
    made = conditions("Running", [container(RUNNING, "good"), container(WAITING, "bad")])
    assert made["Ready"]["status"] == made["ContainersReady"]["status"] == "False"
    assert made["Ready"]["message"] == "containers with unready status: [bad]"
    assert made["Initialized"]["status"] == "True"


def test_a_finished_pod_is_not_ready_for_a_reason():
    assert conditions("Succeeded", [container(ended(0))])["Ready"]["reason"] == "PodCompleted"


def test_a_transition_time_stays_while_the_status_does():
    first = conditions("Running", [container(RUNNING)], now="t1")
    same = conditions("Running", [container(RUNNING)], first.values(), now="t2")
    changed = conditions("Running", [container(WAITING)], first.values(), now="t2")
    assert same["Ready"]["lastTransitionTime"] == "t1"
    assert changed["Ready"]["lastTransitionTime"] == "t2"
    assert changed["Initialized"]["lastTransitionTime"] == "t1"


@pytest.mark.parametrize(
    ("text", "size"), [("5", 5), ("64Mi", 64 << 20), ("1.5Gi", 3 << 29), ("2k", 2000), ("1G", 10**9)]
)
def test_quantities(text, size):
    assert volumes.quantity(text) == size


def test_items_choose_keys_and_modes():
    data = {"a": b"1", "b": b"2"}
    items = [{"key": "a", "path": "x/y", "mode": 0o400}, {"key": "b", "path": "z"}]
    assert volumes.select(data, items, 0o644, "secret 's'", optional=False) == {
        "x/y": (b"1", 0o400),
        "z": (b"2", 0o644),
    }
    with pytest.raises(ConfigError, match="references non-existent key: c"):
        volumes.select(data, [{"key": "c", "path": "c"}], 0o644, "secret 's'", optional=False)
    assert volumes.select(data, [{"key": "c", "path": "c"}], 0o644, "secret 's'", optional=True) == {}
