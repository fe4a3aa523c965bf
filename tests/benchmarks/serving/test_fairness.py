"""The benchmark of fair shares with a fake server: a row for each key, and who asked how much."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from benchmarks.serving import fairness
from tests.benchmarks.fakes import fake_server


@contextmanager
def no_keys(url: str, admin_key: str, count: int) -> Iterator[list[str]]:
    yield [f"key {number}" for number in range(count)]


def test_one_row_for_each_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fairness, "new_keys", no_keys)
    with fake_server(tmp_path, uuid.uuid4().hex).running() as running:
        url = running.endpoint.url  # type: ignore[attr-defined]
        words = [url, "--key", "x", "--model", "m", "--streams", "4", "--small-keys", "2", "--requests", "3"]
        fairness.main([*words, "--max-tokens", "2", "--settle-seconds", "0.2", "--json"])
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        asked = httpx.get(f"{url}/asked", trust_env=False).json()
    assert [row["key"] for row in rows] == ["flood", "small 1", "small 2", "all small"]
    assert [row["requests"] for row in rows] == [0, 3, 3, 6]
    assert rows[0]["out_tok_s"] > 0
    assert [row["refused"] + row["errors"] for row in rows] == [0] * 4
    assert Counter(body["max_tokens"] for body in asked) == {4000: 4, 2: 6}
    assert set(fairness.COLUMNS) <= rows[0].keys()
