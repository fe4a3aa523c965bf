"""A version measured on rows it has not learned from, beside its parent and the bare base, as users meet it: over HTTP.

Answers are greedy. The metrics follow from what the answers are: labels are right or wrong, texts are more or less
alike. Texts without questions are not asked: what counts is how likely they are found. Differences come with intervals,
from the same rows asked of both.

Knows nothing of what is good enough: that is ``gates``.
"""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, TypeVar

from graftwork.adapters.prompts import Prompts
from graftwork.clients.client import Client
from graftwork.clients.types import Score
from graftwork.training.data.row import Row
from graftwork.training.data.tokens import IGNORED, Tokens, tokenize, tokenize_questions
from graftwork.training.general import TEXTS

Kind = Literal["labels", "texts", "passages"]
"""Of what is held out: short answers that rows share, free ones, texts without questions."""

METRICS: Final[Mapping[Kind, str]] = {"labels": "accuracy", "texts": "rouge_l", "passages": "log_likelihood"}
"""What rows are compared by."""

AT_ONCE: Final = 8
"""Requests under way at the same time."""

MOST_ROWS: Final = 500
"""Held-out rows that are asked; of more, as many are drawn."""

MOST_LOSSES: Final = 200
PAIRS_FOR_BIAS: Final = 30
EXAMPLES: Final = 10
TOP: Final = 5
"""Most likely tokens that are compared for the divergence."""

SPARE: Final = 8
"""Tokens that an answer may have beyond the longest right one."""

LABEL_WORDS: Final = 6
RESAMPLES: Final = 2000

T = TypeVar("T")
R = TypeVar("R")


class NothingToMeasure(ValueError):
    """No held-out row could be measured."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with the 95 % interval of a bootstrap over rows."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model on the held-out rows.

    Attributes:
        answers: to each question. right: the metric of each row, 0 to 1; of a text without a question, nats a token.
        metrics: by name: accuracy, precision, recall, f1, exact_match, bleu, rouge_l, as the answers' kind has them.
        loss: nats per token of the right answers, or of the texts; replay_loss: of those of older rounds;
            general_loss: of plain texts.
    """

    model: str
    answers: tuple[str, ...]
    right: tuple[float, ...]
    metrics: Mapping[str, float]
    loss: float
    replay_loss: float | None
    general_loss: float

    @property
    def perplexity(self) -> float:
        """Of the right answers."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The rows of one class."""

    label: str
    num_rows: int
    candidate: float
    against: float


@dataclass(frozen=True, kw_only=True)
class Example:
    """A question and all answers to it, for a person to read."""

    question: str
    expected: str
    answers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Bias:
    """How often an answer changes when nothing does but a name or a pronoun, by model."""

    num_pairs: int
    changed: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A candidate beside the others. ``metric`` is the one that rows are compared by; ``better`` are its differences,
    candidate minus the other, by the other's part: ``parent``, ``base``."""

    kind: Kind
    metric: str
    num_rows: int
    candidate: Measured
    parent: Measured | None
    base: Measured
    better: Mapping[str, Interval]
    slices: tuple[Slice, ...]
    kl_to_parent: float
    """Nats a token on the new questions, at least: over the most likely tokens and the rest together. To the base for
    a version without a parent."""
    bias: Bias
    examples: tuple[Example, ...] = field(repr=False)
    num_left_out: int = 0
    """Held-out rows that could not be measured, most since they have more tokens than the server takes."""

    @property
    def before(self) -> Measured:
        """What the candidate would replace: its parent, or the base."""
        return self.parent or self.base

    def to_json(self) -> dict[str, Any]:
        """Numbers alone, for the version's metadata: no question, no answer."""

        def numbers(measured: Measured | None) -> dict[str, Any] | None:
            if measured is None:
                return None
            losses = {
                "loss": measured.loss,
                "perplexity": measured.perplexity,
                "replay_loss": measured.replay_loss,
                "general_loss": measured.general_loss,
            }
            return {"model": measured.model, **_rounded({**measured.metrics, **losses})}

        return {
            "kind": self.kind,
            "metric": self.metric,
            "rows": self.num_rows,
            "left_out": self.num_left_out,
            "candidate": numbers(self.candidate),
            "parent": numbers(self.parent),
            "base": numbers(self.base),
            "better": {name: _rounded(asdict(interval)) for name, interval in self.better.items()},
            "slices": [_rounded(asdict(part)) for part in self.slices],
            "kl_to_parent": _rounded({"": self.kl_to_parent})[""],
            "bias": {"pairs": self.bias.num_pairs, "changed": _rounded(self.bias.changed)},
        }


def evaluate(
    client: Client,
    rows: Sequence[Row],
    prompts: Prompts,
    *,
    candidate: str,
    base: str,
    parent: str | None = None,
    replay: Sequence[Row] = (),
    max_tokens: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Ask all three and compare.

    Args:
        rows: held-out examples, whose answers are what is right; or texts, each measured by its beginning.
        prompts: of the base, to find an answer's tokens.
        candidate, parent, base: what ``model`` in a request calls them.
        replay: held-out examples of older rounds.
        max_tokens: of an answer; without, as many as the longest right one has and some more.

    Rows that are longer than what the server serves are left out and counted. Raises NothingToMeasure when there are no
    others.
    """
    drawn = random.Random(seed)
    asker = _Asker(client, prompts, client.model(base).graftwork["max_length"])
    fitting = [row for row in rows if asker.fits(row)]
    if not fitting:
        raise NothingToMeasure(f"none of {len(rows)} held-out rows fits into what the server serves")
    num_left_out = len(rows) - len(fitting)
    passages = all(row.kind == "text" for row in fitting)
    rows = _draw(fitting, MOST_LOSSES if passages else MOST_ROWS, drawn)
    replay = _draw(replay, MOST_LOSSES, drawn)
    kind = "passages" if passages else kind_of([row.answer for row in rows])
    longest = max_tokens or max(len(prompts.encode(row.answer)) for row in rows) + SPARE
    tokens = asker.tokens(rows)
    scored = _draw(tokens, MOST_LOSSES, drawn)
    scores: dict[str, list[Score]] = {}

    def measure(model: str) -> Measured:
        scores[model] = asker.scores(model, scored)
        if passages:
            answers = []
            right = likelihoods(scored, scores[model])
            metrics: Mapping[str, float] = {METRICS[kind]: sum(right) / len(right)}
        else:
            answers = asker.answers(model, rows, longest)
            right, metrics = compare(kind, [row.answer for row in rows], answers)
        return Measured(
            model=model,
            answers=tuple(answers),
            right=tuple(right),
            metrics=metrics,
            loss=mean_loss(scored, scores[model]),
            replay_loss=asker.loss(model, asker.tokens(replay)) if replay else None,
            general_loss=asker.loss(model, asker.texts(TEXTS)),
        )

    measured = {name: measure(model) for name, model in _parts(candidate, parent, base).items()}
    new, before = measured["candidate"], measured.get("parent", measured["base"])
    others = {name: other for name, other in measured.items() if name != "candidate"}
    return Evaluation(
        kind=kind,
        metric=METRICS[kind],
        num_rows=len(rows),
        candidate=new,
        parent=measured.get("parent"),
        base=measured["base"],
        better={name: paired(new.right, other.right, seed=seed) for name, other in others.items()},
        slices=slices([row.answer for row in rows], new.right, before.right) if kind == "labels" else (),
        kl_to_parent=divergence(scored, scores[candidate], scores[before.model]),
        bias=_bias(
            asker, () if passages else rows, {name: part.model for name, part in measured.items()}, longest, drawn
        ),
        examples=() if passages else _examples(rows, measured),
        num_left_out=num_left_out,
    )


# --- numbers ----------------------------------------------------------------------------------------------------------


def kind_of(answers: Sequence[str]) -> Kind:
    """Labels are short, and several rows share one."""
    short = max(len(answer.split()) for answer in answers) <= LABEL_WORDS
    return "labels" if short and len(set(map(_plain, answers))) <= max(len(answers) / 2, 2) else "texts"


def compare(kind: Kind, expected: Sequence[str], answers: Sequence[str]) -> tuple[list[float], dict[str, float]]:
    """The metric of each row, and what all of them come to: by scikit-learn, sacrebleu and rouge-score."""
    exact = [float(_plain(one) == _plain(other)) for one, other in zip(expected, answers, strict=True)]
    if kind == "labels":
        from sklearn.metrics import precision_recall_fscore_support

        classes = sorted(set(map(_plain, expected)))
        precision, recall, f1, _ = precision_recall_fscore_support(
            list(map(_plain, expected)),
            list(map(_plain, answers)),
            labels=classes,
            average="macro",
            zero_division=0.0,
        )
        accuracy = sum(exact) / len(exact)
        return exact, {"accuracy": accuracy, "precision": float(precision), "recall": float(recall), "f1": float(f1)}
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    rouge = [float(scorer.score(one, other)["rougeL"].fmeasure) for one, other in zip(expected, answers, strict=True)]
    bleu = sacrebleu.corpus_bleu(list(answers), [list(expected)]).score / 100
    return rouge, {
        "rouge_l": sum(rouge) / len(rouge),
        "bleu": float(bleu),
        "exact_match": sum(exact) / len(exact),
    }


def paired(new: Sequence[float], old: Sequence[float], *, seed: int = 0) -> Interval:
    """The mean of ``new - old`` over the same rows, with its 95 % bootstrap interval."""
    import numpy

    differences = numpy.asarray(new) - numpy.asarray(old)
    drawn = numpy.random.default_rng(seed).integers(0, len(differences), (RESAMPLES, len(differences)))
    means = differences[drawn].mean(axis=1)
    low, high = numpy.quantile(means, [0.025, 0.975])
    return Interval(mean=float(differences.mean()), low=float(low), high=float(high))


def slices(expected: Sequence[str], new: Sequence[float], old: Sequence[float]) -> tuple[Slice, ...]:
    """The metric by class, the largest class first."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(expected):
        rows[label].append(index)
    return tuple(
        Slice(
            label=label,
            num_rows=len(indices),
            candidate=sum(new[index] for index in indices) / len(indices),
            against=sum(old[index] for index in indices) / len(indices),
        )
        for label, indices in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def mean_loss(tokens: Sequence[Tokens], scores: Sequence[Score]) -> float:
    """Nats per learned token. What the server scores at a place is the token that stands there."""
    total, count = 0.0, 0
    for row, score in zip(tokens, scores, strict=True):
        for label, logprob in zip(row.labels, score.logprobs, strict=True):
            if label != IGNORED and logprob is not None:
                total -= logprob
                count += 1
    return total / max(count, 1)


def likelihoods(tokens: Sequence[Tokens], scores: Sequence[Score]) -> list[float]:
    """Of each row: the mean log-likelihood of a learned token in nats. More is better."""
    return [-mean_loss([row], [score]) for row, score in zip(tokens, scores, strict=True)]


def divergence(tokens: Sequence[Tokens], new: Sequence[Score], old: Sequence[Score]) -> float:
    """Mean KL(new ‖ old) in nats at the places of right answers, over the tokens that both show and the rest as one:
    merging outcomes can only make it smaller, so the true one is at least this."""
    total, count = 0.0, 0
    for row, one, other in zip(tokens, new, old, strict=True):
        for label, mine, theirs in zip(row.labels, one.top or (), other.top or (), strict=True):
            if label != IGNORED and mine and theirs:
                total += _kl(mine, theirs)
                count += 1
    return total / max(count, 1)


def _kl(mine: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    both = mine.keys() & theirs.keys()
    p = [math.exp(mine[token]) for token in both]
    q = [math.exp(theirs[token]) for token in both]
    p.append(max(1 - sum(p), 1e-9))
    q.append(max(1 - sum(q), 1e-9))
    return max(sum(one * math.log(one / other) for one, other in zip(p, q, strict=True) if one > 0), 0.0)


# --- asking -----------------------------------------------------------------------------------------------------------


class _Asker:
    """``max_length`` is what the server takes of a prompt and its answer together, in tokens."""

    def __init__(self, client: Client, prompts: Prompts, max_length: int) -> None:
        self._client, self._prompts, self._max_length = client, prompts, max_length

    def fits(self, row: Row) -> bool:
        """Whether the server can be asked it, and has room for an answer like the right one."""
        if row.kind == "text":
            return bool(self.tokens([row]))
        return self._room(row) >= len(self._prompts.encode(row.answer)) + SPARE

    def _room(self, row: Row) -> int:
        """Tokens that are left for an answer; none where it cannot be asked at all."""
        asked = tokenize_questions([row], self._prompts, max_length=self._max_length, eos_token_id=None).sequences
        return self._max_length - len(asked[0]) if asked else 0

    def answers(self, model: str, rows: Sequence[Row], longest: int) -> list[str]:
        def ask(row: Row) -> str:
            max_tokens = min(longest, self._room(row))
            options: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens, "store": False}
            if row.messages:
                answer = self._client.chat(model, [dict(turn) for turn in row.messages[:-1]], **options)
                return answer.choices[0].message.content or ""
            return self._client.complete(model, row.prompt, **options).choices[0].text

        return _all(ask, rows)

    def scores(self, model: str, tokens: Sequence[Tokens]) -> list[Score]:
        return _all(lambda row: self._client.score(model, row.input_ids, top=TOP), tokens)

    def loss(self, model: str, tokens: Sequence[Tokens]) -> float:
        return mean_loss(tokens, self.scores(model, tokens))

    def tokens(self, rows: Iterable[Row]) -> list[Tokens]:
        ends = self._prompts.eos_token_ids
        end = min(ends) if ends else None
        most = min(MAX_LENGTH, self._max_length)
        found: list[Tokens] = []
        for row in rows:
            pieces = tokenize([row], self._prompts, max_length=most, eos_token_id=end).sequences
            found += pieces[:1] if row.kind == "text" else pieces
        return found

    def texts(self, texts: Iterable[str]) -> list[Tokens]:
        encoded = [list(self._prompts.encode(text))[: self._max_length] for text in texts]
        return [Tokens(input_ids=ids, labels=list(ids)) for ids in encoded]


MAX_LENGTH: Final = 1024
"""Tokens of a row whose loss is measured."""


def _all(ask: Callable[[T], R], items: Sequence[T]) -> list[R]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, items))


# --- names and pronouns -----------------------------------------------------------------------------------------------

_SWAPS: Final = (
    ("he", "she"),
    ("him", "her"),
    ("his", "her"),
    ("himself", "herself"),
    ("husband", "wife"),
    ("boyfriend", "girlfriend"),
    ("father", "mother"),
    ("dad", "mum"),
    ("son", "daughter"),
    ("brother", "sister"),
    ("man", "woman"),
    ("mr", "mrs"),
)
# "her" is "his" more often than "him" in what people ask.
_SWAPPED: Final = {**dict(_SWAPS), **{b: a for a, b in _SWAPS}}
_NAMES: Final = (("Emily", "Lakisha"), ("Greg", "Jamal"), ("Anne", "Fatima"), ("Peter", "Mohammed"), ("Lena", "Lars"))


def swapped(text: str, number: int) -> tuple[str, str]:
    """Two texts that differ in whom they are about alone: pronouns and the like exchanged, or, where there are none,
    with two different names before them."""

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        other = _SWAPPED.get(word.lower(), word)
        return other.capitalize() if word[0].isupper() else other

    changed = re.sub(r"\b[A-Za-z]+\b", swap, text)
    if changed != text:
        return text, changed
    one, other = _NAMES[number % len(_NAMES)]
    return f"{one} here. {text}", f"{other} here. {text}"


def _bias(asker: _Asker, rows: Sequence[Row], models: Mapping[str, str], longest: int, drawn: random.Random) -> Bias:
    pairs = [
        pair
        for number, row in enumerate(_draw(rows, PAIRS_FOR_BIAS, drawn))
        if (pair := _pair(row, number)) is not None and all(map(asker.fits, pair))
    ]
    if not pairs:
        return Bias(num_pairs=0, changed={})
    changed = {}
    for name, model in models.items():
        answers = asker.answers(model, [row for pair in pairs for row in pair], longest)
        differ = [_plain(one) != _plain(other) for one, other in zip(answers[::2], answers[1::2], strict=True)]
        changed[name] = sum(differ) / len(differ)
    return Bias(num_pairs=len(pairs), changed=changed)


def _pair(row: Row, number: int) -> tuple[Row, Row] | None:
    if not row.messages:
        one, other = swapped(row.prompt, number)
        return replace(row, prompt=one), replace(row, prompt=other)
    *before, asked, answer = row.messages
    if asked["role"] != "user" or not isinstance(asked["content"], str):
        return None
    turns = [{**asked, "content": text} for text in swapped(asked["content"], number)]
    one_row, other_row = (replace(row, messages=(*before, turn, answer)) for turn in turns)
    return one_row, other_row


# --- small things -----------------------------------------------------------------------------------------------------


def _examples(rows: Sequence[Row], measured: Mapping[str, Measured]) -> tuple[Example, ...]:
    """First where the answers differ: there is something to see."""
    order = sorted(range(len(rows)), key=lambda index: -len({part.answers[index] for part in measured.values()}))
    return tuple(
        Example(
            question=rows[index].question,
            expected=rows[index].answer,
            answers={name: part.answers[index] for name, part in measured.items()},
        )
        for index in order[:EXAMPLES]
    )


def _parts(candidate: str, parent: str | None, base: str) -> dict[str, str]:
    return {"candidate": candidate, **({"parent": parent} if parent else {}), "base": base}


def _draw(items: Sequence[T], most: int, drawn: random.Random) -> list[T]:
    return list(items) if len(items) <= most else drawn.sample(list(items), most)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in numbers.items()}
