"""Where the clients are installed: an environment for all that can live with one another's versions.

They are made once, by pip and npm as those are set up on this machine, and kept in the checkout's ``.graftwork``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import CHECKOUT

FOLDER = Path(__file__).resolve().parent
CACHE = CHECKOUT / ".graftwork" / "conformance"


class Environment:
    """A virtual environment of ``requirements/NAME.txt``; that of Node has the packages of ``node/`` beside it."""

    def __init__(self, name: str) -> None:
        self.folder = CACHE / name
        self._requirements = FOLDER / "requirements" / f"{name}.txt"
        self._packages = (FOLDER / "node" / "package.json", FOLDER / "node" / "package-lock.json")
        self._is_node = name == "node"

    def make(self) -> None:
        """Install it, unless that was done before.

        Raises:
            subprocess.CalledProcessError: pip or npm cannot, and has said why.
        """
        stamp = self.folder / "stamp"
        if stamp.is_file() and stamp.read_text() == self._digest():
            return
        print(f"Installing {self.folder.name} …", file=sys.stderr)
        shutil.rmtree(self.folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
        pip = [self._binary("python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", self._requirements], env=self._variables(), check=True)
        if self._is_node:
            for file in self._packages:
                shutil.copy(file, self.folder)
            npm = [self._binary("npm"), "ci", "--no-audit", "--no-fund", "--loglevel", "error"]
            subprocess.run(npm, cwd=self.folder, env=self._variables(), check=True)
        stamp.write_text(self._digest())

    def command(self, script: Path) -> list[str]:
        """What starts a script here, without its arguments."""
        if not self._is_node:
            return [str(self._binary("python")), str(script)]
        # Node looks for packages where a script lies.
        for file in script.parent.glob("*.mjs"):
            shutil.copy(file, self.folder)
        return [str(self._binary("node")), str(self.folder / script.name)]

    def _binary(self, name: str) -> Path:
        return self.folder / "bin" / name

    def _variables(self) -> dict[str, str]:
        """For pip and npm: what is installed here comes first, and what is installed elsewhere not at all."""
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return {**own, "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def _digest(self) -> str:
        files = (self._requirements, *(self._packages if self._is_node else ()))
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
