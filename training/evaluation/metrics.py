"""Metrics of answers and token scores: accuracy and F1 by scikit-learn, BLEU by sacrebleu, ROUGE-L by rouge-score,
paired bootstrap intervals, losses and KL divergence in nats per token.
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
"""The kind of held-out rows. ``labels``: short answers that several rows share. ``texts``: free-form answers.
``passages``: texts without questions."""

METRIC_BY_KIND: Final[Mapping[EvaluationKind, str]] = {
    "labels": "accuracy",
    "texts": "rouge_l",
    "passages": "log_likelihood",
}
"""The metric by which models are compared."""

LABEL_WORDS: Final = 6
"""Maximum number of words in a label."""

RESAMPLES: Final = 2000
"""Number of bootstrap samples."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over rows with its 95 % bootstrap confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The metric on the rows of one class, for the candidate and for the model that it would replace (``against``)."""

    label: str
    num_rows: int
    candidate: float
    against: float


def kind_of(answers: Sequence[str]) -> EvaluationKind:
    """Classify answers as ``labels`` if all are short and there are at least two rows per label on average, else as
    ``texts``."""
    short = max(len(answer.split()) for answer in answers) <= LABEL_WORDS
    return "labels" if short and len(set(map(normalize, answers))) <= max(len(answers) / 2, 2) else "texts"


def compare(
    kind: EvaluationKind, expected: Sequence[str], answers: Sequence[str]
) -> tuple[list[float], dict[str, float]]:
    """Compare answers with reference answers.

    Args:
        kind: ``labels`` or ``texts``.
        expected: the reference answers.
        answers: the answers of a model, in the same order.

    Returns:
        The metric of each row, 0 to 1 (exact match for labels, ROUGE-L for texts), and metrics over all rows by name.
        Precision, recall and F1 are macro averages.
    """
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
    """Return the mean of ``new - old`` over the same rows, with its 95 % bootstrap confidence interval."""
    import numpy

    differences = numpy.asarray(new) - numpy.asarray(old)
    indices = numpy.random.default_rng(seed).integers(0, len(differences), (RESAMPLES, len(differences)))
    means = differences[indices].mean(axis=1)
    low, high = numpy.quantile(means, [0.025, 0.975])
    return Interval(mean=float(differences.mean()), low=float(low), high=float(high))


def slices(expected: Sequence[str], new: Sequence[float], old: Sequence[float]) -> tuple[Slice, ...]:
    """Return the mean metric by class, the largest class first.

    Args:
        expected: the class of each row.
        new: the metric of each row for the candidate.
        old: the metric of each row for the model that it would replace.
    """
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
    """Compute the mean loss over the learned tokens of all sequences, in nats. ``scores[i].logprobs[t]`` is the
    log-probability of token t of sequence i."""
    total, count = 0.0, 0
    for row, score in zip(tokens, scores, strict=True):
        for label, logprob in zip(row.labels, score.logprobs, strict=True):
            if label != IGNORED and logprob is not None:
                total -= logprob
                count += 1
    return total / max(count, 1)


def likelihoods(tokens: Sequence[LabeledTokens], scores: Sequence[Score]) -> list[float]:
    """Compute the mean log-likelihood of a learned token for each sequence, in nats; higher is better."""
    return [-mean_loss([row], [score]) for row, score in zip(tokens, scores, strict=True)]


def divergence(tokens: Sequence[LabeledTokens], new: Sequence[Score], old: Sequence[Score]) -> float:
    """Compute a lower bound of the mean KL(new ‖ old) at learned tokens, in nats per token.

    It is computed over the tokens that are among the most likely ones of both models, and all other tokens as one
    outcome. Merging outcomes can only decrease the KL divergence.
    """
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
    """Normalise white space and case, for comparisons of answers."""
    return " ".join(text.split()).casefold()
