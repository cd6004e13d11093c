"""gz files are inflated to the same bytes, and refused alike, whichever library does it."""

import gzip
import sys
import zlib

import numpy as np
import pytest

from glimpseg.data.gunzip import open_gzip

CONTENT = np.random.default_rng(0).integers(0, 40, 300_000).astype(np.uint8).tobytes()
PACKED = gzip.compress(CONTENT, mtime=0)


def flipped(place):
    return PACKED[:place] + bytes([PACKED[place] ^ 0x55]) + PACKED[place + 1 :]


@pytest.fixture(params=["isal", "zlib"])
def library(request, monkeypatch):
    if request.param == "isal":
        pytest.importorskip("isal", reason="the extra [fast] is not installed")
    else:
        monkeypatch.setitem(sys.modules, "isal", None)
    return request.param


def content(tmp_path, packed):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(packed)
    with open_gzip(path) as stream:
        return stream.read()


@pytest.mark.parametrize("packed", [PACKED, PACKED + PACKED, PACKED + bytes(100)], ids=["one", "two", "padded"])
def test_the_bytes_are_those_of_gzip(tmp_path, library, packed):
    assert content(tmp_path, packed) == gzip.decompress(packed)


@pytest.mark.parametrize("size", [5, 17, len(PACKED) // 2, len(PACKED) - 9, len(PACKED) - 8, len(PACKED) - 3])
def test_a_file_that_is_cut_short_is_refused(tmp_path, library, size):
    with pytest.raises(EOFError):
        content(tmp_path, PACKED[:size])


@pytest.mark.parametrize(
    "packed",
    [b"no gz file at all", flipped(0), flipped(len(PACKED) // 2), flipped(len(PACKED) - 7), flipped(len(PACKED) - 2)],
    ids=["none", "magic", "middle", "checksum", "length"],
)
def test_a_damaged_file_is_refused(tmp_path, library, packed):
    with pytest.raises((OSError, EOFError, zlib.error)):
        content(tmp_path, packed)


def test_no_more_is_inflated_than_is_asked_for(tmp_path, library):
    path = tmp_path / "a.gz"
    path.write_bytes(PACKED)
    with open_gzip(path) as stream:
        assert stream.read(1000) == CONTENT[:1000]
