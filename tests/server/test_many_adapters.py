"""With two thousand adapters, lists, look-ups and pushes are as fast as with two."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from graftwork.adapters.errors import NotFound
from tests.server.fakes import World, adapter_files, form, make_world

COUNT = 2000
NAMES = [f"a{index:04}" for index in range(COUNT)]
NOW = "2026-11-22T17:14:57.123456Z"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two versions each, the same files under every tenth name."""
    world = make_world(tmp_path_factory.mktemp("many"))
    versions = [
        (
            name,
            number,
            digest(index if index % 10 else 0, number),
            world.services.base.digest,
            0,
            4,
            1,
            1,
            "{}",
            "{}",
            NOW,
        )
        for index, name in enumerate(NAMES)
        for number in (1, 2)
    ]
    with closing(sqlite3.connect(world.home / "graftwork.db")) as connection, connection:
        connection.executemany("INSERT INTO adapters (name, created_at) VALUES (?, ?)", [(name, NOW) for name in NAMES])
        connection.executemany(
            "INSERT INTO versions (name, number, digest, base_digest, verified, rank, num_parameters, num_bytes, "
            "config, metadata, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            versions,
        )
        connection.executemany("INSERT INTO aliases (name, alias, number) VALUES (?, 'live', 2)", [(n,) for n in NAMES])
        connection.executemany(
            "INSERT INTO alias_events (at, action, name, alias, to_version, actor) "
            "VALUES (?, 'promote', ?, 'live', 2, 'x')",
            [(NOW, name) for name in NAMES],
        )
    return world


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000)) as client:
        yield client


def digest(index: int, number: int) -> str:
    return f"sha256:{index:060x}{number:04x}"


def seconds(call: Callable[[], object], times: int) -> float:
    """Of this process's time for one call, the least: neither other work on the machine nor that of threads that other
    tests left behind counts.
    """

    def once() -> float:
        began = time.process_time()
        call()
        return time.process_time() - began

    return min(once() for _ in range(max(times, 3)))


def test_pages_go_through_all_of_them(client: TestClient) -> None:
    seen: list[str] = []
    while True:
        after = {"after": seen[-1]} if seen else {}
        page = client.get("/v1/adapters", params={"limit": 100, **after}).json()
        seen += [adapter["name"] for adapter in page["data"]]
        if not page["has_more"]:
            break
    assert seen == NAMES


def test_every_model_is_listed(client: TestClient, world: World) -> None:
    models = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert models[0] == world.services.base.id
    assert len(models) == len(set(models)) == 1 + 4 * COUNT
    assert {"a1999", "a1999@live", "a1999@1", "a1999@2"} <= set(models)


def test_versions_are_found_by_digest(world: World) -> None:
    registry = world.services.registry
    assert registry.with_digest(digest(1230, 1)) == []  # it has the files that every tenth has
    assert [version.id for version in registry.with_digest(digest(1235, 2))] == ["a1235@2"]
    assert len(registry.with_digest(digest(0, 1))) == COUNT // 10
    assert registry.with_digest("sha256:no") == []


def test_a_push_beside_them(client: TestClient, world: World) -> None:
    """The same bytes under another name are not tried twice; refused ones are withdrawn unless somebody has them."""
    assert client.post("/v1/adapters/new/versions", files=form(adapter_files(1))).status_code == 201
    assert client.post("/v1/adapters/newer/versions", files=form(adapter_files(1))).status_code == 201
    assert len(world.engine.tried) == 1
    world.engine.refuse = True
    assert client.post("/v1/adapters/newest/versions", files=form(adapter_files(2))).status_code == 400
    world.engine.refuse = False
    version = world.services.registry.resolve("new")
    assert len(world.services.registry.with_digest(version.digest)) == 2
    assert world.services.store.path(version.digest).is_dir()


def test_nothing_takes_long(client: TestClient, world: World, tmp_path: Path) -> None:
    registry = world.services.registry

    def unknown() -> None:
        with pytest.raises(NotFound):
            registry.resolve("a20000")

    assert seconds(lambda: registry.resolve("a1234"), 200) < 0.002
    assert seconds(lambda: registry.with_digest(digest(7, 1)), 20) < 0.02
    assert seconds(lambda: registry.adapters(after="a1900", limit=100), 20) < 0.02
    assert seconds(unknown, 20) < 0.05
    assert seconds(lambda: client.get("/v1/models/a0999@1"), 20) < 0.05
    assert seconds(lambda: client.get("/v1/adapters", params={"after": "a1500", "limit": 100}), 5) < 0.2
    assert seconds(lambda: client.get("/v1/models"), 2) < 0.6
    assert seconds(lambda: client.get("/metrics"), 2) < 0.6
