"""Graders that are checked and tried out over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types.fine_tuning.alpha import GraderRunResponse, GraderValidateResponse

from tests.server.fakes import make_world
from tests.server.http.routes.fine_tuning.test_jobs import GRADER, JUDGE
from tests.server.http_errors import HERE, error

ROUTES = "/v1/fine_tuning/alpha/graders"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    world = make_world(tmp_path_factory.mktemp("graders"))
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE) as client:
        yield client


def test_a_grader_is_checked(client: TestClient) -> None:
    found = client.post(f"{ROUTES}/validate", json={"grader": GRADER}).json()
    GraderValidateResponse.model_validate(found, strict=True)
    assert found["grader"] == GRADER
    for route, more in (("validate", {}), ("run", {"model_sample": "x"})):
        wrong = {**GRADER, "operation": "regex"}
        assert error(client.post(f"{ROUTES}/{route}", json={"grader": wrong, **more}), 400)["param"] == (
            "grader.operation"
        )
        assert error(client.post(f"{ROUTES}/{route}", json={"grader": JUDGE, **more}), 400)["param"] == "grader.model"
        assert error(client.post(f"{ROUTES}/{route}", json={"graders": GRADER, **more}), 400)["param"] in (
            *("grader", "graders"),
        )


def test_an_answer_is_graded(client: TestClient) -> None:
    multi: dict[str, Any] = {
        "type": "multi",
        "name": "all",
        "graders": {"city": GRADER},
        "calculate_output": "1 / city",
    }
    body = {"grader": multi, "item": {"city": "Rome"}, "model_sample": '{"city": "Rome"}'}
    found = client.post(f"{ROUTES}/run", json=body).json()
    GraderRunResponse.model_validate(found, strict=True)
    assert (found["reward"], found["sub_rewards"], found["metadata"]["name"]) == (1.0, {"city": 1.0}, "all")
    assert not any(found["metadata"]["errors"].values())
    failed = client.post(f"{ROUTES}/run", json={**body, "model_sample": "Rome"}).json()
    GraderRunResponse.model_validate(failed, strict=True)
    assert (failed["reward"], failed["metadata"]["errors"]["formula_parse_error"]) == (0.0, True)


def test_operators_only(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    with TestClient(world.app, base_url="http://192.0.2.1:8000", client=("192.0.2.9", 1)) as client:
        for route in ("validate", "run"):
            assert client.post(f"{ROUTES}/{route}", json={"grader": GRADER}).status_code in (401, 403)
