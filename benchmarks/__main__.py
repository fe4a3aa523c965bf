"""``python -m benchmarks``: Graftwork and its peers on this machine, one after another, under the same load."""

from __future__ import annotations

import typer

from benchmarks.cli import bench

app = typer.Typer(add_completion=False)
app.command()(bench)


def main() -> None:
    """Run the command line."""
    app(prog_name="python -m benchmarks")


if __name__ == "__main__":
    main()
