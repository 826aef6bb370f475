"""What is handed out of a run: it loads without this project and means the same."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from support.corpus import digits, images
from support.training import job, store_of
from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.state import Evaluated, LoggedStep, Progress
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.evaluation.evaluate import evaluate, scalars
from trainingjob_trainer.evaluation.export import export_model
from trainingjob_trainer.evaluation.report import write_report
from trainingjob_trainer.models import build_model, init_weights
from trainingjob_trainer.prepare.local import prepare_data
from trainingjob_trainer.tasks import TaskMetrics, build_task

FIFTH = {"fraction": 0.2}


@pytest.fixture(scope="module")
def stranger() -> ModuleType:
    """The script that recomputes metrics with nothing of the trainer."""
    path = Path(__file__).parents[1] / "e2e" / "evaluate_export.py"
    spec = importlib.util.spec_from_file_location("evaluate_export", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def finished(config: JobConfig) -> tuple[torch.nn.Module, Manifest, TaskMetrics, str]:
    """Prepare data, make an untrained model, evaluate and export it, write `result.json`."""
    store = store_of(config)
    manifest = prepare_data(config, store)
    model = build_model(config, manifest)
    init_weights(model, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from uniform predictions
    reader = Reader(store, manifest, "test", config.training.sequence_length)
    test = evaluate(model, build_task(config, manifest), reader, torch.device("cpu"), 8)
    uri = export_model(config, manifest, model.state_dict(), Attempt(2, store), 40)
    assert uri == f"{config.output_uri}/model/a2/"
    store.put("result.json", json.dumps({"modelUri": uri}).encode())
    return model.eval(), manifest, test, uri


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_loads_in_transformers_with_equal_logits_and_metrics(
    tmp_path: Path, stranger: ModuleType, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = [f"the number {i} comes after {i - 1} and before {i + 1}. " * 3 for i in range(100)]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    size = {"layers": 2, "dim": 32, "heads": 4, "kvHeads": 2, "ropeTheta": 500.0, "tieEmbeddings": tied}
    data = {
        "train": {"uri": f"{tmp_path}/raw.jsonl"},
        "validation": FIFTH,
        "test": FIFTH,
        "prepare": {"tokenizer": {"vocabSize": 300}},
    }
    ours, manifest, test, uri = finished(job(tmp_path, data=data, model={"transformer": size}))
    theirs = AutoModelForCausalLM.from_pretrained(uri)
    tokenizer = AutoTokenizer.from_pretrained(uri)
    prompt = tokenizer("the number 7", return_tensors="pt").input_ids
    assert tokenizer.decode(prompt[0]) == "the number 7"
    tokens = torch.randint(manifest.vocab_size or 0, (2, 16))
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, ours(tokens), atol=1e-4)
    assert theirs.dtype == torch.float32
    for settings in (theirs.config, theirs.generation_config, tokenizer):
        assert settings.eos_token_id == settings.bos_token_id == settings.pad_token_id == manifest.eos_id
    recomputed = stranger.main(str(tmp_path))
    assert isinstance(recomputed.pop("generated"), str)
    assert recomputed == pytest.approx(test, rel=1e-5)


def test_a_classifier_runs_in_plain_torch_with_equal_metrics(tmp_path: Path, stranger: ModuleType) -> None:
    ours, _, test, uri = finished(images(tmp_path, digits()))
    program = torch.export.load(f"{uri}model.pt2").module()
    for rows in (1, 5):
        pixels = torch.rand(rows, 1, 8, 8)
        with torch.no_grad():
            assert torch.allclose(program(pixels), ours(pixels), atol=1e-5)
    recomputed = stranger.main(str(tmp_path))
    assert recomputed.pop("confusionMatrix") == test["confusionMatrix"]
    assert recomputed == pytest.approx(scalars(test), rel=1e-5)


def test_a_text_classifier_runs_in_plain_torch_on_what_its_card_makes_of_a_text(
    tmp_path: Path, stranger: ModuleType
) -> None:
    from tokenizers import Tokenizer

    lines = [{"text": f"{animal} number {i} " * 3, "label": animal} for i in range(100) for animal in ("cat", "dog")]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {
        "train": {"uri": f"{tmp_path}/raw.jsonl"},
        "validation": FIFTH,
        "test": FIFTH,
        "prepare": {"tokenizer": {"vocabSize": 300}},
    }
    config = job(tmp_path, task={"kind": "text-classification"}, data=data)
    ours, manifest, test, uri = finished(config)
    recomputed = stranger.main(str(tmp_path))
    assert recomputed.pop("confusionMatrix") == test["confusionMatrix"]
    assert recomputed == pytest.approx(scalars(test), rel=1e-5)
    settings, tokenizer = json.loads(Path(uri, "config.json").read_text()), Tokenizer.from_file(f"{uri}tokenizer.json")
    ids = [settings["eos"], *tokenizer.encode("dog number 7").ids]
    row = torch.tensor([ids + [settings["eos"]] * (settings["shape"][0] - len(ids))])
    with torch.no_grad():
        assert torch.allclose(torch.export.load(f"{uri}model.pt2").module()(row), ours(row), atol=1e-5)
    assert settings["classes"] == manifest.classes == ["cat", "dog"]


def progress() -> Progress:
    history = [LoggedStep(step=s, loss=4 / s**0.3, learning_rate=1e-3, grad_norm=1.0) for s in range(1, 41)]
    evaluations = [Evaluated(step=s, metrics={"loss": 4 / s**0.3, "accuracy": s / 50}) for s in (20, 40)]
    return Progress(step=40, samples=400, history=history, evaluations=evaluations)


def test_the_report_shows_the_run_and_loads_nothing(tmp_path: Path) -> None:
    data = {"train": {"uri": "/d/", "format": "parquet"}, "augmentation": {"horizontalFlip": 0.5, "shift": 1}}
    config = job(tmp_path, task={"kind": "image-classification"}, data=data)
    split: Any = {"shards": [], "documents": 30, "bytes": 120}
    manifest = Manifest.model_validate(
        {
            "kind": "images", "dtype": "uint8", "shape": (1, 2, 2), "classes": ["cat", "<dog>"],
            "splits": {"train": split, "validation": split, "test": split}, "duplicates": 4321,
        }
    )  # fmt: skip
    per_class = [
        {"class": name, "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 15} for name in ("cat", "<dog>")
    ]
    test = {"loss": 1.25, "accuracy": 0.875, "perClass": per_class, "confusionMatrix": [[14, 1], [2, 13]]} | {
        "corruptSamples": 1234
    }
    uri = write_report(config, manifest, progress(), 20, test, Attempt(3, store_of(config)))
    assert uri == f"{tmp_path}/reports/a3/report.html"
    page = Path(uri).read_text()
    assert page.count("<svg") == 3
    for picture in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + picture[: picture.index("</svg>") + 6])
    for loads in ("src=", 'href="http', "url(http", "@import", "<script"):
        assert loads not in page
    assert "0.8750" in page
    assert page.count("1,234") == 1, "it is a fact about the evaluation, not one of its results"
    assert page.count("Corrupt samples") == 1
    assert "<td>Duplicates left out</td><td>4,321</td>" in page
    assert "Dropped by cleaning" not in page, "nothing was"
    assert "&lt;dog&gt;" in page
    assert "horizontalFlip 0.5, shift 1" in page
    assert "<dog>" not in page
    report = json.loads((tmp_path / "reports/a3/report.json").read_text())
    assert report["test"] == test
    assert report["data"]["augmentation"] == {"horizontalFlip": 0.5, "shift": 1}
    assert [point["step"] for point in report["history"]["train"]] == list(range(1, 41))
    assert report["history"]["validation"][1] == {"step": 40, "metrics": progress().evaluations[1].metrics}
