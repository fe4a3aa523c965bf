"""Merged linear layers in plain torch: one GEMM for the base, and the bank's table for the adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from graftwork.server.engine.lora.bank import LoraTable
from graftwork.server.engine.lora.host_adapter import LinearGraft
from graftwork.server.engine.lora.packed import PlainGrafts
from graftwork.server.engine.lora.plan import LoraPlan
from graftwork.server.engine.model.weights import Weights


class TorchLinear:
    """A ``LinearMethod`` in plain torch.

    Args:
        weights: Of the sibling layers, stacked.
        table: The adapters' A and B for these layers.
    """

    def __init__(self, weights: Weights, table: LoraTable) -> None:
        self.weights = weights
        self.table = table

    def apply(self, x: Tensor, plan: LoraPlan | None) -> Tensor:
        """x [T, in] → [T, out of all members], without biases."""
        y = self.weights.matmul(x)
        if plan is not None:
            self.table.add(plan, x, y)
        return y

    def pack(self, grafts: Mapping[int, LinearGraft]) -> PlainGrafts:
        """Grafts as they were read: the table copies them unchanged."""
        return PlainGrafts(grafts)

    def write(self, pages: Sequence[int], packed: PlainGrafts | None) -> None:
        """See ``LoraTable.write``."""
        self.table.write(pages, packed.grafts if packed is not None else {})

    def dense(self) -> Tensor:
        """The weight as it acts, [out, in] float32."""
        return self.weights.dense()

    @property
    def num_bytes(self) -> int:
        """Size of the weights, without adapters."""
        return self.weights.num_bytes
