"""Reads a PEFT folder: it is interpreted completely, or refused with the name of what is wrong.

``config`` interprets the config, ``tensors`` reads the tensors. The tensors decide which modules are grafted, and the
config must agree with every one of them:

==================================================================  ====================================================
``base_model.model.<module>.`` …                                    is
==================================================================  ====================================================
``lora_A.weight`` (r, in), ``lora_B.weight`` (out, r)               a graft on a linear module; the head is one too
``lora_embedding_A`` (r, num), ``lora_embedding_B`` (dim, r)        a graft on an embedding
``lora_B.bias`` (out,)                                              with lora_bias; ``scale`` multiplies it as well
``lora_magnitude_vector`` (out,)                                    with use_dora, on linear modules
``weight``, ``bias``                                                a module replaced as a whole (modules_to_save)
``base_layer.weight``, or an embedding's ``weight`` not so named    a copy of the base's own (see below)
==================================================================  ====================================================

Where tensors, config and base do not fit together, the adapter is refused: a tensor for a module that the config does
not target (PEFT would ignore it), a rank that a pattern contradicts, half of a pair. A targeted module without
any tensors is one that PEFT grafts with B·A = 0, which changes nothing, so it is left out; unless init_lora_weights
would make PEFT fill it at random.

*Copies.* PEFT saves the base's embeddings along with an adapter that targets them, and loads them over the base's. They
are compared with the base's weights, to the precision they were saved in: equal ones are dropped, others are refused,
since the base is shared by all adapters.

*Tied weights* (an lm_head that is the embedding). PEFT grafts and replaces modules, not weights: what an adapter does
to one of the two modules does not affect the other, here too. With ``ensure_weight_tying`` PEFT trains one
set of numbers for both and saves it twice: both copies must be there and agree (for grafts, one transposed).

*Digest.* ``sha256`` over the config and the bytes of adapter_model.safetensors. The config counts completely,
provenance included, so that a version's record is what was pushed; but not by its bytes: space, the order of fields,
and the order of ``target_modules`` and ``exclude_modules`` have no meaning (PEFT writes them in the order of Python's
sets, which differs between processes). The order of ``rank_pattern`` and ``alpha_pattern`` has one: the first match
applies.

Whether an adapter changes anything is found out later, by a canary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from graftwork.adapters.base.info import BaseInfo, ModuleShape
from graftwork.adapters.base.tensors import MAX_HEADER_BYTES
from graftwork.adapters.errors import InvalidAdapter, TooLarge
from graftwork.adapters.names import escaped
from graftwork.adapters.peft_format.config import LoraConfig, is_head
from graftwork.adapters.peft_format.files import CONFIG_FILE, WEIGHTS_FILE, open_regular
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.peft_format.spec import AdapterSpec, GraftSpec
from graftwork.adapters.peft_format.tensors import TensorFile, same_numbers
from graftwork.adapters.storage.safetensors_header import TensorEntry
from graftwork.adapters.storage.strict_json import parse_object

_PREFIX = "base_model.model."
_SCALAR_HEAD = "base_model.model.score.weight"
_CHUNK_BYTES = 1 << 20

# The role of a tensor in its module, by the suffix of its name. Longer suffixes come first.
_ROLES = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_B.bias": "lora_B.bias",
    ".lora_embedding_A": "lora_embedding_A",
    ".lora_embedding_B": "lora_embedding_B",
    ".lora_magnitude_vector": "lora_magnitude_vector",
    ".lora_magnitude_vector.weight": "lora_magnitude_vector",  # PEFT reads this as well
    ".base_layer.weight": "base_layer.weight",
    ".weight": "weight",
    ".bias": "bias",
}


ModuleTensors = dict[str, TensorEntry]
"""The tensors of one module by their role."""


def read_spec(folder: Path, base: BaseInfo, limits: AdapterLimits) -> AdapterSpec:
    """Read an adapter and compare it with a base: all checks that need no model.

    Reads every byte of the files, in parts: memory stays small.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors.
        base: The base that it must fit.
        limits: The largest sizes and rank.

    Raises:
        InvalidAdapter: It is refused; the message names the field or tensor.
        TooLarge: A file is beyond its limit.
    """
    config, config_bytes = _read_config(folder / CONFIG_FILE, limits)
    lora = LoraConfig(config, base, limits)
    if lora.base_digest not in (None, base.digest):
        raise InvalidAdapter(
            f"{CONFIG_FILE}: by graftwork.base_digest the adapter was trained on the base {lora.base_digest}, and here "
            f"{base.id} is {base.digest}: push it to a server with that base, or train it again on this one.",
            param="graftwork.base_digest",
        )
    with TensorFile(folder / WEIGHTS_FILE, max_header_bytes=limits.max_header_bytes) as file:
        if file.num_bytes > limits.max_adapter_bytes:
            raise TooLarge(
                f"{WEIGHTS_FILE} has {file.num_bytes} bytes: this server takes {limits.max_adapter_bytes}.",
                param=WEIGHTS_FILE,
            )
        tensors = dict(file.tensors)
        head = _pop_scalar_head(tensors, base, lora)
        modules = _by_module(tensors, base)
        grafts: list[GraftSpec] = []
        replaced: dict[str, Mapping[str, str]] = {}
        copies: list[tuple[str, TensorEntry]] = []
        for name, shape in base.modules.items():
            parts = modules.get(name, {})
            if copy := _pop_base_copy(name, parts, base, lora):
                copies.append((name, copy))
            if whole := _pop_replaced_module(name, shape, parts, lora):
                replaced[name] = whole
            if graft := _pop_graft(name, shape, parts, lora):
                grafts.append(graft)
            for left in parts.values():
                raise _tensor_error(left, f"belongs to {name}, which is not in modules_to_save: correct one of the two")
            if lora.is_reward_model and is_head(name, base) and (whole or graft):
                raise InvalidAdapter(
                    f"{WEIGHTS_FILE} changes {name}, which a reward model does not have: train its other modules.",
                    param="target_modules",
                )
        if not grafts:
            raise InvalidAdapter(f"{WEIGHTS_FILE} holds no LoRA tensors: push a trained LoRA.", param=WEIGHTS_FILE)
        digest = _digest_of(config)
        file.hash_and_check_finite(digest.update)
        for name, copy in copies:
            _check_copy(file, copy, name, base)
        _check_ties(file, {graft.name: graft for graft in grafts}, replaced, base, lora)
        used = [key for graft in grafts for key in (graft.a, graft.b, graft.magnitude, graft.bias) if key]
        used += [key for whole in replaced.values() for key in whole.values()]
        used += [head] if head else []
        return AdapterSpec(
            digest=f"sha256:{digest.hexdigest()}",
            num_bytes=config_bytes + file.num_bytes,
            num_parameters=sum(file.tensors[key].num_elements for key in used),
            rank=max(graft.rank for graft in grafts),
            grafts=tuple(grafts),
            replaced=replaced,
            base_digest=lora.base_digest,
            config=config,
            head=head,
            warnings=tuple(_warnings({graft.name for graft in grafts}, lora, base)),
        )


def _warnings(grafted: Set[str], lora: LoraConfig, base: BaseInfo) -> Iterator[str]:
    for source in lora.unmatched_patterns(grafted):
        yield f"{CONFIG_FILE}: {source} matches none of the modules that have tensors."
    targeted = [name for name, shape in base.modules.items() if shape.kind != "other" and lora.targets(name)]
    left_out = [name for name in targeted if name not in grafted]
    if left_out:
        yield (
            f"{len(left_out)} of the {len(targeted)} modules that the config targets have no tensors, among them "
            f"{left_out[0]}: they stay the base's."
        )


def _read_config(path: Path, limits: AdapterLimits) -> tuple[dict[str, Any], int]:
    with open_regular(path) as file:
        raw = file.read(limits.max_config_bytes + 1)
    if len(raw) > limits.max_config_bytes:
        raise TooLarge(f"{CONFIG_FILE} is larger than {limits.max_config_bytes} bytes.", param=CONFIG_FILE)
    return parse_object(raw, what=CONFIG_FILE), len(raw)


def digest_of(folder: Path, limits: AdapterLimits) -> str:
    """The digest of a folder's files, as ``read_spec`` gives it, without any other check.

    Raises:
        InvalidAdapter: A file is missing, or the config is no JSON.
        TooLarge: The config is beyond its limit.
    """
    config, _ = _read_config(folder / CONFIG_FILE, limits)
    digest = _digest_of(config)
    with open_regular(folder / WEIGHTS_FILE) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


def _digest_of(config: Mapping[str, Any]) -> hashlib._Hash:
    """A hash of the config, to be continued with the tensors' bytes."""
    canonical = dict(config)
    for field in ("target_modules", "exclude_modules"):
        if isinstance(canonical.get(field), list):
            canonical[field] = sorted(canonical[field])
    for field in ("rank_pattern", "alpha_pattern"):
        if canonical.get(field):
            canonical[field] = list(canonical[field].items())
    encoded = json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(b"graftwork adapter 1\n" + len(encoded).to_bytes(8, "little") + encoded)


def _pop_scalar_head(tensors: dict[str, TensorEntry], base: BaseInfo, lora: LoraConfig) -> str | None:
    """Remove the head of a reward model from ``tensors``: its key, or ``None`` for an adapter that answers."""
    if not lora.is_reward_model:
        return None
    head = tensors.pop(_SCALAR_HEAD, None)
    if head is None or not lora.saves("score"):
        raise InvalidAdapter(
            f"{WEIGHTS_FILE} has no {_SCALAR_HEAD}, the head of a reward model (task_type SEQ_CLS): save the whole "
            'adapter, with modules_to_save=["score"].',
            param="modules_to_save",
        )
    if head.shape != (1, base.hidden_size):
        raise _tensor_error(
            head,
            f"has shape {list(head.shape)} where a reward model of {base.id} has [1, {base.hidden_size}]: a classifier "
            "of several labels is none",
        )
    return head.name


def _by_module(tensors: Mapping[str, TensorEntry], base: BaseInfo) -> dict[str, ModuleTensors]:
    modules: dict[str, ModuleTensors] = {}
    for key, tensor in tensors.items():
        suffix = next((suffix for suffix in _ROLES if key.endswith(suffix)), None)
        name = key.removeprefix(_PREFIX).removesuffix(suffix or "")
        if suffix is None or not key.startswith(_PREFIX) or name not in base.modules:
            raise _tensor_error(
                tensor, f"belongs to no module of {base.id}: was the adapter trained on this architecture?"
            )
        if modules.setdefault(name, {}).setdefault(_ROLES[suffix], tensor) is not tensor:
            raise _tensor_error(tensor, "is there under another name as well")
    return modules


def _pop_base_copy(name: str, parts: ModuleTensors, base: BaseInfo, lora: LoraConfig) -> TensorEntry | None:
    """Remove a saved copy of the base's own weight from ``parts``: of an embedding or of the head."""
    if base.modules[name].kind != "embedding" and not is_head(name, base):
        return None
    return parts.pop("base_layer.weight", None) or (None if lora.saves(name) else parts.pop("weight", None))


def _pop_replaced_module(name: str, shape: ModuleShape, parts: ModuleTensors, lora: LoraConfig) -> dict[str, str]:
    """Remove the tensors that replace the module as a whole from ``parts``: parameter -> key, or nothing."""
    if not lora.saves(name):
        return {}
    expected = {"weight": shape.shape} | ({"bias": shape.shape[:1]} if shape.bias else {})
    taken = {role: parts.pop(role) for role in expected if role in parts}
    if lacking := next((role for role in expected if role not in taken), None):
        raise InvalidAdapter(
            f"{WEIGHTS_FILE} lacks the {lacking} of {name}, which modules_to_save replaces: save the whole adapter.",
            param="modules_to_save",
        )
    for role, tensor in taken.items():
        _check_shape(tensor, expected[role], name)
    return {role: tensor.name for role, tensor in taken.items()}


def _pop_graft(name: str, shape: ModuleShape, parts: ModuleTensors, lora: LoraConfig) -> GraftSpec | None:
    """Remove the tensors that graft the module from ``parts``."""
    taken = {role: parts.pop(role) for role in list(parts) if role.startswith("lora_")}
    if not taken:
        if lora.fills_gaps_at_random and shape.kind != "other" and lora.targets(name):
            raise InvalidAdapter(
                f"{WEIGHTS_FILE} has no tensors for {name}, which the config targets, and with this init_lora_weights "
                "PEFT fills it at random: save the whole adapter, or target only what was trained.",
                param="target_modules",
            )
        return None
    first = next(iter(taken.values()))
    if shape.kind == "other":
        raise _tensor_error(first, f"grafts {name}, but only linear modules and embeddings can be grafted")
    if not lora.targets(name):
        raise _tensor_error(
            first, f"grafts {name}, which the config does not target: PEFT would pass over it; correct one"
        )
    if shape.kind == "embedding" and (lora.lora_bias or lora.use_dora):
        field = "lora_bias" if lora.lora_bias else "use_dora"
        raise _tensor_error(first, f"grafts the embedding {name} beside {field}, which is for linear modules only")
    rank, source = lora.rank(name)
    (out, width), a, b = shape.shape, "lora_A", "lora_B"
    if shape.kind == "embedding":
        (width, out), a, b = shape.shape, "lora_embedding_A", "lora_embedding_B"
    expected: dict[str, tuple[int, ...]] = {a: (rank, width), b: (out, rank)}
    expected |= {"lora_magnitude_vector": (out,)} if lora.use_dora else {}
    expected |= {"lora_B.bias": (out,)} if lora.lora_bias else {}
    for role in expected:
        if role not in taken:
            raise _tensor_error(first, f"comes without the {role} of {name}, which the config asks for: save all of it")
    for role, tensor in taken.items():
        if role not in expected:
            raise _tensor_error(
                tensor, f"is not what the config asks for on {name} ({', '.join(expected)}); correct one"
            )
    if taken[a].shape != expected[a] and taken[a].shape[1:] == (width,):
        raise _tensor_error(
            taken[a], f"has rank {taken[a].shape[0]}, but {source} in {CONFIG_FILE} says {rank}; correct one"
        )
    for role, tensor in taken.items():
        _check_shape(tensor, expected[role], name)
    keys = {role: tensor.name for role, tensor in taken.items()}
    return GraftSpec(
        name=name,
        kind=shape.kind,
        rank=rank,
        scale=lora.scale(name, rank),
        a=keys[a],
        b=keys[b],
        magnitude=keys.get("lora_magnitude_vector"),
        bias=keys.get("lora_B.bias"),
    )


def _check_shape(tensor: TensorEntry, expected: tuple[int, ...], name: str) -> None:
    if tensor.shape != expected:
        raise _tensor_error(
            tensor,
            f"has shape {list(tensor.shape)} where {name} takes {list(expected)}: was it trained on another base?",
        )


def _check_copy(file: TensorFile, copy: TensorEntry, name: str, base: BaseInfo) -> None:
    """Raise unless ``copy`` equals the base's own weight of module ``name``.

    A tied weight is saved under either name.
    """
    tied = {other for pair in base.tied if name in pair for other in pair}
    for path in sorted(Path(base.path).glob("*.safetensors")):
        with TensorFile(path.resolve(), max_header_bytes=MAX_HEADER_BYTES) as weights:
            for key in (f"{module}.weight" for module in (name, *sorted(tied))):
                if key in weights.tensors and same_numbers(file, copy.name, weights, key):
                    return
    raise _tensor_error(
        copy,
        f"is saved as the base's own weight of {name}, but is not this base's, and the base is shared by all: train "
        "on this base, list the module in modules_to_save, or save the adapter with save_embedding_layers=False",
    )


def _check_ties(
    file: TensorFile,
    grafts: Mapping[str, GraftSpec],
    replaced: Mapping[str, Mapping[str, str]],
    base: BaseInfo,
    lora: LoraConfig,
) -> None:
    """Raise unless both copies of what ensure_weight_tying trained once are equal."""
    for borrower, owner in base.tied:
        if owner in lora.tied_saved:
            agree = same_numbers(file, replaced[borrower]["weight"], file, replaced[owner]["weight"])
        elif owner in lora.tied_targets:
            head, embedding = grafts.get(borrower), grafts.get(owner)
            agree = head is embedding is None or (
                head is not None
                and embedding is not None
                and _are_transposed(file, head.a, embedding.b)
                and _are_transposed(file, head.b, embedding.a)
            )
        else:
            agree = True
        if not agree:
            raise InvalidAdapter(
                f"ensure_weight_tying is true, but {WEIGHTS_FILE} has different numbers for {borrower} and {owner}: "
                "save the adapter again with PEFT, or train without ensure_weight_tying.",
                param="ensure_weight_tying",
            )


def _are_transposed(file: TensorFile, key: str, other: str) -> bool:
    return np.array_equal(file.read(file.tensors[key]).T, file.read(file.tensors[other]))


def _tensor_error(tensor: TensorEntry, why: str) -> InvalidAdapter:
    return InvalidAdapter(f"{WEIGHTS_FILE}: tensor {escaped(tensor.name)} {why}.", param=WEIGHTS_FILE)
