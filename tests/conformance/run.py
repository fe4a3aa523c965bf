"""One client's script, run, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.clients import FOLDER, Client

#: For one script, which asks some twenty times.
TIME_LIMIT_SECONDS = 300

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "AI_SDK_LOG_WARNINGS": "false",
    "NO_PROXY": "127.0.0.1",
}
"""Nothing is asked of anybody but the server."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a client's feature went.

    Attributes:
        detail: The error, or what the script says of a success: of an error that was asked for, its class.
    """

    client: str
    feature: str
    ok: bool
    detail: str


def run_script(
    client: Client, command: list[str], features: Collection[str], *, url: str, key: str, model: str, tokenizer: str
) -> list[Result]:
    """Run a client's script, as far as it has these features.

    Args:
        command: What starts the script.
        features: To try.
        url: The server's, without a path.
        key: For the server.
        model: What the requests name.
        tokenizer: The folder of the base's tokenizer.

    Raises:
        RuntimeError: The script did not come as far as its first line.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("OPENAI_API_KEY", "PYTHONPATH")}
    environment |= SETTINGS | {
        "CONFORMANCE_URL": url,
        "CONFORMANCE_API_KEY": key,
        "CONFORMANCE_MODEL": model,
        "CONFORMANCE_TOKENIZER": tokenizer,
    }
    try:
        done = subprocess.run(
            [*command, *features],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_SECONDS,
            check=False,
        )
        out, errors, end = done.stdout, done.stderr, f"the script ended with {done.returncode}"
    except subprocess.TimeoutExpired as expired:
        out, errors = ((text or b"").decode() for text in (expired.stdout, expired.stderr))
        end = f"no answer within {TIME_LIMIT_SECONDS} s"
    if not out:
        raise RuntimeError(f"{client.script}: {end}\n{errors[-4000:]}")
    first, *lines = (json.loads(line) for line in out.splitlines())
    told = {line["feature"]: Result(client=client.title, **line) for line in lines}
    return [
        told.get(name, Result(client=client.title, feature=name, ok=False, detail=end))
        for name in first["features"]
        if name in features
    ]


def script_of(client: Client) -> Path:
    """Where a client's script lies."""
    return FOLDER / "scripts" / client.script
