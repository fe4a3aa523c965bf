"""A small server that speaks the wire of the HTTP contract, over real sockets, without a model.

It keeps adapters, aliases, events and keys in dictionaries and answers a prompt by its own words. Some models behave
badly on purpose: see ``_words``. What it was asked is kept in ``requests`` for the tests to look at.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

BASE = "smollm2-135m-instruct"
NOW = 1_700_000_000
SECRET = "gw-secret"
AUDIT_ENTRY = {
    **{"object": "audit.entry", "id": 7, "at": NOW + 0.5, "actor": "ann", "key_id": "key_1", "action": "promote"},
    **{"target": "adapters/intents/aliases/live", "outcome": "done", "request_id": "req-1", "remote": None},
}


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str, **headers: str) -> None:
        self.status, self.message, self.code, self.headers = status, message, code, headers


@dataclass
class FakeServer:
    url: str = ""
    key: str | None = None
    status: str = "ready"
    refusals: list[Response] = field(default_factory=list)  # given to the next requests, in order
    requests: list[tuple[str, str, dict[str, str], Any]] = field(
        default_factory=list
    )  # method, path+query, headers, body
    adapters: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    keys: dict[str, dict[str, Any]] = field(default_factory=dict)
    disconnected: threading.Event = field(default_factory=threading.Event)
    page: int = 100

    def asked(self, method: str, path: str) -> list[Any]:
        """The bodies of the requests of that method and path."""
        return [body for verb, target, _, body in self.requests if (verb, target.partition("?")[0]) == (method, path)]

    def seed(self, name: str, versions: int) -> None:
        """An adapter with some versions, the first of them live."""
        for number in range(1, versions + 1):
            self.push(name, f"{name}{number}".encode(), alias=None, facts={})

    def push(self, name: str, files: bytes, alias: str | None, facts: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        adapter = self.adapters.setdefault(
            name,
            {
                "object": "adapter",
                "name": name,
                "created_at": NOW,
                "aliases": {},
                "versions": [],
                "residency": "store",
                "requests": 3,
                "tokens": 1234,
            },
        )
        digest = "sha256:" + hashlib.sha256(files).hexdigest()
        for known in adapter["versions"]:
            if known["digest"] == digest:
                return known, False
        number = len(adapter["versions"]) + 1
        version = {
            "object": "adapter.version",
            "id": f"{name}@{number}",
            "name": name,
            "version": number,
            "digest": digest,
            "base_digest": "sha256:" + "0" * 64,
            "verified": False,
            "rank": 16,
            "num_parameters": 4_884_480,
            "num_bytes": 9_800_000,
            "created_at": NOW + number,
            "parent": facts.get("parent"),
            "data_digest": facts.get("data_digest"),
            "peft_config": {"peft_type": "LORA", "r": 16},
            "metadata": facts.get("metadata") or {},
            "retired_at": None,
            "residency": "store",
            "load_ms": None,
            "requests": 0,
            "tokens": 0,
            "a_field_of_next_year": True,
        }
        adapter["versions"].append(version)
        self.note("push", name, None, None, number)
        for moved in {alias, "live" if number == 1 else None} - {None}:
            self.move(name, str(moved), number, "promote")
        return version, True

    def move(self, name: str, alias: str, number: int, action: str, reason: str | None = None) -> dict[str, Any]:
        before = self.adapters[name]["aliases"].get(alias)
        self.adapters[name]["aliases"][alias] = number
        return self.note(action, name, alias, before, number, reason)

    def note(
        self,
        action: str,
        name: str,
        alias: str | None,
        before: int | None,
        after: int | None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        event = {
            "object": "adapter.event",
            "id": len(self.events) + 1,
            "at": NOW + len(self.events) + 0.25,
            "action": action,
            "name": name,
            "alias": alias,
            "from_version": before,
            "to_version": after,
            "actor": "ann",
            "reason": reason,
        }
        self.events.append(event)
        return event

    def adapter(self, name: str) -> dict[str, Any]:
        if name not in self.adapters:
            raise Refusal(404, f"there is no adapter {name!r}; there are: {', '.join(self.adapters)}", "not_found")
        return self.adapters[name]

    def model(self, id: str) -> dict[str, Any]:
        common = {"object": "model", "created": NOW, "owned_by": "graftwork"}
        if id == BASE or id in _ODD_MODELS:
            return {"id": id, **common, "graftwork": {"quantize": "int8", "memory_bytes": 135_000_000}}
        name, _, which = id.partition("@")
        adapter = self.adapter(name)
        number = adapter["aliases"].get(which or "live") or int(which or 0)
        return {"id": id, **common, "parent": BASE, "root": f"{name}@{number}"}


_ODD_MODELS = ("endless", "broken", "cut", "early", "wild")


async def _words(model: str, prompt: str) -> AsyncIterator[str]:
    """A prompt's own words; ``endless`` never ends, ``broken`` fails in the middle, ``wild`` writes to the terminal."""
    if model == "wild":
        yield "red\x1b[31m\x07 \u2028 grün\n"
        return
    while True:
        for word in prompt.split():
            yield f" {word}"
            if model == "broken":
                raise Refusal(503, "the engine was restarted; ask again", "unavailable")
            await asyncio.sleep(0.005 if model == "endless" else 0)
        if model != "endless":
            return


def build(state: FakeServer) -> FastAPI:
    app = FastAPI()

    @app.exception_handler(Refusal)
    def refuse(request: Request, refusal: Refusal) -> Response:
        error = {"message": refusal.message, "type": "invalid_request_error", "param": None, "code": refusal.code}
        return JSONResponse({"error": error}, refusal.status, headers=refusal.headers)

    @app.middleware("http")
    async def door(request: Request, handle: Any) -> Response:
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        kind = request.headers.get("content-type", "")
        if kind.startswith("multipart/"):
            form = await request.form()
            body: Any = {
                "files": {file.filename: await file.read() for file in form.getlist("files")},  # type: ignore[union-attr]
                **{name: value for name, value in form.items() if name != "files"},
            }
        else:
            raw = await request.body()
            body = json.loads(raw) if raw else None
        request.state.body = body
        state.requests.append((request.method, target, dict(request.headers), body))
        if state.refusals:
            return state.refusals.pop(0)
        if state.key and request.headers.get("authorization") != f"Bearer {state.key}":
            return refuse(request, Refusal(401, "this key is unknown", "invalid_api_key"))
        response: Response = await handle(request)
        response.headers["x-request-id"] = f"req-{len(state.requests)}"
        return response

    @app.get("/health")
    def health() -> Any:
        return {"status": "ok"}

    @app.get("/ready")
    def ready() -> Response:
        return JSONResponse({"status": state.status, "base": BASE}, 200 if state.status == "ready" else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        return PlainTextResponse('graftwork_requests_total{adapter="intents@1"} 3\n')

    @app.get("/v1/models")
    def models() -> Any:
        return {"object": "list", "data": [state.model(id) for id in (BASE, *state.adapters)], "has_more": False}

    @app.get("/v1/models/{id:path}")
    def model(id: str) -> Any:
        return state.model(id)

    def answered_by(id: str) -> str:
        return str(state.model(id).get("root") or id)

    def generate(request: Request, chat: bool) -> Response:
        body = request.state.body
        adapter = answered_by(body["model"])
        prompt = body["messages"][-1]["content"] if chat else body["prompt"]
        text = prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
        head = {"id": "gen-1", "created": NOW, "model": body["model"]}
        usage = {"prompt_tokens": 5, "completion_tokens": len(text.split()), "total_tokens": 5 + len(text.split())}
        headers = {"x-graftwork-adapter": adapter}

        def choice(part: str, finish: str | None, whole: bool) -> dict[str, Any]:
            shape: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
            if not chat:
                return shape | {"text": part}
            return shape | ({"message" if whole else "delta": {"role": "assistant", "content": part}})

        async def events() -> AsyncIterator[bytes]:
            def event(content: Any) -> bytes:
                return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"

            try:
                yield b": hello\n\n"
                async for word in _words(body["model"], text):
                    yield event({**head, "choices": [choice(word, None, False)], "usage": None})
                    if body["model"] == "cut":
                        raise ConnectionError("the test server hangs up")
                    if body["model"] == "early":
                        return
                yield event({**head, "choices": [choice("", "stop", False)], "usage": None})
                yield event({**head, "choices": [], "usage": usage})
                yield b"data: [DONE]\n\n"
            except Refusal as refusal:
                error = {"message": refusal.message, "type": "server_error", "param": None, "code": refusal.code}
                yield event({"error": error})
            except (asyncio.CancelledError, GeneratorExit):  # while it writes a word, or between two
                state.disconnected.set()
                raise

        if body.get("stream"):
            return StreamingResponse(events(), media_type="text/event-stream", headers=headers)
        whole = {**head, "choices": [choice(text, "stop", True)], "usage": usage, "graftwork": {"adapter": adapter}}
        if body.get("echo"):
            tokens = text.split()
            whole["choices"][0]["logprobs"] = {
                "tokens": tokens,
                "token_logprobs": [None, *[-0.5 for _ in tokens[1:]]],
                "top_logprobs": [None, *[{token: -0.5} for token in tokens[1:]]],
                "text_offset": list(range(len(tokens))),
            }
        return JSONResponse(whole, headers=headers)

    @app.post("/v1/chat/completions")
    def chat(request: Request) -> Response:
        return generate(request, chat=True)

    @app.post("/v1/completions")
    def completions(request: Request) -> Response:
        return generate(request, chat=False)

    def page(items: list[dict[str, Any]], key: str, request: Request) -> Any:
        after, limit = request.query_params.get("after"), int(request.query_params.get("limit", state.page))
        ids = [str(item[key]) for item in items]
        start = ids.index(after) + 1 if after else 0
        end = start + min(limit, state.page)
        return {"object": "list", "data": items[start:end], "has_more": end < len(items)}

    @app.get("/v1/adapters")
    def adapters(request: Request) -> Any:
        return page(list(state.adapters.values()), "name", request)

    @app.get("/v1/adapters/{name}")
    def adapter(name: str) -> Any:
        return state.adapter(name)

    @app.post("/v1/adapters/{name}/versions")
    def push(name: str, request: Request, alias: str | None = None) -> Response:
        body = request.state.body
        if "path" in body:
            version, created = state.push(name, body["path"].encode(), alias, body)
        else:
            facts = {key: json.loads(value) for key, value in body.items() if key in ("parent", "metadata")}
            version, created = state.push(name, b"".join(body["files"].values()), alias, facts)
        return JSONResponse(version, 201 if created else 200)

    @app.put("/v1/adapters/{name}/aliases/{alias}")
    def promote(name: str, alias: str, request: Request) -> Any:
        body = request.state.body
        if body["version"] > len(state.adapter(name)["versions"]):
            raise Refusal(400, f"{name} has no version {body['version']}", "invalid_value")
        return state.move(name, alias, body["version"], "promote", body.get("reason"))

    @app.post("/v1/adapters/{name}/rollback")
    def rollback(name: str, request: Request) -> Any:
        alias = request.state.body["alias"]
        for event in reversed(state.events):
            if (event["name"], event["alias"]) == (name, alias) and event["from_version"]:
                return state.move(name, alias, event["from_version"], "rollback", request.state.body.get("reason"))
        raise Refusal(
            409, f"{name}@{alias} has pointed at one version only; there is nothing to go back to", "conflict"
        )

    @app.get("/v1/adapters/{name}/history")
    def history(name: str, request: Request) -> Any:
        return page([event for event in reversed(state.events) if event["name"] == name], "id", request)

    @app.delete("/v1/adapters/{name}/versions/{number}")
    def retire(name: str, number: int) -> Any:
        if number in state.adapter(name)["aliases"].values():
            raise Refusal(409, f"{name}@{number} is in use; move the alias first", "conflict")
        version = state.adapter(name)["versions"][number - 1]
        version["retired_at"] = NOW + 99
        return version

    @app.post("/v1/keys", status_code=201)
    def create_key(request: Request) -> Any:
        id = f"key_{len(state.keys) + 1}"
        state.keys[id] = {"object": "key", "id": id, **request.state.body, "created_at": NOW, "revoked_at": None}
        return {**state.keys[id], "secret": SECRET}

    @app.get("/v1/keys")
    def list_keys(request: Request) -> Any:
        return page(list(state.keys.values()), "id", request)

    @app.get("/v1/adapters/{name}/limits")
    @app.put("/v1/adapters/{name}/limits")
    def adapter_limits(name: str, request: Request) -> Any:
        used = {period: {"requests": 3, "tokens": 70} for period in ("minute", "day", "month")}
        return {"object": "adapter.limits", "adapter": name, "limits": request.state.body or {}, **used, "open": 1}

    @app.get("/v1/audit")
    def list_audit() -> Any:
        return {"object": "list", "data": [AUDIT_ENTRY], "has_more": False}

    @app.get("/v1/audit/export")
    def export_audit() -> Any:
        return PlainTextResponse(json.dumps(AUDIT_ENTRY) + "\n")

    @app.get("/v1/keys/{id}")
    def get_key(id: str) -> Any:
        return state.keys[id]

    @app.get("/v1/keys/{id}/usage")
    def get_usage(id: str) -> Any:
        used = {key: {"requests": 3, "tokens": 70} for key in ("minute", "day", "month")}
        return {"object": "key.usage", "id": id, **used, "open": 1}

    @app.patch("/v1/keys/{id}")
    def change_key(id: str, request: Request) -> Any:
        state.keys[id] |= request.state.body
        return state.keys[id]

    @app.post("/v1/keys/{id}/rotate")
    def rotate_key(id: str, request: Request) -> Any:
        overlap = request.state.body.get("overlap_seconds", 86400)
        return {**state.keys[id], "secret": SECRET, "previous_until": NOW + overlap if overlap else None}

    @app.delete("/v1/keys/{id}")
    def revoke_key(id: str) -> Any:
        if id not in state.keys:
            raise HTTPException(404)
        state.keys[id]["revoked_at"] = NOW + 5
        return state.keys[id]

    return app


@contextlib.contextmanager
def running() -> Iterator[FakeServer]:
    """The server on a free port of the loopback, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    state = FakeServer(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
    server = uvicorn.Server(
        uvicorn.Config(build(state), log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline, "the test server did not start"
        time.sleep(0.01)
    try:
        yield state
    finally:
        server.should_exit = True
        thread.join(5)
        listener.close()
