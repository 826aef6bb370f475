"""Blocks of samples without shards around them."""

from trainingjob_trainer.data.order import Blocks


def blocks_of(samples: int, each: int, overlap: int = 0) -> Blocks:
    """Of one shard of `samples` samples of `each` bytes; as of tokens of `overlap` bytes if that is not 0."""
    return Blocks.of([samples * each + overlap], samples, each, overlap or each, overlap)
