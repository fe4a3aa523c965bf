"""The artifact store accepts an adapter's two files only, atomically, also if the process is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from graftwork.adapters.base import BaseInfo
from graftwork.adapters.errors import GraftworkError, InvalidAdapter, NotFound, TooLarge
from graftwork.adapters.peft_format import files as files_module
from graftwork.adapters.peft_format.files import CONFIG_FILE, WEIGHTS_FILE
from graftwork.adapters.peft_format.folder import read_spec
from graftwork.adapters.peft_format.limits import AdapterLimits
from graftwork.adapters.peft_format.spec import AdapterSpec
from graftwork.adapters.registry import artifacts as artifacts_module
from graftwork.adapters.registry.artifacts import ArtifactStore
from tests.adapters import adapter_files as files

TINY = AdapterLimits(max_adapter_bytes=1000, max_config_bytes=100)


@pytest.fixture
def base(tmp_path: Path) -> BaseInfo:
    return files.tiny_base(tmp_path / "base")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "home" / "artifacts", limits=files.SMALL)


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """The folder that the server may read adapters from."""
    (tmp_path / "allowed").mkdir()
    return tmp_path / "allowed"


@pytest.fixture
def good(allowed: Path, base: BaseInfo) -> Path:
    """A good adapter below the allowed folder."""
    return files.write(allowed / "good", files.config(), files.tensors(base))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- publishing -------------------------------------------------------------------------------------------------------


def test_publish(store: ArtifactStore, good: Path, base: BaseInfo) -> None:
    spec = files.push(store, good, base)
    folder = store.path(spec.digest)
    assert files.published(store) == [spec.digest.removeprefix("sha256:")] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (folder / name).read_bytes() == (good / name).read_bytes()
        assert mode_of(folder / name) == 0o400
    assert read_spec(folder, base, store.limits) == spec


def test_publishing_twice_is_publishing_once(store: ArtifactStore, good: Path, base: BaseInfo) -> None:
    spec = files.push(store, good, base)
    before = {path: path.stat().st_ino for path in store.path(spec.digest).iterdir()}
    assert files.push(store, good, base) == spec
    assert {path: path.stat().st_ino for path in store.path(spec.digest).iterdir()} == before
    assert len(files.published(store)) == 1


@pytest.mark.parametrize("change", ["a byte", "cut", "gone"])
def test_what_changed_on_the_disk_is_put_right_by_a_push(
    change: str, store: ArtifactStore, good: Path, base: BaseInfo
) -> None:
    spec = files.push(store, good, base)
    weights = store.path(spec.digest) / WEIGHTS_FILE
    assert store.is_intact(spec.digest)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    if change != "gone":
        weights.write_bytes(content if change == "a byte" else content[:-8])
    assert not store.is_intact(spec.digest)
    assert files.push(store, good, base) == spec
    assert store.is_intact(spec.digest)
    assert weights.read_bytes() == (good / WEIGHTS_FILE).read_bytes()
    assert not list((store.root / "staging").iterdir()), "what was changed is deleted"


def test_many_publish_the_same_at_once(store: ArtifactStore, good: Path, base: BaseInfo) -> None:
    folders = [store.stage_folder(good, [good.parent]) for _ in range(8)]
    spec = read_spec(folders[0], base, store.limits)
    threads = [threading.Thread(target=store.publish, args=(folder, spec.digest)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.published(store) == [spec.digest.removeprefix("sha256:")]


def test_the_copy_is_its_own(store: ArtifactStore, good: Path, base: BaseInfo, tmp_path: Path) -> None:
    """Someone who keeps another name of the file, a hard link, cannot change what is published."""
    os.link(good / WEIGHTS_FILE, tmp_path / "kept")
    spec = files.push(store, good, base)
    (tmp_path / "kept").write_bytes(b"")
    assert read_spec(store.path(spec.digest), base, store.limits) == spec


def test_uploads(store: ArtifactStore, good: Path, base: BaseInfo) -> None:
    folder = store.stage()
    for name in (CONFIG_FILE, "README.md", WEIGHTS_FILE):
        with store.open_staged(folder, name) as file:
            for byte in (good / name).read_bytes() if name != "README.md" else b"# Intents":
                file.write(bytes([byte]))
    spec = read_spec(folder, base, store.limits)
    store.publish(folder, spec.digest)
    assert sorted(path.name for path in store.path(spec.digest).iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_unfinished_uploads_are_not_published(store: ArtifactStore, good: Path, base: BaseInfo) -> None:
    spec = read_spec(good, base, store.limits)
    folder = store.stage()
    store.open_staged(folder, CONFIG_FILE).close()
    with pytest.raises(InvalidAdapter, match=WEIGHTS_FILE):
        store.publish(folder, spec.digest)
    store.discard(folder)
    store.discard(folder)
    assert files.published(store) == []


def test_clean(store: ArtifactStore, good: Path, base: BaseInfo) -> None:
    spec = files.push(store, good, base)
    store.stage_folder(good, [good.parent])
    store.open_staged(store.stage(), WEIGHTS_FILE).close()
    (store.root / "staging" / "stray").symlink_to(good)
    (store.root / "staging" / "file").touch()
    store.clean()
    assert files.published(store) == [spec.digest.removeprefix("sha256:")]
    assert len(list(good.iterdir())) == 2


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:../../etc", "sha256:" + "AB" * 32, "md5:" + "0" * 64, "staging"]
)
def test_no_such_digest(digest: str, store: ArtifactStore) -> None:
    with pytest.raises(NotFound, match="digest"):
        store.path(digest)


def test_no_such_artifact(store: ArtifactStore) -> None:
    with pytest.raises(NotFound, match="0000"):
        store.path("sha256:" + "0" * 64)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda store, folder, spec: store.publish(folder, spec.digest), id="publish"),
        pytest.param(lambda store, folder, spec: store.discard(folder), id="discard"),
        pytest.param(lambda store, folder, spec: store.open_staged(folder, CONFIG_FILE), id="open"),
    ],
)
def test_only_what_was_staged_here(
    act: Callable[[ArtifactStore, Path, AdapterSpec], object], store: ArtifactStore, good: Path, base: BaseInfo
) -> None:
    """A slip in the server cannot make the store delete or move other folders."""
    spec = read_spec(good, base, store.limits)
    for folder in (good, store.root, store.root / "staging", store.root / "staging" / "..", store.root / ("0" * 64)):
        with pytest.raises(GraftworkError, match="staged"):
            act(store, folder, spec)
    assert len(list(good.iterdir())) == 2


# --- dying ------------------------------------------------------------------------------------------------------------


def dies_after(lines: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child that kills itself after so many of their lines. False: it came through."""
    child = os.fork()
    if child == 0:
        left = lines

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in (artifacts_module.__file__, files_module.__file__):
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def test_killed_at_any_line(tmp_path: Path, good: Path, base: BaseInfo) -> None:
    # From a small process: this one has so much in memory that each of a hundred forks would take a second.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(kill_at_every_line, (tmp_path / "artifacts", good, base))


def kill_at_every_line(root: Path, good: Path, base: BaseInfo) -> None:
    """Kill a publication after its first line, after its second, and so on until one comes through."""
    spec = read_spec(good, base, files.SMALL)
    hexadecimal = spec.digest.removeprefix("sha256:")

    def work() -> None:
        store = ArtifactStore(root, limits=files.SMALL)
        store.clean()
        store.publish(store.stage_folder(good, [good.parent]), spec.digest)

    line, seen = 0, set[bool]()
    while True:
        died = dies_after(line, work)
        there = (root / hexadecimal).exists()
        seen.add(there)
        store = ArtifactStore(root, limits=files.SMALL)
        store.clean()
        assert files.published(store) == ([hexadecimal] if there else [])
        if there:
            assert read_spec(store.path(spec.digest), base, files.SMALL) == spec
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                (root / hexadecimal / name).unlink()
            (root / hexadecimal).rmdir()
        if not died:
            break
        line += 1
    assert line > 80
    assert seen == {True, False}


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "adapter_model.bin",
        "pytorch_model.pt",
        "weights.PTH",
        "adapter.pkl",
        "last.ckpt",
    ],
)
def test_pickles_are_refused(name: str, store: ArtifactStore, good: Path, base: BaseInfo) -> None:
    (good / name).write_bytes(b"\x80\x04.")
    with pytest.raises(InvalidAdapter, match=rf"(?s){name}.*safe_serialization=True"):
        files.push(store, good, base)
    folder = store.stage()
    with pytest.raises(InvalidAdapter, match=rf"(?s){name}.*safe_serialization=True"):
        store.open_staged(folder, name)
    store.discard(folder)
    assert files.published(store) == []


def test_what_a_trainer_leaves_beside_an_adapter_stays_there(store: ArtifactStore, good: Path, base: BaseInfo) -> None:
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "rng_state_0.pth",
        "tokenizer.json",
    ):
        (good / name).write_bytes(b"\x80\x04.")
    (good / "checkpoint-100").mkdir()
    os.mkfifo(good / "fifo")
    files.push(store, good, base)
    assert len(files.published(store)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../adapter_config.json",
        "/etc/passwd",
        "/adapter_config.json",
        "a/adapter_config.json",
        "a\\adapter_config.json",
        "./adapter_config.json",
        "adapter_config.json/",
        "adapter_config.json\0",
        "adapter_config.json\n",
        "Adapter_Config.json",
        "adapter_config.json.gz",
        "adapter_model-00001-of-00002.safetensors",
        "vocab.json",
        "\ud800",
        "x" * 10_000,
    ],
)
def test_uploads_under_other_names(name: str, store: ArtifactStore) -> None:
    folder = store.stage()
    with pytest.raises(InvalidAdapter, match=CONFIG_FILE) as refusal:
        store.open_staged(folder, name)
    assert len(refusal.value.message.encode()) < 500
    assert list(folder.iterdir()) == []


def test_uploads_of_one_name_twice(store: ArtifactStore) -> None:
    folder = store.stage()
    store.open_staged(folder, CONFIG_FILE).close()
    with pytest.raises(InvalidAdapter, match=rf"{CONFIG_FILE} came twice"):
        store.open_staged(folder, CONFIG_FILE)


@pytest.mark.parametrize(("name", "limit"), [(CONFIG_FILE, 100), (WEIGHTS_FILE, 1000), ("README.md", 100)])
def test_uploads_beyond_the_limit(name: str, limit: int, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts", limits=TINY)
    folder = store.stage()
    with store.open_staged(folder, name) as file:
        file.write(b"x" * limit)
        with pytest.raises(TooLarge, match=name):
            file.write(b"x")
    assert name == "README.md" or (folder / name).stat().st_size == limit
    store.discard(folder)
    assert files.published(store) == []


@pytest.mark.parametrize(("name", "size"), [(CONFIG_FILE, 101), (WEIGHTS_FILE, 1001)])
def test_folders_beyond_the_limit(name: str, size: int, tmp_path: Path, good: Path) -> None:
    store = ArtifactStore(tmp_path / "artifacts", limits=TINY)
    for each in (CONFIG_FILE, WEIGHTS_FILE):
        (good / each).write_bytes(b"{}")
    with (good / name).open("wb") as file:
        file.truncate(size)
    with pytest.raises(TooLarge, match=name):
        store.stage_folder(good, [good.parent])
    assert files.published(store) == []


def test_reading_beyond_the_limit(good: Path, base: BaseInfo) -> None:
    """A folder that did not pass staging, such as a training run's."""
    for limits, name in (
        (AdapterLimits(max_adapter_bytes=1000), WEIGHTS_FILE),
        (AdapterLimits(max_config_bytes=100), CONFIG_FILE),
    ):
        with pytest.raises(TooLarge, match=name):
            read_spec(good, base, limits)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_socket(path: Path) -> None:
    path.unlink()
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{here}/{path.name}")  # such addresses are short
    os.close(here)


def to_nothing(path: Path) -> None:
    path.unlink()


def link_to(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return make


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(to_nothing, id="missing"),
        pytest.param(to_folder, id="folder"),
        pytest.param(to_fifo, id="fifo"),
        pytest.param(to_socket, id="socket"),
        pytest.param(link_to("/dev/zero"), id="device"),
        pytest.param(link_to("/etc/passwd"), id="link out"),
        pytest.param(link_to("../../outside"), id="relative link out"),
        pytest.param(link_to(WEIGHTS_FILE), id="link to itself"),
        pytest.param(link_to("nowhere"), id="dangling link"),
        pytest.param(link_to("."), id="link to its folder"),
        pytest.param(link_to(".."), id="link to the allowed folder"),
    ],
)
def test_what_stands_in_place_of_a_file(
    make: Callable[[Path], None], name: str, store: ArtifactStore, good: Path, base: BaseInfo, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_bytes((good / name).read_bytes())
    make(good / name)
    with pytest.raises((InvalidAdapter, TooLarge), match=rf"{CONFIG_FILE}|{WEIGHTS_FILE}"):
        files.push(store, good, base)
    with pytest.raises(InvalidAdapter, match=rf"{CONFIG_FILE}|{WEIGHTS_FILE}"):
        read_spec(good, base, store.limits)
    assert files.published(store) == []


def test_devices_are_not_opened(store: ArtifactStore, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening some devices does something; below an allowed folder there may be one, if its owner is root."""
    seen: list[Any] = []
    original = os.open

    def spy(path: Any, *args: Any, **kwargs: Any) -> int:
        seen.append(path)
        return original(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", spy)
    with pytest.raises(InvalidAdapter, match="device"):
        files_module.open_regular("/dev/zero")
    assert seen == []


def test_links_that_stay_inside(store: ArtifactStore, good: Path, allowed: Path, base: BaseInfo) -> None:
    """The hub's cache is made of links from snapshots to blobs."""
    snapshot = allowed / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (snapshot / name).symlink_to(f"../../good/{name}")
    (allowed / "latest").symlink_to("snapshots/main")
    folder = store.stage_folder(allowed / "latest", [allowed])
    assert not (folder / CONFIG_FILE).is_symlink()
    assert read_spec(folder, base, store.limits).grafts


def test_an_allowed_folder_may_be_a_link(store: ArtifactStore, good: Path, tmp_path: Path, allowed: Path) -> None:
    (tmp_path / "alias").symlink_to(allowed)
    store.stage_folder(tmp_path / "alias" / "good", [tmp_path / "nothing", tmp_path / "alias"])
    store.stage_folder(good, [tmp_path / "alias"])
    store.stage_folder(good, [good])


@pytest.mark.parametrize(
    "path",
    [
        "/etc",
        "/",
        "{allowed}/../elsewhere",
        "{allowed}/out",
        "{allowed}/out/deeper",
        "{allowed}-not",
        "{allowed}/good/../../elsewhere",
    ],
)
def test_paths_out_of_the_allowed_folders(
    path: str, store: ArtifactStore, good: Path, allowed: Path, tmp_path: Path, base: BaseInfo
) -> None:
    for name in ("elsewhere", "elsewhere/deeper", "allowed-not"):
        files.write(tmp_path / name, files.config(), files.tensors(base))
    (allowed / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidAdapter, match="leads out of the folders"):
        store.stage_folder(Path(path.format(allowed=allowed)), [allowed])
    with pytest.raises(InvalidAdapter, match="leads out of the folders"):
        store.stage_folder(good, [])
    assert files.published(store) == []


@pytest.mark.parametrize("path", ["good", "", "{allowed}/nothing", "{allowed}/good/adapter_config.json", "{allowed}/\0",
                                  "{allowed}/" + "x" * 300, "{allowed}/loop"])  # fmt: skip
def test_paths_that_are_no_adapter(path: str, store: ArtifactStore, good: Path, allowed: Path) -> None:
    (allowed / "loop").symlink_to("loop")
    with pytest.raises(InvalidAdapter, match=r"path|relative"):
        store.stage_folder(Path(path.format(allowed=allowed)), [allowed])
    assert files.published(store) == []


def test_what_lies_outside_is_not_revealed(store: ArtifactStore, allowed: Path, tmp_path: Path) -> None:
    """Whether a path outside exists shows in no message."""
    (tmp_path / "there").mkdir()
    told = set()
    for name in ("there", "gone!"):
        with pytest.raises(InvalidAdapter) as refusal:
            store.stage_folder(tmp_path / name, [allowed])
        told.add(refusal.value.message.replace(name, "…"))
    assert len(told) == 1


@pytest.mark.parametrize("moment", ["folder", "file"])
def test_links_put_in_place_meanwhile(
    moment: str, store: ArtifactStore, good: Path, tmp_path: Path, base: BaseInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the path was resolved, its folder or file becomes a link to another."""
    files.write(tmp_path / "secret", files.config(lora_alpha=99), files.tensors(base))
    original = os.path.realpath

    def swap(path: Any, *args: Any, **kwargs: Any) -> str:
        real = original(path, *args, **kwargs)
        if moment == "file" and Path(real) == good / WEIGHTS_FILE:
            (good / WEIGHTS_FILE).unlink()
            (good / WEIGHTS_FILE).symlink_to(tmp_path / "secret" / WEIGHTS_FILE)
        if moment == "folder" and Path(real) == good / CONFIG_FILE:
            good.rename(good.with_name("moved"))
            good.symlink_to(tmp_path / "secret")
        return real

    monkeypatch.setattr(os.path, "realpath", swap)
    with pytest.raises(InvalidAdapter, match=rf"{CONFIG_FILE}|{WEIGHTS_FILE}"):
        store.stage_folder(good, [good.parent])
    assert files.published(store) == []


def test_a_file_that_grows_while_it_is_copied(
    tmp_path: Path, good: Path, monkeypatch: pytest.MonkeyPatch, base: BaseInfo
) -> None:
    store = ArtifactStore(tmp_path / "artifacts", limits=AdapterLimits(max_adapter_bytes=1 << 16))
    monkeypatch.setattr(artifacts_module, "_CHUNK_BYTES", 1 << 10)
    original = artifacts_module.StagedFile.write

    def write(self: artifacts_module.StagedFile, chunk: bytes) -> None:
        with (good / WEIGHTS_FILE).open("ab") as file:
            file.write(bytes(1 << 12))
        original(self, chunk)

    monkeypatch.setattr(artifacts_module.StagedFile, "write", write)
    with pytest.raises(TooLarge, match=WEIGHTS_FILE):
        store.stage_folder(good, [good.parent])
    assert files.published(store) == []


def test_descriptors_are_closed(store: ArtifactStore, good: Path, base: BaseInfo, allowed: Path) -> None:
    """Refused pushes must not wear a long-running server down."""
    (allowed / "out").symlink_to("/etc")
    (allowed / "bad").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for source in (good, allowed / "out", allowed / "bad", allowed / "nothing", good / CONFIG_FILE / "deeper"):
        try:
            files.push(store, source, base)
        except InvalidAdapter:
            assert source != good
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_digest_cannot_lead_out(store: ArtifactStore, good: Path) -> None:
    folder = store.stage_folder(good, [good.parent])
    with pytest.raises(NotFound, match="digest"):
        store.publish(folder, "sha256:../../x")
