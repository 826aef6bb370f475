"""What a kept local cluster (`trainingjob local up`) tells the commands about itself: files in one directory."""

import json
import os
import signal
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

BUCKET = "trainingjob"
PORTS = {"api": 16443, "s3": 18333, "metrics": 18080}  # on the host's 127.0.0.1, where they are free


@dataclass(frozen=True)
class Facts:
    """A running cluster, as seen from the host. One that another version started may have told less, or more."""

    pid: int
    api: str = "unknown"
    s3: str = "unknown"
    metrics: str = "unknown"
    kubeconfig: str = "unknown"
    kubectl: str = "unknown"
    access_key: str = "unknown"
    secret_key: str = "unknown"
    components: list[str] = field(default_factory=list)

    def wire(self) -> dict[str, Any]:
        return asdict(self)


class StateDirectory:
    """The directory of the kept cluster."""

    def __init__(self, path: Path | None = None) -> None:
        home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        self.path = path or home / "trainingjob"

    @property
    def log(self) -> Path:
        return self.path / "up.log"

    @property
    def kubeconfig(self) -> Path:
        return self.path / "kubeconfig"

    @property
    def inner(self) -> Path:
        """Facts from inside the sandbox, written when all is ready."""
        return self.path / "inner.json"

    @property
    def data(self) -> Path:
        return self.path / "data"

    def socket(self, name: str) -> Path:
        return self.path / f"{name}.sock"

    def write(self, facts: Facts) -> None:
        write_private(self.path / "facts.json", json.dumps(facts.wire(), indent=2))

    def read(self) -> Facts | None:
        """Facts of the running cluster; None if there is none."""
        try:
            told = json.loads((self.path / "facts.json").read_text())
            facts = Facts(**{part.name: told[part.name] for part in fields(Facts) if part.name in told})
            os.kill(facts.pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return None
        return facts if _is_keeper(facts.pid) else None

    def stop(self, facts: Facts) -> None:
        """Ask the cluster to end."""
        os.kill(facts.pid, signal.SIGTERM)


def write_private(path: Path, text: str) -> None:
    """Write a file whole, readable by its owner only."""
    scratch = path.with_suffix(".tmp")
    scratch.touch(mode=0o600)
    scratch.write_text(text)
    scratch.replace(path)


def _is_keeper(pid: int) -> bool:
    """Whether the process is one of ours: pids are used again."""
    try:
        return b"trainingjob_local.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
