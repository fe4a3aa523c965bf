"""A request as vLLM's ``/inference/v1/generate`` takes it.

Unknown fields are ignored there in silence, so every name here is one that a real server was seen to obey.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from graftwork.server.engine.request import SamplingParams

#: A server's own limit of alternatives at a token (``--max-logprobs``), unless it was raised.
MAX_LOGPROBS: Final = 20

_HEADER = "%llguidance"


def generate_body(
    model: str, prompt: Sequence[int], sampling: SamplingParams, *, cache_salt: str, stream: bool
) -> dict[str, Any]:
    """The body of a request.

    Args:
        model: The base's name there, or an adapter's. Always named: without it the base answers.
        prompt: Token ids.
        sampling: How its tokens are chosen.
        cache_salt: Prompts of another salt share no prefixes with it.
        stream: Whether the answer comes token by token.
    """
    body: dict[str, Any] = {
        "model": model,
        "token_ids": list(prompt),
        "sampling_params": _sampling_params(sampling),
        "stream": stream,
    }
    if cache_salt:  # as a digest: a salt must be short there, and without slashes
        body["cache_salt"] = hashlib.sha256(cache_salt.encode()).hexdigest()
    if stream:
        body["stream_options"] = {"include_usage": True}
    return body


def _sampling_params(sampling: SamplingParams) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "max_tokens": max(sampling.max_tokens, 1),  # a prompt that is only scored gets a token that nobody sees
        "min_tokens": sampling.min_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        # The base's own ends of text are among the stop tokens, unless the request ignores them.
        "ignore_eos": True,
        "stop_token_ids": sorted(sampling.stop_token_ids),
        "detokenize": False,
    }
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.seed is not None:
        fields["seed"] = sampling.seed
    if sampling.top_logprobs is not None:
        # Alternatives are listed after the chosen token and cut to this number: one more leaves none out.
        fields["logprobs"] = min(sampling.top_logprobs + 1, max(sampling.top_logprobs, MAX_LOGPROBS))
    if sampling.prompt_logprobs is not None:
        fields["prompt_logprobs"] = sampling.prompt_logprobs
    if sampling.grammar is not None:
        fields["structured_outputs"] = structured_outputs(sampling.grammar)
    return fields


def structured_outputs(grammar: str) -> dict[str, Any]:
    """vLLM's field for a grammar that ``engine/grammars/grammar.py`` made, for its backend ``guidance``.

    That is llguidance, too, and so an answer keeps to the very same grammar, but for the white space of JSON: older
    releases of it allow either none or any, without end. All is sent as Lark, as the first line says; the backend would
    read a schema's own field without our options.
    """
    lark = grammar
    if grammar.startswith("{"):
        (made,) = json.loads(grammar)["grammars"]
        lark = made["lark_grammar"] or f"start: %json {json.dumps(made['json_schema'], ensure_ascii=False)}"
    lark = lark.replace('"whitespace_flexible": true', '"whitespace_flexible": false')
    return {"grammar": lark if lark.startswith(_HEADER) else f"{_HEADER} {{}}\n{lark}"}
