"""What strangers send, against the real server: refused with words that help, and nothing has changed afterwards.

Every case is checked for both: the database row by row, artifacts and uploads file by file. That the engine has not
minded is seen at the end, and by the log, which holds no traceback when the shared server has stopped.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.adapters.adapter_files import layout, packed
from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.requests import ask
from tests.e2e.server_process import BASE, Server

CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"
EMBED = "/v1/embeddings"
PUSH = "/v1/adapters/intents/versions"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

pytestmark = pytest.mark.usefixtures("adapters", "settled", "unchanged")


@dataclass(frozen=True)
class Case:
    """A request, and how it is refused: the status, the code, and a part of the message."""

    id: str
    status: int
    code: str
    says: str
    path: str = CHAT
    send: dict[str, Any] = field(default_factory=dict)
    method: str = "POST"


def chat(id: str, code: str, says: str, status: int = 400, **body: Any) -> Case:
    """A chat request that is right but for ``body``."""
    right = {"model": BASE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    return Case(id, status, code, says, send={"json": {**right, **body}})


def raw(id: str, code: str, says: str, content: bytes | str, status: int = 400, path: str = CHAT) -> Case:
    return Case(id, status, code, says, path, {"content": content})


def complete(id: str, code: str, says: str, **body: Any) -> Case:
    return Case(id, 400, code, says, COMPLETE, {"json": {"model": BASE, "prompt": "hi", "max_tokens": 4, **body}})


def embed(id: str, code: str, says: str, status: int = 400, **body: Any) -> Case:
    """An embedding request that is right but for ``body``."""
    return Case(id, status, code, says, EMBED, {"json": {"model": BASE, "input": "hi", **body}})


def tokens(id: str, code: str, says: str, path: str = "/tokenize", status: int = 400, **body: Any) -> Case:
    return Case(id, status, code, says, path, {"json": body})


#: It takes minutes to compute what such a number looks like.
REMAINDERS = {"type": "integer", "multipleOf": 999_983}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


GENERATION = [
    raw("no body", "invalid_json", "empty", b""),
    raw("half a body", "invalid_json", "JSON", b'{"model": "intents", "mess'),
    raw("a list", "invalid_type", "an object", b"[]"),
    raw("no UTF-8", "invalid_json", "JSON", b'{"model": "\xff\xfe"}'),
    raw("nested without end", "invalid_json", "JSON", b'{"model": ' + b"[" * 100_000),
    raw("NaN", "invalid_type", "temperature", '{"model": "intents", "messages": [], "temperature": NaN}'),
    raw(
        "huge number",
        "invalid_json",
        "out of range",
        '{"model": "intents", "messages": [], "seed": 1' + "0" * 5000 + "}",
    ),
    raw("more bytes than allowed", "too_large", "8388608", b" " * (8 << 20) + b"{}", status=413),
    raw("half a surrogate", "invalid_json", "surrogate", '{"model": "intents", "messages": "\\ud800"}'),
    chat("model of another type", "invalid_type", "model must be a string", model=7),
    chat("model of nothing", "invalid_value", "model must not be empty", model=""),
    chat("model without end", "invalid_value", "model is too long", model="x" * 10_000),
    chat("unknown model", "model_not_found", "intents", status=404, model="intends"),
    chat("unknown version", "model_not_found", "intents", status=404, model="intents@99"),
    chat("unknown alias", "model_not_found", "live", status=404, model="intents@candidate"),
    chat("version of the base", "model_not_found", BASE, status=404, model=f"{BASE}@1"),
    chat("path for a model", "model_not_found", "", status=404, model="../../etc/passwd"),
    chat("no messages", "invalid_value", "messages must not be empty", messages=[]),
    chat("messages of another type", "invalid_type", "messages must be a list", messages="hi"),
    chat("unknown role", "invalid_value", "messages[0].role", messages=[{"role": "boss", "content": "hi"}]),
    chat(
        "a tool's result of no call",
        "missing_required_parameter",
        "tool_call_id",
        messages=[{"role": "tool", "content": ""}],
    ),
    chat(
        "an image", "unsupported_parameter", "text", messages=user([{"type": "image_url", "image_url": {"url": "x"}}])
    ),
    chat("a NUL", "invalid_value", "NUL", messages=user("a\0b")),
    chat("far too long a prompt", "context_length_exceeded", "can hold", messages=user("word " * 1_000_000)),
    complete("far too long a text", "context_length_exceeded", "can hold", prompt=["hi", "word " * 1_000_000]),
    chat("a bias of no token", "invalid_value", "0 to 49151", logit_bias={"49152": 1}),
    chat("an end of no token", "invalid_value", "0 to 49151", stop_token_ids=[49152]),
    chat("content of null", "invalid_type", "only an answer may be empty", messages=user(None)),
    chat("too long a prompt", "context_length_exceeded", "shorten the prompt", messages=user("word " * 9000)),
    chat("too many tokens", "context_length_exceeded", "at most", max_tokens=9000),
    chat("no tokens", "invalid_value", "at least 1", max_tokens=0),
    chat("half a token", "invalid_type", "whole number", max_tokens=1.5),
    chat("tokens as text", "invalid_type", "whole number", max_tokens="4"),
    chat("more at least than at most", "invalid_value", "min_tokens", min_tokens=9),
    chat("too hot", "invalid_value", "at most 2", temperature=2.5),
    chat("too many answers", "invalid_value", "at most 8", n=100),
    chat("too many stops", "invalid_value", "at most 4", stop=list("abcde")),
    chat("empty stop", "invalid_value", "1 to 256", stop=""),
    chat("misspelt field", "unknown_parameter", "did you mean max_tokens", max_token=4),
    chat("a tool of another kind", "unsupported_parameter", "only functions", tools=[{"type": "retrieval"}]),
    chat("XML wanted", "invalid_value", "json_schema", response_format={"type": "xml"}),
    chat("a schema beyond us", "unsupported_parameter", "uniqueItems", guided_json={"uniqueItems": True}),
    chat("a schema without an end", "invalid_value", "too complex", guided_json=REMAINDERS),
    chat("a schema of 300 KB", "invalid_value", "262144", guided_json={"enum": ["x" * 300_000]}),
    chat("an expression that looks ahead", "unsupported_parameter", "look-around", guided_regex="(?=a)b"),
    complete("two formats", "invalid_value", "guided_json", guided_json={}, guided_regex="a"),
    chat("options without a stream", "invalid_value", "stream", stream_options={"include_usage": True}),
    chat("alternatives without scores", "invalid_value", "logprobs", top_logprobs=2),
    chat("scores in a stream", "invalid_value", "not for streams", prompt_logprobs=1, stream=True),
    chat("scores without end", "invalid_value", "at most 20", prompt_logprobs=21),
    chat("to go on and to begin", "invalid_value", "exclude", continue_final_message=True, add_generation_prompt=True),
    chat(
        "to go on from nothing",
        "invalid_value",
        "cannot be continued",
        continue_final_message=True,
        messages=[*user("a"), {"role": "assistant", "content": ""}],
    ),
    chat("the template's own", "invalid_value", "not yours", chat_template_kwargs={"messages": []}),
    chat("a token of the template's", "invalid_value", "not yours", chat_template_kwargs={"bos_token": "x"}),
    chat("no name", "invalid_value", "no name", chat_template_kwargs={"a b": 1}),
    chat("too much for the template", "invalid_value", "16384", chat_template_kwargs={"a": "x" * 20_000}),
    chat("a list for the template", "invalid_type", "must be an object", chat_template_kwargs=[1]),
    chat("special tokens by name", "invalid_type", "true or false", skip_special_tokens="no"),
    complete("unknown token", "invalid_value", "0 to 49151", prompt=[49152]),
    complete("negative token", "invalid_type", "token id", prompt=[-1]),
    complete("mixed prompts", "invalid_type", "mix", prompt=["hi", [1]]),
    complete("no prompt", "invalid_value", "empty list", prompt=[]),
    complete("empty prompt", "invalid_value", "no tokens", prompt=""),
    complete("too many prompts", "invalid_value", "at most 32", prompt=["hi"] * 33),
    complete("nothing at all wanted", "invalid_value", "echo", max_tokens=0),
    complete("too many alternatives", "invalid_value", "at most 20", logprobs=21),
    complete("text to be inserted", "unsupported_parameter", "suffix", suffix="the end"),
]


EMBEDDINGS = [
    raw("embed nothing", "invalid_json", "empty", b"", path=EMBED),
    Case("embed without a model", 400, "missing_required_parameter", "model", EMBED, {"json": {"input": "hi"}}),
    Case("embed no input", 400, "missing_required_parameter", "input", EMBED, {"json": {"model": BASE}}),
    embed("embed for an unknown model", "model_not_found", "intents", status=404, model="intends"),
    embed("embed for an unknown version", "model_not_found", "intents", status=404, model="intents@99"),
    embed("embed an object", "invalid_type", "input must be a string", input={"text": "hi"}),
    embed("embed an empty list", "invalid_value", "empty list", input=[]),
    embed("embed an empty text", "invalid_value", "input has no tokens", input=""),
    embed("embed an empty text among others", "invalid_value", "input[1] has no tokens", input=["hi", ""]),
    embed("embed no token ids", "invalid_value", "[1] is an empty list", input=[[1], []]),
    embed("embed a mix", "invalid_type", "must not mix", input=["hi", [1]]),
    embed("embed half a token", "invalid_type", "token id", input=[1, 2.5]),
    embed("embed an unknown token", "invalid_value", "input[1] has token id 49152", input=[[1], [49152]]),
    embed("embed a NUL", "invalid_value", "NUL", input="a\0b"),
    embed("embed too many texts", "invalid_value", "at most 2048 inputs", input=["x"] * 2049),
    embed("embed too long a text", "context_length_exceeded", "input[1]", input=["hi", "word " * 9000]),
    embed("embed far too long a text", "context_length_exceeded", "input: the prompt", input="word " * 1_000_000),
    embed("embed too many token ids", "context_length_exceeded", "8192", input=[7] * 8193),
    embed("embed too much in all", "invalid_value", "300000", input=[[7] * 8192] * 40),
    embed("embed to a part", "unsupported_parameter", "Matryoshka", dimensions=64),
    embed("embed to no dimension", "invalid_value", "at least 1", dimensions=0),
    embed("embed in hexadecimal", "invalid_value", "'float' or 'base64'", encoding_format="hex"),
    embed("embed by the greatest", "invalid_value", "'mean' or 'last'", pooling="max"),
    embed("embed without a length", "unsupported_parameter", "length 1", normalize=False),
    embed("embed what is cut off", "unsupported_parameter", "nothing is cut off", truncate_prompt_tokens=10),
    embed("embed with a temperature", "unknown_parameter", "temperature", temperature=1),
    embed("embed for a list of users", "invalid_type", "user", user=["ann"]),
    tokens("tokenize nothing", "invalid_value", "prompt is required"),
    tokens("tokenize two things", "invalid_value", "both given", prompt="a", messages=user("a")),
    tokens("tokenize a list", "invalid_type", "prompt must be a string", prompt=["a"]),
    tokens("tokenize a book", "invalid_value", "at most 1048576", prompt="word " * 300_000),
    tokens("tokenize a NUL", "invalid_value", "NUL", prompt="a\0b"),
    tokens("tokenize for an unknown model", "model_not_found", "intents", status=404, model="intends", prompt="a"),
    tokens("tokenize a picture", "unsupported_parameter", "text", messages=user([{"type": "image_url"}])),
    tokens("detokenize nothing", "missing_required_parameter", "tokens", path="/detokenize"),
    tokens("detokenize a text", "invalid_type", "token ids", path="/detokenize", tokens="hi"),
    tokens("detokenize an unknown token", "invalid_value", "0 to 49151", path="/detokenize", tokens=[49152]),
    tokens("detokenize too many", "invalid_value", "at most 131072", path="/detokenize", tokens=[1] * 140_000),
]


def route(id: str, status: int, code: str, says: str, method: str, path: str, **send: Any) -> Case:
    return Case(id, status, code, says, path, send, method)


ALIAS = "/v1/adapters/intents/aliases/live"
ROUTES = [
    route("unknown route", 404, "unknown_url", "check the address", "GET", "/v1/nothing"),
    route("unknown method", 405, "method_not_allowed", "takes POST", "DELETE", CHAT),
    route("embeddings are not got", 405, "method_not_allowed", "takes POST", "GET", "/v1/embeddings"),
    route("a page above", 404, "unknown_url", "check the address", "GET", "/v1/../../etc/passwd"),
    route("unknown model", 404, "model_not_found", "intents", "GET", "/v1/models/intends"),
    route("unknown adapter", 404, "adapter_not_found", "intents", "GET", "/v1/adapters/intends"),
    route("unknown adapter's history", 404, "adapter_not_found", "intents", "GET", "/v1/adapters/intends/history"),
    route("page of nothing", 400, "invalid_value", "limit", "GET", "/v1/adapters?limit=0"),
    route("page of words", 400, "invalid_value", "limit", "GET", "/v1/adapters?limit=ten"),
    route("before the beginning", 400, "invalid_value", "after", "GET", "/v1/adapters/intents/history?after=-1"),
    route("misspelt parameter", 400, "unknown_parameter", "limitt", "GET", "/v1/adapters?limitt=5"),
    route("promote nothing", 400, "missing_required_parameter", "version", "PUT", ALIAS, json={}),
    route("promote an unknown version", 400, "version_not_found", "intents", "PUT", ALIAS, json={"version": 99}),
    route("promote version 0", 400, "invalid_value", "at least 1", "PUT", ALIAS, json={"version": 0}),
    route("promote a text", 400, "invalid_type", "whole number", "PUT", ALIAS, json={"version": "1"}),
    route("promote by a list", 400, "invalid_type", "object", "PUT", ALIAS, content=b"[1]"),
    route(
        "an alias of digits", 400, "invalid_alias", "letter", "PUT", "/v1/adapters/intents/aliases/7",
        json={"version": 1},
    ),
    route(
        "an alias that means the base", 400, "invalid_alias", "base", "PUT", "/v1/adapters/intents/aliases/base",
        json={"version": 1},
    ),
    route(
        "promote an unknown adapter", 404, "adapter_not_found", "intents", "PUT", "/v1/adapters/intends/aliases/live",
        json={"version": 1},
    ),
    route("roll back to nothing", 409, "conflict", "none before", "POST", "/v1/adapters/intents/rollback"),
    route(
        "roll back an unknown alias", 400, "alias_not_found", "live", "POST", "/v1/adapters/intents/rollback",
        json={"alias": "candidate"},
    ),
    route("roll back an unknown adapter", 404, "adapter_not_found", "", "POST", "/v1/adapters/intends/rollback"),
    route("retire what is live", 409, "conflict", "live", "DELETE", f"{PUSH}/1"),
    route("retire an unknown version", 404, "version_not_found", "1", "DELETE", f"{PUSH}/99"),
    route("retire version zero", 404, "not_found", "numbers from 1", "DELETE", f"{PUSH}/0"),
    route("retire by digits without end", 404, "not_found", "numbers from 1", "DELETE", f"{PUSH}/{'9' * 400}"),
    route("a key for nobody", 400, "missing_required_parameter", "name", "POST", "/v1/keys", json={"role": "admin"}),
    route("a key of no role", 400, "invalid_value", "operator", "POST", "/v1/keys", json={"name": "x", "role": "king"}),
    route("an app's key first", 409, "conflict", "admin", "POST", "/v1/keys", json={"name": "x", "role": "app"}),
    route("revoke no key", 404, "key_not_found", "", "DELETE", "/v1/keys/key_nothing"),
]  # fmt: skip


BATCHES, FILES = "/v1/batches", "/v1/files"


def batch(id: str, code: str, says: str, **body: Any) -> Case:
    """A batch that is right but for ``body``, of a file that is not there."""
    right = {"input_file_id": "file-nothing", "endpoint": CHAT, "completion_window": "24h"}
    send = {"json": {name: value for name, value in {**right, **body}.items() if value is not ...}}
    return Case(id, 400, code, says, BATCHES, send)


def requests(id: str, code: str, says: str, content: bytes, purpose: str = "batch", name: str = "a.jsonl") -> Case:
    """An upload of a batch's requests."""
    send = {"files": {"file": (name, content)}, "data": {"purpose": purpose} if purpose else {}}
    return Case(id, 400, code, says, FILES, send)


BATCH = [
    raw("a batch of no body", "invalid_json", "empty", b"", path=BATCHES),
    raw("half a batch", "invalid_json", "JSON", b'{"endpoint": ', path=BATCHES),
    raw("a list for a batch", "invalid_type", "an object", b"[]", path=BATCHES),
    raw("a batch nested without end", "invalid_json", "JSON", b'{"metadata": ' + b"[" * 100_000, path=BATCHES),
    batch("no file", "missing_required_parameter", "input_file_id", input_file_id=...),
    batch("a file that is not there", "file_not_found", "no file"),
    batch("a path for a file", "file_not_found", "no file", input_file_id="../../graftwork.db"),
    batch("a file of nothing", "invalid_value", "input_file_id", input_file_id=""),
    batch("a file of another type", "invalid_type", "string", input_file_id=["file-x"]),
    batch("a file without end", "invalid_value", "too long", input_file_id="x" * 10_000),
    batch("a NUL in a file", "invalid_value", "NUL", input_file_id="file\0"),
    batch("no endpoint", "missing_required_parameter", "endpoint", endpoint=...),
    batch("an endpoint without batches", "invalid_value", CHAT, endpoint="/v1/batches"),
    batch("an endpoint elsewhere", "invalid_value", CHAT, endpoint=f"http://127.0.0.1{CHAT}"),
    batch("no window", "missing_required_parameter", "completion_window", completion_window=...),
    batch("another window", "invalid_value", "24h", completion_window="7d"),
    batch("metadata of numbers", "invalid_type", "string", metadata={"a": 1}),
    batch("too much metadata", "invalid_value", "16", metadata={str(number): "" for number in range(17)}),
    batch("files that go by themselves", "unsupported_parameter", "deleted",
          output_expires_after={"anchor": "created_at", "seconds": 3600}),
    batch("misspelt", "unknown_parameter", "did you mean endpoint", endpiont=CHAT),
    requests("an empty file", "empty_file", "empty", b""),
    requests("a file of blanks", "empty_file", "empty", b"\n\n \n"),
    requests("a file that is no JSON", "invalid_file", "line 1", b"hello\n"),
    requests("a file of a text", "invalid_file", "line 1", b'"hello"\n'),
    requests("a file for nothing", "missing_required_parameter", "batch", b"{}\n", purpose=""),
    requests("a file for an assistant", "invalid_value", "batch", b"{}\n", purpose="assistants"),
    requests("a result from outside", "invalid_value", "written by the server", b"{}\n", purpose="batch_output"),
    requests("a name without end", "invalid_value", "shorten", b"{}\n", name="x" * 1000),
    route("a batch that is not there", 404, "batch_not_found", "no batch", "GET", f"{BATCHES}/batch_x"),
    route("cancel what is not there", 404, "batch_not_found", "no batch", "POST", f"{BATCHES}/batch_x/cancel"),
    route("batches behind none", 400, "invalid_value", "after", "GET", f"{BATCHES}?after=batch_x"),
    route("a page of too many batches", 400, "invalid_value", "limit", "GET", f"{BATCHES}?limit=1000"),
    route("batches by a parameter that is none", 400, "unknown_parameter", "status", "GET", f"{BATCHES}?status=failed"),
    route("delete a batch", 405, "method_not_allowed", "takes GET", "DELETE", f"{BATCHES}/batch_x"),
    route("the content of no file", 404, "file_not_found", "no file", "GET", f"{FILES}/file-x/content"),
]  # fmt: skip


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def settled(server: Server) -> None:
    """What the tests of other files asked is in the log: an answer's row comes a moment after it."""
    with server.openai() as client, server.client() as operator:
        last = client.chat.completions.create(model=BASE, messages=user("hi"), max_tokens=1).id
        assert operator.interactions.get(last).id == last


@pytest.fixture
def unchanged(server: Server) -> Iterator[None]:
    """Whatever the test sends, the server's state is afterwards what it was."""
    before = state(server.home)
    yield
    assert state(server.home) == before


def state(home: Path) -> tuple[list[Any], list[Any]]:
    """Every row of the database, every file of the artifact store and of uploads."""
    with closing(sqlite3.connect(f"file:{home / 'graftwork.db'}?mode=ro", uri=True)) as database:
        # Leases are the server's own heartbeat; what was refused stands in the audit log; usage is stored later.
        query = "select name from sqlite_master where type = 'table'"
        tables = {name for (name,) in database.execute(query)} - {"leases", "audit_log", "usage", "sqlite_sequence"}
        rows = [(table, row) for table in sorted(tables) for row in database.execute(f'select * from "{table}"')]
    folders = (home / "artifacts", home / "files")
    files = [(str(path), path.stat().st_size) for folder in folders for path in sorted(folder.rglob("*"))]
    return rows, files


def check(answer: httpx.Response, status: int, code: str | None, says: str) -> None:
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert error.keys() == {"message", "type", "param", "code"}
    assert says in error["message"], error
    assert code is None or error["code"] == code, error
    assert len(error["message"]) < 1000
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("case", [*GENERATION, *EMBEDDINGS, *ROUTES, *BATCH], ids=lambda case: case.id)
def test_requests(http: httpx.Client, case: Case) -> None:
    check(http.request(case.method, case.path, **case.send), case.status, case.code, case.says)


# ---------------------------------------------------------------------------------------------------------- adapters

Damage = Callable[[Path], None]


def config(**fields: Any) -> Damage:
    def change(folder: Path) -> None:
        plain = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**plain, **fields}))

    return change


def tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Damage:
    def damage(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return damage


def every(tensor: Callable[[str, Any], Any]) -> Damage:
    return tensors(lambda all: {key: tensor(key, value) for key, value in all.items()})


def first(change: Callable[[Any], Any]) -> Damage:
    return tensors(lambda all: {**all, next(iter(all)): change(next(iter(all.values())))})


def weights(make: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(make((folder / WEIGHTS).read_bytes()))

    return damage


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the header of the safetensors file, and leave its data as they are."""

    def damage(folder: Path) -> None:
        head, data = layout(load_file(folder / WEIGHTS))
        changed = change(head)
        (folder / WEIGHTS).write_bytes(packed(head if changed is None else changed, data))

    return damage


def file(name: str, content: bytes | None) -> Damage:
    """Put a file there, or take it away."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)

    return damage


def set_poison(array: Any, value: float) -> Any:
    array = array.copy()
    array.flat[-1] = value
    return array


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch /tmp/graftwork-was-here",))


def overlap(head: dict[str, Any]) -> None:
    one, two, *_ = head
    head[two]["data_offsets"] = head[one]["data_offsets"]


def beyond(head: dict[str, Any]) -> None:
    *_, last = head
    head[last]["data_offsets"][1] += 1 << 40


def far_too_large(head: dict[str, Any]) -> None:
    head[next(iter(head))]["shape"] = [1 << 62, 1 << 62]


def of_integers(head: dict[str, Any]) -> None:
    head[next(iter(head))]["dtype"] = "I32"


#: Each is pushed as an upload and as a folder: id, what is done to a good adapter, what the refusal says, its status.
DAMAGES: list[tuple[str, Damage, str] | tuple[str, Damage, str, int]] = [
    ("no config", file(CONFIG, None), CONFIG),
    ("no weights", file(WEIGHTS, None), WEIGHTS),
    ("config that is no JSON", file(CONFIG, b"r: 16"), "JSON"),
    ("config that is a list", file(CONFIG, b"[]"), "object"),
    ("config of two megabytes", file(CONFIG, b'{"x": "' + b"x" * (2 << 20) + b'"}'), "larger", 413),
    ("config nested without end", file(CONFIG, b"[" * 100_000), "nested"),
    ("another method than LoRA", config(peft_type="IA3"), "only LORA"),
    ("no method", config(peft_type=None), "peft_type"),
    ("another task", config(task_type="SEQ_CLS"), "task_type"),
    ("a field of another PEFT", config(use_something_new=True), "use_something_new"),
    ("a field that is not served", config(use_qalora=True), "use_qalora"),
    ("rows of an embedding", config(trainable_token_indices=[1, 2]), "trainable_token_indices"),
    ("a changed base", config(init_lora_weights="pissa"), "init_lora_weights"),
    ("biases of the base", config(bias="all"), "bias"),
    ("another base", config(graftwork={"base_digest": "sha256:" + "0" * 64}), "with that base"),
    ("a digest that is none", config(graftwork={"base_digest": "latest"}), "base_digest"),
    ("another rank than its tensors", config(r=3), "rank"),
    ("a rank without end", config(r=10**6), "ranks up to"),
    ("a rank of text", config(r="2"), "rank"),
    ("a rank of nothing", config(r=0), "rank"),
    ("an infinite alpha", file(CONFIG, b'{"peft_type": "LORA", "r": 2, "lora_alpha": 1e999}'), "1e999"),
    ("other modules than its tensors", config(target_modules=["k_proj"]), "does not target"),
    ("modules that are not there", config(target_modules=["query"]), "does not target"),
    ("a pattern without end", config(target_modules="(([a-z_]+)+)+\\.q_projX"), "does not target"),
    ("a pattern that is none", config(target_modules="("), "target_modules"),
    ("a pickle for weights", file("adapter_model.bin", pickle.dumps(Bomb())), "pickle"),
    ("NaN", first(lambda array: set_poison(array, np.nan)), "NaN"),
    ("infinity", first(lambda array: set_poison(array, -np.inf)), "infinite"),
    ("another shape", first(lambda array: array[:, :-1].copy()), "shape"),
    ("another base's tensors", tensors(lambda all: {key.replace("self_", ""): all[key] for key in all}), "no module"),
    ("half of a pair", tensors(lambda all: dict(list(all.items())[1:])), "comes without"),
    ("no tensors", tensors(lambda all: {}), "no LoRA tensors"),
    ("whole numbers", first(lambda array: array.astype(np.int32)), "I32"),
    ("a tensor too many", tensors(lambda all: {**all, "extra": np.zeros(3, np.float32)}), "extra"),
    ("an adapter that does nothing", every(lambda key, array: array * 0 if "lora_B" in key else array), "changes no"),
    ("numbers that overflow", every(lambda key, array: np.full_like(array, 3e38)), "not finite"),
    ("cut off", weights(lambda raw: raw[:-1000]), WEIGHTS),
    ("cut off in the header", weights(lambda raw: raw[:100]), "cut off"),
    ("nothing in it", weights(lambda raw: b""), "too few"),
    ("something behind it", weights(lambda raw: raw + b"\0" * 64), WEIGHTS),
    ("a header without end", weights(lambda raw: (1 << 62).to_bytes(8, "little") + raw[8:]), "header"),
    ("a header that is no JSON", weights(lambda raw: packed(b"not json at all", raw)), "JSON"),
    ("a pickle by another name", weights(lambda raw: pickle.dumps(Bomb())), WEIGHTS),
    ("a page for weights", weights(lambda raw: b"<html>not found</html>"), WEIGHTS),
    ("tensors that share bytes", header(overlap), WEIGHTS),
    ("tensors beyond the file", header(beyond), WEIGHTS),
    ("tensors larger than anything", header(far_too_large), WEIGHTS),
    ("tensors of another type", header(of_integers), "I32"),
]  # fmt: skip


@pytest.fixture(scope="module")
def good(small: SmallAdapters, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("good") / "adapter", seed=4711)


@pytest.fixture
def folder(good: Path, pushable: Path) -> Iterator[Path]:
    """A good adapter where the server may read it, to be damaged."""
    folder = pushable / "adapter"
    shutil.copytree(good, folder)
    yield folder
    shutil.rmtree(folder)


def upload(http: httpx.Client, files: dict[str, bytes], path: str = PUSH, **data: str) -> httpx.Response:
    parts = [("files", (name, io.BytesIO(content))) for name, content in files.items()]
    return http.post(path, files=parts or None, data=data)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage[0])
def test_adapters(http: httpx.Client, folder: Path, damage: Any) -> None:
    _, do, says, *status = damage
    do(folder)
    for answer in (upload(http, contents(folder)), http.post(PUSH, json={"path": str(folder)})):
        check(answer, status[0] if status else 400, None, says)
    assert not Path("/tmp/graftwork-was-here").exists()


# ------------------------------------------------------------------------------------------------ uploads and folders


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"../../../evil.safetensors": b"x"}, "no part of an adapter"),
        ({"/etc/cron.d/evil": b"x"}, "no part of an adapter"),
        ({"training_args.bin": pickle.dumps(Bomb())}, "pickle"),
        ({"adapter_model.pt": pickle.dumps(Bomb())}, "pickle"),
        ({"modeling_evil.py": b"import os"}, "no part of an adapter"),
        ({"": b"x"}, ""),
        ({}, ""),
    ],
    ids=["path escape", "absolute path", "pickle", "another pickle", "code", "no name", "no files"],
)
def test_files_of_an_upload(http: httpx.Client, good: Path, files: dict[str, bytes], says: str) -> None:
    check(upload(http, {**contents(good), **files} if files else {}), 400, None, says)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"metadata": "{"}, "metadata"),
        ({"metadata": "[1]"}, "metadata"),
        ({"metadata": json.dumps({"x": "y" * 70_000})}, "metadata"),
        ({"parent": "first"}, "parent"),
        ({"parent": "99"}, "99"),
        ({"parent": "-1"}, "parent"),
        ({"colour": "red"}, "colour"),
        ({"data_digest": "x" * 300}, "data_digest"),
    ],
    ids=lambda value: next(iter(value.items())).__repr__()[:40] if isinstance(value, dict) else "",
)
def test_fields_of_an_upload(http: httpx.Client, good: Path, fields: dict[str, str], says: str) -> None:
    check(upload(http, contents(good), **fields), 400, None, says)


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        ("multipart/form-data", b"--x\r\n", "boundary"),
        ("multipart/form-data; boundary=x", b"", "last boundary"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a',
            "last",
        ),
        ("multipart/form-data; boundary=x", b"nothing of the kind", "broken"),
        ("application/x-www-form-urlencoded", b"path=/etc", "JSON"),
        ("application/octet-stream", bytes(range(256)), "JSON"),
        ("application/json", b'{"path": 7}', "path"),
        ("application/json", b'{"path": "/a\\u0000b"}', "NUL"),
        ("application/json", b'{"folder": "/x"}', "path"),
        ("", b"", "empty"),
    ],
)
def test_bodies_of_a_push(http: httpx.Client, content_type: str, body: bytes, says: str) -> None:
    check(http.post(PUSH, content=body, headers={"content-type": content_type}), 400, None, says)


def test_a_file_twice(http: httpx.Client, good: Path) -> None:
    parts = [("files", (name, content)) for name, content in contents(good).items()]
    check(http.post(PUSH, files=[*parts, parts[0]]), 400, "invalid_adapter", "twice")


def test_more_parts_than_anybody_needs(http: httpx.Client) -> None:
    check(http.post(PUSH, files=[("files", ("README.md", b"x"))] * 100), 400, None, "parts")


def test_an_upload_larger_than_allowed(server: Server) -> None:
    """Refused by what it says of itself: not a byte of it is waited for."""
    address = httpx.URL(server.url)
    with socket.create_connection((address.host, address.port or 80), timeout=10) as connection:
        lines = [f"POST {PUSH} HTTP/1.1", "Host: localhost", f"Content-Length: {10**12}"]
        lines += ["Content-Type: multipart/form-data; boundary=x", "", ""]
        connection.sendall("\r\n".join(lines).encode())
        answer = ""
        while "larger than the" not in answer and (more := connection.recv(65536)):
            answer += more.decode()
    assert answer.startswith("HTTP/1.1 413 ")
    assert "larger than the" in answer


@pytest.mark.parametrize(
    "name",
    [
        "Intents",
        "-intents",
        "in tents",
        "x" * 65,
        "intents@2",
        "..",
        "ìntents",
        "acme/intents",
        "acme%2Fintents",
        "intents:v2",
        "base",
        BASE,
    ],
)
def test_names(http: httpx.Client, good: Path, name: str) -> None:
    answer = upload(http, contents(good), f"/v1/adapters/{name.replace('..', '%2e%2e')}/versions")
    check(answer, 400, "name_taken" if name == BASE else "invalid_name", "name")


@pytest.mark.parametrize("alias", ["7", "Live", "base", "", "a" * 65, "a/b"])
def test_aliases_of_a_push(http: httpx.Client, good: Path, alias: str) -> None:
    check(upload(http, contents(good), f"{PUSH}?alias={alias}"), 400, "invalid_alias", "alias")


def test_a_parameter_that_is_none(http: httpx.Client, good: Path) -> None:
    check(upload(http, contents(good), f"{PUSH}?alais=candidate"), 400, "unknown_parameter", "alais")


def test_folders_the_server_must_not_read(http: httpx.Client, good: Path, pushable: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(good, outside)
    link, inner = pushable / "link", pushable / "inner"
    try:
        link.symlink_to(outside)
        inner.mkdir()
        (inner / CONFIG).write_bytes((good / CONFIG).read_bytes())
        (inner / WEIGHTS).symlink_to(outside / WEIGHTS)
        for path, says in {
            str(outside): "leads out",
            f"{pushable}/../{outside.name}": "leads out",
            str(link): "leads out",
            str(inner): "leads out",
            "/etc": "leads out",
            "/proc/self": "leads out",
            "adapter": "relative",
            "~": "relative",
            str(pushable / "nothing"): "cannot be read",
            str(pushable): "missing",
            f"{pushable}/{'x' * 5000}": "",
        }.items():
            check(http.post(PUSH, json={"path": path}), 400, "invalid_adapter", says)
        (inner / WEIGHTS).unlink()
        os.mkfifo(inner / WEIGHTS)
        check(http.post(PUSH, json={"path": str(inner)}), 400, "invalid_adapter", "a FIFO")
        (inner / WEIGHTS).unlink()
        (inner / WEIGHTS).mkdir()
        check(http.post(PUSH, json={"path": str(inner)}), 400, "invalid_adapter", "a folder")
    finally:
        link.unlink(missing_ok=True)
        shutil.rmtree(inner, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------- after


def test_afterwards(server: Server, http: httpx.Client) -> None:
    """The worker that has seen all this is the first one, and answers."""
    assert server.log.count("is ready") == 1
    assert server.status() == 200
    with server.openai() as client:
        # Not stored: its row would come when a later test looks at what has changed.
        assert ask(client, "intents", max_tokens=4, store=False).adapter == "intents@1"
    assert server.metric("running") == server.metric("queue_depth") == 0
    assert list((server.home / "artifacts" / "staging").iterdir()) == []


def test_there_are_enough_cases() -> None:
    assert len(GENERATION) + len(ROUTES) + len(DAMAGES) > 100
