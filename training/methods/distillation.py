"""Distillation on the model's own answers, from a teacher's probabilities at every token of them."""

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
"""TRL's beta of a distillation: the reverse divergence, by which the model says nothing that its teacher would not (Gu
et al. 2024, MiniLLM; Agarwal et al. 2024, on-policy distillation)."""


def distillation_recipe(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: RecipeInputs, base: PreTrainedModel
) -> Recipe:
    return Recipe(
        trainer=TokenIdDistillationTrainer,
        settings=partial(trl.DistillationConfig, beta=REVERSE_KL_BETA, max_completion_length=config.answer_tokens),
        given={
            "teacher_model": sources.teacher,
            "processing_class": online.rollout_tokenizer(sources.tokenizer, base, sources.eos_token_ids),
        },
    )


class TokenIdDistillationTrainer(OnlineTrainer, trl.DistillationTrainer):
    """The model's own answers, with the teacher's probabilities at every token of them."""
