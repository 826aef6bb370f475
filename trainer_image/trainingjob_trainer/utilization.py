"""Model FLOPs utilization (Chowdhery et al. 2022, PaLM, appendix B): the share of the peak that training uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from trainingjob_trainer.accounting import flops_per_token
from trainingjob_trainer.config import TrainerSpec, Transformer
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.parallel import World

# Dense bfloat16 FLOP/s, from the makers' data sheets. The first name that is part of the device's counts.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}


@dataclass(frozen=True)
class Utilization:
    """FLOPs of an optimizer step, forward and backward, and the FLOP/s of which all ranks together are capable."""

    flops_per_step: float
    peak: float

    @classmethod
    def of(cls, config: TrainerSpec, manifest: Manifest, world: World) -> Self | None:
        """None where no peak is known, which includes all CPUs, or no FLOPs."""
        decoder = config.task.kind == "language-modeling" and isinstance(config.model.architecture, Transformer)
        if world.device.type != "cuda" or not decoder:
            return None
        peak = peak_of(torch.cuda.get_device_name(world.device))
        length = config.training.sequence_length
        flops = 3 * flops_per_token(config.model.size, manifest.vocab_size or 0, length)
        tokens = config.training.global_batch_size * length
        return None if peak is None else cls(float(flops * tokens), world.size * peak)

    def share(self, step_seconds: float) -> float:
        """MFU, from 0 to 1, when a step takes so long."""
        return self.flops_per_step / step_seconds / self.peak


def peak_of(device: str) -> float | None:
    """FLOP/s of a device by its name, if it is in the table."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)
