"""Outside the sandbox, for a kept cluster: the daemon that holds the sandbox and the outer ends of the relays.

`python -m trainingjob_local.keeper STATE_DIRECTORY CRD`, started by `trainingjob local up`. When it ends, however it
ends, the sandbox and everything in it ends too.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from trainingjob_local import relay, sandbox
from trainingjob_local.state import PORTS, Facts, StateDirectory, write_private


async def keep(state: StateDirectory, crd: Path) -> int:
    """Start the sandbox, relay into it, and wait until it ends or a signal asks for the end."""
    supervisor = [sys.executable, "-m", "trainingjob_local.supervisor", str(state.path), str(crd)]
    process = await asyncio.create_subprocess_exec(*sandbox.command_line(supervisor))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, process.terminate)
    ended = asyncio.ensure_future(process.wait())
    while not state.inner.exists() and not ended.done():
        await asyncio.wait([ended], timeout=0.1)
    if not ended.done():
        ports = {name: await _relay(state, name, port) for name, port in PORTS.items()}
        state.write(_facts(state, ports))
    return await ended


async def _relay(state: StateDirectory, name: str, port: int) -> int:
    """Offer a service on the host: on its usual port, or on any free one."""
    try:
        server = await relay.to_socket(state.socket(name), port)
    except OSError:
        server = await relay.to_socket(state.socket(name), 0)
    actual: int = server.sockets[0].getsockname()[1]
    return actual


def _facts(state: StateDirectory, ports: dict[str, int]) -> Facts:
    inner = json.loads(state.inner.read_text())
    kubeconfig = inner.pop("kubeconfig")
    api = f"https://127.0.0.1:{ports['api']}"
    kubeconfig["clusters"][0]["cluster"]["server"] = api
    write_private(state.kubeconfig, json.dumps(kubeconfig, indent=2))
    return Facts(
        pid=os.getpid(),
        api=api,
        s3=f"http://127.0.0.1:{ports['s3']}",
        metrics=f"http://127.0.0.1:{ports['metrics']}/metrics",
        kubeconfig=str(state.kubeconfig),
        **inner,
    )


if __name__ == "__main__":
    sys.exit(asyncio.run(keep(StateDirectory(Path(sys.argv[1])), Path(sys.argv[2]))))
