"""A thin client of the Kubernetes API: JSON requests, and LIST + WATCH that survives what a watch can meet."""

import asyncio
import base64
import json
import logging
import random
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import yaml

Object = dict[str, Any]  # a Kubernetes object as the API's JSON has it

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"

_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=15)
_WATCH_SECONDS = 300
_LONGEST_BACKOFF = 5.0

log = logging.getLogger(__name__)


class ApiError(Exception):
    """The API server refused a request, with its status code, reason and message."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


# What a request can raise: the server's refusal, or that there was no answer.
RequestErrors = (ApiError, aiohttp.ClientError, TimeoutError, OSError)


class KubeClient:
    """Requests to one API server; an asynchronous context manager."""

    def __init__(self, server: str, context: ssl.SSLContext, token: str | None = None) -> None:
        self.server = server
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._context = context
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def from_kubeconfig(cls, path: Path) -> "KubeClient":
        """The client that the current context of a kubeconfig file describes (certificate or token)."""
        config = yaml.safe_load(path.read_text())
        name = config["current-context"]
        context = next(item["context"] for item in config["contexts"] if item["name"] == name)
        cluster = next(item["cluster"] for item in config["clusters"] if item["name"] == context["cluster"])
        user = next(item["user"] for item in config["users"] if item["name"] == context["user"])
        tls = ssl.create_default_context(cadata=_material(cluster, "certificate-authority", path).decode())
        if "client-certificate" in user or "client-certificate-data" in user:
            with tempfile.NamedTemporaryFile() as file:  # a context loads its own certificate from a file only
                file.write(_material(user, "client-key", path) + b"\n" + _material(user, "client-certificate", path))
                file.flush()
                tls.load_cert_chain(file.name)
        return cls(cluster["server"].rstrip("/"), tls, user.get("token"))

    async def __aenter__(self) -> "KubeClient":
        connector = aiohttp.TCPConnector(ssl=self._context, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, params: dict[str, str] | None = None) -> Object:
        """GET; raises one of RequestErrors, as all requests do."""
        return await self._request("GET", path, params=params)

    async def post(self, path: str, body: Object) -> Object:
        """POST: create."""
        return await self._request("POST", path, body)

    async def put(self, path: str, body: Object) -> Object:
        """PUT: replace."""
        return await self._request("PUT", path, body)

    async def patch(self, path: str, body: Object, kind: str = MERGE_PATCH) -> Object:
        """PATCH with a merge patch or, for built-in kinds, a strategic one."""
        return await self._request("PATCH", path, body, content_type=kind)

    async def delete(self, path: str, body: Object) -> Object:
        """DELETE with DeleteOptions."""
        return await self._request("DELETE", path, body)

    async def _request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        params: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        assert self._session is not None, "the client is used outside its context"
        headers = {"Content-Type": content_type} if body is not None else {}
        data = json.dumps(body).encode() if body is not None else None
        async with self._session.request(
            method, self.server + path, params=params, data=data, headers=headers, timeout=_REQUEST_TIMEOUT
        ) as response:
            raw = await response.read()
            if response.status >= 400:
                raise _error(response.status, raw)
            answer: Object = json.loads(raw)
            return answer

    async def follow(
        self,
        path: str,
        params: dict[str, str],
        replace: Callable[[list[Object]], None],
        change: Callable[[str, Object], None],
    ) -> None:
        """LIST, then WATCH, for ever: `replace(items)` after each LIST, `change(type, object)` for each event."""
        backoff = 0.1
        while True:
            try:
                listed = await self.get(path, params)
                for item in listed["items"]:  # a list's items lack what the list itself says
                    item.setdefault("apiVersion", listed["apiVersion"])
                replace(listed["items"])
                backoff = 0.1
                await self._watch_from(listed["metadata"]["resourceVersion"], path, params, change)
            except RequestErrors as error:
                log.warning("watch of %s interrupted: %s", path, error or type(error).__name__)
                await asyncio.sleep(backoff * random.uniform(0.8, 1.2))
                backoff = min(backoff * 2, _LONGEST_BACKOFF)

    async def _watch_from(
        self, version: str, path: str, params: dict[str, str], change: Callable[[str, Object], None]
    ) -> None:
        """Watch on from `version`, through ends of the stream; returns when only a new LIST helps (410)."""
        while True:
            async for event in self._watch(path, {**params, "resourceVersion": version}):
                item = event["object"]
                if event["type"] == "ERROR":
                    if item.get("code") == 410:
                        return
                    raise ApiError(item.get("code", 500), item.get("reason", ""), item.get("message", ""))
                version = item["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    change(event["type"], item)

    async def _watch(self, path: str, params: dict[str, str]) -> AsyncIterator[Object]:
        assert self._session is not None, "the client is used outside its context"
        seconds = int(_WATCH_SECONDS * random.uniform(1, 1.5))
        query = {**params, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=seconds + 15)
        async with self._session.get(self.server + path, params=query, timeout=timeout) as response:
            if response.status >= 400:
                error = _error(response.status, await response.read())
                if error.code == 410:
                    yield {"type": "ERROR", "object": {"code": 410}}
                    return
                raise error
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)


def _material(section: Object, name: str, kubeconfig: Path) -> bytes:
    """A certificate or key, given in place (`<name>-data`) or as a file relative to the kubeconfig."""
    if f"{name}-data" in section:
        return base64.b64decode(section[f"{name}-data"])
    return kubeconfig.parent.joinpath(section[name]).read_bytes()


def _error(code: int, raw: bytes) -> ApiError:
    try:
        status = json.loads(raw)
        return ApiError(code, status.get("reason", ""), status.get("message", ""))
    except (ValueError, AttributeError):
        return ApiError(code, "", raw[:200].decode(errors="replace"))
