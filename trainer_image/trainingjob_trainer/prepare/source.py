"""Read raw data: objects of a URI, and the records in them, streamed.

JSONL, CSV and text may be compressed (`.gz`, `.zst`). Whatever is wrong with an object is a `DataError` that names it.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import IO, Any, cast

from pydantic_core import from_json

from trainingjob_trainer.config import Source, Storage
from trainingjob_trainer.errors import DataError, UserError
from trainingjob_trainer.storage import NotFound, PreconditionFailed, Store, open_store

WILDCARDS = "*?["
BUFFER = 8 * 2**20  # bytes a ranged read
PARQUET_ROWS = 256
ENCODING = "utf-8-sig"  # with or without the mark that Windows puts first
LONGEST_FIELD = 64 * 2**20  # characters of CSV: behind a quote that nobody closes comes all the rest
MOST_NAMES = 10  # of fields, in an error
LEAVE_ALONE = "Let nothing write there while data is prepared, and apply the job again."


@dataclass(frozen=True)
class RawObject:
    """One object of raw data, as it was listed: `key` below `root`; of a mixture also the place of its source."""

    root: str
    key: str
    size: int
    etag: str
    source: int = 0

    @property
    def uri(self) -> str:
        return f"{self.root.rstrip('/')}/{self.key}"


def list_objects(uri: str, storage: Storage, source: int = 0) -> list[RawObject]:
    """The objects that a URI names, in the order of their keys: one object, all below a prefix, or a glob's.

    A wildcard stays within its folder. Raises `DataError` when there is none.
    """
    literal = uri[: min((uri.find(c) for c in WILDCARDS if c in uri), default=len(uri))]
    root, slash, start = literal.rpartition("/")
    store = open_store(root + slash, storage)
    pattern = uri[len(root + slash) :]
    named = [info for info in store.list(start) if not pattern or _matches(info.key, pattern)]
    found = [RawObject(store.root, info.key, info.size, info.etag, source) for info in named if info.size]
    if not found:
        if named:
            raise DataError(f"All {len(named)} object(s) at {uri} are empty.", "Upload the data again.")
        if start and literal == uri and next(store.list(f"{start}/"), None):
            raise DataError(f"{uri} is a folder.", f"Write {uri}/ for all that is below it.")
        raise DataError(f"There is no data at {uri}.", "Correct the URI in spec.data, or put the data there.")
    return found


def _matches(key: str, pattern: str) -> bool:
    parts, patterns = key.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def records(raw: RawObject, source: Source, fields: list[str], storage: Storage) -> Iterator[dict[str, Any]]:
    """The records of an object, each with at least `fields`; a text file is one record with `fields[0]`.

    Raises `DataError`; `UserError` when a field is not there, naming those that are.
    """
    with _naming(raw):
        file = cast(IO[bytes], io.BufferedReader(_RangedFile(open_store(raw.root, storage), raw), BUFFER))
        if source.format == "parquet":
            yield from _parquet(file, raw, fields)
        elif source.format == "text":
            yield {fields[0]: _decompressed(file, raw.key).read().decode(ENCODING)}
        elif source.format == "csv":
            yield from _csv(io.TextIOWrapper(_decompressed(file, raw.key), ENCODING, newline=""), raw, fields)
        else:
            yield from _jsonl(io.TextIOWrapper(_decompressed(file, raw.key), ENCODING), raw, fields)


def _jsonl(lines: io.TextIOWrapper, raw: RawObject, fields: list[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = from_json(line)  # Python's own gives halves of characters, which are no text, and ends at brackets
        except ValueError as error:
            raise DataError(
                f"{raw.uri}, line {number} is not JSON: {str(error).replace('line 1 ', '')}.",
                "Correct the line, or the format.",
            ) from None
        if not isinstance(record, dict):
            raise DataError(f"{raw.uri}, line {number} is not a JSON object.", "Write one object a line.")
        _require(fields, list(record), f"{raw.uri}, line {number}")
        yield record


def _csv(lines: io.TextIOWrapper, raw: RawObject, fields: list[str]) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(LONGEST_FIELD)  # of the process; 131,072 by default
    reader = csv.DictReader(lines, strict=True)
    try:
        _require(fields, list(reader.fieldnames or ()), raw.uri)
        for record in reader:
            if None in record or None in record.values():  # more, or fewer, than there are names
                raise csv.Error(f"expected {len(reader.fieldnames or ())} values")
            yield record
    except csv.Error as error:
        raise DataError(
            f"{raw.uri}, line {reader.line_num} is not CSV as its first line says: {error}.", "Correct the line."
        ) from None


def _parquet(file: IO[bytes], raw: RawObject, fields: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        _require(fields, table.schema_arrow.names, raw.uri)
        for batch in table.iter_batches(PARQUET_ROWS, columns=fields):
            yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise DataError(
            f"{raw.uri} is not readable as Parquet: {str(error).rstrip('.')}.", "Correct the object or the format."
        ) from None


def _require(fields: list[str], present: list[str], where: str) -> None:
    for field in fields:
        if field not in present:
            names = [repr(name if len(name) < 40 else f"{name[:39]}...") for name in present[:MOST_NAMES]]
            more = f" and {len(present) - MOST_NAMES} more" if len(present) > MOST_NAMES else ""
            raise UserError(
                f"{where} has no field {field!r}; its fields are {', '.join(names)}{more}.",
                "Set spec.data.train.field (or imageField, labelField, features) to one of them.",
            )


def _decompressed(file: IO[bytes], key: str) -> IO[bytes]:
    if key.endswith(".gz"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if key.endswith(".zst"):
        import zstandard

        stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        return cast(IO[bytes], io.BufferedReader(stream))
    return cast(IO[bytes], io.BufferedReader(cast(io.RawIOBase, file)))  # lines are asked for by 8 KiB, past one buffer


@contextmanager
def _naming(raw: RawObject) -> Iterator[None]:
    try:
        yield
    except NotFound as error:
        raise DataError(f"{raw.uri} was removed while it was read.", "Restore the object.") from error
    except PreconditionFailed as error:
        raise DataError(f"{raw.uri} was replaced after it was listed.", LEAVE_ALONE) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{raw.uri} is not UTF-8 text: {error}.", "Convert it to UTF-8, or correct the format."
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{raw.uri} does not decompress: {error}.", "Upload it again.") from error
    except Exception as error:
        if type(error).__name__ == "ZstdError":  # imported only where it is used
            raise DataError(f"{raw.uri} does not decompress: {error}.", "Upload it again.") from error
        raise


class _RangedFile(io.RawIOBase):
    """An object as a seekable file: each read is one ranged read, of the object that was listed."""

    def __init__(self, store: Store, raw: RawObject) -> None:
        self._store, self._raw, self._position = store, raw, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._raw.size}[whence]
        self._position = base + offset
        return self._position

    def readall(self) -> bytes:
        return self.read(max(0, self._raw.size - self._position)) or b""  # Python's own reads 8 KiB at once

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._raw.size)
        if end <= self._position:
            return 0
        into = memoryview(buffer)[: end - self._position]
        count, _ = self._store.read_into(self._raw.key, self._position, into, if_match=self._raw.etag)
        self._position += count
        return count
