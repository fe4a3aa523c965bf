"""A server on a real port with something of everything on it, for the page: no engine but a script, no model."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from graftwork.adapters.experiments.readings import (
    ArmReading,
    Comparison,
    GuardrailReading,
    Reading,
    SampleRatioReading,
)
from graftwork.adapters.feedback.feedback import SubmittedFeedback
from graftwork.adapters.learning.job import NewJobEvent
from tests.adapters.records import Records
from tests.server.fakes import World, adapter_files, form, make_world
from tests.server.scripted_engine import GatewayHarness

HOSTILE = "<img src=x onerror=\"document.body.innerHTML='pwned'\"><script>alert(1)</script>"
MANY = 2000
NOW = "2026-11-22T17:14:57.123456Z"


@dataclass
class PageServer:
    """The server, and how it is stopped."""

    world: World
    url: str
    _server: uvicorn.Server
    _thread: threading.Thread

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)


@contextmanager
def serving(home: Path, *, admin_key: str | None = None, many: bool = False) -> Iterator[PageServer]:
    """Serve a world, perhaps with many adapters, on a free port until the end, or until it is stopped."""
    world = make_world(home, admin_key=admin_key)
    if many:
        _add_many(world)
    ready = threading.Event()
    server = uvicorn.Server(uvicorn.Config(world.app, port=0, log_level="warning", timeout_graceful_shutdown=1))

    async def run() -> None:
        harness = GatewayHarness(world)
        harness.engine.connect(4096)
        world.services.records.log.start()
        serve = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        ready.set()
        await serve
        world.services.records.log.stop()
        await harness.http.aclose()
        harness.gateway._grammars.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    assert ready.wait(30)
    port = server.servers[0].sockets[0].getsockname()[1]
    running = PageServer(world, f"http://127.0.0.1:{port}", server, thread)
    try:
        yield running
    finally:
        running.stop()


def fill(server: PageServer) -> None:
    """Two adapters with versions, an experiment with readings, a job with curves, a round, answers and feedback."""
    with httpx.Client(base_url=server.url) as client:
        for seed in range(3):
            facts = {"parent": str(seed)} if seed else {}
            pushed = client.post("/v1/adapters/intents/versions", files=form(adapter_files(seed)), data=facts)
            assert pushed.status_code == 201, pushed.text
        for seed in range(2):
            client.post("/v1/adapters/support/versions", files=form(adapter_files(seed + 10)))
        promoted = client.put("/v1/adapters/intents/aliases/candidate", json={"version": 2, "reason": "to be compared"})
        assert promoted.status_code == 200, promoted.text
        started = client.post(
            "/v1/experiments",
            json={
                "name": "shorter-answers",
                "adapter": "support",
                "arms": [{"version": 1, "weight": 0.5}, {"version": 2, "weight": 0.5}],
                "metric": "thumb",
            },
        )
        assert started.status_code == 201, started.text
        _write_answers(Records.at(server.world.home / "graftwork.db"))
        client.put("/v1/adapters/intents/learning_policy", json={"after": 20, "every_days": 7}).raise_for_status()
        begun = client.post("/v1/rounds", json={"adapter": "intents"})
        assert begun.status_code == 201, begun.text
        job = client.post(
            "/v1/fine_tuning/jobs", json={"model": "tiny-base", "suffix": "support", "training_file": "feedback"}
        )
        assert job.status_code == 200, job.text
    _write_readings(server.world)
    _report(server.world)


def _add_many(world: World) -> None:
    """Write thousands of adapters of one version."""
    names = [f"tenant-{number:04}" for number in range(MANY)]
    with closing(sqlite3.connect(world.home / "graftwork.db")) as connection, connection:
        connection.executemany("INSERT INTO adapters (name, created_at) VALUES (?, ?)", [(name, NOW) for name in names])
        connection.executemany(
            "INSERT INTO versions (name, number, digest, base_digest, verified, rank, num_parameters, num_bytes, "
            "config, metadata, created_at) VALUES (?, 1, ?, ?, 1, 8, 4096, 16384, '{}', '{}', ?)",
            [(name, f"sha256:{place:064x}", world.services.base.digest, NOW) for place, name in enumerate(names)],
        )
        connection.executemany("INSERT INTO aliases (name, alias, number) VALUES (?, 'live', 1)", [(n,) for n in names])
        connection.executemany(
            "INSERT INTO alias_events (at, action, name, alias, to_version, actor) "
            "VALUES (?, 'promote', ?, 'live', 1, 'x')",
            [(NOW, name) for name in names],
        )


def _write_answers(records: Records) -> None:
    for number in range(80):
        version, arm = 1 + number % 2, ("control", "treatment")[number % 2]
        id = records.mint(
            f"support@{version}",
            days_ago=number / 12,
            user=f"user-{number % 9}",
            experiment="shorter-answers",
            arm=arm,
            probability=0.5,
        )
        text = f"Where is my card, ordered {number} days ago?"
        records.log(id, prompt={"messages": [{"role": "user", "content": text}]}, first_token_ms=20.0 + number % 17)
        if number % 3 == 0:
            _judge(records, id, thumb="up" if number % 2 or number % 5 == 0 else "down")
    hostile = records.log(
        records.mint("intents@1"),
        prompt={"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": HOSTILE}]},
    )
    _judge(records, hostile, correction=HOSTILE, comment=HOSTILE)
    records.database.close()


def _judge(records: Records, id: str, **said: Any) -> None:
    records.feedback.add(SubmittedFeedback(interaction_id=id, **said), key_id="local", idempotency_key=None)


def _write_readings(world: World) -> None:
    for step in range(1, 25):
        width = 0.6 / math.sqrt(step)
        control, treatment = 0.6 + 0.05 * math.sin(step), 0.7 + 0.05 * math.cos(step)
        difference = treatment - control
        arms = tuple(
            ArmReading(
                arm=name,
                weight=0.5,
                requests=20 * step,
                units=10 * step,
                judged=6 * step,
                mean=mean,
                lower=mean - width,
                upper=mean + width,
                means={"thumb": mean},
            )
            for name, mean in (("support@1", control), ("support@2", treatment))
        )
        reading = Reading(
            units=20 * step,
            waiting=3,
            next_at=None,
            learned=0,
            arms=arms,
            comparisons=(
                Comparison(
                    arm="support@2",
                    units=20 * step,
                    difference=difference,
                    lower=difference - width,
                    upper=difference + width,
                    improvement_lower=difference - width,
                    improvement_upper=difference + width,
                ),
            ),
            guardrails=(
                GuardrailReading(
                    arm="support@2",
                    metric="error_rate",
                    limit=None,
                    margin=0.02,
                    observations=20 * step,
                    evidence=1.5,
                    threshold=100.0,
                    breached=False,
                ),
            ),
            sample_ratio=SampleRatioReading(evidence=1.0, evidence_rated=None, threshold=1000.0, mismatch=False),
            shadows=(),
        )
        world.services.exposures.save_reading("shorter-answers", 20 * step, reading.to_json(), new=True)


def _report(world: World) -> None:
    """Steps of the job that waits longest, as its worker would report them."""
    jobs = world.services.jobs
    claim = jobs.claim("worker", "validating_files", seconds=3600)
    assert claim is not None
    jobs.mark_validated(claim)
    claim = jobs.claim("worker", "queued", seconds=3600)
    assert claim is not None
    events = [
        NewJobEvent(
            message=f"Step {step}/40: training loss={2 / step:.3f}",
            data={
                "step": step,
                "train_loss": 0.4 + 2 / step,
                **({"valid_loss": 0.6 + 2 / step} if step % 4 == 0 else {}),
            },
        )
        for step in range(1, 31)
    ]
    jobs.report(claim, events, progress={"step": 30, "total": 40, "loss": 0.47, "eta_seconds": 300, "at": 0})
