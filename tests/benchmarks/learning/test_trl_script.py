"""The plain TRL script of the benchmarks on a tiny model: it respects its time limit, learns and answers."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.learning import trl_script
from benchmarks.learning.training_speed import rows
from graftwork.adapters.base import BaseInfo


@pytest.mark.parametrize(("seconds", "num_steps"), [(600.0, 6), (0.0, 1)])
def test_as_many_passes_as_time_allows(tiny_base: BaseInfo, seconds: float, num_steps: int) -> None:
    asked: dict[str, Any] = {
        "base": tiny_base.path,
        "rows": rows(12),
        "batch_size": 4,
        "epochs": 2,
        "learning_rate": 1e-3,
        "seconds": seconds,
        "questions": [row["prompt"] for row in rows(3)],
        "max_tokens": 2,
    }
    told = trl_script.learn(asked)
    assert told["num_steps"] == num_steps
    assert told["tokens"] > 0
    assert told["seconds"] > 0
    assert len(told["answers"]) == 3
    assert all(isinstance(answer, str) for answer in told["answers"])
