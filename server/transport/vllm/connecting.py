"""From the settings to engines: one for each address of a vLLM server."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.base.scores import base_scores
from graftwork.adapters.errors import ConfigurationError, first_line
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.server.config import ServerConfig
from graftwork.server.processes import SharedState
from graftwork.server.transport.vllm.engine import VllmEngine
from graftwork.server.transport.vllm.proof import PROOF_TEXT, BaseProof, beginnings
from graftwork.server.transport.vllm.server import VllmServer

log = logging.getLogger(__name__)


def vllm_engines(
    config: ServerConfig,
    info: BaseInfo,
    prompts: Prompts,
    shared_state: SharedState,
    *,
    adapters: Path,
    canary_prompt: Sequence[int],
) -> dict[str, VllmEngine]:
    """The engines of ``config.engine_urls``, by these addresses, not yet connected.

    Args:
        config: The server's settings.
        info: The base, whose scores of a text are computed the first time.
        prompts: The base's tokenizer.
        shared_state: Receives the number of open answers.
        adapters: The folder of published adapters.
        canary_prompt: Token ids that adapters are tried on.

    Raises:
        ConfigurationError: The key cannot be read, or the base cannot be loaded to be compared with.
    """
    key = read_key(config.engine_key_file)
    prompt = prompts.encode(PROOF_TEXT, add_special_tokens=False)
    kept = config.home / "engine" / info.digest.removeprefix("sha256:")
    known = base_scores(info, prompt, beginnings(len(prompt)), kept / "base.json")
    if known is None:
        log.warning(
            "this machine's memory cannot hold the base: that vLLM holds it is proved only by its tokenizer, and by "
            "always saying the same"
        )
    return {
        url: VllmEngine(
            VllmServer(url, key),
            BaseProof(prompt, known, kept / "first.json"),
            base=info,
            adapters=config.engine_adapters or adapters.resolve(),
            shared_state=shared_state,
            max_open=config.max_queue,
            max_length=config.max_model_len,
            canary_prompt=canary_prompt,
            stall_seconds=config.stall_seconds,
            engine=number,
        )
        for number, url in enumerate(config.engine_urls)
    }


def read_key(path: Path | None) -> str | None:
    """vLLM's key, from a file that nobody else can read; ``None`` without a file.

    Raises:
        ConfigurationError: There is none in it, or others can read it.
    """
    if path is None:
        return None
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"--engine-key-file {path} is open to others: chmod 600 it.")
        key = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--engine-key-file {path}: {first_line(error)}.") from None
    if not key or not key.isprintable():
        raise ConfigurationError(f"--engine-key-file {path} holds no key: one line is wanted.")
    return key
