"""Local directories as a store: what S3 promises, they promise too. `tests/cluster/test_storage_s3.py` asks S3."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainingjob_trainer.config import Storage
from trainingjob_trainer.errors import StorageError, UserError
from trainingjob_trainer.storage import NotFound, PreconditionFailed, Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "run"), Storage())


def test_an_object_is_read_as_it_was_written(store: Store) -> None:
    store.put("a/b/c.bin", b"0123456789")
    assert store.get("a/b/c.bin") == b"0123456789"
    assert store.uri("a/b/c.bin").endswith("/run/a/b/c.bin")


@given(data=st.binary(max_size=50), start=st.integers(0, 60), length=st.integers(0, 60))
def test_a_range_is_a_slice(tmp_path_factory: pytest.TempPathFactory, data: bytes, start: int, length: int) -> None:
    store = open_store(str(tmp_path_factory.mktemp("store")), Storage())
    store.put("x", data)
    assert store.get("x", start, start + length) == data[start : start + length]


def test_a_missing_object_is_named(store: Store) -> None:
    with pytest.raises(NotFound, match=r"run/nothing\.json does not exist"):
        store.get("nothing.json")


def test_create_succeeds_once(store: Store) -> None:
    store.put("attempts/1.json", b"mine", if_none_match=True)
    with pytest.raises(PreconditionFailed, match="exists already"):
        store.put("attempts/1.json", b"theirs", if_none_match=True)
    assert store.get("attempts/1.json") == b"mine"


def test_of_many_creators_one_wins(store: Store) -> None:
    def create(writer: int) -> bool:
        try:
            store.put("fence", str(writer).encode(), if_none_match=True)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(create, range(64)))
    assert won.count(True) == 1
    assert store.get("fence") == str(won.index(True)).encode()


def test_replace_needs_what_was_read(store: Store) -> None:
    store.put("run.json", b"1")
    _, etag = store.get_with_etag("run.json")
    store.put("run.json", b"2", if_match=etag)
    with pytest.raises(PreconditionFailed, match="changed by somebody else"):
        store.put("run.json", b"3", if_match=etag)
    assert store.get("run.json") == b"2"


def test_bytes_are_read_into_memory_that_is_there(store: Store) -> None:
    store.put("shard", b"0123456789")
    memory = bytearray(4)
    count, etag = store.read_into("shard", 3, memoryview(memory))
    assert (count, bytes(memory)) == (4, b"3456")
    assert store.read_into("shard", 8, memoryview(memory), if_match=etag) == (2, etag)
    assert bytes(memory) == b"8956"
    assert store.read_into("shard", 10, memoryview(memory))[0] == 0
    store.put("shard", b"9876543210")
    with pytest.raises(PreconditionFailed, match="changed by somebody else"):
        store.read_into("shard", 0, memoryview(memory), if_match=etag)


def test_replacing_what_is_missing_fails(store: Store) -> None:
    with pytest.raises(PreconditionFailed):
        store.put("run.json", b"3", if_match="anything")


def test_of_many_replacers_one_wins(store: Store) -> None:
    etag = store.put("run.json", b"first")

    def replace(writer: int) -> bool:
        try:
            store.put("run.json", str(writer).encode(), if_match=etag)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(replace, range(64))).count(True) == 1


def test_a_listing_has_what_starts_with_the_prefix_in_order(store: Store) -> None:
    for key in ("data/b", "data/a", "database", "other"):
        store.put(key, b"xyz")
    assert [found.key for found in store.list("data")] == ["data/a", "data/b", "database"]
    assert [(found.key, found.size) for found in store.list("data/")] == [("data/a", 3), ("data/b", 3)]
    assert [found.key for found in store.list("none/")] == []


def test_a_directory_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path) -> None:
    """A run whose checkpoints cannot be seen would begin anew."""
    store = open_store(str(tmp_path), Storage())
    (tmp_path / "checkpoints").symlink_to("checkpoints")  # no mode keeps root out, a circle does
    with pytest.raises(StorageError, match="checkpoints/: Too many levels of symbolic links"):
        list(store.list("checkpoints/"))
    with pytest.raises(StorageError, match="checkpoints/: Too many levels of symbolic links"):
        store.abort_uploads("checkpoints/", lambda key, begun: True)


def test_a_listing_looks_into_no_folder_beside_the_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file of /home is found without a walk through all of /home."""
    store = open_store(str(tmp_path), Storage())
    for key in ("data.jsonl", "data/1/x", "other/1/x"):
        store.put(key, b"{}")
    looked_into, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (looked_into.append(Path(path).name), scandir(path))[1])
    assert [found.key for found in store.list("data")] == ["data.jsonl", "data/1/x"]
    assert looked_into == [tmp_path.name, "data", "1"]


def test_deleting_what_is_missing_is_no_error(store: Store) -> None:
    store.put("a", b"")
    store.delete(["a", "b"])
    assert list(store.list()) == []


def test_a_file_is_stored_whole(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "weights"
    source.write_bytes(os.urandom(100_000))
    store.put_file("model/weights", source)
    assert store.get("model/weights") == source.read_bytes()


def test_what_is_stored_is_on_the_disk_with_its_name_and_those_of_its_directories(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after a COMMIT must not leave it alone. Bytes before the name that they get, names from above."""
    source, synced = tmp_path / "weights", list[str]()
    source.write_bytes(b"1")

    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append("bytes" if path.name.startswith(".tmp-") else str(path.relative_to(tmp_path)))
        fsync(descriptor)

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", sync)
    for write in (
        lambda: store.put_file("model/a1/weights", source),
        lambda: store.put("model/a1/config.json", b"{}"),
        lambda: store.put("COMMIT.json", b"{}", if_none_match=True),
        lambda: store.put("COMMIT.json", b"{ }", if_match=store.get_with_etag("COMMIT.json")[1]),
    ):
        synced.append("|")
        write()
    made = [".", "run", "run/model"]
    assert synced == ["|", *made, "bytes", "run/model/a1", "|", "bytes", "run/model/a1", *["|", "bytes", "run"] * 2]


@pytest.mark.parametrize("key", ["/etc/passwd", "../other", "a/../../b"])
def test_keys_stay_below_the_root(store: Store, key: str) -> None:
    with pytest.raises(UserError, match="is not a key below"):
        store.get(key)


def test_a_store_travels_by_pickle(store: Store) -> None:
    store.put("a", b"1")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"1"


@pytest.mark.parametrize(
    ("directory", "said"),
    [
        ("/sys/kernel", r"/sys/kernel/x/y may not be read or written by user \d+: "),
        ("/proc/run", r"/proc/run/x cannot be made: No such file or directory\."),
        (__file__, r"test_storage\.py/x/y can be no file: Not a directory\."),
        ("/tmp/" + 300 * "x", r"x/x/y can be no file: File name too long\."),
    ],
    ids=["not allowed", "no place for files", "a file", "too long"],
)
def test_a_path_that_can_hold_no_run_is_the_users_error_with_a_way_out(directory: str, said: str) -> None:
    store, file = open_store(directory, Storage()), Path(__file__)
    for write in (lambda: store.put("x/y", b""), lambda: store.put_file("x/y", file)):
        with pytest.raises(UserError, match=said) as raised:
            write()
        assert raised.value.next_step


def test_a_path_below_a_file_is_not_a_volume_that_fails(tmp_path: Path) -> None:
    """What a run reads first, before it writes anything."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run\.json can be no file: Not a directory\."):
        open_store(str(tmp_path / "file"), Storage()).get("run.json")


def test_the_root_of_all_paths_is_a_directory_like_others() -> None:
    assert [found.key for found in open_store("/", Storage()).list(__file__[1:])] == [__file__[1:]]
