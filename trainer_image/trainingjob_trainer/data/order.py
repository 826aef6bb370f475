"""In what order samples are read: a pure function of (seed, epoch, position), so a run resumes from one integer.

Large data is shuffled in two levels, so that reads have locality. The samples are cut into blocks, and every epoch
deals the blocks into groups: a group takes one block of each stratum (a run of neighbouring blocks), so it is a sample
of the whole data, and which one it takes is a permutation over the groups. Then the samples of a group are permuted. A
reader holds the blocks of one group; data of less than two groups is one permutation of its samples.

Blocks follow the shards: a block is the samples of one window of a shard, and windows are of one size from the
shard's beginning on. So what a reader asks for lies where a storage has put its own chunks, or the parts that the
shard was uploaded in: a range of 8 MiB across two of SeaweedFS's chunks costs the server a quarter more CPU.

A sample of tokens that lies in two windows is one of the even block's, and odd blocks are dealt before even ones: what
these need of their neighbours' windows has been read by then, by requests that were made anyway.

Permutations are Feistel networks on the cells of a table (Black & Rogaway, "Ciphers with Arbitrary Finite Domains",
2002: the generalised Feistel cipher, and cycle-walking where the table has more cells), keyed by seed and epoch:
bijections by construction.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

BLOCK_BYTES = 8 * 2**20
LARGE = 128  # blocks: smaller data is cut into blocks of half the size, so that one is never more than 1/64 of it
# A group's samples of one block are one in 32, or in 24 and more where there are turns: neighbours seldom come from one
# document.
BLOCKS_PER_GROUP = 32
ROUNDS = 6

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Halves = npt.NDArray[np.uint32]


class Blocks:
    """Samples cut into `count` blocks, which are dealt into `groups` with one of each of the `strata`, or none.

    Block b has the samples from `firsts[b]` to before `firsts[b + 1]`. Its window is the stream's bytes from
    `offsets[b]` to before `offsets[b + 1]`: they lie in it, but for those across a border, which are the even block's.
    The blocks of each of `turns` are dealt after those of the one before, into as many groups.
    """

    def __init__(self, firsts: Ints, offsets: Ints, groups: int, turns: int) -> None:
        self.firsts, self.offsets, self.groups = firsts, offsets, groups
        self.count = len(firsts) - 1
        self.turns = [np.arange(turn, self.count, turns) for turn in reversed(range(turns))]
        self.strata = -(-len(self.turns[-1]) // self.groups_of_turn)

    @classmethod
    def of(
        cls,
        shards: Sequence[int],
        samples: int,
        stride: int,
        item_bytes: int,
        overlap: int = 0,
        block_bytes: int = BLOCK_BYTES,
    ) -> Blocks:
        """Of shards of these sizes, one after another, the blocks of samples that begin every `stride` bytes.

        overlap: bytes that a sample has in common with the next one. A block is about `block_bytes`, but at least one
        sample; of several groups, each is at most 1/64 of the data.
        """
        if samples < 1:
            raise ValueError("an order needs at least one sample")
        size = samples * stride
        whole = block_bytes if size >= LARGE * block_bytes else block_bytes // 2
        window = max(1, whole // item_bytes) * item_bytes
        starts = itertools.accumulate(shards, initial=0)
        offsets = np.concatenate([np.arange(at, at + one, window) for at, one in zip(starts, shards, strict=False)])
        firsts = np.minimum(-(-offsets // stride), samples)
        begins = firsts < np.append(firsts[1:], samples)  # some sample begins there
        firsts, offsets = firsts[begins], offsets[begins]
        if overlap:
            firsts[2::2] -= 1  # the sample that reaches from an odd window into an even one
        groups = max(1, min(size // (BLOCKS_PER_GROUP * whole), len(firsts) // BLOCKS_PER_GROUP))
        turns = 2 if overlap and groups > 1 else 1
        groups = -(-groups // turns) * turns
        return cls(np.append(firsts, samples), np.append(offsets, size + overlap), groups, turns)

    @property
    def samples(self) -> int:
        return int(self.firsts[-1])

    @property
    def groups_of_turn(self) -> int:
        return self.groups // len(self.turns)

    def bounds(self, block: int) -> tuple[int, int]:
        """First sample of a block, and of the next one."""
        return int(self.firsts[block]), int(self.firsts[block + 1])

    def block_of(self, samples: Ints) -> Ints:
        """The block of each sample."""
        return np.searchsorted(self.firsts, samples, side="right") - 1


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
        return int(self.indices(np.asarray([position], np.int64))[0])

    def indices(self, positions: Ints) -> Ints:
        """The samples at many positions, in their order."""
        return self.draws(positions) % len(self)

    def draws(self, positions: Ints) -> Ints:
        """The same as draws, each a sample in an epoch: its number, and `len(self)` more for each epoch before."""
        epochs, offsets = np.divmod(positions, len(self))
        result = np.empty_like(offsets)
        for epoch in distinct(epochs):
            chosen = epochs == epoch
            result[chosen] = self._of_epoch(offsets[chosen], epoch) + epoch * len(self)
        return result

    def _of_epoch(self, offsets: Ints, epoch: int) -> Ints:
        starts, samples = self._dealt(epoch)
        key, group_starts = self._key("samples", epoch), starts[:: self.blocks.strata]
        groups, places = np.searchsorted(group_starts, offsets, side="right") - 1, np.empty_like(offsets)
        for group in distinct(groups):
            first, end = group_starts[group : group + 2].tolist()
            own = groups == group
            places[own] = first + permute(offsets[own] - first, end - first, key, group)
        slot = np.searchsorted(starts, places, side="right") - 1
        return samples[slot] + places - starts[slot]

    def _deal(self, epoch: int) -> _Dealt:
        """Deal the blocks of an epoch into groups: 16 bytes a block, for a terabyte 2 MiB."""
        key, groups = self._key("blocks", epoch), self.blocks.groups_of_turn
        every, no_block = np.arange(groups), self.blocks.count
        dealt = []
        for turn in self.blocks.turns:
            missing = groups * self.blocks.strata - len(turn)
            strata = np.pad(turn, (0, missing), constant_values=no_block).reshape(-1, groups)
            dealt.append(np.stack([s[permute(every, groups, key, int(s[0]))] for s in strata], axis=1).ravel())
        chosen, firsts = np.concatenate(dealt), np.append(self.blocks.firsts, len(self))
        first, end = firsts[chosen], firsts[chosen + 1]
        return _Dealt(np.concatenate([[0], np.cumsum(end - first)]), first)

    def _key(self, what: str, epoch: int) -> Words:
        key = hashlib.blake2b(f"{what}/{self.seed}/{epoch}".encode(), digest_size=8 * ROUNDS).digest()
        return np.frombuffer(key, dtype="<u8").astype(np.uint64)


class _Dealt(NamedTuple):
    """An epoch's blocks in the order of their groups."""

    starts: Ints  # position at which each begins; and the end
    samples: Ints  # first sample of each


def permute(values: Ints, size: int, key: Words, tweak: int) -> Ints:
    """Each value in a permutation of `range(size)`, at most 2**32, one for every (key, tweak)."""
    columns = math.isqrt(size - 1) + 1
    rows, keys = -(-size // columns), (mix(key + np.uint64(tweak)) >> np.uint64(32)).astype(np.uint32)
    found = _feistel(values.astype(np.uint32), rows, columns, keys)
    outside = np.flatnonzero(found >= size)  # fewer than `columns` cells are
    while len(outside):
        found[outside] = _feistel(found[outside], rows, columns, keys)
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def distinct(values: Ints) -> set[int]:
    """Those that there are, where most neighbours are equal: `np.unique` takes as long as a permutation."""
    return {*values[:1].tolist(), *values[1:][values[1:] != values[:-1]].tolist()}


def _feistel(cells: Halves, rows: int, columns: int, keys: Halves) -> Halves:
    """A permutation of a table's cells: row and column in turn are moved on by what the other one says."""
    row = cells // np.uint32(columns)
    column = cells - row * np.uint32(columns)
    for row_key, column_key in keys.reshape(-1, 2):
        row = _moved(row, column + row_key, np.uint32(rows))
        column = _moved(column, row + column_key, np.uint32(columns))
    return row * np.uint32(columns) + column


def _moved(places: Halves, keyed: Halves, size: np.uint32) -> Halves:
    """Places of `range(size)`, at most 2**16, each moved on around it by as much as the hash of a number says."""
    hashed = _hash(keyed) >> np.uint32(16)
    moved = places + ((hashed * size) >> np.uint32(16))
    return np.minimum(moved, moved - size)  # what is below `size` wraps around


def _hash(values: Halves) -> Halves:
    """lowbias32 (Wellons, "Prospecting for Hash Functions", 2018); overflow is meant."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x7FEB352D)
    values = (values ^ (values >> np.uint32(15))) * np.uint32(0x846CA68B)
    return values ^ (values >> np.uint32(16))


def mix(values: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014); overflow is meant."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
