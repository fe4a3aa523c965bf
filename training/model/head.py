"""TRL's loss, quick on a CPU: the vocabulary is multiplied at learned places alone, and at once where they are few.

With answers of a few tokens after long prompts the whole vocabulary at every place would be most of a step. And TRL
goes through the vocabulary in chunks, twice, the second time with a copy of each in float32: that saves memory where
places are many. Of few places everything is held from the forward pass to the backward pass, and no weight is copied.
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
"""Places times words: 64 MB of float32 for each of the three tensors that are held at the same time."""

SUPPORTED_OUTPUTS: Final = frozenset({"log_probs", "entropy", "is_top1"})
"""What TRL's supervised trainer asks for; other methods ask for more."""


@contextmanager
def fast_loss_head() -> Iterator[None]:
    """TRL multiplies only the learned places with the vocabulary where it has a Triton kernel; elsewhere it takes all
    places, lest an ahead-of-time compiler meet new shapes. Nothing is compiled here. The names are the pinned TRL's,
    and a test holds it to them."""
    utils: Any = trl.trainer.utils
    before = utils._use_triton, utils._ChunkedLogProbFunction
    utils._use_triton, utils._ChunkedLogProbFunction = (lambda device: True), LossHead
    try:
        yield
    finally:
        utils._use_triton, utils._ChunkedLogProbFunction = before


class LossHead:
    """What TRL calls instead of `ChunkedLogProbFunction`."""

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
        """hidden (places, hidden size), weight (words, hidden size), targets (places,) → the five of TRL's function,
        each (places,): log-probabilities of the targets, entropy, two that are None here, whether it is the likeliest.
        """
        plain = (
            bias is None
            and softcap is None
            and (temperature, scale) == (1.0, 1.0)
            and SUPPORTED_OUTPUTS.issuperset(outputs)
        )
        if (
            plain
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
    """Products in the dtype that autocast wants, all else in float32, as TRL does. Only the log-probabilities have a
    gradient: the others are for people to read."""

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
        of_each = gradients[0].float()[:, None]
        of_logits = probabilities * -of_each
        of_logits.scatter_add_(-1, targets[:, None], of_each)
        return (of_logits.to(weight.dtype) @ weight).to(ctx.dtype), None, None
