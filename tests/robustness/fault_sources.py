"""DICOM folders and archives with something wrong; rows of `fault_table.py`, in the form of `fault_files.py`."""

from __future__ import annotations

import io
import stat
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fault_files import NUMBER, WORDS, Fault, Scans, Word, plain, segment, voxels

sys.path.insert(0, str(Path(__file__).parents[1]))
import dicom_phantoms

sys.path.pop(0)

# DICOM


def series(place: Path, scans: Scans, folder: str = "t1c", **changes: Any) -> list[Path]:
    """The T1c as a DICOM series."""
    stored = np.maximum(voxels(scans["t1c"]), 0).astype(np.uint16)
    return dicom_phantoms.write_series(place / folder, stored, scans["t1c"].affine, **changes)


def dicom_row(name: str, change: Callable[[list[Path]], None], code: int, says: str = "") -> Fault:
    """A row with a series of which some files are changed."""

    def make(place: Path, scans: Scans) -> list[Word]:
        change(series(place, scans))
        return segment(place / "t1c")

    return Fault(name=name, make=make, code=code, says=says)


def _tags(number: int, **tags: Any) -> Callable[[list[Path]], None]:
    return lambda paths: dicom_phantoms.change(paths[number], **tags)


def _all_tags(**tags: Any) -> Callable[[list[Path]], None]:
    def change(paths: list[Path]) -> None:
        for path in paths:
            dicom_phantoms.change(path, **tags)

    return change


def _same_uid(paths: list[Path]) -> None:
    import pydicom

    uid = pydicom.dcmread(paths[0], stop_before_pixels=True).SOPInstanceUID
    dicom_phantoms.change(paths[1], SOPInstanceUID=uid)


def _cut(paths: list[Path]) -> None:
    paths[3].write_bytes(paths[3].read_bytes()[:-500])


def _twice(paths: list[Path]) -> None:
    (paths[0].parent / "again.dcm").write_bytes(paths[0].read_bytes())


def _text_beside(paths: list[Path]) -> None:
    (paths[0].parent / "README.txt").write_text("not DICOM")
    (paths[0].parent / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 99)


def _no_dicom(place: Path, scans: Scans) -> list[Word]:
    (place / "t1c").mkdir()
    (place / "t1c" / "a.txt").write_text("nothing")
    return segment(place / "t1c")


def _two_patients(place: Path, scans: Scans) -> list[Word]:
    series(place, scans)
    series(place, scans, number=2, study="2", person=dicom_phantoms.Person(name="OTHER^ONE", id="OTHER1"))
    return segment(place / "t1c")


def _cosines(size: float) -> Callable[[list[Path]], None]:
    def change(paths: list[Path]) -> None:
        for path in paths[::2]:
            dicom_phantoms.change(path, ImageOrientationPatient=["1", f"{size:.6f}", "0", f"{-size:.6f}", "1", "0"])

    return change


def _spacings(paths: list[Path]) -> None:
    import pydicom

    for path in paths[::2]:
        rows, columns = pydicom.dcmread(path, stop_before_pixels=True).PixelSpacing
        dicom_phantoms.change(path, PixelSpacing=[f"{rows + 1e-4:.4f}", f"{columns - 1e-4:.4f}"])


def _rounded(paths: list[Path]) -> None:
    import pydicom

    for number, path in enumerate(paths):
        x, y, z = pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient
        step = 0.004 * (number % 3 - 1)
        dicom_phantoms.change(path, ImagePositionPatient=[f"{x:.2f}", f"{y:.2f}", f"{z + step:.2f}"])


def _bare(paths: list[Path]) -> None:
    import pydicom

    for path in paths:
        pydicom.Dataset(pydicom.dcmread(path)).save_as(path, implicit_vr=True, little_endian=True)


def _copies(count: int, changed: bool = False) -> Callable[[list[Path]], None]:
    def change(paths: list[Path]) -> None:
        import pydicom

        for number, path in enumerate(paths[10 : 10 + count]):
            copy = path.with_name(f"copy-{path.name}")
            copy.write_bytes(path.read_bytes())
            dicom_phantoms.change(copy, SOPInstanceUID=dicom_phantoms.uid("copy", number))
            if changed:
                dicom_phantoms.change(copy, PixelData=bytes(2) + b"\1\0" + pydicom.dcmread(copy).PixelData[4:])

    return change


def _own_series(paths: list[Path]) -> None:
    for path in paths:
        dicom_phantoms.change(path, SeriesInstanceUID=dicom_phantoms.uid("own", path.name))


def _commas(paths: list[Path]) -> None:
    import pydicom

    for path in paths:
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelSpacing", "LO", "4,000\\4,000")
        dataset.save_as(path)
        # pydicom writes no such DS. Its bytes are those of an LO.
        path.write_bytes(path.read_bytes().replace(b"\x28\x00\x30\x00LO", b"\x28\x00\x30\x00DS"))


def _seg_without_frame(place: Path, scans: Scans) -> list[Word]:
    for path in series(place, scans):
        dicom_phantoms.change(path, FrameOfReferenceUID=None)
    return [*segment(place / "t1c"), "--output-type", "dicom-seg"]


def _unlink(number: int) -> Callable[[list[Path]], None]:
    return lambda paths: paths[number].unlink()


_SERIES = "Series 1 (t1_se_tra)"
_TWO_PATIENTS = (
    "t1c: The folder holds images of more than one patient (they differ in PatientID). One study of one patient is "
    "needed: sort the files into a folder for each patient."
)
_NO_PLACE = f"{_SERIES} does not say where its slices lie, so it is no volume. {{}} Leave this sequence out."
_NO_SIZE = _NO_PLACE.format("The size of its pixels is not given or is no size (PixelSpacing).")
_NO_POSITION = _NO_PLACE.format("A slice does not say where it lies (ImagePositionPatient).")
_COPIES = "the same pixels as another at the same position; each image is used once."
_NO_IMAGE = (
    "{} holds no MR image in DICOM (1 files are no DICOM, 0 are other DICOM objects, 0 are damaged). Give the folder "
    "of the study's MR images."
)


DICOM = (
    dicom_row("DICOM as it should be", lambda paths: None, 0),
    dicom_row("DICOM: a file twice", _twice, 0, "1 duplicate files were ignored."),
    dicom_row(
        "DICOM: text files and a damaged DICOMDIR beside", _text_beside, 0,
        "1 damaged DICOM files were ignored.",
    ),
    dicom_row(
        "DICOM: one SOPInstanceUID for two slices", _same_uid, 3,
        "t1c: 2 files call themselves the same image (SOPInstanceUID) and differ in content. Which one is right cannot "
        "be told: export the study again into an empty folder.",
    ),
    Fault(name="DICOM: two patients in one folder", make=_two_patients, code=3, says=_TWO_PATIENTS),
    dicom_row("DICOM: another patient's ID on one slice", _tags(2, PatientID="OTHER1"), 3, _TWO_PATIENTS),
    dicom_row(
        "DICOM: a missing slice", _unlink(5), 3,
        f"{_SERIES}: 1 slice is missing: 1 between slice 5 at {{before}} mm and slice 6 at {{after}} mm (along the "
        "normal; slices are {step} mm apart). Copy or export the series again.",
    ),
    dicom_row(
        "DICOM: a file cut short", _cut, 3,
        f"{_SERIES}: A header promises {{slice_bytes}} bytes of pixels and {{cut_bytes}} follow: the file is "
        "truncated, or Rows and Columns are wrong. Copy or export the series again.",
    ),
    dicom_row(
        "DICOM: Rows of 65535 on one slice", _tags(2, Rows=65535), 3,
        f"{_SERIES}: 1 slice is missing: 1 between slice 2 at {{second}} mm and slice 3 at {{fourth}} mm (along the "
        "normal; slices are {step} mm apart). Copy or export the series again.",
    ),
    dicom_row(
        "DICOM: Rows of 65535 on all", _all_tags(Rows=65535), 3,
        f"{_SERIES} should be a brain scan but claims {{x}}x65535x{{z}} voxels (at most 1024 along a side, 200,000,000 "
        "in all). Its header is wrong, or it is no brain scan.",
    ),
    dicom_row("DICOM: PixelSpacing of 0", _all_tags(PixelSpacing=[0, 0]), 3, _NO_SIZE),
    dicom_row("DICOM: no positions", _all_tags(ImagePositionPatient=None), 3, _NO_POSITION),
    dicom_row(
        "DICOM: tags that name paths",
        _all_tags(PatientID="../../outside", SeriesDescription="../../outside", StudyID="/outside"), 0,
    ),
    dicom_row("DICOM: direction cosines that differ by 1e-4", _cosines(1e-4), 0),
    dicom_row("DICOM: pixel spacing that differs by rounding", _spacings, 0),
    dicom_row("DICOM: positions rounded to 0.01 mm", _rounded, 0),
    dicom_row("DICOM: no preamble and no group 2", _bare, 0),
    dicom_row(
        "DICOM: five slices twice, with new UIDs", _copies(5), 0, f"{_SERIES}: 5 files have {_COPIES}"
    ),
    dicom_row(
        "DICOM: two images at one position", _copies(5, changed=True), 3,
        f"{_SERIES}: It holds up to 2 images at one position (several echoes, time points or weightings in one "
        "series), and their pixels differ. Export each as a series of its own.",
    ),
    dicom_row(
        "DICOM: a SeriesInstanceUID for each slice", _own_series, 0,
        "{z} files of series 1 have a SeriesInstanceUID each; they are read as slices of one series.",
    ),
    dicom_row(
        "DICOM: decimal commas", _commas, 3,
        _NO_PLACE.format(
            "Its PixelSpacing is 4,000\\4,000 with decimal commas, and DICOM has decimal points. Correct it "
            "(dcmodify), or export the series again."
        ),
    ),
    Fault(
        name="DICOM: a SEG without FrameOfReferenceUID", make=_seg_without_frame, code=0,
        says="No DICOM output is written, only NIfTI: The source series has no FrameOfReferenceUID, so nothing can "
        "refer to it. Write NIfTI instead, or correct the UIDs of the series (dcmodify).",
    ),
    dicom_row("DICOM: a UID that names a path", _all_tags(SeriesInstanceUID="../../outside"), 0),
    Fault(name="DICOM: a folder without any", make=_no_dicom, code=3, says=_NO_IMAGE.format("t1c")),
)  # fmt: skip


# Archives


def zip_of(path: Path, files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    """A zip file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            if change:
                change(member)
            archive.writestr(member, content)
    return path


def zip_row(name: str, files: dict[str, bytes], says: str) -> Fault:
    """A row with an archive that is refused."""
    return Fault(name=name, make=lambda place, _: segment(zip_of(place / "t1c.zip", files)), code=3, says=says)


def _good(place: Path, scans: Scans) -> list[Word]:
    files = {path.name: path.read_bytes() for path in series(place, scans)}
    return segment(zip_of(place / "t1c.zip", files))


def _study(place: Path, scans: Scans) -> list[Word]:
    files = {"S1/S1-t1c.nii.gz": plain(place, scans).read_bytes()}
    return ["segment", "-i", zip_of(place / "S1.zip", files)]


def _cut_zip(place: Path, scans: Scans) -> list[Word]:
    words = _good(place, scans)
    path = Path(words[-1])
    path.write_bytes(path.read_bytes()[:-2000])
    return words


def _encrypted(place: Path, scans: Scans) -> list[Word]:
    path = zip_of(place / "t1c.zip", {"a.dcm": b"secret"})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    return segment(path)


def _linked(place: Path, scans: Scans) -> list[Word]:
    def link(member: zipfile.ZipInfo) -> None:
        member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16

    return segment(zip_of(place / "t1c.zip", {"a": b"/etc/passwd"}, link))


def _tar_out(place: Path, scans: Scans) -> list[Word]:
    path = place / "t1c.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("way")
        link.type, link.linkname = tarfile.SYMTYPE, str(place)
        archive.addfile(link)
        member = tarfile.TarInfo("way/outside.dcm")
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    return segment(path)


_LEADS_OUT = (
    "{place}/t1c.zip: the name of member 1 leads out of the archive (absolute, '..', a drive, or a NUL in it). Nothing "
    "of it was kept. Do not trust where it came from; else pack it again."
)


ARCHIVES = (
    Fault(name="zip with a DICOM series", make=_good, code=0),
    Fault(name="zip with a NIfTI study", make=_study, code=0),
    zip_row("zip: names that lead outside", {"../outside.dcm": b"evil"}, _LEADS_OUT),
    zip_row("zip: an absolute name", {"/tmp/outside.dcm": b"evil"}, _LEADS_OUT),
    zip_row("zip: a drive in a name", {"C:\\outside.dcm": b"evil"}, _LEADS_OUT),
    zip_row(
        "zip: a bomb (64 MB in 64 kB)", {"a.dcm": bytes(64 << 20)},
        f"{{place}}/t1c.zip ({NUMBER} bytes) grows to 67,108,864 bytes or more; at most 2 GB and 200 times its size "
        "are unpacked. If you trust it, unpack it yourself and name the folder.",
    ),
    Fault(
        name="zip: encrypted", make=_encrypted, code=3,
        says="{place}/t1c.zip is encrypted. Unpack it yourself and name the folder.",
    ),
    Fault(
        name="zip: cut short", make=_cut_zip, code=3,
        says=f"{{place}}/t1c.zip cannot be unpacked ({WORDS}). It is damaged: copy or export it again.",
    ),
    Fault(
        name="zip: nothing but a link", make=_linked, code=3,
        says="{place}/t1c.zip holds no files. Is it the right archive?",
    ),
    Fault(
        name="tar: a file below a link that leads outside", make=_tar_out, code=3,
        says=_NO_IMAGE.format("the archive"),
    ),
)  # fmt: skip

SOURCES = (*DICOM, *ARCHIVES)
