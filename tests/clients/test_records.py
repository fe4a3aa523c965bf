"""Feedback, interactions and log policies: both clients and the command line against the real routes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from typer.testing import CliRunner, Result

from graftwork.__main__ import app
from graftwork.clients import errors
from graftwork.clients.cli.context import parse_since
from graftwork.clients.cli.exit_codes import ExitCode
from tests.adapters.records import Records
from tests.clients.test_client import FEEDBACK, Recorder
from tests.server.fakes import World, adapter_files, form, make_world

MakeClient = Callable[..., Any]


@dataclass
class ClientsHarness:
    url: str
    world: World
    records: Records

    def run(self, *arguments: object, **more: Any) -> Result:
        environment = {"GRAFTWORK_URL": self.url, "COLUMNS": "200"}
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment, **more)

    def json(self, *arguments: object) -> Any:
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[ClientsHarness]:
    """The real routes without an engine, on a port, with one adapter."""
    world = make_world(tmp_path)
    records = Records.at(tmp_path / "graftwork.db")
    server = uvicorn.Server(uvicorn.Config(world.app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    pushed = httpx.post(f"{url}/v1/adapters/intents/versions", files=form(adapter_files()), timeout=60)
    assert pushed.status_code == 201
    yield ClientsHarness(url, world, records)
    server.should_exit = True
    thread.join(10)
    records.database.close()


def test_both_clients_say_list_and_export(make_client: MakeClient, harness: ClientsHarness) -> None:
    client, records = make_client(harness.url), harness.records
    id = records.mint("intents@1", user="ann", experiment="e", arm="b", probability=0.5)
    sent = client.feedback.send(id, thumb="down", correction="Kärtchen\u2028🂡", metadata={"page": "7"}, user="ann")
    assert (sent.created, sent.thumb, sent.adapter, sent.arm) == (True, "down", "intents@1", "b")
    assert abs((datetime.now(UTC) - sent.at).total_seconds()) < 60
    assert client.feedback.send(id, thumb="down", correction="Kärtchen\u2028🂡").created, "each call is a new thing said"
    first = client.feedback.send(id, score=1, idempotency_key="k")
    again = client.feedback.send(id, score=1, idempotency_key="k")
    assert (first.created, again.created, again.id) == (True, False, first.id)
    with pytest.raises(errors.ConflictError, match="was used before"):
        client.feedback.send(id, score=0, idempotency_key="k")
    with pytest.raises(errors.BadRequestError, match="no id of an answer"):
        client.feedback.send(id + "x", thumb="up")
    page = client.feedback.list(adapter="intents", limit=2)
    assert ([row.id for row in page], page.has_more) == ([3, 2], True)
    assert [row.id for row in client.feedback.list(after=2)] == [1]
    assert [row.id for row in client.feedback.list(since=first.at)] == [3]
    exported = list(client.feedback.export(kind="correction"))
    assert [row.correction for row in exported] == ["Kärtchen\u2028🂡"] * 2
    assert exported[0] == client.feedback.list(after=2).data[0]
    assert list(client.feedback.export(since="2999-01-01T00:00:00Z")) == []
    asked = client.feedback.send(records.mint("intents@1", asked=True), thumb="up")
    assert (asked.asked, sent.asked) == (True, False)
    assert [row.id for row in client.feedback.list(asked=True)] == [
        row.id for row in client.feedback.export(asked=True)
    ]
    assert [row.id for row in client.feedback.list(asked=True)] == [asked.id]
    assert [row.id for row in client.feedback.list(asked=False)] == [3, 2, 1]
    with pytest.raises(errors.BadRequestError):
        list(client.feedback.export(adapter="nobody"))


def test_both_clients_read_and_erase(make_client: MakeClient, harness: ClientsHarness) -> None:
    client, records = make_client(harness.url), harness.records
    ids = [records.log(records.mint(user="ann"), user="ann", metadata={"a": "b"}) for _ in range(250)]
    other = records.log(records.mint(None), prompt={"prompt": ["x", [1, 2]]}, status="error", error="broke")
    exported = list(client.interactions.export())
    assert {row.id for row in exported} == {*ids, other}
    assert [row.prompt for row in client.interactions.list(status="error")] == [("x", [1, 2])]
    client.feedback.send(ids[0], comment="good")
    one = client.interactions.get(ids[0])
    assert one.messages is not None
    assert (one.messages[0]["role"], one.completions[0].text, one.timings.total_ms) == ("user", "card_arrival", 40.0)
    assert [row.comment for row in one.feedback] == ["good"]
    with pytest.raises(errors.NotFoundError):
        client.interactions.get("chatcmpl-1")
    erased = client.interactions.erase(user="ann")
    assert (erased.interactions, erased.feedback, erased.learned_from) == (250, 1, ())
    assert [row.id for row in client.interactions.list()] == [other]


def test_both_clients_set_policies(make_client: MakeClient, harness: ClientsHarness) -> None:
    client = make_client(harness.url)
    assert (client.log_policies.list().data, client.log_policies.list().default.retention_days) == ((), 90)
    policy = client.log_policies.set(adapter="tiny-base", log=False, retention_days=7)
    assert (policy.scope, policy.subject, policy.log, policy.retention_days) == ("adapter", "tiny-base", False, 7)
    assert list(client.log_policies.list()) == [policy]
    assert client.log_policies.remove(adapter="tiny-base") == policy
    assert policy.ask_feedback is None
    assert client.log_policies.set(adapter="tiny-base", ask_feedback=0.05).ask_feedback == 0.05
    with pytest.raises(errors.BadRequestError, match="ask_feedback"):
        client.log_policies.set(adapter="tiny-base", ask_feedback=5)
    for wrong in ({}, {"adapter": "a", "key": "b"}):
        with pytest.raises(errors.InvalidArgumentError, match="one of the two"):
            client.log_policies.set(log=True, **wrong)


def test_feedback_may_be_tried_again_and_counts_once(make_client: MakeClient, naps: list[float]) -> None:
    recorder = Recorder(httpx.ReadError("broken"), httpx.Response(502), FEEDBACK)
    make_client(transport=recorder.transport).feedback.send("chatcmpl-1", thumb="up")
    keys = {json.loads(request.content)["idempotency_key"] for request in recorder.asked}
    assert (len(recorder.asked), len(keys), len(naps)) == (3, 1, 2)


def test_an_export_that_breaks_off_is_no_export(make_client: MakeClient) -> None:
    line = json.dumps(FEEDBACK).encode()

    class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield line + b"\n" + line[:20]
            raise httpx.ReadError("gone")

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for part in self:
                yield part

    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=Broken()))
    rows = iter(make_client(transport=transport).feedback.export())
    assert next(rows).id == 7
    with pytest.raises(errors.GraftworkConnectionError, match="broke"):
        next(rows)
    garbage = Recorder(httpx.Response(200, content=b"no json\n"))
    with pytest.raises(errors.GraftworkProtocolError, match="no JSON"):
        next(iter(make_client(transport=garbage.transport).feedback.export()))


# ----------------------------------------------------------------------------------------------- the command line


def test_the_command_line_says_and_lists(harness: ClientsHarness) -> None:
    id, worse = harness.records.mint("intents@1"), harness.records.mint("intents@1")
    assert "Nothing was said yet" in harness.run("feedback", "list").stdout
    done = harness.run(
        "feedback", "send", id, "--thumb", "down", "--correction", "card_arrival", "--comment", "[/bold]\x1b[31m",
        "--preferred-over", worse, "--metadata", "page=7", "--score", "0.5", "--user", "ann",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "feedback 1 on intents@1" in done.stdout
    assert "should be: card_arrival" in done.stdout
    once = ("feedback", "send", id, "--thumb", "up", "--idempotency-key", "a")
    assert harness.run(*once).stderr == ""
    assert "said before" in harness.run(*once).stderr
    listed = harness.run("feedback", "list").stdout
    assert "[/bold]" in listed
    assert "\x1b" not in listed
    assert id in listed
    assert [row["id"] for row in harness.json("feedback", "list", "--kind", "comment", "--adapter", "intents")] == [1]
    assert len(harness.json("feedback", "list", "--limit", "1")) == 1
    assert harness.json("feedback", "list", "--since", "1h", "--interaction", worse) == []
    assert harness.json("feedback", "send", id, "--choice", "1", "--thumb", "up")["created"] is True
    harness.run("feedback", "send", harness.records.mint("intents@1", asked=True), "--thumb", "up")
    assert "(asked for)" in harness.run("feedback", "list", "--asked").stdout
    assert len(harness.json("feedback", "list", "--asked")) == 1
    assert len(harness.json("feedback", "list", "--unasked")) == 3
    assert len(harness.run("feedback", "export", "--asked").stdout.splitlines()) == 1


def test_the_command_line_exports(harness: ClientsHarness, tmp_path: Path) -> None:
    for number in range(3):
        id = harness.records.log(harness.records.mint("intents@1"), user=f"user-{number}")
        harness.run("feedback", "send", id, "--correction", f"ü\u2028{number}")
    lines = harness.run("feedback", "export").stdout.splitlines()
    assert [json.loads(line)["correction"] for line in lines] == [f"ü\u2028{number}" for number in range(3)]
    out = tmp_path / "rows.jsonl"
    done = harness.run("interactions", "export", "--out", out)
    assert (done.stdout, "3 lines in" in done.stderr) == ("", True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["user"] for row in rows} == {"user-0", "user-1", "user-2"}
    assert [row["id"] for row in rows] == [row["id"] for row in harness.json("interactions", "list")][::-1]
    failed = harness.run("interactions", "export", "--adapter", "nobody", "--out", out)
    assert failed.exit_code == ExitCode.FAILED
    assert len(out.read_text().splitlines()) == 3, "what was there stays"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    nowhere = harness.run("feedback", "export", "--out", tmp_path / "none" / "x.jsonl")
    assert (nowhere.exit_code, "cannot be written" in nowhere.stderr) == (ExitCode.FAILED, True)


def test_the_command_line_shows_and_erases(harness: ClientsHarness) -> None:
    assert "No interactions" in harness.run("interactions", "list").stdout
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hi[/]"}]},
    ]
    id = harness.records.log(
        harness.records.mint("intents@1", user="ann", experiment="e", arm="b", probability=0.5),
        user="ann", prompt={"messages": messages}, status="error", error="it broke",
    )  # fmt: skip
    harness.run("feedback", "send", id, "--thumb", "down", "--comment", "bad")
    listed = harness.run("interactions", "list", "--user", "ann", "--status", "error").stdout
    assert "hi[/]" in listed
    assert id in listed
    assert "e/b" in listed
    shown = harness.run("interactions", "show", id).stdout
    for part in ("Be brief.", "hi[/]", "card_arrival", "it broke", "queued 2 ms", "user ann", "“bad”", "12 + 3 tokens"):
        assert part in shown, part
    assert harness.run("interactions", "show", "chatcmpl-1").exit_code == ExitCode.NOT_FOUND
    kept = harness.run("interactions", "erase", "--user", "ann", input="n\n")
    assert (kept.exit_code, len(harness.json("interactions", "list"))) == (1, 1)
    assert "1 interactions, and the words of 1" in harness.run("interactions", "erase", "--user", "ann", "--yes").stdout
    assert harness.json("interactions", "erase", "--user", "ann", "--yes")["interactions"] == 0
    assert harness.json("interactions", "list") == []
    assert harness.run("interactions", "erase", "--yes").exit_code == ExitCode.USAGE


def test_the_command_line_sets_policies(harness: ClientsHarness) -> None:
    set_ = harness.run("interactions", "policy", "--adapter", "intents", "--days", "7")
    assert "adapter intents is logged, kept 7 days" in set_.stdout
    assert "is not logged" in harness.run("interactions", "policy", "--adapter", "tiny-base", "--no-log").stdout
    shown = harness.run("interactions", "policies").stdout
    assert [line.split()[:4] for line in shown.splitlines()[1:]] == [
        ["everything", "else", "yes", "90"],
        ["adapter", "intents", "yes", "7"],
        ["adapter", "tiny-base", "no", "by"],
    ]
    asks = harness.run("interactions", "policy", "--adapter", "intents", "--ask-feedback", "0.05")
    assert "users are asked for feedback on 0.05 of the answers" in asks.stdout
    assert "0.05" in harness.run("interactions", "policies").stdout
    gone = harness.run("interactions", "policy", "--adapter", "intents", "--default")
    assert "default again" in gone.stdout
    assert harness.json("interactions", "policies")["data"][0]["subject"] == "tiny-base"
    assert harness.run("interactions", "policy").exit_code == ExitCode.USAGE
    assert harness.run("interactions", "policy", "--key", "nobody").exit_code == ExitCode.NOT_FOUND


def test_since_counts_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftwork.clients.cli.context.time.time", lambda: 1_000_000.0)
    assert parse_since("90m") == 1_000_000 - 5400
    assert parse_since("7d") == 1_000_000 - 7 * 86400
    assert parse_since("2026-01-01T00:00:00Z") == "2026-01-01T00:00:00Z"
    assert parse_since(None) is None
