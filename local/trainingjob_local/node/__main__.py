"""`python -m trainingjob_local.node`: see `config` for its arguments."""

import asyncio
import logging
import signal

from trainingjob_local import linux
from trainingjob_local.node import config
from trainingjob_local.node.agent import run


def main() -> None:
    """Run the node until SIGTERM or SIGINT; its pods end with it."""
    settings = config.parse()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("pyroute2").setLevel(logging.WARNING)
    linux.unshare(linux.CLONE_NEWNS)  # so that what the node mounts goes with it
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    asyncio.run(_until_signalled(settings))


async def _until_signalled(settings: config.NodeConfig) -> None:
    node = asyncio.create_task(run(settings))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, node.cancel)
    await asyncio.wait({node})
    if not node.cancelled():
        node.result()


if __name__ == "__main__":
    main()
