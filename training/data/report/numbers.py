"""Statistics of a data set, as the terminal (`training.cli.data_show`) and the HTML page (`report.page`) show them."""

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
"""Answers count as labels if they are short and have at least this many rows each on average."""

FEW_ROWS: Final = 5
"""Number of training rows below which a label is reported as rare."""
BAR_COUNT: Final = 24
"""Approximate number of bins of a histogram."""

RowOutcome = Literal["kept", "bad", "expired", "private", "same", "near", "conflict", "held_out"]
"""Whether a row was kept, or why it was left out. ``bad``: it is unusable. ``expired``: it is feedback on an answer
that is gone. ``private``: it has private data. ``same`` and ``near``: it is a duplicate or near duplicate.
``conflict``: another row with its question has another answer. ``held_out``: its question is on another side of the
split."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceReport:
    """One source.

    Attributes:
        name: its name.
        digest: ``sha256:…`` of the file; None for records in memory.
        rows: number of usable rows.
        bad: number of unusable rows.
        formats: number of rows by format.
        columns: detected columns of the question, then of the answer.
        expired: number of pieces of feedback whose answer is gone.
    """

    name: str
    digest: str | None
    rows: int
    bad: int
    formats: Mapping[str, int]
    columns: tuple[str, ...]
    expired: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateDataCount:
    """Findings of one kind of private data.

    Attributes:
        kind: ``email``, ``phone``, ``secret``, …
        action: what was done with them; see `graftwork.training.data.clean.private.Action`.
        findings: number of findings.
        rows: number of rows with findings.
        places: source and line of the first rows.
    """

    kind: str
    action: str
    findings: int
    rows: int
    places: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HistogramBin:
    """A bin of a histogram: ``count`` values are from ``low`` to ``high``, both inclusive."""

    low: int
    high: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthDistribution:
    """Summary of a list of lengths: median, 95th percentile, maximum, sum and histogram; all 0 if the list is empty."""

    median: int
    p95: int
    longest: int
    total: int
    bars: tuple[HistogramBin, ...]

    @classmethod
    def of(cls, values: Sequence[int]) -> LengthDistribution:
        """Summarise a list of lengths."""
        if not len(values):
            return cls(median=0, p95=0, longest=0, total=0, bars=())
        numbers = np.asarray(values, dtype=np.int64)
        median, p95 = (int(value) for value in np.percentile(numbers, (50, 95), method="nearest"))
        return cls(median=median, p95=p95, longest=int(numbers.max()), total=int(numbers.sum()), bars=_bars(numbers))


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """Lengths of the rows.

    Attributes:
        unit: ``tokens`` of the base with its chat template, or ``characters`` without a base.
        question: lengths of the questions.
        answer: lengths of the answers.
        row: lengths of the whole rows.
        limit: the longest row that training does not truncate.
        over: number of rows longer than that.
        refused: number of rows that the base's chat template refuses; they have no length.
        refusal: where and why it refused the first of them.
        special: number of rows with a special token of the base written out in a message.
    """

    unit: Literal["tokens", "characters"]
    question: LengthDistribution
    answer: LengthDistribution
    row: LengthDistribution
    limit: int | None = None
    over: int = 0
    refused: int = 0
    refusal: str = ""
    special: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCount:
    """A label, and its number of rows in each split."""

    text: str
    train: int
    validation: int
    test: int

    @property
    def rows(self) -> int:
        """Number of rows in all splits."""
        return self.train + self.validation + self.test


@dataclass(frozen=True, kw_only=True, slots=True)
class ContradictingAnswer:
    """One of several answers to a question: its text, its number of rows, and the places of the first rows."""

    text: str
    rows: int
    places: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerConflict:
    """A question with different answers in different rows."""

    question: str
    verdicts: tuple[ContradictingAnswer, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicates:
    """Two rows that are near duplicates. The second was left out, or has another label."""

    text: str
    place: str
    other_text: str
    other_place: str


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The report of a data set: its statistics, and examples of what needs attention."""

    sources: tuple[SourceReport, ...]
    fates: Mapping[RowOutcome, int]
    """Number of rows by outcome; their sum is the number of rows read."""
    bad: tuple[BadRow, ...]
    """The first rows that could not be used."""

    repaired: int
    """Number of rows with repaired text."""
    found: tuple[PrivateDataCount, ...]
    kinds: Mapping[Kind, int]
    """Number of rows by kind; of the rows that are kept, as all fields below."""

    corrections: int
    """Number of rows that are a user's correction."""
    users: int
    """Number of groups of rows that stay on one side of the split."""

    sides: Mapping[SplitName, int]
    """Number of rows by split."""
    side_digests: Mapping[SplitName, str]
    digest: str
    lengths: Lengths
    labels: tuple[LabelCount, ...]
    """The labels by descending frequency; empty if answers are free-form texts."""

    num_conflicts: int
    """Number of questions with different answers."""
    conflicts: tuple[AnswerConflict, ...]
    """The first of them."""
    conflict_action: str
    twins: tuple[NearDuplicates, ...]
    """The first near duplicates that were left out."""
    num_near_conflicts: int
    """Number of pairs of near questions with different labels."""
    near_conflicts: tuple[NearDuplicates, ...]
    """The first of them."""
    shares: Mapping[SplitName, float]
    """The configured shares of the splits."""

    asked: int = 0
    """Number of rows from feedback that users were asked for by a random draw; the others chose to give it."""
    personal_in_system: int = 0
    """Number of rows with personal data in a system message that was kept."""

    notes: tuple[str, ...] = ()
    """What needs attention, the most important first."""

    @property
    def num_read(self) -> int:
        """Number of rows that were read."""
        return sum(self.fates.values())

    @property
    def num_kept(self) -> int:
        """Number of rows in the data set."""
        return self.fates.get("kept", 0)

    def to_json(self) -> dict[str, Any]:
        """Return the report in JSON's types; `report_from_json` is the inverse."""
        return asdict(self)


def report_from_json(fields: Mapping[str, Any]) -> DataReport:
    """Build a report from what `DataReport.to_json` returned.

    Raises:
        ValueError: if the fields are not those of a report.
    """
    return TypeAdapter(DataReport).validate_python(dict(fields))


@dataclass(kw_only=True)
class LabelCounter:
    """Counts answers, until one is too long for a label or there are too many different ones."""

    counts: Counter[tuple[str, SplitName]] = field(default_factory=Counter)
    num_rows: int = 0
    are_texts: bool = False

    def add(self, answer: str, side: SplitName) -> None:
        """Count the answer of a row in a split."""
        self.num_rows += 1
        if self.are_texts:
            return
        self.counts[answer, side] += 1
        if len(answer) > MAX_LABEL_CHARS or len(self.counts) > len(SPLITS) * MAX_LABELS:
            self.are_texts = True
            self.counts.clear()

    def found(self) -> tuple[LabelCount, ...]:
        """Return the labels by descending frequency; empty if the answers are free-form texts."""
        texts = {text for text, _ in self.counts}
        if self.are_texts or len(texts) < 2 or len(texts) * ROWS_PER_LABEL > self.num_rows:
            return ()
        labels = [LabelCount(text=text, **{side: self.counts[text, side] for side in SPLITS}) for text in texts]
        return tuple(sorted(labels, key=lambda label: (-label.rows, label.text)))


@dataclass(kw_only=True)
class PrivateCounts:
    """Counts findings of private data by kind. ``action`` maps kinds to actions; ``personal`` is the default."""

    action: Mapping[str, str]
    findings: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kinds: Iterable[str], place: str) -> None:
        """Count the findings of one row, by their kinds."""
        for kind, num in Counter(kinds).items():
            self.findings[kind] += num
            self.rows[kind] += 1
            first = self.places.setdefault(kind, [])
            if len(first) < PLACES_SHOWN:
                first.append(place)

    def found(self) -> tuple[PrivateDataCount, ...]:
        """Return the counts by descending number of findings."""
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
    """Return what needs attention in a report, the most important first, each with what to do about it."""
    lines = []
    train, held = report.sides["train"], report.sides["validation"] + report.sides["test"]
    if report.num_kept and not train:
        lines.append("No row is left to train on: add rows, or hold out less.")
    secrets = sum(found.findings for found in report.found if found.kind == "secret")
    if secrets:
        lines.append(f"{_count(secrets, 'secret')} found: whoever could read the data could use them. Change them.")
    if expired := report.fates.get("expired"):
        lines.append(
            f"{_count(expired, 'judged answer')} no longer there: their retention has ended, they were erased or never "
            "logged, or they were not exported. What was said of them is left out."
        )
    if report.personal_in_system:
        lines.append(
            f"{_count(report.personal_in_system, 'row')} with personal data in the system message: it was kept, since "
            "whoever asks sends it as it is. Where it is a user's, use --clean-system."
        )
    if report.lengths.refused:
        lines.append(
            f"The base's chat template refuses {_count(report.lengths.refused, 'row')}: {report.lengths.refusal}"
        )
    if special := report.lengths.special:
        lines.append(
            f"{_count(special, 'row')} with a special token of the base, such as its end of turn, written out in a "
            "message: it is read as that token and not as text, here as when it is served. Take it out, unless it is "
            "meant so."
        )
    if report.num_conflicts and report.conflict_action == "keep":
        lines.append(
            f"{_count(report.num_conflicts, 'question')} with several answers: where only one can be right, decide, or "
            "use --conflicts majority."
        )
    if report.num_near_conflicts:
        lines.append(
            f"{_count(report.num_near_conflicts, 'pair')} of nearly the same question with different labels: look "
            "whether one of the two is wrong."
        )
    if report.lengths.over:
        lines.append(
            f"{_count(report.lengths.over, 'row')} longer than {report.lengths.limit} {report.lengths.unit}: they lose "
            "their end, unless --max-length is raised."
        )
    lines += _label_notes(report.labels)
    wished = report.shares["validation"] + report.shares["test"]
    if report.num_kept >= 50 and wished and held < wished * report.num_kept / 2:
        lines.append(
            f"Only {_count(held, 'row')} held out: many ask nearly the same, which is trained on. Give held-out rows "
            "of their own with --held-out."
        )
    return tuple(lines)


def _label_notes(labels: Sequence[LabelCount]) -> list[str]:
    lines = []
    rare = [label for label in labels if label.train < FEW_ROWS]
    if rare:
        names = ", ".join(repr(label.text) for label in rare[:5]) + (", …" if len(rare) > 5 else "")
        lines.append(f"{_count(len(rare), 'label')} with fewer than {FEW_ROWS} rows to train on: {names}.")
    spelled: dict[str, list[str]] = {}
    for label in labels:
        spelled.setdefault("".join(filter(str.isalnum, label.text.casefold())), []).append(label.text)
    for texts in spelled.values():
        if len(texts) > 1:
            lines.append(f"One label in several spellings? {', '.join(map(repr, texts))}.")
    if labels and labels[0].rows > 20 * labels[-1].rows:
        lines.append(
            f"{labels[0].text!r} has {labels[0].rows / labels[-1].rows:.0f} times as many rows as {labels[-1].text!r}: "
            "consider class weights."
        )
    return lines


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
