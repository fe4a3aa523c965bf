"""Servers whose adapters are in a bucket: one fetch for all who wait, a bound, and what happens without the bucket."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from graftwork.adapters.errors import Unavailable
from graftwork.adapters.registry.artifacts import ArtifactStore
from graftwork.adapters.storage.objects import STORE_AWAY
from tests.server.fakes import Placement, adapter_files, form, make_world
from tests.server.http_errors import error
from tests.server.scripted_engine import GatewayHarness

NAMES = ("one", "two", "three")


def open_home(
    folder: Path, artifacts: str, *, database: Path | None = None, cache_bytes: int = 1 << 30
) -> GatewayHarness:
    folder.mkdir()
    if database is not None:
        with closing(sqlite3.connect(database)) as old, closing(sqlite3.connect(folder / "graftwork.db")) as new:
            old.backup(new)
    world = make_world(folder, migrated=database is None, artifacts=artifacts, cache_bytes=cache_bytes)
    harness = GatewayHarness(world)
    harness.engine.connect()
    return harness


async def push(harness: GatewayHarness, name: str, seed: int = 0) -> int:
    answer = await harness.http.post(f"/v1/adapters/{name}/versions", files=form(adapter_files(seed)))
    return answer.status_code


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
async def first(tmp_path: Path, bucket: Path) -> AsyncIterator[GatewayHarness]:
    """A server that has pushed three adapters."""
    harness = open_home(tmp_path / "first", f"file://{bucket}")
    for seed, name in enumerate(NAMES):
        assert await push(harness, name, seed) == 201
    yield harness
    await harness.http.aclose()


@pytest.fixture
async def fresh(tmp_path: Path, bucket: Path, first: GatewayHarness) -> AsyncIterator[GatewayHarness]:
    """Another server on a copy of its database, with an empty home."""
    harness = open_home(tmp_path / "fresh", f"file://{bucket}", database=first.world.home / "graftwork.db")
    yield harness
    await harness.http.aclose()


def local(harness: GatewayHarness) -> set[str]:
    """The names of the adapters in its home."""
    services = harness.world.services
    by_digest = {services.registry.resolve(name).digest: name for name in NAMES}
    return {by_digest[digest] for digest in services.store.sizes()}


async def test_an_empty_home_serves_every_adapter(fresh: GatewayHarness, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for name in NAMES:
            assert (await fresh.ask(model=name)).status_code == 200
    assert local(fresh) == set(NAMES)
    assert caplog.text.count("fetched sha256:") == 3
    embedded = await fresh.http.post("/v1/embeddings", json={"model": "one", "input": "hi"})
    assert embedded.status_code == 200


async def test_embeddings_fetch_too(fresh: GatewayHarness) -> None:
    embedded = await fresh.http.post("/v1/embeddings", json={"model": "two", "input": "hi"})
    assert embedded.status_code == 200
    assert local(fresh) == {"two"}


async def test_many_wait_for_one_fetch(fresh: GatewayHarness, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        leaving = asyncio.create_task(fresh.ask(model="one"))
        await asyncio.sleep(0)
        asks = [asyncio.create_task(fresh.ask(model="one")) for _ in range(6)]
        await asyncio.sleep(0.01)
        leaving.cancel()
        answers = await asyncio.gather(*asks)
    assert {answer.status_code for answer in answers} == {200}
    assert caplog.text.count("fetching sha256:") == 1


async def test_changed_bytes_are_refused_and_kept_away(
    fresh: GatewayHarness, first: GatewayHarness, bucket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = first.world.services.registry.resolve("one").digest.removeprefix("sha256:")
    weights = bucket / "artifacts" / digest / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            answer = await fresh.ask(model="one")
            assert "changed in the bucket. Push the same adapter again" in error(answer, 500)["message"]
    assert caplog.text.count("fetching sha256:") == 1
    assert not local(fresh)
    assert (await first.ask(model="one")).status_code == 200
    assert await push(fresh, "one", 0) == 200
    assert (await fresh.ask(model="one")).status_code == 200
    third = open_home(
        fresh.world.home.with_name("third"), f"file://{bucket}", database=first.world.home / "graftwork.db"
    )
    assert (await third.ask(model="one")).status_code == 200


async def test_a_push_without_the_bucket_changes_nothing(tmp_path: Path, dead_bucket: str) -> None:
    harness = open_home(tmp_path / "home", dead_bucket)
    before = harness.world.state()
    answer = await harness.http.post("/v1/adapters/one/versions", files=form(adapter_files()))
    assert error(answer, 503)["code"] == STORE_AWAY
    assert harness.world.state() == before


async def test_without_the_bucket_what_is_in_the_home_is_served(
    tmp_path: Path, first: GatewayHarness, dead_bucket: str
) -> None:
    home = first.world.home
    harness = open_home(tmp_path / "cut off", dead_bucket, database=home / "graftwork.db")
    gone = harness.world.services.registry.resolve("two").digest
    for digest in first.world.services.store.sizes():
        if digest != gone:
            folder = first.world.services.store.path(digest)
            shutil.copytree(folder, harness.world.services.store.root / folder.name)
    assert (await harness.ask(model="one")).status_code == 200
    refused = await harness.ask(model="two")
    assert error(refused, 503)["code"] == STORE_AWAY
    assert "s3://bucket/prefix cannot be used at the moment" in error(refused, 503)["message"]
    streamed = await harness.ask(model="two", stream=True)
    assert streamed.status_code == 503
    assert (await harness.ask(model="tiny-base")).status_code == 200


# --- the bound --------------------------------------------------------------------------------------------------------


async def settled(harness: GatewayHarness) -> None:
    """Once everything that had to go has gone."""
    cache = harness.world.services.artifact_cache
    assert cache is not None
    while cache._trimming is not None and not cache._trimming.done():
        await asyncio.sleep(0.001)


@pytest.fixture
async def narrow(tmp_path: Path, bucket: Path, first: GatewayHarness) -> AsyncIterator[GatewayHarness]:
    """A server whose home keeps one adapter."""
    size = max(first.world.services.store.sizes().values())
    harness = open_home(
        tmp_path / "narrow", f"file://{bucket}", database=first.world.home / "graftwork.db", cache_bytes=size
    )
    yield harness
    await harness.http.aclose()


async def test_the_least_recently_used_goes(narrow: GatewayHarness) -> None:
    for name in ("one", "two", "one", "three", "one"):
        assert (await narrow.ask(model=name)).status_code == 200
        await settled(narrow)
        assert local(narrow) == {name}


async def test_what_the_engine_has_stays(narrow: GatewayHarness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    registry, engine = narrow.world.services.registry, narrow.world.engine
    await narrow.ask(model="one")
    for tier in ("device", "host", "fetching"):
        engine.adapters = {registry.resolve("one").digest: Placement(tier)}
        for name in ("two", "three"):
            await narrow.ask(model=name)
            await settled(narrow)
            assert local(narrow) == {"one"}
    engine.adapters = {registry.resolve(name).digest: Placement("device") for name in NAMES}
    await narrow.ask(model="two")
    await settled(narrow)
    assert local(narrow) == {"one", "two"}
    assert "more than --artifact-cache-gb" in caplog.text
    engine.adapters = {}
    await narrow.ask(model="three")
    await settled(narrow)
    assert len(local(narrow)) == 1


async def test_what_was_asked_for_a_moment_ago_stays(narrow: GatewayHarness) -> None:
    cache = narrow.world.services.artifact_cache
    assert cache is not None
    cache._preparing_seconds = 60
    for name in NAMES:
        await narrow.ask(model=name)
        await settled(narrow)
    assert local(narrow) == set(NAMES)


async def test_what_the_bucket_lacks_stays(
    narrow: GatewayHarness, bucket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await narrow.ask(model="one")
    digest = narrow.world.services.registry.resolve("one").digest.removeprefix("sha256:")
    os.unlink(bucket / "artifacts" / digest / "adapter_config.json")
    await narrow.ask(model="two")
    await settled(narrow)
    assert "one" in local(narrow)
    assert "the bucket does not have it" in caplog.text


async def test_a_home_that_was_there_before_is_bounded_in_the_order_of_its_folders(
    tmp_path: Path, first: GatewayHarness, bucket: Path
) -> None:
    store = first.world.services.store
    registry = first.world.services.registry
    for age, name in enumerate(("two", "three", "one")):
        os.utime(store.path(registry.resolve(name).digest), (1000 + age, 1000 + age))
    two = 2 * max(store.sizes().values())
    again = GatewayHarness(make_world(first.world.home, migrated=False, artifacts=f"file://{bucket}", cache_bytes=two))
    again.engine.connect()
    assert isinstance(again.world.services.store, ArtifactStore)
    assert await push(again, "one", 0) == 200
    await settled(again)
    assert local(again) == {"three", "one"}


async def test_what_an_engine_may_still_look_for_stays(
    narrow: GatewayHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def not_sure(_: str) -> None:
        raise Unavailable("vLLM may still know the adapter")

    monkeypatch.setattr(narrow.world.engine, "release", not_sure)
    await narrow.ask(model="one")
    await narrow.ask(model="two")
    await settled(narrow)
    assert local(narrow) == {"one", "two"}
    assert "vLLM may still know the adapter" in caplog.text
    monkeypatch.undo()
    await narrow.ask(model="three")
    await settled(narrow)
    assert len(local(narrow)) == 1


async def test_what_the_disk_keeps_is_removed_later(
    narrow: GatewayHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (narrow.world.home / "artifacts" / "lost+found").mkdir()

    def broken(_: str) -> Path:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(narrow.world.services.store, "unpublish", broken)
    for name in ("one", "two"):
        await narrow.ask(model=name)
        await settled(narrow)
    assert "cannot be removed from the home" in caplog.text
    monkeypatch.undo()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    cache = narrow.world.services.artifact_cache
    assert cache is not None
    cache._trim_soon()
    await settled(narrow)
    assert local(narrow) == {"two"}


async def test_a_version_is_fetched_before_its_alias_moves(fresh: GatewayHarness) -> None:
    assert (await fresh.http.put("/v1/adapters/one/aliases/candidate", json={"version": 1})).status_code == 200
    assert local(fresh) == {"one"}
