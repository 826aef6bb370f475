"""Names, addresses and logs of pods on the process node."""

import os
import signal
import subprocess

FIND = """
import socket, sys, time
def find(name):
    deadline = time.monotonic() + 120
    while True:
        try:
            return sorted({item[4][0] for item in socket.getaddrinfo(name, 80, proto=socket.IPPROTO_TCP)})
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
"""


def service(pods, name, **spec):
    metadata = {"name": name, "namespace": pods.namespace}
    spec = {"clusterIP": "None", "selector": {"app": name}, **spec}
    pods.cluster.apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})


def test_pods_of_a_headless_service_find_each_other_by_name(pods):
    service(pods, "gang", publishNotReadyAddresses=True)
    serve = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=9000, bind='0.0.0.0')"
    never_ready = {"readinessProbe": {"exec": {"command": ["false"]}}}
    for index in range(2):
        member = {"hostname": f"w-{index}", "subdomain": "gang", "labels": {"app": "gang"}, "container": never_ready}
        pods.create(f"w-{index}", "python", "-c", serve, **member)
    addresses = [pods.running(f"w-{index}")["status"]["podIP"] for index in range(2)]
    script = f"""
{FIND}
import urllib.request
for name in ("w-0.gang", "w-1.gang.{pods.namespace}", "w-1.gang.{pods.namespace}.svc.cluster.local"):
    print(*find(name))
while len(find("gang")) < 2:
    time.sleep(0.05)
print(*find("gang"))
while True:
    try:
        print(urllib.request.urlopen("http://w-1.gang:9000/etc/hostname").read().decode())
        break
    except OSError:  # it does not listen yet
        time.sleep(0.05)
"""
    lines = pods.output("asker", "python", "-c", script).splitlines()
    assert lines[:4] == [addresses[0], addresses[1], addresses[1], " ".join(sorted(addresses))]
    assert lines[4] == "w-1"


def test_a_running_pod_sees_names_come_and_go(pods):
    service(pods, "late")
    script = """
import socket, time
def there():
    try:
        return bool(socket.gethostbyname("one.late"))
    except OSError:
        return False
deadline = time.monotonic() + 120
for wanted, word in ((True, "came"), (False, "went")):
    while there() != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    print(word if there() == wanted else "timeout", flush=True)
"""
    pods.create("watcher", "python", "-c", script)
    pods.running("watcher")
    pods.create("one", "sleep", "600", hostname="one", subdomain="late", labels={"app": "late"})
    pods.wait("watcher", lambda _: "came" in pods.logs("watcher"))
    pods.kubectl("delete", "pod", "one", "--grace-period=1")
    assert pods.ended("watcher")["exitCode"] == 0
    assert pods.logs("watcher") == "came\nwent\n"


def test_a_terminating_pod_stays_in_the_names_of_a_service_that_publishes_all(pods):
    service(pods, "all", publishNotReadyAddresses=True)
    member = {"hostname": "m", "subdomain": "all", "labels": {"app": "all"}, "terminationGracePeriodSeconds": 600}
    pods.create("m", "sh", "-c", "trap '' TERM; while true; do sleep 0.1; done", **member)
    address = pods.running("m")["status"]["podIP"]
    pods.kubectl("delete", "pod", "m", "--wait=false")
    pods.wait("m", lambda pod: pod["metadata"].get("deletionTimestamp"))
    assert pods.output("asker", "python", "-c", f"{FIND}\nprint(*find('m.all'))").split() == [address]
    pods.delete("m", grace=1)


def test_logs_can_be_cut_and_followed(pods):
    """The second half is only printed when the first one was read."""
    first, then = "for i in 1 2 3; do echo line-$i; done", "echo last; echo problem >&2"
    script = f"trap 'go=1' USR1; {first}; while test -z $go; do sleep 0.1; done; {then}"
    pods.create("talker", "sh", "-c", script)
    pid = pods.pid("talker")
    command = [str(pods.cluster.kubectl_binary), "--kubeconfig", str(pods.cluster.kubeconfig), "-n", pods.namespace]
    with subprocess.Popen([*command, "logs", "-f", "talker"], stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "line-1\n"
        os.kill(pid, signal.SIGUSR1)
        rest = follower.stdout.read().splitlines()
    assert rest[:3] == ["line-2", "line-3", "last"]
    assert rest[3:] == ["problem"]
    assert pods.logs("talker", "--tail=2").splitlines() == ["last", "problem"]
    assert pods.logs("talker", "--limit-bytes=6") == "line-1"
    assert pods.logs("talker", "--since=1h").splitlines()[0] == "line-1"
    stamped = pods.logs("talker", "--timestamps", "--tail=1")
    assert stamped.split()[1] == "problem"
    assert stamped[:2] == "20"


def test_addresses_are_not_used_again_at_once(pods):
    pods.create("first", "true")
    pods.ended("first")
    node = {"nodeName": pods.get("first")["spec"]["nodeName"]}
    pods.create("second", "true", **node)
    pods.ended("second")
    assert pods.get("first")["status"]["podIP"] != pods.get("second")["status"]["podIP"]
