"""The loss of a served model on plain texts, which no training of these benchmarks is about."""

from __future__ import annotations

import math

from graftwork.clients.client import Client
from graftwork.clients.demo.users import run_concurrently
from graftwork.training.evaluation.texts import GENERAL_TEXTS


def general_loss(client: Client, model: str) -> float:
    """Return the mean loss of a token in nats."""
    scores = list(run_concurrently(lambda text: client.score(model, text), GENERAL_TEXTS))
    counted = [logprob for score in scores for logprob in score.logprobs if logprob is not None]
    return -math.fsum(counted) / len(counted)
