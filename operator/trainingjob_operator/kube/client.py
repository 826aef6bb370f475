"""A thin Kubernetes client on aiohttp: the requests of `kube.api.Api`, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from pydantic_core import from_json, to_json

from .api import (
    ApiError,
    Forbidden,
    Manifest,
    NotFound,
    ObjectList,
    Resource,
    Unreachable,
    WatchEvent,
    error_from_status,
)
from .connection import Connection
from .decoding import decode, decode_event, decode_list

REQUEST_TIMEOUT_SECONDS = 15.0
WATCH_SECONDS = 300
"""The server ends a watch after this time, so that a forgotten stream does not live for ever."""
WATCH_SILENCE_SECONDS = 90.0
"""The server sends a bookmark about every minute: a stream that is silent for longer is dead."""
PAGE_SIZE = 250
"""Objects a page, which at a start is in memory as a whole: 250 pods are 2 MiB of JSON."""
REQUESTS_AT_ONCE = 32
"""More would only wait in the server, each on a connection of its own, whose TLS handshake costs more than the request.
Watches are not counted."""

Observer = Callable[[str, str, int, float], None]
"""Called after each request: verb, resource, HTTP code (0 when there was no answer), seconds."""


Guard = Callable[[], None]
"""Called just before a write leaves the process; it raises, or never returns, if the write must not."""


def _ignore(verb: str, resource: str, code: int, seconds: float) -> None:
    """Observes nothing."""


def allow() -> None:
    """Lets every write pass."""


class Client:
    """Implements `kube.api.Api`. An async context manager: its connections are closed at the end of the block.

    timeout: seconds for each request but watches. user_agent: how the API server's audit log knows the caller. at_once:
    requests that are under way at a time, watches not counted.
    """

    def __init__(
        self,
        connection: Connection,
        observe: Observer = _ignore,
        guard: Guard = allow,
        timeout: float = REQUEST_TIMEOUT_SECONDS,
        user_agent: str = "trainingjob-operator",
        at_once: int = REQUESTS_AT_ONCE,
    ) -> None:
        self._connection = connection
        self._user_agent = user_agent
        self._observe = observe
        self._guard = guard
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._turns = asyncio.Semaphore(at_once)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._connection.ssl_context(), limit=0),
            timeout=self._timeout,
            headers={"Accept": "application/json", "User-Agent": self._user_agent},
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=self._connection.proxy,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """Quorum read of one object; namespace: None for one that is in none."""
        return await self._request("get", resource, resource.path(namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        """Quorum read of a collection, all of it: what is not large."""
        items: list[Manifest] = []
        version = ""
        async for page in self.pages(resource, namespace, label_selector, field_selector):
            items += page.items
            version = page.resource_version
        return ObjectList(items, version)

    async def pages(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[ObjectList]:
        """Quorum read of a collection, `PAGE_SIZE` objects at a time; all pages are of the first one's resourceVersion.

        Without `managedFields`: half of what the objects take in memory, and nobody here reads them.
        """
        token = ""
        while True:
            page = await self.list_page(resource, namespace, label_selector, PAGE_SIZE, token, field_selector)
            for item in page["items"]:
                item["metadata"].pop("managedFields", None)
            yield ObjectList(page["items"], page["metadata"]["resourceVersion"])
            token = page["metadata"].get("continue", "")
            if not token:
                return

    async def list_page(
        self,
        resource: Resource,
        namespace: str | None,
        label_selector: str,
        limit: int,
        token: str = "",
        field_selector: str = "",
    ) -> Manifest:
        """One page of a LIST, as the server sent it; `token` is the `continue` of the page before."""
        params = {"limit": str(limit)}
        if label_selector:
            params["labelSelector"] = label_selector
        if field_selector:
            params["fieldSelector"] = field_selector
        if token:
            params["continue"] = token
        return await self._request("list", resource, resource.path(namespace), params=params)

    async def version(self, resource: Resource, namespace: str | None = None) -> str:
        """The resourceVersion that a LIST of the collection would have now."""
        page = await self.list_page(resource, namespace, "", limit=1)
        return str(page["metadata"]["resourceVersion"])

    async def watch(
        self, resource: Resource, namespace: str | None = None, label_selector: str = "", resource_version: str = ""
    ) -> AsyncIterator[WatchEvent]:
        """Changes after `resource_version`, with bookmarks, until the server ends the stream or it falls silent."""
        params = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        if label_selector:
            params["labelSelector"] = label_selector
        timeout = aiohttp.ClientTimeout(
            total=WATCH_SECONDS + REQUEST_TIMEOUT_SECONDS,
            sock_connect=REQUEST_TIMEOUT_SECONDS,
            sock_read=WATCH_SILENCE_SECONDS,
        )
        begun = time.monotonic()
        code = 0
        try:
            async with self._open("GET", resource.path(namespace), params=params, timeout=timeout) as response:
                code = response.status
                if code >= 400:
                    raise await _error(response)
                async for line in _lines(response.content):
                    event = decode_event(line, resource)
                    if event["type"] == "ERROR":
                        raise error_from_status(event["object"])
                    yield WatchEvent(event["type"], event["object"])
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(error) from error
        finally:
            self._observe("watch", resource.plural, code, time.monotonic() - begun)

    async def create(self, resource: Resource, namespace: str, manifest: Manifest) -> Manifest:
        """POST; raises `AlreadyExists`."""
        return await self._request("create", resource, resource.path(namespace), body=manifest)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> Manifest:
        """DELETE if the object still has this uid; the object's own grace period applies."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        return await self._request("delete", resource, resource.path(namespace, name), body=options)

    async def replace(self, resource: Resource, namespace: str, name: str, manifest: Manifest) -> Manifest:
        """PUT."""
        return await self._request("update", resource, resource.path(namespace, name), body=manifest)

    async def merge_patch(self, resource: Resource, namespace: str, name: str, patch: Manifest) -> Manifest:
        """PATCH with a JSON merge patch."""
        return await self._request("patch", resource, resource.path(namespace, name), body=patch)

    async def put_status(self, resource: Resource, namespace: str, name: str, manifest: Manifest) -> Manifest:
        """PUT of the status subresource."""
        return await self._request("update", resource, resource.path(namespace, name, "status"), body=manifest)

    async def serves(self, resource: Resource) -> bool:
        """Whether the API server serves this resource in this version: discovery says so."""
        try:
            found = await self._request("get", _DISCOVERY, f"/apis/{resource.api_version}")
        except NotFound:
            return False
        return any(served["name"] == resource.plural for served in found["resources"])

    async def schema(self, resource: Resource) -> Manifest | None:
        """The schema by which the API server judges these objects; None where it does not publish it (yet)."""
        try:
            found = await self._request("get", _DISCOVERY, f"/openapi/v3/apis/{resource.api_version}")
        except (NotFound, Forbidden):
            return None
        wanted = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        schemas: dict[str, Manifest] = found["components"]["schemas"]
        return next((s for s in schemas.values() if wanted in s.get("x-kubernetes-group-version-kind", ())), None)

    async def review_access(self, review: Manifest) -> Manifest:
        """What we may do: a SelfSubjectAccessReview, which stores nothing and which everyone may create."""
        reviews = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview")
        return await self._request("create", reviews, reviews.path(), body=review, guard=allow)

    async def _request(
        self,
        verb: str,
        resource: Resource,
        path: str,
        params: dict[str, str] | None = None,
        body: Manifest | None = None,
        guard: Guard | None = None,
    ) -> Manifest:
        data = None if body is None else _GuardedBody(body, guard or self._guard)
        async with self._turns:
            begun = time.monotonic()
            code = 0
            try:
                async with self._open(_METHODS[verb], path, params, data, patch=verb == "patch") as response:
                    code = response.status
                    if code >= 400:
                        raise await _error(response)
                    decoder = decode_list if verb == "list" else decode
                    answer: Manifest = decoder(await response.read(), resource)
                    return answer
            except (aiohttp.ClientError, TimeoutError) as error:
                code = 0
                raise _unreachable(error) from error
            finally:
                self._observe(verb, resource.plural, code, time.monotonic() - begun)

    def _open(
        self,
        method: str,
        path: str,
        params: dict[str, str] | None = None,
        data: aiohttp.BytesPayload | None = None,
        *,
        patch: bool = False,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> Any:
        if self._session is None:
            raise RuntimeError("the client is used outside of its `async with` block")
        headers = {"Content-Type": "application/merge-patch+json" if patch else "application/json"}
        authorization = self._connection.authorization()
        if authorization:
            headers["Authorization"] = authorization
        return self._session.request(
            method,
            self._connection.server + path,
            params=params,
            headers=headers,
            data=data,
            timeout=timeout if timeout is not None else self._timeout,
        )


class _GuardedBody(aiohttp.BytesPayload):
    """A write's body. aiohttp keeps the headers until it writes the body: here, after every wait for a connection."""

    def __init__(self, body: Manifest, guard: Guard) -> None:
        super().__init__(to_json(body), content_type="application/json")
        self._guard = guard

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Nothing is awaited between the guard and the socket's write."""
        self._guard()
        await super().write_with_length(writer, content_length)


_DISCOVERY = Resource("", "", "discovery", "APIResourceList")
"""How metrics name it."""
_METHODS = {"get": "GET", "list": "GET", "create": "POST", "delete": "DELETE", "patch": "PATCH", "update": "PUT"}


def _unreachable(error: Exception) -> Unreachable:
    what = "no answer in time" if isinstance(error, asyncio.TimeoutError) else str(error) or type(error).__name__
    return Unreachable(0, "Unreachable", f"the API server does not answer: {what}")


async def _error(response: aiohttp.ClientResponse) -> ApiError:
    """The typed error of an answer that is not a success; not every proxy on the way answers with a `Status`."""
    text = (await response.read()).decode(errors="replace")
    retry_after = response.headers.get("Retry-After", "")
    try:
        status = from_json(text)
    except ValueError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        status = {"reason": response.reason, "message": text[:500].strip()}
    return error_from_status(status, response.status, float(retry_after) if retry_after.isdigit() else None)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length: an object of some hundred KiB is one line, and `readline` has a limit."""
    pending: list[bytes] = []
    async for chunk in stream.iter_any():
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            yield b"".join([*pending, piece])
            pending.clear()
        if rest:
            pending.append(rest)
