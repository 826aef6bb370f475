"""ConfigMaps and Secrets that pods refer to, fetched one by one, as the Node authorizer allows."""

import asyncio
import base64
from collections.abc import Mapping

from trainingjob_local.node.environment import ConfigError
from trainingjob_local.node.kube import ApiError, KubeClient, Object

_FORBIDDEN_RETRIES = (0.05, 0.1, 0.3, 1.0)  # the authorizer learns of a new pod a moment after the node does


async def read_binary(
    client: KubeClient, kind: str, namespace: str, name: str, optional: bool
) -> dict[str, bytes] | None:
    """The data of a `configmap` or `secret`; None if it is absent and optional.

    Raises ConfigError in a kubelet's words if it is absent and not optional, ApiError for another refusal.
    """
    try:
        found = await _get(client, f"/api/v1/namespaces/{namespace}/{kind}s/{name}")
    except ApiError as error:
        if error.code != 404:
            raise
        if optional:
            return None
        raise ConfigError(f'{kind} "{name}" not found') from error
    plain: Mapping[str, str] = found.get("data") or {}
    if kind == "configmap":
        encoded: Mapping[str, str] = found.get("binaryData") or {}
        return {key: value.encode() for key, value in plain.items()} | _decode(encoded)
    return _decode(plain)


async def read_text(client: KubeClient, kind: str, namespace: str, name: str, optional: bool) -> dict[str, str] | None:
    """As `read_binary`, with values as text."""
    data = await read_binary(client, kind, namespace, name, optional)
    return None if data is None else {key: value.decode(errors="replace") for key, value in data.items()}


async def _get(client: KubeClient, path: str) -> Object:
    for pause in _FORBIDDEN_RETRIES:
        try:
            return await client.get(path)
        except ApiError as error:
            if error.code != 403:
                raise
        await asyncio.sleep(pause)
    return await client.get(path)


def _decode(data: Mapping[str, str]) -> dict[str, bytes]:
    return {key: base64.b64decode(value) for key, value in data.items()}
