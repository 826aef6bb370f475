"""Models of the library transformers: causal language models, and classifiers of texts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainingjob_trainer.config import HuggingFace, TrainerSpec
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.huggingface.families import Entry
from trainingjob_trainer.models.adapted import Adapted, find_blocks, parameters_on_meta, seeded
from trainingjob_trainer.models.transformers_settings import IDS, named, read_settings, refused

# Parts of a body that are only there for the head, and not where another head was.
_OF_THE_HEAD = ".pooler."


class FromTransformers(Adapted):
    """A model that one of the library's `AutoModelFor...` makes of settings."""

    auto: str

    def __init__(self, settings: Any, field: str) -> None:
        """field: where the settings were given."""
        self.settings = settings
        try:
            inner = self._create()
        except Exception as error:
            raise refused(field, error) from error
        super().__init__(inner)

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
        names, here = {}, model.state_dict()
        for theirs in stored:
            ours, how = rename_source_key(theirs, renamed, made, model.base_model_prefix, here)
            if how is not None:
                raise UserError(
                    f"spec.model.initFrom.uri: {theirs} is put together with others when transformers reads it, which "
                    "is not covered.",
                    "Choose a model whose tensors are stored as they are used.",
                )
            names[theirs] = ours
        return names

    def save(self, path: Path, weights: Mapping[str, Tensor], eos_id: int, **settings: Any) -> None:
        """Write what `from_pretrained` reads. `weights`: the whole state dict, on the CPU. settings: more of them."""
        from transformers.utils import logging as library

        library.disable_progress_bar()  # it would be drawn into the log
        model: Any = self.inner
        unsaid = {name: eos_id for name in IDS if getattr(model.config, name, None) is None}
        for name, value in {**unsaid, **settings}.items():
            setattr(model.config, name, value)
        model.save_pretrained(path, state_dict={name.removeprefix("inner."): w for name, w in weights.items()})

    def _create(self) -> nn.Module:
        import transformers

        with parameters_on_meta():
            model: nn.Module = getattr(transformers, self.auto).from_config(self.settings, dtype=torch.float32)
        return model


class CausalLanguageModel(FromTransformers):
    """Any of `AutoModelForCausalLM`."""

    auto = "AutoModelForCausalLM"

    def __init__(self, size: HuggingFace, found: str | None, vocab_size: int, context: int) -> None:
        """found: text of the config.json to begin with, for a size that leaves it to that."""
        super().__init__(read_settings(size, found, "causal language model", vocab_size, context), named(size))

    def forward(self, inputs: Tensor, read: Callable[[Tensor, None], Tensor] | None = None) -> Tensor:
        """Tokens `[batch, length]` -> logits `[batch, length, vocab]` of the token after each, or what `read` makes of
        them: they come without a head's weight."""
        logits: Tensor = self.inner(input_ids=inputs, use_cache=False).logits
        return logits if read is None else read(logits, None)


class TextClassifier(FromTransformers):
    """Any of `AutoModelForSequenceClassification` that reads tokens alone.

    Of a row (see `data.manifest`) it sees the text with what begins it and the EOS that closes it; the rest is padding.
    """

    auto = "AutoModelForSequenceClassification"

    def __init__(
        self,
        size: HuggingFace,
        found: str | None,
        vocab_size: int,
        context: int,
        eos_id: int,
        classes: Sequence[str],
        pad_id: int | None = None,
    ) -> None:
        """pad_id: the one that the weights were trained with; else EOS pads."""
        names = dict(enumerate(classes))
        settings = read_settings(
            size,
            found,
            "classifier of texts",
            vocab_size,
            context,
            pad_token_id=eos_id if pad_id is None else pad_id,
            id2label=names,
            label2id={name: number for number, name in names.items()},
        )
        super().__init__(settings, named(size))
        self.eos_id, self.pad_id = eos_id, int(settings.pad_token_id)
        self._check_positions(named(size), context)

    def forward(self, inputs: Tensor) -> Tensor:
        """Tokens `[batch, length]` -> logits `[batch, classes]`."""
        ends = (inputs[:, 1:] == self.eos_id).long()
        text = torch.cat([torch.ones_like(inputs[:, :1]), (ends.cumsum(1) - ends == 0).long()], dim=1)
        logits: Tensor = self.inner(input_ids=inputs.where(text == 1, self.pad_id), attention_mask=text).logits
        return logits

    def entries(self, stored: Iterable[str]) -> tuple[list[Entry], set[str]]:
        """Those of the body: the head is fresh, whatever was in its place."""
        names, body = self._names_of(stored), f"{self.inner.base_model_prefix}."
        wanted, others = super().entries(stored)
        there = [
            entry
            for entry in wanted
            if entry.ours[0].startswith(f"inner.{body}") and (entry.theirs in names or _OF_THE_HEAD not in entry.theirs)
        ]
        return there, others | {theirs for theirs, ours in names.items() if not ours.startswith(body)}

    def _check_positions(self, field: str, context: int) -> None:
        """Some count positions from the padding's id on."""
        table = getattr(self.settings, "max_position_embeddings", None)
        counted = any(hasattr(module, "create_position_ids_from_input_ids") for module in self.inner.modules())
        if counted and table is not None and table < context + self.pad_id + 1:
            raise UserError(
                f"{field}: max_position_embeddings is {table}, and {context + self.pad_id + 1} are used for "
                f"spec.training.sequenceLength {context}, because the first one has the number {self.pad_id + 1}.",
                "Raise the one or lower the other.",
            )


def library_model(
    config: TrainerSpec, found: str | None, vocab_size: int, eos_id: int, classes: Sequence[str]
) -> FromTransformers:
    """The model of `spec.model.huggingface` for its task; see `CausalLanguageModel` for `found`."""
    size = config.model.huggingface
    assert size is not None
    if config.task.kind == "language-modeling":
        return CausalLanguageModel(size, found, vocab_size, config.context)
    settings = json.loads(size.config or found or "{}") if config.model.init_from is not None else {}
    pad_id = settings.get("pad_token_id")
    return TextClassifier(size, found, vocab_size, config.context, eos_id, classes, pad_id)
