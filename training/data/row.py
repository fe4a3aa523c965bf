"""One row of a data set: a conversation or a text that ends with an answer, and what was said of that answer.

Nothing was said: it is an example to learn. Or it has a ``rejected`` rival, a ``label``, a ``score``. Which method can
learn from which is ``graftwork.training.methods.rows``'s; this file knows no method, no file format and no tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

Kind = Literal["example", "preference", "judged", "scored", "text"]
"""What a row teaches: the answer itself; that it is better than another; whether it is good; how good it is; a text
without a question."""

SplitName = Literal["train", "validation", "test"]
SPLITS: Final[tuple[SplitName, ...]] = ("train", "validation", "test")

OPERATORS: Final = ("system", "developer")
"""The roles of messages that the operator wrote, and not a user or the model."""

Message = Mapping[str, str]

MAX_REASON_CHARS: Final = 300
PLACES_SHOWN: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A row that was left out: the source, the line of it that the row begins on (from 1), and why."""

    line: int
    reason: str
    source: str = ""

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


class Unusable(Exception):
    """Why one row cannot be used; becomes a BadRow."""

    def bad_row(self, source: str, line: int) -> BadRow:
        reason = str(self)
        if len(reason) > MAX_REASON_CHARS:
            reason = f"{reason[:MAX_REASON_CHARS]}…"
        return BadRow(source=source, line=line, reason=reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A conversation that ends with the assistant's answer, or a plain prompt and its completion, or a text alone.

    Attributes:
        messages: with ``role`` and ``content``; the last is the answer. Empty for plain rows.
        learned: indices of the assistant messages that examples teach.
        prompt, completion: of a plain row, as in ``/v1/completions``; a text alone is a completion without a prompt.
        rejected: a worse answer to the same question.
        label: whether the answer is good.
        score: how good it is, 0 to 1.
        corrected: ``rejected`` is what the model said, and the answer is what somebody wrote in its place.
        weight: how much the row counts beside others.
        group: whose rows must stay together, as a hash.
        split: the side that the source puts it on.
        interactions: ids of the logged answers it was made of.
        source, line: where it was read; not part of what it is.
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
        if self.rejected is not None:
            return "preference"
        if self.label is not None:
            return "judged"
        if self.score is not None:
            return "scored"
        return "example" if self.messages or self.prompt else "text"

    @property
    def answer(self) -> str:
        return self.messages[-1]["content"] if self.messages else self.completion

    @property
    def question(self) -> str:
        """What was asked, in the user's words: all turns before the answer but the system's. A text asks itself."""
        if self.messages:
            return "\n".join(turn["content"] for turn in self.messages[:-1] if not is_system(turn))
        return self.prompt or self.completion

    @property
    def place(self) -> str:
        """For people: ``tickets.jsonl:12``."""
        return f"{self.source}:{self.line}" if self.source else f"line {self.line}"

    def digest(self) -> bytes:
        """32 bytes of everything that is learned from. Where it was read does not count, nor the file's format."""
        said = [self.rejected, self.label, self.score, self.corrected, self.weight]
        return _hash([self.messages, self.learned, self.prompt, self.completion, *said])

    def question_key(self) -> int:
        """The same for questions that differ in case, spacing and punctuation alone. 64 bits."""
        return _key(plain_words(self.question))

    def task_key(self) -> int:
        """The same for rows that should have the same answer: the question with everything that stands before it.
        Of a judged row also the answer, of a preference both: what should be the same is the verdict."""
        before = "\n".join(turn["content"] for turn in self.messages if is_system(turn))
        asked = f"{plain_words(before)}\0{plain_words(self.question)}"
        match self.kind:
            case "judged" | "scored":
                asked += f"\0{plain_words(self.answer)}"
            case "preference":
                asked += "\0" + "\0".join(sorted((plain_words(self.answer), plain_words(self.rejected or ""))))
        return _key(f"{self.kind}\0{asked}")

    def verdict(self) -> str:
        """What conflicts when two rows of one `task_key` differ in it."""
        match self.kind:
            case "judged":
                return "good" if self.label else "bad"
            case "scored" | "text":
                return ""
            case _:
                return " ".join(self.answer.split())

    def same_key(self) -> int:
        """The same for rows that say the same, white space aside. 64 bits."""
        parts = [turn["role"] + "\0" + " ".join(turn["content"].split()) for turn in self.messages]
        parts += [" ".join(text.split()) for text in (self.prompt, self.completion, self.rejected or "")]
        parts.append(f"{self.kind} {self.label} {self.score} {self.learned}")
        return _key("\1".join(parts))

    def with_texts(self, change: Callable[[str, str], str]) -> Row:
        """The row with ``change(role, text)`` in place of each text; of plain rows the role is empty. The very same
        object if nothing changed."""
        messages = tuple(_changed(turn, change) for turn in self.messages)
        prompt, completion = (change("", text) if text else text for text in (self.prompt, self.completion))
        answering = "assistant" if self.messages else ""
        rejected = None if self.rejected is None else change(answering, self.rejected)
        changed = replace(self, messages=messages, prompt=prompt, completion=completion, rejected=rejected)
        return self if changed == self else changed

    def to_json(self) -> dict[str, Any]:
        """In the shapes that trainers know: ``messages``; ``prompt`` with ``completion`` or with ``chosen`` and
        ``rejected``; ``text``. What else there is stands beside them."""
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
        """The inverse of ``to_json``. KeyError, TypeError or ValueError for what it did not write."""
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
    """Whether the operator wrote it."""
    return message["role"] in OPERATORS


def plain_words(text: str) -> str:
    """Lower-case words alone, a space between; the text itself where there are none."""
    return " ".join(_WORDS.findall(text.casefold())) or text


def group_of(user: str) -> str:
    """The group of one user's rows: a hash, so that a data set names nobody."""
    return hashlib.blake2b(user.encode(), digest_size=12).hexdigest()


def is_unicode(text: str) -> bool:
    """Whether it can be written down: JSON can smuggle in half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def set_digest(digests: list[bytes]) -> str:
    """``sha256:<hex>`` over a set of rows, by their digests: the same in any order."""
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
