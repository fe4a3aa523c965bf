"""The load generator: the same prompts for every system, and correct statistics."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.load import generator as loads
from benchmarks.load.generator import (
    Endpoint,
    Load,
    LoadStatistics,
    arrivals,
    messages,
    milliseconds,
    model_of,
    percentile,
    run,
)
from benchmarks.load.request_pairs import RequestPairs, run_pairs, summary
from tests.benchmarks import fake_peer
from tests.benchmarks.fakes import fake_server


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    with fake_server(tmp_path, uuid.uuid4().hex).running() as running:
        yield running.endpoint  # type: ignore[attr-defined]


def asked(endpoint: Endpoint) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = httpx.get(f"{endpoint.url}/asked", trust_env=False).json()
    return said


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_are_those_of_all_earlier_measurements() -> None:
    """Written down from the generator that the published figures of peers were measured with."""
    texts = [messages(Load(), number)[0]["content"] for number in (0, 1, 63, 10**6)]
    assert texts[0].startswith("[0] will may out is were into make ")
    assert texts[0].endswith(" Write a long story about it.")
    digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert digest == "112b35f73d93d7145637c700eb457f9fcd9c6af77610b353ef26e1a16de0cec4"
    assert list(itertools.islice(arrivals(Load(rate=2.0)), 3)) == pytest.approx([0.930304, 1.639618, 1.912475])


def test_a_shared_system_prompt_is_the_same_in_all_requests() -> None:
    load = Load(system_words=300)
    first, second = messages(load, 0), messages(load, 1)
    assert [message["role"] for message in first] == ["system", "user"]
    assert first[0] == second[0]
    assert len(first[0]["content"].split()) == 300
    assert first[1] == messages(Load(), 0)[0] != second[1]


def test_adapters_take_turns() -> None:
    load = Load(adapters=("a0", "a1", "a2"))
    assert [model_of(load, number) for number in range(4)] == ["a0", "a1", "a2", "a0"]
    assert model_of(Load(), 3) is None


def test_a_zipf_mix_asks_for_the_first_most() -> None:
    load = Load(adapters=tuple(f"z{number}" for number in range(2000)), requests=4000, zipf=True)
    drawn = Counter(model_of(load, number) for number in load.numbers)
    # 1 + 1/2 + … + 1/2000 is 8.18: every eighth request is for the first.
    assert 400 < drawn["z0"] < 580
    assert drawn["z0"] > 1.5 * drawn["z1"] > 1.5 * drawn["z3"]
    assert 500 < len(drawn) < 1500
    assert drawn == Counter(model_of(load, number) for number in load.numbers)


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, (1, 1, 1)), (2, (2, 2, 2)), (16, (9, 16, 16)), (64, (33, 61, 64)), (200, (101, 191, 199))],
)
def test_percentiles(count: int, expected: tuple[int, ...]) -> None:
    values = list(range(count, 0, -1))
    assert tuple(percentile(values, share) for share in (0.5, 0.95, 0.99)) == expected
    assert milliseconds("ttft", [0.0123456])["ttft_ms_p99"] == 12.3
    assert milliseconds("ttft", []) == {"ttft_ms_p50": None, "ttft_ms_p95": None, "ttft_ms_p99": None}


def test_a_summary_has_the_fields_that_scripts_read() -> None:
    tally = LoadStatistics(
        tokens=128, first_seconds=[0.1, 0.3], total_seconds=[1.0, 1.5], gap_seconds=[0.01, 0.02, 0.03]
    )
    tally.errors = [(429, "full"), ("ReadError", ""), (500, "x")]
    assert tally.summary(Load(clients=2, adapters=("a0",), requests=5, label="x"), 2.0) == {
        "label": "x",
        "clients": 2,
        "adapters": 1,
        "requests": 5,
        "out_tok_s": 64.0,
        "req_s": 1.0,
        **{"ttft_ms_p50": 300.0, "ttft_ms_p95": 300.0, "ttft_ms_p99": 300.0},
        **{"itl_ms_p50": 20.0, "itl_ms_p95": 30.0, "itl_ms_p99": 30.0},
        "wall_s": 2.0,
        "errors": 3,
        "error_sample": [(429, "full"), ("ReadError", "")],
    }


def tokens(figures: dict[str, Any]) -> float:
    produced: float = figures["out_tok_s"] * figures["wall_s"]
    return produced


def approximately(count: int, figures: dict[str, Any]) -> Any:
    """Seconds are told to a hundredth, which in a load that takes a few of them is much."""
    return pytest.approx(count, rel=0.01, abs=0.006 * figures["out_tok_s"])


# --- over HTTP --------------------------------------------------------------------------------------------------------


def test_a_closed_loop(endpoint: Endpoint) -> None:
    load = Load(clients=3, adapters=("a0", "a1"), requests=7, prompt_words=5, max_tokens=6, first_number=1000)
    figures = asyncio.run(run(endpoint, load))
    assert (figures["requests"], figures["errors"]) == (7, 0)
    assert tokens(figures) == approximately(7 * 6, figures)
    assert figures["ttft_ms_p50"] >= 1e3 * fake_peer.USUAL
    assert figures["itl_ms_p99"] > 0
    warm, counted = asked(endpoint)[:2], asked(endpoint)[2:]
    assert [(body["model"], body["max_tokens"]) for body in warm] == [("a0", 4), ("a1", 4)]
    assert Counter(body["model"] for body in counted) == {"a0": 4, "a1": 3}
    assert sorted(body["messages"][0]["content"].split()[0] for body in counted) == [f"[{1000 + n}]" for n in range(7)]
    same = {"max_tokens": 6, "temperature": 0.0, "stream": True, "ignore_eos": True}
    assert all(same.items() <= body.items() for body in counted)
    assert max(body["open"] for body in counted) == 3


def test_a_rehearsal_asks_with_all_clients_and_counts_for_nothing(endpoint: Endpoint) -> None:
    load = Load(clients=3, adapters=("a0", "a1"), requests=2, prompt_words=5, max_tokens=6, warm_up=True)
    figures = asyncio.run(run(endpoint, load))
    assert tokens(figures) == approximately(2 * 6, figures)
    assert [body["max_tokens"] for body in asked(endpoint)] == [4, 4, 4, 4, 4, 6, 6]
    assert len({body["messages"][0]["content"] for body in asked(endpoint)[1:]}) == 6


def test_staggered_arrivals_do_not_wait_for_one_another(endpoint: Endpoint) -> None:
    load = Load(clients=1, requests=20, prompt_words=5, max_tokens=100, rate=200.0)
    figures = asyncio.run(run(endpoint, load))
    assert figures["errors"] == 0
    assert max(body["open"] for body in asked(endpoint)) > 3
    assert figures["wall_s"] >= list(arrivals(load))[-1]


def test_errors_are_counted_and_spoil_nothing(endpoint: Endpoint) -> None:
    figures = asyncio.run(run(endpoint, Load(clients=2, adapters=("broken", "a1"), requests=4, max_tokens=3)))
    assert figures["errors"] == 2
    assert figures["error_sample"][0][0] == 404
    assert "no such model" in figures["error_sample"][0][1]
    assert round(figures["req_s"] * figures["wall_s"]) == 2
    nobody = replace(endpoint, url="http://127.0.0.1:9")
    assert asyncio.run(run(nobody, Load(clients=1, requests=2)))["error_sample"][0][0] == "ConnectError"


def test_what_a_pair_says() -> None:
    first, again = (
        LoadStatistics(first_seconds=[0.3, 0.5, 0.4]),
        LoadStatistics(first_seconds=[0.1, 0.1, 0.2], errors=[(500, "x")]),
    )
    figures = summary(RequestPairs(count=3, adapters=("c0", "c1", "c2")), first, again)
    assert (figures["first_ttft_ms_p50"], figures["again_ttft_ms_p50"]) == (400.0, 100.0)
    assert (figures["first_more_ms"], figures["again_share"]) == (300.0, 0.25)
    assert (figures["requests"], figures["adapters"], figures["errors"]) == (6, 3, 1)
    assert "again_share" not in summary(RequestPairs(count=1), LoadStatistics(errors=[(500, "x")]), LoadStatistics())


def test_the_second_of_a_pair_comes_right_after_the_first(endpoint: Endpoint) -> None:
    pairs = RequestPairs(count=3, adapters=("c0", "c1", "c2"), warm_up="a0", system_words=10, max_tokens=2)
    figures = asyncio.run(run_pairs(endpoint, pairs))
    assert (figures["requests"], figures["errors"]) == (6, 0)
    assert figures["first_ttft_ms_p50"] >= 1e3 * fake_peer.FIRST
    assert figures["again_ttft_ms_p50"] >= 1e3 * fake_peer.USUAL
    bodies = asked(endpoint)
    assert [body["model"] for body in bodies] == ["a0", "c0", "c0", "c1", "c1", "c2", "c2"]
    systems = [body["messages"][0]["content"] for body in bodies[1:]]
    assert systems[::2] == systems[1::2]
    assert len(set(systems)) == 3
    assert len({body["messages"][1]["content"] for body in bodies[1:]}) == 6


def test_the_command_asks_in_both_ways(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["load", endpoint.url, "--models", "a0,a1", "--clients", "2", "--requests", "2", "--max-tokens", "3"]
    words += ["--prompt-words", "4", "--body", '{"top_k": 1}', "--label", "both"]
    for more in ([], ["--lora-ids", "--no-touch"]):
        monkeypatch.setattr("sys.argv", [*words, *more])
        loads.main()
        assert json.loads(capsys.readouterr().out)["label"] == "both"
    by_name, by_id = asked(endpoint)[:4], asked(endpoint)[4:]
    assert [body["model"] for body in by_name[:2]] == ["a0", "a1"]
    assert sorted(body["model"] for body in by_name[2:]) == ["a0", "a1"]
    assert [body["model"] for body in by_id] == ["base"] * 3
    assert sorted(body["lora"][0]["id"] for body in by_id) == [0, 0, 1]
    assert all(body["top_k"] == 1 for body in asked(endpoint))
