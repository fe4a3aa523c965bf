"""The registry's records: versions, events and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from graftwork.adapters.errors import InvalidRequest
from graftwork.adapters.peft_format.config import SEQ_CLS

AliasAction = Literal["push", "promote", "rollback", "retire"]


@dataclass(frozen=True, kw_only=True)
class Version:
    """One pushed adapter folder.

    Attributes:
        digest: ``sha256:…`` of config and tensors.
        base_digest: Of the base that it was registered for.
        verified: Whether its config named that base; otherwise only the shapes fit.
        rank: The largest of its modules.
        config: adapter_config.json.
        parent: The number of the version that it continues.
        data_digest: Of the data set that it was trained on.
        metadata: Set by the push.
    """

    name: str
    number: int
    digest: str
    base_digest: str
    verified: bool
    rank: int
    num_parameters: int
    num_bytes: int
    config: dict[str, Any]
    parent: int | None
    data_digest: str | None
    metadata: dict[str, Any]
    created_at: datetime
    retired_at: datetime | None = None

    @property
    def id(self) -> str:
        """``name@number``."""
        return f"{self.name}@{self.number}"

    @property
    def is_reward_model(self) -> bool:
        """Whether it scores answers instead of giving them."""
        return self.config.get("task_type") == SEQ_CLS

    def check_answers(self) -> None:
        """Check that it can be asked for answers.

        Raises:
            InvalidRequest: It is a reward model.
        """
        if self.is_reward_model:
            raise InvalidRequest(
                f"{self.id} is a reward model: it scores answers and gives none. Name it in the rewards of a grpo job, "
                "or export it; ask another model for answers.",
                param="model",
                code="not_a_chat_model",
            )


@dataclass(frozen=True, kw_only=True)
class AliasEvent:
    """One entry of an adapter's history. ``alias`` is ``None`` if no alias moved: for a push or a retirement."""

    id: int
    at: datetime
    action: AliasAction
    name: str
    alias: str | None
    from_version: int | None
    to_version: int | None
    actor: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter: its aliases by version number, and all versions in order of their numbers."""

    name: str
    created_at: datetime
    aliases: Mapping[str, int]
    versions: tuple[Version, ...]
