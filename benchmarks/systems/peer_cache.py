"""The cache folder, in which peers are installed and built, and in which files for them are kept.

The name of each folder has a digest of its recipe, so that a new version of a peer gets a new folder. Interrupted
installations are resumed. Only one benchmark at a time can use a cache.
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

#: A file that is written last, in folders that are complete.
_STAMP = ".made"


class PeerCache:
    """The cache folder of a benchmark.

    Args:
        folder: the folder.
        display: the display of progress.
        jobs: number of parallel compiler processes.
    """

    def __init__(self, folder: Path, display: Display, *, jobs: int) -> None:
        self.folder = folder.expanduser().resolve()
        self.display = display
        self.jobs = jobs

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the cache for the block, since two benchmarks at once would disturb each other.

        Raises:
            BenchmarkError: if another benchmark uses it.
        """
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
        """Return the folder of a recipe, and make it first if it is not complete.

        Args:
            name: beginning of the folder's name.
            recipe: what the content depends on; its digest is part of the folder's name.
            make: fills the folder.
        """
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
        """Run a command of an installation.

        Raises:
            BenchmarkError: if it fails; the message has the end of its log.
        """
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
        """Return the Python of a virtual environment with some packages, which is created first if necessary.

        Args:
            name: name of the environment.
            packages: requirements to install.
            unwanted: dependencies of these to remove.

        Raises:
            BenchmarkError: if the installation fails.
        """

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
        """Prepare the base below ``home`` in a process of its own, whose memory is freed afterwards.

        Raises:
            BenchmarkError: if that fails.
        """
        command: list[str | Path] = [sys.executable, "-m", "graftwork.adapters.base", "--home", home]
        command += ["--base", base] if base is not None else []
        log = self.folder / "logs" / "base.log"
        wheel = {name: os.environ[name] for name in ("GRAFTWORK_EMBEDDED_WHEEL",) if name in os.environ}
        with (
            self.display.working("Preparing the base"),
            ChildProcess(command, log=log, environment=wheel, talks=True) as child,
        ):
            output = child.output.read().decode()
            if child.wait() != 0:
                raise BenchmarkError(f"The base could not be prepared: {child.log_tail(1)}")
        return BaseInfo.from_json(output)

    def program(self, name: str, package: str) -> str:
        """Return the path of a program on this machine.

        Raises:
            BenchmarkError: if it is not installed; the message names the ``package``.
        """
        found = shutil.which(name)
        if found is None:
            raise BenchmarkError(f"{name} is needed to build this peer and is not installed. Install {package}.")
        return found
