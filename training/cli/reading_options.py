"""Options for reading rows that several commands share. ``panel`` is the heading of the option in ``--help``."""

from __future__ import annotations

from typing import Any

import typer


def format(panel: str) -> Any:
    """Return the option ``--format``."""
    return typer.Option("--format", help="What the rows are, where that is not seen by itself.", rich_help_panel=panel)


def prompt_column(panel: str) -> Any:
    """Return the option ``--prompt-column``."""
    return typer.Option("--prompt-column", help="Column or field of the question.", rich_help_panel=panel)


def completion_column(panel: str) -> Any:
    """Return the option ``--completion-column``."""
    return typer.Option("--completion-column", help="Column or field of the answer.", rich_help_panel=panel)


def prompt_template(panel: str) -> Any:
    """Return the option ``--prompt-template``."""
    about = "Makes the question of several columns: '{subject}: {body}'."
    return typer.Option("--prompt-template", help=about, rich_help_panel=panel)


def system(panel: str) -> Any:
    """Return the option ``--system``."""
    return typer.Option("--system", help="System message before every question of pairs.", rich_help_panel=panel)


def plain(panel: str) -> Any:
    """Return the option ``--plain``."""
    return typer.Option("--plain", help="Pairs are plain text for /v1/completions.", rich_help_panel=panel)
