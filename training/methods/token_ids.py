"""The common parts of all trainers: rows are token ids already, and no model card is written."""

from __future__ import annotations

from typing import Any, Final

import datasets

from graftwork.training.methods.samplers import LengthGroupedSampler, RepeatSampler
from graftwork.training.model.adapter import ADAPTER_NAME

PAD_TOKEN_ID: Final = 0
"""Any id is suitable: padding is masked and has no loss."""


class TokenIdTrainer:
    """Mixin for TRL's trainers: rows are used as they are, in the order of a given sampler."""

    order: LengthGroupedSampler | RepeatSampler
    """The sampler of training rows."""

    def _prepare_dataset(self, dataset: datasets.Dataset, *args: Any, **kwargs: Any) -> datasets.Dataset:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler | RepeatSampler:
        return self.order

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: `graftwork.training.run.card` writes the model card."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Without the reference adapter: it is the parent, which is stored already, and transformers would resume from
        # its ref/ folder alone.
        self.model.save_pretrained(output_dir, selected_adapters=[ADAPTER_NAME], save_embedding_layers=False)  # type: ignore[attr-defined]


class RowMeanTrainer(TokenIdTrainer):
    """Mixin for TRL's trainers whose loss is the mean over the rows of a forward pass. TRL takes the mean of these
    means; here each row of a step weighs the same, so that the result does not depend on how many rows fit into a
    forward pass."""

    current_gradient_accumulation_steps: int
    """The number of micro-batches of the current step, by which the trainer divides the sum of their losses."""
    _num_rows: int
    """Number of rows of the current step."""

    def num_rows_in(self, batch: Any) -> int:
        """Return the number of rows of a micro-batch."""
        raise NotImplementedError

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of the next step, as transformers' method."""
        micro_batches, num_items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        self._num_rows = sum(map(self.num_rows_in, micro_batches))
        return micro_batches, num_items

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the loss of a micro-batch, as TRL's method."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if not self.model.training:  # type: ignore[attr-defined]
            return loss
        return loss * (self.num_rows_in(inputs) * self.current_gradient_accumulation_steps / self._num_rows)
