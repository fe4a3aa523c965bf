"""The chat template of a base: found as transformers finds it, and compiled in jinja's sandbox with its helpers."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.prompts.reading import read_json, read_text


def read_chat_template(folder: Path) -> str | None:
    """The base's default chat template; ``None`` if it has none."""
    for name in ("chat_template.jinja", "chat_templates/default.jinja"):
        if (folder / name).is_file():
            return read_text(folder / name)
    template = read_json(folder / "tokenizer_config.json").get("chat_template")
    if template is None:
        template = read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks an assistant's text for trainers; it renders its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(template: str, folder: Path, *, now: datetime | None = None) -> jinja2.Template:
    """Compile a template. It is untrusted, so it runs in the sandbox, with the helpers that transformers gives it.

    Args:
        template: Its source.
        folder: The base's, for errors.
        now: What ``strftime_now`` tells; the time of each call if ``None``.

    Raises:
        ConfigurationError: Its syntax is wrong.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: (now or datetime.now()).strftime(pattern)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigurationError(
            f"The chat template in {folder} is broken (line {error.lineno}: {error.message}). Fetch the base again."
        ) from error


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes for HTML, which is not what models were trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
