"""The benchmark itself: systems one after another, each started as its loads want it, measured, and put away.

Knows no system: they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import psutil

from benchmarks.harness.display import Display
from benchmarks.harness.errors import BenchmarkError
from benchmarks.load.workloads import Job
from benchmarks.serving.report import Outcome, Report
from benchmarks.systems.system import Running, System

#: A machine that does more than that beside the benchmark spoils its figures.
_BUSY_PERCENT = 20.0

#: What is said at once of a job that is done, and in what.
_TOLD = {
    "out_tok_s": "tokens/s",
    "ttft_ms_p50": "ms to the first token",
    "first_ttft_ms_p50": "ms to the first token",
    "again_ttft_ms_p50": "ms the next time",
}


def measure_all(
    systems: Sequence[System], report: Report, display: Display, after_each: Callable[[Report], None]
) -> None:
    """Fill the report. What fails is in it as failed, and the rest goes on."""
    for system in systems:
        display.say(f"— {system.title}")
        for job in report.jobs:
            if (reason := system.refuses(job)) is not None:
                report.add(Outcome(system=system.key, job=job.key, refused=reason))
        jobs = [job for job in report.jobs if system.refuses(job) is None]
        try:
            system.prepare(jobs)
        except BenchmarkError as error:
            _fail(system, jobs, error, report, display)
            continue
        _warn_if_busy(display)
        for arrangement, together in _by_arrangement(system, jobs):
            try:
                with system.serving(arrangement, together) as running:
                    for job in together:
                        _measure(system, running, job, report, display)
                        after_each(report)
            except BenchmarkError as error:
                done = {outcome.job for outcome in report.outcomes if outcome.system == system.key}
                _fail(system, [job for job in together if job.key not in done], error, report, display)
    after_each(report)


def _by_arrangement(system: System, jobs: Sequence[Job]) -> list[tuple[Hashable, list[Job]]]:
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault(system.arrangement(job), []).append(job)
    return list(groups.items())


def _measure(system: System, running: Running, job: Job, report: Report, display: Display) -> None:
    if job.paced_by is not None:
        pace = report.outcome(system.key, job.paced_by)
        if pace is None or not (pace.figures and pace.figures["req_s"]):
            raise BenchmarkError(f"{job.key} is paced by {job.paced_by}, which has no figures.")
        job = job.at_pace_of(dict(pace.figures))
    running.child.forget_peak()
    with display.working(f"{system.title}: {job.title}"):
        figures = running.measure(job.what)
    figures["peak_rss_mb"] = round(running.child.peak_bytes / 1e6)
    report.add(Outcome(system=system.key, job=job.key, figures=figures))
    said = [f"{figures[name]} {unit}" for name, unit in _TOLD.items() if figures.get(name) is not None]
    if figures["errors"]:
        said.append(f"{figures['errors']} errors: {figures['error_sample']}")
    display.say(f"{system.title}: {job.title}: {', '.join(said)}")


def _fail(system: System, jobs: Sequence[Job], error: BenchmarkError, report: Report, display: Display) -> None:
    display.say(f"{system.title}: failed. {error.message}")
    for job in jobs:
        report.add(Outcome(system=system.key, job=job.key, failed=error.message))


def _warn_if_busy(display: Display) -> None:
    busy = psutil.cpu_percent(interval=1.0)
    if busy > _BUSY_PERCENT:
        display.say(f"Something else uses {busy:.0f} % of this machine: the figures will be too low.")
