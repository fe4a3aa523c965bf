"""Batches over HTTP: OpenAI's formats, whose files and batches a key sees, and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types import Batch as OpenAIBatch

from graftwork.adapters.access.keys import Role
from graftwork.adapters.batches.batch import BatchError, BatchResult
from graftwork.adapters.learning import files as files_module
from graftwork.server.generation.batches.endpoints import ENDPOINTS
from tests.conftest import CHECKOUT
from tests.server.fakes import ADMIN_KEY, World, make_world
from tests.server.http_errors import HERE, error

FILES, BATCHES = "/v1/files", "/v1/batches"
CHAT = "/v1/chat/completions"
LINE = json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": {}}).encode() + b"\n"

Client = Callable[[Role], TestClient]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path, admin_key=ADMIN_KEY, open_to_loopback=False)


@pytest.fixture
def client_of(world: World) -> Iterator[Client]:
    """Makes clients with keys of their own."""
    clients: list[TestClient] = []

    def make(role: Role) -> TestClient:
        secret, _ = world.keys.create(f"{role.value}-{len(clients)}", role)
        client = TestClient(world.app, base_url="http://127.0.0.1:8000", client=HERE)
        client.headers["authorization"] = f"Bearer {secret}"
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def upload(client: TestClient, purpose: str = "batch", content: bytes = LINE) -> Any:
    return client.post(FILES, files={"file": ("requests.jsonl", content)}, data={"purpose": purpose})


def file_id(client: TestClient, **given: Any) -> str:
    response = upload(client, **given)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def create(client: TestClient, **body: Any) -> Any:
    right = {"endpoint": CHAT, "completion_window": "24h"}
    file = {} if "input_file_id" in body else {"input_file_id": file_id(client)}
    return client.post(BATCHES, json={k: v for k, v in {**right, **file, **body}.items() if v is not ...})


def unfenced(_: object) -> None: ...


def test_a_batch_from_its_creation_to_its_end(client_of: Client, world: World) -> None:
    client, batches = client_of(Role.APP), world.services.batches
    made = create(client, metadata={"night": "1"}).json()
    OpenAIBatch.model_validate(made, strict=True)
    assert (made["status"], made["metadata"], made["errors"], made["request_counts"]) == (
        "validating", {"night": "1"}, None, {"total": 0, "completed": 0, "failed": 0},
    )  # fmt: skip
    assert made["expires_at"] - made["created_at"] == 24 * 3600
    assert made["graftwork"] == {"created_by": "app-0", "waiting": None}
    assert client.get(f"{BATCHES}/{made['id']}").json() == made
    busy = error(client.delete(f"{FILES}/{made['input_file_id']}"), 409)
    assert made["id"] in busy["message"]
    batches.begin(made["id"], 2, fence=unfenced)
    batches.add_results(made["id"], [BatchResult(line=1, failed=True, content="{}")], fence=unfenced)
    counts = client.get(f"{BATCHES}/{made['id']}").json()["request_counts"]
    assert counts == {"total": 2, "completed": 0, "failed": 1}
    cancelling = client.post(f"{BATCHES}/{made['id']}/cancel").json()
    assert (cancelling["status"], cancelling["cancelling_at"] is not None) == ("cancelling", True)
    batches.end(made["id"], output_file=None, error_file="file-1", fence=unfenced)
    ended = client.post(f"{BATCHES}/{made['id']}/cancel").json()
    OpenAIBatch.model_validate(ended, strict=True)
    assert (ended["status"], ended["error_file_id"], ended["output_file_id"]) == ("cancelled", "file-1", None)
    assert client.delete(f"{FILES}/{made['input_file_id']}").json()["deleted"]


def test_what_is_wrong_with_a_file_is_told_as_openai_does(client_of: Client, world: World) -> None:
    client = client_of(Role.APP)
    id = create(client).json()["id"]
    world.services.batches.fail(
        id, [BatchError(code="invalid_json_line", message="the line is no JSON", line=3)], fence=unfenced
    )
    failed = client.get(f"{BATCHES}/{id}").json()
    OpenAIBatch.model_validate(failed, strict=True)
    assert failed["errors"] == {
        "object": "list",
        "data": [{"code": "invalid_json_line", "message": "the line is no JSON", "line": 3, "param": None}],
    }
    assert error(client.post(f"{BATCHES}/{id}/cancel"), 409)["code"] == "batch_ended"


def test_lists_are_openais(client_of: Client) -> None:
    client = client_of(Role.APP)
    assert client.get(BATCHES).json() == {
        "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip
    made = [create(client).json()["id"] for _ in range(3)][::-1]
    first = client.get(BATCHES, params={"limit": 2}).json()
    assert (first["first_id"], first["last_id"], first["has_more"]) == (made[0], made[1], True)
    rest = client.get(BATCHES, params={"limit": 2, "after": first["last_id"]}).json()
    assert ([batch["id"] for batch in rest["data"]], rest["has_more"]) == ([made[2]], False)


def test_an_apps_key_sees_its_own_and_an_operators_all(client_of: Client) -> None:
    shop, blog, ann = client_of(Role.APP), client_of(Role.APP), client_of(Role.OPERATOR)
    batch = create(shop).json()
    file, rows = batch["input_file_id"], file_id(ann, purpose="fine-tune")
    for path in (f"{FILES}/{file}", f"{FILES}/{file}/content", f"{BATCHES}/{batch['id']}"):
        assert shop.get(path).status_code == ann.get(path).status_code == 200
        error(blog.get(path), 404)
    for client, mine in ((shop, [file]), (blog, []), (ann, [rows, file])):
        assert [row["id"] for row in client.get(FILES).json()["data"]] == mine
    for client, count in ((shop, 1), (blog, 0), (ann, 1)):
        assert len(client.get(BATCHES).json()["data"]) == count
    error(blog.post(f"{BATCHES}/{batch['id']}/cancel"), 404)
    error(blog.delete(f"{FILES}/{file}"), 404)
    error(shop.delete(f"{FILES}/{rows}"), 404)
    for foreign in (blog.get(FILES, params={"after": file}), blog.get(BATCHES, params={"after": batch["id"]})):
        assert error(foreign, 400)["param"] == "after"
    assert error(create(blog, input_file_id=file), 400)["param"] == "input_file_id"
    assert create(ann, input_file_id=file).status_code == 200
    assert error(upload(shop, "fine-tune"), 403)["code"] == "insufficient_role"
    assert ann.post(f"{BATCHES}/{batch['id']}/cancel").json()["status"] == "cancelling"


def test_a_repeated_request_is_one_batch(client_of: Client) -> None:
    client = client_of(Role.APP)
    client.headers["idempotency-key"] = "once"
    file = file_id(client)
    first, again = (create(client, input_file_id=file).json()["id"] for _ in range(2))
    assert first == again
    assert error(create(client, input_file_id=file, metadata={"a": "b"}), 409)["code"] == "idempotency_key_reused"


def test_a_file_of_requests_has_a_bound_of_its_own(client_of: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "MAX_BATCH_BYTES", 1000)
    client = client_of(Role.OPERATOR)
    assert error(upload(client, content=LINE * 50), 413)["code"] == "too_large"
    assert upload(client, "fine-tune", LINE * 50).status_code == 200
    assert len(client.get(FILES).json()["data"]) == 1


@pytest.mark.parametrize(
    ("body", "code", "param", "says"),
    [
        ({"input_file_id": ...}, "missing_required_parameter", "input_file_id", "required"),
        ({"endpoint": ...}, "missing_required_parameter", "endpoint", "required"),
        ({"completion_window": ...}, "missing_required_parameter", "completion_window", "required"),
        ({"completion_window": "1h"}, "invalid_value", "completion_window", "24h"),
        ({"completion_window": 24}, "invalid_value", "completion_window", "24h"),
        ({"endpoint": "/v1/moderations"}, "invalid_value", "endpoint", CHAT),
        ({"endpoint": "v1/chat/completions"}, "invalid_value", "endpoint", CHAT),
        ({"endpoint": ""}, "invalid_value", "endpoint", "empty"),
        ({"endpoint": 7}, "invalid_type", "endpoint", "string"),
        ({"input_file_id": ""}, "invalid_value", "input_file_id", "empty"),
        ({"input_file_id": 7}, "invalid_type", "input_file_id", "string"),
        ({"input_file_id": "file-x"}, "file_not_found", "input_file_id", "no file"),
        ({"input_file_id": "../../etc/passwd"}, "file_not_found", "input_file_id", "no file"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata", "string"),
        ({"metadata": {"": "a"}}, "invalid_value", "metadata", "long"),
        ({"metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata", "16"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3600}}, "unsupported_parameter",
         "output_expires_after", "deleted"),
        ({"priority": "low"}, "unknown_parameter", "priority", "remove it"),
        ({"input_file": "file-x"}, "unknown_parameter", "input_file", "input_file_id"),
    ],
)  # fmt: skip
def test_a_bad_batch_is_refused_and_leaves_nothing(
    client_of: Client, body: dict[str, Any], code: str, param: str, says: str
) -> None:
    client = client_of(Role.APP)
    found = error(create(client, **body), 400)
    assert (found["code"], found["param"]) == (code, param)
    assert says in found["message"]
    assert client.get(BATCHES).json()["data"] == []


def test_the_docs_name_every_endpoint() -> None:
    text = (CHECKOUT / "docs" / "api.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| `endpoint` |")]
    assert set(re.findall(r"`(/v1/[^`]+)`", row)) == ENDPOINTS.keys()


def test_a_file_to_learn_from_is_no_file_of_requests(client_of: Client) -> None:
    client = client_of(Role.OPERATOR)
    refused = error(create(client, input_file_id=file_id(client, purpose="fine-tune")), 400)
    assert (refused["param"], "fine-tune" in refused["message"]) == ("input_file_id", True)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"{BATCHES}/batch_x", 404, "batch_not_found"),
        ("POST", f"{BATCHES}/batch_x/cancel", 404, "batch_not_found"),
        ("GET", f"{BATCHES}?limit=0", 400, "invalid_value"),
        ("GET", f"{BATCHES}?limit=101", 400, "invalid_value"),
        ("GET", f"{BATCHES}?after=batch_x", 400, "invalid_value"),
        ("GET", f"{BATCHES}?status=failed", 400, "unknown_parameter"),
        ("DELETE", f"{BATCHES}/batch_x", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there(client_of: Client, method: str, path: str, status: int, code: str) -> None:
    assert error(client_of(Role.APP).request(method, path), status)["code"] == code
