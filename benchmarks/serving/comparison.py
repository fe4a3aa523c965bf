"""The serving benchmark: systems are started, measured and stopped one after another."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import psutil

from benchmarks.harness.display import Display
from benchmarks.harness.errors import BenchmarkError
from benchmarks.load.workloads import Workload
from benchmarks.serving.report import ServingReport, WorkloadResult
from benchmarks.systems.system import Running, System

#: A machine that does more than that beside the benchmark spoils its figures.
_BUSY_PERCENT = 20.0

#: What is said at once of a job that is done, and in what.
_SHOWN_FIGURES = {
    "out_tok_s": "tokens/s",
    "ttft_ms_p50": "ms to the first token",
    "first_ttft_ms_p50": "ms to the first token",
    "again_ttft_ms_p50": "ms the next time",
}


def measure_all(
    systems: Sequence[System], report: ServingReport, display: Display, after_each: Callable[[ServingReport], None]
) -> None:
    """Measure the systems and fill the report. Failures are recorded in it, and the benchmark continues."""
    for system in systems:
        display.say(f"— {system.title}")
        for job in report.jobs:
            if (reason := system.unsupported_reason(job)) is not None:
                report.add(WorkloadResult(system=system.key, job=job.key, refused=reason))
        jobs = [job for job in report.jobs if system.unsupported_reason(job) is None]
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


def _by_arrangement(system: System, jobs: Sequence[Workload]) -> list[tuple[Hashable, list[Workload]]]:
    groups: dict[Hashable, list[Workload]] = {}
    for job in jobs:
        groups.setdefault(system.start_options(job), []).append(job)
    return list(groups.items())


def _measure(system: System, running: Running, job: Workload, report: ServingReport, display: Display) -> None:
    if job.rate_from is not None:
        pace = report.outcome(system.key, job.rate_from)
        if pace is None or not (pace.figures and pace.figures["req_s"]):
            raise BenchmarkError(f"{job.key} is paced by {job.rate_from}, which has no figures.")
        job = job.with_rate_of(dict(pace.figures))
    running.child.reset_peak()
    with display.working(f"{system.title}: {job.title}"):
        figures = running.measure(job.load)
    figures["peak_rss_mb"] = round(running.child.peak_bytes / 1e6)
    report.add(WorkloadResult(system=system.key, job=job.key, figures=figures))
    said = [f"{figures[name]} {unit}" for name, unit in _SHOWN_FIGURES.items() if figures.get(name) is not None]
    if figures["errors"]:
        said.append(f"{figures['errors']} errors: {figures['error_sample']}")
    display.say(f"{system.title}: {job.title}: {', '.join(said)}")


def _fail(
    system: System, jobs: Sequence[Workload], error: BenchmarkError, report: ServingReport, display: Display
) -> None:
    display.say(f"{system.title}: failed. {error.message}")
    for job in jobs:
        report.add(WorkloadResult(system=system.key, job=job.key, failed=error.message))


def _warn_if_busy(display: Display) -> None:
    busy = psutil.cpu_percent(interval=1.0)
    if busy > _BUSY_PERCENT:
        display.say(f"Something else uses {busy:.0f} % of this machine: the figures will be too low.")
