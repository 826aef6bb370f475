"""CustomResourceDefinitions take a moment from being applied to being served."""

import json
import time
from collections.abc import Callable

from trainingjob_local.process import START_SECONDS


def wait_until_served(kubectl: Callable[..., str], *which: str) -> None:
    """Wait until the API server serves a definition. which: what `kubectl get` finds it by.

    `kubectl wait` would fail at once while the definition has no conditions at all. Raises RuntimeError.
    """
    deadline = time.monotonic() + START_SECONDS
    while not _is_served(kubectl("get", *which, "-o", "json")):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{which[-1]} is not served after {START_SECONDS:.0f} s")
        time.sleep(0.05)


def _is_served(definition: str) -> bool:
    conditions = json.loads(definition).get("status", {}).get("conditions") or ()
    return any(each["type"] == "Established" and each["status"] == "True" for each in conditions)
