"""The audit log: every change, by whom, in the transaction of the change; and none of what was said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from graftwork.adapters.access.audit import AuditLog, Change
from graftwork.adapters.access.keys import Role
from graftwork.adapters.errors import Unavailable
from graftwork.adapters.storage.database import Database
from tests.server.documented import document
from tests.server.fakes import ADMIN_KEY, World, adapter_files, form, make_world
from tests.server.http_errors import error

NO_CHANGES = {
    *("chat", "complete", "respond_", "message", "count_tokens", "embed", "tokenize", "detokenize"),
    *("send_feedback", "validate_grader", "run_grader"),
}
"""Operations that are no GET and change nothing that an operator set up."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path, admin_key=ADMIN_KEY)


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    headers = {"authorization": f"Bearer {ADMIN_KEY}", "x-request-id": "req-7"}
    with TestClient(world.app, base_url="http://127.0.0.1", headers=headers, client=("10.1.2.3", 50000)) as client:
        yield client


def entries(client: TestClient, **which: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/v1/audit", params={"limit": 100, **which}).json()["data"]
    return found


def push(client: TestClient, **options: Any) -> Any:
    return client.post("/v1/adapters/intents/versions", files=form(adapter_files()), **options)


def test_a_change_is_in_the_log_with_all_that_is_known_of_it(client: TestClient, world: World) -> None:
    made = client.post("/v1/keys", json={"name": "desk", "role": "operator"}).json()
    (entry,) = entries(client)
    at = entry.pop("at")
    (key,) = world.keys.list()
    assert abs(at - key.created_at.timestamp()) < 5
    assert entry == {
        "object": "audit.entry",
        "id": 1,
        "actor": "first admin key",
        "key_id": "first-admin",
        "action": "create_key",
        "target": f"keys/{made['id']}",
        "outcome": "done",
        "request_id": "req-7",
        "remote": "10.1.2.3",
    }
    assert made["secret"] not in client.get("/v1/audit/export").text


def test_what_was_made_and_changed_can_be_asked_for(client: TestClient) -> None:
    secret = client.post("/v1/keys", json={"name": "desk", "role": "operator"}).json()["secret"]
    own = {"authorization": f"Bearer {secret}"}
    for seed in range(2):
        client.post("/v1/adapters/intents/versions", files=form(adapter_files(seed)), headers=own)
    client.put("/v1/adapters/intents/aliases/live", json={"version": 2, "reason": "a secret reason"}, headers=own)
    client.post("/v1/adapters/intents/rollback", headers=own)
    webhook = client.post("/v1/webhooks", json={"url": "https://example.com/x"}, headers=own).json()["id"]
    assert [(entry["action"], entry["target"]) for entry in entries(client, actor="desk")] == [
        ("create_webhook", f"webhooks/{webhook}"),
        ("rollback", "adapters/intents/rollback"),
        ("promote", "adapters/intents/aliases/live"),
        ("push", "adapters/intents/versions/2"),
        ("push", "adapters/intents/versions/1"),
    ]
    assert entries(client, actor=secret.split("_")[1]) == entries(client, actor="desk")
    assert len(entries(client, target="adapters/intents")) == 4
    assert len(entries(client, target="adapters/intent")) == 0
    assert [entry["action"] for entry in entries(client, action="promote")] == ["promote"]
    assert entries(client, until=1) == entries(client, since="2100-01-01T00:00:00Z") == []
    first, second = (client.get("/v1/audit", params={"limit": 4, **more}).json() for more in ({}, {"after": 3}))
    assert (len(first["data"]), first["has_more"], [entry["id"] for entry in second["data"]]) == (4, True, [2, 1])
    exported = [json.loads(line) for line in client.get("/v1/audit/export").text.splitlines()]
    assert exported == entries(client)[::-1]
    assert "secret reason" not in json.dumps(exported)


def test_what_was_refused_is_there_with_its_status(client: TestClient, world: World) -> None:
    secret, _ = world.keys.create("shop", Role.APP)
    own = {"authorization": f"Bearer {secret}"}
    error(client.post("/v1/keys", json={"name": "x", "role": "admin"}, headers=own), 403)
    error(client.delete("/v1/keys/none"), 404)
    error(client.post("/v1/keys", json={"name": ""}), 400)
    error(client.post("/v1/keys", json={"name": "x", "role": "admin"}, headers={"authorization": "Bearer x"}), 401)
    assert [(entry["actor"], entry["action"], entry["outcome"]) for entry in entries(client)] == [
        ("first admin key", "create_key", "400"),
        ("first admin key", "revoke_key", "404"),
        ("shop", "create_key", "403"),
    ]


def test_what_only_reads_or_asks_is_not_there(client: TestClient, world: World) -> None:
    push(client)
    before = len(entries(client))
    client.get("/v1/models")
    client.head("/v1/models")
    client.post("/v1/feedback", json={"interaction_id": "none", "comment": "said"})
    assert len(entries(client)) == before


def test_every_operation_that_is_no_get_is_a_change_or_named(client: TestClient, world: World) -> None:
    """The routes of the engine are not in this world: they are those that are named."""
    tried = set()
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            if method == "get" or operation["operationId"] in NO_CHANGES or path.startswith("/v1/responses"):
                continue
            name = path.replace("{scope}", "adapters").replace("{subject}", "x").replace("{", "").replace("}", "")
            client.request(method, name)
            tried.add(operation["operationId"])
    assert {entry["action"] for entry in entries(client)} == tried


def test_a_change_that_is_taken_back_is_not_in_the_log(client: TestClient, world: World) -> None:
    database = Database(world.home / "graftwork.db")
    with database.write() as connection:
        connection.execute(text("CREATE TRIGGER no BEFORE INSERT ON keys BEGIN SELECT RAISE(ABORT, 'no'); END"))
    error(client.post("/v1/keys", json={"name": "x", "role": "app"}), 500)
    assert [entry["outcome"] for entry in entries(client)] == ["500"]
    assert world.keys.list() == ()


def test_a_change_that_cannot_be_logged_is_not_made(
    client: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: AuditLog, connection: object, change: Change, outcome: str) -> None:
        raise Unavailable("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(AuditLog, "_write", fail)
        error(client.post("/v1/keys", json={"name": "x", "role": "app"}), 503)
    assert world.keys.list() == ()
    assert entries(client) == []


@pytest.mark.parametrize("statement", ["UPDATE audit_log SET actor = 'nobody'", "DELETE FROM audit_log"])
def test_rows_stay_as_they_are(client: TestClient, world: World, statement: str) -> None:
    client.post("/v1/keys", json={"name": "desk", "role": "app"})
    database = Database(world.home / "graftwork.db")
    with pytest.raises(DBAPIError, match="append-only"), database.write() as connection:
        connection.execute(text(statement))


def test_what_is_written_without_a_request_is_not_there(client: TestClient, world: World) -> None:
    world.services.keys.create("by hand", Role.APP)
    push(client)
    world.services.registry.set_alias("intents", "candidate", 1, actor="keeper")
    assert [entry["action"] for entry in entries(client)] == ["push"]


def test_addresses_of_any_kind_can_be_kept(client: TestClient) -> None:
    client.delete("/v1/keys/%00%ED%A0%80" + "x" * 1000)
    (entry,) = entries(client)
    assert entry["target"].startswith("keys/�")
    assert len(entry["target"]) == 512
