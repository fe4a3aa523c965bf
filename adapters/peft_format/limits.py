"""The largest sizes and ranks that an adapter may have."""

from __future__ import annotations

from dataclasses import dataclass

from graftwork.adapters.peft_format.files import CONFIG_FILE, TOKENIZER_FILES, WEIGHTS_FILE


@dataclass(frozen=True, kw_only=True)
class AdapterLimits:
    """The largest sizes and rank of an adapter."""

    max_adapter_bytes: int = 2 << 30  # adapter_model.safetensors
    max_rank: int = 256
    max_config_bytes: int = 1 << 20  # adapter_config.json
    max_tokenizer_bytes: int = 64 << 20  # each file of a tokenizer
    max_header_bytes: int = 4 << 20  # the JSON at the head of the safetensors file: some 30,000 tensors

    @property
    def max_folder_bytes(self) -> int:
        """The most bytes of all files that a push may bring."""
        return sum(map(self.max_bytes, (CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES)))

    def max_bytes(self, filename: str) -> int:
        """The most bytes of a file of that name."""
        if filename in TOKENIZER_FILES:
            return self.max_tokenizer_bytes
        return self.max_adapter_bytes if filename == WEIGHTS_FILE else self.max_config_bytes
