"""The operator as a real process, to be started, stopped and killed by a test."""

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from support.runs import PATIENCE, wait_until


class Operator:
    """`python -m trainingjob_operator` with a kubeconfig; its log lies in `log`.

    Unless it is elected (`elect`), it works without a lease: one that is started after a kill need not wait for it.
    """

    def __init__(self, kubeconfig: Path, log: Path, *flags: str, elect: bool = False) -> None:
        self._kubeconfig = kubeconfig
        self._flags = (*flags, "--leader-elect" if elect else "--no-leader-elect")
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the operator is not running"
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until its caches are filled."""
        self.address = f"127.0.0.1:{_free_port()}"
        own = ["--kubeconfig", str(self._kubeconfig), "--metrics-address", self.address]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainingjob_operator", *own, *self._flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_until("the operator is ready", self.is_ready)

    def stop(self) -> None:
        """SIGTERM; it must end by itself."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None, "the operator is not running"
        self._process.kill()
        self._process.wait()
        self._process = None

    def wait_for_its_end(self) -> int:
        """Its exit code, when it ends by itself."""
        assert self._process is not None, "the operator is not running"
        code = self._process.wait(PATIENCE)
        self._process = None
        return code

    def restart(self) -> None:
        self.stop()
        self.start()

    def metrics(self) -> str:
        """Text of /metrics."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    def value(self, metric: str, **labels: str | None) -> float:
        """The only value of a metric with these labels."""
        (found,) = self._values(metric, labels)
        return found

    def wait_value(self, wanted: float, metric: str, **labels: str | None) -> None:
        """A metric has this value, or soon will: others may read a write before the operator hears that it was made."""
        wait_until(f"{metric}{labels} is {wanted}", lambda: self._values(metric, labels) == [wanted])

    def _values(self, metric: str, labels: dict[str, str | None]) -> list[float]:
        families = text_string_to_metric_families(self.metrics())
        samples = [sample for family in families for sample in family.samples if sample.name == metric]
        return [float(sample.value) for sample in samples if labels.items() <= sample.labels.items()]

    def is_ready(self) -> bool:
        """What /readyz says."""
        assert self._process is not None
        assert self._process.poll() is None, f"the operator ended:\n{self.log.read_text()[-3000:]}"
        try:
            with urllib.request.urlopen(f"http://{self.address}/readyz", timeout=PATIENCE) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return False
        except OSError:
            return False


def outcome(*flags: str) -> tuple[int, str]:
    """Exit code and log of an operator that is expected to end by itself."""
    command = [sys.executable, "-m", "trainingjob_operator", "--metrics-address", "127.0.0.1:0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    return done.returncode, done.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
