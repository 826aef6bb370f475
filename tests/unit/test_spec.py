"""The spec's models say what the CRD's rules say, so a spec read past the API server is no surprise."""

from typing import Any

import pytest
from support.play import spec
from trainingjob_operator.core.facts import InvalidSpec, Job


def job(changes: dict[str, Any], status: dict[str, Any] | None = None) -> Job:
    metadata = {"name": "gpt", "namespace": "n", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return Job.from_object({"metadata": metadata, "spec": spec(**changes), "status": status})


DATA = spec()["data"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {}}, "spec.model: exactly one of preset and transformer must be set"),
        (
            {"data": {**DATA, "validation": {"fraction": 0.1, "uri": "s3://bucket/v"}}},
            "spec.data.validation: exactly one of fraction and uri must be set",
        ),
        (
            {"data": {**DATA, "validation": {"fraction": 0.5}, "test": {"fraction": 0.5}}},
            "spec.data: validation.fraction and test.fraction leave nothing to train on: their sum must be below 1",
        ),
        (
            {"data": {**DATA, "prepare": {"clean": {"minChars": 9, "maxChars": 8}}}},
            "spec.data.prepare.clean: minChars (9) must not be above maxChars (8)",
        ),
        (
            {"model": {"transformer": {"layers": 1, "dim": 100, "heads": 3}}},
            "spec.model.transformer: dim (100) must be a multiple of heads (3)",
        ),
        (
            {"task": {"kind": "image-classification"}},
            "spec: data.train.format is jsonl: image-classification reads parquet, with a column of encoded images",
        ),
        (
            {"workers": {"replicas": 9, "resources": {"gpus": 8}}},
            "spec: training.globalBatchSize (64) is below the number of ranks (72): raise it or ask for fewer workers",
        ),
        (
            {"storage": {"credentialsSecret": "a", "serviceAccountName": "b"}},
            "spec.storage: credentialsSecret and serviceAccountName exclude each other: remove one",
        ),
        (
            {"workers": {"template": {"env": [{"name": "TRAININGJOB_CONFIG", "value": "x"}]}}},
            "spec.workers.template: env: TRAININGJOB_* and RAY_AUTH_* belong to the operator",
        ),
        (
            {"runPolicy": {"startDeadlineSeconds": 61, "activeDeadlineSeconds": 60}},
            "spec.runPolicy: startDeadlineSeconds (61) must not be above activeDeadlineSeconds (60)",
        ),
        ({"data": None}, "spec: data is required for task.kind language-modeling"),
        ({"outputUri": None}, "spec: outputUri is required for task.kind language-modeling"),
        ({"task": {"kind": "custom"}}, "spec.task: custom is required for kind custom: give the command to run"),
        (
            {"task": {"kind": "language-modeling", "custom": {"command": ["true"]}}},
            "spec.task: custom is not for kind language-modeling: set kind to custom, or remove it",
        ),
        (
            {"task": {"kind": "custom", "custom": {"command": ["true"]}}, "data": None, "model": None},
            "spec: training is not for task.kind custom, whose command decides about it: remove it",
        ),
        (
            {"workers": {"replicas": 2, "minReplicas": 3}},
            "spec.workers: minReplicas (3) must not be above replicas (2)",
        ),
        (
            {"workers": {"minReplicas": 1}, "runPolicy": {"queueName": "research"}},
            "spec: workers.minReplicas and runPolicy.queueName exclude each other, because Kueue admits groups of a "
            "fixed size: remove one",
        ),
        ({"unknown": 1}, "spec.unknown: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_spec_is_one_sentence_and_no_error(changes: dict[str, Any], message: str) -> None:
    assert job(changes).spec == InvalidSpec(message)


def test_a_status_of_a_newer_operator_keeps_what_is_understood() -> None:
    status = {"phase": "Running", "observedGeneration": 3, "newField": 1, "pods": []}
    assert job({}, status).status.phase == "Running"
    assert job({}, {**status, "phase": "Dreaming"}).status.phase is None
