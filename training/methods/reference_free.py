"""Preference optimization without a reference, on token ids: ``orpo`` (Hong et al. 2024) and ``simpo`` (Meng et al.
2024).

Both compare the mean log-probability of a token of the better answer with that of the worse one. Since no reference
holds the model back, the better answer is also learned for its own sake: always in ORPO, whose loss has that term, and
by ``sft_share`` in SimPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import torch
from transformers import PreTrainedModel
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import IGNORED, TokenRow
from graftwork.training.methods.recipe import Recipe, RecipeInputs, placeholder_tokenizer
from graftwork.training.methods.token_ids import PAD_TOKEN_ID, RowMeanTrainer
from graftwork.training.model.adapter import base_model_of

MARGIN_SHARE: Final = 0.5
"""SimPO's target margin as a share of ``beta``: the mean log-probability by which the better answer should lead."""

LEAST_DOUBT: Final = 1e-6
"""Mean log-probabilities are at most this far below 0: the odds of an answer that is certain are infinite."""


def orpo_recipe(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: RecipeInputs, base: PreTrainedModel
) -> Recipe:
    """Build the recipe of ``orpo``; see `graftwork.training.methods.recipe.Recipe` for the arguments."""
    return _recipe(TokenIdORPOTrainer, partial(ORPOConfig, beta=config.beta), config, sources)


def simpo_recipe(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: RecipeInputs, base: PreTrainedModel
) -> Recipe:
    """Build the recipe of ``simpo``; see `graftwork.training.methods.recipe.Recipe` for the arguments."""
    settings = partial(
        CPOConfig,
        loss_type="simpo",
        beta=config.beta,
        simpo_gamma=MARGIN_SHARE * config.beta,
        cpo_alpha=config.sft_share,
    )
    return _recipe(TokenIdSimPOTrainer, settings, config, sources)


def _recipe(trainer: Any, settings: Any, config: TrainConfig, sources: RecipeInputs) -> Recipe:
    return Recipe(
        trainer=trainer,
        settings=partial(settings, max_length=config.max_length, remove_unused_columns=False),
        given={
            "data_collator": DataCollatorForPreference(pad_token_id=PAD_TOKEN_ID),
            "processing_class": placeholder_tokenizer(sources),
        },
        also={"use_dpo_data_collator": True},  # TRL warns at each batch of another collator, though it fits
    )


class ReferenceFreeTrainer(RowMeanTrainer):
    """Mixin for TRL's trainers that have no reference. TRL computes all logits of both answers, and the losses from
    them; here only the log-probabilities of the answers' tokens are computed."""

    _total_train_tokens = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        add_fused_lm_head(base_model_of(self.model))  # type: ignore[attr-defined]

    @staticmethod
    def tokenize_row(feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """Return the row as it is: the constructor calls this for each row."""
        return feature

    def num_rows_in(self, batch: Any) -> int:
        """Return the number of pairs."""
        return len(batch["input_ids"]) // 2

    def concatenated_forward(self, model: Any, batch: dict[str, torch.Tensor]) -> tuple[Any, ...]:
        """Return mean log-probabilities of the better and the worse answers, each [pairs], TRL's logits, for which the
        same stand in, the mean loss of the better answers, and the loss of a router, if there is one."""
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORED)
        outputs = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels, fused_lm_head=True
        )
        lengths = (labels[:, 1:] != IGNORED).sum(dim=1).clamp(min=1)
        means = (outputs.log_probs.sum(dim=1) / lengths).clamp(max=-LEAST_DOUBT)
        better, worse = means.chunk(2)
        return better, worse, better, worse, -better.mean(), outputs.aux_loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a micro-batch, as TRL's method, and count its tokens."""
        if model.training:
            self._total_train_tokens += int(inputs["attention_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def store_metrics(self, metrics: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Keep TRL's metrics for the log, but for those of logits, which are not computed."""
        known = {name: value for name, value in metrics.items() if "logits/" not in name}
        super().store_metrics(known, *args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log measurements, as TRL's other trainers do with the number of tokens."""
        logs["num_tokens"] = self._total_train_tokens
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class TokenIdORPOTrainer(ReferenceFreeTrainer, ORPOTrainer):
    """TRL's ORPO trainer for rows that are token ids."""


class TokenIdSimPOTrainer(ReferenceFreeTrainer, CPOTrainer):
    """TRL's trainer of contrastive preference optimization, for SimPO's loss and rows that are token ids."""
