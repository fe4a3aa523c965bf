"""Metrics of answers and token scores: accuracy and F1 by scikit-learn, BLEU by sacrebleu, ROUGE-L by rouge-score,
losses and KL divergence in nats per token.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from graftwork.clients.types.generation import Score
from graftwork.training.data.tokens import IGNORED, LabeledTokens

EvaluationKind = Literal["labels", "texts", "passages", "graded", "feedback"]
"""The kind of held-out rows. ``labels``: short answers that several rows share. ``texts``: free-form answers.
``passages``: texts without questions. ``graded``: questions whose answers a grader judges. ``feedback``: answers of
models that users judged, which do not say what is right independently of these models."""

METRIC_BY_KIND: Final[Mapping[EvaluationKind, str | None]] = {
    "labels": "accuracy",
    "texts": "rouge_l",
    "passages": "log_likelihood",
    "graded": "grade",
    "feedback": None,
}
"""The metric by which models are compared; None where only losses are."""

LABEL_WORDS: Final = 6
"""Maximum number of words in a label."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The rows of one class, and how many of them the candidate and the model that it would replace (``against``)
    answer right; ``won`` are right for the candidate alone, ``lost`` for the other alone."""

    label: str
    num_rows: int
    candidate: int
    against: int
    won: int
    lost: int


@dataclass(frozen=True, kw_only=True)
class RowLosses:
    """The losses of one model on rows: for each row the sum over its learned tokens in nats, and their number."""

    totals: tuple[float, ...]
    num_tokens: tuple[int, ...]

    @property
    def mean(self) -> float:
        """The loss per token over all rows; not a number without tokens."""
        return sum(self.totals) / sum(self.num_tokens) if any(self.num_tokens) else math.nan


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


def slices(expected: Sequence[str], new: Sequence[float], old: Sequence[float]) -> tuple[Slice, ...]:
    """Count right answers by class, the largest class first.

    Args:
        expected: the class of each row.
        new: whether the candidate is right on each row, 1 or 0.
        old: the same for the model that it would replace.
    """
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(expected):
        rows[label].append(index)
    return tuple(
        Slice(
            label=label,
            num_rows=len(indices),
            candidate=sum(new[index] == 1 for index in indices),
            against=sum(old[index] == 1 for index in indices),
            won=sum(new[index] > old[index] for index in indices),
            lost=sum(new[index] < old[index] for index in indices),
        )
        for label, indices in sorted(rows.items(), key=lambda item: (-len(item[1]), item[0]))
    )


def row_losses(tokens: Sequence[LabeledTokens], scores: Sequence[Score]) -> RowLosses:
    """Compute the loss of each sequence. ``scores[i].logprobs[t]`` is the log-probability of token t of sequence i."""
    learned = [
        [
            -logprob
            for label, logprob in zip(row.labels, score.logprobs, strict=True)
            if label != IGNORED and logprob is not None
        ]
        for row, score in zip(tokens, scores, strict=True)
    ]
    return RowLosses(totals=tuple(map(sum, learned)), num_tokens=tuple(map(len, learned)))


def likelihoods(tokens: Sequence[LabeledTokens], scores: Sequence[Score]) -> list[float]:
    """Compute the mean log-likelihood of a learned token for each sequence, in nats; higher is better."""
    losses = row_losses(tokens, scores)
    return [-total / max(number, 1) for total, number in zip(losses.totals, losses.num_tokens, strict=True)]


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
