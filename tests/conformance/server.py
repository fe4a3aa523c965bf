"""The server that the clients speak to: the embedded base, one adapter, a key, and room for few answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from graftwork.adapters.base import prepare
from graftwork.adapters.base.info import BaseInfo
from tests.conftest import TEST_HOME
from tests.e2e.peft_folders import SmallAdapters
from tests.e2e.server_process import Server, eventually

ADAPTER = "support"
KEY = "a-key-for-conformance"

#: As many answers as one request may ask for: so one request fills the server.
MAX_QUEUE = 8


@contextmanager
def running_server(folder: Path) -> Iterator[tuple[Server, BaseInfo]]:
    """A server with a home below ``folder``, ready, and what is known of its base."""
    base = prepare(None, TEST_HOME, lambda title, fraction: None)
    home = folder / "home"
    (home / "base").mkdir(parents=True)
    (home / "base" / Path(base.path).name).symlink_to(base.path)
    server = Server(home, "--max-queue", str(MAX_QUEUE), environment={"GRAFTWORK_ADMIN_KEY": KEY})
    server.key = KEY
    try:
        server.start_and_wait()
        with server.client() as client:
            client.adapters.push(ADAPTER, SmallAdapters(base, TEST_HOME / "adapters").write(folder / ADAPTER, seed=101))
        yield server, base
        assert server.stop() == 0, server.log[-4000:]
        assert "Traceback" not in server.log, server.log[-4000:]
    finally:
        server.put_down()


@contextmanager
def filled(server: Server) -> Iterator[None]:
    """As long as this lasts, the server has no room for a further answer."""
    body = {
        "model": ADAPTER,
        "messages": [{"role": "user", "content": "Count."}],
        "n": MAX_QUEUE,
        "ignore_eos": True,
        "stream": True,
        "store": False,
    }
    has_begun, is_over = threading.Event(), threading.Event()

    def fill() -> None:
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.stream(
            "POST", f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=300
        ) as answer:
            for _ in answer.iter_lines():
                has_begun.set()
                if is_over.is_set():
                    return

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        assert has_begun.wait(60), "the answers that fill the server do not begin"
        yield
        assert thread.is_alive(), "the answers that fill the server have ended too soon"
    finally:
        is_over.set()
        thread.join()
    eventually(lambda: server.metric("running") + server.metric("queue_depth") == 0, 30, "the server is empty again")
