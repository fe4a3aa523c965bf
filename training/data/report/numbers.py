"""What a data set is made of and what became of its rows, in numbers. How that looks is ``show``'s and ``page``'s."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np
from pydantic import TypeAdapter

from graftwork.training.data.row import PLACES_SHOWN, SPLITS, BadRow, Kind, SplitName

MAX_LABEL_CHARS: Final = 80
MAX_LABELS: Final = 1_000
ROWS_PER_LABEL: Final = 4
"""Answers are labels when they are short and there are at least so many rows for each."""

FEW_ROWS: Final = 5
BAR_COUNT: Final = 24

RowOutcome = Literal["kept", "bad", "private", "same", "near", "conflict", "held_out"]
"""What became of a row. ``private``: left out for what it says of somebody; ``same`` and ``near``: another says it;
``held_out``: it asks what is asked on another side of the split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReport:
    """One source: rows that could be used and rows that could not, by format; the columns that were found."""

    name: str
    digest: str | None
    rows: int
    bad: int
    formats: Mapping[str, int]
    columns: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateDataCount:
    """What was found of one kind of private data, where first, and what was done about it."""

    kind: str
    action: str
    findings: int
    rows: int
    places: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HistogramBin:
    """Of a histogram: how many values are from ``low`` to ``high``, both included."""

    low: int
    high: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthDistribution:
    """How many values lie where. All 0 and no bars where there are none."""

    median: int
    p95: int
    longest: int
    total: int
    bars: tuple[HistogramBin, ...]

    @classmethod
    def of(cls, values: Sequence[int]) -> LengthDistribution:
        if not len(values):
            return cls(median=0, p95=0, longest=0, total=0, bars=())
        numbers = np.asarray(values, dtype=np.int64)
        median, p95 = (int(value) for value in np.percentile(numbers, (50, 95), method="nearest"))
        return cls(median=median, p95=p95, longest=int(numbers.max()), total=int(numbers.sum()), bars=_bars(numbers))


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Of the rows, in the base's tokens with the chat template, or in characters where no base was at hand.

    ``limit`` is the longest row that is trained on whole, and ``over`` counts those above it. ``refused`` are rows that
    the base's chat template does not take.
    """

    unit: Literal["tokens", "characters"]
    question: LengthDistribution
    answer: LengthDistribution
    row: LengthDistribution
    limit: int | None = None
    over: int = 0
    refused: int = 0
    refusal: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCount:
    """An answer that many rows have."""

    text: str
    train: int
    validation: int
    test: int

    @property
    def rows(self) -> int:
        return self.train + self.validation + self.test


@dataclass(frozen=True, kw_only=True, slots=True)
class ContradictingAnswer:
    """One of the answers to one question: how many rows give it, and where they stand."""

    text: str
    rows: int
    places: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerConflict:
    """One question that has several answers."""

    question: str
    verdicts: tuple[ContradictingAnswer, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicates:
    """Two rows that are nearly the same; the second was left out, or has another answer."""

    text: str
    place: str
    other_text: str
    other_place: str


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """All there is to say of a data set. ``fates`` add up to the rows that were read."""

    sources: tuple[SourceReport, ...]
    fates: Mapping[RowOutcome, int]
    bad: tuple[BadRow, ...]
    """The first of the rows that could not be used."""

    repaired: int
    found: tuple[PrivateDataCount, ...]
    kinds: Mapping[Kind, int]
    """Of the rows that are kept."""

    corrections: int
    users: int
    """Groups of rows that stay together, by user."""

    sides: Mapping[SplitName, int]
    side_digests: Mapping[SplitName, str]
    digest: str
    lengths: Lengths
    labels: tuple[LabelCount, ...]
    """The most frequent first; empty when answers are no labels."""

    num_conflicts: int
    conflicts: tuple[AnswerConflict, ...]
    conflict_action: str
    twins: tuple[NearDuplicates, ...]
    num_near_conflicts: int
    near_conflicts: tuple[NearDuplicates, ...]
    shares: Mapping[SplitName, float]
    """Of the rows, as wished for."""

    personal_in_system: int = 0
    """Rows with personal data in a system message, where it was kept."""

    notes: tuple[str, ...] = ()
    """What somebody should look at, the gravest first."""

    @property
    def num_read(self) -> int:
        return sum(self.fates.values())

    @property
    def num_kept(self) -> int:
        return self.fates.get("kept", 0)

    def to_json(self) -> dict[str, Any]:
        """In JSON's types; `report_from_json` is the inverse."""
        return asdict(self)


def report_from_json(fields: Mapping[str, Any]) -> DataReport:
    """A report that ``to_json`` wrote. ValueError for anything else."""
    return TypeAdapter(DataReport).validate_python(dict(fields))


@dataclass(kw_only=True)
class LabelCounter:
    """Counts answers as long as they may be labels."""

    counts: Counter[tuple[str, SplitName]] = field(default_factory=Counter)
    num_rows: int = 0
    are_texts: bool = False

    def add(self, answer: str, side: SplitName) -> None:
        self.num_rows += 1
        if self.are_texts:
            return
        self.counts[answer, side] += 1
        if len(answer) > MAX_LABEL_CHARS or len(self.counts) > len(SPLITS) * MAX_LABELS:
            self.are_texts = True
            self.counts.clear()

    def found(self) -> tuple[LabelCount, ...]:
        texts = {text for text, _ in self.counts}
        if self.are_texts or len(texts) < 2 or len(texts) * ROWS_PER_LABEL > self.num_rows:
            return ()
        labels = [LabelCount(text=text, **{side: self.counts[text, side] for side in SPLITS}) for text in texts]
        return tuple(sorted(labels, key=lambda label: (-label.rows, label.text)))


@dataclass(kw_only=True)
class PrivateCounts:
    """Counts what was found in rows, by kind."""

    action: Mapping[str, str]
    findings: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kinds: Iterable[str], place: str) -> None:
        for kind, num in Counter(kinds).items():
            self.findings[kind] += num
            self.rows[kind] += 1
            first = self.places.setdefault(kind, [])
            if len(first) < PLACES_SHOWN:
                first.append(place)

    def found(self) -> tuple[PrivateDataCount, ...]:
        return tuple(
            PrivateDataCount(
                kind=kind,
                action=self.action.get(kind, self.action["personal"]),
                findings=num,
                rows=self.rows[kind],
                places=tuple(self.places[kind]),
            )
            for kind, num in self.findings.most_common()
        )


def notes(report: DataReport) -> tuple[str, ...]:
    """What in these numbers somebody should look at, the gravest first, each with what to do."""
    said = []
    train, held = report.sides["train"], report.sides["validation"] + report.sides["test"]
    if report.num_kept and not train:
        said.append("No row is left to train on: add rows, or hold out less.")
    secrets = sum(found.findings for found in report.found if found.kind == "secret")
    if secrets:
        said.append(f"{_count(secrets, 'secret')} found: whoever could read the data could use them. Change them.")
    if report.personal_in_system:
        said.append(
            f"{_count(report.personal_in_system, 'row')} with personal data in the system message: it was kept, since "
            "whoever asks sends it as it is. Where it is a user's, use --clean-system."
        )
    if report.lengths.refused:
        said.append(
            f"The base's chat template refuses {_count(report.lengths.refused, 'row')}: {report.lengths.refusal}"
        )
    if report.num_conflicts and report.conflict_action == "keep":
        said.append(
            f"{_count(report.num_conflicts, 'question')} with several answers: where only one can be right, decide, or "
            "use --conflicts majority."
        )
    if report.num_near_conflicts:
        said.append(
            f"{_count(report.num_near_conflicts, 'pair')} of nearly the same question with different labels: look "
            "whether one of the two is wrong."
        )
    if report.lengths.over:
        said.append(
            f"{_count(report.lengths.over, 'row')} longer than {report.lengths.limit} {report.lengths.unit}: they lose "
            "their end, unless --max-length is raised."
        )
    said += _label_notes(report.labels)
    wished = report.shares["validation"] + report.shares["test"]
    if report.num_kept >= 50 and wished and held < wished * report.num_kept / 2:
        said.append(
            f"Only {_count(held, 'row')} held out: many ask nearly the same, which is trained on. Give held-out rows "
            "of their own with --held-out."
        )
    return tuple(said)


def _label_notes(labels: Sequence[LabelCount]) -> list[str]:
    said = []
    rare = [label for label in labels if label.train < FEW_ROWS]
    if rare:
        names = ", ".join(repr(label.text) for label in rare[:5]) + (", …" if len(rare) > 5 else "")
        said.append(f"{_count(len(rare), 'label')} with fewer than {FEW_ROWS} rows to train on: {names}.")
    spelled: dict[str, list[str]] = {}
    for label in labels:
        spelled.setdefault("".join(filter(str.isalnum, label.text.casefold())), []).append(label.text)
    for texts in spelled.values():
        if len(texts) > 1:
            said.append(f"One label in several spellings? {', '.join(map(repr, texts))}.")
    if labels and labels[0].rows > 20 * labels[-1].rows:
        said.append(
            f"{labels[0].text!r} has {labels[0].rows / labels[-1].rows:.0f} times as many rows as {labels[-1].text!r}: "
            "consider class weights."
        )
    return said


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _bars(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[HistogramBin, ...]:
    """Equally wide ones of a round width; the last takes the few values far above the others."""
    top = int(np.percentile(numbers, 99.5, method="higher"))
    width = _round_up(math.ceil((top + 1) / BAR_COUNT))
    num = top // width + 1
    places = np.minimum(numbers // width, num - 1)
    counts = np.bincount(places, minlength=num)
    lows = [place * width for place in range(num)]
    highs = [low + width - 1 for low in lows[:-1]] + [max(int(numbers.max()), lows[-1] + width - 1)]
    return tuple(
        HistogramBin(low=low, high=high, count=int(count)) for low, high, count in zip(lows, highs, counts, strict=True)
    )


def _round_up(width: int) -> int:
    """To 1, 2 or 5 times a power of ten."""
    power: int = 10 ** math.floor(math.log10(max(width, 1)))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= width)
