"""Everything at once for a long time: what leaks, drifts or breaks once in a thousand times shows here.

Impatient clients, bad requests, pushes, promotions, rollbacks, retirements, and an engine worker that is killed every
few minutes. ``GRAFTWORK_SOAK_MINUTES`` says how long (20).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.e2e.conftest import MakeServer
from tests.e2e.peft_folders import NAMES, SmallAdapters
from tests.e2e.requests import ask
from tests.e2e.server_process import BASE, Server, eventually

MINUTES = float(os.environ.get("GRAFTWORK_SOAK_MINUTES", "20"))
KILL_EVERY_SECONDS = 180.0
KEPT_VERSIONS = 5

pytestmark = pytest.mark.soak


class Client(threading.Thread):
    """Asks in every way there is, leaves in the middle, sends nonsense, and counts how it went."""

    def __init__(self, server: Server, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.went: Counter[str] = Counter()
        self.surprises: list[Exception] = []
        self._server = server
        self._random = random.Random(seed)
        self._over = stop

    def run(self) -> None:
        with self._server.openai() as client:
            while not self._over.is_set():
                kind = self._random.choice((self._whole, self._stream, self._stream, self._leave, self._nonsense))
                try:
                    kind(client)
                    self.went[kind.__name__] += 1
                except (openai.InternalServerError, openai.RateLimitError) as error:
                    self.went[f"status {error.status_code}"] += 1
                    time.sleep(0.2)
                except openai.APIError as error:
                    if error.code != "engine_lost":
                        self.surprises.append(error)
                    self.went["interrupted"] += 1
                except Exception as error:
                    self.surprises.append(error)

    def _body(self) -> dict[str, object]:
        pick = self._random
        return {
            "model": pick.choice((BASE, "changing", "changing", *NAMES)),
            "messages": [{"role": "user", "content": "word " * pick.choice((1, 5, 40, 400))}],
            "max_tokens": pick.randint(1, 40),
            "temperature": pick.choice((0, 0.7, 1.5)),
            "n": pick.choice((1, 1, 1, 2)),
            "stop": pick.choice((None, ["e"], ["\n\n", "the"])),
            "seed": pick.choice((None, 7)),
            "logprobs": pick.choice((None, True)),
            "frequency_penalty": pick.choice((None, 0.5)),
        }

    def _whole(self, client: openai.OpenAI) -> None:
        client.chat.completions.create(**self._body())  # type: ignore[call-overload]

    def _stream(self, client: openai.OpenAI) -> None:
        for chunk in client.chat.completions.create(**self._body(), stream=True):  # type: ignore[call-overload]
            assert chunk.choices

    def _leave(self, client: openai.OpenAI) -> None:
        with client.chat.completions.create(**self._body(), stream=True) as stream:  # type: ignore[call-overload]
            for _, _ in zip(range(self._random.randint(0, 5)), stream, strict=False):
                pass

    def _nonsense(self, client: openai.OpenAI) -> None:
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)):
            client.chat.completions.create(**{**self._body(), **self._random.choice(NONSENSE)})  # type: ignore[call-overload]


NONSENSE: tuple[dict[str, object], ...] = ({"model": "nobody"}, {"temperature": 9}, {"messages": []}, {"n": 99})


def operate(server: Server, small: SmallAdapters, folder: Path, stop: threading.Event, done: Counter[str]) -> None:
    """Push, promote, roll back, retire, again and again. Only a worker that is away is an excuse."""
    from graftwork.clients.errors import UnavailableError

    number = 0
    with server.client(max_retries=0) as client:
        while not stop.is_set():
            try:
                number += 1
                pushed = client.adapters.push("changing", small.write(folder / str(number), seed=number))
                client.adapters.promote("changing", pushed.version)
                if number % 5 == 0:
                    client.adapters.rollback("changing")
                for version in client.adapters.get("changing").versions[: -KEPT_VERSIONS - 3]:
                    if (
                        version.retired_at is None
                        and client.adapters.get("changing").aliases["live"] != version.version
                    ):
                        client.adapters.retire("changing", version.version)
                done["pushes"] += 1
            except UnavailableError:
                done["unavailable"] += 1
            time.sleep(1)


@contextmanager
def clients(server: Server, count: int) -> Iterator[list[Client]]:
    stop = threading.Event()
    made = [Client(server, seed, stop) for seed in range(count)]
    for client in made:
        client.start()
    try:
        yield made
    finally:
        stop.set()
        for client in made:
            client.join(180)
        assert not any(client.is_alive() for client in made), "a client hangs"


def weight(process: psutil.Process) -> tuple[float, int, int]:
    """Megabytes, descriptors, threads."""
    return process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()


def test_a_long_day(new_server: MakeServer, folders: dict[str, Path], small: SmallAdapters, tmp_path: Path) -> None:
    flags = ("--dtype", "float32", "--quantize", "none", "--slots", "6", "--host-memory-gb", "0.2", "--max-queue", "24")
    server = new_server(*flags).start_and_wait()
    with server.client() as operator, server.openai() as asker:
        operator.adapters.push("changing", small.write(tmp_path / "0", seed=0))
        for name in NAMES:
            operator.adapters.push(name, folders[f"{name}@1"])
        before = {model: ask(asker, model, max_tokens=8) for model in (BASE, *NAMES)}
        done: Counter[str] = Counter()
        stop = threading.Event()
        busy = threading.Thread(target=operate, args=(server, small, tmp_path, stop, done), daemon=True)
        ends = time.monotonic() + MINUTES * 60
        settled: tuple[float, int, int] | None = None
        with clients(server, 8) as made:
            busy.start()
            while time.monotonic() < ends:
                time.sleep(min(KILL_EVERY_SECONDS, max(0.0, ends - time.monotonic())))
                settled = settled or weight(server.api)
                if time.monotonic() < ends:
                    server.worker.kill()
                    done["kills"] += 1
                    eventually(lambda: server.status() == 503, 5, "/ready says so")
                    server.wait_until_ready()
        stop.set()
        busy.join(60)
        assert not busy.is_alive()

        eventually(lambda: server.metric("running") == server.metric("queue_depth") == 0, 10, "all is quiet")
        went = sum((client.went for client in made), Counter[str]())
        print(f"clients: {dict(went)}; operator: {dict(done)}; API process: {settled} -> {weight(server.api)}")
        assert [surprise for client in made for surprise in client.surprises] == []
        assert server.metric("worker_restarts_total") == done["kills"]
        assert done["pushes"] > MINUTES

        # No memory, descriptor or thread is kept for requests that are over.
        assert settled is not None
        for now, then, slack in zip(weight(server.api), settled, (40, 12, 12), strict=True):
            assert now <= then + slack
        # What the registry knows is what the store holds, and nobody's answer has drifted.
        digests = {version.digest for adapter in operator.adapters.list(limit=100) for version in adapter.versions}
        stored = {f"sha256:{path.name}" for path in (server.home / "artifacts").iterdir() if path.name != "staging"}
        assert stored == digests
        assert list((server.home / "artifacts" / "staging").iterdir()) == []
        for model, answer in before.items():
            ask(asker, model, max_tokens=8).check_same(answer, tolerance=0)
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.stop() == 0
    assert "Traceback" not in server.log
