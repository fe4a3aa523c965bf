"""Logits processors apply to the rows that have them, in order, and to no others."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from graftwork.server.engine.backends.torch.sampler import sample_tokens
from graftwork.server.engine.kv.prefix_cache import Prefix
from graftwork.server.engine.logits_processors import (
    MIN_TOKENS,
    PENALTIES,
    LogitsProcessor,
    LogitsRow,
    apply_processors,
    default_processors,
)
from graftwork.server.engine.request import Request, SamplingParams
from graftwork.server.engine.sampler import sample
from graftwork.server.engine.sequence import SequenceState

VOCABULARY = 50


def sequence(generated: Sequence[int] = (), *processors: LogitsProcessor, **sampling: object) -> SequenceState:
    options = {"max_tokens": 100, "temperature": 0.0, **sampling}
    request = Request(id="r", prompt=(1, 2, 3), sampling=SamplingParams(**options))  # type: ignore[arg-type]
    tokens = [1, 2, 3, *generated]
    return SequenceState(
        request=request,
        arrival_index=0,
        tokens=tokens,
        prefix=Prefix(None, tokens),
        rng=random.Random(0),
        output_counts={token: list(generated).count(token) for token in generated},
        logits_processors=(*default_processors(request), *processors),
    )


class Only:
    """Leaves one token: the one that follows the newest, as a grammar without choice would."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def is_active(self, row: LogitsRow) -> bool:
        return True

    def apply(self, logits: Tensor, rows: Sequence[LogitsRow]) -> None:
        self.calls.append([row.index for row in rows])
        for row in rows:
            forced = (row.tokens[-1] + 1) % VOCABULARY
            value = logits[row.index, forced].clone()
            logits[row.index] = float("-inf")
            logits[row.index, forced] = value


def test_only_what_is_asked_for_is_in_a_chain() -> None:
    assert sequence().logits_processors == ()
    assert sequence(stop_token_ids=frozenset({7})).logits_processors == ()
    assert sequence(min_tokens=3).logits_processors == ()
    assert sequence(presence_penalty=1.0).logits_processors == (PENALTIES,)
    both = sequence(frequency_penalty=-1.0, min_tokens=3, stop_token_ids=frozenset({7}))
    assert both.logits_processors == (PENALTIES, MIN_TOKENS)


def test_penalties_and_held_off_stop_tokens_to_the_last_bit() -> None:
    """Beside the same by hand, one row at a time."""
    generator = torch.Generator().manual_seed(0)
    rows = [
        sequence(),
        sequence([4, 4, 5], frequency_penalty=0.3, presence_penalty=0.7),
        sequence([9] * 7 + [8], frequency_penalty=-0.123),
        sequence([], presence_penalty=1.5),
        sequence([6, 6], presence_penalty=1.5, min_tokens=3, stop_token_ids=frozenset({6, 40})),
        sequence([6, 6, 6], min_tokens=3, stop_token_ids=frozenset({6})),
    ]
    logits = torch.randn(len(rows), VOCABULARY, generator=generator) * 5
    before = logits.clone()
    chains = [
        (LogitsRow(i, row.request, row.tokens, row.output_counts), row.logits_processors) for i, row in enumerate(rows)
    ]
    adjusted = apply_processors(logits, chains)
    assert torch.equal(logits, before)
    expected = before.clone()
    for i, row in enumerate(rows):
        sampling = row.request.sampling
        for token, count in row.output_counts.items():
            penalty = torch.tensor([float(count)]) * sampling.frequency_penalty + sampling.presence_penalty
            expected[i, token] -= penalty[0]
    expected[4, [6, 40]] = float("-inf")
    assert torch.equal(adjusted, expected)
    for i, chain in enumerate(chains):
        alone = (LogitsRow(0, chain[0].request, chain[0].tokens, chain[0].output_counts), chain[1])
        assert torch.equal(apply_processors(before[i : i + 1], [alone])[0], adjusted[i])


def test_nothing_is_copied_where_nothing_changes() -> None:
    logits = torch.randn(2, VOCABULARY)
    rows = [sequence(presence_penalty=1.0), sequence([6] * 3, min_tokens=3, stop_token_ids=frozenset({6}))]
    chains = [
        (LogitsRow(i, row.request, row.tokens, row.output_counts), row.logits_processors) for i, row in enumerate(rows)
    ]
    assert apply_processors(logits, chains) is logits
    assert apply_processors(logits, []) is logits


def test_a_processor_is_called_once_for_all_its_rows_and_after_what_stands_before_it() -> None:
    only = Only()
    rows = [sequence([10], only), sequence(), sequence([20], only), sequence([30], only, presence_penalty=1.0)]
    logits = torch.randn(len(rows), VOCABULARY)
    chosen = [token.token_id for token in sample(logits, rows, sample_tokens)]
    assert [chosen[0], chosen[2], chosen[3]] == [11, 21, 31]
    assert chosen[1] == int(logits[1].argmax())
    assert only.calls == [[0, 2], [3]], "the last has a penalty before it"


def test_rows_of_drafts_are_processed_as_if_the_drafts_had_been_said() -> None:
    drafted = sequence([5], presence_penalty=100.0, min_tokens=3, stop_token_ids=frozenset({7}))
    logits = torch.zeros(3, VOCABULARY)
    logits[:, 5], logits[:, 7], logits[:, 9] = 3.0, 2.0, 1.0
    tokens = sample(logits, [drafted] * 3, sample_tokens, {1: (9,), 2: (9, 0)})
    assert [token.token_id for token in tokens] == [9, 0, 7]
    assert drafted.output_counts == {5: 1}
    assert drafted.tokens == [1, 2, 3, 5]


def test_logit_bias_is_added() -> None:
    row = sequence(logit_bias={7: 2.5, 9: -100.0})
    logits = torch.randn(2, VOCABULARY)
    expected = logits.clone()
    expected[1, 7] += 2.5
    expected[1, 9] -= 100.0
    chain = (LogitsRow(1, row.request, row.tokens, row.output_counts), row.logits_processors)
    assert torch.equal(apply_processors(logits, [chain]), expected)


def test_the_repetition_penalty_counts_prompt_and_answer_once_as_transformers_does() -> None:
    row = sequence([7, 7, 3, 9], repetition_penalty=1.3)
    logits = torch.randn(1, VOCABULARY) * 3
    chain = (LogitsRow(0, row.request, row.tokens, row.output_counts), row.logits_processors)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([row.tokens]), logits.clone())
    assert torch.equal(apply_processors(logits, [chain]), expected)
