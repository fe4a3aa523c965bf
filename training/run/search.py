"""A search: trials of one run with other rates, ranks and epochs, of which the best on held-out rows goes on.

Optuna proposes what to try (TPE; the first trial is the run as it was asked for) and ends trials that do worse than the
median of the others after as many epochs. A trial is a run as any other: the same rows, the same split, checkpoints of
its own. The study is a journal of Optuna's in the run's folder, so that a search that was ended goes on: with the trial
that was under way, from its newest checkpoint, and to the same proposals as if nothing had happened.

Knows nothing of how a run learns, nor of what a candidate must show: one adapter comes out, as of any run.
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
"""In the place of a search: Optuna's journal. Beside it, in `TRIALS_FOLDER`, a folder each for the trial under way
and the best one so far."""

NON_FATAL_CODES: Final = frozenset({"training_diverged", "out_of_memory"})
"""What may end a trial without ending the search: another trial may do better."""

RATE_FACTOR: Final = 4.0
PRUNER_STARTUP_TRIALS: Final = 3
"""Trials that must have come to their end before others are held against their median."""

_SPENT: Final = ("steps", "tokens", "seconds")


class _TrialPruned(Exception):
    """The trial does worse than most."""


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
    """Carry out ``run.config.search`` trials and leave the best one's PEFT folder at ``folder``. ``place`` is where the
    study and the trials are kept; one that was begun there is gone on with. Steps are told, and checkpoints numbered,
    through all trials.

    Raises InvalidRequest without held-out rows, what ended the last trial if none can be used, and what `carry_out`
    raises.
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
            self._try(self._next())
            gc.collect()  # a model in a cycle of references would stay beside the next one
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
        """The one that was under way when the search was ended, or a new one."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                return optuna.trial.Trial(self.study, trial._trial_id)
        if not trials:
            self.study.enqueue_trial({name: getattr(self.run.config, name) for name in self._space})
        return self.study.ask()

    def _try(self, trial: optuna.trial.Trial) -> None:
        config = self._proposed(trial)
        number, place = trial.number + 1, self._trial_place(trial.number)
        self._say(f"Trial {number} of {self.wanted}: {_describe(self.run.config, trial.params)}.")
        for leftover in (place / ADAPTER_FOLDER, *place.glob(f".{ADAPTER_FOLDER}.partial-*")):
            shutil.rmtree(leftover, ignore_errors=True)  # of an attempt that ended before it could say so
        ear = _TrialListener(self, trial, config)
        reason, code, loss = "", "", None
        try:
            card = execute(
                dataclasses.replace(self.run, config=config),
                place / ADAPTER_FOLDER,
                ear,
                self._keeping_of(trial, place),
                run_name=f"{self._run_name} trial {number}",
            )
            if card.metrics.validation_loss is None:
                raise InvalidRequest(
                    f"{config.method} measures no loss on held-out rows, by which a search compares: leave search out.",
                    param="search",
                )
            trial.set_user_attr("metrics", dataclasses.asdict(card.metrics))
            loss = card.metrics.validation_loss
        except _TrialPruned as given_up:
            reason, code = str(given_up), "pruned"
        except GraftworkError as error:
            if error.code not in NON_FATAL_CODES:
                raise
            reason, code = error.message, str(error.code)
        except OSError as error:
            if not is_disk_full(error):
                raise
            reason, code = "The disk is full: make room where jobs are kept.", DISK_FULL
        if loss is None:
            shutil.rmtree(place, ignore_errors=True)  # first of all, since the disk may be full
            _truncate_partial_line(self._place / STUDY_FILE)
            trial.set_user_attr("reason", reason)
            trial.set_user_attr("code", code)
        trial.set_user_attr("spent", ear.spent())
        trial.set_user_attr("ended_at", datetime.now(UTC).isoformat())
        if loss is None:
            # Pruned also where it failed: the sampler then keeps away from there.
            self.study.tell(trial, state=TrialState.PRUNED)
            self._say(f"Trial {number} was given up: {reason}")
        else:
            self.study.tell(trial, loss)
            self._say(f"Trial {number} of {self.wanted}: loss {loss:.4f} on the held-out rows.")

    def _proposed(self, trial: optuna.trial.Trial) -> TrainConfig:
        values = {}
        for index, (name, suggest) in enumerate(self._space.items()):
            # Every value has random numbers of its own: a search that goes on draws what it would have drawn.
            self.study.sampler = optuna.samplers.TPESampler(
                seed=(self.run.config.seed * 10_007 + trial.number * 101 + index) % 2**32,
                n_startup_trials=max(3, self.wanted // 4),
                multivariate=False,
            )
            values[name] = suggest(trial)
        return with_values(self.run.config, values)

    def _keeping_of(self, trial: optuna.trial.Trial, place: Path) -> Checkpointing | None:
        if self._keeping is None:
            return None
        before, heard = self.spent()["steps"], self._keeping.on_checkpoint
        return dataclasses.replace(
            self._keeping, folder=place / CHECKPOINTS_FOLDER, on_checkpoint=lambda step: heard(before + step)
        )

    def _stop_if_asked(self) -> None:
        if self._keeping is not None and self._keeping.should_stop():
            from graftwork.training.run.checkpoints import RunStopped

            raise RunStopped

    # --- what is known of them ----------------------------------------------------------------------------------------

    def _ended(self) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def _best(self) -> FrozenTrial | None:
        complete = [trial for trial in self._ended() if trial.state == TrialState.COMPLETE]
        return min(complete, key=lambda trial: (trial.value, trial.number), default=None)

    def spent(self) -> dict[str, Any]:
        """Steps, tokens and seconds of all trials that have ended."""
        spent = [trial.user_attrs["spent"] for trial in self._ended()]
        return {name: sum(one[name] for one in spent) for name in _SPENT}

    def _sweep(self) -> None:
        """Only the best trial's files stay, and those of the one under way."""
        running = [trial for trial in self.study.get_trials(deepcopy=False) if not trial.state.is_finished()]
        kept = {self._trial_place(trial.number) for trial in (*running, self._best()) if trial is not None}
        for place in (self._place / TRIALS_FOLDER).glob("*"):
            if place not in kept:
                shutil.rmtree(place, ignore_errors=True)

    def _trial_place(self, number: int) -> Path:
        return self._place / TRIALS_FOLDER / f"trial-{number + 1}"

    def _publish_best(self, best: FrozenTrial, folder: Path) -> Card:
        """The best trial's folder at ``folder``, whole or not at all, with a card that says all trials."""
        card = card_of(
            dataclasses.replace(self.run, config=with_values(self.run.config, best.params)),
            RunMetrics(**best.user_attrs["metrics"]),
            datetime.fromisoformat(best.user_attrs["ended_at"]),
            trials=tuple(self._summary(trial, best) for trial in self._ended()),
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
        try:
            # Copied: until somebody has the result, a search that is begun again finds everything in its place.
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
    """Hears one trial's steps: tells them as those of the whole search, and gives the trial up when it does badly."""

    def __init__(self, search: _Search, trial: optuna.trial.Trial, config: TrainConfig) -> None:
        self._search, self._trial, self._config = search, trial, config
        self._before = search.spent()
        self._seen: float | None = None
        self._last = TrainingStep(
            step=0, num_steps=0, loss=None, learning_rate=None, num_tokens=0, seconds=0.0, validation_loss=None
        )

    def __call__(self, step: TrainingStep) -> None:
        self._last = step
        run, number = self._search.run, self._trial.number + 1
        before, usual = self._before, num_steps(len(run.rows), run.config)
        self._search.on_step(
            dataclasses.replace(
                step,
                step=before["steps"] + step.step,
                num_steps=before["steps"] + step.num_steps + usual * (self._search.wanted - number),
                num_tokens=before["tokens"] + step.num_tokens,
                seconds=before["seconds"] + step.seconds,
                trial=number,
                trials=self._search.wanted,
            )
        )
        if step.validation_loss != self._seen:
            self._seen = step.validation_loss
            if step.step and step.validation_loss is not None:
                self._measured(step, step.validation_loss)

    def spent(self) -> dict[str, float]:
        """What this trial took."""
        return {"steps": self._last.step, "tokens": self._last.num_tokens, "seconds": self._last.seconds}

    def _measured(self, step: TrainingStep, loss: float) -> None:
        if not math.isfinite(loss):
            raise GraftworkError(f"The loss on the held-out rows is {loss}: it diverged.", code="training_diverged")
        epoch = round(step.step * self._config.epochs / step.num_steps)
        told = self._search.study.get_trials(deepcopy=False)[self._trial.number].intermediate_values
        if epoch not in told:  # it may have been, before the search was ended
            self._trial.report(loss, epoch)
        if step.step < step.num_steps and self._trial.should_prune():
            raise _TrialPruned(f"its loss of {loss:.4f} after {_epochs(epoch)} is worse than the median of the others.")


# --- what is tried ----------------------------------------------------------------------------------------------------


def ranks(rank: int) -> tuple[int, ...]:
    """Those that are tried: half, the same, twice."""
    return tuple(sorted({max(1, rank // 2), rank, min(2 * rank, AdapterLimits().max_rank)}))


def num_steps(num_rows: int, config: TrainConfig) -> int:
    """Optimizer steps of one run."""
    return math.ceil(config.epochs * math.ceil(num_rows / config.batch_size))


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """The same run with other values; what scales the adapter's output stays as it was."""
    alpha = max(1, round(config.alpha * values.get("rank", config.rank) / config.rank))
    return dataclasses.replace(config, **{**values, "epochs": float(values["epochs"]), "alpha": alpha})


def _space(run: TrainingRun) -> dict[str, Callable[[optuna.trial.Trial], Any]]:
    """How each value is drawn, around what the run has."""
    rate, epochs = run.config.learning_rate, run.config.epochs
    space: dict[str, Callable[[optuna.trial.Trial], Any]] = {
        "learning_rate": lambda trial: trial.suggest_float(
            "learning_rate", rate / RATE_FACTOR, max(rate, min(rate * RATE_FACTOR, 0.5)), log=True
        ),
    }
    if run.parent is None:  # a continued adapter keeps its own
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
    """No lock: nobody else runs in a run's folder, and Optuna's would stay behind when the run is killed."""

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
    """Take away a last line that was not written to its end: the next one would be written behind it."""
    if path.is_file():
        whole = path.read_bytes().rfind(b"\n") + 1
        with path.open("r+b") as file:
            file.truncate(whole)
