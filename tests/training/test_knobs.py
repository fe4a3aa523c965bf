"""The table of knobs, and the three places that are generated from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.learning import hyperparameters
from graftwork.adapters.learning.knobs import ALIASES, HYPERPARAMETERS, KNOBS, OPTIONS, Bounds, Hyperparameter, Knob
from graftwork.adapters.learning.knobs import Option as KnobOption
from graftwork.training import config
from graftwork.training.cli.knob_options import with_knobs
from graftwork.training.cli.train import train
from graftwork.training.config import TrainConfig
from graftwork.training.data.mix.replay import DEFAULT_REPLAY_SHARE
from graftwork.training.worker.job.plan import parse_hyperparameters

MOMENTUM = Knob(
    name="momentum",
    kind="number",
    default=0.9,
    bounds=(Bounds(least=0, below=1, expectation="must be at least 0 and below 1"),),
    help="A knob that nobody has.",
    job=Hyperparameter(least=0.0, most=0.99),
    option=KnobOption(flag="--momentum", help="A knob that nobody has."),
)


def test_a_run_has_a_field_for_each_knob_with_its_default() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    assert fields == {"method": "sft"} | {knob.name: knob.default for knob in KNOBS.values() if knob.in_config}
    assert TrainConfig().replay == DEFAULT_REPLAY_SHARE


def test_a_knob_without_a_field_is_found_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "KNOBS", {**KNOBS, "momentum": MOMENTUM})
    with pytest.raises(TypeError, match="do not agree about momentum"):
        config._check_fields()
    other = dataclasses.replace(KNOBS["variant"], choices=("lora", "full"))
    monkeypatch.setattr(config, "KNOBS", {**KNOBS, "variant": other})
    with pytest.raises(TypeError, match=r"variant is of .*rslora"):
        config._check_fields()


def test_a_knob_that_is_added_is_a_hyperparameter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hyperparameters, "HYPERPARAMETERS", {**HYPERPARAMETERS, "momentum": MOMENTUM})

    def validate(value: Any) -> dict[str, Any]:
        return hyperparameters.validate_hyperparameters({"momentum": value}, "hyperparameters", method="sft", roots=[])

    assert validate(0.5) == {"momentum": 0.5}
    with pytest.raises(InvalidRequest, match=r'hyperparameters\.momentum must be "auto" or a number from 0 to 0\.99'):
        validate(1)


def test_a_knob_that_is_added_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOBS, "momentum", MOMENTUM)  # type: ignore[arg-type]
    monkeypatch.setitem(OPTIONS, "momentum", MOMENTUM.option)  # type: ignore[arg-type]

    def command(**knobs: Any) -> None:
        typer.echo(knobs["momentum"])

    app = typer.Typer()
    app.command()(with_knobs(command))
    assert CliRunner().invoke(app, ["--momentum", "0.5"]).output == "0.5\n"


def test_the_command_has_an_option_for_each_knob_that_says_so() -> None:
    app = typer.Typer()
    app.command()(train)
    flags = {flag for parameter in typer.main.get_command(app).params for flag in parameter.opts}
    assert {option.flag for option in OPTIONS.values()} <= flags


@pytest.mark.parametrize("knob", HYPERPARAMETERS.values(), ids=lambda knob: knob.job_name)
def test_what_a_job_allows_a_run_can_do(knob: Knob) -> None:
    """The bounds of a job lie within those of a run, and a run knows every name of a job's."""
    assert knob.job is not None
    if knob.kind in ("integer", "number"):
        allowed: tuple[Any, ...] = (knob.job.least, knob.job.most)
    else:
        allowed = knob.job.choices
    # A rate of a whole 1 is in a job's bounds and always was; the run refuses it by name.
    for value in (value for value in allowed if (knob.name, value) != ("learning_rate", 1.0)):
        assert knob.expectation_missed(value) is None
        assert parse_hyperparameters({knob.job_name: value}).keys() <= {knob.name}


def test_a_default_is_within_its_bounds_and_no_name_is_taken_twice() -> None:
    for knob in KNOBS.values():
        assert knob.expectation_missed(knob.default) is None
        assert knob.help
    assert not ALIASES.keys() & KNOBS.keys()
    with pytest.raises(ConfigurationError, match="'momentum' is no hyperparameter"):
        parse_hyperparameters({"momentum": 0.5})
