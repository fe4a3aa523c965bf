"""The probability of forbidden tokens goes to the longest allowed tokens that they begin with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer

from graftwork.adapters.base.info import BaseInfo
from graftwork.server.engine.grammars import token_prefixes
from graftwork.server.engine.grammars.grammar import make_grammar
from graftwork.server.engine.grammars.processor import GrammarProcessor
from graftwork.server.engine.grammars.token_prefixes import TokenPrefixes
from graftwork.server.engine.loading import load_grammar_tokenizer
from graftwork.server.engine.logits_processors import LogitsRow
from tests.engine import zoo

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer(embedded_base: BaseInfo) -> LLTokenizer:
    tokenizer = load_grammar_tokenizer(embedded_base)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def prefixes(tokenizer: LLTokenizer) -> TokenPrefixes:
    return TokenPrefixes(tokenizer)


def handed_over(tokenizer: LLTokenizer, logits: list[float], allowed: list[bool]) -> list[float]:
    """The slow way: token by token."""
    texts = [tokenizer.decode_bytes([token_id]) for token_id in range(len(logits))]
    ids = {text: token_id for token_id, text in enumerate(texts) if text}
    weights = [math.exp(logit) for logit in logits]
    received = list(weights)
    for token_id, text in enumerate(texts):
        if allowed[token_id] or not set(text) & set(b'"]},:'):
            continue
        for end in range(len(text) - 1, 0, -1):
            prefix = ids.get(text[:end])
            if prefix is not None and allowed[prefix]:
                received[prefix] += weights[token_id]
                break
    return [math.log(weight) for weight in received]


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("add", ["_add_on_cpu", "_add_on_device"])
def test_it_gives_what_the_slow_way_gives(
    tokenizer: LLTokenizer, prefixes: TokenPrefixes, share: float, add: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_prefixes, "_add_on_cpu", getattr(token_prefixes, add))
    torch.manual_seed(1)
    logits = torch.randn(tokenizer.vocab_size) * 3
    allowed = np.random.default_rng(1).random(tokenizer.vocab_size) < share
    expected = handed_over(tokenizer, logits.tolist(), allowed.tolist())
    prefixes.hand_over(logits, allowed)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_string_ends_where_the_model_wants_to_end_the_object(tokenizer: LLTokenizer, prefixes: TokenPrefixes) -> None:
    matcher = LLMatcher(tokenizer, make_grammar("json", json.dumps(SCHEMA)))
    said = tokenizer.tokenize_str('{"a": "yes')
    (end_of_object,) = tokenizer.tokenize_str('"}')
    (quote,) = tokenizer.tokenize_str('"')
    (other,) = tokenizer.tokenize_str("x")
    logits = torch.full((1, tokenizer.vocab_size), -20.0)
    logits[0, end_of_object], logits[0, other], logits[0, quote] = 5.0, 2.0, -3.0
    request: Any = None  # is not asked
    GrammarProcessor(matcher, tokenizer, prefixes, 0).apply(logits, [LogitsRow(0, request, said, {})])
    assert logits[0].argmax() == quote
    assert logits[0, quote] == pytest.approx(5.0, abs=1e-3)
    assert logits[0, other] == 2.0
    assert torch.isneginf(logits[0, end_of_object])


def test_what_was_ruled_out_before_gives_nothing(tokenizer: LLTokenizer, prefixes: TokenPrefixes) -> None:
    logits = torch.full((tokenizer.vocab_size,), -torch.inf)
    prefixes.hand_over(logits, np.arange(tokenizer.vocab_size) % 2 == 0)
    assert torch.isneginf(logits).all()


def test_a_vocabulary_of_bytes_has_no_prefixes(tmp_path: Path) -> None:
    base = zoo.make_base("llama", tmp_path / "llama", tmp_path / "home")
    tokenizer = load_grammar_tokenizer(base)
    assert tokenizer is not None
    logits = torch.zeros(tokenizer.vocab_size)
    TokenPrefixes(tokenizer).hand_over(logits, np.zeros(tokenizer.vocab_size, dtype=bool))
    assert not logits.any()
