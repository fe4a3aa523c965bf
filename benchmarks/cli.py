"""``python -m benchmarks``: Graftwork and its peers on this machine, one after another, under the same load.

Only options are here; what measures is imported when the command runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from graftwork.clients.cli.exit_codes import ExitCode

if TYPE_CHECKING:
    from benchmarks.load.workloads import Workload
    from benchmarks.serving.report import ServingReport
    from benchmarks.systems.peer_cache import PeerCache
    from benchmarks.systems.system import BenchmarkSite, System

_WHAT = "What is measured"
_WHERE = "Where"

#: In the order in which they run.
SYSTEMS = ("graftwork", "vllm", "vllm-no-lora", "llama.cpp", "peft")


def bench(
    full: Annotated[
        bool, typer.Option("--full/--quick", help="Every load, or the five of the usual table.", rich_help_panel=_WHAT)
    ] = False,
    only: Annotated[
        str,
        typer.Option("--only", help="Which systems, separated by commas.", rich_help_panel=_WHAT),
    ] = ",".join(SYSTEMS),
    loads: Annotated[
        str | None,
        typer.Option(
            "--loads",
            help="Which: CLIENTSxADAPTERS (-t1, -top-p, -schema), short, long, system, poisson, zipf, cold, prefix.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    requests: Annotated[
        int | None, typer.Option("--requests", min=1, help="Of each load, instead of its own.", rich_help_panel=_WHAT)
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=2, help="Of each answer, instead of 64.", rich_help_panel=_WHAT),
    ] = None,
    registered: Annotated[
        int, typer.Option("--registered", min=1, help="Adapters that zipf draws from.", rich_help_panel=_WHAT)
    ] = 2000,
    serve_flag: Annotated[
        list[str] | None,
        typer.Option(
            "--serve-flag",
            help="One more word for graftwork serve, --serve-flag=--dtype --serve-flag=float32; may be repeated.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the table here as JSON.", dir_okay=False)
    ] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="Write the table here as Markdown.", dir_okay=False)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            envvar="GRAFTWORK_BASE",
            help="Hub id or folder. Default: the embedded base.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Of all systems.", rich_help_panel=_WHERE)
    ] = "auto",
    home: Annotated[
        Path,
        typer.Option("--home", envvar="GRAFTWORK_HOME", help="Where the base is kept.", rich_help_panel=_WHERE),
    ] = Path("~/.graftwork"),
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            help="Where peers are set up, some 6 GB. Default: HOME/bench.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    build_jobs: Annotated[
        int | None,
        typer.Option("--build-jobs", min=1, help="Compilers at once. Default: a core each.", rich_help_panel=_WHERE),
    ] = None,
    setup_only: Annotated[
        bool, typer.Option("--setup-only", help="Set the systems up and measure nothing.", rich_help_panel=_WHERE)
    ] = False,
) -> None:
    """Measure Graftwork beside vLLM, llama.cpp and PEFT on this machine.

    Sets the others up on the first run, which takes long. Ctrl-C stops it; what was measured by then is in the files.
    """
    from benchmarks.harness.display import Display
    from benchmarks.load.workloads import FULL, QUICK, make_workloads
    from benchmarks.systems.peer_cache import PeerCache
    from graftwork.adapters.errors import GraftworkError

    display = Display()
    home = home.expanduser()
    workshop = PeerCache(cache or home / "bench", display, jobs=build_jobs or len(os.sched_getaffinity(0)))
    try:
        keys = loads.split(",") if loads is not None else FULL if full else QUICK
        jobs = make_workloads(keys, requests=requests, max_tokens=max_tokens, registered=registered)
        chosen = _chosen(only)
        with workshop.locked():
            site = _site(workshop, base, home, device)
            systems = [system for system in _systems(site, serve_flag or ()) if system.key in chosen]
            if setup_only:
                for system in systems:
                    system.prepare([job for job in jobs if system.unsupported_reason(job) is None])
                return
            report = _report(systems, jobs, site)
            _measure(systems, report, site, json_file, markdown_file)
    except GraftworkError as error:
        typer.echo(typer.style("error: ", fg="red") + error.message, err=True)
        raise typer.Exit(ExitCode.FAILED) from error
    except KeyboardInterrupt:
        display.say("Stopped, and everything that was started with it.")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    typer.echo(report.to_markdown())
    if report.failures:
        raise typer.Exit(ExitCode.FAILED)


def _chosen(only: str) -> set[str]:
    chosen = {name.strip() for name in only.split(",")}
    if unknown := sorted(chosen - set(SYSTEMS)):
        raise typer.BadParameter(f"{', '.join(unknown)} is none of {', '.join(SYSTEMS)}.", param_hint="--only")
    return chosen


def _site(workshop: PeerCache, base: str | None, home: Path, device: str) -> BenchmarkSite:
    from benchmarks.harness import machine
    from benchmarks.systems.system import make_site

    info = workshop.base(base, home)
    return make_site(workshop, info, machine.device() if device == "auto" else device)


def _systems(site: BenchmarkSite, serve_flags: Sequence[str]) -> list[System]:
    from benchmarks.systems.graftwork import Graftwork
    from benchmarks.systems.llama_cpp import LlamaCpp
    from benchmarks.systems.peft import PEFT
    from benchmarks.systems.vllm import VLLM

    return [Graftwork(site, serve_flags), VLLM(site, lora=True), VLLM(site, lora=False), LlamaCpp(site), PEFT(site)]


def _report(systems: Sequence[System], jobs: Sequence[Workload], site: BenchmarkSite) -> ServingReport:
    from benchmarks.harness import machine
    from benchmarks.serving.report import ServingReport

    about = machine.describe() | {"base": site.base.id, "device": site.device}
    return ServingReport(jobs=jobs, titles={system.key: system.title for system in systems}, about=about)


def _measure(
    systems: Sequence[System],
    report: ServingReport,
    site: BenchmarkSite,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    from benchmarks.harness.output import write_text
    from benchmarks.serving.comparison import measure_all

    def save(report: ServingReport) -> None:
        if json_file is not None:
            write_text(json_file, report.to_json() + "\n")
        if markdown_file is not None:
            write_text(markdown_file, report.to_markdown())

    measure_all(systems, report, site.display, save)
