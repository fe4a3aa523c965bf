"""Servers whose adapters and files are in a bucket, on a server of S3's kind."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest

from graftwork.adapters.storage.objects import ObjectStore
from graftwork.clients.errors import GraftworkAPIError
from graftwork.server.processes import die_with_parent
from tests.conformance.environments import Environment
from tests.e2e.conftest import MakeServer
from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.requests import INT8_TOLERANCE, StreamedAnswer, ask
from tests.e2e.server_process import BASE, Server, eventually, free_port

pytestmark = pytest.mark.slow

NAMES = ("one", "two", "three", "four", "five", "six")
BUCKET = "s3://adapters/of/this/test"
SECRET = "a-secret-that-nobody-may-read"
ROWS = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'


@dataclass(frozen=True)
class S3Server:
    process: subprocess.Popen[bytes]
    url: str


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server, with an empty bucket."""
    environment = Environment("moto")
    environment.make()
    port = free_port()
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [environment.folder / "bin" / "moto_server", "-H", "127.0.0.1", "-p", str(port)],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            stdout=file,
            stderr=file,
            preexec_fn=partial(die_with_parent, os.getpid()),
        )
    server = S3Server(process, f"http://127.0.0.1:{port}")

    def is_there() -> bool:
        try:
            return httpx.put(f"{server.url}/adapters").status_code == 200
        except httpx.TransportError:
            return False

    eventually(is_there, 60, "moto listens")
    yield server
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def settings(moto: S3Server) -> dict[str, str]:
    """The environment of those who use the bucket."""
    return {
        "AWS_ENDPOINT_URL": moto.url,
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "GRAFTWORK_ARTIFACTS": BUCKET,
    }


@pytest.fixture(scope="module")
def make(new_server: MakeServer, settings: dict[str, str]) -> MakeServer:
    """Makes servers with this bucket; ``copy_of``: with the database that another server has now."""

    def make(*flags: str, copy_of: Server | None = None) -> Server:
        server = new_server("--no-trainer", *flags, environment=settings)
        if copy_of is not None:
            old, new = (sqlite3.connect(each.home / "graftwork.db") for each in (copy_of, server))
            with closing(old), closing(new):
                old.backup(new)
        return server.start_and_wait()

    return make


@pytest.fixture(scope="module")
def first(make: MakeServer, small: SmallAdapters, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server that pushed all adapters."""
    server = make()
    folder = tmp_path_factory.mktemp("pushed")
    with server.client() as client:
        for seed, name in enumerate(NAMES):
            client.adapters.push(name, small.write(folder / name, seed))
    return server


def answers(server: Server) -> dict[str, StreamedAnswer]:
    with server.openai() as client:
        return {model: ask(client, model, max_tokens=4) for model in (BASE, *NAMES)}


def local(server: Server) -> set[str]:
    return {folder.name for folder in (server.home / "artifacts").iterdir() if folder.name != "staging"}


def folder_of(server: Server, name: str) -> Path:
    with server.client() as client:
        (version,) = client.adapters.get(name).versions
    return server.home / "artifacts" / version.digest.removeprefix("sha256:")


def test_a_home_that_starts_empty_serves_every_adapter(first: Server, make: MakeServer) -> None:
    with first.openai() as client:
        file = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
    second = make(copy_of=first)
    assert not local(second)
    theirs = answers(first)
    for model, answer in answers(second).items():
        answer.check_same(theirs[model], tolerance=INT8_TOLERANCE)
    assert local(second) == local(first)
    assert second.log.count("fetched sha256:") == len(NAMES)
    with second.openai() as client:
        assert client.files.content(file.id).read() == ROWS
    for server in (first, second):
        assert SECRET not in server.log
        assert SECRET.encode() not in (server.home / "graftwork.db").read_bytes()
    assert second.stop() == 0
    assert "Traceback" not in second.log


def test_a_bucket_that_hangs(
    first: Server, make: MakeServer, moto: S3Server, small: SmallAdapters, tmp_path: Path
) -> None:
    server = make(copy_of=first)
    with server.openai() as client, server.client() as own:
        ask(client, "one", max_tokens=4)
        moto.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(openai.InternalServerError) as away:
                client.with_options(max_retries=0).chat.completions.create(
                    model="two", messages=[{"role": "user", "content": "Hi"}]
                )
            assert away.value.status_code == 503
            assert away.value.code == "object_store_unavailable"
            assert time.monotonic() - began < 30
            ask(client, "one", max_tokens=4)
            with pytest.raises(GraftworkAPIError, match="object store") as refused:
                own.adapters.push("seven", small.write(tmp_path / "seven", 7))
            assert refused.value.status == 503
            assert server.status() == 200
        finally:
            moto.process.send_signal(signal.SIGCONT)
        ask(client, "two", max_tokens=4)
        assert "seven" not in {adapter.name for adapter in own.adapters.list()}
        own.adapters.push("seven", small.write(tmp_path / "again", 7))
        ask(client, "seven", max_tokens=4)
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_adapters_leave_the_home_while_answers_stream(first: Server, make: MakeServer) -> None:
    """The home keeps two, the device one, host memory none: all others are fetched again when they are asked for."""
    size = sum(file.stat().st_size for file in folder_of(first, "one").iterdir())
    server = make(
        *("--artifact-cache-gb", str(2.5 * size / (1 << 30)), "--slots", "1", "--host-memory-gb", "0.000001"),
        copy_of=first,
    )
    stopping = threading.Event()
    failures: list[Exception] = []
    counts = dict.fromkeys(NAMES, 0)

    def stream(name: str, pause: float) -> None:
        with server.openai() as client:
            while not stopping.is_set():
                try:
                    ask(client, name, max_tokens=8)
                except Exception as failure:
                    failures.append(failure)
                counts[name] += 1
                stopping.wait(pause)

    # Some all the time, the others so seldom that they have left when they are asked for again.
    pauses = dict(zip(NAMES, (0.0, 0.0, 65.0, 70.0, 75.0, 80.0), strict=True))
    threads = [threading.Thread(target=stream, args=each) for each in pauses.items()]
    for thread in threads:
        thread.start()
    time.sleep(100)
    stopping.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert min(counts.values()) >= 2
    assert server.log.count("removed sha256:") >= 4
    assert server.log.count("fetched sha256:") > len(NAMES)
    assert server.stop() == 0
    assert "Traceback" not in server.log


def test_bytes_that_were_changed_in_the_bucket(
    first: Server,
    make: MakeServer,
    settings: dict[str, str],
    small: SmallAdapters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = make(copy_of=first)
    digest = folder_of(first, "three").name
    content = bytearray((first.home / "artifacts" / digest / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "changed").write_bytes(content)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    ObjectStore(BUCKET).put(f"artifacts/{digest}/adapter_model.safetensors", tmp_path / "changed")
    with server.openai() as client, server.client() as own:
        with pytest.raises(openai.InternalServerError, match="changed in the bucket"):
            client.with_options(max_retries=0).chat.completions.create(
                model="three", messages=[{"role": "user", "content": "Hi"}]
            )
        assert digest not in local(server)
        own.adapters.push("three", small.write(tmp_path / "three", NAMES.index("three")))
        ask(client, "three", max_tokens=4)
    shutil.rmtree(server.home / "artifacts" / digest)
    with server.openai() as client:
        ask(client, "three", max_tokens=4)
    assert server.stop() == 0
