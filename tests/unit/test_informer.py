"""The informer keeps a store in step through every way in which a watch can end."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Set
from typing import Any

import pytest
from support.memory_api import MemoryApi
from support.runs import PATIENCE
from trainingjob_operator.kube import informer as informer_module
from trainingjob_operator.kube.api import PODS, ApiError, Gone, ObjectList, Resource, Unreachable, WatchEvent
from trainingjob_operator.kube.informer import BeginAnew, Informer, take_all

Script = list[WatchEvent | ApiError]


def event(kind: str, name: str, version: int) -> WatchEvent:
    return WatchEvent(kind, {"metadata": {"name": name, "uid": name, "resourceVersion": str(version)}})


class ScriptedApi(MemoryApi):
    """Answers each LIST and each watch with the next script; when they are used up, a watch never ends."""

    def __init__(self, lists: list[list[ObjectList | ApiError]], watches: list[Script]) -> None:
        super().__init__()
        self.lists = lists
        self.watches = watches
        self.versions: list[str] = []
        self.now = 1000
        self.exhausted = asyncio.Event()

    async def pages(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[ObjectList]:
        for page in self.lists.pop(0):
            if isinstance(page, ApiError):
                raise page
            yield page

    async def version(self, resource: Resource, namespace: str | None = None) -> str:
        return str(self.now)

    async def watch(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", resource_version: str = ""
    ) -> AsyncIterator[WatchEvent]:
        self.versions.append(resource_version)
        if not self.watches:
            self.exhausted.set()
            await asyncio.Event().wait()
        for step in self.watches.pop(0):
            if isinstance(step, ApiError):
                raise step
            yield step


class Names:
    """A store of names."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def put(self, body: Mapping[str, Any]) -> str | None:
        name = str(body["metadata"]["name"])
        if name in self.names:
            return None
        self.names.add(name)
        return name

    def remove(self, body: Mapping[str, Any]) -> None:
        self.names.discard(body["metadata"]["name"])

    def retain(self, namespace: str | None, uids: Set[str], version: str) -> Set[Hashable]:
        gone = self.names - uids
        self.names -= gone
        return gone


def page(version: int, *names: str) -> ObjectList:
    return ObjectList(
        [{"metadata": {"name": name, "uid": name, "resourceVersion": "1"}} for name in names], str(version)
    )


def listed(version: int, *names: str) -> list[ObjectList | ApiError]:
    return [page(version, *names)]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer_module, "FIRST_BACKOFF_SECONDS", 0.001)


async def follow(api: ScriptedApi, on_restart: Callable[[str], None] = lambda reason: None) -> set[str]:
    """Run an informer until the scripts are used up; the names that its store then holds."""
    names = Names()
    task = asyncio.create_task(Informer(api, PODS, names, on_restart=on_restart).run())
    try:
        exhausted = asyncio.create_task(api.exhausted.wait())
        await asyncio.wait({task, exhausted}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        exhausted.cancel()
        if task.done():
            await task
        assert api.exhausted.is_set()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return names.names


async def test_changes_after_the_list_are_taken_in() -> None:
    api = ScriptedApi([listed(10, "a", "b")], [[event("ADDED", "c", 11), event("DELETED", "a", 12)]])
    assert await follow(api) == {"b", "c"}


async def test_a_watch_that_ends_goes_on_where_it_stopped_and_bookmarks_count() -> None:
    api = ScriptedApi([listed(10)], [[event("ADDED", "a", 11), event("BOOKMARK", "", 50)], []])
    assert await follow(api) == {"a"}
    assert api.versions == ["10", "50", "50"]


@pytest.mark.parametrize("error", [Unreachable(0, "Unreachable", "lost"), ApiError(500, "InternalError", "broken")])
async def test_after_an_error_the_watch_goes_on_without_a_list(error: ApiError) -> None:
    restarts: list[str] = []
    api = ScriptedApi([listed(10)], [[event("ADDED", "a", 11), error], [event("ADDED", "b", 12)]])
    assert await follow(api, restarts.append) == {"a", "b"}
    assert api.versions == ["10", "11", "12"]
    assert restarts == ["error"]


LOST = Unreachable(0, "Unreachable", "lost")
OLD = Gone(410, "Expired", "too old resource version")


@pytest.mark.parametrize(
    ("lists", "watches", "now"),
    [
        ([listed(90)], [[event("ADDED", "a", 101), LOST]], 100),
        ([listed(90)], [[event("BOOKMARK", "", 101), LOST], []], 100),
        ([listed(101)], [[LOST]], 100),
        ([listed(101), listed(100)], [[OLD]], 1000),
    ],
)
async def test_a_server_that_is_set_back_ends_the_informer(
    lists: list[list[ObjectList | ApiError]], watches: list[Script], now: int
) -> None:
    api = ScriptedApi(lists, watches)
    api.now = now
    with pytest.raises(BeginAnew, match="the API server is at version 100 and was at 101"):
        await follow(api)
    assert len(api.versions) == 1


async def test_a_version_that_is_too_old_leads_to_a_list_that_forgets_what_vanished() -> None:
    restarts: list[str] = []
    gone = Gone(410, "Expired", "too old resource version")
    api = ScriptedApi([listed(10, "vanished", "stays"), listed(90, "stays")], [[gone]])
    assert await follow(api, restarts.append) == {"stays"}
    assert api.versions == ["10", "90"]
    assert restarts == ["expired"]


async def test_a_failed_list_is_tried_again() -> None:
    api = ScriptedApi([[Unreachable(0, "Unreachable", "down")], listed(10, "a")], [])
    assert await follow(api) == {"a"}


async def test_a_continue_token_that_expires_during_a_list_leads_to_a_new_list() -> None:
    expired = Gone(410, "Expired", "continue token")
    api = ScriptedApi([[page(5, "b", "vanished"), expired], [page(10, "a"), page(10, "b")]], [])
    assert await follow(api) == {"a", "b"}
    assert api.versions == ["10"]


async def test_of_a_list_one_page_is_in_memory_at_a_time() -> None:
    class Body(dict[str, Any]):
        """A dict that can be referred to weakly."""

    class Pages(ScriptedApi):
        async def pages(self, *_: Any, **__: Any) -> AsyncIterator[ObjectList]:
            for number in range(3):
                body = Body(metadata={"name": str(number), "uid": str(number), "resourceVersion": "1"})
                alive.append(weakref.ref(body))
                made = ObjectList([body], "9")
                del body
                yield made
                del made
                assert sum(ref() is not None for ref in alive) <= 1

    alive: list[weakref.ref[Body]] = []
    names = Names()
    assert await take_all(Pages([], []), PODS, names) == ("9", 3)
    assert names.names == {"0", "1", "2"}


async def test_a_watch_that_hangs_is_given_up_for_a_new_list_in_time() -> None:
    api = ScriptedApi([listed(10, "a", "gone"), listed(20, "a", "lost")], [])
    missed: list[int] = []
    told = asyncio.Event()

    def on_missed(objects: int) -> None:
        missed.append(objects)
        told.set()

    names = Names()
    task = asyncio.create_task(Informer(api, PODS, names, relist=0.05, on_missed=on_missed).run())
    async with asyncio.timeout(PATIENCE):
        await told.wait()
    task.cancel()
    await asyncio.wait([task])
    assert names.names == {"a", "lost"}
    assert missed == [2]
