"""What training takes, by arithmetic: parameters, FLOPs, and memory of ranks and pods.

No torch is imported and nothing is built: the Check stage asks before a GPU is asked for. What only a trial tells, the
size of models that are no Transformers of our own, comes from `models.trial`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from trainingjob_trainer.config import JobConfig, TrainerSpec, Training, Transformer
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.ray_node import TRAIN_OBJECT_STORE

Shapes = dict[str, tuple[int, ...]]

# Bytes that no kernel takes back, measured in pods (torch 2.15, Ray 2.56): of a rank without a model, and of the other
# processes of index 0, Ray's and ours.
PROCESS, RAY = 500_000_000, 700_000_000
PREFETCH = 576 * 2**20  # `data.prefetch.MEMORY`: bytes of data that a rank reads ahead, at most
UPLOAD = 4 * 32 * 2**20  # `checkpoint.storage`: of objects that a rank sends at a time
LOGITS_AT_ONCE = 2**24  # `tasks.head.LOGITS_AT_ONCE`


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides about memory."""

    parameters: int
    largest_block: int  # parameters of it
    outside: int  # parameters in no block
    activations: int  # bytes that a pass of a rank's rows takes beside that; 0 where that cannot be told


def transformer_size(config: JobConfig, manifest: Manifest) -> ModelSize:
    """Of a job's Transformer, over the data of a manifest."""
    size, spread, sharded = config.model.size, config.training.parallelism, _shards(config) > 1
    images = manifest.kind == "images"
    length = _patches(size, manifest.shape or ()) if images else config.training.sequence_length
    tokens, recomputed = rows_a_pass(config) * length, spread.activation_checkpointing != "none"
    kept = activation_bytes(size, rows_a_pass(config), length, recomputed, sharded, config.data.packing)
    # The loss is made when all is kept; a block is computed anew after that.
    head = head_bytes(tokens, manifest.vocab_size or 0, size.dim) if manifest.kind == "tokens" else 0
    anew = block_activation_bytes(size, tokens, sharded) if recomputed else 0
    block, whole = parameters(block_shapes(size)), parameters(transformer_shapes(config, manifest))
    return ModelSize(whole, block, whole - size.layers * block, (kept + max(head, anew)) // spread.tensor)


def transformer_shapes(config: TrainerSpec, manifest: Manifest) -> Shapes:
    """Every parameter of a specification's Transformer, by its name in `models`."""
    size, classes = config.model.size, len(manifest.classes or ())
    match manifest.kind:
        case "tokens":
            return decoder_shapes(size, manifest.vocab_size or 0, config.context)
        case "texts":
            shapes: Shapes = {"embed.weight": (manifest.vocab_size or 0, size.dim)}
            context = config.context
        case _:
            channels, *_ = manifest.shape or (0,)
            shapes = _linear("patch", channels * size.patch_size**2, size.dim, bias=True)
            context = _patches(size, manifest.shape or ())
    return shapes | _trunk_shapes(size, context) | _linear("head", size.dim, classes, bias=True)


def decoder_shapes(size: Transformer, vocab_size: int, context: int) -> Shapes:
    """Every parameter of `models.Decoder`, by its name there."""
    shapes: Shapes = {"embed.weight": (vocab_size, size.dim)} | _trunk_shapes(size, context)
    return shapes if size.tie_embeddings else shapes | {"head.weight": (vocab_size, size.dim)}


def _trunk_shapes(size: Transformer, context: int) -> Shapes:
    shapes: Shapes = {"positions.weight": (context, size.dim)} if size.positions == "learned" else {}
    for number in range(size.layers):
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block_shapes(size).items()}
    return shapes | _norm("norm", size)


def block_shapes(size: Transformer) -> Shapes:
    """The parameters of one block."""
    q_dim, kv_dim = size.heads * size.head_width, size.num_kv_heads * size.head_width
    qkv, everywhere = size.bias != "none", size.bias == "all"
    shapes = _norm("attention_norm", size)
    shapes |= _linear("attention.query", size.dim, q_dim, qkv)
    shapes |= _linear("attention.key", size.dim, kv_dim, qkv)
    shapes |= _linear("attention.value", size.dim, kv_dim, qkv)
    shapes |= _linear("attention.out", q_dim, size.dim, everywhere)
    if size.qk_norm:
        shapes |= {f"attention.{which}_norm.weight": (size.head_width,) for which in ("query", "key")}
    shapes |= _norm("ffn_norm", size)
    if size.ffn == "swiglu":
        shapes |= _linear("ffn.gate", size.dim, size.hidden_dim, everywhere)
    shapes |= _linear("ffn.up", size.dim, size.hidden_dim, everywhere)
    return shapes | _linear("ffn.down", size.hidden_dim, size.dim, everywhere)


def parameters(shapes: Shapes) -> int:
    """Numbers in all of them."""
    return sum(prod(shape) for shape in shapes.values())


def flops_per_token(size: Transformer, vocab_size: int, length: int) -> int:
    """Floating-point operations of a forward pass, a token of a sequence of `length`; a training step takes 3 times as
    many. Matrix products alone, 2 for a multiplication with its addition.

    Attention counts as if every token looked at all others, as in PaLM's definition of MFU (Chowdhery et al. 2022) and
    in torchtitan, though a causal kernel leaves half of it out. Recomputed activations don't count.
    """
    matrices = sum(prod(shape) for shape in block_shapes(size).values() if len(shape) == 2)
    attention = 2 * length * size.heads * size.head_width  # scores, and their product with the values
    return 2 * (size.layers * (matrices + attention) + vocab_size * size.dim)


def bytes_per_parameter(training: Training) -> int:
    """What a parameter takes while it trains: weight, gradient, moments and average, float32 each."""
    return 4 + checkpointed_bytes_per_parameter(training)


def checkpointed_bytes_per_parameter(training: Training) -> int:
    """What of it is in a checkpoint, all but the gradient: 12 bytes with AdamW. Of Muon: of matrices in blocks."""
    optimizer = training.optimizer
    match optimizer.name:
        case "adamw" | "adam":
            moments = 2
        case "sgd":
            moments = int(optimizer.inertia > 0)
        case "rmsprop":
            moments = 1 + int(optimizer.inertia > 0)
        case "adagrad" | "muon":
            moments = 1
    return 4 * (1 + moments + bool(training.ema_decay))


def activation_bytes(
    size: Transformer, rows: int, length: int, recomputed: bool = False, sharded: bool = False, packed: bool = False
) -> int:
    """What a forward pass in float32 leaves behind for the backward pass, on the CPU's kernels.

    Of the loss there is the gradient by what goes into the head (see `head_bytes`). recomputed: of each block only its
    input. sharded: attention has three products instead of one. packed: each layer makes a mask of its own.
    """
    tokens = rows * length
    block = 4 * tokens * size.dim if recomputed else block_activation_bytes(size, tokens, sharded)
    mask = 4 * tokens * length if packed and not recomputed else 0
    qkv_weights = (size.heads + 2 * size.num_kv_heads) * size.head_width * size.dim
    joined = 0 if recomputed or sharded else 4 * qkv_weights  # side by side
    return size.layers * (block + mask + joined) + 4 * tokens * _norm_width(size)


def block_activation_bytes(size: Transformer, tokens: int, sharded: bool = False) -> int:
    """The same of one block, of which nothing is recomputed."""
    q_and_k = (size.heads + size.num_kv_heads) * size.head_width
    attention = 2 * q_and_k + size.heads  # with the log of each sum
    if size.qk_norm:
        attention += 3 * q_and_k
    elif size.positions == "rotary" and not sharded:  # the values are a part of the product, with what is turned
        attention += q_and_k
    hidden = size.hidden_dim * (4 if size.ffn == "swiglu" else 2)
    dropout = 2 * size.dim if size.dropout else 0
    return 4 * tokens * (2 * _norm_width(size) + attention + hidden + dropout)


def head_bytes(tokens: int, vocabulary: int, dim: int) -> int:
    """What the loss of a language model of our own takes while it is made: the gradient by the head's weight, and of a
    piece the logits and their derivative."""
    return 4 * (vocabulary * dim + 2 * min(LOGITS_AT_ONCE, tokens * vocabulary))


def rows_a_pass(config: JobConfig) -> int:
    """Rows that a rank holds at once, if no more pods take part than must. Ranks of a tensor group share theirs."""
    training = config.training
    share = -(-training.global_batch_size * training.parallelism.tensor // (config.fewest_pods * config.ranks_per_pod))
    return training.rows_a_pass(share)


@dataclass(frozen=True)
class HostMemory:
    """What the fullest pod of a run certainly needs of its memory limit, in bytes by what for."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        return ", ".join(f"{gigabytes(count)} {name}" for name, count in self.parts.items() if count)


def host_memory(config: JobConfig, model: ModelSize, data_bytes: int, held_bytes: int | None = 0) -> HostMemory:
    """Of index 0, where Ray's head is, and whose rank 0 gathers the model for the export. `data_bytes`: of the training
    split. `held_bytes`: of the weights that it begins with, on each rank at once; None: it goes on from a checkpoint.

    The least: a layout that takes more memory than full sharding is counted where the configuration asks for it, and
    not at all what the page cache has, or the C library keeps of what was freed. On GPUs the training state is in their
    memory.
    """
    training, here = config.training, config.ranks_per_pod
    shards = _shards(config)
    held = -(-model.parameters * here // shards)  # parameters of the pod's ranks together
    copied = held * checkpointed_bytes_per_parameter(training)
    parts = {
        f"for {here} process{'es' if here > 1 else ''}": PROCESS * here,
        "for Ray": RAY,
        "for Ray's objects in /dev/shm": TRAIN_OBJECT_STORE,
        "for the copy of a checkpoint that is being uploaded": copied + min(UPLOAD * here, copied),
        "for data that is read ahead": min(PREFETCH, data_bytes) * here,
    }
    activations = 0
    if not config.gpus:
        parts["for weights, gradients and moments"] = held * bytes_per_parameter(training)
        halved = 1 if training.precision == "float32" else 2  # in bfloat16, which auto takes where the CPU has it
        gathered = 2 * 4 * (model.outside + model.largest_block) if shards > 1 else 0  # weights and gradients
        activations = here * (model.activations + gathered) // halved
    # Where rank 0 has it all, nothing is copied for the export. Else that is done when no activations are left.
    exported = 4 * model.parameters if config.model.export != "none" and (config.gpus or shards > 1) else 0
    parts["for activations, and later for the whole model"] = max(activations, exported)
    if config.model.timm is not None and held_bytes is not None:
        # While a rank fills its shard, the library makes the model whole; of given weights there is what was read, and
        # timm's copy of that.
        whole = 4 * model.parameters + 2 * held_bytes
        beginning = PROCESS * here + RAY + TRAIN_OBJECT_STORE + whole * here
        beginning += 0 if config.gpus else 4 * held
        parts["more for the whole model on each rank at first"] = max(0, beginning - sum(parts.values()))
    return HostMemory(parts)


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:,.2f} GB" if count < 1e10 else f"{count / 1e9:,.0f} GB"


def _shards(config: JobConfig) -> int:
    """Ranks that each matrix is split over, at the most."""
    spread = config.training.parallelism
    return spread.group if spread.fsdp_ranks or spread.fsdp == "none" else config.fewest_pods * config.ranks_per_pod


def _patches(size: Transformer, shape: tuple[int, ...]) -> int:
    _, height, width = shape
    return (height // size.patch_size) * (width // size.patch_size)


def _linear(name: str, inputs: int, outputs: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outputs, inputs)}
    return shapes | {f"{name}.bias": (outputs,)} if bias else shapes


def _norm_width(size: Transformer) -> int:
    """Numbers that a norm keeps of each token: an input, its mean square by the input, the output."""
    return size.dim * (3 if size.norm == "rmsnorm" else 2)


def _norm(name: str, size: Transformer) -> Shapes:
    bias = size.norm == "layernorm" and size.bias == "all"
    shapes: Shapes = {f"{name}.weight": (size.dim,)}
    return shapes | {f"{name}.bias": (size.dim,)} if bias else shapes
