"""Experiments over HTTP: start, assignment, readings, stop, and refusals."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from graftwork.adapters.access.keys import Role
from graftwork.adapters.storage.leases import Leases
from graftwork.server.background.experiments import ExperimentController
from graftwork.server.engine.request import SamplingParams
from graftwork.server.generation import shadows
from graftwork.training.data.read.feedback import rows as feedback_rows
from graftwork.training.data.row import Row
from tests.adapters.running_experiments import same_draws
from tests.server.fakes import ADMIN_KEY, World, adapter_files, form, make_world
from tests.server.scripted_engine import GatewayHarness, connected_harness

PLAN = {
    "name": "first",
    "adapter": "intents",
    "arms": [{"version": 1}, {"version": 2, "weight": 0.5}],
    "metric": "thumb",
    "window_seconds": 0,
}


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[GatewayHarness]:
    with same_draws():
        async with connected_harness(tmp_path, versions=range(3)) as harness:
            yield harness


async def start(harness: GatewayHarness, **changes: Any) -> Any:
    answer = await harness.http.post("/v1/experiments", json={**PLAN, **changes})
    assert answer.status_code == 201, answer.text
    return answer.json()


def keep(harness: GatewayHarness, *, ahead: float = 0.0) -> None:
    """What the keeper does every second."""
    assert harness.records.log.flush()
    services = harness.world.services
    database = services.registry._database
    referee = ExperimentController(
        database,
        services.registry,
        services.experiments,
        services.records.interactions,
        services.records.feedback,
        services.records.ids,
        now=lambda: datetime.now(UTC) + timedelta(seconds=ahead),
    )
    lease = Leases(database).acquire("keeper", "me", seconds=60)
    assert lease is not None
    referee.run(lease)


# --- from start to stop -----------------------------------------------------------------------------------------------


async def test_an_experiment_from_start_to_stop(harness: GatewayHarness) -> None:
    started = await start(harness)
    assert (started["status"], started["started_by"], started["outcome"], started["reading"]) == (
        "running",
        "local",
        None,
        None,
    )
    assert [(arm["name"], arm["adapter"], arm["weight"], arm["control"]) for arm in started["arms"]] == [
        ("intents@1", "intents@1", 0.5, True),
        ("intents@2", "intents@2", 0.5, False),
    ]
    arms: dict[str, str] = {}
    for number in range(40):
        answer = (await harness.ask(user=f"user-{number}")).json()
        arms[f"user-{number}"] = answer["graftwork"]["arm"]
        body = {"interaction_id": answer["id"], "thumb": "up"}
        assert (await harness.http.post("/v1/feedback", json=body)).status_code == 201
    assert set(Counter(arms.values())) == {"intents@1", "intents@2"}
    for user, arm in arms.items():
        again = await harness.ask(user=user)
        assert (again.headers["x-graftwork-arm"], again.headers["x-graftwork-adapter"]) == (arm, arm)
    keep(harness, ahead=10)
    shown = (await harness.http.get("/v1/experiments/first")).json()
    assert shown["reading"]["units"] == 40
    assert [arm["requests"] for arm in shown["reading"]["arms"]] == [
        2 * list(arms.values()).count(arm) for arm in ("intents@1", "intents@2")
    ]
    assert [arm["mean"] for arm in shown["reading"]["arms"]] == [1.0, 1.0]
    assert shown["readings"][-1]["units"] == 40
    assert [event["action"] for event in shown["history"]] == ["start"]
    listed = (await harness.http.get("/v1/experiments", params={"status": "running"})).json()
    assert listed["data"] == [{key: value for key, value in shown.items() if key not in ("history", "readings")}]

    stopped = (await harness.http.post("/v1/experiments/first/stop", json={"reason": "seen enough"})).json()
    assert stopped["status"] == "ended"
    assert stopped["outcome"]["decision"] == "stopped"
    assert stopped["outcome"]["reading"]["units"] == 40
    assert (await harness.ask(user="user-0")).json()["graftwork"] == {"adapter": "intents@1"}
    assert (await harness.http.get("/v1/experiments", params={"status": "running"})).json()["data"] == []
    assert (await harness.http.post("/v1/experiments/first/stop")).json()["error"]["code"] == "experiment_ended"


async def test_an_experiment_gets_a_window_that_fits_its_metric_or_a_warning(harness: GatewayHarness) -> None:
    started = await start(harness, metric="latency", window_seconds=None)
    assert (started["window_seconds"], started["warnings"]) == (300.0, [])
    await harness.http.post("/v1/experiments/first/stop")
    started = await start(harness, name="second", metric="latency", window_seconds=7200)
    assert (started["window_seconds"], len(started["warnings"])) == (7200.0, 1)
    assert "a window of 5 min fits (window_seconds 300)" in started["warnings"][0]
    assert (await harness.http.get("/v1/experiments/second")).json()["warnings"] == started["warnings"]


async def test_a_plan_of_asked_ratings_warns_while_nobody_is_asked(harness: GatewayHarness) -> None:
    started = await start(harness, ratings="asked")
    assert started["ratings"] == "asked"
    (warning,) = started["warnings"]
    assert "no user of intents is asked: set ask_feedback in its log policy" in warning
    await harness.http.put("/v1/log_policies/adapters/intents", json={"log": True, "ask_feedback": 0.1})
    assert (await harness.http.get("/v1/experiments/first")).json()["warnings"] == []


async def test_only_the_plain_name_takes_part(harness: GatewayHarness) -> None:
    await start(harness, arms=[{"version": 1}, {"version": 2, "weight": 1.0}])
    assert (await harness.ask()).json()["graftwork"]["arm"] == "intents@2"
    for model in ("intents@1", "intents@live", "tiny-base"):
        assert "experiment" not in (await harness.ask(model=model)).json()["graftwork"]


async def test_sessions_stick_wherever_they_are_named(harness: GatewayHarness) -> None:
    await start(harness)
    for number in range(12):
        session = f"visit-{number}"
        by_header = await harness.ask(headers={"x-graftwork-session": session})
        by_metadata = await harness.ask(metadata={"session": session})
        assert by_header.headers["x-graftwork-arm"] == by_metadata.headers["x-graftwork-arm"]
    drawn = Counter([(await harness.ask()).headers["x-graftwork-arm"] for _ in range(40)])
    assert len(drawn) == 2  # nobody is named: each for itself


async def test_the_base_is_an_arm_and_says_so(harness: GatewayHarness) -> None:
    started = await start(harness, arms=[{"version": 1}, {"version": "base", "weight": 1.0}])
    assert started["arms"][1]["adapter"] == "tiny-base"
    answer = await harness.ask(user="ann")
    assert answer.json()["graftwork"] == {"adapter": "tiny-base", "experiment": "first", "arm": "base"}
    assert harness.records.ids.read(answer.json()["id"]).adapter is None


async def test_an_arm_has_its_own_system_prompt_and_sampling(harness: GatewayHarness) -> None:
    arm = {
        "version": 1,
        "name": "brief",
        "weight": 1.0,
        "system": "Be brief.",
        "sampling": {"temperature": 0.25, "top_p": 0.5, "max_tokens": 3},
    }
    await start(harness, arms=[{"version": 1}, arm])
    seen: list[Any] = []
    harness.gateway.prompts.chat = lambda messages, **_: seen.append(messages) or [104, 105]  # type: ignore[assignment, func-returns-value]
    requests = harness.engine.asked
    told = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "hi"}]
    for messages in (told, told[1:]):
        await harness.ask(messages=messages, temperature=1.0)
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert seen == [own, own]
    wishes: SamplingParams = requests[0].sampling
    assert (wishes.temperature, wishes.top_p, wishes.max_tokens) == (0.25, 0.5, 3)
    # Plain completions have no system prompt: no arm can answer them alike, so they go where they always went.
    plain = await harness.http.post("/v1/completions", json={"model": "intents", "prompt": "hi"})
    assert plain.json()["graftwork"] == {"adapter": "intents@1"}


BRIEF = {"role": "system", "content": "Be brief."}
LONG = {"role": "system", "content": "Be long."}
HI = {"role": "user", "content": "hi"}

#: Requests of every route with a system message: the path, the body without it, and the fields that have it.
ROUTES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": [HI], "max_tokens": 8}, {"messages": [LONG, HI]}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 16}, {"instructions": "Be long."}),
    ("/v1/messages", {"messages": [HI], "max_tokens": 8}, {"system": "Be long."}),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body", "system"), ROUTES)
async def test_what_the_model_saw_is_logged(
    harness: GatewayHarness, path: str, body: dict[str, Any], system: dict[str, Any], stream: bool
) -> None:
    sampling = {"temperature": 0.25, "max_tokens": 3}
    arm = {"version": 1, "name": "brief", "weight": 1.0, "system": "Be brief.", "sampling": sampling}
    await start(harness, arms=[{"version": 2}, arm])
    for own in ({}, system):
        asked = {"model": "intents", **body, **own, "temperature": 1.0, "stream": stream}
        assert (await harness.http.post(path, json=asked)).status_code == 200
    for replaced in ([], [LONG]):
        (row,) = [row for row in harness.logged() if row.prompt.get("replaced") == replaced]
        limit = "max_completion_tokens" if path == "/v1/responses" else "max_tokens"
        assert (row.sampling["temperature"], row.sampling[limit]) == (0.25, 3)
        await harness.http.post("/v1/feedback", json={"interaction_id": row.id, "thumb": "up"})
        shown = (await harness.http.get(f"/v1/interactions/{row.id}")).json()
        assert (shown["messages"], shown["replaced"], shown["arm"]) == ([BRIEF, HI], replaced, "brief")
        (taught,) = feedback_rows([("export", enumerate([shown]))])
        assert isinstance(taught, Row)
        assert [message["content"] for message in taught.messages[:-1]] == ["Be brief.", "hi"]


async def test_the_sampling_of_a_completion_is_logged_as_it_was(harness: GatewayHarness) -> None:
    arm = {"version": 1, "name": "cool", "weight": 1.0, "sampling": {"top_p": 0.5, "max_tokens": 20}}
    await start(harness, arms=[{"version": 2}, arm])
    limits = [({}, 16), ({"max_tokens": 30}, 20), ({"max_tokens": 3}, 3), ({"max_tokens": 30, "min_tokens": 25}, 25)]
    for limit, logged in limits:
        asked = {"model": "intents", "prompt": "hi", **limit}
        answer = await harness.http.post("/v1/completions", json=asked)
        assert harness.logged()
        row, engine = harness.records.interactions.get(answer.json()["id"]), harness.engine.asked[-1].sampling
        assert row.sampling["top_p"] == engine.top_p == 0.5
        assert row.sampling["max_tokens"] == engine.max_tokens == logged


async def test_an_arm_speaks_in_no_later_response(harness: GatewayHarness) -> None:
    await start(harness, arms=[{"version": 2}, {"version": 1, "name": "brief", "weight": 1.0, "system": "Be brief."}])
    kind = {"role": "system", "content": "Be kind."}

    async def respond(**asked: Any) -> tuple[str, list[str]]:
        answer = await harness.http.post("/v1/responses", json={"model": "intents", **asked})
        assert answer.status_code == 200, answer.text
        row = harness.records.interactions.get(answer.json()["id"]) if harness.logged() else None
        assert row is not None
        shown = (await harness.http.get(f"/v1/responses/{row.id}")).json()
        assert shown["instructions"] == answer.json()["instructions"] == asked.get("instructions")
        return row.id, [message["content"] for message in row.prompt["messages"]]

    # The conversation's own system message comes back when the experiment is over, and neither instructions nor the
    # arm's message do.
    first, seen = await respond(input=[kind, {"role": "user", "content": "One"}])
    assert seen == ["Be brief.", "One"]
    second, seen = await respond(input="Two", previous_response_id=first)
    assert seen == ["Be brief.", "One", "One", "Two"]
    third, seen = await respond(input="Three", previous_response_id=second, instructions="Be long.")
    assert seen == ["Be brief.", "Be kind.", "One", "One", "Two", "Two", "Three"]
    await harness.http.post("/v1/experiments/first/stop")
    _, seen = await respond(input="Four", previous_response_id=third)
    assert seen == ["Be kind.", "One", "One", "Two", "Two", "Three", "Three", "Four"]
    alone, _ = await respond(input="Five")
    _, seen = await respond(input="Six", previous_response_id=alone)
    assert seen == ["Five", "Five", "Six"]


async def test_widening_and_what_is_refused_of_it(harness: GatewayHarness) -> None:
    await start(harness, arms=[{"version": 1}, {"version": 2, "weight": 0.1}])
    path = "/v1/experiments/first"
    wider = await harness.http.patch(path, json={"weights": {"intents@2": 0.5}, "reason": "looks good"})
    assert [epoch["weights"] for epoch in wider.json()["epochs"]] == [
        {"intents@1": 0.9, "intents@2": 0.1},
        {"intents@1": 0.5, "intents@2": 0.5},
    ]
    assert wider.json()["history"][0]["reason"] == "looks good"
    for weights, status in (({"intents@2": 0.2}, 409), ({"intents@1": 0.2}, 400), ({"x": 2.0}, 400), ({}, 400)):
        refused = await harness.http.patch(path, json={"weights": weights})
        assert (refused.status_code, list(refused.json())) == (status, ["error"]), weights


async def test_an_operator_can_promote_with_the_end(harness: GatewayHarness) -> None:
    await start(harness)
    assert (await harness.http.post("/v1/experiments/first/stop", json={"promote": "nobody"})).status_code == 400
    ended = await harness.http.post("/v1/experiments/first/stop", json={"promote": "intents@2"})
    assert ended.json()["outcome"]["decision"] == "promoted"
    assert (await harness.http.get("/v1/adapters/intents")).json()["aliases"]["live"] == 2


async def test_aliases_under_experiment_move_only_with_its_end(harness: GatewayHarness) -> None:
    await start(harness)
    moves: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", "/v1/adapters/intents/aliases/live", {"version": 3}),
        ("POST", "/v1/adapters/intents/rollback", {}),
    ]
    await harness.http.put("/v1/adapters/intents/aliases/other", json={"version": 3})
    refused = await harness.http.put(moves[0][1], json=moves[0][2])
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "under_experiment")
    pushed = await harness.http.post(
        "/v1/adapters/intents/versions", files=form(adapter_files(9)), params={"alias": "live"}
    )
    assert pushed.status_code == 409
    assert len((await harness.http.get("/v1/adapters/intents")).json()["versions"]) == 3
    assert (await harness.http.delete("/v1/adapters/intents/versions/2")).status_code == 409
    assert (await harness.http.get("/v1/experiments/first")).json()["status"] == "running"
    moved = await harness.http.put(moves[0][1], json={**moves[0][2], "end_experiment": True})
    assert moved.json()["to_version"] == 3
    ended = (await harness.http.get("/v1/experiments/first")).json()
    assert (ended["status"], ended["outcome"]["decision"]) == ("ended", "stopped")
    assert (await harness.http.post(moves[1][1], json={"end_experiment": True})).json()["to_version"] == 1


# --- shadows ----------------------------------------------------------------------------------------------------------


async def shadowed(harness: GatewayHarness, num: int) -> list[Any]:
    """The rows of the shadow arm, once there are ``num``."""
    for _ in range(400):
        rows = [row for row in harness.logged(experiment="first") if row.arm == "intents@3"]
        if len(rows) >= num:
            return rows
        await asyncio.sleep(0.01)
    raise AssertionError("no copies came")


SHADOWED = [{"version": 1}, {"version": 3, "shadow": 1.0}]


async def test_a_shadow_arm_answers_copies_that_nobody_sees(harness: GatewayHarness) -> None:
    harness.gateway.shadows.start()
    await start(harness, arms=SHADOWED)
    await harness.http.put("/v1/log_policies/adapters/intents", json={"log": True, "ask_feedback": 1})
    answers = [await harness.ask(user="ann", stream=stream) for stream in (False, True)]
    unstored = await harness.ask(user="ann", store=False)
    assert unstored.status_code == 200
    rows = await shadowed(harness, 2)
    await asyncio.sleep(0.1)
    rows = await shadowed(harness, 2)
    assert len(rows) == 2
    assert {row.adapter for row in rows} == {"intents@3"}
    assert not any(harness.records.ids.read(row.id).asked for row in rows), "there is no user to ask about a copy"
    assert [answer.headers["x-graftwork-arm"] for answer in answers] == ["intents@1"] * 2
    mine = {row.id for row in harness.logged() if row.arm == "intents@1"}
    assert {row.metadata["shadow_of"] for row in rows} == mine
    assert {row.status for row in rows} == {"ok"}
    keep(harness, ahead=10)
    (shadow,) = (await harness.http.get("/v1/experiments/first")).json()["reading"]["shadows"]
    assert (shadow["sampled"], shadow["answered"], shadow["pairs"], shadow["identical"]) == (2, 2, 2, 1.0)
    assert 'graftwork_shadows_total{outcome="answered"} 2.0' in harness.world.services.metrics.render().decode()
    completion = await harness.http.post("/v1/completions", json={"model": "intents", "prompt": ["hi", "ho"], "n": 2})
    assert completion.status_code == 200
    newest = (await shadowed(harness, 3))[0]
    assert (newest.prompt, newest.texts) == ({"prompt": ["hi"]}, ("hi",))


async def test_a_shadow_arm_is_logged_with_what_it_saw(harness: GatewayHarness) -> None:
    harness.gateway.shadows.start()
    own = {"system": "Be kind.", "sampling": {"temperature": 0.5}}
    shadow = {"version": 3, "shadow": 1.0, "system": "Be brief.", "sampling": {"temperature": 0.25, "max_tokens": 3}}
    await start(harness, arms=[{"version": 1, **own}, shadow])
    await harness.ask(messages=[LONG, HI], temperature=1.0)
    (copy,) = await shadowed(harness, 1)
    (original,) = [row for row in harness.logged() if row.arm == "intents@1"]
    assert copy.prompt == {"messages": [BRIEF, HI], "replaced": [LONG]}
    assert original.prompt == {"messages": [{"role": "system", "content": "Be kind."}, HI], "replaced": [LONG]}
    assert (copy.sampling["temperature"], copy.sampling["max_tokens"]) == (0.25, 3)
    assert (original.sampling["temperature"], original.sampling["max_tokens"]) == (0.5, 8)


async def test_shadows_give_way_to_users(harness: GatewayHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadows, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(shadows, "MAX_AGE_SECONDS", 0.05)
    harness.gateway.shadows.start()
    await start(harness, arms=SHADOWED)
    busy = 99
    harness.gateway.shadows._num_busy = lambda: busy
    await harness.ask()
    await asyncio.sleep(0.1)
    assert 'outcome="skipped"} 1.0' in harness.world.services.metrics.render().decode()
    busy = 0
    monkeypatch.setattr(shadows, "MAX_AGE_SECONDS", 60.0)
    await harness.ask()
    await shadowed(harness, 1)


async def test_a_shadow_that_fails_is_logged_and_hurts_nobody(harness: GatewayHarness) -> None:
    harness.gateway.shadows.start()
    await start(harness, arms=[{"version": 1}, {"version": 3, "shadow": 1.0, "system": "x"}])
    say = harness.gateway.prompts.chat
    harness.gateway.prompts.chat = lambda m, **_: list(b"fail") if m[0]["role"] == "system" else say(m)  # type: ignore[method-assign]
    for _ in range(2):
        assert (await harness.ask()).status_code == 200
    rows = await shadowed(harness, 2)
    assert {row.status for row in rows} == {"error"}
    keep(harness, ahead=10)
    (shadow,) = (await harness.http.get("/v1/experiments/first")).json()["reading"]["shadows"]
    assert (shadow["answered"], shadow["errors"], shadow["pairs"]) == (2, 2, 0)


# --- arms that join, and episodes -------------------------------------------------------------------------------------


async def test_an_arm_joins_and_answers(harness: GatewayHarness) -> None:
    await start(harness, arms=[{"version": 1}, {"version": 2, "weight": 0.3}])
    arms = "/v1/experiments/first/arms"
    joined = await harness.http.post(arms, json={"version": 3, "weight": 0.6, "name": "new", "reason": "it is better"})
    assert joined.status_code == 201, joined.text
    shown = joined.json()
    assert [(arm["name"], arm["joined"], arm["alpha"]) for arm in shown["arms"]] == [
        ("intents@1", None, None),
        ("intents@2", None, pytest.approx(0.04)),
        ("new", 2, pytest.approx(0.005)),
    ]
    assert shown["arms"][2]["weight"] == pytest.approx(0.6)
    assert (shown["history"][0]["arm"], shown["history"][0]["reason"]) == ("new", "it is better")
    answered = Counter([(await harness.ask()).headers["x-graftwork-arm"] for _ in range(40)])
    assert set(answered) == {"intents@1", "intents@2", "new"}
    for body, param in (
        ({"version": 3}, "weight"),
        ({"version": 3, "weight": 0.6}, "weight"),
        ({"weight": 0.05}, "version"),
        ({"version": 3, "weight": 0.05, "name": "A b"}, "name"),
        ({"version": 3, "weight": 0.05, "name": "new"}, "name"),
        ({"version": 3, "weight": 0.05, "extra": 1}, "extra"),
    ):
        refused = await harness.http.post(arms, json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param), refused.text
    assert len((await harness.http.get("/v1/experiments/first")).json()["history"]) == 2
    assert (await harness.http.post("/v1/experiments/no/arms", json={"version": 3, "weight": 0.1})).status_code == 404


async def test_none_joins_where_nothing_is_reserved(harness: GatewayHarness) -> None:
    await start(harness, reserve=0)
    refused = await harness.http.post("/v1/experiments/first/arms", json={"version": 3, "weight": 0.1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "no_reserve")


async def test_an_episode_has_one_arm_and_one_judgement(harness: GatewayHarness) -> None:
    await start(harness, unit="episode")
    seen: dict[str, list[str]] = {}
    for number in range(12):
        trip = f"trip-{number}"
        by_header = await harness.ask(user="ann", headers={"x-graftwork-episode": trip})
        by_metadata = await harness.ask(user="ann", metadata={"episode": trip})
        assert by_header.headers["x-graftwork-arm"] == by_metadata.headers["x-graftwork-arm"]
        seen[by_header.headers["x-graftwork-arm"]] = [by_header.json()["id"], by_metadata.json()["id"]]
        said = await harness.http.post("/v1/feedback", json={"episode": trip, "thumb": "up"})
        assert said.status_code == 201, said.text
        assert said.json()["interaction_id"] in seen[by_header.headers["x-graftwork-arm"]]
        assert said.json()["arm"] == by_header.headers["x-graftwork-arm"]
    assert len(seen) == 2
    keep(harness, ahead=10)
    reading = (await harness.http.get("/v1/experiments/first")).json()["reading"]
    assert (reading["units"], [arm["mean"] for arm in reading["arms"]]) == (12, [1.0, 1.0])
    refused = await harness.ask(headers={"x-graftwork-episode": "x" * 257})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "x-graftwork-episode")
    unknown = await harness.http.post("/v1/feedback", json={"episode": "another", "thumb": "up"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_episode")


# --- what is refused --------------------------------------------------------------------------------------------------

BAD_BODIES: list[tuple[dict[str, Any], str]] = [
    ({"name": "No Name"}, "name"),
    ({"arms": []}, "arms"),
    ({"arms": [{"version": 1}, {}]}, "arms[1].version"),
    ({"arms": [{"version": 1}, {"version": 2, "alias": "live"}]}, "arms[1].version"),
    ({"arms": [{"version": 1}, {"version": 99}]}, "arms[1].version"),
    ({"arms": [{"version": 1}, {"version": "nowhere"}]}, "arms[1].version"),
    ({"arms": [{"version": 1}, {"version": 2, "weight": 2}]}, "arms[1].weight"),
    ({"arms": [{"version": 1}, {"version": 2, "weight": True}]}, "arms[1].weight"),
    ({"arms": [{"version": 1}, {"version": 2, "name": "A b"}]}, "arms[1].name"),
    ({"arms": [{"version": 1}, {"version": 2, "sampling": {"temperature": 3}}]}, "arms[1].sampling.temperature"),
    ({"arms": [{"version": 1}, {"version": 2, "sampling": {"seed": 3}}]}, "arms[1].sampling.seed"),
    ({"arms": [{"version": 1}, {"version": 2, "extra": 1}]}, "arms[1].extra"),
    ({"metric": "applause"}, "metric"),
    ({"metric": {"name": "thumb", "over": 1.0}}, "metric"),
    ({"guardrails": [{"metric": "error_rate"}]}, "guardrails[0]"),
    ({"guardrails": [{"metric": "applause", "limit": 0.1}]}, "guardrails[0].metric"),
    ({"decision": {"until": 1e300}}, "decision.until"),
    ({"decision": {"promote_above": 7.0}}, "decision.promote_above"),
    ({"ramp": {"weights": [0.5, 0.1]}, "arms": [{"version": 1}, {"version": 2}]}, "ramp.weights"),
    ({"window_seconds": 1e12}, "window_seconds"),
    ({"allocation": "magic"}, "allocation"),
    ({"reserve": 1}, "reserve"),
    ({"covariate": "future"}, "covariate"),
    ({"unit": "request"}, "unit"),
    ({"allocation": "thompson", "arms": [{"version": 1, "weight": 1}, {"version": 2}]}, "allocation"),
    ({"allocation": "thompson", "arms": [{"version": 1}, {"version": 2, "shadow": 0.5}]}, "allocation"),
    ({"decision": {"max_units": 0}, "arms": [{"version": 1}, {"version": 2, "shadow": 0.5}]}, "decision.max_units"),
    ({"learned_days": -1}, "learned_days"),
    ({"learned_days": 400}, "learned_days"),
    ({"unknown": 1}, "unknown"),
]


@pytest.mark.parametrize(("wrong", "param"), BAD_BODIES, ids=lambda value: value if isinstance(value, str) else None)
async def test_what_makes_no_sense_is_refused_by_its_field(
    harness: GatewayHarness, wrong: dict[str, Any], param: str
) -> None:
    refused = await harness.http.post("/v1/experiments", json={**PLAN, **wrong})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
    assert (await harness.http.get("/v1/experiments")).json()["data"] == []


async def test_what_there_is_not_is_not_found(harness: GatewayHarness) -> None:
    assert (await harness.http.post("/v1/experiments", json={**PLAN, "adapter": "nothing"})).status_code == 404
    for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/stop")):
        body = {"weights": {"x": 0.5}} if method == "PATCH" else None
        refused = await harness.http.request(method, f"/v1/experiments/nothing{path}", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "experiment_not_found")


async def test_an_experiment_that_would_see_nothing_is_refused(harness: GatewayHarness) -> None:
    await harness.http.put("/v1/log_policies/adapters/intents", json={"log": False})
    refused = await harness.http.post("/v1/experiments", json=PLAN)
    assert refused.status_code == 409
    assert "not logged" in refused.json()["error"]["message"]


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[tuple[World, TestClient]]:
    world = make_world(tmp_path, admin_key=ADMIN_KEY)
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000)) as client:
        yield world, client


def test_experiments_are_the_operators(locked: tuple[World, TestClient]) -> None:
    world, client = locked
    app, _ = world.keys.create("app", Role.APP)
    operator, _ = world.keys.create("operator", Role.OPERATOR)
    for key, status in ((app, 403), (operator, 404)):
        headers = {"authorization": f"Bearer {key}"}
        assert client.get("/v1/experiments/x", headers=headers).status_code == status
        assert client.post("/v1/experiments/x/stop", headers=headers).status_code == status
        weights = {"weights": {"x": 1.0}}
        assert client.patch("/v1/experiments/x", json=weights, headers=headers).status_code == status
        assert client.post("/v1/experiments", json=PLAN, headers=headers).status_code == status
    assert client.get("/v1/experiments").status_code == 401
