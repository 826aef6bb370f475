"""The report of a run: `report.json` for programs, `report.html` (self-contained) for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from html import escape
from string import Template
from typing import Any

import torch

from trainingjob_trainer.checkpoint.attempt import Attempt
from trainingjob_trainer.checkpoint.state import Progress
from trainingjob_trainer.config import Augmentation, JobConfig, Optimizer
from trainingjob_trainer.data.manifest import SPLITS, Manifest
from trainingjob_trainer.evaluation.evaluate import CORRUPT, scalars
from trainingjob_trainer.records import now
from trainingjob_trainer.tasks import TaskMetrics

MOST_CLASSES = 64  # in the picture of a confusion matrix: more of them nobody can read
_TITLES = {
    "loss": "Loss",
    "perplexity": "Perplexity",
    "bitsPerByte": "Bits per byte",
    "accuracy": "Accuracy",
    "top5Accuracy": "Top-5 accuracy",
    "precision": "Precision (macro)",
    "recall": "Recall (macro)",
    "f1": "F1 (macro)",
    "precisionMicro": "Precision (micro)",
    "recallMicro": "Recall (micro)",
    "f1Micro": "F1 (micro)",
    "mse": "Mean squared error",
    "mae": "Mean absolute error",
    "r2": "R²",
}


def write_report(
    config: JobConfig, manifest: Manifest, progress: Progress, step: int, test: TaskMetrics, attempt: Attempt
) -> str:
    """Write `report.json` and `report.html` below `reports/a<attempt>/`; returns the URI of the HTML.

    `test`: metrics of the weights after `step` steps, which are the ones that are handed out.
    """
    prefix = f"reports/a{attempt.number}/"
    report = report_data(config, manifest, progress, step, test, attempt)
    attempt.store.put(prefix + "report.json", json.dumps(report, indent=1).encode())
    attempt.store.put(prefix + "report.html", render(report, progress).encode())
    return attempt.store.uri(prefix + "report.html")


def report_data(
    config: JobConfig, manifest: Manifest, progress: Progress, step: int, test: TaskMetrics, attempt: Attempt
) -> dict[str, Any]:
    """Everything that is known of the run, JSON-able. Unused: the tokens at a split's end, too few for a sample."""
    tokens = manifest.kind == "tokens"
    return {
        "version": 1,
        "job": f"{config.namespace}/{config.name}",
        "createdAt": now(),
        "attempt": attempt.number,
        "runDirectory": attempt.store.uri(),
        "task": config.task.kind,
        "model": config.model.architecture.wire(),
        "training": config.training.wire(),
        "data": {
            "source": str(config.data.train),
            "augmentation": None if config.data.augmentation is None else config.data.augmentation.asked(),
            "vocabSize": manifest.vocab_size,
            "classes": manifest.classes,
            "splits": {
                name: {
                    "documents": manifest.splits[name].documents,
                    "bytes": manifest.splits[name].bytes,
                    manifest.kind: manifest.splits[name].count,
                    "samples": manifest.num_samples(name, config.training.sequence_length),
                    **({"unused": manifest.tail(name, config.training.sequence_length)} if tokens else {}),
                }
                for name in SPLITS
            },
            "dropped": manifest.dropped,
            "duplicates": manifest.duplicates,
        },
        "progress": {
            "step": progress.step,
            "samples": progress.samples,
            "tokens": progress.tokens,
            "corruptSamples": progress.corrupt_samples,
        },
        "history": {
            "train": [point.wire() for point in progress.history],
            "validation": [evaluated.wire() for evaluated in progress.evaluations],
        },
        "modelStep": step,
        "test": test,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def render(report: Mapping[str, Any], progress: Progress) -> str:
    """The report as one HTML page without anything to load."""
    from trainingjob_trainer.evaluation import charts  # matplotlib takes half a second to import

    test = report["test"]
    classes = report["data"]["classes"]
    headline = [(_TITLES.get(name, name), _number(value)) for name, value in _figures(test).items()]
    sections = [
        _section("Loss", charts.loss_curve(progress)),
        _section("Test and validation", _evaluation_table(report)),
    ]
    if classes and "confusionMatrix" in test and len(classes) <= MOST_CLASSES:
        picture = charts.confusion_matrix(test["confusionMatrix"], classes)
        sections.append(_section("Confusion matrix on the test split", picture))
    if "perClass" in test:
        sections.append(_section("By class, on the test split", _class_table(test["perClass"])))
    sections += [
        _section("Learning rate and gradient norm", charts.learning_rate_curve(progress)),
        _section("Data", _data_table(report["data"]["splits"]) + _left_out(report["data"])),
        _section("Run", _table([], _run_rows(report))),
    ]
    return _PAGE.substitute(
        title=escape(report["job"]),
        subtitle=escape(f"{report['task']} · step {report['progress']['step']:,} · {report['createdAt']}"),
        tiles="".join(f"<div><b>{value}</b><span>{escape(name)}</span></div>" for name, value in headline),
        sections="".join(sections),
    )


def _evaluation_table(report: Mapping[str, Any]) -> str:
    """Metrics of the model that is handed out, and those of the last step if it is another; what they are not of."""
    step, validation = report["modelStep"], report["history"]["validation"]
    names = _figures(report["test"])
    evaluated = [("test", step, report["test"])]
    evaluated += [("validation", e["step"], e["metrics"]) for e in validation if e["step"] == step]
    evaluated += [("validation, at the end", e["step"], e["metrics"]) for e in validation[-1:] if e["step"] != step]
    rows = [
        [title, f"{at:,}", *(_number(metrics[name]) for name in names), f"{metrics.get(CORRUPT, 0):,.0f}"]
        for title, at, metrics in evaluated
    ]
    return _table(["split", "step", *(_TITLES.get(name, name) for name in names), "Corrupt samples"], rows)


def _figures(metrics: TaskMetrics) -> dict[str, float]:
    """The metrics that are one number and say how good the model is."""
    return {name: value for name, value in scalars(metrics).items() if name != CORRUPT}


def _class_table(per_class: list[dict[str, Any]]) -> str:
    columns = ["class", "precision", "recall", "f1", "support"]
    return _table(columns, [[str(row["class"]), *(_number(row[c]) for c in columns[1:])] for row in per_class])


def _data_table(splits: Mapping[str, Mapping[str, int]]) -> str:
    columns = list(next(iter(splits.values())))
    return _table(["split", *columns], [[name, *(f"{s[c]:,}" for c in columns)] for name, s in splits.items()])


def _left_out(data: Mapping[str, Any]) -> str:
    """What preparation left out of the raw data, as far as it counts that."""
    counts = {"Dropped by cleaning": data["dropped"], "Duplicates left out": data["duplicates"]}
    rows = [[what, f"{count:,}"] for what, count in counts.items() if count is not None]
    return _table([], rows) if rows else ""


def _run_rows(report: Mapping[str, Any]) -> list[list[str]]:
    training, optimizer = report["training"], Optimizer.model_validate(report["training"]["optimizer"])
    schedule, progress = training["schedule"], report["progress"]
    augmentation = report["data"]["augmentation"]
    return [
        ["Run directory", report["runDirectory"]],
        ["Data", report["data"]["source"]],
        *([["Augmentation", str(Augmentation.model_validate(augmentation))]] if augmentation else []),
        ["Model", ", ".join(f"{name} {value}" for name, value in report["model"].items())],
        ["Batch", f"{training['globalBatchSize']} samples; {training['steps']:,} steps; seed {training['seed']}"],
        ["Optimizer", f"{optimizer.name}, peak {optimizer.lr:g}, weight decay {optimizer.decay:g}"],
        ["Schedule", f"{schedule['name']}, {schedule['warmupSteps']:,} warm-up steps"],
        ["Weights", f"those after step {report['modelStep']:,}"],
        ["Samples seen", f"{progress['samples']:,}, of them corrupt {progress['corruptSamples']:,}"],
        ["Attempt", str(report["attempt"])],
        ["Versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())],
    ]


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    head = "<thead><tr>" + "".join(f"<th>{escape(name)}</th>" for name in header) + "</tr></thead>" if header else ""
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="{"grid" if header else "facts"}">{head}<tbody>{body}</tbody></table>'


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) >= 100 else f"{value:.4f}"


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1f2937; --soft: #6b7280; --line: #e5e7eb; --paper: #ffffff; --ground: #f8fafc; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 16px; margin: 0 0 12px; }
header p { margin: 4px 0 20px; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; margin-bottom: 12px; }
.tiles div, section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.tiles div { padding: 12px 16px; } .tiles b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--soft); font-size: 13px; }
section { padding: 18px 20px; margin-bottom: 12px; overflow-x: auto; }
svg { max-width: 100%; height: auto; display: block; margin: 0 auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: right; color: var(--soft); font-weight: 500; } td { text-align: right; }
th, td { padding: 6px 10px; border-bottom: 1px solid var(--line); } tbody tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child, .facts td { text-align: left; }
.facts td:first-child { color: var(--soft); white-space: nowrap; width: 1%; } .facts td { overflow-wrap: anywhere; }
</style>
</head>
<body><main>
<header><h1>$title</h1><p>$subtitle</p></header>
<div class="tiles">$tiles</div>
$sections
</main></body>
</html>
""")
