"""What is reckoned about a model is what is found when it is built."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import job
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from trainingjob_trainer.accounting import (
    activation_bytes,
    bytes_per_parameter,
    checkpointed_bytes_per_parameter,
    decoder_shapes,
    flops_per_token,
    host_memory,
    known_parameters,
    parameters,
)
from trainingjob_trainer.checkpoint.state import state_tensors
from trainingjob_trainer.config import PRESETS, JobConfig, Transformer
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.data.prefetch import MEMORY
from trainingjob_trainer.models import Decoder, build_model, init_weights
from trainingjob_trainer.optim import WeightAverage, build_optimizer
from trainingjob_trainer.parallel.sharding import project_apart
from trainingjob_trainer.tasks.head import head_cross_entropy

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"kv_heads": 2},
    "biases": {"bias": "all"},
    "qkv biases, untied": {"bias": "qkv", "tie_embeddings": False},
    "gpt-2": {"norm": "layernorm", "positions": "learned", "ffn": "gelu", "bias": "all"},
    "layernorm without bias": {"norm": "layernorm"},
    "qk norm, wide heads": {"qk_norm": True, "head_dim": 24},
}
SMALL = {name: Transformer(layers=2, dim=32, heads=4, **shape) for name, shape in SHAPES.items()}
SIZES = {**SMALL, **PRESETS}


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_parameters_are_those_of_the_model(size: Transformer) -> None:
    with torch.device("meta"):
        model = Decoder(size, 300, context=64)
    assert decoder_shapes(size, 300, 64) == {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize("size", SMALL.values(), ids=list(SMALL))
def test_flops_are_those_that_torch_counts(size: Transformer) -> None:
    """Forward, and forward with backward. With the plain kernel: others do parts of the backward pass twice."""
    model = Decoder(size, 300, context=64)
    tokens = torch.zeros(2, 48, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(tokens)
        forward = counter.get_total_flops()
        logits.sum().backward()
    assert forward == tokens.numel() * flops_per_token(size, 300, 48)
    assert counter.get_total_flops() == 3 * forward


def test_flops_without_attention_are_twice_the_matrices() -> None:
    """The 2 N of 6 N D: 2 a parameter forward, 4 backward; the embedding counts as the head that it is not."""
    size = PRESETS["llama-8b"]
    embedding, norms = 128_256 * size.dim, (2 * size.layers + 1) * size.dim
    matrices = parameters(decoder_shapes(size, 128_256, 8192)) - embedding - norms
    assert flops_per_token(size, 128_256, 0) == 2 * matrices


def saved_bytes(size: Transformer, rows: int, length: int, sharded: bool) -> int:
    """What a forward pass and its loss really leave for the backward pass, apart from the weights."""
    model = Decoder(size, 300, context=64)
    if sharded:
        project_apart(model)
    init_weights(model, 1)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros(rows, length, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens, lambda features, weight: head_cross_entropy(features, weight, tokens))
    assert loss.requires_grad
    gradient = 4 * rows * length * size.dim  # by what goes into the head: made already
    return gradient + sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("size", SMALL.values(), ids=list(SMALL))
def test_activations_are_what_a_pass_keeps(size: Transformer, dropout: float, sharded: bool) -> None:
    size = size.model_copy(update={"dropout": dropout})
    expected = saved_bytes(size, 4, 48, sharded)
    assert activation_bytes(size, 4, 48, sharded=sharded) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "adagrad"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_parameter_takes_what_the_training_state_holds(tmp_path: Path, name: str, ema: float) -> None:
    training = job(
        tmp_path, optimizer={"name": name, "momentum": 0.9 if name in ("sgd", "rmsprop") else None}, emaDecay=ema
    ).training
    model = Decoder(SMALL["llama"], 300)
    average = WeightAverage(model, ema) if ema else None
    state = state_tensors(model, build_optimizer(model, training.optimizer), average)
    held = sum(tensor.nbytes for tensor in state.values() if tensor.numel() > 1)
    weights = parameters(decoder_shapes(SMALL["llama"], 300, 64))
    assert held == weights * checkpointed_bytes_per_parameter(training)
    assert bytes_per_parameter(training) == checkpointed_bytes_per_parameter(training) + 4


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_of_a_classifier_all_is_known_but_what_its_data_decides(tmp_path: Path, positions: str) -> None:
    """The head over its classes, and what patches become."""
    shape = {"layers": 2, "dim": 32, "heads": 4, "tieEmbeddings": False, "positions": positions}
    sources = {"text-classification": "jsonl", "image-classification": "parquet"}
    texts, images = (
        job(
            tmp_path, task={"kind": kind}, data={"train": {"uri": "/raw", "format": form}}, model={"transformer": shape}
        )
        for kind, form in sources.items()
    )
    facts: dict[str, Any] = {"splits": {}, "dtype": "uint16", "classes": ["a", "b", "c"]}
    tokens = {"kind": "texts", "vocab_size": 300, "tokenizer_digest": "", "eos_id": 0, "shape": (16,)}
    pixels = {"kind": "images", "dtype": "uint8", "shape": (1, 4, 4)}
    head, patches = 3 * 32 + 3, 4 * 32 + 32 + (4 * 32 if positions == "learned" else 0)
    for config, data, decided in ((texts, tokens, head), (images, pixels, head + patches)):
        model = build_model(config, Manifest.model_validate(facts | data))
        assert sum(p.numel() for p in model.parameters()) == known_parameters(config, 300) + decided
        assert host_memory(config, 300, 0).total > 0


def a_pod(pods: int = 1, ranks: int = 1, gpus: bool = False, **changes: Any) -> JobConfig:
    config = job("/run", model={"preset": "gpt-124m"}, sequenceLength=1024, **changes)
    facts = {"fewest_pods": pods, "ranks_per_pod": ranks, "gpus": gpus}
    return config.model_copy(update=facts)


def test_a_pod_needs_less_the_more_there_are_and_much_less_with_gpus() -> None:
    """Of 124,439,808 parameters: 16 bytes each while it trains, 12 in the copy of a checkpoint, 4 for the export."""
    alone = host_memory(a_pod(), 50_257, 0)
    assert alone.parts["for weights, gradients and moments"] == 16 * 124_439_808
    assert alone.parts["for the copy of a checkpoint that is being uploaded"] == 12 * 124_439_808
    shared = host_memory(a_pod(pods=4), 50_257, 0)
    assert shared.parts["for weights, gradients and moments"] == 4 * 124_439_808
    gpus = host_memory(a_pod(pods=2, ranks=8, gpus=True), 50_257, 2**40)
    assert "for weights, gradients and moments" not in gpus.parts
    assert gpus.parts["for the copy of a checkpoint that is being uploaded"] == 6 * 124_439_808
    assert gpus.parts["for activations, and later for the whole model"] == 4 * 124_439_808
    assert gpus.parts["for data that is read ahead"] == 8 * MEMORY == 8 * 576 * 2**20
    copies = host_memory(a_pod(pods=4, parallelism={"fsdp": "none"}), 50_257, 0)
    assert copies.parts["for weights, gradients and moments"] == alone.parts["for weights, gradients and moments"]
