"""A pod's volumes, made as directories of the node before its containers start."""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from trainingjob_local import linux
from trainingjob_local.node import syscalls
from trainingjob_local.node.environment import ConfigError, field_value
from trainingjob_local.node.kube import ApiError, KubeClient, Object
from trainingjob_local.node.references import read_binary

_DEFAULT_MODE = 0o644
_TOKEN_SECONDS = 3600

Files = dict[str, tuple[bytes, int]]  # relative path -> content, mode


class MountFailed(Exception):
    """A volume can't be made yet; the message is a kubelet's."""


async def make(client: KubeClient, pod: Object, volume: Object, directory: Path) -> None:
    """Make the volume at `directory` (or fill in what an earlier, failed call left); raises MountFailed.

    ConfigMaps, Secrets and tokens are read once, here: later changes do not reach the pod.
    """
    name = volume["name"]
    group = pod["spec"].get("securityContext", {}).get("fsGroup")
    try:
        if "emptyDir" in volume:
            _make_empty(volume["emptyDir"] or {}, directory, group)
        else:
            files = await _files(client, pod, volume)
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            _write(directory, files, group)
    except (ApiError, ConfigError, OSError) as error:
        raise MountFailed(f'MountVolume.SetUp failed for volume "{name}" : {error}') from error


def remove(directory: Path) -> None:
    """Remove a volume and what is in it."""
    with contextlib.suppress(OSError):
        syscalls.unmount(str(directory))
    shutil.rmtree(directory, ignore_errors=True)


def _make_empty(source: Object, directory: Path, group: int | None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if source.get("medium") == "Memory" and not os.path.ismount(directory):
        limit = source.get("sizeLimit")
        size = f",size={quantity(str(limit))}" if limit else ""
        linux.mount("tmpfs", directory, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, f"mode=777{size}")
    directory.chmod(0o777)
    _give_to_group(directory, group, 0o2777)


async def _files(client: KubeClient, pod: Object, volume: Object) -> Files:
    if "projected" in volume:
        default = volume["projected"].get("defaultMode", _DEFAULT_MODE)
        files: Files = {}
        for source in volume["projected"].get("sources", []):
            files.update(await _source_files(client, pod, source, default))
        return files
    source = {kind: volume[kind] for kind in ("configMap", "secret", "downwardAPI") if kind in volume}
    default = next(iter(source.values())).get("defaultMode", _DEFAULT_MODE)
    return await _source_files(client, pod, source, default)


async def _source_files(client: KubeClient, pod: Object, source: Object, default: int) -> Files:
    if "serviceAccountToken" in source:
        token = source["serviceAccountToken"]
        return {token["path"]: (await _token(client, pod, token), default)}
    if "downwardAPI" in source:
        items = source["downwardAPI"].get("items", [])
        return {
            item["path"]: (field_value(pod, item["fieldRef"]["fieldPath"]).encode(), item.get("mode", default))
            for item in items
        }
    kind, wanted = ("configmap", source["configMap"]) if "configMap" in source else ("secret", source["secret"])
    name = wanted.get("name") or wanted["secretName"]
    optional = bool(wanted.get("optional"))
    data = await read_binary(client, kind, pod["metadata"]["namespace"], name, optional)
    return select(data or {}, wanted.get("items"), default, f"{kind} {name!r}", optional=optional)


def select(data: Mapping[str, bytes], items: list[Object] | None, default: int, what: str, *, optional: bool) -> Files:
    """The files that `items` (or, without it, every key) make of `data`; raises ConfigError for a missing key."""
    if items is None:
        return {key: (content, default) for key, content in data.items()}
    files: Files = {}
    for item in items:
        if item["key"] in data:
            files[item["path"]] = (data[item["key"]], item.get("mode", default))
        elif not optional:
            raise ConfigError(f"{what} references non-existent key: {item['key']}")
    return files


async def _token(client: KubeClient, pod: Object, source: Object) -> bytes:
    metadata, account = pod["metadata"], pod["spec"]["serviceAccountName"]
    request = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": [source["audience"]] if source.get("audience") else [],
            "expirationSeconds": source.get("expirationSeconds", _TOKEN_SECONDS),
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]},
        },
    }
    answer = await client.post(f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token", request)
    return str(answer["status"]["token"]).encode()


def _write(directory: Path, files: Files, group: int | None) -> None:
    for name, (content, mode) in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        _give_to_group(path, group, mode | 0o440)
    _give_to_group(directory, group, 0o2775)


def _give_to_group(path: Path, group: int | None, mode: int) -> None:
    if group is not None:
        with contextlib.suppress(OSError):  # a rootless cluster has one group
            os.chown(path, -1, group)
        path.chmod(mode)


_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity such as `64Mi`; raises ValueError for another unit."""
    number = text.rstrip("kMGTi")
    return int(float(number) * _SUFFIXES[text[len(number) :]])
