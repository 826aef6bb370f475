"""Names and labels of a job's objects (docs/contracts.md §1, §2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import cast

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

_NUMBER = "(0|[1-9][0-9]{0,8})"  # as we write it: another spelling would be a second pod for a place
_POD_NAME = re.compile(rf"(.+)-(prepare|train)-{_NUMBER}-{_NUMBER}")


@dataclass(frozen=True)
class PodName:
    """What a pod's name says of it. Unlike its labels, nobody can change it."""

    job: str
    role: Role
    index: int
    incarnation: int


def pod_name(job: str, role: Role, index: int, incarnation: int) -> str:
    return f"{job}-{role}-{index}-{incarnation}"


def parse_pod_name(name: str) -> PodName | None:
    """The parts of a name that `pod_name` made; None for any other."""
    found = _POD_NAME.fullmatch(name)
    if found is None:
        return None
    job, role, index, incarnation = found.groups()
    return PodName(job, cast(Role, role), int(index), int(incarnation))


def job_labels(job: str, uid: str) -> dict[str, str]:
    """Labels of every object of a job."""
    return {LABEL_JOB_NAME: job, LABEL_JOB_UID: uid}


def place_labels(role: Role, index: int, incarnation: int) -> dict[str, str]:
    """Labels that tell the pods of a job apart."""
    return {LABEL_ROLE: role, LABEL_INDEX: str(index), LABEL_INCARNATION: str(incarnation)}


def service_name(job: str) -> str:
    return f"{job}-tj"


def config_map_name(job: str, config_hash: str) -> str:
    return f"{job}-tj-{config_hash}"


def secret_name(job: str, uid: str) -> str:
    return f"{job}-tj-{uid}"


def group_name(job: str, role: Role, admission: int) -> str:
    return f"{job}-{role}-{admission}"


def pod_group_name(job: str) -> str:
    return f"{job}-tj"


def worker_selector(job: str) -> str:
    """Label selector of the worker pods, for the scale subresource."""
    return f"{LABEL_JOB_NAME}={job},{LABEL_ROLE}=train"
