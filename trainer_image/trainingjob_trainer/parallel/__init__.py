"""All ranks as one: the world, the sharding of a model, and sums over ranks."""

from trainingjob_trainer.parallel.compiling import compiles
from trainingjob_trainer.parallel.gradients import StepSums, scale_and_clip
from trainingjob_trainer.parallel.layout import Layout, layout_of
from trainingjob_trainer.parallel.parallelize import parallelize
from trainingjob_trainer.parallel.precision import pass_dtype, pass_precision
from trainingjob_trainer.parallel.sharding import full_state, reshard, sync_gradients
from trainingjob_trainer.parallel.statistics import check_batch_norm, keep_where, statistics
from trainingjob_trainer.parallel.stragglers import Straggler, Stragglers
from trainingjob_trainer.parallel.tensor import loss_over_parts
from trainingjob_trainer.parallel.vote import Ballot, Vote
from trainingjob_trainer.parallel.world import World, local_part

__all__ = [
    "Ballot",
    "Layout",
    "StepSums",
    "Straggler",
    "Stragglers",
    "Vote",
    "World",
    "check_batch_norm",
    "compiles",
    "full_state",
    "keep_where",
    "layout_of",
    "local_part",
    "loss_over_parts",
    "parallelize",
    "pass_dtype",
    "pass_precision",
    "reshard",
    "scale_and_clip",
    "statistics",
    "sync_gradients",
]
