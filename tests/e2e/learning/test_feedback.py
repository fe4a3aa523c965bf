"""Feedback on a real server by the official client: logged, joined by id, and durable after a SIGKILL."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import openai
import pytest

from graftwork.clients.client import Client
from graftwork.clients.errors import BadRequestError, NotFoundError
from tests.e2e.conftest import MakeServer
from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.requests import OpenStream
from tests.e2e.server_process import BASE, Server, eventually

QUESTION = [{"role": "user", "content": "Where is my card?"}]


def ask(client: openai.OpenAI, model: str = BASE, **options: object) -> str:
    """The id of a short answer."""
    answer = client.chat.completions.create(
        model=model,
        messages=QUESTION,  # type: ignore[arg-type]
        max_tokens=4,
        **options,  # type: ignore[arg-type]
    )
    return str(answer.id)


def logged(operator: Client, id: str) -> bool:
    try:
        return operator.interactions.get(id).id == id
    except NotFoundError:
        return False


def test_feedback_by_an_answers_id(server: Server, adapters: tuple[str, ...]) -> None:
    with server.openai() as client, server.client() as operator:
        id = ask(client, adapters[0], user="ann", metadata={"page": "7"}, temperature=0)
        at_once = operator.feedback.send(id, thumb="down", correction="card_arrival", idempotency_key=f"once-{id}")
        assert (at_once.created, at_once.adapter) == (True, f"{adapters[0]}@1")
        row = operator.interactions.get(id)
        assert (row.adapter, row.status, row.user, row.metadata) == (at_once.adapter, "ok", "ann", {"page": "7"})
        assert [dict(message) for message in row.messages or ()] == QUESTION
        assert row.completions[0].text
        assert (row.completions[0].finish_reason, row.usage.completion_tokens) == ("length", 4)
        assert row.sampling == {"max_tokens": 4, "temperature": 0}
        timings = row.timings
        assert timings.queue_ms is not None
        assert timings.first_token_ms is not None
        assert 0 <= timings.queue_ms <= timings.first_token_ms <= timings.total_ms

        again = operator.feedback.send(id, thumb="down", correction="card_arrival", idempotency_key=f"once-{id}")
        assert (again.created, again.id) == (False, at_once.id)
        later = operator.feedback.send(id, score=0.25)
        assert [said.id for said in operator.feedback.list(interaction_id=id)] == [later.id, at_once.id]
        assert [said.id for said in operator.interactions.get(id).feedback] == [at_once.id, later.id]
        for forged in (id[:-1] + ("A" if id[-1] != "A" else "B"), id[:-4], "chatcmpl-9aB3"):
            with pytest.raises(BadRequestError, match="no id of an answer of this server"):
                operator.feedback.send(forged, thumb="up")
        assert server.metric("feedback_total", adapter=adapters[0], kind="correction") >= 1


def test_streams_are_logged_however_they_end(server: Server, adapters: tuple[str, ...]) -> None:
    with server.openai() as client, server.client() as operator:
        since = time.time() - 1
        with operator.chat_stream(adapters[0], "hi", max_tokens=4, user="stream-whole") as stream:
            text = "".join(delta.text for delta in stream)
        assert stream.id is not None
        assert operator.feedback.send(stream.id, thumb="up").adapter == stream.adapter
        assert operator.interactions.get(stream.id).completions[0].text == text
        assert operator.interactions.get(stream.id).status == "ok"

        left = OpenStream(client, adapters[0], user="stream-left").wait_until_begun()
        left.leave()
        eventually(
            lambda: (
                [row.status for row in operator.interactions.list(user="stream-left", since=since)] == ["cancelled"]
            ),
            30,
            "the answer that was left is logged",
        )
        (row,) = operator.interactions.list(user="stream-left")
        assert row.completions[0].finish_reason is None
        assert row.completions[0].text.startswith(left.text[:20])


def test_what_is_not_stored_is_not_logged(server: Server, small: SmallAdapters, tmp_path: Path) -> None:
    with server.openai() as client, server.client() as operator:
        operator.adapters.push("unlogged", small.write(tmp_path / "adapter", seed=31))
        unstored = ask(client, "unlogged", store=False)
        operator.log_policies.set(adapter="unlogged", log=False)
        by_policy = ask(client, "unlogged")
        assert not logged(operator, by_policy)  # which also waits until that is decided
        operator.log_policies.remove(adapter="unlogged")
        stored = ask(client, "unlogged")
        eventually(lambda: logged(operator, stored), 30, "the answer is logged")
        assert [row.id for row in operator.interactions.list(adapter="unlogged")] == [stored]
        for id in (unstored, by_policy):
            assert operator.feedback.send(id, thumb="up").adapter == "unlogged@1"


def test_a_user_is_forgotten(server: Server) -> None:
    with server.openai() as client, server.client() as operator:
        mine, theirs = ask(client, user="forget-me"), ask(client, user="keep-me")
        operator.feedback.send(mine, thumb="down", comment="my name is …")
        erased = operator.interactions.erase(user="forget-me")
        assert (erased.interactions, erased.feedback, erased.learned_from) == (1, 1, ())
        eventually(lambda: logged(operator, theirs), 30, "the other's answer is logged")
        assert not logged(operator, mine)
        (said,) = operator.feedback.list(interaction_id=mine)
        assert (said.thumb, said.comment, said.erased_at is not None) == ("down", None, True)


@pytest.mark.slow  # three starts of a server
def test_what_was_acknowledged_survives_a_kill_and_what_was_logged_a_stop(new_server: MakeServer) -> None:
    server = new_server().start_and_wait()
    with server.openai() as client, server.client() as operator:
        judged = [ask(client) for _ in range(3)]
        said = [operator.feedback.send(id, correction=f"better {id[-4:]}", idempotency_key=id) for id in judged]
        unjudged = ask(client)
        server.process.kill()
        server.wait(seconds=20)

    server.start_and_wait()
    with server.openai() as client, server.client() as operator:
        assert [(row.id, row.correction) for row in operator.feedback.export()] == [
            (row.id, row.correction) for row in said
        ]
        for id in judged:
            row = operator.interactions.get(id)
            assert [one.correction for one in row.feedback] == [f"better {id[-4:]}"]
        # Its own row may be lost; what is said of it is not.
        assert operator.feedback.send(unjudged, thumb="up").created
        assert not operator.feedback.send(
            judged[0], correction=f"better {judged[0][-4:]}", idempotency_key=judged[0]
        ).created
        last = ask(client)
        assert server.stop() == 0

    assert keeper(server) is None, "a server that stops lets others keep"
    server.start_and_wait()
    eventually(lambda: keeper(server) is not None, 90, "somebody keeps")
    with server.client() as operator:
        assert logged(operator, last), "a server that is stopped writes what waits"
        assert operator.interactions.get(last).status == "ok"
    assert server.stop() == 0
    assert "Traceback" not in server.log


def keeper(server: Server) -> str | None:
    """Who has the keeper's lease, as the database says."""
    with closing(sqlite3.connect(server.home / "graftwork.db")) as database:
        found = database.execute("SELECT owner FROM leases WHERE name = 'keeper'").fetchone()
    return None if found is None else found[0]
