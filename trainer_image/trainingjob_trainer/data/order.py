"""In what order samples are read: a pure function of (seed, epoch, position), so a run resumes from one integer.

Each epoch is a permutation by a Feistel network over the next power of four, cycle-walked into [0, n)
(Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): random access, no memory, a bijection by construction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ROUNDS = 6


class Order:
    """The order of `num_samples` samples: position p is sample `index(p)` of epoch `p // num_samples`."""

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError("an order needs at least one sample")
        self.num_samples = num_samples
        self.seed = seed
        self._half_bits = np.uint64(max(1, ((num_samples - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)

    def epoch(self, position: int) -> int:
        """The epoch that a position lies in, from 0."""
        return position // self.num_samples

    def index(self, position: int) -> int:
        """The sample at a position."""
        return int(self.indices([position])[0])

    def indices(self, positions: Sequence[int]) -> list[int]:
        """The samples at many positions, in their order."""
        epochs, offsets = np.divmod(np.asarray(positions, dtype=np.int64), self.num_samples)
        result = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = self._permute(offsets[chosen].astype(np.uint64), int(epoch)).astype(np.int64)
        return [int(index) for index in result]

    def _permute(self, values: npt.NDArray[np.uint64], epoch: int) -> npt.NDArray[np.uint64]:
        keys = self._round_keys(epoch)
        values = self._feistel(values, keys)
        while (outside := values >= self.num_samples).any():
            values[outside] = self._feistel(values[outside], keys)
        return values

    def _feistel(self, values: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        left, right = values >> self._half_bits, values & self._mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half_bits) | right

    def _round_keys(self, epoch: int) -> npt.NDArray[np.uint64]:
        key = hashlib.blake2b(f"{self.seed}/{epoch}".encode(), digest_size=8 * ROUNDS).digest()
        return np.frombuffer(key, dtype="<u8").astype(np.uint64)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014); overflow is meant."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
