"""Command-line options for the knobs of a run, generated from `graftwork.adapters.learning.knobs`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import typer

from graftwork.adapters.learning.knobs import KNOBS, OPTIONS, Kind, Knob, Option

_TYPES: Final[dict[Kind, Any]] = {"integer": int, "number": float, "folder": str, "names": list[str]}


def with_knobs(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the ``**knobs`` of a command by an option for each knob that has one."""
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            parameters += (_parameter(KNOBS[name], option) for name, option in OPTIONS.items())
        else:
            parameters.append(parameter)
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


def _parameter(knob: Knob, option: Option) -> inspect.Parameter:
    type_ = Literal[knob.choices] if knob.kind == "choice" else _TYPES[knob.kind]
    declared = typer.Option(
        option.flag,
        help=option.help,
        metavar=option.metavar,
        min=option.least,
        max=option.most,
        rich_help_panel=option.panel,
    )
    return inspect.Parameter(
        knob.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=knob.default if option.has_default else None,
        annotation=Annotated[type_ if option.has_default else type_ | None, declared],
    )
