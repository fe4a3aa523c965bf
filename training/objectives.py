"""TRL's trainers, one a method, made to learn from the token ids they are given, in an order that can be told again.

Imports TRL. Knows nothing of adapters' folders, of checkpoints' names, nor of who watches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import datasets
import torch
import transformers
import trl
from torch import Tensor
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from graftwork.training import packing
from graftwork.training.anchor import Anchor
from graftwork.training.config import TrainConfig
from graftwork.training.data.curriculum import Curriculum, easy_to_hard
from graftwork.training.data.tokens import JudgedTokens, PairTokens, Tokens
from graftwork.training.grafts import ADAPTER
from graftwork.training.routing import kto_weights

PADDING: Final = 0
"""Padding is masked and never learned: any id will do."""

BATCHES_SORTED: Final = 50
"""So many batches are sorted by length together: little padding, and still a new mixture every epoch."""

AnyRow = Tokens | PairTokens | JudgedTokens


def make(
    rows: Sequence[AnyRow],
    measured: dict[str, Sequence[AnyRow]],
    config: TrainConfig,
    *,
    model: Any,
    tokenizer: Path,
    callbacks: list[transformers.TrainerCallback],
    micro: int,
    anchor: Anchor | None,
    arguments: dict[str, Any],
) -> transformers.Trainer:
    """The trainer of the method. ``measured`` are rows to measure the loss on, by name; ``anchor`` is what a supervised
    one holds on to; ``arguments`` are transformers' own."""
    trainer_type, extra = _of_method(rows, config, micro)
    arguments_type, collator = trainer_type.made_of
    settings = arguments_type(**arguments, **extra)
    # One GPU trains; with more in sight TRL refuses to start unless a distributed launcher shares the rows out.
    settings._n_gpu = min(settings.n_gpu, 1)
    trainer_type.order = _Order(
        [len(row) for row in rows],
        config.batch_size,
        config.seed,
        shuffled=config.method != "kto",
        curriculum=config.curriculum,
    )
    collate = collator(pad_token_id=PADDING)
    # A dropped input of a shared token would be dropped for all rows at once.
    if isinstance(collate, _Rows) and not config.dropout:
        collate.packs = packing.prepare(model.get_base_model())
    trainer = trainer_type(
        model=model,
        args=settings,
        train_dataset=_table(rows, config, micro, weighted=True),
        eval_dataset={name: _table(part, config, micro, weighted=False) for name, part in measured.items() if part}
        or None,
        # TRL wants a tokenizer; every row comes as token ids, so it is never asked anything.
        processing_class=transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(tokenizer), pad_token="<pad>", eos_token="<pad>"
        ),
        data_collator=collate,
        callbacks=callbacks,
    )
    if anchor is not None:
        trainer.anchor, trainer.firmness = anchor, config.anchor
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _of_method(rows: Sequence[AnyRow], config: TrainConfig, micro: int) -> tuple[Any, dict[str, Any]]:
    if config.method == "dpo":
        return _DPO, {
            "beta": config.beta,
            "loss_type": ["sigmoid", "sft"] if config.sft_share else ["sigmoid"],
            "loss_weights": [1.0, config.sft_share] if config.sft_share else None,
            "max_length": None,
        }
    if config.method == "kto":
        liked = sum(row.label for row in rows if isinstance(row, JudgedTokens))
        desirable, undesirable = kto_weights(liked, len(rows) - liked)
        return _KTO, {
            "beta": config.beta,
            "desirable_weight": desirable,
            "undesirable_weight": undesirable,
            # The other estimates a divergence from the neighbours in the batch, and there are none.
            "loss_type": "kto" if micro > 1 else "apo_zero_unpaired",
            "train_sampling_strategy": "sequential",
            "max_length": None,
        }
    # The rows are token ids with labels, made by the function that serving uses: TRL must not template them again.
    return _SFT, {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}


def mixed(rows: Sequence[AnyRow], seed: int) -> list[AnyRow]:
    """The rows shuffled. KTO reads them in this order, and learns nothing from batches of one kind."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[index] for index in order]


def _table(rows: Sequence[AnyRow], config: TrainConfig, micro: int, *, weighted: bool) -> datasets.Dataset:
    columns = {field.name: [getattr(row, field.name) for row in rows] for field in dataclasses.fields(rows[0])}
    weights = columns.pop("weight", None)
    if weights is not None and weighted and len(set(weights)) > 1:
        mean = sum(weights) / len(weights)
        columns["weight"] = [weight / mean for weight in weights]
    if config.method == "kto" and micro > 1:
        # Every question with its neighbour's answer, within the batches as they will be read.
        answers = columns["completion_ids"]
        columns["KL_completion_ids"] = [
            answer
            for start in range(0, len(answers), micro)
            for answer in (*answers[start : start + micro][-1:], *answers[start : start + micro][:-1])
        ]
    return datasets.Dataset.from_dict(columns)


class _Order(torch.utils.data.Sampler[int]):
    """Which row comes when: a function of seed and epoch alone, so that a run that was ended goes on as it would have,
    whatever its micro-batches."""

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int, *, shuffled: bool, curriculum: Curriculum = "none"
    ) -> None:
        self._lengths, self._batch_size, self._seed, self._shuffled = lengths, batch_size, seed, shuffled
        self._curriculum = curriculum
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        if not self._shuffled:
            yield from range(len(self))
            return
        mixture = self._seed * 1_000_003 + self._epoch
        if self._curriculum == "short_first":
            yield from easy_to_hard(self._lengths, seed=mixture)
            return
        random = torch.Generator().manual_seed(mixture)
        order = torch.randperm(len(self), generator=random).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(order), self._batch_size * BATCHES_SORTED):
            near = sorted(order[start : start + self._batch_size * BATCHES_SORTED], key=lambda row: -self._lengths[row])
            batches += [near[first : first + self._batch_size] for first in range(0, len(near), self._batch_size)]
        # The one that is not full stays last: in the middle it would shift the rows of all others.
        last = [batches.pop()] if len(batches[-1]) < self._batch_size else []
        for index in torch.randperm(len(batches), generator=random).tolist():
            yield from batches[index]
        yield from (row for batch in last for row in batch)


class _TokenIds:
    """What all three trainers are given and what they keep."""

    order: _Order

    def _prepare_dataset(self, dataset: datasets.Dataset, *args: Any, **kwargs: Any) -> datasets.Dataset:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> _Order:
        return self.order

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None is written: a version's card is the project's own."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Without ref/, the reference: it is the parent, which is there already, and transformers would take its folder
        # for all there is to go on from.
        self.model.save_pretrained(output_dir, selected_adapters=[ADAPTER], save_embedding_layers=False)  # type: ignore[attr-defined]


class _Rows(DataCollatorForLanguageModeling):
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


class _SFT(_TokenIds, trl.SFTTrainer):
    made_of = (trl.SFTConfig, _Rows)
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
        learning, self.data_collator = self.data_collator, _Rows(pad_token_id=PADDING)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = learning

    def training_step(self, model: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(model, *args, **kwargs)
        if self.anchor is not None and self.accelerator.sync_gradients:  # with the last part of a step
            with self.compute_loss_context_manager():
                pull = self.firmness * self.anchor.divergence(model.get_base_model(), self.state.global_step)
            self.accelerator.backward(pull * self.accelerator.gradient_accumulation_steps)
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


class _DPO(_TokenIds, trl.DPOTrainer):
    made_of = (trl.DPOConfig, DataCollatorForPreference)


class _KTO(_TokenIds, trl.KTOTrainer):
    made_of = (trl.KTOConfig, DataCollatorForUnpairedPreference)
