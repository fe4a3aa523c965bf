"""Sessions of the page: which requests they count in, and when they end."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from graftwork.adapters.access.keys import Role, sha256_of
from graftwork.adapters.storage.database import Database
from graftwork.server.http.sessions import COOKIE, HEADER, MAX_SECONDS, Sessions
from tests.server.fakes import ADMIN_KEY, World, make_world
from tests.server.http_errors import HERE, error

PAGE = {HEADER: "1", "sec-fetch-site": "same-origin"}
OWN = "http://graft.example"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path, admin_key=ADMIN_KEY)


@pytest.fixture
def client(world: World) -> TestClient:
    return TestClient(world.app, base_url=OWN, client=HERE)


def sign_in(client: TestClient, key: str, headers: dict[str, str] | None = None) -> Any:
    return client.post("/session", json={"key": key}, headers=PAGE | (headers or {}))


def test_a_key_becomes_a_cookie_that_scripts_cannot_read(client: TestClient, world: World) -> None:
    nobody = client.get("/session", headers=PAGE).json()
    assert nobody == {"object": "session", "name": None, "role": None, "key_id": None, "adapters": None, "open": False}
    secret, key = world.keys.create("desk", Role.OPERATOR)
    response = sign_in(client, f" {secret}\n")
    signed_in = {"name": "desk", "role": "operator", "key_id": key.id}
    assert response.json() == {**nobody, **signed_in}
    cookie = response.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}={key.id}.")
    assert secret not in cookie
    for attribute in ("HttpOnly", "SameSite=strict", f"Max-Age={MAX_SECONDS}", "Path=/"):
        assert attribute in cookie
    assert "Secure" not in cookie
    assert client.get("/v1/interactions", headers=PAGE).status_code == 200
    assert error(client.get("/v1/keys", headers=PAGE), 403), "the session may what the key may"
    assert client.get("/session", headers=PAGE).json()["name"] == "desk"


def test_behind_tls_the_cookie_is_for_tls_alone(client: TestClient) -> None:
    response = sign_in(client, ADMIN_KEY, {"origin": "https://graft.example"})
    assert "Secure" in response.headers["set-cookie"]


def test_a_key_of_the_request_counts_before_the_session(client: TestClient, world: World) -> None:
    sign_in(client, ADMIN_KEY)
    secret, _ = world.keys.create("shop", Role.APP)
    assert client.get("/v1/keys", headers=PAGE).status_code == 200
    assert error(client.get("/v1/keys", headers={**PAGE, "authorization": f"Bearer {secret}"}), 403)
    assert error(client.get("/v1/keys", headers={**PAGE, "authorization": "Bearer gw_unknown"}), 401)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin"},
        {HEADER: "1", "sec-fetch-site": "same-site"},
        {HEADER: "1", "sec-fetch-site": "cross-site"},
        {HEADER: "1", "sec-fetch-site": "none"},
        {HEADER: "1", "origin": "http://attacker.example"},
        {HEADER: "1", "origin": "http://graft.example:81"},
        {HEADER: "1", "origin": "null"},
        {HEADER: "1", "origin": "http://["},
    ],
)
def test_requests_that_another_site_may_have_caused_have_no_session(
    client: TestClient, headers: dict[str, str]
) -> None:
    sign_in(client, ADMIN_KEY)
    assert error(client.post("/v1/keys", json={"name": "x", "role": "admin"}, headers=headers), 401)
    assert error(client.post("/session", json={"key": ADMIN_KEY}, headers=headers), 403)["code"] == "not_from_page"
    assert error(client.delete("/session", headers=headers), 403)["code"] == "not_from_page"


@pytest.mark.parametrize("headers", [{HEADER: "1"}, {HEADER: "1", "origin": OWN}, PAGE])
def test_requests_of_the_page_have_one(client: TestClient, headers: dict[str, str]) -> None:
    sign_in(client, ADMIN_KEY)
    assert client.post("/v1/keys", json={"name": "x", "role": "app"}, headers=headers).status_code == 201


def test_a_session_ends_with_its_key_with_time_and_when_one_signs_out(
    client: TestClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, key = world.keys.create("desk", Role.ADMIN)
    sign_in(client, secret)
    assert client.get("/v1/keys", headers=PAGE).status_code == 200
    world.keys.revoke(key.id)
    assert error(client.get("/v1/keys", headers=PAGE), 401)
    assert client.get("/session", headers=PAGE).json()["role"] is None
    assert error(sign_in(client, secret), 401)

    sign_in(client, ADMIN_KEY)
    assert client.delete("/session", headers=PAGE).json()["name"] is None
    assert error(client.get("/v1/keys", headers=PAGE), 401)

    sign_in(client, ADMIN_KEY)
    assert client.get("/v1/keys", headers=PAGE).status_code == 200
    now = time.time()
    monkeypatch.setattr("graftwork.server.http.sessions.time.time", lambda: now + MAX_SECONDS + 1)
    assert error(client.get("/v1/keys", headers=PAGE), 401)


def test_a_session_ends_with_the_secret_that_it_began_with(client: TestClient, world: World) -> None:
    secret, key = world.keys.create("desk", Role.ADMIN)
    sign_in(client, secret)
    world.keys.rotate(key.id, overlap=timedelta(hours=1))
    assert client.get("/v1/keys", headers=PAGE).status_code == 200
    secret, _ = world.keys.rotate(key.id, overlap=timedelta(0))
    assert error(client.get("/v1/keys", headers=PAGE), 401)
    sign_in(client, secret)
    assert client.get("/v1/keys", headers=PAGE).status_code == 200


def test_nobody_makes_a_session_up(client: TestClient, world: World) -> None:
    own = world.services.authenticator.sessions.token("first-admin", sha256_of(ADMIN_KEY))
    key_id, ends_at, mac = own.split(".")
    forged = (
        f"{key_id}.{int(ends_at) + 1}.{mac}",
        f"0123456789ab.{ends_at}.{mac}",
        f"{key_id}.{ends_at}.{'0' * 64}",
        Sessions(b"another").token("first-admin", sha256_of(ADMIN_KEY)),
        f"{key_id}.{ends_at}",
        "",
    )
    for token, status in (*((token, 401) for token in forged), (own, 200)):
        client.cookies.set(COOKIE, token)
        assert client.get("/v1/keys", headers=PAGE).status_code == status, token


def test_processes_share_sessions_until_the_first_admin_key_changes(world: World) -> None:
    database = Database(world.home / "graftwork.db")
    world.services.authenticator.sessions = Sessions.of(database)

    for admin_key, status in ((ADMIN_KEY, 200), ("another-key-of-16", 401)):
        token = Sessions.of(database).token("first-admin", sha256_of(admin_key))
        client = TestClient(world.app, base_url=OWN, cookies={COOKIE: token})
        assert client.get("/v1/keys", headers=PAGE).status_code == status
    database.close()


def test_a_server_without_keys_needs_no_session(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    client = TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE)
    assert client.get("/session").json() == {
        "object": "session",
        "name": "local",
        "role": "admin",
        "key_id": "local",
        "adapters": None,
        "open": True,
    }
