"""Rules for the names of adapters and aliases, and what ``model`` may be: ``intents``, ``intents@7``,
``intents@candidate``.
"""

from __future__ import annotations

import re
import unicodedata

from graftwork.adapters.errors import InvalidRequest

LIVE = "live"
"""The alias that every adapter has: ``intents`` means ``intents@live``."""

CANDIDATE = "candidate"
"""The alias of the newest version that training made and that passed its gates."""

TRIAL = "_trial-"
"""The prefix of temporary adapters, which are evaluated before they become a version of their own adapter. No user can
choose such a name; it has no alias and is in no list, and its version can be called while the evaluation runs."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_TRIAL = re.compile(f"{TRIAL}[0-9a-f]{{16}}")
# An alias starts with a letter: after the @, digits are always a version's number.
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,63}")
# An experiment's arm may be "base", the model without any adapter: no adapter and no alias may have that name.
_RESERVED = frozenset({"base"})


def is_name(text: str) -> bool:
    """Whether ``text`` can be the name of an adapter, an experiment or an arm."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str, *, base_id: str) -> None:
    """Check the name of a new adapter.

    Raises:
        InvalidRequest: It is no valid name, or the base's id.
    """
    if not is_name(name):
        nearest = nearest_name(name)
        raise InvalidRequest(
            f"{quoted(name)} cannot be an adapter's name: use 1 to 64 characters out of a-z, 0-9, '.', '_' and '-', "
            f"the first one a letter or a digit{f', for example {nearest!r}' if nearest else ''}",
            param="name",
            code="invalid_name",
        )
    if name in _RESERVED:
        raise InvalidRequest(
            f"{name!r} cannot be an adapter's name: it means the model without an adapter",
            param="name",
            code="invalid_name",
        )
    if name == base_id:
        raise InvalidRequest(
            f"{name!r} is the base model's own id: choose another name for the adapter", param="name", code="name_taken"
        )


def nearest_name(text: str) -> str | None:
    """The valid name most like ``text``, ``"acme-support"`` for ``"Acme/support"``; ``None`` where nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", plain).lstrip("._-")[:64].rstrip("-")
    return name or None


def is_trial(name: str) -> bool:
    """Whether ``name`` is that of a temporary adapter."""
    return _TRIAL.fullmatch(name) is not None


def check_alias(alias: str) -> None:
    """Check the name of an alias.

    Raises:
        InvalidRequest: It is no valid name.
    """
    if not _ALIAS.fullmatch(alias):
        raise InvalidRequest(
            f"{quoted(alias)} cannot be an alias: use 1 to 64 characters out of a-z, 0-9, '.', '_' and '-', "
            "the first one a letter (digits after the @ are a version's number)",
            param="alias",
            code="invalid_alias",
        )
    if alias in _RESERVED:
        raise InvalidRequest(
            f"{alias!r} cannot be an alias: in experiments it means the model without an adapter",
            param="alias",
            code="invalid_alias",
        )


def check_text(text: str, *, param: str, max_chars: int) -> None:
    """Check that every database can store ``text``.

    Raises:
        InvalidRequest: It is longer than ``max_chars``, or has a NUL or a lone surrogate; ``param`` names the field.
    """
    if len(text) > max_chars:
        raise InvalidRequest(f"{param} has {len(text)} characters: shorten it to {max_chars} at most", param=param)
    # A JSON body can spell both; PostgreSQL refuses the one, UTF-8 the other.
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"{param} contains a NUL or a lone surrogate: send plain text", param=param)


def split_model(model: str) -> tuple[str, str]:
    """Split ``"intents@7"`` into ``("intents", "7")``; a bare name selects ``live``.

    Nothing is checked. ``"intents@"`` selects the empty alias, which does not exist.
    """
    name, at, selector = model.partition("@")
    return name, selector if at else LIVE


def quoted(text: str) -> str:
    """A user's text for a message: quoted, escaped and shortened to 80 characters."""
    return repr(text if len(text) <= 80 else f"{text[:79]}…")


def escaped(text: object) -> str:
    """A value from an uploaded file for a message: quoted, ASCII, at most 120 characters."""
    shown = ascii(text) if isinstance(text, str) else repr(text)
    return shown if len(shown) <= 120 else shown[:117] + "..."
