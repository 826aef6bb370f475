"""The pod as its environment describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..config import JobConfig, PodConfig

AGENT_PORT = 8080


@dataclass(frozen=True)
class Pod:
    """Who this pod is, where its gang's head is, and where its files are."""

    config_path: Path
    job_uid: str
    role: str
    index: int
    incarnation: int
    replicas: int
    head: str
    name: str
    uid: str
    ip: str
    token: str
    work: Path
    termination_log: Path

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Pod:
        """From the variables that the operator sets. Raises `KeyError` with the name of a missing one."""
        token = env.get("RAY_AUTH_TOKEN_PATH")
        return cls(
            config_path=Path(env["TRAININGJOB_CONFIG"]),
            job_uid=env["TRAININGJOB_JOB_UID"],
            role=env["TRAININGJOB_ROLE"],
            index=int(env["TRAININGJOB_INDEX"]),
            incarnation=int(env["TRAININGJOB_INCARNATION"]),
            replicas=int(env["TRAININGJOB_REPLICAS"]),
            head=env["TRAININGJOB_HEAD"],
            name=env["POD_NAME"],
            uid=env["POD_UID"],
            ip=env["POD_IP"],
            token=Path(token).read_text().strip() if token else "",
            work=Path(env.get("TMPDIR", "/tmp"), "trainingjob"),
            termination_log=Path(env.get("TRAININGJOB_TERMINATION_LOG", "/dev/termination-log")),
        )

    @property
    def is_head(self) -> bool:
        """Index 0: the gang's voice."""
        return self.index == 0

    @property
    def drain_flag(self) -> Path:
        """Exists once the pod was asked to stop."""
        return self.work / "drain"

    @property
    def resize_flag(self) -> Path:
        """On index 0: exists once pods joined that the next attempt can take in."""
        return self.work / "resize"

    @property
    def outcome_path(self) -> Path:
        """Where the stage's program leaves its outcome for the termination message."""
        return self.work / "outcome.json"

    @property
    def kubeflow_token(self) -> Path:
        """The token that a custom command must show to report its progress; new in every pod."""
        return self.work / "kubeflow-token"

    @property
    def ranks(self) -> Path:
        """Directory with one file, named by its pid, for each rank that trains in this pod."""
        return self.work / "ranks"

    def peer(self, index: int) -> str:
        """Host name of the gang's pod of `index`."""
        return f"{self.role}-{index}.{self.head.partition('.')[2]}"

    def config(self) -> JobConfig:
        """What the job trains, if it is one of the trainer's own tasks."""
        return JobConfig.model_validate_json(self.config_path.read_bytes())

    def any_config(self) -> PodConfig:
        """What the job trains, of whatever kind it is."""
        return PodConfig.model_validate_json(self.config_path.read_bytes())
