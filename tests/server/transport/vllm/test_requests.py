"""Requests as vLLM takes them."""

from __future__ import annotations

import json

import pytest
from llguidance import grammar_from

from graftwork.server.engine.grammars.grammar import make_grammar, try_out
from graftwork.server.engine.request import GrammarKind
from graftwork.server.transport.vllm.requests import structured_outputs

SCHEMA = json.dumps({"type": "object", "properties": {"a::=": {"type": "integer"}}, "required": ["a::="]})


@pytest.mark.parametrize(
    ("kind", "source", "part"),
    [
        ("json", SCHEMA, '"whitespace_flexible": false'),
        ("regex", "a/[0-9]{3}b", r"a\/[0-9]{3}b"),
        ("choice", '["yes", "no \\"quoted\\""]', r"no \"quoted"),
        ("grammar", 'start: "go " NUMBER\nNUMBER: /[0-9]{4}/', "NUMBER"),
        ("grammar", 'root ::= "left" | "right"', "left"),
    ],
)
def test_a_grammar_is_the_same_there(kind: GrammarKind, source: str, part: str) -> None:
    """Its backend makes of ``grammar`` what this function makes of it."""
    field = structured_outputs(make_grammar(kind, source))
    theirs = grammar_from("grammar", field["grammar"])
    assert theirs == field["grammar"]
    assert part in theirs
    try_out(theirs)
