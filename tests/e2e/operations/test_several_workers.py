"""Two engine workers on one host: adapters on both, and one of them killed under load."""

from __future__ import annotations

import re
from pathlib import Path

import openai
import psutil
import pytest

from tests.e2e.conftest import MakeServer
from tests.e2e.peft_folders import NAMES
from tests.e2e.requests import OpenStream, ask, ask_together
from tests.e2e.server_process import BASE, Server, eventually

pytestmark = pytest.mark.slow

MODELS = (BASE, *NAMES)


def workers(server: Server) -> set[int]:
    """The pids of those engine workers that live."""
    pids = map(int, re.findall(r"engine worker (\d+) is ready", server.log))
    return {pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE}


@pytest.fixture(scope="module")
def server(new_server: MakeServer, folders: dict[str, Path]) -> Server:
    server = new_server("--dtype", "float32", "--quantize", "none", "--workers", "2", "--max-batch", "4")
    server.start_and_wait()
    eventually(lambda: len(workers(server)) == 2, 180, "both workers are ready")
    with server.client() as client:
        for name in NAMES:
            client.adapters.push(name, folders[f"{name}@1"])
    return server


def test_both_answer_as_one_does(server: Server, exact_server: Server) -> None:
    with exact_server.openai() as client:
        alone = {model: ask(client, model, max_tokens=8) for model in MODELS}
    with server.openai() as client:
        for answer in ask_together(client, MODELS, max_tokens=8):
            answer.check_same(alone[answer.model], tolerance=1e-3)
    loads = [server.metric("engine_adapter_loads_total", engine=engine) for engine in ("0", "1")]
    assert min(loads) >= 1
    assert sum(loads) == server.metric("adapter_loads_total") >= len(NAMES)
    assert server.metric("engine_ready") == 2


def test_one_is_killed_under_load(server: Server) -> None:
    """Streams of the other go on, its own end at once, what had not begun is taken over, and it comes back."""
    with server.openai() as client:
        before = {model: ask(client, model, max_tokens=6) for model in MODELS}
        # All of one model: several would share the places, and nobody would wait for long.
        streams = [OpenStream(client, BASE, max_tokens=150).wait_until_begun() for _ in range(8)]
        waiting = [OpenStream(client, BASE, max_tokens=6) for _ in MODELS]
        eventually(lambda: server.metric("queue_depth") >= len(waiting) - 1, 30, "they wait")
        held = {engine: server.metric("engine_running", engine=engine) for engine in ("0", "1")}
        assert min(held.values()) >= 1
        pids = workers(server)
        killed = psutil.Process(min(pids))
        killed.kill()
        ended = [stream.wait_until_ended() for stream in streams]
        lost = [stream for stream in ended if stream.error is not None]
        assert 0 < len(lost) < len(streams)
        for stream in ended:
            if stream not in lost:
                assert (stream.finish_reason, stream.num_chunks >= 150) == ("length", True)
            else:
                assert isinstance(stream.error, openai.APIError)
                assert stream.finish_reason is None
        for stream in waiting:
            stream.wait_until_ended()
            assert (stream.error, stream.finish_reason) == (None, "length")
        assert server.status() == 200
        assert re.search(r"engine \d takes over from \d", server.log)
        eventually(lambda: len(workers(server)) == 2, 180, "the killed worker is back")
        assert server.metric("worker_restarts_total") == 1
        for model in MODELS:
            ask(client, model, max_tokens=6).check_same(before[model], tolerance=1e-3)
    assert server.stop() == 0
