"""Grammars of tool calls: what they take and what they refuse, with markers that are text and that are tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.prompts.tool_calls import HERMES, ToolCallFormat
from graftwork.server.engine.grammars.grammar import LIMITS, ProblemWithGrammar, make_and_try_out
from graftwork.server.openai.requests.tools import NamedTool, Tool, tool_calls_source

LLAMA = ToolCallFormat('{"name": "', '", "parameters": ', "}", None, native=True)


def tool(name: str, strict: bool = False, **properties: Any) -> Tool:
    schema = {"properties": properties, "required": [*properties]}
    function = {"name": name, "parameters": schema, "strict": strict}
    return Tool.model_validate({"type": "function", "function": function})


WEATHER = tool("weather", city={"type": "string"})
ADD = tool("add", a={"type": "integer"}, b={"type": "integer"})
STRICT = tool("weather", strict=True, city={"type": "string"})


class Taker:
    """Says how much of a text an answer under a grammar may be."""

    def __init__(self, base: BaseInfo, added: Mapping[str, bool]) -> None:
        self.tokenizer = Tokenizer.from_file(str(Path(base.path) / "tokenizer.json"))
        for token, special in added.items():
            method = self.tokenizer.add_special_tokens if special else self.tokenizer.add_tokens
            method([AddedToken(token, special=special, normalized=False)])
        size = self.tokenizer.get_vocab_size()
        self.end = self.tokenizer.token_to_id("<|im_end|>")
        self._tokenizer = LLTokenizer(self.tokenizer.to_str(), n_vocab=size, eos_token=[self.end])
        ids = {token: self.tokenizer.token_to_id(token) for token in added}
        self.hermes, self.llama = HERMES.with_tokens(ids), LLAMA.with_tokens(ids)

    def takes(self, grammar: str, text: str) -> bool:
        """Whether it takes all of the text and may end then."""
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
        assert not matcher.is_error(), matcher.get_error()
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.fixture(scope="module", params=[{}, {"<tool_call>": False, "</tool_call>": False}, {"<tool_call>": True}])
def taker(request: pytest.FixtureRequest, embedded_base: BaseInfo) -> Taker:
    """Markers as text, as Qwen's tokens, and as a special token."""
    return Taker(embedded_base, request.param)


def grammar(
    tools: list[Tool], choice: Any, format: ToolCallFormat, *, parallel: bool = True, answer: Any = None
) -> str:
    source = tool_calls_source(tools, choice, format, parallel=parallel, answer=answer)
    assert source is not None
    return make_and_try_out(source.kind, source.text)


def written(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


PARIS, SUM = written("weather", '{"city": "Paris"}'), written("add", '{"a": 1, "b": -2}')


def test_a_required_call_is_one_of_the_tools_with_its_own_arguments(taker: Taker) -> None:
    required = grammar([WEATHER, ADD], "required", taker.hermes)
    assert taker.takes(required, PARIS)
    assert taker.takes(required, f"{PARIS}\n{SUM}\n{PARIS}")
    for wrong in (
        *("", "Paris", f" {PARIS}", f"{PARIS} bye", f"{PARIS}{SUM}"),
        written("weather", '{"city": 5}'),
        written("weather", '{"a": 1, "b": -2}'),
        written("weather", "{}"),
        written("weather", '{"city": "Paris", "more": 1}'),
        written("weather", '{"city":"Paris"}'),
        written("weather", '{ "city": "Paris"}'),
        written("wether", '{"city": "Paris"}'),
        PARIS[:-1],
    ):
        assert not taker.takes(required, wrong), wrong


def test_a_named_tool_is_the_only_one_and_one_call_is_one(taker: Taker) -> None:
    named = grammar([WEATHER, ADD], NamedTool("add"), taker.hermes)
    assert taker.takes(named, SUM)
    assert not taker.takes(named, PARIS)
    single = grammar([WEATHER, ADD], "required", taker.hermes, parallel=False)
    assert taker.takes(single, PARIS)
    assert not taker.takes(single, f"{PARIS}\n{SUM}")


def test_where_calls_may_be_made_only_strict_ones_keep_to_their_schema(taker: Taker) -> None:
    assert tool_calls_source([WEATHER], None, taker.hermes, parallel=True, answer=None) is None
    optional = grammar([STRICT, ADD], "auto", taker.hermes)
    wrong_sum = written("add", '{"a": "x", "c": []}')
    for right in ("", "Hello <b>you</b>\n", PARIS, f"So: {PARIS}", f"{PARIS}\n{wrong_sum}", f"{PARIS}\nThere."):
        assert taker.takes(optional, right), right
    for wrong in (f"So: {written('weather', '{}')}", written("other", "{}"), written("add", "[]")):
        assert not taker.takes(optional, wrong), wrong


def test_an_answer_in_a_format_stands_beside_calls(taker: Taker) -> None:
    from graftwork.server.openai.requests.structured_output import GrammarSource

    schema = {"type": "object", "properties": {"label": {"enum": ["a", "b"]}}, "required": ["label"]}
    answer = GrammarSource.of("json", schema, "response_format")
    either = grammar([WEATHER], None, taker.hermes, answer=answer)
    assert taker.takes(either, '{"label":"a"}')
    assert taker.takes(either, PARIS)
    assert not taker.takes(either, "Paris")
    assert not taker.takes(either, '{"label":"c"}')


def test_a_format_without_markers(taker: Taker) -> None:
    call = '{"name": "weather", "parameters": {"city": "Paris"}}'
    required = grammar([WEATHER, ADD], "required", taker.llama)
    assert taker.takes(required, call)
    assert not taker.takes(required, call + call)
    optional = grammar([STRICT], None, taker.llama)
    for right in (call, "", "Hello."):
        assert taker.takes(optional, right), right
    for wrong in ('{"name": "weather", "parameters": {}}', '{"name": 5}', call + " And so"):
        assert not taker.takes(optional, wrong), wrong


def test_calls_come_to_an_end(taker: Taker) -> None:
    required = grammar([ADD], "required", taker.hermes)
    assert taker.takes(required, "\n".join([SUM] * 16))
    assert not taker.takes(required, "\n".join([SUM] * 17))


@pytest.mark.parametrize(
    ("parameters", "right", "wrong"),
    [
        (None, "{}", '{"a": 1}'),
        ({"properties": {}}, "{}", '{"a": 1}'),
        ({"type": "object"}, '{"a": 1}', "[]"),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, '{"a": 1, "b": 2}', '{"a" :1}'),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "object", "required": ["a"]}}}, '{"a": 1}', "{}"),
    ],
)
def test_a_function_takes_the_arguments_that_it_declares(taker: Taker, parameters: Any, right: str, wrong: str) -> None:
    given = Tool.model_validate({"type": "function", "function": {"name": "f", "parameters": parameters}})
    required = grammar([given], "required", taker.hermes)
    assert taker.takes(required, written("f", right))
    assert not taker.takes(required, written("f", wrong))


def test_what_a_schema_cannot_have_is_named_with_its_place() -> None:
    tags = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    tools = [ADD, tool("tag", tags=tags, **{"x-guidance": {}})]
    with pytest.raises(ProblemWithGrammar, match="uniqueItems is not supported") as caught:
        grammar(tools, "required", HERMES)
    assert caught.value.field == "tools[1].function.parameters"
    with pytest.raises(ProblemWithGrammar, match="uniqueItems"):
        grammar([replace_parameters(tools[1], {"x-guidance": {"lenient": True}})], "required", HERMES)
    assert tool_calls_source(tools, "auto", HERMES, parallel=True, answer=None) is None, "nothing holds these"


def test_numbers_that_cannot_be_bounded_stay_as_they_are(taker: Taker) -> None:
    """A bound beside ``allOf`` could leave no number at all: then the schema is kept without it, as elsewhere."""
    far = tool("far", n={"allOf": [{"type": "integer"}, {"minimum": 10**17}]})
    required = grammar([far, ADD], "required", taker.hermes)
    assert taker.takes(required, written("far", '{"n": 100000000000000001}'))
    assert not taker.takes(required, written("add", '{"a": 1, "b": 100000000000000001}'))


def replace_parameters(given: Tool, more: dict[str, Any]) -> Tool:
    changed = given.model_dump(exclude_none=True)
    changed["function"]["parameters"] |= more
    return Tool.model_validate(changed)


def test_the_spec_travels_as_json() -> None:
    source = tool_calls_source([WEATHER, ADD], "required", replace(HERMES), parallel=True, answer=None)
    assert source is not None
    assert [entry["name"] for entry in json.loads(source.text)["tools"]] == ["weather", "add"]
