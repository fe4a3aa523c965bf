"""What a benchmark ran on, in a few words. Linux."""

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
    """``cuda`` where there is an NVIDIA GPU, else ``cpu``."""
    return "cuda" if gpu() is not None else "cpu"


def gpu() -> str | None:
    """The first NVIDIA GPU's name."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    asked = [smi, "--query-gpu=name", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    return said.stdout.strip().splitlines()[0] if said.returncode == 0 and said.stdout.strip() else None


def describe() -> dict[str, str]:
    """Day, processor, memory, kernel, and the GPU if there is one."""
    model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    name = model[1].strip() if model else platform.machine()
    said = {
        "date": date.today().isoformat(),
        "cpu": f"{len(os.sched_getaffinity(0))} cores of {name}",
        "memory": f"{psutil.virtual_memory().total / (1 << 30):.0f} GB",
        "os": f"{platform.system()} {platform.release()}",
    }
    return said | ({"gpu": found} if (found := gpu()) else {})
