"""Randomness without state: generators are seeded anew before each pass, so a resume needs none of their state."""

from __future__ import annotations

import hashlib
import os

import torch


def seed_generators(seed: int, step: int, rank: int, micro_batch: int) -> None:
    """Seed torch's generators on all devices (the only ones that training draws from) for one pass over a rank's rows.

    rank: among those that rows are dealt to. Ranks that compute on the same rows draw the same.
    """
    key = hashlib.sha256(f"{seed}/{step}/{rank}/{micro_batch}".encode()).digest()
    number = int.from_bytes(key[:8]) >> 1
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # Not by torch.manual_seed: without CUDA that notes down the call stack each time, which takes 0.1 ms.
        torch.cuda.manual_seed_all(number)


def make_deterministic() -> None:
    """Have this process compute the same bits from the same inputs: deterministic kernels, one thread on the CPU.

    Set for the whole process, because torch knows no narrower scope.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS demands it
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms() would import the compiler
    torch.set_num_threads(1)
