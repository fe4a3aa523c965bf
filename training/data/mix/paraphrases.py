"""Filtering of paraphrases for data augmentation: which rows can be paraphrased, and which paraphrases are accepted.

Paraphrases may come from a small base, most of whose outputs are not usable: it answers the question, changes its
meaning, or repeats it. An accepted paraphrase ("wording") passes every check of this module, and is not near to a
held-out question or to a question with another answer. The word lists are English; for other languages only the checks
without word lists have an effect.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from graftwork.training.data.clean.duplicates import CommonShingles, Signatures, shingles
from graftwork.training.data.policy import DataPolicy
from graftwork.training.data.row import Row, is_system

RejectionReason = Literal[
    "cut", "answer", "copy", "length", "far", "lost", "turned", "speaker", "held_out", "contradicting", "said"
]
"""Why a wording is rejected, in the order of the checks."""

REJECTION_REASONS: Final[Mapping[RejectionReason, str]] = {
    "cut": "empty or cut off",
    "answer": "answering instead of asking",
    "copy": "the question over again",
    "length": "much shorter or longer",
    "far": "too far from the question",
    "lost": "without its numbers, names or quotes, or with others",
    "turned": "asking what was told, telling what was asked, or the contrary",
    "speaker": "of somebody else",
    "held_out": "near to held-out questions",
    "contradicting": "near to questions with another answer",
    "said": "said already",
}
"""The reasons as text that follows a count."""

assert REJECTION_REASONS.keys() == set(get_args(RejectionReason))

FEWEST_WORDS: Final = 3
MOST_WORDS: Final = 60
"""Bounds on the length of a question: shorter ones cannot be paraphrased, longer ones are whole texts."""

SHORTEST: Final = 0.5
LONGEST: Final = 2.0
"""Bounds on the length of a wording, as multiples of the question's number of words."""

SHARED: Final = 0.75
"""Minimum share of the question's content words that the wording has, and of the wording's that the question has."""


COPIED: Final = 0.7
"""Jaccard similarity of the shingles of a wording and its question from which the wording is a copy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """A generated paraphrase of a question.

    Attributes:
        text: the generated text, not cleaned yet.
        ended: whether generation reached an end-of-turn token.
    """

    text: str
    ended: bool = True


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The result of `accept_wordings`.

    Attributes:
        rows: rows with accepted wordings, in the order of the rows that they were made from.
        num_questions: number of questions that wordings were generated for.
        num_left_alone: number of rows that cannot be paraphrased.
        num_wordings: number of wordings that were generated.
        left_out: number of rejected wordings by reason.
    """

    rows: tuple[Row, ...]
    num_questions: int
    num_left_alone: int
    num_wordings: int
    left_out: Mapping[RejectionReason, int]

    def describe(self) -> Iterator[str]:
        """Yield the numbers as sentences for people."""
        wrote = f"Wrote {self.num_wordings:,} other wordings of {self.num_questions:,} questions"
        yield f"{wrote}, kept {len(self.rows):,}."
        parts = [
            f"{self.left_out[reason]:,} {REJECTION_REASONS[reason]}"
            for reason in REJECTION_REASONS
            if self.left_out.get(reason)
        ]
        if parts:
            yield f"Other wordings left out: {', '.join(parts)}."
        if self.num_left_alone:
            yield (
                f"{self.num_left_alone:,} of the rows were left alone: other wordings are for single questions of "
                f"{FEWEST_WORDS} to {MOST_WORDS} words."
            )


def can_be_reworded(row: Row) -> bool:
    """Whether the row is a single question of a user with its answer, after system messages at most, and of suitable
    length. Arguments of a tool call may repeat the question's words, so that its wording has to stay."""
    asked = [turn for turn in row.messages[:-1] if not is_system(turn)]
    return (
        row.kind == "example"
        and len(asked) == 1
        and asked[0]["role"] == "user"
        and "tool_calls" not in row.messages[-1]
        and FEWEST_WORDS <= len(_words(row.question)) <= MOST_WORDS
    )


def reworded(row: Row, text: str) -> Row:
    """Return the row with ``text`` in place of the user's messages."""
    return row.with_texts(lambda role, was: text if role == "user" else was)


def accept_wordings(
    rows: Sequence[Row], wordings: Sequence[Sequence[Wording]], *, held_out: Iterable[Row]
) -> Augmentation:
    """Filter generated wordings and turn the accepted ones into rows.

    Args:
        rows: the rows of the training split.
        wordings: the wordings of each row that `can_be_reworded`, in the order of ``rows``.
        held_out: the rows of other splits; wordings near to one of their questions are rejected.
    """
    able = [row for row in rows if can_be_reworded(row)]
    left_out: Counter[RejectionReason] = Counter()
    candidates: list[Row] = []
    for row, texts in zip(able, wordings, strict=True):
        for wording in texts:
            if (reason := rejection_of(row.question, wording)) is not None:
                left_out[reason] += 1
            else:
                candidates.append(reworded(row, clean_wording(wording.text)))
    chosen = []
    for row, reason in zip(candidates, _compare_with_others(candidates, rows, list(held_out)), strict=True):
        if reason is None:
            chosen.append(row)
        else:
            left_out[reason] += 1
    return Augmentation(
        rows=tuple(chosen),
        num_questions=len(able),
        num_left_alone=len(rows) - len(able),
        num_wordings=sum(map(len, wordings)),
        left_out=dict(left_out),
    )


# --- a wording beside its question ------------------------------------------------------------------------------------


def rejection_of(question: str, wording: Wording) -> RejectionReason | None:
    """Return why the text is not a usable wording of the question; None if it is."""
    text = clean_wording(wording.text)
    checks: tuple[tuple[RejectionReason, bool], ...] = (
        ("cut", not wording.ended or not text),
        ("answer", is_answer(question, text)),
        ("copy", is_copy(question, text)),
        ("length", not has_fitting_length(question, text)),
        ("far", not shares_enough(question, text)),
        ("lost", not keeps_what_must_stay(question, text)),
        ("turned", changes_negation(question, text)),
        ("speaker", speaks_for_another(question, text)),
    )
    return next((reason for reason, holds in checks if holds), None)


def clean_wording(text: str) -> str:
    """Remove white space and quotation marks that surround the whole text."""
    text = text.strip()
    if len(text) > 1 and (text[0], text[-1]) in _QUOTES and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def is_answer(question: str, text: str) -> bool:
    """Whether the text reads like an assistant's answer or a transcript, and the question does not."""
    new_lines = "\n" in text and "\n" not in question
    return new_lines or any(pattern.search(text) and not pattern.search(question) for pattern in _ASSISTANT)


def is_copy(question: str, text: str) -> bool:
    """Whether the text repeats the question: the Jaccard similarity of their shingles is at least `COPIED`."""
    one, other = shingles(question), shingles(text)
    return len(np.intersect1d(one, other)) >= COPIED * len(np.union1d(one, other))


def has_fitting_length(question: str, text: str) -> bool:
    """Whether the text has `SHORTEST` to `LONGEST` times as many words as the question."""
    return SHORTEST <= len(_words(text)) / max(len(_words(question)), 1) <= LONGEST


def shares_enough(question: str, text: str) -> bool:
    """Whether text and question share enough content words, compared by their stems."""
    one, other = _content_stems(question), _content_stems(text)
    shared = len(one & other)
    return shared >= SHARED * len(one) and shared >= SHARED * len(other)


def keeps_what_must_stay(question: str, text: str) -> bool:
    """Whether the text has exactly the numbers, addresses, placeholders and abbreviations of the question, and contains
    all of its quotations."""
    return _fixed(question) == _fixed(text) and all(quote in text for quote in _QUOTED.findall(question))


def changes_negation(question: str, text: str) -> bool:
    """Whether a question became a statement or the reverse, or a negation was added or removed."""
    marked, still_marked = (any(mark in each for mark in "?？؟") for each in (question, text))
    asked, asks = marked or bool(_ASKING.search(question)), still_marked or bool(_ASKING.search(text))
    return (marked and not still_marked) or asked != asks or bool(_NOT.search(question)) != bool(_NOT.search(text))


def speaks_for_another(question: str, text: str) -> bool:
    """Whether the grammatical persons changed: first or second person was removed, added or swapped. A first person
    may be added where the question has neither."""
    before, after = _persons(question), _persons(text)
    if set(before) == set(after):
        return bool(before) and before[0] != after[0]
    return bool(before) or "you" in after


# --- a wording compared with other rows -------------------------------------------------------------------------------

NEAR: Final = DataPolicy().near or 1.0


def _compare_with_others(
    candidates: Sequence[Row], rows: Sequence[Row], held_out: Sequence[Row]
) -> Iterator[RejectionReason | None]:
    """Yield for each candidate why it is rejected, or None. Of two candidates that are near the first is accepted."""
    others = [*held_out, *rows]
    common, signatures = CommonShingles(), Signatures(NEAR)
    hashes = [shingles(row.question) for row in others]
    for each in hashes:
        common.count(each)
    for each in (*hashes, *(shingles(row.question) for row in candidates)):
        signatures.add(common.without(each))
    near: defaultdict[int, set[int]] = defaultdict(set)
    for one, other in signatures.near():
        near[other].add(one)
    all_rows = [*others, *candidates]
    same: defaultdict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(others):
        same[row.question_key()].append(number)
    rejected: set[int] = set()
    for number in range(len(others), len(all_rows)):
        row = all_rows[number]
        neighbours = (near[number] | set(same[row.question_key()])) - rejected
        reason: RejectionReason | None = None
        if any(one < len(held_out) for one in neighbours):
            reason = "held_out"
        elif any(all_rows[one].answer != row.answer for one in neighbours):
            reason = "contradicting"
        elif neighbours:
            reason = "said"
        if reason is None:
            same[row.question_key()].append(number)
        else:
            rejected.add(number)
        yield reason


# --- words ------------------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold().replace("’", "'"))


def _content_stems(text: str) -> set[str]:
    """Return the stems of the words that are not function words; of all words if there are no others."""
    words = _words(text)
    return {word[:_STEM] for word in words if word not in _FUNCTION_WORDS} or {word[:_STEM] for word in words}


def _persons(text: str) -> list[str]:
    """Return ``i`` or ``you`` for each pronoun of the first or second person, in order."""
    return ["i" if found[1] else "you" for found in _PERSON.finditer(text)]


def _fixed(text: str) -> set[str]:
    found = {match.casefold().rstrip(".,;:!?") for match in _FIXED.findall(text)}
    return found if text.isupper() else found | {word.casefold() for word in _ABBREVIATION.findall(text)}


_STEM: Final = 5
_IDEOGRAMS: Final = "\u3040-\u30ff\u3400-\u9fff"
_WORD: Final = re.compile(rf"[{_IDEOGRAMS}]|[^\W{_IDEOGRAMS}]+(?:'[^\W{_IDEOGRAMS}]+)*")
"""In scripts without spaces every character is a word."""

_FIXED: Final = re.compile(r"\[[A-Z_]+\]|https?://\S+|www\.\S+|[\w.+-]+@[\w.-]+|\d+(?:[.,:/-]\d+)*")
_ABBREVIATION: Final = re.compile(r"\b[A-Z]{2,}\b")
_QUOTES: Final = {('"', '"'), ("“", "”"), ("'", "'"), ("«", "»"), ("‘", "’")}
_QUOTED: Final = re.compile(r"\"[^\"]+\"|“[^”]+”|«[^»]+»|`[^`]+`")

_ASSISTANT: Final = (
    re.compile(
        r"^(?:sure|certainly|of course|absolutely|yes|no|okay|ok|great|thanks?|here(?:'s| is| are)"
        r"|to \w+ (?:a|the|your)|i(?:'m| am) (?:\w+ )?(?:sorry|afraid|happy|unable|glad)|i apologi[sz]e|i understand"
        r"|unfortunately|sorry)\b",
        re.IGNORECASE,
    ),
    re.compile(r"\bas an ai\b|\bi can help\b|\bi'll help\b|\bassistant\b|\bapologi[sz]e|\bcontact us\b", re.IGNORECASE),
    re.compile(r"\b(?:re)?(?:phrase|write|word|wording|written|worded)\b.*:|in other words|paraphras|rephras", re.I),
    re.compile(r"<\|?\w+\|?>|\[/?INST\]|^\s*(?:user|assistant|system|question|answer|q|a)\s*:", re.I | re.MULTILINE),
    re.compile(r"^\s*(?:[-*#]|\d+[.)])\s"),
)
_ASKING: Final = re.compile(
    r"\b(?:what|why|how|where|when|who|which|can|could)\b|^\W*(?:is|are|am|was|were|do|does|did|have|has|will|would|should"
    r"|may)\b",
    re.IGNORECASE,
)
"""Recognises questions without a question mark."""

_NOT: Final = re.compile(
    r"n['’]t\b|\b(?:not|no|never|none|nothing|nobody|nor|without|cannot|cant|dont|didnt|doesnt|isnt|wasnt|wont|havent"
    r"|hasnt|couldnt|unable|fail(?:s|ed)?|refus\w+|declin\w+|reject\w+|den(?:y|ied))\b",
    re.IGNORECASE,
)
_PERSON: Final = re.compile(
    r"\b(?!(?-i:US)\b)(?:(i|im|ive|me|my|mine|myself|we|us|our|ours)|you|your|yours|yourself)\b", re.IGNORECASE
)

_FUNCTION_WORDS: Final = frozenset(
    _WORD.findall(
        "a an the this that these those there here it its it's i i'm i've i'd i'll me my mine we us our you your "
        "you're he she they them their is are am was were be been being do does did done have has had having can "
        "could may might must shall should will would to of in on at by for from with into onto about as if or and "
        "but so than then too very just also not no don't doesn't didn't can't cannot couldn't isn't aren't wasn't "
        "won't hasn't haven't what what's which whom whose why how please tell know need want get got go any some"
    )
)
"""Where, when and who are not included: they carry the content of a question."""
