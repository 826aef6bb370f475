"""The README of an exported model: what it is and how to load it."""

from __future__ import annotations

from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.data.manifest import Manifest

_DECODER = """# {name}

A language model of {parameters:,} parameters ({shape}), {vocab:,} tokens of vocabulary, sequences of {length} tokens.
Trained for {steps:,} steps of {batch} samples on `{source}`.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer("Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```
"""

_RECURRENT = """# {name}

A recurrent language model of {parameters:,} parameters ({shape}), {vocab:,} tokens of vocabulary. Trained for {steps:,}
steps of {batch} sequences of {length} tokens on `{source}`.

`model.pt2` runs with PyTorch alone, on sequences of {length} tokens; `tokenizer.json` is read by the `tokenizers`
library:

```python
import json, tokenizers, torch

model = torch.export.load("model.pt2").module()
config = json.load(open("config.json"))
tokenizer = tokenizers.Tokenizer.from_file("tokenizer.json")
ids = [config["eos"], *tokenizer.encode("Once").ids]
row = torch.tensor([ids + [config["eos"]] * (config["shape"][0] - len(ids))])
print(tokenizer.decode([int(model(row)[0, len(ids) - 1].argmax())]))  # the next token
```

`model.safetensors` holds the same weights by name, `config.json` the sizes.
"""

_TEXTS = """# {name}

A text classifier of {parameters:,} parameters ({shape}). Texts are their first {length} tokens; classes: {classes}.
Trained for {steps:,} steps of {batch} texts from `{source}`.

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
logits = model(torch.tensor([row(text) for text in texts]))
print({reading})
```

`model.safetensors` holds the same weights by name, `config.json` the sizes.
"""

_TEXTS_OF_LIBRARY = """# {name}

A text classifier of {parameters:,} parameters ({shape}). Texts are their first {length} tokens; classes: {classes}.
Trained for {steps:,} steps of {batch} texts from `{source}`.

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")
inputs = tokenizer(["one text", "another"], truncation=True, padding=True, return_tensors="pt")
logits = model(**inputs).logits
config = {{"classes": list(model.config.id2label.values())}}
print({reading})
```
"""

_TABLES = """# {name}

A regression of {parameters:,} parameters ({shape}): `{target}` from {features}. Trained for {steps:,} steps of {batch}
rows from `{source}`.

`model.pt2` runs with PyTorch alone, on columns as they are in the data:

```python
import json, torch

model = torch.export.load("model.pt2").module()
features = json.load(open("config.json"))["features"]
print(model(torch.zeros(2, len(features))))  # a row for each, its columns in this order
```

`model.safetensors` holds the weights by name, `config.json` the sizes.
"""

_IMAGES = """# {name}

An image classifier of {parameters:,} parameters ({shape}). Images are {sides} (channels x height x width); classes:
{classes}. Trained for {steps:,} steps of {batch} images from `{source}`{augmented}.

`model.pt2` runs with PyTorch alone:

```python
import json, torch

model = torch.export.load("model.pt2").module()
config = json.load(open("config.json"))
images = torch.zeros(2, {dims})  # uint8 pixels / 127.5 - 1
logits = model(images)
print({reading})
```

`model.safetensors` holds the same weights by name, `config.json` the sizes.
"""


def model_card(config: JobConfig, manifest: Manifest, parameters: int, step: int) -> str:
    """The card of a model, by its task and by what it is handed out as."""
    common = {
        **_common(config, parameters, step),
        "classes": ", ".join(manifest.classes or ()),
        "reading": reading(manifest),
    }
    match manifest.kind:
        case "tokens":
            card = _RECURRENT if config.model.rnn is not None else _DECODER
            return card.format(**common, vocab=manifest.vocab_size, length=config.training.sequence_length)
        case "texts":
            card = _TEXTS if config.model.huggingface is None else _TEXTS_OF_LIBRARY
            return card.format(**common, length=(manifest.shape or (0,))[0])
        case "images":
            sides = [str(side) for side in manifest.shape or ()]
            changes = config.data.augmentation
            augmented = "" if changes is None else f", changed at random each time (augmentation: {changes})"
            return _IMAGES.format(**common, sides=" x ".join(sides), dims=", ".join(sides), augmented=augmented)
        case "tables":
            source = config.data.train
            return _TABLES.format(**common, features=", ".join(source.features), target=source.label_field)


def reading(manifest: Manifest) -> str:
    """What turns logits into names of classes, in Python."""
    if manifest.multi_label:
        return '[[name for name, logit in zip(config["classes"], row) if logit > 0] for row in logits]'
    return '[config["classes"][i] for i in logits.argmax(-1)]'


def _common(config: JobConfig, parameters: int, step: int) -> dict[str, object]:
    training = config.training
    return {
        "name": config.name,
        "parameters": parameters,
        "shape": ", ".join(f"{name} {value}" for name, value in config.model.architecture.wire().items()),
        "steps": step,
        "batch": training.global_batch_size,
        "source": str(config.data.train),
    }
