"""Follows all objects of one kind: a paged LIST, then a watch, for ever.

kopf's watch costs half a millisecond an event and never reports what vanished in a gap; pods are too many for that.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Hashable, Mapping, Set
from typing import Any, Protocol

from .api import Api, ApiError, Gone, Resource

FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0

logger = logging.getLogger(__name__)


class BeginAnew(Exception):
    """What this process knows or does is void, so it ends: whoever has started it starts it again."""


class Store(Protocol):
    """Who takes the objects in."""

    def put(self, body: Mapping[str, Any]) -> Hashable | None:
        """An object is there, or has changed. Returns whom that is news of, if it is."""

    def remove(self, body: Mapping[str, Any]) -> Hashable | None:
        """An object was deleted; this was its last state."""

    def retain(self, namespace: str | None, uids: Set[str], version: str) -> Set[Hashable]:
        """There are no others in the namespace (None: in the cluster) as of `version`. Returns whom that is news of."""


async def take_all(
    api: Api, resource: Resource, store: Store, namespace: str | None = None, label_selector: str = ""
) -> tuple[str, int]:
    """LIST all objects into a store, a page at a time: all at once would be a large part of the process's memory.

    Returns the version of the list, and of how many it brought news.
    """
    uids: set[str] = set()
    news: set[Hashable] = set()
    version = ""
    async for page in api.pages(resource, namespace, label_selector):
        for body in page.items:
            uids.add(body["metadata"]["uid"])
            news.add(store.put(body))
        version = page.resource_version
    news |= store.retain(namespace, uids, version)
    return version, len(news - {None})


class Informer:
    """Keeps a store in step with one collection of the API server.

    `synced` is set after the first LIST. A LIST is repeated when the server no longer knows the version to go on from
    (410), and `relist` seconds after the last one in any case, should the watch have lost something or hang. After any
    other interruption the watch goes on where it stopped, if the server has not been set back meanwhile. on_restart:
    told the reason ("expired", "error", "refused") each time a watch did not end as the server promised. on_missed:
    told how many objects a LIST that was made only to be sure found in another state than the watch had told.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        store: Store,
        namespace: str | None = None,
        label_selector: str = "",
        on_restart: Callable[[str], None] = lambda reason: None,
        relist: float = 600.0,
        on_missed: Callable[[int], None] = lambda objects: None,
    ) -> None:
        self.synced = asyncio.Event()
        self._api = api
        self._resource = resource
        self._store = store
        self._namespace = namespace
        self._selector = label_selector
        self._on_restart = on_restart
        self._relist = relist
        self._relist_at = 0.0
        self._on_missed = on_missed
        self._to_be_sure = False
        self._version = ""
        self._newest = 0
        self._interrupted = False
        self._failures = 0

    async def run(self) -> None:
        """Follow until cancelled. Errors of the API server are logged and survived. Raises `BeginAnew` if it has
        forgotten what it had told."""
        while True:
            try:
                if not self._version:
                    await self._list()
                elif self._interrupted:
                    self._reached(await self._api.version(self._resource, self._namespace))
                self._interrupted = False
                async with asyncio.timeout_at(self._relist_at):
                    await self._watch()
            except TimeoutError:
                self._version = ""
                self._to_be_sure = True
            except Gone:
                self._version = ""
                self._on_restart("expired")
                logger.info("%s: the watch is too far behind, listing again", self._resource.plural)
            except ApiError as error:
                self._interrupted = True
                self._on_restart("error" if error.status == 0 or error.status >= 500 else "refused")
                seconds = self._backoff()
                logger.warning("%s: %s; again in %.1f s", self._resource.plural, error, seconds)
                await asyncio.sleep(seconds)

    async def _list(self) -> None:
        version, news = await take_all(self._api, self._resource, self._store, self._namespace, self._selector)
        self._relist_at = asyncio.get_running_loop().time() + self._relist
        if self._to_be_sure:
            self._on_missed(news)
            self._to_be_sure = False
        self._reached(version)
        self._version = version
        self._failures = 0
        self.synced.set()

    async def _watch(self) -> None:
        """One watch, to its end; bookmarks move the version on while nothing happens."""
        async for event in self._api.watch(self._resource, self._namespace, self._selector, self._version):
            if event.type == "DELETED":
                self._store.remove(event.object)
            elif event.type in ("ADDED", "MODIFIED"):
                self._store.put(event.object)
            self._version = event.object["metadata"]["resourceVersion"]
            self._newest = int(self._version)
            self._failures = 0

    def _reached(self, version: str) -> None:
        """The server is at `version` now. It has been as far as any version that a LIST or a watch has told; if not,
        versions that are known here may come again for other states."""
        if int(version) < self._newest:
            raise BeginAnew(f"the API server is at version {version} and was at {self._newest}: its etcd was restored")
        self._newest = int(version)

    def _backoff(self) -> float:
        seconds = min(LAST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        return seconds * random.uniform(0.5, 1.0)
