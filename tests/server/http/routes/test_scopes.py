"""Keys that are limited to some adapters: all else is as if it were not there, on every route of the document."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from graftwork.adapters.access.keys import Role
from tests.server.documented import document
from tests.server.fakes import ADMIN_KEY, adapter_files, form, make_world
from tests.server.scripted_engine import CHAT, GatewayHarness

MINE, HIDDEN, NOTHING = "intents", "zebra", "nowhere"

MESSAGES = [{"role": "user", "content": "hi"}]


@dataclass
class Shared:
    """A server with two adapters of everything, and a client for each key."""

    harness: GatewayHarness
    admin: httpx.AsyncClient
    operator: httpx.AsyncClient
    app: httpx.AsyncClient
    ids: dict[str, dict[str, str]] = field(default_factory=lambda: {MINE: {}, HIDDEN: {}})


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Shared]:
    harness = GatewayHarness(make_world(tmp_path, admin_key=ADMIN_KEY))
    harness.engine.connect()
    keys = harness.world.keys
    secrets = [
        ADMIN_KEY,
        *(keys.create(role.value, role, scope=frozenset({MINE}))[0] for role in (Role.OPERATOR, Role.APP)),
    ]
    transport = httpx.ASGITransport(harness.world.app, client=("127.0.0.1", 50000))
    clients = [
        httpx.AsyncClient(
            transport=transport, base_url="http://127.0.0.1:8000", headers={"authorization": f"Bearer {secret}"}
        )
        for secret in secrets
    ]
    shared = Shared(harness, *clients)
    harness.records.log.start()
    for seed, name in enumerate((MINE, HIDDEN)):
        shared.ids[name] = await _everything_of(shared.admin, name, seed)
    assert harness.records.log.flush()
    yield shared
    harness.records.log.stop()
    for client in clients:
        await client.aclose()
    harness.gateway._grammars.close()


async def _everything_of(admin: httpx.AsyncClient, name: str, seed: int) -> dict[str, str]:
    """Make an adapter with all that can be about it; returns the ids by what they are of."""

    async def post(path: str, **body: Any) -> Any:
        answer = await admin.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()

    for number in range(2):
        files = form(adapter_files(10 * seed + number))
        assert (await admin.post(f"/v1/adapters/{name}/versions", files=files)).is_success
    answer = await post(CHAT, model=name, messages=MESSAGES, max_tokens=8)
    response = await post("/v1/responses", model=name, input="hi", max_output_tokens=16)
    await post("/v1/feedback", interaction_id=answer["id"], thumb="up")
    await admin.put(f"/v1/adapters/{name}/learning_policy", json={})
    await admin.put(f"/v1/log_policies/adapters/{name}", json={"log": True})
    round_ = await post("/v1/rounds", adapter=name)
    arms = [{"version": "base"}, {"version": 2, "weight": 1.0}]
    await post("/v1/experiments", name=f"{name}-trial", adapter=name, arms=arms, metric="thumb", window_seconds=0)
    trial = await post(CHAT, model=name, messages=MESSAGES, max_tokens=8)
    line = {"custom_id": "1", "method": "POST", "url": CHAT, "body": {"model": name, "messages": MESSAGES}}
    content = (json.dumps(line) + "\n").encode()
    file = (await admin.post("/v1/files", files={"file": ("a.jsonl", content)}, data={"purpose": "batch"})).json()["id"]
    batch = await post("/v1/batches", input_file_id=file, endpoint=CHAT, completion_window="24h")
    return {
        "name": name,
        "model": name,
        "subject": name,
        "experiment": f"{name}-trial",
        "interaction_id": answer["id"],
        "trial": trial["id"],
        "response_id": response["id"],
        "id": round_["id"],
        "job_id": round_["job"],
        "file_id": file,
        "batch_id": batch["id"],
    }


ABOUT_ALL = {"webhooks", "keys", "audit", "metrics"}
"""Nouns that are about the whole server: keys with a scope get 403."""

GIVEN_BODIES: dict[str, dict[str, Any]] = {
    "push": {"path": "/nothing"},
    "promote": {"version": 1},
    "set_policy": {"log": True},
    "set_limits": {"concurrent": 1},
    "change_weights": {"weights": {"zebra@2": 0.1}},
    "add_arm": {"version": 1, "weight": 0.1},
}
"""Bodies of routes about something in the path, by their operation."""

NAMING = {
    "chat": {"model": "model", "messages": MESSAGES, "max_tokens": 4},
    "complete": {"model": "model", "prompt": "hi", "max_tokens": 4},
    "respond_": {"model": "model", "input": "hi"},
    "message": {"model": "model", "messages": MESSAGES, "max_tokens": 4},
    "count_tokens": {"model": "model", "messages": MESSAGES},
    "embed": {"model": "model", "input": "hi"},
    "tokenize": {"model": "model", "prompt": "hi"},
    "detokenize": {"model": "model", "tokens": [1]},
    "send_feedback": {"interaction_id": "interaction_id", "thumb": "up"},
    "start_experiment": {
        "name": "mine",
        "adapter": "name",
        "arms": [{"version": 1}, {"version": 2, "weight": 0.5}],
        "metric": "thumb",
    },
    "begin_round": {"adapter": "name"},
    "create_job": {"model": "model", "training_file": "feedback"},
    "create_batch": {"input_file_id": "file_id", "endpoint": CHAT, "completion_window": "24h"},
    "validate_grader": {
        "grader": {
            "type": "score_model",
            "name": "g",
            "model": "model",
            "input": [{"role": "user", "content": "rate {{sample.output_text}}"}],
        }
    },
}
NAMING["run_grader"] = {**NAMING["validate_grader"], "model_sample": "x"}
"""Bodies of routes without anything in the path, by their operation; a string that is a kind of id stands for one."""

NAMES_NOTHING = {"create_file"}
"""Routes that are about nothing that is there."""


def operations() -> list[tuple[str, str, str]]:
    return [
        (operation["operationId"], method.upper(), path)
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
    ]


def made_up(ids: dict[str, str]) -> dict[str, str]:
    """Ids of the same form that name nothing."""
    return {kind: id.replace(HIDDEN, NOTHING) if HIDDEN in id else id[:-4] + "0000" for kind, id in ids.items()}


def filled(path: str, ids: dict[str, str]) -> str:
    kinds = {**ids, "scope": "adapters", "alias": "live", "number": "1", "key_id": "0" * 12}
    if path.startswith("/v1/experiments"):
        kinds["name"] = ids["experiment"]
    return re.sub(r"{(\w+)(:path)?}", lambda found: kinds[found[1]], path)


def naming(body: Any, ids: dict[str, str]) -> Any:
    if isinstance(body, dict):
        return {name: naming(value, ids) for name, value in body.items()}
    return ids.get(body, body) if isinstance(body, str) else body


def told(answer: httpx.Response, ids: dict[str, str]) -> tuple[int, str]:
    """What an answer says, without the ids that were asked for."""
    text = answer.text
    for id in sorted(ids.values(), key=len, reverse=True):
        text = text.replace(id, "THAT")
    return answer.status_code, text


async def test_every_route_of_the_document_keeps_what_is_out_of_scope_to_itself(shared: Shared) -> None:
    hidden, nothing = shared.ids[HIDDEN], made_up(shared.ids[HIDDEN])
    before = shared.harness.world.state()
    for operation, method, path in operations():
        noun = path.removeprefix("/v1").split("/")[1]
        if noun in ABOUT_ALL or operation == "erase":
            assert (await shared.operator.request(method, filled(path, hidden))).status_code == 403, path
        elif "{" in path:
            body = GIVEN_BODIES.get(operation)
            one, other = [
                told(await shared.operator.request(method, filled(path, ids), json=body), ids)
                for ids in (hidden, nothing)
            ]
            assert one == other, operation
            assert one[0] == 404, (operation, one)
        elif method == "GET":
            seen = (await shared.operator.get(path)).text
            assert not [kind for kind, id in hidden.items() if id in seen], path
        elif operation not in NAMES_NOTHING:
            one, other = [
                told(await shared.operator.post(path, json=naming(NAMING[operation], ids)), ids)
                for ids in (hidden, nothing)
            ]
            assert one == other, operation
            assert one[0] in (400, 404), (operation, one)
    assert shared.harness.world.state() == before


async def test_what_is_in_scope_is_there(shared: Shared) -> None:
    mine = shared.ids[MINE]
    for path in ("/v1/adapters", "/v1/rounds", "/v1/fine_tuning/jobs", "/v1/experiments", "/v1/learning_policies"):
        assert len((await shared.operator.get(path)).json()["data"]) == 1, path
    models = [model["id"] for model in (await shared.app.get("/v1/models")).json()["data"]]
    assert models == ["intents", "intents@live", "intents@1", "intents@2"]
    assert (await shared.app.get("/v1/models/tiny-base")).status_code == 404
    seen = (await shared.operator.get("/v1/interactions")).json()["data"]
    # That of the base arm in the adapter's experiment is the adapter's, too.
    assert {row["id"] for row in seen} == {mine["interaction_id"], mine["response_id"], mine["trial"]}
    assert len((await shared.operator.get("/v1/feedback")).json()["data"]) == 1
    for id in (mine["interaction_id"], mine["trial"]):
        assert (await shared.app.post("/v1/feedback", json={"interaction_id": id, "score": 1})).status_code == 201
    exported = (await shared.operator.get("/v1/interactions/export")).text
    assert len(exported.splitlines()) == 3
    assert (await shared.operator.get(f"/v1/fine_tuning/jobs/{mine['job_id']}")).status_code == 200
    asked = {"model": MINE, "messages": MESSAGES, "max_tokens": 4}
    assert (await shared.app.post(CHAT, json=asked)).status_code == 200


@pytest.mark.parametrize("parameter", ["adapter", "after"])
async def test_filters_and_cursors_know_only_what_is_in_scope(shared: Shared, parameter: str) -> None:
    hidden, nothing = shared.ids[HIDDEN], made_up(shared.ids[HIDDEN])
    cursors = {"/v1/rounds": "id", "/v1/fine_tuning/jobs": "job_id", "/v1/files": "file_id", "/v1/batches": "batch_id"}
    if parameter == "after":
        asked = [(path, kind, "after") for path, kind in cursors.items()]
    else:
        lists = ("/v1/rounds", "/v1/fine_tuning/jobs", "/v1/interactions", "/v1/feedback", "/v1/feedback/export")
        asked = [(path, "name", "adapter") for path in lists]
    for path, kind, name in asked:
        one, other = [told(await shared.operator.get(path, params={name: ids[kind]}), ids) for ids in (hidden, nothing)]
        assert one == other, path


async def test_a_preferred_answer_must_be_in_scope_as_well(shared: Shared) -> None:
    said = {"interaction_id": shared.ids[MINE]["interaction_id"], "preferred_over": shared.ids[HIDDEN]["trial"]}
    refused = await shared.app.post("/v1/feedback", json=said)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_interaction_id")
    assert refused.json()["error"]["param"] == "preferred_over"


async def test_jobs_name_their_adapter_and_learn_from_files_of_their_own(shared: Shared) -> None:
    async def refused(**changes: Any) -> str | None:
        body = {"model": MINE, "training_file": "feedback", **changes}
        answer = await shared.operator.post("/v1/fine_tuning/jobs", json=body)
        assert answer.status_code == 400, answer.text
        param: str | None = answer.json()["error"]["param"]
        return param

    assert await refused(suffix=HIDDEN) == "suffix"
    assert await refused(init_from=f"{HIDDEN}@1") == "init_from"
    assert await refused(training_file=shared.ids[HIDDEN]["file_id"]) == "training_file"
    assert await refused(training_file="support@1") == "training_file"
    assert await refused(model="tiny-base", training_file=shared.ids[MINE]["file_id"]) == "suffix"


async def test_a_scope_may_have_the_base(shared: Shared) -> None:
    secret, _ = shared.harness.world.keys.create("base alone", Role.APP, scope=frozenset({"base"}))
    headers = {"authorization": f"Bearer {secret}"}
    models = (await shared.app.get("/v1/models", headers=headers)).json()["data"]
    assert [model["id"] for model in models] == ["tiny-base"]
    for model, status in (("tiny-base", 200), (MINE, 404), ("base", 404)):
        asked = {"model": model, "messages": MESSAGES, "max_tokens": 4}
        assert (await shared.app.post(CHAT, json=asked, headers=headers)).status_code == status


async def test_an_experiment_tells_nothing_of_anothers_log(shared: Shared) -> None:
    hidden, nothing = shared.ids[HIDDEN], made_up(shared.ids[HIDDEN])
    await shared.admin.put(f"/v1/log_policies/adapters/{HIDDEN}", json={"log": False})
    body = NAMING["start_experiment"]
    one, other = [
        told(await shared.operator.post("/v1/experiments", json=naming(body, ids)), ids) for ids in (hidden, nothing)
    ]
    assert one == other
    assert one[0] == 404


async def test_graders_ask_the_base_of_keys_that_may(shared: Shared) -> None:
    for scope, status in (({MINE, "base"}, 200), ({MINE}, 400)):
        secret, _ = shared.harness.world.keys.create(f"grader {status}", Role.OPERATOR, scope=frozenset(scope))
        answer = await shared.operator.post(
            "/v1/fine_tuning/alpha/graders/validate",
            json=naming(NAMING["validate_grader"], {"model": "tiny-base"}),
            headers={"authorization": f"Bearer {secret}"},
        )
        assert answer.status_code == status, answer.text


async def test_a_scope_ends_with_its_request(shared: Shared) -> None:
    await shared.operator.get("/v1/adapters")
    assert len(shared.harness.world.services.registry.adapters()) == 2
