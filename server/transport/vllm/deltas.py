"""From vLLM's answers to deltas.

Only a finish reason that was to be expected ends an answer. ``[DONE]`` proves nothing: it follows errors, too. An
``abort`` that was not asked for comes with status 200 from a server that is about to stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from graftwork.server.engine.request import Delta, FinishReason, SamplingParams, TokenLogprob
from graftwork.server.transport.vllm.server import NotServed

#: What vLLM writes for a log-probability that is no number. No chosen token has it otherwise.
_NO_NUMBER = -9999.0

_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class DeltaReader:
    """Reads the answer of one choice.

    Args:
        request_id: Of the deltas.
        sampling: What was asked.
    """

    def __init__(self, request_id: str, sampling: SamplingParams) -> None:
        self._request_id = request_id
        self._sampling = sampling
        self._last: Delta | None = None

    def whole(self, answer: Mapping[str, Any], *, model: str) -> Delta:
        """The one delta of an answer that was not streamed.

        Raises:
            NotServed: It is no answer, or another model's.
        """
        if answer.get("model") != model:
            raise NotServed(f"it answered as {answer.get('model')!r}, asked was {model!r}")
        (choice,) = answer["choices"]
        delta = self._read(choice)
        if delta.finish_reason is None:
            raise NotServed("it did not finish")
        if (scores := answer.get("prompt_logprobs")) is not None and self._sampling.prompt_logprobs is not None:
            delta.prompt_logprobs = [_prompt_logprob(score, self._sampling.prompt_logprobs) for score in scores]
        delta.num_cached = _num_cached(answer)
        return delta

    def push(self, event: Mapping[str, Any]) -> Iterator[Delta]:
        """The deltas of one event of a stream. The last one waits for the number of cached tokens, see ``finish``.

        Raises:
            NotServed: It was aborted there, or failed.
        """
        for choice in event["choices"] if self._last is None else ():
            delta = self._read(choice)
            if delta.done:
                self._last = delta
            elif delta.token_ids:
                yield delta
        if self._last is not None:
            self._last.num_cached = _num_cached(event)

    def finish(self) -> Delta:
        """The last delta, when the stream has ended.

        Raises:
            NotServed: It ended without saying why.
        """
        if self._last is None:
            raise NotServed("the answer broke off")
        return self._last

    def _read(self, choice: Mapping[str, Any]) -> Delta:
        """A choice's new tokens, without the stop token at their end."""
        sampling, said = self._sampling, choice.get("finish_reason")
        if said is not None and said not in _FINISH_REASONS:
            # One that stops aborts all it has. Any other reason, as ``error``, is of this answer alone.
            raise NotServed(f"it ended the answer with {said!r}", status=None if said == "abort" else 500)
        finish = None if said is None else _FINISH_REASONS[said]
        tokens: list[int] = choice.get("token_ids") or []
        logprobs = _logprobs(choice.get("logprobs"), sampling.top_logprobs)
        if any(score.logprob <= _NO_NUMBER for score in logprobs):
            error = "the model's output is not finite"
            return Delta(self._request_id, finish_reason=FinishReason.ERROR, error=error)
        if sampling.max_tokens == 0:
            tokens, logprobs, finish = [], [], finish and FinishReason.LENGTH
        elif finish is FinishReason.STOP and tokens and tokens[-1] in sampling.stop_token_ids:
            tokens, logprobs = tokens[:-1], logprobs[: len(tokens) - 1]
        return Delta(self._request_id, tokens, logprobs, finish_reason=finish)


def _logprobs(field: Mapping[str, Any] | None, num_top: int | None) -> list[TokenLogprob]:
    if field is None or num_top is None:
        return []
    return [
        TokenLogprob(
            token["token_id"],
            token["logprob"],
            _best(((other["token_id"], other["logprob"]) for other in token["top_logprobs"]), num_top),
        )
        for token in field["content"]
    ]


def _prompt_logprob(score: Mapping[str, Mapping[str, Any]] | None, num_top: int) -> TokenLogprob | None:
    """The score of a token of the prompt, which comes first in its table; ``None`` for the first token."""
    if score is None:
        return None
    pairs = [(int(token), float(entry["logprob"])) for token, entry in score.items()]
    return TokenLogprob(*pairs[0], _best(pairs, num_top))


def _best(pairs: Iterable[tuple[int, float]], count: int) -> tuple[tuple[int, float], ...]:
    """The likeliest tokens, best first."""
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:count])


def _num_cached(answer: Mapping[str, Any]) -> int:
    """Prompt tokens that the prefix cache had; known only with ``--enable-prompt-tokens-details``."""
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)
