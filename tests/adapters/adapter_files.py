"""Adapters and a base written by hand, without torch or PEFT, as a starting point for tests of invalid files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from graftwork.adapters.base import BaseInfo, ModuleShape
from graftwork.adapters.peft_format.files import CONFIG_FILE, WEIGHTS_FILE
from graftwork.adapters.peft_format.folder import read_spec
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.adapters.registry.artifacts import ArtifactStore

PREFIX = "base_model.model."
VOCAB, HIDDEN, INNER = 64, 32, 48
SMALL = AdapterLimits(max_adapter_bytes=1 << 20, max_rank=16, max_config_bytes=1 << 16, max_header_bytes=1 << 18)

Arrays = dict[str, np.ndarray[Any, Any]]


def linear(rows: int, columns: int, *, bias: bool = False) -> ModuleShape:
    return ModuleShape(kind="linear", shape=(rows, columns), bias=bias)


def tiny_base(folder: Path, *, tied: bool = True, bias: bool = False) -> BaseInfo:
    """A base of two layers whose embedding lies in ``folder`` as transformers would save it."""
    modules = {"model.embed_tokens": ModuleShape(kind="embedding", shape=(VOCAB, HIDDEN), bias=False)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        modules[f"{prefix}.self_attn.q_proj"] = linear(HIDDEN, HIDDEN, bias=bias)
        modules[f"{prefix}.self_attn.v_proj"] = linear(HIDDEN // 2, HIDDEN, bias=bias)
        modules[f"{prefix}.mlp.up_proj"] = linear(INNER, HIDDEN)
        modules[f"{prefix}.mlp.down_proj"] = linear(HIDDEN, INNER)
        modules[f"{prefix}.input_layernorm"] = ModuleShape(kind="other", shape=(HIDDEN,), bias=False)
    modules["model.norm"] = ModuleShape(kind="other", shape=(HIDDEN,), bias=False)
    modules["lm_head"] = linear(VOCAB, HIDDEN)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors({"model.embed_tokens.weight": base_embedding()}))
    return BaseInfo(
        id="tiny",
        path=str(folder),
        digest="sha256:" + "ab" * 32,
        architecture="LlamaForCausalLM",
        dtype="float32",
        num_parameters=0,
        vocab_size=VOCAB,
        max_positions=128,
        num_layers=2,
        hidden_size=HIDDEN,
        eos_token_ids=(0,),
        modules=modules,
        tied=(("lm_head", "model.embed_tokens"),) if tied else (),
    )


def base_embedding() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).normal(size=(VOCAB, HIDDEN)).astype(np.float32)


def graft(base: BaseInfo, name: str, rank: int = 4) -> Arrays:
    """The tensors of one graft."""
    (first, second), kind = base.modules[name].shape, base.modules[name].kind
    numbers = np.random.default_rng(len(name))
    out, width = (first, second) if kind == "linear" else (second, first)
    a = numbers.normal(size=(rank, width)).astype(np.float32)
    b = numbers.normal(size=(out, rank)).astype(np.float32)
    if kind == "linear":
        return {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
    return {f"{PREFIX}{name}.lora_embedding_A": a, f"{PREFIX}{name}.lora_embedding_B": b}


def config(**fields: Any) -> dict[str, Any]:
    """What PEFT 0.21 writes for a rank-4 LoRA on q_proj and up_proj."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "tiny",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "kasa_config": None,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "lora_ga_config": None,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "monteclora_config": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "qalora_group_size": 16,
        "r": 4,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["q_proj", "up_proj"],
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_bdlora": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        "velora_config": None,
    } | fields


def tensors(base: BaseInfo) -> Arrays:
    """The tensors of the LoRA that :func:`config` describes."""
    names = [name for name in base.modules if name.endswith(("q_proj", "up_proj"))]
    return {key: array for name in names for key, array in graft(base, name).items()}


def layout(arrays: Mapping[str, np.ndarray[Any, Any]]) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file. Arrays of uint16 stand for bfloat16."""
    header: dict[str, Any] = {}
    data = b""
    for name, array in arrays.items():
        dtype = {"<f4": "F32", "<f2": "F16", "<u2": "BF16", "<f8": "F64", "<i4": "I32"}[array.dtype.str]
        end = len(data) + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += array.tobytes()
    return header, data


def packed(header: bytes | Mapping[str, Any], data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def safetensors(arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    return packed(*layout(arrays))


def write(folder: Path, config: Mapping[str, Any] | bytes, weights: Arrays | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    raw = config if isinstance(config, bytes) else json.dumps(config).encode()
    (folder / CONFIG_FILE).write_bytes(raw)
    (folder / WEIGHTS_FILE).write_bytes(weights if isinstance(weights, bytes) else safetensors(weights))
    return folder


@contextmanager
def staged(store: ArtifactStore, source: Path) -> Iterator[Path]:
    """A folder on its way in, dropped if it is refused: what the server does with a push."""
    folder = store.stage_folder(source, [source.parent])
    try:
        yield folder
    except BaseException:
        store.discard(folder)
        raise


def push(store: ArtifactStore, source: Path, base: BaseInfo) -> AdapterSpec:
    with staged(store, source) as folder:
        spec = read_spec(folder, base, store.limits)
        store.publish(folder, spec.digest)
    return spec


def published(store: ArtifactStore) -> list[str]:
    """What the store holds; raises if anything is still staged."""
    assert list((store.root / "staging").iterdir()) == []
    return sorted(path.name for path in store.root.iterdir() if path.name != "staging")
