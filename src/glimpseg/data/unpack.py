"""Unpack untrusted archives (.zip, .tar, .tar.gz, .tgz) safely into a temporary folder.

The `extract` functions of libraries are not used. Members are opened one by one and written under sanitised names, so
that no name in an archive becomes a path. Bytes are counted while they are unpacked, because the size that an archive
declares may be wrong.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from glimpseg.data.notices import warn
from glimpseg.errors import InputError, OutputError
from glimpseg.runtime.preemption import exit_on_sigterm
from glimpseg.runtime.temporary import REFUSALS, temporary_refused

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
"""Suffixes of the archives that are read."""
MAXIMAL_BYTES = 2 << 30
"""Largest total size of the unpacked files."""
MAXIMAL_RATIO = 200
"""Largest ratio of the unpacked size to the size of the archive."""
MAXIMAL_MEMBERS = 20_000
"""Most members of an archive."""
HARMLESS_BYTES = 1 << 20
"""Unpacked size that is always allowed, whatever the ratio."""
MAXIMAL_DEPTH = 32
"""Most folders above a member."""
MAXIMAL_NAME = 120
"""Most bytes of one part of a path; operating systems allow 255."""
LARGEST_READ = 16 << 20
"""Most bytes of a single read; directories and headers of valid archives are smaller."""
CHUNK = 1 << 20
"""Bytes that are copied at once."""
UNPACKED = "the archive"
"""Name of the folder into which an archive is unpacked, also used in messages. The name of the archive itself may
contain the name of a patient, and warnings are written into results."""
ENCRYPTED = 0x41
"""Flag bits of a zip member that is encrypted or strongly encrypted."""
_UNREADABLE = (
    OSError, EOFError, zlib.error, struct.error, tarfile.TarError, zipfile.BadZipFile, ValueError, LookupError,
    OverflowError, RuntimeError, MemoryError,
)  # fmt: skip
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
_SHORT_SUFFIXES = re.compile(r"(\.[A-Za-z0-9]{1,8}){0,2}$")


@contextmanager
def unpacked(place: Path) -> Iterator[Path]:
    """Yield the folder with the unpacked files of an archive, or `place` itself if it is a folder.

    The temporary folder can be read only by the user. The tree of folders and the suffixes are kept. Characters other
    than letters, digits, `-`, `+`, `.`, `_` and space become `_`. Links, devices and extra files of macOS are left out.
    Archives inside are not opened. The folder is removed at the end of the block, also after an error or SIGTERM.

    Raises: InputError if `place` is neither a folder nor such an archive, or if the archive is damaged or encrypted,
        names places outside itself, or holds no file or too much; OutputError when the disk refuses.
    """
    place = Path(place)
    if place.is_dir():
        yield place
        return
    if not place.is_file():
        raise InputError(f"{place} does not exist. Name a folder, or an archive ({', '.join(SUFFIXES)}).")
    if not place.name.lower().endswith(SUFFIXES):
        raise InputError(f"{place} is neither a folder nor an archive ({', '.join(SUFFIXES)}). Name one of these.")
    with exit_on_sigterm():
        temporary = _private_folder()
        try:
            folder = _folder_in(temporary)
            _unpack(place, folder)
            yield folder
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _private_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="glimpseg-"))  # mode 0700
    except OSError as error:
        raise _not_written(error) from error


def _folder_in(temporary: Path) -> Path:
    folder = temporary / UNPACKED
    try:
        folder.mkdir(0o700)
    except OSError as error:
        raise _not_written(error) from error
    return folder


def _unpack(place: Path, folder: Path) -> None:
    receiver = _Receiver(place, folder, _allowance(place))
    with _explained(place):
        if place.name.lower().endswith(".zip"):
            _unpack_zip(place, receiver)
        else:
            _unpack_tar(place, receiver)
    if not receiver.files:
        raise InputError(f"{place} holds no files. Is it the right archive?")
    if receiver.left_out:
        warn(f"{receiver.left_out} links, devices or sparse files in the archive were left out.")


def _allowance(place: Path) -> int:
    """Most bytes that may be unpacked from an archive of this size."""
    return min(max(place.stat().st_size * MAXIMAL_RATIO, HARMLESS_BYTES), MAXIMAL_BYTES)


def _unpack_zip(place: Path, receiver: _Receiver) -> None:
    with _LimitedFile(place) as source, zipfile.ZipFile(source) as archive:  # type: ignore[type-var]
        members = [member for member in archive.infolist() if not member.is_dir()]
        receiver.check_declared(len(archive.infolist()), sum(member.file_size for member in members))
        for number, member in enumerate(members, 1):
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.flag_bits & ENCRYPTED:
                raise InputError(f"{place} is encrypted. Unpack it yourself and name the folder.")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise InputError(
                    f"{place}: member {number} is packed by method {member.compress_type}; stored and deflated members "
                    "are read. Pack it again, or unpack it yourself and name the folder."
                )
            if kind not in (0, stat.S_IFREG):
                receiver.left_out += 1
                continue
            with archive.open(member) as stream:
                receiver.take(number, member.orig_filename, member.file_size, stream)


def _unpack_tar(place: Path, receiver: _Receiver) -> None:
    packed = not place.name.lower().endswith(".tar")
    with gzip.open(place) if packed else place.open("rb") as plain:
        # Headers and padding are added to the size of the files.
        source = _ForwardStream(plain, receiver.allowed + MAXIMAL_MEMBERS * 4 * tarfile.BLOCKSIZE)
        with tarfile.open(fileobj=source, mode="r:") as archive:  # type: ignore[call-overload]
            for number, member in enumerate(archive, 1):
                receiver.check_declared(number, receiver.came + max(member.size, 0))
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    receiver.left_out += 1
                    continue
                stream = archive.extractfile(member)
                assert stream is not None
                receiver.take(number, member.name, member.size, stream)
        if len(source.last) != tarfile.BLOCKSIZE or any(source.last):
            raise InputError(f"{place} ends without the mark of its end. It is cut short: copy or export it again.")
        source.drain()  # so that the checksum is checked


@dataclass
class _Receiver:
    """Destination of the members, with counts of files and bytes."""

    place: Path
    folder: Path
    allowed: int
    came: int = 0
    files: int = 0
    left_out: int = 0
    names: dict[PurePosixPath, Path] = field(default_factory=dict)

    def check_declared(self, members: int, size: int) -> None:
        """Check declared numbers before writing. Raises: InputError if they exceed the limits."""
        if members > MAXIMAL_MEMBERS:
            raise InputError(f"{self.place} holds more than {MAXIMAL_MEMBERS:,} members. Split it into studies.")
        if size > self.allowed:
            raise self.too_much(size)

    def too_much(self, size: int) -> InputError:
        """Return the error for an archive that unpacks to `size` bytes or more."""
        return InputError(
            f"{self.place} ({self.place.stat().st_size:,} bytes) grows to {size:,} bytes or more; at most "
            f"{MAXIMAL_BYTES >> 30} GB and {MAXIMAL_RATIO} times its size are unpacked. If you trust it, unpack it "
            "yourself and name the folder."
        )

    def take(self, number: int, name: str, size: int, stream: IO[bytes]) -> None:
        """Write one member under a sanitised name.

        Args:
            number: position in the archive, for messages.
            name: name in the archive.
            size: declared size in bytes.
            stream: its content.

        Raises: InputError if the name or size is not acceptable; OutputError when the disk refuses.
        """
        parts = _parts(name)
        if parts is None:
            raise InputError(
                f"{self.place}: the name of member {number} leads out of the archive (absolute, '..', a drive, or "
                "a NUL in it). Nothing of it was kept. Do not trust where it came from; else pack it again."
            )
        if not parts or parts[0] == "__MACOSX" or parts[-1].startswith("._") or parts[-1] == ".DS_Store":
            return  # extra files that macOS adds
        if len(parts) > MAXIMAL_DEPTH:
            raise InputError(f"{self.place}: member {number} lies {len(parts)} folders deep. Pack it again, flatter.")
        path = PurePosixPath(*parts)
        if path in self.names:
            raise InputError(f"{self.place}: member {number} has the name of an earlier one. Pack it again.")
        came = 0
        descriptor = self._new_file(number, path)
        with os.fdopen(descriptor, "wb") as file:
            while chunk := stream.read(CHUNK):
                came += len(chunk)
                self.came += len(chunk)
                if self.came > self.allowed:
                    raise self.too_much(self.came)
                _write(file, chunk)
        if came != size:
            raise InputError(
                f"{self.place}: member {number} should have {size:,} bytes but has {came:,}. It is damaged."
            )
        self.files += 1

    def _new_file(self, number: int, path: PurePosixPath) -> int:
        """Create a new file that only the user can read, and return its descriptor."""
        try:
            target = self._target(number, path)
            return os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{self.place}: member {number} lies in what is itself a file. Pack it again.") from error
        except OSError as error:
            raise _not_written(error) from error

    def _target(self, number: int, path: PurePosixPath) -> Path:
        """Return the path for a member and make its folders. Different names in the archive stay different."""
        above = self.folder
        for part in [*reversed(path.parents), path][1:]:
            if part not in self.names:
                name = _harmless(part.name)
                self.names[part] = above / (f"{number}_{name}" if (above / name).exists() else name)
                if part != path:
                    self.names[part].mkdir(mode=0o700)
            above = self.names[part]
        return above


def _parts(name: str) -> list[str] | None:
    """Parts of the path of a member, without `.`; None if the path leads out of the archive."""
    parts = name.replace("\\", "/").split("/")
    if "\0" in name or not parts[0] or ".." in parts or re.match(r"[A-Za-z]:", name):
        return None
    return [part for part in parts if part not in ("", ".")]


def _harmless(part: str) -> str:
    """Sanitised file name that is valid on every operating system, with the suffixes of `part`."""
    text = re.sub(r"[^\w.+ -]", "_", part).rstrip(". ") or "_"
    if _RESERVED.match(text):
        text = f"_{text}"
    if len(text.encode()) > MAXIMAL_NAME:
        ending = _SHORT_SUFFIXES.search(text)
        suffix = ending.group() if ending else ""
        text = text.encode()[: MAXIMAL_NAME - len(suffix)].decode("utf-8", "ignore") + suffix
    return text


def _write(file: IO[bytes], chunk: bytes) -> None:
    try:
        file.write(chunk)
        file.flush()  # so that a full disk raises here and not on closing
    except OSError as error:
        raise _not_written(error) from error


def _not_written(error: OSError) -> OutputError:
    return temporary_refused(error, "The content of the archive")


@contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Turn errors of the archive libraries into an InputError."""
    try:
        yield
    except (InputError, OutputError):
        raise
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:  # of making a file or folder
            raise _not_written(error) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{place} cannot be unpacked ({reason}). It is damaged: copy or export it again.") from error


class _LimitedFile(io.FileIO):
    """File with at most `LARGEST_READ` bytes for one read, so that a false directory size is refused unread."""

    def read(self, size: int | None = -1) -> bytes:
        """Read at most `size` bytes. Raises: ValueError if more than `LARGEST_READ` are requested."""
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > LARGEST_READ:
            raise ValueError(f"its directory claims {size:,} bytes")
        return super().read(size) or b""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _ForwardStream:
    """Forward-only stream for tarfile, with a total limit and at most `LARGEST_READ` bytes for one read."""

    def __init__(self, stream: _Readable, end: int) -> None:
        self.stream, self.end, self.position, self.last = stream, end, 0, b""

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes. Raises: ValueError for too many at once, or beyond the total limit."""
        if not 0 <= size <= LARGEST_READ:
            raise ValueError(f"one of its headers claims {size:,} bytes")
        self.last = content = self.stream.read(size)
        self.position += len(content)
        if self.position > self.end:
            raise ValueError(f"it grows beyond {self.end:,} bytes")
        return content

    def tell(self) -> int:
        """Return the number of bytes read so far."""
        return self.position

    def seek(self, place: int) -> int:
        """Read on to a position. Raises: ValueError for a position that has passed."""
        if place < self.position:
            raise ValueError("its members overlap")
        while self.position < place and self.read(min(place - self.position, CHUNK)):
            pass
        return self.position

    def drain(self) -> None:
        """Read to the end."""
        while self.read(CHUNK):
            pass
