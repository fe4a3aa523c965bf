"""What a request may hold its answer to, as a grammar: one string, which llguidance reads and which travels with the
sampling parameters. No torch here.

A stranger's grammar can take any time and memory to check, or crash the process that does: see ``trial.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from

from graftwork.server.engine.grammars.numbers import bound_numbers
from graftwork.server.engine.grammars.tool_calls import tool_calls_grammar
from graftwork.server.engine.request import GrammarKind, ToolCallsSpec


def _limits(*, max_items_in_row: int, step_max_items: int) -> LLParserLimits:
    return LLParserLimits(
        max_items_in_row=max_items_in_row,
        max_grammar_size=50_000,
        initial_lexer_fuel=300_000,
        step_lexer_fuel=100_000,
        step_max_items=step_max_items,
        max_lexer_states=20_000,
        verbose_errors=False,
    )


#: Of the engine's matchers: one mask takes some 25 ms of CPU time at worst.
LIMITS = _limits(max_items_in_row=1_100, step_max_items=20_000)

#: Of a trial, which is stricter: what passes it must not fail in the middle of an answer, with a larger vocabulary.
_TRIAL_LIMITS = _limits(max_items_in_row=1_000, step_max_items=5_000)

#: Between the tokens of JSON: nothing, a space, or a new line with its indentation. Without a bound small models go on
#: with white space for ever.
WHITESPACE = r" |\n[ ]{0,20}"

#: How many bytes of an answer a trial makes up: some limits show only there.
_TRIAL_BYTES = 16


#: How JSON is written. A schema's own "x-guidance" would switch to ignoring what cannot be done: these win.
JSON_OPTIONS: dict[str, object] = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": True,
    "whitespace_pattern": WHITESPACE,
    "item_separator": ",",
    "key_separator": ":",
}


#: How the arguments of tool calls are written: as chat templates write those of the history, and in fewer tokens.
_ARGUMENTS_OPTIONS: dict[str, object] = {
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


class ProblemWithGrammar(ValueError):
    """Why a grammar cannot be followed, in words for whoever sent it.

    Attributes:
        field: Where in the body the problem is, if not where the whole grammar comes from.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def make_grammar(kind: GrammarKind, source: str, *, as_text: bool = False) -> str:
    """The grammar for what was asked.

    Args:
        kind: ``json``: a JSON schema; ``regex``: what the whole answer matches, in Rust's syntax; ``choice``: a JSON
            list of strings; ``grammar``: Lark or GBNF; ``tool_calls``: a ``ToolCallsSpec`` as JSON.
        source: The text of it.
        as_text: For ``try_out``, which knows no vocabulary: tokens that are named by their ids are texts instead.

    Raises:
        ProblemWithGrammar: It is not well formed. Most problems show only in ``try_out``.
    """
    match kind:
        case "json":
            try:
                return LLMatcher.grammar_from_json_schema(source, overrides=JSON_OPTIONS)  # type: ignore[arg-type]
            except ValueError as error:
                raise ProblemWithGrammar(in_words(f"is not a JSON schema: {error}")) from None
        case "regex":
            return LLMatcher.grammar_from_regex(source)
        case "choice":
            choices = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in json.loads(source))
            return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}")
        case "tool_calls":
            spec = ToolCallsSpec.from_json(source)
            return tool_calls_grammar(spec, arguments=_ARGUMENTS_OPTIONS, answer=JSON_OPTIONS, as_text=as_text)
        case "grammar":
            try:
                return grammar_from("grammar", source)
            except (ValueError, RecursionError) as error:
                why = str(error).removeprefix("Failed to convert the grammar from GBNF to Lark: ")
                raise ProblemWithGrammar(in_words(f"neither Lark, which has a rule start, nor GBNF: {why}")) from None


def make_and_try_out(kind: GrammarKind, source: str) -> str:
    """The grammar for what was asked, tried out.

    Raises:
        ProblemWithGrammar: It cannot be followed.
    """
    if kind == "json":
        return make_grammar("json", _bounded(source))
    if kind == "tool_calls":
        source = json.dumps(asdict(ToolCallsSpec.from_json(source).with_schemas(_bounded_at)), ensure_ascii=False)
    try_out(make_grammar(kind, source, as_text=True))
    return make_grammar(kind, source)


def _bounded(schema: str) -> str:
    """A JSON schema with bounds for its numbers, or as it is where that cannot be combined; tried out."""
    try:
        bounded = json.dumps(bound_numbers(json.loads(schema)), ensure_ascii=False)
        try_out(make_grammar("json", bounded))
    except (ProblemWithGrammar, RecursionError):
        try_out(make_grammar("json", schema))
        return schema
    return bounded


def _bounded_at(field: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """``_bounded`` of one of the schemas of tool calls; each alone tells which is wrong."""
    try:
        bounded: dict[str, Any] = json.loads(_bounded(json.dumps(schema)))
    except ProblemWithGrammar as problem:
        raise ProblemWithGrammar(str(problem), field) from None
    return bounded


def try_out(grammar: str) -> None:
    """Check a grammar and begin an answer, with bytes for tokens: what fails so fails with every vocabulary.

    Raises:
        ProblemWithGrammar: It cannot be followed.
    """
    tokenizer = _byte_tokenizer()
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_TRIAL_LIMITS)
    for warning in matcher.get_grammar_warnings():  # what would be ignored
        raise ProblemWithGrammar(in_words(warning))
    for _ in range(_TRIAL_BYTES):
        if not matcher.is_stopped():
            allowed = matcher.compute_bitmask()
        if matcher.is_error():
            raise ProblemWithGrammar(in_words(matcher.get_error()))
        if matcher.is_stopped() or not (byte := _middle(allowed)):
            return
        matcher.consume_token(byte)


def _middle(allowed: bytes) -> int:
    """Of the allowed bytes the one in the middle: seldom white space, an escape, or the end. 0 if there is none."""
    tokens = [token for token in range(256) if allowed[token // 8] >> token % 8 & 1]
    return tokens[len(tokens) // 2] if tokens else 0


_END = 256


class _Bytes:
    """Every byte is a token, and there is one more, which ends an answer."""

    eos_token_id = _END
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<the end>")
    special_token_ids = (_END,)

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


def _byte_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])


_SAYINGS: tuple[tuple[str, str], ...] = (
    (r"Unimplemented keys: \[(.*)\]", r"\1 is not supported"),
    (r"oneOf constraints are not supported.*", "oneOf whose branches overlap is not supported; use anyOf"),
    (r"Unknown format: (.*)", r"format \1 is not supported"),
    (r"(?:.*in regex.*: )?((?:lookarounds|look-around).*?)(?:;.*)?", r"pattern: \1"),
    (r".*?regex parse error:.*error: (.*)", r"pattern: \1"),
    (r"circular references with sibling keys.*", "$ref: loops with keywords beside $ref are not supported"),
    (r"Resource '(.*)' is not present.*", r"$ref: \1 is not part of this schema, and nothing is fetched"),
    (r"Pointer '(.*)' does not exist", r"$ref: \1 does not exist"),
    (r".*recursion limit exceeded.*", "is nested too deeply"),
    (r"patternProperty (.*)", r"patternProperties: \1"),
    (r"Failed to generate regex for (?:integer|float) range.*", "minimum and maximum: these bounds are not supported"),
    (r".*NoExtension.*", "allows no answer at all; does a $ref or a rule lead back to itself?"),
    (r"Unable to determine if regex is empty.*", "pattern: this combination of patterns and lengths is too complex"),
    (r"(schema too large|.*too big.*|.*[Tt]oo many.*|.*; max is .*)", r"is too large or too complex: \1"),
)
"""What llguidance says, and how it is told. The whole message must match."""


def in_words(problem: str) -> str:
    """llguidance's message on one line, with the keyword in front where there is one."""
    line = _one_line(problem)
    for pattern, words in _SAYINGS:
        if found := re.fullmatch(pattern, line):
            line = found.expand(words).replace('"', "")
            break
    return line if len(line) <= 300 else line[:299] + "…"


def _one_line(text: str) -> str:
    """A message without where in the grammar it stands."""
    text = re.sub(r"<non-verbose/>|^at \d+\(\d+\): ", "", text)
    text = " ".join(text.partition("\n   1 |")[0].split())
    return text.partition("; following special tokens")[0].partition("; consider making")[0]
