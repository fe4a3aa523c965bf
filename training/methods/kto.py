"""Kahneman-Tversky optimization on token ids (Ethayarajh et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import trl
from transformers import PreTrainedModel
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.utils import use_adapter

from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import JudgedTokens, TokenRow
from graftwork.training.methods.recipe import Recipe, RecipeInputs, placeholder_tokenizer
from graftwork.training.methods.rows import kto_weights
from graftwork.training.methods.token_ids import PAD_TOKEN_ID, RowMeanTrainer


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
            # Replaced below. TRL refuses KTO's own loss for micro-batches of one row, which say nothing of the KL.
            loss_type="apo_zero_unpaired",
            train_sampling_strategy="sequential",
            max_length=None,
        ),
        given={
            "data_collator": DataCollatorForUnpairedPreference(pad_token_id=PAD_TOKEN_ID),
            "processing_class": placeholder_tokenizer(sources),
        },
        also={"loss_type": "kto", "calculate_KL": True},
    )


def shuffle_for_kto(rows: Sequence[TokenRow], seed: int) -> list[TokenRow]:
    """Shuffle the rows. KTO reads them in this order, and would learn nothing from batches with one kind of label."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[index] for index in order]


class TokenIdKTOTrainer(RowMeanTrainer, trl.KTOTrainer):
    """TRL's KTO trainer for rows that are token ids.

    TRL estimates the KL divergence of the policy from the reference in each micro-batch. Here the estimate is of the
    whole batch, so that the result does not depend on how many rows fit into a forward pass. An evaluation set is one
    batch.
    """

    _kl: torch.Tensor
    """The estimate for the current batch, (1,)."""
    _kl_terms: Iterator[torch.Tensor]

    def num_rows_in(self, batch: Any) -> int:
        """Return the number of judged answers."""
        return len(batch["label"])

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of the next step, as transformers' method."""
        micro_batches, num_items = super().get_batch_samples(*args, **kwargs)
        self._estimate_kl(micro_batches)
        return micro_batches, num_items

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a set, as transformers' method."""
        self._estimate_kl(dataloader)
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a micro-batch, as TRL's method."""
        # TRL takes the KL of the policy's log-probabilities and then of the reference's, and subtracts.
        self._kl_terms = iter((self._kl, torch.zeros_like(self._kl)))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def _compute_kl_logps(self, model: Any, batch: Any) -> torch.Tensor:
        return next(self._kl_terms)

    def _estimate_kl(self, micro_batches: Iterable[Any]) -> None:
        """Estimate the KL divergence from each question with the answer to another one; without dropout."""
        was_training = self.model.training
        self.model.eval()
        estimates = []
        with torch.no_grad(), self.accelerator.autocast():
            for batch in micro_batches:
                inputs = self._prepare_inputs(batch)
                policy = super()._compute_kl_logps(self.model, inputs)
                with self._reference() as reference:
                    estimates.append(policy - super()._compute_kl_logps(reference, inputs))
        self.model.train(was_training)
        self._kl = torch.cat(estimates).mean(dim=0, keepdim=True) if estimates else torch.zeros(1)

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        """The reference: a model of its own, or the model with its reference adapter or without an adapter."""
        if self.ref_model is not None:
            yield self.ref_model
            return
        model = self.accelerator.unwrap_model(self.model)
        with use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            yield model
