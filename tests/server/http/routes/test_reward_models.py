"""Reward models over HTTP: kept as versions, never asked for answers, and named as rewards of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.experiments.routing import ModelRouter
from tests.server.fakes import World, adapter_files, form, make_world, reward_model_files
from tests.server.http_errors import HERE, error

JOBS = "/v1/fine_tuning/jobs"
PAIR = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[TestClient]:
    """With an adapter ``intents`` and a reward model ``polite`` of two versions."""
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE) as client:
        pushed = [
            client.post(f"/v1/adapters/{name}/versions", files=form(files)).json()
            for name, files in (
                ("intents", adapter_files()),
                ("polite", reward_model_files()),
                ("polite", reward_model_files(1)),
            )
        ]
        assert [version["id"] for version in pushed] == ["intents@1", "polite@1", "polite@2"]
        yield client


@pytest.fixture(scope="module")
def file(client: TestClient) -> str:
    files = {"file": ("pairs.jsonl", PAIR)}
    return str(client.post("/v1/files", files=files, data={"purpose": "fine-tune"}).json()["id"])


def test_it_is_a_version_that_the_engine_never_sees(client: TestClient, world: World) -> None:
    version = client.get("/v1/adapters/polite").json()["versions"][0]
    assert version["peft_config"]["task_type"] == "SEQ_CLS"
    assert version["digest"] not in world.engine.tried
    assert len(world.engine.tried) == 1


@pytest.mark.parametrize("model", ["polite", "polite@1", "polite@live"])
def test_it_is_no_model_that_answers(client: TestClient, world: World, model: str) -> None:
    services = world.services
    router = ModelRouter(services.base, services.registry, services.experiments)
    for resolve in (lambda: router.resolve(model, None, chat=True), lambda: router.resolve_control(model)):
        with pytest.raises(InvalidRequest, match="is a reward model: it scores answers and gives none") as refused:
            resolve()
        assert (refused.value.status, refused.value.code, refused.value.param) == (400, "not_a_chat_model", "model")
    assert error(client.get(f"/v1/models/{model}"), 400)["code"] == "not_a_chat_model"


def test_models_that_answer_are_listed(client: TestClient) -> None:
    listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert listed == ["tiny-base", "intents", "intents@live", "intents@1"]


def test_it_is_no_arm(client: TestClient) -> None:
    body = {"name": "first", "adapter": "polite", "arms": [{"version": 1}, {"version": 2}], "metric": "thumb"}
    assert error(client.post("/v1/experiments", json=body), 400)["code"] == "not_a_chat_model"


@pytest.mark.parametrize(
    ("name", "files", "said"),
    [
        ("intents", reward_model_files(7), "this is a reward model, and the versions of intents are none"),
        ("polite", adapter_files(7), "the versions of polite are reward models, and this is none"),
    ],
)
def test_a_name_stands_for_one_kind(client: TestClient, name: str, files: dict[str, bytes], said: str) -> None:
    before = client.get(f"/v1/adapters/{name}").json()
    assert said in error(client.post(f"/v1/adapters/{name}/versions", files=form(files)), 409)["message"]
    assert client.get(f"/v1/adapters/{name}").json() == before


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"model": "intents", "method": {"type": "reward_model"}}, "model", "intents gives answers"),
        ({"suffix": "intents", "method": {"type": "reward_model"}}, "suffix", "begin with the base, and another name"),
        ({"model": "polite", "method": {"type": "dpo"}}, "model", "polite is a reward model: choose the method"),
        ({"suffix": "polite"}, "suffix", "polite is a reward model"),
        (
            {"method": {"type": "grpo", "grpo": {"hyperparameters": {"rewards": ["exact", "intents@1"]}}}},
            "rewards",
            "intents@1 is no reward model: train one with the method reward_model",
        ),
        ({"method": {"type": "grpo", "grpo": {"hyperparameters": {"rewards": "polite@9"}}}}, "rewards", "polite"),
        ({"method": {"type": "grpo", "grpo": {"hyperparameters": {"rewards": "polite"}}}}, None, "no reward function"),
    ],
)
def test_jobs_that_mix_the_kinds_are_refused(
    client: TestClient, file: str, body: dict[str, Any], param: str | None, said: str
) -> None:
    refused = error(client.post(JOBS, json={"model": "tiny-base", "training_file": file, **body}), 400)
    assert said in refused["message"]
    assert param in (None, refused["param"])


def test_jobs_train_them_and_learn_from_them(client: TestClient, file: str) -> None:
    def submitted(**body: Any) -> dict[str, Any]:
        response = client.post(JOBS, json={"model": "tiny-base", "training_file": file, **body})
        assert response.status_code == 200, response.text
        job: dict[str, Any] = response.json()
        return job

    fresh = submitted(suffix="brief", method={"type": "reward_model"})
    assert (fresh["graftwork"]["method"], fresh["method"]) == ("reward_model", None)
    assert submitted(model="polite", method={"type": "reward_model"})["graftwork"]["parent"] == "polite@1"
    rewards = ["exact", "polite@live"]
    learning = submitted(suffix="nice", method={"type": "grpo", "grpo": {"hyperparameters": {"rewards": rewards}}})
    assert learning["hyperparameters"]["rewards"] == ["exact", "polite@1"], "aliases may move while a job waits"


def test_learning_policies_keep_to_the_kind(client: TestClient) -> None:
    path = "/v1/adapters/{}/learning_policy"
    assert "polite is a reward model" in error(client.put(path.format("polite"), json={}), 400)["message"]
    assert client.put(path.format("polite"), json={"method": "reward_model"}).json()["method"] == "reward_model"
    compared = error(client.put(path.format("polite"), json={"method": "reward_model", "experiment": True}), 400)
    assert compared["param"] == "experiment"
    learning = {"method": "grpo", "hyperparameters": {"rewards": "polite@live"}}
    policy = client.put(path.format("intents"), json=learning).json()
    assert policy["hyperparameters"]["rewards"] == ["polite@1"]
