"""Two servers on one PostgreSQL: one truth, also when the database or one of the two is gone for a while."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import make_url

from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.leases import Leases
from tests.e2e.conftest import MakeServer
from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.server_process import BASE, Server, environment, eventually
from tests.postgresql import PostgresqlServer, needs_postgresql, postgresql_server

pytestmark = [needs_postgresql, pytest.mark.slow]

ADMIN, PASSWORD = secrets.token_urlsafe(32), secrets.token_urlsafe(16)

SOON = 5.0
"""A second is promised, on a machine that does nothing else."""


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgresqlServer]:
    with postgresql_server() as server:
        yield server


@pytest.fixture(scope="module")
def url(postgresql: PostgresqlServer) -> str:
    """Of a new database; the password is not asked for, and must not be shown."""
    url = make_url(postgresql.create_database()).set(password=PASSWORD)
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def gateways(make_server: MakeServer, url: str) -> Iterator[tuple[Server, Server]]:
    """The first one also trains. Each variable has its turn."""
    with ExitStack() as stack:
        servers = []
        for variable, flags in (("GRAFTWORK_DATABASE", ()), ("GRAFTWORK_DATABASE_URL", ("--no-trainer",))):
            server = make_server(
                "--max-batch",
                "4",
                "--max-model-len",
                "512",
                *flags,
                environment={variable: url, "GRAFTWORK_ADMIN_KEY": ADMIN},
            )
            server.key = ADMIN
            stack.callback(server.put_down)
            servers.append(server.start())
        for server in servers:
            server.wait_until_ready()
        yield servers[0], servers[1]


def chat(server: Server, model: str, key: str = ADMIN, user: str | None = None, **options: Any) -> httpx.Response:
    body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": "Where is my card?"}]}
    return post(server, "/v1/chat/completions", {**body, **({"user": user} if user else {}), **options}, key)


def post(server: Server, path: str, body: Mapping[str, Any], key: str = ADMIN) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}{path}", json=body, headers=headers, timeout=60, verify=False)


def served(server: Server) -> int:
    """The number of the version that answers for the adapter's name."""
    return int(chat(server, "intents").headers["x-graftwork-adapter"].partition("@")[2])


@contextmanager
def asking(servers: Sequence[Server]) -> Iterator[list[int]]:
    """Ask each server one question after the other; the status of every answer is added to the list."""
    statuses: list[int] = []
    done = threading.Event()

    def ask(server: Server) -> None:
        while not done.is_set():
            statuses.append(chat(server, "intents").status_code)

    with ThreadPoolExecutor(len(servers)) as threads:
        asked = [threads.submit(ask, server) for server in servers]
        try:
            yield statuses
        finally:
            done.set()
        for future in asked:
            future.result()


def ready(server: Server) -> Any:
    return httpx.get(f"{server.url}/ready", timeout=10, verify=False).json()["status"]


def test_two_gateways(
    gateways: tuple[Server, Server], postgresql: PostgresqlServer, url: str, small: SmallAdapters, tmp_path: Path
) -> None:
    here, there = gateways
    folders = [small.write(tmp_path / f"intents-{seed}", seed) for seed in (1, 2)]
    for server in gateways:  # each has its own files
        with server.client() as client:
            for number, folder in enumerate(folders, 1):
                assert client.adapters.push("intents", folder).version == number
    with here.client() as a, there.client() as b:
        # Promotions, while both are asked all the time.
        with asking(gateways) as statuses:
            for number in (2, 1) * 5:
                a.adapters.promote("intents", number)
                assert served(here) == number
                eventually(lambda number=number: served(there) == number, SOON, f"version {number} is live there")
        assert set(statuses) == {200}
        # Keys.
        key = a.keys.create("shop", role="app")
        assert chat(there, BASE, key.secret).status_code == 200
        a.keys.revoke(key.id)
        assert chat(here, BASE, key.secret).status_code == 401
        eventually(lambda: chat(there, BASE, key.secret).status_code == 401, SOON, "the key is revoked there")
        # An experiment: every user has one arm, whoever is asked.
        a.experiments.start("first", "intents", [{"version": 1}, {"version": 2}], "thumb")
        eventually(lambda: "x-graftwork-arm" in chat(there, "intents", user="u").headers, SOON, "it runs there")
        arms = [
            {chat(server, "intents", user=f"user-{number}").headers["x-graftwork-arm"] for server in gateways}
            for number in range(8)
        ]
        assert {len(seen) for seen in arms} == {1}
        # Feedback goes to whoever is nearer.
        answered = chat(here, "intents", user="user-1").json()["id"]
        b.feedback.send(answered, thumb="up")
        assert [row.thumb for row in a.feedback.list(interaction_id=answered)] == ["up"]
        # One of the two does what is to be done once.
        database = Database(url)
        holder = Leases(database).holder("keeper")
        assert holder is not None
        assert "waits for jobs" in here.log

        # The database is gone for a while.
        postgresql.stop(signal.SIGQUIT)
        try:
            eventually(lambda: [ready(server) for server in gateways] == ["degraded"] * 2, SOON, "they say so")
            answers = [chat(server, "intents", user="user-1") for server in gateways]
            assert [answer.status_code for answer in answers] == [200, 200]
            ids = [answer.json()["id"] for answer in answers]
            for server, id in zip(gateways, ids, strict=True):
                said = post(server, "/v1/feedback", {"interaction_id": id, "thumb": "down"})
                assert (said.status_code, said.json()["id"]) == (201, None)
            refused = httpx.put(
                f"{here.url}/v1/adapters/intents/aliases/canary",
                json={"version": 1},
                headers={"authorization": f"Bearer {ADMIN}"},
                verify=False,
            )
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unreachable")
            # What was acknowledged survives the gateway.
            here.process.kill()
            here.wait()
        finally:
            postgresql.start()
        eventually(lambda: ready(there) == "ready", SOON, "the other one goes on")
        here.start_and_wait()
        for id in ids:
            eventually(lambda id=id: len(b.feedback.list(interaction_id=id)) == 1, SOON, "feedback is delivered")
            assert b.interactions.get(id).id == id
        assert [len(b.feedback.list(interaction_id=id)) for id in (*ids, answered)] == [1, 1, 1]
        eventually(lambda: Leases(database).holder("keeper") is not None, 60, "somebody does the duties")
        database.close()

    for server in gateways:
        assert server.stop() == 0
        assert PASSWORD not in server.log
        assert "Traceback" not in server.log


def test_the_password_is_not_an_argument(url: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "graftwork", "serve", "--home", str(tmp_path), "--database", url],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "GRAFTWORK_DATABASE" in done.stderr
    assert PASSWORD not in done.stderr
