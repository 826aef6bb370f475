"""What torch.compile made, kept in the run directory: a pod that replaces another does not make it again."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, Self, get_args

import torch

from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.config.base import digest
from trainingjob_trainer.errors import StorageError
from trainingjob_trainer.parallel import World
from trainingjob_trainer.storage import NotFound, Store

PREFIX = "compiled/"
Part = Literal["training", "evaluation"]

log = logging.getLogger(__name__)


@dataclass
class CompileCache:
    """Kernels of one model on one kind of device: what is compiled for training, and what evaluation adds to it.

    An object each, because torch's artifacts hold what is new since the last time that they were asked for. Losing them
    costs time and nothing else.
    """

    store: Store
    prefix: str
    writes: bool  # this rank, for all of them
    _kept: dict[Part, bytes] = field(default_factory=dict)
    _done: set[Part] = field(default_factory=set)
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "compile-cache"))

    @classmethod
    def of(cls, store: Store, config: TrainerSpec, world: World) -> Self:
        """The one for this version of torch, this device and this model."""
        device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
        parts = {"torch": torch.__version__, "device": device, "model": config.model.architecture.wire()}
        return cls(store, f"{PREFIX}{digest(parts)}/", writes=world.rank == 0)

    def restore(self) -> None:
        """Have torch find what an earlier attempt has kept. Every rank does, before its first pass."""
        for part in get_args(Part):
            try:
                self._kept[part] = self.store.get(self._key(part))
            except NotFound:
                continue
            except StorageError as error:
                log.warning("compiled kernels are not read: %s", error.cause)
                return
            if torch.compiler.load_cache_artifacts(self._kept[part]) is None:
                log.warning("%s holds no kernels that this torch can read", self.store.uri(self._key(part)))

    def is_first(self, part: Part) -> bool:
        """Whether `part` is about to run for the first time, so that it may be compiled."""
        return part not in self._done

    def keep(self, part: Part) -> None:
        """`part` was run for the first time: keep what was compiled for it. Returns at once."""
        self._done.add(part)
        found = torch.compiler.save_cache_artifacts() if self.writes else None
        if found is not None and found[0] != self._kept.get(part):
            self._writer.submit(self._put, part, found[0])

    def _put(self, part: Part, data: bytes) -> None:
        try:
            self.store.put(self._key(part), data)
        except StorageError as error:
            log.warning("compiled kernels are not kept: %s", error.cause)

    def _key(self, part: Part) -> str:
        return f"{self.prefix}{part}.bin"
