"""Fixtures and options of all tests. Expensive fixtures are kept in the checkout's ``.graftwork`` between runs."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from graftwork.adapters.base import BaseInfo, prepare
from graftwork.adapters.base.folder import fingerprint
from graftwork.adapters.collector import collector_paused

if TYPE_CHECKING:
    from tests.e2e.peft_folders import SmallAdapters
    from tests.e2e.server_process import Server

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


@pytest.fixture
def dead_bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a bucket at an address where nobody listens."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "top-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    return "s3://bucket/prefix"


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


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseInfo:
    return prepare(str(tiny_folder), tmp_path_factory.mktemp("home"), lambda title, fraction: None)


@pytest.fixture(scope="session")
def adapter_store() -> Path:
    """Where adapters are kept between runs."""
    return TEST_HOME / "adapters"


@pytest.fixture(scope="session")
def small(embedded_base: BaseInfo, adapter_store: Path) -> SmallAdapters:
    from tests.e2e.peft_folders import SmallAdapters

    return SmallAdapters(embedded_base, adapter_store)


@pytest.fixture(scope="session")
def home(embedded_base: BaseInfo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that has the embedded base already: what ``graftwork serve`` makes on its first start."""
    return make_home(tmp_path_factory.mktemp("server") / "home", embedded_base)


def make_home(home: Path, base: BaseInfo) -> Path:
    """Make a home with a base in it that need not be read to be known, which takes as long as half a start."""
    folder = home.resolve() / "base" / Path(base.path).name
    info = folder.with_name("info")
    info.mkdir(parents=True)
    folder.symlink_to(base.path)
    (info / f"{fingerprint(folder)}.json").write_text(dataclasses.replace(base, path=str(folder)).to_json())
    return home


@pytest.fixture(scope="session")
def pushable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder below which the server may read adapters by path."""
    return tmp_path_factory.mktemp("pushable")


@pytest.fixture(scope="session")
def server(home: Path, pushable: Path) -> Iterator[Server]:
    """The server that most tests share. When all are done it stops as asked, and nothing broke meanwhile."""
    from tests.e2e.server_process import Server

    server = Server(home, "--allowed-root", str(pushable)).start_and_wait()
    try:
        yield server
        assert server.stop() == 0
        assert "Traceback" not in server.log
    finally:
        server.put_down()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported to collect the tests is there until the last of them."""
    with collector_paused():
        return (yield)


# --- two at a time ----------------------------------------------------------------------------------------------------

FIRST = ("tests/e2e", "tests/test_docs.py", "tests/training", "tests/engine")
"""What takes longest begins first, so that nothing long is left for the end."""

SHARES_SERVER = re.compile(
    r"tests/(test_docs|e2e/learning/test_(demo|feedback|fine_tuning|judge)|e2e/operations/test_(command_line|crashes)"
    r"|e2e/serving/test_(?!adapter_cache)\w+)\.py"
)
"""Files of tests that ask the shared server, or the exact one: one process runs them all, so that it starts once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((index for index, path in enumerate(FIRST) if item.nodeid.startswith(path)), len(FIRST))

    items.sort(key=place)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """With two files at a time a core is all that each has: more threads of torch cost a third more, waiting."""
    if "PYTEST_XDIST_WORKER" in os.environ and (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)  # an engine in this process may have set it for the next test, too


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile``, but files that share a server are one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc, no-any-unimported]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "the shared server" if SHARES_SERVER.fullmatch(file) else file

    return Scheduling(config, log)
