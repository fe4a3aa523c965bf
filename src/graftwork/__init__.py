"""Graftwork: one quantized base model in memory, many LoRA adapters grafted onto it, live.

The rooms, and who may import whom (a test holds it)::

    clients ──HTTP──▶ server ──▶ adapters ◀── training

This file knows the version and where the public names are; they are imported when first used, so that importing the
package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.version import __version__

if TYPE_CHECKING:
    from graftwork.clients.async_client import AsyncClient
    from graftwork.clients.client import Client

__all__ = ["AsyncClient", "Client", "__version__"]

_HOMES = {"AsyncClient": "graftwork.clients.async_client", "Client": "graftwork.clients.client"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = value = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
