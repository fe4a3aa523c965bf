"""Tiny models of several architectures with random weights, and adapters of every kind on them, made by PEFT."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from graftwork.adapters.base import BaseInfo, prepare
from graftwork.adapters.peft_format.folder import read_spec
from graftwork.adapters.peft_format.limits import AdapterLimits as AdapterLimits
from graftwork.server.engine.config import EngineConfig
from graftwork.server.engine.engine import Engine
from graftwork.server.engine.loading import build, load_grammar_tokenizer
from graftwork.server.engine.lora import host_adapter
from graftwork.server.engine.request import Delta, FinishReason, Pooling, Request, SamplingParams
from tests.conftest import TEST_HOME

VOCABULARY = 258
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-untied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "llama-long": lambda: LlamaConfig(**{**SIZES, "max_position_embeddings": 2048}),
    "qwen2": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=24),
    "mistral": lambda: MistralConfig(**SIZES, head_dim=16, sliding_window=20),
    "gemma": lambda: GemmaConfig(**SIZES, head_dim=16),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=16, sliding_window=16, query_pre_attn_scalar=16),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=16, query_pre_attn_scalar=16),
}

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "rank-16": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "rank-1": {"r": 1, "lora_alpha": 2, "target_modules": "all-linear"},
    "rank-64": {"r": 64, "lora_alpha": 64, "target_modules": "all-linear"},
    "rank-5": {"r": 5, "lora_alpha": 7, "target_modules": ATTENTION + MLP},
    "attention-only": {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION},
    "mlp-only": {"r": 24, "lora_alpha": 16, "target_modules": MLP},
    "q-and-v": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "partial-layers": {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION, "layers_to_transform": [1]},
    "rslora": {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear"},
    "rank-pattern": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ATTENTION + MLP,
        "rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 40},
        "alpha_pattern": {"k_proj": 5, "layers.0.self_attn.q_proj": 1},
    },
    "dora": {"r": 8, "lora_alpha": 16, "use_dora": True, "target_modules": ATTENTION + MLP},
    "dora-rank-pattern": {
        "r": 8,
        "lora_alpha": 16,
        "use_dora": True,
        "target_modules": MLP,
        "rank_pattern": {"up_proj": 20},
    },
    "lora-bias": {"r": 8, "lora_alpha": 16, "lora_bias": True, "target_modules": ATTENTION},
    "norm-saved": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ATTENTION,
        "modules_to_save": ["input_layernorm", "norm"],
    },
}
#: Kinds that only make sense where head and embedding are not one tensor.
UNTIED_KINDS: dict[str, dict[str, Any]] = {
    "head-lora": {"r": 8, "lora_alpha": 16, "target_modules": [*ATTENTION, "lm_head"]},
    "embedding-lora": {"r": 8, "lora_alpha": 16, "target_modules": [*ATTENTION, "embed_tokens"]},
    "head-saved": {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION, "modules_to_save": ["lm_head"]},
    "embedding-saved": {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]},
}


def make_base(architecture: str, folder: Path, home: Path) -> BaseInfo:
    torch.manual_seed(sum(architecture.encode()))
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Wide enough that softmaxes are not flat; norms and biases of their own: nothing hides behind 1 and 0.
            parameter.normal_(0, 0.15) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
            if name.endswith("embed_tokens.weight"):
                parameter.mul_(3)
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return prepare(str(folder), home, lambda *_: None)


def load_reference(info: BaseInfo) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(info.path, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def make_adapter(info: BaseInfo, folder: Path, kind: dict[str, Any], seed: int, strength: float = 0.08) -> None:
    """A PEFT folder whose every tensor is random: nothing may be left out without a difference."""
    torch.manual_seed(seed)
    model = get_peft_model(load_reference(info), LoraConfig(task_type="CAUSAL_LM", **kind))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
            elif "lora_" in name:
                parameter.normal_(0, strength)
            elif "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * strength)
    model.save_pretrained(folder)


@dataclass
class Answered:
    tokens: list[int]
    logprobs: list[float]
    prompt_logprobs: list[float]
    finish_reason: FinishReason | None = None
    error: str | None = None
    embedding: list[float] | None = None

    def take(self, delta: Delta) -> None:
        self.tokens += delta.token_ids
        self.logprobs += [s.logprob for s in delta.logprobs]
        self.prompt_logprobs += [s.logprob for s in delta.prompt_logprobs or [] if s is not None]
        self.embedding = delta.embedding
        self.finish_reason, self.error = delta.finish_reason, delta.error


class Bench:
    """An engine over one base with adapters by name, driven to the end."""

    def __init__(self, info: BaseInfo, adapters: dict[str, Path], **config: Any) -> None:
        self.info = info
        self.folders: dict[str, Path] = {}
        self.digests: dict[str, str] = {}
        for name, folder in adapters.items():
            self.register(name, folder)
        options = {
            "quantize": "none",
            "dtype": "float32",
            "device": "cpu",
            "max_sequences": 16,
            "cache_bytes": 64 << 20,
            "kernel_cache": TEST_HOME / "kernels",
        }
        runner, limits, self.card = build(info, EngineConfig(**{**options, **config}))
        self.engine = Engine(
            runner, limits, self.fetch, host_bytes=1 << 30, grammar_tokenizer=load_grammar_tokenizer(info)
        )

    def register(self, name: str, folder: Path) -> None:
        spec = read_spec(folder, self.info, AdapterLimits())
        self.folders[spec.digest], self.digests[name] = folder, spec.digest

    def fetch(self, digest: str) -> host_adapter.HostAdapter:
        limits = AdapterLimits()
        spec_of = partial(read_spec, base=self.info, limits=limits)
        return host_adapter.read_artifact(self.folders[digest], digest, spec_of, limits, torch.float32)

    def add(self, request_id: str, prompt: list[int], adapter: str | None = None, **sampling: Any) -> None:
        options = {"max_tokens": 8, "temperature": 0.0, "top_logprobs": 0, "prompt_logprobs": 0, **sampling}
        digest = None if adapter is None else self.digests[adapter]
        self.engine.add(
            Request(id=request_id, prompt=tuple(prompt), adapter=digest, sampling=SamplingParams(**options))
        )

    def embed(self, request_id: str, prompt: list[int], adapter: str | None = None, pooling: Pooling = "mean") -> None:
        self.add(request_id, prompt, adapter, max_tokens=0, top_logprobs=None, prompt_logprobs=None, pooling=pooling)

    def run(self, told: Iterable[Delta] = ()) -> dict[str, Answered]:
        """To the end, after what was ``told`` already."""
        answers: dict[str, Answered] = {}
        for delta in told:
            answers.setdefault(delta.request_id, Answered([], [], [])).take(delta)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if not self.engine.has_work:
                time.sleep(0.001)  # an adapter or grammar is on its way: let that thread have the interpreter
            for delta in self.engine.step():
                answers.setdefault(delta.request_id, Answered([], [], [])).take(delta)
            if not len(self.engine.scheduler) and not self.engine.has_work:
                return answers
        raise AssertionError("the engine did not come to an end")


@torch.no_grad()
def reference_logprobs(model: torch.nn.Module, tokens: list[int]) -> list[float]:
    """What a plain forward says of tokens[1:], each given all before it."""
    logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()


@torch.no_grad()
def reference_embedding(model: torch.nn.Module, tokens: list[int], pooling: Pooling) -> torch.Tensor:
    """What a plain forward's last hidden states, which are normed, become."""
    states = model(input_ids=torch.tensor([tokens]), use_cache=False, output_hidden_states=True).hidden_states[-1][0]
    return torch.nn.functional.normalize(states.mean(0) if pooling == "mean" else states[-1], dim=0)


def with_adapter(info: BaseInfo, folder: Path) -> PeftModel:
    return PeftModel.from_pretrained(load_reference(info), folder).eval()
