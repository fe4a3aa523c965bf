"""A home that was filled without a bucket is put into one, and another home is served from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from graftwork.__main__ import app
from graftwork.adapters.learning.files import Files
from graftwork.adapters.registry.artifacts import ArtifactStore
from graftwork.adapters.registry.bucket import ArtifactBucket
from graftwork.adapters.storage.database import Database, migrate
from graftwork.adapters.storage.objects import ObjectStore
from tests.adapters import adapter_files as files

ROWS = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with an adapter and a file."""
    home = tmp_path / "home"
    home.mkdir()
    database = Database(home / "graftwork.db")
    migrate(database)
    base = files.tiny_base(tmp_path / "base")
    store = ArtifactStore(home / "artifacts", limits=files.SMALL)
    files.push(store, files.write(tmp_path / "good", files.config(), files.tensors(base)), base)
    kept = Files(database, home / "files")
    with kept.upload() as upload:
        upload.write(ROWS)
        kept.keep(upload, filename="rows.jsonl", purpose="fine-tune", key_id="k")
    database.close()
    return home


def move(home: Path, url: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["move", "--home", str(home), "--artifacts", url])
    return result.exit_code, result.output


def test_a_home_is_taken_along(home: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    for _ in range(2):
        code, output = move(home, url)
        assert (code, f"1 adapters and 1 files are in {url}" in output) == (0, True)
    database, objects = Database(home / "graftwork.db"), ObjectStore(url)
    other = ArtifactStore(tmp_path / "other" / "artifacts", limits=files.SMALL)
    (digest,) = ArtifactStore(home / "artifacts", limits=files.SMALL).sizes()
    assert ArtifactBucket(objects).download(digest, other).is_dir()
    there = Files(database, tmp_path / "other" / "files", objects=objects)
    assert there.fetch(there.find()[0]).read_bytes() == ROWS
    database.close()


def test_what_is_damaged_is_left_out_and_said(home: Path, tmp_path: Path) -> None:
    (weights,) = (home / "artifacts").glob("*/adapter_model.safetensors")
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1])
    (file,) = (home / "files").glob("*.jsonl")
    file.write_bytes(ROWS.replace(b"a", b"c"))
    code, output = move(home, f"file://{tmp_path}/bucket")
    assert code == 1
    assert f"sha256:{weights.parent.name} is not as it was written" in output
    assert f"{file.stem} is not as it was written" in output
    assert not list(ObjectStore(f"file://{tmp_path}/bucket").list("artifacts"))
    assert not list(ObjectStore(f"file://{tmp_path}/bucket").list("files"))


def test_where_there_is_nothing_or_no_bucket(home: Path, tmp_path: Path, dead_bucket: str) -> None:
    code, output = move(tmp_path / "nothing", "file:///tmp")
    assert (code, "nothing to move" in output) == (2, True)
    code, output = move(home, "ftp://x/y")
    assert (code, "s3://BUCKET/PREFIX" in output) == (1, True)
    code, output = move(home, dead_bucket)
    assert (code, "cannot be used at the moment" in output) == (1, True)
