"""Batches: both clients and the command line against the real routes, with answers made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from graftwork.adapters.batches.batch import BatchError, BatchResult
from graftwork.clients import errors
from graftwork.clients.cli.exit_codes import ExitCode
from graftwork.clients.types.batches import Batch
from graftwork.server.generation.batches.output import write_files
from tests.clients.test_records import ClientsHarness, MakeClient
from tests.clients.test_records import harness as harness  # the fixture

CHAT = "/v1/chat/completions"
SLEEP = "graftwork.clients.cli.batches.time.sleep"


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    lines = [{"custom_id": name, "method": "POST", "url": CHAT, "body": {"n": 1}} for name in ("a", "b")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def unfenced(_: object) -> None: ...


def begin(harness: ClientsHarness, id: str) -> None:
    harness.world.services.batches.begin(id, 2, fence=unfenced)


def answer(harness: ClientsHarness, id: str, *names: str, failed: bool = False) -> None:
    results = [
        BatchResult(line=1 + "ab".index(name), failed=failed, content=json.dumps({"custom_id": name})) for name in names
    ]
    harness.world.services.batches.add_results(id, results, fence=unfenced)


def end(harness: ClientsHarness, id: str) -> None:
    services = harness.world.services
    batch = services.batches.finalize(id, fence=unfenced)
    output, error = write_files(services.batches, services.files, batch)
    services.batches.end(id, output_file=output, error_file=error, fence=unfenced)


def test_both_clients_make_and_read_a_batch(make_client: MakeClient, harness: ClientsHarness, requests: Path) -> None:
    client = make_client(harness.url)
    file = client.files.upload(requests, purpose="batch")
    assert file.purpose == "batch"
    batch: Batch = client.batches.create(file.id, metadata={"night": "1"})
    assert (batch.status, batch.endpoint, batch.input_file_id, batch.metadata, batch.ended) == (
        "validating", CHAT, file.id, {"night": "1"}, False,
    )  # fmt: skip
    begin(harness, batch.id)
    answer(harness, batch.id, "a")
    answer(harness, batch.id, "b", failed=True)
    end(harness, batch.id)
    batch = client.batches.get(batch.id)
    assert (batch.status, batch.ended, batch.request_counts.completed, batch.request_counts.failed) == (
        "completed", True, 1, 1,
    )  # fmt: skip
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    assert [line["custom_id"] for line in client.batches.results(batch.output_file_id)] == ["a"]
    assert [line["custom_id"] for line in client.batches.results(batch.error_file_id)] == ["b"]
    assert list(client.batches.list(limit=5)) == [batch]
    with pytest.raises(errors.ConflictError):
        client.batches.cancel(batch.id)
    with pytest.raises(errors.NotFoundError):
        client.batches.get("batch_x")
    with pytest.raises(errors.BadRequestError):
        client.batches.create(file.id, endpoint="/v1/moderations")
    first, again = (client.batches.create(file.id, idempotency_key="once") for _ in range(2))
    assert first.id == again.id
    assert client.batches.cancel(first.id).status == "cancelling"


# ------------------------------------------------------------------------------------------------------ command line


def test_from_a_file_to_its_results(
    harness: ClientsHarness, requests: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "No batches yet" in harness.run("batches", "list").stdout
    made = harness.run("batches", "create", requests, "--metadata", "night=1")
    assert made.exit_code == 0, made.stderr
    (batch,) = harness.json("batches", "list")
    id = batch["id"]
    assert id in made.stdout
    assert f"batches results {id} --wait" in made.stderr
    assert (batch["endpoint"], batch["metadata"]) == (CHAT, {"night": "1"})
    early = harness.run("batches", "results", id)
    assert early.exit_code == ExitCode.FAILED
    assert "--wait" in early.stderr

    steps: list[Callable[[], None]] = [
        lambda: begin(harness, id),
        lambda: answer(harness, id, "a"),
        lambda: answer(harness, id, "b", failed=True),
        lambda: end(harness, id),
    ]
    monkeypatch.setattr(SLEEP, lambda _: steps.pop(0)())
    done = harness.run("batches", "results", id, "--wait")
    assert (done.exit_code, done.stdout) == (0, '{"custom_id": "a"}\n'), done.stderr
    assert f"results {id} --failed" in done.stderr
    out = tmp_path / "errors.jsonl"
    assert harness.run("batches", "results", id, "--failed", "--out", out).exit_code == 0
    assert out.read_text() == '{"custom_id": "b"}\n'
    assert "1/2" in harness.run("batches", "list").stdout
    shown = harness.run("batches", "show", id).stdout
    assert "completed · 1 of 2 answered, 1 failed" in shown
    assert "night=1" in shown
    assert harness.json("batches", "show", id)["status"] == "completed"
    assert harness.run("batches", "cancel", id).exit_code == ExitCode.FAILED


def test_a_failed_batch_is_a_failed_command(harness: ClientsHarness, requests: Path) -> None:
    id = harness.json("batches", "create", requests)["id"]
    error = BatchError(code="duplicate_custom_id", message="the same again", line=2)
    harness.world.services.batches.fail(id, [error], fence=unfenced)
    done = harness.run("batches", "results", id)
    assert (done.exit_code, done.stdout) == (ExitCode.FAILED, "")
    assert "line 2: the same again" in done.stderr


def test_cancelled_and_not_there(harness: ClientsHarness, requests: Path) -> None:
    id = harness.json("batches", "create", requests, "--endpoint", "/v1/completions")["id"]
    assert harness.json("batches", "cancel", id)["status"] == "cancelling"
    assert harness.run("batches", "show", "batch_x").exit_code == ExitCode.NOT_FOUND
    assert harness.run("batches", "create", "missing.jsonl").exit_code == ExitCode.FAILED
    assert harness.run("batches", "create", requests, "--endpoint", "/v1/none").exit_code == ExitCode.FAILED


def test_ctrl_c_leaves_the_batch_alone(
    harness: ClientsHarness, requests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    id = harness.json("batches", "create", requests)["id"]
    monkeypatch.setattr(SLEEP, interrupt)
    done = harness.run("batches", "results", id, "--wait")
    assert done.exit_code == ExitCode.INTERRUPTED
    assert f"graftwork batches cancel {id}" in done.stderr
