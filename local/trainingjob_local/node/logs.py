"""Container logs: lines of `<RFC 3339 time> <stream> <F|P> <text>` (the CRI format), and how clients read them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

_LONGEST_LINE = 16 * 1024  # longer ones are written in parts, as container runtimes do


@dataclass(frozen=True)
class LogOptions:
    """What of a log a client wants; the query of the kubelet's /containerLogs."""

    follow: bool = False
    timestamps: bool = False
    tail_lines: int | None = None
    limit_bytes: int | None = None
    since: datetime | None = None


def parse_options(query: dict[str, str], now: datetime) -> LogOptions:
    """Options from the request's query; raises ValueError with a message for a bad one."""

    def number(name: str) -> int | None:
        if name not in query:
            return None
        if not query[name].isdecimal():
            raise ValueError(f"{name} must be a non-negative number, not {query[name]!r}")
        return int(query[name])

    since = None
    seconds = number("sinceSeconds")
    if seconds is not None:
        since = now - timedelta(seconds=seconds)
    if "sinceTime" in query:
        since = datetime.fromisoformat(query["sinceTime"].replace(" ", "+"))  # a plus that a client did not escape
    return LogOptions(
        follow=query.get("follow") == "true",
        timestamps=query.get("timestamps") == "true",
        tail_lines=number("tailLines"),
        limit_bytes=number("limitBytes"),
        since=since,
    )


class LogFile:
    """One container run's log: written by the node, read by any number of clients."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("ab", buffering=0)
        self._changed = asyncio.Event()
        self.closed = False

    async def copy(self, reader: asyncio.StreamReader, stream: str) -> None:
        """Write what `reader` gives as the lines of `stream` (stdout, stderr) until its end."""
        rest = b""
        while chunk := await reader.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._append(stream, line, "F")
            if len(rest) >= _LONGEST_LINE:
                self._append(stream, rest, "P")
                rest = b""
            self._notify()
        if rest:
            self._append(stream, rest, "P")
            self._notify()

    def close(self) -> None:
        """The container ended: followers get the end of the file."""
        self.closed = True
        self._file.close()
        self._notify()

    def _append(self, stream: str, text: bytes, tag: str) -> None:
        while len(text) > _LONGEST_LINE:
            self._append(stream, text[:_LONGEST_LINE], "P")
            text = text[_LONGEST_LINE:]
        stamp = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "000Z")
        self._file.write(f"{stamp} {stream} {tag} ".encode() + text + b"\n")

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def stream(self, options: LogOptions) -> AsyncIterator[bytes]:
        """The log as a client gets it; with `follow` until the container has ended."""
        left = options.limit_bytes
        with self.path.open("rb") as file:
            changed = self._changed
            pending = select(_whole_lines(file), options)
            while True:
                for piece in pending:
                    if left is None:
                        yield piece
                        continue
                    yield piece[:left]
                    left -= len(piece)
                    if left <= 0:
                        return
                if not options.follow:
                    return
                if file.tell() == self.path.stat().st_size:
                    if self.closed:
                        return
                    await changed.wait()
                changed = self._changed
                pending = select(_whole_lines(file), LogOptions(timestamps=options.timestamps))

    def tail(self, lines: int, limit: int) -> str:
        """The last lines of the log, at most `limit` bytes: the fallback for a termination message."""
        with self.path.open("rb") as file:
            text = b"".join(select(_whole_lines(file), LogOptions(tail_lines=lines)))
        return text[-limit:].decode(errors="replace")


def select(lines: Iterator[bytes], options: LogOptions) -> Iterator[bytes]:
    """The rendered lines that `since` and `tail_lines` leave."""
    wanted: Iterator[bytes] = (line for line in lines if options.since is None or stamp_of(line) >= options.since)
    if options.tail_lines is not None:
        wanted = iter(deque(wanted, maxlen=options.tail_lines))
    return (render(line, timestamps=options.timestamps) for line in wanted)


def render(line: bytes, *, timestamps: bool) -> bytes:
    """A stored line as a client gets it: the text (with its time), its newline only if the container wrote one."""
    stamp, _, tag, text = line.rstrip(b"\n").split(b" ", 3)
    end = b"\n" if tag == b"F" else b""
    return (stamp + b" " if timestamps else b"") + text + end


def stamp_of(line: bytes) -> datetime:
    """The time of a stored line, to the microsecond."""
    stamp = line.split(b" ", 1)[0].decode()
    return datetime.fromisoformat(stamp[:26] + "+00:00")


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines from where the file stands; one that is not finished is left for the next time."""
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(start)
            return
        yield line
