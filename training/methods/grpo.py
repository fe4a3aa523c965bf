"""Group relative policy optimization with reward functions (Shao et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trl
from transformers import PreTrainedModel

from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import TokenRow
from graftwork.training.methods import online, reward_functions
from graftwork.training.methods.online import OnlineTrainer
from graftwork.training.methods.recipe import Recipe, RecipeInputs


def grpo_recipe(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: RecipeInputs, base: PreTrainedModel
) -> Recipe:
    """Build the recipe of ``grpo``; see `graftwork.training.methods.recipe.Recipe` for the arguments.

    Raises:
        InvalidRequest: if there is no reward function of a given name.
        ConfigurationError: if a reward function cannot be imported.
    """
    return Recipe(
        trainer=TokenIdGRPOTrainer,
        settings=partial(
            trl.GRPOConfig,
            beta=config.beta,
            num_generations=config.generations,
            num_generations_eval=1,
            max_completion_length=config.answer_tokens,
        ),
        given={
            "reward_funcs": reward_functions.load_reward_functions(config.rewards, sources.reward_models),
            "processing_class": online.rollout_tokenizer(sources.tokenizer, base, sources.eos_token_ids),
        },
    )


class TokenIdGRPOTrainer(OnlineTrainer, trl.GRPOTrainer):
    """TRL's GRPO trainer for prompts that are token ids."""
