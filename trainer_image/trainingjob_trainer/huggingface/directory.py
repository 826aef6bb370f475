"""A Hugging Face directory in a store: its shape, its tokenizer, and any rows of any tensor, each read on its own.

No torch until a tensor is read: the Check stage looks at it first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

from trainingjob_trainer.config import HuggingFace, Timm, TrainerSpec
from trainingjob_trainer.data.manifest import Manifest
from trainingjob_trainer.errors import UserError
from trainingjob_trainer.huggingface.families import Entry, differences, entries, read_config
from trainingjob_trainer.prepare import tokenizer as bpe
from trainingjob_trainer.records import load_result
from trainingjob_trainer.storage import NotFound, Store, open_store

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 16 * 2**20  # bytes of one request
REQUESTS = 8  # at once
MOST_HEADER = 100_000_000  # bytes; more is not allowed by the format
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of a number, by safetensors' names of types
# Constants that older versions of transformers stored beside the weights.
_NOT_WEIGHTS = re.compile(r"\.(attn\.bias|attn\.masked_bias|rotary_emb\.inv_freq)$")
# Of these the source may have more rows: entries that pad the vocabulary, positions beyond the model's.
_MAY_BE_LONGER = {"embed.weight", "head.weight", "positions.weight"}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: rows of numbers from byte `start` on."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        return prod(self.shape[1:]) * _SIZES[self.dtype]


class Directory:
    """Weights and tokenizer to begin with. Raises `UserError` for whatever is not as it must be."""

    def __init__(self, store: Store, of_images: bool = False) -> None:
        self._store, self._of_images = store, of_images

    @classmethod
    def of(cls, config: TrainerSpec) -> Directory:
        """What `model.initFrom` names: a Hugging Face directory, or what a finished run of ours exported."""
        assert config.model.init_from is not None
        store, of_images = open_store(config.model.init_from.uri, config.storage), config.model.timm is not None
        result = load_result(store)
        if result is None:
            return cls(store, of_images)
        if result.model_uri is None:
            raise UserError(
                f"spec.model.initFrom.uri: the run in {store.uri()} exported no model.",
                "Name a run whose model.export is huggingface.",
            )
        # Below the run directory, wherever it was copied to: `modelUri` says where it was written.
        return cls(open_store(store.uri(f"model/a{result.attempt}"), config.storage), of_images)

    def check(self, config: TrainerSpec, manifest: Manifest) -> None:
        """Whether a run may begin with it: the same shape, every weight there, and the tokenizer of the data."""
        size = config.model.architecture
        if isinstance(size, Timm):
            self._check_images(config, size, manifest)
            return
        if isinstance(size, HuggingFace):
            wanted, others = self._wanted_of_library(config, size, manifest)
        else:
            self._check_shape(config)
            wanted = entries(config.model.size, self.tokenizer[1], config.context)
            # The embedding a second time, which the configuration says is shared.
            others = {"lm_head.weight"} if config.model.size.tie_embeddings else set()
        stored, _, _ = self.tokenizer
        if manifest.tokenizer_digest != bpe.digest(stored):
            raise self._wrong(
                f"its tokenizer (SHA-256 {bpe.digest(stored)[:12]}) is not the one that the data was prepared with "
                f"({str(manifest.tokenizer_digest)[:12]})",
                "Restore the tokenizer.json, or choose another outputUri, where the data is prepared anew.",
            )
        self._check_tensors(wanted, others)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config.json of its model. Where weights of timm lie there may be none."""
        return self._json("config.json", optional=self._of_images)

    @property
    def keys(self) -> Iterable[str]:
        """Names of the tensors."""
        return self._tensors.keys()

    def _wanted_of_library(
        self, config: TrainerSpec, size: HuggingFace, manifest: Manifest
    ) -> tuple[list[Entry], set[str]]:
        """The tensors of a library's model, under the names that they have here, and what else may be here."""
        from trainingjob_trainer.models.from_transformers import library_model
        from trainingjob_trainer.models.transformers_settings import differing_settings

        prepared = manifest.model_settings  # with the data
        text = size.config or prepared or json.dumps(self.settings)
        if different := differing_settings(json.loads(text), self.settings):
            what = "the one that the data was prepared for" if prepared else "spec.model"
            raise self._wrong(
                f"its model is another one than {what}: {'; '.join(different)}",
                "Restore its config.json, or choose another outputUri."
                if prepared
                else f"Leave spec.model.huggingface.config out, or set it to {json.dumps(self.settings)}.",
            )
        _, vocab_size, eos_id = self.tokenizer
        return library_model(config, text, vocab_size, eos_id, manifest.classes or ()).entries(self.keys)

    def _check_images(self, config: TrainerSpec, size: Timm, manifest: Manifest) -> None:
        """Names are timm's. The head is not looked at: the run has one of its own."""
        from trainingjob_trainer.models import build_model
        from trainingjob_trainer.models.from_timm import ImageClassifier

        kind = self.settings.get("architecture", size.name)
        if kind != size.name:
            raise self._wrong(
                f"its model is a {kind}, and spec.model.timm.name {size.name}", f"Set spec.model.timm.name to {kind}."
            )
        model = build_model(config, manifest)
        assert isinstance(model, ImageClassifier)
        different = model.differences({key: tensor.shape for key, tensor in self._tensors.items()})
        if different:
            raise self._wrong(f"its weights are not those of a {size.name}: {_some(different)}")

    def tensors(self) -> dict[str, Tensor]:
        """All of them that are numbers with a fraction, whole."""
        return {key: self.read(Entry(key, (key,), False, tensor.shape)) for key, tensor in self._real.items()}

    @property
    def held_bytes(self) -> int:
        """What each rank holds of the weights at once: of timm's all `tensors`, of others some pieces."""
        return sum(tensor.shape[0] * tensor.row_bytes for tensor in self._real.values()) if self._of_images else 0

    @property
    def _real(self) -> dict[str, Stored]:
        return {key: tensor for key, tensor in self._tensors.items() if tensor.dtype in _SIZES and tensor.shape}

    def _check_shape(self, config: TrainerSpec) -> None:
        try:
            theirs = read_config(self.settings)
        except ValueError as error:
            raise self._wrong(f"its config.json describes a model that is not covered: {error}") from error
        different = differences(config.model.size, theirs, config.context)
        if different:
            theirs = theirs.model_copy(update={"dropout": config.model.size.dropout})  # which no config.json has
            theirs_in_ours = config.model.model_copy(update={"preset": None, "transformer": theirs})
            shape = json.dumps(theirs_in_ours.asked())
            raise self._wrong(
                f"its model is another one than spec.model: {'; '.join(different)}",
                f"Set spec.model to {shape}.",
            )

    @cached_property
    def tokenizer(self) -> tuple[bytes, int, int]:
        """`tokenizer.json`, its vocabulary's size, and the id of EOS."""
        settings = self.settings  # first: what lacks these as well is no such directory
        try:
            stored = self._store.get("tokenizer.json")
        except NotFound as error:
            raise self._wrong(
                "it has no tokenizer.json",
                "Write one: AutoTokenizer.from_pretrained(...).save_pretrained(...).",
            ) from error
        tokenizer = bpe.load(stored)
        eos_id = self._eos_id(tokenizer.get_vocab(), settings)
        if eos_id is None:
            raise self._wrong("it does not say which token ends a text", "Set eos_token in its tokenizer_config.json.")
        return stored, bpe.vocabulary_size(tokenizer), eos_id

    def _eos_id(self, vocabulary: dict[str, int], settings: dict[str, Any]) -> Any:
        tokens = self._json("tokenizer_config.json", optional=True)
        by_name, closing = (
            vocabulary.get(str(token.get("content") if isinstance(token, dict) else token))
            for token in (tokens.get("eos_token"), tokens.get("sep_token"))  # BERT has the second one only
        )
        configured = [self._json("generation_config.json", optional=True), settings]
        by_number = [ids.get("eos_token_id") for ids in configured]
        numbers = [number[0] if isinstance(number, list) and number else number for number in by_number]
        return next((id_ for id_ in (by_name, *numbers, closing) if id_ in vocabulary.values()), None)

    def read(self, entry: Entry, start: int = 0, end: int | None = None) -> Tensor:
        """Rows `[start, end)` of one of their tensors, on the CPU, in the type that they are stored in."""
        import torch

        tensor = self._tensors[self._key(entry)]
        end = tensor.shape[0] if end is None else end
        first, last = tensor.start + start * tensor.row_bytes, tensor.start + end * tensor.row_bytes
        data = bytearray(last - first)

        def get(piece: int) -> None:
            found = self._store.get(tensor.file, piece, min(piece + PIECE, last))
            if len(found) != min(PIECE, last - piece):
                raise self._wrong(f"{tensor.file} ends before its last tensor does", "Copy the file again.")
            data[piece - first : piece - first + len(found)] = found

        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(get, range(first, last, PIECE)))
        dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        return torch.frombuffer(data, dtype=dtypes[tensor.dtype]).reshape(end - start, *tensor.shape[1:])

    @cached_property
    def _tensors(self) -> dict[str, Stored]:
        index = self._json("model.safetensors.index.json", optional=True)
        files = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
        return {key: stored for file in files for key, stored in self._header(file)}

    def _header(self, file: str) -> Iterable[tuple[str, Stored]]:
        """The tensors of a file: 8 bytes with the length of the header, the header as JSON, the numbers."""
        try:
            length = int.from_bytes(self._store.get(file, 0, 8), "little")
            if length > MOST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(self._store.get(file, 8, 8 + length))
        except NotFound as error:
            raise self._wrong(
                f"it has no {file}", "Save the model with save_pretrained(...) to safetensors."
            ) from error
        except ValueError as error:
            raise self._wrong(f"{file} is not in safetensors' format", "Copy or write the file again.") from error
        for key, tensor in header.items():
            if key != "__metadata__":
                yield key, Stored(file, tensor["dtype"], tuple(tensor["shape"]), 8 + length + tensor["data_offsets"][0])

    def _key(self, entry: Entry) -> str:
        """The tensor's name here: a model without its head was saved without the first part of the names."""
        return entry.theirs if entry.theirs in self._tensors else entry.theirs.partition(".")[2]

    def _check_tensors(self, wanted: list[Entry], others: set[str]) -> None:
        missing = [entry.theirs for entry in wanted if self._key(entry) not in self._tensors]
        known = {self._key(entry) for entry in wanted} | others
        unexpected = {key for key in self._tensors if not _NOT_WEIGHTS.search(key)} - known
        if missing or unexpected:
            what = [f"{title} {_some(keys)}" for title, keys in (("lacks", missing), ("has", unexpected)) if keys]
            raise self._wrong(
                f"its weights are not those of its config.json: it {' and '.join(what)}", "Save the model again."
            )
        for entry in wanted:
            tensor = self._tensors[self._key(entry)]
            rows, wanted_rows = tensor.shape[0], entry.shape[0]
            longer = entry.ours[0] in _MAY_BE_LONGER and rows > wanted_rows
            if tensor.shape[1:] != entry.shape[1:] or (rows != wanted_rows and not longer):
                raise self._wrong(f"{entry.theirs} has the shape {list(tensor.shape)}, not {list(entry.shape)}")
            if tensor.dtype not in _SIZES:
                raise self._wrong(f"{entry.theirs} has the type {tensor.dtype}; covered are {', '.join(_SIZES)}")

    def _json(self, file: str, optional: bool = False) -> dict[str, Any]:
        try:
            found = json.loads(self._store.get(file))
        except NotFound as error:
            if optional:
                return {}
            raise self._wrong(
                f"it has no {file}", "Name a Hugging Face directory, or the outputUri of a finished run."
            ) from error
        except ValueError as error:
            raise self._wrong(f"{file} is not JSON: {error}", "Copy or write the file again.") from error
        if not isinstance(found, dict):
            raise self._wrong(f"{file} holds no JSON object", "Copy or write the file again.")
        return found

    def _wrong(self, what: str, next_step: str = "Choose another model, or another spec.model.") -> UserError:
        return UserError(f"spec.model.initFrom.uri: {self._store.uri()} cannot be begun with: {what}.", next_step)


def _some(keys: Iterable[str]) -> str:
    every = sorted(keys)
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")
