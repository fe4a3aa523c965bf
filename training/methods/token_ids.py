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
