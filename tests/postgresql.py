"""A PostgreSQL server of a test's own, where its binaries and its driver are installed."""

from __future__ import annotations

import getpass
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine

BINARIES = shutil.which("initdb") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)

needs_postgresql = pytest.mark.skipif(
    BINARIES is None or importlib.util.find_spec("psycopg") is None, reason="no PostgreSQL here"
)


class PostgresqlServer:
    """A private cluster that is reached by a socket only. It can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        assert BINARIES is not None
        self.folder = folder
        self._bin = Path(BINARIES).resolve().parent
        self._as_user: dict[str, Any] = {}
        if os.getuid() == 0:
            # PostgreSQL refuses to be run by root.
            user = next(entry for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody"))
            shutil.chown(folder, user.pw_uid, user.pw_gid)
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        options = ("-U", getpass.getuser(), "-A", "trust", "--no-sync", "-E", "UTF8")
        subprocess.run(
            [self._bin / "initdb", "-D", folder / "data", *options],
            check=True,
            capture_output=True,
            cwd=folder,
            **self._as_user,
        )

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._process = subprocess.Popen(
            [
                *(self._bin / "postgres", "-D", self.folder / "data", "-k", self.folder),
                *("-c", "listen_addresses=", "-c", "fsync=off"),
            ],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as_user,
        )
        ready: list[str | Path] = [self._bin / "pg_isready", "-q", "-h", self.folder]
        deadline = time.monotonic() + 60
        while subprocess.run(ready, check=False, timeout=10).returncode != 0:
            assert self._process.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < deadline, "PostgreSQL is not ready after a minute"
            time.sleep(0.05)

    def stop(self, how: int = signal.SIGINT) -> None:
        """Stop it: SIGINT ends all connections, SIGQUIT is as good as a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"graftwork{next(self._numbers)}"
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str) -> str:
        """The URL of one of its databases."""
        return f"postgresql://{getpass.getuser()}@/{database}?host={self.folder}"


@contextmanager
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A server that runs until the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    server = PostgresqlServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
