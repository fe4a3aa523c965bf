"""Both clients: requests, responses, errors and retries; without sockets."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

import graftwork
from graftwork import AsyncClient, Client
from graftwork.clients import async_client, client, errors
from graftwork.clients.errors import GraftworkAPIError, GraftworkConnectionError, InvalidArgumentError
from graftwork.clients.http.transport import MAX_RETRY_DELAY

MakeClient = Callable[..., Any]

VERSION = {
    "object": "adapter.version",
    "id": "intents@2",
    "name": "intents",
    "version": 2,
    "digest": "sha256:ab",
    "base_digest": "sha256:cd",
    "verified": True,
    "rank": 16,
    "num_parameters": 10,
    "num_bytes": 20,
    "created_at": 1_700_000_000,
}
EVENT = {
    "object": "adapter.event",
    "id": 4,
    "at": 1_700_000_000.5,
    "action": "promote",
    "name": "intents",
    "alias": "live",
    "from_version": 1,
    "to_version": 2,
    "actor": "ann",
    "reason": None,
}
KEY = {"object": "key", "id": "key_1", "name": "ci", "role": "app", "created_at": 1_700_000_000, "revoked_at": None}
KEY_USAGE = {
    **{"object": "key.usage", "id": "key_1", "open": 0},
    **{key: {"requests": 1, "tokens": 2} for key in ("minute", "day", "month")},
}
ADAPTER_LIMITS = {**KEY_USAGE, "object": "adapter.limits", "adapter": "intents", "limits": {"concurrent": 2}}
AUDIT_ENTRY = {
    **{"object": "audit.entry", "id": 1, "at": 1_700_000_000.5, "actor": "ci", "key_id": "key_1"},
    **{"action": "promote", "target": "adapters/intents/aliases/live", "outcome": "done"},
    **{"request_id": None, "remote": "10.0.0.1"},
}
USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
HEAD = {
    "id": "c-1",
    "created": 1_700_000_000,
    "model": "intents",
    "usage": USAGE,
    "graftwork": {"adapter": "intents@2"},
}
CHAT = {**HEAD, "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
LOGPROBS = {
    "tokens": ["a", "b", "c"],
    "token_logprobs": [None, -1.5, -0.5],
    "top_logprobs": [None, {"b": -1.5}, {"c": -0.5}],
}
TEXT = {**HEAD, "choices": [{"index": 0, "text": "abc", "finish_reason": "length", "logprobs": LOGPROBS}]}
EMBEDDINGS = {
    "object": "list",
    "data": [{"object": "embedding", "index": index, "embedding": [0.6, 0.8]} for index in range(2)],
    "model": "intents",
    "usage": {"prompt_tokens": 2, "total_tokens": 2},
    "graftwork": {"adapter": "intents@2", "pooling": "mean"},
}
TOKENS = {"count": 2, "max_model_len": 64, "tokens": [1, 2], "token_strs": ["ab", "c"]}
FEEDBACK = {"object": "feedback", "id": 7, "at": 1.5, "interaction_id": "chatcmpl-1", "adapter": "intents@7"}
INTERACTION = {
    "object": "interaction",
    "id": "chatcmpl-1",
    "created_at": 1,
    "model": "intents",
    "base": "base",
    "adapter": "intents@7",
    "status": "ok",
    "completions": [{"index": 0, "text": "hi", "finish_reason": "stop"}],
    "usage": USAGE,
    "timings": {"queue_ms": None, "first_token_ms": 1.5, "total_ms": 2},
}
ERASURE = {"object": "interactions.erasure", "interactions": 1, "feedback": 2, "learned_from": ["intents@3"]}
POLICY = {"scope": "key", "subject": "k1", "log": False, "retention_days": None, "actor": "ann", "updated_at": 1.5}
POLICIES = {"object": "list", "data": [POLICY], "default": {"log": True, "retention_days": 90}}
EMPTY = {"object": "list", "data": [], "has_more": False}


class Recorder:
    """Answers with what it was given, one after the other and the last for ever, and keeps what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception | dict[str, Any]) -> None:
        self.answers = list(answers)
        self.asked: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, dict):
            return httpx.Response(200, json=answer)
        return httpx.Response(answer.status_code, content=answer.content, headers=answer.headers)

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self)


def refused(status: int, **headers: str) -> httpx.Response:
    error = {"message": "no, and here is why", "type": "some_error", "param": "model", "code": "some_code"}
    return httpx.Response(status, json={"error": error}, headers={"x-request-id": "req-9", **headers})


@pytest.mark.parametrize(
    ("call", "answer", "method", "target", "body"),
    [
        (lambda c: c.health(), {"status": "ok"}, "GET", "/health", None),
        (lambda c: c.ready(), {"status": "ready"}, "GET", "/ready", None),
        (lambda c: c.version(), {"version": "1.2"}, "GET", "/version", None),
        (lambda c: c.models(), EMPTY, "GET", "/v1/models", None),
        (
            lambda c: c.model("org/base"),
            {"id": "org/base", "created": 1, "owned_by": "graftwork"},
            "GET",
            "/v1/models/org%2Fbase",
            None,
        ),
        (
            lambda c: c.chat("intents", "hello", temperature=0.0, seed=7, stop=None),
            CHAT,
            "POST",
            "/v1/chat/completions",
            {"model": "intents", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.0, "seed": 7},
        ),
        (
            lambda c: c.complete("intents", (1, 2), max_tokens=3),
            TEXT,
            "POST",
            "/v1/completions",
            {"model": "intents", "prompt": [1, 2], "max_tokens": 3},
        ),
        (
            lambda c: c.score("intents", "abc"),
            TEXT,
            "POST",
            "/v1/completions",
            {"model": "intents", "prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 0, "temperature": 0.0},
        ),
        (
            lambda c: c.embed("intents", ["a", "b"], pooling="last"),
            EMBEDDINGS,
            "POST",
            "/v1/embeddings",
            {"model": "intents", "input": ["a", "b"], "pooling": "last"},
        ),
        (
            lambda c: c.embed("intents", [(1, 2), (3,)]),
            EMBEDDINGS,
            "POST",
            "/v1/embeddings",
            {"model": "intents", "input": [[1, 2], [3]]},
        ),
        (
            lambda c: c.tokenize("abc", return_token_strs=True),
            TOKENS,
            "POST",
            "/tokenize",
            {"prompt": "abc", "return_token_strs": True},
        ),
        (
            lambda c: c.tokenize([{"role": "user", "content": "a"}], model="intents", add_generation_prompt=False),
            TOKENS,
            "POST",
            "/tokenize",
            {"messages": [{"role": "user", "content": "a"}], "model": "intents", "add_generation_prompt": False},
        ),
        (lambda c: c.detokenize((1, 2)), {"prompt": "ab"}, "POST", "/detokenize", {"tokens": [1, 2]}),
        (lambda c: c.adapters.list(after="a", limit=5), EMPTY, "GET", "/v1/adapters?after=a&limit=5", None),
        (
            lambda c: c.adapters.push("intents", server_path="/data/a", alias="candidate", parent=1, metadata={"k": 1}),
            VERSION,
            "POST",
            "/v1/adapters/intents/versions?alias=candidate",
            {"path": "/data/a", "parent": 1, "metadata": {"k": 1}},
        ),
        (
            lambda c: c.adapters.promote("intents", 2, reason="better"),
            EVENT,
            "PUT",
            "/v1/adapters/intents/aliases/live",
            {"version": 2, "reason": "better"},
        ),
        (lambda c: c.adapters.rollback("intents"), EVENT, "POST", "/v1/adapters/intents/rollback", {"alias": "live"}),
        (lambda c: c.adapters.retire("intents", 1), VERSION, "DELETE", "/v1/adapters/intents/versions/1", None),
        (lambda c: c.adapters.history("intents"), EMPTY, "GET", "/v1/adapters/intents/history", None),
        (
            lambda c: c.feedback.send("chatcmpl-1", thumb="up", score=0.0, idempotency_key="k", comment=None),
            FEEDBACK,
            "POST",
            "/v1/feedback",
            {"interaction_id": "chatcmpl-1", "thumb": "up", "score": 0.0, "idempotency_key": "k"},
        ),
        (
            lambda c: c.feedback.list(adapter="intents@7", kind="thumb", since=1.5, after=9, limit=5),
            EMPTY,
            "GET",
            "/v1/feedback?adapter=intents%407&kind=thumb&since=1.5&after=9&limit=5",
            None,
        ),
        (
            lambda c: list(c.feedback.export(until=datetime(2026, 1, 1, tzinfo=UTC))),
            FEEDBACK,
            "GET",
            "/v1/feedback/export?until=1767225600.0",
            None,
        ),
        (lambda c: c.interactions.list(user="a b"), EMPTY, "GET", "/v1/interactions?user=a+b", None),
        (lambda c: c.interactions.get("chatcmpl-1"), INTERACTION, "GET", "/v1/interactions/chatcmpl-1", None),
        (lambda c: list(c.interactions.export()), INTERACTION, "GET", "/v1/interactions/export", None),
        (lambda c: c.interactions.erase(user="ann"), ERASURE, "DELETE", "/v1/interactions?user=ann", None),
        (lambda c: c.log_policies.list(), POLICIES, "GET", "/v1/log_policies", None),
        (
            lambda c: c.log_policies.set(adapter="org/base", log=False, retention_days=7),
            POLICY,
            "PUT",
            "/v1/log_policies/adapters/org%2Fbase",
            {"log": False, "retention_days": 7},
        ),
        (lambda c: c.log_policies.remove(key="k1"), POLICY, "DELETE", "/v1/log_policies/keys/k1", None),
        (lambda c: c.keys.create("ci", role="operator"), KEY, "POST", "/v1/keys", {"name": "ci", "role": "operator"}),
        (
            lambda c: c.keys.create(
                "ci", adapters=["intents"], limits={"concurrent": 2}, expires_at=datetime(2030, 1, 1, tzinfo=UTC)
            ),
            KEY,
            "POST",
            "/v1/keys",
            {
                "name": "ci",
                "role": "app",
                "adapters": ["intents"],
                "limits": {"concurrent": 2},
                "expires_at": 1893456000.0,
            },
        ),
        (lambda c: c.keys.get("key_1"), KEY, "GET", "/v1/keys/key_1", None),
        (lambda c: c.keys.usage("key_1"), KEY_USAGE, "GET", "/v1/keys/key_1/usage", None),
        (
            lambda c: c.keys.change("key_1", name="x", adapters=None, expires_at=None),
            KEY,
            "PATCH",
            "/v1/keys/key_1",
            {"name": "x", "adapters": None, "expires_at": None},
        ),
        (lambda c: c.keys.rotate("key_1"), KEY, "POST", "/v1/keys/key_1/rotate", {}),
        (
            lambda c: c.keys.rotate("key_1", overlap_seconds=0),
            KEY,
            "POST",
            "/v1/keys/key_1/rotate",
            {"overlap_seconds": 0},
        ),
        (lambda c: c.adapters.limits("intents"), ADAPTER_LIMITS, "GET", "/v1/adapters/intents/limits", None),
        (
            lambda c: c.adapters.set_limits("intents", {"concurrent": 2}),
            ADAPTER_LIMITS,
            "PUT",
            "/v1/adapters/intents/limits",
            {"concurrent": 2},
        ),
        (lambda c: c.keys.list(), EMPTY, "GET", "/v1/keys", None),
        (lambda c: c.audit.list(actor="ci", limit=5), EMPTY, "GET", "/v1/audit?actor=ci&limit=5", None),
        (
            lambda c: list(c.audit.export(target="adapters/intents")),
            AUDIT_ENTRY,
            "GET",
            "/v1/audit/export?target=adapters%2Fintents",
            None,
        ),
        (lambda c: c.keys.revoke("key_1"), KEY, "DELETE", "/v1/keys/key_1", None),
    ],
)
def test_what_is_sent(
    make_client: MakeClient, call: Callable[[Any], Any], answer: dict[str, Any], method: str, target: str, body: Any
) -> None:
    recorder = Recorder(answer)
    call(make_client("http://server:1/v1/", "key", transport=recorder.transport))
    (request,) = recorder.asked
    assert (request.method, request.url.raw_path.decode()) == (method, target)
    assert request.url.netloc == b"server:1"
    assert (json.loads(request.content) if request.content else None) == body
    assert request.headers["authorization"] == "Bearer key"
    assert request.headers["user-agent"] == f"graftwork/{graftwork.__version__}"


def test_answers_are_typed(make_client: MakeClient) -> None:
    text = make_client(transport=Recorder(CHAT).transport).chat("intents", [{"role": "user", "content": "hello"}])
    assert (text.text, text.adapter, text.usage.total_tokens) == ("hi", "intents@2", 5)
    score = make_client(transport=Recorder(TEXT).transport).score("intents", "abc")
    assert score.tokens == ("a", "b", "c")
    assert score.total == -2.0
    assert score.top is not None
    assert score.top[1] == {"b": -1.5}
    embeddings = make_client(transport=Recorder(EMBEDDINGS).transport).embed("intents", ["a", "b"])
    assert (embeddings.vectors, embeddings.adapter) == (((0.6, 0.8), (0.6, 0.8)), "intents@2")
    assert make_client(transport=Recorder(TOKENS).transport).tokenize("abc").token_strs == ("ab", "c")
    assert make_client(transport=Recorder({"prompt": "ab"}).transport).detokenize([1, 2]) == "ab"
    event = make_client(transport=Recorder(EVENT).transport).adapters.promote("intents", 2)
    assert (event.from_version, event.to_version, event.at.timestamp()) == (1, 2, 1_700_000_000.5)


def test_a_session_travels_in_its_header(make_client: MakeClient) -> None:
    recorder = Recorder(CHAT)
    make_client(transport=recorder.transport).chat("intents", "hello", session="visitor-7")
    assert recorder.asked[0].headers["x-graftwork-session"] == "visitor-7"
    assert b"visitor-7" not in recorder.asked[0].content


def test_an_episode_travels_in_its_header_and_is_judged_by_its_name(make_client: MakeClient) -> None:
    recorder = Recorder(CHAT)
    make_client(transport=recorder.transport).chat("intents", "hello", episode="trip-7", session="visitor-7")
    headers = recorder.asked[0].headers
    assert (headers["x-graftwork-episode"], headers["x-graftwork-session"]) == ("trip-7", "visitor-7")
    recorder = Recorder(FEEDBACK)
    make_client(transport=recorder.transport).feedback.send(episode="trip-7", thumb="up", idempotency_key="a")
    assert json.loads(recorder.asked[0].content) == {"episode": "trip-7", "thumb": "up", "idempotency_key": "a"}


def test_not_ready_is_an_answer(make_client: MakeClient, naps: list[float]) -> None:
    recorder = Recorder(httpx.Response(503, json={"status": "recovering"}, headers={"retry-after": "1"}))
    readiness = make_client(transport=recorder.transport).ready()
    assert (readiness.status, readiness.ready, naps) == ("recovering", False, [])


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequestError),
        (401, errors.AuthenticationError),
        (403, errors.ForbiddenError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (413, errors.TooLargeError),
        (418, errors.GraftworkAPIError),
        (429, errors.OverloadedError),
        (500, errors.ServerError),
        (503, errors.UnavailableError),
    ],
)
def test_errors_say_what_the_server_said(
    make_client: MakeClient, naps: list[float], status: int, kind: type[GraftworkAPIError]
) -> None:
    with pytest.raises(GraftworkAPIError) as raised:
        make_client(transport=Recorder(refused(status)).transport).chat("intents", "hello")
    error = raised.value
    assert type(error) is kind
    assert str(error) == "no, and here is why"
    said = (error.status, error.type, error.param, error.code, error.request_id)
    assert said == (status, "some_error", "model", "some_code", "req-9")


@pytest.mark.parametrize("body", ["<html>Bad gateway</html>", "", '"text"', '{"detail": "x"}', '{"error": "x"}'])
def test_errors_in_other_words_are_quoted(make_client: MakeClient, naps: list[float], body: str) -> None:
    with pytest.raises(errors.ServerError, match="HTTP 500") as raised:
        make_client(transport=Recorder(httpx.Response(500, text=body)).transport).chat("intents", "hello")
    assert body in str(raised.value)


@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '{"status": 1}'])
def test_an_answer_that_is_not_ours_is_refused(make_client: MakeClient, body: str) -> None:
    with pytest.raises(errors.GraftworkProtocolError, match="Graftwork server"):
        make_client(transport=Recorder(httpx.Response(200, text=body)).transport).health()


def test_a_refusal_with_retry_after_is_tried_again(make_client: MakeClient, naps: list[float]) -> None:
    recorder = Recorder(refused(429, **{"retry-after": "2"}), refused(503, **{"retry-after": "1"}), CHAT)
    assert make_client(transport=recorder.transport).chat("intents", "hello").text == "hi"
    assert len(naps) == 2
    assert 2 <= naps[0] <= 2.5
    assert 1 <= naps[1] <= 1.25
    assert len({request.content for request in recorder.asked}) == 1


def test_retries_end(make_client: MakeClient, naps: list[float]) -> None:
    recorder = Recorder(refused(429, **{"retry-after": "1"}))
    with pytest.raises(errors.OverloadedError) as raised:
        make_client(transport=recorder.transport).chat("intents", "hello")
    assert (len(recorder.asked), raised.value.retry_after) == (3, 1.0)
    with pytest.raises(errors.OverloadedError):
        make_client(transport=recorder.transport, max_retries=0).chat("intents", "hello")
    assert len(recorder.asked) == 4


@pytest.mark.parametrize("wanted", [str(MAX_RETRY_DELAY + 1), "inf", "nan", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_nobody_waits_for_ever(make_client: MakeClient, naps: list[float], wanted: str) -> None:
    recorder = Recorder(refused(503, **{"retry-after": wanted}))
    with pytest.raises(errors.UnavailableError):
        make_client(transport=recorder.transport).chat("intents", "hello")
    assert naps == []


BROKEN = (
    httpx.ReadError("connection reset"),
    httpx.RemoteProtocolError("server disconnected"),
    httpx.ConnectError("connection refused"),
)


@pytest.mark.parametrize("failure", [*BROKEN, refused(502), refused(503), refused(504), refused(429)])
def test_a_get_is_tried_again(make_client: MakeClient, naps: list[float], failure: Any) -> None:
    recorder = Recorder(failure, failure, {"status": "ok"})
    assert make_client(transport=recorder.transport).health().status == "ok"
    assert len(naps) == 2
    assert naps[0] < naps[1] < 1


@pytest.mark.parametrize("failure", [*BROKEN, httpx.ReadTimeout("slow"), refused(500), refused(502), refused(503)])
@pytest.mark.parametrize("call", ["chat", "promote", "retire"])
def test_what_may_have_taken_effect_is_not_tried_again(
    make_client: MakeClient, naps: list[float], failure: Any, call: str
) -> None:
    recorder = Recorder(failure)
    client = make_client(transport=recorder.transport)
    calls = {
        "chat": lambda: client.chat("intents", "hello"),
        "promote": lambda: client.adapters.promote("intents", 2),
        "retire": lambda: client.adapters.retire("intents", 2),
    }
    with pytest.raises((GraftworkAPIError, GraftworkConnectionError)):
        calls[call]()
    assert (len(recorder.asked), naps) == (1, [])


def test_a_timeout_is_not_tried_again_and_says_so(make_client: MakeClient, naps: list[float]) -> None:
    recorder = Recorder(httpx.ReadTimeout("timed out"))
    with pytest.raises(errors.GraftworkTimeoutError, match="did not answer in time"):
        make_client(transport=recorder.transport).health()
    assert len(recorder.asked) == 1


def test_timeouts(make_client: MakeClient) -> None:
    recorder = Recorder(CHAT)
    client = make_client(transport=recorder.transport)
    client.chat("intents", "hello")
    with pytest.raises(errors.GraftworkConnectionError):
        list(client.chat_stream("intents", "hello"))
    whole, stream = (request.extensions["timeout"] for request in recorder.asked)
    assert (whole["connect"], whole["read"]) == (5.0, 600.0)
    assert (stream["connect"], stream["read"]) == (5.0, None)
    make_client(transport=recorder.transport, timeout=9).chat("intents", "hello")
    assert recorder.asked[-1].extensions["timeout"]["read"] == 9


def test_no_server_says_where_and_what_to_do(make_client: MakeClient, naps: list[float]) -> None:
    with pytest.raises(
        GraftworkConnectionError, match=r"http://127\.0\.0\.1:9.*graftwork serve.*GRAFTWORK_URL"
    ) as raised:
        make_client("http://127.0.0.1:9").health()
    assert raised.value.url == "http://127.0.0.1:9"


def test_settings_come_from_the_environment(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_client().url == "http://127.0.0.1:8000"
    monkeypatch.setenv("GRAFTWORK_URL", " https://there.example/v1 ")
    monkeypatch.setenv("GRAFTWORK_API_KEY", "from-outside\n")
    recorder = Recorder({"status": "ok"})
    client = make_client(transport=recorder.transport)
    client.health()
    assert client.url == "https://there.example"
    assert recorder.asked[0].headers["authorization"] == "Bearer from-outside"
    assert "from-outside" not in repr(client._connection.settings)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "http://", "http://[::", "x" * 70000])
def test_a_url_that_is_none(make_client: MakeClient, url: str) -> None:
    with pytest.raises(errors.SettingsError):
        make_client(url)


@pytest.mark.parametrize("key", ["two\nlines", "schlüssel", "\x00"])
def test_a_key_that_is_none_is_not_repeated(make_client: MakeClient, key: str) -> None:
    with pytest.raises(errors.SettingsError) as raised:
        make_client(api_key=key)
    assert key not in str(raised.value)


def test_a_proxy_is_not_asked_for_the_loopback(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    assert make_client("http://localhost:8000")._connection.settings.http_options()["trust_env"] is False
    assert make_client("http://10.0.0.1:8000")._connection.settings.http_options()["trust_env"] is True


def test_names_that_name_nothing_are_not_sent(make_client: MakeClient) -> None:
    recorder = Recorder(EMPTY)
    for name in ("", ".", ".."):
        with pytest.raises(InvalidArgumentError):
            make_client(transport=recorder.transport).adapters.get(name)
    assert recorder.asked == []


def test_push_takes_a_folder_that_peft_wrote(make_client: MakeClient, tmp_path: Path) -> None:
    recorder = Recorder(VERSION)
    push = make_client(transport=recorder.transport).adapters.push
    with pytest.raises(InvalidArgumentError, match="one of the two"):
        push("intents")
    with pytest.raises(errors.LocalFileError, match="no folder"):
        push("intents", tmp_path / "none")
    with pytest.raises(errors.LocalFileError, match=r"no adapter_config\.json"):
        push("intents", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(errors.LocalFileError, match="safe_serialization=True"):
        push("intents", tmp_path)
    assert recorder.asked == []


def test_both_clients_can_do_the_same() -> None:
    for one, other in [
        (Client, AsyncClient),
        (client.AdaptersResource, async_client.AsyncAdaptersResource),
        (client.KeysResource, async_client.AsyncKeysResource),
        (client.FeedbackResource, async_client.AsyncFeedbackResource),
        (client.InteractionsResource, async_client.AsyncInteractionsResource),
        (client.LogPoliciesResource, async_client.AsyncLogPoliciesResource),
        (client.ExperimentsResource, async_client.AsyncExperimentsResource),
        (client.Stream, async_client.AsyncStream),
    ]:
        names = {name for name in vars(one) if not name.startswith("_")}
        assert names == {name for name in vars(other) if not name.startswith("_")}
        for name in names - {"id", "usage", "adapter", "ask_feedback"}:
            assert inspect.signature(getattr(one, name)) == inspect.signature(getattr(other, name))
            assert name == "close" or getattr(one, name).__doc__ == getattr(other, name).__doc__ is not None
    assert list(inspect.signature(Client("http://x").adapters.promote).parameters) == [
        "name",
        "version",
        "alias",
        "reason",
        "end_experiment",
    ]


def test_importing_the_package_costs_nothing() -> None:
    code = """
import sys, graftwork
assert not {"httpx", "typer", "rich", "torch"} & set(sys.modules), "import graftwork must stay cheap"
assert {"Client", "AsyncClient"} <= set(dir(graftwork))
from graftwork import AsyncClient, Client
assert "httpx" in sys.modules
assert not {"graftwork.server", "graftwork.adapters", "graftwork.training", "torch", "numpy"} & set(sys.modules)
try:
    graftwork.Nothing
except AttributeError as error:
    assert "Nothing" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)
