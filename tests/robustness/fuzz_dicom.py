"""Damaged DICOM series; see `fuzz_files.py`."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_bytes import NASTY, WORDS, cut, flip, insert

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
    rng.choice([flip, cut, insert])(rng, content)
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
