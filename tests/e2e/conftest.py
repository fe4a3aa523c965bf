"""Adapters on the server that most tests share (see ``tests/conftest.py``), and separate servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.base import BaseInfo
from tests.e2e.peft_folders import NAMES, make_full
from tests.e2e.server_process import Server

MakeServer = Callable[..., Server]


@pytest.fixture(scope="session")
def folders(embedded_base: BaseInfo, adapter_store: Path) -> dict[str, Path]:
    """PEFT folders by ``name@number``: eight names, two versions each, of rank 16 on all linear modules."""
    return make_full(embedded_base, adapter_store, dict.fromkeys(NAMES, 2))


@pytest.fixture(scope="session")
def adapters(server: Server, folders: dict[str, Path]) -> tuple[str, ...]:
    """The eight adapters, each with its first version pushed to the shared server."""
    with server.client() as client:
        for name in NAMES:
            client.adapters.push(name, folders[f"{name}@1"])
    return NAMES


@pytest.fixture(scope="session")
def exact_server(make_server: MakeServer, folders: dict[str, Path]) -> Iterator[Server]:
    """The eight adapters in float32, where answers must agree to the letter. Tests may kill its worker."""
    server = make_server("--dtype", "float32", "--quantize", "none").start_and_wait()
    try:
        with server.client() as client:
            for name in NAMES:
                client.adapters.push(name, folders[f"{name}@1"])
        yield server
        assert server.stop() == 0
    finally:
        server.put_down()


@pytest.fixture(scope="session")
def make_server(embedded_base: BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> MakeServer:
    """Makes servers on homes of their own, not yet started, which the caller puts down."""
    info = Path(embedded_base.path).parent / "info"  # what is known of bases: not every server reads all of it again

    def make(*flags: str, base: str = embedded_base.path, environment: dict[str, str] | None = None) -> Server:
        home = tmp_path_factory.mktemp("own") / "home"
        (home / "base").mkdir(parents=True)
        (home / "base" / "info").symlink_to(info)
        return Server(home, "--base", base, *flags, environment=environment)

    return make


@pytest.fixture(scope="module")
def new_server(make_server: MakeServer) -> Iterator[MakeServer]:
    """Like ``make_server``; whatever becomes of the servers, they are gone when the module's tests have run."""
    made: list[Server] = []

    def make(*flags: str, **options: Any) -> Server:
        made.append(make_server(*flags, **options))
        return made[-1]

    yield make
    for server in made:
        server.put_down()
