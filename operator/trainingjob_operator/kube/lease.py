"""The Lease (coordination.k8s.io/v1) that lets one of several operators lead.

The holder stops `RENEW_DEADLINE_SECONDS` after it asked for the last renewal that was granted; others take the lease
when they have not seen it change for `LEASE_SECONDS`. Each counts on its own monotonic clock: wall clocks may differ.
Every write carries the resourceVersion that was seen: of two that claim at once, one is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import NoReturn

from .api import LEASES, Api, ApiError, Conflict, Manifest, NotFound, Unreachable

LEASE_SECONDS = 15
RENEW_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 2.0
"""Between two renewals."""
LOOK_SECONDS = 1.0
"""Between two looks of a standby: so much later it takes a lease that was released."""
REQUEST_TIMEOUT_SECONDS = 3.0
"""Of the client that is given to `LeaderElection`: a renewal that hangs leaves time for others."""

logger = logging.getLogger(__name__)


class Candidate:
    """What one candidate knows of the lease, and what it may write. Pure: times are seconds of a monotonic clock."""

    def __init__(self, namespace: str, name: str, identity: str) -> None:
        self.identity = identity
        self._meta = {"namespace": namespace, "name": name}
        self._lease: Manifest | None = None
        self._changed_at = 0.0

    def saw(self, lease: Manifest | None, now: float) -> None:
        """The API server has answered with this lease; None: there is none."""
        if lease is None or self._lease is None or lease.get("spec") != self._lease.get("spec"):
            self._changed_at = now
        self._lease = lease

    @property
    def holder(self) -> str:
        """Who held the lease when it was last seen; empty: nobody."""
        return str(self._spec().get("holderIdentity") or "")

    def wait(self, now: float) -> float:
        """For how many seconds the lease has to be left to its holder; 0: it may be claimed."""
        if self.holder in ("", self.identity):
            return 0.0
        duration = self._spec().get("leaseDurationSeconds") or LEASE_SECONDS
        return max(0.0, self._changed_at + float(duration) - now)

    def claimed(self, at: datetime) -> Manifest:
        """The lease as it was seen, in our name from now on or still. Without resourceVersion it has to be created."""
        spec, time = self._spec(), _micro_time(at)
        ours = self.holder == self.identity
        transitions = int(spec.get("leaseTransitions") or 0)
        return self._with(
            holderIdentity=self.identity,
            leaseDurationSeconds=LEASE_SECONDS,
            acquireTime=spec["acquireTime"] if ours else time,
            renewTime=time,
            leaseTransitions=transitions if ours or self._lease is None else transitions + 1,
        )

    def released(self, at: datetime) -> Manifest:
        """The lease as it was seen, in nobody's name."""
        return self._with(holderIdentity="", leaseDurationSeconds=1, renewTime=_micro_time(at))

    def _spec(self) -> Manifest:
        return (self._lease or {}).get("spec") or {}

    def _with(self, **spec: object) -> Manifest:
        lease = self._lease or {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": self._meta}
        return {**lease, "spec": {**self._spec(), **spec}}


def end_process(reason: str) -> NoReturn:
    """End at once, with no clean-up that could write: another operator may lead already."""
    logger.critical("this operator no longer leads and ends at once: %s", reason)
    os._exit(1)


class LeaderElection:
    """Takes the lease, keeps it and releases it. `lost` is told why it could not be kept, and must not return."""

    def __init__(
        self, api: Api, namespace: str, name: str, identity: str, lost: Callable[[str], NoReturn] = end_process
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._candidate = Candidate(namespace, name, identity)
        self._lost = lost
        self._held_until: float | None = None

    def check(self) -> None:
        """Nothing, while the lease is held. To be called in the very step that hands a write to the network."""
        if self._held_until is None:
            raise RuntimeError("a write of an operator that does not lead")
        if _now() >= self._held_until:
            self._lost(f"the lease was not renewed for {RENEW_DEADLINE_SECONDS:.0f} s")

    @contextlib.asynccontextmanager
    async def leading(self) -> AsyncIterator[None]:
        """Wait for the lease, keep it while in the block, and release it at the end of the block."""
        await self._take()
        try:
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(self._keep())
                yield
                keeping.cancel()
        finally:
            await self._release()

    async def _take(self) -> None:
        told = ""
        while True:
            wait = LOOK_SECONDS
            try:
                await self._look()
                wait = self._candidate.wait(_now())
                if wait == 0 and await self._claim():
                    logger.info("leading as %s", self._candidate.identity)
                    return
                if told != self._candidate.holder:
                    told = self._candidate.holder
                    logger.info("standing by: %s leads", told or "nobody")
            except ApiError as error:
                logger.warning("cannot read or take the lease %s/%s: %s", self._namespace, self._name, error)
            await asyncio.sleep(min(wait or LOOK_SECONDS, LOOK_SECONDS))

    async def _keep(self) -> None:
        try:
            async with asyncio.timeout_at(self._held_until) as limit:
                while True:
                    await asyncio.sleep(RETRY_SECONDS)
                    await self._renew()
                    limit.reschedule(self._held_until)
        except TimeoutError:
            self._lost(f"the lease could not be renewed for {RENEW_DEADLINE_SECONDS:.0f} s")

    async def _renew(self) -> None:
        try:
            while not await self._claim():
                # Ours all the same: an answer was lost, or somebody has labelled the lease.
                if self._candidate.holder != self._candidate.identity:
                    self._lost(f"{self._candidate.holder or 'nobody'} holds the lease")
        except ApiError as error:
            logger.warning("cannot renew the lease %s/%s: %s", self._namespace, self._name, error)

    async def _release(self) -> None:
        """Tried again while there is no answer and the lease is ours: others would wait for it to expire."""
        until, self._held_until = self._held_until or 0.0, None
        while self._candidate.holder == self._candidate.identity:
            try:
                if await self._write(self._candidate.released(datetime.now(UTC))) or not self._candidate.holder:
                    logger.info("the lease is released")
            except ApiError as error:
                if not isinstance(error, Unreachable) or _now() >= until:
                    logger.warning("the lease is not released and will expire: %s", error)
                    return
                await asyncio.sleep(LOOK_SECONDS)

    async def _claim(self) -> bool:
        """Write our name into the lease as it was last seen. False: it has changed since, and was read anew."""
        asked = _now()
        if not await self._write(self._candidate.claimed(datetime.now(UTC))):
            return False
        self._held_until = asked + RENEW_DEADLINE_SECONDS
        return True

    async def _write(self, lease: Manifest) -> bool:
        known = "resourceVersion" in lease["metadata"]
        try:
            if known:
                answer = await self._api.replace(LEASES, self._namespace, self._name, lease)
            else:
                answer = await self._api.create(LEASES, self._namespace, lease)
        except (Conflict, NotFound) as error:
            if isinstance(error, NotFound) and not known:
                raise  # The namespace is missing.
            await self._look()
            return False
        self._candidate.saw(answer, _now())
        return True

    async def _look(self) -> None:
        try:
            lease = await self._api.get(LEASES, self._namespace, self._name)
        except NotFound:
            lease = None
        self._candidate.saw(lease, _now())


def _now() -> float:
    return asyncio.get_running_loop().time()


def _micro_time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
