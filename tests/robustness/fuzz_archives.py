"""Damaged archives (zip and tar); see `fuzz_files.py`."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from fuzz_bytes import cut, flip, flip_header, insert


def archive(rng: np.random.Generator, folder: Path) -> Path:
    """A zip or tar with something wrong in its names or bytes."""
    names = ["S1/t1.nii", "S1/t2.nii", "S2/t1.nii.gz"]
    if rng.random() < 0.5:
        names[int(rng.integers(3))] = str(
            rng.choice(["../x", "/x", "C:\\x", "a/../../x", "S1", "x" * 3000, "\x7f", "S1/t1.nii"])
        )
    files = [(name, rng.bytes(int(rng.integers(1, 900)))) for name in names]
    kind = str(rng.choice(["zip", "tar", "tgz"]))
    path = folder / f"a.{kind}"
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in dict(files).items():
                packed.writestr(name, content)
    else:
        with tarfile.open(fileobj=stream, mode="w") as tape:
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size, member.type = (
                    len(content),
                    rng.choice([tarfile.REGTYPE] * 5 + [b"1", b"2", b"3", b"S", b"x", b"L"]),
                )
                tape.addfile(member, io.BytesIO(content))
    content = bytearray(stream.getvalue())
    if rng.random() < 0.4:
        (_zip_field if kind == "zip" else _tar_field)(rng, content)
    if rng.random() < 0.8:
        rng.choice([flip, cut, insert, flip_header])(rng, content)
    packed_content = gzip.compress(bytes(content), mtime=0) if kind == "tgz" else bytes(content)
    path.write_bytes(packed_content)
    return path


_ZIP_FIELDS = {
    b"PK\x03\x04": {4: 2, 6: 2, 8: 2, 14: 4, 18: 4, 22: 4, 26: 2, 28: 2},
    b"PK\x01\x02": {4: 2, 6: 2, 8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 32: 2, 34: 2, 38: 4, 42: 4},
    b"PK\x05\x06": {4: 2, 6: 2, 8: 2, 10: 2, 12: 4, 16: 4, 20: 2},
}
"""Fields of a member's header, of the directory and of its end: position after the signature's begin, and bytes."""
_NUMBERS = (0, 1, 8, 9, 12, 14, 99, 0x41, 0x800, 0x7FFF, 0xFFFF, 0x10000, 1 << 24, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
_TAR_NUMBERS = (b"\x80" + b"\0" * 10 + b"\xff", b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"77777777777\0", b"-1\0",
                b"", b"9", b"0x10", b" " * 12)  # fmt: skip


def _zip_field(rng: np.random.Generator, content: bytearray) -> None:
    """Write a wrong number into a header; or let a member of the directory name another's bytes."""
    signature = list(_ZIP_FIELDS)[int(rng.integers(3))]
    places = [at for at in range(len(content)) if content.startswith(signature, at)]
    at = places[int(rng.integers(len(places)))]
    field = int(rng.choice(list(_ZIP_FIELDS[signature])))
    size = _ZIP_FIELDS[signature][field]
    content[at + field : at + field + size] = (int(rng.choice(_NUMBERS)) % 256**size).to_bytes(size, "little")


def _tar_field(rng: np.random.Generator, content: bytearray) -> None:
    """Write a wrong number or word into a member's header, and mostly the checksum that fits."""
    at = 512 * int(rng.integers(len(content) // 512))
    begin, size = [
        (100, 8),
        (108, 8),
        (124, 12),
        (124, 12),
        (136, 12),
        (148, 8),
        (156, 1),
        (157, 100),
        (257, 8),
        (345, 99),
    ][int(rng.integers(10))]
    content[at + begin : at + begin + size] = _TAR_NUMBERS[int(rng.integers(len(_TAR_NUMBERS)))][:size].ljust(
        size, b"\0"
    )
    if rng.random() < 0.8:
        content[at + 148 : at + 156] = b" " * 8
        content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])


def read_archive(path: Path) -> None:
    """Its files, which have to be plain and inside."""
    from glimpseg.data.unpack import unpacked

    with unpacked(path) as folder:
        for file in folder.rglob("*"):
            assert not file.is_symlink()
            assert file.resolve().is_relative_to(folder.resolve())
