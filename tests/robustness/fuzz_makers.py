"""Functions that make damaged files from random numbers, and functions that read them; see `fuzz_files.py`."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SHAPE = (14, 16, 12)
AFFINE = np.array([[3.0, 0, 0, -20], [0, 3.0, 0, -25], [0, 0, 3.0, -15], [0, 0, 0, 1]])
NASTY = (0, -1, 1, 2, 3, 7, 255, 32767, -32768, 65535, 1e-30, 1e-6, 0.5, 1e6, 1e30, -1e30, np.nan, np.inf, -np.inf)
TYPES = ("u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
SYNTAXES = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.5", "1.2.3.4", "../../outside",
)  # fmt: skip
TAGS = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "NumberOfFrames", "PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "InstanceNumber", "SeriesNumber",
    "SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID",
    "PatientName", "Modality", "SeriesDescription", "ImageType", "EchoTime", "RepetitionTime", "AcquisitionTime",
    "ContrastBolusAgent", "SpecificCharacterSet", "PixelData",
)  # fmt: skip
WORDS = (
    "",
    "x",
    "../../outside",
    "/outside",
    "C:\\outside",
    "a\0b",
    "1e999",
    "NaN",
    "-1",
    "1\\2",
    "\\\\",
    "9" * 300,
    "ä",
)


def missing(kind: str) -> str | None:
    """Why files of this kind cannot be read here; None if they can."""
    if kind != "dicom":
        return None
    absent = [name for name in ("pydicom", "highdicom") if find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    return None if find_spec("glimpseg.data.dicom") else "glimpseg reads no DICOM yet"


# NIfTI


def nifti(rng: np.random.Generator, folder: Path) -> Path:
    """A NIfTI file with one to three things wrong."""
    two, packed = rng.random() < 0.2, rng.random() < 0.5
    content = bytearray(_nifti(rng, two))
    for _ in range(int(rng.integers(1, 4))):
        rng.choice([_bytes, _header_bytes, _field, _field, _field, _affine, _cut, _insert, _voxels, _extension])(
            rng, content
        )
    path = folder / ("t1c.nii.gz" if packed else "t1c.nii")
    path.write_bytes(_packed(rng, bytes(content)) if packed != (rng.random() < 0.03) else bytes(content))
    (folder / "flair.nii").write_bytes(_nifti(np.random.default_rng(0), two=False))
    return path


def _nifti(rng: np.random.Generator, two: bool) -> bytes:
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij"))
    voxels = np.where((place**2).sum(0) < 0.7, rng.uniform(50, 100, SHAPE), 0)
    if rng.random() < 0.2:
        voxels = np.minimum(voxels, 3)  # what a label map holds
    order = str(rng.choice(["<", ">"]))
    kind = nibabel.Nifti2Image if two else nibabel.Nifti1Image
    header = kind.header_class(endianness=order)
    stored = voxels.astype(order + str(rng.choice(TYPES)))
    image = kind(stored, AFFINE, header, dtype=stored.dtype)
    if rng.random() < 0.3:
        image.header.set_slope_inter(0.5, 3)
    if rng.random() < 0.3:
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * int(rng.integers(1, 99))))
    if rng.random() < 0.5:
        image.set_sform(None, 0)
    return image.to_bytes()


def _bytes(rng: np.random.Generator, content: bytearray) -> None:
    for at in rng.integers(len(content), size=int(rng.integers(1, 9))) if content else ():
        content[int(at)] = int(rng.integers(256))


def _header_bytes(rng: np.random.Generator, content: bytearray) -> None:
    for at in rng.integers(min(len(content), 560), size=int(rng.integers(1, 9))) if content else ():
        content[int(at)] = int(rng.integers(256))


def _field(rng: np.random.Generator, content: bytearray, names: tuple[str, ...] = ()) -> None:
    """A value that is none, in a field of the header."""
    if len(content) < 540:
        return
    two = content[:4] in (struct.pack("<i", 540), struct.pack(">i", 540))
    kind = nibabel.Nifti2Header if two else nibabel.Nifti1Header
    order = ">" if content[0] == 0 else "<"
    fields: dict[str, Any] = dict(kind.template_dtype.newbyteorder(order).fields)  # type: ignore[arg-type]
    name = str(rng.choice(names or sorted(fields)))
    dtype, start = fields[name][:2]
    base = dtype.base
    at = int(start) + int(rng.integers(dtype.itemsize // base.itemsize)) * base.itemsize
    value: Any = NASTY[int(rng.integers(len(NASTY)))]
    if base.kind in "iu":
        limits = np.iinfo(base)
        value = (
            int(np.clip(np.nan_to_num(value), limits.min, limits.max))
            if base.itemsize < 8
            else int(np.nan_to_num(value, posinf=2**62, neginf=-(2**62))) % 2**62
        )
    if base.kind == "S":
        content[at : at + base.itemsize] = rng.bytes(base.itemsize)
    else:
        with np.errstate(all="ignore"):
            content[at : at + base.itemsize] = np.array(value).astype(base).tobytes()


def _affine(rng: np.random.Generator, content: bytearray) -> None:
    for _ in range(int(rng.integers(1, 5))):
        _field(
            rng, content, ("pixdim", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "sform_code", "qform_code")
        )


def _cut(rng: np.random.Generator, content: bytearray) -> None:
    del content[int(rng.integers(len(content) + 1)) :]


def _insert(rng: np.random.Generator, content: bytearray) -> None:
    at = int(rng.integers(len(content) + 1))
    content[at:at] = rng.bytes(int(rng.integers(1, 2000)))


def _voxels(rng: np.random.Generator, content: bytearray) -> None:
    """NaN, infinity and extremes, if the voxels are floats."""
    for at in rng.integers(140, max(len(content) // 4, 141), size=5):
        value = NASTY[int(rng.integers(len(NASTY)))]
        with np.errstate(all="ignore"):
            content[4 * int(at) : 4 * int(at) + 4] = np.float32(value).tobytes()


def _extension(rng: np.random.Generator, content: bytearray) -> None:
    if len(content) < 600:
        return
    size = int(rng.choice([0, 8, 15, 16, -16, 2**31 - 1, 1 << 20]))
    content[348:352] = b"\x01\0\0\0"
    content[352:360] = struct.pack("<ii", size, int(rng.choice([0, 2, 4, 6, 32])))
    content[108:112] = struct.pack("<f", float(rng.choice([352, 368, 1 << 20, 1e9, 3e38])))


def _packed(rng: np.random.Generator, content: bytes) -> bytes:
    """gzip, with something wrong in half of the cases."""
    packed = gzip.compress(content, 1, mtime=0)
    match int(rng.integers(10)):
        case 0:
            return gzip.compress(packed, 1, mtime=0)
        case 1:
            flipped = bytearray(packed)
            _bytes(rng, flipped)
            return bytes(flipped)
        case 2:
            return packed[: int(rng.integers(len(packed) + 1))]
        case 3:
            return packed + gzip.compress(bytes(int(rng.integers(1, 1 << 23))), 1, mtime=0)
        case 4:
            return packed + rng.bytes(int(rng.integers(1, 100)))
    return packed


def read_nifti(path: Path) -> None:
    """Read an image in every way: as labels, a grid, a study with another sequence, and the way back."""
    from glimpseg.data import nifti
    from glimpseg.data.preprocess import Preprocess, prepare
    from glimpseg.errors import InputError
    from glimpseg.modality import Modality
    from glimpseg.study import Study
    from glimpseg.volume import Volume, resample

    for read in (nifti.read_labels, nifti.read_header):
        try:
            read(path)
        except InputError:
            continue
    for images in ({Modality.T1C: path}, {Modality.T1C: path, Modality.FLAIR: path.parent / "flair.nii"}):
        prepared = prepare(Study("fuzz", images), Preprocess(spacing_mm=3.0))
        back = resample(Volume(prepared.image[1], prepared.grid.affine), prepared.own)
        assert np.isfinite(prepared.image).all(), "NaN or infinity reached the network's input"
        assert back.voxels.shape == prepared.own.shape


# DICOM


def dicom(rng: np.random.Generator, folder: Path) -> Path:
    """A folder with a small series, one or two of whose files have something wrong."""
    datasets = _series()
    for dataset in datasets:
        dataset.save_as(folder / f"{dataset.InstanceNumber}.dcm", enforce_file_format=True)
    for _ in range(int(rng.integers(1, 3))):
        path = folder / str(rng.choice(sorted(file.name for file in folder.iterdir())))
        rng.choice(
            [
                _dicom_bytes,
                _dicom_length,
                _dicom_tag,
                _dicom_tag,
                _dicom_tag,
                _dicom_syntax,
                _dicom_depth,
                _dicom_slices,
            ]
        )(rng, path)
    return folder


def _series() -> list[Any]:
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    voxels = np.random.default_rng(0).integers(0, 900, (6, 12, 16)).astype("<u2")
    voxels[:, :2] = 0
    found = []
    for number, plane in enumerate(voxels):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.MRImageStorage
        meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
        dataset.PatientID, dataset.PatientName, dataset.Modality = "P1", "Nobody", "MR"
        dataset.SeriesDescription, dataset.ImageType = "t1 mpr", ["ORIGINAL", "PRIMARY"]
        dataset.SeriesNumber, dataset.InstanceNumber = 3, number + 1
        dataset.EchoTime, dataset.RepetitionTime, dataset.SliceThickness = 3, 2000, 3
        dataset.ImageOrientationPatient, dataset.PixelSpacing = [1, 0, 0, 0, 1, 0], [3, 3]
        dataset.ImagePositionPatient = [-20, -20, 3 * number]
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *plane.shape, 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.PixelData = plane.tobytes()
        found.append(dataset)
    return found


def _dicom_bytes(rng: np.random.Generator, path: Path) -> None:
    content = bytearray(path.read_bytes())
    rng.choice([_bytes, _cut, _insert])(rng, content)
    path.write_bytes(content)


def _dicom_length(rng: np.random.Generator, path: Path) -> None:
    """A wrong length before one of the elements."""
    content = bytearray(path.read_bytes())
    at = int(rng.integers(132, max(len(content) - 4, 133)))
    content[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF])))
    path.write_bytes(content)


def _dicom_tag(rng: np.random.Generator, path: Path) -> None:
    import pydicom

    keyword = str(rng.choice(TAGS))
    value: Any = WORDS[int(rng.integers(len(WORDS)))] if rng.random() < 0.5 else NASTY[int(rng.integers(len(NASTY)))]
    _rewritten(rng, path, lambda dataset: _set(pydicom, dataset, keyword, value, rng))


def _set(pydicom: Any, dataset: Any, keyword: str, value: Any, rng: np.random.Generator) -> None:
    if keyword not in dataset or rng.random() < 0.2:
        dataset.pop(keyword, None)
        return
    element = dataset[keyword]
    if element.VR in ("US", "OW", "OB"):
        raw = struct.pack("<H", int(np.nan_to_num(float(value) if not isinstance(value, str) else 9e9)) % 65536)
    else:
        text = str(value)
        raw = "\\".join([text] * (max(element.VM, 1) if rng.random() < 0.8 else 9)).encode("latin-1", "replace")
        raw += b" " * (len(raw) % 2)
    tag = pydicom.tag.Tag(keyword)
    dataset[tag] = pydicom.dataelem.RawDataElement(tag, element.VR, len(raw), raw, 0, False, True)


def _dicom_syntax(rng: np.random.Generator, path: Path) -> None:
    """Pixels that are not what the transfer syntax says."""
    from pydicom.encaps import encapsulate

    def change(dataset: Any) -> None:
        if rng.random() < 0.7:
            frames = [rng.bytes(int(rng.integers(1, 400)))] if rng.random() < 0.5 else [dataset.PixelData]
            dataset.PixelData = encapsulate(frames)
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True

    _rewritten(rng, path, change)
    content = path.read_bytes()
    syntax = str(rng.choice(SYNTAXES)).encode()
    old = b"1.2.840.10008.1.2.1\0"
    if len(syntax) <= len(old):
        path.write_bytes(content.replace(old, syntax.ljust(len(old), b"\0"), 1))
    else:  # the element grows, and the group with it
        new = syntax + b"\0" * (len(syntax) % 2)
        changed = content.replace(
            b"\x02\0\x10\0UI\x14\0" + old, b"\x02\0\x10\0UI" + struct.pack("<H", len(new)) + new, 1
        )
        group = struct.unpack("<I", changed[140:144])[0] + len(new) - len(old)
        path.write_bytes(changed[:140] + struct.pack("<I", group % 2**32) + changed[144:])


def _dicom_depth(rng: np.random.Generator, path: Path) -> None:
    """Sequences in sequences, some hundreds deep."""
    depth = int(rng.choice([50, 500, 5000]))
    item, sequence = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff"
    content = path.read_bytes()
    at = content.find(b"\x08\0\x16\0")
    path.write_bytes(content[: max(at, 0)] + (sequence + item) * depth + content[max(at, 0) :])


def _dicom_slices(rng: np.random.Generator, path: Path) -> None:
    """A slice that is missing, or there twice, whole or half."""
    if rng.random() < 0.4:
        path.unlink()
        return
    content = path.read_bytes()
    (path.parent / "copy.dcm").write_bytes(content if rng.random() < 0.5 else content[:-2] + b"\1\1")


def _rewritten(rng: np.random.Generator, path: Path, change: Any) -> None:
    """The file with a changed data set; damaged bytes where that cannot be written."""
    import warnings

    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
            change(dataset)
            stream = io.BytesIO()
            dataset.save_as(stream)
    except Exception:
        _dicom_bytes(rng, path) if path.exists() else None
        return
    path.write_bytes(stream.getvalue())


def read_dicom(folder: Path) -> None:
    """All series of a folder, and their voxels."""
    from glimpseg.data.dicom.find import find_series
    from glimpseg.data.dicom.read import read_series

    for series in find_series(folder):
        volume = read_series(series)
        assert np.isfinite(volume.voxels).all()


# Archives


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
    if rng.random() < 0.8:
        rng.choice([_bytes, _cut, _insert, _header_bytes])(rng, content)
    packed_content = gzip.compress(bytes(content), mtime=0) if kind == "tgz" else bytes(content)
    path.write_bytes(packed_content)
    return path


def read_archive(path: Path) -> None:
    """Its files, which have to be plain and inside."""
    from glimpseg.data.unpack import unpacked

    with unpacked(path) as folder:
        for file in folder.rglob("*"):
            assert not file.is_symlink()
            assert file.resolve().is_relative_to(folder.resolve())


READERS = {"nifti": read_nifti, "dicom": read_dicom, "archive": read_archive}
