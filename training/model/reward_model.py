"""A reward model in use: a base with an adapter and a scalar head, which scores answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import peft
import torch
from torch import Tensor, nn

from graftwork.adapters.base import BaseInfo, load_model
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.training.config import TrainConfig
from graftwork.training.data.row import Message, Row
from graftwork.training.data.tokens import prompt_and_answer
from graftwork.training.model.adapter import base_model_of
from graftwork.training.model.precision import compute_precision

ROWS_AT_ONCE: Final = 8
"""Number of answers in a forward pass."""


class RewardModel:
    """A loaded reward model. Build it with `load`.

    Args:
        model: the PEFT model with its scalar head.
        base: the base.
    """

    def __init__(self, model: peft.PeftModel, base: BaseInfo) -> None:
        self._model = model
        self._prompts = Prompts(Path(base.path))
        self._eos_token_id = base.eos_token_ids[0] if base.eos_token_ids else None
        self._max_length = base.max_positions

    @classmethod
    def load(cls, folder: Path, base: BaseInfo, *, precision: str | None = None) -> RewardModel:
        """Load a reward model, for use on the device that runs train on.

        Args:
            folder: its PEFT folder.
            base: the base that it was trained on.
            precision: dtype of the forward pass, ``bfloat16`` or ``float32``; what the device is best at by default.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        precision = precision or compute_precision(TrainConfig(), device)
        bare = load_model(base, dtype=precision, device=device, scalar_head=True)
        model = peft.PeftModel.from_pretrained(bare, str(folder), is_trainable=False)
        return cls(model.eval(), base)

    def scores(self, answers: Iterable[tuple[Sequence[Message] | str, str]]) -> list[float]:
        """Score answers, the higher the better; the scores of all training rows are about 0 on average.

        Args:
            answers: what was asked, a list of messages or the text of a plain prompt, with an answer to it.
        """
        return self.row_scores(_row(asked, answer) for asked, answer in answers)

    def row_scores(self, rows: Iterable[Row]) -> list[float]:
        """Score the last answers of rows, tokenized as for training."""
        return [score for part in _parts(rows) for score in self._score(part)]

    def _score(self, rows: Sequence[Row]) -> list[float]:
        ids = []
        for row in rows:
            prompt, answer = prompt_and_answer(row, self._prompts, self._eos_token_id)
            ids.append(torch.tensor((prompt + answer)[: self._max_length]))
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        lengths = torch.tensor([len(row) for row in ids])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        device = self._model.device
        with torch.inference_mode():
            found: list[float] = last_token_scores(self._model, padded.to(device), mask.to(device)).tolist()
        return found


def last_token_scores(model: peft.PeftModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Compute the scores of rows that are padded on the right, at their last tokens: float32 [rows].

    Args:
        model: a PEFT model with a scalar head.
        input_ids: [rows, tokens].
        attention_mask: [rows, tokens], 1 for tokens and 0 for padding.
    """
    inner: Any = base_model_of(model)
    hidden = inner.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(dim=1) - 1]
    # Differences of scores are what counts, and bfloat16 has three digits.
    with torch.autocast(hidden.device.type, enabled=False):
        scores: Tensor = inner.score(last.float())
    return scores[:, 0]


def _row(asked: Sequence[Message] | str, answer: str) -> Row:
    if isinstance(asked, str):
        return Row(prompt=asked, completion=answer)
    return Row(messages=(*asked, {"role": "assistant", "content": answer}), learned=(len(asked),))


def _parts(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while part := list(islice(remaining, ROWS_AT_ONCE)):
        yield part
