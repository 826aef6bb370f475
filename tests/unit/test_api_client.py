"""The thin client's HTTP: against a server in this process that answers as an API server does."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import ssl
from asyncio.selector_events import _SelectorSocketTransport
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from support.kubeconfigs import NO_KUBECONFIGS, unanswered
from support.runs import PATIENCE
from trainingjob_operator.kube.api import (
    POD_GROUPS,
    PODS,
    TRAINING_JOBS,
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unreachable,
    WatchEvent,
)
from trainingjob_operator.kube.client import REQUESTS_AT_ONCE, Client
from trainingjob_operator.kube.connection import ConnectionProblem, connect

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
POD = {"metadata": {"name": "a", "resourceVersion": "5"}}


def kubeconfig(path: Path, server: str, token: str = "t0ken") -> Path:
    clusters = [{"name": "c", "cluster": {"server": server}}]
    users = [{"name": "u", "user": {"token": token}}]
    contexts = [{"name": "x", "context": {"cluster": "c", "user": "u"}}]
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "x", "clusters": clusters, "users": users}
    path.write_text(json.dumps(config | {"contexts": contexts}))
    return path


class Server:
    """Answers every request by `handler` and keeps what it was asked."""

    def __init__(self) -> None:
        self.handler: Handler
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.headers: list[dict[str, str]] = []
        self.seen: list[tuple[str, str, int]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.method, request.path, dict(request.query), json.loads(body) if body else None))
        self.headers.append(dict(request.headers))
        return await self.handler(request)

    def answer(self, *answers: tuple[int, Any]) -> None:
        """Answer with these (status, JSON) in turn."""
        queue = list(answers)

        async def handler(request: web.Request) -> web.Response:
            status, body = queue.pop(0)
            return web.json_response(body, status=status)

        self.handler = handler

    def observe(self, verb: str, resource: str, code: int, seconds: float) -> None:
        self.seen.append((verb, resource, code))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Server, Client]]:
    double = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", double.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with Client(connect(kubeconfig(tmp_path / "config", url)), double.observe, timeout=PATIENCE) as client:
            yield double, client
    finally:
        await runner.cleanup()


async def test_requests_have_the_right_path_precondition_and_credentials(server: tuple[Server, Client]) -> None:
    double, client = server
    double.answer(*[(200, POD)] * 5)
    await client.get(PODS, "ns", "a")
    await client.create(PODS, "ns", POD)
    await client.delete(PODS, "ns", "a", "uid-1")
    await client.merge_patch(PODS, "ns", "a", {"metadata": {"labels": {"x": None}}})
    await client.put_status(TRAINING_JOBS, "ns", "j", {"status": {}})
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "uid-1"}}
    assert double.requests == [
        ("GET", "/api/v1/namespaces/ns/pods/a", {}, None),
        ("POST", "/api/v1/namespaces/ns/pods", {}, POD),
        ("DELETE", "/api/v1/namespaces/ns/pods/a", {}, options),
        ("PATCH", "/api/v1/namespaces/ns/pods/a", {}, {"metadata": {"labels": {"x": None}}}),
        ("PUT", "/apis/trainingjob.io/v1alpha1/namespaces/ns/trainingjobs/j/status", {}, {"status": {}}),
    ]
    assert {headers["Authorization"] for headers in double.headers} == {"Bearer t0ken"}
    assert double.headers[3]["Content-Type"] == "application/merge-patch+json"
    assert [verb for verb, _, _ in double.seen] == ["get", "create", "delete", "patch", "update"]


async def test_a_write_that_waited_for_its_connection_is_checked_when_it_leaves_and_not_before(
    server: tuple[Server, Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    double, _ = server
    double.answer((200, POD))
    may_write = True
    connecting, connected = asyncio.Event(), asyncio.Event()
    connect_really = aiohttp.TCPConnector.connect

    async def slow(*args: Any, **kwargs: Any) -> Any:
        connecting.set()
        await connected.wait()
        return await connect_really(*args, **kwargs)

    def guard() -> None:
        if not may_write:
            raise RuntimeError("not the leader")

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", slow)
    async with Client(connect(tmp_path / "config"), guard=guard, timeout=PATIENCE) as client:
        creating = asyncio.create_task(client.create(PODS, "ns", POD))
        await connecting.wait()
        may_write = False
        connected.set()
        with pytest.raises(Unreachable, match="not the leader"):
            await creating
        assert await client.get(PODS, "ns", "a") == POD
    assert [method for method, *_ in double.requests] == ["GET"]


async def test_nothing_runs_between_the_guard_and_the_socket(
    server: tuple[Server, Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    double, _ = server
    double.answer((200, POD))
    order: list[str] = []
    write_really = _SelectorSocketTransport.write

    def guard() -> None:
        asyncio.get_running_loop().call_soon(order.append, "something else")
        order.append("guard")

    def write(transport: Any, data: bytes) -> None:
        order.append("socket" if data.startswith(b"PUT") else "the server's socket")
        write_really(transport, data)

    monkeypatch.setattr(_SelectorSocketTransport, "write", write)
    async with Client(connect(tmp_path / "config"), guard=guard, timeout=PATIENCE) as client:
        await client.put_status(TRAINING_JOBS, "ns", "j", {"status": {}})
    assert order[:3] == ["guard", "socket", "something else"]


async def test_so_many_requests_are_under_way_at_a_time_and_watches_are_not_counted(
    server: tuple[Server, Client],
) -> None:
    double, client = server
    here, most, let_go = 0, 0, asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal here, most
        here += 1
        most = max(most, here)
        if here == REQUESTS_AT_ONCE:
            # Nothing that is still to come could come now, if it were held back by the requests.
            async for event in client.watch(PODS, "team"):
                assert event.type == "ADDED"
            let_go.set()
        await let_go.wait()
        here -= 1
        return web.json_response(POD)

    async def watched(request: web.Request) -> web.StreamResponse:
        return web.Response(body=json.dumps({"type": "ADDED", "object": POD}).encode() + b"\n")

    async def either(request: web.Request) -> web.StreamResponse:
        return await (watched if "watch" in request.query else handler)(request)

    double.handler = either
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(client.get(PODS, "team", "a") for _ in range(3 * REQUESTS_AT_ONCE)))
    assert most == REQUESTS_AT_ONCE


async def test_a_list_follows_all_pages_and_drops_what_nobody_reads(server: tuple[Server, Client]) -> None:
    double, client = server
    a, b, c = ({"metadata": {"name": name, "managedFields": [{}]}} for name in "abc")
    first = {"metadata": {"resourceVersion": "7", "continue": "more"}, "items": [a, b]}
    last = {"metadata": {"resourceVersion": "7"}, "items": [c]}
    double.answer((200, first), (200, last))
    found = await client.list(PODS, None, "app")
    assert [item["metadata"] for item in found.items] == [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    assert found.resource_version == "7"
    assert [request[1:3] for request in double.requests] == [
        ("/api/v1/pods", {"limit": "250", "labelSelector": "app"}),
        ("/api/v1/pods", {"limit": "250", "labelSelector": "app", "continue": "more"}),
    ]


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (401, "Unauthorized", Unauthorized),
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (409, "Conflict", Conflict),
        (409, "AlreadyExists", AlreadyExists),
        (410, "Expired", Gone),
        (422, "Invalid", Invalid),
        (429, "TooManyRequests", TooManyRequests),
        (500, "InternalError", ApiError),
    ],
)
async def test_refusals_become_typed_errors_with_the_servers_words(
    server: tuple[Server, Client], code: int, reason: str, kind: type[ApiError]
) -> None:
    double, client = server
    double.answer((code, {"kind": "Status", "code": code, "reason": reason, "message": "because"}))
    with pytest.raises(kind, match="because") as caught:
        await client.get(PODS, "ns", "a")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.reason) == (code, reason)
    assert double.seen == [("get", "pods", code)]


async def test_an_answer_of_a_proxy_that_is_no_status_is_an_error_too(server: tuple[Server, Client]) -> None:
    double, client = server

    async def bad_gateway(request: web.Request) -> web.Response:
        return web.Response(status=502, text="<html>upstream is down</html>")

    double.handler = bad_gateway
    with pytest.raises(ApiError, match="upstream is down"):
        await client.get(PODS, "ns", "a")


async def test_a_server_that_does_not_listen_is_unreachable(tmp_path: Path) -> None:
    seen: list[int] = []
    connection = connect(kubeconfig(tmp_path / "config", "http://127.0.0.1:9"))
    async with Client(connection, lambda verb, resource, code, seconds: seen.append(code), timeout=PATIENCE) as client:
        with pytest.raises(Unreachable):
            await client.get(PODS, "ns", "a")
    assert seen == [0]


async def stream(client: Client) -> list[WatchEvent]:
    return [event async for event in client.watch(PODS, "ns", "app", "41")]


async def test_a_watch_yields_events_however_the_stream_is_cut(server: tuple[Server, Client]) -> None:
    double, client = server
    big = {"metadata": {"name": "b", "resourceVersion": "43", "annotations": {"x": "y" * 300_000}}}
    lines = json.dumps({"type": "ADDED", "object": POD}) + "\n" + json.dumps({"type": "MODIFIED", "object": big}) + "\n"

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(lines), 50_001):
            await response.write(lines[start : start + 50_001].encode())
        return response

    double.handler = handler
    assert await stream(client) == [WatchEvent("ADDED", POD), WatchEvent("MODIFIED", big)]
    _, path, query, _ = double.requests[0]
    assert path == "/api/v1/namespaces/ns/pods"
    assert query["resourceVersion"] == "41"
    assert query["allowWatchBookmarks"] == "true"


async def test_an_error_in_the_stream_is_raised(server: tuple[Server, Client]) -> None:
    double, client = server
    status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=json.dumps({"type": "ERROR", "object": status}) + "\n")

    double.handler = handler
    with pytest.raises(Gone, match="too old"):
        await stream(client)


async def test_a_stream_that_breaks_off_is_unreachable_not_an_end(server: tuple[Server, Client]) -> None:
    double, client = server

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type": "ADDED", ')
        assert request.transport is not None
        request.transport.abort()
        return response

    double.handler = handler
    with pytest.raises(Unreachable):
        await stream(client)


def test_a_kubeconfig_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConnectionProblem, match="missing"):
        connect(tmp_path / "missing")
    for text in (*NO_KUBECONFIGS, unanswered(**{"certificate-authority-data": "aGVsbG8="})):
        (tmp_path / "broken").write_bytes(text.encode("latin-1"))
        with pytest.raises(ConnectionProblem, match=r"cannot log in to Kubernetes with .*broken: "):
            connect(tmp_path / "broken")


def test_a_certificate_that_does_not_name_its_issuers_key_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenient = ssl.create_default_context

    def strict(**options: Any) -> ssl.SSLContext:
        """Python's own since 3.13."""
        context = lenient(**options)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    connection = connect(kubeconfig(tmp_path / "config", "https://127.0.0.1:9"))
    for context in (connection.ssl_context(), connection.for_kopf().as_ssl_context()):
        assert not context.verify_flags & ssl.VERIFY_X509_STRICT


def test_kopf_knows_a_log_in_that_was_refused_by_its_token(tmp_path: Path) -> None:
    connection = connect(kubeconfig(tmp_path / "config", "https://127.0.0.1:9"))
    refused = connection.for_kopf()
    assert refused.token
    assert connection.for_kopf() == refused, "it would be tried again and again"
    assert dataclasses.replace(refused, token="new") != refused


async def test_discovery_tells_whether_a_resource_is_served(server: tuple[Server, Client]) -> None:
    double, client = server
    served = {"kind": "APIResourceList", "resources": [{"name": "workloads"}, {"name": "podgroups"}]}
    without = {"kind": "APIResourceList", "resources": [{"name": "workloads"}]}
    missing = {"kind": "Status", "code": 404, "reason": "NotFound"}
    double.answer((200, served), (200, without), (404, missing))
    assert [await client.serves(POD_GROUPS) for _ in range(3)] == [True, False, False]
    assert double.requests[0][:2] == ("GET", "/apis/scheduling.k8s.io/v1beta1")
