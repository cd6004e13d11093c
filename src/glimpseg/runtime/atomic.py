"""Atomic writes: files and folders that appear complete or not at all.

A result is written under a temporary name in the same folder, flushed to the disk, and renamed. After a crash, a kill
or a full disk, the previous content is still there. SIGTERM removes temporary files, too.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from glimpseg.errors import OutputError, UsageError
from glimpseg.runtime.preemption import exit_on_sigterm

_STREAM_ERROR = "iostream error"
"""Words of C++ for a file that could not be written, in a message of OpenVINO."""
PROBE_BYTES = 1 << 20
"""Bytes that are written to find out if a disk is full."""
_CURRENT_FOLDER, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
"""Number of the system's error in a message of safetensors."""


@contextmanager
def atomic_file(
    path: str | Path, *, mode: int = 0o666, give_name: Callable[[Path, Path], object] | None = None
) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path beside `path`, and rename it to `path` at the end of the block.

    If the block raises, the temporary file is removed and `path` is unchanged. The temporary name keeps the suffixes of
    `path`, because writers choose their format by them.

    Args:
        path: File to write; parent folders are created.
        mode: Permissions of the file, further limited by the process's umask.
        give_name: Renames the temporary file, the first argument, to `path`, the second. Default: `os.replace`.

    Raises:
        OutputError: The disk is full, read-only or not accessible.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:])
    with as_output_error(path), exit_on_sigterm():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.tmp-", suffix=suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            with _as_system_error(temporary.parent):
                yield temporary
            _flush(temporary)
            temporary.chmod(mode & ~_umask())
            (give_name or os.replace)(temporary, path)
            _flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False, mark: str = "") -> Iterator[Path]:
    """Write a folder atomically: yield a temporary folder beside `path`, and rename it at the end of the block.

    The permissions of its files are those that the process's umask allows. If the block raises, the temporary folder is
    removed and `path` is unchanged.

    Args:
        path: Folder to write; parent folders are created. It may exist and be empty.
        overwrite: Replace a folder with files in it, if it holds the file `mark`. It is replaced at the very end.
        mark: Name of the file that shows that glimpseg wrote the folder. If empty, any folder may be replaced.

    Raises:
        UsageError: The folder is in use; see `refuse_if_used`.
        OutputError: The disk is full, read-only or not accessible.
    """
    path = Path(path)
    refuse_if_used(path, overwrite=overwrite, mark=mark)
    with as_output_error(path), exit_on_sigterm():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
        try:
            with _renamed(temporary, path), _as_system_error(temporary):
                yield temporary
            for file in temporary.rglob("*"):
                _flush(file)
                if file.is_file():  # safetensors makes files readable by their owner only
                    file.chmod(0o666 & ~_umask())
            temporary.chmod(0o777 & ~_umask())
            refuse_if_used(
                path, overwrite=overwrite, mark=mark
            )  # another process may have filled the folder in the meantime
            _move_into_place(temporary, path, overwrite=overwrite)
            _flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def refuse_if_used(path: str | Path, *, overwrite: bool = False, mark: str = "") -> None:
    """Refuse an output folder that must not be replaced. A folder that is empty or absent is accepted.

    Args:
        path: Output folder.
        overwrite: Allow a folder with files in it, if it holds the file `mark`.
        mark: Name of the file that shows that glimpseg wrote the folder. `overwrite` allows no other folder, so a
            mistyped name cannot delete a folder of images. If empty, any folder is allowed.

    Raises:
        UsageError: `path` is a file, or a folder whose files may not be replaced.
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


def remove_unfinished(folder: str | Path, names: Collection[str] | None = None) -> None:
    """Remove the temporary files and folders that killed processes have left in a folder.

    The caller must hold a lock that keeps all other writers of these files away.

    Args:
        folder: The folder; need not exist.
        names: Names of files and folders directly in it whose temporary ones are removed. Default: all, at any depth.
    """
    for left in list(Path(folder).glob("**/.*.tmp-*" if names is None else ".*.tmp-*")):
        if names is not None and left.name[1:].rpartition(".tmp-")[0] not in names:
            continue
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a folder that is written file by file. The folder is created if it does not exist.

    The system releases the lock when the process ends, however it ends.

    Raises:
        UsageError: Another process holds the lock.
        OutputError: The folder cannot be created.
    """
    folder = Path(folder)
    with as_output_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = _acquired(folder / ".lock", 0)
    except Timeout as error:
        raise UsageError(
            f"Another process is writing to {folder}. Wait for it, or name another folder with -o."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def file_lock(path: str | Path, *, longest_wait_s: float = -1) -> Iterator[None]:
    """Hold a lock file; wait for another process that holds it.

    Args:
        path: The lock file; its folder must exist.
        longest_wait_s: Longest wait in seconds; negative: as long as it takes.

    Raises:
        UsageError: Another process holds the lock for longer.
        OutputError: The file cannot be created.
    """
    try:
        lock = _acquired(Path(path), longest_wait_s)
    except Timeout as error:
        raise UsageError(
            f"Another process holds {path} for more than {longest_wait_s:.0f} s. Wait for it, or end it, and run again."
        ) from error
    try:
        yield
    finally:
        lock.release()


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, complete or not at all.

    Raises:
        OutputError: The disk is full, read-only or not accessible.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_file(path: str | Path) -> None:
    """Remove a file, if it is there. A read-only disk refuses even to remove what it does not hold.

    Raises:
        OutputError: The disk is read-only or not accessible.
    """
    path = Path(path)
    if os.path.lexists(path):
        with as_output_error(path):
            path.unlink(missing_ok=True)


def write_text_once(path: str | Path, text: str) -> bool:
    """Write a UTF-8 text file that is not there yet, complete or not at all.

    Returns:
        True; False if the file is there, perhaps by another process at this moment. It stays as it is then.

    Raises:
        OutputError: The disk is full, read-only or not accessible.
    """
    first = True

    def give_name(temporary: Path, path: Path) -> None:
        nonlocal first
        try:
            os.link(temporary, path)  # refused if there is such a file, unlike a renaming
        except FileExistsError:
            first = False
        except OSError:  # a disk without links
            first = not path.exists()
            if first:
                os.replace(temporary, path)

    with atomic_file(path, give_name=give_name) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return first


def write_json(path: str | Path, tree: Mapping[str, Any]) -> None:
    """Write a JSON file (UTF-8, one space of indentation), complete or not at all.

    Raises:
        OutputError: The disk is full, read-only or not accessible.
    """
    write_text(path, json.dumps(tree, indent=1) + "\n")


@contextmanager
def as_output_error(path: Path) -> Iterator[None]:
    """Turn an OSError into the OutputError that names `path`; one about a file outside of its folder stays."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        names = [name for name in (error.filename, error.filename2) if name]  # two of a copy or a renaming
        if error.errno is None or (names and not any(_inside(name, path.parent) for name in names)):
            raise  # an error with another file, for example an input that vanished
        raise OutputError(
            error.errno,
            f"{path} could not be written ({error.strerror}). Nothing was left half-written. "
            "Free some space or choose another place with -o",
        ) from error


@contextmanager
def _as_system_error(folder: Path) -> Iterator[None]:
    """Turn an error of a library that writes by itself into the OSError behind it, if there is one.

    safetensors names the number of the system's error. torch and OpenVINO do not: a file is written beside theirs, in
    `folder`, and the disk answers.
    """
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        number = _SYSTEM_ERROR.search(str(error))
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        try:
            with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
                probe.write(bytes(PROBE_BYTES))
                os.fsync(probe.fileno())
                full = probe.tell() < PROBE_BYTES
        except OSError as refusal:
            raise OSError(refusal.errno, refusal.strerror) from error
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if _STREAM_ERROR in str(error):  # the library has removed its half of the file, so there is space again
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
        raise


@contextmanager
def _renamed(temporary: Path, path: Path) -> Iterator[None]:
    """Name the files of a temporary folder, in an OutputError, by the place that they were to have."""
    try:
        yield
    except OutputError as error:
        if str(temporary) not in str(error.strerror):
            raise
        raise OutputError(error.errno, str(error.strerror).replace(str(temporary), str(path))) from error


def _acquired(path: Path, longest_wait_s: float) -> FileLock:
    """Return the acquired lock of a file. Raises: Timeout; OutputError if the file cannot be created."""
    lock = FileLock(path)
    with as_output_error(path):
        lock.acquire(timeout=longest_wait_s)
    return lock


def _inside(name: str | bytes | int, folder: Path) -> bool:
    return Path(os.fsdecode(name) if not isinstance(name, int) else ".").absolute().is_relative_to(folder.absolute())


def _move_into_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if not overwrite:
        if os.name == "nt" and path.is_dir():
            path.rmdir()
        try:
            os.replace(temporary, path)  # also replaces an empty folder; the system refuses a full one
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                refuse_if_used(path)
            raise
        return
    if not path.is_dir():
        os.replace(temporary, path)
        return
    if _exchange(temporary, path):  # the old folder now has the temporary name, and is removed with it
        return
    # Elsewhere a folder with files cannot be replaced in one call. Move the old one aside first, then remove it.
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    os.replace(path, old)
    try:
        os.replace(temporary, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False where the system cannot. Linux can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    names = (_CURRENT_FOLDER, os.fsencode(one), _CURRENT_FOLDER, os.fsencode(other))
    return bool(rename(*names, _EXCHANGE) == 0)


def _flush(path: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open a folder, and does not need this for a rename to last
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
