"""The largest sizes and ranks that an adapter may have."""

from __future__ import annotations

from dataclasses import dataclass

from graftwork.adapters.peft_format.files import WEIGHTS_FILE


@dataclass(frozen=True, kw_only=True)
class AdapterLimits:
    """The largest sizes and rank of an adapter."""

    max_adapter_bytes: int = 2 << 30  # adapter_model.safetensors
    max_rank: int = 256
    max_config_bytes: int = 1 << 20  # adapter_config.json
    max_header_bytes: int = 4 << 20  # the JSON at the head of the safetensors file: some 30,000 tensors

    def max_bytes(self, filename: str) -> int:
        """The most bytes of a file of that name."""
        return self.max_adapter_bytes if filename == WEIGHTS_FILE else self.max_config_bytes
