"""A small server with the chat completions API, in a process of its own: ``python fake_peer.py PORT TOKEN``.

It says one word a token. ``TOKEN`` is there to be found in the process table: a child of its own carries it as well.
The first request of a model that begins with ``c`` takes longer, and ``broken`` is a model that it does not have.
With ``max_tokens`` 666 it dies. ``GET /asked`` is what it was asked so far, and how many requests were open then.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ASKED: list[dict[str, Any]] = []
OPEN: list[dict[str, Any]] = []

#: Seconds before the first token, of a first request and of others; and between tokens.
FIRST, USUAL, GAP = 0.15, 0.01, 0.002


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.dumps(ASKED).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        OPEN.append(asked)
        try:
            self.answer(asked)
        finally:
            self.end(asked)

    def answer(self, asked: dict[str, Any]) -> None:
        is_first = asked["model"][0] == "c" and asked["model"] not in {before["model"] for before in ASKED}
        ASKED.append({**asked, "open": len(OPEN)})
        if asked["max_tokens"] == 666:
            os._exit(3)
        self.send_response(404 if asked["model"] == "broken" else 200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if asked["model"] == "broken":
            self.chunk(b'{"error": {"message": "no such model"}}')
        else:
            time.sleep(FIRST if is_first else USUAL)
            self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
            for number in range(asked["max_tokens"]):
                self.event({"choices": [{"delta": {"content": f" {number}"}}]})
                time.sleep(GAP)
            self.event({"choices": [], "usage": {"completion_tokens": asked["max_tokens"]}})
            self.end(asked)  # the client may ask the next before this thread comes to more
            self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    @staticmethod
    def end(asked: dict[str, Any]) -> None:
        OPEN[:] = [other for other in OPEN if other is not asked]

    def event(self, body: dict[str, Any]) -> None:
        self.chunk(f"data: {json.dumps(body)}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        print(format % args, flush=True)


class Server(ThreadingHTTPServer):
    request_queue_size = 256


if __name__ == "__main__":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", sys.argv[2]], start_new_session=True)
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
