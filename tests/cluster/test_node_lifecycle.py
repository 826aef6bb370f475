"""How pods on the process node begin, live and end, as the API server shows it."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from support.runs import PATIENCE, wait_until

TRAP = "trap 'echo got-term; exit 7' TERM; echo up; while true; do sleep 0.1; done"
STUBBORN = "trap '' TERM; echo up; while true; do sleep 0.1; done"


def condition(pod, kind):
    return next((item["status"] for item in pod["status"].get("conditions", []) if item["type"] == kind), None)


@pytest.mark.parametrize(("script", "code", "reason"), [("exit 0", 0, "Completed"), ("exit 3", 3, "Error")])
def test_the_exit_code_is_reported(pods, script, code, reason):
    pods.create("exit", "sh", "-c", script)
    ended = pods.ended("exit")
    assert (ended["exitCode"], ended["reason"]) == (code, reason)
    assert ended["finishedAt"] >= ended["startedAt"]
    assert pods.get("exit")["status"]["phase"] == ("Failed" if code else "Succeeded")


def test_a_killed_process_is_137_and_takes_its_children_along(pods):
    pods.create("killed", "sh", "-c", "setsid sleep 600 & sleep 600")
    pid = pods.pid("killed")
    children = wait_until("it has children", lambda: Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    os.kill(pid, signal.SIGKILL)
    ended = pods.ended("killed")
    assert (ended["exitCode"], ended["reason"]) == (137, "Error")
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_command_that_is_not_there_is_a_start_error(pods):
    pods.create("nothing", "no-such-command")
    ended = pods.ended("nothing")
    assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
    assert 'exec: "no-such-command": executable file not found in $PATH' in ended["message"]


def test_the_termination_message_is_the_file_or_the_log_on_error(pods):
    pods.create("message", "sh", "-c", "echo -n because > /dev/termination-log; exit 4")
    pods.create(
        "fallback",
        *("sh", "-c", "echo last words; exit 4"),
        container={"terminationMessagePolicy": "FallbackToLogsOnError"},
    )
    pods.create("long", "sh", "-c", "head -c 5000 /dev/zero | tr '\\0' x > /dev/termination-log")
    assert pods.ended("message")["message"] == "because"
    assert pods.ended("fallback")["message"] == "last words\n"
    assert pods.ended("long")["message"] == "x" * 4096


def test_a_deleted_pod_gets_sigterm_and_is_gone_when_it_has_ended(pods):
    pods.create("polite", "sh", "-c", TRAP)
    pods.wait("polite", lambda pod: "up" in pods.logs("polite") if pods.running("polite") else False)
    pods.delete("polite", grace=3600)
    assert wait_until("the event", lambda: pods.events("polite", "Killing")) == ["Stopping container main"]


def test_a_pod_that_ignores_sigterm_is_killed_after_its_grace(pods):
    pods.create("stubborn", "sh", "-c", STUBBORN, terminationGracePeriodSeconds=3)
    pods.wait("stubborn", lambda pod: "up" in pods.logs("stubborn") if pods.running("stubborn") else False)
    # A finalizer keeps the object, so that its last status can be seen.
    pods.kubectl("patch", "pod", "stubborn", "--type=merge", "-p", '{"metadata":{"finalizers":["test.io/keep"]}}')
    began = time.monotonic()
    pods.kubectl("delete", "pod", "stubborn", "--wait=false")
    ended = pods.ended("stubborn")
    assert time.monotonic() - began > 2.5
    assert ended["exitCode"] == 137
    pods.kubectl("patch", "pod", "stubborn", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    pods.wait("stubborn", lambda pod: not pod)


def test_readiness_follows_the_probe(pods):
    script = """
import http.server, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if pathlib.Path("/tmp/ready").exists() else 503)
        self.end_headers()
        pathlib.Path("/tmp/ready").unlink() if self.path == "/unready" else None
    def do_POST(self):
        pathlib.Path("/tmp/ready").touch() if self.path == "/ready" else pathlib.Path("/tmp/ready").unlink()
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("", 8080), Handler).serve_forever()
"""
    probe = {"httpGet": {"path": "/healthz", "port": "web"}, "periodSeconds": 1, "failureThreshold": 1}
    container = {"readinessProbe": probe, "ports": [{"name": "web", "containerPort": 8080}]}
    pods.create("probed", "python", "-c", script, container=container)
    address = pods.running("probed")["status"]["podIP"]
    pods.wait("probed", lambda _: any("statuscode: 503" in text for text in pods.events("probed", "Unhealthy")))
    assert condition(pods.get("probed"), "Ready") == "False"
    pods.output("flip", "python", "-c", POST.format(address=address, path="ready"))
    pod = pods.wait("probed", lambda pod: condition(pod, "Ready") == "True")
    assert condition(pod, "ContainersReady") == "True"
    pods.output("flop", "python", "-c", POST.format(address=address, path="unready"))
    pods.wait("probed", lambda pod: condition(pod, "Ready") == "False")


POST = "import urllib.request; urllib.request.urlopen('http://{address}:8080/{path}', data=b'')"


def test_a_liveness_failure_restarts_the_container(pods):
    # The second run is healthy for good. Each begins with a layer of its own: what the first has written is gone.
    script = """
test -e /var/tmp/mine && exit 9
touch /var/tmp/mine
test -e /data/again && touch /tmp/alive
touch /data/again
sleep 600
"""
    probe = {"exec": {"command": ["test", "-e", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 3}
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    pods.create(
        "lively",
        *("sh", "-c", script),
        restartPolicy="Always",
        terminationGracePeriodSeconds=0,
        volumes=[{"name": "data", "emptyDir": {}}],
        container={"livenessProbe": probe, **mount},
    )
    pod = pods.wait(
        "lively",
        lambda pod: (
            pod["status"]["containerStatuses"][0]["restartCount"] > 0
            if pod.get("status", {}).get("containerStatuses")
            else False
        ),
    )
    assert pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137
    killings = wait_until("the event", lambda: pods.events("lively", "Killing"))
    assert set(killings) == {"Container main failed liveness probe, will be restarted"}


def test_a_job_with_restarts_and_the_log_of_the_run_before(pods):
    script = "echo run; test -e /data/again || { touch /data/again; exit 1; }; echo better"
    container = {"name": "main", "image": "python", "command": ["sh", "-c", script]}
    container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    spec = {"restartPolicy": "OnFailure", "containers": [container], "volumes": [{"name": "data", "emptyDir": {}}]}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job", "namespace": pods.namespace}}
    pods.cluster.apply({**job, "spec": {"template": {"spec": spec}}})
    pods.kubectl("wait", "job/job", "--for=condition=Complete", f"--timeout={PATIENCE:.0f}s")
    name = pods.kubectl("get", "pods", "-l", "job-name=job", "-o", "jsonpath={.items[0].metadata.name}")
    assert pods.get(name)["status"]["containerStatuses"][0]["restartCount"] == 1
    assert pods.logs(name) == "run\nbetter\n"
    assert pods.logs(name, "--previous") == "run\n"


def test_a_crash_loop_backs_off(pods):
    pods.create("crashing", "sh", "-c", "exit 1", restartPolicy="Always")
    pod = pods.wait("crashing", lambda pod: "CrashLoopBackOff" in json.dumps(pod["status"]))
    assert pod["status"]["phase"] == "Running"
    assert pod["status"]["containerStatuses"][0]["restartCount"] > 0
    pods.delete("crashing")


def test_an_unknown_field_is_refused(pods):
    pods.create("refused", "true", container={"lifecycle": {"preStop": {"exec": {"command": ["true"]}}}})
    pod = pods.wait("refused", lambda pod: pod["status"]["phase"] == "Failed")
    assert pod["status"]["reason"] == "UnsupportedPodField"
    assert pods.wait("refused", lambda _: pods.events("refused", "UnsupportedPodField"))
    assert "spec.containers[0].lifecycle" in pod["status"]["message"]


def test_a_pod_waits_for_its_secret_and_says_so(pods):
    pods.create(
        "late",
        *("cat", "/secret/token"),
        volumes=[{"name": "secret", "secret": {"secretName": "late"}}],
        container={"volumeMounts": [{"name": "secret", "mountPath": "/secret"}]},
    )
    env = [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "late", "key": "token"}}}]
    pods.create("later", *("sh", "-c", "echo $TOKEN"), container={"env": env})
    expected = 'MountVolume.SetUp failed for volume "secret" : secret "late" not found'
    pods.wait("late", lambda _: expected in pods.events("late", "FailedMount"))
    pod = pods.wait("later", lambda pod: "CreateContainerConfigError" in json.dumps(pod["status"]))
    assert pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"] == 'secret "late" not found'
    pods.kubectl("create", "secret", "generic", "late", "--from-literal=token=there")
    for name in ("late", "later"):
        assert pods.ended(name)["exitCode"] == 0
        assert pods.logs(name).strip() == "there"


def test_an_image_that_does_not_exist_can_not_be_pulled(pods):
    pods.create("imageless", "true", container={"image": "missing.invalid/nothing:1"})
    pods.wait("imageless", lambda pod: "ErrImagePull" in json.dumps(pod["status"]))
    pods.wait("imageless", lambda pod: "ImagePullBackOff" in json.dumps(pod["status"]))
    pods.delete("imageless")


def test_a_deadline_ends_the_pod(pods):
    pods.create("hasty", *("sleep", "600"), activeDeadlineSeconds=1, terminationGracePeriodSeconds=0)
    pod = pods.wait("hasty", lambda pod: pod["status"]["phase"] == "Failed")
    assert pod["status"]["reason"] == "DeadlineExceeded"


def test_the_scheduler_counts_what_the_node_pretends_to_have(pods):
    def gpus(count):
        return {"resources": {"limits": {"nvidia.com/gpu": str(count)}}}

    pods.create("fits", "true", container=gpus(1))
    pods.create("too-big", "true", container=gpus(1000))
    assert pods.ended("fits")["exitCode"] == 0
    pod = pods.wait("too-big", lambda pod: condition(pod, "PodScheduled") == "False")
    assert "Insufficient nvidia.com/gpu" in json.dumps(pod["status"]["conditions"])


def test_pods_end_with_their_node_and_are_reported_when_it_is_back(pods):
    pods.create("done", "echo", "still here")
    pods.ended("done")
    node = pods.get("done")["spec"]["nodeName"]
    pods.create("lost", "sleep", "600", nodeName=node)
    pods.create("back", "sleep", "600", nodeName=node, restartPolicy="Always")
    pids = [pods.pid("lost"), pods.pid("back")]
    pods.cluster.nodes[node].signal(signal.SIGKILL)
    wait_until("no pod survives its node", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    pods.cluster.nodes[node].stop()
    pods.cluster.start_node(node)
    lost = pods.ended("lost")
    assert (lost["exitCode"], lost["reason"]) == (137, "ContainerStatusUnknown")
    assert pods.get("lost")["status"]["phase"] == "Failed"
    pod = pods.wait("back", lambda pod: pod["status"]["containerStatuses"][0]["restartCount"] == 1)
    assert pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["reason"] == "ContainerStatusUnknown"
    pods.wait("back", lambda pod: "running" in state(pod))
    assert pods.logs("done") == "still here\n"
    pods.delete("done", "lost", "back", grace=1)


def state(pod):
    return pod["status"]["containerStatuses"][0]["state"]


def test_a_pod_deleted_by_force_while_it_runs_leaves_its_node_at_work(pods):
    """The API server forgets the pod at once, its containers end later: there is nobody to tell about it."""
    pods.create("gone", "sleep", "600", nodeName="node-0", terminationGracePeriodSeconds=1)
    pods.running("gone")
    pods.kubectl("delete", "pod", "gone", "--force", "--grace-period=0")
    assert pods.output("next", "python", "-c", "print('at work')", nodeName="node-0") == "at work\n"
    assert pods.output("last", "python", "-c", "print('still')", nodeName="node-0") == "still\n"
