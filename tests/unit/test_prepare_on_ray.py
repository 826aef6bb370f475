"""Preparation on two nodes of a real Ray cluster: the stream of one process, in shards of the size they should have."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from support.runs import RUN_PATIENCE
from support.training import job, store_of
from trainingjob_trainer.data.manifest import MANIFEST_KEY, SPLITS, Manifest, SplitName
from trainingjob_trainer.prepare import local
from trainingjob_trainer.prepare.ray_data import BLOCK_BYTES
from trainingjob_trainer.prepare.shards import SHARD_BYTES
from trainingjob_trainer.storage import Store

SMALLER = 256  # are blocks and shards here
BLOCKS = 36


@pytest.mark.slow  # Ray's start: half a minute
def test_two_nodes_write_the_stream_of_one_process_in_full_shards_though_a_writer_is_killed(tmp_path: Path) -> None:
    text = BLOCKS * BLOCK_BYTES // SMALLER
    write_words(tmp_path / "raw", text, files=3)
    source = {"uri": f"{tmp_path}/raw/*.jsonl"}
    held_out = {"validation": {"fraction": 0.02}, "test": {"fraction": 0.02}}
    data = {"train": source, **held_out, "prepare": {"tokenizer": {"vocabSize": 1000}}}
    alone, spread = (job(tmp_path / name, data=data) for name in ("alone", "spread"))
    expected = local.prepare_data(alone, store_of(alone))
    (tmp_path / "job.json").write_text(spread.model_dump_json(by_alias=True))
    sizes = str(BLOCK_BYTES // SMALLER), str(SHARD_BYTES // SMALLER)
    sandboxed = (sys.executable, "-m", "trainingjob_local.sandbox", "--", sys.executable)
    command = (*sandboxed, "-m", "support.ray_preparation", str(tmp_path / "job.json"), *sizes)
    with TemporaryDirectory() as short:  # Ray has sockets there, whose paths have a limit
        environment = {**os.environ, "RAY_TMPDIR": short}
        subprocess.run(command, cwd=Path(__file__).parent.parent, env=environment, check=True, timeout=RUN_PATIENCE)
    store = store_of(spread)
    manifest = Manifest.model_validate_json(store.get(MANIFEST_KEY))
    for split in SPLITS:
        assert stream(store, manifest, split) == stream(store_of(alone), expected, split)
    shards = manifest.splits["train"].shards
    assert {shard.writer for shard in shards} == {"prepare-0", "prepare-1"}
    wanted = SHARD_BYTES / SMALLER
    sizes_found = [shard.size for shard in shards]
    assert max(sizes_found) < 1.55 * wanted
    assert sum(sizes_found) > 0.75 * wanted * len(shards), sizes_found
    assert store.get("killed").decode() in {shard.key for shard in shards}


def write_words(directory: Path, size: int, files: int) -> None:
    """Documents of words that are drawn as often as words are, `size` bytes in all, as JSONL."""
    random = np.random.default_rng(0)
    words = [
        "".join(chr(97 + letter) for letter in random.integers(26, size=random.integers(2, 9))) for _ in range(2000)
    ]
    chances = 1 / np.arange(1, len(words) + 1)
    drawn = random.choice(words, size=size // 6, p=chances / chances.sum())
    texts = [" ".join(drawn[start : start + 200]) for start in range(0, len(drawn), 200)]
    directory.mkdir()
    for number in range(files):
        lines = (json.dumps({"text": text}) + "\n" for text in texts[number::files])
        (directory / f"{number}.jsonl").write_text("".join(lines))


def stream(store: Store, manifest: Manifest, split: SplitName) -> bytes:
    return b"".join(store.get(shard.key) for shard in manifest.splits[split].shards)
