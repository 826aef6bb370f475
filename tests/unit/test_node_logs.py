"""Container logs: what is stored and what clients get."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainingjob_local.node.logs import LogFile, LogOptions, parse_options, render, select, stamp_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


async def write(log, *chunks, stream="stdout"):
    reader = asyncio.StreamReader()
    for chunk in chunks:
        reader.feed_data(chunk)
    reader.feed_eof()
    await log.copy(reader, stream)


async def read(log, **options):
    return b"".join([piece async for piece in log.stream(LogOptions(**options))])


@given(chunks=st.lists(st.binary(max_size=40), max_size=10))
async def test_what_a_container_writes_is_what_clients_read(tmp_path_factory, chunks):
    log = LogFile(tmp_path_factory.mktemp("log") / "0.log")
    await write(log, *chunks)
    log.close()
    assert await read(log) == b"".join(chunks)


async def test_long_lines_are_stored_in_parts_and_read_as_one(tmp_path):
    log = LogFile(tmp_path / "0.log")
    line = b"x" * 100_000 + b"\n"
    await write(log, line)
    log.close()
    assert await read(log) == line
    assert max(len(stored) for stored in log.path.read_bytes().splitlines()) < 17_000


async def test_a_follower_gets_lines_as_they_come_and_ends_with_the_container(tmp_path):
    log = LogFile(tmp_path / "0.log")
    await write(log, b"one\n")
    pieces = log.stream(LogOptions(follow=True))
    assert await anext(pieces) == b"one\n"
    second = asyncio.ensure_future(anext(pieces))
    await asyncio.sleep(0)
    assert not second.done()
    await write(log, b"two\n", stream="stderr")
    assert await second == b"two\n"
    log.close()
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)


async def test_tail_and_limit_cut(tmp_path):
    log = LogFile(tmp_path / "0.log")
    await write(log, b"one\ntwo\nthree\n")
    log.close()
    assert await read(log, tail_lines=2) == b"two\nthree\n"
    assert await read(log, tail_lines=0) == b""
    assert await read(log, limit_bytes=5) == b"one\nt"
    assert log.tail(1, 3) == "ee\n"


def test_since_leaves_what_is_younger():
    lines = [f"2026-01-02T03:04:0{second}.000000000Z stdout F {second}\n".encode() for second in range(3)]
    options = LogOptions(since=datetime(2026, 1, 2, 3, 4, 1, tzinfo=UTC))
    assert b"".join(select(iter(lines), options)) == b"1\n2\n"
    assert stamp_of(lines[2]) - stamp_of(lines[0]) == timedelta(seconds=2)


def test_timestamps_come_before_the_text():
    line = b"2026-01-02T03:04:05.000000000Z stderr F a b\n"
    assert render(line, timestamps=True) == b"2026-01-02T03:04:05.000000000Z a b\n"


def test_options_of_a_request():
    options = parse_options({"follow": "true", "tailLines": "5", "sinceSeconds": "60"}, NOW)
    assert options == LogOptions(follow=True, tail_lines=5, since=NOW - timedelta(seconds=60))
    since = parse_options({"sinceTime": "2026-01-02T03:04:05Z"}, NOW).since
    assert since == NOW


def test_a_wrong_number_is_refused():
    with pytest.raises(ValueError, match="tailLines"):
        parse_options({"tailLines": "-1"}, NOW)
