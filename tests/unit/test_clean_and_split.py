"""From raw objects to examples: reading, cleaning, splitting, arranging."""

import codecs
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.training import job
from trainingjob_trainer.config import Clean, JobConfig, Storage
from trainingjob_trainer.errors import DataError, UserError
from trainingjob_trainer.prepare.examples import Example, arrange, clean_text, raw_objects, read_examples, split_of
from trainingjob_trainer.prepare.source import list_objects
from trainingjob_trainer.storage import LocalStore


def texts(directory: Path, uri: str, format: str = "jsonl", **more: Any) -> list[str]:
    """What is read from a source, in its order."""
    config = job(directory, data={"train": {"uri": uri, "format": format, **more}})
    return [e.payload.decode() for split, raw in raw_objects(config) for e in read_examples(config, split, raw)]


def jsonl(*documents: str, field: str = "text") -> bytes:
    return "".join(json.dumps({"id": 1, field: document}) + "\n" for document in documents).encode()


def test_objects_of_a_uri_are_one_object_all_below_a_prefix_or_a_globs(tmp_path: Path) -> None:
    for name in ("a/1.jsonl", "a/2.jsonl", "a/deep/3.jsonl", "a/4.txt", "ab.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "a/empty.jsonl").touch()

    def keys(pattern: str) -> list[str]:
        found = list_objects(f"{tmp_path}/{pattern}", Storage())
        return [raw.uri.removeprefix(f"{tmp_path}/") for raw in found]

    assert keys("a/1.jsonl") == ["a/1.jsonl"]
    assert keys("a/") == ["a/1.jsonl", "a/2.jsonl", "a/4.txt", "a/deep/3.jsonl"]
    assert keys("a/*.jsonl") == ["a/1.jsonl", "a/2.jsonl"]
    assert keys("a*/[12].jsonl") == ["a/1.jsonl", "a/2.jsonl"]
    with pytest.raises(DataError, match=r"There is no data at .*/b/\*"):
        keys("b/*")
    with pytest.raises(DataError, match=r"/a is a folder") as folder:
        keys("a")
    assert f"{tmp_path}/a/ for all" in folder.value.next_step


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.ZstdCompressor().compress)],
)
def test_jsonl_is_read_compressed_or_not(tmp_path: Path, name: str, pack: Any) -> None:
    (tmp_path / name).write_bytes(pack(jsonl("one", "zwei äöü", "三")))
    assert texts(tmp_path, f"{tmp_path}/{name}") == ["one", "zwei äöü", "三"]


def test_the_mark_that_windows_puts_before_utf_8_is_no_part_of_the_text(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", jsonl("one", "two")), ("a.csv", b"text\none\ntwo\n"), ("a.txt", b"one")):
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + content)
    assert texts(tmp_path, f"{tmp_path}/a.jsonl") == ["one", "two"]
    assert texts(tmp_path, f"{tmp_path}/a.csv", "csv") == ["one", "two"]
    assert texts(tmp_path, f"{tmp_path}/a.txt", "text") == ["one"]


def test_a_document_of_a_table_may_be_as_long_as_any(tmp_path: Path) -> None:
    long = 40_000 * "word "
    (tmp_path / "a.csv").write_text(f'text\n"{long}"\nshort\n')
    assert texts(tmp_path, f"{tmp_path}/a.csv", "csv") == [long.strip(), "short"]


def test_text_is_one_document_a_file_and_parquet_one_a_row(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("first\nfile")
    (tmp_path / "2.txt").write_text("second")
    pq.write_table(pa.table({"body": ["a", "b"], "other": [1, 2]}), tmp_path / "t.parquet")
    assert texts(tmp_path, f"{tmp_path}/*.txt", "text") == ["first\nfile", "second"]
    assert texts(tmp_path, f"{tmp_path}/t.parquet", "parquet", field="body") == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "format", "error", "message"),
    [
        ("a.jsonl", jsonl("x", field="body"), "jsonl", UserError, "no field 'text'; its fields are 'id', 'body'"),
        ("a.jsonl", jsonl("x") + b"{oops\n", "jsonl", DataError, r"a\.jsonl, line 2 is not JSON"),
        (
            "a.jsonl",
            jsonl("x") + b'{"text": "\\ud83d"}\n',
            "jsonl",
            DataError,
            r"line 2 is not JSON: .*escape at column 17\.",
        ),
        (
            "a.jsonl",
            jsonl("x") + b'{"text": ' + b"[" * 5000 + b"\n",
            "jsonl",
            DataError,
            r"line 2 is not JSON: recursion",
        ),
        ("a.jsonl", b"[1]\n", "jsonl", DataError, "not a JSON object"),
        ("a.jsonl", b'{"text": 3}\n', "jsonl", DataError, "has 3 in 'text' where text was expected"),
        ("a.csv", b"a" * 99 + b",b" * 99 + b"\n", "csv", UserError, "are 'a{39}...', 'b', 'b', .* and 90 more[.]"),
        ("a.jsonl", b"\xff\xfe", "jsonl", DataError, "not UTF-8"),
        ("a.jsonl.gz", b"no gzip", "jsonl", DataError, "does not decompress"),
        ("a.jsonl.gz", gzip.compress(jsonl("x"))[:-9], "jsonl", DataError, "does not decompress"),
        ("a.jsonl.zst", b"no zstandard", "jsonl", DataError, "does not decompress"),
        ("a.parquet", b"no parquet at all", "parquet", DataError, "not readable as Parquet"),
    ],
)
def test_what_is_wrong_with_an_object_is_said(
    tmp_path: Path, name: str, content: bytes, format: str, error: type[Exception], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        texts(tmp_path, f"{tmp_path}/{name}", format)


@pytest.mark.parametrize(
    ("format", "content", "reads"),
    [
        ("jsonl", jsonl(*["word " * 200] * 20_000), 3),
        ("csv", b"text\n" + 20_000 * (200 * b"word " + b"\n"), 3),
        ("text", 2**24 * b"x", 1),
    ],
)
def test_an_object_is_read_in_few_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, content: bytes, reads: int
) -> None:
    asked = list[int]()

    def counted(store: LocalStore, key: str, start: int, into: memoryview, **more: Any) -> tuple[int, str]:
        asked.append(len(into))
        return read_into(store, key, start, into, **more)

    read_into = LocalStore.read_into
    monkeypatch.setattr(LocalStore, "read_into", counted)
    (tmp_path / "a").write_bytes(content)
    assert texts(tmp_path, f"{tmp_path}/a", format)
    assert (len(asked), sum(asked)) == (reads, len(content))


@pytest.mark.parametrize("lines", [2, 12, 13])
@pytest.mark.parametrize("read", [0, 1], ids=["before it is read", "behind what was read at once"])
def test_an_object_that_is_replaced_after_it_was_listed_is_named(tmp_path: Path, lines: int, read: int) -> None:
    """By a shorter one, by one of the same size, and by a longer one, whose end nobody would miss."""
    store, examples = begun(tmp_path)
    assert len(list(islice(examples, read))) == read
    store.put("a", mebibytes(lines))
    with pytest.raises(DataError, match="/a was replaced after it was listed") as error:
        list(examples)
    assert "apply the job again" in error.value.next_step


def begun(directory: Path) -> tuple[LocalStore, Iterator[Example]]:
    """A listed object, more than is read at once, and what reads it."""
    store = LocalStore(str(directory), Storage())
    store.put("a", mebibytes(12))
    config = job(directory, data={"train": {"uri": f"{directory}/a"}})
    [(split, raw)] = raw_objects(config)
    return store, read_examples(config, split, raw)


def mebibytes(lines: int) -> bytes:
    return jsonl(*["x" * (2**20 - len(jsonl("")))] * lines)


def test_a_file_without_a_byte_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match=r"All 1 object\(s\) at .*/a\.jsonl are empty"):
        texts(tmp_path, f"{tmp_path}/a.jsonl")
    with pytest.raises(DataError, match=r"There is no data at .*/b\.jsonl"):
        texts(tmp_path, f"{tmp_path}/b.jsonl")


def test_cleaning_normalizes_cuts_and_drops() -> None:
    assert clean_text(" \ufeffe\u0301a\r\nb\x00\tc\r \n", Clean()) == "\ufeff\u00e9a\nb\tc"
    assert clean_text("\x00 ", Clean()) is None
    assert clean_text("abc", Clean(min_chars=4)) is None
    assert clean_text("abcdef", Clean(max_chars=4)) == "abcd"
    assert clean_text(" raw\r\n", Clean(normalize=False)) == " raw\r\n"


@given(st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    cleaned = clean_text(text, Clean())
    assert cleaned is None or clean_text(cleaned, Clean()) == cleaned


def test_fractions_of_the_documents_are_held_out() -> None:
    random = np.random.default_rng(0)
    counts = Counter(split_of(random.bytes(32).hex(), 0.2, 0.1) for _ in range(20_000))
    assert counts["test"] == pytest.approx(2000, rel=0.1)
    assert counts["validation"] == pytest.approx(4000, rel=0.1)


def test_a_document_stays_in_its_split_when_others_are_added(tmp_path: Path) -> None:
    def splits(count: int) -> dict[bytes, str]:
        (tmp_path / "a.jsonl").write_bytes(jsonl(*(f"document {i}" for i in reversed(range(count)))))
        half = {"fraction": 0.3}
        config = job(tmp_path, data={"train": {"uri": f"{tmp_path}/a.jsonl"}, "validation": half, "test": half})
        return {e.payload: e.split for split, raw in raw_objects(config) for e in read_examples(config, split, raw)}

    few, many = splits(30), splits(90)
    assert set(few.values()) == {"train", "validation", "test"}
    assert few.items() <= many.items()


def arranged(config: JobConfig, *examples: tuple[str, str]) -> list[tuple[str, str]]:
    return [(e.key, e.split) for e in arrange([Example(k, s, b"") for k, s in examples], config)]  # type: ignore[arg-type]


def test_of_equal_documents_the_held_out_one_is_kept(tmp_path: Path) -> None:
    config = job(tmp_path)
    assert arranged(config, ("b", "train"), ("a", "train"), ("b", "test"), ("a", "train")) == [
        ("a", "train"),
        ("b", "test"),
    ]
    keep = {"train": {"uri": "/x", "format": "text"}, "prepare": {"clean": {"deduplicate": False}}}
    assert arranged(job(tmp_path, data=keep), ("a", "train"), ("a", "train")) == [("a", "train")] * 2


def image_source(tmp_path: Path, images: list[Any], labels: list[Any], **data: Any) -> JobConfig:
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "i.parquet")
    return job(
        tmp_path,
        task={"kind": "image-classification"},
        data={"train": {"uri": f"{tmp_path}/i.parquet", "format": "parquet"}, **data},
    )


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_images_become_planes(tmp_path: Path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colour = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    config = image_source(tmp_path, [{"bytes": png(p), "path": "x"} for p in (grey, colour)], ["cat", "dog"])
    [(split, raw)] = raw_objects(config)
    first, second = read_examples(config, split, raw)
    assert (first.shape, first.label, first.payload) == ((1, 3, 4), "cat", grey.tobytes())
    assert (second.shape, second.label, second.payload) == ((3, 3, 4), "dog", colour.transpose(2, 0, 1).tobytes())


def test_a_picture_is_in_one_split_whatever_its_labels(tmp_path: Path) -> None:
    pictures = [png(np.full((2, 2), shade, dtype=np.uint8)) for shade in range(20)]
    part = {"fraction": 0.3}
    labels = list(range(10)) * len(pictures)
    config = image_source(tmp_path, [p for p in pictures for _ in range(10)], labels, validation=part, test=part)
    [(split, raw)] = raw_objects(config)
    examples = arrange(read_examples(config, split, raw), config)
    assert len({(e.payload, e.label) for e in examples}) == len(examples) == len(labels)
    splits = {(e.payload, e.split) for e in examples}
    assert len(splits) == len(pictures)
    assert {split for _, split in splits} == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image", r"i\.parquet has an image in 'image' that cannot be decoded"),
        (png(np.full((3, 4), 1000, dtype=np.uint16)), r"i\.parquet has an image in 'image' with more than 8 bits a ch"),
    ],
)
def test_an_image_that_is_not_what_it_would_be_read_as_is_named(tmp_path: Path, image: bytes, message: str) -> None:
    config = image_source(tmp_path, [image], [1])
    [(split, raw)] = raw_objects(config)
    with pytest.raises(DataError, match=message):
        list(read_examples(config, split, raw))
