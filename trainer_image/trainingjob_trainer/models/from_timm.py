"""Image classifiers of the library timm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from torch import Tensor, nn

from trainingjob_trainer.config import Timm
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.models.adapted import Adapted, parameters_on_meta, seeded


class ImageClassifier(Adapted):
    """Any of `timm.create_model`."""

    def __init__(self, size: Timm, shape: Sequence[int], num_classes: int) -> None:
        self._size, self._channels, self._classes = size, shape[0], num_classes
        with parameters_on_meta():
            super().__init__(self._create())

    def forward(self, inputs: Tensor) -> Tensor:
        """Images `[batch, channels, height, width]` -> logits `[batch, classes]`."""
        logits: Tensor = self.inner(inputs)
        return logits

    def initial(self, seed: int) -> Iterator[tuple[str, Tensor]]:
        """The library initialises a model as a whole, which each rank therefore holds on its CPU meanwhile."""
        with seeded(seed, "timm"):
            whole = self._create()
        yield from ((f"inner.{name}", parameter.detach()) for name, parameter in whole.named_parameters())

    def _create(self) -> nn.Module:
        import timm

        name = self._size.name
        if not timm.is_model(name):
            near = get_close_matches(name, timm.list_models(), 3)
            hint = f"Do you mean {' or '.join(near)}?" if near else "timm.list_models() has all names."
            raise UserError(f"spec.model.timm.name: timm has no model {name}.", hint)
        try:
            model: nn.Module = timm.create_model(
                name,
                num_classes=self._classes,
                in_chans=self._channels,
                drop_rate=self._size.dropout,
                **self._size.arguments,
            )
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise UserError(f"spec.model.timm: {name} cannot be made: {error}", "Correct spec.model.timm.") from error
        return model
