"""Hyperparameter search: proposals, pruning, and resumption."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import ConfigurationError, GraftworkError, InvalidRequest
from graftwork.training.config import TrainConfig
from graftwork.training.run import callback, checkpoints
from graftwork.training.run import trainer as trainer_module
from graftwork.training.run.card import Card
from graftwork.training.run.estimate import estimate_cost
from graftwork.training.run.plan import TrainingRun, plan_run
from graftwork.training.run.progress import RunMetrics, TrainingStep
from graftwork.training.run.search import STUDY_FILE, ranks, search
from graftwork.training.worker import events
from graftwork.training.worker.job.runner import JobRunner
from graftwork.training.worker.job.spec import JobSpec
from tests.training.conftest import chat
from tests.training.run_files import progress, result

LABELS = ("delivery", "pause", "cancel")
QUICK = {"rank": 4, "learning_rate": 1e-2, "batch_size": 8, "num_epochs": 2, "precision": "float32"}
ROWS = [chat(f"Ticket {number} about {LABELS[number % 3]}", LABELS[number % 3]) for number in range(40)]


@pytest.fixture(autouse=True)
def _sigterm_as_it_was() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def make_job(tiny_base: BaseInfo, write_rows: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def make(id: str, trials: int, **hyperparameters: Any) -> Path:
        folder = tmp_path / "jobs" / id
        folder.mkdir(parents=True)
        data = write_rows(*ROWS, name=f"{id}.jsonl")
        knobs = {**QUICK, "search": trials, **hyperparameters}
        JobSpec(job_id=id, name="tickets", base=tiny_base, data=(data,), hyperparameters=knobs).write(folder)
        return folder

    return make


def messages(folder: Path) -> list[str]:
    return [line["message"] for line in progress(folder) if "message" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")


# --- with a model that learns -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_best_of_all_trials_is_the_result(make_job: Callable[..., Path]) -> None:
    folder = make_job("ftjob-1", 3)
    assert JobRunner(folder).run() == 0
    found = result(folder)
    trials = found["card"]["search"]
    assert [trial["number"] for trial in trials] == [1, 2, 3]
    assert (trials[0]["learning_rate"], trials[0]["rank"], trials[0]["epochs"]) == (1e-2, 4, 2.0), "as it was asked for"
    assert len({trial["learning_rate"] for trial in trials}) == 3
    (best,) = [trial for trial in trials if trial["best"]]
    assert best["loss"] == min(trial["loss"] for trial in trials) == found["metrics"]["validation_loss"]
    config = found["card"]["config"]
    assert {name: config[name] for name in ("learning_rate", "rank", "epochs")} == {
        name: best[name] for name in ("learning_rate", "rank", "epochs")
    }
    assert config["alpha"] == 2 * best["rank"]
    assert {tensor.shape[0] for name, tensor in weights(folder).items() if "lora_A" in name} == {best["rank"]}
    card = (folder / "adapter" / "README.md").read_text()
    assert f"| {best['number']} (this version) |" in card
    assert card.count("| finished |") == 3

    steps = [line for line in progress(folder) if line.get("loss") is not None and line["phase"] == "train"]
    assert {(line["trial"], line["trials"]) for line in steps} == {(1, 3), (2, 3), (3, 3)}
    numbers = list(dict.fromkeys(line["step"] for line in steps))
    assert numbers == list(range(1, len(numbers) + 1)), "one count through all trials"
    assert steps[0]["total"] > 2 * steps[len(steps) // 3]["step"], "from the first step on, all are counted"
    assert steps[0]["eta_seconds"] > 0
    assert (steps[-1]["step"], steps[-1]["eta_seconds"]) == (steps[-1]["total"], 0)
    assert len(events.results_csv(folder).splitlines()) == len(numbers) + 2  # the head, and what the base makes of them
    news = events.read_progress(folder, 0, {})
    assert (news.progress["trial"], news.progress["trials"]) == (3, 3)
    assert len(news.checkpoints) == sum(bool("checkpoint" in line) for line in progress(folder))
    assert not (folder / "trials").exists()


@pytest.mark.slow
def test_killed_in_a_trial_it_goes_on_in_that_trial_to_the_same_bits(make_job: Callable[..., Path]) -> None:
    often = {"checkpoint_steps": 1, "num_epochs": 3}
    whole = make_job("ftjob-whole", 2, **often)
    assert JobRunner(whole).run() == 0
    folder = make_job("ftjob-killed", 2, **often)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([sys.executable, "-m", "graftwork.training.worker.job", str(folder)], env=environment)
    try:
        deadline = time.monotonic() + 300
        while not any(folder.glob("trials/trial-2/checkpoints/step-*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        code = process.wait(300)
    finally:
        process.kill()
    if code == 0:
        pytest.skip("the run was quicker than the signal")
    assert not (folder / "result.json").exists()
    before = len(progress(folder))
    assert JobRunner(folder).run() == 0
    assert all(torch.equal(weights(folder)[name], tensor) for name, tensor in weights(whole).items())
    cards = [result(each)["card"] for each in (folder, whole)]
    assert cards[0]["search"] == cards[1]["search"]
    afterwards = progress(folder)[before:]
    assert any("goes on after trial 1 of 2" in line.get("message", "") for line in afterwards)
    steps = [line for line in afterwards if line.get("loss") is not None and line["phase"] == "train"]
    assert {line["trial"] for line in steps} <= {2}, "what had ended is not done again"


# --- with one that only says how well it did --------------------------------------------------------------------------


class Learner:
    """In the trainer's place: tells a step an epoch, and a loss that is the rate's distance from a good one. ``spoil``
    is asked before each step, and may raise what goes wrong there."""

    def __init__(self) -> None:
        self.begun: list[TrainConfig] = []
        self.spoil: Callable[[int, int], None] = lambda trial, epoch: None

    def __call__(self, base: Any, rows: Any, validation: Any, config: TrainConfig, folder: Path, on_step: Any, **_: Any
    ) -> RunMetrics:  # fmt: skip
        self.begun.append(config)
        loss = abs(config.learning_rate - 0.02) * 100
        epochs = int(config.epochs)
        step = TrainingStep(
            step=0, num_steps=epochs, loss=None, learning_rate=None, num_tokens=0, seconds=0.0, validation_loss=9.0
        )
        on_step(step)
        for epoch in range(1, epochs + 1):
            self.spoil(len(self.begun), epoch)
            step = dataclasses.replace(step, step=epoch, loss=1.0, num_tokens=10 * epoch, seconds=1.0 * epoch)
            on_step(step)
            step = dataclasses.replace(step, validation_loss=loss + epochs - epoch)
            on_step(step)
        (folder / "adapter_config.json").write_text(json.dumps({"target_modules": ["b", "a"]}))
        (folder / "adapter_model.safetensors").write_text(f"{config.learning_rate} {config.rank} {config.epochs}")
        return RunMetrics(
            num_steps=epochs,
            num_tokens=10 * epochs,
            seconds=1.0 * epochs,
            first_loss=9.0,
            last_loss=loss,
            base_validation_loss=9.0,
            validation_loss=loss,
            validation_token_accuracy=0.5,
            num_trainable=1,
            device="cpu",
            precision="float32",
        )


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> Learner:
    learner = Learner()
    monkeypatch.setattr(trainer_module, "train", learner)
    monkeypatch.setattr("graftwork.training.run.search.gc.collect", lambda: 0)  # slow, and there is no model
    return learner


@pytest.fixture
def run(tiny_base: BaseInfo, write_rows: Callable[..., Path]) -> TrainingRun:
    config = TrainConfig(rank=4, alpha=8, learning_rate=1e-2, epochs=3, batch_size=64, validation=0.2, search=12)
    return plan_run(name="tickets", data=write_rows(*ROWS), base=tiny_base, config=config)


def searched(run: TrainingRun, place: Path, **others: Any) -> Card:
    return search(run, place / "out", others.pop("on_step", lambda step: None), place=place, **others)


def test_what_is_tried_lies_around_what_was_asked_for_and_nears_the_best(
    run: TrainingRun, learner: Learner, tmp_path: Path
) -> None:
    said: list[str] = []
    steps: list[TrainingStep] = []
    card = searched(run, tmp_path / "a", say=said.append, on_step=steps.append)
    assert len(card.trials) == len(learner.begun) == 12
    for config in learner.begun:
        assert 0.0025 <= config.learning_rate <= 0.04
        assert config.rank in (2, 4, 8)
        assert config.alpha == 2 * config.rank
        assert 2 <= config.epochs <= 5
        assert (config.seed, config.batch_size) == (run.config.seed, 64)
    assert {config.rank for config in learner.begun} == {2, 4, 8}
    best = next(trial for trial in card.trials if trial.best)
    assert best.loss == min(
        trial.loss for trial in card.trials if trial.outcome == "finished" and trial.loss is not None
    )
    assert best.number > 1, "better than without a search"
    assert said[-1].startswith(f"The best of 12 trials is {best.number}: learning rate {best.learning_rate:.3g}")
    pruned = [trial for trial in card.trials if trial.outcome == "pruned"]
    assert pruned
    assert all("worse than the median" in trial.reason for trial in pruned)
    assert all(trial.number > 3 for trial in pruned)
    assert [step.trial for step in steps] == sorted(step.trial for step in steps)
    assert [path.name for path in (tmp_path / "a" / "trials").iterdir()] == [f"trial-{best.number}"]

    again = searched(run, tmp_path / "b")
    assert again.trials == card.trials, "the same seed tries the same"
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, seed=1))
    assert searched(other, tmp_path / "c").trials[1:] != card.trials[1:]


@pytest.mark.parametrize("killed_at", [(1, 1), (2, 2), (12, 1)])
def test_ended_in_any_trial_it_tries_what_it_would_have_tried(
    run: TrainingRun, learner: Learner, tmp_path: Path, killed_at: tuple[int, int]
) -> None:
    whole = searched(run, tmp_path / "whole")
    learner.begun.clear()

    def end(trial: int, epoch: int) -> None:
        if (trial, epoch) == killed_at:
            raise KeyboardInterrupt

    learner.spoil = end
    with pytest.raises(KeyboardInterrupt):
        searched(run, tmp_path / "ended")
    with (tmp_path / "ended" / STUDY_FILE).open("ab") as study:
        study.write(b'{"op_code": 5, "worker')  # as a power cut leaves it
    learner.spoil = lambda trial, epoch: None
    card = searched(run, tmp_path / "ended")
    assert card.trials == whole.trials
    assert len(learner.begun) == 13, "one of them twice"
    assert learner.begun[killed_at[0] - 1] == learner.begun[killed_at[0]]
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "out").iterdir() if path.suffix != ".md"}
        for name in ("whole", "ended")
    ]
    assert files[0] == files[1]


def test_a_result_that_was_lost_is_there_again_without_a_trial(
    run: TrainingRun, learner: Learner, tmp_path: Path
) -> None:
    card = searched(run, tmp_path)
    (tmp_path / "out").rename(tmp_path / "lost")
    learner.begun.clear()
    assert searched(run, tmp_path) == card
    assert learner.begun == []


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (callback.diverged("The loss is nan at step 3 of 9"), "failed", "loss is nan"),
        (GraftworkError("Even one row does not fit.", code="out_of_memory"), "failed", "does not fit"),
        (OSError(errno.ENOSPC, "No space left on device"), "failed", "disk is full"),
    ],
)
def test_a_trial_that_fails_is_left_out_and_the_others_go_on(
    run: TrainingRun, learner: Learner, tmp_path: Path, error: Exception, outcome: str, reason: str
) -> None:
    def fail(trial: int, epoch: int) -> None:
        if trial == 2:
            raise error

    learner.spoil = fail
    card = searched(run, tmp_path)
    assert (card.trials[1].outcome, card.trials[1].best) == (outcome, False)
    assert reason in card.trials[1].reason
    assert len(learner.begun) == len(card.trials) == 12
    assert sum(trial.outcome == "finished" for trial in card.trials) > 3
    assert json.loads(json.dumps(card.to_json()))["search"][1]["reason"] == card.trials[1].reason


def test_a_loss_that_is_no_number_is_no_result(
    run: TrainingRun, learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan(*arguments: Any, **others: Any) -> RunMetrics:
        *before, on_step = arguments
        return learner(*before, lambda step: on_step(dataclasses.replace(step, validation_loss=float("nan"))), **others)

    monkeypatch.setattr(trainer_module, "train", nan)
    with pytest.raises(GraftworkError, match="None of the 12 trials came to a result") as ended:
        searched(run, tmp_path)
    assert ended.value.code == "training_diverged"


def test_when_all_fail_the_job_fails_with_the_reason(make_job: Callable[..., Path], learner: Learner) -> None:
    def fail(trial: int, epoch: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    learner.spoil = fail
    folder = make_job("ftjob-1", 2)
    assert JobRunner(folder).run() == 1
    error = result(folder)["error"]
    assert error["code"] == "disk_full"
    assert "None of the 2 trials came to a result. The last one: The disk is full" in error["message"]
    assert not (folder / "adapter").exists()
    assert len(learner.begun) == 2


def test_what_is_wrong_with_the_run_itself_ends_the_search_at_once(
    run: TrainingRun, learner: Learner, tmp_path: Path
) -> None:
    def fail(trial: int, epoch: int) -> None:
        raise ConfigurationError("The base has no such module.", param="targets")

    learner.spoil = fail
    with pytest.raises(ConfigurationError):
        searched(run, tmp_path)
    assert len(learner.begun) == 1


def test_asked_to_end_it_ends_between_trials_and_goes_on(run: TrainingRun, learner: Learner, tmp_path: Path) -> None:
    keeping = checkpoints.Checkpointing(folder=tmp_path / "checkpoints", should_stop=lambda: len(learner.begun) == 2)
    with pytest.raises(checkpoints.RunStopped):
        searched(run, tmp_path, keeping=keeping)
    assert len(learner.begun) == 2
    assert len(searched(run, tmp_path).trials) == len(learner.begun) == 12


def test_a_continued_adapter_keeps_its_rank(run: TrainingRun, learner: Learner, tmp_path: Path) -> None:
    from graftwork.training.run.plan import ParentVersion

    continued = dataclasses.replace(run, parent=ParentVersion(name="tickets", version=1, folder=tmp_path))
    searched(continued, tmp_path / "place")
    assert {config.rank for config in learner.begun} == {4}
    assert len({config.epochs for config in learner.begun}) > 1


def test_nothing_is_searched_without_rows_to_compare_by(run: TrainingRun, learner: Learner, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="held-out rows, and there are none"):
        searched(dataclasses.replace(run, validation=()), tmp_path / "place")
    assert not (tmp_path / "place").exists()


def test_the_estimate_covers_all_trials(tiny_base: BaseInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftwork.training.run.estimate._operations_per_second", lambda precision: 1e9)

    def estimated(trials: int) -> Any:
        config = TrainConfig(search=trials)
        return estimate_cost(tiny_base, config, num_tokens=1000, longest=10, num_learned=100, precision="float32")

    assert estimated(8).seconds == pytest.approx(8 * estimated(0).seconds)
    assert estimated(8).memory_bytes > estimated(0).memory_bytes, "the largest rank that is tried counts"


def test_ranks_stay_within_what_is_served() -> None:
    assert ranks(16) == (8, 16, 32)
    assert ranks(1) == (1, 2)
    assert ranks(256) == (128, 256)


@pytest.mark.parametrize("trials", [1, -1, 101])
def test_the_number_of_trials_is_bounded(trials: int) -> None:
    with pytest.raises(ConfigurationError, match="2 to 100"):
        TrainConfig(search=trials)
