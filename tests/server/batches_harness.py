"""Batches behind the real store, files and generation service, over a scripted engine that can hold its answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import text

from graftwork.adapters.access.principal import LOCAL_PRINCIPAL, Principal
from graftwork.adapters.batches.batch import Batch, NewBatch
from graftwork.adapters.batches.batches import Batches
from graftwork.adapters.learning.files import Files
from graftwork.adapters.storage.database import Database
from graftwork.adapters.storage.leases import Leases
from graftwork.server.engine.request import Request
from graftwork.server.generation.batches.capacity import BatchCapacity
from graftwork.server.generation.batches.endpoints import AnsweringServices
from graftwork.server.generation.batches.run import BatchServices
from graftwork.server.generation.batches.runner import BatchRunner
from graftwork.server.transport.messages import EngineMessage, Generate
from tests.server.fakes import make_world
from tests.server.scripted_engine import CHAT, GatewayHarness

NUM_SEATS = 4

#: What the scripted engine takes of users at once.
NUM_OPEN = 8


def line(custom_id: str, say: str = "hi", **body: Any) -> dict[str, Any]:
    """A line of an input file. The scripted engine repeats ``say``."""
    messages = [{"role": "user", "content": say}]
    asked = {"model": "tiny-base", "messages": messages, "max_tokens": 8, **body}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": asked}


class BatchesHarness:
    """A server with batches, in the test's event loop."""

    def __init__(self, folder: Path, *, admin_key: str | None = None) -> None:
        self.gateway = GatewayHarness(make_world(folder, admin_key=admin_key))
        self.services = self.gateway.world.services
        self.database = Database(self.gateway.world.home / "graftwork.db")
        self.asked: list[str] = []
        self.hold = False
        self._held: list[Request] = []
        self._send = self.gateway.engine.send
        self.gateway.engine.send = self._look  # type: ignore[method-assign]
        self.gateway.engine.connect()
        self.gateway.records.log.start()
        self.runner = self.make_runner()

    def make_runner(self, batches: Batches | None = None, files: Files | None = None) -> BatchRunner:
        services = self.services
        engine = self.gateway.engine.link
        self.capacity = BatchCapacity(engine, num_seats=NUM_SEATS, share=0.5)
        needed = BatchServices(
            batches=batches or services.batches,
            files=files or services.files,
            answering=AnsweringServices(self.gateway.gateway, self.gateway.embeddings),
            capacity=self.capacity,
            metrics=services.metrics,
            find_principal=services.authenticator.find,
        )
        return BatchRunner(needed, Leases(self.database))

    def _look(self, message: EngineMessage) -> None:
        if isinstance(message, Generate):
            self.asked += [bytes(request.prompt).decode() for request in message.requests]
            if self.hold:
                self._held += message.requests
                return
        self._send(message)

    def release(self) -> None:
        """Answer what is held, and hold nothing any more."""
        self.hold = False
        held, self._held = self._held, []
        self._send(Generate(held))

    def upload(self, lines: Iterable[Any], who: Principal = LOCAL_PRINCIPAL) -> str:
        """The id of a file of these lines: bytes as they are, all else as JSON."""
        content = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in lines)
        with self.services.files.upload() as upload:
            upload.write(content)
            return self.services.files.keep(upload, filename="requests.txt", purpose="batch", key_id=who.key_id).id

    def create(self, lines: Iterable[Any], who: Principal = LOCAL_PRINCIPAL, endpoint: str = CHAT) -> Batch:
        new = NewBatch(endpoint=endpoint, input_file=self.upload(lines, who))
        return self.services.batches.create(new, who)[0]

    def now(self, batch: Batch) -> Batch:
        return self.services.batches.get(batch.id)

    async def until(self, check: Callable[[], Any], seconds: float = 60) -> Any:
        async with asyncio.timeout(seconds):
            while not (said := check()):
                await asyncio.sleep(0.01)
            return said

    async def ended(self, batch: Batch) -> Batch:
        await self.until(lambda: self.now(batch).ended)
        return self.now(batch)

    async def run(self, lines: Iterable[Any], **options: Any) -> tuple[Batch, dict[str, Any]]:
        """A batch of these lines, carried on to its end, and its results."""
        batch = self.create(lines, **options)
        self.runner.start()
        batch = await self.ended(batch)
        return batch, self.results(batch)

    def results(self, batch: Batch) -> dict[str, Any]:
        """The lines of both files by their custom ids; each of them stands there once."""
        found: list[dict[str, Any]] = []
        for id in (batch.output_file, batch.error_file):
            if id is not None:
                file = self.services.files.get(id)
                assert (file.key_id, file.purpose) == (batch.key_id, "batch_output")
                content = self.services.files.path(file).read_bytes()
                assert content.endswith(b"\n")
                found += map(json.loads, content.splitlines())
        assert set(Counter(row["custom_id"] for row in found).values()) <= {1}
        assert len({row["id"] for row in found}) == len(found)
        return {row["custom_id"]: row for row in found}

    async def kill(self) -> None:
        """End the runner as a killed process would: whatever it does is undone or done, and the lease is not released,
        but has expired.
        """
        self.runner._lease = None
        await self.runner.stop()
        with self.database.write() as connection:
            connection.execute(text("UPDATE leases SET expires_at = '2000-01-01T00:00:00.000000Z'"))

    async def close(self) -> None:
        await self.runner.stop()
        self.gateway.records.log.stop()
        await self.gateway.http.aclose()
        self.database.close()


def said(row: dict[str, Any]) -> str:
    """What a line of an output file answers."""
    assert row["error"] is None
    assert row["response"]["status_code"] == 200
    text: str = row["response"]["body"]["choices"][0]["message"]["content"]
    return text
