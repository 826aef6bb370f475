"""What to train: the part of a TrainingJob's spec that the trainer reads, as typed, validated objects.

The same models are the operator's source for the CRD's schema (so: pydantic only, no torch, no boto3) and the trainer's
only configuration. On the wire the names are camelCase, in Python snake_case. Every string, list and map has a maximum,
because the API server's CEL cost budget needs one.
"""

from trainingjob_trainer.config.architectures import Cnn, HuggingFace, Mlp, Rnn, Timm
from trainingjob_trainer.config.base import (
    LARGEST_COUNT,
    QUANTITY,
    Argument,
    Config,
    Name,
    ObjectName,
    Quantity,
    Uri,
    amount,
    digest,
)
from trainingjob_trainer.config.data import Augmentation, Clean, Data, Prepare, Source, Split, Tokenizer
from trainingjob_trainer.config.mistakes import mistakes, nearest
from trainingjob_trainer.config.model import ARCHITECTURES, PRESETS, Model, RopeScaling, Transformer
from trainingjob_trainer.config.optimizer import EarlyStopping, Optimizer, Point, Schedule
from trainingjob_trainer.config.parallelism import Parallelism
from trainingjob_trainer.config.spec import JobConfig, JobSpec, PodConfig, TrainerSpec
from trainingjob_trainer.config.task import LOSSES, METRICS, OWN_TASK_PARTS, REQUIRED, Custom, Kind, Storage, Task
from trainingjob_trainer.config.training import Checkpoint, Evaluation, Profile, Training

__all__ = [
    "ARCHITECTURES",
    "Argument",
    "Augmentation",
    "Checkpoint",
    "Clean",
    "Cnn",
    "Config",
    "Custom",
    "Data",
    "EarlyStopping",
    "Evaluation",
    "HuggingFace",
    "JobConfig",
    "JobSpec",
    "Kind",
    "LARGEST_COUNT",
    "LOSSES",
    "METRICS",
    "Mlp",
    "Model",
    "Name",
    "OWN_TASK_PARTS",
    "ObjectName",
    "Optimizer",
    "PRESETS",
    "QUANTITY",
    "Parallelism",
    "PodConfig",
    "Point",
    "Profile",
    "Prepare",
    "Quantity",
    "REQUIRED",
    "Rnn",
    "RopeScaling",
    "Schedule",
    "Source",
    "Split",
    "Storage",
    "Task",
    "Timm",
    "Tokenizer",
    "TrainerSpec",
    "Training",
    "Transformer",
    "Uri",
    "amount",
    "digest",
    "mistakes",
    "nearest",
]
