"""News of a run as lines for people: what `hooks.report` gets, on a terminal or in a pod's log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Narrator:
    """Tells what is new in reports."""

    def __init__(self) -> None:
        self._message = ""

    def lines(self, fields: Mapping[str, Any]) -> Iterator[str]:
        """A line for a new message, for progress, an evaluation and a checkpoint.

        A message that comes with an evaluation only says that this is over; progress and a checkpoint that come with a
        state are those that the run goes on from, whose step may have been logged by nobody.
        """
        message = fields.get("message") or self._message
        if message != self._message:
            self._message = message
            if "evaluation" not in fields:
                yield message
        progress = fields.get("progress") or {}
        if progress.get("loss") is not None and "state" not in fields:
            yield _progress_line(progress)
        if fields.get("evaluation"):
            metrics = fields["evaluation"]["metrics"].items()
            yield f"{fields['evaluation']['split']}: " + "  ".join(f"{name} {value:.4g}" for name, value in metrics)
        if fields.get("checkpoint") and "state" not in fields:
            yield f"checkpoint {fields['checkpoint']['latestUri']}"


def _progress_line(progress: Mapping[str, Any]) -> str:
    parts = [
        f"step {progress['step']}/{progress['steps']}",
        f"loss {progress['loss']:.4f}",
        f"lr {progress['learningRate']:.3g}",
        f"grad norm {progress['gradNorm']:.3g}",
    ]
    if progress["tokensPerSecond"] is not None:
        parts.append(f"{progress['tokensPerSecond']:.0f} tokens/s")
    if "samplesPerSecond" in progress.get("metrics", {}):
        parts.append(f"{progress['metrics']['samplesPerSecond']:.0f} samples/s")
    if progress["etaSeconds"] is not None:
        parts.append(f"{progress['etaSeconds']:.0f} s left")
    return "  ".join(parts)
