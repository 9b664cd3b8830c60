"""Whole-or-nothing writes and manifests."""

import hashlib
import os
from pathlib import Path

import pytest

from redshelf.indexing import files
from redshelf.models.errors import BadInput


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    files.write_json(target, {"a": 1})

    def half(handle: object) -> None:
        handle.write(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_with(target, half)
    assert files.read_json(target) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_write_leaves_the_umask_alone_and_does_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", lambda mask: pytest.fail("it is that of all threads"))
            files.write_json(tmp_path / "as_the_umask_says", 1)
            files.write_json(tmp_path / "owner", 1, mode=0o600)
            files.write_json(tmp_path / "all", 1, mode=0o666)
    finally:
        assert os.umask(before) == 0o027
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"as_the_umask_says": 0o640, "owner": 0o600, "all": 0o666}


def test_a_folder_that_is_not_there_is_made_or_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.write_json(tmp_path / "a" / "b", 1, make_folder=False)
    assert list(tmp_path.iterdir()) == []
    files.write_json(tmp_path / "a" / "b", 1)
    assert files.read_json(tmp_path / "a" / "b") == 1


def test_the_sha256_of_several_files_is_that_of_their_bytes_one_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"45")
    told: list[int] = []
    found = files.sha256(tmp_path / "a", tmp_path / "b", progress=told.append)
    assert found == hashlib.sha256(b"12345").hexdigest() and told == [3, 2]


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(BadInput, match=r"a\.json is not valid JSON"):
        files.read_json(tmp_path / "a.json")


def test_the_manifest_finds_a_flipped_bit_a_cut_and_a_missing_file(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(b"12345678")
    expected = files.manifest(tmp_path, [tmp_path])
    assert files.verify(tmp_path, expected, hashes=True) == []
    (tmp_path / "a").write_bytes(b"12345679")
    (tmp_path / "b").write_bytes(b"1234567")
    (tmp_path / "c").unlink()
    assert [line.split(":")[0] for line in files.verify(tmp_path, expected, hashes=True)] == ["a", "b", "c"]
    assert [line.split(":")[0] for line in files.verify(tmp_path, expected, hashes=False)] == ["b", "c"]
