"""Start and shutdown of a server, and its messages if it cannot start."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

import openai
import pytest

from tests.e2e.conftest import MakeServer
from tests.e2e.requests import OpenStream, ask
from tests.e2e.server_process import BASE, eventually, get, refused


def test_from_the_first_second_to_the_last(new_server: MakeServer) -> None:
    """It listens before it can answer, says so, answers, is told to go, and lets open answers finish."""
    server = new_server("--drain-seconds", "120").start()
    eventually(lambda: server.status() is not None, 60, "it listens")
    assert get(f"{server.url}/health").status_code == 200
    starting = get(f"{server.url}/ready")
    assert (starting.status_code, starting.json()["status"]) == (503, "starting")
    assert starting.headers["retry-after"]
    with server.openai() as client:
        with pytest.raises(openai.InternalServerError, match="loading"):
            ask(client, BASE)
        assert [model.id for model in client.models.list()] == [BASE]

        server.wait_until_ready()
        # The first one takes longer than all that is asked of a server that drains.
        streams = [OpenStream(client, BASE, max_tokens=n).wait_until_begun() for n in (600, 20, 20)]
        whole = openai.OpenAI(**server.openai_options())
        server.send(signal.SIGTERM)
        eventually(lambda: server.status() == 503, 5, "it drains")
        assert get(f"{server.url}/ready").json()["status"] == "draining"
        with whole, pytest.raises(openai.InternalServerError, match="shutting down"):
            ask(whole, BASE)
        for stream in streams:
            stream.wait_until_ended(120)
            assert (stream.error, stream.finish_reason) == (None, "length")
    assert server.wait() == 0
    assert "Traceback" not in server.log


def test_control_c(new_server: MakeServer) -> None:
    """In a terminal all processes get it: the first one drains, the second one means it."""
    server = new_server().start_and_wait()
    with server.openai() as client:
        stream = OpenStream(client, BASE).wait_until_begun()
        server.send_to_all(signal.SIGINT)
        eventually(lambda: server.status() == 503, 5, "it drains")
        before = stream.num_chunks
        eventually(lambda: stream.num_chunks > before, 10, "the open answer goes on")
        server.send_to_all(signal.SIGINT)
        assert "shutting down" in str(stream.wait_until_ended(5).error)
    assert server.wait(10) == 0
    assert "Traceback" not in server.log


@pytest.mark.slow
def test_draining_ends(new_server: MakeServer) -> None:
    server = new_server("--drain-seconds", "1").start_and_wait()
    with server.openai() as client:
        stream = OpenStream(client, BASE).wait_until_begun()
        server.send(signal.SIGTERM)
        assert "shutting down" in str(stream.wait_until_ended(5).error)
        assert server.wait(10) == 0
    assert "1 answers did not finish" in server.log


def test_stopped_while_it_starts(new_server: MakeServer) -> None:
    server = new_server().start()
    eventually(lambda: server.status() is not None, 60, "it listens")
    assert server.stop() == 0
    assert "Traceback" not in server.log


# ------------------------------------------------------------------------------------------------- what cannot start


def test_a_port_that_is_taken(new_server: MakeServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        said = refused("--port", str(port), *new_server().flags, home=new_server().home)
    assert f"Port {port} of 127.0.0.1 cannot be had (Address already in use)" in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--host", "0.0.0.0"), "GRAFTWORK_ADMIN_KEY"),
        (("--host", "192.0.2.1"), "--host"),
        (("--port", "80"), "--port"),
        (("--slots", "0"), "--slots"),
        (("--quantize", "q4"), "--quantize"),
        pytest.param(("--max-model-len", "100000000"), "--max-model-len", marks=pytest.mark.slow),
        pytest.param(("--max-model-len", "1"), "--max-model-len", marks=pytest.mark.slow),
        (("--kv-memory-gb", "0.00001"), "--kv-memory-gb"),
        pytest.param(("--device", "teapot"), "--device", marks=pytest.mark.slow),
        (("--admin-key-file", "/does/not/exist"), "--admin-key-file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_settings_that_cannot_work(new_server: MakeServer, flags: tuple[str, ...], reason: str) -> None:
    server = new_server()
    began = time.monotonic()
    said = refused(*server.flags, *flags, home=server.home)
    assert reason in said, said
    assert time.monotonic() - began < 60


def test_an_admin_key_that_can_be_guessed(new_server: MakeServer) -> None:
    server = new_server()
    said = refused(*server.flags, home=server.home, changes={"GRAFTWORK_ADMIN_KEY": "hunter2"})
    assert "16 characters" in said
    assert "hunter2" not in said


def broken_bases() -> dict[str, dict[str, str]]:
    return {
        "empty": {},
        "no weights": {"config.json": '{"model_type": "llama"}', "tokenizer.json": "{}"},
        "no json": {"config.json": "{", "tokenizer.json": "{}", "model.safetensors": ""},
    }


@pytest.mark.parametrize("kind", broken_bases())
def test_a_base_that_is_none(new_server: MakeServer, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for name, text in broken_bases()[kind].items():
        (folder / name).write_text(text)
    server = new_server(base=str(folder))
    assert str(folder) in refused(*server.flags, home=server.home)


def test_a_base_that_is_nowhere(new_server: MakeServer) -> None:
    server = new_server(base="nobody/has-this")
    assert "nobody/has-this" in refused(*server.flags, home=server.home)
