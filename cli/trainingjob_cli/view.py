"""A job on the screen: a live panel where there is a terminal, a line per change where there is none."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from trainingjob_operator.api.status import Progress

from trainingjob_cli.jobs import Job
from trainingjob_cli.timeline import Timeline, duration, sparkline

_COLORS = {"Succeeded": "green", "Failed": "red", "Restarting": "yellow", "Suspended": "yellow"}
_REFRESH_PER_SECOND = 4


def show(jobs: Iterable[Job], console: Console, timeline: Timeline | None = None) -> Job | None:
    """Show a job until `jobs` ends; returns its last state."""
    timeline = timeline if timeline is not None else Timeline()
    return _show_live(jobs, console, timeline) if console.is_terminal else _show_lines(jobs, console, timeline)


def _show_live(jobs: Iterable[Job], console: Console, timeline: Timeline) -> Job | None:
    last = None
    with Live(console=console, refresh_per_second=_REFRESH_PER_SECOND, transient=False) as live:
        for last in jobs:
            timeline.look(last, datetime.now(UTC))
            live.update(panel(last, timeline))
    return last


def _show_lines(jobs: Iterable[Job], console: Console, timeline: Timeline) -> Job | None:
    last, shown = None, ""
    for last in jobs:
        now = datetime.now(UTC)
        timeline.look(last, now)
        text = line(last)
        if text != shown:
            since = (now - (last.status.start_time or last.created)).total_seconds()
            console.print(f"{duration(since):>8}  {text}", markup=False, highlight=False, soft_wrap=True)
            shown = text
    return last


def line(job: Job) -> str:
    """The job in one line."""
    status, facts = job.status, []
    progress = status.progress
    if progress is not None and (progress.step or progress.percent):
        facts.append(f"step {progress.step}/{progress.steps}" if progress.steps else progress.summary)
        if progress.loss is not None:
            facts.append(f"loss {progress.loss:.3f}")
        if rate := _rate(progress):
            facts.append(rate)
        if progress.eta and not job.finished:
            facts.append(f"{progress.eta} left")
    return "  ".join([f"{status.phase or 'Pending':<10}", *facts, status.message.partition("\n")[0]]).rstrip()


def panel(job: Job, timeline: Timeline | None = None) -> RenderableType:
    """The job as a panel; without a timeline, what one look tells."""
    status = job.status
    rows: list[RenderableType] = []
    if timeline is not None:
        rows.append(_ladder(job, timeline))
    if status.message:
        rows.append(Text(status.message))
    if status.progress is not None and status.progress.steps:
        rows.append(_progress(job, timeline))
    rows.append(_facts(job))
    rows += [_incident(job, index) for index in range(len(status.history))]
    color = _COLORS.get(status.phase or "", "cyan")
    title = f"[bold]{job.name}[/bold] in {job.namespace}: [{color}]{status.phase or 'Pending'}[/{color}]"
    return Panel(Group(*rows), title=title, title_align="left", border_style=color)


def _ladder(job: Job, timeline: Timeline) -> Text:
    current = job.status.phase or "Pending"
    text = Text()
    for phase, seconds in timeline.seconds.items():
        done = phase != current or job.finished
        mark = "✗" if phase == "Failed" else "✓" if done else "▶"
        color = _COLORS.get(phase, "green" if done else "cyan")
        time = "" if phase in ("Succeeded", "Failed") else f" {duration(seconds)}"
        text.append(f"{mark} {phase}{time}   ", style=color if done else f"bold {color}")
    for phase in timeline.to_come(job):
        text.append(f"○ {phase}   ", style="dim")
    return text


def _progress(job: Job, timeline: Timeline | None) -> RenderableType:
    progress = job.status.progress
    assert progress is not None
    table = Table.grid(padding=(0, 2))
    table.add_row(
        ProgressBar(total=progress.steps, completed=progress.step, width=40),
        f"step {progress.step} of {progress.steps}, {progress.percent} %",
        f"{progress.eta} left" if progress.eta and not job.finished else "",
        _rate(progress),
    )
    if progress.loss is not None:
        losses = sparkline(list(timeline.losses.values()), 40) if timeline else ""
        table.add_row(Text(losses, style="magenta"), f"loss {progress.loss:.4f}")
    return table


def _rate(progress: Progress) -> str:
    if progress.tokens_per_second:
        return f"{progress.tokens_per_second:,.0f} tokens/s"
    samples = progress.metrics.get("samplesPerSecond")
    return f"{samples:,.0f} samples/s" if samples else ""


def _facts(job: Job) -> Text:
    status = job.status
    facts = [f"{status.workers.ready} of {status.workers.desired} pods ready"]
    if status.checkpoint is not None and status.checkpoint.latest_step is not None:
        facts.append(f"checkpoint at step {status.checkpoint.latest_step}")
    if status.evaluation is not None:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in status.evaluation.metrics.items())
        facts.append(f"{status.evaluation.split} at step {status.evaluation.step}: {metrics}")
    if status.restarts.total:
        facts.append(f"{status.restarts.total} restart(s)")
    if status.result is not None and status.result.model_uri:
        facts.append(f"model {status.result.model_uri}")
    return Text("\n".join(facts), style="dim")


def _incident(job: Job, index: int) -> Text:
    incident = job.status.history[index]
    parts = [f"! {incident.time:%Y-%m-%d %H:%M:%S} UTC  {incident.class_}"]
    if incident.pod:
        parts.append(incident.pod)
    if incident.step is not None:
        parts.append(f"at step {incident.step}")
    if incident.steps_lost is not None:
        parts.append(f"{incident.steps_lost} steps lost")
    if incident.seconds_to_recover is not None:
        parts.append(f"training again after {incident.seconds_to_recover} s")
    return Text("  ".join(parts), style="yellow")
