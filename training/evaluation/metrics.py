"""Metrics of answers and of token scores: accuracy and F1 by scikit-learn, BLEU by sacrebleu, ROUGE-L by rouge-score,
paired bootstrap intervals, losses and divergence in nats a token.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from graftwork.clients.types.generation import Score
from graftwork.training.data.tokens import IGNORED, LabeledTokens

EvaluationKind = Literal["labels", "texts", "passages"]
"""Of what is held out: short answers that rows share, free ones, texts without questions."""

METRIC_BY_KIND: Final[Mapping[EvaluationKind, str]] = {
    "labels": "accuracy",
    "texts": "rouge_l",
    "passages": "log_likelihood",
}
"""What rows are compared by."""

LABEL_WORDS: Final = 6


RESAMPLES: Final = 2000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with the 95 % interval of a bootstrap over rows."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The rows of one class."""

    label: str
    num_rows: int
    candidate: float
    against: float


# --- numbers ----------------------------------------------------------------------------------------------------------


def kind_of(answers: Sequence[str]) -> EvaluationKind:
    """Labels are short, and several rows share one."""
    short = max(len(answer.split()) for answer in answers) <= LABEL_WORDS
    return "labels" if short and len(set(map(normalize, answers))) <= max(len(answers) / 2, 2) else "texts"


def compare(
    kind: EvaluationKind, expected: Sequence[str], answers: Sequence[str]
) -> tuple[list[float], dict[str, float]]:
    """The metric of each row, and what all of them come to: by scikit-learn, sacrebleu and rouge-score."""
    exact = [float(normalize(one) == normalize(other)) for one, other in zip(expected, answers, strict=True)]
    if kind == "labels":
        from sklearn.metrics import precision_recall_fscore_support

        classes = sorted(set(map(normalize, expected)))
        precision, recall, f1, _ = precision_recall_fscore_support(
            list(map(normalize, expected)),
            list(map(normalize, answers)),
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


def paired_difference(new: Sequence[float], old: Sequence[float], *, seed: int = 0) -> Interval:
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


def mean_loss(tokens: Sequence[LabeledTokens], scores: Sequence[Score]) -> float:
    """Nats per learned token. What the server scores at a place is the token that stands there."""
    total, count = 0.0, 0
    for row, score in zip(tokens, scores, strict=True):
        for label, logprob in zip(row.labels, score.logprobs, strict=True):
            if label != IGNORED and logprob is not None:
                total -= logprob
                count += 1
    return total / max(count, 1)


def likelihoods(tokens: Sequence[LabeledTokens], scores: Sequence[Score]) -> list[float]:
    """Of each row: the mean log-likelihood of a learned token in nats. More is better."""
    return [-mean_loss([row], [score]) for row, score in zip(tokens, scores, strict=True)]


def divergence(tokens: Sequence[LabeledTokens], new: Sequence[Score], old: Sequence[Score]) -> float:
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


def normalize(text: str) -> str:
    return " ".join(text.split()).casefold()
