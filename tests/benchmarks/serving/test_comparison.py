"""The serving benchmark: the order of systems, and that a failure of one does not affect others."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import cli
from benchmarks.__main__ import app
from benchmarks.load.workloads import Workload, make_workloads
from benchmarks.serving.comparison import measure_all
from benchmarks.serving.report import ServingReport
from tests.benchmarks.fakes import FakeSystem, alive, gone, quiet
from tests.conftest import CHECKOUT
from tests.e2e.server_process import eventually


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_percent", lambda interval: 0.0)


@pytest.fixture
def token() -> str:
    return uuid.uuid4().hex


def measure(systems: Sequence[FakeSystem], keys: Sequence[str], max_tokens: int = 3) -> tuple[ServingReport, list[int]]:
    """The report, and how many outcomes there were each time that it was kept."""
    jobs = make_workloads(keys, requests=4, max_tokens=max_tokens)
    report = ServingReport(jobs=jobs, titles={system.key: system.title for system in systems}, about={})
    kept: list[int] = []
    measure_all(systems, report, quiet(), lambda report: kept.append(len(report.outcomes)))
    return report, kept


def test_systems_run_one_after_another_each_started_once_an_arrangement(tmp_path: Path, token: str) -> None:
    events: list[str] = []
    systems = [FakeSystem(key, tmp_path, token, events=events) for key in ("graftwork", "peer")]
    report, kept = measure(systems, ["2x0", "2x2", "4x0"])
    assert events == [
        f"{key} {event}"
        for key in ("graftwork", "peer")
        for event in ("prepare 2x0 2x2 4x0", "start 2x0 4x0", "stop", "start 2x2", "stop")
    ]
    assert kept == [1, 2, 3, 4, 5, 6, 6], "whoever stops it loses at most what is under way"
    assert not report.failures
    assert all(o.figures and o.figures["out_tok_s"] > 0 and o.figures["peak_rss_mb"] > 5 for o in report.outcomes)
    assert set(report.ratios()) == {"2x0", "2x2", "4x0"}
    assert alive(token) == []


def test_a_paced_load_arrives_at_its_share_of_the_systems_own_speed(tmp_path: Path, token: str) -> None:
    paces: list[float] = []

    jobs = make_workloads(["poisson"], requests=12, max_tokens=3)
    paced = Workload.with_rate_of

    def note(job: Workload, figures: dict[str, float]) -> Workload:
        paces.append(figures["req_s"])
        return paced(job, figures)

    report = ServingReport(jobs=jobs, titles={"peer": "Peer"}, about={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workload, "with_rate_of", note)
        measure_all([FakeSystem("peer", tmp_path, token)], report, quiet(), lambda report: None)
    closed, staggered = (report.outcome("peer", key) for key in ("16x8", "poisson"))
    assert closed
    assert staggered
    assert closed.figures
    assert staggered.figures
    assert paces == [closed.figures["req_s"]]
    assert staggered.figures["errors"] == 0
    assert staggered.figures["req_s"] < closed.figures["req_s"]


def test_what_a_system_refuses_is_not_asked_of_it(tmp_path: Path, token: str) -> None:
    peer = FakeSystem("peer", tmp_path, token, refused={"2x2": "it has no adapters"})
    report, _ = measure([peer], ["2x0", "2x2"])
    assert peer.events == ["peer prepare 2x0", "peer start 2x0", "peer stop"]
    refused = report.outcome("peer", "2x2")
    assert refused
    assert (refused.refused, refused.figures) == ("it has no adapters", None)
    assert not report.failures


def test_a_system_that_cannot_be_had_does_not_stop_the_others(tmp_path: Path, token: str) -> None:
    gone_wrong = FakeSystem("gone", tmp_path, token, unprepared="no network")
    crashing = FakeSystem("crashing", tmp_path, token, command=[sys.executable, "-c", "raise SystemExit('no memory')"])
    fine = FakeSystem("fine", tmp_path, token)
    report, _ = measure([gone_wrong, crashing, fine], ["2x0", "2x2"])
    assert [(o.system, o.job, o.failed is None) for o in report.outcomes] == [
        (key, job, key == "fine") for key in ("gone", "crashing", "fine") for job in ("2x0", "2x2")
    ]
    assert report.outcomes[0].failed == "no network"
    assert "ended with 1 before it served" in (report.outcomes[2].failed or "")
    assert (report.outcomes[2].failed or "").endswith("no memory")


def test_a_system_that_dies_under_load_has_no_figures(tmp_path: Path, token: str) -> None:
    report, _ = measure([FakeSystem("peer", tmp_path, token)], ["2x0", "4x0"], max_tokens=666)
    assert [(o.job, o.figures) for o in report.outcomes] == [("2x0", None), ("4x0", None)]
    assert all("ended with 3 under load" in (outcome.failed or "") for outcome in report.outcomes)
    assert gone(token)


# --- the command ------------------------------------------------------------------------------------------------------


def options(*words: str) -> dict[str, object]:
    bench = typer.main.get_command(app)
    return dict(bench.make_context("benchmarks", list(words)).params)


def test_options() -> None:
    usual = options()
    assert (usual["full"], usual["loads"], usual["cache"], usual["device"]) == (False, None, None, "auto")
    assert usual["only"] == "graftwork,vllm,vllm-no-lora,llama.cpp,peft"
    given = options("--full", "--only", "graftwork,llama.cpp", "--json", "a.json", "--markdown", "a.md")
    assert (given["full"], given["only"]) == (True, "graftwork,llama.cpp")
    assert (given["json_file"], given["markdown_file"]) == (Path("a.json"), Path("a.md"))
    assert options("--serve-flag=--dtype", "--serve-flag=float32")["serve_flag"] == ["--dtype", "float32"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--only", "graftwork,sglang"], 2, "sglang is none of graftwork, vllm"),
        (["--loads", "16x8,fast"], 1, "There is no load 'fast'"),
        (["--requests", "0"], 2, "greater than or equal to 1"),
        (["--slow"], 2, "No such option"),
    ],
)
def test_wrong_usage_is_told_before_anything_starts(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, ["--cache", str(tmp_path / "cache"), *words])
    assert (done.exit_code, said in done.output) == (code, True), done.output
    assert not (tmp_path / "cache").exists()


def fake_systems(monkeypatch: pytest.MonkeyPatch, *systems: FakeSystem) -> None:
    class Site:
        class base:
            id = "fake"

        device = "cpu"
        display = quiet()

    monkeypatch.setattr(cli, "_site", lambda *given: Site)
    monkeypatch.setattr(cli, "_systems", lambda *given: systems)


def test_the_command_writes_both_tables(tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, peer = (FakeSystem(key, tmp_path, token) for key in ("graftwork", "vllm"))
    fake_systems(monkeypatch, ours, peer, FakeSystem("peft", tmp_path, token))
    words = ["--cache", str(tmp_path), "--loads", "2x0", "--requests", "4", "--max-tokens", "3"]
    words += ["--only", "graftwork,vllm", "--json", str(tmp_path / "t.json"), "--markdown", str(tmp_path / "t.md")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "t.json").read_text())
    assert [(result["system"], result["load"], result["errors"]) for result in said["results"]] == [
        ("graftwork", "2x0", 0),
        ("vllm", "2x0", 0),
    ]
    assert said["base"] == "fake"
    assert "cores of" in said["cpu"]
    assert said["ratios"]["2x0"]["best_peer"] == "vllm"
    assert (tmp_path / "t.md").read_text() in done.stdout
    assert "÷ best peer" in done.stdout


def test_setting_up_alone_starts_nothing(tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = FakeSystem("vllm", tmp_path, token, refused={"2x2": "no"})
    fake_systems(monkeypatch, peer)
    words = ["--cache", str(tmp_path), "--loads", "2x0,2x2", "--only", "vllm", "--setup-only"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert peer.events == ["vllm prepare 2x0"]


def test_a_benchmark_that_fails_says_so(tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_systems(monkeypatch, FakeSystem("vllm", tmp_path, token, unprepared="no network"))
    done = CliRunner().invoke(app, ["--cache", str(tmp_path), "--loads", "2x0", "--only", "vllm"])
    assert done.exit_code == 1
    assert "failed. no network" in done.output


RUN_WITH_FAKES = """
import os, sys
from pathlib import Path
import pytest
from benchmarks.__main__ import main
from tests.benchmarks.fakes import FakeSystem
from tests.benchmarks.serving.test_comparison import fake_systems
folder, *words = sys.argv[1:]
token = os.environ["TOKEN"]  # not an argument: this process is none of those that it stands for
with pytest.MonkeyPatch.context() as patch:
    quick = FakeSystem("graftwork", Path(folder), token, refused={"1x1": "it takes long"})
    fake_systems(patch, quick, FakeSystem("vllm", Path(folder), token))
    patch.setattr("psutil.cpu_percent", lambda interval: 0.0)
    sys.argv = ["benchmarks", *words]
    main()
"""


def test_control_c(tmp_path: Path, token: str) -> None:
    """Under load, in the second system: all is gone, and what was measured is kept."""
    table = tmp_path / "t.json"
    words = ["--cache", str(tmp_path), "--loads", "8x0,1x1", "--only", "graftwork,vllm", "--json", str(table)]
    command = [sys.executable, "-c", RUN_WITH_FAKES, str(tmp_path), *words]
    command += ["--requests", "80", "--max-tokens", "20"]
    environment = os.environ | {"TOKEN": token, "NO_COLOR": "1"}
    process = subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: table.exists() and '"system": "vllm"' in table.read_text(), 60, "it has measured one load")
        eventually(lambda: len(alive(token)) == 3, 10, "the next one's server is up")
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
    except AssertionError:
        process.kill()
        raise
    finally:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said.decode()
    assert b"Stopped, and everything that was started with it." in said
    assert alive(token) == []
    results = json.loads(table.read_text())["results"]
    assert [(result["system"], result["load"]) for result in results] == [
        ("graftwork", "1x1"),
        ("graftwork", "8x0"),
        ("vllm", "8x0"),
    ]
