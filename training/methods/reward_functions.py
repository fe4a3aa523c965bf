"""Reward functions as GRPO calls them, and the two that come with Graftwork.

A reward function takes three lists by name, an entry for each answer that was tried, and returns a number for each, the
higher the better; None leaves an answer out::

    def polite(*, prompts, completions, answers, **others):
        return [float("please" in completion) for completion in completions]

``prompts`` are messages, or the text of a plain prompt; ``completions`` what the model said; ``answers`` what the row
says is right. Entries beside these may come with later versions, hence ``others``.

Knows nothing of TRL's trainers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from graftwork.adapters.errors import ConfigurationError, GraftworkError
from graftwork.adapters.learning import reward_plugins


class RewardFunction(Protocol):
    """See the file's docstring."""

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[str], answers: Sequence[str], **others: Any
    ) -> Sequence[float | None]: ...


def exact(*, completions: Sequence[str], answers: Sequence[str], **others: Any) -> list[float]:
    """1 for the right answer, letter case and white space aside; else 0."""
    pairs = zip(completions, answers, strict=True)
    return [float(said.split() == right.split()) for said, right in ((a.casefold(), b.casefold()) for a, b in pairs)]


def similar(*, completions: Sequence[str], answers: Sequence[str], **others: Any) -> list[float]:
    """ROUGE-L F1 of what was said and the right answer, 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return [scorer.score(right, said)["rougeL"].fmeasure for said, right in zip(completions, answers, strict=True)]


def load_reward_functions(names: Iterable[str]) -> list[Callable[..., list[float | None]]]:
    """The functions of these names, as TRL calls them: with the columns of its table. InvalidRequest for a name that
    there is not, ConfigurationError for one whose package cannot be imported."""
    return [_as_trl_calls_it(name, _loaded(name)) for name in names]


def _loaded(name: str) -> RewardFunction:
    try:
        found: RewardFunction = reward_plugins.find(name).load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"The reward function {name} cannot be loaded: {error}.", param="rewards") from error
    if not callable(found):
        raise ConfigurationError(f"The reward function {name} is no function.", param="rewards")
    return found


def _as_trl_calls_it(name: str, reward: RewardFunction) -> Callable[..., list[float | None]]:
    def call(*, completions: list[str], question: list[str], answer: list[str], **others: Any) -> list[float | None]:
        try:
            said = reward(prompts=[json.loads(asked) for asked in question], completions=completions, answers=answer)
            values = [None if value is None else float(value) for value in said]
        except GraftworkError:
            raise
        except Exception as error:  # whatever somebody's function does wrong is told as theirs
            raise _failed(name, f"{type(error).__name__}: {error}") from error
        if len(values) != len(completions):
            raise _failed(name, f"it returned {len(values)} rewards for {len(completions)} answers")
        if not all(value is None or math.isfinite(value) for value in values):
            raise _failed(name, "it returned a reward that is no number")
        return values

    call.__name__ = name  # what TRL calls its measurements by
    return call


def _failed(name: str, why: str) -> GraftworkError:
    return GraftworkError(f"The reward function {name} failed: {why}.", code="reward_failed")
