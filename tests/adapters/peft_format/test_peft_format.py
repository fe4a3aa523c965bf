"""Adapters saved by PEFT are read as PEFT reads them; unsupported ones are refused with a reason."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftwork.adapters.base import BaseInfo, ModuleShape
from graftwork.adapters.errors import InvalidAdapter, TooLarge
from graftwork.adapters.peft_format import config as lora_config
from graftwork.adapters.peft_format.config import DESCRIPTIVE, UNSUPPORTED, USED, LoraConfig
from graftwork.adapters.peft_format.files import CONFIG_FILE, WEIGHTS_FILE
from graftwork.adapters.peft_format.folder import read_spec
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.peft_format.patterns import Budget
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.adapters.registry.artifacts import ArtifactStore
from tests.adapters import adapter_files as files

LIMITS = AdapterLimits(max_rank=64)

# --- as PEFT does it --------------------------------------------------------------------------------------------------


def build_base(folder: Path, *, tied: bool, bias: bool) -> BaseInfo:
    """A random Llama of two layers in ``folder``, and what is known of it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            attention_bias=bias,
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    kinds = {torch.nn.Linear: "linear", torch.nn.Embedding: "embedding"}
    modules = {
        name: ModuleShape(
            kind=kinds.get(type(module), "other"),
            shape=tuple(module.weight.shape),
            bias=getattr(module, "bias", None) is not None,
        )
        for name, module in model.named_modules()
        if hasattr(module, "weight")
    }
    return dataclasses.replace(
        files.tiny_base(folder / "unused"),
        path=str(folder),
        modules=modules,
        tied=(("lm_head", "model.embed_tokens"),) if tied else (),
    )


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BaseInfo]:
    known: dict[tuple[bool, bool], BaseInfo] = {}

    def base(*, tied: bool = True, bias: bool = False) -> BaseInfo:
        if (tied, bias) not in known:
            known[tied, bias] = build_base(tmp_path_factory.mktemp("base"), tied=tied, bias=bias)
        return known[tied, bias]

    return base


def load_base(base: BaseInfo) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base.path, dtype="float32").eval()


def train(base: BaseInfo, folder: Path, *, dtype: str = "float32", **fields: Any) -> Path:
    """Let PEFT make an adapter, give it random numbers in place of training, and let PEFT save it."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load_base(base), LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4} | fields))
    numbers = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            noise = torch.randn(parameter.shape, generator=numbers)
            # Additive keeps what PEFT tied together together; magnitudes and norms stay of their size.
            parameter.data.copy_(parameter.data * (1 + 0.1 * noise) if parameter.dim() == 1 else 0.1 * noise)
            if "lora_B" in name and parameter.dim() == 1:
                parameter.data.copy_(noise)
    if dtype != "float32":
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad:
                    setattr(module, name, torch.nn.Parameter(parameter.to(getattr(torch, dtype))))
    model.save_pretrained(folder)
    return folder


def logits_of(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.arange(24).reshape(2, 12)).logits


def apply(spec: AdapterSpec, folder: Path, base: BaseInfo) -> Any:
    """The slow, obvious way: put what the spec says into a plain base, module by module. Returns logits."""
    import torch
    from safetensors.torch import load_file

    tensors = {key: tensor.float() for key, tensor in load_file(folder / WEIGHTS_FILE).items()}
    model = load_base(base)
    for name, keys in spec.replaced.items():
        for parameter, key in keys.items():
            setattr(model.get_submodule(name), parameter, torch.nn.Parameter(tensors[key]))

    def hook(graft: Any) -> Callable[[Any, Any, Any], Any]:
        a, b = tensors[graft.a], tensors[graft.b]

        def add(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
            (x,) = inputs
            added = x @ a.T @ b.T if graft.kind == "linear" else a.T[x] @ b.T
            added = graft.scale * (added + (tensors[graft.bias] if graft.bias else 0))
            if graft.magnitude is None:
                return output + added
            merged = module.weight + graft.scale * (b @ a if graft.kind == "linear" else (b @ a).T)
            norm = merged.norm(dim=1 if graft.kind == "linear" else 0)
            offset = module.bias if getattr(module, "bias", None) is not None else 0
            return (output - offset + added) * tensors[graft.magnitude] / norm + offset

        return add

    for graft in spec.grafts:
        model.get_submodule(graft.name).register_forward_hook(hook(graft))
    return logits_of(model)


ALL_SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (about the base, PEFT's LoraConfig)
    "plain": ({}, {"target_modules": ["q_proj", "v_proj"]}),
    "odd rank": ({}, {"target_modules": ALL_SEVEN, "r": 3, "lora_alpha": 5}),
    "one layer by full name": ({}, {"target_modules": ["model.layers.1.mlp.up_proj"]}),
    "regex": ({}, {"target_modules": r".*\.layers\.[0-9]+\.(self_attn|mlp)\.(q|up)_proj"}),
    "all-linear": ({}, {"target_modules": "all-linear"}),
    "exclude list": ({}, {"target_modules": ALL_SEVEN, "exclude_modules": ["layers.0.mlp.up_proj", "q_proj"]}),
    "exclude regex": ({}, {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*proj"}),
    "layers": ({}, {"target_modules": ALL_SEVEN, "layers_to_transform": [1]}),
    "layer 0": ({}, {"target_modules": ["q_proj"], "layers_to_transform": 0}),
    "layers pattern": ({}, {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"}),
    "layers patterns": (
        {},
        {"target_modules": ["up_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "layers"]},
    ),
    "layers but a full name": (
        {},
        {"target_modules": ["model.layers.0.mlp.up_proj", "q_proj"], "layers_to_transform": [1]},
    ),
    "patterns": (
        {},
        {
            "target_modules": ALL_SEVEN,
            # In the order of the letters, as PEFT saves them: where patterns overlap, loading may differ from training.
            "rank_pattern": {".*mlp.up.*": 5, r"^model\.layers\.0\.mlp.*": 2, "q_proj": 7},
            "alpha_pattern": {"(k|v)_proj": 1, ".*1.*q_proj": 31, ".*": 17},
        },
    ),
    "rslora": ({}, {"target_modules": ALL_SEVEN, "use_rslora": True, "lora_alpha": 3}),
    "rslora patterns": (
        {},
        {
            "target_modules": ALL_SEVEN,
            "use_rslora": True,
            "rank_pattern": {"v_proj": 9},
            "alpha_pattern": {"q_proj": 2},
        },
    ),
    "dora": ({}, {"target_modules": ALL_SEVEN, "use_dora": True, "rank_pattern": {"up_proj": 2}}),
    "dora on biased linears": ({"bias": True}, {"target_modules": ["q_proj", "o_proj"], "use_dora": True}),
    "dora rslora": ({}, {"target_modules": ["k_proj"], "use_dora": True, "use_rslora": True}),
    "dora on the head": ({"tied": False}, {"target_modules": ["lm_head"], "use_dora": True}),
    "lora bias": ({}, {"target_modules": ["q_proj", "down_proj"], "lora_bias": True}),
    "lora bias on biased linears": (
        {"bias": True},
        {"target_modules": ["q_proj"], "lora_bias": True, "use_rslora": True},
    ),
    "embedding": ({}, {"target_modules": ["q_proj", "embed_tokens"]}),
    "embedding, untied": ({"tied": False}, {"target_modules": ["embed_tokens"], "rank_pattern": {"embed_tokens": 6}}),
    "head": ({}, {"target_modules": ["q_proj", "lm_head"]}),
    "head, untied": ({"tied": False}, {"target_modules": ["lm_head"]}),
    "embedding and head": ({}, {"target_modules": ["embed_tokens", "lm_head"], "alpha_pattern": {"lm_head": 3}}),
    "embedding by regex": ({}, {"target_modules": r"model\.embed_tokens|.*q_proj"}),
    "saved head": ({}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "saved embedding": ({}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "saved embedding and head": ({}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "saved, untied": ({"tied": False}, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "saved norms": ({}, {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    "saved container": ({}, {"target_modules": ALL_SEVEN, "modules_to_save": ["layers.1.mlp"]}),
    "saved biased linear": ({"bias": True}, {"target_modules": ["q_proj"], "modules_to_save": ["v_proj"]}),
    "tied grafts": ({}, {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}),
    "tied grafts by regex": ({}, {"target_modules": r"lm_head|.*q_proj", "ensure_weight_tying": True}),
    "tied saved": ({}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
    "nothing to tie": ({"tied": False}, {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}),
    "gaussian": ({}, {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}),
    "orthogonal": ({}, {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
    "mica": ({}, {"target_modules": ["q_proj"], "init_lora_weights": "mica"}),
    "eva": ({}, {"target_modules": ["q_proj"], "init_lora_weights": "eva"}),
    "random": ({}, {"target_modules": ["q_proj"], "init_lora_weights": False}),
    "bfloat16": ({}, {"target_modules": ALL_SEVEN, "dtype": "bfloat16"}),
    "float16": ({}, {"target_modules": ["embed_tokens", "v_proj"], "dtype": "float16"}),
    "no task": ({}, {"target_modules": ["q_proj"], "task_type": None}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_as_peft(kind: str, bases: Callable[..., BaseInfo], tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    about, fields = KINDS[kind]
    base = bases(**about)
    folder = train(base, tmp_path / "adapter", **fields)
    spec = read_spec(folder, base, LIMITS)

    model = PeftModel.from_pretrained(load_base(base), folder)
    layers = {
        name.removeprefix(files.PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
    assert [graft.name for graft in spec.grafts] == [name for name in base.modules if name in layers]
    for graft in spec.grafts:
        layer = layers[graft.name]
        assert (graft.rank, graft.scale) == (layer.r["default"], layer.scaling["default"])
    expected = logits_of(model)
    torch.testing.assert_close(apply(spec, folder, base), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, logits_of(load_base(base)), atol=1e-3)

    saved = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n or ".modules_to_save." in n)
    if not fields.get("ensure_weight_tying"):  # PEFT counts what it tied once
        assert spec.num_parameters == saved
    assert spec.num_bytes == sum((folder / name).stat().st_size for name in (CONFIG_FILE, WEIGHTS_FILE))
    assert spec.rank == max(graft.rank for graft in spec.grafts)
    assert spec.base_digest is None


FRAGMENTS = [
    "q_proj",
    "proj",
    "up_proj",
    "mlp",
    "0",
    "layers.0",
    "0.mlp.up_proj",
    "lm_head",
    "norm",
    "embed_tokens",
    "head",
]
FRAGMENTS += ["model.layers.1.mlp.up_proj", "model", "input_layernorm"]
REGEXES = [
    r".*",
    r".*proj",
    r"(?:.*\.)?[qv]_proj",
    r"model\.layers\.\d+\.mlp\..*",
    r"^(?!.*mlp).*_proj$",
    r"lm_head|.*v_proj",
    "",
]
names_of_modules = st.lists(st.sampled_from(FRAGMENTS), max_size=3)


@given(
    fields=st.fixed_dictionaries(
        {"target_modules": names_of_modules | st.sampled_from(REGEXES).filter(bool)},
        optional={
            "exclude_modules": names_of_modules | st.sampled_from(REGEXES),
            "modules_to_save": st.lists(st.sampled_from([*FRAGMENTS, "layers.(0|1)", "q_proj|mlp"]), max_size=2),
            "layers_to_transform": st.none() | st.integers(-1, 2) | st.lists(st.integers(0, 3), max_size=2),
            "layers_pattern": st.none() | st.sampled_from(["layers", "h", "model.layers"]) | names_of_modules,
            "rank_pattern": st.dictionaries(st.sampled_from(FRAGMENTS + REGEXES), st.integers(1, 9), max_size=3),
            "alpha_pattern": st.dictionaries(st.sampled_from(FRAGMENTS + REGEXES), st.integers(1, 9), max_size=3),
        },
    )
)
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")
def test_modules_are_matched_as_peft_does(fields: dict[str, Any], base: BaseInfo) -> None:
    import peft
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    config = files.config(**fields)
    try:
        theirs = peft.LoraConfig(**fields)
    except ValueError:
        with pytest.raises(InvalidAdapter, match="layers"):
            LoraConfig(config, base, LIMITS)
        return
    ours = LoraConfig(config, base, LIMITS)
    for name in base.modules:
        assert ours.targets(name) is bool(check_target_module_exists(theirs, name))
        rank = theirs.rank_pattern.get(get_pattern_key(theirs.rank_pattern, name), 4)
        alpha = theirs.alpha_pattern.get(get_pattern_key(theirs.alpha_pattern, name), 8)
        assert ours.rank(name)[0] == rank
        assert ours.scale(name, rank) == alpha / rank


def test_every_field_of_peft_is_known() -> None:
    """A new PEFT with new fields: decide about each before the pin moves."""
    from peft import LoraConfig

    assert {field.name for field in dataclasses.fields(LoraConfig)} <= USED | DESCRIPTIVE | set(UNSUPPORTED)


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_converted_from_pissa_is_plain(bases: Callable[..., BaseInfo], tmp_path: Path) -> None:
    """The advice given for PiSSA works: what PEFT converts is accepted, and computes what PEFT says."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    base = bases()
    model = get_peft_model(
        load_base(base), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    )
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    trained = logits_of(model.eval())
    model.save_pretrained(tmp_path / "pissa")
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))

    with pytest.raises(InvalidAdapter, match="path_initial_model_for_weight_conversion"):
        read_spec(tmp_path / "pissa", base, LIMITS)
    spec = read_spec(tmp_path / "plain", base, LIMITS)
    torch.testing.assert_close(apply(spec, tmp_path / "plain", base), trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        logits_of(PeftModel.from_pretrained(load_base(base), tmp_path / "plain")), trained, rtol=1e-4, atol=1e-4
    )


@pytest.mark.filterwarnings("ignore")
def test_modules_the_file_leaves_out_are_left_alone(bases: Callable[..., BaseInfo], tmp_path: Path) -> None:
    """As PEFT does it: B = 0, which changes nothing."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    base = bases()
    folder = train(base, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(
        {key: tensor for key, tensor in tensors.items() if "layers.0.self_attn.q" not in key}, folder / WEIGHTS_FILE
    )
    spec = read_spec(folder, base, LIMITS)
    assert len(spec.grafts) == 3
    expected = logits_of(PeftModel.from_pretrained(load_base(base), folder))
    torch.testing.assert_close(apply(spec, folder, base), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_copy_of_another_embedding_is_refused(bases: Callable[..., BaseInfo], tmp_path: Path) -> None:
    """PEFT would load it over the base's own."""
    from safetensors.torch import load_file, save_file

    base = bases()
    folder = train(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors["base_model.model.model.embed_tokens.base_layer.weight"][40, 3] += 0.01
    save_file(tensors, folder / WEIGHTS_FILE)
    with pytest.raises(InvalidAdapter, match=r"embed_tokens\.base_layer\.weight.*save_embedding_layers=False"):
        read_spec(folder, base, LIMITS)
    del tensors["base_model.model.model.embed_tokens.base_layer.weight"]
    save_file(tensors, folder / WEIGHTS_FILE)
    assert [graft.name for graft in read_spec(folder, base, LIMITS).grafts] == ["model.embed_tokens"]


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> BaseInfo:
    return files.tiny_base(tmp_path / "base")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts", limits=files.SMALL)


def spec_of(tmp_path: Path, base: BaseInfo, config: dict[str, Any], tensors: files.Arrays) -> AdapterSpec:
    return read_spec(files.write(tmp_path / "adapter", config, tensors), base, files.SMALL)


def test_reading_needs_no_torch() -> None:
    """API processes read adapters, and stay light."""
    code = (
        "import sys, graftwork.adapters.peft_format.folder; sys.exit('torch' in sys.modules or 'peft' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_spec(tmp_path: Path, base: BaseInfo) -> None:
    config = files.config(graftwork={"base_digest": base.digest}, lora_alpha=16)
    spec = spec_of(tmp_path, base, config, files.tensors(base))
    graft = spec.grafts[0]
    assert (graft.name, graft.kind, graft.rank, graft.scale) == ("model.layers.0.self_attn.q_proj", "linear", 4, 4.0)
    assert graft.a == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert (graft.magnitude, graft.bias) == (None, None)
    assert len(spec.grafts) == 4
    assert spec.base_digest == base.digest
    assert spec.config == config
    assert spec.num_parameters == 2 * (2 * 4 * 32) + 2 * (4 * 32 + 48 * 4)


def test_fields_of_a_later_peft_that_say_nothing_are_fine(tmp_path: Path, base: BaseInfo) -> None:
    spec_of(tmp_path, base, files.config(new_a=None, new_b=False, new_c={}, new_d=[], new_e=""), files.tensors(base))


def test_configs_of_old_peft_are_fine(tmp_path: Path, base: BaseInfo) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "bias": "none"}
    config |= {"enable_lora": None, "merge_weights": False}
    assert spec_of(tmp_path, base, config, files.tensors(base)).grafts[0].scale == 2.0


def test_a_magnitude_may_be_called_weight(tmp_path: Path, base: BaseInfo) -> None:
    """PEFT reads both."""
    name = "model.layers.0.self_attn.q_proj"
    key = f"{files.PREFIX}{name}.lora_magnitude_vector.weight"
    tensors = files.graft(base, name) | {key: np.ones(32, np.float32)}
    assert spec_of(tmp_path, base, files.config(use_dora=True), tensors).grafts[0].magnitude == key


def test_a_bfloat16_copy_of_a_float32_base_is_the_same(tmp_path: Path, base: BaseInfo) -> None:
    """Whoever trains in bfloat16 saves the embedding rounded."""
    bits = files.base_embedding().view(np.uint32)
    rounded = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    for copy in (rounded, files.base_embedding().astype(np.float16), files.base_embedding()):
        for module in ("model.embed_tokens", "lm_head"):
            tensors = files.tensors(base) | {f"{files.PREFIX}{module}.weight": copy}
            assert spec_of(tmp_path, base, files.config(), tensors).replaced == {}
    rounded[3, 4] ^= 1
    with pytest.raises(InvalidAdapter, match="lm_head"):
        spec_of(tmp_path, base, files.config(), files.tensors(base) | {f"{files.PREFIX}lm_head.weight": rounded})


class TestDigest:
    def test_is_of_both_files(self, tmp_path: Path, base: BaseInfo) -> None:
        tensors = files.tensors(base)
        digest = spec_of(tmp_path, base, files.config(), tensors).digest
        assert digest == spec_of(tmp_path, base, files.config(), tensors).digest
        assert digest != spec_of(tmp_path, base, files.config(lora_alpha=9), tensors).digest
        tensors[next(iter(tensors))][0, 0] += 1
        assert digest != spec_of(tmp_path, base, files.config(), tensors).digest

    def test_does_not_depend_on_how_the_config_is_written(self, tmp_path: Path, base: BaseInfo) -> None:
        config = files.config(exclude_modules=["k_proj", "v_proj"])
        digest = spec_of(tmp_path, base, config, files.tensors(base)).digest
        turned = dict(reversed(config.items())) | {
            "target_modules": ["up_proj", "q_proj"],
            "exclude_modules": ["v_proj", "k_proj"],
        }
        assert spec_of(tmp_path, base, turned, files.tensors(base)).digest == digest
        (tmp_path / "adapter" / CONFIG_FILE).write_text(json.dumps(turned, indent=4), encoding="utf-8")
        assert read_spec(tmp_path / "adapter", base, files.SMALL).digest == digest

    def test_depends_on_the_order_of_patterns(self, tmp_path: Path, base: BaseInfo) -> None:
        """The first that fits holds, so another order is another adapter."""
        one = {"q_proj": 1, ".*proj": 2}
        first = spec_of(tmp_path, base, files.config(alpha_pattern=one), files.tensors(base))
        other = dict(reversed(one.items()))
        second = spec_of(tmp_path, base, files.config(alpha_pattern=other), files.tensors(base))
        assert (first.grafts[0].scale, second.grafts[0].scale) == (0.25, 0.5)
        assert first.digest != second.digest


# --- refused ----------------------------------------------------------------------------------------------------------

Q0 = "model.layers.0.self_attn.q_proj"
Q0_A, Q0_B = f"{files.PREFIX}{Q0}.lora_A.weight", f"{files.PREFIX}{Q0}.lora_B.weight"
EMBED, HEAD = f"{files.PREFIX}model.embed_tokens", f"{files.PREFIX}lm_head"

FIELDS: list[tuple[str, dict[str, Any], str]] = [
    # id, fields of the config, what the message says
    ("no type", {"peft_type": None}, "peft_type"),
    ("adalora", {"peft_type": "ADALORA"}, "peft_type is 'ADALORA'"),
    ("task", {"task_type": "SEQ_CLS"}, "task_type"),
    ("bias all", {"bias": "all"}, "bias"),
    ("bias null", {"bias": None}, "bias"),
    ("conv1d", {"fan_in_fan_out": True}, "fan_in_fan_out"),
    ("parameters", {"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters"),
    ("token rows", {"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ("alora", {"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ("replication", {"layer_replication": [[0, 2]]}, "layer_replication"),
    ("megatron", {"megatron_config": {"a": 1}}, "megatron_config"),
    ("qalora", {"use_qalora": True}, "use_qalora"),
    ("bdlora", {"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    ("arrow", {"arrow_config": {"top_k": 3}}, "arrow_config"),
    ("kasa", {"kasa_config": {"beta": 0.1}}, "kasa_config"),
    ("velora", {"velora_config": {"scale": 1}}, "velora_config"),
    ("monteclora", {"monteclora_config": {"num_samples": 8}}, "monteclora_config"),
    ("future field", {"use_hyperlora": True}, "use_hyperlora"),
    ("future number", {"new_scale": 0}, "new_scale"),
    ("pissa", {"init_lora_weights": "pissa"}, "init_lora_weights"),
    ("fast pissa", {"init_lora_weights": "pissa_niter_16"}, "path_initial_model_for_weight_conversion"),
    ("olora", {"init_lora_weights": "OLoRA"}, "init_lora_weights"),
    ("corda", {"init_lora_weights": "corda", "corda_config": {"corda_method": "ipm"}}, "init_lora_weights"),
    ("lora-ga", {"init_lora_weights": "lora_ga"}, "init_lora_weights"),
    ("loftq", {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "init_lora_weights"),
    ("unknown init", {"init_lora_weights": "magic"}, "init_lora_weights"),
    ("init number", {"init_lora_weights": 1}, "init_lora_weights"),
    ("init list", {"init_lora_weights": ["pissa"]}, "init_lora_weights"),
    ("rank zero", {"r": 0}, "r is 0"),
    ("rank negative", {"r": -4}, "r is -4"),
    ("rank true", {"r": True}, "r is True"),
    ("rank float", {"r": 4.0}, "r is 4.0"),
    ("rank text", {"r": "4"}, "r is '4'"),
    ("rank null", {"r": None}, "r is None"),
    ("rank too large", {"r": 17}, "ranks up to 16"),
    ("rank huge", {"r": 10**40}, "r is 1000"),
    ("alpha text", {"lora_alpha": "8"}, "lora_alpha"),
    ("alpha true", {"lora_alpha": True}, "lora_alpha"),
    ("alpha null", {"lora_alpha": None}, "lora_alpha"),
    ("alpha beyond float", {"lora_alpha": 10**400}, "lora_alpha"),
    ("alpha beyond float32", {"lora_alpha": 1e39}, "lora_alpha"),
    ("patterns a list", {"rank_pattern": [4]}, "rank_pattern"),
    ("pattern of text", {"rank_pattern": {"q_proj": "4"}}, "rank_pattern 'q_proj'"),
    ("pattern's rank too large", {"rank_pattern": {"nothing": 17}}, "rank_pattern 'nothing'"),
    (
        "pattern's rank is another",
        {"rank_pattern": {"q_proj": 8}},
        "rank_pattern 'q_proj' in adapter_config.json says 8",
    ),
    ("rank is another", {"r": 8}, "r in adapter_config.json says 8"),
    ("alpha pattern of null", {"alpha_pattern": {"q_proj": None}}, "alpha_pattern 'q_proj'"),
    ("alpha pattern no regex", {"alpha_pattern": {"q_proj(": 4}}, "alpha_pattern"),
    ("alpha pattern unbalanced", {"alpha_pattern": {"a)(b": 4}}, "alpha_pattern"),
    ("alpha pattern with reference", {"alpha_pattern": {r"(.)\1": 4}}, "alpha_pattern"),
    ("alpha pattern long", {"alpha_pattern": {"(a)" * 1000: 4}}, "alpha_pattern"),
    ("alpha pattern deep", {"alpha_pattern": {"(" * 400 + ")" * 400: 4}}, "alpha_pattern"),
    ("alpha patterns", {"alpha_pattern": {f"q{i}": 4 for i in range(5000)}}, "alpha_pattern"),
    ("no targets", {"target_modules": None}, "target_modules"),
    ("targets a number", {"target_modules": 4}, "target_modules"),
    ("targets with null", {"target_modules": ["q_proj", "up_proj", None]}, "target_modules"),
    ("targets no regex", {"target_modules": "(q_proj"}, "target_modules"),
    ("targets ignore case", {"target_modules": "(?i).*Q_PROJ"}, "target_modules"),
    ("targets look behind", {"target_modules": "(?<=a)b"}, "target_modules"),
    ("targets something else", {"target_modules": ["q_proj"]}, "up_proj"),
    ("targets dummy", {"target_modules": "dummy-target-modules"}, "q_proj"),
    ("excluded", {"exclude_modules": ["up_proj"]}, "up_proj"),
    ("excluded by regex", {"exclude_modules": ".*[.]1[.].*"}, "layers.1"),
    ("excluded a number", {"exclude_modules": 3}, "exclude_modules"),
    ("other layers", {"layers_to_transform": [1]}, "layers.0"),
    ("layers of text", {"layers_to_transform": ["1"]}, "layers_to_transform"),
    ("layers true", {"layers_to_transform": True}, "layers_to_transform"),
    ("layers with a regex", {"target_modules": ".*proj", "layers_to_transform": [0]}, "layers_to_transform"),
    ("layers pattern alone", {"layers_pattern": "layers"}, "layers_pattern"),
    ("layers pattern with regex", {"layers_to_transform": [0], "layers_pattern": "(a+)+"}, "layers_pattern"),
    ("layers pattern number", {"layers_to_transform": [0], "layers_pattern": 4}, "layers_pattern"),
    ("dora text", {"use_dora": "false"}, "use_dora"),
    ("dora without magnitudes", {"use_dora": True}, "lora_magnitude_vector"),
    ("dora and mica", {"use_dora": True, "init_lora_weights": "mica"}, "use_dora"),
    ("rslora number", {"use_rslora": 1}, "use_rslora"),
    ("lora bias missing", {"lora_bias": True}, "lora_B.bias"),
    ("lora bias and dora", {"lora_bias": True, "use_dora": True}, "lora_bias"),
    ("lora bias and eva", {"lora_bias": True, "init_lora_weights": "eva"}, "lora_bias"),
    ("saved text", {"modules_to_save": "lm_head"}, "modules_to_save"),
    ("saved empty name", {"modules_to_save": [""]}, "modules_to_save"),
    ("saved but absent", {"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ("saved by a regex", {"modules_to_save": ["lm_head("]}, "modules_to_save"),
    ("saved and grafted", {"modules_to_save": ["q_proj"]}, "q_proj"),
    ("left out at random", {"target_modules": ["q_proj", "up_proj", "v_proj"], "init_lora_weights": False}, "v_proj"),
    ("left out orthogonal", {"target_modules": ".*proj", "init_lora_weights": "orthogonal"}, "init_lora_weights"),
    ("tying text", {"ensure_weight_tying": "yes"}, "ensure_weight_tying"),
    ("other base", {"graftwork": {"base_digest": "sha256:" + "cd" * 32}}, "cdcdcd.*ababab"),
    ("base digest no digest", {"graftwork": {"base_digest": "main"}}, "graftwork.base_digest"),
    ("graftwork text", {"graftwork": "sha256"}, "graftwork"),
    ("graftwork unknown", {"graftwork": {"skip_checks": True}}, "graftwork"),
]


def ragged(tensors: files.Arrays, key: str, shape: tuple[int, ...]) -> files.Arrays:
    return tensors | {key: np.zeros(shape, np.float32)}


def with_number(tensors: files.Arrays, key: str, number: float, dtype: Any = np.float32) -> files.Arrays:
    array = np.zeros(tensors[key].shape, dtype)
    array[-1, -1] = number
    return tensors | {key: array}


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


TENSORS: list[tuple[str, dict[str, Any], Callable[[BaseInfo, files.Arrays], files.Arrays], str]] = [
    # id, fields of the config, what becomes of the good tensors, what the message says
    ("none", {}, lambda b, t: {}, WEIGHTS_FILE),
    ("no A", {}, lambda b, t: {k: v for k, v in t.items() if k != Q0_A}, "lora_A"),
    ("no B", {}, lambda b, t: {k: v for k, v in t.items() if k != Q0_B}, "lora_B"),
    ("A of another base", {}, lambda b, t: ragged(t, Q0_A, (4, 64)), "lora_A.weight"),
    ("B of another base", {}, lambda b, t: ragged(t, Q0_B, (64, 4)), "lora_B.weight"),
    ("B of another rank", {}, lambda b, t: ragged(t, Q0_B, (32, 5)), "lora_B.weight"),
    ("A transposed", {}, lambda b, t: t | {Q0_A: np.ascontiguousarray(t[Q0_A].T)}, "lora_A.weight"),
    ("A flat", {}, lambda b, t: ragged(t, Q0_A, (128,)), "lora_A.weight"),
    ("A scalar", {}, lambda b, t: ragged(t, Q0_A, ()), "lora_A.weight"),
    ("A of rank 8", {}, lambda b, t: ragged(ragged(t, Q0_A, (8, 32)), Q0_B, (32, 8)), "has rank 8, but r in"),
    ("no such module", {}, lambda b, t: t | {f"{files.PREFIX}model.layers.7.mlp.up_proj.lora_A.weight": t[Q0_A]}, "7"),
    ("no prefix", {}, lambda b, t: {k.removeprefix(files.PREFIX): v for k, v in t.items()}, "layers.0"),
    ("compiled", {}, lambda b, t: {k.replace("model.m", "model._orig_mod.m"): v for k, v in t.items()}, "_orig_mod"),
    ("adapter name", {}, lambda b, t: {k.replace("_A.", "_A.default."): v for k, v in t.items()}, "lora_A.default"),
    ("stray", {}, lambda b, t: t | {"optimizer.state": ones(4)}, "optimizer.state"),
    ("stray suffix", {}, lambda b, t: t | {".weight": ones(4)}, ".weight"),
    ("untargeted", {}, lambda b, t: t | files.graft(b, "model.layers.0.self_attn.v_proj"), "v_proj"),
    ("a norm", {"target_modules": ".*"}, lambda b, t: t | {f"{files.PREFIX}model.norm.lora_A.weight": t[Q0_A]}, "norm"),
    ("magnitude unasked", {}, lambda b, t: t | {f"{files.PREFIX}{Q0}.lora_magnitude_vector": ones(32)},
     "lora_magnitude_vector"),
    ("bias unasked", {}, lambda b, t: t | {f"{files.PREFIX}{Q0}.lora_B.bias": ones(32)}, "lora_B.bias"),
    ("weight unasked", {}, lambda b, t: t | {f"{files.PREFIX}model.norm.weight": ones(32)}, "norm.weight"),
    ("base layer", {}, lambda b, t: t | {f"{files.PREFIX}{Q0}.base_layer.weight": ones(32, 32)},
     "base_layer.weight"),
    ("embedding parts on a linear", {}, lambda b, t: t | {f"{files.PREFIX}{Q0}.lora_embedding_A": t[Q0_A]},
     "lora_embedding_A"),
    ("linear parts on an embedding", {"target_modules": ".*"}, lambda b, t: t | {f"{EMBED}.lora_A.weight": t[Q0_A]},
     "lora_embedding_A"),
    ("embedding turned", {"target_modules": ".*"}, lambda b, t: t | {
        f"{EMBED}.lora_embedding_A": ones(64, 4), f"{EMBED}.lora_embedding_B": ones(4, 32)
    }, "lora_embedding_A"),
    ("resized vocabulary", {"modules_to_save": ["embed_tokens"]},
     lambda b, t: t | {f"{EMBED}.weight": ones(65, 32)}, "embed_tokens.weight"),
    ("resized vocabulary unasked", {}, lambda b, t: t | {f"{EMBED}.weight": ones(65, 32)},
     "embed_tokens.weight"),
    ("another head unasked", {}, lambda b, t: t | {f"{HEAD}.weight": ones(64, 32)}, "lm_head.weight"),
    ("a bias the base has not", {"modules_to_save": ["lm_head"]},
     lambda b, t: t | {f"{HEAD}.weight": ones(64, 32), f"{HEAD}.bias": ones(64)},
     "lm_head.bias"),
    ("untied saved", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
     lambda b, t: t | {f"{EMBED}.weight": ones(64, 32), f"{HEAD}.weight": 0 * ones(64, 32)},
     "ensure_weight_tying"),
    ("half of a tie saved", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
     lambda b, t: t | {f"{EMBED}.weight": ones(64, 32)}, "lm_head"),
    ("untied grafts", {"target_modules": ["q_proj", "up_proj", "embed_tokens"], "ensure_weight_tying": True},
     lambda b, t: t | files.graft(b, "model.embed_tokens") | files.graft(b, "lm_head"), "ensure_weight_tying"),
    ("half of a tie", {"target_modules": ["q_proj", "up_proj", "embed_tokens"], "ensure_weight_tying": True},
     lambda b, t: t | files.graft(b, "model.embed_tokens"), "ensure_weight_tying"),
    ("lora bias on an embedding", {"lora_bias": True, "target_modules": ["embed_tokens"]},
     lambda b, t: files.graft(b, "model.embed_tokens"), "lora_bias"),
    ("dora on an embedding", {"use_dora": True, "target_modules": ["embed_tokens"]}, lambda b, t: (
        files.graft(b, "model.embed_tokens") | {f"{EMBED}.lora_magnitude_vector": ones(32)}
    ), "use_dora"),
    ("magnitude twice", {"use_dora": True}, lambda b, t: t | {
        f"{files.PREFIX}{Q0}.lora_magnitude_vector": ones(32),
        f"{files.PREFIX}{Q0}.lora_magnitude_vector.weight": ones(32),
    }, "another name"),
    ("NaN", {}, lambda b, t: with_number(t, Q0_A, math.nan), f"{Q0}.lora_A.weight.* NaN"),
    ("infinite", {}, lambda b, t: with_number(t, Q0_B, -math.inf), f"{Q0}.lora_B.weight.* NaN"),
    ("infinite float16", {}, lambda b, t: with_number(t, Q0_B, math.inf, np.float16), "lora_B.weight.* NaN"),
    ("NaN bfloat16", {}, lambda b, t: with_number(t, Q0_B, 0x7FC1, np.uint16), "lora_B.weight.* NaN"),
    ("float64", {}, lambda b, t: with_number(t, Q0_B, 0, np.float64), "lora_B.weight.*F64"),
    ("integers", {}, lambda b, t: with_number(t, Q0_B, 0, np.int32), "lora_B.weight.*I32"),
]  # fmt: skip

RAW_CONFIGS: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("not JSON", b"{'r': 4}"),
    ("cut off", b'{"r": 4'),
    ("a list", b"[]"),
    ("a number", b"4"),
    ("not UTF-8", b'{"peft_type": "\xff"}'),
    ("UTF-16", json.dumps(files.config()).encode("utf-16")),
    ("byte order mark", b"\xef\xbb\xbf{}"),
    ("NaN", b'{"peft_type": "LORA", "lora_alpha": NaN}'),
    ("infinite", b'{"peft_type": "LORA", "lora_dropout": 1e999}'),
    ("twice", b'{"r": 4, "r": 8, "peft_type": "LORA"}'),
    ("deep lists", b'{"auto_mapping": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
    ("deep objects", b'{"a":' * 5_000 + b"1" + b"}" * 5_000),
    ("somewhat deep", b'{"auto_mapping": ' + b"[" * 300 + b"]" * 300 + b"}"),
    ("half a character", b'{"peft_type": "LORA", "revision": "\\uD83D"}'),
    ("long number", b'{"r": ' + b"9" * 5_000 + b"}"),
    ("too large", b'{"auto_mapping": "' + b"a" * (1 << 16) + b'"}'),
]


def check_refused(store: ArtifactStore, source: Path, base: BaseInfo, message: str) -> None:
    with pytest.raises((InvalidAdapter, TooLarge), match=message) as refusal:
        files.push(store, source, base)
    assert len(refusal.value.message) < 1000
    assert files.published(store) == []


@pytest.mark.parametrize(("fields", "message"), [pytest.param(f, m, id=i) for i, f, m in FIELDS])
def test_refused_for_its_config(
    fields: dict[str, Any], message: str, tmp_path: Path, base: BaseInfo, store: ArtifactStore
) -> None:
    source = files.write(tmp_path / "pushed", files.config(**fields), files.tensors(base))
    check_refused(store, source, base, message)


@pytest.mark.parametrize(("fields", "change", "message"), [pytest.param(f, c, m, id=i) for i, f, c, m in TENSORS])
def test_refused_for_its_tensors(
    fields: dict[str, Any],
    change: Callable[[BaseInfo, files.Arrays], files.Arrays],
    message: str,
    tmp_path: Path,
    base: BaseInfo,
    store: ArtifactStore,
) -> None:
    source = files.write(tmp_path / "pushed", files.config(**fields), change(base, files.tensors(base)))
    check_refused(store, source, base, message)


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in RAW_CONFIGS])
def test_refused_for_the_config_as_a_file(raw: bytes, tmp_path: Path, base: BaseInfo, store: ArtifactStore) -> None:
    check_refused(store, files.write(tmp_path / "pushed", raw, files.tensors(base)), base, CONFIG_FILE)


def test_patterns_that_match_nothing_are_said(tmp_path: Path, base: BaseInfo) -> None:
    config = files.config(rank_pattern={"no_proj": 8}, alpha_pattern={"no_proj": 3, "q_proj": 4})
    spec = spec_of(tmp_path, base, config, files.tensors(base))
    assert [warning.split(" matches")[0] for warning in spec.warnings] == [
        f"{CONFIG_FILE}: rank_pattern 'no_proj'",
        f"{CONFIG_FILE}: alpha_pattern 'no_proj'",
    ]


def test_targets_without_tensors_are_said(tmp_path: Path, base: BaseInfo) -> None:
    whole = files.tensors(base)
    assert spec_of(tmp_path / "whole", base, files.config(), whole).warnings == ()
    first = {key: value for key, value in whole.items() if ".layers.0." in key}
    (warning,) = spec_of(tmp_path / "first", base, files.config(), first).warnings
    assert re.match(
        r"\d+ of the \d+ modules that the config targets have no tensors, among them .*layers\.1\.", warning
    )


@pytest.mark.parametrize("text", [r"(a+)+$", r"(\w*\w*)*!", r"((.*)*)*x", r"(\w|\w\w|.)*#", r"(?:.?){99}.{99}x"])
@pytest.mark.parametrize(
    "field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save"]
)
def test_hostile_patterns_end(field: str, text: str, tmp_path: Path, base: BaseInfo) -> None:
    """Each of these keeps re busy for ages. Refused or not: there is an answer at once."""
    hostile = text * 3
    value = {"target_modules": hostile, "exclude_modules": hostile, "modules_to_save": [hostile]}.get(
        field, {hostile: 4}
    )
    try:
        spec_of(tmp_path, base, files.config(**{field: value}), files.tensors(base))
    except InvalidAdapter as error:
        assert field in error.message or "target" in error.message  # noqa: PT017


def test_many_hostile_patterns_are_refused(tmp_path: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora_config, "Budget", lambda: Budget(steps=50_000))
    patterns = {rf"(\w*\w*)*{number}!": 4 for number in range(200)}
    with pytest.raises(InvalidAdapter, match=r"alpha_pattern.*takes too long"):
        spec_of(tmp_path, base, files.config(alpha_pattern=patterns), files.tensors(base))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(fields=st.dictionaries(st.sampled_from(sorted(files.config())) | st.text(max_size=6), json_values, max_size=3))
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_any_config(fields: dict[str, Any], tmp_path: Path, base: BaseInfo) -> None:
    """Read or refused; nothing else."""
    try:
        spec = spec_of(tmp_path, base, files.config(**fields), files.tensors(base))
    except InvalidAdapter:
        return
    assert all(graft.rank == 4 and math.isfinite(graft.scale) for graft in spec.grafts)


def test_a_base_without_its_weights_at_hand(tmp_path: Path, base: BaseInfo) -> None:
    """A copy of the base's embedding that cannot be compared is not believed."""
    shutil.rmtree(base.path)
    tensors = files.tensors(base) | {f"{EMBED}.weight": files.base_embedding()}
    with pytest.raises(InvalidAdapter, match=r"embed_tokens\.weight"):
        spec_of(tmp_path, base, files.config(), tensors)
