"""Messages about adapters, versions and aliases that do not exist."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from datetime import datetime
from itertools import islice

from graftwork.adapters import names
from graftwork.adapters.registry.records import Adapter


def unknown_model_message(model: str, adapter: Adapter) -> str:
    """Why ``model`` is none of its adapter's versions."""
    _, selector = names.split_model(model)
    for version in adapter.versions:
        if str(version.number) == selector and version.retired_at is not None:
            return (
                f"{version.id} was retired on {day(version.retired_at)}: {adapter.name!r} has {listed(adapter.aliases)}"
            )
    return (
        f"{names.quoted(model)} names nothing: {adapter.name!r} has {_up_to(len(adapter.versions))}, "
        f"and the aliases {listed(adapter.aliases)}"
    )


def unknown_adapter_message(name: str, there: Collection[str]) -> str:
    """That there is no such adapter, with the name that was probably meant. ``there`` are the names that exist."""
    # People bring names with capitals and with a provider in front (openai/intents).
    plain = name.rpartition("/")[2].lower()
    # Only a name that could be right is compared, and not with more than takes a millisecond or two.
    close = [plain] if plain in there else []
    if not close and names.is_name(plain):
        close = difflib.get_close_matches(plain, islice(there, 500), n=1)
    there_is_none = f"there is no adapter {names.quoted(name)}"
    if close:
        return f"{there_is_none}: did you mean {close[0]!r}?"
    if not there:
        return f"{there_is_none}, nor any other yet: push one first"
    return f"{there_is_none}: GET /v1/models lists what there is"


def unknown_version_message(name: str, number: int, last: int) -> str:
    """That there is no such version, with the numbers that exist."""
    # str() of an integer with thousands of digits is an error of its own.
    return f"{name!r} has no version {number if number.bit_length() < 64 else 'so large'}: it has {_up_to(last)}"


def _up_to(last: int) -> str:
    return {0: "none yet", 1: "version 1"}.get(last, f"versions 1 to {last}")


def listed(aliases: Mapping[str, int]) -> str:
    """Aliases and their version numbers, in words."""
    return ", ".join(f"{alias} (version {number})" for alias, number in aliases.items())


def day(at: datetime) -> str:
    """The date, as YYYY-MM-DD."""
    return f"{at:%Y-%m-%d}"
