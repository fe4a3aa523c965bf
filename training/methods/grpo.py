"""Group relative policy optimization from reward functions (Shao et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trl
from transformers import PreTrainedModel

from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import TokenRow
from graftwork.training.methods import online, reward_functions
from graftwork.training.methods.online import _Asking
from graftwork.training.methods.recipe import Sources, _Recipe


def _grpo(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: Sources, base: PreTrainedModel
) -> _Recipe:
    return _Recipe(
        trainer=GRPO,
        settings=partial(
            trl.GRPOConfig,
            beta=config.beta,
            num_generations=config.generations,
            num_generations_eval=1,
            max_completion_length=config.answer_tokens,
        ),
        given={
            "reward_funcs": reward_functions.load(config.rewards),
            "processing_class": online.tokenizer(sources.tokenizer, base, sources.eos_token_ids),
        },
    )


class GRPO(_Asking, trl.GRPOTrainer):
    """Answers to one question are held against each other by their rewards."""
