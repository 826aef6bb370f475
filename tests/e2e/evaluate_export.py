"""Recompute the test metrics of a finished run from its exported model, with nothing of the trainer.

    python evaluate_export.py s3://bucket/run      (credentials and AWS_ENDPOINT_URL from the environment)

Prints the metrics as JSON. Data: the test shards that the manifest names. Model: what `result.json` points to, loaded
by transformers (language) or by torch.export (texts, images).
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch


class Directory:
    """Objects below a URI: in S3, or in a local directory."""

    def __init__(self, uri: str) -> None:
        self.parsed = urlparse(uri.rstrip("/"))
        self.s3: Any = None
        if self.parsed.scheme == "s3":
            import boto3

            self.s3 = boto3.client("s3")

    def read(self, key: str) -> bytes:
        path = f"{self.parsed.path}/{key}"
        if self.s3 is None:
            return Path(path).read_bytes()
        body: bytes = self.s3.get_object(Bucket=self.parsed.netloc, Key=path.lstrip("/"))["Body"].read()
        return body


def main(uri: str) -> dict[str, Any]:
    run = Directory(uri)
    manifest = json.loads(run.read("data/manifest.json"))
    model = Directory(json.loads(run.read("result.json"))["modelUri"])
    stream = b"".join(run.read(shard["key"]) for shard in manifest["splits"]["test"]["shards"])
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        files = ["config.json", "model.safetensors"]
        if manifest["kind"] == "tokens":
            files += ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
        else:
            files += ["model.pt2"]
        for name in files:
            Path(directory, name).write_bytes(model.read(name))
        return (
            language(directory, manifest, stream)
            if manifest["kind"] == "tokens"
            else classes(directory, manifest, stream)
        )


def language(directory: str, manifest: dict[str, Any], stream: bytes) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory).double().eval()
    tokens = torch.from_numpy(
        np.frombuffer(stream, dtype="<u2" if manifest["dtype"] == "uint16" else "<u4").astype(int)
    )
    length = model.config.max_position_embeddings
    windows = range(0, len(tokens) - length, length)
    loss = correct = among_five = 0.0
    for start in windows:
        window = tokens[start : start + length + 1]
        logits = model(window[None, :-1]).logits[0]
        loss -= float(logits.log_softmax(-1).gather(-1, window[1:, None]).sum())
        correct += int((logits.argmax(-1) == window[1:]).sum())
        among_five += int((logits.topk(5).indices == window[1:, None]).sum())
    count = len(windows) * length
    tokenizer = AutoTokenizer.from_pretrained(directory)
    prompt = torch.tensor([[tokenizer.bos_token_id]])
    generated = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=16, do_sample=False)
    return {
        "loss": loss / count,
        "perplexity": math.exp(loss / count),
        "bitsPerByte": loss / count / math.log(2) * len(tokens) / manifest["splits"]["test"]["bytes"],
        "accuracy": correct / count,
        "top5Accuracy": among_five / count,
        "generated": tokenizer.decode(generated[0], skip_special_tokens=True),
    }


def classes(directory: str, manifest: dict[str, Any], stream: bytes) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support

    shape, dtype = manifest["shape"], np.dtype(manifest["dtype"]).newbyteorder("<")
    rows = np.frombuffer(stream, dtype=np.uint8).reshape(-1, math.prod(shape) * dtype.itemsize + 4)
    labels = np.ascontiguousarray(rows[:, -4:]).view("<i4")[:, 0]
    numbers = np.ascontiguousarray(rows[:, :-4]).view(dtype).reshape(-1, *shape)
    if manifest["kind"] == "images":
        inputs = torch.from_numpy(numbers.astype(np.float32)) / 127.5 - 1
    else:
        inputs = torch.from_numpy(numbers.astype(np.int64))
    every = range(len(json.loads(Path(directory, "config.json").read_text())["classes"]))
    logits = torch.export.load(Path(directory, "model.pt2")).module()(inputs).double()
    predictions = logits.argmax(-1).numpy()
    found: dict[str, Any] = {}
    for suffix, average in (("", "macro"), ("Micro", "micro")):
        means = precision_recall_fscore_support(labels, predictions, average=average, zero_division=0)
        found |= {f"{name}{suffix}": mean for name, mean in zip(("precision", "recall", "f1"), means, strict=False)}
    return {
        "loss": log_loss(labels, logits.softmax(-1).numpy(), labels=list(every)),
        "accuracy": float((predictions == labels).mean()),
        **found,
        "confusionMatrix": confusion_matrix(labels, predictions, labels=list(every)).tolist(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1])) + "\n")
