"""Rules that a schema can't say, in CEL: what the models' validators say in Python. (`change_rules`: of updates.)

Kubernetes checks them at the API server, so a wrong spec is refused by `kubectl apply` and not found out later.
"""

from __future__ import annotations

from pydantic.alias_generators import to_camel
from trainingjob_trainer import config

from trainingjob_operator.api.cel import Rule
from trainingjob_operator.api.change_rules import CHANGE_RULES
from trainingjob_operator.api.data_rules import DATA_RULES, TASK_DATA_RULES
from trainingjob_operator.api.model_rules import IN_A_FAMILY, MODEL_RULES
from trainingjob_operator.api.spec import RunPolicy, TrainingJobSpec
from trainingjob_operator.api.template_rules import TEMPLATE_RULES

NAME_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"

# On the whole object: the name becomes part of pod and host names, where 63 characters and no dot are allowed.
ROOT_RULES = (
    Rule(
        "self.metadata.name.size() <= 46",
        "the name has %d characters: at most 46 are allowed, because pods are named after it",
        ("self.metadata.name.size()",),
        field=".metadata.name",
    ),
    Rule(
        f"self.metadata.name.matches('{NAME_PATTERN}')",
        "the name %s must begin with a lower-case letter and contain only lower-case letters, digits and hyphens "
        "(no dots), because host names are made of it",
        ("self.metadata.name",),
        field=".metadata.name",
    ),
    *CHANGE_RULES,
)


def _required(part: str) -> Rule:
    """A part that some kinds of task need."""
    kinds = [kind for kind, parts in config.REQUIRED.items() if part in parts]
    name = to_camel(part)
    return Rule(
        f"has(self.{name}) || !(self.task.kind in {kinds})",
        f"{name} is required for task.kind %s",
        ("self.task.kind",),
        field=f".{name}",
        reason="FieldValueRequired",
    )


def _only(part: str) -> Rule:
    """A part that other kinds of task have no use for."""
    kinds = [kind for kind, parts in config.REQUIRED.items() if part in parts]
    return Rule(
        f"!has(self.{part}) || self.task.kind in {kinds}",
        f"{part} is not for task.kind %s, whose command decides about it: remove it",
        ("self.task.kind",),
        field=f".{part}",
        reason="FieldValueForbidden",
    )


def _for_its_tasks(name: str) -> Rule:
    """A model is for some kinds of task. (Kind custom has none at all: another rule says so.)"""
    kinds = config.ARCHITECTURES[name]
    instead = {
        kind: ", ".join(other for other, theirs in config.ARCHITECTURES.items() if kind in theirs)
        for kind in OWN_KINDS
        if kind not in kinds
    }
    allowed = [*kinds, "custom"]
    return Rule(
        f"!has(self.model.{name}) || self.task.kind in {allowed}",
        f"model.{name} is not for task.kind %s: set one of %s",
        ("self.task.kind", "".join(f"self.task.kind == '{k}' ? '{names}' : " for k, names in instead.items()) + "''"),
        field=".model",
        reason="FieldValueForbidden",
        unless="!has(self.model)",
    )


def _has_losses(kind: config.Kind) -> Rule:
    losses = list(config.LOSSES[kind])
    of_kind = "!has(self.kind)" if kind == "language-modeling" else "false"
    return Rule(
        f"!has(self.loss) || !({of_kind} || self.?kind.orValue('') == '{kind}') || self.loss in {losses}",
        f"loss %s is not for kind {kind}, whose losses are: {', '.join(losses) or 'none'}",
        ("self.loss",),
        field=".loss",
    )


RANKS_PER_POD = "[self.workers.resources.gpus, 1].max()"
RANKS = f"self.workers.replicas * {RANKS_PER_POD}"
# Of an elastic job, any number of pods must do.
DIVIDED = f"(has(self.workers.minReplicas) ? {RANKS_PER_POD} : {RANKS})"
FSDP_RANKS = "self.training.parallelism.?fsdpRanks.orValue(1)"
TENSOR = "self.training.parallelism.tensor"
PRESET_HEADS = ", ".join(f"'{name}': {size.num_kv_heads}" for name, size in config.PRESETS.items())
KV_HEADS = (
    "(has(self.model.transformer) ? self.model.transformer.?kvHeads.orValue(self.model.transformer.heads) : "
    f"{{{PRESET_HEADS}}}[self.model.?preset.orValue('gpt-nano')])"
)
NOT_SPLIT = f"!has(self.training) || !has(self.model) || {TENSOR} == 1"

LENGTHS = "[has(self.steps), has(self.epochs), has(self.tokens)].filter(given, given).size()"

OWN_KINDS: list[config.Kind] = [kind for kind, parts in config.REQUIRED.items() if "training" in parts]
REQUIRED_BY_SOME = tuple(dict.fromkeys(part for parts in config.REQUIRED.values() for part in parts))

ELASTICITY = (
    Rule(
        "!has(self.workers.minReplicas) || self.workers.minReplicas <= self.workers.replicas",
        "workers.minReplicas (%d) must not be above workers.replicas (%d)",
        ("self.workers.minReplicas", "self.workers.replicas"),
        field=".workers.minReplicas",
    ),
    Rule(
        f"!has(self.workers.minReplicas) || self.task.kind in {OWN_KINDS}",
        "workers.minReplicas is not for task.kind %s, whose commands cannot take a new peer in: remove it",
        ("self.task.kind",),
        field=".workers.minReplicas",
        reason="FieldValueForbidden",
    ),
    Rule(
        "!has(self.workers.minReplicas) || !has(self.runPolicy.queueName)",
        "workers.minReplicas and runPolicy.queueName exclude each other, because Kueue admits groups of a fixed size: "
        "remove one",
        field=".workers.minReplicas",
        reason="FieldValueForbidden",
    ),
)

SPEC_RULES = (
    *(_required(part) for part in REQUIRED_BY_SOME),
    *(_only(part) for part in config.OWN_TASK_PARTS),
    *ELASTICITY,
    Rule(
        f"!has(self.training) || self.training.globalBatchSize >= {RANKS} / {TENSOR}",
        "training.globalBatchSize (%d) is below the number of ranks (%d): raise it or ask for fewer workers",
        ("self.training.globalBatchSize", f"{RANKS} / {TENSOR}"),
        field=".training.globalBatchSize",
    ),
    Rule(
        f"!has(self.training) || {DIVIDED} % ({FSDP_RANKS} * {TENSOR}) == 0",
        "training.parallelism: groups of fsdpRanks x tensor (%d) must divide the number of ranks (%d; of an "
        "elastic job those of a pod)",
        (f"{FSDP_RANKS} * {TENSOR}", DIVIDED),
        field=".training.parallelism",
    ),
    Rule(
        "self.task.kind == 'language-modeling'",
        "training.parallelism.tensor (%d) is not for task.kind %s: only decoders can be split",
        (TENSOR, "self.task.kind"),
        field=".training.parallelism.tensor",
        unless=NOT_SPLIT,
    ),
    *(
        Rule(
            f"!has(self.model.{name})",
            f"training.parallelism.tensor (%d) is not for model.{name}: only decoders of our own can be split",
            (TENSOR,),
            field=".training.parallelism.tensor",
            unless=NOT_SPLIT,
        )
        for name in ("rnn", "huggingface")
    ),
    Rule(
        "self.training.labelSmoothing == 0.0",
        "training.parallelism.tensor (%d) and training.labelSmoothing exclude each other: remove one",
        (TENSOR,),
        field=".training.parallelism.tensor",
        unless=NOT_SPLIT,
    ),
    Rule(
        f"{KV_HEADS} % {TENSOR} == 0",
        "training.parallelism.tensor (%d) must divide the key and value heads of the model (%d)",
        (TENSOR, KV_HEADS),
        field=".training.parallelism.tensor",
        unless=NOT_SPLIT,
    ),
    Rule(
        f"self.training.sequenceLength % {TENSOR} == 0",
        "training.parallelism.tensor (%d) must divide training.sequenceLength (%d)",
        (TENSOR, "self.training.sequenceLength"),
        field=".training.parallelism.tensor",
        unless=NOT_SPLIT,
    ),
    Rule(
        "!has(self.training) || !has(self.training.tokens) || self.task.kind == 'language-modeling'",
        "training.tokens is not for task.kind %s: give steps or epochs",
        ("self.task.kind",),
        field=".training.tokens",
        reason="FieldValueForbidden",
    ),
    Rule(
        "!has(self.model) || !has(self.model.transformer) || self.model.export == 'none' || "
        f"self.task.kind != 'language-modeling' || ({IN_A_FAMILY})",
        "model.transformer (norm %s, positions %s, ffn %s, bias %s) has no counterpart among GPT-2, Llama and Qwen to "
        "be exported to: change it, or set model.export to none",
        tuple(f"self.model.transformer.{part}" for part in ("norm", "positions", "ffn", "bias")),
        field=".model.transformer",
    ),
    Rule(
        "!has(self.model) || !has(self.model.transformer) || !has(self.model.transformer.context) || "
        "!has(self.training) || self.training.sequenceLength <= self.model.transformer.context",
        "training.sequenceLength (%d) must not be above model.transformer.context (%d)",
        ("self.training.sequenceLength", "self.model.transformer.context"),
        field=".training.sequenceLength",
    ),
    *TASK_DATA_RULES,
    *(_for_its_tasks(name) for name, kinds in config.ARCHITECTURES.items() if {*kinds} != {*OWN_KINDS}),
    *(
        Rule(
            f"!has(self.model) || !has(self.model.{name})",
            f"training.optimizer.name is muon, which is for matrices in blocks: it is not for model.{name}",
            field=".training.optimizer.name",
            unless="!has(self.training) || self.training.optimizer.name != 'muon'",
        )
        for name in ("cnn", "timm")
    ),
    Rule(
        "!has(self.model) || !has(self.model.initFrom) || self.task.kind == 'language-modeling' || "
        "has(self.model.huggingface) || has(self.model.timm)",
        "model.initFrom is for task.kind language-modeling or models of libraries, not %s with another model: remove "
        "it",
        ("self.task.kind",),
        field=".model.initFrom",
        reason="FieldValueForbidden",
    ),
)

RULES: dict[type[config.Config], tuple[Rule, ...]] = {
    TrainingJobSpec: SPEC_RULES,
    RunPolicy: (
        Rule(
            "!has(self.startDeadlineSeconds) || !has(self.activeDeadlineSeconds) || "
            "self.startDeadlineSeconds <= self.activeDeadlineSeconds",
            "startDeadlineSeconds (%d) must not be above activeDeadlineSeconds (%d)",
            ("self.startDeadlineSeconds", "self.activeDeadlineSeconds"),
            field=".startDeadlineSeconds",
        ),
    ),
    # The defaults of a default are not there yet when the API server checks it, hence `has`.
    config.Task: (
        Rule(
            "!has(self.kind) || self.kind != 'custom' || has(self.custom)",
            "custom is required for kind custom: give the command to run",
            field=".custom",
            reason="FieldValueRequired",
        ),
        Rule(
            "!has(self.custom) || (has(self.kind) && self.kind == 'custom')",
            "custom is not for kind %s: set kind to custom, or remove it",
            ("self.kind",),
            field=".custom",
            reason="FieldValueForbidden",
        ),
        *(_has_losses(kind) for kind in config.LOSSES),
    ),
    config.Storage: (
        Rule(
            "!(has(self.credentialsSecret) && has(self.serviceAccountName))",
            "credentialsSecret (%s) and serviceAccountName (%s) exclude each other: remove one",
            ("self.credentialsSecret", "self.serviceAccountName"),
        ),
    ),
    config.Checkpoint: (
        Rule(
            "!has(self.everySteps) || !has(self.everyMinutes)",
            "everySteps (%d) and everyMinutes (%.2f) exclude each other: remove one",
            ("self.everySteps", "self.everyMinutes"),
        ),
    ),
    **DATA_RULES,
    **MODEL_RULES,
    config.Training: (
        Rule(
            f"{LENGTHS} == 1", "exactly one of steps, epochs and tokens must be set, not %d", (LENGTHS,), field=".steps"
        ),
    ),
    config.Optimizer: (
        Rule(
            "!has(self.l2) || self.l2 == 0.0 || !has(self.weightDecay) || self.weightDecay == 0.0",
            "l2 (%.3f) is coupled and weightDecay (%.3f) decoupled decay: set one of them",
            ("self.l2", "self.weightDecay"),
            field=".l2",
        ),
        Rule(
            "!has(self.nesterov) || !self.nesterov || "
            "(self.name == 'sgd' && (!has(self.momentum) || self.momentum > 0.0))",
            "nesterov is for name sgd with a momentum above 0, not %s with %s",
            ("self.?name.orValue('adamw')", "has(self.momentum) ? string(self.momentum) : 'its default'"),
            field=".nesterov",
        ),
    ),
    config.Parallelism: (
        Rule(
            "!has(self.fsdpRanks) || (has(self.fsdp) && self.fsdp == 'full')",
            "fsdpRanks (%d) is for fsdp full, not %s",
            ("self.fsdpRanks", "self.?fsdp.orValue('auto')"),
            field=".fsdpRanks",
        ),
    ),
    config.Schedule: (
        Rule(
            "(has(self.name) && self.name == 'points') == (has(self.points) && self.points.size() > 0)",
            "points are given exactly if name is points: name is %s, points are %d",
            ("self.?name.orValue('cosine')", "self.?points.orValue([]).size()"),
            field=".points",
        ),
        Rule(
            "!has(self.points) || (self.points.map(p, p.step).isSorted() && "
            "self.points.all(p, self.points.exists_one(q, q.step == p.step)))",
            "points must be in rising order of step, without repetition; their steps are %s",
            ("self.points.map(p, p.step)",),
            field=".points",
        ),
    ),
    **TEMPLATE_RULES,
}
