"""Rules of the data in CEL; its models say the same in Python."""

from __future__ import annotations

from trainingjob_trainer import config

from trainingjob_operator.api.cel import Rule

ITS_NAME_ALONE = "self.mixture.exists_one(d, d.name == c.name)"


def _exactly_one(first: str, second: str) -> Rule:
    """Two ways to say a thing."""
    return Rule(
        f"has(self.{first}) != has(self.{second})",
        f"exactly one of {first} and {second} must be set, not %s",
        (f"has(self.{first}) ? 'both' : 'none'",),
    )


# On the spec: which data is for which task.
TASK_DATA_RULES = (
    Rule(
        "!has(self.data) || !has(self.data.train.mixture) || self.task.kind == 'language-modeling'",
        "data.train.mixture is not for task.kind %s: give one uri",
        ("self.task.kind",),
        field=".data.train.mixture",
        reason="FieldValueForbidden",
    ),
    Rule(
        "!has(self.training) || !has(self.training.epochs) || !has(self.data) || !has(self.data.train.mixture)",
        "training.epochs is not for data.train.mixture, each source of which has epochs of its own: give steps or "
        "tokens",
        field=".training.epochs",
        reason="FieldValueForbidden",
    ),
    Rule(
        "!has(self.model) || !has(self.model.rnn)",
        "data.packing is not for model.rnn, whose state goes from document to document: remove it",
        field=".data.packing",
        reason="FieldValueForbidden",
        unless="!has(self.data) || !self.data.packing",
    ),
    Rule(
        "!has(self.model) || !has(self.model.huggingface)",
        "data.packing is not for model.huggingface: remove it",
        field=".data.packing",
        reason="FieldValueForbidden",
        unless="!has(self.data) || !self.data.packing",
    ),
    Rule(
        "self.task.kind == 'language-modeling'",
        "data.packing is not for task.kind %s, whose samples are apart: remove it",
        ("self.task.kind",),
        field=".data.packing",
        reason="FieldValueForbidden",
        unless="!has(self.data) || !self.data.packing",
    ),
    Rule(
        "self.task.kind == 'image-classification'",
        "data.augmentation is not for task.kind %s, whose samples are no images: remove it",
        ("self.task.kind",),
        field=".data.augmentation",
        reason="FieldValueForbidden",
        unless="!has(self.data) || !has(self.data.augmentation)",
    ),
    Rule(
        "self.task.kind != 'image-classification' || self.data.train.format == 'parquet'",
        "data.train.format is %s: image-classification reads parquet, with a column of encoded images",
        ("self.data.train.format",),
        field=".data.train.format",
        unless="!has(self.data)",
    ),
    Rule(
        "self.task.kind != 'text-classification' || self.data.train.format != 'text'",
        "data.train.format is text: text-classification reads jsonl, csv or parquet, with labels",
        field=".data.train.format",
        unless="!has(self.data)",
    ),
    Rule(
        "self.task.kind != 'regression' || self.data.train.format != 'text'",
        "data.train.format is text: regression reads columns, of csv, jsonl or parquet",
        field=".data.train.format",
        unless="!has(self.data)",
    ),
    Rule(
        "self.task.kind != 'regression' || self.data.train.?features.orValue([]).size() > 0",
        "data.train.features is required for task.kind regression: name the columns",
        field=".data.train.features",
        reason="FieldValueRequired",
        unless="!has(self.data)",
    ),
)

DATA_RULES: dict[type[config.Config], tuple[Rule, ...]] = {
    config.Source: (
        _exactly_one("uri", "mixture"),
        Rule(
            f"!has(self.mixture) || self.mixture.all(c, {ITS_NAME_ALONE})",
            "mixture has the name %s more than once: names must differ",
            (f"self.mixture.filter(c, !{ITS_NAME_ALONE})[0].name",),
            field=".mixture",
        ),
    ),
    config.Split: (_exactly_one("fraction", "uri"),),
    config.Data: (
        Rule(
            "self.validation.?fraction.orValue(0.0) + self.test.?fraction.orValue(0.0) < 1.0",
            "validation.fraction (%.2f) and test.fraction (%.2f) leave nothing to train on: their sum must be below 1",
            ("self.validation.?fraction.orValue(0.0)", "self.test.?fraction.orValue(0.0)"),
        ),
    ),
    config.Clean: (
        Rule(
            "!has(self.minChars) || !has(self.maxChars) || self.minChars <= self.maxChars",
            "minChars (%d) must not be above maxChars (%d)",
            ("self.minChars", "self.maxChars"),
            field=".minChars",
        ),
    ),
}
