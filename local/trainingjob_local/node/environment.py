"""A container's environment and command line, as the pod's manifest gives them."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from trainingjob_local.node.kube import Object

_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]$")

# (kind, name, optional) -> the object's data, or None when it is optional and absent
Lookup = Callable[[str, str, bool], Mapping[str, str] | None]


class ConfigError(Exception):
    """The container's configuration can't be made yet (kubelet: CreateContainerConfigError)."""


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by its value; `$$` stands for `$`; unknown names stay as they are, as in Kubernetes."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else env.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def references(container: Object) -> set[tuple[str, str, bool]]:
    """The (kind, name, optional) of every ConfigMap and Secret that the container's environment reads."""
    found = set()
    for source in container.get("envFrom", []):
        for field, kind in (("configMapRef", "configmap"), ("secretRef", "secret")):
            if field in source:
                found.add((kind, source[field]["name"], bool(source[field].get("optional"))))
    for entry in container.get("env", []):
        for field, kind in (("configMapKeyRef", "configmap"), ("secretKeyRef", "secret")):
            reference = entry.get("valueFrom", {}).get(field)
            if reference:
                found.add((kind, reference["name"], bool(reference.get("optional"))))
    return found


def resolve(pod: Object, container: Object, lookup: Lookup) -> dict[str, str]:
    """What the manifest declares of the container's environment: envFrom, then env.

    Raises ConfigError when a ConfigMap, Secret or key is missing that is not optional.
    """
    imported: dict[str, str] = {}
    for source in container.get("envFrom", []):
        imported.update(_all_of(source, lookup))
    declared: dict[str, str] = {}  # an entry can refer to those before it, but not to envFrom
    for entry in container.get("env", []):
        if "valueFrom" in entry:
            value = _value_from(pod, entry["valueFrom"], lookup)
        else:
            value = expand(entry.get("value", ""), declared)
        if value is not None:
            declared[entry["name"]] = value
    return imported | declared


def _all_of(source: Object, lookup: Lookup) -> dict[str, str]:
    prefix = source.get("prefix", "")
    for field, kind in (("configMapRef", "configmap"), ("secretRef", "secret")):
        if field in source:
            reference = source[field]
            data = lookup(kind, reference["name"], bool(reference.get("optional"))) or {}
            return {prefix + key: value for key, value in data.items()}
    return {}


def _value_from(pod: Object, source: Object, lookup: Lookup) -> str | None:
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"])
    kind, reference = (
        ("configmap", source["configMapKeyRef"]) if "configMapKeyRef" in source else ("secret", source["secretKeyRef"])
    )
    optional = bool(reference.get("optional"))
    data = lookup(kind, reference["name"], optional)
    if data is None:
        return None
    if reference["key"] not in data and not optional:
        namespace = pod["metadata"]["namespace"]
        kind_name = "ConfigMap" if kind == "configmap" else "Secret"
        raise ConfigError(f"couldn't find key {reference['key']} in {kind_name} {namespace}/{reference['name']}")
    return data.get(reference["key"])


def field_value(pod: Object, path: str) -> str:
    """The value of a downward API field; raises ConfigError for one that is not offered."""
    match = _SUBSCRIPT.match(path)
    if match:
        return str(pod["metadata"].get(match[1], {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        pairs: dict[str, Any] = pod["metadata"].get(path.partition(".")[2], {})
        return "\n".join(f'{key}="{_quoted(value)}"' for key, value in sorted(pairs.items()))
    if path in ("status.podIPs", "status.hostIPs"):
        return ",".join(item["ip"] for item in pod["status"][path.partition(".")[2]])
    allowed = {
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.podIP",
    }
    if path not in allowed:
        raise ConfigError(f"fieldPath {path!r} is not supported")
    section, _, name = path.partition(".")
    return str(pod[section].get(name, ""))


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
