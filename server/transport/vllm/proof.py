"""The proof that a vLLM server holds this base, before it gets requests.

What is proved: it runs a version that is known here; its tokenizer splits a fixed text into the same tokens; after
sixteen beginnings of that text it gives the likeliest next tokens the log-probabilities that the base itself gives
them, but for the noise of 16-bit numbers; and the same as at the first contact, so that a base that was changed
meanwhile is noticed. What is not: that every weight is the same to the last bit. A base that was changed so little that
these scores stay within the noise passes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Final

from graftwork.adapters.base.atomic_files import write_atomically
from graftwork.adapters.base.scores import NUM_TOKENS, Scores
from graftwork.server.engine.request import SamplingParams
from graftwork.server.transport.vllm.deltas import DeltaReader
from graftwork.server.transport.vllm.requests import MAX_LOGPROBS, generate_body
from graftwork.server.transport.vllm.server import UNLOAD, NotServed, Refused, UnknownModel, VllmServer

LEAST_VERSION: Final = (0, 32)

#: Mean differences of log-probabilities. bfloat16 differs from float32 by some 0.03, and from itself on another card by
#: less; another base differs by 0.3 and more.
MOST_FROM_BASE: Final = 0.15
MOST_FROM_FIRST: Final = 0.05

PROOF_TEXT: Final = (
    "Dear Sir or Madam, on 14 March 2023 I sent 25.50 EUR to Zürich. The capital of France is Paris, and water boils "
    "at 100 degrees.\n\ndef add(a, b):\n    return a + b\n\nOnce upon a time there was a little girl who lived in a "
    "village near the forest. Sehr geehrte Damen und Herren, 2 + 2 = 4."
)

_OF_LLGUIDANCE: Final = '%llguidance {}\nstart: "a"'

#: What a token that is not among the likeliest counts as.
_LEAST_LOGPROB: Final = -15.0


class NotThisBase(Exception):
    """A server cannot serve this base; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ServedBase:
    """What a server said of the base that it holds.

    Attributes:
        version: vLLM's.
        model: The base's name there.
        max_length: Tokens of its context, prompt and answer together.
        follows_grammars: Whether it holds answers to the grammars that are made here, as its backend ``guidance`` does.
    """

    version: str
    model: str
    max_length: int
    follows_grammars: bool = False


class BaseProof:
    """Proves that servers hold one base.

    Args:
        prompt: The tokens of ``PROOF_TEXT``, without special ones.
        known: The base's own scores after its ``beginnings``; ``None``: they could not be computed here.
        record: A file with those of the first server that was accepted.
    """

    def __init__(self, prompt: Sequence[int], known: Scores | None, record: Path) -> None:
        self._prompt = list(prompt)
        self._known = known
        self._record = record

    async def prove(self, server: VllmServer) -> ServedBase:
        """Ask a server for everything that is to be the same.

        Raises:
            NotThisBase: It cannot serve this base.
            NotServed: It is not there, or not yet.
        """
        try:
            version = str((await server.get("/version")).json()["version"])
            self._check_version(version)
            await self._check_health(server)
            served = await self._served(server, version)
            tokens = (await server.post("/tokenize", self._text(served))).json()["tokens"]
            if tokens != self._prompt:
                raise NotThisBase("its tokenizer is another one: give it the folder that --base names")
            self._check_scores(await self._scores(server, served))
            await self._check_adapters(server)
            served = replace(served, follows_grammars=await self._follows_grammars(server, served))
        except UnknownModel as refused:
            raise NotServed(refused.message) from refused  # it is being started again
        except Refused as refused:
            raise NotThisBase(_advice(refused)) from refused
        except (KeyError, ValueError, TypeError) as error:
            raise NotThisBase(f"it does not answer as vLLM does ({type(error).__name__}: {error})") from error
        return served

    @staticmethod
    def _check_version(version: str) -> None:
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if numbers < LEAST_VERSION:
            least = ".".join(map(str, LEAST_VERSION))
            raise NotThisBase(f"it is vLLM {version}, and {least} is the oldest that is known here: update it")

    @staticmethod
    async def _check_health(server: VllmServer) -> None:
        try:
            await server.get("/health")
        except Refused as refused:
            raise NotThisBase(f"/health, by which it is watched, is refused: {refused.message}") from refused

    @staticmethod
    async def _served(server: VllmServer, version: str) -> ServedBase:
        models = (await server.get("/v1/models")).json()["data"]
        base = next((model for model in models if model.get("parent") is None), None)
        if base is None:
            raise NotThisBase("it serves no base")
        return ServedBase(version, base["id"], base["max_model_len"])

    @staticmethod
    def _text(served: ServedBase) -> dict[str, object]:
        return {"model": served.model, "prompt": PROOF_TEXT, "add_special_tokens": False}

    async def _scores(self, server: VllmServer, served: ServedBase) -> Scores:
        """The likeliest tokens after the text's beginnings.

        The text's own scores would be less to ask for, but a prompt that is scored must be alone: see ``turns.py``.
        """
        ask = SamplingParams(max_tokens=1, temperature=0.0, top_logprobs=MAX_LOGPROBS)
        scores: Scores = []
        for length in beginnings(len(self._prompt)):
            body = generate_body(served.model, self._prompt[:length], ask, cache_salt="", stream=False)
            delta = DeltaReader("proof", ask).whole(await server.generate(body), model=served.model)
            if not delta.logprobs:
                raise NotThisBase("it gives no log-probabilities")
            scores.append({str(token): logprob for token, logprob in delta.logprobs[0].top})
        return scores

    def _check_scores(self, scores: Scores) -> None:
        if self._known is not None and (far := _distance(scores, self._known)) > MOST_FROM_BASE:
            raise NotThisBase(
                f"it holds another base, or this one quantized: its log-probabilities after a text differ by {far:.3f} "
                f"in the mean from the base's own, and {MOST_FROM_BASE} is the most that is noise"
            )
        if not self._record.is_file():
            self._record.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._record, json.dumps([dict(list(after.items())[:NUM_TOKENS]) for after in scores]))
        elif (far := _distance(scores, json.loads(self._record.read_text()))) > MOST_FROM_FIRST:
            raise NotThisBase(
                f"its log-probabilities after a text differ by {far:.3f} in the mean from those of the first server "
                "that this home used: was it started with other weights, or another --dtype? If that is meant, remove "
                f"{self._record}"
            )

    async def _follows_grammars(self, server: VllmServer, served: ServedBase) -> bool:
        """Whether it takes what only llguidance reads. Its other backends fail at it, or read JSON without bounds."""
        ask = SamplingParams(max_tokens=1, temperature=0.0, grammar=_OF_LLGUIDANCE)
        body = generate_body(served.model, self._prompt[:1], ask, cache_salt="", stream=False)
        try:
            await server.generate(body)
        except Refused:
            return False
        except NotServed as failed:
            if failed.status is None:
                raise
            return False
        return True

    @staticmethod
    async def _check_adapters(server: VllmServer) -> None:
        """Whether adapters can be registered: a name that nobody has can be forgotten, and there is no more to it."""
        try:
            await server.post(UNLOAD, {"lora_name": "graftwork-nobody"})
        except Refused as refused:
            if refused.status != 404 or "cannot be found" not in refused.message:
                raise NotThisBase(
                    "it registers no adapters: start it with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True "
                    "in its environment"
                ) from refused


def beginnings(num_tokens: int) -> list[int]:
    """The lengths of the beginnings after which a text of so many tokens is scored: sixteen, evenly spread."""
    return [(number + 1) * num_tokens // 16 for number in range(16)]


def _distance(scores: Scores, expected: Scores) -> float:
    """The mean difference of the log-probabilities of the expected tokens."""
    return fmean(
        abs(after.get(token, _LEAST_LOGPROB) - logprob)
        for after, known in zip(scores, expected, strict=True)
        for token, logprob in known.items()
    )


def _advice(refused: Refused) -> str:
    if refused.status == 401:
        return "it wants another key: give the one of its --api-key with --engine-key-file"
    if refused.status == 403:
        return "it takes no token ids: start it with --enable-scale-out"
    return f"it refuses what every request needs: {refused.message}"
