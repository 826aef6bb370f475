"""What the demo claims of a run, computed from the run directory without a line of the trainer's code."""

from __future__ import annotations

import json
import math
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trainingjob_cli.jobs import Job

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

FELL_TO = 0.8
"""A last training loss below this share of the first one has really fallen."""
UNDER_UNIGRAM = 0.85
"""A test loss below this share of the unigram entropy is well under it."""
PROMPT = "The import statement"


@dataclass(frozen=True)
class Claim:
    """A sentence, and whether it holds."""

    holds: bool
    text: str


class RunDirectory:
    """Reads below the URIs that a job's status names."""

    def __init__(self, s3: S3Client, job: Job) -> None:
        result = job.status.result
        self.model_uri = (result.model_uri if result else None) or ""
        self.report_uri = (result.report_uri if result else None) or ""
        self._s3 = s3
        # s3://bucket/run/model/a1/ -> s3://bucket/run/
        self.uri = self.model_uri.partition("/model/")[0] + "/"

    def read(self, uri: str) -> bytes:
        """The object at an s3:// URI."""
        at = urlsplit(uri)
        return self._s3.get_object(Bucket=at.netloc, Key=at.path.lstrip("/"))["Body"].read()

    def download(self, uri: str, directory: Path) -> None:
        """All objects directly below an s3:// URI."""
        at = urlsplit(uri)
        listed = self._s3.list_objects_v2(Bucket=at.netloc, Prefix=at.path.lstrip("/"))
        for item in listed.get("Contents", []):
            (directory / item["Key"].rpartition("/")[2]).write_bytes(self.read(f"s3://{at.netloc}/{item['Key']}"))


def of_run(s3: S3Client, job: Job) -> list[Claim]:
    """The claims about a succeeded language-modeling job."""
    run = RunDirectory(s3, job)
    return [_loss_fell(run), _beats_unigram(run, job), _generates(run)]


def _loss_fell(run: RunDirectory) -> Claim:
    report = json.loads(run.read(run.report_uri.removesuffix("html") + "json"))
    losses = [point["loss"] for point in report["history"]["train"]]
    first, last = losses[0], losses[-1]
    return Claim(last < FELL_TO * first, f"the training loss fell from {first:.2f} to {last:.2f} nats a token")


def _beats_unigram(run: RunDirectory, job: Job) -> Claim:
    evaluation = job.status.evaluation
    if evaluation is None or evaluation.split != "test":
        return Claim(False, "the evaluation in the status is that of the test split")
    manifest = json.loads(run.read(run.uri + "data/manifest.json"))
    entropy = unigram_entropy(split_tokens(run, manifest))
    loss = evaluation.metrics["loss"]
    return Claim(
        loss < UNDER_UNIGRAM * entropy,
        f"on the test split the model needs {loss:.2f} nats a token; "
        f"knowing only how often each token occurs there, one needs {entropy:.2f}",
    )


def split_tokens(run: RunDirectory, manifest: dict[str, Any]) -> array[int]:
    """The tokens of the test split."""
    tokens = array("H" if manifest["dtype"] == "uint16" else "I")
    for shard in manifest["splits"]["test"]["shards"]:
        tokens.frombytes(run.read(run.uri + shard["key"]))
    return tokens


def unigram_entropy(tokens: Sequence[int]) -> float:
    """Entropy in nats of the tokens' own frequencies: what the best unigram model of these very tokens needs."""
    counts = Counter(tokens).values()
    total = len(tokens)
    return -sum(count / total * math.log(count / total) for count in counts)


def _generates(run: RunDirectory) -> Claim:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        run.download(run.model_uri, Path(name))
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name)
        set_seed(1)
        inputs = tokenizer(PROMPT, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=24, do_sample=True, top_k=20)
    length = inputs["input_ids"].shape[1]
    text = tokenizer.decode(output[0], skip_special_tokens=True).replace("\n", " ")
    return Claim(
        output.shape[1] > length,
        f"transformers loads the exported model ({model.num_parameters() / 1e6:.1f} million parameters) "
        f"and it writes: {text!r}",
    )
