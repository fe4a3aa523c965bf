"""One row of a data set: a conversation or a text that ends with an answer, and the feedback on that answer.

A row without feedback is an example to learn. Otherwise it has a ``rejected`` answer, a ``label`` or a ``score``.
`graftwork.training.methods.rows` defines which training method learns from which rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

Kind = Literal["example", "preference", "judged", "scored", "text", "question"]
"""What a row teaches. ``example``: the answer itself. ``preference``: that the answer is better than another.
``judged``: whether the answer is good. ``scored``: how good it is. ``text``: a text without a question. ``question``:
nothing by itself; graders say how good an answer to it is."""

SplitName = Literal["train", "validation", "test"]
SPLITS: Final[tuple[SplitName, ...]] = ("train", "validation", "test")

OPERATORS: Final = ("system", "developer")
"""Roles of messages that are written by the operator, as opposed to a user or the model."""

Message = Mapping[str, Any]
"""A chat message as `graftwork.adapters.prompts.messages.read_conversation` returns it: contents are texts, the
arguments of tool calls are objects."""

ToolCall = Mapping[str, Any]

TextChange = Callable[[str, str], str]
"""Maps the role of a message and one of its texts to a new text."""

MAX_REASON_CHARS: Final = 300
PLACES_SHOWN: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        line: the line of the source that the row begins on, from 1.
        reason: why it cannot be used, for people.
        source: the name of the source.
        expired: whether nothing is wrong with it but that the answer it is about is gone. That happens to old feedback,
            and is never a reason to refuse the others.
    """

    line: int
    reason: str
    source: str = ""
    expired: bool = False

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class Unusable(Exception):
    """Raised for a row that cannot be used; the message is the reason. Readers catch it and yield a `BadRow`."""

    def bad_row(self, source: str, line: int) -> BadRow:
        """Return the bad row of a source and line, its reason cut to `MAX_REASON_CHARS`."""
        reason = str(self)
        if len(reason) > MAX_REASON_CHARS:
            reason = f"{reason[:MAX_REASON_CHARS]}…"
        return BadRow(source=source, line=line, reason=reason, expired=isinstance(self, Expired))


class Expired(Unusable):
    """Raised for feedback on an answer that is gone; see `BadRow.expired`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A conversation that ends with the assistant's answer, or a plain prompt with its completion, or a text alone.

    Attributes:
        messages: chat messages; the last one is the answer, which is empty for a question. Empty for plain rows.
        tools: what the answers may call, as chat templates show it; see `graftwork.adapters.prompts.tools`.
        learned: indices of the assistant messages that get a loss, for kind ``example``.
        prompt: the prompt of a plain row, as in ``/v1/completions``; empty for a text alone.
        completion: the completion of a plain row, or the text.
        rejected: a worse answer to the same question.
        rejected_calls: the tool calls of that answer.
        label: whether the answer is good.
        score: how good the answer is, 0 to 1.
        corrected: whether the answer is a user's correction; ``rejected`` is then the model's answer.
        asked: whether a random draw had the user asked for the feedback; not part of `digest`, nothing learns from it.
        weight: factor on the row's loss.
        group: hash of the user; rows of one group stay on one side of a split.
        split: the split that the source assigns.
        interactions: ids of the logged interactions that the row was made from.
        item: of a question, what graders are told of it: the other fields of its record; None for other kinds.
        source: name of the source; not part of `digest`.
        line: line of the source, from 1; not part of `digest`.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    learned: tuple[int, ...] = ()
    prompt: str = ""
    completion: str = ""
    rejected: str | None = None
    rejected_calls: tuple[ToolCall, ...] = ()
    label: bool | None = None
    score: float | None = None
    corrected: bool = False
    asked: bool = False
    weight: float = 1.0
    group: str | None = None
    split: SplitName | None = None
    interactions: tuple[str, ...] = ()
    item: Mapping[str, Any] | None = None
    source: str = ""
    line: int = 0

    @property
    def kind(self) -> Kind:
        """What the row teaches, by the feedback it has."""
        if self.item is not None:
            return "question"
        if self.rejected is not None:
            return "preference"
        if self.label is not None:
            return "judged"
        if self.score is not None:
            return "scored"
        return "example" if self.messages or self.prompt else "text"

    @property
    def answer(self) -> str:
        """The text of the last message with its tool calls (`text_of`), or the completion."""
        return text_of(self.messages[-1]) if self.messages else self.completion

    @property
    def rejected_answer(self) -> str:
        """The rejected answer, as `answer` would be; empty if there is none."""
        return "" if self.rejected is None else self.with_rejected().answer

    @property
    def question(self) -> str:
        """The texts of all messages before the answer except the operator's, or the plain prompt. Of a text alone,
        the text."""
        if self.messages:
            return "\n".join(text_of(turn) for turn in self.messages[:-1] if not is_system(turn))
        return self.prompt or self.completion

    @property
    def grader_item(self) -> Mapping[str, Any]:
        """What graders are told of the row: its item; and ``question``, the ``messages`` before the answer, and the
        ``answer`` if it is known to be a good one, where the item has no fields of these names."""
        asked = list(self.messages[:-1])
        last = text_of(asked[-1]) if asked else self.prompt
        known = {"answer": self.answer} if self.kind in ("example", "preference") else {}
        return {"question": last, "messages": asked, **known, **(self.item or {})}

    @property
    def setting(self) -> str:
        """What the operator gives beside the question: system messages and tools."""
        tools = [json.dumps(tool, ensure_ascii=False, sort_keys=True) for tool in self.tools]
        return "\n".join((*(turn["content"] for turn in self.messages if is_system(turn)), *tools))

    @property
    def place(self) -> str:
        """Source and line for people: ``tickets.jsonl:12``."""
        return f"{self.source}:{self.line}" if self.source else f"line {self.line}"

    def digest(self) -> bytes:
        """SHA-256 over everything that is learned from, 32 bytes. It does not depend on the source or file format."""
        feedback = [self.rejected, self.label, self.score, self.corrected, self.weight]
        calls = [turn["tool_calls"] for turn in self.messages if "tool_calls" in turn]
        # As one text, since the order of the fields of tools and arguments is learned, too. Rows without have none, so
        # that their digests are those of versions that knew no tools.
        calling = [json.dumps([self.tools, calls, self.rejected_calls])] if self.tools or calls else []
        graded = [] if self.item is None else [{"item": self.item}]
        return _hash([self.messages, self.learned, self.prompt, self.completion, *feedback, *calling, *graded])

    def raw_key(self) -> int:
        """64-bit hash of `digest`: equal for the same row alone, to the last character."""
        return int.from_bytes(self.digest()[:8])

    def question_key(self) -> int:
        """64-bit hash of the question that ignores case, spacing and punctuation."""
        return _key(plain_words(self.question))

    def task_key(self) -> int:
        """64-bit hash that is equal for rows that should have the same `verdict`.

        It covers the operator's messages, the tools and the question. For judged and scored rows it covers the answer
        too, for preferences both answers in either order.
        """
        task = f"{plain_words(self.setting)}\0{plain_words(self.question)}"
        match self.kind:
            case "judged" | "scored":
                task += f"\0{plain_words(self.answer)}"
            case "preference":
                task += "\0" + "\0".join(sorted((plain_words(self.answer), plain_words(self.rejected_answer))))
        return _key(f"{self.kind}\0{task}")

    def verdict(self) -> str:
        """The value in which two rows of the same `task_key` conflict: the answer, or ``good`` and ``bad`` for judged
        rows. Empty for kinds that cannot conflict."""
        match self.kind:
            case "judged":
                return "good" if self.label else "bad"
            case "scored" | "text" | "question":
                return ""
            case _:
                return " ".join(self.answer.split())

    def same_key(self) -> int:
        """64-bit hash that is equal for rows with the same texts and feedback; it ignores white space."""
        parts = [turn["role"] + "\0" + " ".join(text_of(turn).split()) for turn in self.messages]
        parts += [" ".join(text.split()) for text in (self.prompt, self.completion, self.rejected_answer)]
        parts.append(json.dumps(self.tools, sort_keys=True))
        parts.append(f"{self.kind} {self.label} {self.score} {self.learned}")
        if self.item is not None:
            parts.append(json.dumps(self.item, sort_keys=True))
        return _key("\1".join(parts))

    def with_answer(self, text: str, tool_calls: Sequence[ToolCall] = ()) -> Row:
        """Return the row with another answer in place of its own."""
        if not self.messages:
            return replace(self, completion=text)
        return replace(self, messages=(*self.messages[:-1], assistant_message(text, tool_calls)))

    def with_rejected(self) -> Row:
        """Return the row with the rejected answer in place of its own."""
        return self.with_answer(self.rejected or "", self.rejected_calls)

    def over(self, worse: Row) -> Row:
        """Return the preference for this row's answer over that of another row with the same question."""
        if not worse.messages:
            return replace(self, rejected=worse.completion)
        rejected = worse.messages[-1]
        return replace(self, rejected=rejected["content"], rejected_calls=tuple(rejected.get("tool_calls", ())))

    def with_texts(self, change: TextChange) -> Row:
        """Replace each text by ``change(role, text)``: contents, thoughts, and what the JSON of calls and tools says.

        Args:
            change: the role that it gets is empty for plain rows, and the operator's for tools.

        Returns:
            The changed row; the same object if no text changed.
        """
        prompt, completion = (change("", text) if text else text for text in (self.prompt, self.completion))
        answering = "assistant" if self.messages else ""
        changed = replace(
            self,
            messages=tuple(_changed(turn, change) for turn in self.messages),
            tools=tuple(_changed_tool(tool, partial(change, OPERATORS[0])) for tool in self.tools),
            prompt=prompt,
            completion=completion,
            rejected=None if self.rejected is None else change(answering, self.rejected),
            rejected_calls=tuple(_changed_call(call, partial(change, answering)) for call in self.rejected_calls),
            item=None if self.item is None else _changed_json(self.item, partial(change, "")),
        )
        return self if changed == self else changed

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON fields in TRL's formats: ``messages``; ``prompt`` with ``completion``, or with
        ``chosen`` and ``rejected``; or ``text``. Fields of the row that differ from their default are added."""
        fields: dict[str, Any]
        turns: list[dict[str, Any]] = [dict(turn) for turn in self.messages]
        match self.kind:
            case "text":
                fields = {"text": self.completion}
            case "question" if turns:
                fields = {"messages": turns}
            case "example" if turns:
                for index, turn in enumerate(turns):
                    if turn["role"] == "assistant" and index not in self.learned:
                        turns[index] = {**turn, "weight": 0}
                fields = {"messages": turns}
            case "preference":
                asked, chosen, rejected = (
                    (turns[:-1], turns[-1:], [assistant_message(self.rejected or "", self.rejected_calls)])
                    if turns
                    else (self.prompt, self.completion, self.rejected)
                )
                fields = {"prompt": asked, "chosen": chosen, "rejected": rejected}
            case _:
                fields = {
                    "prompt": turns[:-1] if turns else self.prompt,
                    "completion": turns[-1:] if turns else self.completion,
                }
        extra = {name: value for name, default in _EXTRA.items() if (value := getattr(self, name)) != default}
        return {**fields, **extra, "source": self.source, "line": self.line}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Row:
        """Build a row from what `to_json` returned.

        Raises:
            KeyError, TypeError, ValueError: if the fields were not written by `to_json`.
        """
        given = {name: fields[name] for name in (*_EXTRA, "source", "line") if name in fields}
        given |= {name: tuple(given[name]) for name in ("interactions", "tools") if name in given}
        if "text" in fields:
            return cls(completion=fields["text"], **given)
        if "messages" in fields:
            turns = fields["messages"]
            learned = tuple(
                index
                for index, turn in enumerate(turns)
                if turn["role"] == "assistant" and turn.get("weight", 1) == 1 and "item" not in fields
            )
            plain = tuple({key: value for key, value in turn.items() if key != "weight"} for turn in turns)
            return cls(messages=plain, learned=learned, **given)
        answer = fields["chosen"] if "chosen" in fields else fields["completion"]
        rejected = fields.get("rejected")
        if isinstance(answer, str):
            return cls(prompt=fields["prompt"], completion=answer, rejected=rejected, **given)
        messages = (*fields["prompt"], *answer)
        row = cls(messages=messages, learned=(len(messages) - 1,), **given)
        return row if rejected is None else row.over(cls(messages=tuple(rejected)))


_EXTRA: Final[dict[str, Any]] = {
    "tools": (),
    "label": None,
    "score": None,
    "corrected": False,
    "asked": False,
    "weight": 1.0,
    "group": None,
    "split": None,
    "interactions": (),
    "item": None,
}


def is_system(message: Message) -> bool:
    """Whether a message is one of the operator's, by its role."""
    return message["role"] in OPERATORS


def assistant_message(text: str, tool_calls: Sequence[ToolCall] = ()) -> Message:
    """Return a message of the assistant."""
    calls = {"tool_calls": list(tool_calls)} if tool_calls else {}
    return {"role": "assistant", "content": text, **calls}


def text_of(message: Message) -> str:
    """Return what a message says, as people read and compare it: its content, and each tool call on a line of its own,
    written ``weather({"city": "Paris"})``. Equal arguments in another order are the same text."""
    functions = [call["function"] for call in message.get("tool_calls", ())]
    calls = [
        f"{each['name']}({json.dumps(each['arguments'], ensure_ascii=False, sort_keys=True)})" for each in functions
    ]
    return "\n".join((message["content"], *calls) if message["content"] else calls)


def plain_words(text: str) -> str:
    """Return the words of a text in lower case, separated by single spaces; the text itself if it has no words."""
    return " ".join(_WORDS.findall(text.casefold())) or text


def group_of(user: str) -> str:
    """Return the group of a user's rows: a hash, so that data sets contain no user names."""
    return hashlib.blake2b(user.encode(), digest_size=12).hexdigest()


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded as UTF-8. A text read from JSON may hold half of a surrogate pair, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def set_digest(digests: list[bytes]) -> str:
    """Return ``sha256:<hex>`` over the digests of rows, independent of their order."""
    total = hashlib.sha256()
    for digest in sorted(digests):
        total.update(digest)
    return f"sha256:{total.hexdigest()}"


_WORDS = re.compile(r"\w+")


def _changed(turn: Message, change: TextChange) -> Message:
    of_role = partial(change, turn["role"])
    changed: dict[str, Any] = {name: of_role(turn[name]) for name in ("content", "reasoning_content") if name in turn}
    if "tool_calls" in turn:
        changed["tool_calls"] = [_changed_call(call, of_role) for call in turn["tool_calls"]]
    return {**turn, **changed}


def _changed_call(call: ToolCall, change: Callable[[str], str]) -> ToolCall:
    function = call["function"]
    return {**call, "function": {**function, "arguments": _changed_json(function["arguments"], change)}}


def _changed_tool(tool: Mapping[str, Any], change: Callable[[str], str]) -> Mapping[str, Any]:
    function = tool["function"]
    return {**tool, "function": {**_changed_json(function, change), "name": function["name"]}}


def _changed_json(value: Any, change: Callable[[str], str], name: str = "") -> Any:
    """Change the texts, keys and whole numbers within a JSON value. A number that is changed becomes a text.

    ``change`` sees a value behind the name of its field, ``password: …``, which tells what it is.
    """
    match value:
        case dict():
            return {change(key): _changed_json(inner, change, key) for key, inner in value.items()}
        case list():
            return [_changed_json(inner, change, name) for inner in value]
        case str() | int() if not isinstance(value, bool):
            lead = f"{name}: " if name else ""
            changed = change(f"{lead}{value}")
            changed = changed.removeprefix(lead) if changed.startswith(lead) else change(str(value))
            return value if changed == str(value) else changed
        case _:
            return value


def _hash(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
