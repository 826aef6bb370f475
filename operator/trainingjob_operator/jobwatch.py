"""kopf's part: it watches TrainingJobs and hands each event on. Nothing else of it is used (no finalizers, no patches).

Everything here is level-triggered elsewhere: a lost event costs time until the next resync, never correctness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import kopf

from trainingjob_operator.kube.api import TRAINING_JOBS
from trainingjob_operator.kube.connection import Connection

OUTAGE_BACKOFFS = (0.2, 0.5, 1, 2, 4, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8)
"""Seconds between kopf's retries: together the outage of the API server after which the operator is restarted."""

NOBODY = "trainingjob-operator"
"""kopf's name among its peers, of which it has none. It would ask for that of the user; a pod's need not have one."""

Take = Callable[[str | None, Mapping[str, Any]], None]
"""Called with the event's type (None: from a LIST; ADDED, MODIFIED, DELETED) and the TrainingJob."""


def watch_jobs(
    connection: Connection,
    namespaces: Sequence[str],
    take: Take,
    ready: asyncio.Event,
    stop: asyncio.Event,
) -> Coroutine[None, None, None]:
    """Watch TrainingJobs (of all namespaces, if none is given) until `stop` is set; `ready` is set when kopf runs."""
    registry = kopf.OperatorRegistry()

    async def login(**_: Any) -> kopf.ConnectionInfo:
        return connection.for_kopf()

    async def changed(event: kopf.RawEvent, **_: Any) -> None:
        take(event["type"], event["object"])

    kopf.on.login(registry=registry)(login)
    kopf.on.event(TRAINING_JOBS.group, TRAINING_JOBS.version, TRAINING_JOBS.plural, registry=registry)(changed)
    coroutine: Coroutine[None, None, None] = kopf.operator(
        registry=registry,
        settings=_settings(),
        standalone=True,
        identity=NOBODY,
        clusterwide=not namespaces,
        namespaces=namespaces,
        ready_flag=ready,
        stop_flag=stop,
    )
    return coroutine


class _NoDiffs(kopf.DiffBaseStorage):  # type: ignore[misc]  # kopf: untyped
    """Nothing handles changes, for which kopf copies each object at each event: a third of an event's cost."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Of no object anything."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> None:
        """Nothing was stored."""

    def store(self, **_: Any) -> None:
        """Store nothing."""


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.queueing.idle_timeout = 0.2
    settings.queueing.worker_limit = None
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 600
    settings.watching.client_timeout = 660
    settings.networking.request_timeout = 15
    settings.networking.error_backoffs = OUTAGE_BACKOFFS
    settings.process.ultimate_exiting_timeout = 25
    return settings
