"""Images: how many a second one CPU makes ready to be trained on, as they are stored and augmented.

Counted is the CPU time of all threads that read, check, change and decode shuffled batches of a local directory, from
where memory is filled on. The kinds of augmentation take turns.
"""

import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from trainingjob_trainer.config import Augmentation, Storage
from trainingjob_trainer.data.augmentation import Augmenter
from trainingjob_trainer.data.batches import training_rows
from trainingjob_trainer.data.manifest import LABEL_BYTES, SPLITS, Manifest, Shard, SplitData
from trainingjob_trainer.data.prefetch import Change, prefetch, unchanged
from trainingjob_trainer.data.reader import Reader
from trainingjob_trainer.storage import LocalStore, Store

from benchmarks.trainer.figures import Figure, Lab

ROUNDS = 7
DATA_BYTES, MOST = 48 * 2**20, 50_000
SHAPES = {"8 x 8, grey": (1, 8, 8), "32 x 32": (3, 32, 32), "224 x 224": (3, 224, 224)}
CHANGES: dict[str, dict[str, Any]] = {
    "as stored": {},
    "flip": {"horizontalFlip": 0.5},
    "shift": {"shift": 1 / 8},  # of the side
    "erase": {"erase": 0.25},
    "brightness and contrast": {"brightness": 0.2, "contrast": 0.2},
    "all": {"horizontalFlip": 0.5, "shift": 1 / 8, "erase": 0.25, "brightness": 0.2, "contrast": 0.2},
}


def measure(lab: Lab) -> list[Figure]:
    """About a minute."""
    figures = []
    for size, shape in SHAPES.items():
        lab.say(f"images of {size}")
        store = LocalStore(str(Path(lab.directory, f"images-{shape[-1]}")), Storage())
        reader = Reader(store, _put_images(store, shape), "train", 1)
        runs: dict[str, list[float]] = {name: [] for name in CHANGES}
        for _ in range(ROUNDS):
            for name, options in CHANGES.items():
                runs[name].append(_images_a_second(reader, _change(options, shape)))
        key = f"images_{shape[-1]}"
        figures += [
            Figure.of(f"{key}_{name.replace(' ', '_')}_per_cpu_s", f"images of {size}, {name}", found, "/CPU s")
            for name, found in runs.items()
        ]
    return figures


def _change(options: dict[str, Any], shape: tuple[int, ...]) -> Change:
    if not options:
        return unchanged
    pixels = {"shift": round(options["shift"] * shape[-1])} if "shift" in options else {}
    return Augmenter(Augmentation.model_validate(options | pixels), 1, shape)


def _images_a_second(reader: Reader, change: Change) -> float:
    batch = min(256, len(reader) // 5)
    steps = len(reader) // batch
    with prefetch(reader, training_rows(range(steps), batch, reader.order(seed=1), 1, 0), change=change) as read:
        next(read)
        begun = time.process_time()
        count = sum(len(images.inputs) for images in islice(read, steps - 1))
        return count / (time.process_time() - begun)


def _put_images(store: Store, shape: tuple[int, ...]) -> Manifest:
    """Images of noise, in one shard."""
    size = math.prod(shape)
    count = min(MOST, DATA_BYTES // size)
    noise = np.random.default_rng(0).integers(0, 256, (count, size + LABEL_BYTES), dtype=np.uint8)
    noise[:, size:] = 0
    shard = Shard.of("data/0.bin", noise.tobytes(), count, count, "bench")
    store.put(shard.key, noise.tobytes())
    splits = dict.fromkeys(SPLITS, SplitData(shards=[shard], documents=count, bytes=count * size))
    return Manifest(kind="images", dtype="uint8", splits=splits, shape=shape, classes=["a"])
