"""Causal language models of the library transformers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainingjob_trainer.config import HuggingFace
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.huggingface.families import Entry
from trainingjob_trainer.models.adapted import Adapted, find_blocks, parameters_on_meta, seeded

FIELD, FILE = "spec.model.huggingface.config", "config.json in spec.model.initFrom.uri"
# Ids of special tokens are the tokenizer's. Without one for padding, every row of the embedding learns.
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Fields that say nothing about what is computed.
_NO_SHAPE = (*_IDS, "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "_name_or_path")


class CausalLanguageModel(Adapted):
    """Any of `AutoModelForCausalLM`."""

    def __init__(self, size: HuggingFace, found: str | None, vocab_size: int, context: int) -> None:
        """found: text of the config.json to begin with, for a size that leaves it to that."""
        self.settings = read_settings(size, found, vocab_size, context)
        try:
            inner = self._create()
        except Exception as error:
            raise _refused(_named(size), error) from error
        super().__init__(inner)

    def forward(self, inputs: Tensor, read: Callable[[Tensor, None], Tensor] | None = None) -> Tensor:
        """Tokens `[batch, length]` -> logits `[batch, length, vocab]` of the token after each, or what `read` makes of
        them: they come without a head's weight."""
        logits: Tensor = self.inner(input_ids=inputs, use_cache=False).logits
        return logits if read is None else read(logits, None)

    def initial(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """As the library does it, a block at a time: no more of the model is ever held whole."""
        reference = self._create()
        blocks = {id(block) for block in find_blocks(reference)}
        inside: tuple[str, ...] = ()
        for name, module in reference.named_modules():
            if name.startswith(inside):
                continue
            if id(module) in blocks:
                inside += (f"{name}.",)
                yield from self._values(name, copy.deepcopy(module), seed)
            elif module._parameters:
                alone = copy.copy(module)
                alone._modules = {}
                yield from self._values(name, alone, seed)

    def _values(self, name: str, module: nn.Module, seed: int) -> Iterator[tuple[str, Tensor]]:
        for part in module.modules():
            part._parameters = {
                leaf: None if value is None else nn.Parameter(torch.zeros(value.shape, device="cpu"))
                for leaf, value in part._parameters.items()
            }
        with seeded(seed, name), torch.no_grad():
            module.apply(self.inner._init_weights)  # type: ignore[arg-type]
        place = f"inner.{name}." if name else "inner."
        yield from ((f"{place}{leaf}", value.detach()) for leaf, value in module.named_parameters())

    def entries(self, stored: Iterable[str]) -> tuple[list[Entry], set[str]]:
        """The parameters under their names among those that are stored, and the stored ones that are none or the same
        again (tied)."""
        names = self._names_of(stored)
        places = {ours: theirs for theirs, ours in names.items()}
        wanted = [
            Entry(places.get(name, name), (f"inner.{name}",), False, tuple(parameter.shape))
            for name, parameter in self.inner.named_parameters()
        ]
        known = {*dict(self.inner.named_parameters(remove_duplicate=False)), *dict(self.inner.named_buffers())}
        return wanted, {theirs for theirs, ours in names.items() if ours in known} - {entry.theirs for entry in wanted}

    def _names_of(self, stored: Iterable[str]) -> dict[str, str]:
        """What each stored tensor is called here: files keep the names that older versions of the library had."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        model: Any = self.inner
        rules = get_model_conversion_mapping(model)
        renamed, made = (
            [rule for rule in rules if isinstance(rule, kind)] for kind in (WeightRenaming, WeightConverter)
        )
        names = {}
        for theirs in stored:
            ours, how = rename_source_key(theirs, renamed, made, model.base_model_prefix, model.state_dict())
            if how is not None:
                raise UserError(
                    f"spec.model.initFrom.uri: {theirs} is put together with others when transformers reads it, which "
                    "is not covered.",
                    "Choose a model whose tensors are stored as they are used.",
                )
            names[theirs] = ours
        return names

    def save(self, path: Path, weights: Mapping[str, Tensor], eos_id: int) -> None:
        """Write what `from_pretrained` reads. `weights`: the whole state dict, on the CPU."""
        model: Any = self.inner
        for name in _IDS:
            setattr(model.config, name, eos_id)
        model.save_pretrained(path, state_dict={name.removeprefix("inner."): w for name, w in weights.items()})

    def _create(self) -> nn.Module:
        from transformers import AutoModelForCausalLM

        with parameters_on_meta():
            model: nn.Module = AutoModelForCausalLM.from_config(self.settings, dtype=torch.float32)
        return model


def read_settings(size: HuggingFace, found: str | None, vocab_size: int, context: int) -> Any:
    """The library's configuration. Raises `UserError` for a name that it does not know, or sizes that do not fit.

    Names in a file that was found are not judged: files of older versions hold some that mean nothing any more.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    settings, field = json.loads(size.config or found or "{}"), _named(size)
    kind = settings.get("model_type")
    known = sorted({*CONFIG_MAPPING_NAMES} & {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES})
    if kind not in known:
        raise UserError(
            f"{field}: model_type is {kind}, which is no causal language model of transformers.", _nearest(kind, known)
        )
    given = {name: value for name, value in settings.items() if name not in ("model_type", *_IDS)}
    try:
        config = AutoConfig.for_model(kind, **given, **dict.fromkeys(_IDS))
    except Exception as error:
        raise _refused(field, error) from error
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not _looks_back_only(config):
        raise UserError(
            f"{field}: a {kind} sees the tokens that it is to predict, unless is_decoder is true.",
            "Set is_decoder to true, or choose a causal language model.",
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


def _named(size: HuggingFace) -> str:
    return FILE if size.config is None else FIELD


def _looks_back_only(config: Any) -> bool:
    """Of a kind whose models can look both ways (the decoder of one with both parts never does)."""
    return any(getattr(config, name, False) for name in ("is_decoder", "is_encoder_decoder", "causal"))


def _refused(field: str, error: Exception) -> UserError:
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
