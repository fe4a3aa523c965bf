"""All clients, as ``python -m tests.conformance`` runs them; and how the page's tables are written and read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import table
from tests.conformance.__main__ import run_all
from tests.conformance.clients import CLIENTS, FEATURES
from tests.conformance.run import Result, script_of

RESULTS = [
    Result(client="openai, Python", feature="chat", ok=True, detail=""),
    Result(client="openai, Python", feature="batches", ok=False, detail="NotFoundError:\n there is no `route`"),
    Result(client="litellm", feature="error 400", ok=True, detail="BadRequestError"),
]


@pytest.mark.slow
def test_nothing_became_worse() -> None:
    assert table.worse(table.read(), table.cells_of(run_all())) == []


def test_tables_are_read_as_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n\n{table.BEGIN}\n{table.END}\n\nAfter.\n")
    monkeypatch.setattr(table, "PAGE", page)
    table.write(RESULTS)
    written = page.read_text()
    assert written.startswith(f"Before.\n\n{table.BEGIN}\n")
    assert written.endswith(f"{table.END}\n\nAfter.\n")
    table.write(RESULTS)
    assert page.read_text() == written
    assert "- openai, Python (batches): `NotFoundError: there is no 'route'`" in written
    assert table.read() == {
        ("openai, Python", "chat"): "yes",
        ("openai, Python", "batches"): "no",
        ("litellm", "error 400"): "`BadRequestError`",
    }


def test_only_what_became_worse_is_told() -> None:
    cells = table.cells_of(RESULTS)
    assert table.worse(cells, cells) == []
    assert table.worse(cells, {**cells, ("openai, Python", "batches"): "yes"}) == []
    gone = {cell: value for cell, value in cells.items() if cell != ("openai, Python", "chat")}
    assert table.worse(cells, gone) == ["openai, Python, chat: was yes, is –"]
    other = {**cells, ("litellm", "error 400"): "`APIError`"}
    assert table.worse(cells, other) == ["litellm, error 400: was `BadRequestError`, is `APIError`"]


def test_every_client_is_pinned_and_has_a_script() -> None:
    for client in CLIENTS:
        assert client.version
        assert script_of(client).is_file()


def test_the_page_has_every_client_and_feature() -> None:
    cells = table.read()
    assert {client for client, _ in cells} == {client.title for client in CLIENTS}
    assert {feature for _, feature in cells} == {feature for features in FEATURES.values() for feature in features}
