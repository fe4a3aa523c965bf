"""From a file to rows, from rows to token ids: what a run learns from, and the digest that names it.

Reads JSON lines of chat messages, JSON lines of prompt/completion pairs, and CSV or TSV with named columns. A row that
cannot be used is never dropped in silence: it becomes a ``BadRow`` with its line and the reason.

Token ids come from ``graftwork.adapters.prompts``, as in serving: what stands before an answer in training is, id by
id, what the server will put before it. Loss falls on the answer alone, its end-of-turn token included.

This file knows nothing of torch, TRL or the base's weights.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import string
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.prompts import Prompts

IGNORED = -100
"""The label of a token that is read but not learned: what torch's cross entropy leaves out."""

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = frozenset({".jsonl", ".ndjson", ".json"})

PROMPT_CHANGING_KEYS = frozenset({"tools", "functions"})
"""Fields of a row that would change what stands before the answer: refused rather than left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A row that was left out: the line of the file it begins on (from 1), and why."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A conversation that ends with the answer to learn, or a plain text and its continuation.

    ``learned`` are the indices of the assistant messages that are learned. Whether roles and contents are ones that
    the base takes is for ``prompts`` to say.
    """

    line: int
    messages: tuple[Mapping[str, Any], ...] = ()
    learned: tuple[int, ...] = ()
    prompt: str = ""
    completion: str = ""

    def digest(self) -> bytes:
        """Of everything that is learned from; the line does not count, nor the form of the file it stood in."""
        return _hash([self.messages, self.learned, self.prompt, self.completion])

    def question_digest(self) -> bytes:
        """Of all but the last answer: rows that ask the same fall on the same side of a split."""
        return _hash([self.messages[:-1], self.prompt])


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """One sequence for the model. ``labels[i]`` is ``input_ids[i]`` where it is learned and IGNORED elsewhere."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns (or JSON fields) of a row are its question and its answer."""

    prompt: str = "prompt"
    completion: str = "completion"
    template: str | None = None
    """Builds the prompt from several columns, as in ``"{subject}: {body}"``; ``prompt`` is then not read."""

    system: str | None = None
    """A system message before every prompt. Rows of chat messages carry their own."""

    plain: bool = False
    """Prompt and completion are plain text as in ``/v1/completions``: no chat template around them."""

    def __post_init__(self) -> None:
        if self.plain and self.system is not None:
            raise ConfigurationError("A system message needs the chat template: use either --system or --plain.")
        self.fields()

    def fields(self) -> tuple[str, ...]:
        """The columns the prompt is made of."""
        if self.template is None:
            return (self.prompt,)
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise ConfigurationError(f"The prompt template cannot be read: {error}.", param="prompt_template") from None
        fields = []
        for _, field, spec, conversion in parts:
            if field is None:
                continue
            # An attribute or index after the name would let a template reach into Python's objects.
            if not field or spec or conversion or any(mark in field for mark in ".["):
                raise ConfigurationError(
                    "The prompt template may only name columns in braces, as in '{subject}: {body}'; write {{ and }} "
                    "for the braces themselves.",
                    param="prompt_template",
                )
            fields.append(field)
        if not fields:
            raise ConfigurationError(
                "The prompt template names no column, so that every prompt would be the same.", param="prompt_template"
            )
        return tuple(fields)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The usable rows of one file, and what was wrong with the others."""

    rows: tuple[Row, ...]
    bad: tuple[BadRow, ...]

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` over the set of rows: the same in any order and in any file format."""
        total = hashlib.sha256()
        for digest in sorted(row.digest() for row in self.rows):
            total.update(digest)
        return f"sha256:{total.hexdigest()}"

    def split(self, validation: float) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
        """Rows to train on and rows to measure on. A row's side follows from its own question alone, so that it
        stays there when rows are added, and no question stands on both sides."""
        train: list[Row] = []
        held: list[Row] = []
        for row in self.rows:
            share = int.from_bytes(row.question_digest()[:8]) / 2**64
            (held if share < validation else train).append(row)
        return tuple(train), tuple(held)


@dataclass(frozen=True, kw_only=True)
class TokenizedRows:
    """Sequences ready for the trainer; rows that lost the end of their answer to the limit are counted, rows that
    could not be used are listed."""

    sequences: tuple[Tokens, ...]
    bad: tuple[BadRow, ...]
    num_cut: int

    @property
    def longest(self) -> int:
        return max((len(tokens.input_ids) for tokens in self.sequences), default=0)


def read(path: Path, columns: Columns) -> Dataset:
    """The rows of a ``.jsonl``, ``.csv`` or ``.tsv`` file, in UTF-8.

    Raises InvalidRequest when the file cannot be read, has none of the columns, or holds no usable row.
    """
    suffix = path.suffix.lower()
    if suffix not in JSON_LINES | DELIMITERS.keys():
        raise InvalidRequest(
            f"{path.name} is neither .jsonl nor .csv nor .tsv. Training reads JSON lines of "
            '{"messages": [...]} or {"prompt": ..., "completion": ...}, or a table with a header.',
            param="data",
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}.", param="data") from error
    rows: list[Row] = []
    bad: list[BadRow] = []
    for line, fields in _json_lines(content) if suffix in JSON_LINES else _table(content, DELIMITERS[suffix], columns):
        try:
            rows.append(_row(line, fields, columns))
        except _Unusable as problem:
            bad.append(BadRow(line=line, reason=str(problem)))
    if not rows:
        raise nothing_usable(path.name, bad)
    return Dataset(rows=tuple(rows), bad=tuple(bad))


def nothing_usable(name: str, bad: Sequence[BadRow]) -> InvalidRequest:
    """The refusal of a file that leaves nothing to train on: its first problems are in the message."""
    if not bad:
        return InvalidRequest(f"{name} holds no rows.", param="data", code="no_usable_rows")
    shown = "; ".join(str(row) for row in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return InvalidRequest(
        f"{name} holds no usable row ({shown}{more}).",
        param="data",
        code="no_usable_rows",
    )


def tokenize(rows: Iterable[Row], prompts: Prompts, *, max_length: int, eos_token_id: int | None) -> TokenizedRows:
    """Rows to sequences of at most ``max_length`` tokens. A sequence is cut at its end; a row whose answers are cut
    off whole is bad, since there would be nothing to learn in it. ``eos_token_id`` ends the answers of a template that
    does not end them itself."""
    sequences: list[Tokens] = []
    bad: list[BadRow] = []
    num_cut = 0
    for row in rows:
        try:
            whole = list(_sequences(row, prompts, eos_token_id))
        except (_Unusable, InvalidRequest) as problem:
            bad.append(BadRow(line=row.line, reason=str(problem)))
            continue
        kept = [cut for tokens in whole if (cut := _cut(tokens, max_length)) is not None]
        if not kept:
            longest = max(len(tokens.input_ids) for tokens in whole)
            reason = f"{longest} tokens: nothing of the answer is left within the limit of {max_length} (--max-length)"
            bad.append(BadRow(line=row.line, reason=reason))
            continue
        num_cut += any(len(tokens.input_ids) > max_length for tokens in whole)
        sequences.extend(kept)
    return TokenizedRows(sequences=tuple(sequences), bad=tuple(bad), num_cut=num_cut)


class _Unusable(Exception):
    """Why one row cannot be used; becomes a BadRow."""


# -- files -------------------------------------------------------------------------------------------------------------


def _json_lines(content: bytes) -> Iterator[tuple[int, Any]]:
    """Line (from 1) and what stands on it, or the _Unusable that says why it cannot be read."""
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.lstrip().startswith(b"["):
        raise InvalidRequest("The file is one JSON array; write one JSON object per line instead.", param="data")
    for line, raw in enumerate(content.split(b"\n"), start=1):
        if raw.strip():
            yield line, _json(raw)


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode())
    except UnicodeDecodeError as error:
        return _Unusable(f"not UTF-8 at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return _Unusable(f"not JSON: {error.msg} at column {error.colno}")
    except (RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        return _Unusable(f"not usable JSON: {error}")


def _table(content: bytes, delimiter: str, columns: Columns) -> Iterator[tuple[int, Any]]:
    """Line (from 1) a record begins on and its fields by column, or the _Unusable that says what is wrong with it."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidRequest(f"Line {line} is not UTF-8: save the file in UTF-8 and try again.", param="data") from None
    # The module's own limit of 128 KiB would refuse long documents; what is too long for the model is cut later.
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise InvalidRequest(f"The header is not a record of the table: {error}.", param="data") from None
    for column in (*columns.fields(), columns.completion):
        if header.count(column) != 1:
            there = ", ".join(map(repr, header)) or "nothing"
            raise InvalidRequest(
                f"The header must have one column {column!r}; it has {there}. Name the columns with --prompt-column "
                "and --completion-column.",
                param="data",
            )
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, _Unusable(f"not a record of the table: {error}")
            continue
        if len(values) == len(header):
            yield line, dict(zip(header, values, strict=True))
        elif values:
            yield line, _Unusable(f"{len(values)} fields where the header has {len(header)}")


# -- rows --------------------------------------------------------------------------------------------------------------


def _row(line: int, fields: Any, columns: Columns) -> Row:
    if isinstance(fields, _Unusable):
        raise fields
    if not isinstance(fields, dict):
        raise _Unusable("not a JSON object")
    if changing := sorted(PROMPT_CHANGING_KEYS & fields.keys()):
        raise _Unusable(f"{changing[0]!r} is not supported in training data")
    if "messages" in fields:
        if columns.plain:
            raise _Unusable("chat messages cannot be learned as plain text: leave out --plain")
        return _conversation(line, fields["messages"])
    prompt = _prompt(fields, columns)
    completion = _field(fields, columns.completion)
    if not columns.plain and isinstance(prompt, list):
        turns = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        return _conversation(line, [*prompt, *turns])
    if not isinstance(prompt, str) or not prompt.strip():
        raise _Unusable(f"{' and '.join(map(repr, columns.fields()))} must make a text that is not empty")
    if not isinstance(completion, str) or not completion.strip():
        raise _Unusable(f"{columns.completion!r} must be a text that is not empty")
    if columns.plain:
        return Row(line=line, prompt=prompt, completion=completion)
    system = [{"role": "system", "content": columns.system}] if columns.system is not None else []
    messages = [*system, {"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return _conversation(line, messages)


def _field(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise _Unusable(f"has neither 'messages' nor {name!r}")
    return fields[name]


def _prompt(fields: Mapping[str, Any], columns: Columns) -> Any:
    values = {name: _field(fields, name) for name in columns.fields()}
    if columns.template is None:
        return values[columns.prompt]
    for name, value in values.items():
        if not isinstance(value, str | int | float):
            raise _Unusable(f"{name!r} is neither a text nor a number")
    return columns.template.format_map(values)


def _conversation(line: int, messages: Any) -> Row:
    if not isinstance(messages, list) or not messages:
        raise _Unusable("'messages' must be a list of messages that is not empty")
    learned = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _Unusable(f"messages[{index}] must be an object with role and content")
        weight = message.get("weight", 1)
        if weight not in (0, 1):
            raise _Unusable(f"messages[{index}].weight is {weight!r}; it may be 1, or 0 for an answer not to learn")
        if message.get("role") == "assistant" and weight == 1:
            if message.get("content") is None or not str(message["content"]).strip():
                raise _Unusable(f"messages[{index}] is an empty answer")
            learned.append(index)
    if messages[-1].get("role") != "assistant":
        raise _Unusable("the last message is not the assistant's: there is no answer to learn")
    if not learned:
        raise _Unusable("every answer has weight 0: there is nothing to learn")
    unweighted = tuple({key: value for key, value in message.items() if key != "weight"} for message in messages)
    return Row(line=line, messages=unweighted, learned=tuple(learned))


def _hash(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


# -- sequences ---------------------------------------------------------------------------------------------------------


def _sequences(row: Row, prompts: Prompts, eos_token_id: int | None) -> Iterator[Tokens]:
    """The row as one sequence with every answer learned in its place. An answer that the template writes differently
    once more turns follow becomes a sequence of its own, so that it is learned after the very ids served before it."""
    if not row.messages:
        prompt = prompts.encode(row.prompt)
        answer = _answer(prompt, prompts.encode(row.prompt + row.completion), prompts.eos_token_ids, eos_token_id)
        yield _learning(prompt + answer, [(len(prompt), len(prompt) + len(answer))])
        return
    whole = prompts.chat(row.messages, add_generation_prompt=False)
    spans: list[tuple[int, int]] = []
    for index in reversed(row.learned):
        prompt = prompts.chat(row.messages[:index])
        turn = prompts.chat(row.messages[: index + 1], add_generation_prompt=False)
        answer = _answer(prompt, turn, prompts.eos_token_ids, eos_token_id)
        served = prompt + answer
        if index == len(row.messages) - 1:
            whole = served
        if whole[: len(served)] == served:
            spans.append((len(prompt), len(served)))
        else:
            yield _learning(served, [(len(prompt), len(served))])
    if spans:
        yield _learning(whole, spans)


def _answer(prompt: list[int], turn: list[int], eos_token_ids: Collection[int], eos_token_id: int | None) -> list[int]:
    """What the model is to say after ``prompt`` so that ``turn`` stands there, up to the token that ends it."""
    if turn[: len(prompt)] != prompt:
        raise _Unusable(
            "the prompt's last token is not the same once the answer follows, so that another prompt would be learned "
            "than is served: begin the answer without white space, or end a plain prompt on a whole word"
        )
    answer = turn[len(prompt) :]
    ends = [position for position, token_id in enumerate(answer) if token_id in eos_token_ids]
    if ends:
        return answer[: ends[0] + 1]
    # A template without an end of turn would teach an answer that never stops.
    return answer if eos_token_id is None else [*answer, eos_token_id]


def _learning(input_ids: list[int], spans: Sequence[tuple[int, int]]) -> Tokens:
    labels = [IGNORED] * len(input_ids)
    for start, end in spans:
        labels[start:end] = input_ids[start:end]
    return Tokens(input_ids=input_ids, labels=labels)


def _cut(tokens: Tokens, max_length: int) -> Tokens | None:
    """The first ``max_length`` tokens; None when nothing of them is learned. The first token of all never is."""
    cut = Tokens(input_ids=tokens.input_ids[:max_length], labels=tokens.labels[:max_length])
    return cut if any(label != IGNORED for label in cut.labels[1:]) else None
