"""Group relative policy optimization with reward functions or a grader (Shao et al. 2024)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import trl
from transformers import PreTrainedModel

from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import TokenRow
from graftwork.training.methods import online, reward_functions
from graftwork.training.methods.grading.grading import GivenAnswer, Grading
from graftwork.training.methods.online import OnlineTrainer
from graftwork.training.methods.recipe import Recipe, RecipeInputs

PASSED: Final = "grader/passed"
"""Name of the measurement of the share of answers that pass."""

GRADE: Final = "grader/grade/"
"""What the names of the mean grades of a grader's parts begin with."""


def grpo_recipe(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: RecipeInputs, base: PreTrainedModel
) -> Recipe:
    """Build the recipe of ``grpo``; see `graftwork.training.methods.recipe.Recipe` for the arguments.

    Raises:
        InvalidRequest: if there is no reward function of a given name.
        ConfigurationError: if a reward function cannot be imported, or there is no server whose models could grade.
    """
    if config.grader is None:
        rewards = reward_functions.load_reward_functions(config.rewards)
    else:
        grading = Grading(config.grader, response_format=config.response_format, client=sources.client)
        rewards = [grader_reward(grading)]
    return Recipe(
        trainer=TokenIdGRPOTrainer,
        settings=partial(
            trl.GRPOConfig,
            beta=config.beta,
            num_generations=config.generations,
            num_generations_eval=1,
            temperature=config.temperature,
            max_completion_length=config.answer_tokens,
        ),
        given={
            "reward_funcs": rewards,
            "processing_class": online.rollout_tokenizer(sources.tokenizer, base, sources.eos_token_ids),
        },
    )


def grader_reward(grading: Grading) -> Callable[..., list[float | None]]:
    """Return a grader as a reward function with the signature that TRL expects. It also measures the share of answers
    that pass, and the mean grade of each part of the grader."""

    def call(
        *,
        completions: list[str],
        answer: list[str],
        item: list[str],
        log_metric: Callable[[str, float], None],
        **others: Any,
    ) -> list[float | None]:
        given = [
            GivenAnswer(text=text, item=json.loads(told), reference=reference)
            for text, told, reference in zip(completions, item, answer, strict=True)
        ]
        grades = grading.grade(given)
        log_metric(PASSED, statistics.fmean(grades.passed))
        for name, part in grades.parts.items():
            if graded := [grade for grade in part if grade is not None]:
                log_metric(f"{GRADE}{name}", statistics.fmean(graded))
        return list(grades.grades)

    call.__name__ = grading.name  # TRL names its metrics by it
    return call


class TokenIdGRPOTrainer(OnlineTrainer, trl.GRPOTrainer):
    """TRL's GRPO trainer for prompts that are token ids."""
