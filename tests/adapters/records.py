"""A database with interactions and feedback for tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork.adapters.feedback.feedback import FeedbackLog
from graftwork.adapters.feedback.ids import InteractionIds
from graftwork.adapters.feedback.interactions import Completion, Interactions, NewInteraction
from graftwork.adapters.storage.database import Database, migrate
from graftwork.adapters.storage.settings import INTERACTION_IDS, secret

BASE_ID = "tiny-base"
DAY = 86400


@dataclass
class Records:
    database: Database
    ids: InteractionIds
    interactions: Interactions
    feedback: FeedbackLog

    @classmethod
    def at(cls, location: Path | str) -> Records:
        """Those of a database that is there; also from another process."""
        database = Database(location)
        ids = InteractionIds(secret(database, INTERACTION_IDS))
        return cls(database, ids, Interactions(database, ids), FeedbackLog(database, ids))

    @classmethod
    def new(cls, location: Path | str) -> Records:
        database = Database(location)
        migrate(database)
        database.close()
        return cls.at(location)

    def mint(
        self, adapter: str | None = "intents@7", *, days_ago: float = 0, user: str | None = None, **said: Any
    ) -> str:
        """An id, perhaps of an answer of some time ago."""
        at = int(time.time() - days_ago * DAY)
        return self.ids.mint("chatcmpl", adapter=adapter, unit=self.ids.unit(user=user), at=at, **said)

    def log(self, id: str, **changes: Any) -> str:
        self.interactions.write([outcome(id, **changes)])
        return id


def outcome(id: str, **changes: Any) -> NewInteraction:
    plain: dict[str, Any] = {
        "base": BASE_ID,
        "model": "intents",
        "status": "ok",
        "prompt": {"messages": [{"role": "user", "content": "Wo ist meine Karte? 🂡"}]},
        "sampling": {"temperature": 0.0, "max_tokens": 8},
        "completions": (Completion(index=0, text="card_arrival", finish_reason="stop"),),
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "queue_ms": 1.5,
        "first_token_ms": 20.25,
        "total_ms": 40.0,
        "key_id": "local",
    }
    return NewInteraction(id=id, **{**plain, **changes})
