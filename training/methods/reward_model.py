"""Reward models from preferences, on token ids (Bradley-Terry; Ouyang et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import trl
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from trl.trainer.dpo_trainer import DataCollatorForPreference

from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import TokenRow
from graftwork.training.methods.recipe import Recipe, RecipeInputs, placeholder_tokenizer
from graftwork.training.methods.token_ids import PAD_TOKEN_ID, RowMeanTrainer
from graftwork.training.model.reward_model import last_token_scores

CENTERING: Final = 0.01
"""Weight of the squared sum of a pair's scores in the loss. It keeps scores near 0 on average, so that those of
different questions can be compared (Eisenstein et al. 2023)."""


def reward_model_recipe(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: RecipeInputs, base: PreTrainedModel
) -> Recipe:
    """Build the recipe of ``reward_model``; see `graftwork.training.methods.recipe.Recipe` for the arguments."""
    return Recipe(
        trainer=TokenIdRewardTrainer,
        settings=partial(
            trl.RewardConfig, center_rewards_coefficient=CENTERING, max_length=None, remove_unused_columns=False
        ),
        given={
            "data_collator": DataCollatorForPreference(pad_token_id=PAD_TOKEN_ID),
            "processing_class": placeholder_tokenizer(sources),
        },
    )


class TokenIdRewardTrainer(RowMeanTrainer, trl.RewardTrainer):
    """TRL's reward trainer for rows that are token ids. Scores are computed as in use, in float32; transformers' models
    look for the last token by the id of padding, which may be that of a row's own last token."""

    def num_rows_in(self, batch: Any) -> int:
        """Return the number of pairs."""
        return len(batch["input_ids"]) // 2

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a micro-batch, as TRL's method."""

        def scored(*, input_ids: Any, attention_mask: Any, **others: Any) -> Any:
            return SequenceClassifierOutput(logits=last_token_scores(model, input_ids, attention_mask)[:, None])

        return super().compute_loss(scored, inputs, *args, **kwargs)
