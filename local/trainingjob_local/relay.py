"""Relays across the sandbox's border: a port on the host's 127.0.0.1 leads to a port inside.

Unix sockets cross network namespaces where IP does not: outside, `to_socket` takes TCP and hands it to a socket file;
inside, `from_socket` takes it there and hands it to the service. Bytes pass unread, so TLS and signatures hold.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Stream]]

_CHUNK = 1 << 16
_PATH_LIMIT = 107  # of sun_path, unix(7)


async def to_socket(path: Path, port: int) -> asyncio.Server:
    """Listen on 127.0.0.1:`port` (0: any free one) and pass each connection to the unix socket `path`."""
    return await asyncio.start_server(_passer(lambda: asyncio.open_unix_connection(path)), "127.0.0.1", port)


async def from_socket(path: Path, host: str, port: int) -> asyncio.Server:
    """Listen on the unix socket `path` and pass connections to `host`:`port`; ValueError if the path is too long."""
    if len(str(path).encode()) > _PATH_LIMIT:
        raise ValueError(f"{path} is too long for a unix socket; choose a shorter directory (XDG_STATE_HOME)")
    path.unlink(missing_ok=True)
    return await asyncio.start_unix_server(_passer(lambda: asyncio.open_connection(host, port)), path)


def _passer(connect: Connect) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await connect()
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        finally:
            writer.close()
            far_writer.close()

    return serve


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on all that comes, and then that nothing more comes; the other direction may go on."""
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()
