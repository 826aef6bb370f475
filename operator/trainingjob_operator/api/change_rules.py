"""Rules about updates of the spec in CEL: what never changes, and what changes only while the job is suspended."""

from __future__ import annotations

from collections.abc import Sequence

from trainingjob_operator.api.cel import Rule

# With TrainerSpec.identity(): these and no others are fixed; a test compares.
FIXED = (
    "outputUri",
    "task.kind",
    "task.loss",
    "task.huberDelta",
    "data.train",
    "data.validation",
    "data.test",
    "data.packing",
    "data.augmentation",
    "data.prepare.tokenizer",
    "data.prepare.clean",
    "model",
    "training.seed",
    "training.globalBatchSize",
    "training.sequenceLength",
    "training.optimizer.name",
    "training.emaDecay",
)
WHILE_SUSPENDED = (
    "image",
    "storage",
    "task.custom",
    "workers.resources",
    "workers.template",
    "data.prepare.replicas",
    "data.prepare.cpu",
    "data.prepare.memory",
    "data.onCorrupt",
    "checkpoint",
    "evaluation",
    "training.steps",
    "training.epochs",
    "training.tokens",
    "training.optimizer",
    "training.schedule",
    "training.microBatchSize",
    "training.clipNorm",
    "training.labelSmoothing",
    "training.earlyStopping",
    "training.precision",
    "training.compile",
    "training.parallelism",
    "training.deterministic",
    "training.hangSeconds",
    "training.logEvery",
    "training.profile",
    "runPolicy.onExistingRun",
    "runPolicy.queueName",
)

# Of these and what they lie in: those that may be absent even after defaulting; a test compares.
OPTIONAL = (
    "image",
    "outputUri",
    "task.custom",
    "task.loss",
    "task.huberDelta",
    "data",
    "data.augmentation",
    "model",
    "training",
    "training.steps",
    "training.epochs",
    "training.tokens",
    "runPolicy.queueName",
    "training.earlyStopping",
    "training.profile",
)

NEW, OLD = "self.spec", "oldSelf.spec"
# The rules are on the whole object, which always has a status: by default. What writes it leaves the spec as it is, and
# nothing else writes it. So where the phase changed there is nothing to ask, and comparing two words costs the API
# server less than half of what comparing two specs does.
_PHASE_CHANGED = "has(self.status.phase) && (!has(oldSelf.status.phase) || self.status.phase != oldSelf.status.phase)"


def _same(path: str, known: str = "") -> str:
    """Whether the field did not change; absent before and after is the same, too. known: what is there, above it.

    `has`, because the API server cannot bound the cost of comparing CEL's optional values.
    """
    same = f"{NEW}.{path} == {OLD}.{path}"
    maybe = [field for field in OPTIONAL if field != known and f"{path}.".startswith(f"{field}.")]
    if not maybe:
        return same
    now, before = (" && ".join(f"has({whole}.{field})" for field in maybe) for whole in (NEW, OLD))
    return f"({now} ? {before} && {same} : !({before}))"


def _unchanged(paths: Sequence[str]) -> str:
    """Whether none of the fields did, as `_same` says of each; an optional field above them is looked at once.

    That matters: for every lookup the API server copies the schemas of all fields beside the one that it looks up.
    """
    below: dict[str, list[str]] = {}
    for path in paths:
        head = path.partition(".")[0]
        below.setdefault(head if head in OPTIONAL else path, []).append(path)
    return " && ".join(_unchanged_below(head, found) for head, found in below.items())


def _unchanged_below(head: str, paths: Sequence[str]) -> str:
    if paths == [head]:
        return _same(head)
    same = " && ".join(_same(path, known=head) for path in paths)
    return f"(has({NEW}.{head}) ? has({OLD}.{head}) && {same} : !has({OLD}.{head}))"


SUSPENDED = " && ".join(f"{which}.runPolicy.?suspend.orValue(false)" for which in (OLD, NEW))
SUSPEND_FIRST = "set runPolicy.suspend to true, change it in a second step, then set suspend to false"
ONLY_SUSPENDED = f"can change only while the job is suspended: {SUSPEND_FIRST}"


def _update(rule: str, message: str, values: tuple[str, ...] = ()) -> Rule:
    """A rule about the spec as a whole: on an optional field, its removal would escape it."""
    return Rule(rule, message, values, ".spec", "FieldValueForbidden", f"{_PHASE_CHANGED} || {NEW} == {OLD}")


def _changes(paths: Sequence[str], rule: str, message: str) -> Rule:
    """A rule about many fields, whose message begins with the names of those that changed."""
    return _update(rule, f"{'%s' * len(paths)}{message}", tuple(f"{_same(path)} ? '' : '{path} '" for path in paths))


# They are about all fields at once (see `cel.validations`). The first make the run what it is; the others are taken up
# by a resumed run.
CHANGE_RULES = (
    _changes(
        FIXED,
        _unchanged(FIXED),
        "cannot change, because the run's state depends on it: create a new TrainingJob with another outputUri",
    ),
    _changes(WHILE_SUSPENDED, f"({_unchanged(WHILE_SUSPENDED)}) || ({SUSPENDED})", ONLY_SUSPENDED),
    _update(
        f"{NEW}.workers.replicas == {OLD}.workers.replicas || has({NEW}.workers.minReplicas) || ({SUSPENDED})",
        "workers.replicas can change while the job runs only if workers.minReplicas is set, and it is not: "
        f"{SUSPEND_FIRST}; or create a new TrainingJob with workers.minReplicas",
    ),
    _update(
        f"has({NEW}.workers.minReplicas) == has({OLD}.workers.minReplicas)",
        "workers.minReplicas cannot be added or removed: a job is elastic from its creation or never. "
        "Create a new TrainingJob with the same outputUri, which goes on from the last checkpoint",
    ),
    _update(
        f"!has({NEW}.workers.minReplicas) || !has({OLD}.workers.minReplicas) || "
        f"{NEW}.workers.minReplicas == {OLD}.workers.minReplicas || ({SUSPENDED})",
        f"workers.minReplicas {ONLY_SUSPENDED}",
    ),
)
