"""Sibling linear layers and their adapters in the layout that kernels.cpp multiplies with.

Shapes: K inputs padded to KP (a multiple of 64); the outputs of every member are cut into tiles of 32, the last one of
a member padded; P pages of the bank.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from graftwork.server.engine.host_adapter import RANK_PAGE, LinearGraft
from graftwork.server.engine.lora_bank import LoraPlan
from graftwork.server.engine.native.library import PLAIN, PROJECT, LinearFields, OpFields, StepFields
from graftwork.server.engine.native.machine import Machine

BLOCK = 64
LANES = 16
TILE = 32


class NativeLinear:
    """Weights in 8 bits with a scale per output, and the bank's pages of A and B in half precision.

    Half precision keeps 11 bits; a gain per page and member, a power of two, brings A and B into its range whatever
    their size.
    """

    def __init__(self, weights: Sequence[Tensor], bias: Tensor | None, num_pages: int, machine: Machine) -> None:
        self.machine = machine
        self.num_pages = num_pages
        self.num_inputs = weights[0].shape[1]
        self.num_outputs = sum(weight.shape[0] for weight in weights)
        padded = -(-self.num_inputs // BLOCK) * BLOCK
        tiles: list[tuple[int, int, int]] = []
        parts, scales, biases = [], [], []
        column = 0
        for member, weight in enumerate(weights):
            outputs = weight.shape[0]
            num_tiles = -(-outputs // TILE)
            tiles += [(member, column + t * TILE, min(TILE, outputs - t * TILE)) for t in range(num_tiles)]
            fill = num_tiles * TILE - outputs
            weight = weight.float()
            scale = weight.abs().amax(1).clamp_(min=1e-10) / 127
            digits = torch.round(weight / scale[:, None])
            parts.append(F.pad(digits, (0, padded - self.num_inputs, 0, fill)))
            scales.append(F.pad(scale, (0, fill)))
            if bias is not None:
                biases.append(F.pad(bias[column : column + outputs].float(), (0, fill)))
            column += outputs
        digits = torch.cat(parts).add_(128).to(torch.uint8)
        # [tiles · 2 panels, 16 outputs, K/4, 4] → [tiles · 2 panels, K/4, 16 outputs, 4]
        self.panels = digits.view(-1, LANES, padded // 4, 4).transpose(1, 2).contiguous()
        self.scale = torch.cat(scales)
        self.bias = torch.cat(biases) if bias is not None else None
        self.tiles = torch.tensor(tiles, dtype=torch.int32)
        self.members = [slice(s.start, s.stop) for s in _member_columns(weights)]
        self.padded = padded
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        self.gain: Tensor | None = None
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

    def multiply(self, x: Tensor, plan: LoraPlan | None) -> Tensor:
        """x [T, K] float32 → [T, outputs] float32: W·x and what each row's adapter adds, without the bias."""
        x = x.contiguous()
        y = torch.empty(x.shape[0], self.num_outputs)
        adapters = self.machine.adapters_of(plan, x.shape[0])
        step = StepFields(num_rows=x.shape[0], adapters=adapters.fields)
        self.machine.run((OpFields * 1)(self.op(x, y)), step)
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
        """y = W·prologue(x), or y += it. x and y may be views with rows of another width than K and the outputs.

        ``norm`` [K] float32 is the weight of the RMS norm that the prologue applies.
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

    def write(self, pages: Sequence[int], grafts: Mapping[int, LinearGraft]) -> None:
        """Copy an adapter's grafts on the members to its pages; what it does not touch is zero there."""
        if grafts and self.a is None:
            num_ranks = len(self.members) * RANK_PAGE
            self.a = torch.zeros(self.num_pages, num_ranks, self.padded, dtype=torch.float16)
            self.b = torch.zeros(self.num_pages, len(self.tiles), RANK_PAGE, TILE, dtype=torch.float16)
            self.gain = torch.zeros(self.num_pages, len(self.members))
            self.fields.a, self.fields.b = self.a.data_ptr(), self.b.data_ptr()
            self.fields.gain = self.gain.data_ptr()
        if self.a is None or self.b is None or self.gain is None:
            return
        for index, page in enumerate(pages):
            self.gain[page] = 0
            tile = 0
            for member, columns in enumerate(self.members):
                num_tiles = -(-(columns.stop - columns.start) // TILE)
                rows = self.a[page, member * RANK_PAGE : (member + 1) * RANK_PAGE]
                tiles = self.b[page, tile : tile + num_tiles]
                tile += num_tiles
                graft = grafts.get(member)
                if graft is None or index >= len(graft.a):
                    rows.zero_()
                    tiles.zero_()
                    continue
                a_gain, b_gain = _power_of_two(graft.a[index]), _power_of_two(graft.b[index])
                rows[:, : self.num_inputs] = graft.a[index] / a_gain
                scaled = F.pad(graft.b[index] / b_gain, (0, num_tiles * TILE - graft.b.shape[2]))
                tiles.copy_(scaled.view(RANK_PAGE, num_tiles, TILE).transpose(0, 1))
                self.gain[page, member] = a_gain * b_gain

    def dense(self) -> Tensor:
        """The weight as it acts, [outputs, K] float32."""
        digits = self.panels.transpose(1, 2).reshape(-1, self.padded)[:, : self.num_inputs].float() - 128
        rows = digits * self.scale[:, None]
        kept = [rows[i * TILE : i * TILE + count] for i, (_, _, count) in enumerate(self.tiles.tolist())]
        return torch.cat(kept)

    @property
    def num_bytes(self) -> int:
        return self.panels.nbytes + self.scale.nbytes


def _member_columns(weights: Sequence[Tensor]) -> list[slice]:
    stops = torch.tensor([weight.shape[0] for weight in weights]).cumsum(0).tolist()
    return [slice(stop - weight.shape[0], stop) for stop, weight in zip(stops, weights, strict=True)]


def _power_of_two(tensor: Tensor) -> float:
    """The power of two that brings the largest magnitude to between 1 and 2."""
    largest = float(tensor.abs().max())
    return 2.0 ** (torch.tensor(largest).log2().floor().item()) if largest > 0 else 1.0
