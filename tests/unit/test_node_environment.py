"""Environment and command line of a container."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainingjob_local.node.environment import ConfigError, expand, field_value, references, resolve
from trainingjob_local.node.identity import identity

POD = {
    "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": 'x"y'}, "annotations": {}},
    "spec": {"nodeName": "node-0", "serviceAccountName": "default"},
    "status": {"podIP": "10.244.0.16", "podIPs": [{"ip": "10.244.0.16"}], "hostIP": "10.244.0.1"},
}


def nothing(kind, name, optional):
    return None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x$(A)$(A)y", "x11y"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$(A", "$(A"),
        ("$A ${A} $", "$A ${A} $"),
    ],
)
def test_references_expand_as_in_kubernetes(text, expected):
    assert expand(text, {"A": "1"}) == expected


@given(st.text())
def test_a_text_with_doubled_dollars_expands_to_itself(text):
    assert expand(text.replace("$", "$$"), {"A": "1"}) == text


def test_an_entry_sees_only_the_entries_before_it():
    env = [{"name": "A", "value": "$(B)"}, {"name": "B", "value": "2"}, {"name": "C", "value": "$(B)"}]
    assert resolve(POD, {"env": env}, nothing) == {"A": "$(B)", "B": "2", "C": "2"}


def test_entries_win_over_imported_ones():
    container = {
        "env": [{"name": "P_k", "value": "mine"}],
        "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}}],
    }
    data = {("configmap", "c"): {"k": "theirs", "l": "kept"}, ("secret", "s"): {"t": "x"}}
    found = resolve(POD, container, lambda kind, name, optional: data[kind, name])
    assert found == {"P_k": "mine", "P_l": "kept", "t": "x"}
    assert references(container) == {("configmap", "c", False), ("secret", "s", False)}


def test_a_missing_key_is_an_error_unless_optional():
    def entry(optional):
        reference = {"name": "s", "key": "k", "optional": optional}
        return {"env": [{"name": "A", "valueFrom": {"secretKeyRef": reference}}]}

    assert resolve(POD, entry(True), lambda *_: {}) == {}
    with pytest.raises(ConfigError, match="couldn't find key k in Secret n/s"):
        resolve(POD, entry(False), lambda *_: {})


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "p"),
        ("metadata.labels['b']", "2"),
        ("metadata.labels['none']", ""),
        ("metadata.labels", 'a="x\\"y"\nb="2"'),
        ("spec.nodeName", "node-0"),
        ("status.podIPs", "10.244.0.16"),
    ],
)
def test_fields_of_the_pod(path, expected):
    assert field_value(POD, path) == expected


def test_a_field_that_is_not_offered_is_an_error():
    with pytest.raises(ConfigError, match=r"'status\.qosClass' is not supported"):
        field_value(POD, "status.qosClass")


def test_an_image_stands_for_a_numeric_user_without_capabilities_left_out():
    who = identity({"spec": {}}, {"name": "c"})
    assert (who["uid"], who["gid"], who["groups"]) == (65532, 65532, [])
    assert len(who["capabilities"]) == 14
    assert who["noNewPrivileges"] is False


def test_the_container_wins_over_the_pod():
    pod = {"spec": {"securityContext": {"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4]}}}
    security = {"runAsUser": 9, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"], "add": ["KILL"]}}
    who = identity(pod, {"name": "c", "securityContext": security})
    assert who == {"uid": 9, "gid": 2, "groups": [4, 3], "capabilities": [5], "noNewPrivileges": True}


def test_root_is_refused_where_the_pod_forbids_it():
    pod = {"spec": {"securityContext": {"runAsNonRoot": True}}}
    with pytest.raises(ConfigError, match="non-root"):
        identity(pod, {"name": "c", "securityContext": {"runAsUser": 0}})
