"""What every test may use. Heavy things are made once and kept below the checkout's ``.graftwork`` between runs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from graftwork.adapters.base import BaseInfo, prepare

CHECKOUT = Path(__file__).resolve().parent.parent
TEST_HOME = Path(os.environ.get("GRAFTWORK_TEST_HOME", CHECKOUT / ".graftwork" / "test"))
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

# A run in the background inherits an ignored Ctrl-C, and so would everything that tests send one to.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What is printed is as wide as without a terminal, wherever the tests were started and however many run at a time.
os.environ.pop("COLUMNS", None)

# The examples are the same in every run, and take their time on a busy machine. New ones: --hypothesis-profile=search.
settings.register_profile("same", deadline=None, derandomize=True, database=None)
settings.register_profile("search", deadline=None)
settings.load_profile("same")

# Every home of every test would build its own otherwise.
os.environ.setdefault("GRAFTWORK_KERNEL_CACHE", str(TEST_HOME / "kernels"))


@pytest.fixture(scope="session")
def embedded_base() -> BaseInfo:
    """The real embedded base, fetched and converted on the first run."""

    def progress(title: str, fraction: float | None) -> None:
        if fraction is None:
            print(title, file=sys.stderr)

    return prepare(None, TEST_HOME, progress)


@pytest.fixture(scope="session")
def tiny_folder(embedded_base: BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two narrow layers with random weights in bfloat16 and the real tokenizer: trains in seconds."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("bases") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=embedded_base.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        initializer_range=0.2,  # the usual 0.02 makes so narrow a model all but constant
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(Path(embedded_base.path, name), folder)
    return folder
