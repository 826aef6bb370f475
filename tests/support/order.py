"""Blocks of samples without shards around them."""

from trainingjob_trainer.data.order import BLOCK_BYTES, Blocks


def blocks_of(samples: int, each: int, overlap: int = 0, block_bytes: int = BLOCK_BYTES) -> Blocks:
    """Of one shard of `samples` samples of `each` bytes; as of tokens of `overlap` bytes if that is not 0."""
    return Blocks.of([samples * each + overlap], samples, each, overlap or each, overlap, block_bytes)
