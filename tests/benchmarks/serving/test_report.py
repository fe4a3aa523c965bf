"""The report of the serving benchmark: ratios, and failures that never appear as measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.output import write_text
from benchmarks.load.workloads import FULL, make_workloads
from benchmarks.serving.report import ServingReport, WorkloadResult

TITLES = {"graftwork": "Graftwork 1", "vllm": "vLLM", "peft": "PEFT"}


def figures(speed: float, errors: int = 0) -> dict[str, Any]:
    waits = {f"{name}_ms_p{share}": 1000.4 for name in ("ttft", "itl") for share in (50, 95, 99)}
    sample = [[429, "full"]][:errors]
    return {"out_tok_s": speed, "req_s": 1.0, **waits, "peak_rss_mb": 1234, "errors": errors, "error_sample": sample}


def twice() -> dict[str, Any]:
    waits = {f"{name}_ttft_ms_p{share}": 500.0 for name in ("first", "again") for share in (50, 95, 99)}
    more = {"first_more_ms": 120.4, "again_share": 0.213, "peak_rss_mb": 10, "errors": 0, "error_sample": []}
    return {**waits, **more}


@pytest.fixture
def report() -> ServingReport:
    report = ServingReport(
        jobs=make_workloads(["16x0", "16x8"]), titles=TITLES, about={"date": "2026-01-02", "cpu": "2 cores"}
    )
    for system, job, speed in (
        ("graftwork", "16x0", 400.0),
        ("graftwork", "16x8", 360.0),
        ("vllm", "16x0", 200.0),
        ("vllm", "16x8", 48.0),
    ):
        report.add(WorkloadResult(system=system, job=job, figures=figures(speed)))
    return report


def test_ratios(report: ServingReport) -> None:
    assert report.ratios() == {
        "16x0": {"best_peer": "vllm", "to_best_peer": 2.0},
        "16x8": {"best_peer": "vllm", "to_best_peer": 7.5, "yardstick": "16x0", "to_yardstick": 0.9},
    }
    report.add(WorkloadResult(system="peft", job="16x8", figures=figures(90.0)))
    assert report.ratios()["16x8"]["to_best_peer"] == 4.0
    assert report.ratios()["16x8"]["best_peer"] == "peft"


def test_a_figure_with_errors_is_nobodys_ratio(report: ServingReport) -> None:
    report.add(WorkloadResult(system="peft", job="16x8", figures=figures(1000.0, errors=3)))
    assert report.ratios()["16x8"]["best_peer"] == "vllm"
    assert "| PEFT | – | 1000 (3 errors) |" in report.to_markdown()
    assert "- PEFT, 16x8: 3 errors, first [[429, 'full']]" in report.to_markdown()
    assert [outcome.system for outcome in report.failures] == ["peft"]


def test_without_peers_or_without_us_there_are_no_ratios(report: ServingReport) -> None:
    assert ServingReport(jobs=report.jobs, titles=TITLES, about={}).ratios() == {}
    report.outcomes = [outcome for outcome in report.outcomes if outcome.system != "graftwork"]
    assert report.ratios() == {}
    assert "÷" not in report.to_markdown()


def test_markdown(report: ServingReport) -> None:
    report.add(WorkloadResult(system="peft", job="16x0", refused="it cannot"))
    report.add(WorkloadResult(system="peft", job="16x8", failed="It died:\nof this\nand that"))
    assert report.to_markdown() == (
        """2026-01-02 · 2 cores

Output tokens a second:

| system | 16 clients, no adapter | 16 clients, 8 adapters |
| --- | --- | --- |
| **Graftwork 1** | **400** | **360** |
| vLLM | 200 | 48 |
| PEFT | – | failed |
| Graftwork ÷ best peer | 2.00× | 7.50× |
| Graftwork ÷ itself | – | 90 % of 16 clients, no adapter |

Milliseconds, and megabytes at the peak:

| load | system | first token p50 / p95 / p99 | between tokens p50 / p95 / p99 | memory | errors |
| --- | --- | --- | --- | --- | --- |
| 16 clients, no adapter | Graftwork 1 | 1,000 / 1,000 / 1,000 | 1,000 / 1,000 / 1,000 | 1,234 | 0 |
| 16 clients, no adapter | vLLM | 1,000 / 1,000 / 1,000 | 1,000 / 1,000 / 1,000 | 1,234 | 0 |
| 16 clients, 8 adapters | Graftwork 1 | 1,000 / 1,000 / 1,000 | 1,000 / 1,000 / 1,000 | 1,234 | 0 |
| 16 clients, 8 adapters | vLLM | 1,000 / 1,000 / 1,000 | 1,000 / 1,000 / 1,000 | 1,234 | 0 |

- PEFT: – means it cannot.
- PEFT, 16x8: failed. It died
"""
    )


def test_pairs_have_a_table_of_their_own() -> None:
    report = ServingReport(jobs=make_workloads(["cold", "prefix"]), titles=TITLES, about={})
    report.add(WorkloadResult(system="graftwork", job="cold", figures=twice()))
    text = report.to_markdown()
    row = "| an adapter's first request | Graftwork 1 | 500 / 500 / 500 | 500 / 500 / 500 | +120 | 0.21 |"
    assert row in text
    assert "tokens a second" not in text
    assert "prefix" not in text


def test_many_loads_are_rows() -> None:
    report = ServingReport(jobs=make_workloads(FULL), titles=TITLES, about={})
    report.add(WorkloadResult(system="graftwork", job="64x32", figures=figures(7.0)))
    lines = report.to_markdown().splitlines()
    assert "| system | **Graftwork 1** | vLLM | PEFT |" in lines
    assert "| 64 clients, 32 adapters | **7** | – | – |" in lines


def test_json_says_all_of_it(report: ServingReport) -> None:
    report.add(WorkloadResult(system="peft", job="16x0", refused="it cannot"))
    said = json.loads(report.to_json())
    assert said["date"] == "2026-01-02"
    assert said["systems"] == TITLES
    assert said["loads"]["16x8"] == "16 clients, 8 adapters"
    assert said["results"][0] == {"system": "graftwork", "load": "16x0", **figures(400.0)}
    assert said["results"][-1] == {"system": "peft", "load": "16x0", "refused": "it cannot"}
    assert said["ratios"] == report.ratios()


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "table.md", "old")
    write_text(tmp_path / "table.md", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]
