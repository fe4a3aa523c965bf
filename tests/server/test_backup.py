"""The documented backup is complete: what is restored from it has every file that its database names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from fastapi.testclient import TestClient

from graftwork.server.app import close_to_others
from tests.server.fakes import World, adapter_files, form, make_world

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
ROW = b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}\n'


def filled(home: Path) -> tuple[World, str]:
    """A home with a version, a file and a kept data set; the file's id."""
    home.mkdir()
    world = make_world(home)
    with TestClient(world.app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000)) as client:
        assert client.post("/v1/adapters/intents/versions", files=form(adapter_files())).status_code == 201
        made = client.post("/v1/files", files={"file": ("rows.jsonl", ROW)}, data={"purpose": "fine-tune"})
        assert made.status_code == 200, made.text
    kept = home / "datasets" / "support" / "1"
    kept.mkdir(parents=True)
    (kept / "rows.jsonl").write_bytes(ROW)
    return world, made.json()["id"]


def test_a_restored_backup_has_everything(tmp_path: Path) -> None:
    world, file_id = filled(tmp_path / "home")
    (version,) = world.services.registry.adapter("intents").versions
    section = PAGE.read_text().split("## Backup")[1]
    (snippet,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:1]
    environment = os.environ | {"GRAFTWORK_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, env=environment, check=True)
    restored = tmp_path / "restored"
    shutil.copytree(tmp_path / "graftwork-backup", restored)
    again = make_world(restored, migrated=False)
    (same,) = again.services.registry.adapter("intents").versions
    assert same == version
    assert again.services.store.is_intact(version.digest)
    assert (restored / "datasets/support/1/rows.jsonl").read_bytes() == ROW
    with TestClient(again.app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 50000)) as client:
        assert client.get(f"/v1/files/{file_id}/content").content == ROW


def test_other_users_are_kept_out_of_folders_that_were_open(tmp_path: Path) -> None:
    home = tmp_path / "home"
    filled(home)
    for folder in ("files", "datasets", "artifacts"):
        (home / folder).chmod(0o755)
    close_to_others(home)
    assert {(home / folder).stat().st_mode & 0o777 for folder in ("files", "datasets", "artifacts")} == {0o700}
