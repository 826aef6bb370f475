"""The API server over plain aiohttp, for tests that wait for many things at once."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

Object = dict[str, Any]

JOBS = "/apis/trainingjob.io/v1alpha1/namespaces/{}/trainingjobs"
PODS = "/api/v1/namespaces/{}/pods"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
FOREVER = aiohttp.ClientTimeout(total=None)


class Refused(Exception):
    """The API server's answer was no success; its code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class KubeHttp:
    """Requests as administrator."""

    def __init__(self, server: str, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    @classmethod
    @asynccontextmanager
    async def connect(cls, kubeconfig: Path) -> AsyncIterator[KubeHttp]:
        """Log in with the client certificate of a local cluster's kubeconfig."""
        config = json.loads(kubeconfig.read_text())
        (cluster,), (user,) = config["clusters"], config["users"]
        context = ssl.create_default_context(cafile=cluster["cluster"]["certificate-authority"])
        context.load_cert_chain(user["user"]["client-certificate"], user["user"]["client-key"])
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=0)) as session:
            yield cls(cluster["cluster"]["server"], session)

    async def request(self, method: str, path: str, body: Object | None = None, content_type: str = "") -> Object:
        """The answer's JSON; `Refused` unless it is a success."""
        headers = {"Content-Type": content_type or "application/json"}
        data = None if body is None else json.dumps(body)
        async with self.open(method, path, data=data, headers=headers) as response:
            answer: Object = await response.json()
            if response.status >= 400:
                raise Refused(response.status, answer.get("message", ""))
            return answer

    async def get(self, path: str) -> Object:
        return await self.request("GET", path)

    async def create(self, path: str, body: Object) -> Object:
        return await self.request("POST", path, body)

    async def delete(self, path: str, **options: Any) -> Object:
        return await self.request("DELETE", path, options or None)

    async def patch(self, path: str, body: Object, content_type: str = MERGE_PATCH) -> Object:
        return await self.request("PATCH", path, body, content_type)

    async def watch(self, path: str, version: str) -> AsyncIterator[Object]:
        """Events after a resourceVersion, until the reader has enough."""
        query = f"watch=true&timeoutSeconds=3000&resourceVersion={version}"
        async with self.open("GET", f"{path}?{query}", timeout=FOREVER) as response:
            async for line in lines(response.content):
                yield json.loads(line)

    @asynccontextmanager
    async def open(self, method: str, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, not read yet. A connection that is left before its end is broken off: TLS would wait for the
        server's farewell, and if the event loop ends first, its socket stays open."""
        async with self.session.request(method, self.server + path, **options) as response:
            try:
                yield response
            finally:
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()


async def lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length, each with its end; `readline` has a limit."""
    pending = b""
    async for chunk in stream.iter_any():
        *complete, pending = (pending + chunk).split(b"\n")
        for line in complete:
            yield line + b"\n"
