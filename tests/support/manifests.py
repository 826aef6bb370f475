"""The jobs of the end-to-end tests: small, real, and alike but for what a test is about."""

from typing import Any
from urllib.parse import urlsplit

Object = dict[str, Any]


def language_job(name: str, bucket: str, endpoint: str) -> Object:
    """A decoder that two workers train for 400 steps, a loss logged at each, a commit every 20."""
    return _job(name, bucket, endpoint) | {
        "spec": _common(name, bucket, endpoint)
        | {
            "data": {
                "train": {"uri": f"s3://{bucket}/raw/manual.jsonl", "format": "jsonl", "field": "text"},
                "validation": {"fraction": 0.05},
                "test": {"fraction": 0.05},
                "prepare": {"replicas": 2, "memory": "2Gi", "tokenizer": {"train": "bpe", "vocabSize": 1024}},
            },
            "model": {"transformer": {"layers": 2, "dim": 64, "heads": 4}},
            "training": {
                "steps": 400,
                "globalBatchSize": 8,
                "sequenceLength": 64,
                "precision": "float32",
                "deterministic": True,
                "logEvery": 1,
                "parallelism": {"fsdp": "full"},
                "optimizer": {"lr": 2e-3},
                "schedule": {"warmupSteps": 20},
            },
            "evaluation": {"everySteps": 100},
        }
    }


def elastic_job(name: str, bucket: str, endpoint: str) -> Object:
    """The language model on three workers at best and one at least, for long enough to lose and to gain some."""
    job = language_job(name, bucket, endpoint)
    spec = job["spec"]
    workers = {**spec["workers"], "replicas": 3, "minReplicas": 1}
    data = {**spec["data"], "prepare": {**spec["data"]["prepare"], "replicas": 1}}
    training = {**spec["training"], "steps": 1600, "globalBatchSize": 12}
    checkpoint = {**spec["checkpoint"], "everySteps": 50}
    changes = {"workers": workers, "data": data, "training": training, "checkpoint": checkpoint}
    return job | {"spec": spec | changes | {"evaluation": {"everySteps": 1000}}}


def digits_job(name: str, bucket: str, endpoint: str) -> Object:
    """A bidirectional encoder that learns scikit-learn's handwritten digits on two workers, with a proxy for others."""
    common = _common(name, bucket, endpoint)
    proxy = {"HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": str(urlsplit(endpoint).hostname)}
    common["workers"]["template"] = {"env": [{"name": name, "value": value} for name, value in proxy.items()]}
    return _job(name, bucket, endpoint) | {
        "spec": common
        | {
            "task": {"kind": "image-classification"},
            "data": {
                "train": {"uri": f"s3://{bucket}/raw/digits.parquet", "format": "parquet"},
                "validation": {"fraction": 0.1},
                "test": {"fraction": 0.2},
                "prepare": {"memory": "2Gi"},
            },
            "model": {"transformer": {"layers": 2, "dim": 64, "heads": 4, "patchSize": 4, "dropout": 0.1}},
            "training": {
                "steps": 300,
                "globalBatchSize": 64,
                "precision": "float32",
                "optimizer": {"lr": 1e-3},
                "schedule": {"warmupSteps": 30},
            },
            "evaluation": {"everySteps": 100},
        }
    }


def _job(name: str, bucket: str, endpoint: str) -> Object:
    return {"apiVersion": "trainingjob.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name}}


def _common(name: str, bucket: str, endpoint: str) -> Object:
    return {
        "workers": {"replicas": 2, "resources": {"cpu": "1", "memory": "2Gi"}},
        "storage": {"endpointUrl": endpoint, "credentialsSecret": "s3-credentials"},
        "outputUri": f"s3://{bucket}/runs/{name}",
        "checkpoint": {"everySteps": 20, "drainSeconds": 30},
    }
