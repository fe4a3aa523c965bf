"""A scripted engine behind the real generation routes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import APIRouter

from graftwork.adapters.experiments.routing import ModelRouter
from graftwork.adapters.feedback.interactions import Interaction, InteractionFilter
from graftwork.adapters.prompts.tool_calls import HERMES
from graftwork.server.engine.request import Delta, FinishReason, Request
from graftwork.server.generation.accounting import Accounting
from graftwork.server.generation.embeddings import EmbeddingService
from graftwork.server.generation.service import GenerationService
from graftwork.server.generation.tokenization import Tokenization
from graftwork.server.http.openapi import DocumentedRoute
from graftwork.server.http.routes import add_routes, generation
from graftwork.server.processes import SharedState
from graftwork.server.transport.client import EngineClient
from graftwork.server.transport.messages import Cancel, EngineMessage, Frame, Generate, Hello
from tests.server.byte_tokens import EOS, ByteTokens
from tests.server.fakes import World, adapter_files, form, make_world

CHAT = "/v1/chat/completions"


ASK = {"model": "intents", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


class StandInPrompts(ByteTokens):
    """A byte is a token, and a 0 says that none was added; a conversation is what was said last."""

    eos_token_ids = (EOS,)

    def encode(self, text: str, *, max_length: int | None = None, add_special_tokens: bool = True) -> list[int]:
        return [*([] if add_special_tokens else [0]), *text.encode()]

    def render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **_: Any) -> str:
        return messages[-1]["content"] + (">" if add_generation_prompt else "")

    tool_call_format = HERMES

    def chat(self, messages: Sequence[dict[str, Any]], *, max_length: int | None = None, **_: Any) -> list[int]:
        return self.encode(messages[-1]["content"])


class ScriptedEngine:
    """Repeats the prompt, a byte a frame, and ends; ``fail`` fails after a byte, ``stall`` says no more after one.

    A prompt that is to be pooled becomes (its length, its last byte), or what ``fail`` and ``stall`` say.
    """

    def __init__(self, board: SharedState) -> None:
        self.link = EngineClient(board, max_open=8, canary_prompt=[1])
        self.queued = 0.0  # seconds
        self.asked: list[Request] = []
        self.cancelled: list[str] = []

    def connect(self, max_length: int = 64) -> None:
        self.link.receive(self, Frame(hello=Hello(os.getpid(), {"quantize": "int8", "max_length": max_length})))

    def send(self, message: EngineMessage) -> None:
        if isinstance(message, Generate):
            for request in message.requests:
                self.asked.append(request)
                tell = self.answer if request.sampling.pooling is None else self.embed
                asyncio.get_running_loop().call_soon(tell, request.id, bytes(request.prompt))
        elif isinstance(message, Cancel):
            self.cancelled += message.request_ids

    def close(self) -> None: ...

    def answer(self, id: str, prompt: bytes) -> None:
        last = None if prompt == b"stall" else FinishReason.ERROR if prompt == b"fail" else FinishReason.STOP
        said = prompt[:1] if prompt in (b"stall", b"fail") else prompt
        deltas = [Delta(id, [byte], queued_seconds=None if place else self.queued) for place, byte in enumerate(said)]
        if last is not None:
            deltas.append(Delta(id, finish_reason=last, error="it broke" if last is FinishReason.ERROR else None))
        for delta in deltas:
            self.link.receive(self, Frame([delta]))

    def embed(self, id: str, prompt: bytes) -> None:
        delta = Delta(id, embedding=[float(len(prompt)), float(prompt[-1])], finish_reason=FinishReason.LENGTH)
        if prompt == b"fail":
            delta = Delta(id, finish_reason=FinishReason.ERROR, error="it broke")
        if prompt != b"stall":
            self.link.receive(self, Frame([delta]))


class GatewayHarness:
    """A world with a gateway, and a client in the same event loop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.records = world.services.records
        self.engine = ScriptedEngine(SharedState(1))
        services = world.services
        router = ModelRouter(services.base, services.registry, services.experiments)
        stand_in: Any = StandInPrompts()
        tokenization = Tokenization(services.base, self.engine.link, stand_in, router)
        self.gateway = GenerationService(
            base=services.base,
            engine=self.engine.link,
            prompts=stand_in,
            router=router,
            experiments=services.experiments,
            ids=self.records.ids,
            policies=self.records.policies,
            accounting=Accounting(services.base.id, services.metrics, services.traffic, self.records.log),
            metrics=services.metrics,
            limiter=services.limiter,
            artifacts=services.artifact_cache,
        )
        self.embeddings = EmbeddingService(
            engine=self.engine.link,
            tokenization=tokenization,
            router=router,
            metrics=services.metrics,
            traffic=services.traffic,
            limiter=services.limiter,
            artifacts=services.artifact_cache,
        )
        routes = APIRouter(route_class=DocumentedRoute)
        generation.add(routes, services.authenticator, self.gateway, self.embeddings, tokenization, services.records)
        add_routes(world.app, routes)
        transport = httpx.ASGITransport(world.app, client=("127.0.0.1", 50000))
        self.http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")

    async def ask(self, path: str = CHAT, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
        return await self.http.post(path, json={**ASK, **changes}, headers=headers)

    def logged(self, **which: Any) -> list[Interaction]:
        assert self.records.log.flush()
        return list(self.records.interactions.find(InteractionFilter(**which), limit=100))


@asynccontextmanager
async def connected_harness(
    folder: Path, *, versions: Sequence[int] = (1,), max_length: int = 64
) -> AsyncIterator[GatewayHarness]:
    """A harness whose engine is connected, whose log is written, and that has these versions of ``intents``.

    Args:
        folder: Of its home.
        versions: Seeds of the adapters.
        max_length: Of the context, in tokens.
    """
    harness = GatewayHarness(make_world(folder))
    harness.engine.connect(max_length)
    for seed in versions:
        await harness.http.post("/v1/adapters/intents/versions", files=form(adapter_files(seed)))
    harness.records.log.start()
    yield harness
    harness.records.log.stop()
    await harness.http.aclose()
    harness.gateway._grammars.close()
