"""Prepare a job's data on a Ray cluster of two nodes, children of this process, of which one loses a writer.

    python -m support.ray_preparation CONFIG BLOCK_BYTES SHARD_BYTES

CONFIG: a job's configuration, a file; its run is in a local directory. The sizes are ours divided by the same number.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from unittest import mock

import ray
from ray.cluster_utils import Cluster
from trainingjob_trainer.config import JobConfig
from trainingjob_trainer.prepare import ray_data
from trainingjob_trainer.storage import LocalStore

NODES = 2


class DeadlyStore(LocalStore):
    """A directory whose first shard for training is the last thing its writer does; its key is in `killed`."""

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        etag = super().put(key, data, if_none_match=if_none_match, if_match=if_match)
        if key.startswith("data/train"):
            try:
                (Path(self.root) / "killed").open("x").write(key)
            except FileExistsError:
                return etag
            os.kill(os.getpid(), signal.SIGKILL)
        return etag


def prepare(config: JobConfig, block_bytes: int, shard_bytes: int) -> None:
    """With two CPU slots a node, as small pods have them; shards are named after the nodes."""
    cluster = Cluster()
    try:
        for number in range(NODES):
            cluster.add_node(num_cpus=2, node_ip_address="127.0.0.1", env_vars={"POD_NAME": f"prepare-{number}"})
        ray.init(cluster.address, log_to_driver=False, include_dashboard=False)
        with mock.patch.multiple(ray_data, BLOCK_BYTES=block_bytes, SHARD_BYTES=shard_bytes):
            ray_data.prepare_data(config, DeadlyStore(config.output_uri, config.storage))
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    path, *sizes = sys.argv[1:]
    prepare(JobConfig.model_validate_json(Path(path).read_text()), *map(int, sizes))
