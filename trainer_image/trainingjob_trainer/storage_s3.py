"""A store in S3 or an S3-compatible server, over boto3. No exception of boto3 leaves this module."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore import exceptions as boto
from botocore.config import Config

from .config import Storage
from .errors import StorageError, TrainerError, UserError
from .storage import NotFound, ObjectInfo, PreconditionFailed, Store, Unavailable
from .storage_ranges import Ranges

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

USER_AGENT = f"trainingjob boto3/{boto3.__version__}"
CONNECT_TIMEOUT = 5  # seconds
READ_TIMEOUT = 60
ATTEMPTS = 5
READ = 2**20  # bytes of a body at once: as many are copied, so they should still be in the processor's cache
PART = 32 * 2**20  # bytes; at most 10,000 parts: objects up to 312 GiB

_WRONG_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthorizationHeaderMalformed"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled"}
_FULL = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "507"}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_BUSY = {429, 500, 502, 503, 504}  # HTTP status


class S3Store(Store):
    """Objects below `s3://bucket/prefix`."""

    def __init__(self, root: str, storage: Storage) -> None:
        super().__init__(root, storage)
        self.bucket, _, prefix = self.root.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self._ranges: Ranges | None = None

    @property
    def client(self) -> S3Client:
        """The boto3 client, made at first use."""
        with self._lock:
            if self._client is None:
                self._client = _connect(self.storage)
            return self._client

    @property
    def ranges(self) -> Ranges:
        """What most ranges are read by, made at first use."""
        if self._ranges is None:
            self._ranges = Ranges(self.client, self.bucket, CONNECT_TIMEOUT, READ_TIMEOUT)
        return self._ranges

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        conditions: dict[str, Any] = {"IfNoneMatch": "*"} if if_none_match else {}
        if if_match is not None:
            conditions["IfMatch"] = if_match
        if not conditions and len(data) > PART:
            with self._errors(key):
                self.client.upload_fileobj(BytesIO(data), self.bucket, self._prefix + key, Config=_transfer())
            return ""
        return self._put_object(key, data, conditions)

    def put_file(self, key: str, path: Path) -> None:
        with self._errors(key):
            self.client.upload_file(str(path), self.bucket, self._prefix + key, Config=_transfer())

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._errors(prefix):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self._prefix)
                    yield ObjectInfo(key, item["Size"], item["ETag"], item["LastModified"])

    def delete(self, keys: Iterable[str]) -> None:
        every = list(keys)
        for some in (every[i : i + 1000] for i in range(0, len(every), 1000)):
            with self._errors(some[0]):
                answer = self.client.delete_objects(
                    Bucket=self.bucket,
                    Delete={"Objects": [{"Key": self._prefix + key} for key in some], "Quiet": True},
                )
            for failed in answer.get("Errors", []):
                if failed.get("Code") not in _MISSING:
                    raise StorageError(f"s3://{self.bucket}/{failed.get('Key')}: {failed.get('Message')}.")

    def abort_uploads(self, prefix: str, is_left: Callable[[str, datetime], bool]) -> None:
        with self._errors(prefix):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=self._prefix + prefix
            )
            for upload in (upload for page in pages for upload in page.get("Uploads", [])):
                if is_left(upload["Key"].removeprefix(self._prefix), upload["Initiated"]):
                    self._abort(upload["Key"], upload["UploadId"])

    def _abort(self, key: str, upload: str) -> None:
        try:
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)
        except boto.ClientError as error:
            if _code(error) != "NoSuchUpload":  # it has ended meanwhile
                raise

    def read_into(self, key: str, start: int, into: memoryview, *, if_match: str | None = None) -> tuple[int, str]:
        etag = self.ranges.read_into(self._prefix + key, start, into, if_match)
        if etag is not None:
            return len(into), etag
        extra = {} if if_match is None else {"IfMatch": if_match}
        return self._get(key, start, start + len(into), lambda body: _fill(into, body), extra) or (0, "")

    def _read(self, key: str, start: int, end: int | None) -> tuple[bytes, str]:
        return self._get(key, start, end, lambda body: body.read(), {}) or (b"", "")

    def _get(
        self, key: str, start: int, end: int | None, take: Callable[[StreamingBody], T], extra: dict[str, Any]
    ) -> tuple[T, str] | None:
        """What `take` makes of bytes `[start, end)`, and the object's etag; nothing where there are none."""
        if end is not None and end <= start:
            return None
        if start or end is not None:
            extra["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        for attempt in range(1, ATTEMPTS + 1):
            with self._errors(key):
                try:
                    answer = self.client.get_object(Bucket=self.bucket, Key=self._prefix + key, **extra)
                    return take(answer["Body"]), answer["ETag"]
                except (boto.ResponseStreamingError, boto.ReadTimeoutError, boto.IncompleteReadError):
                    if attempt == ATTEMPTS:  # botocore retries requests, but not the reading of a body
                        raise
                    time.sleep(random.uniform(0, 0.1 * 2**attempt))  # full jitter, as botocore has it
                except boto.ClientError as error:
                    if _code(error) == "InvalidRange":
                        return None
                    raise
        raise AssertionError("unreachable")

    def _put_object(self, key: str, data: bytes, conditions: dict[str, Any]) -> str:
        for attempt in range(1, ATTEMPTS + 1):
            with self._errors(key):
                try:
                    answer = self.client.put_object(Bucket=self.bucket, Key=self._prefix + key, Body=data, **conditions)
                    return answer["ETag"]
                except boto.ClientError as error:
                    if _code(error) == "ConditionalRequestConflict" and attempt < ATTEMPTS:
                        time.sleep(0.1 * attempt)  # S3 asks to try again while another conditional write is under way
                        continue
                    if not _is_precondition(error) or not error.response["ResponseMetadata"].get("RetryAttempts"):
                        raise
            # A retried write may have met its own first try, whose answer was lost.
            current, etag = self.get_with_etag(key)
            if current == data:
                return etag
            raise PreconditionFailed(f"{self.uri(key)} exists already or was changed by somebody else.")
        raise AssertionError("unreachable")

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except S3UploadFailedError as error:
            _raise_s3(error.__context__ or error, self, key)
        except (boto.BotoCoreError, boto.ClientError) as error:
            _raise_s3(error, self, key)


def _connect(storage: Storage) -> S3Client:
    own = storage.endpoint_url is not None
    config = Config(
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        retries={"mode": "standard", "max_attempts": ATTEMPTS},  # exponential backoff with jitter
        max_pool_connections=32,
        user_agent=USER_AGENT,  # botocore puts its own together anew for each request: an eighth of its CPU
        s3={"addressing_style": "path" if own else "auto"},
        signature_version="s3v4",  # also of URLs, which boto3 signs in the way before by itself
        # S3-compatible servers may not know the trailing checksums that boto3 adds by default.
        request_checksum_calculation="when_required" if own else "when_supported",
        response_checksum_validation="when_required" if own else "when_supported",
    )
    region = storage.region or ("us-east-1" if own else None)
    try:
        return boto3.Session().client("s3", endpoint_url=storage.endpoint_url, region_name=region, config=config)
    except (ValueError, boto.BotoCoreError) as error:
        raise UserError(f"The S3 client cannot be made: {error}.", "Correct spec.storage.") from error


def _fill(into: memoryview, body: StreamingBody) -> int:
    """Read a body into memory that is there already: new memory costs half as much CPU again as the read."""
    filled = 0
    while filled < len(into):
        count: int = body.readinto(into[filled : filled + READ])  # type: ignore[arg-type] # its stub is wrong
        if not count:
            break
        filled += count
    return filled


def _transfer() -> TransferConfig:
    return TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)


def _code(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _is_precondition(error: boto.ClientError) -> bool:
    return _code(error) in ("PreconditionFailed", "412", "ConditionalRequestConflict")


def _raise_s3(error: BaseException, store: S3Store, key: str) -> NoReturn:
    if isinstance(error, boto.ClientError):
        raise _translate(error, store, key) from error
    endpoint = store.storage.endpoint_url or "Amazon S3"
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        raise UserError(
            f"There are no credentials for {endpoint}.",
            "Name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in spec.storage.credentialsSecret, "
            "or a ServiceAccount that stands for them in spec.storage.serviceAccountName; by hand, set them in the "
            "environment or in a profile.",
        ) from error
    if isinstance(error, boto.NoRegionError):
        raise UserError("No S3 region is set.", "Set spec.storage.region.") from error
    if isinstance(error, boto.SSLError):
        raise StorageError(
            f"TLS with {endpoint} failed: {error}.",
            "Check the certificate of the endpoint and spec.storage.endpointUrl.",
        ) from error
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError | boto.IncompleteReadError):
        raise Unavailable(
            f"{endpoint} cannot be reached: {error}.",
            "Check spec.storage.endpointUrl, and whether a NetworkPolicy or firewall lets the pods through.",
        ) from error
    raise StorageError(
        f"{store.uri(key)}: {type(error).__name__}: {error}.", "Look at the storage's health."
    ) from error


def _translate(error: boto.ClientError, store: S3Store, key: str) -> TrainerError:
    code, uri = _code(error), store.uri(key)
    message = str(error.response.get("Error", {}).get("Message", "")).rstrip(".") or code
    secret = f"{store.storage.credentials_secret or 'that spec.storage names'} (by hand: in the environment or profile)"
    if code == "NoSuchBucket":
        return UserError(f"The bucket {store.bucket} does not exist.", "Create it, or correct the URI's first part.")
    if code in _MISSING:
        return NotFound(f"{uri} does not exist.")
    if _is_precondition(error):
        return PreconditionFailed(f"{uri} exists already or was changed by somebody else.")
    if code in _WRONG_KEY:
        return UserError(f"The storage refuses the access key: {message} ({code}).", f"Correct the Secret {secret}.")
    if code == "ExpiredToken":
        return StorageError(f"The credentials have expired ({message}).", f"Renew the Secret {secret}.")
    if code in _DENIED:
        return UserError(
            f"Access to {uri} is denied: {message} ({code}).",
            f"Check bucket name and permissions (list, get, put, delete) of the credentials in the Secret {secret}.",
        )
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code in _FULL or status == 507:
        return StorageError(f"The bucket {store.bucket} is full: {message} ({code}).", "Free space or raise its quota.")
    if status in _BUSY:
        return Unavailable(f"{uri}: {message} ({code}).", "Look at the storage's health.")
    return StorageError(f"{uri}: {message} ({code}).", "Look at the storage's health.")
