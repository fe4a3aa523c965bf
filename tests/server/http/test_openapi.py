"""``GET /openapi.json``: routes, bodies, responses and security."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from graftwork.version import __version__
from tests.server.documented import document
from tests.server.fakes import make_world
from tests.server.http_errors import HERE

PUBLIC = {"/", "/health", "/ready", "/version", "/openapi.json"}
TEXTS = {"/": "text/html", "/metrics": "text/plain", "/v1/files/{file_id}/content": "application/octet-stream"}


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    return [(path, method, found) for path, each in document()["paths"].items() for method, found in each.items()]


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_it_is_served_without_a_key(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE) as client:
        answer = client.get("/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    served = answer.json()
    assert (served["info"]["title"], served["info"]["version"]) == ("Graftwork", __version__)
    generation = {path for path in document()["paths"] if path not in served["paths"]}  # there where the engine is
    assert generation == {
        *("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/messages/count_tokens"),
        *("/v1/responses", "/v1/responses/{response_id}", "/v1/embeddings", "/tokenize", "/detokenize"),
    }
    assert set(served["paths"]) < set(document()["paths"])


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    names = {f"#/components/schemas/{name}" for name in document()["components"]["schemas"]}
    assert references(document()) == names
    assert "$defs" not in json.dumps(document())


def test_every_operation_has_a_name_of_its_own_and_says_how_it_fails() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(names) == len(set(names))
    for path, _, operation in operations():
        kind = "AnthropicErrorObject" if path.startswith("/v1/messages") else "ErrorObject"
        error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{kind}"}}}
        assert operation["responses"]["default"]["content"] == error
    assert not any("422" in operation["responses"] for _, _, operation in operations()), "bad parameters are 400"


def test_all_but_the_public_routes_ask_for_a_bearer_key() -> None:
    assert document()["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    assert {path for path, _, operation in operations() if "security" not in operation} == PUBLIC
    assert all(found.get("security", [{"bearer": []}]) == [{"bearer": []}] for _, _, found in operations())


def test_every_route_describes_what_it_takes_and_answers() -> None:
    bodiless = {f"/v1/{path}" for path in ("fine_tuning/jobs/{job_id}/cancel", "batches/{batch_id}/cancel")}
    bodiless.add("/v1/webhooks/{id}/test")
    for path, method, operation in operations():
        takes = operation.get("requestBody", {}).get("content", {})
        assert bool(takes) == (method in ("post", "put", "patch") and path not in bodiless), (method, path)
        assert all("$ref" in content["schema"] for content in takes.values())
        good = [answer for status, answer in operation["responses"].items() if status.startswith("2")]
        for kind, content in [item for answer in good for item in answer["content"].items()]:
            if path in TEXTS:
                assert kind == TEXTS[path]
            elif path != "/openapi.json":
                assert "$ref" in content["schema"], (method, path)


def test_bodies_that_are_read_by_hand_have_all_their_fields() -> None:
    schemas = document()["components"]["schemas"]
    chat = schemas["ChatCompletionRequest"]
    assert chat["required"] == ["model", "messages"]
    assert {"temperature", "top_p", "stop", "stream_options", "user", "metadata"} <= set(chat["properties"])
    assert chat["properties"]["messages"]["items"] == {"$ref": "#/components/schemas/Message"}
    assert [form["type"] for form in schemas["CompletionRequest"]["properties"]["prompt"]["anyOf"]] == [
        "string",
        "array",
        "array",
        "array",
    ]
    push = document()["paths"]["/v1/adapters/{name}/versions"]["post"]["requestBody"]["content"]
    assert set(push) == {"application/json", "multipart/form-data"}
