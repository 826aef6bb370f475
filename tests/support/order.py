"""Blocks of samples without shards around them."""

from trainingjob_trainer.data.order import BLOCK_BYTES, Blocks


def blocks_of(samples: int, each: int, block_bytes: int = BLOCK_BYTES) -> Blocks:
    """Of one shard of `samples` samples of `each` bytes."""
    return Blocks.of([samples * each], samples, each, each, block_bytes=block_bytes)
