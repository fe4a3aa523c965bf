"""The push of a finished run's folder."""

from __future__ import annotations

from pathlib import Path

from graftwork.clients.client import Client
from graftwork.clients.types.adapters import PushedVersion
from graftwork.training.run.card import Card


def push_folder(client: Client, folder: Path, card: Card, *, alias: str | None) -> PushedVersion:
    """Push a folder as the next version of its adapter, with its model card as metadata.

    Args:
        client: the client of the server.
        folder: the PEFT folder, with its model card.
        card: the model card.
        alias: alias to move to the version.

    Raises:
        GraftworkClientError: if the push fails.
    """
    return client.adapters.push(
        card.name,
        folder,
        alias=alias,
        parent=card.parent,
        data_digest=card.data_digest,
        metadata=card.to_json(),
    )
