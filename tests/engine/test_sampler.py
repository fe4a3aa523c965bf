"""Every backend's sampler draws what an obvious one in plain Python draws, row by row."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from graftwork.server.engine.backends.cpu import library
from graftwork.server.engine.backends.cpu.context import KernelContext
from graftwork.server.engine.backends.cpu.sampler import CpuSampler
from graftwork.server.engine.backends.torch.sampler import sample_tokens
from graftwork.server.engine.request import SamplingParams
from graftwork.server.engine.sampler import SampleTokens
from tests.conftest import TEST_HOME

NEXT_TO_ONE = math.nextafter(1.0, 0.0)
INF = float("inf")


@pytest.fixture(scope="module", params=["torch", "native"])
def sampler(request: pytest.FixtureRequest) -> SampleTokens:
    if request.param == "torch":
        return sample_tokens
    if reason := library.unavailable_reason():
        pytest.skip(reason)
    return CpuSampler(KernelContext(library.load(TEST_HOME / "kernels"), 2))


def params(temperature: float = 1.0, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> SamplingParams:
    return SamplingParams(max_tokens=1, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)


def kept(logits: Sequence[float], asked: SamplingParams) -> dict[int, float]:
    """The tokens that may be drawn and their weights, in the order of ids: definition by definition."""
    best = max(logits)
    weights = {token: math.exp((value - best) / asked.temperature) for token, value in enumerate(logits)}
    weights = {token: weight for token, weight in weights.items() if weight > 0 and weight >= asked.min_p}
    ordered = sorted(weights, key=lambda token: (-weights[token], token))
    if asked.top_k:
        ordered = ordered[: asked.top_k]
    if asked.top_p < 1:
        total, before = sum(weights[token] for token in ordered), 0.0
        nucleus = []
        for token in ordered:
            if nucleus and before >= asked.top_p * total:
                break
            nucleus.append(token)
            before += weights[token]
        ordered = nucleus
    return {token: weights[token] for token in sorted(ordered)}


def assert_drawn(logits: Tensor, asked: SamplingParams, uniform: float, token: int) -> None:
    """``token`` is the one at ``uniform`` of what may be drawn, but for what float32 rounds."""
    weights = kept(logits.tolist(), asked)
    assert token in weights
    total = sum(weights.values())
    before = sum(weight for other, weight in weights.items() if other < token) / total
    assert before - 1e-5 <= uniform <= before + weights[token] / total + 1e-5


def rows_like_a_language_model(num_rows: int, vocabulary: int, seed: int) -> Tensor:
    """A few likely tokens, and a long tail."""
    generator = torch.Generator().manual_seed(seed)
    tail = torch.randn(num_rows, vocabulary, generator=generator) * 2
    few = torch.randint(0, vocabulary, (num_rows, 30), generator=generator)
    return tail.scatter_add(1, few, torch.rand(num_rows, 30, generator=generator) * 12)


ASKED = [
    params(temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for temperature, top_k, top_p, min_p in itertools.product(
        (0.3, 1.0, 2.0), (0, 1, 7, 40), (0.05, 0.9, 1.0), (0.0, 0.1)
    )
]


@pytest.mark.parametrize("vocabulary", [5, 50, 3000])
def test_each_draw_is_by_definition(sampler: SampleTokens, vocabulary: int) -> None:
    rng = random.Random(vocabulary)
    logits = rows_like_a_language_model(len(ASKED), vocabulary, seed=vocabulary)
    logits[::7] = logits[::7].round()  # many are equal
    uniform = [rng.choice([0.0, rng.random(), NEXT_TO_ONE]) for _ in ASKED]
    for row, asked, at, token in zip(logits, ASKED, uniform, sampler(logits, ASKED, uniform), strict=True):
        assert_drawn(row, asked, at, token)


@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_of_a_whole_vocabulary(sampler: SampleTokens, spread: float) -> None:
    """Likely and flat rows, where next to all tokens are in the nucleus."""
    asked = [params(0.7, top_p=0.9), params(), params(1.5, top_p=0.999), params(top_k=50), params(min_p=0.02)] * 3
    logits = rows_like_a_language_model(len(asked), 49_152, seed=3) * spread
    uniform = [random.Random(i).random() for i in range(len(asked))]
    for row, one, at, token in zip(logits, asked, uniform, sampler(logits, asked, uniform), strict=True):
        assert_drawn(row, one, at, token)


def test_shares_are_those_of_the_weights(sampler: SampleTokens) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0, -INF]])
    num_draws = 4000
    uniform = [(i + 0.5) / num_draws for i in range(num_draws)]
    for asked in (params(), params(0.5), params(top_p=0.8), params(top_k=3), params(min_p=0.1)):
        tokens = sampler(logits.expand(num_draws, -1), [asked] * num_draws, uniform)
        weights = kept(logits[0].tolist(), asked)
        for token, weight in weights.items():
            assert tokens.count(token) / num_draws == pytest.approx(weight / sum(weights.values()), abs=2 / num_draws)
        assert set(tokens) == set(weights)


def test_greedy_takes_the_first_of_the_largest(sampler: SampleTokens) -> None:
    logits = torch.zeros(3, 100)
    logits[0, [70, 20, 21]] = 5.0
    logits[1] = -INF
    logits[1, 99] = -1e30
    logits[2, :] = -3.0
    assert sampler(logits, [params(0.0, top_p=0.5)] * 3, [0.5] * 3) == [20, 99, 0]
    assert sampler(logits, [params(top_k=1)] * 3, [NEXT_TO_ONE] * 3) == [20, 99, 0]
    assert sampler(logits, [params(1e-38)] * 2, [0.0] * 2)[1] == 99


@pytest.mark.parametrize("at", [0.0, 0.5, NEXT_TO_ONE])
def test_what_is_forbidden_is_never_drawn(sampler: SampleTokens, at: float) -> None:
    logits = torch.full((4, 5000), -INF)
    logits[:, 2000:2003] = 1.0
    asked = [params(), params(top_p=0.99), params(top_k=40), params(min_p=1.0)]
    assert set(sampler(logits, asked, [at] * 4)) <= {2000, 2001, 2002}


@pytest.mark.parametrize("place", [0, 15, 16, 4999])
@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_what_is_not_finite_is_no_choice(sampler: SampleTokens, place: int, bad: float) -> None:
    logits = torch.zeros(5, 5000)
    logits[:4, place] = bad
    asked = [params(0.0), params(), params(top_p=0.5), params(top_k=5), params(0.0)]
    assert sampler(logits, asked, [0.3] * 5) == [-1, -1, -1, -1, 0]
    assert sampler(torch.full((2, 50), -INF), [params(0.0), params()], [0.3] * 2) == [-1, -1]


def test_a_row_does_not_depend_on_its_neighbours(sampler: SampleTokens) -> None:
    logits = rows_like_a_language_model(len(ASKED), 2000, seed=1)
    uniform = [random.Random(i).random() for i in range(len(ASKED))]
    together = sampler(logits, ASKED, uniform)
    alone = [sampler(logits[i : i + 1], ASKED[i : i + 1], uniform[i : i + 1])[0] for i in range(len(ASKED))]
    assert together == alone
    assert sampler(logits.flip(0), ASKED[::-1], uniform[::-1])[::-1] == together
