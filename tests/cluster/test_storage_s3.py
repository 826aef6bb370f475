"""The store on a real S3 server: the same promises as in `tests/unit/test_storage.py`, and what goes wrong by name."""

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from trainingjob_trainer.config import Storage
from trainingjob_trainer.errors import StorageError, UserError
from trainingjob_trainer.storage import NotFound, PreconditionFailed, Store, open_store
from trainingjob_trainer.storage_s3 import PART, S3Store

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster


@pytest.fixture
def storage(cluster: "LocalCluster", monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", cluster.s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", cluster.s3.secret_key)
    return Storage(endpoint_url=cluster.s3.endpoint, credentials_secret="s3-credentials")


@pytest.fixture
def store(storage: Storage, bucket: str) -> Store:
    return open_store(f"s3://{bucket}/run", storage)


def test_objects_ranges_and_listings(store: Store) -> None:
    store.put("data/a", b"0123456789")
    store.put("data/b", b"xyz")
    assert store.get("data/a") == b"0123456789"
    assert (store.get("data/a", 2, 5), store.get("data/a", 8, 50), store.get("data/a", 50, 60)) == (b"234", b"89", b"")
    assert [(found.key, found.size) for found in store.list("data/")] == [("data/a", 10), ("data/b", 3)]
    store.delete(["data/a", "data/none"])
    assert [found.key for found in store.list()] == ["data/b"]


def test_a_listing_has_the_tag_of_each_object(store: Store, tmp_path: Path) -> None:
    """By which who reads it later knows it again; of one in parts too."""
    (tmp_path / "file").write_bytes(bytes(PART + 1))
    store.put("small", b"0123456789")
    store.put_file("parts", tmp_path / "file")
    for found in store.list():
        assert store.read_into(found.key, 0, memoryview(bytearray(5)), if_match=found.etag) == (5, found.etag)


def test_of_many_creators_one_wins(store: Store) -> None:
    def create(writer: int) -> bool:
        try:
            store.put("attempts/1.json", str(writer).encode(), if_none_match=True)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(32)))
    assert won.count(True) == 1
    assert store.get("attempts/1.json") == str(won.index(True)).encode()


def test_replace_needs_what_was_read(store: Store) -> None:
    store.put("run.json", b"1")
    _, etag = store.get_with_etag("run.json")
    store.put("run.json", b"2", if_match=etag)
    with pytest.raises(PreconditionFailed):
        store.put("run.json", b"3", if_match=etag)
    assert store.get("run.json") == b"2"


def test_bytes_are_read_into_memory_that_is_there(store: Store) -> None:
    data = os.urandom(3 * 2**20)
    store.put("shard", data)
    memory = bytearray(5 * 2**19)
    for start in (7, 2**20):
        count, etag = store.read_into("shard", start, memoryview(memory))
        assert memory[:count] == data[start : start + len(memory)]
    assert count == 2 * 2**20, "the object ends there"
    assert store.read_into("shard", len(data), memoryview(memory)) == (0, "")
    store.put("shard", data[::-1])
    with pytest.raises(PreconditionFailed):
        store.read_into("shard", 0, memoryview(memory), if_match=etag)


def test_boto3_is_asked_for_ranges_that_are_not_whole_only(store: Store) -> None:
    assert isinstance(store, S3Store)
    asked: list[str] = []
    store.client.meta.events.register("before-call.s3.GetObject", lambda params, **_: asked.append(params["url"]))
    etag = store.put("a key/with ümlaut", b"0123456789")
    memory = bytearray(4)
    for start in (0, 3, 6):
        assert store.read_into("a key/with ümlaut", start, memoryview(memory), if_match=etag) == (4, etag)
        assert memory == b"0123456789"[start : start + 4]
    assert asked == []
    assert store.read_into("a key/with ümlaut", 7, memoryview(memory)) == (3, etag)
    with pytest.raises(NotFound):
        store.read_into("none", 0, memoryview(memory))
    assert len(asked) == 2


def test_big_objects_go_in_parts(store: Store, tmp_path: Path) -> None:
    data = os.urandom(70 * 2**20)
    (tmp_path / "big").write_bytes(data)
    store.put_file("from-file", tmp_path / "big")
    store.put("from-memory", data)
    assert store.get("from-file") == data
    assert store.get("from-memory", 40 * 2**20, 41 * 2**20) == data[40 * 2**20 : 41 * 2**20]


def test_an_upload_that_ended_half_way_is_aborted_where_it_is_left(
    store: Store, cluster: "LocalCluster", bucket: str
) -> None:
    client = cluster.s3.client()
    for key in ("run/a1/x", "run/a2/x", "other/a1/x"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"half")
    asked: dict[str, datetime] = {}

    def is_left(key: str, begun: datetime) -> bool:
        asked[key] = begun
        return key.startswith("a1/")

    store.abort_uploads("a", is_left)
    assert set(asked) == {"a1/x", "a2/x"}
    assert all(abs(datetime.now(UTC) - begun) < timedelta(minutes=5) for begun in asked.values())
    left = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    assert sorted(upload["Key"] for upload in left) == ["other/a1/x", "run/a2/x"]


def test_a_missing_object_is_named(store: Store) -> None:
    with pytest.raises(NotFound, match=r"/run/nothing does not exist"):
        store.get("nothing")


def test_a_missing_bucket_is_the_users_error(storage: Storage) -> None:
    with pytest.raises(UserError, match="The bucket no-such-bucket does not exist"):
        open_store("s3://no-such-bucket/run", storage).get("x")


def test_a_wrong_key_names_the_secret(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(UserError, match="refuses the access key") as refused:
        store.get("x")
    assert "s3-credentials" in refused.value.next_step


def test_absent_credentials_are_the_users_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(UserError, match="no credentials"):
        store.get("x")


def test_an_endpoint_that_nobody_serves_is_worth_a_retry(storage: Storage, bucket: str) -> None:
    nobody = storage.model_copy(update={"endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(StorageError, match="cannot be reached") as unreachable:
        open_store(f"s3://{bucket}/run", nobody).get("x")
    assert "spec.storage.endpointUrl" in unreachable.value.next_step
