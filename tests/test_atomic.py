"""Files and folders appear whole or not at all."""

import os

import pytest

from glimpseg.errors import OutputError, UsageError
from glimpseg.runtime import atomic
from glimpseg.runtime.atomic import atomic_file, atomic_folder, write_text


def test_a_file_appears_when_the_block_ends(tmp_path):
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_temporary_name_keeps_its_suffixes(tmp_path):
    with atomic_file(tmp_path / "seg.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz")


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out", overwrite=True) as temporary:
        (temporary / "new").write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_a_folder_can_be_read_by_whom_the_mask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "made") as place:
            (place / "inner").mkdir()
            for path in (place / "a", place / "inner" / "b"):
                path.touch(0o600)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "made").rglob("*")}
    assert modes["a"] == modes["b"] == 0o640


def test_a_folder_in_use_is_refused_unless_it_may_be_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(UsageError, match="already holds files"), atomic_folder(tmp_path / "out"):
        pass
    with atomic_folder(tmp_path / "out", overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]


def test_an_empty_folder_is_not_in_use(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "new").write_text("new")
    assert (tmp_path / "out" / "new").exists()


def test_everything_is_on_the_disk_before_the_name_is_given(tmp_path, monkeypatch):
    calls = []
    flush, replace = atomic._flush, atomic.os.replace
    monkeypatch.setattr(atomic, "_flush", lambda path: (calls.append(f"flush {path.name[:4]}"), flush(path)))
    monkeypatch.setattr(atomic.os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    write_text(tmp_path / "a.txt", "new")
    assert calls == ["flush .a.t", "rename", f"flush {tmp_path.name[:4]}"]


def test_a_disk_that_refuses_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="could not be written"), atomic_file(tmp_path / "a.txt") as temporary:
        raise OSError(28, "No space left on device", str(temporary))


def test_an_input_that_vanished_is_not_called_an_output(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "out" / "a.txt"):
        open("/nonexistent/input")  # noqa: SIM115
