"""What a Transformer takes, by arithmetic: parameters, FLOPs, and memory of ranks and pods.

Nothing is built for it, and no torch imported: the Check stage asks before a GPU is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from trainingjob_trainer.config import JobConfig, Training, Transformer

Shapes = dict[str, tuple[int, ...]]

MOMENTS = {"adamw": 2, "adam": 2, "muon": 2, "sgd": 1, "rmsprop": 2, "adagrad": 1}  # float32 a parameter, at most
PROCESS = 430_000_000  # bytes that a rank takes before it has a model; measured, torch 2.15 on Linux
PREFETCH = 576 * 2**20  # `data.prefetch.MEMORY`: bytes of data that a rank reads ahead, at most


def decoder_shapes(size: Transformer, vocab_size: int, context: int) -> Shapes:
    """Every parameter of `models.Decoder`, by its name there."""
    shapes: Shapes = {"embed.weight": (vocab_size, size.dim)}
    if size.positions == "learned":
        shapes["positions.weight"] = (context, size.dim)
    for number in range(size.layers):
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block_shapes(size).items()}
    shapes |= _norm("norm", size)
    if not size.tie_embeddings:
        shapes["head.weight"] = (vocab_size, size.dim)
    return shapes


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


def known_parameters(config: JobConfig, vocab_size: int) -> int:
    """Numbers in a job's Transformer, as far as its data need not be known for them: of a classifier all but its head,
    and what its patches of images become."""
    size, kind = config.model.size, config.task.kind
    if kind == "language-modeling":
        return parameters(decoder_shapes(size, vocab_size, config.context))
    trunk = size.model_copy(update={"tie_embeddings": True})
    texts = kind == "text-classification"
    return parameters(decoder_shapes(trunk, vocab_size if texts else 0, config.context if texts else 0))


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
    """What of it is in a checkpoint, all but the gradient: 12 bytes with AdamW."""
    return 4 * (1 + MOMENTS[training.optimizer.name] + bool(training.ema_decay))


def activation_bytes(size: Transformer, rows: int, length: int, recomputed: bool = False, sharded: bool = False) -> int:
    """What a forward pass in float32 leaves behind for the backward pass, on the CPU's kernels.

    Logits are not among it: of the loss there is the gradient by what goes into the head (`tasks.head`). recomputed:
    of each block only its input. sharded: attention has three products instead of one.
    """
    norm = size.dim * (3 if size.norm == "rmsnorm" else 2)  # an input, its mean square by the input, the output
    q_and_k = (size.heads + size.num_kv_heads) * size.head_width
    attention = 2 * q_and_k + size.heads  # with the log of each sum
    if size.qk_norm:
        attention += 3 * q_and_k
    elif size.positions == "rotary" and not sharded:  # the values are a part of the product, with what is turned
        attention += q_and_k
    hidden = size.hidden_dim * (4 if size.ffn == "swiglu" else 2)
    dropout = 2 * size.dim if size.dropout else 0
    block = size.dim if recomputed else 2 * norm + attention + hidden + dropout
    qkv_weights = (q_and_k + size.num_kv_heads * size.head_width) * size.dim
    joined = 0 if recomputed or sharded else qkv_weights  # side by side
    return 4 * (rows * length * (size.layers * block + norm) + size.layers * joined)


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


def host_memory(config: JobConfig, vocab_size: int, data_bytes: int) -> HostMemory:
    """Of index 0, whose rank 0 gathers the model for the export. `data_bytes`: of the training split.

    The least: a layout that takes more memory than full sharding is counted where the configuration asks for it, and
    the memory of Ray and of the page cache not at all. On GPUs the training state is in their memory.
    """
    size, training, here = config.model.size, config.training, config.ranks_per_pod
    weights = known_parameters(config, vocab_size)
    ranks = config.fewest_pods * here
    spread = training.parallelism
    shards = spread.group if spread.fsdp_ranks or spread.fsdp == "none" else ranks  # a matrix is split over them all
    held = -(-weights * here // shards)  # parameters of the pod's ranks together
    parts = {
        f"for {here} process{'es' if here > 1 else ''}": PROCESS * here,
        "for the copy of a checkpoint that is being uploaded": held * checkpointed_bytes_per_parameter(training),
        "for data that is read ahead": min(PREFETCH, data_bytes) * here,
    }
    activations, exported = 0, 4 * weights if config.model.export != "none" else 0
    if not config.gpus:
        rows = training.rows_a_pass(-(-training.global_batch_size * spread.tensor // ranks))
        parts["for weights, gradients and moments"] = held * bytes_per_parameter(training)
        recomputed = spread.activation_checkpointing != "none"
        length = 0 if config.task.kind == "image-classification" else training.sequence_length  # patches: not known
        activation = activation_bytes(size, rows, length, recomputed, sharded=shards > 1)
        halved = 1 if training.precision == "float32" else 2  # in bfloat16, which auto takes where the CPU has it
        activations = here * activation // spread.tensor // halved
    # The model is gathered for its export when no activations are left.
    parts["for activations, and later for the whole model"] = max(activations, exported)
    return HostMemory(parts)


def gigabytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:,.2f} GB" if count < 1e10 else f"{count / 1e9:,.0f} GB"


def _linear(name: str, inputs: int, outputs: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (outputs, inputs)}
    return shapes | {f"{name}.bias": (outputs,)} if bias else shapes


def _norm(name: str, size: Transformer) -> Shapes:
    bias = size.norm == "layernorm" and size.bias == "all"
    shapes: Shapes = {f"{name}.weight": (size.dim,)}
    return shapes | {f"{name}.bias": (size.dim,)} if bias else shapes
