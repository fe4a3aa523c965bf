"""Two servers without engines on one PostgreSQL: what one changes the other knows, also after the database was away."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from graftwork.adapters.access.keys import Role
from graftwork.adapters.errors import Unavailable
from graftwork.adapters.feedback.feedback import FeedbackFilter
from graftwork.adapters.feedback.interactions import NewInteraction
from graftwork.server.generation.interaction_log import EndedAnswer
from tests.adapters.records import outcome
from tests.postgresql import PostgresqlServer, needs_postgresql, postgresql_server
from tests.server.fakes import ADMIN_KEY, World, adapter_files, form, make_world
from tests.server.http_errors import HERE

pytestmark = needs_postgresql

SECONDS = 5.0
"""Twice a second is looked for changes: this is for a machine that does much else."""


@dataclass
class Gateway:
    world: World
    client: TestClient

    def feedback(self, id: str, headers: dict[str, str] | None = None, **said: Any) -> Any:
        return self.client.post("/v1/feedback", json={"interaction_id": id, **said}, headers=headers)

    def live(self) -> Any:
        return self.client.get("/v1/adapters/intents").json()["aliases"]["live"]

    def answer(self) -> str:
        """What ends an answer that was generated: its row is logged, and its id is what the client has."""
        records = self.world.services.records
        id = records.ids.mint("chatcmpl", adapter="intents@1", unit=None, at=int(time.time()))
        row: NewInteraction = outcome(id)
        records.log.put(EndedAnswer(id=id, adapter="intents", key_id="local", num_bytes=100, outcome=lambda: row))
        assert records.log.flush(seconds=30)
        return id


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PostgresqlServer]:
    with postgresql_server() as server:
        yield server


@pytest.fixture
def gateways(postgresql: PostgresqlServer, tmp_path: Path) -> Iterator[tuple[Gateway, Gateway]]:
    url = postgresql.create_database()
    with ExitStack() as stack:
        made = []
        for name in "ab":
            home = tmp_path / name
            home.mkdir()
            world = make_world(home, url=url)
            stack.callback(world.services.database.close)
            stack.enter_context(client := TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE))
            records = world.services.records
            records.log.start()
            stack.callback(records.log.stop)
            assert records.delivery is not None
            records.delivery.start()
            stack.callback(records.delivery.stop)
            world.services.read_caches()
            made.append(Gateway(world, client))
        for seed in range(2):
            for gateway in made:  # each has its own files: pushed to both, and the same version
                assert gateway.client.post(
                    "/v1/adapters/intents/versions", files=form(adapter_files(seed))
                ).status_code in (200, 201)
        yield made[0], made[1]


def until(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_one_changes_the_other_knows(gateways: tuple[Gateway, Gateway]) -> None:
    here, there = gateways
    for number in (2, 1, 2):
        promoted = here.client.put("/v1/adapters/intents/aliases/live", json={"version": number})
        assert promoted.status_code == 200, promoted.text
        assert here.live() == number
        until(lambda number=number: there.live() == number)
    bearer, key = here.world.keys.create("app", "app")
    until(lambda: there.world.keys.authenticate(bearer) == key)
    until(lambda: not there.world.services.authenticator.open)
    here.world.keys.revoke(key.id)
    until(lambda: there.world.keys.authenticate(bearer) is None)


def test_feedback_is_taken_by_any(gateways: tuple[Gateway, Gateway]) -> None:
    here, there = gateways
    id = here.answer()
    assert there.feedback(id, thumb="up").status_code == 201
    (row,) = here.client.get("/v1/feedback", params={"interaction_id": id}).json()["data"]
    assert (row["thumb"], row["adapter"]) == ("up", "intents@1")


def test_while_the_database_is_away(gateways: tuple[Gateway, Gateway], postgresql: PostgresqlServer) -> None:
    here, there = gateways
    services = here.world.services
    before = here.answer()
    assert here.client.get("/ready").json()["status"] == "ready"
    postgresql.stop(signal.SIGQUIT)
    try:
        assert services.registry.resolve("intents").number == 1
        said = here.feedback(before, thumb="up")
        assert (said.status_code, said.json()["id"]) == (201, None)
        until(lambda: services.database.is_away)
        ready = here.client.get("/ready")
        assert ready.json()["status"] == "degraded"
        assert (ready.status_code, "database" in ready.json()["reason"]) == (200, True)
        meanwhile = here.answer()
        once = {"idempotency-key": "once"}
        assert here.feedback(meanwhile, thumb="down", headers=once).status_code == 201
        assert here.feedback(meanwhile, thumb="down", headers=once).status_code == 200
        assert here.feedback(meanwhile, thumb="up", headers=once).status_code == 409
        assert here.feedback("chatcmpl-made-up", thumb="up").status_code == 400
        for refused in (
            here.client.put("/v1/adapters/intents/aliases/live", json={"version": 2}),
            here.client.post("/v1/adapters/intents/versions", files=form(adapter_files(3))),
            here.client.get("/v1/feedback"),
        ):
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "database_unreachable"
        metrics = here.client.get("/metrics")
        assert (metrics.status_code, "graftwork_database_reachable 0.0" in metrics.text) == (200, True)
        long = [here.feedback(before, comment="x" * (1 << 18)).status_code for _ in range(4)]
        assert long == [201, 201, 201, 503], "there is an end to the room"
    finally:
        postgresql.start()
    until(lambda: here.client.get("/ready").json()["status"] == "ready")
    feedback = services.records.feedback
    until(lambda: len(feedback.find(FeedbackFilter(interaction_id=meanwhile))) == 1)
    until(lambda: len(feedback.find()) == 5)
    assert [row.thumb for row in feedback.find()] == [None, None, None, "down", "up"]
    assert there.world.services.records.interactions.get(meanwhile).id == meanwhile
    until(lambda: there.client.get("/ready").json()["status"] == "ready")
    assert there.client.put("/v1/adapters/intents/aliases/live", json={"version": 2}).status_code == 200
    until(lambda: here.live() == 2)


def test_no_request_must_come_before_the_database_goes_away(postgresql: PostgresqlServer, tmp_path: Path) -> None:
    url = postgresql.create_database()
    with ExitStack() as stack:
        clients, worlds = [], []
        for name in "ab":
            (tmp_path / name).mkdir()
            worlds.append(make_world(tmp_path / name, url=url, admin_key=ADMIN_KEY))
            stack.callback(worlds[-1].services.database.close)
            clients.append(TestClient(worlds[-1].app, base_url="http://127.0.0.1:8000", client=HERE))
        admin = {"authorization": f"Bearer {ADMIN_KEY}"}
        plan = {
            "name": "trial",
            "adapter": "intents",
            "arms": [{"version": 1}, {"version": "base", "weight": 0.5}],
            "metric": "thumb",
        }
        for method, path, options in (
            ("POST", "/v1/adapters/intents/versions", {"files": form(adapter_files())}),
            ("PUT", "/v1/adapters/intents/limits", {"json": {"concurrent": 3}}),
            ("POST", "/v1/experiments", {"json": plan}),
        ):
            done = clients[0].request(method, path, headers=admin, **options)
            assert done.is_success, done.text
        secret, key = worlds[0].keys.create("shop", Role.APP, scope=frozenset({"intents"}))
        here, services = clients[1], worlds[1].services
        services.read_caches()
        postgresql.stop(signal.SIGQUIT)
        try:
            assert services.keys.authenticate(secret) == key
            assert services.adapter_limits.limits_of("intents").concurrent == 3
            id = services.records.ids.mint(
                "chatcmpl", adapter=None, experiment="trial", arm="base", probability=0.5, unit=None
            )
            # Whose experiment that is cannot be read now.
            said = here.post(
                "/v1/feedback",
                json={"interaction_id": id, "thumb": "up"},
                headers={"authorization": f"Bearer {secret}"},
            )
            assert (said.status_code, said.json()["id"]) == (201, None)
        finally:
            postgresql.start()


@pytest.mark.parametrize("state", ["25006", "42P01", "42501"])
def test_what_is_refused_for_now_waits(gateways: tuple[Gateway, Gateway], state: str) -> None:
    """Of a standby that is read-only, of a dump that is being read in, of permissions that are missing."""
    here, _ = gateways
    services = here.world.services
    delivery = services.records.delivery
    assert delivery is not None
    with services.database.write() as connection:
        connection.execute(
            text(f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '{state}'; END$$""")
        )
        for table in ("feedback", "interactions"):
            refuse = f"CREATE TRIGGER refuse_{table} BEFORE INSERT ON {table} EXECUTE FUNCTION refuse()"
            connection.execute(text(refuse))
    id = here.answer()
    assert here.feedback(id, thumb="up").status_code == 201
    with pytest.raises(Unavailable):
        delivery.deliver()
    with services.database.write() as connection:
        connection.execute(text("DROP FUNCTION refuse CASCADE"))
    until(lambda: [row.thumb for row in services.records.feedback.find()] == ["up"])
    assert services.records.interactions.get(id).id == id


def test_what_waited_is_erased_too(gateways: tuple[Gateway, Gateway]) -> None:
    here, _ = gateways
    records = here.world.services.records
    assert records.delivery is not None
    records.delivery.stop()  # as if it had not come to it yet
    id = records.ids.mint("chatcmpl", adapter="intents@1", unit=None, at=int(time.time()))
    records.delivery._spool.keep("interaction", {id: asdict(outcome(id, user="ann"))})
    ready = here.client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "degraded")
    erased = here.client.delete("/v1/interactions", params={"user": "ann"})
    assert (erased.status_code, erased.json()["interactions"]) == (200, 1)
    assert here.client.get("/ready").json()["status"] == "ready"
    assert here.client.get("/v1/interactions", params={"user": "ann"}).json()["data"] == []


def test_what_is_delivered_again_is_there_once(gateways: tuple[Gateway, Gateway], postgresql: PostgresqlServer) -> None:
    here, _ = gateways
    records = here.world.services.records
    assert records.delivery is not None
    postgresql.stop()
    try:
        id = here.answer()
        for thumb in ("up", "down"):
            assert here.feedback(id, thumb=thumb).status_code == 201
        spool = records.delivery._spool
        rows = spool.oldest(10)
        assert [row.kind for row in rows] == ["interaction", "feedback", "feedback"]
    finally:
        postgresql.start()
    until(lambda: not spool.oldest(1))
    # As after a kill between the commit and the removal.
    for row in rows:
        spool.keep(row.kind, {f"again {row.number}": row.body})
    until(lambda: not spool.oldest(1))
    assert [row.thumb for row in records.feedback.find()] == ["down", "up"]
    assert [row.id for row in records.interactions.find()] == [id]
