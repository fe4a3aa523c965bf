"""The rows that each training method learns from, and the automatic choice of a method."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from graftwork.adapters.errors import ConfigurationError, InvalidRequest
from graftwork.adapters.learning.methods import METHOD_TRAITS, TRAINING_METHODS, TrainingMethod
from graftwork.training.data.row import Row

Signal = Literal["example", "correction", "preference", "liked", "disliked", "score", "text", "question"]
"""The learning signal of a row, by which a method is chosen."""

GOOD_SCORE: Final = 0.7
"""Scores from which an answer counts as good."""

BAD_SCORE: Final = 0.4
"""Scores up to which an answer counts as bad. Answers with scores between the two are neither."""

SCORE_MARGIN: Final = 0.25
"""Minimum difference of scores for which one answer counts as better than another."""

ENOUGH_SHARE: Final = 0.25
"""Share of all signals from which a stronger kind of signal determines the method."""

MIN_DISLIKED: Final = 8
"""Minimum number of thumbs up, and of thumbs down, for KTO."""


@dataclass(frozen=True, kw_only=True)
class MethodChoice:
    """The method that was chosen, the reason as a sentence for people, and the number of rows by signal."""

    method: TrainingMethod
    reason: str
    signals: Mapping[Signal, int]


@dataclass(frozen=True, kw_only=True)
class MethodRows:
    """The rows that a method learns from, all of one kind, and the number of rows that it cannot use by signal."""

    method: TrainingMethod
    rows: tuple[Row, ...]
    unused: Mapping[Signal, int]


def signal_of(row: Row) -> Signal:
    """Return the learning signal of a row."""
    match row.kind:
        case "preference":
            return "correction" if row.corrected else "preference"
        case "judged":
            return "liked" if row.label else "disliked"
        case "scored":
            return "score"
        case kind:
            return kind


def is_reference(row: Row) -> bool:
    """Whether a row says what is right whatever the models say: it comes from a file, and neither is it a question for
    graders, nor from logged answers that users judged. Those are the answers of a model to be compared, or were written
    because it was wrong."""
    return not row.interactions and row.kind != "question"


def count_signals(rows: Iterable[Row]) -> Counter[Signal]:
    """Count rows by learning signal."""
    return Counter(map(signal_of, rows))


def choose_method(signals: Mapping[Signal, int]) -> MethodChoice:
    """Choose the method for the strongest signal of which there is enough.

    Right answers are stronger than preferences, and preferences are stronger than thumbs and scores.

    Args:
        signals: number of rows by signal, as `count_signals` returns them.

    Raises:
        InvalidRequest: if there are no rows, or only disliked answers.
    """
    there = Counter({name: number for name, number in signals.items() if number > 0})
    total = there.total()
    if not total:
        raise InvalidRequest("There is nothing to learn from: no row and no feedback.", code="no_usable_rows")
    right = there["example"] + there["correction"]
    pairs = there["preference"]
    thumbs = there["liked"] + there["disliked"]
    enough = ENOUGH_SHARE * (total - there["text"])

    def because(method: TrainingMethod, reason: str) -> MethodChoice:
        return MethodChoice(method=method, reason=reason, signals=dict(there))

    if there["text"] == total:
        return because("pretrain", f"All {total:,} rows are texts without questions.")
    if right and right >= enough:
        if there["score"]:
            return because(
                "weighted_sft",
                f"{_listed(there, 'example', 'correction')} say what the right answer is, and "
                f"{_listed(there, 'score')} how good others are.",
            )
        return because("sft", f"{_listed(there, 'example', 'correction')} say what the right answer is.")
    if pairs and right + pairs >= enough and pairs >= thumbs * ENOUGH_SHARE:
        return because("dpo", f"{_listed(there, 'preference', 'correction')} say which of two answers is better.")
    if there["score"] > thumbs:
        return because("weighted_sft", f"{_listed(there, 'score')} say how good answers are: good ones count more.")
    if there["disliked"] >= MIN_DISLIKED and there["liked"] >= MIN_DISLIKED:
        return because("kto", f"{_listed(there, 'liked', 'disliked')} say which answers are good and which are not.")
    if there["liked"] or right or pairs or there["score"]:
        fewest = f"fewer than {MIN_DISLIKED} thumbs in one direction are nothing to learn a contrast from"
        return because("sft", f"{_listed(there, *there)}: good answers are learned, since {fewest}.")
    raise InvalidRequest(
        f"{_listed(there, 'disliked')} say what is wrong, and nothing says what is right. Collect corrections, or "
        "thumbs up as well.",
        code="nothing_to_learn",
    )


def method_named(text: str) -> TrainingMethod:
    """Return a method by its name.

    Raises:
        ConfigurationError: if there is no such method.
    """
    found = next((method for method in TRAINING_METHODS if method == text), None)
    if found is None:
        raise ConfigurationError(f"{text!r} is no method: choose auto, {', '.join(TRAINING_METHODS)}.", param="method")
    return found


def rows_for_method(rows: Iterable[Row], method: TrainingMethod) -> MethodRows:
    """Select and convert the rows that a method learns from.

    These are examples for ``sft`` (with weights for ``weighted_sft``), preferences for ``dpo``, judged answers for
    ``kto``, texts for ``pretrain``, and examples and questions, of which the questions are used, for ``distillation``
    and ``grpo``.
    Rows keep their order; duplicates, which arise where two signals agree on an answer, are removed.

    Raises:
        ConfigurationError: if there is no such method.
    """
    method_named(method)
    rows = list(rows)
    paired = list(_paired(rows)) if METHOD_TRAITS[method].learns_from == "pairs" else []
    used: list[Row] = []
    unused: Counter[Signal] = Counter()
    in_pairs = {id(row) for _, better, worse in paired for row in (better, worse)}
    for row in rows:
        routed = list(_ROUTES[method](row))
        used += routed
        if not routed and id(row) not in in_pairs:
            unused[signal_of(row)] += 1
    used += [pair for pair, _, _ in paired]
    once: dict[int, Row] = {}
    for row in used:
        once.setdefault(row.same_key(), row)
    return MethodRows(method=method, rows=tuple(once.values()), unused=dict(unused))


def kto_weights(num_liked: int, num_disliked: int) -> tuple[float, float]:
    """Return the loss weights of liked and disliked answers, such that both have the same total weight (TRL recommends
    ratios of 1:1 to 4:3). The more frequent kind has weight 1.

    Raises:
        ConfigurationError: if one of the numbers is 0.
    """
    if min(num_liked, num_disliked) < 1:
        raise ConfigurationError("KTO needs answers of both kinds: liked and disliked ones.", param="method")
    most = max(num_liked, num_disliked)
    return most / num_liked, most / num_disliked


# --- the rows of each method ------------------------------------------------------------------------------------------


def _sft(row: Row) -> Iterator[Row]:
    match signal_of(row):
        case "example":
            yield row
        case "correction" | "preference" | "liked":
            yield _example(row)
        case "score" if row.score is not None and row.score >= GOOD_SCORE:
            yield _example(row)


def _weighted_sft(row: Row) -> Iterator[Row]:
    if row.score is None:
        yield from _sft(row)
    elif row.score > BAD_SCORE:
        # Linear, from 0 for a bad score to the row's full weight for a score of 1.
        yield replace(_example(row), weight=row.weight * (row.score - BAD_SCORE) / (1 - BAD_SCORE))


def _dpo(row: Row) -> Iterator[Row]:
    if row.kind == "preference":
        yield row


def _kto(row: Row) -> Iterator[Row]:
    match row.kind:
        case "judged":
            yield row
        case "preference":
            yield replace(_example(row), label=True)
            yield replace(_example(row.with_rejected()), label=False)
        case "scored" if row.score is not None and not BAD_SCORE < row.score < GOOD_SCORE:
            yield replace(row, score=None, label=row.score >= GOOD_SCORE)


def _pretrain(row: Row) -> Iterator[Row]:
    if row.kind == "text":
        yield row


def _grpo(row: Row) -> Iterator[Row]:
    if row.kind == "question":
        yield row
    else:
        yield from _sft(row)


def _distillation(row: Row) -> Iterator[Row]:
    if row.kind != "text":
        yield _example(row)


_ROUTES: Final[Mapping[TrainingMethod, Callable[[Row], Iterator[Row]]]] = {
    "sft": _sft,
    "weighted_sft": _weighted_sft,
    "dpo": _dpo,
    "kto": _kto,
    "pretrain": _pretrain,
    "distillation": _distillation,
    "grpo": _grpo,
}


def _example(row: Row) -> Row:
    return replace(row, rejected=None, rejected_calls=(), label=None, score=None, corrected=False)


def _paired(rows: Sequence[Row]) -> Iterator[tuple[Row, Row, Row]]:
    """Build preferences from separately judged answers to the same question: (preference, better row, worse row).

    Each answer is in one pair at most, so that a question with many answers does not outweigh the others.
    """
    by_question: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.kind in ("judged", "scored"):
            asked = json.dumps([row.messages[:-1], row.tools, row.prompt], sort_keys=True)
            by_question[row.kind, asked].append(row)
    for judged in by_question.values():
        ranked = sorted(judged, key=_goodness, reverse=True)
        for better, worse in zip(ranked, reversed(ranked), strict=True):
            if _goodness(better) - _goodness(worse) < SCORE_MARGIN or better.answer.split() == worse.answer.split():
                break
            ids = tuple(dict.fromkeys((*better.interactions, *worse.interactions)))
            yield replace(_example(better).over(worse), interactions=ids), better, worse


def _goodness(row: Row) -> float:
    return float(row.label is True) if row.score is None else row.score


_NOUNS: Final[Mapping[Signal, tuple[str, str]]] = {
    "example": ("example", "examples"),
    "correction": ("correction", "corrections"),
    "preference": ("preference", "preferences"),
    "liked": ("thumb up", "thumbs up"),
    "disliked": ("thumb down", "thumbs down"),
    "score": ("score", "scores"),
    "text": ("text", "texts"),
    "question": ("question", "questions"),
}


def _listed(signals: Mapping[Signal, int], *names: Signal) -> str:
    """Format the numbers of those of the named signals that are present: ``12 corrections and 3 scores``."""
    present = [name for name in _NOUNS if name in names and signals.get(name)]
    parts = [f"{signals[name]:,} {_NOUNS[name][signals[name] != 1]}" for name in present]
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
