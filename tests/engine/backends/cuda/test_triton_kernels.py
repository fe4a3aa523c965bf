"""The Triton kernels, where there is no card: their numbers in Triton's interpreter, and that they compile for cards.

Compiling needs no driver. It shows what an interpreter does not: types, shared memory, spilled registers, and whether
loads are wide and products go through the tensor cores. Whether they are fast, only a card can say (docs/gpu.md).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import CHECKOUT, TEST_HOME

triton = pytest.importorskip("triton", reason="Triton is for Linux")

from graftwork.server.engine.backends.cuda import attention_kernels, lora, lora_kernels, slot_attention, tiles  # noqa: E402
from graftwork.server.engine.kv.cache import CacheShape, KVCache  # noqa: E402

META = torch.device("meta")

#: Compute capability → bytes of shared memory that one program may have: A100, L4 and RTX 40, H100.
SHARED_MEMORY = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}


def interpret(*cases: str, at_least: int) -> None:
    """In a process of its own: Triton decides when it is first imported whether it interprets."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *cases]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= at_least
    assert "skipped" not in done.stdout


def test_numbers_in_the_interpreter() -> None:
    smallest = "tests/engine/cuda_engine_cases.py::test_the_smallest_engine"
    interpret("tests/engine/triton_cases.py", smallest, at_least=20)


@pytest.mark.slow
def test_the_engine_in_the_interpreter() -> None:
    interpret("tests/engine/cuda_engine_cases.py", at_least=12)


# --- compiled for cards -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


class Recorder:
    """Stands where a kernel stands and notes how it is launched."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def note(*values: Any, **named: Any) -> None:
            options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
            given = dict(zip(self.kernel.arg_names, values, strict=False)) | named
            assert set(given) == set(self.kernel.arg_names)
            self.launches.append(Launch(self.kernel, given, options))

        return note


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """All launches that happen meanwhile, as a card of bfloat16 would get them; nothing is computed."""
    noted: list[Launch] = []
    for module, names in (
        (lora_kernels, ("shrink", "expand")),
        (attention_kernels, ("write_slots", "attend_rows", "merge_rows", "attend_tiles")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), noted))

    def operand(dtype: torch.dtype, device: torch.device) -> Any:
        return triton.language.bfloat16 if dtype == torch.bfloat16 else triton.language.float32

    monkeypatch.setattr(lora, "operand_type", operand)
    monkeypatch.setattr(slot_attention, "operand_type", operand)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(TEST_HOME / "triton"))
    return noted


def meta(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def add_adapters(num_inputs: int, widths: list[int], dtype: torch.dtype) -> None:
    """The launches of one table, for rows that decode and for prompts."""
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    slices = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    table = lora.SegmentedTable(num_pages=4, num_inputs=num_inputs, slices=slices, dtype=dtype, device=META)
    x, y = meta(256, num_inputs, dtype=dtype), meta(256, ends[-1], dtype=dtype)
    for size in (tiles.SHORT_TILE, tiles.LONG_TILE):
        kind = lora.DeviceTiles(size, 4, 64, meta(20), meta(4))
        table.add(lora.SegmentedPlan([], [kind], for_graph=True), x, y)


def attend(num_heads: int, kv_heads: int, dim: int, dtype: torch.dtype, softcap: float | None = None) -> None:
    """The launches of one layer, for rows that decode beside prompts."""
    shape = CacheShape(num_slots=4, slot_length=8192, kv_sizes=((kv_heads, dim),), dtype=dtype, device=META)
    plan = slot_attention.SlotAttention(
        cache=KVCache(shape), positions=meta(256), slots=meta(256), rows=meta(32), tiles=meta(4, 2)
    )
    query, key = (meta(heads, 256, dim, dtype=dtype) for heads in (num_heads, kv_heads))
    plan.attend(0, query, key, key, dim**-0.5, 4096 if softcap else None, softcap)


@dataclass(frozen=True)
class Binary:
    ptx: str
    shared_bytes: int
    stack_bytes: int
    registers: int


def compiled(launch: Launch, capability: int) -> Binary:
    """As Triton would compile this launch on a card: numbers divisible by 16 are known to be."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, facts = {}, {}, {}
    for index, (name, parameter) in enumerate(zip(launch.kernel.arg_names, launch.kernel.params, strict=True)):
        value = launch.arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + triton.runtime.jit.mangle_type(value).removeprefix("*")
            facts[(index,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value == 1:
            signature[name], constants[(index,)] = "constexpr", value
        else:
            signature[name] = triton.runtime.jit.mangle_type(value)
            if isinstance(value, int) and value % 16 == 0:
                facts[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=facts)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    usage = resources(built.asm["cubin"])
    return Binary(built.asm["ptx"], built.metadata.shared, usage["STACK"] + usage["LOCAL"], usage["REG"])


def resources(cubin: bytes) -> dict[str, int]:
    """What the assembler says a program takes."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = TEST_HOME / "triton" / f"{os.getpid()}.cubin"
    file.write_bytes(cubin)
    try:
        said = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    finally:
        file.unlink()
    return {name: int(number) for name, number in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", said)}


CASES: dict[str, Callable[[torch.dtype], None]] = {
    "llama-8b qkv": lambda dtype: add_adapters(4096, [4096, 1024, 1024], dtype),
    "llama-8b gate, up": lambda dtype: add_adapters(4096, [14336, 14336], dtype),
    "llama-8b down": lambda dtype: add_adapters(14336, [4096], dtype),
    "llama-8b attention": lambda dtype: attend(32, 8, 128, dtype),
    "llama-7b attention": lambda dtype: attend(32, 32, 128, dtype),
    "gemma-2-9b attention": lambda dtype: attend(16, 8, 256, dtype, softcap=50.0),
    "smollm2 attention": lambda dtype: attend(9, 3, 64, dtype),
}


def check(case: str, dtype: torch.dtype, capability: int, launches: list[Launch]) -> None:
    CASES[case](dtype)
    assert launches
    for launch in launches:
        binary = compiled(launch, capability)
        name = launch.kernel.__name__
        used = f"{binary.registers} registers, {binary.shared_bytes} bytes shared, {binary.stack_bytes} spilled"
        print(f"sm_{capability} {case} {name}: {used}")
        assert binary.shared_bytes <= SHARED_MEMORY[capability], name
        if dtype == torch.float32:  # for exactness: it may be slow
            continue
        assert binary.stack_bytes == 0, f"{name} spills"
        if name != "write_slots":
            assert re.search(r"(ld\.global|cp\.async\.\w+\.shared\.global)[^;]*(\.v4|, 16|, 0x10)", binary.ptx), name
        if name not in ("write_slots", "merge_rows"):
            assert re.search(r"(wgmma\.mma_async|mma\.sync)\S*bf16", binary.ptx), name


interpreting = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets here")


@interpreting
@pytest.mark.parametrize("case", ["llama-8b qkv", "llama-8b attention"])
def test_kernels_compile(case: str, launches: list[Launch]) -> None:
    check(case, torch.bfloat16, 80, launches)


@pytest.mark.slow
@interpreting
@pytest.mark.parametrize("capability", SHARED_MEMORY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_kernels_compile_for_every_card(case: str, dtype: torch.dtype, capability: int, launches: list[Launch]) -> None:
    check(case, dtype, capability, launches)
