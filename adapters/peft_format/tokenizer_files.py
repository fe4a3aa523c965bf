"""The tokenizer and chat template that a trainer saved beside an adapter: how they differ from the base's.

A server renders and tokenizes prompts once, for all adapters of a base, so an adapter's own are not used. Whoever
pushes it is told where that makes a difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from graftwork.adapters.base.info import BaseInfo
from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.names import escaped
from graftwork.adapters.prompts.reading import read_json
from graftwork.adapters.prompts.template import read_chat_template

#: Tokens that a warning names.
_SHOWN = 3


def differences(folder: Path, base: BaseInfo) -> list[str]:
    """How the tokenizer in an adapter's folder differs from its base's, in sentences; nothing if there is none."""
    try:
        return [*_differences(folder, Path(base.path))]
    except (ConfigurationError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ["The adapter's tokenizer files cannot be read; they are not used, the base's are."]


def _differences(own: Path, base: Path) -> Iterator[str]:
    template = read_chat_template(own)
    if template is not None and template != read_chat_template(base):
        yield "The adapter's chat template is not the base's and is not used: prompts are written by the base's."
    own_tokens, base_tokens = _tokens(own), _tokens(base)
    if base_tokens and (own_tokens := own_tokens - base_tokens):
        shown = ", ".join(escaped(token) for token in sorted(own_tokens)[:_SHOWN])
        more = f" and {len(own_tokens) - _SHOWN} more" if len(own_tokens) > _SHOWN else ""
        yield f"The adapter's tokenizer has tokens that the base's has not, and is not used: {shown}{more}."
    ends = [read_json(folder / "tokenizer_config.json").get("eos_token") for folder in (own, base)]
    own_end, base_end = (end.get("content") if isinstance(end, dict) else end for end in ends)
    if own_end is not None and own_end != base_end:
        yield f"The adapter's eos_token is {escaped(own_end)}: answers end with the base's, {escaped(base_end)}."


def _tokens(folder: Path) -> set[str]:
    """The whole vocabulary, as far as the folder says."""
    tokenizer = read_json(folder / "tokenizer.json")
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    pieces = vocabulary if isinstance(vocabulary, dict) else (piece for piece, _ in vocabulary)
    added = (token["content"] for token in tokenizer.get("added_tokens", ()))
    return {*pieces, *added, *read_json(folder / "added_tokens.json")}
