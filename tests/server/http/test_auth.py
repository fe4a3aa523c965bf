"""Authentication: roles, unknown and revoked keys, and servers without keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.testclient import TestClient

from graftwork.adapters.access.keys import Keys, Role
from graftwork.adapters.access.principal import LOCAL_PRINCIPAL, Principal
from graftwork.adapters.storage.database import Database
from graftwork.server.http import edge
from graftwork.server.http.auth import Authenticator
from tests.server.fakes import ADMIN_KEY, World, make_world

HERE = ("127.0.0.1", 50000)


def guarded(authenticator: Authenticator, world: World, cors_origins: tuple[str, ...] = ()) -> FastAPI:
    """One route for every role, which says who called."""
    app, routes = FastAPI(openapi_url=None), APIRouter()
    for role in Role:

        @routes.post(f"/{role.value}", dependencies=[Depends(authenticator.require(role))])
        async def who(request: Request) -> dict[str, str]:
            return {"name": request.state.principal.name, "role": request.state.principal.role.value}

    app.include_router(routes)
    edge.install(app, world.services.metrics, world.services.audit_log, cors_origins)
    return app


@pytest.fixture
def locked(tmp_path: Path) -> tuple[TestClient, World]:
    world = make_world(tmp_path, admin_key=ADMIN_KEY)
    return TestClient(guarded(world.services.authenticator, world)), world


@pytest.fixture
def open_world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_the_first_key_is_an_admins(locked: tuple[TestClient, World]) -> None:
    client, _ = locked
    assert client.post("/admin", headers=bearer(ADMIN_KEY)).json() == {"name": "first admin key", "role": "admin"}
    assert client.post("/admin", headers={"authorization": f"bearer  {ADMIN_KEY} "}).status_code == 200


@pytest.mark.parametrize("header", ["x-api-key", "api-key", "X-API-Key"])
def test_keys_come_in_the_headers_of_other_clients_too(locked: tuple[TestClient, World], header: str) -> None:
    client, _ = locked
    assert client.post("/admin", headers={header: ADMIN_KEY}).json()["name"] == "first admin key"
    assert client.post("/admin", headers={header: "gw-wrong"}).status_code == 401
    # A proxy's own bearer counts before it, if it is one.
    assert client.post("/admin", headers={header: ADMIN_KEY, "authorization": "Basic eA=="}).status_code == 200
    assert client.post("/admin", headers={header: ADMIN_KEY, **bearer("gw-wrong")}).status_code == 401


@pytest.mark.parametrize("own", list(Role))
@pytest.mark.parametrize("needed", list(Role))
def test_a_role_may_do_what_the_ones_below_it_may(locked: tuple[TestClient, World], own: Role, needed: Role) -> None:
    client, world = locked
    secret, _ = world.keys.create("support desk", own)
    response = client.post(f"/{needed.value}", headers=bearer(secret))
    if own >= needed:
        assert response.json() == {"name": "support desk", "role": own.value}
    else:
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "insufficient_role"
        assert f"role {needed.value} or above, and yours is {own.value}" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {ADMIN_KEY}x"},
        {"authorization": f"Basic {ADMIN_KEY}"},
        {"authorization": ADMIN_KEY},
        {"x-api-key": f"{ADMIN_KEY}x"},
        {"api-key": f"Bearer {ADMIN_KEY}"},
        {"authorization": "Bearer gw_0123456789ab_" + "0" * 64},
        {"authorization": b"Bearer \xff\xfe"},
    ],
)
def test_nobody_else_is_let_in_nor_told_why_in_detail(
    locked: tuple[TestClient, World], headers: dict[str, str | bytes], caplog: pytest.LogCaptureFixture
) -> None:
    client, _ = locked
    response = client.post("/app", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["error"]["type"] == "authentication_error"
    assert "wrong" not in response.text
    assert ADMIN_KEY not in response.text + caplog.text


def test_a_revoked_key_opens_nothing(locked: tuple[TestClient, World]) -> None:
    client, world = locked
    secret, key = world.keys.create("desk", Role.APP)
    assert client.post("/app", headers=bearer(secret)).status_code == 200
    world.keys.revoke(key.id)
    assert client.post("/app", headers=bearer(secret)).status_code == 401


def test_who_has_called_is_found_as_long_as_they_may_call(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    own = Principal("trainer", Role.OPERATOR, "trainer")
    authenticator = Authenticator(world.keys, open_to_loopback=True, own=("secret-of-its-own", own))
    assert authenticator.find("local") == LOCAL_PRINCIPAL
    _, key = world.keys.create("desk", Role.ADMIN)
    authenticator.recheck()
    assert authenticator.find("local") is None, "a key is asked for now"
    assert authenticator.find(key.id) == Principal("desk", Role.ADMIN, key.id)
    assert authenticator.find("trainer") == own
    assert authenticator.find("first-admin") is None
    assert authenticator.find("0123456789ab") is None
    world.keys.revoke(key.id)
    assert authenticator.find(key.id) is None
    first = Authenticator(Keys(Database(world.home / "graftwork.db"), admin_key=ADMIN_KEY), open_to_loopback=False)
    found = first.find("first-admin")
    assert found is not None
    assert found.role is Role.ADMIN


@pytest.mark.parametrize("headers", [{}, bearer("anything"), {"authorization": "Basic eA=="}])
def test_an_open_server_lets_its_own_machine_in_as_admin(open_world: World, headers: dict[str, str]) -> None:
    app = guarded(open_world.services.authenticator, open_world)
    client = TestClient(app, base_url="http://localhost:8000", client=HERE)
    assert client.post("/admin", headers=headers).json() == {"name": "local", "role": "admin"}
    assert TestClient(app, base_url="http://[::1]:8000", client=("::1", 1)).post("/admin").status_code == 200


def test_an_open_server_lets_no_other_machine_in(open_world: World) -> None:
    app = guarded(open_world.services.authenticator, open_world)
    assert TestClient(app, base_url="http://127.0.0.1", client=("10.0.0.7", 1)).post("/app").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "attacker.example"},
        {"host": "127.0.0.1.attacker.example:8000"},
        {"host": "[::1"},
        {"origin": "https://attacker.example"},
        {"origin": "null"},
        {"origin": "http://localhost.attacker.example"},
    ],
)
def test_an_open_server_lets_no_page_from_elsewhere_in(open_world: World, headers: dict[str, str]) -> None:
    app = guarded(open_world.services.authenticator, open_world)
    response = TestClient(app, base_url="http://127.0.0.1:8000", client=HERE).post("/app", headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (403, "not_local")


def test_pages_of_sites_that_were_named_may_call(tmp_path: Path) -> None:
    named, other = {"origin": "https://app.example"}, {"origin": "https://app.example.attacker.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    for admin_key, keys in ((None, {}), (ADMIN_KEY, bearer(ADMIN_KEY))):
        home = tmp_path / str(bool(admin_key))
        home.mkdir()
        world = make_world(home, admin_key=admin_key)
        authenticator = Authenticator(world.keys, open_to_loopback=True, cors_origins=("https://app.example", "*"))
        app = guarded(authenticator, world, cors_origins=("https://app.example",))
        client = TestClient(app, base_url="http://127.0.0.1", client=HERE)
        preflight = client.options("/app", headers={**named, **asked})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, named["origin"])
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        answer = client.post("/app", headers={**named, **keys})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, named["origin"])
        assert "x-request-id" in answer.headers["access-control-expose-headers"]
        refused = client.post("/app", headers={**other, **keys})
        assert "access-control-allow-origin" not in refused.headers
        assert refused.status_code == (200 if admin_key else 403), "a key counts from anywhere; without one nobody else"
        # Errors can be read, too.
        unknown = client.post("/nothing", headers={**named, **keys})
        assert (unknown.status_code, unknown.headers["access-control-allow-origin"]) == (404, named["origin"])


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1:8000", "http://[::1]:1"])
def test_an_open_server_lets_pages_of_its_own_machine_in(open_world: World, origin: str) -> None:
    app = guarded(open_world.services.authenticator, open_world)
    client = TestClient(app, base_url="http://127.0.0.1:8000", client=HERE)
    assert client.post("/app", headers={"origin": origin}).status_code == 200


def test_an_open_server_knows_a_key_that_it_is_shown(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    authenticator = Authenticator(world.keys, open_to_loopback=True)
    assert authenticator.open
    client = TestClient(guarded(authenticator, world), base_url="http://127.0.0.1", client=HERE)
    secret, _ = world.keys.create("desk", Role.APP)
    assert client.post("/app", headers=bearer(secret)).json()["name"] == "desk"
    assert client.post("/admin", headers=bearer(secret)).status_code == 403


def test_a_server_locks_when_a_key_is_made_and_never_opens_again(open_world: World) -> None:
    authenticator = open_world.services.authenticator
    client = TestClient(guarded(authenticator, open_world), base_url="http://127.0.0.1", client=HERE)
    assert client.post("/admin").status_code == 200
    _, key = open_world.keys.create("boss", Role.ADMIN)
    authenticator.recheck()
    assert client.post("/admin").status_code == 401
    open_world.keys.revoke(key.id)
    authenticator.recheck()
    assert not authenticator.open
    assert client.post("/app").status_code == 401


def test_a_server_that_was_not_told_to_be_open_is_not(tmp_path: Path) -> None:
    world = make_world(tmp_path, open_to_loopback=False)
    client = TestClient(guarded(world.services.authenticator, world), base_url="http://127.0.0.1", client=HERE)
    assert client.post("/app").status_code == 401
