"""Specs that are refused, with what is said: by the API server's rules and, in the same words, by the models."""

from __future__ import annotations

from typing import Any

from support.bad_data import DATA, DATA_BY_SCHEMA
from support.bad_tasks import TASKS
from support.merge_patch import Json, merged


def _template(**fields: Any) -> Json:
    return {"workers": {"template": fields}}


def _transformer(**fields: Any) -> Json:
    return {"model": {"preset": None, "transformer": {"layers": 1, "dim": 64, "heads": 4, **fields}}}


GPT_NEOX = {"config": '{"model_type": "gpt_neox"}'}
INVALID, REQUIRED, FORBIDDEN = "Invalid value", "Required value", "Forbidden"

# Changes to a valid spec, the field and the kind of mistake that the API server names, and the message.
BY_RULE: list[tuple[Json, str, str, str]] = [
    ({"outputUri": None}, "outputUri", REQUIRED, "outputUri is required for task.kind language-modeling"),
    ({"data": None}, "data", REQUIRED, "data is required for task.kind language-modeling"),
    ({"model": None}, "model", REQUIRED, "model is required for task.kind language-modeling"),
    ({"training": None}, "training", REQUIRED, "training is required for task.kind language-modeling"),
    *(
        (
            {"task": {"kind": "custom", "custom": {"command": ["true"]}}, **dict.fromkeys(others)},
            part,
            FORBIDDEN,
            f"{part} is not for task.kind custom, whose command decides about it: remove it",
        )
        for part, others in (
            ("data", ("model", "training")),
            ("model", ("data", "training")),
            ("training", ("data", "model")),
        )
    ),
    (
        {"task": {"kind": "custom"}},
        "task.custom",
        REQUIRED,
        "custom is required for kind custom: give the command to run",
    ),
    (
        {"task": {"custom": {"command": ["true"]}}},
        "task.custom",
        FORBIDDEN,
        "custom is not for kind language-modeling: set kind to custom, or remove it",
    ),
    (
        {"training": {"steps": None}},
        "training.steps",
        INVALID,
        "exactly one of steps, epochs and tokens must be set, not 0",
    ),
    (
        {"training": {"epochs": 2.5, "tokens": 1000}},
        "training.steps",
        INVALID,
        "exactly one of steps, epochs and tokens must be set, not 3",
    ),
    (
        {"task": {"kind": "text-classification"}, "training": {"steps": None, "tokens": 1000}},
        "training.tokens",
        FORBIDDEN,
        "training.tokens is not for task.kind text-classification: give steps or epochs",
    ),
    (
        {"workers": {"replicas": 9, "resources": {"gpus": 8}}},
        "training.globalBatchSize",
        INVALID,
        "training.globalBatchSize (64) is below the number of ranks (72): raise it or ask for fewer workers",
    ),
    (
        {"training": {"parallelism": {"fsdpRanks": 2}}},
        "training.parallelism.fsdpRanks",
        INVALID,
        "fsdpRanks (2) is for fsdp full, not auto",
    ),
    (
        {"training": {"parallelism": {"fsdp": "full", "fsdpRanks": 2, "tensor": 2}}},
        "training.parallelism",
        INVALID,
        "training.parallelism: groups of fsdpRanks x tensor (4) must divide the number of ranks (2; of an elastic job "
        "those of a pod)",
    ),
    (
        {"training": {"parallelism": {"fsdp": "full", "fsdpRanks": 2}}, "workers": {"minReplicas": 1}},
        "training.parallelism",
        INVALID,
        "training.parallelism: groups of fsdpRanks x tensor (2) must divide the number of ranks (1; of an elastic job "
        "those of a pod)",
    ),
    (
        {
            "task": {"kind": "image-classification"},
            "data": {"train": {"format": "parquet"}},
            "training": {"parallelism": {"tensor": 2}},
        },
        "training.parallelism.tensor",
        INVALID,
        "training.parallelism.tensor (2) is not for task.kind image-classification: only decoders can be split",
    ),
    *(
        (
            {"training": {"parallelism": {"tensor": 2}}, "model": {"preset": None, name: model}},
            "training.parallelism.tensor",
            INVALID,
            f"training.parallelism.tensor (2) is not for model.{name}: only decoders of our own can be split",
        )
        for name, model in (("rnn", {}), ("huggingface", GPT_NEOX))
    ),
    (
        {"training": {"labelSmoothing": 0.1, "parallelism": {"tensor": 2}}},
        "training.parallelism.tensor",
        INVALID,
        "training.parallelism.tensor (2) and training.labelSmoothing exclude each other: remove one",
    ),
    (
        {"workers": {"replicas": 3}, "training": {"parallelism": {"tensor": 3}}},
        "training.parallelism.tensor",
        INVALID,
        "training.parallelism.tensor (3) must divide the key and value heads of the model (4)",
    ),
    (
        {"training": {"parallelism": {"tensor": 2}}, **_transformer(heads=4, kvHeads=1)},
        "training.parallelism.tensor",
        INVALID,
        "training.parallelism.tensor (2) must divide the key and value heads of the model (1)",
    ),
    (
        {"training": {"sequenceLength": 33, "parallelism": {"tensor": 2}}},
        "training.parallelism.tensor",
        INVALID,
        "training.parallelism.tensor (2) must divide training.sequenceLength (33)",
    ),
    (
        {"runPolicy": {"startDeadlineSeconds": 61, "activeDeadlineSeconds": 60}},
        "runPolicy.startDeadlineSeconds",
        INVALID,
        "startDeadlineSeconds (61) must not be above activeDeadlineSeconds (60)",
    ),
    (
        {"workers": {"replicas": 2, "minReplicas": 3}},
        "workers.minReplicas",
        INVALID,
        "workers.minReplicas (3) must not be above workers.replicas (2)",
    ),
    (
        {"workers": {"minReplicas": 1}, "runPolicy": {"queueName": "research"}},
        "workers.minReplicas",
        FORBIDDEN,
        "workers.minReplicas and runPolicy.queueName exclude each other, because Kueue admits groups of a fixed size: "
        "remove one",
    ),
    (
        {"workers": {"minReplicas": 1}, "task": {"kind": "custom", "custom": {"command": ["true"]}}}
        | dict.fromkeys(("data", "model", "training")),
        "workers.minReplicas",
        FORBIDDEN,
        "workers.minReplicas is not for task.kind custom, whose commands cannot take a new peer in: remove it",
    ),
    (
        {"training": {"optimizer": {"l2": 0.1, "weightDecay": 0.125}}},
        "training.optimizer.l2",
        INVALID,
        "l2 (0.100) is coupled and weightDecay (0.125) decoupled decay: set one of them",
    ),
    *(
        (
            {"training": {"optimizer": {"nesterov": True, **given}}},
            "training.optimizer.nesterov",
            INVALID,
            f"nesterov is for name sgd with a momentum above 0, not {said}",
        )
        for given, said in (({}, "adamw with its default"), ({"name": "sgd", "momentum": 0}, "sgd with 0"))
    ),
    (
        {"training": {"schedule": {"name": "points"}}},
        "training.schedule.points",
        INVALID,
        "points are given exactly if name is points: name is points, points are 0",
    ),
    (
        {"training": {"schedule": {"name": "points", "points": [{"step": 5, "ratio": 1}, {"step": 5, "ratio": 0}]}}},
        "training.schedule.points",
        INVALID,
        "points must be in rising order of step, without repetition; their steps are [5, 5]",
    ),
    (
        {"storage": {"credentialsSecret": "s3", "serviceAccountName": "trainer"}},
        "storage",
        INVALID,
        "credentialsSecret (s3) and serviceAccountName (trainer) exclude each other: remove one",
    ),
    (
        {"checkpoint": {"everySteps": 20, "everyMinutes": 2.5}},
        "checkpoint",
        INVALID,
        "everySteps (20) and everyMinutes (2.50) exclude each other: remove one",
    ),
    (
        {"data": {"validation": {"fraction": 0.1, "uri": "s3://corpus/v"}}},
        "data.validation",
        INVALID,
        "exactly one of fraction and uri must be set, not both",
    ),
    ({"data": {"test": {}}}, "data.test", INVALID, "exactly one of fraction and uri must be set, not none"),
    (
        {"data": {"validation": {"fraction": 0.5}, "test": {"fraction": 0.5}}},
        "data",
        INVALID,
        "validation.fraction (0.50) and test.fraction (0.50) leave nothing to train on: their sum must be below 1",
    ),
    (
        {"data": {"prepare": {"clean": {"minChars": 9, "maxChars": 8}}}},
        "data.prepare.clean.minChars",
        INVALID,
        "minChars (9) must not be above maxChars (8)",
    ),
    *TASKS,
    *DATA,
    (
        {"model": {"preset": None}},
        "model",
        INVALID,
        "exactly one of preset, transformer, cnn, rnn, mlp, huggingface, timm must be set, not 0",
    ),
    (
        {"model": {"transformer": {"layers": 1, "dim": 64, "heads": 4}}},
        "model",
        INVALID,
        "exactly one of preset, transformer, cnn, rnn, mlp, huggingface, timm must be set, not 2",
    ),
    (
        _transformer(dim=100, heads=3),
        "model.transformer.dim",
        INVALID,
        "dim (100) must be a multiple of heads (3), or headDim be set",
    ),
    (
        {
            "task": {"kind": "image-classification"},
            "data": {"train": {"format": "parquet"}},
            "model": {"initFrom": {"uri": "s3://models/gpt2"}},
        },
        "model.initFrom",
        FORBIDDEN,
        "model.initFrom is for task.kind language-modeling or models of libraries, not image-classification with "
        "another model: remove it",
    ),
    (
        {"model": {"preset": None, "rnn": {}, "initFrom": {"uri": "s3://models/gpt2"}}},
        "model.initFrom",
        FORBIDDEN,
        "initFrom is for preset, transformer, huggingface and timm: remove it",
    ),
    (
        {"model": {"preset": None, "huggingface": {}}},
        "model.huggingface",
        REQUIRED,
        "huggingface.config is required without initFrom, whose config.json would stand for it",
    ),
    (
        _transformer(context=64),
        "model.transformer.context",
        INVALID,
        "context (64) is for positions learned: remove it",
    ),
    (
        _transformer(ropeScaling={"factor": 8, "lowFreqFactor": 4}),
        "model.transformer.ropeScaling.lowFreqFactor",
        INVALID,
        "lowFreqFactor (4.000) must be below highFreqFactor (4.000)",
    ),
    (
        merged(_transformer(positions="learned", ropeScaling={"factor": 8}), {"model": {"export": "none"}}),
        "model.transformer.ropeScaling",
        INVALID,
        "ropeScaling is for positions rotary, not learned: remove it",
    ),
    *(
        (
            _transformer(**parts),
            "model.transformer",
            INVALID,
            f"model.transformer (norm {norm}, positions rotary, ffn {ffn}, bias {bias}) has no counterpart among "
            "GPT-2, Llama and Qwen to be exported to: change it, or set model.export to none",
        )
        for parts, norm, ffn, bias in (
            ({"norm": "layernorm"}, "layernorm", "swiglu", "none"),
            ({"ffn": "gelu"}, "rmsnorm", "gelu", "none"),
            ({"qkNorm": True, "bias": "qkv"}, "rmsnorm", "swiglu", "qkv"),
        )
    ),
    (
        _transformer(positions="learned", norm="layernorm", ffn="gelu", bias="all", kvHeads=2),
        "model.transformer",
        INVALID,
        "model.transformer (norm layernorm, positions learned, ffn gelu, bias all) has no counterpart among GPT-2, "
        "Llama and Qwen to be exported to: change it, or set model.export to none",
    ),
    (
        merged(
            _transformer(positions="learned", context=512),
            {"model": {"export": "none"}, "training": {"sequenceLength": 513}},
        ),
        "training.sequenceLength",
        INVALID,
        "training.sequenceLength (513) must not be above model.transformer.context (512)",
    ),
    (
        _transformer(dim=12, heads=4),
        "model.transformer.dim",
        INVALID,
        "dim / heads (3) must be even for rotary positions",
    ),
    (_transformer(kvHeads=3), "model.transformer.kvHeads", INVALID, "heads (4) must be a multiple of kvHeads (3)"),
    (
        _template(labels={"trainingjob.io/member": "true"}),
        "workers.template.labels",
        INVALID,
        "labels: trainingjob.io/member cannot be set, trainingjob.io/* belongs to the operator",
    ),
    (
        _template(env=[{"name": "OK", "value": "1"}, {"name": "RAY_AUTH_MODE", "value": "none"}]),
        "workers.template.env",
        INVALID,
        "env: RAY_AUTH_MODE cannot be set, TRAININGJOB_* and RAY_AUTH_* belong to the operator",
    ),
    (
        _template(env=[{"name": "BOTH", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]),
        "workers.template.env[0].valueFrom",
        INVALID,
        "BOTH has value and valueFrom: remove one",
    ),
    (
        _template(volumes=[{"name": "trainingjob-tmp", "emptyDir": {}}]),
        "workers.template.volumes",
        INVALID,
        "volumes: trainingjob-tmp must have another name, trainingjob-* belongs to the operator",
    ),
    (
        _template(volumeMounts=[{"name": "nope", "mountPath": "/x"}]),
        "workers.template.volumeMounts",
        INVALID,
        "volumeMounts: nope is none of the template's volumes",
    ),
    (
        _template(volumes=[{"name": "v", "emptyDir": {}}], volumeMounts=[{"name": "v", "mountPath": "/dev/shm"}]),
        "workers.template.volumeMounts[0].mountPath",
        INVALID,
        "mountPath (/dev/shm) is taken by the operator: mount the volume elsewhere",
    ),
    (
        _template(tolerations=[{"effect": "NoSchedule"}]),
        "workers.template.tolerations[0]",
        INVALID,
        "key is missing: only with operator Exists a toleration is for every key",
    ),
    (
        _template(tolerations=[{"key": "gpu", "operator": "Exists", "value": "a100"}]),
        "workers.template.tolerations[0].value",
        INVALID,
        "value (a100) is not for operator Exists: remove it, or set operator to Equal",
    ),
    (
        _template(tolerations=[{"key": "gpu", "value": "a100", "tolerationSeconds": 5}]),
        "workers.template.tolerations[0].tolerationSeconds",
        INVALID,
        "tolerationSeconds (5) is for effect NoExecute only: set effect to NoExecute, or remove it",
    ),
]

# Changes to a valid spec that the schema refuses, and what the API server says then.
BY_SCHEMA: list[tuple[Json, str]] = [
    ({"outputUri": "http://models/run"}, 'spec.outputUri: Invalid value: "http://models/run"'),
    *DATA_BY_SCHEMA,
    ({"training": {"steps": "many"}}, "spec.training.steps in body must be of type integer"),
    *(
        (
            {"training": {"microBatchSize": value}},
            f"spec.training.microBatchSize: Invalid value: {said}: must be a number from 1 to 65536, or auto",
        )
        for value, said in ((0, "0"), (65537, "65537"), ("many", '"many"'))
    ),
    (
        {"training": {"profile": {"fromStep": 1, "steps": 101}}},
        "spec.training.profile.steps in body should be less than or equal to 100",
    ),
    ({"training": {"steps": 0}}, "spec.training.steps in body should be greater than or equal to 1"),
    ({"training": {"optimizer": {"lr": -1}}}, "spec.training.optimizer.lr in body should be greater than 0"),
    (
        {"training": {"optimizer": {"betas": [0.9]}}},
        "spec.training.optimizer.betas in body should have at least 2 items",
    ),
    (
        {"training": {"optimizer": {"name": "adamax"}}},
        'spec.training.optimizer.name: Unsupported value: "adamax": supported values: "adamw"',
    ),
    (
        {"task": {"kind": "poetry"}},
        'spec.task.kind: Unsupported value: "poetry": supported values: "language-modeling", "text-classification"',
    ),
    ({"model": {"preset": "gpt-9"}}, 'spec.model.preset: Unsupported value: "gpt-9": supported values: "gpt-nano"'),
    ({"training": {"stepz": 5}}, 'unknown field "spec.training.stepz"'),
    ({"checkpoint": {"drainSeconds": 1}}, "spec.checkpoint.drainSeconds in body should be greater than or equal to 5"),
    ({"workers": {"replicas": 5000}}, "spec.workers.replicas in body should be less than or equal to 4096"),
    ({"workers": {"minReplicas": 0}}, "spec.workers.minReplicas in body should be greater than or equal to 1"),
    ({"workers": {"replicas": 0}}, "spec.workers.replicas in body should be greater than or equal to 1"),
    ({"workers": {"resources": {"memory": "lots"}}}, 'spec.workers.resources.memory: Invalid value: "lots"'),
    ({"workers": {"resources": {"cpu": "0"}}}, 'spec.workers.resources.cpu: Invalid value: "0"'),
    (
        {"workers": {"resources": {"gpuResourceName": "gpu"}}},
        'spec.workers.resources.gpuResourceName: Invalid value: "gpu"',
    ),
    ({"storage": {"credentialsSecret": "My Secret"}}, 'spec.storage.credentialsSecret: Invalid value: "My Secret"'),
    ({"storage": {"endpointUrl": "minio:9000"}}, 'spec.storage.endpointUrl: Invalid value: "minio:9000"'),
    ({"storage": {"region": "eu west"}}, 'spec.storage.region: Invalid value: "eu west"'),
    ({"image": "x" * 2000}, "spec.image: Too long"),
    ({"image": "my image"}, 'spec.image: Invalid value: "my image"'),
    (
        {"task": {"kind": "custom", "custom": {"command": []}}},
        "spec.task.custom.command in body should have at least 1 items",
    ),
    (_template(labels={"app": "not a label"}), 'spec.workers.template.labels.app: Invalid value: "not a label"'),
    (_template(env=[{"name": "1A"}]), 'spec.workers.template.env[0].name: Invalid value: "1A"'),
    (
        _template(env=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]),
        'spec.workers.template.env[1]: Duplicate value: {"name":"A"}',
    ),
    ({"runPolicy": {"maxRestarts": -1}}, "spec.runPolicy.maxRestarts in body should be greater than or equal to 0"),
    ({"runPolicy": {"onExistingRun": "Ask"}}, 'supported values: "Resume", "Overwrite"'),
]

# For each field that may not change, a change.
FIXED: dict[str, Json] = {
    "outputUri": {"outputUri": "s3://models/other"},
    "task.kind": {"task": {"kind": "image-classification"}, "data": {"train": {"format": "parquet"}}},
    "task.loss": {"task": {"loss": "cross-entropy"}},
    "task.huberDelta": {"task": {"huberDelta": 2.0}},
    "data.train": {"data": {"train": {"uri": "s3://corpus/other"}}},
    "data.validation": {"data": {"validation": {"fraction": 0.2}}},
    "data.test": {"data": {"test": {"fraction": 0.2}}},
    "data.prepare.tokenizer": {"data": {"prepare": {"tokenizer": {"vocabSize": 999}}}},
    "data.prepare.clean": {"data": {"prepare": {"clean": {"minChars": 2}}}},
    "data.packing": {"data": {"packing": True}},
    "data.augmentation": {"data": {"augmentation": {"shift": 2}}},
    "model": {"model": {"preset": "gpt-3m"}},
    "training.seed": {"training": {"seed": 2}},
    "training.globalBatchSize": {"training": {"globalBatchSize": 128}},
    "training.emaDecay": {"training": {"emaDecay": 0.5}},
    "training.optimizer.name": {"training": {"optimizer": {"name": "sgd"}}},
    "training.sequenceLength": {"training": {"sequenceLength": 512}},
}

# For each field that may change while the job is suspended, a change.
WHILE_SUSPENDED: dict[str, Json] = {
    "image": {"image": "other:1"},
    "storage": {"storage": {"region": "eu-west-1"}},
    "workers.resources": {"workers": {"resources": {"cpu": "2"}}},
    "workers.template": {"workers": {"template": {"affinity": {"nodeAffinity": {}}}}},
    "data.prepare.replicas": {"data": {"prepare": {"replicas": 5}}},
    "data.prepare.cpu": {"data": {"prepare": {"cpu": "3"}}},
    "data.prepare.memory": {"data": {"prepare": {"memory": "3Gi"}}},
    "data.onCorrupt": {"data": {"onCorrupt": "skip"}},
    "checkpoint": {"checkpoint": {"everySteps": 7}},
    "evaluation": {"evaluation": {"everySteps": 7}},
    "training.steps": {"training": {"steps": 200}},
    "training.epochs": {"training": {"steps": None, "epochs": 2}},
    "training.tokens": {"training": {"steps": None, "tokens": 2_000_000_000}},
    "training.optimizer": {"training": {"optimizer": {"lr": 1e-3}}},
    "training.schedule": {"training": {"schedule": {"warmupSteps": 7}}},
    "training.microBatchSize": {"training": {"microBatchSize": 1}},
    "training.clipNorm": {"training": {"clipNorm": 2}},
    "training.precision": {"training": {"precision": "float32"}},
    "training.compile": {"training": {"compile": "never"}},
    "training.parallelism": {"training": {"parallelism": {"fsdp": "none"}}},
    "training.deterministic": {"training": {"deterministic": True}},
    "training.earlyStopping": {"training": {"earlyStopping": {"patience": 7}}},
    "training.labelSmoothing": {"training": {"labelSmoothing": 0.5}},
    "training.hangSeconds": {"training": {"hangSeconds": 7000}},
    "training.logEvery": {"training": {"logEvery": 7}},
    "training.profile": {"training": {"profile": {"fromStep": 7}}},
    "runPolicy.onExistingRun": {"runPolicy": {"onExistingRun": "Overwrite"}},
    "runPolicy.queueName": {"runPolicy": {"queueName": "team"}},
}
FOR_GOOD = "cannot change, because the run's state depends on it: create a new TrainingJob with another outputUri"
SUSPEND_FIRST = (
    "can change only while the job is suspended: set runPolicy.suspend to true, change it in a second step, "
    "then set suspend to false"
)
