"""Experiment trackers, with a real one and a real run."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.learning import trackers
from graftwork.training.config import TrainConfig
from graftwork.training.run import tracking
from graftwork.training.worker.job.runner import JobRunner
from graftwork.training.worker.job.spec import JobSpec
from tests.training.conftest import chat

ROWS = [chat(f"Ticket {number}", "delivery" if number % 2 else "pause") for number in range(24)]
QUICK = {"rank": 2, "batch_size": 8, "num_epochs": 1, "precision": "float32"}
KEY = "hf_secretsecretsecret"


@pytest.fixture(scope="module", autouse=True)
def trackio_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where trackio writes. It reads that once, when it is imported."""
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def _sigterm_as_it_was() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def make_job(tiny_base: BaseInfo, write_rows: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def make(**hyperparameters: Any) -> Path:
        folder = tmp_path / "jobs" / "ftjob-1"
        folder.mkdir(parents=True)
        data = write_rows(*ROWS)
        knobs = {**QUICK, **hyperparameters}
        JobSpec(job_id="ftjob-1", name="tickets", base=tiny_base, data=(data,), hyperparameters=knobs).write(folder)
        return folder

    return make


@pytest.mark.slow
def test_trackio_is_told_every_trial_as_a_run_of_its_own(
    make_job: Callable[..., Path], trackio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the tracker needs to know comes from the environment, and no secret goes further."""
    monkeypatch.setenv("HF_TOKEN", KEY)
    folder = make_job(search=2, report_to=["trackio"])
    assert JobRunner(folder).run() == 0
    found = json.loads((folder / "result.json").read_text())
    assert found["card"]["config"]["report_to"] == ["trackio"]

    database = sqlite3.connect(trackio_folder / "graftwork.db")
    told = database.execute("select run_name, metrics from metrics order by id").fetchall()
    configs = dict(database.execute("select run_name, config from configs").fetchall())
    database.close()
    runs = {name: [json.loads(metrics) for run, metrics in told if run == name] for name, _ in told}
    assert list(runs) == ["tickets ftjob-1 trial 1", "tickets ftjob-1 trial 2"]
    for (name, metrics), trial in zip(runs.items(), found["card"]["search"], strict=True):
        steps = [line["train/global_step"] for line in metrics if "train/loss" in line]
        assert steps == list(range(1, len(steps) + 1))
        losses = [line["eval/validation_loss"] for line in metrics if "eval/validation_loss" in line]
        assert losses[-1] == pytest.approx(trial["loss"], rel=1e-5)
        assert json.loads(configs[name])["learning_rate"] == pytest.approx(trial["learning_rate"])
    for path in (path for root in (tmp_path, trackio_folder) for path in root.rglob("*") if path.is_file()):
        assert KEY.encode() not in path.read_bytes(), path


def test_nobody_is_told_unless_asked(make_job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where trackers are installed and set up."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a tracker was told")

    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/space")
    monkeypatch.setattr("transformers.integrations.TrackioCallback.__init__", refuse)
    assert JobRunner(make_job()).run() == 0


def test_a_tracker_that_is_not_installed_is_named_with_its_package(make_job: Callable[..., Path]) -> None:
    folder = make_job(report_to=["wandb"])
    assert JobRunner(folder).run() == 1
    error = json.loads((folder / "result.json").read_text())["error"]
    assert (error["code"], error["param"]) == ("tracker_not_installed", "report_to")
    assert "pip install wandb" in error["message"]


def test_a_tracker_that_fails_says_so_without_secrets(
    make_job: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise ConnectionError(f"401 for {KEY} at https://ann:sesame@tracker.example/api")

    monkeypatch.setenv("HF_TOKEN", KEY)
    monkeypatch.setattr("transformers.integrations.TrackioCallback.setup", refused)
    folder = make_job(report_to=["trackio"])
    assert JobRunner(folder).run() == 1
    error = json.loads((folder / "result.json").read_text())["error"]
    assert error["code"] == "tracker_failed"
    assert "trackio (ConnectionError: 401 for *** at https://***@tracker.example/api)" in error["message"]
    assert not (folder / "adapter").exists()


def test_a_folder_of_the_trackers_name_is_not_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidRequest, match="wandb is not installed"):
        trackers.check(["wandb"])
    trackers.check(["trackio"])
    trackers.check([])


@pytest.mark.parametrize("names", [["tensorboard"], ["trackio", "all"], ["none"], ["os"]])
def test_only_known_trackers_may_be_named(names: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="is no tracker: choose among wandb, mlflow, trackio"):
        trackers.check(names)
    with pytest.raises(ConfigurationError, match="names trackers"):
        TrainConfig(report_to=tuple(names))


def test_no_library_reports_to_its_makers() -> None:
    import graftwork.training.run.trainer  # noqa: F401 - sets the environment

    assert {name: os.environ.get(name) for name in tracking.SILENT} == dict(tracking.SILENT)
