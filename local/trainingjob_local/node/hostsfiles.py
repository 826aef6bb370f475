"""Keeps the /etc/hosts of every running pod as the EndpointSlices of headless Services say."""

import os
from dataclasses import dataclass
from pathlib import Path

from trainingjob_local.node.hosts import HEADLESS_LABEL, render
from trainingjob_local.node.kube import KubeClient, Object

_SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


@dataclass(frozen=True)
class _File:
    pod: Object
    address: str
    path: Path


class HostsFiles:
    """Files are rewritten in place: a container's bind mount would not show a file that was renamed over."""

    def __init__(self) -> None:
        self._slices: dict[str, dict[str, Object]] = {}  # namespace -> name -> slice
        self._files: dict[str, _File] = {}  # by the pod's uid

    async def follow(self, client: KubeClient) -> None:
        """Watch the EndpointSlices of headless Services until cancelled."""
        await client.follow(_SLICES, {"labelSelector": HEADLESS_LABEL}, self._replace, self._change)

    def add(self, pod: Object, address: str, path: Path) -> None:
        """Write and from now on maintain a pod's file."""
        file = self._files[pod["metadata"]["uid"]] = _File(pod, address, path)
        self._write(file)

    def remove(self, pod: Object) -> None:
        """The pod runs no more."""
        self._files.pop(pod["metadata"]["uid"], None)

    def _replace(self, items: list[Object]) -> None:
        self._slices = {}
        for item in items:
            self._in(item)[item["metadata"]["name"]] = item
        for file in self._files.values():
            self._write(file)

    def _change(self, kind: str, item: Object) -> None:
        if kind == "DELETED":
            self._in(item).pop(item["metadata"]["name"], None)
        else:
            self._in(item)[item["metadata"]["name"]] = item
        for file in self._files.values():
            if file.pod["metadata"]["namespace"] == item["metadata"]["namespace"]:
                self._write(file)

    def _in(self, item: Object) -> dict[str, Object]:
        return self._slices.setdefault(item["metadata"]["namespace"], {})

    def _write(self, file: _File) -> None:
        slices = self._slices.get(file.pod["metadata"]["namespace"], {})
        content = render(file.pod, file.address, slices.values()).encode()
        descriptor = os.open(file.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.pread(descriptor, len(content) + 1, 0) != content:
                os.pwrite(descriptor, content, 0)
                os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)
