"""The canary: one prompt is computed with and without a new adapter, on the same engine, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from graftwork.adapters.errors import InvalidAdapter
from graftwork.server.engine.request import FinishReason, SamplingParams
from graftwork.server.transport.engine import EngineProtocol

#: Log-probabilities that differ by no more than this count as equal: float32 differs by as much between batches.
INERT_LOGPROB_DIFFERENCE: Final = 1e-6


#: What is compared: the scores of the prompt and of one token.
SCORES: Final = SamplingParams(max_tokens=1, temperature=0.0, top_logprobs=0, prompt_logprobs=0)


async def try_adapter(
    engine: EngineProtocol, prompt: Sequence[int], digest: str, *, ask: SamplingParams = SCORES
) -> None:
    """Compute a prompt with and without an adapter, and compare.

    Args:
        engine: Computes both.
        prompt: Token ids.
        digest: Of a published adapter.
        ask: What is compared: log-probabilities of its tokens, as many with the adapter as without.

    Raises:
        InvalidAdapter: It cannot be loaded, changes nothing, or makes the model's output infinite.
        Unavailable: There is no engine at the moment.
    """
    # One after the other: what is computed side by side differs by rounding, where sizes of batches matter.
    plain, grafted = [await _logprobs(engine, prompt, adapter, ask) for adapter in (None, digest)]
    if max(abs(a - b) for a, b in zip(plain, grafted, strict=True)) <= INERT_LOGPROB_DIFFERENCE:
        raise InvalidAdapter(
            "The adapter changes no answer: with it and without it the base says the same. "
            "Its B matrices are probably still zero; was it trained, and saved after training?",
            code="inert_adapter",
        )


async def _logprobs(
    engine: EngineProtocol, prompt: Sequence[int], adapter: str | None, ask: SamplingParams
) -> list[float]:
    """Log-probabilities of the prompt's tokens, the generated ones and their alternatives, as far as they are asked."""
    scores: list[float] = []
    stream = engine.open([(prompt, ask)], adapter=adapter)
    try:
        async for _, delta in stream:
            if delta.finish_reason is FinishReason.ERROR:
                raise InvalidAdapter(
                    f"The adapter was tried on the base and failed: {delta.error}", code="canary_failed"
                )
            for score in (*(delta.prompt_logprobs or ()), *delta.logprobs):
                if score is not None:
                    scores += [score.logprob, *(logprob for _, logprob in score.top)]
    finally:
        engine.cancel(stream)
    return scores
