"""Supervised fine-tuning on token ids, with row weights, packed batches and an anchor; for the methods ``sft``,
``weighted_sft`` and ``pretrain``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import trl
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import TokenRow
from graftwork.training.methods.recipe import Recipe, RecipeInputs, placeholder_tokenizer
from graftwork.training.methods.token_ids import PAD_TOKEN_ID, TokenIdTrainer
from graftwork.training.model import packing
from graftwork.training.model.adapter import base_model_of
from graftwork.training.model.anchor import Anchor


def sft_recipe(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: RecipeInputs, base: PreTrainedModel
) -> Recipe:
    """Build the recipe of supervised methods; see `graftwork.training.methods.recipe.Recipe` for the arguments."""
    collator = PackingCollator(pad_token_id=PAD_TOKEN_ID)
    # No packing with dropout: it would drop the inputs of shared tokens for all rows at once.
    if not config.dropout:
        collator.packs = packing.enable_packing(base)
    return Recipe(
        trainer=TokenIdSFTTrainer,
        # The rows are token ids with labels already: TRL must not apply a chat template.
        settings=partial(trl.SFTConfig, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None),
        given={"data_collator": collator, "processing_class": placeholder_tokenizer(sources)},
        also={"anchor": sources.anchor, "firmness": config.anchor},
    )


class PackingCollator(DataCollatorForLanguageModeling):
    """Collates rows into a batch: packed if ``packs`` is set and no row is too long, else padded."""

    packs = False
    """Whether the model accepts packed rows."""

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """Return the inputs of the model. Where rows have weights, ``weight`` is [rows, 1], or [1, tokens - 1] for a
        packed row; it multiplies the log-probabilities of the targets."""
        batch = None
        if self.packs:
            batch = packing.pack([row["input_ids"] for row in examples], [row["labels"] for row in examples])
        if batch is None:
            batch = super().torch_call(examples)
        if "weight" in examples[0]:
            weights = torch.tensor([example["weight"] for example in examples], dtype=torch.float32)
            layout: packing.PackedLayout | None = batch.get("packing")
            batch["weight"] = weights[:, None] if layout is None else layout.each(weights)[:, 1:]
        return batch


class TokenIdSFTTrainer(TokenIdTrainer, trl.SFTTrainer):
    """TRL's SFT trainer for rows that are token ids, with row weights and an anchor."""

    anchor: Anchor | None = None
    firmness: float
    """Weight of the anchor's penalty in the loss."""
    _signature_columns: Any
    data_collator: Any

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns
        if "weight" not in columns:
            columns.append("weight")

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Evaluate on padded batches: the mean over batches is weighted by rows, and a packed batch has one row."""
        training_collator, self.data_collator = self.data_collator, PackingCollator(pad_token_id=PAD_TOKEN_ID)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Add the gradient of the anchor's penalty to that of the loss, once per optimizer step."""
        loss: Tensor = super().training_step(model, *args, **kwargs)
        if self.anchor is not None and self.accelerator.sync_gradients:  # the last micro-batch of a step
            with self.compute_loss_context_manager():
                penalty = self.anchor.penalty(base_model_of(model), self.state.global_step, self.state.max_steps)
            if penalty is not None:
                self.accelerator.backward(self.firmness * penalty * self.accelerator.gradient_accumulation_steps)
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Multiply the log-probabilities by the weights of their rows before TRL computes the loss."""
        layout: packing.PackedLayout | None = inputs.get("packing")
        if layout is not None:
            self._total_train_tokens += layout.num_saved_tokens  # TRL counts shared tokens only once
        weights: Tensor | None = inputs.pop("weight", None)
        if weights is None:
            return super().compute_loss(model, inputs, *args, **kwargs)

        def weighted_model(**batch: Any) -> Any:
            outputs = model(**batch)
            outputs.log_probs = outputs.log_probs * weights  # [rows, tokens - 1]
            return outputs

        return super().compute_loss(weighted_model, inputs, *args, **kwargs)
