"""The command line against a real server: output and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.responses import JSONResponse
from typer.testing import CliRunner, Result

from graftwork.__main__ import app
from graftwork.clients.cli import exit_codes
from tests.clients.fake_server import BASE, SECRET, FakeServer

Run = Callable[..., Result]


@pytest.fixture
def run(server: FakeServer) -> Run:
    def run(*arguments: str | Path, **more: Any) -> Result:
        environment = {"GRAFTWORK_URL": server.url, "COLUMNS": "200", **more.pop("env", {})}
        return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environment, **more)

    return run


def test_push_and_what_to_do_next(run: Run, server: FakeServer, peft_folder: Path) -> None:
    first = run("adapters", "push", "intents", peft_folder)
    assert (first.exit_code, first.stdout[:10]) == (0, "intents@1 ")
    assert 'Live: requests for model "intents"' in first.stderr
    assert "unverified" in first.stderr
    again = run("adapters", "push", "intents", peft_folder)
    assert again.exit_code == 0
    assert "same bytes are intents@1 already" in again.stderr

    (peft_folder / "adapter_model.safetensors").write_bytes(b"others")
    second = run(
        "adapters", "push", "intents", peft_folder, "--metadata", "owner=ann", "--metadata", "why=a=b", "--parent", "1"
    )
    assert second.exit_code == 0
    assert "graftwork adapters promote intents@2" in second.stderr
    assert server.adapters["intents"]["versions"][1]["metadata"] == {"owner": "ann", "why": "a=b"}
    assert server.adapters["intents"]["versions"][1]["parent"] == 1

    third = run("adapters", "push", "intents", "/data/x", "--server-path", "--alias", "candidate")
    assert third.exit_code == 0
    assert '"intents@candidate"' in third.stderr
    assert server.asked("POST", "/v1/adapters/intents/versions")[-1] == {"path": "/data/x"}


def test_push_as_json(run: Run, peft_folder: Path) -> None:
    result = run("adapters", "push", "intents", peft_folder, "--json")
    version = json.loads(result.stdout)
    assert (version["id"], version["created"], version["created_at"]) == ("intents@1", True, 1_700_000_001)


def test_promote_rollback_retire_history(run: Run, server: FakeServer) -> None:
    server.seed("intents", 3)
    assert "1 → 2" in run("adapters", "promote", "intents@2").stdout
    assert run("adapters", "promote", "intents@3", "--alias", "candidate").exit_code == 0
    assert "2 → 3" in run("adapters", "promote", "intents@candidate", "--reason", "won").stdout
    assert "3 → 2" in run("adapters", "rollback", "intents", "--reason", "slow").stdout
    assert server.adapters["intents"]["aliases"] == {"live": 2, "candidate": 3}
    assert "retired" in run("adapters", "retire", "intents@1").stdout
    shown = run("adapters", "history", "intents").stdout
    assert [line.split()[2] for line in shown.splitlines()[1:3]] == ["rollback", "promote"]
    assert "won" in shown
    assert len(json.loads(run("adapters", "history", "intents", "--limit", "2", "--json").stdout)) == 2


def test_list_and_show(run: Run, server: FakeServer) -> None:
    assert "graftwork adapters push" in run("adapters", "list").stdout
    for name in ("intents", "summaries", "tickets"):
        server.seed(name, 2)
    server.page = 2
    server.adapters["intents"]["aliases"]["candidate"] = 2
    listed = run("adapters", "list")
    rows = [line.split() for line in listed.stdout.splitlines()]
    assert [row[0] for row in rows] == ["Adapter", "intents", "summaries", "tickets"]
    assert "candidate → 2" in listed.stdout
    found = json.loads(run("adapters", "list", "--json").stdout)
    assert [(adapter["name"], adapter["aliases"]["live"]) for adapter in found] == [
        ("intents", 1),
        ("summaries", 1),
        ("tickets", 1),
    ]
    shown = run("adapters", "show", "intents").stdout
    assert [line.split()[:2] for line in shown.splitlines()[2:4]] == [["intents@2", "*"], ["intents@1", "*"]]
    assert [line.split()[2] for line in shown.splitlines()[2:4]] == ["candidate", "live"]
    assert "do not say which base" in shown
    assert "9.8 MB" in shown
    assert json.loads(run("adapters", "show", "intents", "--json").stdout)["versions"][1]["rank"] == 16


def test_keys(run: Run, server: FakeServer) -> None:
    created = run("keys", "create", "ci", "--role", "operator")
    assert created.stdout == f"{SECRET}\n"
    assert "cannot be shown again" in created.stderr
    assert json.loads(run("keys", "create", "app", "--json").stdout)["secret"] == SECRET
    listed = run("keys", "list").stdout
    assert [line.split()[:3] for line in listed.splitlines()[1:]] == [
        ["key_1", "ci", "operator"],
        ["key_2", "app", "app"],
    ]
    assert SECRET not in listed
    limits = ("--limit", "concurrent=2", "--limit", "tokens_per_day=9000", "--adapter", "intents", "--days", "1")
    changed = json.loads(run("keys", "change", "key_1", "--name", "new", *limits, "--json").stdout)
    assert (changed["name"], changed["adapters"], changed["limits"]["concurrent"]) == ("new", ["intents"], 2)
    assert "tokens_per_day=9000" in run("keys", "list", env={"COLUMNS": "200"}).stdout
    shown = [line.split() for line in run("keys", "usage", "key_1").stdout.splitlines()]
    assert ["today", "3", "–", "70", "9000"] in shown
    assert ["at", "once", "1", "2"] in shown
    freed = json.loads(run("keys", "change", "key_1", "--no", "adapters", "--no", "days", "--json").stdout)
    assert (freed["adapters"], freed["expires_at"]) == (None, None)
    assert run("keys", "change", "key_1", "--no", "name").exit_code == 2
    assert run("keys", "create", "x", "--limit", "concurrent").exit_code == 2
    rotated = run("keys", "rotate", "key_1", "--overlap", "0")
    assert rotated.stdout == f"{SECRET}\n"
    assert "not valid any more" in rotated.stderr
    assert json.loads(run("keys", "revoke", "key_1", "--json").stdout)["revoked_at"] is not None
    assert run("keys", "create", "x", "--role", "king").exit_code == 2


def test_limits_of_an_adapter(run: Run, server: FakeServer) -> None:
    shown = run("adapters", "limits", "intents", "--limit", "tokens_per_day=9000").stdout.splitlines()
    assert ["today", "3", "–", "70", "9000"] in [line.split() for line in shown]
    assert json.loads(run("adapters", "limits", "intents", "--none", "--json").stdout)["limits"]["concurrent"] is None
    assert run("adapters", "limits", "intents", "--none", "--limit", "concurrent=1").exit_code == 2


def test_audit(run: Run, server: FakeServer) -> None:
    shown = run("audit", "--actor", "ann", "--since", "1d", env={"COLUMNS": "200"}).stdout
    assert shown.splitlines()[1].split()[-6:] == [
        "ann",
        "key_1",
        "promote",
        "adapters/intents/aliases/live",
        "done",
        "–",
    ]
    assert "actor=ann" in str(server.requests[-1])
    assert json.loads(run("audit", "--json").stdout)[0]["action"] == "promote"
    assert json.loads(run("audit", "--export").stdout)["id"] == 7


def test_options_stand_before_or_after_the_command(run: Run, server: FakeServer) -> None:
    server.key = "right"
    server.seed("intents", 1)
    outside = {"GRAFTWORK_API_KEY": "right"}
    assert json.loads(run("--json", "adapters", "list", env=outside).stdout)[0]["name"] == "intents"
    assert run("--api-key", "right", "adapters", "list").exit_code == 0
    assert run("adapters", "list", "--api-key", "right", env={"GRAFTWORK_API_KEY": "wrong"}).exit_code == 0
    assert run("--api-key", "wrong", "adapters", "list", "--api-key", "right").exit_code == 0
    assert (
        run(
            "adapters", "list", "--url", server.url + "/v1", env={"GRAFTWORK_URL": "http://nowhere.invalid", **outside}
        ).exit_code
        == 0
    )


def test_exit_codes(run: Run, server: FakeServer, tmp_path: Path) -> None:
    server.seed("intents", 1)
    assert run("adapters", "list").exit_code == exit_codes.ExitCode.OK
    assert run("adapters", "retire", "intents@1").exit_code == exit_codes.ExitCode.FAILED
    assert run("adapters", "rollback", "intents").exit_code == exit_codes.ExitCode.FAILED
    assert run("adapters", "push", "intents", tmp_path).exit_code == exit_codes.ExitCode.FAILED
    for wrong in (
        ("adapters", "promote", "intents"),
        ("adapters", "promote", "intents@"),
        ("adapters", "promote", "intents@nobody"),
        ("adapters", "retire", "intents@live"),
        ("adapters", "push", "intents"),
        ("adapters", "push", "intents", str(tmp_path), "--metadata", "nothing"),
        ("adapters", "show", ".."),
        ("adapters", "list", "--url", "nowhere"),
        ("adapters", "frobnicate"),
        ("chat", "intents", "--message", " "),
        ("chat", "intents", "--message", "x", "--max-tokens", "0"),
    ):
        assert run(*wrong).exit_code == exit_codes.ExitCode.USAGE, wrong
    assert run("adapters", "list", "--url", "http://127.0.0.1:9").exit_code == exit_codes.ExitCode.UNREACHABLE
    assert run("adapters", "show", "nobody").exit_code == exit_codes.ExitCode.NOT_FOUND
    assert run("chat", "nobody", "--message", "hello").exit_code == exit_codes.ExitCode.NOT_FOUND
    server.key = "right"
    assert run("adapters", "list").exit_code == exit_codes.ExitCode.UNAUTHORIZED


def test_errors_go_to_standard_error(run: Run, server: FakeServer) -> None:
    missing = run("adapters", "show", "nobody", "--json")
    assert missing.stdout == ""
    assert missing.stderr == "error: there is no adapter 'nobody'; there are: \n"
    assert "graftwork serve" in run("adapters", "list", "--url", "http://127.0.0.1:9").stderr
    server.key = "right"
    assert "GRAFTWORK_API_KEY" in run("adapters", "list").stderr
    error = {"error": {"message": "something of ours broke", "type": "server_error", "param": None, "code": "x"}}
    server.refusals = [JSONResponse(error, 500, headers={"x-request-id": "req-77"})]
    assert run("adapters", "list").stderr == "error: something of ours broke (request req-77)\n"


def test_one_question(run: Run, server: FakeServer) -> None:
    server.seed("intents", 1)
    result = run(
        "chat",
        "intents",
        "--message",
        "where is my card",
        "--system",
        "Be brief.",
        "--temperature",
        "0",
        "--max-tokens",
        "9",
    )
    assert (result.exit_code, result.stdout, result.stderr) == (0, " where is my card\n", "")
    (body,) = server.asked("POST", "/v1/chat/completions")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 9, "intents")


def test_a_question_from_a_pipe(run: Run, server: FakeServer) -> None:
    assert run("chat", input="from a pipe").stdout == " from a pipe\n"
    assert server.asked("POST", "/v1/chat/completions")[0]["model"] == BASE
    assert run("chat", input="").exit_code == exit_codes.ExitCode.USAGE


def test_one_question_as_json(run: Run, server: FakeServer) -> None:
    server.seed("intents", 1)
    answer = json.loads(run("chat", "intents", "-m", "hello there", "--json").stdout)
    assert answer["choices"][0]["message"]["content"] == "hello there"
    assert (answer["graftwork"]["adapter"], answer["usage"]["total_tokens"]) == ("intents@1", 7)


def test_an_answer_that_breaks_off_keeps_what_was_said(run: Run) -> None:
    result = run("chat", "broken", "--message", "one two")
    assert (result.exit_code, result.stdout) == (exit_codes.ExitCode.FAILED, " one\n")
    assert "restarted" in result.stderr
    assert run("chat", "cut", "--message", "one two").exit_code == exit_codes.ExitCode.UNREACHABLE


def test_a_scripts_output_is_exact_a_pipes_too(run: Run) -> None:
    assert run("chat", "wild", "--message", "x").stdout == "red\x1b[31m\x07 \u2028 grün\n\n"
