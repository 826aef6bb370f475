"""What a container on the process node finds: exactly what its pod's manifest says, and no more."""

import json
import os
import sys
from pathlib import Path

import pytest

CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"plain": "one", "other": "two"}}
SECRET = {"apiVersion": "v1", "kind": "Secret", "stringData": {"token": "s3cret"}}


@pytest.fixture
def sources(pods):
    for item in (CONFIG, SECRET):
        pods.cluster.apply({**item, "metadata": {"name": "source", "namespace": pods.namespace}})


def test_the_environment_is_the_pods_and_a_short_fixed_list(pods, sources):
    env = [
        {"name": "FIRST", "value": "1"},
        {"name": "SECOND", "value": "$(FIRST)+$(FIRST) $$(FIRST) $(NOBODY)"},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "COLOUR", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['colour']"}}},
        {"name": "PLAIN", "valueFrom": {"configMapKeyRef": {"name": "source", "key": "plain"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "source", "key": "token"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "source", "key": "none", "optional": True}}},
        {"name": "NOWHERE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "none", "optional": True}}},
    ]
    env_from = [{"prefix": "C_", "configMapRef": {"name": "source"}}]
    script = "import os, json, sys; print(json.dumps([dict(os.environ), sys.argv[1:]]))"
    text = pods.output(
        "env",
        *("python", "-c", script, "$(FIRST)", "$$(FIRST)", "$(PATHS)"),
        labels={"colour": "blue"},
        container={"env": env, "envFrom": env_from},
    )
    pod = pods.get("env")
    seen, arguments = json.loads(text)
    assert arguments == ["1", "$(FIRST)", "$(PATHS)"]
    assert seen.pop("PATH").startswith(f"{sys.prefix}/bin:")
    assert seen.pop("KUBERNETES_SERVICE_HOST") == "10.244.0.1"
    seen.pop("LC_CTYPE", None)  # Python's own doing
    assert seen == {
        "LANG": "C.UTF-8",
        "HOSTNAME": "env",
        "KUBERNETES_SERVICE_PORT": "6443",
        "FIRST": "1",
        "SECOND": "1+1 $(FIRST) $(NOBODY)",
        "POD_IP": pod["status"]["podIP"],
        "UID": pod["metadata"]["uid"],
        "NODE": pod["spec"]["nodeName"],
        "COLOUR": "blue",
        "PLAIN": "one",
        "TOKEN": "s3cret",
        "C_plain": "one",
        "C_other": "two",
    }


def test_a_container_is_an_unprivileged_user_alone_in_its_namespaces(pods):
    script = """
import os, pathlib, socket, trainingjob_local, trainingjob_trainer
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
processes = [name for name in os.listdir("/proc") if name.isdigit()]
interfaces = sorted(name for _, name in socket.if_nameindex())
print(os.getuid(), os.getgid(), os.getpid(), len(processes), interfaces, os.listdir("/tmp"), socket.gethostname())
print(status["CapBnd"], status["CapEff"], status["NoNewPrivs"])
"""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True}
    text = pods.output("alone", "python", "-c", script, hostname="my-host", container={"securityContext": security})
    prefix = Path(sys.prefix)  # the image: where it lies in the host's /tmp, the way to it is there, and nothing else
    in_tmp = [prefix.parts[2]] if prefix.is_relative_to("/tmp") else []
    assert text.splitlines() == [
        f"65532 65532 1 1 ['eth0', 'lo'] {in_tmp} my-host",
        "0000000000000000 0000000000000000 1",
    ]


@pytest.mark.skipif(Path("/proc/self/uid_map").read_text().split()[2] == "1", reason="rootless: no other groups")
def test_user_and_groups_are_the_pods(pods):
    security = {"runAsUser": 4321, "runAsGroup": 8765, "fsGroup": 1234, "supplementalGroups": [999]}
    text = pods.output(
        "user",
        *("sh", "-c", "id -u; id -g; id -G; touch /data/x; stat -c '%g %a' /data; stat -c %g /data/x"),
        securityContext=security,
        volumes=[{"name": "data", "emptyDir": {}}],
        container={"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
    )
    assert text.splitlines() == ["4321", "8765", "8765 999 1234", "1234 2777", "1234"]


def test_a_read_only_root_is_read_only_but_for_the_volumes(pods):
    script = """
for path in / /usr /etc /tmp /home /var/tmp /run /opt /data/config; do
    touch $path/x 2>/dev/null && echo "$path is writable"
done
touch /data/x /dev/shm/x && echo fine
"""
    text = pods.output(
        "frozen",
        *("sh", "-c", script),
        volumes=[{"name": "data", "emptyDir": {}}],
        container={
            "securityContext": {"readOnlyRootFilesystem": True, "runAsUser": 0},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        },
    )
    assert text == "fine\n"


def test_what_a_container_writes_outside_volumes_stays_in_it(pods):
    text = pods.output(
        "writer",
        *("sh", "-c", "echo mine > /usr/of-a-pod && echo mine > /etc/of-a-pod && cat /usr/of-a-pod"),
        container={"securityContext": {"runAsUser": 0}},
    )
    assert text == "mine\n"
    assert not os.path.exists("/usr/of-a-pod")  # noqa: PTH110
    assert not os.path.exists("/etc/of-a-pod")  # noqa: PTH110


def test_volumes_are_where_the_mounts_say(pods, sources):
    volumes = [
        {"name": "config", "configMap": {"name": "source", "items": [{"key": "plain", "path": "deep/name"}]}},
        {"name": "secret", "secret": {"secretName": "source", "defaultMode": 0o444}},
        {"name": "maybe", "secret": {"secretName": "none", "optional": True}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        {"name": "disk", "emptyDir": {}},
        {"name": "about", "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
    ]
    mounts = [
        {"name": "config", "mountPath": "/etc/trainingjob"},
        {"name": "secret", "mountPath": "/var/run/secret"},  # /var/run is a symbolic link
        {"name": "maybe", "mountPath": "/maybe"},
        {"name": "memory", "mountPath": "/dev/shm"},
        {"name": "disk", "mountPath": "/tmp"},
        {"name": "disk", "mountPath": "/tmp/inner", "readOnly": True},
        {"name": "about", "mountPath": "/about"},
    ]
    script = """
cat /etc/trainingjob/deep/name; echo; cat /var/run/secret/token; echo; cat /about/name; echo; ls /maybe
stat -c %a /var/run/secret/token
df --output=size,fstype /dev/shm | tail -1 | xargs
echo x > /tmp/file && cat /tmp/inner/file
echo x > /tmp/inner/file || echo refused
echo x > /etc/trainingjob/file || echo refused
"""
    text = pods.output("volumes", "sh", "-c", script, volumes=volumes, container={"volumeMounts": mounts})
    lines = [line for line in text.splitlines() if "Read-only" not in line]
    assert lines == ["one", "s3cret", "volumes", "444", "8192 tmpfs", "x", "refused", "refused"]


def test_containers_of_a_pod_share_network_and_volumes_and_init_containers_come_first(pods):
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    init = {"name": "first", "image": "python", "command": ["sh", "-c", "echo from-init > /data/x"], **mount}
    server = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=8000, bind='127.0.0.1')"
    other = {"name": "other", "image": "python", "workingDir": "/data", "command": ["python", "-c", server], **mount}
    client = """
import time, urllib.request
deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    try:
        print(urllib.request.urlopen("http://127.0.0.1:8000/x").read().decode(), end="")
        break
    except OSError:
        time.sleep(0.1)
"""
    main = {"name": "main", "image": "python", "command": ["python", "-c", client], **mount}
    pods.create("both", containers=[main, other], initContainers=[init], volumes=[{"name": "data", "emptyDir": {}}])
    pods.wait("both", lambda pod: "terminated" in json.dumps(pod["status"].get("containerStatuses", [])))
    assert pods.logs("both", "-c", "main") == "from-init\n"
    assert pods.get("both")["status"]["phase"] == "Running"
    pods.kubectl("delete", "pod", "both", "--grace-period=1")


def test_sysctls_of_the_network_are_the_pods_own(pods):
    text = pods.output(
        "ports",
        *("cat", "/proc/sys/net/ipv4/ip_local_port_range"),
        securityContext={"sysctls": [{"name": "net.ipv4.ip_local_port_range", "value": "30000 32767"}]},
    )
    assert text.split() == ["30000", "32767"]
    assert pods.output("default", "cat", "/proc/sys/net/ipv4/ip_local_port_range").split() != ["30000", "32767"]


def test_a_service_account_token_is_accepted_by_the_api_server(pods):
    script = """
import pathlib, ssl, urllib.request, os
directory = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
url = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}/version"
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + (directory / "token").read_text()})
context = ssl.create_default_context(cafile=str(directory / "ca.crt"))
print(urllib.request.urlopen(request, context=context).status, (directory / "namespace").read_text())
"""
    text = pods.output("account", "python", "-c", script, automountServiceAccountToken=True)
    assert text.split() == ["200", pods.namespace]
