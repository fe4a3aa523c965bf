"""The benchmark of working sets with a fake server: adapters, distinct prompts, columns."""

from __future__ import annotations

import itertools
import json
import uuid
from pathlib import Path

import httpx
import pytest

from benchmarks.serving import working_sets
from tests.benchmarks.fakes import fake_server


def test_one_row_for_each_working_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pushed: list[str] = []
    evictions = itertools.count(0, 7)
    monkeypatch.setattr(working_sets, "push_missing", lambda endpoint, wanted, folders: pushed.extend(wanted))
    monkeypatch.setattr(
        working_sets,
        "counters",
        lambda endpoint: {"graftwork_adapter_evictions_total": next(evictions), "graftwork_adapter_loads_total": 3.0},
    )
    with fake_server(tmp_path, uuid.uuid4().hex).running() as running:
        url = running.endpoint.url  # type: ignore[attr-defined]
        asked_for = ["--slots", "4", "--clients", "2", "--requests", "6", "--max-tokens", "2", "--prompt-words", "3"]
        working_sets.main([url, *asked_for, "--json"])
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        asked = httpx.get(f"{url}/asked", trust_env=False).json()
        working_sets.main([url, *asked_for, "--times", "0.25"])
        table = capsys.readouterr().out.splitlines()
    assert pushed[:16] == [f"a{number}" for number in range(16)]
    assert [(line["times"], line["adapters"], line["requests"]) for line in lines] == [
        (0.5, 2, 6), (1.0, 4, 6), (2.0, 8, 6), (4.0, 16, 6)
    ]  # fmt: skip
    assert [line["errors"] for line in lines] == [0] * 4
    assert [line["moves"] for line in lines] == [round(7 / (6 + count), 2) for count in (2, 4, 8, 16)]
    assert {line["loads"] for line in lines} == {0.0}
    prompts = [body["messages"][0]["content"] for body in asked if body["max_tokens"] == 2]
    assert len(prompts) == len(set(prompts)) == 24
    assert [body["model"] for body in asked[:2]] == ["a0", "a1"]
    assert len(table) == 3
    assert [cell.strip() for cell in table[2].split("|")[1:3]] == ["0.25", "1"]


def test_what_the_server_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json={"object": "list", "data": []}))
    endpoint = working_sets.Endpoint(url="http://nowhere", fields=lambda model: {"model": model})
    real = working_sets.Client
    monkeypatch.setattr(working_sets, "Client", lambda url, key: real(url, key, transport=transport))
    with pytest.raises(SystemExit, match="no adapter a0: give --base"):
        working_sets.push_missing(endpoint, ["a0"], None)
