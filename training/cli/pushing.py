"""A sealed folder pushed to a server as the next version of its name."""

from __future__ import annotations

from pathlib import Path

from graftwork.clients.client import Client
from graftwork.clients.types.adapters import PushedVersion
from graftwork.training.run.card import Card


def push_folder(client: Client, folder: Path, card: Card, *, alias: str | None) -> PushedVersion:
    """Make a sealed folder the next version of its name. Raises what the client raises; the folder stays."""
    return client.adapters.push(
        card.name,
        folder,
        alias=alias,
        parent=card.parent,
        data_digest=card.data_digest,
        metadata=card.to_json(),
    )
