"""How long a run takes is said before its first step, and trying a step out changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.learning.methods import METHOD_TRAITS, TrainingMethod
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.config import TrainConfig
from graftwork.training.data.row import Row
from graftwork.training.data.tokens import TOKENIZE
from graftwork.training.methods.samplers import LengthGroupedSampler
from graftwork.training.run import callback, rehearsal, trainer
from graftwork.training.run.progress import RunMetrics, TrainingStep

WORDS = ("delivery", "pause", "cancel", "refund", "invoice")


def token_rows(base: BaseInfo, method: TrainingMethod, num_rows: int) -> Sequence[Any]:
    """Rows of all lengths, as they come."""

    def row(number: int) -> Row:
        asked = " ".join(WORDS[: number % 5 + 1]) * (number % 3 + 1)
        turns = ({"role": "user", "content": asked}, {"role": "assistant", "content": WORDS[number % 3]})
        more: dict[str, Any] = {"label": number % 2 == 0} if method == "kto" else {"rejected": "none of these"}
        return Row(messages=turns, learned=(1,), **({} if method == "sft" else more))

    tokenize = TOKENIZE[METHOD_TRAITS[method].learns_from]
    rows: Sequence[Any] = tokenize(
        map(row, range(num_rows)), Prompts(Path(base.path)), max_length=128, eos_token_id=2
    ).sequences
    return rows


def run(
    base: BaseInfo, method: TrainingMethod, folder: Path, *, num_rows: int = 20, **knobs: Any
) -> tuple[RunMetrics, list[TrainingStep]]:
    knobs = {"rank": 4, "batch_size": 8, "epochs": 2, "precision": "float32", "dropout": 0.1, **knobs}
    config = TrainConfig.start(method, continuing=False, **knobs)
    folder.mkdir()
    steps: list[TrainingStep] = []
    rows = token_rows(base, method, num_rows + 4)
    metrics = trainer.train(base, rows[4:], rows[:4], config, folder, steps.append)
    return metrics, steps


@pytest.mark.parametrize(
    "method", ["sft", "kto", *(pytest.param(each, marks=pytest.mark.slow) for each in ("dpo", "orpo", "reward_model"))]
)
def test_a_step_that_is_tried_leaves_no_trace(
    tiny_base: BaseInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: TrainingMethod
) -> None:
    tried, _ = run(tiny_base, method, tmp_path / "tried", epochs=1, micro_batch_tokens=256)
    monkeypatch.setattr(rehearsal, "expected_seconds", lambda trainer, num_steps: None)
    untried, steps = run(tiny_base, method, tmp_path / "untried", epochs=1, micro_batch_tokens=256)
    assert steps[0].seconds_left is None
    assert dataclasses.replace(tried, seconds=0) == dataclasses.replace(untried, seconds=0)
    one, other = (
        safetensors.torch.load_file(tmp_path / name / "adapter_model.safetensors") for name in ("tried", "untried")
    )
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize(
    ("method", "num_rows", "knobs"),
    [
        ("sft", 20, {}),
        ("dpo", 40, {"micro_batch_tokens": 256}),
        pytest.param("sft", 80, {"batch_size": 4, "epochs": 3}, marks=pytest.mark.slow),
        # The anchor has its turn in every fourth step alone.
        pytest.param("sft", 200, {"batch_size": 4, "epochs": 4}, marks=pytest.mark.slow),
        pytest.param("kto", 80, {}, marks=pytest.mark.slow),
        pytest.param("reward_model", 80, {}, marks=pytest.mark.slow),
    ],
)
def test_what_is_expected_is_what_it_takes(
    tiny_base: BaseInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: TrainingMethod,
    num_rows: int,
    knobs: dict[str, Any],
) -> None:
    """By a clock that goes on with every token that a model reads, and three times as fast where it learns."""
    now = 0.0
    forward = torch.nn.Embedding.forward

    def ticking(module: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += ids.numel() * (3 if torch.is_grad_enabled() else 1)
        return forward(module, ids)

    monkeypatch.setattr(torch.nn.Embedding, "forward", ticking)
    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(rehearsal, "time", clock)
    monkeypatch.setattr(callback, "time", clock)
    began: list[float] = []
    monkeypatch.setattr(
        callback.RunCallback, "_report", noting(callback.RunCallback._report, lambda: began.append(now))
    )
    _, steps = run(tiny_base, method, tmp_path / "out", num_rows=num_rows, **knobs)
    took = now - began[0]
    assert steps[0].step == 0
    assert steps[0].seconds_left == pytest.approx(took, rel=0.3)
    early = next(step for step in steps if step.step == 2)
    assert early.seconds_left is not None
    assert early.seconds + early.seconds_left == pytest.approx(took, rel=0.3)


def noting(report: Any, note: Any) -> Any:
    def noted(self: Any, **changes: Any) -> None:
        note()
        report(self, **changes)

    return noted


def test_a_typical_batch_is_as_long_as_the_mean() -> None:
    lengths = [(7 * n) % 100 for n in range(100)]
    batch = LengthGroupedSampler(lengths, 8, seed=0).typical_batch()
    assert sorted(lengths[row] for row in batch) == list(range(46, 54))
    assert len(LengthGroupedSampler([5, 6, 90], 8, seed=0).typical_batch()) == 3
    assert LengthGroupedSampler(lengths, 8, seed=0, shuffled=False).typical_batch() == list(range(8))
