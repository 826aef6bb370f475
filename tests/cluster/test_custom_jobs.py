"""Programs of others as jobs of kind custom, in real pods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.operator_process import Operator
from support.runs import Kubectl, Run

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

STEPS = 40
# As its users write it: no word of this project.
TRAINER = f"""
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

rows = torch.arange(64).repeat(256, 1)
data = [{{"input_ids": row, "labels": row}} for row in rows]
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=64, n_positions=64))
settings = TrainingArguments(
    "/tmp/out", max_steps={STEPS}, per_device_train_batch_size=4, learning_rate=1e-2, logging_steps=5,
    eval_strategy="steps", eval_steps=20, save_strategy="no", use_cpu=True, disable_tqdm=True,
)
trainer = Trainer(model, settings, train_dataset=data, eval_dataset=data[:8])
trainer.train()
assert trainer.args.world_size == 2, trainer.args.world_size
"""


@pytest.mark.slow  # a minute: transformers is imported in two pods
def test_an_unmodified_transformers_trainer_on_two_pods_reports_its_progress(
    cluster: LocalCluster, operator: Operator, namespace: str
) -> None:
    spec = {
        "task": {"kind": "custom", "custom": {"command": ["python", "-c", TRAINER]}},
        "workers": {"replicas": 2, "resources": {"cpu": "1", "memory": "3Gi"}},
    }
    manifest = {"apiVersion": "trainingjob.io/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "hf"}}
    run = Run(Kubectl(cluster.kubectl_binary, cluster.kubeconfig, namespace), cluster.s3, manifest | {"spec": spec})
    run.apply()
    status = run.wait_succeeded()
    assert status["restarts"]["total"] == 0
    progress = status["progress"]
    assert (progress["step"], progress["steps"], progress["percent"]) == (STEPS, STEPS, 100)
    assert 0 < float(progress["loss"]) < 4.0, "no better than chance: ln 64 = 4.16"
    assert status["evaluation"]["split"] == "validation"
    assert status["evaluation"]["metrics"]["loss"] > 0
