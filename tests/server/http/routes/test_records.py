"""Feedback, interactions and log policies over HTTP: roles, formats, filters, pages, exports, erasure."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from graftwork.adapters.access.keys import Role
from graftwork.server.background.retention import expire
from tests.adapters.records import Records
from tests.server.fakes import ADMIN_KEY, World, adapter_files, form, make_world
from tests.server.http_errors import HERE, error

FEEDBACK, INTERACTIONS = "/v1/feedback", "/v1/interactions"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def records(world: World) -> Iterator[Records]:
    """The same database, as another process would have it."""
    records = Records.at(world.home / "graftwork.db")
    yield records
    records.database.close()


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    with asking(world) as client:
        yield client


@pytest.fixture(scope="module")
def still_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for requests that are refused: all may ask it, since none changes it."""
    return make_world(tmp_path_factory.mktemp("still"))


@pytest.fixture(scope="module")
def still_records(still_world: World) -> Iterator[Records]:
    records = Records.at(still_world.home / "graftwork.db")
    yield records
    records.database.close()


@pytest.fixture(scope="module")
def still_client(still_world: World) -> Iterator[TestClient]:
    with asking(still_world) as client:
        yield client


@contextmanager
def asking(world: World) -> Iterator[TestClient]:
    """A client, when an adapter has two versions."""
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE) as client:
        for seed in range(2):
            client.post("/v1/adapters/intents/versions", files=form(adapter_files(seed)))
        yield client


def say(client: TestClient, id: str, headers: dict[str, str] | None = None, **said: Any) -> Any:
    return client.post(FEEDBACK, json={"interaction_id": id, **said}, headers=headers)


def lines(client: TestClient, path: str, **params: Any) -> list[dict[str, Any]]:
    response = client.get(path, params=params)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/jsonl")
    return [json.loads(line) for line in response.text.splitlines()]


# ------------------------------------------------------------------------------------------------------- feedback


def test_feedback_is_kept_and_shown(client: TestClient, records: Records) -> None:
    id, other = records.mint("intents@2", user="ann", experiment="e", arm="b", probability=0.5), records.mint()
    said = {
        "choice": 1,
        "thumb": "down",
        "score": 0.25,
        "correction": "Karte 🂡",
        "preferred_over": other,
        "comment": "wrong",
        "metadata": {"page": "7"},
        "user": "ann",
    }
    response = say(client, id, **said)
    assert response.status_code == 201
    row = response.json()
    at = row.pop("at")
    assert row == {
        "object": "feedback",
        "id": 1,
        "interaction_id": id,
        "adapter": "intents@2",
        "experiment": "e",
        "arm": "b",
        "probability": 0.5,
        "unit": records.ids.unit(user="ann"),
        "episode": None,
        "asked": False,
        **said,
        "preferred_over_choice": 0,
        "key_id": "local",
        "erased_at": None,
    }
    listed = client.get(FEEDBACK).json()
    assert listed == {"object": "list", "data": [{**row, "at": at}], "has_more": False}


def test_an_episode_is_judged_by_its_name(client: TestClient, records: Records) -> None:
    episode = records.ids.episode("trip", key_id="local")
    asked = [
        records.log(records.mint("intents@1", days_ago=days), episode=episode, prompt_tokens=tokens, status=status)
        for days, tokens, status in ((0.2, 9, "ok"), (0.1, 12, "ok"), (0.1, 10, "ok"), (0.0, 20, "error"))
    ]
    other = records.log(records.mint("intents@1"), episode=records.ids.episode("trip", key_id="another key"))
    response = client.post(FEEDBACK, json={"episode": "trip", "thumb": "up", "idempotency_key": "a"})
    assert response.status_code == 201
    # Its last answer that is complete; of two in one second the one with the longer prompt.
    assert (response.json()["interaction_id"], response.json()["episode"]) == (asked[1], episode)
    later = records.log(records.mint("intents@2"), episode=episode)
    again = client.post(FEEDBACK, json={"episode": "trip", "thumb": "up", "idempotency_key": "a"})
    assert (again.status_code, again.json()) == (200, response.json()), "though the episode has gone on"
    changed = client.post(FEEDBACK, json={"episode": "trip", "thumb": "down"})
    assert changed.json()["interaction_id"] == later
    judged = client.get(FEEDBACK, params={"episode": episode}).json()["data"]
    assert [row["thumb"] for row in judged] == ["down", "up"]
    shown = client.get("/v1/interactions", params={"episode": episode}).json()["data"]
    assert {row["id"] for row in shown} == {*asked, later}
    assert {row["episode"] for row in shown} == {episode}
    assert other not in {row["interaction_id"] for row in judged}


def test_feedback_on_the_base_names_the_base(client: TestClient, world: World, records: Records) -> None:
    say(client, records.mint(None), score=1)
    assert client.get(FEEDBACK, params={"adapter": "tiny-base"}).json()["data"][0]["adapter"] == "tiny-base"
    text = world.services.metrics.render().decode()
    assert 'graftwork_feedback_total{adapter="tiny-base",kind="score"} 1.0' in text


def test_an_idempotency_key_in_the_header_or_the_body(client: TestClient, world: World, records: Records) -> None:
    id = records.mint("intents@1")
    first = say(client, id, {"Idempotency-Key": "a"}, thumb="up", comment="good")
    again = say(client, id, thumb="up", comment="good", idempotency_key="a")
    assert (first.status_code, again.status_code, again.json()) == (201, 200, first.json())
    both = say(client, id, {"Idempotency-Key": "a"}, thumb="up", comment="good", idempotency_key="a")
    assert both.status_code == 200
    found = error(say(client, id, {"Idempotency-Key": "a"}, thumb="down"), 409)
    assert (found["code"], found["param"]) == ("idempotency_key_reused", "idempotency_key")
    assert "differ" in error(say(client, id, {"Idempotency-Key": "a"}, thumb="up", idempotency_key="b"), 400)["message"]
    assert len(client.get(FEEDBACK).json()["data"]) == 1
    text = world.services.metrics.render().decode()
    assert 'graftwork_feedback_total{adapter="intents",kind="thumb"} 1.0' in text
    assert 'graftwork_feedback_total{adapter="intents",kind="comment"} 1.0' in text


BAD_FEEDBACK: dict[str, tuple[dict[str, Any], str | None, str]] = {
    "nothing said": ({}, None, "at least one of thumb"),
    "a forged id": ({"interaction_id": "chatcmpl-" + "A" * 60, "thumb": "up"}, "interaction_id", "no id of an answer"),
    "an id of OpenAI's": ({"interaction_id": "chatcmpl-9aB3", "thumb": "up"}, "interaction_id", "no id of an answer"),
    "no id": ({"interaction_id": None, "thumb": "up"}, "interaction_id", "send interaction_id or episode"),
    "an id and an episode": ({"episode": "a", "thumb": "up"}, "interaction_id", "one of the two"),
    "no such episode": ({"interaction_id": None, "episode": "a", "thumb": "up"}, "episode", "no answers of an episode"),
    "a choice of an episode": (
        {"interaction_id": None, "episode": "a", "thumb": "up", "choice": 0},
        "choice",
        "about one answer",
    ),
    "an episode preferred": (
        {"interaction_id": None, "episode": "a", "preferred_over": "x"},
        "preferred_over",
        "about one answer",
    ),
    "a long episode": ({"interaction_id": None, "episode": "x" * 257, "thumb": "up"}, "episode", "too long"),
    "a thumb between": ({"thumb": "sideways"}, "thumb", "'up' or 'down'"),
    "a score beyond": ({"score": 5}, "score", "at most 1"),
    "a score in words": ({"score": "good"}, "score", "must be a number"),
    "a half choice": ({"thumb": "up", "choice": 0.5}, "choice", "whole number"),
    "a choice below": ({"thumb": "up", "choice": -1}, "choice", "at least 0"),
    "an unknown field": ({"thumbs": "up"}, "thumbs", "did you mean thumb"),
    "metadata no strings": ({"metadata": {"a": 1}}, "metadata", "must be a string"),
    "NUL": ({"comment": "a\0"}, "comment", "NUL"),
    "a forged other": ({"preferred_over": "x"}, "preferred_over", "no id of an answer"),
    "a long user": ({"thumb": "up", "user": "x" * 257}, "user", "too long"),
    "a long key": ({"thumb": "up", "idempotency_key": "x" * 257}, "idempotency_key", "too long"),
}


@pytest.mark.parametrize("case", BAD_FEEDBACK)
def test_bad_feedback_is_refused_and_not_kept(still_client: TestClient, still_records: Records, case: str) -> None:
    said, param, says = BAD_FEEDBACK[case]
    found = error(still_client.post(FEEDBACK, json={"interaction_id": still_records.mint(), **said}), 400)
    assert found["param"] == param
    assert says in found["message"]
    assert list(still_records.feedback.find()) == []


def test_feedback_filters_pages_and_export(client: TestClient, records: Records) -> None:
    client.put("/v1/adapters/intents/aliases/candidate", json={"version": 2})
    ids = [records.mint(adapter) for adapter in ("intents@1", "intents@2", None)]
    for id in ids:
        say(client, id, thumb="up")
        say(client, id, correction="ü\u2028x", user="ann")

    def found(**params: Any) -> list[int]:
        listed = [row["id"] for row in client.get(FEEDBACK, params=params).json()["data"]]
        assert [row["id"] for row in lines(client, f"{FEEDBACK}/export", **params)] == listed[::-1]
        return listed

    assert found() == [6, 5, 4, 3, 2, 1]
    assert found(interaction_id=ids[0]) == [2, 1]
    assert found(adapter="intents") == [4, 3, 2, 1]
    assert found(adapter="intents@2") == found(adapter="intents@candidate") == [4, 3]
    assert found(adapter="intents@live") == [2, 1]
    assert found(kind="correction") == found(user="ann") == [6, 4, 2]
    assert found(since="2020-01-01T00:00:00Z") == found(since=1577836800) == found(until="2999-01-01T00:00:00+01:00")
    assert found(until=1577836800) == []
    at = client.get(FEEDBACK).json()["data"][3]["at"]
    assert found(since=at) == [6, 5, 4, 3]
    page = client.get(FEEDBACK, params={"limit": 4}).json()
    rest = client.get(FEEDBACK, params={"limit": 4, "after": page["data"][-1]["id"]}).json()
    assert ([row["id"] for row in page["data"] + rest["data"]], page["has_more"], rest["has_more"]) == (
        [6, 5, 4, 3, 2, 1], True, False,
    )  # fmt: skip
    assert lines(client, f"{FEEDBACK}/export")[1]["correction"] == "ü\u2028x"


@pytest.mark.parametrize(
    ("path", "params", "param"),
    [
        (FEEDBACK, {"adapter": "nobody"}, "adapter"),
        (FEEDBACK, {"adapter": "intents@9"}, "adapter"),
        (FEEDBACK, {"adapter": "intents@shadow"}, "adapter"),
        (FEEDBACK, {"adapter": "intents@" + "9" * 30}, "adapter"),
        (FEEDBACK, {"adapter": "intents@"}, "adapter"),
        (FEEDBACK, {"kind": "thumbs"}, "kind"),
        (FEEDBACK, {"since": "yesterday"}, "since"),
        (FEEDBACK, {"since": "2026-01-01T00:00:00"}, "since"),
        (FEEDBACK, {"since": "1e300"}, "since"),
        (FEEDBACK, {"since": "0001-01-01T00:00:00+14:00"}, "since"),
        (INTERACTIONS, {"until": "9999-12-31T23:59:59-14:00"}, "until"),
        (FEEDBACK, {"limit": 0}, "limit"),
        (FEEDBACK, {"after": "x"}, "after"),
        (FEEDBACK, {"user": "a\0"}, "user"),
        (FEEDBACK, {"interaction": "x"}, "interaction"),
        (f"{FEEDBACK}/export", {"limit": 5}, "limit"),
        (INTERACTIONS, {"after": "chatcmpl-1"}, "after"),
        (INTERACTIONS, {"status": "fine"}, "status"),
        (INTERACTIONS, {"adapter": "nobody"}, "adapter"),
        (f"{INTERACTIONS}/export", {"after": "x"}, "after"),
    ],
)
def test_bad_parameters_are_refused(still_client: TestClient, path: str, params: dict[str, Any], param: str) -> None:
    assert error(still_client.get(path, params=params), 400)["param"] == param


# --------------------------------------------------------------------------------------------------- interactions


def test_interactions_are_listed_shown_and_exported(client: TestClient, records: Records) -> None:
    old = records.log(records.mint("intents@1", days_ago=2), user="ann", metadata={"a": "b"}, key_id="k")
    new = records.log(records.mint(None, days_ago=1), status="error", error="it broke", prompt={"prompt": ["x", "y"]})
    say(client, old, thumb="up")
    say(client, old, comment="twice")
    listed = client.get(INTERACTIONS).json()
    assert [row["id"] for row in listed["data"]] == [new, old]
    assert lines(client, f"{INTERACTIONS}/export") == listed["data"][::-1]
    base, adapter = listed["data"]
    assert (base["adapter"], base["messages"], base["prompt"], base["error"]) == (
        "tiny-base", None, ["x", "y"], "it broke",
    )  # fmt: skip
    assert adapter == {
        "object": "interaction",
        "id": old,
        "created_at": records.ids.read(old).at,
        "model": "intents",
        "base": "tiny-base",
        "adapter": "intents@1",
        "experiment": None,
        "arm": None,
        "probability": None,
        "unit": None,
        "episode": None,
        "status": "ok",
        "error": None,
        "messages": [{"role": "user", "content": "Wo ist meine Karte? 🂡"}],
        "prompt": None,
        "sampling": {"temperature": 0.0, "max_tokens": 8},
        "completions": [{"index": 0, "text": "card_arrival", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
        "timings": {"queue_ms": 1.5, "first_token_ms": 20.25, "total_ms": 40.0},
        "user": "ann",
        "metadata": {"a": "b"},
        "key_id": "k",
    }
    shown = client.get(f"{INTERACTIONS}/{old}").json()
    assert [row["comment"] for row in shown.pop("feedback")] == [None, "twice"]
    assert shown == adapter
    page = client.get(INTERACTIONS, params={"limit": 1}).json()
    assert page["has_more"]
    assert [row["id"] for row in client.get(INTERACTIONS, params={"after": new}).json()["data"]] == [old]
    for params in ({"adapter": "tiny-base"}, {"status": "error"}, {"since": records.ids.read(new).at}):
        assert [row["id"] for row in client.get(INTERACTIONS, params=params).json()["data"]] == [new]
    for unknown in (records.mint(), "chatcmpl-1", "x"):
        assert error(client.get(f"{INTERACTIONS}/{unknown}"), 404)["code"] == "interaction_not_found"


def test_a_long_export_is_whole(client: TestClient, records: Records) -> None:
    ids = {records.log(records.mint()) for _ in range(450)}
    assert {row["id"] for row in lines(client, f"{INTERACTIONS}/export")} == ids
    assert lines(client, f"{INTERACTIONS}/export", user="nobody") == []


def test_a_user_is_erased(client: TestClient, records: Records, caplog: pytest.LogCaptureFixture) -> None:
    mine, theirs = (records.log(records.mint(user=user), user=user) for user in ("ann", "bob"))
    say(client, mine, thumb="down", correction="secret")
    with caplog.at_level(logging.INFO):
        erased = client.delete(INTERACTIONS, params={"user": "ann"})
    assert erased.json() == {
        "object": "interactions.erasure",
        "interactions": 1,
        "feedback": 1,
        "learned_from": [],
        "continued": [],
    }
    assert "local erased a user: 1 interactions" in caplog.text
    assert not [record for record in caplog.records if "ann" in record.getMessage() and "graftwork" in record.name]
    assert [row["id"] for row in client.get(INTERACTIONS).json()["data"]] == [theirs]
    (row,) = client.get(FEEDBACK).json()["data"]
    assert (row["thumb"], row["correction"], row["erased_at"] is not None) == ("down", None, True)
    for params in ({}, {"user": ""}, {"user": "a", "adapter": "intents"}):
        error(client.delete(INTERACTIONS, params=params), 400)


def test_the_keepers_duty_forgets(client: TestClient, world: World, records: Records) -> None:
    for days_ago in (89, 91):
        records.log(records.mint(days_ago=days_ago))
    expire(world.services.records.erasure, world.services.records.policies, None)  # type: ignore[arg-type]
    assert len(client.get(INTERACTIONS).json()["data"]) == 1


# ------------------------------------------------------------------------------------------------------- policies


def test_policies_are_set_listed_and_removed(client: TestClient, world: World) -> None:
    assert client.get("/v1/log_policies").json() == {
        "object": "list", "data": [], "has_more": False, "default": {"log": True, "retention_days": 90},
    }  # fmt: skip
    policy = client.put("/v1/log_policies/adapters/intents", json={"log": False, "retention_days": 7}).json()
    assert policy.pop("updated_at") > 1_700_000_000
    assert policy == {
        "object": "log_policy",
        "scope": "adapter",
        "subject": "intents",
        "log": False,
        "retention_days": 7,
        "ask_feedback": None,
        "actor": "local",
    }
    _, key = world.keys.create("desk", Role.ADMIN)
    headers = {"authorization": f"Bearer {world.keys.create('me', Role.OPERATOR)[0]}"}
    client.put(f"/v1/log_policies/keys/{key.id}", json={"log": True, "retention_days": 0.5}, headers=headers)
    client.put("/v1/log_policies/adapters/tiny-base", json={"log": True, "ask_feedback": 0.05}, headers=headers)
    listed = client.get("/v1/log_policies", headers=headers).json()["data"]
    assert [(row["scope"], row["subject"], row["retention_days"], row["actor"]) for row in listed] == [
        ("adapter", "intents", 7, "local"),
        ("adapter", "tiny-base", None, "me"),
        ("key", key.id, 0.5, "me"),
    ]
    assert [row["ask_feedback"] for row in listed] == [None, 0.05, None]
    gone = client.delete("/v1/log_policies/adapters/intents", headers=headers).json()
    assert (gone["subject"], gone["log"]) == ("intents", False)
    assert len(client.get("/v1/log_policies", headers=headers).json()["data"]) == 2
    again = client.delete("/v1/log_policies/adapters/intents", headers=headers)
    assert error(again, 404)["code"] == "policy_not_found"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("adapters/nobody", {"log": True}, 404),
        ("adapters/intents@1", {"log": True}, 404),
        ("keys/nobody", {"log": True}, 404),
        ("users/ann", {"log": True}, 400),
        ("adapters/intents", {}, 400),
        ("adapters/intents", {"log": "no"}, 400),
        ("adapters/intents", {"log": True, "retention_days": 0}, 400),
        ("adapters/intents", {"log": True, "retention_days": 1e9}, 400),
        ("adapters/intents", {"log": True, "days": 1}, 400),
        ("adapters/intents", {"log": True, "ask_feedback": 5}, 400),
        ("adapters/intents", {"log": True, "ask_feedback": -0.1}, 400),
        ("adapters/intents", {"log": False, "ask_feedback": 0.1}, 400),
    ],
)
def test_bad_policies_are_refused(still_client: TestClient, path: str, body: dict[str, Any], status: int) -> None:
    error(still_client.put(f"/v1/log_policies/{path}", json=body), status)
    assert still_client.get("/v1/log_policies").json()["data"] == []


# ---------------------------------------------------------------------------------------------------------- roles


def test_an_app_may_judge_and_not_read(tmp_path: Path) -> None:
    world = make_world(tmp_path, admin_key=ADMIN_KEY)
    records = Records.at(tmp_path / "graftwork.db")
    clients = {
        role: TestClient(world.app, headers={"authorization": f"Bearer {world.keys.create(role.value, role)[0]}"})
        for role in Role
    }
    stranger = TestClient(world.app)
    id = records.log(records.mint(), user="ann")
    for role, client in clients.items():
        assert say(client, id, {"Idempotency-Key": "the same of all"}, thumb="up").status_code == 201, role
    error(say(stranger, id, thumb="up"), 401)
    reading = [
        ("GET", FEEDBACK),
        ("GET", f"{FEEDBACK}/export"),
        ("GET", INTERACTIONS),
        ("GET", f"{INTERACTIONS}/export"),
        ("GET", f"{INTERACTIONS}/{id}"),
        ("DELETE", f"{INTERACTIONS}?user=nobody"),
        ("GET", "/v1/log_policies"),
        ("PUT", "/v1/log_policies/keys/first-admin"),
        ("DELETE", "/v1/log_policies/keys/first-admin"),
    ]
    for method, path in reading:
        body = {"json": {"log": True}} if method == "PUT" else {}
        error(stranger.request(method, path, **body), 401)
        error(clients[Role.APP].request(method, path, **body), 403)
        assert clients[Role.OPERATOR].request(method, path, **body).status_code == 200, path
    rows = clients[Role.ADMIN].get(FEEDBACK).json()["data"]
    assert len({row["key_id"] for row in rows}) == 3
    records.database.close()
