"""Tool calls are found in an answer's text, wherever it is cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.adapters.prompts.tool_calls import HERMES, ToolCallFormat
from graftwork.server.openai.answers.tool_calls import ToolCallParser

LLAMA = ToolCallFormat('{"name": "', '", "parameters": ', "}", None, native=True)
LIST = ToolCallFormat('[CALLS][{"name": "', '", "arguments": ', "}]", '}, {"name": "', native=True)

ARGUMENTS = '{"a": "}{\\"]", "b": [1, {"c": "\\\\"}]}'
CALL = f'<tool_call>\n{{"name": "f", "arguments": {ARGUMENTS}}}\n</tool_call>'

# the format, an answer, its text, its calls
CASES: dict[str, tuple[ToolCallFormat, str, str, list[tuple[str, str]]]] = {
    "one call": (HERMES, CALL, "", [("f", ARGUMENTS)]),
    "text, two calls": (HERMES, f"Well.\n{CALL}\n{CALL}\n", "Well.", [("f", ARGUMENTS)] * 2),
    "spaces around": (HERMES, f"\n\n{CALL} bye", "bye", [("f", ARGUMENTS)]),
    "no call": (HERMES, " A < b, <tool_call <tool_ca", " A < b, <tool_call <tool_ca", []),
    "spaces at the end": (HERMES, "text \n", "text \n", []),
    "other order and spaces": (
        HERMES,
        '<tool_call>{"arguments":{"x":"é"},"name":"g.h"}</tool_call>',
        "",
        [("g.h", '{"x": "é"}')],
    ),
    "a list of calls": (
        HERMES,
        '<tool_call>[{"name": "a"}, {"name": "b", "parameters": {}}]</tool_call>',
        "",
        [("a", "{}"), ("b", "{}")],
    ),
    "no JSON": (HERMES, "<tool_call>f(x)</tool_call> so", "<tool_call>f(x)</tool_call> so", []),
    "no object": (HERMES, '<tool_call>\n"f"\n</tool_call>', '<tool_call>\n"f"\n</tool_call>', []),
    "arguments that are no object": (
        HERMES,
        '<tool_call>\n{"name": "f", "arguments": "x"}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": "x"}\n</tool_call>',
        [],
    ),
    "cut in the arguments": (HERMES, CALL[:50], "", [("f", CALL[:50].partition('"arguments": ')[2])]),
    "cut in the name": (HERMES, CALL[:22], CALL[:22], []),
    "cut in the second name": (HERMES, f"{CALL}\n{CALL[:22]}", "", [("f", ARGUMENTS)]),
    "another end": (HERMES, '<tool_call>\n{"name": "f", "arguments": {}} </tool_call>x', "x", [("f", "{}")]),
    "the answer is a call": (LLAMA, '{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    "after spaces": (LLAMA, ' \n{"name": "f", "parameters": {"a": 1}} ', "", [("f", '{"a": 1}')]),
    "another JSON": (LLAMA, '{"nome": 3}', '{"nome": 3}', []),
    "a call in a text": (LLAMA, 'So {"name": "f", "parameters": {}}', 'So {"name": "f", "parameters": {}}', []),
    "cut at once": (LLAMA, '{"na', '{"na', []),
    "in one list": (
        LIST,
        'Hm. [CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"a": []}}]',
        "Hm.",
        [("f", "{}"), ("g", '{"a": []}')],
    ),
}


def parsed(format: ToolCallFormat, pieces: list[str], *, parallel: bool = True) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls, both as they come piece by piece."""
    numbers = itertools.count()
    parser = ToolCallParser(format, parallel=parallel, mint_id=lambda: f"call_{next(numbers)}")
    text, calls = "", list[tuple[str, str]]()
    for place, piece in enumerate(pieces):
        content, deltas = parser.push(piece, last=place == len(pieces) - 1)
        text += content
        for delta in deltas:
            if delta.begins is not None:
                assert (delta.index, delta.begins.id) == (len(calls), f"call_{len(calls)}")
                calls.append((delta.begins.name, ""))
            name, arguments = calls[delta.index]
            calls[delta.index] = name, arguments + delta.arguments
    assert calls == [(call.name, call.arguments) for call in parser.calls]
    return text, calls


@pytest.mark.parametrize("case", CASES)
def test_calls_and_text_are_separated(case: str) -> None:
    format, answer, text, calls = CASES[case]
    assert parsed(format, [answer]) == (text, calls)
    assert parsed(format, list(answer)) == (text, calls)


@given(case=st.sampled_from(sorted(CASES)), cuts=st.lists(st.integers(0, 200), max_size=8))
def test_it_does_not_matter_where_an_answer_is_cut(case: str, cuts: list[int]) -> None:
    format, answer, text, calls = CASES[case]
    places = sorted({0, len(answer), *(cut % (len(answer) + 1) for cut in cuts)})
    assert parsed(format, [answer[a:b] for a, b in itertools.pairwise(places)]) == (text, calls)


@given(arguments=st.dictionaries(st.text(), st.recursive(st.none() | st.text() | st.integers(), st.lists)))
def test_all_json_comes_through_as_it_is(arguments: dict[str, object]) -> None:
    written = json.dumps(arguments, ensure_ascii=False)
    answer = HERMES.opening + "f" + HERMES.middle + written + HERMES.closing
    assert parsed(HERMES, [answer]) == ("", [("f", written)])


def test_where_one_call_may_be_made_nothing_is_read_after_it() -> None:
    parser = ToolCallParser(HERMES, parallel=False)
    parser.push(CALL[:60])
    assert not parser.satisfied
    parser.push(CALL[60:] + "\n" + CALL)
    assert parser.satisfied
    assert len(parser.calls) == 1


def test_arguments_are_passed_on_as_they_come() -> None:
    parser = ToolCallParser(HERMES)
    text, _ = parser.push("I look: <tool")
    assert text == "I look:"
    assert parser.push('_call>\n{"name": "f", "arg') == ("", [])
    _, (delta,) = parser.push('uments": {"a": ')
    assert (delta.begins and delta.begins.name, delta.arguments) == ("f", '{"a": ')
    _, (delta,) = parser.push("1}}\n</tool")
    assert (delta.begins, delta.arguments) == (None, "1}")
