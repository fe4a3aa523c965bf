"""The ``graftwork`` command line against a real server: output and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.requests import PROMPT, ask
from tests.e2e.server_process import BASE, Server, environment, free_port, refused

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(server: Server) -> Run:
    def run(*words: str, stdin: str = "", url: str = server.url) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "graftwork", *words],
            env=environment({"GRAFTWORK_URL": url, "NO_COLOR": "1"}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def as_json(run: Run) -> Callable[..., Any]:
    def as_json(*words: str) -> Any:
        done = run(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return as_json


def test_the_life_of_an_adapter(
    run: Run, as_json: Callable[..., Any], small: SmallAdapters, server: Server, tmp_path: Path
) -> None:
    one, two = (str(small.write(tmp_path / str(number), seed=100 + number)) for number in (1, 2))

    pushed = run("adapters", "push", "cli", one)
    assert pushed.returncode == 0, pushed.stderr
    assert "cli@1" in pushed.stdout
    assert "Live" in pushed.stderr
    second = as_json("adapters", "push", "cli", two, "--alias", "candidate", "--metadata", "owner=ann", "--parent", "1")
    assert (second["id"], second["created"], second["parent"]) == ("cli@2", True, 1)
    assert second["metadata"] == {"owner": "ann"}
    again = run("adapters", "push", "cli", two)
    assert again.returncode == 0
    assert "already" in again.stderr

    assert "cli" in [adapter["name"] for adapter in as_json("adapters", "list")]
    assert as_json("adapters", "show", "cli")["aliases"] == {"live": 1, "candidate": 2}
    assert "cli@2" in run("adapters", "show", "cli").stdout

    event = as_json("adapters", "promote", "cli@candidate", "--reason", "it won")
    assert (event["from_version"], event["to_version"], event["reason"]) == (1, 2, "it won")
    with server.openai() as client:
        assert ask(client, "cli", max_tokens=1).adapter == "cli@2"
    in_use = run("adapters", "retire", "cli@2")
    assert in_use.returncode == 1
    assert "pointed at by" in in_use.stderr
    assert as_json("adapters", "rollback", "cli")["to_version"] == 1
    assert run("adapters", "promote", "cli@1", "--alias", "candidate").returncode == 0
    assert as_json("adapters", "retire", "cli@2")["retired_at"]
    gone = run("chat", "cli@2", "--message", "hello")
    assert gone.returncode == 4
    assert "retired" in gone.stderr

    actions = [(event["action"], event["alias"]) for event in reversed(as_json("adapters", "history", "cli"))]
    assert actions == [
        ("push", None),
        ("promote", "live"),
        ("push", None),
        ("promote", "candidate"),
        ("promote", "live"),
        ("rollback", "live"),
        ("promote", "candidate"),
        ("retire", None),
    ]
    assert "it won" in run("adapters", "history", "cli").stdout


def test_one_question(run: Run, as_json: Callable[..., Any], adapters: tuple[str, ...]) -> None:
    options = ("--temperature", "0", "--max-tokens", "8")
    said = run("chat", "intents", "--message", PROMPT, *options)
    assert (said.returncode, said.stderr) == (0, "")
    answer = as_json("chat", "intents", "-m", PROMPT, *options)
    assert answer["choices"][0]["message"]["content"] == said.stdout.removesuffix("\n")
    assert answer["graftwork"]["adapter"] == "intents@1"
    piped = run("chat", *options, stdin=PROMPT)
    assert piped.returncode == 0
    assert piped.stdout.strip()
    assert piped.stdout != said.stdout


def test_exit_codes(run: Run, tmp_path: Path, small: SmallAdapters, adapters: tuple[str, ...]) -> None:
    inert = small.write(tmp_path / "wrong", seed=1, r=3)
    for words, code, says in (
        (("adapters", "show", "nobody"), 4, "no adapter"),
        (("chat", "nobody", "-m", "hi"), 4, "no adapter"),
        (("adapters", "push", "intents", str(inert)), 1, "rank"),
        (("adapters", "push", "intents", str(tmp_path)), 1, "adapter_config.json"),
        (("adapters", "push", "Intents", str(inert)), 1, "name"),
        (("adapters", "rollback", "intents"), 1, "none before it"),
        (("adapters", "promote", "intents@99"), 1, "no version 99"),
        (("adapters", "promote", "intents"), 2, "intents@7"),
        (("adapters", "frobnicate"), 2, "frobnicate"),
    ):
        done = run(*words)
        assert done.returncode == code, (words, done.stderr)
        assert says in done.stderr
        assert done.stdout.strip() == ""
        assert "Traceback" not in done.stderr
    nobody = run("adapters", "list", url=f"http://127.0.0.1:{free_port()}")
    assert nobody.returncode == 3
    assert "graftwork serve" in nobody.stderr


def test_the_python_client(server: Server, adapters: tuple[str, ...]) -> None:
    """Its types against what the server really sends."""
    with server.client() as client:
        assert client.ready().ready
        assert client.models().data[0].id == BASE
        assert client.model("intents").root == "intents@1"
        answer = client.chat("intents", PROMPT, max_tokens=6, temperature=0.0, logprobs=True, top_logprobs=2)
        assert (answer.adapter, answer.usage.completion_tokens) == ("intents@1", 6)
        with client.chat_stream("intents", PROMPT, max_tokens=6, temperature=0.0) as stream:
            assert "".join(delta.text for delta in stream) == answer.text
        assert stream.usage == answer.usage
        assert client.complete(BASE, [6403, 1980, 253, 655], max_tokens=3, temperature=0.0).text
        score = client.score("intents", "The cat sat on the mat.", top=3)
        assert score.total < 0
        assert len(score.logprobs) == score.usage.prompt_tokens
        version = client.adapters.get("intents").versions[0]
        assert version.residency == "device"
        assert version.load_ms is not None
        assert version.rank == 16
        assert not version.verified
        assert "graftwork_requests_total" in client.metrics()


def test_one_server_a_home(server: Server) -> None:
    said = refused("--port", str(free_port()), home=server.home, seconds=30)
    assert "already running" in said
    assert str(server.process.pid) in said
    assert server.status() == 200
