"""A description of the machine that a benchmark ran on. Linux only."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from datetime import date
from pathlib import Path

import psutil


def device() -> str:
    """Return ``cuda`` if there is an NVIDIA GPU, else ``cpu``."""
    return "cuda" if gpu() is not None else "cpu"


def gpu() -> str | None:
    """Return the name of the first NVIDIA GPU; None if there is none."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    command = [smi, "--query-gpu=name", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip().splitlines()[0] if result.returncode == 0 and result.stdout.strip() else None


def describe() -> dict[str, str]:
    """Return the date, processor, memory, kernel, and the GPU if there is one."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = model[1].strip() if model else platform.machine()
    facts = {
        "date": date.today().isoformat(),
        "cpu": f"{len(os.sched_getaffinity(0))} cores of {name}",
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.0f} GB",
        "os": f"{platform.system()} {platform.release()}",
    }
    return facts | ({"gpu": found} if (found := gpu()) else {})
