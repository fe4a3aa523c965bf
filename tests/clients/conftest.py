"""Fixtures for tests of the clients."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.clients.both_clients import MAKERS
from tests.clients.fake_server import FakeServer, running


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with running() as state:
        yield state


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GRAFTWORK_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the clients wanted to wait before they tried again; they do not wait."""
    wanted: list[float] = []

    async def doze(seconds: float) -> None:
        wanted.append(seconds)

    monkeypatch.setattr("graftwork.clients.client.time", SimpleNamespace(sleep=wanted.append))
    monkeypatch.setattr("graftwork.clients.async_client.asyncio", SimpleNamespace(sleep=doze))
    return wanted


@pytest.fixture
def peft_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16}))
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (folder / "README.md").write_text("# A card\n")
    return folder


@pytest.fixture(params=list(MAKERS))
def make_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients of either kind, called the same way, and closes them."""
    made: list[Any] = []

    def make(*args: Any, **kwargs: Any) -> Any:
        made.append(MAKERS[request.param](*args, **kwargs))
        return made[-1]

    yield make
    for client in made:
        client.__exit__(None, None, None)
