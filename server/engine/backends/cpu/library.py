"""Builds the CPU kernels with the machine's C++ compiler, once, and loads them.

The library's file name is a digest of its sources, compiler and flags. So another source is another file, and processes
that build at the same time do not disturb each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from ctypes import POINTER, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch

from graftwork.adapters.errors import ConfigurationError
from graftwork.adapters.storage.durable import sync_tree
from graftwork.server.engine.backends.cpu.interface import OpFields, SamplingFields, StepFields

log = logging.getLogger(__name__)

#: ``kernels.cpp`` is all that is compiled; it includes the headers beside it.
KERNELS = Path(__file__).with_name("kernels")
SOURCE = KERNELS / "kernels.cpp"

#: Named one by one, not -march=native: the built file may be used on another machine that has these and no more.
INSTRUCTIONS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "fma", "f16c")

#: gcc 12 takes the intrinsics' own undefined registers for uninitialized ones.
FLAGS = ("-std=c++20", "-O3", "-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-shared", "-fPIC")

COMPILERS = ("c++", "g++", "clang++")

#: Timeout of a build. It takes some seconds on an idle machine and many times as long on a busy one; waiting once costs
#: less than running without the kernels from then on.
BUILD_SECONDS = 600


def unavailable_reason() -> str | None:
    """Why the kernels cannot run here, or ``None`` if nothing is known that prevents it before they are built."""
    capabilities = torch.cpu.get_capabilities()
    if not capabilities.get("avx512_vnni", False):
        return "this CPU has no AVX-512 VNNI"
    if compiler() is None:
        return f"no C++ compiler was found (looked for $CXX, {', '.join(COMPILERS)})"
    return None


def compiler() -> str | None:
    """The path of the first C++ compiler found, ``$CXX`` before the others; ``None`` without any."""
    names = ([os.environ["CXX"]] if os.environ.get("CXX") else []) + list(COMPILERS)
    return next((path for name in names if (path := shutil.which(name))), None)


@cache
def load(folder: Path) -> ctypes.CDLL:
    """Load the kernels, and build them first unless ``folder`` has them, or what it has is damaged. Cached per folder.

    Raises:
        ConfigurationError: There is no compiler, it failed (the message quotes it), or the library cannot be loaded.
    """
    path = _build(folder)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as damage:
        log.warning("the CPU kernels in %s cannot be loaded (%s): they are built again", path, damage)
        path.unlink(missing_ok=True)
        try:
            library = ctypes.CDLL(str(_build(folder)))
        except OSError as error:
            raise ConfigurationError(f"The CPU kernels in {path} cannot be loaded: {error}") from error
    library.graft_open.restype = c_void_p
    library.graft_open.argtypes = [c_int32]
    library.graft_close.argtypes = [c_void_p]
    library.graft_pack.restype = None
    library.graft_pack.argtypes = [c_void_p, c_int64, c_int64, c_int32, c_int32, c_int32, c_void_p, c_void_p]
    library.graft_run.restype = None
    library.graft_run.argtypes = [c_void_p, POINTER(OpFields), c_int32, POINTER(StepFields)]
    library.graft_sample.restype = None
    library.graft_sample.argtypes = [c_void_p, c_void_p, c_int64, c_int32, c_int32, POINTER(SamplingFields), c_void_p]
    return library


def _build(folder: Path) -> Path:
    found = compiler()
    if found is None:
        raise ConfigurationError(f"The CPU kernels need a C++ compiler: {unavailable_reason()}. Install g++ or clang.")
    command = [found, *FLAGS, *(f"-m{name}" for name in INSTRUCTIONS), "-pthread"]
    version = subprocess.run([found, "--version"], capture_output=True, check=False).stdout
    parts = (*_sources(), version, *(part.encode() for part in command))
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    library = folder / f"kernels-{name}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    log.info("%s compiles the CPU kernels, once: some seconds, more on a busy machine", found)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".building-", dir=folder) as building:
        made = Path(building) / library.name
        _run([*command, str(SOURCE), "-o", str(made)])
        sync_tree(Path(building))  # a library that a power cut shortened would end whoever loads it
        made.replace(library)
    log.info("the CPU kernels were compiled in %.0f s", time.monotonic() - began)
    return library


def _sources() -> list[bytes]:
    """Name and content of every file that the library is built from, in one order on every machine."""
    paths = sorted([*KERNELS.glob("*.h"), SOURCE])
    return [part for path in paths for part in (path.name.encode(), path.read_bytes())]


def _run(command: Sequence[str]) -> None:
    """Run a compiler in a process group of its own, so that a timeout also kills what the compiler started."""
    try:
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0
        ) as compiling:
            try:
                _, stderr = compiling.communicate(timeout=BUILD_SECONDS)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(compiling.pid, signal.SIGKILL)
                raise
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(f"{command[0]} cannot build the CPU kernels: {error}") from error
    if compiling.returncode != 0:
        raise ConfigurationError(f"{command[0]} cannot build the CPU kernels: {stderr.strip()[-2000:]}")
