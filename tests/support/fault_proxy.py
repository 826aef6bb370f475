"""A proxy between one operator and the API server that lets requests and watches go wrong, by rule.

    async with FaultProxy(api, directory) as proxy:
        Operator(proxy.kubeconfig, ...)
        proxy.rules.append(Rule(lose_the_answer, verb="create", path="/pods", skip=1))

A fault is a coroutine that answers one exchange in its own way; `watching` makes one of a change to a watch's lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import ClientError, web

from support.kube_http import FOREVER, KubeHttp, lines

WRITES = ("create", "update", "patch", "delete")
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_PASSED_ON = ("Accept", "Content-Type", "User-Agent")
_NAMED = re.compile(r"/namespaces/[^/]+/[a-z]+/[^/]+")

Lines = AsyncIterator[bytes]


class HangUp(Exception):
    """The connection to the operator is to be broken off."""


@dataclass
class Answer:
    """What the API server said."""

    code: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(eq=False)
class Exchange:
    """One request of the operator."""

    proxy: FaultProxy
    request: web.Request
    verb: str
    path: str
    agent: str
    body: bytes

    def __str__(self) -> str:
        return f"{self.verb} {self.path}"

    @property
    def is_write(self) -> bool:
        """Whether it changes what is stored (questions about one's rights do not)."""
        return self.verb in WRITES and "/selfsubject" not in self.path

    async def forward(self, query: dict[str, str] | None = None) -> Answer:
        """Ask the API server; whoever asked may go away meanwhile."""
        return await asyncio.shield(asyncio.ensure_future(self._forward(query)))

    async def counted(self, source: Lines) -> Lines:
        """The lines of a watch."""
        resource = self.request.path.rpartition("/")[2]
        async for line in source:
            self.proxy.events[resource] += 1
            yield line

    def hang_up(self) -> None:
        """Break the connection off."""
        if self.request.transport is not None:
            self.request.transport.abort()

    async def _forward(self, query: dict[str, str] | None) -> Answer:
        async with self.open(query) as response:
            answer = Answer(response.status, await response.read())
        if self.is_write:
            self.proxy.applied.append(self)
        return answer

    def open(self, query: dict[str, str] | None = None) -> Any:
        """The API server's response, not read yet."""
        headers = {name: self.request.headers[name] for name in _PASSED_ON if name in self.request.headers}
        return self.proxy.api.open(
            self.request.method,
            self.request.path,
            params={**self.request.query, **(query or {})},
            headers=headers,
            data=self.body or None,
            timeout=FOREVER,
        )


Fault = Callable[[Exchange], Awaitable[web.StreamResponse]]


@dataclass
class Rule:
    """When a fault happens.

    verb: get, list, watch, create, update, patch, delete, `write` (any of the last four); empty: any. path: a regular
    expression found in path and query. agent, body: part of the User-Agent, of the request's body. skip: fitting
    requests that pass before; times: those that the fault then hits.
    """

    fault: Fault
    verb: str = ""
    path: str = ""
    agent: str = ""
    body: str = ""
    skip: int = 0
    times: float = 1
    hits: int = field(default=0, init=False)

    def takes(self, exchange: Exchange) -> bool:
        """Whether this request is hit; counts."""
        fits = (
            (self.verb in ("", exchange.verb) or (self.verb == "write" and exchange.is_write))
            and re.search(self.path, exchange.path) is not None
            and self.agent in exchange.agent
            and self.body.encode() in exchange.body
        )
        if not fits or self.hits >= self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.hits += 1
        return True


class FaultProxy:
    """Listens on a port of its own. The first rule that takes a request answers it; without one it passes.

    seen: every request that came, in order; applied: the writes that reached the API server; events: how many lines of
    watches came from it, by resource.
    """

    def __init__(self, api: KubeHttp, directory: Path) -> None:
        self.api = api
        self.rules: list[Rule] = []
        self.seen: list[Exchange] = []
        self.applied: list[Exchange] = []
        self.events: Counter[str] = Counter()
        self.kubeconfig = directory / "proxy.kubeconfig"
        self._streams: set[Exchange] = set()

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True, shutdown_timeout=0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        cluster = {"name": "proxy", "cluster": {"server": f"http://{host}:{port}"}}
        context = {"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "proxy"}
        lists = {"clusters": [cluster], "contexts": [context], "users": [{"name": "proxy", "user": {}}]}
        self.kubeconfig.write_text(json.dumps({**config, **lists}))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    def writes(self) -> list[Exchange]:
        """The writes that were asked for, whether they passed or not."""
        return [exchange for exchange in self.seen if exchange.is_write]

    def hang_up(self) -> None:
        """Break all watches off."""
        for exchange in self._streams:
            exchange.hang_up()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        exchange = Exchange(
            self,
            request,
            _verb(request),
            request.path_qs,
            request.headers.get("User-Agent", ""),
            await request.read(),
        )
        self.seen.append(exchange)
        if exchange.verb == "watch":
            self._streams.add(exchange)
        fault = next((rule.fault for rule in self.rules if rule.takes(exchange)), pass_on)
        try:
            return await fault(exchange)
        except (HangUp, ClientError):
            exchange.hang_up()
            return web.Response()
        finally:
            self._streams.discard(exchange)


def _verb(request: web.Request) -> str:
    if request.method != "GET":
        return _VERBS[request.method]
    if request.query.get("watch") == "true":
        return "watch"
    return "get" if _NAMED.search(request.path) else "list"


# Faults of one request


async def pass_on(exchange: Exchange) -> web.StreamResponse:
    """No fault."""
    if exchange.verb == "watch":
        return await watching(_unchanged)(exchange)
    return reply(await exchange.forward())


async def drop(exchange: Exchange) -> web.StreamResponse:
    """The request is lost on its way."""
    raise HangUp


async def lose_the_answer(exchange: Exchange) -> web.StreamResponse:
    """The API server does it; the operator never hears of that."""
    await exchange.forward()
    raise HangUp


async def duplicate(exchange: Exchange) -> web.StreamResponse:
    """The request arrives twice; the second answer is the one that is heard."""
    await exchange.forward()
    return reply(await exchange.forward())


def delay(seconds: float) -> Fault:
    """The request takes its time."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await pass_on(exchange)

    return fault


def arrives_with(gate: asyncio.Event) -> Fault:
    """The request stays on its way until the gate opens, and arrives then, whoever sent it."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        async def arrive() -> Answer:
            await gate.wait()
            return await exchange.forward()

        return reply(await asyncio.shield(asyncio.ensure_future(arrive())))

    return fault


def refuse(code: int, reason: str, **headers: str) -> Fault:
    """The API server (or what stands before it) says no and does nothing."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        return web.json_response(status_object(code, reason), status=code, headers=headers)

    return fault


def then(act: Callable[[], None]) -> Fault:
    """The API server does it, then something happens before the answer is on its way."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        act()
        return reply(answer)

    return fault


def after(act: Callable[[], Awaitable[None]]) -> Fault:
    """Something happens first, then the request is passed on."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        await act()
        return await pass_on(exchange)

    return fault


def replay(answer: Any) -> Fault:
    """An old answer is given once more."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        return web.json_response(answer)

    return fault


def paged(size: int) -> Fault:
    """A LIST comes in smaller pages than it was asked for."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        return reply(await exchange.forward({"limit": str(size)}))

    return fault


def reply(answer: Answer) -> web.Response:
    return web.Response(status=answer.code, body=answer.body, content_type="application/json")


def status_object(code: int, reason: str) -> dict[str, Any]:
    """The API server's way to say no."""
    message = f"{reason}: the test wants it so"
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


# Faults of a watch


def cut_after(seconds: float) -> Fault:
    """The connection breaks a while after the API server has answered."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        async def change(source: Lines) -> Lines:
            asyncio.get_running_loop().call_later(seconds, exchange.hang_up)
            async for line in source:
                yield line

        return await watching(change)(exchange)

    return fault


def watching(change: Callable[[Lines], Lines]) -> Fault:
    """A watch whose lines go through `change`; `HangUp` in it breaks the connection off."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        async with exchange.open() as upstream:
            if upstream.status != 200:
                return reply(Answer(upstream.status, await upstream.read()))
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            await response.prepare(exchange.request)
            source = exchange.counted(lines(upstream.content))
            async with contextlib.aclosing(change(source)) as changed:  # type: ignore[type-var]
                async for line in changed:
                    await response.write(line)
        return response

    return fault


async def _unchanged(source: Lines) -> Lines:
    async for line in source:
        yield line


def waits_for(gate: asyncio.Event) -> Callable[[Lines], Lines]:
    """Every event waits until the gate opens: a watch that hangs."""

    async def change(source: Lines) -> Lines:
        async for line in source:
            await gate.wait()
            yield line

    return change


def swallows(nth: int) -> Callable[[Lines], Lines]:
    """The nth event (from 0, over all watches that this is used for) is lost."""
    number = itertools.count()

    async def change(source: Lines) -> Lines:
        async for line in source:
            if next(number) != nth:
                yield line

    return change


def expires_at(kind: str) -> Callable[[Lines], Lines]:
    """The first event of a kind is lost, and the API server says in the stream that the watch is too old."""
    armed = True

    async def change(source: Lines) -> Lines:
        nonlocal armed
        async for line in source:
            if armed and json.loads(line)["type"] == kind:
                armed = False
                yield _error_line(410, "Expired")
                return
            yield line

    return change


def cut_in_half_a_line(clean: bool) -> Callable[[Lines], Lines]:
    """The first event ends in its middle; clean: with a proper end of the response, else by a broken connection."""

    async def change(source: Lines) -> Lines:
        async for line in source:
            yield line[: len(line) // 2]
            if clean:
                return
            raise HangUp

    return change


def error_event(code: int, reason: str, events: int = 0) -> Callable[[Lines], Lines]:
    """After so many events the API server says in the stream that it cannot go on."""

    async def change(source: Lines) -> Lines:
        for _ in range(events):
            yield await anext(source)
        yield _error_line(code, reason)

    return change


def _error_line(code: int, reason: str) -> bytes:
    return json.dumps({"type": "ERROR", "object": status_object(code, reason)}).encode() + b"\n"
