"""A scripted engine behind the real generation routes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import httpx
from fastapi import APIRouter

from graftwork.adapters.experiments.routing import ModelRouter
from graftwork.adapters.feedback.interactions import Interaction, InteractionFilter
from graftwork.adapters.prompts.tool_calls import HERMES
from graftwork.server.engine.request import Delta, FinishReason
from graftwork.server.generation.accounting import Accounting
from graftwork.server.generation.service import GenerationService
from graftwork.server.http.routes import generation
from graftwork.server.processes import SharedState
from graftwork.server.transport.client import EngineClient
from graftwork.server.transport.messages import EngineMessage, Frame, Generate, Hello
from tests.server.byte_tokens import EOS, ByteTokens
from tests.server.fakes import World

CHAT = "/v1/chat/completions"


ASK = {"model": "intents", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}


class StandInPrompts(ByteTokens):
    """A byte is a token; a conversation is what was said last."""

    eos_token_ids = (EOS,)

    def encode(self, text: str, *, max_length: int | None = None) -> list[int]:
        return list(text.encode())

    tool_call_format = HERMES

    def chat(
        self, messages: Sequence[dict[str, Any]], *, tools: Sequence[Any] = (), max_length: int | None = None
    ) -> list[int]:
        return self.encode(messages[-1]["content"])


class ScriptedEngine:
    """Repeats the prompt, a byte a frame, and ends; ``fail`` fails after a byte, ``stall`` says no more after one."""

    def __init__(self, board: SharedState) -> None:
        self.link = EngineClient(board, max_open=8, canary_prompt=[1])
        self.queued = 0.0  # seconds

    def connect(self, max_length: int = 64) -> None:
        self.link.receive(self, Frame(hello=Hello(os.getpid(), {"quantize": "int8", "max_length": max_length})))

    def send(self, message: EngineMessage) -> None:
        if isinstance(message, Generate):
            for request in message.requests:
                asyncio.get_running_loop().call_soon(self.answer, request.id, bytes(request.prompt))

    def close(self) -> None: ...

    def answer(self, id: str, prompt: bytes) -> None:
        last = None if prompt == b"stall" else FinishReason.ERROR if prompt == b"fail" else FinishReason.STOP
        said = prompt[:1] if prompt in (b"stall", b"fail") else prompt
        deltas = [Delta(id, [byte], queued_seconds=None if place else self.queued) for place, byte in enumerate(said)]
        if last is not None:
            deltas.append(Delta(id, finish_reason=last, error="it broke" if last is FinishReason.ERROR else None))
        for delta in deltas:
            self.link.receive(self, Frame([delta]))


class GatewayHarness:
    """A world with a gateway, and a client in the same event loop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.records = world.services.records
        self.engine = ScriptedEngine(SharedState(1))
        services = world.services
        self.gateway = GenerationService(
            base=services.base,
            engine=self.engine.link,
            prompts=StandInPrompts(),  # type: ignore[arg-type]
            router=ModelRouter(services.base, services.registry, services.experiments),
            experiments=services.experiments,
            ids=self.records.ids,
            accounting=Accounting(services.base.id, services.metrics, services.traffic, self.records.log),
            metrics=services.metrics,
        )
        routes = APIRouter()
        generation.add(routes, services.authenticator, self.gateway, services.records)
        world.app.include_router(routes)
        transport = httpx.ASGITransport(world.app, client=("127.0.0.1", 50000))
        self.http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")

    async def ask(self, path: str = CHAT, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
        return await self.http.post(path, json={**ASK, **changes}, headers=headers)

    def logged(self, **which: Any) -> list[Interaction]:
        assert self.records.log.flush()
        return list(self.records.interactions.find(InteractionFilter(**which), limit=100))
