"""Each regulariser changes a step as its formula says: against a step by hand, and against one without it."""

from pathlib import Path
from typing import Any

import numpy as np
from support.by_hand import steps_both_ways
from support.ranks import run_ranks
from support.training import job, put_tokens, store_of, without_dropout

SGD = {"name": "sgd", "momentum": 0, "lr": 0.1}
REGULARISERS: dict[str, dict[str, Any]] = {
    "none": {},
    "weight decay": {"optimizer": {**SGD, "weightDecay": 0.1}},
    "L2": {"optimizer": {**SGD, "l2": 0.1}},
    "L1": {"optimizer": {**SGD, "l1": 0.01}},
    "label smoothing": {"labelSmoothing": 0.2},
    "clipping": {"clipNorm": 0.2},
    "dropout": {"model": {"transformer": {**without_dropout()["transformer"], "dropout": 0.5}}},
}


def test_a_step_is_the_one_by_hand_and_each_regulariser_makes_a_difference(tmp_path: Path) -> None:
    common = {"model": without_dropout(), "optimizer": SGD, "clipNorm": 0, "microBatchSize": 10}
    common["schedule"] = {"name": "constant", "warmupSteps": 0}
    configs = [job(tmp_path, **{**common, **changes}) for changes in REGULARISERS.values()]
    put_tokens(store_of(configs[0]))
    [results] = run_ranks(1, steps_both_ways, configs)
    plain, _ = results[0]
    for name, (found, expected) in zip(REGULARISERS, results, strict=True):
        bound = 1e-9 if name == "weight decay" else 1e-12  # whose factor is float32
        for label, weight in expected.items():
            np.testing.assert_allclose(found[label], weight, rtol=0, atol=bound, err_msg=f"{name} {label}")
        vectors = [label for label, weight in found.items() if weight.ndim == 1]
        assert vectors
        differ = {label for label, weight in found.items() if np.abs(weight - plain[label]).max() > 1e-6}
        if name == "none":
            assert not differ
        elif name in ("weight decay", "L2", "L1"):
            assert differ == found.keys() - set(vectors), "norms are spared"
        else:
            assert differ
