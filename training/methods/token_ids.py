"""What all trainers share: they take token ids as they are given, and write no card of their own."""

from __future__ import annotations

from typing import Any, Final

import datasets

from graftwork.training.methods.samplers import LengthGroupedSampler, RepeatSampler
from graftwork.training.model.adapter import ADAPTER_NAME

PAD_TOKEN_ID: Final = 0
"""Padding is masked and never learned: any id will do."""


class TokenIdTrainer:
    """What all trainers are given and what they keep."""

    order: LengthGroupedSampler | RepeatSampler

    def _prepare_dataset(self, dataset: datasets.Dataset, *args: Any, **kwargs: Any) -> datasets.Dataset:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler | RepeatSampler:
        return self.order

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None is written: a version's card is the project's own."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Without ref/, the reference: it is the parent, which is there already, and transformers would take its folder
        # for all there is to go on from.
        self.model.save_pretrained(output_dir, selected_adapters=[ADAPTER_NAME], save_embedding_layers=False)  # type: ignore[attr-defined]
