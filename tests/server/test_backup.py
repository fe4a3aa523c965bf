"""Backups: complete, private, checked, and never half of one; restored, the same things are there."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from graftwork.adapters import backup as backups
from graftwork.adapters.errors import ConfigurationError
from graftwork.server.app import close_to_others
from tests.server.fakes import World, adapter_files, form, make_world

ROW = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'


def quiet(title: str, fraction: float | None) -> None:
    """Progress that nobody watches."""


def client_of(world: World) -> TestClient:
    return TestClient(world.app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000))


def upload(client: TestClient) -> str:
    made = client.post("/v1/files", files={"file": ("rows.jsonl", ROW)}, data={"purpose": "fine-tune"})
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


def filled(home: Path) -> tuple[World, str]:
    """A home with a version, a file and a kept data set; the file's id."""
    home.mkdir()
    world = make_world(home)
    with client_of(world) as client:
        assert client.post("/v1/adapters/intents/versions", files=form(adapter_files())).status_code == 201
        file_id = upload(client)
    kept = home / "datasets" / "support" / "1"
    kept.mkdir(parents=True)
    (kept / "rows.jsonl").write_bytes(ROW)
    return world, file_id


@pytest.fixture
def home(tmp_path: Path) -> Path:
    filled(tmp_path / "home")
    return tmp_path / "home"


def graftwork(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "graftwork", *words], capture_output=True, text=True, check=False)


def test_the_commands_save_and_restore_everything(tmp_path: Path) -> None:
    world, file_id = filled(tmp_path / "home")
    (version,) = world.services.registry.adapter("intents").versions
    saved = graftwork("backup", str(tmp_path / "saved"), "--home", str(tmp_path / "home"), "--json")
    assert saved.returncode == 0, saved.stderr
    assert {file["path"].split("/")[0] for file in json.loads(saved.stdout)["files"]} == {
        *("graftwork.db", "artifacts", "files", "datasets")
    }
    restored = tmp_path / "restored"
    done = graftwork("restore", str(tmp_path / "saved"), "--home", str(restored))
    assert done.returncode == 0, done.stderr
    for folder in (tmp_path / "saved", restored):
        modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))}
        assert modes == {(True, 0o700), (False, 0o600)}
    again = make_world(restored, migrated=False)
    (same,) = again.services.registry.adapter("intents").versions
    assert same == version
    assert again.services.store.is_intact(version.digest)
    assert (restored / "datasets/support/1/rows.jsonl").read_bytes() == ROW
    with client_of(again) as client:
        assert client.get(f"/v1/files/{file_id}/content").content == ROW


def test_what_the_saved_database_names_was_saved_while_files_came_and_went(home: Path, tmp_path: Path) -> None:
    world = make_world(home, migrated=False)
    stop = threading.Event()

    def come_and_go() -> None:
        with client_of(world) as client:
            while not stop.is_set():
                kept, deleted = upload(client), upload(client)
                assert client.delete(f"/v1/files/{deleted}").status_code == 200
                assert client.get(f"/v1/files/{kept}").status_code == 200

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for number in range(3):
            backups.back_up(home, tmp_path / f"saved-{number}", quiet)
    finally:
        stop.set()
        thread.join()
    for number in range(3):
        restored = tmp_path / f"restored-{number}"
        backups.restore(tmp_path / f"saved-{number}", restored, quiet)
        again = make_world(restored, migrated=False)
        with client_of(again) as client:
            ids = [file["id"] for file in client.get("/v1/files", params={"limit": 100}).json()["data"]]
            assert ids
            assert {client.get(f"/v1/files/{id}/content").status_code for id in ids} == {200}


def test_a_data_set_that_is_rewritten_meanwhile_is_saved_as_one(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An erasure puts another folder in the place of a kept data set."""
    kept = home / "datasets" / "support" / "1"
    (kept / "manifest.json").write_text("before")
    copy = backups._copy
    rewritten: list[str] = []

    def copy_and_rewrite(source: Path, target: Path, path: str) -> backups.SavedFile:
        file = copy(source, target, path)
        if path == "datasets/support/1/manifest.json" and not rewritten:
            new = tmp_path / "new"
            shutil.copytree(kept, new)
            (new / "manifest.json").write_text("after")
            (new / "rows.jsonl").write_text("erased")
            kept.rename(tmp_path / "old")
            new.rename(kept)
            rewritten.append(path)
        return file

    monkeypatch.setattr(backups, "_copy", copy_and_rewrite)
    backups.back_up(home, tmp_path / "saved", quiet)
    saved = tmp_path / "saved" / "datasets" / "support" / "1"
    assert [(saved / name).read_text() for name in ("manifest.json", "rows.jsonl")] == ["after", "erased"]


def test_rows_that_stand_in_the_write_ahead_log_are_saved(home: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(home / "graftwork.db")) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute("CREATE TABLE later (x)")
        writer.execute("INSERT INTO later VALUES (7)")
        writer.commit()
        backups.back_up(home, tmp_path / "saved", quiet)
        assert sorted(path.name for path in (tmp_path / "saved").glob("graftwork.db*")) == ["graftwork.db"]
    with closing(sqlite3.connect(tmp_path / "saved" / "graftwork.db")) as saved:
        assert saved.execute("SELECT x FROM later").fetchall() == [(7,)]


def damage_missing(saved: Path) -> None:
    next((saved / "files").glob("file-*")).unlink()


def damage_changed(saved: Path) -> None:
    file = next((saved / "artifacts").rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def damage_path(saved: Path) -> None:
    text = (saved / "manifest.json").read_text()
    (saved / "manifest.json").write_text(text.replace('"files/file-', '"files/../../file-'))


def damage_link(saved: Path) -> None:
    file = next((saved / "files").glob("file-*"))
    file.rename(saved / "elsewhere")
    file.symlink_to(saved / "elsewhere")


def damage_manifest(saved: Path) -> None:
    (saved / "manifest.json").write_text("{}")


def damage_format(saved: Path) -> None:
    text = (saved / "manifest.json").read_text()
    (saved / "manifest.json").write_text(text.replace('"format": 1', '"format": 2'))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_missing, "is missing"),
        (damage_changed, "not what was saved"),
        (damage_path, "has the path"),
        (damage_link, "symbolic link"),
        (damage_manifest, "is no backup"),
        (damage_format, "newer version"),
    ],
)
def test_a_damaged_backup_restores_nothing(home: Path, tmp_path: Path, damage: object, said: str) -> None:
    backups.back_up(home, tmp_path / "saved", quiet)
    assert callable(damage)
    damage(tmp_path / "saved")
    with pytest.raises((ConfigurationError, OSError), match=said):
        backups.restore(tmp_path / "saved", tmp_path / "restored", quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "saved"]


def test_nothing_that_is_there_is_overwritten(home: Path, tmp_path: Path) -> None:
    backups.back_up(home, tmp_path / "saved", quiet)
    with pytest.raises(ConfigurationError, match="exists already"):
        backups.back_up(home, tmp_path / "saved", quiet)
    with pytest.raises(ConfigurationError, match="not empty"):
        backups.restore(tmp_path / "saved", home, quiet)
    (tmp_path / "empty").mkdir()
    backups.restore(tmp_path / "saved", tmp_path / "empty", quiet)
    assert (tmp_path / "empty" / "graftwork.db").is_file()


def test_a_folder_that_is_no_home_is_named(tmp_path: Path) -> None:
    failed = graftwork("backup", str(tmp_path / "saved"), "--home", str(tmp_path / "nowhere"))
    assert failed.returncode == 1
    assert "--home" in failed.stderr
    assert not (tmp_path / "saved").exists()


def test_other_users_are_kept_out_of_folders_that_were_open(home: Path) -> None:
    for folder in ("files", "datasets", "artifacts"):
        (home / folder).chmod(0o755)
    close_to_others(home)
    assert {(home / folder).stat().st_mode & 0o777 for folder in ("files", "datasets", "artifacts")} == {0o700}
