"""Answers of a real vocabulary keep to their schemas, and what a schema says that cannot be kept is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.prompts.prompts import Prompts
from graftwork.server.engine.grammars.grammar import (
    LIMITS,
    WHITESPACE,
    ProblemWithGrammar,
    make_and_try_out,
    make_grammar,
    try_out,
)
from graftwork.server.engine.grammars.numbers import bound_numbers
from graftwork.server.engine.loading import load_grammar_tokenizer
from graftwork.server.engine.request import FinishReason
from tests.engine import zoo
from tests.engine.grammars.schemas import ACCEPTED, REFUSED

SAMPLES = 2


@pytest.fixture(scope="module")
def prompts(tiny_base: BaseInfo) -> Prompts:
    return Prompts(Path(tiny_base.path))


@pytest.fixture(scope="module")
def answers(tiny_base: BaseInfo, prompts: Prompts) -> dict[str, zoo.Answered]:
    """Drawn at temperature 1 from a model of random weights: whatever a grammar allows is said sooner or later."""
    bench = zoo.Bench(tiny_base, {}, max_sequences=32)
    ends = {token: 4.0 for text in ('"', '"}', "}", "]", '",', ",") for token in prompts.encode(text)}
    for name, schema in ACCEPTED.items():
        for sample in range(SAMPLES):
            bench.add(
                f"{name} {sample}",
                prompts.encode(f"{name}: "),
                grammar=make_grammar("json", json.dumps(schema)),
                max_tokens=300,
                temperature=1.0,
                seed=sample,
                logit_bias=ends,
                prompt_logprobs=None,
                stop_token_ids=prompts.eos_token_ids,
            )
    return bench.run()


def test_most_answers_come_to_their_end(answers: dict[str, zoo.Answered]) -> None:
    ended = {name[:-2] for name, answer in answers.items() if answer.finish_reason is FinishReason.STOP}
    assert len(ended) >= 60


@pytest.mark.parametrize("name", ACCEPTED)
def test_answers_keep_to_their_schema(answers: dict[str, zoo.Answered], prompts: Prompts, name: str) -> None:
    schema = ACCEPTED[name]
    try_out(make_grammar("json", json.dumps(schema)))
    validator = jsonschema.validators.validator_for(schema)(schema)
    validator = validator.evolve(format_checker=type(validator).FORMAT_CHECKER)
    for sample in range(SAMPLES):
        answer = answers[f"{name} {sample}"]
        assert answer.error is None
        if answer.finish_reason is FinishReason.STOP:
            text = prompts.decode(answer.tokens)
            validator.validate(json.loads(text))
            assert text == text.strip()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(name: str) -> None:
    schema, says = REFUSED[name]
    with pytest.raises(ProblemWithGrammar) as refused:
        try_out(make_grammar("json", json.dumps(schema)))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) <= 300


KINDS: list[tuple[Any, str, str]] = [
    ("regex", "(?=a)b", "pattern: look-around"),
    ("regex", r"(a)\1", "pattern: backreferences are not supported"),
    ("regex", r"\bab\b", "pattern: lookarounds not supported"),
    ("regex", "a^b", "pattern: lookarounds not supported"),
    ("regex", "[^\\s\\S]", "allows no answer at all"),
    ("grammar", "start: foo", 'unknown name: "foo"'),
    ("grammar", 'begin: "a"', "neither Lark, which has a rule start, nor GBNF: Expected ::="),
    ("grammar", "root ::= foo |", "nor GBNF: Rule 'foo' not found"),
    ("grammar", "hello there", "neither Lark, which has a rule start, nor GBNF"),
    ("grammar", "start: <|im_end|>", 'unknown special token: "<|im_end|>"'),
]


@pytest.mark.parametrize(("kind", "source", "says"), KINDS)
def test_other_grammars_are_refused_with_a_reason(kind: Any, source: str, says: str) -> None:
    with pytest.raises(ProblemWithGrammar) as refused:
        try_out(make_grammar(kind, source))
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("regex", "^abc$"),
        ("regex", r"\w+@\w+\.com\n"),
        ("regex", "(?i)yes|no"),
        ("choice", json.dumps([f"choice number {index}" for index in range(5000)])),
        ("choice", '["q\\"\\\\x", "ünï", "a/b", "new\\nline", "<|im_end|>", "a", "ab"]'),
        ("grammar", 'start: "a" b*\nb: /[0-9]+/'),
        ("grammar", 'root ::= "yes" | "no" digit+\ndigit ::= [0-9]\n'),
        ("grammar", 'start: %json {"type": "object"}'),
    ],
)
def test_other_grammars_are_taken(kind: Any, source: str) -> None:
    try_out(make_grammar(kind, source))


def test_white_space_is_bounded(tiny_base: BaseInfo) -> None:
    tokenizer = load_grammar_tokenizer(tiny_base)
    assert tokenizer is not None
    grammar = make_grammar("json", json.dumps({"type": "object", "additionalProperties": {"type": "array"}}))
    assert json.dumps(WHITESPACE)[1:-1] in grammar

    def accepts(text: str) -> bool:
        tokens = tokenizer.tokenize_str(text)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
        return matcher.try_consume_tokens(tokens) == len(tokens)

    value = {"a": [1, {"b": [True, None]}], "c": []}
    assert all(accepts(json.dumps(value, indent=indent)) for indent in (None, 1, 2, 4))
    assert accepts(json.dumps(value, separators=(",", ":")))
    assert not accepts('{"a":  [1]}')
    assert not accepts('{\n\n"a": [1]}')
    assert not accepts("{\n" + " " * 21 + '"a": [1]}')


def test_numbers_come_to_an_end() -> None:
    assert bound_numbers({"type": "integer"}) == {"type": "integer", "minimum": 1 - 2**53, "maximum": 2**53 - 1}
    number = {"type": "number", "minimum": -(10**15), "maximum": 10**15, "multipleOf": 1e-9}
    assert bound_numbers({"type": "number"}) == number
    for same in (
        {"type": "integer", "minimum": 2**60},
        {"type": "number", "enum": [1e300]},
        {"type": "string"},
        {"properties": {"type": "integer"}},
        True,
    ):
        assert bound_numbers(same) == same
    nested = {"anyOf": [{"items": {"type": "number"}}], "$defs": {"a": {"properties": {"type": {"type": "number"}}}}}
    assert bound_numbers(nested) == {
        "anyOf": [{"items": number}],
        "$defs": {"a": {"properties": {"type": number}}},
    }
    # Where a bound cannot be combined with the rest, the schema stays as it is.
    assert make_and_try_out("json", '{"allOf": [{"type": "integer"}, {"minimum": 1e17}]}')
