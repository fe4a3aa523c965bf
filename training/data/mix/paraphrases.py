"""Other wordings of questions: which rows can have some, and which of those that were written may be learned from.

Whoever writes them may be a small base, most of whose wordings are none: it answers, it drifts, it says the question
again. What is kept passes every check of this file, and nothing of it is near to a held-out question or to one that has
another answer. Lists of words are English; in other languages the checks that need none are left.

Pure Python; knows no model, and not how a wording came about.
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
"""Why a wording is left out, in the order of the checks."""

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
"""For people, after their number."""

assert REJECTION_REASONS.keys() == set(get_args(RejectionReason))

FEWEST_WORDS: Final = 3
MOST_WORDS: Final = 60
"""Of a question: shorter ones leave nothing to say otherwise, longer ones are texts."""

SHORTEST: Final = 0.5
LONGEST: Final = 2.0
"""Of a wording, times the question's words."""

SHARED: Final = 0.75
"""Share of the question's telling words that a wording must have, and of its own that must be the question's."""


COPIED: Final = 0.7
"""Jaccard similarity of a wording and its question, in characters, from which nothing is said otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """What was written in place of a question, and whether it came to its end."""

    text: str
    ended: bool = True


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Rows with other wordings, in the order of the rows they were made of, and what became of all wordings."""

    rows: tuple[Row, ...]
    num_questions: int
    """That wordings were asked for."""
    num_left_alone: int
    """Rows that cannot have any."""
    num_wordings: int
    left_out: Mapping[RejectionReason, int]

    def describe(self) -> Iterator[str]:
        """For people."""
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
    """Whether the row is one question of a user and its answer, with no more before it than the operator's words."""
    asked = [turn for turn in row.messages[:-1] if not is_system(turn)]
    return (
        row.kind == "example"
        and len(asked) == 1
        and asked[0]["role"] == "user"
        and FEWEST_WORDS <= len(_words(row.question)) <= MOST_WORDS
    )


def reworded(row: Row, text: str) -> Row:
    """The same row, asked in other words."""
    return row.with_texts(lambda role, was: text if role == "user" else was)


def accept_wordings(
    rows: Sequence[Row], wordings: Sequence[Sequence[Wording]], *, held_out: Iterable[Row]
) -> Augmentation:
    """The wordings that may be learned from, as rows.

    Args:
        rows: all that is learned from.
        wordings: of those rows that `can_be_reworded`, in their order.
        held_out: what nothing near to may be learned from.
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
    for row, reason in zip(candidates, _beside(candidates, rows, list(held_out)), strict=True):
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
    """Why it is no other wording of the question, or None."""
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
    """Without white space and quotation marks around all of it."""
    text = text.strip()
    if len(text) > 1 and (text[0], text[-1]) in _QUOTES and text[0] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def is_answer(question: str, text: str) -> bool:
    """Whether it speaks as an assistant does, or as a transcript: what no user's question does unless this one did."""
    new_lines = "\n" in text and "\n" not in question
    return new_lines or any(there.search(text) and not there.search(question) for there in _ASSISTANT)


def is_copy(question: str, text: str) -> bool:
    """Whether it is the same words, or all but the same: by the measure for rows that say nearly the same."""
    asked, said = shingles(question), shingles(text)
    return len(np.intersect1d(asked, said)) >= COPIED * len(np.union1d(asked, said))


def has_fitting_length(question: str, text: str) -> bool:
    """Whether it is about as long."""
    return SHORTEST <= len(_words(text)) / max(len(_words(question)), 1) <= LONGEST


def shares_enough(question: str, text: str) -> bool:
    """Whether both tell of the same things: words count by their beginnings, those of grammar not at all."""
    asked, said = _telling(question), _telling(text)
    shared = len(asked & said)
    return shared >= SHARED * len(asked) and shared >= SHARED * len(said)


def keeps_what_must_stay(question: str, text: str) -> bool:
    """Whether numbers, addresses, placeholders and abbreviations are the question's, and its quotes all there."""
    return _fixed(question) == _fixed(text) and all(quote in text for quote in _QUOTED.findall(question))


def changes_negation(question: str, text: str) -> bool:
    """Whether a question became none, or what asks nothing a question; or one says not and the other does not."""
    marked, still_marked = (any(mark in said for mark in "?？؟") for said in (question, text))
    asked, asks = marked or bool(_ASKING.search(question)), still_marked or bool(_ASKING.search(text))
    return (marked and not still_marked) or asked != asks or bool(_NOT.search(question)) != bool(_NOT.search(text))


def speaks_for_another(question: str, text: str) -> bool:
    """Whether I and you are not who they were: one went away, one was added, or they changed places. That somebody
    speaks of themselves who did not before is well."""
    asked, said = _persons(question), _persons(text)
    if set(asked) == set(said):
        return bool(asked) and asked[0] != said[0]
    return bool(asked) or "you" in said


# --- a wording beside all others --------------------------------------------------------------------------------------

NEAR: Final = DataPolicy().near or 1.0


def _beside(
    candidates: Sequence[Row], rows: Sequence[Row], held_out: Sequence[Row]
) -> Iterator[RejectionReason | None]:
    """Of each candidate why it must not stand beside the others, in their order: of two the first stays."""
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
    everyone = [*others, *candidates]
    same: defaultdict[int, list[int]] = defaultdict(list)
    for number, row in enumerate(others):
        same[row.question_key()].append(number)
    out: set[int] = set()
    for number in range(len(others), len(everyone)):
        row = everyone[number]
        beside = (near[number] | set(same[row.question_key()])) - out
        reason: RejectionReason | None = None
        if any(one < len(held_out) for one in beside):
            reason = "held_out"
        elif any(everyone[one].answer != row.answer for one in beside):
            reason = "contradicting"
        elif beside:
            reason = "said"
        if reason is None:
            same[row.question_key()].append(number)
        else:
            out.add(number)
        yield reason


# --- words ------------------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold().replace("’", "'"))


def _telling(text: str) -> set[str]:
    """The beginnings of the words that are not of grammar alone; of all words, if those are all."""
    words = _words(text)
    return {word[:_STEM] for word in words if word not in _GRAMMAR} or {word[:_STEM] for word in words}


def _persons(text: str) -> list[str]:
    """I and you, as often as they are there, in their order."""
    return ["i" if found[1] else "you" for found in _PERSON.finditer(text)]


def _fixed(text: str) -> set[str]:
    found = {match.casefold().rstrip(".,;:!?") for match in _FIXED.findall(text)}
    return found if text.isupper() else found | {word.casefold() for word in _ABBREVIATION.findall(text)}


_STEM: Final = 5
_IDEOGRAMS: Final = "\u3040-\u30ff\u3400-\u9fff"
_WORD: Final = re.compile(rf"[{_IDEOGRAMS}]|[^\W{_IDEOGRAMS}]+(?:'[^\W{_IDEOGRAMS}]+)*")
"""Where no spaces are written every character is a word."""

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
"""In questions without a question mark."""

_NOT: Final = re.compile(
    r"n['’]t\b|\b(?:not|no|never|none|nothing|nobody|nor|without|cannot|cant|dont|didnt|doesnt|isnt|wasnt|wont|havent"
    r"|hasnt|couldnt|unable|fail(?:s|ed)?|refus\w+|declin\w+|reject\w+|den(?:y|ied))\b",
    re.IGNORECASE,
)
_PERSON: Final = re.compile(
    r"\b(?!(?-i:US)\b)(?:(i|im|ive|me|my|mine|myself|we|us|our|ours)|you|your|yours|yourself)\b", re.IGNORECASE
)

_GRAMMAR: Final = frozenset(
    _WORD.findall(
        "a an the this that these those there here it its it's i i'm i've i'd i'll me my mine we us our you your "
        "you're he she they them their is are am was were be been being do does did done have has had having can "
        "could may might must shall should will would to of in on at by for from with into onto about as if or and "
        "but so than then too very just also not no don't doesn't didn't can't cannot couldn't isn't aren't wasn't "
        "won't hasn't haven't what what's which whom whose why how please tell know need want get got go any some"
    )
)
"""Where, when and who are not among them: they ask for something."""
