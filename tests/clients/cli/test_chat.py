"""The interactive chat on a pseudo-terminal."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.fake_server import BASE, FakeServer

pytestmark = pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo-terminal")

# Makes the pseudo-terminal the one that Ctrl-C comes from, then becomes the program.
_LAUNCH = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A program on a terminal: type, and wait for what it shows."""

    def __init__(self, *command: str, env: dict[str, str]) -> None:
        self._end, program_end = os.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, *command],
            stdin=program_end,
            stdout=program_end,
            stderr=program_end,
            start_new_session=True,
            env=env,
        )
        os.close(program_end)
        self._unread = ""

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def until(self, wanted: str, *, pressing: str = "") -> str:
        """What was shown up to and with ``wanted``.

        ``pressing`` is typed until then, as people do: a signal just before ``input`` begins to wait goes unnoticed.
        """
        deadline, presses = time.monotonic() + 20, 0.0
        while wanted not in self._unread:
            if pressing and time.monotonic() > presses:
                self.type(pressing)
                presses = time.monotonic() + 1
            assert time.monotonic() < deadline, f"waited for {wanted!r}, saw {self._unread!r}"
            if select.select([self._end], [], [], 0.1)[0]:
                self._unread += os.read(self._end, 65536).decode(errors="replace")
        seen, _, self._unread = self._unread.partition(wanted)
        return seen + wanted

    def ended(self) -> int:
        deadline = time.monotonic() + 20
        while self._process.poll() is None:
            assert time.monotonic() < deadline, "the program did not end"
            if select.select([self._end], [], [], 0.05)[0]:
                try:
                    os.read(self._end, 65536)
                except OSError:  # the program's end is closed
                    break
        return self._process.wait(20)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._end)


@pytest.fixture
def chat(server: FakeServer, tmp_path: Path) -> Iterator[Terminal]:
    server.seed("intents", 2)
    env = {**os.environ, "GRAFTWORK_URL": server.url, "TERM": "xterm", "COLUMNS": "200", "HOME": str(tmp_path)}
    terminal = Terminal(sys.executable, "-m", "graftwork", "chat", "intents", "--system", "Be brief.", env=env)
    yield terminal
    terminal.close()


def test_a_conversation(chat: Terminal, server: FakeServer) -> None:
    chat.until("intents (intents@1) answers.")
    chat.until("> ")
    chat.type("where is my card\n")
    chat.until("intents@1 · 4 tokens")
    chat.until("> ")
    chat.type("/adapter\n")
    chat.until(f"Name one of: {BASE}, intents")
    chat.type("/adapter nobody\n")
    chat.until("there is no adapter 'nobody'")
    chat.type("/adapter intents@2\n")
    chat.until("intents@2 answers.")
    chat.type("and now\n")
    chat.until("intents@2 · 2 tokens")
    chat.type("/reset\n")
    chat.type("again\n")
    chat.until("intents@2 · 1 tokens")
    chat.type("/help\n")
    chat.until("Ctrl-C stops the answer")
    chat.type("\n/quit\n")
    assert chat.ended() == 0
    first, second, third = server.asked("POST", "/v1/chat/completions")
    system = {"role": "system", "content": "Be brief."}
    assert first["messages"] == [system, {"role": "user", "content": "where is my card"}]
    assert [(turn["role"], turn["content"]) for turn in second["messages"][1:]] == [
        ("user", "where is my card"),
        ("assistant", " where is my card"),
        ("user", "and now"),
    ]
    assert third["messages"] == [system, {"role": "user", "content": "again"}]


def test_ctrl_c_stops_the_answer_and_not_the_program(chat: Terminal, server: FakeServer) -> None:
    chat.until("> ")
    chat.type("/adapter endless\n")
    chat.until("endless answers.")
    chat.type("on and on\n")
    chat.until(" on and on on and on")
    chat.type("\x03")
    chat.until("(stopped)")
    assert server.disconnected.wait(5)
    chat.until("> ")
    chat.type("/adapter intents\n")
    chat.until("> ")
    chat.type("well\n")
    chat.until("intents@1 · 1 tokens")
    said = server.asked("POST", "/v1/chat/completions")[-1]["messages"]
    assert said[2]["role"] == "assistant"
    assert said[2]["content"].startswith(" on and on")
    chat.until("> ")
    chat.until("/quit or Ctrl-D leaves", pressing="\x03")
    chat.until("> ")
    chat.type("\x04")
    assert chat.ended() == 0


def test_an_error_does_not_end_the_conversation(chat: Terminal, server: FakeServer) -> None:
    chat.until("> ")
    chat.type("/adapter early\n")
    chat.until("> ")
    chat.type("one two\n")
    chat.until("broke the answer off")
    chat.until("> ")
    chat.type("/adapter wild\nthree\n")
    shown = chat.until("grün")
    assert "red[31m" in shown
    assert "\x1b[31m" not in shown.replace("\x1b[31merror", "")
    said = server.asked("POST", "/v1/chat/completions")[-1]["messages"]
    assert [turn["content"] for turn in said] == ["Be brief.", "one two", " one", "three"]


def test_ctrl_c_ends_a_question_in_a_script(server: FakeServer) -> None:
    command = [sys.executable, "-m", "graftwork", "chat", "endless", "--message", "on and on"]
    env = {**os.environ, "GRAFTWORK_URL": server.url}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.read(10) == b" on and on"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert server.disconnected.wait(5)
