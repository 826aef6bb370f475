"""Which pod fields this node implements: one table, and the check against it.

A field that is not in the table is refused, never ignored. In the table: `ANY` - any value (the field is implemented,
or it concerns only the scheduler, the API server or the image pull); a set - these values; a mapping - these fields;
a list - items of this shape; a function - values for which it holds.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

ANY: Final = object()
Shape = object | set[Any] | Mapping[str, Any] | list[Any] | Callable[[Any], bool]

_FIELD_REF = {"apiVersion": {"v1"}, "fieldPath": ANY}
_KEY_REF = {"name": ANY, "key": ANY, "optional": ANY}
_KEYS = [{"key": ANY, "path": ANY, "mode": ANY}]
_DOWNWARD_ITEMS = [{"path": ANY, "fieldRef": _FIELD_REF, "mode": ANY}]

_PROBE = {
    "httpGet": {"path": ANY, "port": ANY, "scheme": {"HTTP", "HTTPS"}, "httpHeaders": [{"name": ANY, "value": ANY}]},
    "exec": {"command": ANY},
    "tcpSocket": {"port": ANY},
    "initialDelaySeconds": ANY,
    "periodSeconds": ANY,
    "timeoutSeconds": ANY,
    "successThreshold": ANY,
    "failureThreshold": ANY,
    "terminationGracePeriodSeconds": ANY,
}

_CONTAINER = {
    "name": ANY,
    "image": ANY,
    "imagePullPolicy": ANY,  # there are no images
    "command": ANY,
    "args": ANY,
    "workingDir": ANY,
    "ports": [{"name": ANY, "containerPort": ANY, "protocol": ANY}],
    "env": [
        {
            "name": ANY,
            "value": ANY,
            "valueFrom": {"fieldRef": _FIELD_REF, "configMapKeyRef": _KEY_REF, "secretKeyRef": _KEY_REF},
        }
    ],
    "envFrom": [
        {
            "prefix": ANY,
            "configMapRef": {"name": ANY, "optional": ANY},
            "secretRef": {"name": ANY, "optional": ANY},
        }
    ],
    "resources": {"limits": ANY, "requests": ANY},  # counted by the scheduler; no cgroups
    "resizePolicy": ANY,
    "volumeMounts": [
        {
            "name": ANY,
            "mountPath": ANY,
            "readOnly": ANY,
            "recursiveReadOnly": {"Disabled"},
            "mountPropagation": {"None"},
        }
    ],
    "livenessProbe": _PROBE,
    "readinessProbe": _PROBE,
    "startupProbe": _PROBE,
    "terminationMessagePath": ANY,
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
    "stdin": {False},
    "stdinOnce": {False},
    "tty": {False},
    "securityContext": {
        "runAsUser": ANY,
        "runAsGroup": ANY,
        "runAsNonRoot": ANY,
        "readOnlyRootFilesystem": ANY,
        "allowPrivilegeEscalation": ANY,
        "capabilities": {"add": ANY, "drop": ANY},
        "privileged": {False},
        "procMount": {"Default"},
        "seccompProfile": ANY,  # accepted, not applied: see the README
    },
}

_VOLUME = {
    "name": ANY,
    "emptyDir": {"medium": {"", "Memory"}, "sizeLimit": ANY},
    "configMap": {"name": ANY, "items": _KEYS, "defaultMode": ANY, "optional": ANY},
    "secret": {"secretName": ANY, "items": _KEYS, "defaultMode": ANY, "optional": ANY},
    "downwardAPI": {"items": _DOWNWARD_ITEMS, "defaultMode": ANY},
    "projected": {
        "defaultMode": ANY,
        "sources": [
            {
                "serviceAccountToken": {"audience": ANY, "expirationSeconds": ANY, "path": ANY},
                "configMap": {"name": ANY, "items": _KEYS, "optional": ANY},
                "secret": {"name": ANY, "items": _KEYS, "optional": ANY},
                "downwardAPI": {"items": _DOWNWARD_ITEMS},
            }
        ],
    },
}

POD_SPEC: Final[Mapping[str, Any]] = {
    "containers": [_CONTAINER],
    "initContainers": [_CONTAINER],
    "volumes": [_VOLUME],
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "terminationGracePeriodSeconds": ANY,
    "activeDeadlineSeconds": ANY,
    "hostname": ANY,
    "subdomain": ANY,
    "hostAliases": [{"ip": ANY, "hostnames": ANY}],
    "setHostnameAsFQDN": {False},
    "hostNetwork": {False},
    "hostPID": {False},
    "hostIPC": {False},
    "hostUsers": {True},
    "shareProcessNamespace": {False},
    "os": {"name": {"linux"}},
    "dnsPolicy": ANY,  # there is no cluster DNS: names come from /etc/hosts
    "automountServiceAccountToken": ANY,  # done by admission
    "serviceAccountName": ANY,
    "serviceAccount": ANY,
    "enableServiceLinks": ANY,  # no such variables are made: see the README
    "nodeName": ANY,
    "nodeSelector": ANY,
    "affinity": ANY,
    "tolerations": ANY,
    "topologySpreadConstraints": ANY,
    "priority": ANY,
    "priorityClassName": ANY,
    "preemptionPolicy": ANY,
    "schedulerName": ANY,
    "schedulingGates": ANY,
    "imagePullSecrets": ANY,
    "securityContext": {
        "runAsUser": ANY,
        "runAsGroup": ANY,
        "runAsNonRoot": ANY,
        "fsGroup": ANY,
        "fsGroupChangePolicy": ANY,
        "supplementalGroups": ANY,
        "supplementalGroupsPolicy": {"Merge"},
        "seccompProfile": ANY,
        "sysctls": [{"name": lambda name: name.startswith("net."), "value": ANY}],  # those of a network namespace
    },
}


def unsupported(value: Any, shape: Shape = POD_SPEC, path: str = "spec") -> list[str]:
    """The fields of `value` that this node does not implement, each with its path (and value, where that decides)."""
    if shape is ANY or value is None:
        return []
    if isinstance(shape, Mapping):
        found = []
        for name, inner in value.items():
            if name in shape:
                found += unsupported(inner, shape[name], f"{path}.{name}")
            elif inner not in (None, [], {}):
                found.append(f"{path}.{name}")
        return found
    if isinstance(shape, list):
        return [field for index, item in enumerate(value) for field in unsupported(item, shape[0], f"{path}[{index}]")]
    supported = value in shape if isinstance(shape, set) else callable(shape) and shape(value)
    return [] if supported else [f"{path}={value}"]
