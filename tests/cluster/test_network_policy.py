"""The NetworkPolicy of the documentation: what jobs need, in the eyes of the API server and of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from support.chart import render
from support.play import Play
from trainingjob_operator.core.pod_template import HTTP_PORT
from trainingjob_trainer.agent import custom
from trainingjob_trainer.agent.pod import Pod
from trainingjob_trainer.ray_node import start_command
from trainingjob_trainer.ray_train import RENDEZVOUS_PORTS

if TYPE_CHECKING:
    from trainingjob_local.cluster import LocalCluster

QUICKSTART = Path(__file__).parents[2] / "docs" / "quickstart-on-your-cluster.md"


def documented() -> dict[str, Any]:
    (text,) = re.findall(r"```yaml\n(apiVersion: networking[^`]*)```", QUICKSTART.read_text())
    policy: dict[str, Any] = yaml.safe_load(text)
    return policy


def numbers(ports: list[dict[str, Any]]) -> set[int]:
    return {number for port in ports for number in range(port["port"], port.get("endPort", port["port"]) + 1)}


def listened_on(sysctls: list[dict[str, str]]) -> Iterator[int]:
    """Ports of a pod that the others of its gang call."""
    yield HTTP_PORT
    (ephemeral,) = [each["value"].split() for each in sysctls if each["name"] == "net.ipv4.ip_local_port_range"]
    yield from range(int(ephemeral[0]), int(ephemeral[1]) + 1)
    yield from RENDEZVOUS_PORTS
    yield from range(custom.FIRST_PORT, custom.FIRST_PORT + custom.PORTS)
    head = Pod(**dict.fromkeys((field.name for field in fields(Pod)), ""))  # type: ignore[arg-type]  # Ports alone count.
    ray = dict(re.findall(r"--(\S*port)=(\d+)", " ".join(start_command(head, 1, 1, None))))
    yield from range(int(ray.pop("min-worker-port")), int(ray.pop("max-worker-port")) + 1)
    yield from map(int, ray.values())


def takes(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    exist = all(each["key"] in labels for each in selector.get("matchExpressions", ()))
    return exist and selector.get("matchLabels", {}).items() <= labels.items()


def test_the_documented_network_policy_is_valid_and_names_what_pods_listen_on(
    cluster: LocalCluster, namespace: str
) -> None:
    policy, play = documented(), Play()
    play.settle()
    (pod,) = play.manifests
    between, asked = policy["spec"]["ingress"]
    assert numbers(between["ports"]) == set(listened_on(pod["spec"]["securityContext"]["sysctls"]))
    for selector in (policy["spec"]["podSelector"], between["from"][0]["podSelector"]):
        assert takes(selector, pod["metadata"]["labels"])
    assert policy["spec"]["egress"][0] == {"to": between["from"], "ports": between["ports"]}

    (operator,) = [each for each in render("trainingjob-system") if each["kind"] == "Deployment"]
    who = asked["from"][0]
    assert takes(who["podSelector"], operator["spec"]["template"]["metadata"]["labels"])
    labels = {"kubernetes.io/metadata.name": operator["metadata"]["namespace"]}
    assert takes(who["namespaceSelector"], labels)
    assert numbers(asked["ports"]) == {HTTP_PORT}
    stdin = yaml.safe_dump(policy)
    cluster.kubectl("-n", namespace, "apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=stdin)
