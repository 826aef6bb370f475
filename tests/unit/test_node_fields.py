"""The table of pod fields that the process node implements."""

import pytest
from trainingjob_local.node.fields import unsupported

CONTAINER = {"name": "main", "image": "python", "command": ["true"]}


def spec(container=None, **fields):
    return {"containers": [{**CONTAINER, **(container or {})}], "restartPolicy": "Never", **fields}


def test_a_pod_as_the_api_server_defaults_it_is_supported():
    container = {
        "imagePullPolicy": "Always",
        "resources": {"limits": {"nvidia.com/gpu": "1"}},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": True}],
    }
    fields = {
        "dnsPolicy": "ClusterFirst",
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "tolerations": [{"key": "k", "operator": "Exists"}],
        "volumes": [{"name": "v", "emptyDir": {}}],
        "hostNetwork": False,
    }
    assert unsupported(spec(container, **fields)) == []


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (spec(hostNetwork=True), "spec.hostNetwork=True"),
        (spec(dnsConfig={"nameservers": ["1.1.1.1"]}), "spec.dnsConfig"),
        (spec(runtimeClassName="gvisor"), "spec.runtimeClassName"),
        (spec({"lifecycle": {"preStop": {}}}), "spec.containers[0].lifecycle"),
        (spec({"securityContext": {"privileged": True}}), "spec.containers[0].securityContext.privileged=True"),
        (
            spec({"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "x"}]}),
            "spec.containers[0].volumeMounts[0].subPath",
        ),
        (spec(volumes=[{"name": "v", "hostPath": {"path": "/"}}]), "spec.volumes[0].hostPath"),
        (spec({"readinessProbe": {"grpc": {"port": 1}}}), "spec.containers[0].readinessProbe.grpc"),
        (
            spec(securityContext={"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]}),
            "spec.securityContext.sysctls[0].name=kernel.shm_rmid_forced",
        ),
        (spec({"aFieldOfTheFuture": 1}), "spec.containers[0].aFieldOfTheFuture"),
        (spec(initContainers=[{**CONTAINER, "restartPolicy": "Always"}]), "spec.initContainers[0].restartPolicy"),
    ],
)
def test_what_is_not_in_the_table_is_named(value, found):
    assert unsupported(value) == [found]
