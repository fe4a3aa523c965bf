"""The results of the serving benchmark: Markdown for people, JSON for programs, both with ratios between systems."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.request_pairs import RequestPairs
from benchmarks.load.workloads import Workload

OURS = "graftwork"

#: Of loads side by side.
_MOST_COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class WorkloadResult:
    """The result of one workload on one system: measurements, or the reason why there are none.

    Attributes:
        system: key of the system.
        job: key of the workload.
        figures: measurements by name.
        refused: why the system does not support the workload.
        failed: why it failed.
    """

    system: str
    job: str
    figures: Mapping[str, Any] | None = None
    refused: str | None = None
    failed: str | None = None

    @property
    def speed(self) -> float | None:
        """Output tokens per second; None unless all requests succeeded."""
        if self.figures is None or self.figures["errors"]:
            return None
        speed: float | None = self.figures.get("out_tok_s")
        return speed

    def to_json(self) -> dict[str, Any]:
        """Return the result in JSON's types, without empty fields."""
        fields = {"system": self.system, "load": self.job, "refused": self.refused, "failed": self.failed}
        return {name: value for name, value in fields.items() if value is not None} | dict(self.figures or {})


@dataclass
class ServingReport:
    """The results of all workloads on all systems.

    Attributes:
        jobs: the workloads.
        titles: titles of the systems by key, in the order of rows.
        about: a description of the machine and the benchmark.
        outcomes: the results so far.
    """

    jobs: Sequence[Workload]
    titles: Mapping[str, str]
    about: Mapping[str, Any]
    outcomes: list[WorkloadResult] = field(default_factory=list)

    def add(self, outcome: WorkloadResult) -> None:
        """Add a result."""
        self.outcomes.append(outcome)

    def outcome(self, system: str, job: str) -> WorkloadResult | None:
        """Return the result of a workload on a system; None if there is none yet."""
        return next((found for found in self.outcomes if (found.system, found.job) == (system, job)), None)

    def speed(self, system: str, job: str) -> float | None:
        """Return the output tokens per second of a workload on a system; None unless all requests succeeded."""
        found = self.outcome(system, job)
        return found.speed if found else None

    @property
    def failures(self) -> list[WorkloadResult]:
        """The results that failed or have errors."""
        return [o for o in self.outcomes if o.failed or (o.figures is not None and o.figures["errors"])]

    # -- ratios --------------------------------------------------------------------------------------------------
    def best_peer(self, job: str) -> tuple[str, float] | None:
        """Return the fastest other system in a workload, and its output tokens per second."""
        speeds = {key: speed for key in self.titles if key != OURS and (speed := self.speed(key, job)) is not None}
        best = max(speeds, key=lambda key: speeds[key], default=None)
        return (best, speeds[best]) if best is not None else None

    def ratios(self) -> dict[str, dict[str, Any]]:
        """Return, by workload, the speed of Graftwork relative to the best peer, and to its own baseline workload."""
        found: dict[str, dict[str, Any]] = {}
        for job in self.jobs:
            ours = self.speed(OURS, job.key)
            if ours is None:
                continue
            ratios: dict[str, Any] = {}
            if (best := self.best_peer(job.key)) is not None and best[1]:
                ratios |= {"best_peer": best[0], "to_best_peer": round(ours / best[1], 2)}
            if job.baseline is not None and (own := self.speed(OURS, job.baseline)):
                ratios |= {"yardstick": job.baseline, "to_yardstick": round(ours / own, 3)}
            if ratios:
                found[job.key] = ratios
        return found

    # -- JSON ----------------------------------------------------------------------------------------------------
    def to_json(self) -> str:
        """Format all results as JSON."""
        return json.dumps(
            {
                **self.about,
                "systems": dict(self.titles),
                "loads": {job.key: job.title for job in self.jobs},
                "results": [outcome.to_json() for outcome in self.outcomes],
                "ratios": self.ratios(),
            },
            indent=2,
            ensure_ascii=False,
        )

    # -- Markdown ------------------------------------------------------------------------------------------------
    def to_markdown(self) -> str:
        """Format all results as Markdown."""
        loads = [job for job in self.jobs if not isinstance(job.load, RequestPairs)]
        pairs = [job for job in self.jobs if isinstance(job.load, RequestPairs)]
        parts = [" · ".join(map(str, self.about.values()))]
        if loads:
            parts += ["Output tokens a second:", self._speeds(loads)]
        if waits := list(self._waits(loads)):
            head = ["load", "system", "first token p50 / p95 / p99", "between tokens p50 / p95 / p99"]
            parts += ["Milliseconds, and megabytes at the peak:", _table([[*head, "memory", "errors"], *waits])]
        if twice := list(self._pairs(pairs)):
            head = ["pair", "system", "first p50 / p95 / p99", "next p50 / p95 / p99", "first − next", "next ÷ first"]
            parts += ["Milliseconds to the first token of one request, and of the next:", _table([head, *twice])]
        if notes := list(dict.fromkeys(self._notes())):
            parts.append("\n".join(f"- {note}" for note in notes))
        return "\n\n".join(parts) + "\n"

    def _speeds(self, jobs: Sequence[Workload]) -> str:
        """A row for each system, or, when there are too many loads for a page, a row for each load."""
        lines = [["system", *(job.title for job in jobs)]]
        for key, title in self.titles.items():
            cells = [title, *(_speed_cell(self.outcome(key, job.key)) for job in jobs)]
            lines.append([f"**{cell}**" for cell in cells] if key == OURS else cells)
        ratios = self.ratios()
        if any("to_best_peer" in found for found in ratios.values()):
            lines.append(["Graftwork ÷ best peer", *(_times_cell(ratios.get(job.key, {})) for job in jobs)])
        if any("to_yardstick" in found for found in ratios.values()):
            lines.append(["Graftwork ÷ itself", *(self._own_cell(ratios.get(job.key, {})) for job in jobs)])
        return _table(lines if len(jobs) <= _MOST_COLUMNS else [list(line) for line in zip(*lines, strict=True)])

    def _own_cell(self, ratios: Mapping[str, Any]) -> str:
        if "to_yardstick" not in ratios:
            return "–"
        title = next(job.title for job in self.jobs if job.key == ratios["yardstick"])
        return f"{100 * ratios['to_yardstick']:.0f} % of {title}"

    def _waits(self, jobs: Sequence[Workload]) -> Iterator[list[str]]:
        for job, title, figures in self._measured(jobs):
            waits = [_three(figures, "ttft"), _three(figures, "itl")]
            yield [job.title, title, *waits, f"{figures['peak_rss_mb']:,}", str(figures["errors"])]

    def _pairs(self, jobs: Sequence[Workload]) -> Iterator[list[str]]:
        for job, title, figures in self._measured(jobs):
            if "again_share" in figures:
                waits = [_three(figures, "first_ttft"), _three(figures, "again_ttft")]
                yield [job.title, title, *waits, f"{figures['first_more_ms']:+.0f}", f"{figures['again_share']:.2f}"]

    def _measured(self, jobs: Sequence[Workload]) -> Iterator[tuple[Workload, str, Mapping[str, Any]]]:
        for job in jobs:
            for key, title in self.titles.items():
                if (found := self.outcome(key, job.key)) and found.figures is not None:
                    yield job, title, found.figures

    def _notes(self) -> Iterator[str]:
        """Yield the reasons for empty cells."""
        for outcome in self.outcomes:
            title = self.titles[outcome.system]
            if outcome.refused is not None:
                yield f"{title}: – means {outcome.refused}."
            elif outcome.failed is not None:
                yield f"{title}, {outcome.job}: failed. {outcome.failed.splitlines()[0].removesuffix(':')}"
            elif outcome.figures is not None and outcome.figures["errors"]:
                sample = outcome.figures["error_sample"][:1]
                yield f"{title}, {outcome.job}: {outcome.figures['errors']} errors, first {sample}"


def _speed_cell(outcome: WorkloadResult | None) -> str:
    if outcome is None or outcome.refused is not None:
        return "–"
    if outcome.figures is None:
        return "failed"
    speed = f"{outcome.figures['out_tok_s']:.0f}"
    return f"{speed} ({outcome.figures['errors']} errors)" if outcome.figures["errors"] else speed


def _times_cell(ratios: Mapping[str, Any]) -> str:
    return f"{ratios['to_best_peer']:.2f}×" if "to_best_peer" in ratios else "–"


def _three(figures: Mapping[str, Any], name: str) -> str:
    values = [figures[f"{name}_ms_p{share}"] for share in (50, 95, 99)]
    return " / ".join("–" if value is None else f"{value:,.0f}" for value in values)


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))
