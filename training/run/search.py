"""Hyperparameter search: trials of a run with other learning rates, ranks and epochs; the best validation loss wins.

Optuna proposes the values (TPE; the first trial is the run as configured) and prunes trials that are worse than the
median of the others after the same number of epochs. All trials use the same rows and splits; each has checkpoints of
its own. The study is a journal file of Optuna in the run's folder, so that an interrupted search resumes with the
running trial, from its newest checkpoint, and proposes the same values as if it had not been interrupted.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import secrets
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from graftwork.adapters.errors import GraftworkError, InvalidRequest
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.storage.durable import DISK_FULL, is_disk_full
from graftwork.training.config import TrainConfig
from graftwork.training.run.card import Card, seal
from graftwork.training.run.execution import card_of, check_free, execute
from graftwork.training.run.folder import ADAPTER_FOLDER, CHECKPOINTS_FOLDER, TRIALS_FOLDER
from graftwork.training.run.plan import TrainingRun
from graftwork.training.run.progress import RunMetrics, SearchTrial, StepListener, TrainingStep

if TYPE_CHECKING:
    from graftwork.training.run.checkpoints import Checkpointing

STUDY_FILE: Final = "search.log"
"""Optuna's journal in the folder of a search. Beside it, `TRIALS_FOLDER` has a folder for the running trial and one for
the best one so far."""

NON_FATAL_CODES: Final = frozenset({"training_diverged", "out_of_memory"})
"""Error codes that end a trial but not the search."""

RATE_FACTOR: Final = 4.0
"""The learning rate is searched from a quarter of the configured one to four times it."""
PRUNER_STARTUP_TRIALS: Final = 3
"""Number of finished trials before others are pruned."""

_SPENT: Final = ("steps", "tokens", "seconds")


class _TrialPruned(Exception):
    """Raised to end a trial that is worse than the median of the others."""


def search(
    run: TrainingRun,
    folder: Path,
    on_step: StepListener,
    keeping: Checkpointing | None = None,
    *,
    place: Path,
    run_name: str = "",
    say: Callable[[str], None] = lambda message: None,
) -> Card:
    """Run ``run.config.search`` trials, and publish the best one's PEFT folder.

    Args:
        run: the run.
        folder: the PEFT folder to create; it must be free.
        on_step: called after each step; steps are counted through all trials.
        keeping: how checkpoints are saved; their steps are counted through all trials. None saves none.
        place: folder of the study and its trials. A search that was begun there is resumed.
        run_name: name of the run in trackers; the adapter's name by default.
        say: called with messages for people.

    Returns:
        The model card of the best trial, with a summary of all trials.

    Raises:
        InvalidRequest: if there are no validation rows.
        GraftworkError: if no trial succeeds, with the code of the last one; or as `execute` raises it.
        RunStopped: if the search was asked to stop.
    """
    if not run.validation:
        raise InvalidRequest(
            "A search compares trials by the loss on held-out rows, and there are none. Hold rows back, or leave "
            "search out.",
            param="search",
        )
    check_free(folder)
    place.mkdir(parents=True, exist_ok=True)
    return _Search(run, place, on_step, keeping, run_name or run.name, say).run_all(folder)


class _Search:
    def __init__(
        self,
        run: TrainingRun,
        place: Path,
        on_step: StepListener,
        keeping: Checkpointing | None,
        run_name: str,
        say: Callable[[str], None],
    ) -> None:
        self.run = run
        self._place = place
        self.on_step = on_step
        self._keeping = keeping
        self._run_name = run_name
        self._say = say
        self.wanted = run.config.search
        self._space = _space(run)
        self.study = _open_study(place / STUDY_FILE)

    # --- one trial after another --------------------------------------------------------------------------------------

    def run_all(self, folder: Path) -> Card:
        if self._keeping is not None and self._ended():
            self._say(f"The search goes on after trial {len(self._ended())} of {self.wanted}.")
        while len(self._ended()) < self.wanted:
            self._sweep()
            self._stop_if_asked()
            self._run_trial(self._next())
            gc.collect()  # a model in a reference cycle would stay in memory beside the next one
        self._sweep()
        best = self._best()
        if best is None:
            last = self._ended()[-1].user_attrs
            raise GraftworkError(
                f"None of the {self.wanted} trials came to a result. The last one: {last['reason']}", code=last["code"]
            )
        self._say(f"The best of {self.wanted} trials is {best.number + 1}: {_describe(self.run.config, best.params)}.")
        return self._publish_best(best, folder)

    def _next(self) -> optuna.trial.Trial:
        """Return the trial that was running when the search was interrupted, or a new one."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                return optuna.trial.Trial(self.study, trial._trial_id)
        if not trials:
            self.study.enqueue_trial({name: getattr(self.run.config, name) for name in self._space})
        return self.study.ask()

    def _run_trial(self, trial: optuna.trial.Trial) -> None:
        config = self._proposed(trial)
        number, place = trial.number + 1, self._trial_place(trial.number)
        self._say(f"Trial {number} of {self.wanted}: {_describe(self.run.config, trial.params)}.")
        for leftover in (place / ADAPTER_FOLDER, *place.glob(f".{ADAPTER_FOLDER}.partial-*")):
            shutil.rmtree(leftover, ignore_errors=True)  # of an attempt that was killed
        listener = _TrialListener(self, trial, config)
        reason, code, loss = "", "", None
        try:
            card = execute(
                dataclasses.replace(self.run, config=config),
                place / ADAPTER_FOLDER,
                listener,
                self._checkpointing(trial, place),
                run_name=f"{self._run_name} trial {number}",
            )
            if card.metrics.validation_loss is None:
                raise InvalidRequest(
                    f"{config.method} measures no loss on held-out rows, by which a search compares: leave search out.",
                    param="search",
                )
            trial.set_user_attr("metrics", dataclasses.asdict(card.metrics))
            loss = card.metrics.validation_loss
        except _TrialPruned as pruned:
            reason, code = str(pruned), "pruned"
        except GraftworkError as error:
            if error.code not in NON_FATAL_CODES:
                raise
            reason, code = error.message, str(error.code)
        except OSError as error:
            if not is_disk_full(error):
                raise
            reason, code = "The disk is full: make room where jobs are kept.", DISK_FULL
        if loss is None:
            shutil.rmtree(place, ignore_errors=True)  # before anything is written, since the disk may be full
            _truncate_partial_line(self._place / STUDY_FILE)
            trial.set_user_attr("reason", reason)
            trial.set_user_attr("code", code)
        trial.set_user_attr("spent", listener.spent())
        trial.set_user_attr("ended_at", datetime.now(UTC).isoformat())
        if loss is None:
            # Failed trials count as pruned, too, so that the sampler avoids their values.
            self.study.tell(trial, state=TrialState.PRUNED)
            self._say(f"Trial {number} was given up: {reason}")
        else:
            self.study.tell(trial, loss)
            self._say(f"Trial {number} of {self.wanted}: loss {loss:.4f} on the held-out rows.")

    def _proposed(self, trial: optuna.trial.Trial) -> TrainConfig:
        values = {}
        for index, (name, suggest) in enumerate(self._space.items()):
            # A seed for each value, so that a resumed search proposes the same values.
            self.study.sampler = optuna.samplers.TPESampler(
                seed=(self.run.config.seed * 10_007 + trial.number * 101 + index) % 2**32,
                n_startup_trials=max(3, self.wanted // 4),
                multivariate=False,
            )
            values[name] = suggest(trial)
        return with_values(self.run.config, values)

    def _checkpointing(self, trial: optuna.trial.Trial, place: Path) -> Checkpointing | None:
        if self._keeping is None:
            return None
        before, on_checkpoint = self.spent()["steps"], self._keeping.on_checkpoint
        return dataclasses.replace(
            self._keeping, folder=place / CHECKPOINTS_FOLDER, on_checkpoint=lambda step: on_checkpoint(before + step)
        )

    def _stop_if_asked(self) -> None:
        if self._keeping is not None and self._keeping.should_stop():
            from graftwork.training.run.checkpoints import RunStopped

            raise RunStopped

    # --- finished trials ----------------------------------------------------------------------------------------------

    def _ended(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def _best(self) -> FrozenTrial | None:
        complete = [trial for trial in self._ended() if trial.state == TrialState.COMPLETE]
        return min(complete, key=lambda trial: (trial.value, trial.number), default=None)

    def spent(self) -> dict[str, Any]:
        """Return the steps, tokens and seconds of all finished trials together."""
        spent = [trial.user_attrs["spent"] for trial in self._ended()]
        return {name: sum(one[name] for one in spent) for name in _SPENT}

    def _sweep(self) -> None:
        """Delete the files of all trials but the best one and the running one."""
        running = [trial for trial in self.study.get_trials(deepcopy=False) if not trial.state.is_finished()]
        kept = {self._trial_place(trial.number) for trial in (*running, self._best()) if trial is not None}
        for place in (self._place / TRIALS_FOLDER).glob("*"):
            if place not in kept:
                shutil.rmtree(place, ignore_errors=True)

    def _trial_place(self, number: int) -> Path:
        return self._place / TRIALS_FOLDER / f"trial-{number + 1}"

    def _publish_best(self, best: FrozenTrial, folder: Path) -> Card:
        """Copy the best trial's folder to ``folder`` atomically, with a card that lists all trials."""
        card = card_of(
            dataclasses.replace(self.run, config=with_values(self.run.config, best.params)),
            RunMetrics(**best.user_attrs["metrics"]),
            datetime.fromisoformat(best.user_attrs["ended_at"]),
            trials=tuple(self._summary(trial, best) for trial in self._ended()),
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
        try:
            # Copied, not moved: a search that is interrupted here can be resumed.
            shutil.copytree(self._trial_place(best.number) / ADAPTER_FOLDER, partial)
            seal(partial, card)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return card

    def _summary(self, trial: FrozenTrial, best: FrozenTrial) -> SearchTrial:
        config = with_values(self.run.config, trial.params)
        complete = trial.state == TrialState.COMPLETE
        code = trial.user_attrs.get("code", "")
        return SearchTrial(
            number=trial.number + 1,
            learning_rate=config.learning_rate,
            rank=config.rank,
            epochs=config.epochs,
            loss=trial.value if trial.values else None,
            outcome="finished" if complete else "pruned" if code == "pruned" else "failed",
            reason=trial.user_attrs.get("reason", ""),
            best=trial.number == best.number,
        )


class _TrialListener:
    """The step listener of a trial: reports its steps as those of the whole search, and prunes the trial."""

    def __init__(self, search: _Search, trial: optuna.trial.Trial, config: TrainConfig) -> None:
        self._search, self._trial, self._config = search, trial, config
        self._before = search.spent()
        self._last_validation_loss: float | None = None
        self._last = TrainingStep(
            step=0, num_steps=0, loss=None, learning_rate=None, num_tokens=0, seconds=0.0, validation_loss=None
        )

    def __call__(self, step: TrainingStep) -> None:
        self._last = step
        run, number = self._search.run, self._trial.number + 1
        before, expected = self._before, num_steps(len(run.rows), run.config)
        self._search.on_step(
            dataclasses.replace(
                step,
                step=before["steps"] + step.step,
                num_steps=before["steps"] + step.num_steps + expected * (self._search.wanted - number),
                num_tokens=before["tokens"] + step.num_tokens,
                seconds=before["seconds"] + step.seconds,
                trial=number,
                trials=self._search.wanted,
            )
        )
        if step.validation_loss != self._last_validation_loss:
            self._last_validation_loss = step.validation_loss
            if step.step and step.validation_loss is not None:
                self._on_validation_loss(step, step.validation_loss)

    def spent(self) -> dict[str, float]:
        """Return the steps, tokens and seconds of this trial."""
        return {"steps": self._last.step, "tokens": self._last.num_tokens, "seconds": self._last.seconds}

    def _on_validation_loss(self, step: TrainingStep, loss: float) -> None:
        if not math.isfinite(loss):
            raise GraftworkError(f"The loss on the held-out rows is {loss}: it diverged.", code="training_diverged")
        epoch = round(step.step * self._config.epochs / step.num_steps)
        reported = self._search.study.get_trials(deepcopy=False)[self._trial.number].intermediate_values
        if epoch not in reported:  # it may have been, before the search was interrupted
            self._trial.report(loss, epoch)
        if step.step < step.num_steps and self._trial.should_prune():
            raise _TrialPruned(f"its loss of {loss:.4f} after {_epochs(epoch)} is worse than the median of the others.")


# --- the search space -------------------------------------------------------------------------------------------------


def ranks(rank: int) -> tuple[int, ...]:
    """Return the ranks to try, in ascending order: half of the configured one, the same, and twice as much."""
    return tuple(sorted({max(1, rank // 2), rank, min(2 * rank, AdapterLimits().max_rank)}))


def num_steps(num_rows: int, config: TrainConfig) -> int:
    """Return the number of optimizer steps of a run on ``num_rows`` training rows."""
    return math.ceil(config.epochs * math.ceil(num_rows / config.batch_size))


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with other values. Alpha is changed with the rank, so that the adapter's scaling
    (alpha / rank) stays the same."""
    alpha = max(1, round(config.alpha * values.get("rank", config.rank) / config.rank))
    return dataclasses.replace(config, **{**values, "epochs": float(values["epochs"]), "alpha": alpha})


def _space(run: TrainingRun) -> dict[str, Callable[[optuna.trial.Trial], Any]]:
    """Return a function for each hyperparameter that suggests its value, around the configured one."""
    rate, epochs = run.config.learning_rate, run.config.epochs
    space: dict[str, Callable[[optuna.trial.Trial], Any]] = {
        "learning_rate": lambda trial: trial.suggest_float(
            "learning_rate", rate / RATE_FACTOR, max(rate, min(rate * RATE_FACTOR, 0.5)), log=True
        ),
    }
    if run.parent is None:  # the rank of an existing adapter is fixed
        space["rank"] = lambda trial: trial.suggest_categorical("rank", ranks(run.config.rank))
    if epochs >= 1 and epochs == int(epochs):
        least, most = math.ceil(epochs / 2), math.ceil(1.5 * epochs)
        space["epochs"] = lambda trial: trial.suggest_int("epochs", least, most)
    else:
        space["epochs"] = lambda trial: trial.suggest_float("epochs", epochs / 2, epochs * 1.5)
    return space


def _describe(asked: TrainConfig, values: Mapping[str, Any]) -> str:
    config = with_values(asked, values)
    return f"learning rate {config.learning_rate:.3g}, rank {config.rank}, {_epochs(config.epochs)}"


def _epochs(number: float) -> str:
    return f"{number:g} epoch{'' if number == 1 else 's'}"


# --- the study's file -------------------------------------------------------------------------------------------------


class _NoLock(JournalFileOpenLock):
    """No lock: a run has its folder to itself, and Optuna's lock file would remain when the run is killed."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _open_study(path: Path) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _truncate_partial_line(path)
    return optuna.create_study(
        study_name="search",
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(path), _NoLock(str(path)))),
        load_if_exists=True,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=PRUNER_STARTUP_TRIALS, n_warmup_steps=1),
    )


def _truncate_partial_line(path: Path) -> None:
    """Remove a last line that is incomplete, after which the next one could not be read."""
    if path.is_file():
        whole = path.read_bytes().rfind(b"\n") + 1
        with path.open("r+b") as file:
            file.truncate(whole)
