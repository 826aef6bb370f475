"""Inside the sandbox, for a kept cluster: the cluster, the operator and the inner ends of the relays.

`python -m trainingjob_local.supervisor STATE_DIRECTORY CRD`, started by `keeper`.
"""

import asyncio
import json
import shutil
import signal
import sys
from pathlib import Path

from trainingjob_local import relay
from trainingjob_local.cluster import LocalCluster
from trainingjob_local.process import Component
from trainingjob_local.s3 import PORT as S3_PORT
from trainingjob_local.sample_data import manual
from trainingjob_local.sandbox import HOST_IP
from trainingjob_local.state import BUCKET, StateDirectory, write_private

_METRICS_PORT = 9080


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    state, crd = StateDirectory(Path(sys.argv[1])), Path(sys.argv[2])
    shutil.rmtree(state.data, ignore_errors=True)
    with LocalCluster(state.data, say=_say) as cluster:
        _say("installing the TrainingJob resource, sample data and the operator")
        operator = _furnish(cluster, crd)
        try:
            asyncio.run(_serve(state, cluster, operator))
        finally:
            operator.stop()


def _furnish(cluster: LocalCluster, crd: Path) -> Component:
    cluster.install(crd)
    cluster.add_s3_secret("default")
    cluster.s3.ensure_bucket(BUCKET)
    cluster.s3.client().put_object(Bucket=BUCKET, Key="raw/manual.jsonl", Body=manual())
    flags = ["--kubeconfig", cluster.kubeconfig, "--metrics-address", f"127.0.0.1:{_METRICS_PORT}"]
    command = [sys.executable, "-m", "trainingjob_operator", *map(str, flags), "--progress-interval", "2"]
    return Component("operator", command, cluster.directory / "operator.log")


async def _serve(state: StateDirectory, cluster: LocalCluster, operator: Component) -> None:
    """Offer the services, tell that they are there, and wait for the end."""
    await relay.from_socket(state.socket("api"), "127.0.0.1", 6443)
    await relay.from_socket(state.socket("s3"), HOST_IP, S3_PORT)
    await relay.from_socket(state.socket("metrics"), "127.0.0.1", _METRICS_PORT)
    names = [c.name for c in cluster.control_plane.components] + ["seaweedfs", *cluster.nodes, operator.name]
    facts = {
        "kubeconfig": json.loads(cluster.kubeconfig.read_text()),
        "kubectl": str(cluster.kubectl_binary),
        "access_key": cluster.s3.access_key,
        "secret_key": cluster.s3.secret_key,
        "components": names,
    }
    write_private(state.inner, json.dumps(facts))
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    await over.wait()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
