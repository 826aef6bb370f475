"""The benchmark of the operator, with three jobs: that it measures, and what holds at any size."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from trainingjob_local import sandbox

ROOT = Path(__file__).parents[2]
NAMED_BY_ITS_READERS = {
    "n",
    "pods_per_job",
    "floor_all_ready_s",
    "all_ready_s",
    "ratio_to_floor",
    "operator_cpu_ms_per_job",
    "operator_writes_per_job",
    "operator_rss_mib",
    "idle_writes_60s",
    "restart_writes",
    "versions",
}


@pytest.mark.slow
def test_three_jobs_cost_eleven_writes_each_and_then_nothing(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.operator_scale", "--jobs", "3", "--rounds", "2"]
    done = subprocess.run(
        # A sandbox in the tests' sandbox: the control plane's addresses are taken outside.
        sandbox.command_line(
            [*command, "--kuberay", "--suspended", "10", "--heads", "20", "--poll-seconds", "3", "--out", str(out)]
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())
    assert set(figures) >= NAMED_BY_ITS_READERS
    assert (figures["n"], figures["pods_per_job"]) == (3, 4)
    assert 0 < figures["operator_writes_per_job"] <= 11, figures["operator_requests"]
    assert figures["idle_writes_60s"] == 0
    assert figures["restart_writes"] == 0, figures["restart_requests"]
    assert figures["suspended"]["restart_writes"] == 0, figures["suspended"]["restart_requests"]
    assert figures["operator_cpu_ms_per_job"] > 0
    assert figures["floor_all_ready_s"] > 0
    assert figures["polling"]["polls"] >= 20
    assert figures["ratio_to_floor"] == pytest.approx(
        statistics.mean(r["ratio_to_floor"] for r in figures["rounds"]), abs=2e-3
    )
    peer = figures["kuberay"]
    assert peer["operator_requests"]["create pods"] == 3 * 4, "all that is counted of KubeRay is of these clusters"
    assert peer["operator_cpu_ms_per_job"] > 0
    assert (len(figures["rounds"]), len(peer["rounds"]), len(figures["floors"])) == (2, 2, 5)
