"""What the demo claims of a run can be false, and then it says so."""

import io
import json
import math
from array import array
from typing import Any, cast

import pytest
from trainingjob_cli.jobs import Job
from trainingjob_cli.proofs import RunDirectory, _beats_unigram, _loss_fell, unigram_entropy

TOKENS = array("H", [1, 1, 2, 2, 3, 3, 4, 4])
MANIFEST = {"dtype": "uint16", "splits": {"test": {"shards": [{"key": "data/t-0.bin"}, {"key": "data/t-1.bin"}]}}}


class Bucket:
    """Objects, read as boto3 reads them."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        assert Bucket == "b"
        return {"Body": io.BytesIO(self._objects[Key])}


def run(losses: list[float], test_loss: float, split: str = "test") -> tuple[RunDirectory, Job]:
    report = {"history": {"train": [{"step": 10 * index, "loss": loss} for index, loss in enumerate(losses)]}}
    objects = {
        "run/reports/a1/report.json": json.dumps(report).encode(),
        "run/data/manifest.json": json.dumps(MANIFEST).encode(),
        "run/data/t-0.bin": TOKENS[:5].tobytes(),
        "run/data/t-1.bin": TOKENS[5:].tobytes(),
    }
    job = Job.from_manifest(
        {
            "metadata": {"name": "j", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {
                "phase": "Succeeded",
                "evaluation": {"split": split, "step": 20, "metrics": {"loss": test_loss}},
                "result": {"modelUri": "s3://b/run/model/a1/", "reportUri": "s3://b/run/reports/a1/report.html"},
            },
        }
    )
    return RunDirectory(cast(Any, Bucket(objects)), job), job


@pytest.mark.parametrize(("losses", "holds"), [([7.0, 5.0, 4.0], True), ([7.0, 6.9], False), ([7.0, 8.0], False)])
def test_the_loss_has_fallen_only_if_it_has(losses: list[float], holds: bool) -> None:
    directory, _ = run(losses, 1.0)
    assert _loss_fell(directory).holds is holds


@pytest.mark.parametrize(("loss", "holds"), [(0.5 * math.log(4), True), (0.95 * math.log(4), False), (9.0, False)])
def test_a_model_must_be_well_under_the_unigram_entropy_of_the_test_tokens(loss: float, holds: bool) -> None:
    directory, job = run([7.0, 4.0], loss)
    claim = _beats_unigram(directory, job)
    assert claim.holds is holds
    assert f"{math.log(4):.2f}" in claim.text


def test_an_evaluation_of_another_split_proves_nothing() -> None:
    directory, job = run([7.0, 4.0], 0.1, split="validation")
    assert not _beats_unigram(directory, job).holds


def test_unigram_entropy_is_that_of_the_frequencies() -> None:
    assert unigram_entropy([5, 5, 5]) == 0
    assert unigram_entropy([1, 2]) == pytest.approx(math.log(2))
    assert unigram_entropy([1, 1, 1, 2]) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
