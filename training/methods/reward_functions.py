"""Reward functions for GRPO, and the two that come with Graftwork.

A reward function takes three lists as keyword arguments, with an entry for each completion, and returns a reward for
each, the higher the better. None excludes a completion::

    def polite(*, prompts, completions, answers, **others):
        return [float("please" in completion) for completion in completions]

``prompts`` are lists of messages, or texts of plain prompts. ``completions`` are the generated texts, and ``answers``
the reference answers of the rows. Later versions may pass further lists, hence ``others``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from graftwork.adapters.errors import ConfigurationError, GraftworkError
from graftwork.adapters.learning.graders import reward_plugins

if TYPE_CHECKING:
    from graftwork.training.model.reward_model import RewardModel


class RewardFunction(Protocol):
    """The signature of a reward function; see the docstring of this module."""

    def __call__(
        self, *, prompts: Sequence[Any], completions: Sequence[str], answers: Sequence[str], **others: Any
    ) -> Sequence[float | None]: ...


def exact(*, completions: Sequence[str], answers: Sequence[str], **others: Any) -> list[float]:
    """Return 1 for completions that equal the reference answer, ignoring case and white space, and 0 for others."""
    pairs = zip(completions, answers, strict=True)
    return [float(one.split() == other.split()) for one, other in ((a.casefold(), b.casefold()) for a, b in pairs)]


def similar(*, completions: Sequence[str], answers: Sequence[str], **others: Any) -> list[float]:
    """Return the ROUGE-L F1 score, 0 to 1, of each completion and its reference answer."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return [
        scorer.score(answer, completion)["rougeL"].fmeasure
        for completion, answer in zip(completions, answers, strict=True)
    ]


def by_reward_model(model: RewardModel) -> RewardFunction:
    """Return the reward function whose rewards are the scores of a reward model."""

    def score(*, prompts: Sequence[Any], completions: Sequence[str], **others: Any) -> list[float]:
        return model.scores(zip(prompts, completions, strict=True))

    return score


def load_reward_functions(
    names: Iterable[str], models: Mapping[str, RewardModel] | None = None
) -> list[Callable[..., list[float | None]]]:
    """Load rewards by their names, with the signature that TRL expects: the reward models among them, and for others
    the entry points of that name.

    Args:
        names: the names.
        models: reward models, by their ids.

    The returned functions raise GraftworkError with code ``reward_failed`` if a reward function raises, or does not
    return a finite number or None for each completion.

    Raises:
        InvalidRequest: if there is no reward function of a name.
        ConfigurationError: if a reward function cannot be imported or called.
    """
    models = models or {}
    return [
        _with_trl_signature(name, by_reward_model(models[name]) if name in models else load_reward(name))
        for name in names
    ]


def load_reward(name: str) -> RewardFunction:
    """Load a reward function by the name of its entry point.

    Raises:
        InvalidRequest, ConfigurationError: as for `load_reward_functions`.
    """
    try:
        found: RewardFunction = reward_plugins.find(name).load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"The reward function {name} cannot be loaded: {error}.", param="rewards") from error
    if not callable(found):
        raise ConfigurationError(f"The reward function {name} is no function.", param="rewards")
    return found


def rewards_of(
    name: str, reward: RewardFunction, *, prompts: Sequence[Any], completions: Sequence[str], answers: Sequence[str]
) -> list[float | None]:
    """Call a reward function.

    Raises:
        GraftworkError: with code ``reward_failed`` if it raises, or does not return a finite number or None for each
            completion.
    """
    try:
        rewards = reward(prompts=prompts, completions=completions, answers=answers)
        values = [None if value is None else float(value) for value in rewards]
    except GraftworkError:
        raise
    except Exception as error:  # any error of the reward function is reported as such
        raise _failed(name, f"{type(error).__name__}: {error}") from error
    if len(values) != len(completions):
        raise _failed(name, f"it returned {len(values)} rewards for {len(completions)} answers")
    if not all(value is None or math.isfinite(value) for value in values):
        raise _failed(name, "it returned a reward that is no number")
    return values


def _with_trl_signature(name: str, reward: RewardFunction) -> Callable[..., list[float | None]]:
    def call(*, completions: list[str], question: list[str], answer: list[str], **others: Any) -> list[float | None]:
        prompts = [json.loads(text) for text in question]
        return rewards_of(name, reward, prompts=prompts, completions=completions, answers=answer)

    call.__name__ = name  # TRL names its metrics by it
    return call


def _failed(name: str, why: str) -> GraftworkError:
    return GraftworkError(f"The reward function {name} failed: {why}.", code="reward_failed")
