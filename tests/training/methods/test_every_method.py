"""Whoever adds a method meets it here in every table and page that needs an entry for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from graftwork.__main__ import app
from graftwork.adapters.learning.job import METHODS
from graftwork.adapters.learning.methods import METHOD_TRAITS, TRAINING_METHODS, LearnsFrom, TrainingMethod
from graftwork.server.http.routes.fine_tuning.jobs import OPENAI_METHODS
from graftwork.training.config import CONTINUED_RATES, FRESH_RATES, TrainConfig
from graftwork.training.data.tokens import TOKENIZE
from graftwork.training.methods import factory, rows
from tests.conftest import CHECKOUT
from tests.server.documented import document

TABLES: dict[str, Mapping[Any, Any]] = {
    "METHOD_TRAITS": METHOD_TRAITS,
    "FRESH_RATES": FRESH_RATES,
    "CONTINUED_RATES": CONTINUED_RATES,
    "_RECIPES": factory._RECIPES,
    "_ROUTES": rows._ROUTES,
}
NEEDS: dict[TrainingMethod, dict[str, Any]] = {
    "distillation": {"teacher": "a-larger-one"},
    "grpo": {"rewards": ("exact",)},
}
"""What a run of the method cannot do without."""


@pytest.mark.parametrize("table", TABLES)
def test_every_table_has_every_method(table: str) -> None:
    assert set(TABLES[table]) == set(TRAINING_METHODS)


def test_whatever_a_method_learns_from_can_be_tokenized() -> None:
    assert set(TOKENIZE) == set(get_args(LearnsFrom))


@pytest.mark.parametrize("method", TRAINING_METHODS)
def test_a_run_can_be_set_up(method: TrainingMethod) -> None:
    for continuing in (False, True):
        config = TrainConfig.start(method, continuing=continuing, **NEEDS.get(method, {}))
        assert config.method == method


def test_every_method_has_its_name_over_http() -> None:
    assert list(METHODS.values()) == [*TRAINING_METHODS, "auto"]
    assert {method: METHODS[name] for method, name in OPENAI_METHODS.items()} == {m: m for m in OPENAI_METHODS}
    policy = document()["components"]["schemas"]["NewLearningPolicy"]
    assert policy["properties"]["method"]["enum"] == list(METHODS)


def test_the_command_line_names_every_method() -> None:
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "300"}).output
    assert all(re.search(rf"\b{name}\b", shown) for name in METHODS)


@pytest.mark.parametrize("page", ["docs/learning.md", "docs/api.md"])
def test_the_pages_name_every_method(page: str) -> None:
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    names = TRAINING_METHODS if page == "docs/learning.md" else METHODS
    assert [name for name in names if not re.search(rf"`{name}`|\"{name}\"", text)] == []
