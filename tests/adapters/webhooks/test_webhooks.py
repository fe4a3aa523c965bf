"""Webhooks: what addresses they may have, what they are told, when a delivery is tried again, and signatures."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from graftwork.adapters.errors import Conflict, InvalidRequest, NotFound
from graftwork.adapters.storage.database import Database, migrate
from graftwork.adapters.webhooks.addresses import check_url, resolve
from graftwork.adapters.webhooks.outbox import add_event
from graftwork.adapters.webhooks.signature import new_secret, sign
from graftwork.adapters.webhooks.webhooks import KEPT_DAYS, MAX_WEBHOOKS, RETRY_SECONDS, Webhooks

URL = "https://hooks.example/graftwork"


class Clock:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "graftwork.db")
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def webhooks(database: Database, clock: Clock) -> Webhooks:
    return Webhooks(database, now=clock)


def tell(database: Database, type: str = "round.promoted") -> None:
    with database.write() as connection:
        add_event(connection, type, {"id": "round-1"})


def free(connection: object) -> None:
    pass


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example",
        "ftp://hooks.example/x",
        "file:///etc/passwd",
        "https://",
        "https:///x",
        "https://ann:secret@hooks.example/x",
        "https://hooks.example/x#y",
        "https://hooks.example:99999/x",
        "https://hooks.example/a b",
        "https://hooks.example/\r\nx-injected: 1",
        "https://größe.example/x",
        f"https://hooks.example/{'a' * 2000}",
    ],
)
def test_what_is_no_address_is_refused(webhooks: Webhooks, url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        webhooks.create(url, actor="ann")
    assert (refused.value.param, refused.value.code) == ("url", "invalid_url")
    assert webhooks.all() == []


PRIVATE = (
    *("127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.3.4", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "[::1]", "[::]", "[fe80::1]", "[fc00::1]"),
    *("[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]"),
    *("[64:ff9b:1::1]", "[fec0::1]", "[::ffff:0:10.0.0.1]"),
)


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_refused_unless_allowed(webhooks: Webhooks, database: Database, host: str) -> None:
    with pytest.raises(InvalidRequest, match="not public"):
        webhooks.create(f"http://{host}:8080/x", actor="ann")
    assert Webhooks(database, allow_private=True).create(f"http://{host}:8080/x", actor="ann").events == ()


@pytest.mark.parametrize("found", ["127.0.0.1", "10.1.2.3", "::1", "::ffff:192.168.0.1", "fe80::1%eth0"])
def test_a_name_of_a_private_address_is_not_connected_to(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    def lookup(*given: Any, **more: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("93.184.216.34", found)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(OSError, match="not public"):
        resolve("hooks.example", 443, allow_private=False)
    assert resolve("hooks.example", 443, allow_private=True) == "93.184.216.34"


def test_public_addresses_are_fine() -> None:
    for url in ("https://hooks.example/x", "http://93.184.216.34/x", "https://[2606:2800:220:1::1]:8443/x?y=1"):
        assert check_url(url, allow_private=False).hostname


# --- what they are told -----------------------------------------------------------------------------------------------


def test_a_webhook_is_told_what_it_asked_for(webhooks: Webhooks, database: Database) -> None:
    tell(database)  # nobody is there
    everything = webhooks.create(URL, actor="ann")
    some = webhooks.create(URL, events=["round.promoted", "round.promoted"], actor="ann")
    assert (some.events, everything.secret == some.secret) == (("round.promoted",), False)
    assert "secret" not in repr(some)
    tell(database)
    tell(database, "round.failed")
    assert [each.type for each in webhooks.deliveries(everything.id)] == ["round.failed", "round.promoted"]
    (told,) = webhooks.deliveries(some.id)
    assert (told.state, told.attempts, told.event) == ("waiting", 0, webhooks.deliveries(everything.id)[1].event)
    webhooks.test(some.id, actor="bob")
    assert webhooks.deliveries(some.id)[0].type == "webhook.test"
    assert webhooks.delete(some.id) == some
    assert webhooks.all() == [everything]
    for ask in (webhooks.delete, webhooks.deliveries, lambda id: webhooks.test(id, actor="ann")):
        with pytest.raises(NotFound, match="there is no webhook"):
            ask(some.id)


def test_what_no_webhook_can_have(webhooks: Webhooks) -> None:
    with pytest.raises(InvalidRequest) as refused:
        webhooks.create(URL, events=["round.promoted", "round.lost"], actor="ann")
    assert refused.value.param == "events[1]"
    for _ in range(MAX_WEBHOOKS):
        webhooks.create(URL, actor="ann")
    with pytest.raises(Conflict, match="limit"):
        webhooks.create(URL, actor="ann")


def test_an_event_is_stored_with_what_makes_it_true(webhooks: Webhooks, database: Database) -> None:
    webhook = webhooks.create(URL, actor="ann")

    def fail() -> None:
        with database.write() as connection:
            add_event(connection, "round.promoted", {"id": "round-1"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(webhooks.deliveries(webhook.id)) == []


def test_what_failed_is_tried_again_later_and_later_and_given_up(
    webhooks: Webhooks, database: Database, clock: Clock
) -> None:
    webhook = webhooks.create(URL, actor="ann")
    tell(database)
    clock.now += timedelta(seconds=1)
    for number, pause in enumerate(RETRY_SECONDS, 1):
        ((found, (delivery,)),) = webhooks.due().items()
        assert (found, delivery.attempts) == (webhook, number - 1)
        webhooks.record(delivery, "it answered 500", fence=free)
        assert webhooks.due() == {}
        clock.now += timedelta(seconds=pause - 1)
        assert webhooks.due() == {}
        clock.now += timedelta(seconds=1)
    (((delivery,)),) = webhooks.due().values()
    webhooks.record(delivery, "it answered 500", fence=free)
    clock.now += timedelta(days=10)
    assert webhooks.due() == {}
    (given_up,) = webhooks.deliveries(webhook.id)
    assert (given_up.state, given_up.attempts, given_up.error, given_up.next_at) == (
        "failed", len(RETRY_SECONDS) + 1, "it answered 500", None,
    )  # fmt: skip
    clock.now += timedelta(days=KEPT_DAYS)
    webhooks.clean(fence=free)
    assert list(webhooks.deliveries(webhook.id)) == []


def test_what_was_delivered_is_not_sent_again(webhooks: Webhooks, database: Database, clock: Clock) -> None:
    webhook = webhooks.create(URL, actor="ann")
    tell(database)
    tell(database, "round.failed")
    clock.now += timedelta(seconds=1)
    ((first, second),) = webhooks.due().values()
    assert (first.type, second.type) == ("round.promoted", "round.failed")
    webhooks.record(first, None, fence=free)
    assert list(webhooks.due().values()) == [[second]]
    webhooks.clean(fence=free)
    assert len(webhooks.deliveries(webhook.id)) == 2


def test_the_end_of_a_deleted_webhooks_delivery_is_nobody_elses(
    webhooks: Webhooks, database: Database, clock: Clock
) -> None:
    gone = webhooks.create(URL, actor="ann")
    tell(database)
    clock.now += timedelta(seconds=1)
    ((sent,),) = webhooks.due().values()
    webhooks.delete(gone.id)
    stays = webhooks.create(URL, actor="ann")
    tell(database)
    webhooks.record(sent, None, fence=free)
    (waiting,) = webhooks.deliveries(stays.id)
    assert (waiting.state, waiting.number > sent.number) == ("waiting", True)


def test_a_webhook_with_much_to_be_told_holds_up_no_other(webhooks: Webhooks, database: Database, clock: Clock) -> None:
    busy = webhooks.create(URL, events=["round.failed"], actor="ann")
    for _ in range(120):
        tell(database, "round.failed")
    other = webhooks.create(URL, events=["round.promoted"], actor="ann")
    tell(database)
    clock.now += timedelta(minutes=10)
    assert {webhook.id: len(found) for webhook, found in webhooks.due().items()} == {busy.id: 20, other.id: 1}


# --- signatures -------------------------------------------------------------------------------------------------------


def test_openais_client_verifies_signatures() -> None:
    secret = new_secret()
    body = '{"object":"event","id":"evt_1","type":"fine_tuning.job.succeeded","created_at":1,"data":{"id":"ftjob-é"}}'
    headers = sign(secret, id="evt_1", at=datetime.now(UTC), body=body)
    client = OpenAI(api_key="none", webhook_secret=secret)
    event = client.webhooks.unwrap(body.encode(), headers)
    assert (event.type, event.data.id) == ("fine_tuning.job.succeeded", "ftjob-é")  # type: ignore[union-attr]
    for wrong in (
        {**headers, "webhook-id": "evt_2"},
        {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) - 1)},
        sign(new_secret(), id="evt_1", at=datetime.now(UTC), body=body),
        sign(secret, id="evt_1", at=datetime.now(UTC) - timedelta(hours=1), body=body),
    ):
        with pytest.raises(ValueError, match=r"signature|timestamp"):
            client.webhooks.verify_signature(body.encode(), wrong)
