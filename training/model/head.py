"""A faster implementation of TRL's fused loss head on CPUs: logits are computed at learned positions only, and at once.

With short answers after long prompts, logits at every position would take most of a step. TRL computes them in chunks
of the vocabulary, once in the forward and once in the backward pass, with a float32 copy of each chunk. That saves
memory for many positions. For few positions all logits are kept for the backward pass here, and no weight is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import trl
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

MAX_LOGITS: Final = 1 << 24
"""Maximum number of logits, positions times vocabulary: 64 MB of float32 for each of three tensors in memory."""

SUPPORTED_OUTPUTS: Final = frozenset({"log_probs", "entropy", "is_top1"})
"""The outputs that TRL's supervised trainer requests. Other methods request more, and use TRL's implementation."""


@contextmanager
def fast_loss_head() -> Iterator[None]:
    """Replace TRL's loss head by `LossHead` for the block.

    With a Triton kernel TRL computes logits at learned positions only; otherwise at all positions, to keep shapes
    static for compilers. Nothing is compiled here, so that the former is enabled. The attributes that are replaced are
    private ones of the pinned TRL version; a test checks that they exist.
    """
    utils: Any = trl.trainer.utils
    before = utils._use_triton, utils._ChunkedLogProbFunction
    utils._use_triton, utils._ChunkedLogProbFunction = (lambda device: True), LossHead
    try:
        yield
    finally:
        utils._use_triton, utils._ChunkedLogProbFunction = before


class LossHead:
    """Drop-in replacement for TRL's `ChunkedLogProbFunction`, which it calls for cases that it does not support."""

    @staticmethod
    def apply(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> tuple[Tensor | None, ...]:
        """Compute the log-probabilities of target tokens.

        Args:
            hidden: last hidden states, [positions, hidden size].
            weight: weight of the head, [vocabulary, hidden size].
            bias: bias of the head.
            targets: token ids, [positions].
            temperature: divisor of the logits.
            chunk_size: chunk size of TRL's implementation.
            softcap: cap of the logits.
            scale: factor on the logits.
            outputs: names of the requested outputs.

        Returns:
            The five outputs of TRL's function, each [positions]: log-probabilities of the targets in nats, entropy in
            nats, two outputs that are None unless TRL's implementation is used, and whether the target is the most
            likely token.
        """
        is_supported = (
            bias is None
            and softcap is None
            and (temperature, scale) == (1.0, 1.0)
            and SUPPORTED_OUTPUTS.issuperset(outputs)
        )
        if (
            is_supported
            and len(hidden) * len(weight) <= MAX_LOGITS
            and weight.device.type == "cpu"
            and not weight.requires_grad
        ):
            log_probs, entropy, is_top1 = _LogProbFunction.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
            return log_probs, entropy, None, None, is_top1
        chunked: tuple[Tensor | None, ...] = ChunkedLogProbFunction.apply(
            hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs
        )
        return chunked


class _LogProbFunction(torch.autograd.Function):
    """Matrix products are computed in autocast's dtype and everything else in float32, as in TRL. Only the
    log-probabilities have a gradient; the other outputs are for logging."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        weight = weight.to(dtype)
        logits = (hidden.to(dtype) @ weight.T).float()
        is_top1 = logits.argmax(-1) == targets
        log_z = logits.logsumexp(-1)
        log_probs = logits.gather(-1, targets[:, None])[:, 0] - log_z
        probabilities = torch.exp(logits - log_z[:, None])
        entropy = log_z - torch.linalg.vecdot(probabilities, logits)
        ctx.save_for_backward(probabilities, weight, targets)
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(entropy, is_top1)
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        probabilities, weight, targets = ctx.saved_tensors
        log_prob_grad = gradients[0].float()[:, None]
        logit_grad = probabilities * -log_prob_grad
        logit_grad.scatter_add_(-1, targets[:, None], log_prob_grad)
        return (logit_grad.to(weight.dtype) @ weight).to(ctx.dtype), None, None
