"""The other routes, with the real registry and store."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import logging
import posixpath
import random
import re
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from openai.types import Model

from graftwork.adapters.access.keys import Role
from graftwork.adapters.errors import Overloaded, Unavailable
from graftwork.adapters.storage.database import _databases
from graftwork.server.http.edge import MAX_JSON_BYTES
from graftwork.server.http.openapi import DocumentedRoute
from tests.server.fakes import (
    ADMIN_KEY,
    LIMITS,
    Placement,
    Stats,
    World,
    adapter_files,
    form,
    make_world,
    write_adapter,
)
from tests.server.http_errors import HERE, error

VERSIONS = "/v1/adapters/intents/versions"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with asking(world) as client:
        yield client


@pytest.fixture(scope="module")
def still_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One with an adapter and folders to push, for requests that are refused: all may ask it, since none changes it."""
    world = make_world(tmp_path_factory.mktemp("still"))
    write_adapter(world.home / "private")
    for name in ("good", "pickled"):
        write_adapter(world.home / "shared" / name)
    (world.home / "shared" / "pickled" / "adapter_model.bin").write_bytes(b"\x80")
    (world.home / "shared" / "link").symlink_to(world.home / "private")
    return world


@pytest.fixture(scope="module")
def still_client(still_world: World) -> Iterator[TestClient]:
    with asking(still_world) as client:
        push(client, seed=7)
        yield client


def asking(world: World) -> TestClient:
    return TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE)


def push(client: TestClient, seed: int = 0, name: str = "intents", **options: Any) -> Any:
    return client.post(f"/v1/adapters/{name}/versions", files=form(adapter_files(seed)), **options)


# ----------------------------------------------------------------------------------------------------------- push


def test_an_uploaded_adapter_becomes_a_version(client: TestClient, world: World) -> None:
    facts = {"parent": "1", "data_digest": "sha256:d", "metadata": json.dumps({"run": 7})}
    assert push(client).status_code == 201
    response = push(client, seed=1, data=facts, params={"alias": "candidate"})
    assert response.status_code == 201
    version = response.json()
    (_, registered) = world.services.registry.adapter("intents").versions
    assert version == {
        "object": "adapter.version",
        "id": "intents@2",
        "name": "intents",
        "version": 2,
        "digest": registered.digest,
        "base_digest": world.services.base.digest,
        "verified": False,
        "rank": 2,
        "num_parameters": 32,
        "num_bytes": registered.num_bytes,
        "created_at": int(registered.created_at.timestamp()),
        "parent": 1,
        "data_digest": "sha256:d",
        "peft_config": {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
        "metadata": {"run": 7},
        "retired_at": None,
        "residency": "store",
        "load_ms": None,
        "requests": 0,
        "tokens": 0,
        "warnings": [],
    }
    assert world.services.registry.adapter("intents").aliases == {"live": 1, "candidate": 2}
    assert world.engine.tried[-1] == registered.digest
    folder = world.services.store.path(registered.digest)
    assert (folder / "adapter_model.safetensors").read_bytes() == adapter_files(1)["adapter_model.safetensors"]
    assert not list((world.services.store.root / "staging").iterdir())


def test_a_model_card_may_come_along(client: TestClient) -> None:
    files = [*form(adapter_files()), ("files", ("README.md", b"# mine"))]
    assert client.post(VERSIONS, files=files).status_code == 201


def test_a_tokenizer_may_come_along_and_is_told_where_it_differs(client: TestClient, world: World) -> None:
    tokenizer = {"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "<|call|>"}]}
    base = Path(world.services.base.path)
    base.mkdir(parents=True, exist_ok=True)
    (base / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    same = [("files", (file.name, file.read_bytes())) for file in base.iterdir() if file.name != "config.json"]
    assert client.post(VERSIONS, files=[*form(adapter_files()), *same]).json()["warnings"] == []
    theirs = {
        "tokenizer.json": json.dumps(tokenizer),
        "chat_template.jinja": "{{ messages[0] }}",
        "tokenizer_config.json": '{"eos_token": {"content": "<|end|>"}}',
    }
    others = [("files", (name, text.encode())) for name, text in theirs.items()]
    uploaded = client.post(VERSIONS, files=[*form(adapter_files(1)), *others]).json()
    template, tokens, end = uploaded["warnings"]
    assert "chat template" in template
    assert "'<|call|>'" in tokens
    assert "'<|end|>'" in end
    assert "'</s>'" in end
    assert len(list(world.services.store.path(uploaded["digest"]).iterdir())) == 2
    folder = write_adapter(world.home / "shared" / "run-1")
    for name, text in theirs.items():
        (folder / name).write_text(text)
    assert client.post(VERSIONS, json={"path": str(folder)}).json()["warnings"] == uploaded["warnings"]
    damaged = {"tokenizer.json": b"\x00{", "tokenizer_config.json": b"[]", "chat_template.jinja": b"\xff\xfe"}
    for broken in damaged.items():
        (warning,) = client.post(VERSIONS, files=[*form(adapter_files(2)), ("files", broken)]).json()["warnings"]
        assert "cannot be read" in warning


def test_a_folder_below_an_allowed_root_becomes_a_version(client: TestClient, world: World) -> None:
    folder = write_adapter(world.home / "shared" / "run-1")
    response = client.post(VERSIONS, json={"path": str(folder), "metadata": {"run": 1}})
    assert (response.status_code, response.json()["id"]) == (201, "intents@1")
    assert (response.json()["metadata"], folder.exists()) == ({"run": 1}, True)


def test_the_same_bytes_are_the_same_version_and_need_no_second_canary(client: TestClient, world: World) -> None:
    first, again, elsewhere = push(client), push(client, params={"alias": "candidate"}), push(client, name="copy")
    assert (first.status_code, again.status_code, elsewhere.status_code) == (201, 200, 201)
    assert first.json() == again.json()
    assert world.services.registry.adapter("intents").aliases == {"live": 1, "candidate": 1}
    assert len(world.engine.tried) == 1


def test_what_the_history_says_of_a_push(tmp_path: Path) -> None:
    world = make_world(tmp_path, admin_key=ADMIN_KEY)
    secret, _ = world.keys.create("ci pipeline", Role.OPERATOR)
    client = TestClient(world.app, headers={"authorization": f"Bearer {secret}"})
    assert push(client).status_code == 201
    promoted, pushed = client.get("/v1/adapters/intents/history").json()["data"]
    assert (pushed["object"], pushed["action"], pushed["to_version"]) == ("adapter.event", "push", 1)
    assert (promoted["action"], promoted["alias"], promoted["from_version"]) == ("promote", "live", None)
    assert pushed["actor"] == promoted["actor"] == "ci pipeline"
    assert pushed["at"] == pytest.approx(promoted["at"])


FILES = adapter_files()


CONFIG, WEIGHTS = FILES["adapter_config.json"], FILES["adapter_model.safetensors"]


def multipart(*parts: tuple[str, bytes], end: bool = True) -> dict[str, Any]:
    """A form written by hand: (headers of a part, its content)."""
    body = b"".join(b"--B\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n" for head, content in parts)
    return {
        "content": body + (b"--B--\r\n" if end else b""),
        "headers": {"content-type": "multipart/form-data; boundary=B"},
    }


def part(filename: str, content: bytes, field: str = "files") -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{field}"; filename="{filename}"', content


def value(field: str, content: bytes) -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{field}"', content


WHOLE = (part("adapter_config.json", CONFIG), part("adapter_model.safetensors", WEIGHTS))


def changed(seed: int = 0, **config: Any) -> dict[str, Any]:
    return {"files": form(adapter_files(seed, config=config))}


# what is sent, the status, a part of the message
BAD_PUSHES: dict[str, tuple[dict[str, Any], int, str]] = {
    "no files": (multipart(value("parent", b"1")), 400, "adapter_config.json"),
    "no weights": ({"files": form({"adapter_config.json": CONFIG})}, 400, "adapter_model.safetensors"),
    "no config": ({"files": form({"adapter_model.safetensors": WEIGHTS})}, 400, "adapter_config.json"),
    "pickle": ({"files": form({**FILES, "adapter_model.bin": b"\x80"})}, 400, "pickle"),
    "other file": ({"files": form({**FILES, "run.sh": b"rm"})}, 400, "run.sh"),
    "path escape": (multipart(*WHOLE, part("../../etc/cron.d/x", b"")), 400, "no part of an adapter"),
    "absolute name": (multipart(*WHOLE, part("/etc/passwd", b"")), 400, "no part of an adapter"),
    "NUL in a name": (multipart(*WHOLE, part("adapter_config.json\0", b"")), 400, "no part of an adapter"),
    "empty name": (multipart(*WHOLE, part("", b"")), 400, "no part of an adapter"),
    "file twice": (multipart(*WHOLE, WHOLE[0]), 400, "twice"),
    "wrong form field": ({"files": [("file", ("adapter_config.json", CONFIG))]}, 400, "send each file as 'files'"),
    "file without a name": (multipart(value("files", CONFIG)), 400, "with its file name"),
    "unknown form field": ({**changed(), "data": {"parnet": "1"}}, 400, "no field of this form"),
    "form field twice": (multipart(*WHOLE, value("parent", b"1"), value("parent", b"2")), 400, "twice"),
    "long form field": (multipart(*WHOLE, value("metadata", b"x" * 200_000)), 400, "longer than"),
    "form field not UTF-8": (multipart(*WHOLE, value("data_digest", b"\xff")), 400, "UTF-8"),
    "many parts": (multipart(*[part("README.md", b"")] * 20), 400, "more than 16 parts"),
    "transfer encoding": (
        multipart(("Content-Transfer-Encoding: base64\r\n" + WHOLE[0][0], CONFIG)),
        400,
        "send the bytes as they are",
    ),
    "part without a name": (multipart(("X: y", b"")), 400, "no field of this form"),
    "cut off": (multipart(*WHOLE, end=False), 400, "ended before its last boundary"),
    "empty form": ({**multipart(), "content": b""}, 400, "ended before its last boundary"),
    "broken form": ({**multipart(), "content": b"--X\r\n"}, 400, "multipart body is broken"),
    "no boundary": ({**multipart(*WHOLE), "headers": {"content-type": "multipart/form-data"}}, 400, "no boundary"),
    "parent no number": ({**changed(), "data": {"parent": "seven"}}, 400, "parent is not valid JSON"),
    "parent a list": ({**changed(), "data": {"parent": "[1]"}}, 400, "whole number"),
    "parent zero": ({**changed(), "data": {"parent": "0"}}, 400, "at least 1"),
    "parent unknown": ({**changed(), "data": {"parent": "9"}}, 400, "no version 9"),
    "metadata broken": ({**changed(), "data": {"metadata": "{"}}, 400, "metadata is not valid JSON"),
    "metadata no object": ({**changed(), "data": {"metadata": "[]"}}, 400, "must be an object"),
    "metadata infinite": ({**changed(), "data": {"metadata": '{"a": Infinity}'}}, 400, "metadata is not valid JSON"),
    "metadata huge": ({**changed(), "data": {"metadata": json.dumps({"a": "x" * 70_000})}}, 400, "metadata has"),
    "bad alias": ({**changed(), "params": {"alias": "Candidate!"}}, 400, "cannot be an alias"),
    "misspelt parameter": ({**changed(), "params": {"allias": "candidate"}}, 400, "'allias' is no parameter"),
    "weights too large": (
        {"files": form({**FILES, "adapter_model.safetensors": b"x" * (LIMITS.max_adapter_bytes + 1)})},
        413,
        "larger than the 65536 bytes",
    ),
    "config too large": ({"files": form({**FILES, "adapter_config.json": b" " * 20_000})}, 413, "larger than"),
    "body declared too large": ({**multipart(*WHOLE), "content": b"x" * (6 << 20)}, 413, "larger than"),
    "not safetensors": ({"files": form({**FILES, "adapter_model.safetensors": b"PK\3\4" * 9})}, 400, "safetensors"),
    "config no JSON": ({"files": form({**FILES, "adapter_config.json": b"{"})}, 400, "adapter_config.json"),
    "rank of the config": (changed(r=3), 400, "lora_A"),
    "not LoRA": (changed(peft_type="IA3"), 400, "peft_type"),
    "unsupported": (changed(use_qalora=True), 400, "use_qalora"),
    "unknown field": (changed(flux_capacitor=1.21), 400, "flux_capacitor"),
    "another base": (changed(graftwork={"base_digest": "sha256:" + "0" * 64}), 400, "trained on the base"),
    "no JSON": ({"content": b"path=/x", "headers": {"content-type": "application/json"}}, 400, "not valid JSON"),
    "no body": ({}, 400, "empty"),
    "JSON list": ({"json": ["/x"]}, 400, "must be an object"),
    "no path": ({"json": {}}, 400, "path is required"),
    "path a number": ({"json": {"path": 7}}, 400, "must be a string"),
    "empty path": ({"json": {"path": ""}}, 400, "must not be empty"),
    "NUL in a path": ({"json": {"path": "/x\0"}}, 400, "NUL"),
    "relative path": ({"json": {"path": "shared/good"}}, 400, "relative"),
    "path out of the root": ({"json": {"path": "{home}/private"}}, 400, "may read adapters from"),
    "path up out of the root": ({"json": {"path": "{home}/shared/../private"}}, 400, "may read adapters from"),
    "link out of the root": ({"json": {"path": "{home}/shared/link"}}, 400, "may read adapters from"),
    "no such folder": ({"json": {"path": "{home}/shared/none"}}, 400, "cannot be read"),
    "folder with a pickle": ({"json": {"path": "{home}/shared/pickled"}}, 400, "pickle"),
    "metadata of a path": ({"json": {"path": "{home}/shared/good", "metadata": 1}}, 400, "must be an object"),
    "unknown field of a path": ({"json": {"path": "{home}/shared/good", "files": []}}, 400, "not a field"),
}


@pytest.mark.parametrize("case", BAD_PUSHES)
def test_a_bad_push_is_refused_and_changes_nothing(still_client: TestClient, still_world: World, case: str) -> None:
    before = still_world.state()
    arguments, status, says = BAD_PUSHES[case]
    if isinstance(body := arguments.get("json"), dict) and isinstance(body.get("path"), str):
        arguments = {"json": {**body, "path": body["path"].replace("{home}", str(still_world.home))}}
    found = error(still_client.post(VERSIONS, **arguments), status)
    assert says in found["message"]
    assert still_world.state() == before


@pytest.mark.parametrize("name", ["Intents", "a" * 65, "_x", "intents@2", "tiny-base", "%00", "ünïcode"])
def test_a_bad_name_is_refused(client: TestClient, world: World, name: str) -> None:
    assert "name" in error(push(client, name=name), 400)["message"]
    assert world.state() == ([], [], [], [])


def test_an_adapter_that_fails_its_canary_leaves_nothing_behind(client: TestClient, world: World) -> None:
    push(client, seed=7)
    before = world.state()
    world.engine.refuse = True
    found = error(push(client), 400)
    assert (found["code"], len(world.engine.tried)) == ("inert_adapter", 2)
    assert world.engine.released == world.engine.tried[1:]
    assert world.state() == before
    world.engine.refuse = False
    assert push(client).json()["id"] == "intents@2"


@pytest.mark.parametrize("committed", [True, False])
def test_files_stay_when_nobody_knows_whether_they_have_a_version(
    client: TestClient, world: World, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    registry = world.services.registry
    add_version = registry.add_version

    def connection_breaks(*arguments: Any, **options: Any) -> Any:
        if committed:
            add_version(*arguments, **options)
        raise Unavailable("the database cannot be reached")

    monkeypatch.setattr(registry, "add_version", connection_breaks)
    assert push(client).status_code == 503
    assert len(world.services.store.sizes()) == 1
    monkeypatch.undo()
    if not committed:
        world.engine.refuse = True
        error(push(client), 400)
        assert len(world.services.store.sizes()) == 1, "they were there before this push"
        world.engine.refuse = False
    assert push(client).status_code == (200 if committed else 201)


def test_files_stay_while_the_engine_may_look_for_them(client: TestClient, world: World) -> None:
    world.engine.refuse = world.engine.may_know = True
    error(push(client, seed=7), 400)
    assert world.services.store.path(world.engine.tried[0]).is_dir()


def test_an_adapter_that_the_engine_does_not_take_is_refused_before_it_is_tried(
    client: TestClient, world: World
) -> None:
    world.engine.untaken.add(push(client, name="other").json()["digest"])
    before, tried = world.state(), len(world.engine.tried)
    assert error(push(client), 400)["code"] == "unsupported"
    assert (world.state(), len(world.engine.tried)) == (before, tried)


def test_a_refusal_after_the_canary_does_not_take_bytes_that_another_adapter_needs(
    client: TestClient, world: World
) -> None:
    push(client)
    before = world.state()
    error(push(client, name="copy", data={"parent": "3"}), 400)
    assert world.state() == before
    assert world.services.store.path(before[0][0].versions[0].digest).is_dir()


@pytest.mark.parametrize("call", ["graftwork.adapters.registry.artifacts.StagedFile.write", "os.fsync"])
def test_a_full_disk_is_said_and_leaves_nothing(
    client: TestClient, world: World, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(call, full)
        response = push(client)
    assert error(response, 503)["code"] == "disk_full"
    assert world.state() == ([], [], [], [])
    assert push(client).json()["id"] == "intents@1"


def test_a_full_disk_is_said_by_whatever_writes_to_the_database(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    with asking(world) as client:
        push(client)
        push(client, seed=1)
        (database,) = [each for each in _databases if each.url.database == str(tmp_path / "graftwork.db")]
        database.close()
        with database.write() as connection:  # the only connection of the pool from here on
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        moves = [{"version": number % 2 + 1, "reason": "x" * 1900} for number in range(60)]
        answers = [client.put("/v1/adapters/intents/aliases/live", json=move) for move in moves]
        assert {answer.status_code for answer in answers} == {200, 503}
        assert {error(answer, 503)["code"] for answer in answers if answer.status_code != 200} == {"disk_full"}
        assert client.get("/v1/adapters/intents").status_code == 200


@pytest.mark.parametrize("state", ["starting", "recovering", "draining"])
def test_without_an_engine_nothing_is_pushed(client: TestClient, world: World, state: Any) -> None:
    world.engine.state = state
    response = push(client)
    assert state in error(response, 503)["message"]
    assert int(response.headers["retry-after"]) >= 1
    assert world.state() == ([], [], [], [])


async def test_of_pushes_of_the_same_bytes_at_once_none_takes_away_what_another_registered(world: World) -> None:
    first = True

    async def canary(digest: str) -> None:
        nonlocal first
        refused, first = first, False
        assert world.services.store.path(digest).is_dir()
        await asyncio.sleep(0.05)
        assert world.services.store.path(digest).is_dir()
        if refused:
            raise Overloaded("the queue is full: try again shortly")

    world.engine.canary = canary  # type: ignore[method-assign,assignment]
    transport = httpx.ASGITransport(world.app, client=HERE)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        pushes = [client.post(f"/v1/adapters/{name}/versions", files=form(adapter_files())) for name in ("a", "b", "c")]
        responses = await asyncio.gather(*pushes)
    assert sorted(response.status_code for response in responses) == [201, 201, 429]
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    adapters = world.services.registry.adapters()
    assert len(adapters) == 2
    assert world.services.store.path(adapters[0].versions[0].digest).is_dir()


async def upload(world: World, chunks: AsyncIterator[bytes]) -> httpx.Response:
    transport = httpx.ASGITransport(world.app, client=HERE)
    headers = {"content-type": "multipart/form-data; boundary=B"}
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        return await client.post(VERSIONS, content=chunks, headers=headers)


async def test_an_upload_goes_to_the_disk_as_it_arrives(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    object.__setattr__(world.services.limits, "max_adapter_bytes", 16 << 20)
    staging = world.services.store.root / "staging"
    seen: list[int] = []

    async def chunks() -> AsyncIterator[bytes]:
        yield multipart(part("adapter_model.safetensors", b""))["content"].removesuffix(b"\r\n--B--\r\n")
        for _ in range(128):
            yield b"\0" * (64 << 10)
            seen.append(sum(file.stat().st_size for file in staging.glob("*/*")))
        yield b"\r\n--B--\r\n"

    response = await upload(world, chunks())
    object.__setattr__(world.services.limits, "max_adapter_bytes", 64 << 10)
    assert "adapter_config.json" in error(response, 400)["message"]
    behind = [(number + 1) * (64 << 10) - size for number, size in enumerate(seen)]
    assert max(behind) <= (2 << 20), "more than a megabyte or two was held in memory"
    assert world.state() == ([], [], [], [])


async def test_an_upload_is_refused_as_soon_as_it_is_too_large(world: World) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        yield multipart(part("adapter_model.safetensors", b""))["content"].removesuffix(b"\r\n--B--\r\n")
        while sent < 64 << 20:
            sent += 64 << 10
            yield b"\0" * (64 << 10)

    assert "larger than" in error(await upload(world, chunks()), 413)["message"]
    assert sent <= 8 << 20
    assert world.state() == ([], [], [], [])


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(world: World) -> None:
    messages = iter(
        [
            {"type": "http.request", "body": multipart(*WHOLE, end=False)["content"], "more_body": True},
            {"type": "http.disconnect"},
        ]
    )
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": VERSIONS,
        "raw_path": VERSIONS.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"multipart/form-data; boundary=B"), (b"host", b"localhost")],
        "client": HERE,
        "server": ("127.0.0.1", 8000),
        "scheme": "http",
    }
    await world.app(scope, receive, send)
    assert not sent
    assert world.state() == ([], [], [], [])
    assert 'status="499"' in world.services.metrics.render().decode()


# ------------------------------------------------------------------------------------- aliases, history, retirement


def test_promote_roll_back_retire(client: TestClient) -> None:
    for seed in range(3):
        push(client, seed=seed)
    promoted = client.put("/v1/adapters/intents/aliases/live", json={"version": 3, "reason": "won"}).json()
    assert (promoted["action"], promoted["from_version"], promoted["to_version"]) == ("promote", 1, 3)
    assert (promoted["reason"], promoted["actor"], promoted["alias"]) == ("won", "local", "live")
    back = client.post("/v1/adapters/intents/rollback").json()
    assert (back["action"], back["from_version"], back["to_version"], back["reason"]) == ("rollback", 3, 1, None)
    client.put("/v1/adapters/intents/aliases/candidate", json={"version": 2})
    client.put("/v1/adapters/intents/aliases/candidate", json={"version": 3})
    body = {"alias": "candidate", "reason": "worse"}
    assert client.post("/v1/adapters/intents/rollback", json=body).json()["to_version"] == 2
    retired = client.delete("/v1/adapters/intents/versions/3").json()
    assert (retired["id"], retired["retired_at"] is not None) == ("intents@3", True)
    actions = [event["action"] for event in client.get("/v1/adapters/intents/history").json()["data"]]
    assert actions[:5] == ["retire", "rollback", "promote", "promote", "rollback"]


def test_history_comes_in_pages(client: TestClient) -> None:
    for seed in range(3):
        push(client, seed=seed)
    whole = client.get("/v1/adapters/intents/history").json()
    assert (len(whole["data"]), whole["has_more"]) == (4, False)
    first = client.get("/v1/adapters/intents/history", params={"limit": 3}).json()
    assert first["has_more"]
    rest = client.get("/v1/adapters/intents/history", params={"after": first["data"][-1]["id"]}).json()
    assert first["data"] + rest["data"] == whole["data"]


BAD_CHANGES: list[tuple[str, str, Any, int, str]] = [
    ("PUT", "intents/aliases/live", None, 400, "empty"),
    ("PUT", "intents/aliases/live", {}, 400, "version is required"),
    ("PUT", "intents/aliases/live", {"version": "1"}, 400, "whole number"),
    ("PUT", "intents/aliases/live", {"version": 0}, 400, "at least 1"),
    ("PUT", "intents/aliases/live", {"version": 9}, 400, "no version 9"),
    ("PUT", "intents/aliases/live", {"version": 10**30}, 400, "no version"),
    ("PUT", "intents/aliases/live", {"version": 1, "reasn": "x"}, 400, "did you mean reason?"),
    ("PUT", "intents/aliases/live", {"version": 1, "reason": "\0"}, 400, "NUL"),
    ("PUT", "intents/aliases/live", {"version": 1, "reason": "x" * 3000}, 400, "reason"),
    ("PUT", "intents/aliases/LIVE", {"version": 1}, 400, "cannot be an alias"),
    ("PUT", "intents/aliases/7", {"version": 1}, 400, "cannot be an alias"),
    ("PUT", "none/aliases/live", {"version": 1}, 404, "no adapter 'none'"),
    ("POST", "none/rollback", None, 404, "no adapter"),
    ("POST", "intents/rollback", None, 409, "none before it"),
    ("POST", "intents/rollback", {"alias": "beta"}, 400, "no alias"),
    ("POST", "intents/rollback", {"alias": None}, 400, "must be a string"),
    ("POST", "intents/rollback", [], 400, "must be an object"),
    ("DELETE", "intents/versions/1", None, 409, "live"),
    ("DELETE", "intents/versions/9", None, 404, "no version 9"),
    ("DELETE", "intents/versions/0", None, 404, "numbers from 1"),
    ("DELETE", "intents/versions/one", None, 404, "numbers from 1"),
    ("DELETE", f"intents/versions/{'9' * 5000}", None, 404, "numbers from 1"),
    ("DELETE", "none/versions/1", None, 404, "no adapter"),
    ("GET", "none", None, 404, "no adapter"),
    ("GET", "none/history", None, 404, "no adapter"),
    ("GET", "intents/history?after=x", None, 400, "after"),
    ("GET", "intents/history?limit=0", None, 400, "limit"),
    ("GET", "intents/history?limit=101", None, 400, "limit"),
    ("GET", "intents/history?lmit=1", None, 400, "no parameter"),
    ("POST", "intents", {}, 405, "takes GET"),
    ("GET", "intents/versions", None, 405, "takes POST"),
    ("GET", "intents/nothing/here", None, 404, "no route GET /v1/adapters/intents/nothing/here"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "says"), BAD_CHANGES)
def test_a_bad_change_is_refused_and_changes_nothing(
    still_client: TestClient, still_world: World, method: str, path: str, body: Any, status: int, says: str
) -> None:
    before = still_world.state()
    content = None if body is None else json.dumps(body).encode()
    response = still_client.request(method, f"/v1/adapters/{path}", content=content)
    assert says in error(response, status)["message"]
    assert (response.headers.get("x-should-retry") == "false") == (status == 409)
    assert still_world.state() == before


# ----------------------------------------------------------------------------------------------- what can be read


def test_adapters_say_where_they_are_and_how_much_they_are_used(client: TestClient, world: World) -> None:
    push(client)
    digest = push(client, seed=1).json()["digest"]
    push(client, seed=2, name="tone")
    world.engine.adapters[digest] = Placement("device", 12.345)
    world.services.traffic.add("intents@1", 5)
    world.services.traffic.add("intents@2", 7)
    world.services.traffic.add("intents@2", 1)
    listed = client.get("/v1/adapters").json()
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert [adapter["name"] for adapter in listed["data"]] == ["intents", "tone"]
    adapter = client.get("/v1/adapters/intents").json()
    assert adapter == listed["data"][0]
    assert (adapter["object"], adapter["aliases"], adapter["residency"]) == ("adapter", {"live": 1}, "store")
    assert (adapter["requests"], adapter["tokens"]) == (3, 13)
    first, second = adapter["versions"]
    assert (first["residency"], first["load_ms"], first["requests"]) == ("store", None, 1)
    assert (second["residency"], second["load_ms"], second["tokens"]) == ("device", 12.3, 8)
    client.put("/v1/adapters/intents/aliases/live", json={"version": 2})
    assert client.get("/v1/adapters/intents").json()["residency"] == "device"


def test_adapters_come_in_pages(client: TestClient) -> None:
    for number in range(3):
        push(client, seed=number, name=f"a{number}")
    page = client.get("/v1/adapters", params={"limit": 2}).json()
    assert ([adapter["name"] for adapter in page["data"]], page["has_more"]) == (["a0", "a1"], True)
    page = client.get("/v1/adapters", params={"after": "a1"}).json()
    assert ([adapter["name"] for adapter in page["data"]], page["has_more"]) == (["a2"], False)


def test_models_are_the_base_then_adapters_and_their_versions(client: TestClient, world: World) -> None:
    push(client)
    push(client, seed=1)
    push(client, seed=2)
    client.delete("/v1/adapters/intents/versions/3")
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["tiny-base", "intents", "intents@live", "intents@1", "intents@2"]
    assert client.get("/v1/models/").json()["data"] == models
    assert {model["max_model_len"] for model in models} == {world.services.base.max_positions}
    base, live, *_ = models
    assert base["graftwork"]["digest"] == world.services.base.digest
    assert (base["graftwork"]["quantize"], base["graftwork"]["memory_bytes"]) == ("int8", 1000)
    assert (live["root"], live["parent"], live["owned_by"]) == ("intents@1", "tiny-base", "graftwork")
    for model in models:
        Model.model_validate(model, strict=True)
        assert client.get(f"/v1/models/{model['id']}").json() == model
    assert client.get("/v1/models/intents@live").json()["root"] == "intents@1"
    for unknown in ("intents@3", "intents@9", "intent", "org/model", "intents@"):
        found = error(client.get(f"/v1/models/{unknown}"), 404)
        assert (found["code"], found["param"]) == ("model_not_found", "model")


def test_the_official_client_lists_models(client: TestClient, world: World) -> None:
    push(client)
    ours = openai.OpenAI(
        base_url="http://127.0.0.1:8000/v1", api_key="any", http_client=client, _strict_response_validation=True
    )
    assert [model.id for model in ours.models.list()] == ["tiny-base", "intents", "intents@live", "intents@1"]
    assert ours.models.retrieve("intents@1").owned_by == "graftwork"
    with pytest.raises(openai.NotFoundError) as caught:
        ours.models.retrieve("nothing")
    assert caught.value.code == "model_not_found"


# ---------------------------------------------------------------------------------------------------- the service


def test_health_and_readiness(client: TestClient, world: World) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ready", "base": "tiny-base"}
    world.engine.state = "recovering"
    response = client.get("/ready")
    assert (response.status_code, response.json()["status"]) == (503, "recovering")
    assert client.get("/health").status_code == 200


def sample(world: World, line: str) -> float:
    """The value of one metric."""
    found = [text for text in world.services.metrics.render().decode().splitlines() if text.startswith(line + " ")]
    return float(found[0].split()[-1])


def test_metrics_tell_what_happened(client: TestClient, world: World) -> None:
    digest = push(client).json()["digest"]
    push(client, seed=1)
    client.get("/v1/adapters/none")
    client.get("/somewhere/else")
    world.engine.adapters[digest] = Placement("device")
    world.engine.num_restarts = 1
    world.services.metrics.set_build(version="0", base="tiny-base")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'graftwork_build_info{base="tiny-base",version="0"} 1.0' in response.text
    route = 'adapter="",route="/v1/adapters/{name}'
    assert sample(world, f'graftwork_requests_total{{{route}/versions",status="201"}}') == 2
    assert sample(world, f'graftwork_requests_total{{{route}",status="404"}}') == 1
    assert sample(world, 'graftwork_requests_total{adapter="",route="unknown",status="404"}') == 1
    assert sample(world, 'graftwork_resident_versions{tier="device"}') == 1
    assert sample(world, 'graftwork_resident_versions{tier="store"}') == 1
    assert sample(world, 'graftwork_live_on_device{adapter="intents"}') == 1
    assert [sample(world, f"graftwork_{name}") for name in ("running", "queue_depth", "ready")] == [2, 1, 1]
    assert sample(world, "graftwork_worker_restarts_total") == 1
    counted = ["prefix_tokens_total", "prefix_hit_tokens_total", "retained_tokens"]
    assert [sample(world, f"graftwork_{name}") for name in counted] == [40, 30, 100]


def test_counts_of_the_engine_go_on_when_its_worker_is_replaced(client: TestClient, world: World) -> None:
    client.get("/metrics")
    world.engine.measured = Stats(num_loads=5)
    client.get("/metrics")
    world.engine.state = "recovering"
    assert client.get("/metrics").status_code == 200
    assert sample(world, "graftwork_ready") == 0
    world.engine.state, world.engine.measured = "ready", Stats(num_loads=2)
    client.get("/metrics")
    assert sample(world, "graftwork_adapter_loads_total") == 7


def test_metrics_of_several_engines(world: World) -> None:
    metrics, one, other = world.services.metrics, Stats(num_loads=3, running=2), Stats(num_loads=4, running=5)
    for stats in ({"0": one, "1": other}, {"0": one}, {"0": one, "1": Stats(num_loads=1, running=5)}):
        metrics.set_engines(stats)  # of an engine that does not answer for a moment nothing is counted twice
    assert [sample(world, f"graftwork_{name}") for name in ("running", "adapter_loads_total")] == [7, 8]
    metrics.set_engine("0", ready=True, num_restarts=0, stats=one)
    metrics.set_engine("1", ready=False, num_restarts=2, stats=None)
    shown = {
        name: [sample(world, f'graftwork_engine_{name}{{engine="{engine}"}}') for engine in (0, 1)]
        for name in ("ready", "restarts_total", "running")
    }
    assert shown == {"ready": [1, 0], "restarts_total": [0, 2], "running": [2, 0]}


def test_an_adapter_is_fetched_before_an_alias_moves(client: TestClient, world: World) -> None:
    push(client)
    digest = push(client, seed=1).json()["digest"]
    assert client.put("/v1/adapters/intents/aliases/live", json={"version": 2}).status_code == 200
    assert world.engine.ensured == [digest]
    world.engine.state = "recovering"
    assert client.put("/v1/adapters/intents/aliases/live", json={"version": 1}).status_code == 200
    assert client.put("/v1/adapters/intents/aliases/live", json={"version": 9}).status_code == 400
    assert world.engine.ensured == [digest]


def test_labels_are_bounded(world: World) -> None:
    metrics = type(world.services.metrics)(max_adapters=2)
    for number in range(9):
        metrics.tokens(adapter=f"a{number}", prompt=1, completion=2)
    text = metrics.render().decode()
    assert 'graftwork_prompt_tokens_total{adapter="_others"} 7.0' in text
    assert text.count("graftwork_prompt_tokens_total{") == 3


def test_the_operators_page_is_whole_and_may_do_nothing_else(client: TestClient) -> None:
    files = ["/"]
    for path in files:  # which grows: a file names others
        response = client.get(path)
        assert response.status_code == 200, path
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", response.text), "nothing comes from elsewhere"
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|localStorage", response.text)
        assert " style=" not in response.text
        named = re.findall(r'(?:src|href)="(/page/[^"]+)"', response.text)
        for name in re.findall(r'from "(\.[^"]+)"', response.text):
            named.append(posixpath.normpath(posixpath.join(posixpath.dirname(path), name)))
        files += [name for name in dict.fromkeys(named) if name not in files]
    assert len(files) > 20
    assert error(client.get("/page/../auth.py"), 404)
    assert error(client.get("/page/nothing.js"), 404)


# ----------------------------------------------------------------------------------------------------------- keys


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    world = make_world(tmp_path, admin_key=ADMIN_KEY)
    client = TestClient(world.app, headers={"authorization": f"Bearer {ADMIN_KEY}"})
    made = client.post("/v1/keys", json={"name": "desk", "role": "app"})
    assert (made.status_code, made.headers["cache-control"]) == (201, "no-store")
    secret = made.json().pop("secret")
    own = {"authorization": f"Bearer {secret}"}
    assert client.get("/v1/models", headers=own).status_code == 200
    assert error(client.post("/v1/keys", json={"name": "x", "role": "admin"}, headers=own), 403)
    assert error(push(TestClient(world.app, headers=own)), 403)
    client.post("/v1/keys", json={"name": "ci", "role": "operator"})
    listed = client.get("/v1/keys")
    assert [(key["object"], key["name"], key["role"]) for key in listed.json()["data"]] == [
        ("key", "desk", "app"),
        ("key", "ci", "operator"),
    ]
    assert secret not in listed.text
    page = client.get("/v1/keys", params={"limit": 1}).json()
    assert page["has_more"]
    rest = client.get("/v1/keys", params={"after": page["data"][0]["id"]}).json()
    assert ([key["name"] for key in rest["data"]], rest["has_more"]) == (["ci"], False)
    revoked = client.delete(f"/v1/keys/{made.json()['id']}").json()
    assert (revoked["name"], revoked["revoked_at"] is not None) == ("desk", True)
    assert error(client.get("/v1/models", headers=own), 401)


def test_keys_are_changed_and_rotated(tmp_path: Path) -> None:
    world = make_world(tmp_path, admin_key=ADMIN_KEY)
    client = TestClient(world.app, headers={"authorization": f"Bearer {ADMIN_KEY}"})
    ends = int(time.time()) + 3600
    limits = {"requests_per_minute": 10, "tokens_per_day": 1000}
    body = {"name": "desk", "role": "app", "expires_at": ends, "adapters": ["intents", "base"], "limits": limits}
    made = client.post("/v1/keys", json=body).json()
    secret, path = made.pop("secret"), f"/v1/keys/{made['id']}"
    assert made == client.get(path).json() == client.get("/v1/keys").json()["data"][0]
    assert (made["expires_at"], made["adapters"]) == (ends, ["base", "intents"])
    none = dict.fromkeys(("tokens_per_minute", "concurrent", "tokens_per_month"))
    assert made["limits"] == {**limits, **none}
    assert error(client.post("/v1/keys", json={"name": "Desk ", "role": "app"}), 409)["code"] == "name_taken"
    changed = client.patch(path, json={"name": "the desk", "adapters": None, "limits": {"concurrent": 2}}).json()
    assert changed == {**made, "name": "the desk", "adapters": None, "limits": {**made["limits"], "concurrent": 2,
        "requests_per_minute": None, "tokens_per_day": None}}  # fmt: skip
    assert client.patch(path, json={"expires_at": None, "limits": None}).json()["expires_at"] is None
    rotated = client.post(f"{path}/rotate")
    assert rotated.headers["cache-control"] == "no-store"
    assert abs(rotated.json()["previous_until"] - time.time() - 86400) < 60

    def status(bearer: str) -> int:
        return client.get("/v1/models", headers={"authorization": f"Bearer {bearer}"}).status_code

    new = rotated.json()["secret"]
    assert (status(secret), status(new)) == (200, 200)
    newest = client.post(f"{path}/rotate", json={"overlap_seconds": 0}).json()["secret"]
    assert (status(secret), status(new), status(newest)) == (401, 401, 200)
    client.delete(path)
    assert status(newest) == 401
    assert error(client.post(f"{path}/rotate"), 409)["code"] == "key_revoked"
    assert error(client.patch(path, json={"name": "again"}), 409)["code"] == "key_revoked"
    assert client.post("/v1/keys", json={"name": "the desk", "role": "app"}).status_code == 201


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/keys", {"name": "x"}, 400),
        ("POST", "/v1/keys", {"name": " ", "role": "app"}, 400),
        ("POST", "/v1/keys", {"name": "x", "role": "root"}, 400),
        ("POST", "/v1/keys", {"name": "x" * 500, "role": "app"}, 400),
        ("POST", "/v1/keys", {"name": "x", "role": "app", "secret": "mine"}, 400),
        ("GET", "/v1/keys?after=none", None, 400),
        ("DELETE", "/v1/keys/none", None, 404),
        ("GET", "/v1/keys/none", None, 404),
        ("PATCH", "/v1/keys/none", {"name": "x"}, 404),
        ("POST", "/v1/keys/none/rotate", None, 404),
        ("POST", "/v1/keys/000000000000/rotate", {"overlap_seconds": -1}, 400),
        ("POST", "/v1/keys/000000000000/rotate", {"overlap_seconds": 1e300}, 400),
        ("PATCH", "/v1/keys/000000000000", {}, 400),
        ("PATCH", "/v1/keys/000000000000", {"role": "admin"}, 400),
        ("POST", "/v1/keys", {"name": "first admin key", "role": "app"}, 400),
        ("POST", "/v1/keys", {"name": " Local", "role": "app"}, 400),
        ("POST", "/v1/keys", {"name": "x", "role": "app", "expires_at": 1}, 400),
        ("POST", "/v1/keys", {"name": "x", "role": "app", "expires_at": 1e300}, 400),
        ("POST", "/v1/keys", {"name": "x", "role": "app", "adapters": []}, 400),
        ("POST", "/v1/keys", {"name": "x", "role": "app", "adapters": ["intents@1"]}, 400),
        ("POST", "/v1/keys", {"name": "x", "role": "app", "adapters": [f"a{n}" for n in range(101)]}, 400),
        ("POST", "/v1/keys", {"name": "x", "role": "admin", "adapters": ["intents"]}, 400),
        ("POST", "/v1/keys", {"name": "x", "role": "app", "limits": {"concurrent": 0}}, 400),
        ("POST", "/v1/keys", {"name": "x", "role": "app", "limits": {"tokens_per_day": 10**30}}, 400),
        ("POST", "/v1/keys", {"name": "x", "role": "app", "limits": {"per_hour": 1}}, 400),
    ],
)
def test_bad_key_requests_are_refused(tmp_path: Path, method: str, path: str, body: Any, status: int) -> None:
    world = make_world(tmp_path, admin_key=ADMIN_KEY)
    client = TestClient(world.app, headers={"authorization": f"Bearer {ADMIN_KEY}"})
    error(client.request(method, path, json=body), status)
    assert not world.keys.list()


def test_the_first_key_locks_an_open_server_so_it_is_an_admins(client: TestClient, world: World) -> None:
    assert "role admin first" in error(client.post("/v1/keys", json={"name": "x", "role": "app"}), 409)["message"]
    secret = client.post("/v1/keys", json={"name": "boss", "role": "admin"}).json()["secret"]
    error(client.get("/v1/models"), 401)
    headers = {"authorization": f"Bearer {secret}"}
    assert client.post("/v1/keys", json={"name": "x", "role": "app"}, headers=headers).status_code == 201


ROUTES: list[tuple[str, str, Role | None]] = [
    ("GET", "/", None),
    ("GET", "/health", None),
    ("GET", "/ready", None),
    ("GET", "/version", None),
    ("GET", "/openapi.json", None),
    ("GET", "/metrics", Role.APP),
    ("GET", "/v1/models", Role.APP),
    ("GET", "/v1/models/", Role.APP),
    ("GET", "/v1/models/tiny-base", Role.APP),
    ("GET", "/v1/adapters", Role.APP),
    ("GET", "/v1/adapters/intents", Role.APP),
    ("GET", "/v1/adapters/intents/history", Role.APP),
    ("POST", "/v1/adapters/intents/versions", Role.OPERATOR),
    ("PUT", "/v1/adapters/intents/aliases/live", Role.OPERATOR),
    ("POST", "/v1/adapters/intents/rollback", Role.OPERATOR),
    ("DELETE", "/v1/adapters/intents/versions/1", Role.OPERATOR),
    ("GET", "/v1/adapters/intents/limits", Role.OPERATOR),
    ("PUT", "/v1/adapters/intents/limits", Role.OPERATOR),
    ("GET", "/v1/keys", Role.ADMIN),
    ("POST", "/v1/keys", Role.ADMIN),
    ("GET", "/v1/keys/none", Role.ADMIN),
    ("GET", "/v1/keys/none/usage", Role.ADMIN),
    ("PATCH", "/v1/keys/none", Role.ADMIN),
    ("POST", "/v1/keys/none/rotate", Role.ADMIN),
    ("DELETE", "/v1/keys/none", Role.ADMIN),
    ("GET", "/v1/audit", Role.ADMIN),
    ("GET", "/v1/audit/export", Role.ADMIN),
    ("POST", "/v1/feedback", Role.APP),
    ("GET", "/v1/feedback", Role.OPERATOR),
    ("GET", "/v1/feedback/export", Role.OPERATOR),
    ("GET", "/v1/interactions", Role.OPERATOR),
    ("GET", "/v1/interactions/export", Role.OPERATOR),
    ("GET", "/v1/interactions/none", Role.OPERATOR),
    ("DELETE", "/v1/interactions", Role.OPERATOR),
    ("GET", "/v1/log_policies", Role.OPERATOR),
    ("PUT", "/v1/log_policies/adapters/intents", Role.OPERATOR),
    ("DELETE", "/v1/log_policies/adapters/intents", Role.OPERATOR),
    ("POST", "/v1/experiments", Role.OPERATOR),
    ("GET", "/v1/experiments", Role.OPERATOR),
    ("GET", "/v1/experiments/intents", Role.OPERATOR),
    ("PATCH", "/v1/experiments/intents", Role.OPERATOR),
    ("POST", "/v1/experiments/intents/stop", Role.OPERATOR),
    ("POST", "/v1/files", Role.APP),
    ("GET", "/v1/files", Role.APP),
    ("GET", "/v1/files/none", Role.APP),
    ("GET", "/v1/files/none/content", Role.APP),
    ("DELETE", "/v1/files/none", Role.APP),
    ("POST", "/v1/batches", Role.APP),
    ("GET", "/v1/batches", Role.APP),
    ("GET", "/v1/batches/none", Role.APP),
    ("POST", "/v1/batches/none/cancel", Role.APP),
    ("POST", "/v1/fine_tuning/jobs", Role.OPERATOR),
    ("GET", "/v1/fine_tuning/jobs", Role.OPERATOR),
    ("GET", "/v1/fine_tuning/jobs/none", Role.OPERATOR),
    ("POST", "/v1/fine_tuning/jobs/none/cancel", Role.OPERATOR),
    ("GET", "/v1/fine_tuning/jobs/none/events", Role.OPERATOR),
    ("GET", "/v1/fine_tuning/jobs/none/checkpoints", Role.OPERATOR),
    ("GET", "/v1/learning_policies", Role.OPERATOR),
    ("GET", "/v1/adapters/intents/learning_policy", Role.OPERATOR),
    ("PUT", "/v1/adapters/intents/learning_policy", Role.OPERATOR),
    ("DELETE", "/v1/adapters/intents/learning_policy", Role.OPERATOR),
    ("GET", "/v1/adapters/intents/next_round", Role.OPERATOR),
    ("POST", "/v1/rounds", Role.OPERATOR),
    ("GET", "/v1/rounds", Role.OPERATOR),
    ("GET", "/v1/rounds/none", Role.OPERATOR),
    ("POST", "/v1/rounds/none/undo", Role.OPERATOR),
    ("POST", "/v1/webhooks", Role.OPERATOR),
    ("GET", "/v1/webhooks", Role.OPERATOR),
    ("DELETE", "/v1/webhooks/none", Role.OPERATOR),
    ("POST", "/v1/webhooks/none/test", Role.OPERATOR),
    ("GET", "/v1/webhooks/none/deliveries", Role.OPERATOR),
    ("POST", "/v1/experiments/intents/arms", Role.OPERATOR),
    ("POST", "/v1/fine_tuning/alpha/graders/run", Role.OPERATOR),
    ("POST", "/v1/fine_tuning/alpha/graders/validate", Role.OPERATOR),
]
EXAMPLES = {
    **{"name": "intents", "alias": "live", "number": "1"},
    **{"model": "tiny-base", "scope": "adapters", "subject": "intents"},
}
"""What stands for the parameters of paths in that list; ``none`` for ids."""
OF_THE_PAGE = {"/session", "/page/{path:path}"}
"""Routes that ask for a request of the page instead of a key: see ``test_sessions.py``."""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> tuple[TestClient, dict[Role, str]]:
    """A server with a key of every role. Requests without a body change nothing."""
    world = make_world(tmp_path_factory.mktemp("guarded"), admin_key=ADMIN_KEY)
    return TestClient(world.app), {role: world.keys.create(role.value, role)[0] for role in Role}


@pytest.mark.parametrize(("method", "path", "needed"), ROUTES)
def test_what_every_route_asks_for(
    guarded: tuple[TestClient, dict[Role, str]], method: str, path: str, needed: Role | None
) -> None:
    client, secrets = guarded
    assert (client.request(method, path).status_code == 401) == (needed is not None)
    for role, secret in secrets.items():
        status = client.request(method, path, headers={"authorization": f"Bearer {secret}"}).status_code
        assert (status == 403) == (needed is not None and role < needed)
        assert status != 401


def test_every_route_is_in_that_list(world: World) -> None:
    def example(path: str) -> str:
        return re.sub(r"{(\w+)(:path)?}", lambda found: EXAMPLES.get(found[1], "none"), path)

    own = [route for route in world.app.routes if isinstance(route, DocumentedRoute) and route.path not in OF_THE_PAGE]
    assert {(method, example(route.path)) for route in own for method in route.methods or ()} == {
        (method, path) for method, path, _ in ROUTES
    }


# ----------------------------------------------------------------------------------------------------- the edge


def with_route(world: World, handler: Callable[..., Any]) -> TestClient:
    world.app.add_api_route("/test", handler, methods=["POST"])
    return TestClient(world.app, base_url="http://127.0.0.1", client=HERE)


def test_every_answer_has_a_request_id(client: TestClient) -> None:
    first, second = (client.get("/health").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert client.get("/nowhere").headers["x-request-id"].startswith("req_")
    assert client.get("/health", headers={"x-request-id": "trace-7"}).headers["x-request-id"] == "trace-7"
    assert client.get("/health", headers={"x-request-id": "a b\t"}).headers["x-request-id"].startswith("req_")


def test_what_nobody_expected_is_logged_and_not_told(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("secret detail")

    with caplog.at_level(logging.ERROR):
        response = with_route(world, broken).post("/test")
    found = error(response, 500)
    assert found["code"] == "internal_error"
    assert "secret detail" not in response.text
    assert response.headers["x-request-id"] in found["message"]
    (record,) = [record for record in caplog.records if record.name.startswith("graftwork")]
    assert record.exc_info is not None
    assert "secret detail" in str(record.exc_info[1])


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_beyond_the_limit_is_refused(world: World, declared: bool) -> None:
    read = 0

    async def reader(request: Request) -> None:
        nonlocal read
        async for chunk in request.stream():
            read += len(chunk)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(MAX_JSON_BYTES // (1 << 20) + 1):
            yield b" " * (1 << 20)

    world.app.add_api_route("/test", reader, methods=["POST"])
    transport = httpx.ASGITransport(world.app, client=HERE)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        response = await client.post("/test", content=b" " * (MAX_JSON_BYTES + 1) if declared else chunks())
        assert "larger than the 8388608 bytes" in error(response, 413)["message"]
        assert read == (0 if declared else MAX_JSON_BYTES)
        assert (await client.post("/test", content=b" " * MAX_JSON_BYTES)).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "identity", ""])
async def test_packed_bodies_are_unpacked(world: World, encoding: str) -> None:
    async def reader(request: Request) -> dict[str, int]:
        return {"length": len(await request.body())}

    world.app.add_api_route("/test", reader, methods=["POST"])
    pack = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}.get(encoding, bytes)
    headers = {"content-encoding": encoding} if encoding else {}
    transport = httpx.ASGITransport(world.app, client=HERE)

    async def pieces(content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
        text = random.Random(0).randbytes(50_000)
        for content in (pack(text), pieces(pack(text))):
            assert (await client.post("/test", content=content)).json() == {"length": 50_000}
        assert (await client.post("/test", content=pack(b" " * MAX_JSON_BYTES))).status_code == 200
        response = await client.post("/test", content=pack(b" " * (MAX_JSON_BYTES + 1)))
        assert "larger than the 8388608 bytes" in error(response, 413)["message"]


GZIPPED = gzip.compress(b"{}", mtime=0)  # a time would be part of the tests' names, which every worker has to agree on


@pytest.mark.parametrize(
    ("encoding", "content", "code"),
    [
        ("br", b"x", "unsupported_content_encoding"),
        ("gzip, gzip", b"x", "unsupported_content_encoding"),
        ("gzip", b"{}", "invalid_content_encoding"),
        ("gzip", GZIPPED[:-1], "invalid_content_encoding"),
        ("gzip", GZIPPED + b"{}", "invalid_content_encoding"),
        ("gzip", b"", "invalid_content_encoding"),
        ("deflate", GZIPPED, "invalid_content_encoding"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(client: TestClient, encoding: str, content: bytes, code: str) -> None:
    response = client.post("/v1/feedback", content=content, headers={"content-encoding": encoding})
    assert error(response, 400)["code"] == code
