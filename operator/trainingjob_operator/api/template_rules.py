"""Rules of a pod template in CEL; its models say the same in Python."""

from __future__ import annotations

from trainingjob_trainer import config

from trainingjob_operator.api.cel import Rule
from trainingjob_operator.api.template import OWN_PATHS, EnvVar, Template, Toleration, VolumeMount

OWN_ENV = "(e.name.startsWith('TRAININGJOB_') || e.name.startsWith('RAY_AUTH_'))"
OWN_LABEL = "k.startsWith('trainingjob.io/')"
OWN_VOLUME = "v.name.startsWith('trainingjob-')"
NO_VOLUME = "!(has(self.volumes) && self.volumes.exists(v, v.name == m.name))"

TEMPLATE_RULES: dict[type[config.Config], tuple[Rule, ...]] = {
    Template: (
        Rule(
            f"!has(self.labels) || self.labels.all(k, !{OWN_LABEL})",
            "labels: %s cannot be set, trainingjob.io/* belongs to the operator",
            (f"self.labels.filter(k, {OWN_LABEL})[0]",),
            field=".labels",
        ),
        Rule(
            f"!has(self.env) || self.env.all(e, !{OWN_ENV})",
            "env: %s cannot be set, TRAININGJOB_* and RAY_AUTH_* belong to the operator",
            (f"self.env.filter(e, {OWN_ENV})[0].name",),
            field=".env",
        ),
        Rule(
            f"!has(self.volumes) || self.volumes.all(v, !{OWN_VOLUME})",
            "volumes: %s must have another name, trainingjob-* belongs to the operator",
            (f"self.volumes.filter(v, {OWN_VOLUME})[0].name",),
            field=".volumes",
        ),
        Rule(
            f"!has(self.volumeMounts) || self.volumeMounts.all(m, !{NO_VOLUME})",
            "volumeMounts: %s is none of the template's volumes",
            (f"self.volumeMounts.filter(m, {NO_VOLUME})[0].name",),
            field=".volumeMounts",
        ),
    ),
    EnvVar: (
        Rule(
            "!(has(self.value) && has(self.valueFrom))",
            "%s has value and valueFrom: remove one",
            ("self.name",),
            field=".valueFrom",
        ),
    ),
    VolumeMount: (
        Rule(
            f"!(self.mountPath in {list(OWN_PATHS)})",
            "mountPath (%s) is taken by the operator: mount the volume elsewhere",
            ("self.mountPath",),
            field=".mountPath",
        ),
    ),
    Toleration: (
        Rule(
            "has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            "key is missing: only with operator Exists a toleration is for every key",
        ),
        Rule(
            "!has(self.value) || !has(self.operator) || self.operator != 'Exists'",
            "value (%s) is not for operator Exists: remove it, or set operator to Equal",
            ("self.value",),
            field=".value",
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds (%d) is for effect NoExecute only: set effect to NoExecute, or remove it",
            ("self.tolerationSeconds",),
            field=".tolerationSeconds",
        ),
    ),
}
