"""What Kueue and the operator tell each other on plain pod groups (https://kueue.sigs.k8s.io, "Run plain pods")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "kueue.x-k8s.io"
QUEUE = f"{PREFIX}/queue-name"
GROUP = f"{PREFIX}/pod-group-name"
TOTAL_COUNT = f"{PREFIX}/pod-group-total-count"
ROLE_HASH = f"{PREFIX}/role-hash"
RETRIABLE = f"{PREFIX}/retriable-in-group"
FINALIZER = f"{PREFIX}/managed"
GATE = f"{PREFIX}/admission"
STOPPED = "TerminationTarget"


@dataclass(frozen=True)
class Queued:
    """A pod of a group, as Kueue has left it.

    gated: not admitted yet. held: Kueue's finalizer is on it. given_up: the group is over when its pods are.
    stopped: Kueue's words when it took the quota back; None: it did not.
    """

    group: str
    role_hash: str | None = None
    gated: bool = False
    held: bool = False
    given_up: bool = False
    stopped: str | None = None

    @classmethod
    def from_pod(cls, body: Mapping[str, Any]) -> Queued | None:
        """None: the pod is in no group."""
        meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
        group, annotations = (meta.get("labels") or {}).get(GROUP), meta.get("annotations") or {}
        if group is None:
            return None
        ends = [c for c in status.get("conditions") or () if c["type"] == STOPPED and c["status"] == "True"]
        return cls(
            group=group,
            role_hash=annotations.get(ROLE_HASH),
            gated=any(gate["name"] == GATE for gate in spec.get("schedulingGates") or ()),
            held=FINALIZER in (meta.get("finalizers") or ()),
            given_up=annotations.get(RETRIABLE) == "false",
            stopped=str(ends[0].get("message") or ends[0].get("reason") or "") if ends else None,
        )


@dataclass(frozen=True)
class Membership:
    """What makes a new pod a member of a group of `size` pods. role_hash: that of the pods it joins, if there are any:
    Kueue takes pods for equal whose hash is equal."""

    queue: str
    group: str
    size: int
    role_hash: str | None = None

    @property
    def labels(self) -> dict[str, str]:
        return {QUEUE: self.queue, GROUP: self.group}

    @property
    def annotations(self) -> dict[str, str]:
        kept = {} if self.role_hash is None else {ROLE_HASH: self.role_hash}
        return {TOTAL_COUNT: str(self.size), **kept}
