"""A pod's /etc/hosts: its own name, and the headless Services of its namespace as the EndpointSlices give them.

It stands for the cluster's DNS, and like that knows only what the controller wrote: an address is there while its
endpoint's `ready` condition is not false. For a Service with publishNotReadyAddresses that includes pods that are not
ready, and pods that are terminating.
"""

from collections.abc import Iterable

from trainingjob_local.node.kube import Object

DOMAIN = "cluster.local"
SERVICE_LABEL = "kubernetes.io/service-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"

_HEADER = """\
# Kubernetes-managed hosts file.
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
"""


def render(pod: Object, ip: str, slices: Iterable[Object]) -> str:
    """The file's content; `slices`: the EndpointSlices of headless Services in the pod's namespace."""
    lines = [_HEADER + f"{ip}\t{' '.join(_own_names(pod))}\n"]
    for alias in pod["spec"].get("hostAliases", []):
        lines.append(f"{alias['ip']}\t{' '.join(alias['hostnames'])}\n")
    entries = sorted({entry for item in slices for entry in _entries(item)})
    lines += [f"{address}\t{' '.join(names)}\n" for names, address in entries]
    return "".join(lines)


def host_name(pod: Object) -> str:
    """The pod's host name: `spec.hostname`, else its name; at most 63 characters, as in Kubernetes."""
    name: str = pod["spec"].get("hostname") or pod["metadata"]["name"]
    return name[:63].rstrip("-.")


def _own_names(pod: Object) -> list[str]:
    name, subdomain = host_name(pod), pod["spec"].get("subdomain")
    if not subdomain:
        return [name]
    return [f"{name}.{subdomain}.{pod['metadata']['namespace']}.svc.{DOMAIN}", name]


def _entries(item: Object) -> list[tuple[tuple[str, ...], str]]:
    """(names, address) for each endpoint of a slice: the pod's names if it has a host name, and the Service's."""
    namespace = item["metadata"]["namespace"]
    service = item["metadata"].get("labels", {}).get(SERVICE_LABEL)
    if not service or item.get("addressType") != "IPv4":
        return []
    suffixes = ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.{DOMAIN}")
    found = []
    for endpoint in item.get("endpoints") or []:
        if endpoint.get("conditions", {}).get("ready") is False:
            continue
        stems = [f"{endpoint['hostname']}.{service}"] if endpoint.get("hostname") else []
        names = tuple(stem + suffix for stem in [*stems, service] for suffix in suffixes)
        found += [(names, address) for address in endpoint["addresses"]]
    return found
