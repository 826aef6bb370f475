"""The report's pictures, as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from trainingjob_trainer.checkpoint.state import Progress

INK, BLUE, ORANGE, GREY = "#1f2937", "#2563eb", "#ea580c", "#e5e7eb"
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9ca3af",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GREY,
    "xtick.color": "#6b7280",
    "ytick.color": "#6b7280",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def loss_curve(progress: Progress) -> str:
    """Training loss at the logged steps and validation loss at the evaluated ones, over the step."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss")
        logged = progress.history
        axes.plot([p.step for p in logged], [p.loss for p in logged], color=BLUE, label="training")
        evaluated = progress.evaluations
        losses = [e.metrics["loss"] for e in evaluated]
        axes.plot([e.step for e in evaluated], losses, "o-", color=ORANGE, markersize=4.5, label="validation")
        axes.legend()
        return _svg(figure)


def learning_rate_curve(progress: Progress) -> str:
    """Learning rate and gradient norm at the logged steps."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        rate, norm = figure.subplots(1, 2)
        steps = [p.step for p in progress.history]
        rate.plot(steps, [p.learning_rate for p in progress.history], color=BLUE)
        rate.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        norm.plot(steps, [p.grad_norm for p in progress.history], color=BLUE)
        norm.set(xlabel="step", ylabel="gradient norm", ylim=(0, None))
        return _svg(figure)


def confusion_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Counts by label (rows) and prediction (columns); the shade is the share of the label."""
    with matplotlib.rc_context({**_STYLE, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        side = min(8.0, 2.0 + 0.45 * len(classes))
        figure = Figure(figsize=(side, side), layout="constrained")
        axes = figure.add_subplot(xlabel="prediction", ylabel="label")
        shares = [[count / max(sum(row), 1) for count in row] for row in matrix]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes), default=0) > 3 else 0)
        axes.set_yticks(range(len(classes)), classes)
        axes.tick_params(length=0)
        if len(classes) <= 25:  # beyond that, figures are not legible
            for i, row in enumerate(matrix):
                for j, count in enumerate(row):
                    colour = "white" if shares[i][j] > 0.5 else INK if count else "#cbd5e1"
                    axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=9)
        return _svg(figure)


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
