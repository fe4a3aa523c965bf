"""Graftwork, started by ``graftwork serve`` with default options, except for slots and batch size.

Its home is kept in the cache, so that thousands of adapters are pushed only once.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.workloads import Workload
from benchmarks.systems.system import BenchmarkSite, HttpServer, Running, drop_from_page_cache, free_port
from graftwork.clients.client import Client
from graftwork.server.config import ServerConfig
from graftwork.version import __version__

#: Maximum number of slots, for loads with more adapters.
_MOST_SLOTS = 32

#: Number of pushes between two reports of progress.
_PUSHES_TOLD = 100


@dataclass(frozen=True)
class _GraftworkStart:
    slots: int
    rows: int


class Graftwork:
    """This project's server. ``flags`` are further options of ``graftwork serve``."""

    key = "graftwork"

    def __init__(self, site: BenchmarkSite, flags: Sequence[str] = ()) -> None:
        self._site = site
        self._flags = flags
        self._home = site.workshop.folder / "graftwork" / site.base_key
        self.title = " ".join([f"Graftwork {__version__}", *flags])

    def unsupported_reason(self, job: Workload) -> str | None:
        """See `System`."""
        return None

    def prepare(self, jobs: Sequence[Workload]) -> None:
        """See `System`."""
        self._site.write_adapters(jobs)

    def start_options(self, job: Workload) -> Hashable:
        """See `System`."""
        default = ServerConfig()
        return _GraftworkStart(
            slots=max(default.slots, min(_MOST_SLOTS, len(job.adapters))), rows=max(default.max_batch, job.clients)
        )

    @contextmanager
    def serving(self, arrangement: Hashable, jobs: Sequence[Workload]) -> Iterator[Running]:
        """See `System`."""
        assert isinstance(arrangement, _GraftworkStart)
        port = free_port()
        command: list[str | Path] = [sys.executable, "-m", "graftwork", "serve", "--base", self._site.base.path]
        command += ["--home", self._home, "--port", str(port), "--slots", str(arrangement.slots)]
        command += ["--max-batch", str(arrangement.rows), *self._flags]
        url = f"http://127.0.0.1:{port}"
        server = HttpServer(
            title=self.title,
            command=command,
            url=url,
            ready="/ready",
            log=self._site.logs / f"{self.key}.log",
            display=self._site.display,
            fields=lambda adapter: {"model": adapter or Path(self._site.base.path).name},
        )
        with server.running() as running:
            pushed = self._push(url, {name for job in jobs for name in job.adapters})
            if not pushed:
                yield from self._cold_where_wanted(running, jobs)
        if pushed:  # start again: the server may have adapters in memory that were just pushed
            with server.running() as running:
                yield from self._cold_where_wanted(running, jobs)

    def _cold_where_wanted(self, running: Running, jobs: Sequence[Workload]) -> Iterator[Running]:
        if any(job.cold for job in jobs):
            drop_from_page_cache(self._home)
        yield running

    def _push(self, url: str, wanted: Iterable[str]) -> bool:
        """Push the adapters that the server does not have; return whether there were any."""
        with Client(url) as client:
            page = client.adapters.list(limit=100)
            have = {adapter.name for adapter in page}
            while page.has_more:
                page = client.adapters.list(limit=100, after=page.data[-1].name)
                have |= {adapter.name for adapter in page}
            missing = sorted(set(wanted) - have, key=lambda name: (name[0], int(name[1:])))
            for start in range(0, len(missing), _PUSHES_TOLD):
                some = missing[start : start + _PUSHES_TOLD]
                progress = f"pushing adapters, once: {start + len(some)} of {len(missing)}"
                with self._site.display.working(f"{self.title}: {progress}"):
                    for name, folder in self._site.adapters.folders(some).items():
                        client.adapters.push(name, folder)
        return bool(missing)
