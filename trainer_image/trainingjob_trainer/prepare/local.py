"""Prepare data in this process, in memory: one machine, no Ray. The same result as `ray_data`, but for the writers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.prepare.encoders import make_encoder
from trainingjob_trainer.prepare.examples import Example, arrange, raw_objects, read_examples
from trainingjob_trainer.prepare.shards import manifest_of, no_examples, publish, write_shards
from trainingjob_trainer.storage import Store


def prepare_data(config: TrainerSpec, store: Store, report: Callable[[dict[str, Any]], None] | None = None) -> Manifest:
    """Read, clean, split, tokenize and write the data of a job; the manifest comes last. Safe to run again."""
    objects = raw_objects(config)
    if report:
        report({"state": "Preparing", "message": f"Reading {len(objects)} object(s)."})
    examples = arrange((e for split, raw in objects for e in read_examples(config, split, raw)), config)
    if not examples:
        raise no_examples(config)
    if report:
        report({"state": "Preparing", "message": "Writing shards."})
    encoder = make_encoder(store, config, InMemory([example for example in examples if not example.dropped]))
    return publish(config, store, manifest_of(config, [write_shards(store, examples, encoder, writer_name())], encoder))


@dataclass(frozen=True)
class InMemory:
    """The examples of a job, in this process."""

    examples: list[Example]

    def labels(self) -> Iterator[str]:
        return (example.label for example in self.examples)

    def shapes(self) -> Iterator[tuple[int, ...]]:
        return (example.shape for example in self.examples)

    def training_payloads(self) -> Iterator[bytes]:
        return (example.payload for example in self.examples if example.split == "train")


def writer_name() -> str:
    """Who writes: the pod, or the host."""
    return os.environ.get("POD_NAME") or socket.gethostname()
