"""Interprets an adapter_config.json: which modules of a base it targets, at which rank and scale.

The semantics are PEFT 0.21's, mirrored from ``check_target_module_exists``, ``get_pattern_key``, ``_set_trainable`` and
``LoraModel._check_tied_modules``. Every field is either used here, known to describe only how the adapter was
initialised, trained or saved, or refused by name unless it is null, false or empty. The same holds for fields of later
versions of PEFT: an unknown field with a value is never ignored.

``folder`` compares the config with the tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftwork.adapters.base.info import BaseInfo
from graftwork.adapters.errors import InvalidAdapter
from graftwork.adapters.names import escaped
from graftwork.adapters.peft_format.files import CONFIG_FILE
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.peft_format.patterns import BoundedPattern, Budget

# fmt: off
USED = frozenset({
    "alpha_pattern", "bias", "ensure_weight_tying", "exclude_modules", "graftwork", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "modules_to_save", "peft_type", "r",
    "rank_pattern", "target_modules", "task_type", "use_dora", "use_rslora",
})

# How the adapter was initialised, trained or saved. The configs of initialisations are here as well: the conversion of
# a PiSSA, CorDA or LoRA-GA adapter to a plain one leaves them in place, and PEFT ignores them then.
DESCRIPTIVE = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "inference_mode", "loftq_config",
    "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config",
})
# fmt: on

UNSUPPORTED = {
    "alora_invocation_tokens": "activated LoRA is not served: train a plain LoRA",
    "arrow_config": "routing between adapters is not served: push the adapters one by one",
    "fan_in_fan_out": "it stands for layers that store their weights transposed (Conv1D), which are not grafted",
    "kasa_config": "KaSA changes the base's own weights, which all adapters share: train a plain LoRA",
    "layer_replication": "it changes the base's layers, which all adapters share: train on the base as it is",
    "megatron_config": "Megatron's layers are not grafted: train with PEFT on the base itself",
    "monteclora_config": "it samples, which is not served: train a plain LoRA",
    "target_parameters": "only modules are grafted: name them in target_modules",
    "trainable_token_indices": 'rows of an embedding are not grafted: use modules_to_save=["embed_tokens"] instead',
    "use_bdlora": "block-diagonal LoRA is not served: train a plain LoRA",
    "use_qalora": "QALoRA pools the inputs, which is not served: train a plain LoRA",
    "velora_config": "VeLoRA is not served: train a plain LoRA",
}

SEQ_CLS = "SEQ_CLS"
"""The task type of reward models."""

_INIT_CHANGES_BASE = ("pissa", "corda", "olora", "lora_ga")
_INIT_OF_ADAPTER = ("gaussian", "eva", "mica", "orthogonal")

_EMBEDDINGS = ("embed_tokens", "lm_head")  # the only names by which PEFT looks for tied weights
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+")
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_MAX_ENTRIES = 4096  # of a list or table whose entries are matched with every module


@dataclass(frozen=True, kw_only=True)
class _Override:
    """One entry of rank_pattern or alpha_pattern."""

    source: str
    pattern: BoundedPattern
    value: float


class LoraConfig:
    """One adapter's configuration, interpreted for one base.

    Args:
        config: The content of adapter_config.json.
        base: Has the modules that it may target.
        limits: The largest rank.

    Attributes:
        base_digest: The base that it was trained on, if the config says so.
        use_rslora: Whether scales are alpha / √rank.
        use_dora: Whether linear modules have a magnitude.
        lora_bias: Whether linear modules have a bias.
        fills_gaps_at_random: Whether PEFT initializes missing tensors at random.
        is_reward_model: Whether it has a scalar head in place of the vocabulary's.
        tied_saved: Tied modules that are replaced together.
        tied_targets: Tied modules that are grafted together.

    Raises:
        InvalidAdapter: A field is wrong or not supported; the message names it.
    """

    def __init__(self, config: Mapping[str, Any], base: BaseInfo, limits: AdapterLimits) -> None:
        self._config = config
        self._base = base
        self._limits = limits
        self._budget = Budget()
        self._check_fields()
        self.is_reward_model = config.get("task_type") == SEQ_CLS
        self.base_digest = self._read_base_digest()
        self.use_rslora = self._flag("use_rslora")
        self.use_dora = self._flag("use_dora")
        self.lora_bias = self._flag("lora_bias")
        self.fills_gaps_at_random = self._read_init()
        self._rank = self._as_rank("r", config.get("r", 8))
        self._alpha = self._as_alpha("lora_alpha", config.get("lora_alpha", 8))
        self._ranks = self._overrides("rank_pattern", self._as_rank)
        self._alphas = self._overrides("alpha_pattern", self._as_alpha)
        self._saved = self._names("modules_to_save")
        self._unless_saved = [self._pattern("modules_to_save", name, r"(^|.*\.){}($|\..*)") for name in self._saved]
        self._excluded = self._names_or_pattern("exclude_modules") or frozenset()
        self._layers, self._layer_numbers = self._read_layers()
        self._targets = self._read_targets()
        self.tied_saved, self.tied_targets = self._read_ties()

    def targets(self, name: str) -> bool:
        """Whether PEFT would graft the base's module ``name``."""
        if name in self.tied_targets:
            return True
        if _is_listed(name, self._excluded) or any(pattern.match(name) for pattern in self._unless_saved):
            return False
        if isinstance(self._targets, BoundedPattern) or name in self._targets:
            return _is_listed(name, self._targets)  # layers_to_transform does not hold for full names
        return _is_listed(name, self._targets) and self._is_in_layers(name)

    def saves(self, name: str) -> bool:
        """Whether PEFT would replace module ``name`` as a whole. It compares suffixes of names, ignoring dots."""
        parts = name.split(".")
        paths = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        return name in self.tied_saved or any(path.endswith(self._saved) for path in paths)

    def rank(self, name: str) -> tuple[int, str]:
        """The rank of module ``name``, and the field of the config that sets it.

        The first pattern that matches applies.
        """
        override = _look_up(self._ranks, name)
        return (int(override.value), override.source) if override else (self._rank, "r")

    def scale(self, name: str, rank: int) -> float:
        """The factor of B·A of module ``name``: alpha / rank, or alpha / √rank with rsLoRA."""
        override = _look_up(self._alphas, name)
        return (override.value if override else self._alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def unmatched_patterns(self, grafted: Iterable[str]) -> Iterator[str]:
        """The entries of rank_pattern and alpha_pattern that hold for none of the grafted modules."""
        for overrides in (self._ranks, self._alphas):
            used = {override.source for name in grafted if (override := _look_up(overrides, name))}
            yield from (override.source for override in overrides if override.source not in used)

    # --- fields -------------------------------------------------------------------------------------------------------

    def _check_fields(self) -> None:
        peft_type = self._config.get("peft_type")
        if peft_type != "LORA":
            raise _wrong("peft_type", f"is {escaped(peft_type)}: only LORA adapters are served")
        for field, value in self._config.items():
            if field in USED or field in DESCRIPTIVE or value is None or value is False or value in ("", [], {}):
                continue
            why = UNSUPPORTED.get(field, "the field is unknown here (of a newer PEFT?) and may change what is computed")
            raise _wrong(field, f"is {escaped(value)}: {why}")
        task = self._config.get("task_type")
        if task not in (None, "CAUSAL_LM", SEQ_CLS):
            raise _wrong(
                "task_type",
                f"is {escaped(task)}: CAUSAL_LM adapters are served, and SEQ_CLS ones are kept as reward models",
            )
        bias = self._config.get("bias", "none")
        if bias != "none":
            raise _wrong("bias", f"is {escaped(bias)}: biases of the base are not replaced; train with bias='none'")

    def _read_base_digest(self) -> str | None:
        ours = self._config.get("graftwork")
        if ours is None:
            return None
        if not isinstance(ours, dict) or set(ours) - {"base_digest"}:
            raise _wrong("graftwork", f"is {escaped(ours)}: it may only hold base_digest")
        digest = ours.get("base_digest")
        if digest is not None and not (isinstance(digest, str) and re.fullmatch(r"sha256:[0-9a-f]{64}", digest)):
            raise _wrong("graftwork.base_digest", f"is {escaped(digest)}: it reads sha256: and 64 hexadecimal digits")
        return digest

    def _read_init(self) -> bool:
        """Whether PEFT initializes missing tensors at random.

        Refuses initialisations that changed the base's weights.
        """
        init = self._config.get("init_lora_weights", True)
        if isinstance(init, str) and init.lower().startswith(_INIT_CHANGES_BASE):
            raise _wrong(
                "init_lora_weights",
                f"is {escaped(init)}, which moves part of the base's weights into the adapter, so that it does not fit "
                "the base as it is: convert it to a plain LoRA where it was trained, by model.save_pretrained(folder, "
                "path_initial_model_for_weight_conversion=...)",
            )
        if isinstance(init, str) and init.lower() == "loftq":
            raise _wrong(
                "init_lora_weights",
                "is 'loftq', which replaces the base's weights by quantized ones, so that the adapter does not fit the "
                "base as it is: train with init_lora_weights=True",
            )
        if init is not None and not isinstance(init, bool) and init not in _INIT_OF_ADAPTER:
            raise _wrong("init_lora_weights", f"is {escaped(init)}, which is unknown here: train with True")
        if self.lora_bias and (self.use_dora or not isinstance(init, bool)):
            raise _wrong("lora_bias", "is true beside use_dora or an init_lora_weights: PEFT has no such adapters")
        if self.use_dora and init == "mica":
            raise _wrong("use_dora", "is true beside init_lora_weights 'mica': PEFT has no such adapters")
        return init is None or init is False or init == "orthogonal"

    def _read_targets(self) -> frozenset[str] | BoundedPattern:
        targets = self._names_or_pattern("target_modules")
        if targets is None:
            raise _wrong("target_modules", "is missing: name the modules that were trained")
        if isinstance(targets, BoundedPattern) and self._config["target_modules"].lower() == "all-linear":
            linear = (name for name, module in self._base.modules.items() if module.kind == "linear")
            return frozenset(name for name in linear if not is_head(name, self._base))
        return targets

    def _read_layers(self) -> tuple[frozenset[int], list[re.Pattern[str]]]:
        """The layers that are targeted (empty: all), and patterns that find a module's layer number in its name."""
        layers, names = self._config.get("layers_to_transform"), self._config.get("layers_pattern")
        if isinstance(self._config.get("target_modules"), str) and not (layers is None and names is None):
            raise _wrong("layers_to_transform", "and layers_pattern need target_modules to be a list of names")
        if names and layers is None:
            raise _wrong("layers_pattern", "needs layers_to_transform")
        layers = layers if isinstance(layers, list) else [] if layers is None else [layers]
        if not all(type(layer) is int for layer in layers):
            raise _wrong("layers_to_transform", f"is {escaped(layers)}: give a list of layer numbers")
        names = names if isinstance(names, list) else [names] if names else []
        if len(names) > _MAX_ENTRIES or not all(isinstance(n, str) and _PLAIN_NAME.fullmatch(n) for n in names):
            raise _wrong(
                "layers_pattern", f"is {escaped(names)}: give the name of the list of layers, such as 'layers'"
            )
        numbers = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in names] or [r".*?\.[^.]*\.(\d+)\."]
        return frozenset(layers), [re.compile(number) for number in numbers]

    def _read_ties(self) -> tuple[frozenset[str], frozenset[str]]:
        """With ensure_weight_tying, modules tied to the embedding are replaced or grafted with it."""
        pairs = [pair for pair in self._base.tied if self._base.modules[pair[1]].kind == "embedding"]
        tied = frozenset(name for pair in pairs for name in pair) if self._flag("ensure_weight_tying") else frozenset()
        if any(name.split(".")[-1] in _EMBEDDINGS for name in self._saved):
            return tied, frozenset()
        if isinstance(self._targets, BoundedPattern):
            targeted = any(self._targets.fullmatch(name) for name in _EMBEDDINGS)
        else:
            targeted = any(name.split(".")[-1] in _EMBEDDINGS for name in self._targets)
        return frozenset(), tied if targeted else frozenset()

    # --- values -------------------------------------------------------------------------------------------------------

    def _flag(self, field: str) -> bool:
        value = self._config.get(field)
        if value is not None and not isinstance(value, bool):
            raise _wrong(field, f"is {escaped(value)}: it is true or false")
        return bool(value)

    def _as_rank(self, field: str, value: Any) -> int:
        if type(value) is not int or value < 1:
            raise _wrong(field, f"is {escaped(value)}: a rank is a positive integer")
        if value > self._limits.max_rank:
            raise _wrong(field, f"is {escaped(value)}: this server takes ranks up to {self._limits.max_rank}")
        return value

    def _as_alpha(self, field: str, value: Any) -> float:
        if type(value) not in (int, float) or abs(value) > _FLOAT32_MAX:
            raise _wrong(field, f"is {escaped(value)}: it is a number that float32 can hold")
        return float(value)

    def _overrides(self, field: str, check: Callable[[str, Any], float]) -> list[_Override]:
        table = self._config.get(field) or {}
        if not isinstance(table, dict) or len(table) > _MAX_ENTRIES:
            raise _wrong(field, f"is {escaped(table)}: map at most {_MAX_ENTRIES} names of modules to numbers")
        return [
            _Override(
                source=f"{field} {escaped(text)}",
                pattern=self._pattern(field, text, r"(.*\.)?({})$"),
                value=check(f"{field} {escaped(text)}", value),
            )
            for text, value in table.items()
        ]

    def _names(self, field: str) -> tuple[str, ...]:
        names = self._config.get(field) or []
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise _wrong(field, f"is {escaped(names)}: give a list of names of modules")
        if len(names) > _MAX_ENTRIES:
            raise _wrong(field, f"has {len(names)} names: at most {_MAX_ENTRIES} are allowed")
        return tuple(names)

    def _names_or_pattern(self, field: str) -> frozenset[str] | BoundedPattern | None:
        value = self._config.get(field)
        if isinstance(value, str):
            return self._pattern(field, value) if value else None
        return None if value is None else frozenset(self._names(field))

    def _pattern(self, field: str, text: str, template: str = "{}") -> BoundedPattern:
        return BoundedPattern(text, source=f"{CONFIG_FILE}: {field}", template=template, budget=self._budget)

    def _is_in_layers(self, name: str) -> bool:
        found = next((match for number in self._layer_numbers if (match := number.match(name))), None)
        return not self._layers or (found is not None and int(found[1]) in self._layers)


def is_head(name: str, base: BaseInfo) -> bool:
    """Whether module ``name`` computes the logits: linear, one row per token, in no numbered layer."""
    module = base.modules[name]
    numbered = any(part.isdecimal() for part in name.split("."))
    return module.kind == "linear" and module.shape[0] == base.vocab_size and not numbered


def _is_listed(name: str, listed: frozenset[str] | BoundedPattern) -> bool:
    """Whether ``name``, or what follows one of its dots, is listed; or the pattern matches all of it."""
    if isinstance(listed, BoundedPattern):
        return listed.fullmatch(name)
    parts = name.split(".")
    return any(".".join(parts[first:]) in listed for first in range(len(parts)))


def _look_up(overrides: list[_Override], name: str) -> _Override | None:
    return next((override for override in overrides if override.pattern.match(name)), None)


def _wrong(field: str, why: str) -> InvalidAdapter:
    named = field if len(field) <= 64 else escaped(field)
    return InvalidAdapter(f"{CONFIG_FILE}: {named} {why}.", param=named)
