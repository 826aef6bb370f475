"""What is reckoned about a model is what is found when it is built."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import job
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from trainingjob_trainer import accounting
from trainingjob_trainer.accounting import (
    HostMemory,
    ModelSize,
    activation_bytes,
    bytes_per_parameter,
    checkpointed_bytes_per_parameter,
    decoder_shapes,
    flops_per_token,
    host_memory,
    parameters,
    transformer_shapes,
    transformer_size,
)
from trainingjob_trainer.checkpoint.state import state_tensors
from trainingjob_trainer.checkpoint.storage import OBJECT_BYTES, OBJECTS_AT_ONCE
from trainingjob_trainer.config import PRESETS, JobConfig, Transformer
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.data.prefetch import MEMORY
from trainingjob_trainer.models import Decoder, build_model, init_weights
from trainingjob_trainer.optim import WeightAverage, build_optimizer
from trainingjob_trainer.parallel.sharding import project_apart
from trainingjob_trainer.tasks.head import LOGITS_AT_ONCE, head_cross_entropy

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


def saved_bytes(size: Transformer, rows: int, length: int, sharded: bool, packed: bool = False) -> int:
    """What a forward pass and its loss really leave for the backward pass, apart from the weights."""
    model = Decoder(size, 300, context=64, separator=0 if packed else None)
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


def test_of_packed_documents_each_layer_keeps_a_mask() -> None:
    expected = saved_bytes(SMALL["llama"], 4, 48, sharded=False, packed=True)
    assert activation_bytes(SMALL["llama"], 4, 48, packed=True) == pytest.approx(expected, rel=0.02)


def test_the_figures_that_are_other_modules_are_theirs() -> None:
    assert accounting.LOGITS_AT_ONCE == LOGITS_AT_ONCE
    assert accounting.PREFETCH == MEMORY
    assert accounting.UPLOAD == OBJECTS_AT_ONCE * OBJECT_BYTES


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "adamw"},
        {"name": "adam"},
        {"name": "sgd"},
        {"name": "sgd", "momentum": 0.0},
        {"name": "rmsprop"},
        {"name": "rmsprop", "momentum": 0.9},
        {"name": "adagrad"},
    ],
    ids=lambda optimizer: "-".join(map(str, optimizer.values())),
)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_parameter_takes_what_the_training_state_holds(tmp_path: Path, optimizer: dict[str, Any], ema: float) -> None:
    training = job(tmp_path, optimizer=optimizer, emaDecay=ema).training
    model = Decoder(SMALL["llama"], 300)
    average = WeightAverage(model, ema) if ema else None
    state = state_tensors(model, build_optimizer(model, training.optimizer), average)
    held = sum(tensor.nbytes for tensor in state.values() if tensor.numel() > 1)
    weights = parameters(decoder_shapes(SMALL["llama"], 300, 64))
    assert held == weights * checkpointed_bytes_per_parameter(training)
    assert bytes_per_parameter(training) == checkpointed_bytes_per_parameter(training) + 4


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_parameters_of_a_classifier_are_those_of_the_model(tmp_path: Path, positions: str) -> None:
    """With its head over the classes and, of images, what patches become."""
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
    pixels = {"kind": "images", "dtype": "uint8", "shape": (3, 4, 8)}
    for config, data in ((texts, tokens), (images, pixels)):
        manifest = Manifest.model_validate(facts | data)
        built = {name: tuple(p.shape) for name, p in build_model(config, manifest).named_parameters()}
        assert transformer_shapes(config, manifest) == built
        size = transformer_size(config, manifest)
        assert size.parameters == parameters(built) == 2 * size.largest_block + size.outside
        length = 16 if config is texts else 8  # patches of 2 x 2
        assert size.activations == activation_bytes(config.model.size, 2, length)


def a_pod(pods: int = 1, ranks: int = 1, gpus: bool = False, **changes: Any) -> JobConfig:
    config = job("/run", model={"preset": "gpt-124m"}, sequenceLength=1024, **changes)
    facts = {"fewest_pods": pods, "ranks_per_pod": ranks, "gpus": gpus}
    return config.model_copy(update=facts)


SMALL_GPT = ModelSize(parameters=124_439_808, largest_block=7_087_872, outside=39_385_344, activations=10**9)
COPY, STATE = "for the copy of a checkpoint that is being uploaded", "for weights, gradients and moments"
REST = "for activations, and later for the whole model"
AT_FIRST = "more for the whole model on each rank at first"


def test_a_pod_needs_less_the_more_there_are_and_much_less_with_gpus() -> None:
    """Of 124,439,808 parameters: 16 bytes each while it trains, 12 in the copy of a checkpoint, 4 for the export."""
    alone = host_memory(a_pod(), SMALL_GPT, 0).parts
    assert alone[STATE] == 16 * 124_439_808
    assert alone[COPY] == 12 * 124_439_808 + 128 * 2**20
    assert alone[REST] == 10**9
    assert alone["for 1 process"] == 500_000_000
    assert alone["for Ray"] == 700_000_000
    assert alone["for Ray's objects in /dev/shm"] == 128 * 2**20
    shared = host_memory(a_pod(pods=4), SMALL_GPT, 0).parts
    assert shared[STATE] == 4 * 124_439_808
    assert shared[REST] == 10**9 + 8 * (39_385_344 + 7_087_872), "gathered weights and their gradients"
    gpus = host_memory(a_pod(pods=2, ranks=8, gpus=True), SMALL_GPT, 2**40).parts
    assert STATE not in gpus
    assert gpus[COPY] == 6 * 124_439_808 + min(6 * 124_439_808, 8 * 128 * 2**20)
    assert gpus[REST] == 4 * 124_439_808
    assert gpus["for data that is read ahead"] == 8 * MEMORY == 8 * 576 * 2**20
    copies = host_memory(a_pod(pods=4, parallelism={"fsdp": "none"}), SMALL_GPT, 0).parts
    assert copies[STATE] == alone[STATE]


def test_a_model_of_timm_is_whole_on_each_rank_at_first(tmp_path: Path) -> None:
    """Beside what there is to begin with, twice. Few ranks take more while they train; a checkpoint fills shards."""
    many = 10**9

    def needed(ranks: int, gpus: bool, held: int | None = 0) -> HostMemory:
        kind = {"task": {"kind": "image-classification"}, "data": {"train": {"uri": "/raw", "format": "parquet"}}}
        config = job(tmp_path, model={"timm": {"name": "vit"}}, **kind)
        config = config.model_copy(update={"ranks_per_pod": ranks, "gpus": gpus})
        return host_memory(config, ModelSize(many, 0, 0, 0), 0, held)

    float32, float16 = 4 * many, 2 * many
    fixed = sum(list(needed(8, True).parts.values())[:3])
    assert needed(8, True).total == fixed + 8 * 4 * many
    assert needed(8, True, float32).total == fixed + 8 * 12 * many
    assert needed(8, True, float16).total == fixed + 8 * 8 * many
    assert needed(8, False, float32).total == fixed + 8 * 12 * many + 4 * many
    assert needed(1, True, float32).parts[AT_FIRST] == 0
    assert needed(2, False, float32).parts[AT_FIRST] == 0
    assert AT_FIRST not in needed(8, True, None).parts


def test_a_rank_holds_no_more_rows_than_it_has(tmp_path: Path) -> None:
    """microBatchSize may be above a rank's share of the batch."""
    many, few = (job(tmp_path, microBatchSize=size, globalBatchSize=10) for size in (64, 10))
    assert accounting.rows_a_pass(many) == accounting.rows_a_pass(few) == 10
    assert accounting.rows_a_pass(few.model_copy(update={"ranks_per_pod": 4})) == 3
