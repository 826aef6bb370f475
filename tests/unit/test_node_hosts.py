"""/etc/hosts, node addresses and settings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trainingjob_local.node import config
from trainingjob_local.node.addresses import AddressesExhausted, AddressPool
from trainingjob_local.node.hosts import host_name, render


def pod(**spec):
    return {"metadata": {"name": "p", "namespace": "n"}, "spec": spec}


def endpoint_slice(*endpoints, service="svc", name="svc-1"):
    metadata = {"name": name, "namespace": "n", "labels": {"kubernetes.io/service-name": service}}
    return {"metadata": metadata, "addressType": "IPv4", "endpoints": list(endpoints)}


def names(content):
    """name -> addresses, as a resolver reads the file."""
    found = {}
    for line in content.splitlines():
        address, *others = line.partition("#")[0].split() or [""]
        for name in others:
            found.setdefault(name, []).append(address)
    return found


def test_a_pod_knows_itself_as_a_kubelet_says():
    assert names(render(pod(), "10.0.0.9", []))["p"] == ["10.0.0.9"]
    own = names(render(pod(hostname="h", subdomain="s"), "10.0.0.9", []))
    assert own["h.s.n.svc.cluster.local"] == own["h"] == ["10.0.0.9"]


def test_endpoints_have_all_names_of_dns():
    ready = {"addresses": ["10.0.0.1"], "hostname": "w-0", "conditions": {"ready": True}}
    found = names(render(pod(), "10.0.0.9", [endpoint_slice(ready)]))
    for suffix in ("", ".n", ".n.svc", ".n.svc.cluster.local"):
        assert found[f"w-0.svc{suffix}"] == found[f"svc{suffix}"] == ["10.0.0.1"]


def test_an_endpoint_is_named_until_it_is_not_ready_even_while_it_terminates():
    endpoints = [
        {"addresses": ["10.0.0.1"], "hostname": "a", "conditions": {"ready": False}},
        {"addresses": ["10.0.0.2"], "hostname": "b", "conditions": {"ready": True, "terminating": True}},
        {"addresses": ["10.0.0.3"], "hostname": "b", "conditions": {}},
    ]
    found = names(render(pod(), "10.0.0.9", [endpoint_slice(*endpoints)]))
    assert "a.svc" not in found
    assert sorted(found["b.svc"]) == ["10.0.0.2", "10.0.0.3"]


def test_the_same_slices_in_another_order_make_the_same_file():
    one = endpoint_slice({"addresses": ["10.0.0.1"], "hostname": "a"}, service="x", name="x-1")
    two = endpoint_slice({"addresses": ["10.0.0.2"], "hostname": "a"}, service="y", name="y-1")
    assert render(pod(), "10.0.0.9", [one, two]) == render(pod(), "10.0.0.9", [two, one])


def test_a_host_name_has_at_most_63_characters():
    assert host_name({"metadata": {"name": "a" * 62 + "-b"}, "spec": {}}) == "a" * 62


@given(st.lists(st.booleans(), max_size=60))
def test_addresses_are_never_given_twice_and_rest_as_long_as_they_can(takes):
    pool, free = AddressPool("10.0.0.250-10.0.1.1"), 8
    held: list[str] = []
    released: list[str] = []
    for take in takes:
        if take and len(held) < free:
            address = pool.take()
            assert address not in held
            if address in released:
                assert released.pop(0) == address
            held.append(address)
        elif held:
            released.append(held.pop(0))
            pool.release(released[-1])


def test_no_more_addresses_than_there_are():
    pool = AddressPool("10.0.0.1-10.0.0.1")
    pool.take()
    with pytest.raises(AddressesExhausted):
        pool.take()


REQUIRED = ["--kubeconfig=k", "--name=n", "--root=r", "--address=10.0.0.1:10250", "--tls-cert=c", "--tls-key=k"]
REQUIRED += ["--client-ca=a", "--pod-ips=10.0.0.2-10.0.0.9"]


def test_capacity_is_what_the_command_line_says():
    settings = config.parse([*REQUIRED, "--capacity", "cpu=2,nvidia.com/gpu=8"])
    assert settings.capacity == {"pods": "110", "ephemeral-storage": "100Gi", "cpu": "2", "nvidia.com/gpu": "8"}
    assert (settings.address, settings.port) == ("10.0.0.1", 10250)


@pytest.mark.parametrize("wrong", ["cpu", "cpu=many", "=1"])
def test_a_wrong_capacity_is_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        config.parse([*REQUIRED, "--capacity", wrong])
    assert "is not NAME=QUANTITY" in capsys.readouterr().err
