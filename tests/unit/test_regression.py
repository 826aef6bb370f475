"""Numbers from columns: what is read, what is refused, the losses, the export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.corpus import diabetes
from support.training import job, store_of
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.config import JobConfig, Task
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.errors import DataError, UserError
from trainingjob_trainer.evaluation.export import export_model
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.prepare.local import prepare_data
from trainingjob_trainer.tasks import weightless
from trainingjob_trainer.tasks.regression import Regression


def whole(config: JobConfig, manifest: Manifest, split: Any) -> tuple[torch.Tensor, torch.Tensor]:
    reader = Reader(store_of(config), manifest, split, config.training.sequence_length)
    batch = reader.read(range(len(reader)))
    return batch.inputs, batch.targets


def test_columns_are_scaled_by_the_training_split_alone_and_targets_are_as_they_were(tmp_path: Path) -> None:
    from sklearn.datasets import load_diabetes

    config = diabetes(tmp_path)
    manifest = prepare_data(config, store_of(config))
    inputs, targets = whole(config, manifest, "train")
    assert torch.allclose(inputs.double().mean(0), torch.zeros(10, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(inputs.double().std(0, correction=0), torch.ones(10, dtype=torch.float64), atol=1e-6)
    scales = manifest.scales or []
    assert scales[-1].mean == pytest.approx(targets.double().mean().item(), rel=1e-9)
    bunch = load_diabetes(scaled=False)
    known = {tuple(row): value for row, value in zip(bunch.data.astype(np.float32), bunch.target, strict=True)}
    seen = 0
    for split in manifest.splits:
        inputs, targets = whole(config, manifest, split)
        seen += len(targets)
        raw = inputs.double() * torch.tensor([s.deviation for s in scales[:-1]]) + torch.tensor(
            [s.mean for s in scales[:-1]]
        )
        for row, target in zip(raw.numpy(), targets.tolist(), strict=True):
            nearest = min(known, key=lambda other: float(np.abs(row - other).max()))
            assert np.allclose(row, nearest, rtol=1e-4, atol=1e-4)
            assert known[nearest] == target
    assert seen == 442


def test_rows_with_equal_features_share_a_split_and_have_one_order_whatever_that_of_the_source(tmp_path: Path) -> None:
    """What was measured ten times is not both trained on and held out."""
    rows, streams = [f"{subject},{subject % 7},{value}" for subject in range(40) for value in range(10)], []
    part = {"fraction": 0.3}
    for turn in (1, -1):
        (tmp_path / "raw.csv").write_text("\n".join(["a,b,label", *rows[::turn]]) + "\n")
        source = {"uri": f"{tmp_path}/raw.csv", "format": "csv", "features": ["a", "b"]}
        data = {"train": source, "validation": part, "test": part}
        config = job(tmp_path / str(turn), task={"kind": "regression"}, data=data, model={"mlp": {}})
        manifest = prepare_data(config, store_of(config))
        streams.append([whole(config, manifest, split) for split in manifest.splits])
    subjects = [{tuple(row) for row in inputs.tolist()} for inputs, _ in streams[0]]
    assert sum(len(found) for found in subjects) == len(set.union(*subjects)) == 40
    assert sum(len(targets) for _, targets in streams[0]) == 400
    for (inputs, targets), (again, and_again) in zip(*streams, strict=True):
        assert torch.equal(inputs, again)
        assert torch.equal(targets, and_again)


def test_rows_that_are_held_out_by_data_of_their_own_are_not_trained_on(tmp_path: Path) -> None:
    """Of the measurements of ten subjects, some of two are in the test data."""
    head, rows = "a,b,label", [f"{subject},1,{value}" for subject in range(10) for value in range(5)]
    (tmp_path / "raw.csv").write_text("\n".join([head, *rows]) + "\n")
    (tmp_path / "test.csv").write_text("\n".join([head, "3,1,100", "3,1,101", "4,1,102"]) + "\n")
    source = {"uri": f"{tmp_path}/raw.csv", "format": "csv", "features": ["a", "b"]}
    data = {"train": source, "validation": {"fraction": 0.3}, "test": {"uri": f"{tmp_path}/test.csv"}}
    config = job(tmp_path, task={"kind": "regression"}, data=data, model={"mlp": {}})
    manifest = prepare_data(config, store_of(config))
    _, held_out = whole(config, manifest, "test")
    assert sorted(held_out.tolist()) == [100, 101, 102]
    assert sum(manifest.splits[split].documents for split in ("train", "validation")) == 40
    assert manifest.duplicates == 10
    assert "left out: 10 duplicates" in manifest.summary(1)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("a,b,label\n1,2,3\n1,two,3\n", DataError, "has 'two' in 'b' where a finite number was expected"),
        ("a,b,label\n1,2,nan\n", DataError, "has 'nan' in 'label' where a finite"),
        ("a,b,label\n1,1e60,3\n", DataError, "has '1e60' in 'b' where a finite"),
        ("a,b,label\n1,2\n", DataError, r"raw\.csv, line 2 is not CSV as its first line says: expected 3 values"),
        ("a,c,label\n1,2,3\n", UserError, "has no field 'b'; its fields are 'a', 'c', 'label'"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path: Path, text: str, error: Any, message: str) -> None:
    (tmp_path / "raw.csv").write_text(text)
    source = {"uri": f"{tmp_path}/raw.csv", "format": "csv", "features": ["a", "b"]}
    config = job(tmp_path, task={"kind": "regression"}, data={"train": source}, model={"mlp": {}})
    with pytest.raises(error, match=message):
        prepare_data(config, store_of(config))


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        ("mse", lambda error: error**2),
        ("mae", lambda error: error.abs()),
        ("huber", lambda error: torch.where(error.abs() < 0.5, error**2 / 2, 0.5 * (error.abs() - 0.25))),
    ],
)
def test_each_loss_is_its_formula_and_rows_without_weight_add_nothing(loss: Any, formula: Any) -> None:
    scale = {"mean": 10.0, "deviation": 4.0}
    split: Any = {"shards": [], "documents": 0, "bytes": 0}
    manifest = Manifest.model_validate(
        {
            "kind": "tables", "dtype": "float32", "shape": [1], "scales": [scale, scale],
            "splits": dict.fromkeys(("train", "validation", "test"), split),
        }
    )  # fmt: skip
    task = Regression(manifest, Task(kind="regression", loss=loss, huber_delta=0.5))
    targets, predictions = torch.tensor([10.0, 14.0, -100.0]), torch.tensor([0.3, 0.0, 1.0], requires_grad=True)
    expected = formula(predictions - (targets - 10) / 4).sum()
    padded = torch.cat([predictions, torch.tensor([7.0])]), torch.cat([targets, weightless(targets[:1])])
    total, count = task.loss_of(*padded)
    assert count == 3
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(total, predictions)
    (wanted,) = torch.autograd.grad(expected, predictions)
    assert torch.allclose(gradient, wanted)


def test_the_exported_program_takes_and_gives_values_as_they_are_in_the_data(tmp_path: Path) -> None:
    config = diabetes(tmp_path)
    store = store_of(config)
    manifest = prepare_data(config, store)
    model = build_model(config, manifest)
    init_weights(model, 1)
    uri = export_model(config, manifest, model.state_dict(), Attempt(1, store), 40)
    program = torch.export.load(f"{uri}model.pt2").module()
    scales = manifest.scales or []
    inputs, _ = whole(config, manifest, "test")
    raw = inputs * torch.tensor([s.deviation for s in scales[:-1]]) + torch.tensor([s.mean for s in scales[:-1]])
    with torch.no_grad():
        expected = model(inputs) * scales[-1].deviation + scales[-1].mean
        assert torch.allclose(program(raw), expected, rtol=1e-4)
    settings = json.loads(Path(uri, "config.json").read_text())
    assert settings["features"] == config.data.train.features
    assert settings["target"] == "progression"
