"""From a method and its rows to the trainer that learns them: which one of TRL's, with which settings, on what table.

Imports TRL. Knows nothing of adapters' folders, of checkpoints' names, nor of who watches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import datasets
import torch
import transformers
import trl
from transformers import PreTrainedModel
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from graftwork.training import packing, rewards, rollouts
from graftwork.training.anchor import Anchor
from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import JudgedTokens, PairTokens, TokenRow, Tokens
from graftwork.training.difficulty import difficulties
from graftwork.training.grafts import base_of
from graftwork.training.learners import DPO, KTO, PADDING, SFT, Rows
from graftwork.training.order import AskedOrder, Order
from graftwork.training.rollouts import GRPO, Distillation
from graftwork.training.routing import kto_weights

REVERSE: Final = 1.0
"""TRL's beta of a distillation: the reverse divergence, by which the model says nothing that its teacher would not (Gu
et al. 2024, MiniLLM; Agarwal et al. 2024, on-policy distillation)."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a run learns from or holds on to beside its rows.

    Attributes:
        tokenizer: the base's tokenizer.json. eos_token_ids: what ends an answer in serving.
        anchor: of supervised runs. teacher: of a distillation.
    """

    tokenizer: Path
    eos_token_ids: Sequence[int]
    anchor: Anchor | None = None
    teacher: PreTrainedModel | None = None


def make(
    rows: Sequence[TokenRow],
    measured: dict[str, Sequence[TokenRow]],
    config: TrainConfig,
    *,
    model: Any,
    sources: Sources,
    callbacks: list[transformers.TrainerCallback],
    micro: int,
    arguments: dict[str, Any],
) -> transformers.Trainer:
    """The trainer of the method. ``measured`` are rows to measure the loss on, by name; ``arguments`` are transformers'
    own, for ``micro`` rows in one forward pass."""
    recipe = _RECIPES.get(config.method, _sft)(rows, config, micro, sources, base_of(model))
    settings = recipe.settings(**arguments)
    # One GPU trains; with more in sight TRL refuses to start unless a distributed launcher shares the rows out.
    settings._n_gpu = min(settings.n_gpu, 1)
    trainer = recipe.trainer(
        model=model,
        args=settings,
        train_dataset=_table(rows, config, micro, weighted=True),
        eval_dataset={name: _table(part, config, micro, weighted=False) for name, part in measured.items() if part}
        or None,
        callbacks=callbacks,
        **recipe.given,
    )
    for name, value in recipe.also.items():
        setattr(trainer, name, value)
    trainer.order = _order(rows, config, micro, model)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


# --- which trainer, a method each -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Recipe:
    """``settings`` makes TRL's arguments of transformers' own; ``given`` is what the trainer takes beside rows and
    model, ``also`` what it has beside that."""

    trainer: Callable[..., Any]
    settings: Callable[..., Any]
    given: dict[str, Any]
    also: dict[str, Any] = field(default_factory=dict)


def _sft(rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: Sources, base: PreTrainedModel) -> _Recipe:
    collator = Rows(pad_token_id=PADDING)
    # A dropped input of a shared token would be dropped for all rows at once.
    if not config.dropout:
        collator.packs = packing.prepare(base)
    return _Recipe(
        trainer=SFT,
        # The rows are token ids with labels, made by the function that serving uses: TRL must not template them again.
        settings=partial(trl.SFTConfig, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None),
        given={"data_collator": collator, "processing_class": _unasked(sources)},
        also={"anchor": sources.anchor, "firmness": config.anchor},
    )


def _dpo(rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: Sources, base: PreTrainedModel) -> _Recipe:
    return _Recipe(
        trainer=DPO,
        settings=partial(
            trl.DPOConfig,
            beta=config.beta,
            loss_type=["sigmoid", "sft"] if config.sft_share else ["sigmoid"],
            loss_weights=[1.0, config.sft_share] if config.sft_share else None,
            max_length=None,
        ),
        given={
            "data_collator": DataCollatorForPreference(pad_token_id=PADDING),
            "processing_class": _unasked(sources),
        },
    )


def _kto(rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: Sources, base: PreTrainedModel) -> _Recipe:
    liked = sum(row.label for row in rows if isinstance(row, JudgedTokens))
    desirable, undesirable = kto_weights(liked, len(rows) - liked)
    return _Recipe(
        trainer=KTO,
        settings=partial(
            trl.KTOConfig,
            beta=config.beta,
            desirable_weight=desirable,
            undesirable_weight=undesirable,
            # The other estimates a divergence from the neighbours in the batch, and there are none.
            loss_type="kto" if micro > 1 else "apo_zero_unpaired",
            train_sampling_strategy="sequential",
            max_length=None,
        ),
        given={
            "data_collator": DataCollatorForUnpairedPreference(pad_token_id=PADDING),
            "processing_class": _unasked(sources),
        },
    )


def _grpo(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: Sources, base: PreTrainedModel
) -> _Recipe:
    return _Recipe(
        trainer=GRPO,
        settings=partial(
            trl.GRPOConfig,
            beta=config.beta,
            num_generations=config.generations,
            num_generations_eval=1,
            max_completion_length=config.answer_tokens,
        ),
        given={
            "reward_funcs": rewards.load(config.rewards),
            "processing_class": rollouts.tokenizer(sources.tokenizer, base, sources.eos_token_ids),
        },
    )


def _distillation(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: Sources, base: PreTrainedModel
) -> _Recipe:
    return _Recipe(
        trainer=Distillation,
        settings=partial(trl.DistillationConfig, beta=REVERSE, max_completion_length=config.answer_tokens),
        given={
            "teacher_model": sources.teacher,
            "processing_class": rollouts.tokenizer(sources.tokenizer, base, sources.eos_token_ids),
        },
    )


_RECIPES: Final = {"dpo": _dpo, "kto": _kto, "grpo": _grpo, "distillation": _distillation}


def _unasked(sources: Sources) -> transformers.PreTrainedTokenizerFast:
    """TRL wants a tokenizer; every row comes as token ids, so it is never asked anything."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(sources.tokenizer), pad_token="<pad>", eos_token="<pad>"
    )


# --- their rows -------------------------------------------------------------------------------------------------------


def mixed(rows: Sequence[TokenRow], seed: int) -> list[TokenRow]:
    """The rows shuffled. KTO reads them in this order, and learns nothing from batches of one kind."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[index] for index in order]


def _order(rows: Sequence[TokenRow], config: TrainConfig, micro: int, model: Any) -> Order | AskedOrder:
    lengths = [len(row) for row in rows]
    hard: Sequence[float] | None = None
    if config.curriculum == "short_first":
        hard = lengths
    elif config.curriculum == "easy_first":
        learned = [row for row in rows if isinstance(row, Tokens | PairTokens)]
        hard = difficulties(base_of(model).eval(), learned)
    if not config.asks:
        return Order(lengths, config.batch_size, config.seed, shuffled=config.method != "kto", difficulties=hard)
    questions = config.batch_size // config.tries
    order = Order(lengths, questions, config.seed, difficulties=hard)
    return AskedOrder(order, questions=questions, times=config.tries, parts=config.batch_size // micro)


def _table(rows: Sequence[TokenRow], config: TrainConfig, micro: int, *, weighted: bool) -> datasets.Dataset:
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
