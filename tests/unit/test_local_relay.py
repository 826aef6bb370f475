"""Relays pass bytes unread, both ways, and close with either side."""

import asyncio
from pathlib import Path

import pytest
from support.runs import PATIENCE
from trainingjob_local import relay


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A service that answers what it got, in capitals, once the other side has said all."""
    writer.write((await reader.read()).upper())
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def relayed(path: Path) -> tuple[list[asyncio.Server], int]:
    """The service behind both halves of a relay; the servers, and the port to reach it at."""
    service = await asyncio.start_server(shout, "127.0.0.1", 0)
    inner = await relay.from_socket(path, "127.0.0.1", service.sockets[0].getsockname()[1])
    outer = await relay.to_socket(path, 0)
    return [service, inner, outer], outer.sockets[0].getsockname()[1]


async def test_a_half_closed_connection_still_gets_its_whole_answer(tmp_path: Path) -> None:
    servers, port = await relayed(tmp_path / "service.sock")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = b"bytes" * 100_000
    writer.write(sent)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), PATIENCE) == sent.upper()
    writer.close()
    await writer.wait_closed()
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_a_service_that_is_not_there_closes_the_connection(tmp_path: Path) -> None:
    outer = await relay.to_socket(tmp_path / "nobody.sock", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", outer.sockets[0].getsockname()[1])
    assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
    writer.close()
    await writer.wait_closed()
    outer.close()
    await outer.wait_closed()


async def test_a_path_too_long_for_a_socket_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="XDG_STATE_HOME"):
        await relay.from_socket(tmp_path / ("long" * 30), "127.0.0.1", 1)
