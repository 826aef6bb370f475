"""Prepare data in this process, in memory: one machine, no Ray. The same result as `ray_data`, but for the writers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.prepare.examples import arrange, raw_objects, read_examples
from trainingjob_trainer.prepare.shards import (
    image_encoder,
    manifest_of,
    no_examples,
    publish,
    token_encoder,
    write_shards,
)
from trainingjob_trainer.storage import Store


def prepare_data(config: TrainerSpec, store: Store, report: Callable[[dict[str, Any]], None] | None = None) -> Manifest:
    """Read, clean, split, tokenize and write the data of a job; the manifest comes last. Safe to run again."""
    objects = raw_objects(config)
    if report:
        report({"state": "Preparing", "message": f"Reading {len(objects)} objects."})
    examples = arrange((e for split, raw in objects for e in read_examples(config, split, raw)), config)
    if not examples:
        raise no_examples(config)
    if report:
        report({"state": "Preparing", "message": f"Writing {len(examples)} examples."})
    if config.task.kind == "image-classification":
        images, shape = image_encoder((e.label for e in examples), (e.shape for e in examples))
        part = write_shards(store, examples, images, writer_name())
        return publish(config, store, manifest_of(config, [part], images, shape))
    tokens = token_encoder(store, config, (e.payload for e in examples if e.split == "train"))
    part = write_shards(store, examples, tokens, writer_name())
    return publish(config, store, manifest_of(config, [part], tokens, None))


def writer_name() -> str:
    """Who writes: the pod, or the host."""
    return os.environ.get("POD_NAME") or socket.gethostname()
