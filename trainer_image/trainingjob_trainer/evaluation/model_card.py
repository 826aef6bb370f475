"""The README of an exported model: what it is and how to load it."""

from __future__ import annotations

from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import Manifest

_DECODER = """# {name}

A language model of {parameters:,} parameters: {layers} layers, width {dim}, {heads} heads, {vocab:,} tokens of
vocabulary, sequences of {length} tokens. Trained for {steps:,} steps of {batch} samples on `{source}`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```
"""

_TEXTS = """# {name}

A text classifier of {parameters:,} parameters: {layers} layers, width {dim}, {heads} heads. Texts are their first
{length} tokens; classes: {classes}. Trained for {steps:,} steps of {batch} texts from `{source}`.

`model.pt2` runs with PyTorch alone, `tokenizer.json` is read by the `tokenizers` library:

```python
import json, tokenizers, torch

model = torch.export.load("model.pt2").module()
config = json.load(open("config.json"))
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")

def row(text):  # EOS, the text as far as it fits, EOS to the end
    ids = [config["eos"], *tokenizer.encode(text).ids][: config["shape"][0]]
    return ids + [config["eos"]] * (config["shape"][0] - len(ids))

texts = ["one text", "another"]
print([config["classes"][i] for i in model(torch.tensor([row(text) for text in texts])).argmax(-1)])
```

`model.safetensors` holds the same weights by name, `config.json` the sizes.
"""

_IMAGES = """# {name}

An image classifier of {parameters:,} parameters: {layers} layers, width {dim}, {heads} heads, patch side {patch}.
Images are {shape} (channels x height x width); classes: {classes}. Trained for {steps:,} steps of {batch} images from
`{source}`.

`model.pt2` runs with PyTorch alone:

```python
import json, torch

model = torch.export.load("model.pt2").module()
classes = json.load(open("config.json"))["classes"]
images = torch.zeros(2, {dims})  # uint8 pixels / 127.5 - 1
print([classes[i] for i in model(images).argmax(-1)])
```

`model.safetensors` holds the same weights by name, `config.json` the sizes.
"""


def decoder_card(config: JobConfig, manifest: Manifest, parameters: int) -> str:
    """The card of a language model."""
    return _DECODER.format(
        **_common(config, parameters), vocab=manifest.vocab_size, length=config.training.sequence_length
    )


def classifier_card(config: JobConfig, manifest: Manifest, parameters: int) -> str:
    """The card of a classifier of texts or images."""
    common = {**_common(config, parameters), "classes": ", ".join(manifest.classes or ())}
    shape = manifest.shape or ()
    if manifest.kind == "texts":
        return _TEXTS.format(**common, length=shape[0])
    return _IMAGES.format(
        **common,
        patch=config.model.size.patch_size,
        shape=" x ".join(map(str, shape)),
        dims=", ".join(map(str, shape)),
    )


def _common(config: JobConfig, parameters: int) -> dict[str, object]:
    size, training = config.model.size, config.training
    return {
        "name": config.name,
        "parameters": parameters,
        "layers": size.layers,
        "dim": size.dim,
        "heads": size.heads,
        "steps": training.steps,
        "batch": training.global_batch_size,
        "source": config.data.train.uri,
    }
