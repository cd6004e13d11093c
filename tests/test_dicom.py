"""DICOM: series are found and read, and segmentations are written in their geometry without naming patients."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glimpseg.data import nifti
from glimpseg.errors import InputError, OutputError, UsageError
from glimpseg.region import Label, Region
from glimpseg.runtime.sandbox import run_sandboxed
from glimpseg.volume import Grid, Volume, resample, resample_labels, same_grid

pytest.importorskip("highdicom", reason="needs the extra dicom")
import highdicom
import pydicom

import dicom_phantoms as phantoms
from conftest import files_of_at_most, run_here
from glimpseg.data.dicom import attributes, codes, find, geometry, headers, libraries, pixels, read, stacks
from glimpseg.data.dicom.find import find_series
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.data.dicom.read import read_grid, read_series
from glimpseg.data.dicom.seg import read_seg, write_seg
from glimpseg.data.dicom.sr import write_sr

SHAPE = (12, 14, 10)
AFFINE = np.array([[1.0, 0, 0, -5], [0, 1.1, 0, -7], [0, 0, 3.0, -9], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
MODEL = "rfnet/phantom"

needs_dcmtk = pytest.mark.skipif(not phantoms.has_dcmtk(), reason="dcmtk is not installed")
needs_dciodvfy = pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy (dicom3tools) is not installed")


def turned(degrees=(20, -12)):
    """Return an oblique affine."""
    about_x, about_z = np.radians(degrees)
    x, z = np.eye(4), np.eye(4)
    x[1:3, 1:3] = [[np.cos(about_x), -np.sin(about_x)], [np.sin(about_x), np.cos(about_x)]]
    z[:2, :2] = [[np.cos(about_z), -np.sin(about_z)], [np.sin(about_z), np.cos(about_z)]]
    return x @ z @ AFFINE


def some_labels(affine=AFFINE):
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[3:8, 4:9, 2:6] = Label.ED
    voxels[4:7, 5:8, 3:5] = Label.ET
    voxels[5, 6, 3] = Label.NCR
    voxels[8:10, 9:11, 6] = Label.RC
    return Volume(voxels, affine)


@pytest.fixture
def headers_here(monkeypatch):
    """Read headers in this process without limits, which saves a second per test.

    Some tests do without this fixture.
    """
    monkeypatch.setattr(find, "run_sandboxed", run_here)
    monkeypatch.setattr(stacks, "confine", lambda *_: None)


@pytest.fixture
def here(headers_here, monkeypatch):
    """Read headers and pixels in this process."""
    monkeypatch.setattr(read, "run_sandboxed", run_here)
    monkeypatch.setattr(pixels, "confine", lambda *_: None)


def one_series(folder):
    (series,) = find_series(folder)
    return series


@pytest.fixture
def axial(tmp_path):
    """Folder with an axial series."""
    phantoms.write_series(tmp_path / "in", VOXELS, AFFINE)
    return tmp_path / "in"


STORED = {
    "axial": {},
    "sagittal": {"plane": "sagittal"},
    "coronal": {"plane": "coronal"},
    "oblique": {"affine": turned()},
    "as stored": {"plane": "as stored"},
    "reversed": {"reversed": True},
    "signed": {"lower": 500},
    "enhanced": {"writer": phantoms.write_enhanced},
    "enhanced, oblique and reversed": {"writer": phantoms.write_enhanced, "affine": turned(), "reversed": True},
    **{name: {"compression": name} for name in phantoms.COMPRESSIONS},
}


def stored(folder, affine=AFFINE, writer=phantoms.write_series, compression=None, lower=0, **changes):
    """Write a series in one form of `STORED`; return the written image."""
    voxels = VOXELS - np.int16(lower)
    paths = writer(folder, voxels, affine, **changes)
    if compression:
        if not phantoms.has_dcmtk():
            pytest.skip("dcmtk is not installed")
        phantoms.compress(paths, compression)
    return Volume(voxels.astype(np.float32), affine)


@pytest.mark.parametrize("form", STORED)
def test_image_and_labels_come_back_voxel_by_voxel(form, tmp_path, here):
    image = stored(tmp_path / "in", **STORED[form])
    nifti.write_labels(tmp_path / "labels.nii.gz", some_labels(image.affine))

    series = one_series(tmp_path / "in")
    found = read_series(series)
    labels = nifti.read_labels(tmp_path / "labels.nii.gz")
    write_seg(tmp_path / "seg.dcm", labels, series, model=MODEL)
    nifti.write_labels(tmp_path / "back.nii.gz", read_seg(tmp_path / "seg.dcm", labels.grid))

    assert np.array_equal(resample(found, image.grid).voxels, image.voxels)
    assert np.array_equal(nifti.read_labels(tmp_path / "back.nii.gz").voxels, some_labels().voxels)
    assert found.voxels.shape == series.shape
    assert same_grid(read_grid(series), found.grid)


def test_readers_run_in_a_process_of_their_own(axial, tmp_path):
    series = one_series(axial)
    write_seg(tmp_path / "seg.dcm", some_labels(), series, model=MODEL)
    assert np.array_equal(read_series(series).ras().voxels, VOXELS)
    assert np.array_equal(read_seg(tmp_path / "seg.dcm", some_labels().grid).voxels, some_labels().voxels)


def test_a_full_disk_of_temporary_files_is_not_called_a_damaged_series(axial):
    series = one_series(axial)
    with files_of_at_most(2500), pytest.raises(OutputError, match="TMPDIR"):
        read_series(series)


def test_the_slope_is_applied(tmp_path, here):
    phantoms.write_series(tmp_path / "in", VOXELS, AFFINE, slope=2.5, intercept=-100)
    assert np.array_equal(read_series(one_series(tmp_path / "in")).ras().voxels, VOXELS * 2.5 - 100)


def test_the_header_is_told_and_names_taken_out(tmp_path, here):
    tags = {"EchoTime": 90, "ContrastBolusAgent": "Gadovist for ALONSOXX", "ContrastBolusStartTime": "101500"}
    phantoms.write_series(
        tmp_path / "in", VOXELS, AFFINE, description="t2_tse_sag^QuixoteXX 29.02.2024", plane="sagittal", tags=tags
    )
    series = one_series(tmp_path / "in")
    assert series.words["SeriesDescription"] == "t2_tse_sag^"
    assert series.words["ContrastBolusAgent"] == "Gadovist for"
    assert (series.numbers["EchoTime"], series.numbers["SeriesNumber"]) == (90, 1)
    assert (series.plane, series.shape, series.spacing_mm) == ("sagittal", (14, 10, 12), (1.1, 3, 1))
    assert series.image_type == ("ORIGINAL", "PRIMARY", "M", "ND")
    assert (series.acquired_s, series.injected_s) == (10 * 3600 + 60, 10 * 3600 + 15 * 60)


def test_an_enhanced_file_tells_the_same_under_the_same_names(tmp_path, here):
    tags = {"EchoTime": 90, "InversionTime": 2400, "RepetitionTime": 9000}
    phantoms.write_series(tmp_path / "classic", VOXELS, AFFINE, tags=tags)
    phantoms.write_enhanced(tmp_path / "enhanced", VOXELS, AFFINE, tags=tags)
    classic, enhanced = one_series(tmp_path / "classic"), one_series(tmp_path / "enhanced")
    for keyword in (*tags, "FlipAngle", "SliceThickness", "EchoTrainLength", "MagneticFieldStrength"):
        assert enhanced.numbers[keyword] == classic.numbers[keyword]
    assert (enhanced.plane, enhanced.shape, enhanced.acquired_s) == (classic.plane, classic.shape, classic.acquired_s)


@pytest.mark.parametrize(
    ("affine", "plane", "expected"),
    [(AFFINE, "coronal", "coronal"), (turned((20, 0)), "axial", "axial"), (turned((45, 0)), "axial", "oblique")],
)
def test_the_plane_is_the_nearest_unless_none_is_near(affine, plane, expected, tmp_path, here):
    phantoms.write_series(tmp_path / "in", VOXELS, affine, plane=plane)
    assert one_series(tmp_path / "in").plane == expected


def test_two_echoes_in_one_series_are_two(tmp_path, here):
    for number, echo in enumerate((15, 90)):
        place = tmp_path / "in" / str(echo)
        for path in phantoms.write_series(place, VOXELS + number, AFFINE, tags={"EchoTime": echo}):
            phantoms.change(path, SOPInstanceUID=phantoms.uid(path))
    early, late = sorted(find_series(tmp_path / "in"), key=lambda one: one.numbers["EchoTime"])
    assert (early.numbers["EchoTime"], late.numbers["EchoTime"]) == (15, 90)
    assert early.key != late.key
    assert early.study == late.study
    assert np.array_equal(read_series(late).ras().voxels, VOXELS + 1)


def test_time_points_that_no_attribute_tells_apart_are_refused_by_their_number(tmp_path, here):
    for repeat in range(3):
        for path in phantoms.write_series(tmp_path / "in" / str(repeat), VOXELS + repeat, AFFINE):
            phantoms.change(path, SOPInstanceUID=phantoms.uid(path))
    series = one_series(tmp_path / "in")
    with pytest.raises(InputError, match="up to 3 images at one position"):
        read_series(series)


def test_a_localiser_is_told_apart_by_its_planes(tmp_path, here):
    for plane in phantoms.PLANES:
        for path in phantoms.write_series(tmp_path / "in" / plane, VOXELS, AFFINE, plane=plane):
            phantoms.change(path, SOPInstanceUID=phantoms.uid(path))
    assert sorted(one.plane for one in find_series(tmp_path / "in")) == ["axial", "coronal", "sagittal"]


def test_studies_of_one_patient_are_told_apart(tmp_path, here, caplog):
    for study in ("1", "2"):
        phantoms.write_series(tmp_path / "in" / study, VOXELS, AFFINE, study=study)
    assert len({series.study for series in find_series(tmp_path / "in")}) == 2
    assert "2 studies of one patient" in caplog.text


def test_other_files_are_counted_and_left_aside(axial, here, caplog):
    caplog.set_level(logging.INFO)
    (axial / "notes.txt").write_text("QUIXOTEXX")
    (axial / "short.dcm").write_bytes(bytes(128) + b"DICM\x02\x00")
    report = pydicom.dcmread(next(axial.glob("*-i0001.dcm")))
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.33"
    report.save_as(axial / "report.dcm")
    os.mkfifo(axial / "pipe")
    assert len(one_series(axial).files) == SHAPE[2]
    assert "1 files that are not DICOM, 1 other DICOM objects" in caplog.text
    assert "1 damaged DICOM files were ignored" in caplog.text


def test_files_that_are_there_twice_count_once(axial, here, caplog):
    for path in list(axial.iterdir()):
        shutil.copy(path, axial / f"copy-{path.name}")
    assert len(one_series(axial).files) == SHAPE[2]
    assert "10 duplicate files were ignored" in caplog.text


def refused(folder, tmp_path):
    """Return the message with which a folder is refused, at any step."""
    with pytest.raises(InputError) as caught:
        series = one_series(folder)
        read_series(series)
        write_seg(tmp_path / "seg.dcm", some_labels(), series, model=MODEL)
    return str(caught.value)


def shift(folder, by_slice_mm):
    """Move each slice sideways, as a tilted gantry does."""
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        x, y, z = dataset.ImagePositionPatient
        phantoms.change(path, ImagePositionPatient=[x, round(y + by_slice_mm * dataset.InstanceNumber, 4), z])


def second_person(folder):
    other = phantoms.Person(name="PANZAXX^SANCHO", id="PIDXX0002")
    phantoms.write_series(folder / "other", VOXELS, AFFINE, person=other, number=2)


def same_uid(folder):
    first, second = sorted(folder.iterdir())[:2]
    phantoms.change(second, SOPInstanceUID=pydicom.dcmread(first).SOPInstanceUID)


def cut(folder):
    path = sorted(folder.iterdir())[3]
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_header(folder):
    path = sorted(folder.iterdir())[3]
    path.write_bytes(path.read_bytes()[:600])


def uneven(folder):
    path = sorted(folder.iterdir())[4]
    phantoms.change(path, ImagePositionPatient=[-6, -7.3, 4.2])


def every(folder, **tags):
    for path in folder.iterdir():
        phantoms.change(path, **tags)


FAULTS = {
    "more than one patient": second_person,
    "differ in content": same_uid,
    "1 slice is missing: 1 between slice 3 at -3.0 mm and slice 4 at 3.0 mm": lambda f: sorted(f.iterdir())[3].unlink(),
    "3 slices are missing: 2 between slice 3 at -3.0 mm and slice 4 at 6.0 mm, 1 between slice 5 ": lambda f: [
        path.unlink() for path in np.array(sorted(f.iterdir()))[[3, 4, 7]]
    ],
    "stacked 18.4 degrees away from their normal": lambda f: shift(f, 1.0),
    "unevenly spaced": uneven,
    "truncated": cut,
    "1 slice is missing": cut_in_header,
    "and 336 follow: the file is truncated, or Rows": lambda f: every(f, Rows=20),
    "Rows, Columns or NumberOfFrames differ": lambda f: every(f, NumberOfFrames=2),
    "claims 60000x14x10 voxels": lambda f: every(f, Columns=60000),
    "in colour": lambda f: every(f, SamplesPerPixel=3),
    "does not say where its slices lie": lambda f: every(f, ImagePositionPatient=None),
    "holds the single value": lambda f: every(f, PixelData=bytes(12 * 14 * 2)),
    "SeriesInstanceUID that is no UID": lambda f: every(f, SeriesInstanceUID="../../../../tmp/escaped"),
    "a single slice": lambda f: [path.unlink() for path in sorted(f.iterdir())[1:]],
    "is not a folder": shutil.rmtree,
    "holds no MR image": lambda f: [path.write_text("nothing") for path in f.iterdir()],
}


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("reason", FAULTS)
def test_what_is_wrong_is_refused_by_name(reason, axial, tmp_path, here, caplog):
    caplog.set_level(logging.DEBUG)
    FAULTS[reason](axial)
    message = refused(axial, tmp_path)
    assert pytest.raises(InputError, match=reason).matches(InputError(message)), message
    said = f"{message} {caplog.text}".lower()
    assert not [name for name in (*phantoms.CANARIES, "panzaxx", "pidxx0002", str(tmp_path)) if name in said]
    assert not (tmp_path / "seg.dcm").exists()


@needs_dcmtk
@pytest.mark.parametrize(
    ("compression", "rows"),
    [("jpeg-lossless", 7), ("jpeg-lossless-any", 28), ("jpeg-ls", 7), ("jpeg-ls", 28), ("rle", 7), ("rle", 28)],
)
def test_a_header_that_lies_about_compressed_pixels_is_refused(compression, rows, axial, tmp_path, here):
    phantoms.compress(list(axial.iterdir()), compression)
    every(axial, Rows=rows)
    expected = "cannot be decoded" if compression == "rle" else "what the compressed pixels say of themselves"
    assert expected in refused(axial, tmp_path)


@needs_dcmtk
@pytest.mark.parametrize(("compression", "bytes_lost"), [("jpeg-lossless", 9), ("rle", 40)])
def test_a_truncated_compressed_file_is_refused(compression, bytes_lost, axial, tmp_path, headers_here):
    phantoms.compress(list(axial.iterdir()), compression)
    path = sorted(axial.iterdir())[3]
    path.write_bytes(path.read_bytes()[:-bytes_lost])
    assert refused(axial, tmp_path)


@pytest.mark.parametrize("ending", [signal.SIGSEGV, signal.SIGKILL])
def test_a_decoder_that_crashes_takes_nothing_with_it(ending, axial, tmp_path, monkeypatch):
    (tmp_path / "crash.py").write_text(f"import os, sys; sys.stderr.write('QUIXOTEXX'); os.kill(os.getpid(), {ending})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    series = one_series(axial)
    monkeypatch.setattr(read, "run_sandboxed", lambda module, *rest, **named: run_sandboxed("crash", *rest, **named))
    with pytest.raises(InputError, match="decodes its pixels crashed") as caught:
        read_series(series)
    assert "QUIXOTEXX" not in str(caught.value)
    monkeypatch.setattr(find, "run_sandboxed", read.run_sandboxed)
    with pytest.raises(InputError, match="process that reads the DICOM headers failed"):
        find_series(axial)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
def test_a_slice_of_infinite_thickness_ends_the_search_for_its_lattice(axial, here):
    count = len(list(axial.glob("*-i*.dcm")))
    for path in axial.glob("*-i*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.SliceThickness = "inf"
        dataset.save_as(path)
    assert sum(len(series.files) for series in find_series(axial)) == count


def test_a_deflated_bomb_is_never_inflated(axial, here, caplog):
    path = next(axial.glob("*-i0001.dcm"))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = headers.DEFLATED_SYNTAX
    squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    with pydicom.filebase.DicomBytesIO() as buffer:
        pydicom.filewriter.write_file_meta_info(buffer, dataset.file_meta)
        meta = buffer.getvalue()
    body = b"".join(squeeze.compress(bytes(1 << 20)) for _ in range(64)) + squeeze.flush()
    (axial / "bomb.dcm").write_bytes(bytes(128) + b"DICM" + meta + body)
    assert len(one_series(axial).files) == SHAPE[2]
    assert "1 damaged DICOM files were ignored" in caplog.text


def test_a_uid_that_names_a_path_writes_nothing_elsewhere(axial, tmp_path, here):
    for number, path in enumerate(axial.iterdir()):
        phantoms.change(path, SOPInstanceUID=f"../../{number}", StudyInstanceUID="../../../etc/cron.d/x")
    before = sorted(tmp_path.rglob("*"))
    series = one_series(axial)
    read_series(series)
    assert sorted(tmp_path.rglob("*")) == before
    assert ".." not in series.key + series.study


def test_mutated_files_are_read_or_refused(axial, tmp_path, here):
    rng = np.random.default_rng(0)
    whole = {path: path.read_bytes() for path in axial.iterdir()}
    for _ in range(25):
        for path in whole:
            content = bytearray(whole[path])
            for at in rng.integers(132, len(content), 3):
                content[at] = rng.integers(256)
            path.write_bytes(content)
        with contextlib.suppress(InputError):
            for series in find_series(axial):
                with contextlib.suppress(InputError):
                    read_series(series)


def test_labels_on_another_grid_are_resampled_once(axial, tmp_path, here):
    fine = Grid((24, 28, 30), AFFINE @ np.diag([0.5, 0.5, 1 / 3, 1]))
    labels = resample_labels(some_labels(), fine)
    write_seg(tmp_path / "seg.dcm", labels, one_series(axial), model=MODEL)
    expected = resample_labels(labels, Grid(SHAPE, AFFINE)).voxels
    assert np.array_equal(read_seg(tmp_path / "seg.dcm", Grid(SHAPE, AFFINE)).voxels, expected)


def test_a_labelmap_holds_the_same(axial, tmp_path, here):
    write_seg(tmp_path / "seg.dcm", some_labels(), one_series(axial), kind="LABELMAP", model=MODEL)
    assert pydicom.dcmread(tmp_path / "seg.dcm").SegmentationType == "LABELMAP"
    assert np.array_equal(read_seg(tmp_path / "seg.dcm", Grid(SHAPE, AFFINE)).voxels, some_labels().voxels)


def test_only_labels_that_occur_are_described_in_coded_terms(axial, tmp_path, here):
    labels = some_labels()
    labels.voxels[labels.voxels == Label.ET] = 0
    write_seg(tmp_path / "seg.dcm", labels, one_series(axial), model=MODEL)
    segments = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    kinds = [item.SegmentedPropertyTypeCodeSequence[0] for item in segments]
    assert [(kind.CodeValue, kind.CodingSchemeDesignator) for kind in kinds] == [
        ("6574001", "SCT"),
        ("79654002", "SCT"),
        ("RC", "99GLIMPSEG"),
    ]
    assert [item.SegmentNumber for item in segments] == [1, 2, 3]
    assert {item.SegmentAlgorithmName for item in segments} == {MODEL}


def test_terms_of_dicom_are_spelt_as_dicom_has_them():
    from pydicom.sr.codedict import codes as dictionary

    known = {(code.value, code.scheme_designator, code.meaning) for code in _concepts(dictionary.cid7168)}
    terms = [term for term in codes.LABELS.values() if term.scheme != codes.PRIVATE_SCHEME]
    assert len(terms) == 3
    assert {(term.value, term.scheme, term.meaning) for term in terms} <= known


def _concepts(group):
    return [getattr(group, name) for name in group.dir()]


def test_an_empty_map_is_a_segmentation_with_nothing_in_it(axial, tmp_path, here):
    empty = Volume(np.zeros(SHAPE, np.uint8), AFFINE)
    write_seg(tmp_path / "seg.dcm", empty, one_series(axial), model=MODEL)
    found = read_seg(tmp_path / "seg.dcm", empty.grid)
    assert found.voxels.shape == SHAPE
    assert not found.voxels.any()


@pytest.mark.parametrize("writer", [phantoms.write_series, phantoms.write_enhanced])
def test_each_frame_refers_to_the_slice_at_its_place(writer, tmp_path, here):
    paths = writer(tmp_path / "in", VOXELS, AFFINE, reversed=True)
    write_seg(tmp_path / "seg.dcm", some_labels(), one_series(tmp_path / "in"), model=MODEL)
    sources_read = [pydicom.dcmread(path) for path in paths]
    places = geometry.positions(sources_read)
    marked = pydicom.dcmread(tmp_path / "seg.dcm")
    assert len(marked.PerFrameFunctionalGroupsSequence) >= 4
    for frame in marked.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        by_uid = {dataset.SOPInstanceUID: number for number, dataset in enumerate(sources_read)}
        at = by_uid[source.ReferencedSOPInstanceUID]
        if "ReferencedFrameNumber" in source:
            at = int(source.ReferencedFrameNumber) - 1
        assert np.allclose(frame.PlanePositionSequence[0].ImagePositionPatient, places[at], atol=1e-3)


def test_it_is_filed_under_patient_and_study_of_its_source(axial, tmp_path, here):
    source = pydicom.dcmread(next(axial.iterdir()))
    write_seg(tmp_path / "seg.dcm", some_labels(), one_series(axial), model=MODEL)
    marked = pydicom.dcmread(tmp_path / "seg.dcm")
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "AccessionNumber"):
        assert marked[keyword].value == source[keyword].value
    assert marked.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert marked.SeriesInstanceUID != source.SeriesInstanceUID
    assert "PatientAge" not in marked  # not required, so not copied


@pytest.mark.parametrize("charset", ["ISO_IR 100", "ISO_IR 192"])
def test_names_keep_their_letters(charset, axial, tmp_path, here):
    every(axial, SpecificCharacterSet=charset, PatientName="Müller^Jürgen")
    series = one_series(axial)
    write_seg(tmp_path / "seg.dcm", some_labels(), series, model=MODEL)
    write_sr(tmp_path / "sr.dcm", some_labels(), tmp_path / "seg.dcm", series, model=MODEL)
    for name in ("seg.dcm", "sr.dcm"):
        assert str(pydicom.dcmread(tmp_path / name).PatientName) == "Müller^Jürgen"


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_a_wrong_value_of_the_source_does_not_stop_the_output(axial, tmp_path, here, caplog):
    with pydicom.config.disable_value_validation():
        every(axial, StudyDate="29 Feb 24", PatientSex="unknown, see QUIXOTEXX")
    write_seg(tmp_path / "seg.dcm", some_labels(), one_series(axial), model=MODEL)
    assert pydicom.dcmread(tmp_path / "seg.dcm").StudyDate == ""
    assert "StudyDate" in caplog.text
    assert "quixotexx" not in caplog.text.lower()


def volumes(path):
    """Return the volume of each region in a report, ml."""
    report = highdicom.sr.srread(path)
    groups = [
        *report.content.get_volumetric_roi_measurement_groups(),
        *report.content.get_image_measurement_groups(),
    ]
    return {group.tracking_identifier: float(group.get_measurements()[0].value) for group in groups}


def test_the_report_has_the_volumes_and_refers_to_the_segments(axial, tmp_path, here):
    series, labels = one_series(axial), some_labels()
    write_seg(tmp_path / "seg.dcm", labels, series, model=MODEL)
    write_sr(tmp_path / "sr.dcm", labels, tmp_path / "seg.dcm", series, model=MODEL)
    voxel = 1.0 * 1.1 * 3.0 / 1000
    enhancing = 3 * 3 * 2 - 1
    expected = {"WT": 5 * 5 * 4, "TC": enhancing + 1, "ET": enhancing, "RC": 4}
    assert volumes(tmp_path / "sr.dcm") == {
        f"glimpseg {name}": pytest.approx(count * voxel, abs=5e-4) for name, count in expected.items()
    }
    marked = pydicom.dcmread(tmp_path / "seg.dcm")
    groups = highdicom.sr.srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    assert {group.referenced_segment.referenced_sop_instance_uid for group in groups} == {marked.SOPInstanceUID}
    assert [group.referenced_segment.referenced_segment_numbers for group in groups] == [[3], [4]]


def test_an_absent_region_is_reported_as_nothing(axial, tmp_path, here):
    series, empty = one_series(axial), Volume(np.zeros(SHAPE, np.uint8), AFFINE)
    write_seg(tmp_path / "seg.dcm", empty, series, model=MODEL)
    write_sr(tmp_path / "sr.dcm", empty, tmp_path / "seg.dcm", series, model=MODEL, regions=(Region.WT, Region.ET))
    assert volumes(tmp_path / "sr.dcm") == {"glimpseg WT": 0, "glimpseg ET": 0}


def test_a_report_on_another_study_is_refused(axial, tmp_path, here):
    series = one_series(axial)
    write_seg(tmp_path / "seg.dcm", some_labels(), series, model=MODEL)
    phantoms.write_series(tmp_path / "other", VOXELS, AFFINE, study="2")
    with pytest.raises(InputError, match="no segmentation of this study"):
        write_sr(tmp_path / "sr.dcm", some_labels(), tmp_path / "seg.dcm", one_series(tmp_path / "other"), model=MODEL)


@needs_dciodvfy
@pytest.mark.parametrize("form", ["axial", "oblique", "enhanced", "empty", "pseudonymous"])
def test_dciodvfy_finds_no_error(form, tmp_path, here):
    image = stored(tmp_path / "in", **STORED.get(form, {}))
    labels = some_labels(image.affine)
    labels.voxels[:] *= form != "empty"
    series, pseudonyms = one_series(tmp_path / "in"), Pseudonyms() if form == "pseudonymous" else None
    write_seg(tmp_path / "seg.dcm", labels, series, model=MODEL, pseudonyms=pseudonyms)
    write_sr(tmp_path / "sr.dcm", labels, tmp_path / "seg.dcm", series, model=MODEL, pseudonyms=pseudonyms)
    for name, kind in (("seg.dcm", "Segmentation"), ("sr.dcm", "Comprehensive3DSR")):
        done = subprocess.run(["dciodvfy", tmp_path / name], capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).splitlines()
        assert kind in said
        assert [line for line in said if line.startswith("Error")] == []


def test_pseudonyms_name_nobody(tmp_path, here):
    phantoms.write_series(tmp_path / "in", VOXELS, AFFINE, description="of QUIXOTEXX")
    original = [pydicom.dcmread(path) for path in (tmp_path / "in").iterdir()]
    series, pseudonyms = one_series(tmp_path / "in"), Pseudonyms()
    write_seg(tmp_path / "seg.dcm", some_labels(), series, model=MODEL, pseudonyms=pseudonyms)
    write_sr(tmp_path / "sr.dcm", some_labels(), tmp_path / "seg.dcm", series, model=MODEL, pseudonyms=pseudonyms)
    old = {str(dataset[keyword].value) for dataset in original for keyword in attributes.UID_KEYWORDS}
    for name in ("seg.dcm", "sr.dcm"):
        content = (tmp_path / name).read_bytes().lower()
        assert not [word for word in (*phantoms.CANARIES, *old) if word.lower().encode() in content]
        dataset = pydicom.dcmread(tmp_path / name)
        assert dataset.PatientIdentityRemoved == "YES"
        assert dataset.PatientID.startswith("P")
        dates = {str(element.value) for element in dataset.iterall() if element.VR in ("DA", "DT") and element.value}
        assert {date[:8] for date in dates} <= {"19000101"}
    study = pseudonyms.uid(original[0].StudyInstanceUID)
    assert {pydicom.dcmread(tmp_path / name).StudyInstanceUID for name in ("seg.dcm", "sr.dcm")} == {study}
    assert np.array_equal(read_seg(tmp_path / "seg.dcm", Grid(SHAPE, AFFINE)).voxels, some_labels().voxels)


def test_pseudonyms_follow_from_the_key_alone():
    first, second = Pseudonyms(b"a" * 32), Pseudonyms(b"b" * 32)
    assert first.uid("1.2.3") == Pseudonyms(b"a" * 32).uid("1.2.3") != second.uid("1.2.3")
    assert first.person("X") != second.person("X")
    assert pydicom.uid.UID(first.uid("1.2.3")).is_valid
    assert "a" * 8 not in repr(first)


def test_a_segmentation_with_types_that_are_no_labels_is_refused(axial, tmp_path, here):
    write_seg(tmp_path / "seg.dcm", some_labels(), one_series(axial), model=MODEL)
    foreign = pydicom.dcmread(tmp_path / "seg.dcm")
    foreign.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeValue = "10200004"  # the liver
    foreign.save_as(tmp_path / "foreign.dcm")
    with pytest.raises(InputError, match=r"segments \[2\] are of no type that is a label"):
        read_seg(tmp_path / "foreign.dcm")
    with pytest.raises(InputError, match="no DICOM segmentation"):
        read_seg(next(axial.iterdir()))


def test_a_full_disk_leaves_nothing(axial, tmp_path, here, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "seg.dcm"))

    series = one_series(axial)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="could not be written"):
        write_seg(tmp_path / "seg.dcm", some_labels(), series, model=MODEL)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_values_that_are_no_labels_are_refused(axial, tmp_path, here):
    labels = some_labels()
    labels.voxels[0, 0, 0] = 9
    with pytest.raises(InputError, match=r"holds \[9\]"):
        write_seg(tmp_path / "seg.dcm", labels, one_series(axial), model=MODEL)


def test_without_the_extra_its_name_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"glimpseg\[dicom\]"):
        find_series(tmp_path)


def test_a_series_without_frame_of_reference_can_be_read(axial, here):
    every(axial, FrameOfReferenceUID=None)
    series = one_series(axial)
    assert np.array_equal(read_series(series).ras().voxels, VOXELS)
    with pytest.raises(InputError, match="has no FrameOfReferenceUID"):
        write_seg(axial / "seg.dcm", some_labels(), series, model=MODEL)


def test_a_file_that_vanished_is_said_so(axial, here):
    series = one_series(axial)
    gone = replace(series, files=(*series.files[:-1], series.files[-1].with_name("gone.dcm")))
    with pytest.raises(InputError, match="truncated, no DICOM, or no longer there"):
        read_series(gone)
