"""One real server on the embedded base for most tests, adapters on it, and homes for servers of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.base import BaseInfo
from tests.conftest import TEST_HOME
from tests.e2e.peft_folders import NAMES, SmallAdapters, make_full
from tests.e2e.server_process import Server

MakeServer = Callable[..., Server]


@pytest.fixture(scope="session")
def adapter_store() -> Path:
    """Where adapters are kept between runs."""
    return TEST_HOME / "adapters"


@pytest.fixture(scope="session")
def folders(embedded_base: BaseInfo, adapter_store: Path) -> dict[str, Path]:
    """PEFT folders by ``name@number``: eight names, two versions each, of rank 16 on all linear modules."""
    return make_full(embedded_base, adapter_store, dict.fromkeys(NAMES, 2))


@pytest.fixture(scope="session")
def small(embedded_base: BaseInfo, adapter_store: Path) -> SmallAdapters:
    return SmallAdapters(embedded_base, adapter_store)


@pytest.fixture(scope="session")
def home(embedded_base: BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that has the embedded base already: what ``graftwork serve`` makes on its first start."""
    home = tmp_path_factory.mktemp("server") / "home"
    (home / "base").mkdir(parents=True)
    (home / "base" / Path(embedded_base.path).name).symlink_to(embedded_base.path)
    return home


@pytest.fixture(scope="session")
def pushable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which the server may read adapters by path."""
    return tmp_path_factory.mktemp("pushable")


@pytest.fixture(scope="session")
def server(home: Path, pushable: Path) -> Iterator[Server]:
    """The server that most tests share. When all are done it stops as asked, and nothing broke meanwhile."""
    server = Server(home, "--allowed-root", str(pushable)).start_and_wait()
    try:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log
    finally:
        server.put_down()


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
