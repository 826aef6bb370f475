"""torch's distributed checkpoints (DCP) over a `Store`: raw tensors in objects of some 32 MiB, and an index in JSON.

No pickles: reading a checkpoint runs no code. Every object is read whole and checked against its COMMIT.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from trainingjob_trainer.checkpoint.commits import Commit, StoredObject, read_verified
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.storage import Store

INDEX_NAME = "index.json"
OBJECT_BYTES = 32 * 2**20  # as much as goes in one request; a bigger tensor goes in parts
OBJECTS_AT_ONCE = 4
UPLOADS_NICE = 10  # of a thread: steps go first where both want the same cores

T = TypeVar("T")


class Piece(NamedTuple):
    """One chunk of a tensor, and where its bytes are."""

    stored: StoredObject
    start: int
    dtype: torch.dtype
    shape: torch.Size

    def tensor(self, data: bytearray) -> Tensor:
        """The chunk, as a view of its object's bytes."""
        if not self.shape.numel():
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(data, dtype=self.dtype, count=self.shape.numel(), offset=self.start).view(self.shape)


class Chunk(NamedTuple):
    """One chunk of a tensor that is to be written: what DCP calls it, and its bytes, not copied."""

    name: MetadataIndex
    data: memoryview
    dtype: torch.dtype
    shape: torch.Size


class StoreWriter(StorageWriter):
    """Writes this rank's shards, from host memory, as `<prefix>rank-<r>-<n>.bin`.

    Some objects are under way at once: while one is sent, the next one is put together and hashed. Afterwards rank 0
    knows all `objects`.
    """

    def __init__(self, store: Store, prefix: str, rank: int) -> None:
        self._store, self._prefix, self._rank = store, prefix, rank
        self.objects: list[StoredObject] = []

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with ThreadPoolExecutor(OBJECTS_AT_ONCE, "upload", partial(os.nice, UPLOADS_NICE)) as pool:
            puts = [pool.submit(self._put, n, chunks) for n, chunks in enumerate(_packed(plan, planner))]
            try:
                return _done([result for put in puts for result in put.result()])
            finally:
                pool.shutdown(cancel_futures=True)  # after a failure the rest is not worth its time

    def _put(self, number: int, chunks: list[Chunk]) -> list[WriteResult]:
        data = b"".join(chunk.data for chunk in chunks)
        stored = StoredObject.of(f"{self._prefix}rank-{self._rank}-{number}.bin", data)
        self._store.put(stored.key, data)
        starts = accumulate((len(chunk.data) for chunk in chunks), initial=0)
        return [
            WriteResult(name, len(data), Piece(stored, start, dtype, shape))
            for (name, data, dtype, shape), start in zip(chunks, starts, strict=False)
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        pieces = {result.index: result.storage_data for of_rank in results for result in of_rank}
        data = _to_json(metadata, pieces)
        index = StoredObject.of(self._prefix + INDEX_NAME, data)
        self._store.put(index.key, data)
        self.objects = [*{piece.stored.key: piece.stored for piece in pieces.values()}.values(), index]

    def reset(self, checkpoint_id: Any = None) -> None:
        self.objects = []

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


def read_index(store: Store, commit: Commit, wanted: Set[str]) -> bytes:
    """The index of a checkpoint, which has all tensors that are wanted.

    Raises `StorageError`; `UserError` if another version of the trainer has written it, which kept others.
    """
    index = read_verified(store, _by_key(commit)[commit.prefix + INDEX_NAME])
    if missing := sorted(wanted - json.loads(index)["tensors"].keys()):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"The checkpoint of step {commit.step} in {store.uri()} does not hold {', '.join(missing[:3])}{more}: a "
            "version of the trainer has written it that did not keep them.",
            "Have the image of then go on with the run (spec.image), or begin anew in another spec.outputUri.",
        )
    return index


class StoreReader(StorageReader):
    """Reads what an index names; each object that this rank needs is read once and verified.

    The index is read before, since DCP takes a rank that cannot read it for one that has an index of its own.
    """

    def __init__(self, store: Store, commit: Commit, index: bytes) -> None:
        self._store, self._objects = store, _by_key(commit)
        self._metadata, self._pieces = _from_json(index, self._objects)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        wanted: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            wanted[self._pieces[item.storage_index].stored.key].append(item)
        for key, items in wanted.items():
            data = bytearray(read_verified(self._store, self._objects[key]))
            for item in items:
                source = self._pieces[item.storage_index].tensor(data)
                for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    source = source.narrow(dim, start, length)
                target = planner.resolve_tensor(item).detach()
                target.copy_(source)
                planner.commit_tensor(item, target)
        return _done(None)

    def reset(self, checkpoint_id: Any = None) -> None: ...

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return False


def _by_key(commit: Commit) -> dict[str, StoredObject]:
    return {stored.key: stored for stored in commit.objects}


def _to_json(metadata: Metadata, pieces: Mapping[MetadataIndex, Piece]) -> bytes:
    tensors = {}
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata)
        chunks = []
        for chunk in entry.chunks:
            piece = pieces[MetadataIndex(name, chunk.offsets)]
            chunks.append([list(chunk.offsets), list(chunk.sizes), piece.stored.key, piece.start])
        dtype = str(entry.properties.dtype).removeprefix("torch.")
        tensors[name] = {"dtype": dtype, "shape": list(entry.size), "chunks": chunks}
    return json.dumps({"version": 1, "chunk": ["offsets", "sizes", "object", "start"], "tensors": tensors}).encode()


def _from_json(data: bytes, objects: Mapping[str, StoredObject]) -> tuple[Metadata, dict[MetadataIndex, Piece]]:
    entries: dict[str, STORAGE_TYPES] = {}
    pieces: dict[MetadataIndex, Piece] = {}
    for name, tensor in json.loads(data)["tensors"].items():
        dtype = getattr(torch, tensor["dtype"])
        chunks = []
        for offsets, sizes, key, start in tensor["chunks"]:
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            pieces[MetadataIndex(name, offsets)] = Piece(objects[key], start, dtype, torch.Size(sizes))
        entries[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(tensor["shape"]), chunks)
    return Metadata(entries), pieces


def _packed(plan: SavePlan, planner: SavePlanner) -> Iterator[list[Chunk]]:
    """What is to be written, cut into objects."""
    chunks: list[Chunk] = []
    size = 0
    for item in plan.items:
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, Tensor)  # the state is tensors only
        data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data
        if chunks and size + len(data) > OBJECT_BYTES:
            yield chunks
            chunks, size = [], 0
        chunks.append(Chunk(item.index, data, tensor.dtype, tensor.shape))
        size += len(data)
    if chunks:
        yield chunks


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future
