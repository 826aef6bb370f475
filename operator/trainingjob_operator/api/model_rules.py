"""Rules of the model in CEL; its models say the same in Python."""

from __future__ import annotations

from trainingjob_trainer import config

from trainingjob_operator.api.cel import Rule

# As `config.Transformer.family` says.
IN_A_FAMILY = (
    "[self.model.transformer].all(t, "
    "(t.norm == 'rmsnorm' && t.positions == 'rotary' && t.ffn == 'swiglu' && (!t.qkNorm || t.bias == 'none')) || "
    "(t.norm == 'layernorm' && t.positions == 'learned' && t.ffn == 'gelu' && t.bias == 'all' && !t.qkNorm && "
    "t.?kvHeads.orValue(t.heads) == t.heads && (!has(t.headDim) || t.headDim * t.heads == t.dim)))"
)

_GIVEN = f"[{', '.join(f'has(self.{name})' for name in config.ARCHITECTURES)}].filter(given, given).size()"
_ARCHITECTURES = Rule(
    f"{_GIVEN} == 1", f"exactly one of {', '.join(config.ARCHITECTURES)} must be set, not %d", (_GIVEN,)
)

MODEL_RULES: dict[type[config.Config], tuple[Rule, ...]] = {
    config.Model: (
        _ARCHITECTURES,
        Rule(
            "!has(self.initFrom) || has(self.preset) || has(self.transformer) || has(self.huggingface) || "
            "has(self.timm)",
            "initFrom is for preset, transformer, huggingface and timm: remove it",
            field=".initFrom",
            reason="FieldValueForbidden",
        ),
        Rule(
            "!has(self.huggingface) || has(self.huggingface.config) || has(self.initFrom)",
            "huggingface.config is required without initFrom, whose config.json would stand for it",
            field=".huggingface",
            reason="FieldValueRequired",
        ),
    ),
    config.Transformer: (
        Rule(
            "has(self.headDim) || self.dim % self.heads == 0",
            "dim (%d) must be a multiple of heads (%d), or headDim be set",
            ("self.dim", "self.heads"),
            field=".dim",
        ),
        Rule(
            "self.positions != 'rotary' || has(self.headDim) || self.dim % self.heads != 0 || "
            "self.dim / self.heads % 2 == 0",
            "dim / heads (%d) must be even for rotary positions",
            ("self.dim / self.heads",),
            field=".dim",
        ),
        Rule(
            "!has(self.kvHeads) || self.heads % self.kvHeads == 0",
            "heads (%d) must be a multiple of kvHeads (%d)",
            ("self.heads", "self.kvHeads"),
            field=".kvHeads",
        ),
        Rule(
            "!has(self.context) || self.positions == 'learned'",
            "context (%d) is for positions learned: remove it",
            ("self.context",),
            field=".context",
        ),
        Rule(
            "!has(self.ropeScaling) || self.positions == 'rotary'",
            "ropeScaling is for positions rotary, not %s: remove it",
            ("self.positions",),
            field=".ropeScaling",
        ),
    ),
    config.RopeScaling: (
        Rule(
            "self.lowFreqFactor < self.highFreqFactor",
            "lowFreqFactor (%.3f) must be below highFreqFactor (%.3f)",
            ("self.lowFreqFactor", "self.highFreqFactor"),
            field=".lowFreqFactor",
        ),
    ),
}
