"""The keeper's duty for retention: erases interactions and feedback texts that are older than their policies allow."""

from __future__ import annotations

import logging

from graftwork.adapters.feedback.erasure import Erasure
from graftwork.adapters.feedback.policies import LogPolicies
from graftwork.adapters.storage.leases import Lease

log = logging.getLogger(__name__)


def expire(erasure: Erasure, policies: LogPolicies, _: Lease) -> None:
    """Erase what is older than its policy allows, and log how much that was."""
    erased = erasure.expire(policies)
    if erased.num_interactions or erased.num_feedback:
        log.info(
            "retention: %d interactions, and the words of %d pieces of feedback, are gone",
            erased.num_interactions,
            erased.num_feedback,
        )
