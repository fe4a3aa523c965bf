"""A server with API keys: roles, and that the first key is not leaked. It listens on all interfaces."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from graftwork.clients.errors import ForbiddenError
from tests.e2e.conftest import MakeServer
from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.requests import PROMPT, OpenStream, ask
from tests.e2e.server_process import BASE, Server, environment, eventually

ADMIN = secrets.token_urlsafe(32)


@pytest.fixture(scope="module")
def locked(new_server: MakeServer) -> Iterator[Server]:
    """One sequence runs, one waits: crowded soon."""
    flags = ("--host", "0.0.0.0", "--max-queue", "2", "--max-batch", "1")
    server = new_server(*flags, environment={"GRAFTWORK_ADMIN_KEY": ADMIN})
    server.key = ADMIN
    server.start_and_wait()
    yield server
    assert server.stop() == 0
    assert ADMIN not in server.log
    assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def app_key(locked: Server) -> str:
    return create(locked, "shop", "app")


@pytest.fixture(scope="module")
def operator_key(locked: Server) -> str:
    return create(locked, "ops", "operator")


def create(server: Server, name: str, role: str) -> str:
    """As an admin does it, at the command line."""
    done = graftwork(server, "keys", "create", name, "--role", role, "--json")
    assert done.returncode == 0, done.stderr
    secret: str = json.loads(done.stdout)["secret"]
    assert secret not in done.stderr
    return secret


def graftwork(server: Server, *words: str, key: str = ADMIN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "graftwork", *words],
        env=environment({"GRAFTWORK_URL": server.url, "GRAFTWORK_API_KEY": key}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_key(locked: Server) -> None:
    with httpx.Client(base_url=locked.url) as client:
        for path in ("/health", "/ready", "/"):
            assert client.get(path).status_code == 200, path
        for method, path in (
            ("GET", "/v1/models"),
            ("GET", f"/v1/models/{BASE}"),
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/completions"),
            ("GET", "/v1/adapters"),
            ("POST", "/v1/adapters/intents/versions"),
            ("PUT", "/v1/adapters/intents/aliases/live"),
            ("GET", "/v1/keys"),
            ("POST", "/v1/keys"),
            ("GET", "/metrics"),
        ):
            for headers in ({}, {"authorization": "Bearer no-key-of-ours"}, {"authorization": f"Basic {ADMIN}"}):
                answer = client.request(method, path, headers=headers)
                assert answer.status_code == 401, path
                assert answer.json()["error"]["type"] == "authentication_error"
                assert "bearer" in answer.headers["www-authenticate"].lower()
    with locked.openai("wrong") as wrong, pytest.raises(openai.AuthenticationError):
        ask(wrong, BASE)


def test_an_app_asks_and_reads(locked: Server, app_key: str) -> None:
    with locked.openai(app_key) as client:
        assert ask(client, BASE, max_tokens=1).text
        assert client.models.retrieve(BASE)
    with locked.client(app_key) as client_of_ours:
        assert client_of_ours.adapters.list().data is not None
        for forbidden in (
            lambda: client_of_ours.adapters.push("mine", server_path="/anywhere"),
            lambda: client_of_ours.adapters.promote("mine", 1),
            lambda: client_of_ours.adapters.rollback("mine"),
            lambda: client_of_ours.adapters.retire("mine", 1),
            lambda: client_of_ours.keys.list(),
            lambda: client_of_ours.keys.create("another", role="admin"),
        ):
            with pytest.raises(ForbiddenError, match="role"):
                forbidden()
    assert graftwork(locked, "adapters", "rollback", "mine", key=app_key).returncode == 5


def test_an_operator_changes_adapters(locked: Server, operator_key: str, small: SmallAdapters, tmp_path: Path) -> None:
    with locked.client(operator_key) as client:
        client.adapters.push("mine", small.write(tmp_path / "1", seed=1))
        client.adapters.push("mine", small.write(tmp_path / "2", seed=2), alias="live")
        client.adapters.rollback("mine")
        assert {event.actor for event in client.adapters.history("mine")} == {"ops"}
        with pytest.raises(ForbiddenError, match="admin"):
            client.keys.list()


def test_a_key_is_revoked(locked: Server) -> None:
    secret = create(locked, "short-lived", "app")
    with locked.openai(secret) as client, locked.client() as admin:
        assert client.models.list().data
        keys = {key.name: key for key in admin.keys.list()}
        assert keys["short-lived"].secret is None
        assert graftwork(locked, "keys", "revoke", keys["short-lived"].id).returncode == 0
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert {key.name: key for key in admin.keys.list()}["short-lived"].revoked_at is not None


def test_the_first_key_leaks_nowhere(locked: Server) -> None:
    assert len(locked.processes()) >= 4
    for process in locked.processes():
        assert ADMIN.encode() not in Path(f"/proc/{process.pid}/environ").read_bytes(), process.cmdline()
        assert ADMIN not in " ".join(process.cmdline())
    for path in locked.home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 24:
            assert ADMIN.encode() not in path.read_bytes(), path


# -------------------------------------------------------------------------------------------------------- crowded


def test_too_many_at_once(locked: Server, app_key: str) -> None:
    with locked.openai(app_key) as client:
        # The first runs before the second asks, so that it is the one that leaves first.
        streams = [
            OpenStream(client, BASE, max_tokens=2000).wait_until_begun(),
            OpenStream(client, BASE, max_tokens=2000),
        ]
        eventually(lambda: locked.metric("running") == 1 and locked.metric("queue_depth") == 1, 10, "one waits")
        with pytest.raises(openai.RateLimitError) as raised:
            ask(client, BASE)
        assert int(raised.value.response.headers["retry-after"]) >= 1
        assert raised.value.code == "overloaded"
        # More than ever fit is no matter of patience.
        with pytest.raises(openai.BadRequestError, match="this server takes 2"):
            client.chat.completions.create(model=BASE, messages=[{"role": "user", "content": PROMPT}], n=3)
        assert locked.metric("requests_total", status="429") == 1
        for stream in streams:
            stream.leave()
        eventually(lambda: locked.metric("running") == locked.metric("queue_depth") == 0, 10, "there is room")


def test_patience_is_enough(locked: Server, app_key: str) -> None:
    """The official client asks again by itself when it is told to come back."""
    with locked.openai(app_key) as client:
        running = OpenStream(client, BASE, max_tokens=2000).wait_until_begun()
        waiting = OpenStream(client, BASE, max_tokens=10)
        eventually(lambda: locked.metric("queue_depth") == 1, 10, "one waits")
        refused = locked.metric("requests_total", status="429")
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, client.with_options(max_retries=10), BASE, max_tokens=1)
            eventually(lambda: locked.metric("requests_total", status="429") > refused, 10, "it was told to come back")
            running.leave()
            assert answer.result().text
        assert waiting.wait_until_ended().finish_reason == "length"
