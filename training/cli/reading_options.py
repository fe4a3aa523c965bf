"""How rows are read, as options that several commands have: each under the heading that it stands under there.

Torch-free and quick to import, as the commands are.
"""

from __future__ import annotations

from typing import Any

import typer


def format(panel: str) -> Any:
    return typer.Option("--format", help="What the rows are, where that is not seen by itself.", rich_help_panel=panel)


def prompt_column(panel: str) -> Any:
    return typer.Option("--prompt-column", help="Column or field of the question.", rich_help_panel=panel)


def completion_column(panel: str) -> Any:
    return typer.Option("--completion-column", help="Column or field of the answer.", rich_help_panel=panel)


def prompt_template(panel: str) -> Any:
    about = "Makes the question of several columns: '{subject}: {body}'."
    return typer.Option("--prompt-template", help=about, rich_help_panel=panel)


def system(panel: str) -> Any:
    return typer.Option("--system", help="System message before every question of pairs.", rich_help_panel=panel)


def plain(panel: str) -> Any:
    return typer.Option("--plain", help="Pairs are plain text for /v1/completions.", rich_help_panel=panel)
