"""Kahneman-Tversky optimization on token ids (Ethayarajh et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import trl
from transformers import PreTrainedModel
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import JudgedTokens, TokenRow
from graftwork.training.methods.recipe import Recipe, RecipeInputs, placeholder_tokenizer
from graftwork.training.methods.rows import kto_weights
from graftwork.training.methods.token_ids import PAD_TOKEN_ID, TokenIdTrainer


def kto_recipe(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: RecipeInputs, base: PreTrainedModel
) -> Recipe:
    """Build the recipe of ``kto``; see `graftwork.training.methods.recipe.Recipe` for the arguments.

    Raises:
        ConfigurationError: unless there are both liked and disliked answers.
    """
    liked = sum(row.label for row in rows if isinstance(row, JudgedTokens))
    desirable, undesirable = kto_weights(liked, len(rows) - liked)
    return Recipe(
        trainer=TokenIdKTOTrainer,
        settings=partial(
            trl.KTOConfig,
            beta=config.beta,
            desirable_weight=desirable,
            undesirable_weight=undesirable,
            # The loss of KTO needs other rows in the batch to estimate the KL divergence.
            loss_type="kto" if micro > 1 else "apo_zero_unpaired",
            train_sampling_strategy="sequential",
            max_length=None,
        ),
        given={
            "data_collator": DataCollatorForUnpairedPreference(pad_token_id=PAD_TOKEN_ID),
            "processing_class": placeholder_tokenizer(sources),
        },
    )


def shuffle_for_kto(rows: Sequence[TokenRow], seed: int) -> list[TokenRow]:
    """Shuffle the rows. KTO reads them in this order, and would learn nothing from batches with one kind of label."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[index] for index in order]


class TokenIdKTOTrainer(TokenIdTrainer, trl.KTOTrainer):
    """TRL's KTO trainer for rows that are token ids."""
