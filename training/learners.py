"""TRL's trainers that learn from rows as they are, made to take the token ids they are given: SFT, DPO and KTO.

Imports TRL. Knows nothing of adapters' folders, of checkpoints' names, nor of who watches.
"""

from __future__ import annotations

from typing import Any, Final

import datasets
import torch
import trl
from torch import Tensor
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from graftwork.training import packing
from graftwork.training.anchor import Anchor
from graftwork.training.grafts import ADAPTER, base_of
from graftwork.training.order import AskedOrder, Order

PADDING: Final = 0
"""Padding is masked and never learned: any id will do."""


class TokenIds:
    """What all trainers are given and what they keep."""

    order: Order | AskedOrder

    def _prepare_dataset(self, dataset: datasets.Dataset, *args: Any, **kwargs: Any) -> datasets.Dataset:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Order | AskedOrder:
        return self.order

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None is written: a version's card is the project's own."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Without ref/, the reference: it is the parent, which is there already, and transformers would take its folder
        # for all there is to go on from.
        self.model.save_pretrained(output_dir, selected_adapters=[ADAPTER], save_embedding_layers=False)  # type: ignore[attr-defined]


class Rows(DataCollatorForLanguageModeling):
    """Rows as one batch: packed where the model takes that and it is of use, else padded. With weights, ``weight``
    multiplies the log-probabilities: (rows, 1), or (1, tokens) of a packed row."""

    packs = False

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        batch = None
        if self.packs:
            batch = packing.pack([row["input_ids"] for row in examples], [row["labels"] for row in examples])
        if batch is None:
            batch = super().torch_call(examples)
        if "weight" in examples[0]:
            weights = torch.tensor([example["weight"] for example in examples], dtype=torch.float32)
            layout: packing.Layout | None = batch.get("packing")
            batch["weight"] = weights[:, None] if layout is None else layout.each(weights)[:, 1:]
        return batch


class SFT(TokenIds, trl.SFTTrainer):
    """On token ids, with weights, and held to an anchor."""

    anchor: Anchor | None = None
    firmness: float
    _signature_columns: Any
    data_collator: Any

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns
        if "weight" not in columns:
            columns.append("weight")

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        # A mean over batches weighs each by its rows, and a packed batch has one.
        learning, self.data_collator = self.data_collator, Rows(pad_token_id=PADDING)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = learning

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(model, *args, **kwargs)
        if self.anchor is not None and self.accelerator.sync_gradients:  # with the last part of a step
            with self.compute_loss_context_manager():
                pull = self.anchor.pull(base_of(model), self.state.global_step, self.state.max_steps)
            if pull is not None:
                self.accelerator.backward(self.firmness * pull * self.accelerator.gradient_accumulation_steps)
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        layout: packing.Layout | None = inputs.get("packing")
        if layout is not None:
            self._total_train_tokens += layout.num_spared  # which TRL does not see: rows count whole
        weights: Tensor | None = inputs.pop("weight", None)
        if weights is None:
            return super().compute_loss(model, inputs, *args, **kwargs)

        def weighing(**batch: Any) -> Any:
            outputs = model(**batch)
            outputs.log_probs = outputs.log_probs * weights  # (rows, tokens)
            return outputs

        return super().compute_loss(weighing, inputs, *args, **kwargs)


class DPO(TokenIds, trl.DPOTrainer):
    """On token ids."""


class KTO(TokenIds, trl.KTOTrainer):
    """On token ids."""
