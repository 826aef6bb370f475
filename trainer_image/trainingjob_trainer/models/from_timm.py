"""Image classifiers of the library timm."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from trainingjob_trainer.config import Timm
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.models.adapted import Adapted, parameters_on_meta, seeded

# Tables over positions, which timm brings to another size.
_RESIZED = ("pos_embed", "relative_position", "rel_pos")


class ImageClassifier(Adapted):
    """Any of `timm.create_model`, for images of one shape; pixels lie between -1 and 1."""

    scale: Tensor
    offset: Tensor

    def __init__(self, size: Timm, found: str | None, shape: Sequence[int], num_classes: int) -> None:
        """found: text of the config.json of weights to begin with: pixels become what these were trained on."""
        self._size, self._shape, self._classes = size, tuple(shape), num_classes
        with parameters_on_meta():
            inner = self._create()
            super().__init__(inner)
            self.pixels = _pixels(inner, json.loads(found), shape[0]) if found is not None else None
            if self.pixels is not None:
                mean, deviation = (torch.tensor(values).view(-1, 1, 1) for values in self.pixels)
                self.register_buffer("scale", 0.5 / deviation, persistent=False)
                self.register_buffer("offset", (0.5 - mean) / deviation, persistent=False)
        self._first_buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}

    def forward(self, inputs: Tensor) -> Tensor:
        """Images `[batch, channels, height, width]` -> logits `[batch, classes]`."""
        if self.pixels is not None:
            inputs = (inputs * self.scale + self.offset).to(inputs.dtype)
        logits: Tensor = self.inner(inputs)
        return logits

    def initial(self, seed: int, given: Mapping[str, Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
        """The library initialises a model as a whole, which each rank therefore holds on its CPU meanwhile.

        given: tensors by timm's names: the values of all but the head, BatchNorm's statistics too.
        """
        with seeded(seed, "timm"):
            whole = self._create(given)
        yield from ((f"inner.{name}", parameter.detach()) for name, parameter in whole.named_parameters())
        yield from ((f"inner.{name}", buffer) for name, buffer in whole.named_buffers())

    def described(self) -> dict[str, Any]:
        """Fields of the config.json that timm reads beside weights."""
        mean, deviation = self.pixels or ([0.5] * self._shape[0],) * 2
        traits = {"mean": mean, "std": deviation, "input_size": self._shape, "num_classes": self._classes}
        return {"architecture": self._size.name, "num_classes": self._classes, "pretrained_cfg": traits}

    def differences(self, stored: Mapping[str, Sequence[int]]) -> list[str]:
        """How tensors of these names and shapes are not the body's. Channels and positions may be of another number."""
        head, stem = self._head, tuple(f"{name}.weight" for name in _names(self._traits.get("first_conv")))
        ours = {name: tuple(tensor.shape) for name, tensor in self.inner.state_dict().items()}
        body = {name: shape for name, shape in ours.items() if not name.startswith(head)}
        counts = {name for name in ours if name.endswith("num_batches_tracked")}
        found = [f"it lacks {name}" for name in sorted(body.keys() - stored.keys() - counts)]
        found += [f"it has {name}" for name in sorted(stored.keys() - ours.keys()) if not name.startswith(head)]
        for name in sorted(body.keys() & stored.keys()):
            if tuple(stored[name]) != body[name] and name not in stem and not any(part in name for part in _RESIZED):
                found.append(f"{name} has the shape {list(stored[name])}, not {list(body[name])}")
        return found

    @property
    def _traits(self) -> dict[str, Any]:
        traits: dict[str, Any] = self.inner.pretrained_cfg  # type: ignore[assignment]
        return traits

    @property
    def _head(self) -> tuple[str, ...]:
        return tuple(f"{name}." for name in _names(self._traits.get("classifier")))

    def _create(self, given: Mapping[str, Tensor] | None = None) -> nn.Module:
        import timm

        name, size = self._size.name, self._size
        if not timm.is_model(name):
            near = get_close_matches(name, timm.list_models(), 3)
            hint = f"Do you mean {' or '.join(near)}?" if near else "timm.list_models() has all names."
            raise UserError(f"spec.model.timm.name: timm has no model {name}.", hint)
        arguments: dict[str, Any] = dict(size.arguments)
        known = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if known is not None and known.fixed_input_size and known.input_size[1:] != self._shape[1:]:
            arguments.setdefault("img_size", self._shape[1:])
        if given is not None:
            # Its own number of classes is none, so that the head is left out.
            stems = [given[f"{n}.weight"] for n in _names(known and known.first_conv) if f"{n}.weight" in given]
            channels = stems[0].shape[1] if stems else self._shape[0]
            source = {"state_dict": dict(given), "num_classes": -1, "input_size": (channels, *self._shape[1:])}
            arguments |= {"pretrained": True, "pretrained_cfg_overlay": source}
        try:
            model: nn.Module = timm.create_model(
                name, num_classes=self._classes, in_chans=self._shape[0], drop_rate=size.dropout, **arguments
            )
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise self.refused(error) from error
        return model

    def refused(self, error: Exception) -> UserError:
        """What to say of an error of timm's."""
        shape = " x ".join(map(str, self._shape))
        return UserError(
            f"spec.model.timm: {self._size.name} cannot be made for images of {shape}: {error}",
            "Correct spec.model.timm, or bring the images to a size that it takes.",
        )


def _names(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def _pixels(model: nn.Module, found: Mapping[str, Any], channels: int) -> tuple[list[float], list[float]]:
    """Mean and deviation that weights were trained with, of pixels between 0 and 1, for each channel."""
    defaults: Any = model.pretrained_cfg
    traits = found.get("pretrained_cfg") or {}  # as timm writes it, and our export
    values = [list(traits.get(name) or defaults.get(name) or (0.5,)) for name in ("mean", "std")]
    mean, deviation = (v if len(v) == channels else [sum(v) / len(v)] * channels for v in values)
    return mean, deviation
