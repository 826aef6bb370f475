"""In what order samples are read: a pure function of (seed, epoch, position), so a run resumes from one integer.

Large data is shuffled in two levels, so that reads have locality. The samples are cut into blocks, and every epoch
deals the blocks into groups: a group takes one block of each stratum (a run of neighbouring blocks), so it is a sample
of the whole data, and which one it takes is a permutation over the groups. Then the samples of a group are permuted. A
reader holds the blocks of one group; data of less than two groups is one permutation of its samples.

Permutations are Feistel networks over the next power of two, cycle-walked into [0, n) (Black & Rogaway, "Ciphers with
Arbitrary Finite Domains", 2002), keyed by seed and epoch: bijections by construction.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 4 * 2**20
BLOCKS_PER_GROUP = 32  # a group's samples of one block are one in 32: neighbours seldom come from one document
ROUNDS = 6

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Blocks:
    """`samples` samples, cut into `groups * strata` blocks whose sizes differ by one at most."""

    samples: int
    groups: int
    strata: int

    @classmethod
    def of(cls, samples: int, sample_bytes: int, block_bytes: int = BLOCK_BYTES) -> Blocks:
        """Blocks of about `block_bytes`, at least one sample; of several groups, each is at most 1/64 of the data."""
        if samples < 1:
            raise ValueError("an order needs at least one sample")
        size = samples * sample_bytes
        groups = max(1, min(size // (BLOCKS_PER_GROUP * block_bytes), samples // BLOCKS_PER_GROUP))
        blocks = min(-(-size // block_bytes), samples)
        return cls(samples, groups, max(1, min(-(-blocks // groups), samples // groups)))

    @property
    def count(self) -> int:
        return self.groups * self.strata

    def bounds(self, block: int) -> tuple[int, int]:
        """First sample of a block, and of the next one."""
        return block * self.samples // self.count, (block + 1) * self.samples // self.count

    def block_of(self, samples: Ints) -> Ints:
        """The block of each sample."""
        return ((samples + 1) * self.count - 1) // self.samples


class Order:
    """An order of all samples: position p is sample `index(p)` of epoch `p // samples`."""

    def __init__(self, blocks: Blocks, seed: int) -> None:
        self.blocks = blocks
        self.seed = seed
        self._dealt = lru_cache(maxsize=2)(self._deal)

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self.blocks.samples

    def index(self, position: int) -> int:
        """The sample at a position."""
        return self.indices([position])[0]

    def indices(self, positions: Sequence[int]) -> list[int]:
        """The samples at many positions, in their order."""
        epochs, offsets = np.divmod(np.asarray(positions, dtype=np.int64), len(self))
        result = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            result[chosen] = self._of_epoch(offsets[chosen], int(epoch))
        indices: list[int] = result.tolist()
        return indices

    def _of_epoch(self, offsets: Ints, epoch: int) -> Ints:
        starts, samples = self._dealt(epoch)
        group_starts = starts[:: self.blocks.strata]
        group = np.searchsorted(group_starts, offsets, side="right") - 1
        start = group_starts[group]
        places = start + permute(offsets - start, group_starts[group + 1] - start, self._key("samples", epoch), group)
        slot = np.searchsorted(starts, places, side="right") - 1
        return samples[slot] + places - starts[slot]

    def _deal(self, epoch: int) -> _Dealt:
        """Deal the blocks of an epoch into groups: 16 bytes a block, for a terabyte 4 MiB."""
        groups, strata = self.blocks.groups, self.blocks.strata
        group, stratum = np.divmod(np.arange(groups * strata), strata)
        chosen = stratum * groups + permute(group, np.full_like(group, groups), self._key("blocks", epoch), stratum)
        first, end = (which * self.blocks.samples // self.blocks.count for which in (chosen, chosen + 1))
        return _Dealt(np.concatenate([[0], np.cumsum(end - first)]), first)

    def _key(self, what: str, epoch: int) -> Words:
        key = hashlib.blake2b(f"{what}/{self.seed}/{epoch}".encode(), digest_size=8 * ROUNDS).digest()
        return np.frombuffer(key, dtype="<u8").astype(np.uint64)


class _Dealt(NamedTuple):
    """An epoch's blocks in the order of their groups."""

    starts: Ints  # position at which each begins; and the end
    samples: Ints  # first sample of each


def permute(values: Ints, sizes: Ints, key: Words, tweaks: Ints) -> Ints:
    """Each value in a permutation of `range(size)`, one for every (key, tweak)."""
    bits = np.frexp((sizes - 1).astype(np.float64))[1].astype(np.uint64)
    keys = [_mix(word + tweaks.astype(np.uint64)) for word in key]
    found = _feistel(values.astype(np.uint64), bits, keys)
    outside = np.flatnonzero(found >= sizes.astype(np.uint64))
    while len(outside):
        found[outside] = _feistel(found[outside], bits[outside], [word[outside] for word in keys])
        outside = outside[found[outside] >= sizes[outside].astype(np.uint64)]
    return found.astype(np.int64)


def _feistel(values: Words, bits: Words, keys: Sequence[Words]) -> Words:
    """A permutation of the numbers of `bits` bits: each half in turn is changed by what the other one says."""
    one = np.uint64(1)
    low = (bits + one) >> one
    left, right = values >> low, values & ((one << low) - one)
    left_mask, right_mask = (one << (bits - low)) - one, (one << low) - one
    for left_key, right_key in zip(keys[::2], keys[1::2], strict=True):
        left = left ^ (_mix(right + left_key) & left_mask)
        right = right ^ (_mix(left + right_key) & right_mask)
    joined: Words = (left << low) | right
    return joined


def _mix(values: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014); overflow is meant."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
