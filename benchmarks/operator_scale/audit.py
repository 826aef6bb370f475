"""Requests to the API server by user agent, from its audit log."""

import json
from collections import Counter
from collections.abc import Set
from pathlib import Path

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
READS = frozenset({"get", "list"})
NO_WORK = frozenset({"leases", "selfsubjectaccessreviews"})
"""Renewed every two seconds whatever happens; asked at the start, and stored nowhere."""


class Requests(Counter[tuple[str, str]]):
    """Finished requests of an operator by verb and resource (with subresource). Watches count when they end."""

    @property
    def writes(self) -> int:
        """Writes that are made for jobs, events included."""
        return self._count(WRITES)

    @property
    def reads(self) -> int:
        """GETs and LISTs."""
        return self._count(READS)

    def wire(self) -> dict[str, int]:
        """By "verb resource", the most frequent first."""
        return {f"{verb} {resource}": count for (verb, resource), count in self.most_common()}

    def _count(self, verbs: Set[str]) -> int:
        return sum(count for (verb, resource), count in self.items() if verb in verbs and resource not in NO_WORK)


class AuditLog:
    """The audit log of the API server; a mark is a place in it.

    agents: how the user agents of the operator begin that is asked about.
    """

    def __init__(self, path: Path, agents: tuple[str, ...]) -> None:
        self._path = path
        self._agents = agents

    def mark(self) -> int:
        """Now."""
        return self._path.stat().st_size

    def since(self, mark: int) -> Requests:
        """What the operator has asked for since `mark`."""
        found = Requests()
        with self._path.open("rb") as log:
            log.seek(mark)
            for line in log:
                if not line.endswith(b"\n") or not any(agent.encode() in line for agent in self._agents):
                    continue
                entry = json.loads(line)
                if entry["stage"] != "ResponseComplete" or not entry.get("userAgent", "").startswith(self._agents):
                    continue
                about = entry.get("objectRef") or {}
                resource = "/".join(part for part in (about.get("resource"), about.get("subresource")) if part)
                found[entry["verb"], resource] += 1
        return found
