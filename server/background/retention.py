"""The keeper's duty for retention: erases interactions and feedback texts that are older than their policies allow."""

from __future__ import annotations

import logging

from graftwork.adapters.storage.leases import Lease
from graftwork.server.http.services import Records

log = logging.getLogger(__name__)


def expire(records: Records, _: Lease) -> None:
    gone = records.erasure.expire(records.policies)
    if gone.num_interactions or gone.num_feedback:
        log.info(
            "retention: %d interactions, and the words of %d pieces of feedback, are gone",
            gone.num_interactions,
            gone.num_feedback,
        )
