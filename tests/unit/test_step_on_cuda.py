"""What of a step or an evaluation on a GPU can be seen without one: all that meets is there, and the host waits for
none of it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.pretended_cuda import DEVICE, learner_on_cuda, pretended_cuda
from support.rank_functions import masked_batch
from support.training import OPTIMIZERS, prepared, store_of
from trainingjob_trainer.checkpoint.state import state_tensors
from trainingjob_trainer.config import JobConfig, Task
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest, Scale, SplitData
from trainingjob_trainer.data.reader import Batch
from trainingjob_trainer.parallel import StepSums
from trainingjob_trainer.step import Stepper
from trainingjob_trainer.tasks import EvaluationMetrics, head
from trainingjob_trainer.tasks.classification import ClassificationMetrics
from trainingjob_trainer.tasks.language_modeling import LanguageModelingMetrics
from trainingjob_trainer.tasks.multi_label import MultiLabelMetrics
from trainingjob_trainer.tasks.regression import Regression, RegressionMetrics

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch knows no CUDA")

ROWS, PASSES = 3, 2


def run_of(directory: Path, **changes: Any) -> JobConfig:
    training = {"precision": "auto", "deterministic": False, "globalBatchSize": ROWS, "emaDecay": 0.9}
    return prepared(directory, **training | changes)


def a_step(stepper: Stepper) -> StepSums:
    """Of tokens as the reader gives them."""
    batch = masked_batch(0, ROWS, stepper.training.sequence_length)
    assert stepper.dealing.passes == PASSES
    return stepper(0, Batch(batch.inputs.to(torch.uint16), batch.targets.int()))


def uncompiled(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
    """What `torch.compile` is given, as it is: generated kernels need a GPU."""
    return function


@pytest.mark.parametrize(
    ("optimizer", "compiled"),
    [("adamw", "auto"), *((name, "never") for name in OPTIMIZERS), ("penalised", "never")],
)
def test_a_step_is_all_on_the_device_and_the_host_waits_for_none_of_it(
    tmp_path: Path, optimizer: str, compiled: str
) -> None:
    settings = OPTIMIZERS | {"penalised": {"name": "sgd", "lr": 0.1, "l1": 1e-3, "l2": 1e-3}}
    config = run_of(tmp_path, optimizer=settings[optimizer], compile=compiled)
    manifest = Manifest.model_validate_json(store_of(config).get(MANIFEST_KEY))
    fresh = mock.patch.object(head, "_compiled", head._compiled.__wrapped__)  # what is made here is kept nowhere
    compiler = mock.patch.dict(os.environ, CC=sys.executable)  # a program that is there
    with fresh, compiler, mock.patch.object(torch, "compile", uncompiled), pretended_cuda() as watched:
        stepper = learner_on_cuda(config, manifest).stepper
        sums = a_step(stepper)
    assert watched.waits == []
    assert watched.unknown == set(), "CUDA has no kernel for it"
    assert stepper.dtype == torch.bfloat16
    assert {(number.device, number.dtype) for number in sums} == {(DEVICE, torch.float64)}
    state = state_tensors(stepper.model, stepper.optimizer, stepper.average)
    assert {(tensor.device, tensor.dtype) for tensor in state.values()} == {(DEVICE, torch.float32)}


SCALE = Scale(mean=1.0, deviation=2.0)
REGRESSION = Regression(
    Manifest(kind="tables", dtype="float32", splits={}, shape=(1,), scales=[SCALE, SCALE]), Task(kind="regression")
)
TEXT = SplitData(shards=[], documents=1, bytes=10)
# How its sums are made, then the shapes of logits and targets.
EVALUATED: dict[str, tuple[Callable[[], EvaluationMetrics], tuple[int, ...], tuple[int, ...]]] = {
    "language": (lambda: LanguageModelingMetrics(TEXT, DEVICE), (ROWS, 16, 32), (ROWS, 16)),
    "one label": (lambda: ClassificationMetrics(["a", "b"], DEVICE), (ROWS, 2), (ROWS,)),
    "any labels": (lambda: MultiLabelMetrics(["a", "b"], DEVICE), (ROWS, 2), (ROWS, 2)),
    "a number": (lambda: RegressionMetrics(REGRESSION, SCALE, DEVICE), (ROWS,), (ROWS,)),
}


@pytest.mark.parametrize("task", EVALUATED)
def test_what_is_evaluated_is_added_up_on_the_device_and_the_host_waits_for_none_of_it(task: str) -> None:
    make, of_logits, of_targets = EVALUATED[task]
    with pretended_cuda() as watched:
        logits = torch.zeros(of_logits, dtype=torch.bfloat16, device=DEVICE)
        targets = torch.zeros(of_targets, dtype=torch.float32 if task == "a number" else torch.int64, device=DEVICE)
        make().update(logits, targets)
    assert watched.waits == []
    assert watched.unknown == set(), "CUDA has no kernel for it"
