"""The simulated fleet, small: what it measures is plausible, the same every time, and what routing promises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.fleet.__main__ import main, one_adapter, simulate
from benchmarks.fleet.replica import Replica, SimulatedRequest
from benchmarks.fleet.simulation import PartReport
from benchmarks.fleet.workload import FleetSizes, StepTimes

SMALL = FleetSizes(
    replicas=16, adapters=800, slots=100, requests=10_000, disturbed=2_000, failing=30, restart_seconds=2.0
)
TIMES = StepTimes()


def test_a_replica_takes_the_time_of_its_steps() -> None:
    times = StepTimes(step=10, row=1, adapter=2, prompt_token=1, fetch=100, copy=5)
    replica = Replica(replace(SMALL, prompt_tokens=10), times)
    one = SimulatedRequest("a", 0, new_tokens=10, asked_at=0.0)
    (fetch,) = replica.submit(one, 0.0).fetches
    assert fetch == (0.1, "a")
    assert replica.next_end() is None
    assert replica.fetched("a", 0.1).loaded == ["a"]
    assert (one.is_hit, one.first_token_at) == (False, pytest.approx(0.1 + 0.005 + 0.010 + 0.013))
    assert replica.next_end() == pytest.approx(0.115 + 10 * 0.013)
    other = SimulatedRequest("a", 0, new_tokens=5, asked_at=0.18)
    replica.submit(other, 0.18)  # after five steps; its prompt makes the first one wait, and steps have two rows
    assert other.is_hit
    assert replica.next_end() == pytest.approx(0.19 + 5 * 0.014)
    assert {id(request) for request in replica.end(0.26).ended} == {id(one), id(other)}


@pytest.fixture(scope="module")
def results() -> dict[str, list[PartReport]]:
    return {name: simulate(name, SMALL, TIMES) for name in ("rendezvous 1.5", "random", "least loaded", "Ray Serve")}


def test_routing_by_adapter_finds_adapters_and_keeps_the_load_even(results: dict[str, list[PartReport]]) -> None:
    steady = {name: parts[0] for name, parts in results.items()}
    ours = steady["rendezvous 1.5"]
    assert ours.hits > steady["least loaded"].hits + 0.1
    assert ours.hits > steady["random"].hits + 0.1
    assert ours.peak <= 2
    assert ours.peak < steady["random"].peak
    assert ours.peak < steady["Ray Serve"].peak
    assert ours.tokens_per_second > 0.85 * one_adapter(SMALL, TIMES)
    assert ours.first_token_p99_ms < steady["Ray Serve"].first_token_p99_ms


def test_what_goes_wrong_is_survived(results: dict[str, list[PartReport]]) -> None:
    _, failures, rolling, scaling = results["rendezvous 1.5"]
    assert [part.requests >= SMALL.disturbed for part in (failures, rolling, scaling)] == [True] * 3
    assert failures.lost > 0
    assert (rolling.lost, scaling.lost) == (0, 0)
    assert rolling.replicas < SMALL.replicas


def test_the_same_every_time(results: dict[str, list[PartReport]]) -> None:
    assert simulate("rendezvous 1.5", SMALL, TIMES) == results["rendezvous 1.5"]


def test_the_command_writes_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--replicas", "4", "--adapters", "50", "--requests", "300", "--disturbed", "100", "--slots", "20"]
    files = ["--json", str(tmp_path / "fleet.json"), "--markdown", str(tmp_path / "fleet.md")]
    main([*sizes, *files, "--policies", "random", "--step-ms", "5"])
    assert (tmp_path / "fleet.md").read_text() == capsys.readouterr().out
    report = json.loads((tmp_path / "fleet.json").read_text())
    assert report["times"]["step"] == 5.0
    assert [part["part"] for part in report["policies"]["random"]][:2] == ["steady", "failures"]
