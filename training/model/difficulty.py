"""The difficulty of rows for the ``easy_first`` curriculum: their loss before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from transformers import PreTrainedModel

from graftwork.training.data.tokens import IGNORED, LabeledTokens, PairTokens
from graftwork.training.model.predictions import last_hidden, log_probabilities

PADDED_TOKENS: Final = 4096
"""Maximum number of tokens in a forward pass, padding included; a single row may have more."""


@torch.no_grad()
def difficulties(model: PreTrainedModel, rows: Sequence[LabeledTokens | PairTokens]) -> list[float]:
    """Compute the mean loss of each row over its learned tokens, in nats; of a pair, over its chosen completion.

    Args:
        model: the model, in eval mode.
        rows: the rows.
    """
    sequences = [_sequence(row) for row in rows]
    losses = [0.0] * len(rows)
    for batch in _batches([len(ids) for ids, _ in sequences]):
        for index, loss in zip(batch, _losses(model, [sequences[index] for index in batch]), strict=True):
            losses[index] = loss
    return losses


def _sequence(row: LabeledTokens | PairTokens) -> tuple[list[int], list[int]]:
    if isinstance(row, LabeledTokens):
        return row.input_ids, row.labels
    return [*row.prompt_ids, *row.chosen_ids], [*[IGNORED] * len(row.prompt_ids), *row.chosen_ids]


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Group the indices of rows of similar length into batches."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > PADDED_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _losses(model: PreTrainedModel, sequences: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    width = max(len(ids) for ids, _ in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    labels = torch.full((len(sequences), width), IGNORED)
    mask = torch.zeros(len(sequences), width, dtype=torch.long)
    for index, (row, row_labels) in enumerate(sequences):
        ids[index, : len(row)] = torch.tensor(row)
        labels[index, : len(row)] = torch.tensor(row_labels)
        mask[index, : len(row)] = 1
    ids, labels, mask = (tensor.to(model.device) for tensor in (ids, labels, mask))
    learned = labels[:, 1:] != IGNORED  # [rows, width - 1]
    log_probs = log_probabilities(model, last_hidden(model, ids, mask)[:, :-1][learned])  # [learned, vocabulary]
    losses = -log_probs.gather(1, labels[:, 1:][learned][:, None])[:, 0]
    row_indices = learned.nonzero()[:, 0]
    total = torch.zeros(len(sequences), device=losses.device).index_add_(0, row_indices, losses)
    return (total / learned.sum(1)).tolist()
