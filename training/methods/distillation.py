"""On-policy distillation: the model generates completions, and learns the teacher's probabilities of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import trl
from transformers import PreTrainedModel

from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import TokenRow
from graftwork.training.methods import online
from graftwork.training.methods.online import OnlineTrainer
from graftwork.training.methods.recipe import Recipe, RecipeInputs

REVERSE_KL_BETA: Final = 1.0
"""TRL's beta for distillation. 1 is the reverse KL divergence, which keeps the model from tokens that are unlikely for
the teacher (Gu et al. 2024, MiniLLM; Agarwal et al. 2024, on-policy distillation)."""


def distillation_recipe(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: RecipeInputs, base: PreTrainedModel
) -> Recipe:
    """Build the recipe of ``distillation``; see `graftwork.training.methods.recipe.Recipe` for the arguments."""
    return Recipe(
        trainer=TokenIdDistillationTrainer,
        settings=partial(trl.DistillationConfig, beta=REVERSE_KL_BETA, max_completion_length=config.answer_tokens),
        given={
            "teacher_model": sources.teacher,
            "processing_class": online.rollout_tokenizer(sources.tokenizer, base, sources.eos_token_ids),
        },
    )


class TokenIdDistillationTrainer(OnlineTrainer, trl.DistillationTrainer):
    """TRL's distillation trainer for prompts that are token ids."""
