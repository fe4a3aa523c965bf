"""The cache folder: where peers are installed and built, and where what is made for them is kept.

Everything in it is made once, under a name that says what of: a new version of a peer gets a new folder. What was
interrupted goes on where it stopped. One benchmark at a time uses a cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness.child_process import ChildProcess
from benchmarks.harness.display import Display
from benchmarks.harness.errors import BenchmarkError
from graftwork.adapters.base import BaseInfo

#: Written last: a folder that has it is whole.
_STAMP = ".made"


class PeerCache:
    def __init__(self, folder: Path, display: Display, *, jobs: int) -> None:
        """``jobs``: how many compilers run at once."""
        self.folder = folder.expanduser().resolve()
        self.display = display
        self.jobs = jobs

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the cache: two benchmarks at once would measure one another."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BenchmarkError(
                    f"Another benchmark is using {self.folder}. Wait for it: two at once would measure one another."
                ) from None
            yield

    def once(self, name: str, recipe: Sequence[object], make: Callable[[Path], None]) -> Path:
        """The folder that ``make`` filled, made now if it is not there. A different recipe is a different folder."""
        digest = hashlib.sha256("\n".join(map(str, recipe)).encode()).hexdigest()[:10]
        folder = self.folder / f"{name}-{digest}"
        if not (folder / _STAMP).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            make(folder)
            (folder / _STAMP).write_text("\n".join(map(str, recipe)) + "\n")
        return folder

    def run(
        self,
        title: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Run a step of a set-up to its end. Raises ``BenchmarkError`` with its last words when it fails."""
        with (
            self.display.working(title),
            ChildProcess(command, log=log, environment=environment, folder=folder) as child,
        ):
            code = child.wait()
            if code != 0:
                raise BenchmarkError(
                    f"{title}: {Path(command[0]).name} ended with {code}. Its log is {log}:\n{child.log_tail()}"
                )

    def environment(self, name: str, packages: Sequence[str], *, unwanted: Sequence[str] = ()) -> Path:
        """The python of a virtual environment that has ``packages``, and not the ``unwanted`` that they bring."""

        def make(folder: Path) -> None:
            python = folder / "bin" / "python"
            log = folder / "setup.log"
            pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
            self.run(f"{name}: an environment of its own", [sys.executable, "-m", "venv", folder], log=log)
            index = os.environ.get("GRAFTWORK_TORCH_INDEX")
            more = ["--extra-index-url", index] if index else []
            self.run(f"{name}: installing {packages[0]} (minutes)", [*pip, "install", *more, *packages], log=log)
            if unwanted:
                self.run(f"{name}: removing what breaks it", [*pip, "uninstall", "--yes", *unwanted], log=log)

        recipe = [sys.version_info[:2], *packages, "without", *unwanted]
        return self.once(name, recipe, make) / "bin" / "python"

    def base(self, base: str | None, home: Path) -> BaseInfo:
        """The base, prepared below ``home`` by a process of its own: the memory that takes is given back."""
        command: list[str | Path] = [sys.executable, "-m", "graftwork.adapters.base", "--home", home]
        command += ["--base", base] if base is not None else []
        log = self.folder / "logs" / "base.log"
        wheel = {name: os.environ[name] for name in ("GRAFTWORK_EMBEDDED_WHEEL",) if name in os.environ}
        with (
            self.display.working("Preparing the base"),
            ChildProcess(command, log=log, environment=wheel, talks=True) as child,
        ):
            said = child.output.read().decode()
            if child.wait() != 0:
                raise BenchmarkError(f"The base could not be prepared: {child.log_tail(1)}")
        return BaseInfo.from_json(said)

    def program(self, name: str, package: str) -> str:
        """The path of a program of the system. Raises ``BenchmarkError`` that says what to install."""
        found = shutil.which(name)
        if found is None:
            raise BenchmarkError(f"{name} is needed to build this peer and is not installed. Install {package}.")
        return found
