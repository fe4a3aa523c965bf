"""The benchmark of serving while training, with a fake server and job."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks.harness.errors import BenchmarkError
from benchmarks.learning import own_server, serving_while_training
from benchmarks.learning.serving_while_training import ServingWhileTraining, TrainerOptions, to_markdown
from benchmarks.load.generator import Load
from graftwork.clients.types.learning.jobs import Job, JobDetails
from tests.benchmarks import fake_peer
from tests.benchmarks.fakes import fake_server, gone, quiet

LOAD = Load(clients=2, adapters=("a0", "a1"), requests=6, prompt_words=3, max_tokens=2, warm_up=True)


@dataclass
class Trainer:
    """A client of whose server only the jobs are here: each look finds 100 tokens more read, until it ends."""

    url: str
    ends_after: int = 1000
    looks: int = 0
    cancelled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.files = SimpleNamespace(upload=lambda path: SimpleNamespace(id="file-1"))
        self.jobs = SimpleNamespace(create=lambda **asked: self.job(), get=lambda id: self.job(), cancel=self.cancel)

    def models(self) -> Any:
        return SimpleNamespace(data=[SimpleNamespace(id="base")])

    def cancel(self, id: str) -> None:
        self.cancelled.append(id)

    def job(self) -> Job:
        self.looks += 1
        progress = {"phase": "train", "step": self.looks, "num_tokens": 100 * self.looks}
        return Job(
            id="ftjob-1",
            created_at=datetime.now(UTC),
            status="running" if self.looks < self.ends_after else "failed",
            model="base",
            training_file="file-1",
            graftwork=JobDetails(adapter="beside", method="sft", progress=progress),
            seed=0,
        )


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_while_training, "ALONE_SECONDS", 0.01)
    monkeypatch.setattr(serving_while_training, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(serving_while_training, "ROWS", 5)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with fake_server(tmp_path, uuid.uuid4().hex).running() as running:
        yield running.endpoint.url  # type: ignore[attr-defined]


def test_the_same_load_alone_and_beside_a_job(url: str, tmp_path: Path) -> None:
    trainer: Any = Trainer(url)
    found = ServingWhileTraining(trainer, quiet(), tmp_path).measure(LOAD, 50)
    assert (found["errors"], found["idle"]["errors"]) == (0, 0)
    assert found["out_tok_s"] > 0
    assert found["kept"] == f"{found['out_tok_s'] / found['idle_tok_s']:.0%}"
    assert found["job_tok_s"] > 0
    assert found["job_alone_tok_s"] > 0
    assert trainer.cancelled == ["ftjob-1"]
    asked = httpx.get(f"{url}/asked", trust_env=False).json()
    prompts = [body["messages"][0]["content"] for body in asked if body["max_tokens"] == 2]
    assert len(prompts) == len(set(prompts)) == 12
    assert {body["model"] for body in asked} == {"a0", "a1"}
    table = to_markdown([{"share": 0.5, **found}]).splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert table[2].startswith("| 0.5 | ")


@pytest.mark.parametrize("ends_after", [1, 4, 6])
def test_a_job_that_does_not_run_is_no_measurement(url: str, tmp_path: Path, ends_after: int) -> None:
    trainer: Any = Trainer(url, ends_after=ends_after)
    with pytest.raises(BenchmarkError, match=r"The job (is failed|does not train)"):
        ServingWhileTraining(trainer, quiet(), tmp_path).measure(LOAD, 0)


def test_knobs_are_flags_of_serve() -> None:
    assert TrainerOptions(share=0.0).flags == ["--trainer-share", "0"]
    flags = ["--trainer-share", "0.5", "--trainer-nice", "5", "--trainer-threads", "1"]
    assert TrainerOptions(share=0.5, nice=5, threads=1).flags == flags
    from graftwork.server.config import ServerConfig

    assert all(flag[2:].replace("-", "_") in ServerConfig.__dataclass_fields__ for flag in flags[::2])


def test_a_server_of_its_own_has_the_usual_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = uuid.uuid4().hex
    given: list[Any] = []

    def command(home: Path, port: int, flags: Any) -> list[str | Path]:
        given.extend([home, *flags])
        return [sys.executable, fake_peer.__file__, str(port), token]

    monkeypatch.setattr(own_server, "serve_command", command)
    usual = tmp_path / "usual"
    (usual / "base" / "small").mkdir(parents=True)
    with own_server.serving(tmp_path / "home", usual, "--slots", "4", log=tmp_path / "log") as url:
        assert httpx.get(url, trust_env=False).status_code == 200
        assert given == [tmp_path / "home", "--slots", "4"]
        assert (tmp_path / "home" / "base" / "small").is_dir()
        assert (tmp_path / "home" / "kernels").is_dir()
    assert gone(token)


def test_runs_and_the_rest_are_told_apart() -> None:
    sleep = [sys.executable, "-c", "import sys; x = bytearray(30_000_000); sys.stdin.read()"]
    with (
        own_server.MemoryMonitor() as memory,
        subprocess.Popen(sleep, stdin=subprocess.PIPE) as other,
        subprocess.Popen([*sleep, own_server.RUN], stdin=subprocess.PIPE) as run,
    ):
        deadline = time.monotonic() + 60
        while min(memory.run_bytes, memory.other_bytes) < 30_000_000 and time.monotonic() < deadline:
            time.sleep(0.05)
        for child in (run, other):
            child.communicate()
    assert min(memory.run_bytes, memory.other_bytes) >= 30_000_000
    memory.reset()
    assert memory.run_bytes == memory.other_bytes == 0
