"""What `model.initFrom` names: a Hugging Face directory, a run that exported one, or a run that has checkpoints only.

No torch until weights are read: the Check stage looks at it first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from trainingjob_trainer.checkpoint.commits import Commit, commits
from trainingjob_trainer.config import TrainerSpec
from trainingjob_trainer.data.manifest import MANIFEST_KEY, Manifest, read_tokenizer
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.huggingface.directory import Directory
from trainingjob_trainer.prepare.run_record import RunRecord
from trainingjob_trainer.records import load_result
from trainingjob_trainer.storage import NotFound, Store, open_store

if TYPE_CHECKING:
    from torch import nn

    from trainingjob_trainer.parallel import World

# What a model may differ in and have the same parameters.
_NO_SHAPE = ("model.initFrom.", "model.dropout")


def source_of(config: TrainerSpec) -> Source:
    """Weights and tokenizer to begin with. Raises `UserError` if there are none.

    Of a run that exported nothing: the checkpoint that its result is about, or, if it is not finished, the newest.
    """
    assert config.model.init_from is not None
    store = open_store(config.model.init_from.uri, config.storage)
    if config.task.kind != "language-modeling":  # the head is another one: only what was exported will do
        return Directory.of(config)
    result = load_result(store)
    if result is None or result.model_uri is None:
        found = {commit.step: commit for commit in commits(store)}
        if found:
            return CommittedRun(store, found.get(result.evaluation.step if result else -1, found[max(found)]))
    return Directory.of(config)


def settings_to_begin_with(config: TrainerSpec, source: Source | None = None) -> str | None:
    """The config.json of a library's model, where `spec.model` leaves it to the model that the run begins with.

    It is read once, with the tokenizer, and kept in the manifest: what lies there later changes no run. (Of timm it
    says what pixels the weights were trained on.)
    """
    model = config.model
    by_path = model.huggingface is not None and model.huggingface.config is None
    if not by_path and (model.timm is None or model.init_from is None):
        return None
    return json.dumps((source or source_of(config)).settings, sort_keys=True)


def begin(model: nn.Module, config: TrainerSpec, manifest: Manifest, world: World) -> None:
    """Fill a model, whole or sharded, with the weights that `model.initFrom` names. Collective.

    A classifier's head is not among them: it begins as it would without.
    """
    source = source_of(config)
    if isinstance(source, CommittedRun):
        source.check(config, manifest)
        source.load(model, world)
        return
    from trainingjob_trainer.huggingface.load import load_weights
    from trainingjob_trainer.models.initialize import fill, init_weights

    if config.model.timm is not None:
        from trainingjob_trainer.models.from_timm import ImageClassifier

        assert isinstance(model, ImageClassifier)
        source.check(config, manifest)
        fill(model, model.initial(config.training.seed, source.tensors()))
        return
    if config.task.kind != "language-modeling":
        init_weights(model, config.training.seed)
    load_weights(model, config, manifest)


@dataclass(frozen=True)
class CommittedRun:
    """A checkpoint of another run."""

    store: Store
    commit: Commit

    @cached_property
    def _manifest(self) -> Manifest:
        try:
            return Manifest.model_validate_json(self.store.get(MANIFEST_KEY))
        except NotFound as error:
            raise self._wrong(f"it has no {MANIFEST_KEY}", "Restore it.") from error

    @cached_property
    def _record(self) -> RunRecord:
        found = RunRecord.load(self.store)
        if found is None:
            raise self._wrong("it has no run.json", "Restore it.")
        return found[0]

    @cached_property
    def tokenizer(self) -> tuple[bytes, int, int]:
        """`tokenizer.json`, its vocabulary's size, and the id of EOS."""
        manifest = self._manifest
        if manifest.vocab_size is None or manifest.eos_id is None:
            raise self._wrong(f"its task is {self._record.identity.get('task.kind')}", "Name a language model's run.")
        return read_tokenizer(manifest, self.store), manifest.vocab_size, manifest.eos_id

    @property
    def settings(self) -> dict[str, Any]:
        """The config.json of its model."""
        text = self._record.identity.get("model.config") or self._manifest.model_settings
        if text is None:
            raise self._wrong("its model is none of transformers", "Make spec.model the same.")
        found: dict[str, Any] = json.loads(str(text))
        return found

    @property
    def held_bytes(self) -> int:
        """What each rank holds of the weights at once: some pieces, on the way to its shards."""
        return 0

    def check(self, config: TrainerSpec, manifest: Manifest) -> None:
        """Whether a run may begin with it: the same model, and the tokenizer of the data. Raises `UserError`."""
        here, there = _shape(config.identity()), _shape(self._record.identity)
        if config.model.huggingface is not None:
            there["model.config"] = json.dumps(self.settings, sort_keys=True)
            here["model.config"] = config.model.huggingface.config or manifest.model_settings
        if different := [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]:
            fields = "; ".join(
                f"{name}: {json.dumps(there.get(name))} there, {json.dumps(here.get(name))} here" for name in different
            )
            raise self._wrong(f"its model is another one than spec.model: {fields}", "Make spec.model the same.")
        self.tokenizer  # noqa: B018
        if manifest.tokenizer_digest != self._manifest.tokenizer_digest:
            raise self._wrong(
                "its tokenizer is not the one that the data was prepared with",
                "Choose another outputUri, where the data is prepared anew.",
            )

    def load(self, model: nn.Module, world: World) -> None:
        """Fill a model's parameters and buffers; with their moving averages, if the run has them."""
        from trainingjob_trainer.checkpoint.checkpointer import read_tensors
        from trainingjob_trainer.checkpoint.state import stored_tensors
        from trainingjob_trainer.optim import averaged_tensors

        averaged = averaged_tensors(model) if self._record.identity.get("training.emaDecay") else {}
        tensors = stored_tensors(model).items()
        named = {f"{'average' if name in averaged else 'model'}.{name}": tensor for name, tensor in tensors}
        read_tensors(self.store, self.commit, named, world)

    def _wrong(self, what: str, next_step: str) -> UserError:
        return UserError(f"spec.model.initFrom.uri: {self.store.uri()} cannot be begun with: {what}.", next_step)


Source = Directory | CommittedRun


def _shape(identity: dict[str, object]) -> dict[str, object]:
    """What of a run's identity decides about its parameters: of a table of positions also the length of samples."""
    shape = {name: value for name, value in identity.items() if name.startswith("model.")}
    if identity.get("model.positions") == "learned" and identity.get("model.context") is None:
        shape["training.sequenceLength"] = identity.get("training.sequenceLength")
    return {name: value for name, value in shape.items() if not name.startswith(_NO_SHAPE)}
