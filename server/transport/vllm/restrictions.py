"""What adapters vLLM cannot serve, found out from their structure before they are tried.

Ranks are no part of it: a server does not tell its limit but by refusing, see ``adapters.py``.
"""

from __future__ import annotations

from typing import NoReturn

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import InvalidAdapter
from graftwork.adapters.peft_format.config import is_head
from graftwork.adapters.peft_format.spec import AdapterSpec


def check_adapter(spec: AdapterSpec, base: BaseInfo) -> None:
    """Check whether vLLM can serve an adapter.

    Raises:
        InvalidAdapter: It cannot; the message names the field.
    """
    if any(graft.magnitude is not None for graft in spec.grafts):
        _wrong("use_dora", "is true, and vLLM serves no DoRA: train a plain LoRA")
    if any(graft.bias is not None for graft in spec.grafts):
        _wrong("lora_bias", "is true, and vLLM serves no biases of LoRA layers: train without")
    if spec.replaced:
        _wrong("modules_to_save", f"replaces {next(iter(spec.replaced))}, and vLLM replaces no modules: train without")
    for graft in spec.grafts:
        if graft.kind == "embedding" or is_head(graft.name, base):
            _wrong(
                "target_modules",
                f"has {graft.name}, and vLLM grafts neither embeddings nor heads: leave it out",
            )


def _wrong(field: str, why: str) -> NoReturn:
    raise InvalidAdapter(f"{field} {why}, or serve it with --engine own.", param=field)
