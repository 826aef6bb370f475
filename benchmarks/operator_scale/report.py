"""The figures as a table for people and as JSON for programs."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainingjob_local.binaries import programs

from benchmarks.operator_scale.measure import median

OUT = Path("benchmarks/out/operator_scale.json")
_ROWS = (
    ("create all jobs", "create_s", "s", None),
    ("floor: bare script, all pods ready", "floor_all_ready_s", "s", None),
    ("operator: all pods ready", "pods_ready_s", "s", None),
    ("operator: all ready, and said so", "all_ready_s", "s", None),
    ("ratio to the floor", "ratio_to_floor", "", 1.3),
    ("operator CPU per job until then", "operator_cpu_ms_per_job", "ms", 12),
    ("  by the target's machine (floor 22 s)", "operator_cpu_ms_per_job_at_target_floor", "ms", 12),
    ("operator writes per job", "operator_writes_per_job", "", 11),
    ("operator reads per job", "operator_reads_per_job", "", None),
    ("operator memory, peak", "operator_rss_mib", "MiB", None),
    ("idle: CPU of one core", "idle_cpu_percent", "%", None),
    ("idle: writes in 60 s", "idle_writes_60s", "", 0),
    ("restart: ready and all decided", "restart_s", "s", 10),
    ("restart: CPU", "restart_cpu_s", "s", None),
    ("restart: writes", "restart_writes", "", 0),
    ("delete all jobs, everything gone", "delete_s", "s", None),
    ("delete: operator CPU per job", "delete_cpu_ms_per_job", "ms", None),
    ("delete: operator writes", "delete_writes", "", None),
)


def about() -> dict[str, Any]:
    """When and on what it was measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("trainingjob", "kopf", "aiohttp", "pydantic")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "memory_gib": round(memory), "kernel": platform.release()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            **{p.name: p.version for p in programs().values() if p.name in ("kube-apiserver", "etcd", "kwok")},
        },
    }


def write(figures: Mapping[str, Any], out: Path) -> None:
    """Leave the figures in a file, with when and on what they were measured."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_rounded({**about(), **figures}), indent=2) + "\n")


def table(figures: Mapping[str, Any]) -> str:
    """The figures in lines, with the targets that are set."""
    lines = [f"{figures['n']} jobs of {figures['pods_per_job']} pods, medians of {len(figures['rounds'])} rounds", ""]
    for label, name, unit, target in _ROWS:
        lines.append(_row(label, figures[name], unit, target))
        if name == "floor_all_ready_s":
            lines.append(_each("one after the other", [floor["all_ready_s"] for floor in figures["floors"]]))
        if name in ("ratio_to_floor", "operator_cpu_ms_per_job"):
            lines.append(_each("by round", [one[name] for one in figures["rounds"]]))
        if name == "all_ready_s":
            for what in ("apply_to_pods_created_s", "apply_to_running_s"):
                cuts = "  ".join(f"{cut} {seconds:.2f} s" for cut, seconds in figures[what].items())
                lines.append(f"  {what.removesuffix('_s').replace('_', ' '):<36} {cuts}")
    if "kuberay" in figures:
        lines += _kuberay(figures, figures["kuberay"])
    arms = {"floor": median(figures["floors"]), "operator": figures, "KubeRay": figures.get("kuberay")}
    lines += _cpu_table({arm: found["control_plane_cpu_ms_per_job"] for arm, found in arms.items() if found})
    if "polling" in figures:
        polling = figures["polling"]
        lines.append(_row(f"polling {polling['heads']} heads: CPU per poll", polling["cpu_ms_per_poll"], "ms", None))
    if "suspended" in figures:
        many = figures["suspended"]
        lines += [
            _row(f"{many['jobs']} suspended jobs: memory, peak", many["peak_rss_mib"], "MiB", 500),
            _row("  restart with them", many["restart_s"], "s", None),
            _row("  CPU of it", many["restart_cpu_s"], "s", 60),
            _row("  memory after it, peak", many["restart_peak_rss_mib"], "MiB", 500),
            _row("  writes of it", many["restart_writes"], "", 0),
        ]
    return "\n".join(lines)


def _kuberay(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """KubeRay's figures, and how many times as much of each it takes as ours."""

    def row(label: str, name: str, unit: str) -> str:
        return f"{_row(label, theirs[name], unit, None)}  ({theirs[name] / ours[name]:.2f} times ours)"

    return [
        row(f"KubeRay {theirs['version']}: all ready, and said so", "all_ready_s", "s"),
        row("  ratio to the floor", "ratio_to_floor", ""),
        _each("by round", [one["ratio_to_floor"] for one in theirs["rounds"]]),
        row("  CPU per cluster until then", "operator_cpu_ms_per_job", "ms"),
        _each("by round", [one["operator_cpu_ms_per_job"] for one in theirs["rounds"]]),
        row("  writes per cluster", "operator_writes_per_job", ""),
        row("  memory, peak", "operator_rss_mib", "MiB"),
    ]


def _cpu_table(arms: Mapping[str, Mapping[str, float]]) -> list[str]:
    """CPU of the control plane's processes, a column for each arm."""
    head = "  control plane's CPU per job, ms: " + "".join(f"{arm:>14}" for arm in arms)
    processes = next(iter(arms.values()))
    return [head] + [f"    {name:<31}" + "".join(f"{arm[name]:>14.1f}" for arm in arms.values()) for name in processes]


def _each(label: str, values: Sequence[float]) -> str:
    """What a median is of: its reader has to know how far apart they are."""
    return f"    {label:<34} " + "".join(f"{value:>10.2f}" for value in values)


def _row(label: str, value: float, unit: str, target: float | None) -> str:
    aim = "" if target is None else f"  (target {'' if target == 0 else 'at most '}{target:g})"
    return f"  {label:<36} {value:>9.2f} {unit:<3}{aim}".rstrip()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return value
