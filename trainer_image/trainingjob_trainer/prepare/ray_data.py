"""Prepare data on many pods: Ray Data reads, cleans and sorts, then every pod writes shards of its own.

The examples are sorted by their content's hash over the whole cluster, block by block, and every writer takes some
blocks that follow each other. So the prepared stream is the one that `local` makes, whatever the number of pods.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data.expressions import col
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.errors import TrainerError
from trainingjob_trainer.prepare.encoders import Encoder, make_encoder
from trainingjob_trainer.prepare.examples import Example, arrange, raw_objects, read_examples
from trainingjob_trainer.prepare.local import writer_name
from trainingjob_trainer.prepare.shards import (
    ENCODED_AT_ONCE,
    SHARD_BYTES,
    Part,
    manifest_of,
    no_examples,
    publish,
    write_shards,
)
from trainingjob_trainer.prepare.source import RawObject
from trainingjob_trainer.storage import Store

BLOCK_BYTES = 32 * 2**20  # of raw data; what one task of a pod holds in memory, several times over
BLOCKS_PER_POD = 2  # at least: so that every pod has something to write
BLOCKS_PER_WRITER = 4  # read one after another: of text their tokens take some 64 MiB, a shard

Row = dict[str, Any]
Nodes = dict[str, int]  # CPU slots by id


def prepare_data(config: TrainerSpec, store: Store, report: Callable[[Row], None] | None = None) -> Manifest:
    """Prepare the data of a job on all nodes of the Ray cluster that this process is connected to; safe to run again.

    Credentials come from the environment of each pod. Raises what the plain functions raise, from whichever pod.
    """
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    nodes = {node["NodeID"]: int(node["Resources"]["CPU"]) for node in alive}
    try:
        return _prepare(config, store, nodes, report or (lambda _: None))
    except Exception as error:
        raise _original(error) from error


def _prepare(config: TrainerSpec, store: Store, nodes: Nodes, report: Callable[[Row], None]) -> Manifest:
    objects = raw_objects(config)
    blocks = max(BLOCKS_PER_POD * len(nodes), sum(raw.size for _, raw in objects) // BLOCK_BYTES)
    report({"state": "Preparing", "message": f"Reading {len(objects)} object(s) on {len(nodes)} pod(s)."})
    arranged = (
        ray.data.from_items([_object_row(split, raw) for split, raw in objects], override_num_blocks=len(objects))
        .flat_map(_read, fn_kwargs={"config": config})
        .repartition(blocks)
        .sort("key")  # equal keys come into one block
        .map_batches(_arrange, batch_size=None, batch_format="pyarrow", fn_kwargs={"config": config})
        .materialize()
    )
    if not arranged.count():
        raise no_examples(config)
    report({"state": "Preparing", "message": f"Writing shards on {len(nodes)} pods."})
    encoder = make_encoder(store, config, OnNodes(arranged))
    return publish(config, store, manifest_of(config, _write(arranged, store, encoder, nodes), encoder))


@dataclass(frozen=True)
class OnNodes:
    """The examples of a job, in the memory of Ray's nodes."""

    arranged: ray.data.Dataset

    def labels(self) -> list[str]:
        kept = self.arranged.select_columns(["label", "dropped"]).filter(expr=~col("dropped"))
        labels: list[str] = kept.unique("label")
        return labels

    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(map(int, shape.split("x"))) for shape in self.arranged.unique("shape")]

    def training_payloads(self) -> Iterator[bytes]:
        for row in self.arranged.iter_rows():
            if row["split"] == "train" and not row["dropped"]:
                yield row["payload"]


def _write(arranged: ray.data.Dataset, store: Store, encoder: Encoder, nodes: Nodes) -> list[Part]:
    """Have the nodes write the blocks, a few at a time to each slot.

    Pinned: left to itself, Ray may give all of them to the first free node. And no more writers than slots: while one
    waits for a block, Ray would begin another in its slot.
    """
    blocks, write, shared = arranged.to_arrow_refs(), ray.remote(_write_blocks), ray.put(encoder)
    writers = max(len(nodes), len(blocks) // BLOCKS_PER_WRITER)
    cuts = [len(blocks) * number // writers for number in range(writers + 1)]
    free = [node for turn in range(max(nodes.values())) for node, slots in nodes.items() if turn < slots]
    running: dict[ray.ObjectRef, str] = {}
    written: list[str | None] = []
    for start, end in itertools.pairwise(cuts):
        if not free:
            [done], _ = ray.wait(list(running))
            free.append(running.pop(done))
            written.append(ray.get(done))
        node = free.pop(0)
        strategy = NodeAffinitySchedulingStrategy(node, soft=True)
        task = write.options(num_cpus=1, scheduling_strategy=strategy).remote(
            blocks[start:end], store, shared, SHARD_BYTES
        )
        running[task] = node
    written += ray.get(list(running))
    parts = sorted((Part.model_validate_json(part) for part in written if part), key=lambda part: part.first)
    for before, after in itertools.pairwise(parts):
        _check_order(before.last, after.first)
    return parts


def _write_blocks(blocks: list[ray.ObjectRef], store: Store, encoder: Encoder, shard_bytes: int) -> str | None:
    examples = _examples(blocks)
    first = next(examples, None)
    if first is None:
        return None
    part = write_shards(store, itertools.chain([first], examples), encoder, writer_name(), shard_bytes)
    return part.model_dump_json()


def _examples(blocks: list[ray.ObjectRef]) -> Iterator[Example]:
    """The examples of some blocks, of which one is held at a time."""
    last = ""
    for block in blocks:
        for number, row in enumerate(_rows_of(ray.get(block))):
            if not number:
                _check_order(last, row["key"])
            last = row["key"]
            yield _example(row)


def _rows_of(block: pa.Table) -> Iterator[Row]:
    for batch in block.to_batches(max_chunksize=ENCODED_AT_ONCE):
        yield from batch.to_pylist()


def _check_order(last: str, first: str) -> None:
    """Of two blocks that follow each other."""
    if last >= first:
        raise TrainerError("Equal documents were sorted into two blocks.", "Please report this.")


def _read(row: Row, config: TrainerSpec) -> Iterator[Row]:
    raw = RawObject(row["root"], row["key"], row["size"], row["etag"], row["source"])
    return (_row(example) for example in read_examples(config, row["split"], raw))


def _arrange(block: pa.Table, config: TrainerSpec) -> pa.Table:
    rows = [_row(example) for example in arrange(map(_example, block.to_pylist()), config)]
    return pa.Table.from_pylist(rows, schema=block.schema)


def _object_row(split: str, raw: RawObject) -> Row:
    return {"split": split, **asdict(raw)}


def _row(example: Example) -> Row:
    shape = "x".join(map(str, example.shape))
    return {
        "key": example.key,
        "split": example.split,
        "payload": example.payload,
        "label": example.label,
        "shape": shape,
        "source": example.source,
        "copies": example.copies,
        "dropped": example.dropped,
    }


def _example(row: Row) -> Example:
    shape = tuple(map(int, row["shape"].split("x"))) if row["shape"] else ()
    what = row["key"], row["split"], row["payload"], row["label"]
    return Example(*what, shape, row["source"], row["copies"], row["dropped"])


def _original(error: Exception) -> Exception:
    """The error of ours inside what Ray makes of it, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, TrainerError) and not isinstance(seen, ray.exceptions.RayError):
            return seen
        seen = getattr(seen, "cause", None) if isinstance(seen, ray.exceptions.RayTaskError) else seen.__cause__
        if isinstance(seen, str):  # a TrainerError's own `cause`
            return error
    return error
