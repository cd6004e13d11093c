"""Files and folders appear whole or not at all."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from conftest import files_of_at_most
from glimpseg.errors import OutputError, UsageError
from glimpseg.runtime import atomic
from glimpseg.runtime.atomic import (
    atomic_file,
    atomic_folder,
    file_lock,
    folder_lock,
    remove_unfinished,
    write_text,
    write_text_once,
)
from glimpseg.runtime.json_lines import append_json_line, read_json_lines
from glimpseg.runtime.sandbox import SandboxError, run_sandboxed
from glimpseg.runtime.temporary import temporary_folder


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


def test_a_folder_is_replaced_also_where_the_system_cannot_exchange_two(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    test_a_folder_in_use_is_refused_unless_it_may_be_replaced(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 of Linux")
def test_there_is_no_moment_without_the_old_folder_or_the_new_one(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    monkeypatch.setattr(atomic.os, "replace", None)  # moving one of the two would leave such a moment
    with atomic_folder(tmp_path / "out", overwrite=True) as temporary:
        (temporary / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]


def test_a_file_that_is_there_is_not_written_again(tmp_path):
    assert write_text_once(tmp_path / "a.txt", "first")
    assert not write_text_once(tmp_path / "a.txt", "second")
    assert (tmp_path / "a.txt").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


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


WRITERS = {
    "safetensors": lambda path: save_file({"zeros": np.zeros(10_000)}, path),
    "torch": lambda path: torch.save(torch.zeros(10_000), path),
}
"""Libraries that write by themselves, and whose error is no OSError."""


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_an_output_error_whichever_library_writes(writer, tmp_path):
    with (
        files_of_at_most(1000),
        pytest.raises(OutputError, match=r"a\.bin could not be written"),
        atomic_file(tmp_path / "a.bin") as path,
    ):
        WRITERS[writer](path)
    with (
        files_of_at_most(1000),
        pytest.raises(OutputError, match="folder could not be written"),
        atomic_folder(tmp_path / "folder") as place,
    ):
        WRITERS[writer](place / "a.bin")
    assert not list(tmp_path.iterdir())


def test_a_file_that_a_folder_could_not_take_is_named_by_its_place(tmp_path):
    with (
        files_of_at_most(1000),
        pytest.raises(OutputError) as caught,
        atomic_folder(tmp_path / "out") as outer,
        atomic_folder(outer / "study") as inner,
    ):
        write_text(inner / "a.txt", "a" * 2000)
    assert str(caught.value.strerror).startswith(f"{tmp_path}/out/study/a.txt could not be written")


def test_a_copy_that_the_disk_refuses_is_an_output_error(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.bin").write_bytes(bytes(2000))
    with (
        files_of_at_most(1000),
        pytest.raises(OutputError, match="out could not be written"),
        atomic_folder(tmp_path / "below" / "out") as place,
    ):
        shutil.copyfile(tmp_path / "in" / "a.bin", place / "a.bin")


def test_a_stream_of_c_that_failed_is_an_output_error_also_where_there_is_space_again(tmp_path):
    with pytest.raises(OutputError, match="Input/output error"), atomic_folder(tmp_path / "out"):
        raise RuntimeError("basic_ios::clear: iostream error")


def test_an_error_of_a_library_stays_where_the_disk_takes_more(tmp_path):
    with pytest.raises(RuntimeError, match="another matter"), atomic_file(tmp_path / "a.txt"):
        raise RuntimeError("another matter")


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    for name in (".a.json.tmp-xy1.json", "deep/.b.tmp-xy2/c", "deep/kept.tmp-1", ".kept"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, ["b", "a"])
    assert (tmp_path / ".a.json.tmp-xy1.json").exists()
    remove_unfinished(tmp_path, ["a.json"])
    assert not (tmp_path / ".a.json.tmp-xy1.json").exists()
    assert (tmp_path / "deep" / ".b.tmp-xy2" / "c").exists()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.rglob("*")} == {"deep", "kept.tmp-1", ".kept"}


def test_a_lock_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(OutputError, match="could not be written"), folder_lock(tmp_path):
        pass


def test_a_lock_that_another_holds_is_waited_for_and_then_refused(tmp_path):
    with (
        file_lock(tmp_path / "lock"),
        pytest.raises(UsageError, match="Another process holds"),
        file_lock(tmp_path / "lock", longest_wait_s=0.01),
    ):
        pass


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "log.jsonl"
    append_json_line(path, {"step": 1})  # 12 bytes
    with files_of_at_most(20), pytest.raises(OutputError, match=r"log\.jsonl could not be written"):
        append_json_line(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n'
    append_json_line(path, {"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_a_line_that_was_cut_short_does_not_spoil_the_next_one(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    assert read_json_lines(path) == [{"step": 1}]
    append_json_line(path, {"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_full_disk_of_temporary_files_is_named_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        files_of_at_most(1000),
        pytest.raises(OutputError, match="TMPDIR") as caught,
        temporary_folder() as place,
    ):
        (place / "a").write_bytes(bytes(2000))
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())


def test_a_reader_that_cannot_write_is_not_called_a_damaged_file(tmp_path, monkeypatch):
    (tmp_path / "full.py").write_text("raise OSError(28, 'No space left on device')")
    (tmp_path / "broken.py").write_text("raise ValueError('[Errno 28] in a header')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    (tmp_path / "also_full.py").write_text(
        "class SafetensorError(Exception): ...\nraise SafetensorError('x (os error 28)')"
    )
    for module in ("full", "also_full"):
        with pytest.raises(OutputError, match="TMPDIR"):
            run_sandboxed(module, [], seconds=60)
    with pytest.raises(SandboxError):
        run_sandboxed("broken", [], seconds=60)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows gives an orphan no new parent")
def test_an_endless_reader_ends_soon_after_the_process_that_waits_for_it_is_killed(tmp_path, monkeypatch):
    held = tmp_path / "held"
    (tmp_path / "endless.py").write_text(
        "import fcntl, sys\nfrom glimpseg.runtime.sandbox import confine\n"
        "confine()\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "file.write('locked')\nfile.flush()\nwhile True: pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    waiting = (
        f"from glimpseg.runtime.sandbox import run_sandboxed; run_sandboxed('endless', [{str(held)!r}], seconds=60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", waiting])
    assert eventually(lambda: held.exists() and held.read_text() == "locked")
    parent.kill()
    parent.wait()
    with held.open("a") as file:
        assert eventually(partial(locks, file)), "the reader still holds its file"


def eventually(happens, seconds=50):
    """Return whether it happens in time; less than the reader's own limit."""
    end = time.monotonic() + seconds
    while not happens() and time.monotonic() < end:
        time.sleep(0.05)
    return happens()


def locks(file):
    """Lock the file, and return whether nobody else holds it."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
