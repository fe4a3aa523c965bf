"""Webhooks: their routes, and deliveries to a real receiver that answers, fails, redirects or does not end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from graftwork.adapters.access.keys import Role
from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.leases import Lease, Leases
from graftwork.adapters.webhooks.webhooks import Webhooks
from graftwork.server.background.webhooks import WebhookSender
from tests.server.fakes import ADMIN_KEY, World, make_world
from tests.server.http_errors import HERE, error


@dataclass
class Receiver:
    """A server that is told of events."""

    status: int = 200
    told: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.told.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(receiver.status)
            if receiver.status == 302:
                self.send_header("location", f"http://127.0.0.1:{receiver.port}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *given: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield receiver
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE) as client:
        yield client


@pytest.fixture
def database(world: World) -> Iterator[Database]:
    database = Database(world.home / "graftwork.db")
    yield database
    database.close()


@pytest.fixture
def lease(database: Database) -> Lease:
    lease = Leases(database).acquire("keeper", "me", seconds=600)
    assert lease is not None
    return lease


@pytest.fixture
def send(database: Database, lease: Lease) -> Callable[[], None]:
    sender = WebhookSender(Webhooks(database, allow_private=True), Leases(database))
    return lambda: sender.run(lease)


def test_a_webhook_is_created_tested_told_and_deleted(
    world: World, client: TestClient, database: Database, receiver: Receiver, send: Callable[[], None]
) -> None:
    url = f"http://localhost:{receiver.port}/hook?x=1"
    made = client.post("/v1/webhooks", json={"url": url, "events": ["round.promoted"]})
    assert made.status_code == 201
    webhook = made.json()
    secret = webhook.pop("secret")
    assert client.get("/v1/webhooks").json()["data"] == [webhook]
    assert client.post(f"/v1/webhooks/{webhook['id']}/test").status_code == 202
    send()
    ((headers, body),) = receiver.told
    event = OpenAI(api_key="none", webhook_secret=secret).webhooks.unwrap(body, headers)
    assert (event.id, event.type, headers["content-type"], headers["host"]) == (
        headers["webhook-id"], "webhook.test", "application/json", f"localhost:{receiver.port}",
    )  # fmt: skip
    (told,) = client.get(f"/v1/webhooks/{webhook['id']}/deliveries").json()["data"]
    assert (told["state"], told["attempts"], told["error"], told["event"]) == ("delivered", 1, None, event.id)
    send()
    assert len(receiver.told) == 1
    assert client.delete(f"/v1/webhooks/{webhook['id']}").json() == {**webhook, "deleted": True}
    assert error(client.delete(f"/v1/webhooks/{webhook['id']}"), 404)["code"] == "webhook_not_found"
    assert secret not in str(world.services.webhooks.all())


@pytest.mark.parametrize(
    ("status", "why"), [(500, "it answered 500"), (404, "it answered 404"), (302, "it answered 302")]
)
def test_what_is_not_taken_is_tried_again_and_no_redirect_is_followed(
    client: TestClient, receiver: Receiver, send: Callable[[], None], status: int, why: str
) -> None:
    id = client.post("/v1/webhooks", json={"url": f"http://localhost:{receiver.port}/hook"}).json()["id"]
    for _ in range(2):
        client.post(f"/v1/webhooks/{id}/test")
    receiver.status = status
    send()
    assert len(receiver.told) == 1, "one that fails is left alone until the next time"
    second, first = client.get(f"/v1/webhooks/{id}/deliveries").json()["data"]
    assert (first["state"], first["attempts"], first["error"], second["attempts"]) == ("waiting", 1, why, 0)
    receiver.status = 204
    send()
    assert client.get(f"/v1/webhooks/{id}/deliveries?limit=1").json()["data"][0]["state"] == "delivered"


def test_an_address_that_became_private_is_not_called(
    client: TestClient, database: Database, receiver: Receiver, lease: Lease
) -> None:
    id = client.post("/v1/webhooks", json={"url": f"http://localhost:{receiver.port}/hook"}).json()["id"]
    client.post(f"/v1/webhooks/{id}/test")
    WebhookSender(Webhooks(database), Leases(database)).run(lease)
    (told,) = client.get(f"/v1/webhooks/{id}/deliveries").json()["data"]
    assert (told["state"], receiver.told) == ("waiting", [])
    assert "not public" in told["error"]


def test_one_that_is_not_there_holds_up_no_other(
    client: TestClient, receiver: Receiver, send: Callable[[], None]
) -> None:
    gone = client.post("/v1/webhooks", json={"url": "http://localhost:1/hook"}).json()["id"]
    there = client.post("/v1/webhooks", json={"url": f"http://localhost:{receiver.port}/hook"}).json()["id"]
    for id in (gone, there):
        client.post(f"/v1/webhooks/{id}/test")
    send()
    assert len(receiver.told) == 1
    (told,) = client.get(f"/v1/webhooks/{gone}/deliveries").json()["data"]
    assert told["error"].startswith("ConnectError")


def test_one_that_drips_its_answer_is_not_waited_for(
    client: TestClient, receiver: Receiver, send: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftwork.server.background.webhooks.MAX_SECONDS", 3.0)
    with socket.create_server(("localhost", 0)) as slow:  # accepts, and says nothing
        dripping = client.post("/v1/webhooks", json={"url": f"http://localhost:{slow.getsockname()[1]}/x"}).json()["id"]
        there = client.post("/v1/webhooks", json={"url": f"http://localhost:{receiver.port}/hook"}).json()["id"]
        for id in (dripping, there):
            client.post(f"/v1/webhooks/{id}/test")
        send()
        assert len(receiver.told) == 1
        (told,) = client.get(f"/v1/webhooks/{dripping}/deliveries").json()["data"]
    assert told["error"] == "it did not answer within 3 seconds"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "url"),
        ({"url": 3}, "url"),
        ({"url": "https://10.0.0.1/x"}, "url"),
        ({"url": "https://hooks.example/x", "events": "round.promoted"}, "events"),
        ({"url": "https://hooks.example/x", "events": ["nothing"]}, "events[0]"),
        ({"url": "https://hooks.example/x", "secret": "mine"}, "secret"),
    ],
)
def test_what_can_be_no_webhook_is_refused(client: TestClient, body: dict[str, object], param: str) -> None:
    assert error(client.post("/v1/webhooks", json=body), 400)["param"] == param
    assert client.get("/v1/webhooks").json()["data"] == []


def test_operators_only(tmp_path: Path) -> None:
    world = make_world(tmp_path, admin_key=ADMIN_KEY, open_to_loopback=False)
    secret, _ = world.keys.create("shop", Role.APP)
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE) as client:
        client.headers["authorization"] = f"Bearer {secret}"
        for method, path in (
            *(("GET", "/v1/webhooks"), ("POST", "/v1/webhooks"), ("DELETE", "/v1/webhooks/x")),
            *(("POST", "/v1/webhooks/x/test"), ("GET", "/v1/webhooks/x/deliveries")),
            *(("GET", "/v1/rounds"), ("POST", "/v1/rounds"), ("GET", "/v1/rounds/x"), ("POST", "/v1/rounds/x/undo")),
            ("GET", "/v1/adapters/x/next_round"),
        ):
            assert error(client.request(method, path), 403)["code"] == "insufficient_role"
