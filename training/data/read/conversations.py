"""Rows of conversations, and of questions with their answers: what all formats are converted with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.prompts.messages import read_conversation
from graftwork.adapters.prompts.tools import read_tools
from graftwork.training.data.read.columns import Columns
from graftwork.training.data.row import Message, Row, Unusable, assistant_message, is_unicode, text_of

Fields = Mapping[str, Any]
"""The fields of a record."""


def conversation(turns: Any) -> Row:
    """Build a row from chat messages that end with an answer. Assistant messages with ``weight`` 0 are not learned.

    Raises:
        Unusable: if these are not valid messages, or there is no answer to learn.
    """
    if not isinstance(turns, list) or not turns:
        raise Unusable("'messages' must be a list of messages that is not empty")
    learned = []
    messages = _messages(turns)
    for index, (turn, message) in enumerate(zip(turns, messages, strict=True)):
        weight = turn.get("weight", 1)
        if isinstance(weight, bool | list | dict) or weight not in (0, 1):
            raise Unusable(f"messages[{index}].weight is {weight!r}; it may be 1, or 0 for an answer not to learn")
        if message["role"] == "assistant" and weight == 1:
            if not text_of(message).strip():
                raise Unusable(f"messages[{index}] is an empty answer")
            learned.append(index)
    if messages[-1]["role"] != "assistant":
        raise Unusable("the last message is not the assistant's: there is no answer to learn")
    if not learned:
        raise Unusable("every answer has weight 0: there is nothing to learn")
    return Row(messages=tuple(messages), learned=tuple(learned))


def question(turns: Any, item: Mapping[str, Any]) -> Row:
    """Build a row from chat messages that end with what is to be answered.

    Args:
        turns: the messages.
        item: what graders are told of it.

    Raises:
        Unusable: if these are not valid messages, or end with an answer.
    """
    if not isinstance(turns, list) or not turns:
        raise Unusable("'messages' must be a list of messages that is not empty")
    messages = _messages(turns)
    if messages[-1]["role"] not in ("user", "tool"):
        raise Unusable("the last message is not the user's: there is nothing to answer")
    return Row(messages=(*messages, assistant_message("")), item=item)


def pair(asked: Any, answer: Any, columns: Columns, *, names: tuple[str, str] = ("prompt", "completion")) -> Row:
    """Build a row from a question and its answer, each a text or a list of messages.

    Args:
        asked: the question.
        answer: the answer.
        columns: the system message, and whether the row is plain text.
        names: names of the two fields, for errors.

    Raises:
        Unusable: if question or answer is empty or of the wrong type.
    """
    if not columns.plain and isinstance(asked, list):
        answers = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
        return conversation([*asked, *answers])
    last: Any = {"role": "assistant", "content": answer}
    if isinstance(answer, list) and not columns.plain:
        last = only_answer(answer, names[1])
        answer = text_of(last)
    for name, text in zip(names, (asked, answer), strict=True):
        if not isinstance(text, str) or not text.strip():
            raise Unusable(f"{name!r} must be a text that is not empty")
    if columns.plain:
        return Row(prompt=whole_text(asked, names[0]), completion=whole_text(answer, names[1]))
    system = [{"role": "system", "content": columns.system}] if columns.system is not None else []
    return conversation([*system, {"role": "user", "content": asked}, last])


def with_tools(row: Row, fields: Fields) -> Row:
    """Return the row with the ``tools`` of these fields, which the answers may call.

    Raises:
        Unusable: if they are invalid; if there are none, and an answer that is learned calls one; if the row is plain.
    """
    if fields.get("functions"):
        raise Unusable("'functions' is not supported in training data: give 'tools', which replaced it")
    try:
        tools = read_tools(fields.get("tools") or [])
    except InvalidRequest as error:
        raise Unusable(error.message.removesuffix(".")) from None
    if tools and not row.messages:
        raise Unusable("'tools' are for chat messages, and this is plain text")
    calling = [index for index in row.learned if "tool_calls" in row.messages[index]]
    if (calling or row.rejected_calls) and not tools:
        where = f"messages[{calling[0]}]" if calling else "the rejected answer"
        raise Unusable(f"{where} has tool_calls, and the row has no 'tools' that it could call")
    return replace(row, tools=tuple(tools))


def last_alone(row: Row) -> Row:
    """Return the row with its last answer as the only learned one."""
    return replace(row, learned=(len(row.messages) - 1,)) if row.messages else row


def _messages(turns: list[Any]) -> list[dict[str, Any]]:
    try:
        return read_conversation([_without_weight(turn) for turn in turns])
    except InvalidRequest as error:
        raise Unusable(error.message.removesuffix(".")) from None


def _without_weight(turn: Any) -> Any:
    return {key: value for key, value in turn.items() if key != "weight"} if isinstance(turn, dict) else turn


def whole_text(text: str, name: str) -> str:
    """Return the text of a field.

    Raises:
        Unusable: if it cannot be encoded as UTF-8.
    """
    if not is_unicode(text):
        raise Unusable(f"{name!r} holds bytes that are no UTF-8, or half a character: save the file as UTF-8")
    return text


def only_answer(turns: list[Any], name: str) -> Message:
    """Return content and tool calls of a list that holds a single assistant message."""
    if len(turns) != 1 or not isinstance(turns[0], dict) or turns[0].get("role") != "assistant":
        raise Unusable(f"{name!r} must be one message of the assistant")
    (message,) = _messages(turns)
    return assistant_message(message["content"], message.get("tool_calls", ()))
