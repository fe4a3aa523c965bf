"""One row of a data set: a conversation or a text that ends with an answer, and the feedback on that answer.

A row without feedback is an example to learn. Otherwise it has a ``rejected`` answer, a ``label`` or a ``score``.
`graftwork.training.methods.rows` defines which training method learns from which rows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

Kind = Literal["example", "preference", "judged", "scored", "text"]
"""What a row teaches. ``example``: the answer itself. ``preference``: that the answer is better than another.
``judged``: whether the answer is good. ``scored``: how good it is. ``text``: a text without a question."""

SplitName = Literal["train", "validation", "test"]
SPLITS: Final[tuple[SplitName, ...]] = ("train", "validation", "test")

OPERATORS: Final = ("system", "developer")
"""Roles of messages that are written by the operator, as opposed to a user or the model."""

Message = Mapping[str, str]

MAX_REASON_CHARS: Final = 300
PLACES_SHOWN: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        line: the line of the source that the row begins on, from 1.
        reason: why it cannot be used, for people.
        source: the name of the source.
    """

    line: int
    reason: str
    source: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class Unusable(Exception):
    """Raised for a row that cannot be used; the message is the reason. Readers catch it and yield a `BadRow`."""

    def bad_row(self, source: str, line: int) -> BadRow:
        """Return the bad row of a source and line, its reason cut to `MAX_REASON_CHARS`."""
        reason = str(self)
        if len(reason) > MAX_REASON_CHARS:
            reason = f"{reason[:MAX_REASON_CHARS]}…"
        return BadRow(source=source, line=line, reason=reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A conversation that ends with the assistant's answer, or a plain prompt with its completion, or a text alone.

    Attributes:
        messages: chat messages with ``role`` and ``content``; the last one is the answer. Empty for plain rows.
        learned: indices of the assistant messages that get a loss, for kind ``example``.
        prompt: the prompt of a plain row, as in ``/v1/completions``; empty for a text alone.
        completion: the completion of a plain row, or the text.
        rejected: a worse answer to the same question.
        label: whether the answer is good.
        score: how good the answer is, 0 to 1.
        corrected: whether the answer is a user's correction; ``rejected`` is then the model's answer.
        weight: factor on the row's loss.
        group: hash of the user; rows of one group stay on one side of a split.
        split: the split that the source assigns.
        interactions: ids of the logged interactions that the row was made from.
        source: name of the source; not part of `digest`.
        line: line of the source, from 1; not part of `digest`.
    """

    messages: tuple[Message, ...] = ()
    learned: tuple[int, ...] = ()
    prompt: str = ""
    completion: str = ""
    rejected: str | None = None
    label: bool | None = None
    score: float | None = None
    corrected: bool = False
    weight: float = 1.0
    group: str | None = None
    split: SplitName | None = None
    interactions: tuple[str, ...] = ()
    source: str = ""
    line: int = 0

    @property
    def kind(self) -> Kind:
        """What the row teaches, by the feedback it has."""
        if self.rejected is not None:
            return "preference"
        if self.label is not None:
            return "judged"
        if self.score is not None:
            return "scored"
        return "example" if self.messages or self.prompt else "text"

    @property
    def answer(self) -> str:
        """The text of the last message, or the completion."""
        return self.messages[-1]["content"] if self.messages else self.completion

    @property
    def question(self) -> str:
        """The content of all messages before the answer except the operator's, or the plain prompt. Of a text alone,
        the text."""
        if self.messages:
            return "\n".join(turn["content"] for turn in self.messages[:-1] if not is_system(turn))
        return self.prompt or self.completion

    @property
    def place(self) -> str:
        """Source and line for people: ``tickets.jsonl:12``."""
        return f"{self.source}:{self.line}" if self.source else f"line {self.line}"

    def digest(self) -> bytes:
        """SHA-256 over everything that is learned from, 32 bytes. It does not depend on the source or file format."""
        feedback = [self.rejected, self.label, self.score, self.corrected, self.weight]
        return _hash([self.messages, self.learned, self.prompt, self.completion, *feedback])

    def question_key(self) -> int:
        """64-bit hash of the question that ignores case, spacing and punctuation."""
        return _key(plain_words(self.question))

    def task_key(self) -> int:
        """64-bit hash that is equal for rows that should have the same `verdict`.

        It covers the operator's messages and the question. For judged and scored rows it covers the answer too, for
        preferences both answers in either order.
        """
        system = "\n".join(turn["content"] for turn in self.messages if is_system(turn))
        task = f"{plain_words(system)}\0{plain_words(self.question)}"
        match self.kind:
            case "judged" | "scored":
                task += f"\0{plain_words(self.answer)}"
            case "preference":
                task += "\0" + "\0".join(sorted((plain_words(self.answer), plain_words(self.rejected or ""))))
        return _key(f"{self.kind}\0{task}")

    def verdict(self) -> str:
        """The value in which two rows of the same `task_key` conflict: the answer, or ``good`` and ``bad`` for judged
        rows. Empty for kinds that cannot conflict."""
        match self.kind:
            case "judged":
                return "good" if self.label else "bad"
            case "scored" | "text":
                return ""
            case _:
                return " ".join(self.answer.split())

    def same_key(self) -> int:
        """64-bit hash that is equal for rows with the same texts and feedback; it ignores white space."""
        parts = [turn["role"] + "\0" + " ".join(turn["content"].split()) for turn in self.messages]
        parts += [" ".join(text.split()) for text in (self.prompt, self.completion, self.rejected or "")]
        parts.append(f"{self.kind} {self.label} {self.score} {self.learned}")
        return _key("\1".join(parts))

    def with_texts(self, change: Callable[[str, str], str]) -> Row:
        """Replace each text by ``change(role, text)``.

        Args:
            change: maps the role of a message and its text to a new text. The role is empty for plain rows.

        Returns:
            The changed row; the same object if no text changed.
        """
        messages = tuple(_changed(turn, change) for turn in self.messages)
        prompt, completion = (change("", text) if text else text for text in (self.prompt, self.completion))
        answering = "assistant" if self.messages else ""
        rejected = None if self.rejected is None else change(answering, self.rejected)
        changed = replace(self, messages=messages, prompt=prompt, completion=completion, rejected=rejected)
        return self if changed == self else changed

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON fields in TRL's formats: ``messages``; ``prompt`` with ``completion``, or with
        ``chosen`` and ``rejected``; or ``text``. Fields of the row that differ from their default are added."""
        fields: dict[str, Any]
        turns: list[dict[str, Any]] = [dict(turn) for turn in self.messages]
        match self.kind:
            case "text":
                fields = {"text": self.completion}
            case "example" if turns:
                for index, turn in enumerate(turns):
                    if turn["role"] == "assistant" and index not in self.learned:
                        turns[index] = {**turn, "weight": 0}
                fields = {"messages": turns}
            case "preference":
                asked, chosen, rejected = (
                    (turns[:-1], turns[-1:], [{"role": "assistant", "content": self.rejected}])
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
        if "interactions" in given:
            given["interactions"] = tuple(given["interactions"])
        if "text" in fields:
            return cls(completion=fields["text"], **given)
        if "messages" in fields:
            turns = fields["messages"]
            learned = tuple(
                index for index, turn in enumerate(turns) if turn["role"] == "assistant" and turn.get("weight", 1) == 1
            )
            plain = tuple({key: value for key, value in turn.items() if key != "weight"} for turn in turns)
            return cls(messages=plain, learned=learned, **given)
        answer = fields["chosen"] if "chosen" in fields else fields["completion"]
        rejected = fields.get("rejected")
        if isinstance(answer, str):
            return cls(prompt=fields["prompt"], completion=answer, rejected=rejected, **given)
        messages = (*fields["prompt"], *answer)
        if rejected is not None:
            rejected = rejected[0]["content"]
        return cls(messages=messages, learned=(len(messages) - 1,), rejected=rejected, **given)


_EXTRA: Final[dict[str, Any]] = {
    "label": None,
    "score": None,
    "corrected": False,
    "weight": 1.0,
    "group": None,
    "split": None,
    "interactions": (),
}


def is_system(message: Message) -> bool:
    """Whether a message is one of the operator's, by its role."""
    return message["role"] in OPERATORS


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


def _changed(turn: Message, change: Callable[[str, str], str]) -> Message:
    content = change(turn["role"], turn["content"])
    return turn if content == turn["content"] else {**turn, "content": content}


def _hash(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
