"""The families of Hugging Face models that the decoder covers: their `config.json`, and their names for our parameters.

Both ways, from one table each: an export is a renaming, and an import is the same renaming read backwards. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainingjob_trainer.accounting import Shapes, decoder_shapes
from trainingjob_trainer.config import RopeScaling, Transformer

_LLAMA = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "blocks": "model.layers",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
_GPT2 = {
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "blocks": "transformer.h",
    "attention_norm": "ln_1",
    "ffn_norm": "ln_2",
    "attention.query": "attn.c_attn",  # queries, keys and values are one matrix there
    "attention.key": "attn.c_attn",
    "attention.value": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}
_ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of theirs: ours, joined along their outputs (the first dimension), then transposed or not."""

    theirs: str
    ours: tuple[str, ...]
    transposed: bool
    shape: tuple[int, ...]  # of theirs


def entries(size: Transformer, vocab_size: int, context: int) -> list[Entry]:
    """Every tensor of a model in the layout of its family."""
    names = _GPT2 if size.family == "gpt2" else _LLAMA
    joined: dict[str, Shapes] = {}
    for ours, shape in decoder_shapes(size, vocab_size, context).items():
        joined.setdefault(_their_name(ours, names), {})[ours] = shape
    return [_entry(theirs, ours, size) for theirs, ours in joined.items()]


def _entry(theirs: str, ours: Shapes, size: Transformer) -> Entry:
    first = next(iter(ours))
    inside = first.startswith("blocks.")
    transposed = size.family == "gpt2" and inside and len(ours[first]) == 2  # Conv1D: [inputs, outputs]
    rows = sum(shape[0] for shape in ours.values())
    shape = (rows, *ours[first][1:])
    return Entry(theirs, tuple(ours), transposed, shape[::-1] if transposed else shape)


def _their_name(ours: str, names: Mapping[str, str]) -> str:
    module, _, leaf = ours.rpartition(".")
    if not module.startswith("blocks."):
        return f"{names[module]}.{leaf}"
    blocks, number, part = module.split(".", 2)
    return f"{names[blocks]}.{number}.{names[part]}.{leaf}"


def write_config(size: Transformer, vocab_size: int, context: int, eos_id: int) -> dict[str, Any]:
    """The `config.json` of a model. What is left to a default there is wrong: Llama's `eos_token_id` would be 2.

    In training an EOS stands before every document, so it is also what begins one.
    """
    assert size.family is not None
    common = {
        "architectures": [_ARCHITECTURES[size.family]],
        "model_type": size.family,
        "vocab_size": vocab_size,
        "tie_word_embeddings": size.tie_embeddings,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "pad_token_id": eos_id,
        "use_cache": True,
        "dtype": "float32",
    }
    return common | (_gpt2_fields(size, context) if size.family == "gpt2" else _llama_fields(size, context))


def _gpt2_fields(size: Transformer, context: int) -> dict[str, Any]:
    return {
        "n_positions": context,
        "n_embd": size.dim,
        "n_layer": size.layers,
        "n_head": size.heads,
        "n_inner": size.hidden_dim,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": size.norm_eps,
        "resid_pdrop": size.dropout,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
    }


def _llama_fields(size: Transformer, context: int) -> dict[str, Any]:
    fields = {
        "hidden_size": size.dim,
        "intermediate_size": size.hidden_dim,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.num_kv_heads,
        "head_dim": size.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": size.norm_eps,
        "rope_parameters": _write_rope(size),
        "rope_theta": size.rope_theta,  # where transformers 4 looks, and for the other parameters:
        **({"rope_scaling": _write_rope(size)} if size.rope_scaling is not None else {}),
        "attention_dropout": 0.0,
    }
    if size.family == "qwen2":
        return fields | {"use_sliding_window": False}
    if size.family == "qwen3":
        return fields | {"use_sliding_window": False, "attention_bias": False}
    return fields | {"attention_bias": size.bias == "all", "mlp_bias": size.bias == "all"}


# What a config.json that does not name a field means by it, as `transformers` has it.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    "llama": {"rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "qwen2": {"rms_norm_eps": 1e-6, "hidden_act": "silu", "use_sliding_window": False},
    "qwen3": {
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "attention_bias": False,
        "head_dim": 128,
        "num_key_value_heads": 32,
    },
}
# Fields that the decoder knows with one value only.
_ONLY: dict[str, Any] = {
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "hidden_act": "silu",
    "use_sliding_window": False,
}


def read_config(found: Mapping[str, Any]) -> Transformer:
    """The shape that a `config.json` describes. Raises `ValueError` that names what is not covered."""
    family = found.get("model_type")
    if family not in _ARCHITECTURES:
        raise ValueError(f"model_type is {family}; covered are {', '.join(_ARCHITECTURES)}")
    settings = _DEFAULTS[family] | {name: value for name, value in found.items() if value is not None}
    for name, value in _ONLY.items():
        if settings.get(name, value) != value:
            raise ValueError(f"{name} is {settings[name]}; covered is {value}")
    try:
        size = _read_gpt2(settings) if family == "gpt2" else _read_llama(family, settings)
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error
    if size.family != family:
        raise ValueError(f"{family} with bias {size.bias}")
    return size


def _read_gpt2(settings: Mapping[str, Any]) -> Transformer:
    return Transformer(
        layers=settings["n_layer"],
        dim=settings["n_embd"],
        heads=settings["n_head"],
        ffn="gelu",
        ffn_dim=settings.get("n_inner"),
        norm="layernorm",
        norm_eps=settings["layer_norm_epsilon"],
        positions="learned",
        context=settings["n_positions"],
        bias="all",
        tie_embeddings=settings["tie_word_embeddings"],
    )


def _read_llama(family: str, settings: Mapping[str, Any]) -> Transformer:
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    biases = bool(settings.get("attention_bias")), bool(settings.get("mlp_bias"))
    if family == "llama" and biases[0] != biases[1]:
        raise ValueError(f"attention_bias is {biases[0]} and mlp_bias is {biases[1]}; covered are both or neither")
    heads, dim = settings["num_attention_heads"], settings["hidden_size"]
    width = settings.get("head_dim", dim // heads)
    return Transformer(
        layers=settings["num_hidden_layers"],
        dim=dim,
        heads=heads,
        kv_heads=settings.get("num_key_value_heads"),
        head_dim=None if width * heads == dim else width,
        ffn_dim=settings["intermediate_size"],
        norm_eps=settings["rms_norm_eps"],
        rope_theta=rope.get("rope_theta", settings.get("rope_theta", 10_000.0)),
        rope_scaling=_read_scaling(rope),
        bias="qkv" if family == "qwen2" else "all" if biases[0] else "none",
        qk_norm=family == "qwen3",
        tie_embeddings=settings.get("tie_word_embeddings", False),
    )


# Ours, and theirs.
_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}


def _write_rope(size: Transformer) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": size.rope_theta}
    if size.rope_scaling is None:
        return rope
    return (
        rope | {"rope_type": "llama3"} | {theirs: getattr(size.rope_scaling, ours) for ours, theirs in _SCALING.items()}
    )


def _read_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    parameters = {name: value for name, value in rope.items() if name not in ("rope_type", "type", "rope_theta")}
    if kind == "default" and not parameters:
        return None
    if kind != "llama3" or set(parameters) != set(_SCALING.values()):
        names = ", ".join(sorted(parameters)) or "nothing"
        raise ValueError(f"rotary positions are of type {kind} with {names}; covered are default and llama3")
    return RopeScaling(**{ours: parameters[theirs] for ours, theirs in _SCALING.items()})


def differences(ours: Transformer, theirs: Transformer, context: int) -> list[str]:
    """The fields in which a shape is another model than theirs, each as `name: theirs there, ours here`.

    A longer table of learned positions is none: its first rows are taken.
    """
    there, here = _computed(theirs), _computed(ours)
    found = [f"{name}: {there[name]} there, {here[name]} here" for name in there if there[name] != here[name]]
    if theirs.context is not None and theirs.context < context:
        found.append(f"context: {theirs.context} there, {context} here")
    return found


def _computed(size: Transformer) -> dict[str, Any]:
    """What a shape computes, after the defaults."""
    defaults = {"kvHeads": size.num_kv_heads, "headDim": size.head_width, "ffnDim": size.hidden_dim}
    fields = size.model_dump(mode="json", by_alias=True) | defaults
    unused = {"context", "dropout", "patchSize", "ropeTheta" if size.positions == "learned" else "context"}
    return {name: value for name, value in sorted(fields.items()) if name not in unused}
