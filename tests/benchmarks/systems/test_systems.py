"""The start options and commands of each system. None is started, as that needs its installation."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from benchmarks.harness.adapter_folders import AdapterFolders, named
from benchmarks.load.workloads import FULL, Workload, make_workloads
from benchmarks.systems import graftwork, llama_cpp, peft, system, vllm
from benchmarks.systems.peer_cache import PeerCache
from benchmarks.systems.system import BenchmarkSite, HttpServer, System, make_site
from graftwork.adapters.base import BaseInfo
from tests.benchmarks.fakes import quiet

#: Of a base with one layer, so that its adapters cost nothing.
CONFIG = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def site(tmp_path: Path) -> BenchmarkSite:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": 1}))
    info = BaseInfo(
        id="tiny",
        path=str(folder),
        digest="sha256:0123456789abcdef",
        architecture="LlamaForCausalLM",
        dtype="bfloat16",
        num_parameters=1,
        vocab_size=1,
        max_positions=1,
        num_layers=1,
        hidden_size=64,
        eos_token_ids=(0,),
        modules={},
        tied=(),
    )
    return make_site(PeerCache(tmp_path / "cache", quiet(), jobs=1), info, "cpu")


def jobs(*keys: str) -> list[Workload]:
    return make_workloads(keys, registered=40)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[HttpServer]:
    """The servers that would have been started."""
    servers: list[HttpServer] = []

    @contextmanager
    def running(self: HttpServer) -> Any:
        servers.append(self)
        yield None

    monkeypatch.setattr(HttpServer, "running", running)
    return servers


def start(measured: System, started: list[HttpServer], *keys: str) -> tuple[str, dict[str, str]]:
    """The command and the environment of the one server that these jobs share."""
    together = [job for job in jobs(*keys) if job.key in keys]
    (arrangement,) = {measured.start_options(job) for job in together}
    with measured.serving(arrangement, together):
        pass
    return " ".join(map(str, started[-1].command)), dict(started[-1].environment or {})


def refused(measured: System, keys: Sequence[str] = FULL) -> set[str]:
    return {job.key for job in jobs(*keys) if measured.unsupported_reason(job) is not None}


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_adapters_are_written_once_and_are_what_their_names_say(site: BenchmarkSite) -> None:
    folders = site.adapters.folders(["a0", "a1", "c0", "z1"])
    configs = {name: json.loads((folder / "adapter_config.json").read_text()) for name, folder in folders.items()}
    assert [configs[name]["r"] for name in folders] == [16, 16, 16, 4]
    assert [len(configs[name]["target_modules"]) for name in folders] == [7, 7, 7, 2]
    assert {config["base_model_name_or_path"] for config in configs.values()} == {str(site.base_folder)}
    files = {name: (folder / "adapter_model.safetensors").read_bytes() for name, folder in folders.items()}
    assert len(set(files.values())) == 4, "each answers in its own way"
    with safe_open(folders["z1"] / "adapter_model.safetensors", "np") as tensors:
        assert sum("lora_A" in name for name in tensors.keys()) == 2  # noqa: SIM118 - no dict
    stamp = (folders["a0"] / "adapter_config.json").stat().st_mtime_ns
    assert site.adapters.folders(["a0"])["a0"] == folders["a0"]
    assert (folders["a0"] / "adapter_config.json").stat().st_mtime_ns == stamp
    assert named("a", 2) == ("a0", "a1")
    assert isinstance(site.adapters, AdapterFolders)


def test_what_is_made_of_a_base_follows_its_digest(site: BenchmarkSite, tmp_path: Path) -> None:
    assert site.base_folder.resolve() == Path(site.base.path).resolve()
    moved = tmp_path / "moved"
    Path(site.base.path).rename(moved)
    again = make_site(site.workshop, dataclasses.replace(site.base, path=str(moved)), "cpu")
    assert (again.base_folder, again.base_folder.resolve()) == (site.base_folder, moved.resolve())
    other = make_site(site.workshop, dataclasses.replace(site.base, digest="sha256:fedcba9876543210"), "cpu")
    assert other.base_folder != site.base_folder
    assert other.adapters.folder != site.adapters.folder


# --- who does what ----------------------------------------------------------------------------------------------------


def test_who_refuses_what(site: BenchmarkSite) -> None:
    assert refused(graftwork.Graftwork(site)) == set()
    assert refused(vllm.VLLM(site, lora=True)) == set()
    without_adapters = {job.key for job in jobs(*FULL) if not job.adapters}
    assert refused(vllm.VLLM(site, lora=False)) == set(FULL) - without_adapters
    assert refused(llama_cpp.LlamaCpp(site)) == {"zipf", "cold"}
    assert refused(peft.PEFT(site)) == {"poisson", "zipf", "cold", "prefix"}


def test_graftwork_runs_as_it_is_unless_a_load_needs_more(
    site: BenchmarkSite, started: list[HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graftwork.Graftwork, "_push", lambda *given: False)
    ours = graftwork.Graftwork(site, ["--dtype", "float32"])
    usual = {ours.start_options(job) for job in jobs("1x0", "16x0", "16x8", "poisson", "prefix")}
    assert len(usual) == 1
    assert len({ours.start_options(job) for job in jobs("16x32", "zipf") if len(job.adapters) > 8}) == 1
    command, _ = start(ours, started, "16x32")
    assert " --slots 32 " in command
    assert command.endswith(" --dtype float32")
    command, _ = start(ours, started, "64x8")
    assert " --max-batch 64 " in command
    assert f"--base {site.base.path} " in command
    assert started[-1].fields(None) == {"model": "tiny"}
    assert started[-1].fields("a3") == {"model": "a3"}


def test_a_server_that_was_just_given_adapters_is_started_again(
    site: BenchmarkSite, started: list[HttpServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[Path] = []
    monkeypatch.setattr(graftwork, "drop_from_page_cache", forgotten.append)
    for pushed, starts in ((True, 2), (False, 1)):
        monkeypatch.setattr(graftwork.Graftwork, "_push", lambda *given, pushed=pushed: pushed)
        started.clear()
        start(graftwork.Graftwork(site), started, "cold")
        assert len(started) == starts
    assert len(forgotten) == 2
    start(graftwork.Graftwork(site), started, "16x8")
    assert len(forgotten) == 2, "the disk is only where adapters must be cold"


def test_vllm_has_as_many_slots_as_the_load_has_adapters(site: BenchmarkSite, started: list[HttpServer]) -> None:
    lora = vllm.VLLM(site, lora=True)
    lora._python = Path("/venv/bin/python")
    command, environment = start(lora, started, "1x0", "16x0", "16x1")
    assert " --max-loras 1 " in command
    assert " --max-num-seqs 16 " in command
    assert " --max-model-len 256 " in command
    command, environment = start(lora, started, "16x8")
    assert " --max-loras 8 --max-lora-rank 16 --max-cpu-loras 8 " in command
    assert f" a7={site.adapters.folder / 'a7'}" in command
    assert environment["VLLM_CPU_OMP_THREADS_BIND"].split(",")
    assert (started[-1].fields("a3"), started[-1].fields(None)) == ({"model": "a3"}, {"model": "base"})


@pytest.mark.parametrize("key", ["zipf", "cold"])
def test_vllm_reads_adapters_when_they_are_asked_for_where_that_is_the_point(
    site: BenchmarkSite, started: list[HttpServer], key: str
) -> None:
    lora = vllm.VLLM(site, lora=True)
    lora._python = Path("/venv/bin/python")
    command, environment = start(lora, started, key)
    assert "--lora-modules" not in command
    assert environment["VLLM_LORA_RESOLVER_CACHE_DIR"] == str(site.adapters.folder)
    assert environment["VLLM_PLUGINS"] == "lora_filesystem_resolver"


def test_vllm_without_lora_is_plain(site: BenchmarkSite, started: list[HttpServer]) -> None:
    plain = vllm.VLLM(site, lora=False)
    plain._python = Path("/venv/bin/python")
    command, _ = start(plain, started, "1x0", "16x0")
    assert "--enable-lora" not in command
    assert "--lora-modules" not in command
    assert (plain.key, "LoRA off" in plain.title) == ("vllm-no-lora", True)


def test_vllm_answers_to_both_of_its_names(tmp_path: Path) -> None:
    """Asked of a real interpreter's own metadata, as vLLM does it."""
    packages = tmp_path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    info = packages / f"vllm_cpu-{vllm.VERSION}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: {vllm.VERSION}\n\nvllm-cpu\n")
    for _ in range(2):
        vllm._name_twice(tmp_path / "bin" / "python")
    asked = "from importlib.metadata import version; print(version('vllm'), version('vllm-cpu'))"
    said = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(packages)!r}); {asked}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == [f"{vllm.VERSION}+cpu", vllm.VERSION]


def test_llama_cpp_is_tuned_to_each_load(
    site: BenchmarkSite, started: list[HttpServer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(llama_cpp.LlamaCpp, "_adapter", lambda self, name: Path(f"/ggufs/{name}.gguf"))
    monkeypatch.setattr(llama_cpp.LlamaCpp, "_model", lambda self: Path("/ggufs/base.gguf"))
    theirs = llama_cpp.LlamaCpp(site)
    theirs._tools = llama_cpp.Tools(tmp_path, tmp_path, tmp_path)
    assert len({theirs.start_options(job) for job in jobs("1x0", "16x0", "16x1", "16x8", "16x32")}) == 5
    command, _ = start(theirs, started, "16x0")
    assert " --parallel 16 " in command
    assert f" --ctx-size {16 * 256} " in command
    assert "--lora" not in command, "loaded adapters that nobody asks for would slow it down"
    command, _ = start(theirs, started, "16x8")
    assert f" --lora {','.join(f'/ggufs/a{n}.gguf' for n in range(8))} --lora-init-without-apply" in command
    assert started[-1].fields("a3") == {"model": "base", "lora": [{"id": 3, "scale": 1.0}]}
    assert started[-1].fields(None) == {"model": "base"}


def test_files_can_be_dropped_from_the_page_cache(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "file").write_bytes(b"x" * 1_000_000)
    system.drop_from_page_cache(tmp_path)
    assert (tmp_path / "below" / "file").stat().st_size == 1_000_000
