"""Who a container's process is: the pod's and the container's securityContext, merged. Pure."""

from typing import Final

from trainingjob_local.node.environment import ConfigError
from trainingjob_local.node.kube import Object
from trainingjob_local.node.plan import Identity

IMAGE_USER: Final = 65532  # stands for the numeric USER of an image, and its group

_NAMES: Final = (  # by number: include/uapi/linux/capability.h
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    "CHECKPOINT_RESTORE",
)
_NUMBERS: Final = {name: number for number, name in enumerate(_NAMES)}
_DEFAULT: Final = frozenset(  # what container runtimes leave without a word from the pod
    {"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW"}
    | {"SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}
)


def identity(pod: Object, container: Object) -> Identity:
    """The user, groups and capabilities of the container; raises ConfigError for root against runAsNonRoot."""
    of_pod = pod["spec"].get("securityContext") or {}
    of_container = container.get("securityContext") or {}
    merged = {**of_pod, **of_container}
    uid = int(merged.get("runAsUser", IMAGE_USER))
    gid = int(merged.get("runAsGroup", IMAGE_USER if "runAsUser" not in merged else 0))
    if merged.get("runAsNonRoot") and uid == 0:
        raise ConfigError(f"container's runAsUser breaks non-root policy (container: {container['name']})")
    groups = [*of_pod.get("supplementalGroups", [])]
    if "fsGroup" in of_pod:
        groups.append(of_pod["fsGroup"])
    return Identity(
        uid=uid,
        gid=gid,
        groups=groups,
        capabilities=_capabilities(of_container.get("capabilities") or {}),
        noNewPrivileges=of_container.get("allowPrivilegeEscalation") is False,
    )


def _capabilities(wanted: Object) -> list[int]:
    add, drop = ({name.upper().removeprefix("CAP_") for name in wanted.get(field, [])} for field in ("add", "drop"))
    unknown = (add | drop) - {"ALL"} - set(_NUMBERS)
    if unknown:
        raise ConfigError(f"unknown capability {', '.join(sorted(unknown))}")
    kept = set(_NUMBERS) if "ALL" in add else set(_DEFAULT)
    kept = set() if "ALL" in drop else kept - drop
    return sorted(_NUMBERS[name] for name in kept | (add - {"ALL"}))
