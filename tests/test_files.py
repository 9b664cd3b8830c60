"""Whole-or-nothing writes and manifests."""

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
