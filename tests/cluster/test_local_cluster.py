"""The local cluster is what it says: a real control plane, a real S3 server, pods that run, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from support.runs import PATIENCE, Kubectl, wait_until
from trainingjob_local import sandbox
from trainingjob_local.cluster import LocalCluster


@pytest.fixture
def kubectl(cluster: LocalCluster, namespace: str) -> Kubectl:
    return Kubectl(cluster.kubectl_binary, cluster.kubeconfig, namespace)


def pod(name: str, *command: str) -> str:
    container = {"name": "main", "image": "any", "command": list(command)}
    spec = {"restartPolicy": "Never", "containers": [container]}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})


def test_the_api_server_is_kubernetes_1_37(cluster: LocalCluster) -> None:
    version = json.loads(cluster.kubectl("get", "--raw", "/version"))
    assert version["gitVersion"].startswith("v1.37.")


def test_a_user_without_a_role_may_do_nothing(cluster: LocalCluster) -> None:
    nobody = Kubectl(cluster.kubectl_binary, cluster.control_plane.client_kubeconfig("nobody-special"), "default")
    assert "is forbidden" in nobody("get", "pods", check=False)


def test_a_pod_is_scheduled_and_runs_to_completion_and_its_log_is_kept(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=pod("hello", "python", "-c", "print('hello from', __import__('os').getpid())"))
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/hello", f"--timeout={PATIENCE:.0f}s")
    assert kubectl("logs", "hello") == "hello from 1\n"


def test_a_batch_job_completes(kubectl: Kubectl) -> None:
    kubectl("create", "job", "sum", "--image=any", "--", "python", "-c", "print(1 + 1)")
    kubectl("wait", "--for=condition=Complete", "job/sum", f"--timeout={PATIENCE:.0f}s")
    assert kubectl("logs", "job/sum") == "2\n"


def test_logs_can_be_followed_until_the_pod_ends(kubectl: Kubectl) -> None:
    program = "import time\nfor i in range(5): print(i, flush=True); time.sleep(0.1)"
    kubectl("apply", "-f", "-", stdin=pod("counter", "python", "-c", program))
    kubectl(
        "wait",
        "--for=jsonpath={.status.containerStatuses[0].started}=true",
        "pod/counter",
        f"--timeout={PATIENCE:.0f}s",
    )
    assert kubectl("logs", "-f", "counter").split() == ["0", "1", "2", "3", "4"]


def test_s3_creates_an_object_only_once_if_asked_so(cluster: LocalCluster, bucket: str) -> None:
    s3 = cluster.s3.client()
    s3.put_object(Bucket=bucket, Key="key", Body=b"first", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=bucket, Key="key", Body=b"second", IfNoneMatch="*")
    assert s3.get_object(Bucket=bucket, Key="key")["Body"].read() == b"first"


def test_s3_replaces_an_object_only_if_it_is_the_one_that_was_read(cluster: LocalCluster, bucket: str) -> None:
    s3 = cluster.s3.client()
    etag = s3.put_object(Bucket=bucket, Key="key", Body=b"first")["ETag"]
    s3.put_object(Bucket=bucket, Key="key", Body=b"second", IfMatch=etag)
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=bucket, Key="key", Body=b"third", IfMatch=etag)


def test_s3_refuses_unknown_buckets_and_wrong_keys(cluster: LocalCluster, bucket: str) -> None:
    import boto3

    with pytest.raises(ClientError, match="NoSuchBucket"):
        cluster.s3.client().put_object(Bucket="never-made", Key="key", Body=b"")
    stranger = boto3.client(
        "s3",
        endpoint_url=cluster.s3.endpoint,
        region_name="us-east-1",
        aws_access_key_id=cluster.s3.access_key,
        aws_secret_access_key="wrong",
    )
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        stranger.list_objects_v2(Bucket=bucket)


def test_s3_servers_of_two_clusters_on_one_machine_are_apart(
    cluster: LocalCluster, bucket: str, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path; from trainingjob_local.s3 import S3Server\n"
        "server = S3Server(Path(sys.argv[1])); server.wait_ready(); server.ensure_bucket('another')\n"
        "server.client().put_object(Bucket='another', Key='key', Body=b'another')\n"
        "print([bucket['Name'] for bucket in server.client().list_buckets()['Buckets']]); server.close()"
    )
    command = sandbox.command_line([sys.executable, "-c", script, str(tmp_path)])
    assert subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE).stdout == "['another']\n"
    cluster.s3.client().put_object(Bucket=bucket, Key="key", Body=b"ours")
    assert cluster.s3.client().get_object(Bucket=bucket, Key="key")["Body"].read() == b"ours"


@pytest.mark.parametrize(("program", "code"), [("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_a_sandbox_ends_with_the_true_exit_code_of_its_command(program: str, code: int) -> None:
    assert subprocess.run(sandbox.command_line(["sh", "-c", program])).returncode == code


def test_in_a_sandbox_nobody_asks_the_machines_proxy() -> None:
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), "http://proxy:3128")
    command = sandbox.command_line(["sh", "-c", "env | grep -i _proxy="])
    assert subprocess.run(command, env=os.environ | proxies, capture_output=True).stdout == b""


def test_nothing_outlives_a_killed_sandbox(tmp_path: Path) -> None:
    script = f"setsid sleep 1000 & echo $(readlink /proc/self/ns/pid) > {tmp_path}/ready; wait"
    outer = subprocess.Popen(sandbox.command_line(["sh", "-c", script]))
    namespace = wait_until("the sandbox is up", lambda: _text(tmp_path / "ready"))
    assert _processes_in(namespace)
    outer.send_signal(signal.SIGKILL)
    outer.wait()
    wait_until("all of it has ended", lambda: not _processes_in(namespace))


def test_a_sandbox_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = f"echo $(readlink /proc/self/ns/pid) > {tmp_path}/ready; sleep 1000"
    starter = f"import subprocess; subprocess.run({sandbox.command_line(['sh', '-c', script])!r})"
    parent = subprocess.Popen([sys.executable, "-c", starter])
    namespace = wait_until("the sandbox is up", lambda: _text(tmp_path / "ready"))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until("all of it has ended", lambda: not _processes_in(namespace))


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _processes_in(namespace: str) -> list[int]:
    """Pids of the processes in a pid namespace."""
    found = []
    for proc in Path("/proc").iterdir():
        if proc.name.isdigit():
            try:
                if str((proc / "ns" / "pid").readlink()) == namespace:
                    found.append(int(proc.name))
            except OSError:
                continue
    return found
