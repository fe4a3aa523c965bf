"""The formats of training records: how each is recognised by its fields and converted to a row.

For a record that cannot be used, converters raise `Unusable` with the reason and, where it helps, what to do.

A label or score beside an answer is about that answer, in whatever format the answer is: ignored, it would let bad
answers be learned as good ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from typing import Any, Final

from graftwork.training.data.read.columns import ANSWERS, CLASSES, LABEL_COLUMNS, QUESTIONS, USERS, Columns
from graftwork.training.data.read.conversations import (
    Fields,
    conversation,
    last_alone,
    only_answer,
    pair,
    question,
    whole_text,
    with_tools,
)
from graftwork.training.data.row import (
    SPLITS,
    Message,
    Row,
    SplitName,
    Unusable,
    assistant_message,
    group_of,
    is_unicode,
)

SPEAKERS: Final = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
}
"""ShareGPT's names of roles, and the role that each stands for."""

LABELS: Final = {
    **dict.fromkeys(("true", "1", "yes", "up", "good", "desirable"), True),
    **dict.fromkeys(("false", "0", "no", "down", "bad", "undesirable"), False),
}
SIDE_NAMES: Final[dict[str, SplitName]] = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    "test": "test",
}

MEDIA_FIELDS: Final = ("image", "images", "audio", "audios", "video", "videos")
"""Fields in which TRL's and LLaVA's data sets have what is no text."""

Convert = Callable[[Fields, Columns], Row]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A format of records.

    Attributes:
        name: its name, as for ``--format``.
        looks_like: an example for people.
        fits: whether a record with these fields has this format.
        convert: converts a record to a row; raises Unusable.
    """

    name: str
    looks_like: str
    fits: Callable[[Set[str], Columns], bool]
    convert: Convert


def recognise(fields: Set[str], columns: Columns) -> Format | None:
    """Return the first format that fits a record with these fields; None if there is none."""
    return next((format for format in FORMATS.values() if format.fits(fields, columns)), None)


def known_formats() -> str:
    """List the examples of all formats, for error messages."""
    return "; ".join(format.looks_like for format in FORMATS.values())


def convert(format: Format, fields: Fields, columns: Columns) -> Row:
    """Convert a record to a row with its group and split.

    Raises:
        Unusable: if the record cannot be used.
    """
    _require_text_alone(fields)
    row = format.convert(fields, columns)
    row = row if row.tools else with_tools(row, fields)
    return replace(row, group=_group(fields, columns), split=_split(fields, columns))


def _require_text_alone(fields: Fields) -> None:
    """Check that a record has no images or recordings beside its texts, as vision data sets have: without them the
    answers would be learned as guesses. In a table of texts a column of this name may be anything."""
    for name in MEDIA_FIELDS:
        value = fields.get(name)
        if value and (not isinstance(value, str) or fields.keys() & {"messages", "conversations"}):
            raise Unusable(f"{name!r} is not empty, and bases here read only text: leave out what the answer needs not")


def question_and_answer(fields: Set[str], columns: Columns) -> tuple[tuple[str, ...], str] | None:
    """Return the columns of the question (several with a template) and of the answer; None if they are not found."""
    asked = columns.fields() or tuple(name for name in QUESTIONS if name in fields)[:1]
    if not asked or not fields >= {*asked}:
        return None
    if columns.completion is not None:
        answers: tuple[str, ...] = (columns.completion,)
    else:
        answers = tuple(name for name in ANSWERS if name in fields and name not in asked)
    return (asked, answers[0]) if answers and answers[0] in fields else None


def answer_format(fields: Set[str], columns: Columns) -> Format | None:
    """Return the format in which these fields give an answer, apart from a label or score of it; None if in none."""
    without = fields - _judgements(fields, columns)
    return next((FORMATS[name] for name in _ANSWERING if FORMATS[name].fits(without, columns)), None)


def answer_columns(format: str, fields: Set[str], columns: Columns) -> tuple[tuple[str, ...], str] | None:
    """Return the columns of question and answer of a record in this format; None if they are in no columns."""
    if format == "completion":
        return question_and_answer(fields, columns)
    inner = answer_format(fields, columns) if format in ("kto", "scored") else None
    if inner is None or inner.name != "completion":
        return None
    return question_and_answer(fields - _judgements(fields, columns), columns)


# --- the formats ------------------------------------------------------------------------------------------------------


def _question(fields: Fields, columns: Columns) -> Row:
    """A question for graders, who are told the record's other fields. An answer at the end of its messages is one of
    them, ``answer``."""
    others = {name: value for name, value in fields.items() if name not in ("messages", "tools")}
    if not is_unicode(json.dumps(others, ensure_ascii=False)):
        raise Unusable("a field holds half a character: save the file as UTF-8")
    turns = fields.get("messages")
    if turns is None:
        asked = columns.fields() or tuple(name for name in QUESTIONS if name in fields)[:1]
        if not asked:
            raise Unusable("has no 'messages' that end with a user's, beside the fields that graders read")
        text = _prompt(fields, asked, columns)
        if not isinstance(text, str) or not text.strip():
            raise Unusable(f"{' and '.join(asked)!r} must be a text that is not empty")
        system = [{"role": "system", "content": columns.system}] if columns.system is not None else []
        turns = [*system, {"role": "user", "content": whole_text(text, asked[0])}]
    elif isinstance(turns, list) and turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
        others = {"answer": turns[-1].get("content"), **others}
        turns = turns[:-1]
    return question(turns, others)


def _chat(fields: Fields, columns: Columns) -> Row:
    if columns.plain:
        raise Unusable("chat messages cannot be learned as plain text: leave out --plain")
    return conversation(_field(fields, "messages"))


def _completion(fields: Fields, columns: Columns) -> Row:
    found = question_and_answer(fields.keys(), columns)
    if found is None:
        raise Unusable("has no question and answer: name their columns with --prompt-column and --completion-column")
    asked, answer = found
    if answer in CLASSES and isinstance(label := fields.get("label"), bool):
        raise Unusable(
            f"'label' is {json.dumps(label)} beside the class {answer!r}: if it says whether that is right, name both "
            "columns with --prompt-column and --completion-column, else leave it out"
        )
    name = " and ".join(asked)
    return pair(_prompt(fields, asked, columns), fields[answer], columns, names=(name, answer))


def _kto(fields: Fields, columns: Columns) -> Row:
    name = _label_column(fields.keys(), columns) or LABEL_COLUMNS[0]
    return replace(_judged_answer(fields, columns, name), label=_label(name, _field(fields, name)))


def _scored(fields: Fields, columns: Columns) -> Row:
    return replace(_judged_answer(fields, columns, "score"), score=_score(_field(fields, "score"), columns.score_range))


def _judged_answer(fields: Fields, columns: Columns, judgement: str) -> Row:
    """Build the row of an answer with a label or score, of a conversation's last one."""
    format = answer_format(fields.keys(), columns) or FORMATS["completion"]
    others = fields.keys() - _judgements(fields.keys(), columns) - {judgement}
    return last_alone(format.convert({name: fields[name] for name in fields if name in others}, columns))


def _judgements(fields: Set[str], columns: Columns) -> set[str]:
    """Return the columns that say how good the answer is."""
    label = _label_column(fields, columns)
    return ({label} if label else set()) | ({"score"} & fields - {columns.completion or ""})


def _label_column(fields: Set[str], columns: Columns) -> str | None:
    """Return the column that says whether the answer is good; None if there is none.

    ``label`` may also be the answer itself, or beside the name of a class its number: neither says so.
    """
    for name in LABEL_COLUMNS:
        if name not in fields or columns.completion == name:
            continue
        without = fields - {name}
        if any(FORMATS[format].fits(without, columns) for format in ("chat", "sharegpt", "alpaca")):
            return name
        found = question_and_answer(without, columns)
        named = columns.completion is not None and bool(columns.fields())
        if found is not None and (named or found[1] not in CLASSES):
            return name
    return None


def _is_scored(fields: Set[str], columns: Columns) -> bool:
    return "score" in _judgements(fields, columns) and answer_format(fields, columns) is not None


def _preference(fields: Fields, columns: Columns) -> Row:
    _require_unjudged(fields)
    better, worse = _field(fields, "chosen"), _field(fields, "rejected")
    asked_of = question_and_answer({*fields, "chosen"}, replace(columns, completion="chosen"))
    asked = _prompt(fields, asked_of[0], columns) if asked_of else None
    if columns.plain or not isinstance(better, list):
        if asked is None:
            raise Unusable("has no 'prompt', and 'chosen' is no list of messages that could begin with it")
        rejected = only_answer(worse, "rejected") if isinstance(worse, list) else assistant_message(worse)
        return _better(pair(asked, better, columns, names=("prompt", "chosen")), rejected)
    if not isinstance(worse, list):
        raise Unusable("'chosen' is a list of messages, so 'rejected' must be one too")
    if asked is None:
        asked = better[: next((i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), 0)]
        if not asked:
            raise Unusable("'chosen' and 'rejected' have no beginning in common that could be the question")
    question = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if not isinstance(question, list):
        raise Unusable("'prompt' must be a text or a list of messages")
    better, worse = (
        turns[len(question) :] if turns[: len(question)] == question else turns for turns in (better, worse)
    )
    if isinstance(asked, str) and columns.system is not None:
        question = [{"role": "system", "content": columns.system}, *question]
    return _better(conversation([*question, only_answer(better, "chosen")]), only_answer(worse, "rejected"))


def _openai_dpo(fields: Fields, columns: Columns) -> Row:
    _require_unjudged(fields)
    given = _field(fields, "input")
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise Unusable("'input' must be an object with messages")
    outputs = []
    for name in ("preferred_output", "non_preferred_output"):
        turns = _field(fields, name)
        if not isinstance(turns, list):
            raise Unusable(f"{name!r} must be a list of one message")
        outputs.append(only_answer(turns, name))
    chosen, rejected = outputs
    return with_tools(_better(conversation([*given["messages"], chosen]), rejected), given)


def _require_unjudged(fields: Fields) -> None:
    """Check that nothing beside two answers could say that the first is not the better one."""
    for name in (*LABEL_COLUMNS, "score"):
        if fields.get(name) is not None:
            raise Unusable(f"{name!r} beside two answers says nothing that is known: leave it out, or give one answer")


def _better(row: Row, rejected: Message) -> Row:
    text, calls = rejected["content"], rejected.get("tool_calls", ())
    if not isinstance(text, str) or not (text.strip() or calls):
        raise Unusable("the rejected answer must be a text that is not empty")
    worse = row.with_answer(whole_text(text, "rejected"), calls)
    if worse.answer.split() == row.answer.split():
        raise Unusable("the chosen and the rejected answer are the same")
    return last_alone(row).over(worse)


def _alpaca(fields: Fields, columns: Columns) -> Row:
    instruction, more = _field(fields, "instruction"), fields.get("input") or ""
    if not isinstance(instruction, str) or not isinstance(more, str):
        raise Unusable("'instruction' and 'input' must be texts")
    system = fields.get("system") or columns.system
    if system is not None and not isinstance(system, str):
        raise Unusable("'system' must be a text")
    if columns.plain:
        system = None
    asked = f"{instruction}\n\n{more}" if more.strip() else instruction
    names = ("instruction", "output")
    return pair(asked, _field(fields, "output"), replace(columns, system=system), names=names)


def _sharegpt(fields: Fields, columns: Columns) -> Row:
    if columns.plain:
        raise Unusable("conversations cannot be learned as plain text: leave out --plain")
    turns = _field(fields, "conversations")
    if not isinstance(turns, list):
        raise Unusable("'conversations' must be a list")
    messages = []
    for index, turn in enumerate(turns):
        speaker = turn.get("from", turn.get("role")) if isinstance(turn, dict) else None
        role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise Unusable(f"conversations[{index}].from is {speaker!r}; it must be one of {', '.join(SPEAKERS)}")
        messages.append({"role": role, "content": turn.get("value", turn.get("content"))})
    given = fields.get("system") or columns.system
    if given is not None and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": given})
    return conversation(messages)


def _text(fields: Fields, columns: Columns) -> Row:
    text = _field(fields, "text")
    if not isinstance(text, str) or not text.strip():
        raise Unusable("'text' must be a text that is not empty")
    return Row(completion=whole_text(text, "text"))


def _has(*names: str) -> Callable[[Set[str], Columns], bool]:
    return lambda fields, columns: fields >= {*names}


def _is_alpaca(fields: Set[str], columns: Columns) -> bool:
    return fields >= {"instruction", "output"} and not columns.fields() and columns.completion is None


def _is_text_alone(fields: Set[str], columns: Columns) -> bool:
    return fields & {*QUESTIONS} == {"text"}


FORMATS: Final = {
    format.name: format
    for format in (
        Format(
            name="question",
            looks_like='{"messages": […], "reference": …}',
            fits=lambda fields, columns: columns.graded,
            convert=_question,
        ),
        Format(
            name="openai-dpo",
            looks_like='{"input": {"messages": […]}, "preferred_output": […], "non_preferred_output": […]}',
            fits=_has("input", "preferred_output", "non_preferred_output"),
            convert=_openai_dpo,
        ),
        Format(
            name="preference",
            looks_like='{"prompt": …, "chosen": …, "rejected": …}',
            fits=_has("chosen", "rejected"),
            convert=_preference,
        ),
        Format(
            name="kto",
            looks_like='{"prompt": …, "completion": …, "label": true}',
            fits=lambda fields, columns: _label_column(fields, columns) is not None,
            convert=_kto,
        ),
        Format(
            name="scored",
            looks_like='{"prompt": …, "completion": …, "score": 0.8}',
            fits=_is_scored,
            convert=_scored,
        ),
        Format(name="chat", looks_like='{"messages": […]}', fits=_has("messages"), convert=_chat),
        Format(
            name="sharegpt",
            looks_like='{"conversations": [{"from": "human", "value": …}, …]}',
            fits=_has("conversations"),
            convert=_sharegpt,
        ),
        Format(
            name="alpaca",
            looks_like='{"instruction": …, "input": …, "output": …}',
            fits=_is_alpaca,
            convert=_alpaca,
        ),
        Format(
            name="completion",
            looks_like='{"prompt": …, "completion": …}',
            fits=lambda fields, columns: question_and_answer(fields, columns) is not None,
            convert=_completion,
        ),
        Format(name="text", looks_like='{"text": …}', fits=_is_text_alone, convert=_text),
    )
}

_ANSWERING: Final = ("chat", "sharegpt", "alpaca", "completion")
"""The formats of answers, which may have a label or score, in order of precedence."""


# --- fields -----------------------------------------------------------------------------------------------------------


def _field(fields: Fields, name: str) -> Any:
    if name not in fields:
        raise Unusable(f"has no {name!r}")
    return fields[name]


def _prompt(fields: Fields, names: tuple[str, ...], columns: Columns) -> Any:
    if columns.template is None:
        return fields[names[0]]
    values = {name: _field(fields, name) for name in names}
    for name, value in values.items():
        if not isinstance(value, str | int | float):
            raise Unusable(f"{name!r} is neither a text nor a number")
    return columns.template.format_map(values)


def _label(name: str, value: Any) -> bool:
    if isinstance(value, bool | int | str):
        known = LABELS.get(str(value).strip().lower())
        if known is not None:
            return known
    raise Unusable(
        f"{name!r} is {value!r}; beside an answer it says whether that is good: true or false. A column about "
        "something else must have another name"
    )


def _score(value: Any, score_range: tuple[float, float]) -> float:
    low, high = score_range
    try:
        score = math.nan if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except (ValueError, OverflowError):
        score = math.nan
    if not low <= score <= high:
        raise Unusable(f"'score' is {value!r}; it must be {low:g} to {high:g}, or say the range with --score-range")
    return (score - low) / (high - low)


def _group(fields: Fields, columns: Columns) -> str | None:
    name = columns.user or next((name for name in USERS if name in fields), None)
    user = None if name is None else fields.get(name)
    if isinstance(user, bool) or not isinstance(user, str | int) or user == "":
        return None
    return group_of(whole_text(str(user), str(name)))


def _split(fields: Fields, columns: Columns) -> SplitName | None:
    if columns.split is None:
        return None
    value = fields.get(columns.split)
    side = SIDE_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if side is None:
        raise Unusable(f"{columns.split!r} is {value!r}; it must be one of {', '.join(SPLITS)}")
    return side
