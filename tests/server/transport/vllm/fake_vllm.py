"""A stand-in for a vLLM 0.32 server, true to its protocol, with what was seen of a real one as switches.

Its model is arithmetic: the next token follows from the last one and from the adapter's B matrices. Prompts are scored
the same way. Nothing is checked that vLLM does not check: unknown fields are ignored, and without ``model`` the base
answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from safetensors.numpy import load_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

BASE = "base"
NOT_FINITE = 99


@dataclass
class Switches:
    """What may be different about a server, each seen of a real one.

    Attributes:
        version: What ``/version`` says.
        key: ``--api-key``.
        scale_out: ``--enable-scale-out``.
        updating: ``VLLM_ALLOW_RUNTIME_LORA_UPDATING``.
        max_rank: ``--max-lora-rank``.
        base: Another number is another base.
        guidance: ``--structured-outputs-config.backend guidance``: the others cannot read llguidance's own grammars.
        queue: ``--max-num-queued-reqs``: requests that may be open before others are answered 503.
        draining: After SIGTERM: new requests are answered 200, empty, with ``abort``; ``/health`` says 200.
        dies_after: After so many tokens the engine is dead: an error and ``[DONE]``, then no health.
        fails_after: After so many tokens an answer ends with ``error``, and only that.
        breaks_after: After so many tokens the connection is closed, without a word.
        done_after: After so many tokens the stream ends with a bare ``[DONE]``.
        health: What ``/health`` is answered by a proxy that does not let it through.
        metrics: Lines that ``/metrics`` ends with.
        cuts: So many requests get no answer: the server closes their connections as unused at that moment.
        silent: Nothing is answered, and no connection closed: a stopped process.
        pause: Seconds between two tokens.
    """

    version: str = "0.32.0"
    key: str | None = None
    scale_out: bool = True
    updating: bool = True
    max_rank: int = 16
    base: int = 0
    guidance: bool = True
    queue: int | None = None
    draining: bool = False
    dies_after: int | None = None
    fails_after: int | None = None
    breaks_after: int | None = None
    done_after: int | None = None
    health: int = 200
    metrics: str = ""
    cuts: int = 0
    silent: bool = False
    pause: float = 0.0


@dataclass
class FakeVllm:
    """One server.

    Attributes:
        vocab_size: Of its base.
        max_length: ``--max-model-len``.
        switches: What is different about it.
        adapters: Registered names and their paths.
        resident: Those whose weights are in memory; others are read again from their paths.
        asked: The bodies of all requests for tokens.
        loads: The names of all loads that were asked for.
        aborted: Streams whose client left.
        open: Requests under way.
        dead: Whether the engine is.
        url: Its address.
    """

    vocab_size: int = 256
    max_length: int = 64
    switches: Switches = field(default_factory=Switches)
    adapters: dict[str, str] = field(default_factory=dict)
    resident: dict[str, int] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    aborted: int = 0
    open: int = 0
    dead: bool = False
    url: str = ""
    kill_from_thread: Callable[[], object] = lambda: None

    def tokens_of(self, text: str) -> list[int]:
        """Its tokenizer: bytes."""
        return list(text.encode())

    def seed(self, name: str) -> int:
        """What the weights under a name come to: 0 for a base, or an adapter that changes nothing."""
        if name == BASE:
            return 0
        if name not in self.resident:
            self.resident[name] = _seed_of(Path(self.adapters[name]))
        return self.resident[name]

    def next_token(self, seed: int, last: int) -> int:
        return (last * 7 + 3 + seed + self.switches.base) % self.vocab_size

    def likeliest(self, seed: int, last: int) -> list[int]:
        return [(self.next_token(seed, last) + step) % self.vocab_size for step in range(5)]

    def logprob(self, seed: int, last: int, token: int) -> float:
        if seed == NOT_FINITE:
            return -9999.0
        far = (token - self.next_token(seed, last)) % self.vocab_size
        return -0.5 - seed / 1000 - far / 64

    # -- how it is started and ended -------------------------------------------------------------------------------
    @asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[FakeVllm]:
        """Serve in this event loop, at a free port."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(self._app(), log_level="error", lifespan="off"))
        server.install_signal_handlers = lambda: None  # type: ignore[method-assign, attr-defined]
        with _no_signals(server):
            task = asyncio.create_task(server.serve([listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            self._server = server
            try:
                yield self
            finally:
                self.kill()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    @contextmanager
    def in_thread(self) -> Iterator[FakeVllm]:
        """Serve in a thread of its own, for tests that block."""
        loop, ready, end = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

        async def run() -> None:
            async with self.serving():
                ready.set()
                await end.wait()

        self.kill_from_thread = lambda: loop.call_soon_threadsafe(self.kill)
        thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
        thread.start()
        assert ready.wait(30)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(end.set)
            thread.join(30)

    def kill(self) -> None:
        """kill -9: every connection breaks, and the port is free."""
        self._server.should_exit = self._server.force_exit = True
        for listener in self._server.servers:
            listener.close()
        self.cut()

    def cut(self) -> None:
        """Close every connection."""
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()

    # -- its routes ------------------------------------------------------------------------------------------------
    def _app(self) -> Starlette:
        routes = [
            Route("/health", self._health),
            Route("/version", self._version),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/inference/v1/generate", self._generate, methods=["POST"]),
        ]
        if self.switches.updating:
            routes += [
                Route("/v1/load_lora_adapter", self._load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]),
            ]
        return Starlette(routes=routes)

    async def _health(self, request: Request) -> Response:
        await self._stopped()
        return Response(status_code=503 if self.dead else self.switches.health)

    async def _version(self, request: Request) -> Response:
        return JSONResponse({"version": self.switches.version})

    async def _metrics(self, request: Request) -> Response:
        await self._stopped()
        running = ",".join(sorted(self.resident))
        return PlainTextResponse(
            f"""# TYPE vllm:num_requests_running gauge
process_resident_memory_bytes 7.8e+08
vllm:num_requests_running{{engine="0",model_name="base"}} {self.open}.0
vllm:num_requests_waiting{{engine="0",model_name="base"}} 2.0
vllm:kv_cache_usage_perc{{engine="0",model_name="base"}} 0.25
vllm:prefix_cache_queries_total{{engine="0",model_name="base"}} 50.0
vllm:prefix_cache_hits_total{{engine="0",model_name="base"}} 20.0
vllm:num_preemptions_total{{engine="0",model_name="base"}} 1.0
vllm:iteration_tokens_total_bucket{{engine="0",le="1.0",model_name="base"}} 3.0
vllm:iteration_tokens_total_count{{engine="0",model_name="base"}} 6.0
vllm:lora_requests_info{{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""}} 1.7959909351841571e+09
vllm:lora_requests_info{{max_lora="4",running_lora_adapters="{running}",waiting_lora_adapters=""}} 1.7959909999e+09
vllm:cache_config_info{{block_size="128",engine="0",kv_cache_size_tokens="46592",num_gpu_blocks="364"}} 1.0
{self.switches.metrics}"""
        )

    async def _models(self, request: Request) -> Response:
        if refused := self._key_refused(request):
            return refused
        cards: list[dict[str, Any]] = [{"id": BASE, "parent": None, "max_model_len": self.max_length}]
        cards += [{"id": name, "parent": BASE, "root": path} for name, path in self.adapters.items()]
        return JSONResponse({"object": "list", "data": cards})

    async def _tokenize(self, request: Request) -> Response:
        return JSONResponse({"tokens": self.tokens_of((await request.json())["prompt"])})

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        self.loads.append(name)
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded. If you want to load …")
        if not Path(path).is_dir():
            return _error(404, f"Loading lora {name} failed: No adapter found for {path}")
        config = json.loads((Path(path) / "adapter_config.json").read_text())
        if config.get("r", 0) > self.switches.max_rank:
            why = f"LoRA rank {config['r']} is greater than max_lora_rank {self.switches.max_rank}."
            return _error(500, f"Call to add_lora method failed: {why}")
        self.adapters[name] = path
        self.resident[name] = _seed_of(Path(path))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.adapters:
            return _error(404, f"The lora adapter '{name}' cannot be found.")
        del self.adapters[name]  # the weights stay where they are
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _generate(self, request: Request) -> Response:
        await self._stopped()
        if refused := self._key_refused(request):
            return refused
        if not self.switches.scale_out:
            return _error(403, "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out …")
        body = await request.json()
        self.asked.append(body)
        if self.switches.cuts:
            self.switches.cuts -= 1
            self.cut()
            return Response()
        name = body.get("model") or BASE
        if name != BASE and name not in self.adapters:
            return _error(404, f"The model `{name}` does not exist. Valid aliases: base.", param="model")
        if self.dead:
            return _error(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")
        if max(body["token_ids"]) >= self.vocab_size:
            return _error(400, f"Token id {max(body['token_ids'])} is out of vocabulary")
        if len(salt := body.get("cache_salt", "")) > 128 or set(salt) & set("@/\\\0"):
            return _error(400, "Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/' …")
        if self.switches.queue is not None and self.open >= self.switches.queue:
            return _error(503, "The server is overloaded: try again later or try a different instance")
        grammar = (body["sampling_params"].get("structured_outputs") or {}).get("grammar", "")
        if "%llguidance" in grammar and not self.switches.guidance:
            return _error(500, "Internal server error")
        try:
            seed = self.seed(name)
        except FileNotFoundError:  # its folder is gone: the whole server dies of it
            self.dead = True
            return _error(500, "EngineCore encountered an issue. See stack trace (above) for the root cause.")
        if body["sampling_params"].get("prompt_logprobs") is not None and self.open:
            self.dead = True  # with adapters on, on a CPU
        answer = _Answer(self, body, seed)
        if not body.get("stream"):
            return JSONResponse(answer.whole(name, aborted=self.switches.draining))
        return StreamingResponse(self._events(answer), media_type="text/event-stream")

    async def _events(self, answer: _Answer) -> AsyncIterator[str]:
        self.open += 1
        try:
            if self.switches.draining:
                yield _data(answer.event([], "abort"))
            else:
                async for event in self._tokens(answer):
                    yield event
                    if event == "":
                        return
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.open -= 1

    async def _tokens(self, answer: _Answer) -> AsyncIterator[str]:
        for count, (token, finish) in enumerate(answer.tokens):
            if count == self.switches.dies_after:
                self.dead = True
                yield _data({"error": {"message": "EngineCore encountered an issue.", "code": 500}})
                return
            if count == self.switches.fails_after:
                yield _data(answer.event([], "error"))
                return
            if count == self.switches.breaks_after:
                self.kill()
                return
            if count == self.switches.done_after:
                return
            await asyncio.sleep(self.switches.pause)
            await self._stopped()
            yield _data(answer.event([token], finish))
        usage = {"prompt_tokens_details": {"cached_tokens": 2}}
        yield _data({"request_id": "generate-tokens-1", "choices": [], "usage": usage})

    async def _stopped(self) -> None:
        while self.switches.silent:
            await asyncio.sleep(0.05)

    def _key_refused(self, request: Request) -> Response | None:
        key = self.switches.key
        if key is None or request.headers.get("authorization") == f"Bearer {key}":
            return None
        return JSONResponse({"error": "Unauthorized"}, 401)


class _Answer:
    """What a model says to one request."""

    def __init__(self, server: FakeVllm, body: dict[str, Any], seed: int) -> None:
        self._server, self._body, self._seed = server, body, seed
        sampling = body["sampling_params"]
        self._logprobs = sampling.get("logprobs")
        stops, last = set(sampling.get("stop_token_ids", ())), body["token_ids"][-1]
        self.tokens: list[tuple[int, str | None]] = []
        self._before: dict[int, int] = {}
        for count in range(sampling.get("max_tokens", 16)):
            token = server.next_token(seed, last)
            self._before[token], last = last, token
            stopped = token in stops and count >= sampling.get("min_tokens", 0)
            full = count + 1 == sampling.get("max_tokens", 16)
            self.tokens.append((token, "stop" if stopped else "length" if full else None))
            if stopped:
                break

    def event(self, tokens: list[int], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "token_ids": tokens, "finish_reason": finish, "logprobs": self._scores(tokens)}
        return {"request_id": "generate-tokens-1", "choices": [choice]}

    def whole(self, model: str, *, aborted: bool) -> dict[str, Any]:
        tokens = [] if aborted else [token for token, _ in self.tokens]
        answer = self.event(tokens, "abort" if aborted else self.tokens[-1][1])
        answer |= {"model": model, "usage": {"prompt_tokens_details": {"cached_tokens": 0}}}
        top = self._body["sampling_params"].get("prompt_logprobs")
        prompt = self._body["token_ids"]
        if top is not None:
            answer["prompt_logprobs"] = [None] + [
                {str(token): {"logprob": self._server.logprob(self._seed, last, token), "rank": 1}}
                for last, token in itertools.pairwise(prompt)
            ]
        return answer

    def _scores(self, tokens: list[int]) -> dict[str, Any] | None:
        if self._logprobs is None:
            return None
        content = []
        for token in tokens:
            last = self._before[token]
            near = [token, *(other for other in self._server.likeliest(self._seed, last) if other != token)]
            scored = [
                {"token_id": other, "logprob": self._server.logprob(self._seed, last, other), "rank": place + 1}
                for place, other in enumerate(near)
            ]
            content.append({**scored[0], "top_logprobs": scored[: max(self._logprobs, 1)]})
        return {"content": content}


def _seed_of(folder: Path) -> int:
    """The B matrices of an adapter as a number; 0 if they are zero."""
    tensors = load_file(folder / "adapter_model.safetensors")
    matrices = [tensors[name] for name in sorted(tensors) if "lora_B" in name]
    if not all(np.isfinite(b).all() for b in matrices):
        return NOT_FINITE
    return 1 + zlib.crc32(b"".join(b.tobytes() for b in matrices)) % 50 if any(b.any() for b in matrices) else 0


def _data(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event)}\n\n"


def _error(status: int, message: str, *, param: str | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "Error", "param": param, "code": status}}, status)


@contextmanager
def _no_signals(server: uvicorn.Server) -> Iterator[None]:
    """Uvicorn would take the process's signals, and in a thread it cannot."""
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    yield
