"""A ``LinearMethod`` by the CPU kernels: sibling linear layers and their adapters in the layout the kernels read.

Shapes: K inputs padded to KP (a multiple of 64); the outputs of every member are cut into tiles of 32, the last one of
a member padded; P pages of the bank.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from graftwork.server.engine.backends.cpu.context import LANES, KernelContext
from graftwork.server.engine.backends.cpu.interface import PLAIN, PROJECT, LinearFields, OpFields, StepFields
from graftwork.server.engine.lora.host_adapter import RANK_PAGE, LinearGraft
from graftwork.server.engine.lora.plan import LoraPlan

BLOCK = 64
TILE = 32


class CpuLinear:
    """Sibling linear layers in int8, with scales per output; pages of A have scales per rank, those of B per output.

    Args:
        weights: [outputs_i, K] of each member.
        bias: [outputs of all members], or ``None``.
        num_pages: Of the bank.
        context: Packs weights and runs the kernels.
    """

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None, num_pages: int, context: KernelContext) -> None:
        self.context = context
        self.num_pages = num_pages
        self.num_inputs = weights[0].shape[1]
        self.num_outputs = sum(weight.shape[0] for weight in weights)
        padded = -(-self.num_inputs // BLOCK) * BLOCK
        tiles: list[tuple[int, int, int]] = []
        panels, scales, biases = [], [], []
        column = 0
        for member, weight in enumerate(weights):
            outputs = weight.shape[0]
            num_tiles = -(-outputs // TILE)
            tiles += [(member, column + t * TILE, min(TILE, outputs - t * TILE)) for t in range(num_tiles)]
            fill = num_tiles * TILE - outputs
            packed, scale = context.pack(F.pad(weight.float(), (0, 0, 0, fill)), padded)
            panels.append(packed)
            scales.append(scale)
            if bias is not None:
                biases.append(F.pad(bias[column : column + outputs].float(), (0, fill)))
            column += outputs
        self.panels = torch.cat(panels)
        self.scale = torch.cat(scales)
        self.bias = torch.cat(biases) if bias is not None else None
        self.tiles = torch.tensor(tiles, dtype=torch.int32)
        self.members = [slice(s.start, s.stop) for s in _member_columns(weights)]
        self.padded = padded
        self.bank: Int8LoraPages | None = None
        self.fields = LinearFields(
            num_inputs=self.num_inputs,
            num_blocks=padded // BLOCK,
            num_tiles=len(tiles),
            num_members=len(weights),
            panels=self.panels.data_ptr(),
            scale=self.scale.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
            tiles=self.tiles.data_ptr(),
        )

    def apply(self, x: Tensor, plan: LoraPlan | None) -> Tensor:
        """W·x plus each row's adapter, without the bias: x [T, K] float32 → [T, outputs] float32."""
        x = x.contiguous()
        y = torch.empty(x.shape[0], self.num_outputs)
        adapters = self.context.adapters_of(plan.runs if plan is not None else (), x.shape[0])
        step = StepFields(num_rows=x.shape[0], adapters=adapters.fields)
        self.context.run((OpFields * 1)(self.op(x, y)), step)
        return y

    def op(
        self,
        x: Tensor,
        y: Tensor,
        *,
        prologue: int = PLAIN,
        norm: Tensor | None = None,
        eps: float = 0.0,
        accumulate: bool = False,
        with_bias: bool = False,
    ) -> OpFields:
        """The kernel call for y = W·prologue(x), or y += W·prologue(x).

        Args:
            x: [rows, any width] float32. Its rows begin with the prologue's inputs.
            y: [rows, any width] float32.
            prologue: PLAIN, NORM, SILU_TIMES or GELU_TIMES.
            norm: [K] float32, the weight of the RMS norm of NORM.
            eps: Of that norm.
            accumulate: Add to ``y`` instead of overwriting it.
            with_bias: Add the bias, if there is one.

        Returns:
            A call that points to ``x`` and ``y``: the caller keeps both alive.
        """
        return OpFields(
            kind=PROJECT,
            prologue=prologue,
            accumulate=accumulate,
            with_bias=with_bias and self.bias is not None,
            x=x.data_ptr(),
            y=y.data_ptr(),
            x_width=x.stride(0),
            y_width=y.stride(0),
            linear=ctypes.pointer(self.fields),
            norm=None if norm is None else norm.data_ptr(),
            eps=eps,
        )

    def pack(self, grafts: Mapping[int, LinearGraft]) -> Int8LoraPages:
        """Quantize an adapter's grafts, by member, into pages. Any thread may call this beside the steps."""
        num_pages = max(len(graft.a) for graft in grafts.values())
        packed = Int8LoraPages.empty(num_pages, len(self.members), self.padded, len(self.tiles))
        tile = 0
        for member, columns in enumerate(self.members):
            num_tiles = -(-(columns.stop - columns.start) // TILE)
            tiles = slice(tile, tile + num_tiles)
            tile += num_tiles
            if (graft := grafts.get(member)) is None:
                continue
            for page, (a, b) in enumerate(zip(graft.a.float(), graft.b.float(), strict=True)):
                panels, scale = self.context.pack(a, self.padded)
                packed.a[page, member], packed.a_scale[page, member] = panels[0], scale
                panels, scale = self.context.pack(b.t(), RANK_PAGE)
                packed.b[page, tiles].view(-1, RANK_PAGE // 4, LANES, 4)[: len(panels)] = panels
                packed.b_scale[page, tiles].view(-1)[: len(scale)] = scale
        return packed

    def write(self, pages: Sequence[int], packed: Int8LoraPages | None) -> None:
        """Copy an adapter's grafts to its pages; members that it does not change get scales of zero there.

        The bank is allocated with the first adapter that touches these layers.
        """
        if packed is not None and self.bank is None:
            self.bank = bank = Int8LoraPages.empty(self.num_pages, len(self.members), self.padded, len(self.tiles))
            self.fields.a, self.fields.a_scale = bank.a.data_ptr(), bank.a_scale.data_ptr()
            self.fields.b, self.fields.b_scale = bank.b.data_ptr(), bank.b_scale.data_ptr()
        if self.bank is None:
            return
        for index, page in enumerate(pages):
            if packed is not None and index < len(packed.a):
                self.bank.a[page], self.bank.a_scale[page] = packed.a[index], packed.a_scale[index]
                self.bank.b[page], self.bank.b_scale[page] = packed.b[index], packed.b_scale[index]
            else:  # scales of zero are enough: whatever the bytes are, they count for nothing
                self.bank.a_scale[page] = 0
                self.bank.b_scale[page] = 0

    def dense(self) -> Tensor:
        """The dequantized weight, [outputs, K] float32."""
        digits = self.panels.transpose(1, 2).reshape(-1, self.padded)[:, : self.num_inputs].float() - 128
        rows = digits * self.scale[:, None]
        kept = [rows[i * TILE : i * TILE + count] for i, (_, _, count) in enumerate(self.tiles.tolist())]
        return torch.cat(kept)

    @property
    def num_bytes(self) -> int:
        """Size of the weights and their scales, without adapters."""
        return self.panels.nbytes + self.scale.nbytes


def _member_columns(weights: Sequence[Tensor]) -> list[slice]:
    """The columns of each member among the outputs of all."""
    stops = torch.tensor([weight.shape[0] for weight in weights]).cumsum(0).tolist()
    return [slice(stop - weight.shape[0], stop) for stop, weight in zip(stops, weights, strict=True)]


@dataclass(frozen=True, slots=True)
class Int8LoraPages:
    """Pages of A and B in int8.

    Attributes:
        a: [P, members, KP/4, 16, 4] uint8.
        a_scale: [P, members, RANK_PAGE] float32.
        b: [P, tiles, 2, 4, 16, 4] uint8.
        b_scale: [P, tiles, TILE] float32.
    """

    a: Tensor
    a_scale: Tensor
    b: Tensor
    b_scale: Tensor

    @classmethod
    def empty(cls, num_pages: int, num_members: int, padded: int, num_tiles: int) -> Int8LoraPages:
        """Pages without adapters: all scales are zero."""
        return cls(
            a=torch.zeros(num_pages, num_members, padded // 4, LANES, 4, dtype=torch.uint8),
            a_scale=torch.zeros(num_pages, num_members, RANK_PAGE),
            b=torch.zeros(num_pages, num_tiles, 2, RANK_PAGE // 4, LANES, 4, dtype=torch.uint8),
            b_scale=torch.zeros(num_pages, num_tiles, TILE),
        )

    @property
    def num_bytes(self) -> int:
        """Size of the pages and their scales."""
        return self.a.nbytes + self.a_scale.nbytes + self.b.nbytes + self.b_scale.nbytes
