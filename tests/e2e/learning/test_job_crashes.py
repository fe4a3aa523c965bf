"""Jobs of a real server that is killed at random: they succeed or fail with a reason, and no feedback is lost."""

from __future__ import annotations

import random
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from graftwork.clients.types.learning.jobs import Job
from tests.e2e.conftest import MakeServer
from tests.e2e.learning.test_fine_tuning import rows
from tests.e2e.server_process import Server, eventually

NUM_KILLS = 20
KILLS_A_JOB = 2
"""One more could end it: three attempts without a new checkpoint are what a job gets."""

SECONDS = 300.0
WORKER, RUN, SERVER = "graftwork.training.worker", "graftwork.training.worker.job", "all of the server"


@pytest.mark.slow
def test_killed_at_twenty_random_moments(new_server: MakeServer, tiny_folder: Path, tmp_path: Path) -> None:
    """With the real worker and real runs, on a base that trains in seconds."""
    chance = random.Random(7)
    server = new_server("--dtype", "float32", "--quantize", "none", base=str(tiny_folder)).start_and_wait()
    data = tmp_path / "rows.jsonl"
    data.write_bytes(rows(40))
    with server.client() as client:
        file = client.files.upload(data).id
    began = time.monotonic()
    calm = ended(server, submit(server, file, "calm"))
    lasted = time.monotonic() - began
    assert calm.status == "succeeded", calm.error

    said: list[int] = []
    jobs: list[Job] = []
    killed: list[str] = []
    while len(killed) < NUM_KILLS:
        id = submit(server, file, f"killed-{len(jobs)}")
        for _ in range(KILLS_A_JOB):
            said.append(say(server))
            time.sleep(chance.uniform(0, lasted))
            killed += kill(server, chance.choice((WORKER, RUN, RUN, SERVER)))
        jobs.append(ended(server, id))
        print(f"{len(killed)} kills, {killed[-2:]}: {jobs[-1].status}")

    with server.client() as client:
        assert {row.id for row in client.feedback.export()} == set(said)
        expected = client.adapters.get("calm").versions[0].digest
        names = {adapter.name for adapter in client.adapters.list()}
        for job in jobs:
            if job.status == "succeeded":
                (version,) = client.adapters.get(job.graftwork.adapter).versions
                assert (version.id, version.digest) == (job.fine_tuned_model, expected)
                assert job.trained_tokens == calm.trained_tokens
                assert measured(job) == measured(calm)
            else:
                assert job.error is not None
                assert (job.status, job.error.code) == ("failed", "too_many_attempts")
                assert job.graftwork.adapter not in names
    assert set(killed) == {WORKER, RUN, SERVER}
    assert any(job.status == "succeeded" for job in jobs)
    assert server.stop() == 0


def submit(server: Server, file: str, name: str) -> str:
    with server.client() as client:
        base = client.models().data[0].id
        hyperparameters = {"n_epochs": 12, "batch_size": 4, "checkpoint_steps": 4, "learning_rate": 1e-3}
        job = client.jobs.create(
            model=base, training_file=file, name=name, method="supervised", hyperparameters=hyperparameters, seed=3
        )
    return job.id


def ended(server: Server, id: str) -> Job:
    def look() -> Job | None:
        with server.client() as client:
            job = client.jobs.get(id)
        return job if job.ended else None

    job = eventually(look, SECONDS, "the job has ended", every=0.5)
    assert job is not None
    return job


def measured(job: Job) -> dict[str, Any]:
    """All but how long it took."""
    return {**job.graftwork.metrics, "seconds": None}


def say(server: Server) -> int:
    """A thumb for an answer, acknowledged."""
    with server.client() as client:
        answer = client.chat(client.models().data[0].id, "Where is my parcel?", max_tokens=4)
        return client.feedback.send(answer.id, thumb="up").id


def kill(server: Server, victim: str) -> list[str]:
    """Who was killed; nobody where no such process lives just now. A killed server is started again."""
    if victim == SERVER:
        server.send_to_all(signal.SIGKILL)
        server.wait()
        server.start_and_wait()
        return [victim]
    for process in server.processes_of(victim):
        with suppress(psutil.NoSuchProcess):
            process.kill()
            return [victim]
    return []
