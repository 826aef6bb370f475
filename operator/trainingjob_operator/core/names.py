"""Names and labels of a job's objects (docs/contracts.md §1, §2)."""

from __future__ import annotations

from trainingjob_operator.api.spec import GROUP
from trainingjob_operator.api.status import Role

LABEL_JOB_NAME = f"{GROUP}/job-name"
LABEL_JOB_UID = f"{GROUP}/job-uid"
LABEL_ROLE = f"{GROUP}/role"
LABEL_INDEX = f"{GROUP}/index"
LABEL_INCARNATION = f"{GROUP}/incarnation"
LABEL_MEMBER = f"{GROUP}/member"
ANNOTATION_FIXED = f"{GROUP}/fixed"
CONTAINER = "trainer"


def pod_name(job: str, role: Role, index: int, incarnation: int) -> str:
    return f"{job}-{role}-{index}-{incarnation}"


def service_name(job: str) -> str:
    return f"{job}-tj"


def config_map_name(job: str, config_hash: str) -> str:
    return f"{job}-tj-{config_hash}"


def secret_name(job: str, uid: str) -> str:
    return f"{job}-tj-{uid}"


def pod_group_name(job: str) -> str:
    return f"{job}-tj"


def worker_selector(job: str) -> str:
    """Label selector of the worker pods, for the scale subresource."""
    return f"{LABEL_JOB_NAME}={job},{LABEL_ROLE}=train"
