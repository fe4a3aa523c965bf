"""The loss head equals TRL's implementation, which is used for many positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import trl
from trl.kernels import ChunkedLogProbFunction

from graftwork.training.model import head

WORDS, SIZE, CHUNK = 1000, 32, 300
OUTPUTS = ("log_probs", "entropy", "is_top1")


def drawn(places: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(places)
    hidden = torch.randn(places, SIZE, dtype=dtype, requires_grad=True)
    weight = torch.randn(WORDS, SIZE, dtype=dtype)
    targets = torch.randint(WORDS, (places,))
    with torch.no_grad():  # the likeliest, at every other place
        targets[::2] = (hidden @ weight.T).argmax(-1)[::2]
    return hidden, weight, targets


def said(function: Any, places: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Its outputs and the gradient of a weighted sum of the log-probabilities."""
    hidden, weight, targets = drawn(places, dtype)
    with (
        head.fast_loss_head()
    ):  # as in a run: TRL's own is then the one for CPUs, and its places are those that are given
        outputs = function.apply(hidden, weight, None, targets, 1.0, CHUNK, None, 1.0, OUTPUTS)
    (outputs[0] * torch.linspace(-1, 2, places)).sum().backward()
    assert hidden.grad is not None
    return [output.detach() for output in outputs if output is not None], hidden.grad


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("places", [1, 7])
def test_at_once_is_what_trl_says_in_chunks(dtype: torch.dtype, close: float, places: int) -> None:
    ours, grad = said(head.LossHead, places, dtype)
    theirs, expected = said(ChunkedLogProbFunction, places, dtype)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine.dtype == wanted.dtype
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
    assert grad.dtype == expected.dtype
    torch.testing.assert_close(grad, expected, rtol=close, atol=close)


def test_no_learned_place_is_no_error() -> None:
    hidden, weight, targets = drawn(3, torch.float32)
    outputs = head.LossHead.apply(hidden[:0], weight, None, targets[:0], 1.0, CHUNK, None, 1.0, OUTPUTS)
    assert outputs[0] is not None
    outputs[0].sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize(
    "other",
    [{"temperature": 2.0}, {"softcap": 30.0}, {"scale": 0.5}, {"outputs": ("log_probs", "mean_logits")}, {"few": 1}],
)
def test_what_is_not_plain_or_not_few_is_trls(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "MAX_LOGITS", other.pop("few", head.MAX_LOGITS))
    hidden, weight, targets = drawn(5, torch.float32)
    how = {"temperature": 1.0, "softcap": None, "scale": 1.0, "outputs": OUTPUTS} | other
    given = (how["temperature"], CHUNK, how["softcap"], how["scale"], how["outputs"])
    with head.fast_loss_head():
        ours = head.LossHead.apply(hidden, weight, None, targets, *given)
        theirs = ChunkedLogProbFunction.apply(hidden, weight, None, targets, *given)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert (mine is None) == (wanted is None)
        assert mine is None or torch.equal(mine, wanted)


def test_trl_is_as_it_was_afterwards() -> None:
    utils: Any = trl.trainer.utils
    before = utils._use_triton, utils._ChunkedLogProbFunction
    with head.fast_loss_head():
        assert utils._ChunkedLogProbFunction is head.LossHead
    assert (utils._use_triton, utils._ChunkedLogProbFunction) == before
    assert before[1] is ChunkedLogProbFunction
    assert not before[0](torch.device("cpu"))
