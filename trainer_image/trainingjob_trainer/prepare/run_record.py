"""`run.json`: whose run a directory holds. One identity, and every plan that was made for it."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, ValidationError

from trainingjob_trainer.config import Config, TrainerSpec
from trainingjob_trainer.errors import StorageError
from trainingjob_trainer.records import now
from trainingjob_trainer.storage import NotFound, Store

RUN_KEY = "run.json"


class PlanChange(Config):
    """A plan that replaced another over the same run directory."""

    time: str
    plan_hash: str
    steps: int | None = None  # absent where the plan gives epochs or tokens


class RunRecord(Config):
    """Identity (flat, field name to value), present plan, and the plans since the run began."""

    version: int = 1
    identity: dict[str, Any]
    identity_hash: str
    plan_hash: str
    created_at: str = Field(default_factory=now)
    changes: list[PlanChange] = Field(default_factory=list)

    @classmethod
    def of(cls, config: TrainerSpec) -> RunRecord:
        """The record of a run that begins now."""
        return cls(identity=config.identity(), identity_hash=config.identity_hash(), plan_hash=config.plan_hash())

    @classmethod
    def load(cls, store: Store) -> tuple[RunRecord, str] | None:
        """The record in a run directory and its etag, if it has one."""
        try:
            data, etag = store.get_with_etag(RUN_KEY)
        except NotFound:
            return None
        try:
            return cls.model_validate_json(data), etag
        except ValidationError as error:
            raise StorageError(
                f"{store.uri(RUN_KEY)} is not the record of a run: {error.errors()[0]['msg']}.",
                "Choose another outputUri, or delete it.",
            ) from error

    def with_plan(self, config: TrainerSpec) -> RunRecord:
        """The record after the plan was changed to the configuration's."""
        change = PlanChange(time=now(), plan_hash=config.plan_hash(), steps=config.training.steps)
        return self.model_copy(update={"plan_hash": change.plan_hash, "changes": [*self.changes, change]})

    def differences(self, config: TrainerSpec) -> list[str]:
        """The fields in which the configuration is another run, each as `name: there -> here`."""
        here = config.identity()
        return [
            f"{name}: {json.dumps(self.identity.get(name))} -> {json.dumps(here.get(name))}"
            for name in sorted({*self.identity, *here})
            if self.identity.get(name) != here.get(name)
        ]

    def to_json(self) -> bytes:
        """The stored form."""
        return self.model_dump_json(by_alias=True, indent=1).encode()
