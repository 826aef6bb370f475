"""Objects below one URI, in S3 or in a local directory, with the same semantics.

What the protocols of the run directory rest on: an object appears whole or not at all, `put(if_none_match=True)`
creates it at most once whoever else tries, `put(if_match=etag)` replaces exactly what was read. Errors are
`TrainerError`s.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from .config import Storage
from .errors import StorageError, UserError

TEMPORARY = ".tmp-"
NO_PLACE = "Name another path, whose directories are there or can be made."


class NotFound(StorageError):
    """There is no such object."""


class Unavailable(StorageError):
    """It does not answer, or asks for a pause: the same request may well succeed later."""


class PreconditionFailed(StorageError):
    """The object exists already (`if_none_match`), or is not the one that was read (`if_match`)."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object in a listing: key relative to the store, size in bytes, time of the last change."""

    key: str
    size: int
    etag: str
    modified: datetime


class Store(ABC):
    """Objects below `root`. Keys are relative to it and use `/`. Thread-safe and picklable."""

    def __init__(self, root: str, storage: Storage) -> None:
        self.root = root.rstrip("/")
        self.storage = storage

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.root, self.storage)

    def uri(self, key: str = "") -> str:
        """Absolute URI of `key`."""
        return f"{self.root}/{key}"

    def get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes `[start, end)` of an object (all of it by default); fewer where the object ends earlier.

        Raises `NotFound`.
        """
        return self._read(key, start or 0, end)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The whole object, and the tag that `put(if_match=...)` takes. Raises `NotFound`."""
        return self._read(key, 0, None)

    @abstractmethod
    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Write an object and return its etag. Raises `PreconditionFailed`."""

    @abstractmethod
    def put_file(self, key: str, path: Path) -> None:
        """Write an object from a file, in parts if it is big."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in the order of the keys."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are no error."""

    @abstractmethod
    def abort_uploads(self, prefix: str, is_left: Callable[[str, datetime], bool]) -> None:
        """Drop the objects below `prefix` that were begun and never finished, where `is_left(key, begun)`."""

    @abstractmethod
    def read_into(self, key: str, start: int, into: memoryview, *, if_match: str | None = None) -> tuple[int, str]:
        """Fill `into` with an object's bytes from `start` on, if it still has the etag `if_match`: how many there were,
        fewer where the object ends earlier, and its etag.

        Raises `NotFound` and `PreconditionFailed`.
        """

    @abstractmethod
    def _read(self, key: str, start: int, end: int | None) -> tuple[bytes, str]: ...


def open_store(uri: str, storage: Storage) -> Store:
    """The store below `uri` (`s3://bucket/prefix` or `/path`). Talks to nobody yet."""
    if uri.startswith("s3://"):
        from .storage_s3 import S3Store  # boto3 takes 0.3 s to import

        return S3Store(uri, storage)
    return LocalStore(uri, storage)


class LocalStore(Store):
    """A directory. Objects are written aside, then linked or renamed into place: no reader sees half of one.

    They are on the disk, with their names, when a `put` returns: no power cut leaves a COMMIT without what it names.
    """

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        path = self._path(key)
        with self._errors(key):
            _make(path.parent)
            temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if if_none_match:
                    os.link(temporary, path)
                elif if_match is not None:
                    self._replace(temporary, path, if_match)
                else:
                    temporary.replace(path)
                _sync(path.parent)
                return _etag(path.stat())
            except FileExistsError:
                raise PreconditionFailed(f"{self.uri(key)} exists already.") from None
            finally:
                temporary.unlink(missing_ok=True)

    def put_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        with self._errors(key):
            _make(target.parent)
            temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
            try:
                shutil.copyfile(path, temporary)
                _sync(temporary)
                temporary.replace(target)
                _sync(target.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._errors(prefix):
            yield from sorted(self._walk(prefix), key=lambda found: found.key)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            with self._errors(key):
                self._path(key).unlink(missing_ok=True)

    def abort_uploads(self, prefix: str, is_left: Callable[[str, datetime], bool]) -> None:
        with self._errors(prefix):
            for found in self._walk(prefix, unfinished=True):
                if is_left(found.key, found.modified):
                    self.delete([found.key])

    def read_into(self, key: str, start: int, into: memoryview, *, if_match: str | None = None) -> tuple[int, str]:
        with self._errors(key), self._path(key).open("rb") as file:
            etag = _etag(os.fstat(file.fileno()))
            if if_match not in (None, etag):
                raise PreconditionFailed(f"{self.uri(key)} was changed by somebody else.")
            file.seek(start)
            return file.readinto(into), etag

    def _read(self, key: str, start: int, end: int | None) -> tuple[bytes, str]:
        with self._errors(key), self._path(key).open("rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else max(0, end - start)), _etag(os.fstat(file.fileno()))

    def _walk(self, prefix: str, *, unfinished: bool = False) -> Iterator[ObjectInfo]:
        top = self._path(prefix.rpartition("/")[0])
        for directory, folders, names in os.walk(top, onerror=_unless_gone):
            below = Path(directory).relative_to(self._path(""))
            folders[:] = [name for name in folders if (below / name).as_posix().startswith(prefix)]
            for name in names:
                path, key = Path(directory, name), (below / name).as_posix()
                if name.startswith(TEMPORARY) is not unfinished or not key.startswith(prefix):
                    continue
                try:
                    stat = path.stat()
                except FileNotFoundError:  # deleted meanwhile
                    continue
                yield ObjectInfo(key, stat.st_size, _etag(stat), datetime.fromtimestamp(stat.st_mtime, UTC))

    def _replace(self, temporary: Path, path: Path, etag: str) -> None:
        lock = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                current = _etag(path.stat())
            except FileNotFoundError:
                current = ""
            if current != etag:
                raise PreconditionFailed(f"{path} was changed by somebody else.")
            temporary.replace(path)
        finally:
            os.close(lock)

    def _path(self, key: str) -> Path:
        if key.startswith("/") or ".." in PurePosixPath(key).parts:
            raise UserError(f"{key!r} is not a key below {self.root}.", "Use relative names without '..'.")
        return Path(self.root or "/", key)

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _raise_local(error, self.uri(key))


def _make(directory: Path) -> None:
    """Have a directory, and those above it."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # in /proc, or behind a link that leads nowhere
        raise UserError(f"{directory} cannot be made: {error.strerror}.", NO_PLACE) from error
    for path in reversed(missing):
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Have a file's bytes, or a directory's names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a file system that knows no such thing for directories
            raise
    finally:
        os.close(descriptor)


def _unless_gone(error: OSError) -> None:
    """What cannot be listed is not empty; what is no directory any more, or never was, is."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _etag(stat: os.stat_result) -> str:
    return f"{stat.st_ino:x}-{stat.st_mtime_ns:x}-{stat.st_size:x}"


def _raise_local(error: OSError, uri: str) -> NoReturn:
    if isinstance(error, FileNotFoundError):
        raise NotFound(f"{uri} does not exist.") from None
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        raise UserError(
            f"{uri} may not be read or written by user {os.getuid()}: {error.strerror}.",
            "Let this user read and write there (in a pod: a volume with fsGroup), or use s3://.",
        ) from error
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG):
        raise UserError(f"{uri} can be no file: {error.strerror}.", NO_PLACE) from error
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise StorageError(f"No space is left for {uri}.", "Free space or raise the quota of the volume.") from error
    raise StorageError(f"{uri}: {error.strerror or error}.", "Look at the volume's health.") from error
