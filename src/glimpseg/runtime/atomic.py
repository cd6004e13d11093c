"""Files and folders that appear whole or not at all.

A result is written under a temporary name in the same folder, flushed to the disk, and renamed. A crash,
a kill or a full disk leaves what was there before. SIGTERM removes what is temporary, too.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from glimpseg.errors import OutputError, UsageError
from glimpseg.runtime.preemption import exit_on_sigterm


@contextmanager
def atomic_file(path: str | Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it to `path` if the block ends well, else removes it.

    The temporary name keeps the suffixes of `path`, because writers choose their format by them. `mode` are the file's
    permissions, as far as the process's mask allows them.

    Raises: OutputError when the disk refuses (full, read-only, no permission).
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:])
    with _explained(path), exit_on_sigterm():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", suffix=suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _flush(temporary)
            temporary.chmod(mode & ~_umask())
            os.replace(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False, mark: str = "") -> Iterator[Path]:
    """Yields a temporary folder beside `path`; it becomes `path` if the block ends well, and its files get the
    permissions that the process's mask allows.

    With `overwrite`, a folder that holds the file `mark` is replaced at the very end.

    Raises: UsageError as `refuse_if_used`; OutputError when the disk refuses.
    """
    path = Path(path)
    refuse_if_used(path, overwrite=overwrite, mark=mark)
    with _explained(path), exit_on_sigterm():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                _flush(file)
                if file.is_file():  # safetensors makes files for their owner alone
                    file.chmod(0o666 & ~_umask())
            temporary.chmod(0o777 & ~_umask())
            refuse_if_used(path, overwrite=overwrite, mark=mark)  # by another process, while this one worked
            _swap(temporary, path, overwrite=overwrite)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def refuse_if_used(path: str | Path, *, overwrite: bool = False, mark: str = "") -> None:
    """Raises UsageError if `path` is a file, or a folder with something in it that may not be replaced.

    `mark` is the file by which a folder shows that glimpseg made it: `overwrite` replaces no other, so that a
    mistyped name costs nobody a folder of images.
    """
    path = Path(path)
    if path.is_file():
        raise UsageError(f"The output has to be a folder, but {path} is a file. Name another with -o.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UsageError(
            f"The output folder {path} already holds files; nothing was written. "
            "Name another folder with -o, or pass --overwrite to replace it."
        )
    if path.is_dir() and any(path.iterdir()) and mark and not (path / mark).is_file():
        raise UsageError(
            f"--overwrite replaces only a folder that glimpseg made, and {path} holds files but no {mark}; nothing was "
            "written. Name another folder with -o, or empty this one yourself."
        )


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Holds the lock of a folder that grows file by file; the system frees it when the process ends, however it ends.

    Raises: UsageError if another process holds it.
    """
    folder = Path(folder)
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"Another process is writing to {folder}. Wait for it, or name another folder with -o."
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 text file whole."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, tree: Mapping[str, Any]) -> None:
    """Write a JSON file (UTF-8, one space of indentation), whole or not at all.

    Raises: OutputError when the disk refuses.
    """
    write_text(path, json.dumps(tree, indent=1) + "\n")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if error.errno is None or (error.filename and not _inside(error.filename, path.parent)):
            raise  # some other file's trouble, an input that vanished for instance
        raise OutputError(
            error.errno,
            f"{path} could not be written ({error.strerror}). Nothing was left half-written. "
            "Free some space or choose another place with -o",
        ) from error


def _inside(name: str | bytes | int, folder: Path) -> bool:
    return Path(os.fsdecode(name) if not isinstance(name, int) else ".").absolute().is_relative_to(folder.absolute())


def _swap(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if not overwrite:
        if os.name == "nt" and path.is_dir():
            path.rmdir()
        try:
            os.replace(temporary, path)  # over an empty folder, too; the system refuses a full one
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                refuse_if_used(path)
            raise
        return
    if not path.is_dir():
        os.replace(temporary, path)
        return
    # A folder that holds files cannot be replaced in one call: set the old one aside first, then drop it.
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    if os.name == "nt":
        return  # Windows can neither open a folder nor needs it for a rename to last
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
