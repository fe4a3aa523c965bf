"""TrainConfig: defaults by method, and checks of values."""

from __future__ import annotations

import json
from typing import Any

import pytest

from graftwork.adapters.errors import ConfigurationError
from graftwork.training.config import TrainConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("rank", 257),
        ("alpha", 0),
        ("dropout", 1.0),
        ("learning_rate", 0.0),
        ("learning_rate", 2.0),
        ("learning_rate", float("nan")),
        ("epochs", 0),
        ("epochs", float("inf")),
        ("batch_size", 0),
        ("micro_batch_tokens", 0),
        ("warmup", 1.0),
        ("weight_decay", -0.1),
        ("max_grad_norm", 0.0),
        ("max_length", 1),
        ("validation", 1.0),
        ("validation", -0.1),
        ("seed", -1),
        ("seed", 2**32),
        ("precision", "float16"),
        ("curriculum", "long_first"),
        ("targets", ()),
        ("targets", "q_proj"),
        ("targets", ("q_proj", "lm_head")),
        ("targets", ("model.lm_head",)),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=field) as refused:
        TrainConfig(**{field: value})
    assert refused.value.param == field


def test_kto_has_no_curriculum() -> None:
    with pytest.raises(ConfigurationError, match="kto") as refused:
        TrainConfig(method="kto", curriculum="short_first")
    assert refused.value.param == "curriculum"


def test_the_configuration_is_json_with_every_field() -> None:
    written = json.loads(json.dumps(TrainConfig(targets=("q_proj", "v_proj")).to_json()))
    assert written["targets"] == ["q_proj", "v_proj"]
    assert set(written) == set(TrainConfig.__dataclass_fields__)


def test_forgetting_may_be_without_a_limit_and_no_other_number_without_a_value() -> None:
    assert TrainConfig(forgetting=None).forgetting is None
    for name in ("rank", "learning_rate", "batch_size", "validation"):
        with pytest.raises((ConfigurationError, TypeError)):
            TrainConfig(**{name: None})


@pytest.mark.parametrize(
    ("num_rows", "given", "batch_size", "epochs", "rate"),
    [
        (20, {}, 4, 10, 1e-3),
        (80, {}, 4, 3, 1e-3),
        (80, {"epochs": 10.0}, 8, 10, 1e-3),
        (160, {}, 8, 3, 1e-3),
        (480, {}, 16, 3, 1e-3),
        (5000, {}, 16, 3, 5e-4),
        (80, {"batch_size": 16}, 16, 10, 1e-3),
        (80, {"batch_size": 2, "epochs": 3.0}, 2, 3, 5e-4),
        (80, {"learning_rate": 2e-4}, 4, 3, 2e-4),
        (1, {}, 4, 10, 1e-3),
        (None, {}, 16, 3, 5e-4),
    ],
)
def test_few_rows_are_learned_in_enough_steps(
    num_rows: int | None, given: dict[str, Any], batch_size: int, epochs: float, rate: float
) -> None:
    config = TrainConfig.start("sft", continuing=False, num_rows=num_rows, **given)
    assert (config.batch_size, config.epochs, config.learning_rate) == (batch_size, epochs, rate)


def test_other_methods_and_rounds_keep_their_own() -> None:
    assert TrainConfig.start("dpo", continuing=False, num_rows=20).batch_size == 16
    continued = TrainConfig.start("sft", continuing=True, num_rows=30)
    assert (continued.batch_size, continued.epochs, continued.learning_rate) == (4, 8, 2e-4)
