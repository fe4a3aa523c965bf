"""Tries the Triton kernels on the device before a base relies on them.

Triton compiles at run time: that needs a C compiler, Python's headers and a GPU that it supports. A small mix of
adapters and a small step of attention are computed by the kernels and by torch, and the results compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from graftwork.server.engine.backends.cuda import lora, slot_attention
from graftwork.server.engine.backends.cuda.staging import use_device
from graftwork.server.engine.kv.cache import CacheShape, KVCache
from graftwork.server.engine.lora.host_adapter import RANK_PAGE, LinearGraft
from graftwork.server.engine.lora.plan import AdapterRun

#: The largest absolute difference allowed, relative to the largest value.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03}


@torch.inference_mode()
def find_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot be used on ``device``, or ``None`` when they can.

    ``dtype`` is the activations', float32 or bfloat16. An exception of a compiler, driver or library counts as a
    reason.
    """
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device=device, dtype=dtype)

    for name, compute in (("adapters", _adapters), ("attention", _attention)):
        try:
            with use_device(device):
                actual, expected = compute(randn)
        except Exception as failure:  # whatever a compiler, a driver or a library may raise
            first = (str(failure).strip() or type(failure).__name__).splitlines()[0]
            return f"Triton's kernels do not run on {device}: {first}"
        difference = float((actual.float() - expected.float()).abs().max() / expected.float().abs().max())
        if not difference < TOLERANCE[dtype]:
            return f"Triton's kernels for {name} are {difference:.1e} away from torch's on {device}"
    return None


def _adapters(randn: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """A decoding row and a prompt with adapters of rank 16 and 32, on two siblings: ours and torch's [41, 96]."""
    slices, num_inputs = [slice(0, 64), slice(64, 96)], 640
    runs = [AdapterRun(1, 2, "a", (2,)), AdapterRun(2, 40, "b", (0, 1))]
    x, y = randn(41, num_inputs), randn(41, 96)
    table = lora.SegmentedTable(num_pages=3, num_inputs=num_inputs, slices=slices, dtype=x.dtype, device=x.device)
    expected = y.to(torch.float32, copy=True)
    for run in runs:
        grafts = {}
        for member, columns in enumerate(slices):
            a = randn(len(run.pages), RANK_PAGE, num_inputs) / num_inputs**0.5
            b = randn(len(run.pages), RANK_PAGE, columns.stop - columns.start)
            grafts[member] = LinearGraft(a=a, b=b, magnitude=None, bias=None)
            flat_a, flat_b = (t.flatten(0, 1).float() for t in (a, b))
            expected[run.start : run.stop, columns] += x[run.start : run.stop].float() @ flat_a.T @ flat_b
        table.write(run.pages, table.pack(grafts))
    table.add(lora.plan_for(runs, x.device), x, y)
    return y, expected


def _attention(randn: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """A prompt of 70 tokens, then its last token again as a decoding row: ours and torch's [71, H, D]."""
    num_heads, kv_heads, dim, length = 4, 2, 64, 70
    query, key, value = (randn(heads, length, dim) for heads in (num_heads, kv_heads, kv_heads))
    kv_sizes = ((kv_heads, dim),)
    cache = KVCache(CacheShape(num_slots=2, slot_length=512, kv_sizes=kv_sizes, dtype=query.dtype, device=query.device))
    outs = []
    for first in (0, length - 1):
        plan = slot_attention.plan_for(cache, [(1, first, length - first)])
        outs.append(plan.attend(0, query[:, first:], key[:, first:], value[:, first:], dim**-0.5, None, None))
    k, v = (t.float().repeat_interleave(num_heads // kv_heads, 0) for t in (key, value))
    expected = F.scaled_dot_product_attention(query.float(), k, v, is_causal=True).transpose(0, 1)
    return torch.cat(outs), torch.cat([expected, expected[-1:]])
