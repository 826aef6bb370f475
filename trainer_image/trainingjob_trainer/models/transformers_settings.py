"""A config.json of the library transformers: read, compared, refused in the words of the field that it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

from trainingjob_trainer.config import HuggingFace
from trainingjob_trainer.errors import UserError

FIELD, FILE = "spec.model.huggingface.config", "config.json in spec.model.initFrom.uri"
# Ids of special tokens are the tokenizer's. Without one for padding, every row of the embedding learns.
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_CLASSES = ("num_labels", "id2label", "label2id", "problem_type")  # the data's
# Fields that say nothing about what is computed.
_NO_SHAPE = (
    *IDS, *_CLASSES, "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "_name_or_path"
)  # fmt: skip
Use = Literal["causal language model", "classifier of texts"]


def read_settings(size: HuggingFace, found: str | None, use: Use, vocab_size: int, context: int, **ours: Any) -> Any:
    """The library's configuration. Raises `UserError` for a name that it does not know, or sizes that do not fit.

    Names in a file that was found are not judged: files of older versions hold some that mean nothing any more. ours:
    fields that are not the file's to say.
    """
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    of_use = {
        "causal language model": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "classifier of texts": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    settings, field = json.loads(size.config or found or "{}"), named(size)
    kind = settings.get("model_type")
    known = sorted({*CONFIG_MAPPING_NAMES} & {*of_use[use]})
    if kind not in known:
        raise UserError(f"{field}: model_type is {kind}, which is no {use} of transformers.", _nearest(kind, known))
    given = {name: value for name, value in settings.items() if name not in ("model_type", *IDS, *_CLASSES)}
    try:
        config = AutoConfig.for_model(kind, **given, **dict.fromkeys(IDS) | ours)
    except Exception as error:
        raise refused(field, error) from error
    two_ways = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not _looks_back_only(config)
    if use == "causal language model" and two_ways:
        raise UserError(
            f"{field}: a {kind} sees the tokens that it is to predict, unless is_decoder is true.",
            "Set is_decoder to true, or choose a causal language model.",
        )
    if use == "classifier of texts" and getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{field}: a {kind} has an encoder and a decoder, which are not covered.",
            "Choose a model with one of them.",
        )
    names = {*type(config)().to_dict(), *type(config).attribute_map, "architectures", "torch_dtype"}
    for name in given:
        if size.config is not None and name not in names and not name.startswith("_"):
            raise UserError(f"{field}: {kind} has no {name}.", _nearest(name, sorted(names)))
    if "vocab_size" not in given:
        config.vocab_size = vocab_size
    elif config.vocab_size < vocab_size:
        raise UserError(
            f"{field}: vocab_size is {config.vocab_size}, and the tokenizer has {vocab_size} entries.",
            "Leave it out, or raise it to a multiple above.",
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < context:
        raise UserError(
            f"{field}: max_position_embeddings is {longest}, and spec.training.sequenceLength {context}.",
            "Raise the one or lower the other.",
        )
    return config


def named(size: HuggingFace) -> str:
    return FILE if size.config is None else FIELD


def _looks_back_only(config: Any) -> bool:
    """Of a kind whose models can look both ways (the decoder of one with both parts never does)."""
    return any(getattr(config, name, False) for name in ("is_decoder", "is_encoder_decoder", "causal"))


def refused(field: str, error: Exception) -> UserError:
    """Whatever the library says of settings is about settings: it has been given nothing else."""
    said = str(error).strip().replace("\n", " ") or type(error).__name__
    return UserError(f"{field}: transformers cannot make this model: {said}", "Correct its fields.")


def differing_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The fields in which a config.json describes another model, each as `name: theirs there, ours here`."""
    from transformers import AutoConfig

    if ours.get("model_type") != theirs.get("model_type"):
        return [f"model_type: {theirs.get('model_type')} there, {ours.get('model_type')} here"]
    here, there = (
        AutoConfig.for_model(**{k: v for k, v in fields.items() if k not in _NO_SHAPE}).to_dict()
        for fields in (ours, theirs)
    )
    names = [name for name in sorted({*here, *there}) if name not in _NO_SHAPE and "dropout" not in name]
    return [f"{n}: {there.get(n)} there, {here.get(n)} here" for n in names if here.get(n) != there.get(n)]


def _nearest(name: object, known: list[str]) -> str:
    near = get_close_matches(str(name), known, 3)
    return f"Do you mean {' or '.join(near)}?" if near else f"Known are {', '.join(known[:20])} and so on."
