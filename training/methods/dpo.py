"""Direct preference optimization on token ids (Rafailov et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trl
from transformers import PreTrainedModel
from trl.trainer.dpo_trainer import DataCollatorForPreference

from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import TokenRow
from graftwork.training.methods.recipe import Recipe, RecipeInputs, placeholder_tokenizer
from graftwork.training.methods.token_ids import PAD_TOKEN_ID, TokenIdTrainer


def dpo_recipe(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: RecipeInputs, base: PreTrainedModel
) -> Recipe:
    """Build the recipe of ``dpo``; see `graftwork.training.methods.recipe.Recipe` for the arguments."""
    return Recipe(
        trainer=TokenIdDPOTrainer,
        settings=partial(
            trl.DPOConfig,
            beta=config.beta,
            loss_type=["sigmoid", "sft"] if config.sft_share else ["sigmoid"],
            loss_weights=[1.0, config.sft_share] if config.sft_share else None,
            max_length=None,
        ),
        given={
            "data_collator": DataCollatorForPreference(pad_token_id=PAD_TOKEN_ID),
            "processing_class": placeholder_tokenizer(sources),
        },
    )


class TokenIdDPOTrainer(TokenIdTrainer, trl.DPOTrainer):
    """TRL's DPO trainer for rows that are token ids."""
