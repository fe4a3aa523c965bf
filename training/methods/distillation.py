"""Distillation on the model's own answers, from a teacher's probabilities at every token of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import trl
from transformers import PreTrainedModel

from graftwork.training.config import TrainConfig
from graftwork.training.data.tokens import TokenRow
from graftwork.training.methods import online
from graftwork.training.methods.online import _Asking
from graftwork.training.methods.recipe import Sources, _Recipe

REVERSE: Final = 1.0
"""TRL's beta of a distillation: the reverse divergence, by which the model says nothing that its teacher would not (Gu
et al. 2024, MiniLLM; Agarwal et al. 2024, on-policy distillation)."""


def _distillation(
    rows: Sequence[TokenRow], config: TrainConfig, micro: int, sources: Sources, base: PreTrainedModel
) -> _Recipe:
    return _Recipe(
        trainer=Distillation,
        settings=partial(trl.DistillationConfig, beta=REVERSE, max_completion_length=config.answer_tokens),
        given={
            "teacher_model": sources.teacher,
            "processing_class": online.tokenizer(sources.tokenizer, base, sources.eos_token_ids),
        },
    )


class Distillation(_Asking, trl.DistillationTrainer):
    """The model's own answers, with the teacher's probabilities at every token of them."""
