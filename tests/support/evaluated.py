"""What a rank of an evaluation test does; it lies here because new processes import it by name."""

from __future__ import annotations

import torch
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.evaluation.evaluate import evaluate, scalars
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.parallel import World, pass_precision
from trainingjob_trainer.parallel.precision import expect_autocast
from trainingjob_trainer.tasks import build_task

from support.training import SEQUENCE, job, store_of


def evaluated(
    directory: str, max_samples: int | None, precision: torch.dtype = torch.float32
) -> tuple[dict[str, float], list[int], bool]:
    """Metrics, rows of each forward pass, and whether the model is in training mode again."""
    torch.set_num_threads(1)
    config = job(directory)
    store = store_of(config)
    manifest = Manifest.model_validate_json(store.get("data/manifest.json"))
    model = build_model(config, manifest)
    init_weights(model, 1)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    model.train()
    reader = Reader(store, manifest, "validation", SEQUENCE, skip_corrupt=True)
    expect_autocast()
    with pass_precision(World(0, 1, torch.device("cpu")), precision):
        found = evaluate(model, build_task(config, manifest), reader, torch.device("cpu"), 7, max_samples)
    return scalars(found), passes, model.training
