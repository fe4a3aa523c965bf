"""The names of workloads."""

from __future__ import annotations

import pytest

from benchmarks.harness.errors import BenchmarkError
from benchmarks.load.generator import Load
from benchmarks.load.request_pairs import RequestPairs
from benchmarks.load.workloads import FULL, QUICK, SPECIAL, make_workloads


def test_the_quick_selection_is_the_usual_table() -> None:
    jobs = make_workloads(QUICK)
    assert [(job.key, job.title, job.baseline) for job in jobs] == [
        ("1x0", "1 client, no adapter", None),
        ("16x0", "16 clients, no adapter", None),
        ("16x1", "16 clients, 1 adapter", "16x0"),
        ("16x8", "16 clients, 8 adapters", "16x0"),
        ("16x8-t1", "16 clients, 8 adapters, temperature 1", "16x8"),
        ("16x8-top-p", "16 clients, 8 adapters, temperature 0.7, top_p 0.9", "16x8"),
        ("16x8-schema", "16 clients, 8 adapters, half under a schema", "16x8"),
        ("16x32", "16 clients, 32 adapters", "16x0"),
    ]
    loads = [job.load for job in jobs]
    assert all(isinstance(load, Load) and (load.prompt_words, load.max_tokens) == (60, 64) for load in loads)
    assert all(isinstance(load, Load) and load.warm_up and load.warm_adapters for load in loads)
    assert [load.requests for load in loads if isinstance(load, Load)] == [16, *[64] * 7]
    assert [(load.temperature, load.top_p, load.held) for load in loads if isinstance(load, Load)] == [
        *[(0.0, 1.0, False)] * 4,
        (1.0, 1.0, False),
        (0.7, 0.9, False),
        (0.0, 1.0, True),
        (0.0, 1.0, False),
    ]
    assert [len(job.adapters) for job in jobs] == [0, 0, 1, 8, 8, 8, 8, 32]
    assert {job.context for job in jobs} == {256}, "slots of llama.cpp are no larger than the load needs"


def test_the_full_selection_has_every_pairing_and_the_special_ones() -> None:
    jobs = {job.key: job for job in make_workloads(FULL)}
    assert len(jobs) == 16 + 3 + len(SPECIAL) == len(FULL)
    assert {f"{clients}x{adapters}" for clients in (1, 4, 16, 64) for adapters in (0, 1, 8, 32)} < set(jobs)
    assert jobs["zipf"].many
    assert len(jobs["zipf"].adapters) == 2000
    assert jobs["cold"].cold
    assert jobs["cold"].adapters[:2] == ("a0", "c0")
    assert not set(jobs["cold"].load.adapters) & {
        name for job in jobs.values() if not job.cold for name in job.adapters
    }
    assert jobs["prefix"].load.system_words == 1000
    assert jobs["prefix"].context > 1300
    assert jobs["long"].load.prompt_words > 5 * jobs["16x8"].load.prompt_words > 5 * jobs["short"].load.prompt_words


def test_no_two_jobs_share_a_prompt() -> None:
    """What one leaves in a prefix cache must be of no use to the next."""
    taken: set[int] = set()
    for job in make_workloads(FULL):
        what = job.load
        count = 2 * what.count if isinstance(what, RequestPairs) else what.requests
        numbers = set(range(what.first_number, what.first_number + count))
        assert not numbers & taken
        taken |= numbers


def test_a_job_comes_after_the_one_that_paces_it() -> None:
    assert [job.key for job in make_workloads(["poisson", "16x8", "16x8"])] == ["16x8", "poisson"]
    paced = make_workloads(["poisson"])[1].with_rate_of({"req_s": 10.0})
    assert isinstance(paced.load, Load)
    assert paced.load.rate == pytest.approx(7.0)


def test_sizes_can_be_replaced() -> None:
    load, prefix, zipf = make_workloads(["2x3", "prefix", "zipf"], requests=6, max_tokens=4, registered=5)
    assert isinstance(load.load, Load)
    assert isinstance(prefix.load, RequestPairs)
    assert (load.load.requests, load.load.max_tokens, load.load.clients) == (6, 4, 2)
    assert prefix.load.count == 3
    assert zipf.adapters == ("z0", "z1", "z2", "z3", "z4")
    assert "5 small adapters" in zipf.title


@pytest.mark.parametrize("key", ["", "16", "0x1", "x8", "16x", "16x8x2", "slow", "-1x2"])
def test_an_unknown_name_is_told_what_there_is(key: str) -> None:
    with pytest.raises(BenchmarkError, match=r"Take short, long, .*, or CLIENTSxADAPTERS"):
        make_workloads([key])
