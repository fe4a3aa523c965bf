"""A base, a spec and a push: versions in a registry without files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.adapters.registry import Registry, Version

BASE = BaseInfo(
    id="smollm2",
    path="/nowhere",
    digest="sha256:base",
    architecture="LlamaForCausalLM",
    dtype="bfloat16",
    num_parameters=1,
    vocab_size=1,
    max_positions=1,
    num_layers=1,
    hidden_size=1,
    eos_token_ids=(0,),
    modules={},
    tied=(),
)


def spec(content: object, **changes: Any) -> AdapterSpec:
    """An adapter whose files hold ``content``: as far as the registry is concerned, its digest."""
    plain = AdapterSpec(
        digest=f"sha256:{content}",
        num_bytes=20,
        num_parameters=10,
        rank=4,
        grafts=(),
        replaced={},
        base_digest=None,
        config={"peft_type": "LORA", "r": 4},
    )
    return replace(plain, **changes)


def push(registry: Registry, content: object, name: str = "intents", alias: str | None = None) -> Version:
    return registry.add_version(name, spec(content), base=BASE, alias=alias)[0]
