"""DICOM as hospitals export it: rounded headers, missing preambles, copies, UIDs that differ, Dixon scans."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from glimpseg.errors import InputError
from glimpseg.volume import SAME_GRID_VOXELS, Grid, Volume, displacement_mm, resample, resample_labels

pytest.importorskip("highdicom", reason="needs the extra dicom")
import pydicom
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

import dicom_phantoms as phantoms
from conftest import run_here
from glimpseg.data.dicom import find, geometry, headers, pixels, read, stacks, study_folders
from glimpseg.data.dicom.find import find_series
from glimpseg.data.dicom.read import read_grid, read_series
from glimpseg.data.dicom.seg import check_seg_source, read_seg, write_seg
from glimpseg.data.dicom.study_folders import contains_dicom
from glimpseg.data.identify import identify
from glimpseg.data.notices import collected_warnings
from glimpseg.modality import Modality
from glimpseg.region import Label
from glimpseg.segmentation.inputs import input_from_images

SHAPE = (12, 14, 39)
AFFINE = np.array([[4.0, 0, 0, -24], [0, 4.0, 0, -28], [0, 0, 4.0, -78], [0, 0, 0, 1]])
VOXELS = np.random.default_rng(0).integers(1, 1000, SHAPE).astype(np.int16)
REAL = next(
    (one / "shared" / "data" / "dicom_series" for one in Path(__file__).resolve().parents if (one / "shared").is_dir()),
    Path("nowhere"),
)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Read headers and pixels in this process."""
    for module in (find, read):
        monkeypatch.setattr(module, "run_sandboxed", run_here)
    for module in (stacks, pixels):
        monkeypatch.setattr(module, "confine", lambda *_: None)


def series_in(folder, **changes):
    return phantoms.write_series(folder, VOXELS, changes.pop("affine", AFFINE), **changes)


def read_whole(folder):
    """Read the only series, with the warnings."""
    with collected_warnings() as warnings:
        (series,) = find_series(folder)
        volume = read_series(series)
    return series, volume, warnings


def assert_is_phantom(volume, affine=AFFINE, most_mm=1e-3):
    turned = resample(volume, Grid(SHAPE, affine))
    assert displacement_mm(volume.ras().grid, Grid(SHAPE, affine)) <= most_mm
    assert np.array_equal(volume.ras().voxels, VOXELS) or np.abs(turned.voxels - VOXELS).max() == 0


# C. Geometry within a fraction of a voxel


@pytest.mark.parametrize("size", [1e-6, 2e-6, 1e-5, 1e-4])
def test_cosines_that_differ_by_rounding_are_one_stack(tmp_path, size):
    for number, path in enumerate(series_in(tmp_path / "in")):
        cosines = np.array([1.0, 0.00005, 0, 0, 1.0, 0]) + size * (number % 2) * np.array([0, 1, 0, 0, 0, 1])
        phantoms.change(path, ImageOrientationPatient=[f"{one:.8f}" for one in cosines])
    series, volume, warnings = read_whole(tmp_path / "in")
    assert (series.shape, volume.voxels.shape) == (SHAPE, SHAPE)
    assert warnings == []
    assert_is_phantom(volume, most_mm=4e-4 * 80)


@pytest.mark.parametrize("writer", [phantoms.write_series, phantoms.write_enhanced])
def test_a_segmentation_of_a_rounded_series_refers_to_each_slice_at_its_place(tmp_path, writer):
    rng = np.random.default_rng(0)
    for path in writer(tmp_path / "in", VOXELS, AFFINE):
        dataset = pydicom.dcmread(path)
        for item in geometry._group_per_frame(dataset, "PlanePositionSequence"):
            jitter = rng.uniform(-0.02, 0.02, 3)
            item.ImagePositionPatient = phantoms._decimal(*(np.array(item.ImagePositionPatient, float) + jitter))
        dataset.save_as(path)
    (series,) = find_series(tmp_path / "in")
    check_seg_source(series)
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:8, 4:9, 5:30] = Label.ET
    write_seg(tmp_path / "seg.dcm", Volume(labels, AFFINE), series, model="box")
    grid = read_grid(series)
    assert np.array_equal(resample_labels(read_seg(tmp_path / "seg.dcm", grid), Grid(SHAPE, AFFINE)).voxels, labels)
    segmentation = pydicom.dcmread(tmp_path / "seg.dcm")
    used = [
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for frame in segmentation.PerFrameFunctionalGroupsSequence
    ]
    assert len(used) == 25
    assert len(set(used)) == (25 if writer is phantoms.write_series else 1)


@pytest.mark.parametrize("spacings", [(4.0, 4.0001), (3.9999, 4.00005), (4.0, 4.02)])
def test_pixel_spacing_that_differs_by_rounding_is_one_stack(tmp_path, spacings):
    for number, path in enumerate(series_in(tmp_path / "in")):
        phantoms.change(path, PixelSpacing=[str(spacings[number % 2])] * 2)
    _, volume, _ = read_whole(tmp_path / "in")
    assert_is_phantom(volume, most_mm=0.3)


@pytest.mark.parametrize("decimals", [1, 2, 3])
def test_rounded_positions_are_even_and_their_distance_is_a_regression(tmp_path, decimals):
    affine = np.diag([0.9, 0.9, 0.69, 1])
    affine[:3, 3] = [-5.003, 2.007, -13.0049]
    for path in series_in(tmp_path / "in", affine=affine):
        place = pydicom.dcmread(path).ImagePositionPatient
        phantoms.change(path, ImagePositionPatient=[f"{float(part):.{decimals}f}" for part in place])
    _, volume, _ = read_whole(tmp_path / "in")
    # The error of a regression over 39 slices is far below that of two rounded ends.
    assert volume.grid.spacing_mm[2] == pytest.approx(0.69, abs=0.5 * 10**-decimals / 39)
    assert_is_phantom(volume, affine, most_mm=10**-decimals)


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 0.95), turned=st.floats(0, 80))
@example(seed=0, share=0.95, turned=45)
def test_jitter_below_the_tolerance_neither_splits_nor_refuses(seed, share, turned):
    rng, columns, rows = np.random.default_rng(seed), 256, 240
    c, s = np.cos(np.radians(turned)), np.sin(np.radians(turned))
    axes = np.array([[c, s, 0], [-s, c, 0]])
    count, spacing, step = 30, np.array([0.9, 0.9]), 2.0
    # Half of the limit for the directions, half for the positions: together no corner moves by more than the limit.
    limit = share * SAME_GRID_VOXELS * 0.9 / 2
    cosines = axes.ravel() + rng.uniform(-1, 1, (count, 6)) * limit / 2 / (0.9 * 255) / np.sqrt(3)
    places = np.outer(np.arange(count) * step, [0, 0, 1]) + rng.uniform(-1, 1, (count, 3)) * limit / np.sqrt(3) / 2
    order = rng.permutation(count)
    sizes = np.repeat(spacing[None], count, axis=0)
    stack = geometry.fit_stack(places[order], cosines[order], sizes, columns=columns, rows=rows)
    assert stack.step_mm == pytest.approx(step, abs=2 * limit / count + 1e-6)
    assert stack.moved_mm <= 2 * limit + 1e-6
    images = [stacks.Slice(Path(str(at)), _header(places[at], cosines[at], columns, rows)) for at in order]
    assert [len(one.slices) for one in stacks.split_stacks(images)] == [count]


def _header(place, cosines, columns, rows):
    header = pydicom.Dataset()
    header.SOPClassUID, header.SOPInstanceUID = headers.MR_CLASS, phantoms.uid(*place)
    header.Rows, header.Columns, header.PixelSpacing = rows, columns, [0.9, 0.9]
    header.ImagePositionPatient, header.ImageOrientationPatient = [phantoms._decimal(*one) for one in (place, cosines)]
    header.FrameOfReferenceUID = phantoms.uid("frame")
    return header


@given(seed=st.integers(0, 2**32 - 1), voxels=st.floats(0.4, 0.49), axis=st.sampled_from([0, 2]))
def test_a_slice_beyond_the_tolerance_is_refused_with_its_distance(seed, voxels, axis):
    rng, count, step = np.random.default_rng(seed), 30, 2.0
    places = np.outer(np.arange(count) * step, [0.0, 0, 1])
    moved = voxels * (0.9 if axis == 0 else step)
    places[rng.integers(5, 25), axis] += moved
    cosines, sizes = np.tile([1.0, 0, 0, 0, 1, 0], (count, 1)), np.full((count, 2), 0.9)
    with pytest.raises(InputError, match=r"mm") as caught:
        geometry.fit_stack(places, cosines, sizes, columns=256, rows=256)
    told = [float(word) for word in str(caught.value).replace(",", " ").split() if word.replace(".", "", 1).isdigit()]
    assert any(abs(number - moved) < 0.1 * moved for number in told), (str(caught.value), moved)


@pytest.mark.parametrize("degrees", [0.5, 2, 30])
def test_slices_that_are_turned_are_named_with_their_distance(tmp_path, degrees):
    for number, path in enumerate(series_in(tmp_path / "in")):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        if number >= 30:
            phantoms.change(path, ImageOrientationPatient=phantoms._decimal(c, s, 0, -s, c, 0))
    found = sorted(find_series(tmp_path / "in"), key=lambda one: -len(one.files))
    if len(found) == 1:  # half a degree moves a corner by 0.4 mm, a tenth of a voxel
        assert degrees == 0.5
        assert found[0].shape == SHAPE
        assert "place slices up to" in found[0].warnings[0]
        return
    assert [len(one.files) for one in found] == [30, 9]
    with collected_warnings() as warnings:
        read_series(found[0])
    assert warnings[0].startswith("Series 1 (t1_se_tra): 9 slices of this series not read with it: turned or scaled")
    # The farthest corner turns with the diagonal of 11 x 13 voxels of 4 mm.
    expected = 2 * np.sin(np.radians(degrees) / 2) * 4 * np.hypot(11, 13)
    assert f"up to {expected:.2f} mm apart" in warnings[0]


def test_a_slice_of_another_size_is_named(tmp_path):
    phantoms.change(series_in(tmp_path / "in")[0], Rows=7)
    first, second = sorted(find_series(tmp_path / "in"), key=lambda one: -len(one.files))
    assert (len(first.files), len(second.files)) == (38, 1)
    assert first.warnings[0] == "1 slice of this series not read with it: Rows 7 against 14"


def test_a_size_of_thousands_of_numbers_is_shortened(tmp_path):
    phantoms.change(series_in(tmp_path / "in")[0], Rows=[10] * 3000)
    shown = "[" + "10, " * 9 + "10,"  # 40 characters
    begin = "of this series not read with it: Rows"
    told = {text for series in find_series(tmp_path / "in") for text in series.warnings if begin in text}
    assert told == {f"1 slice {begin} {shown} against 14", f"38 slices {begin} 14 against {shown}"}


# J. DICOM as exported


def bare(path, syntax):
    """Write a file again without preamble and group 2."""
    dataset = pydicom.dcmread(path)
    if syntax == ExplicitVRBigEndian:
        dataset["PixelData"].value = np.frombuffer(dataset.PixelData, "<u2").byteswap().tobytes()
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    pydicom.Dataset(dataset).save_as(path, implicit_vr=implicit, little_endian=little)
    assert path.read_bytes()[128:132] != b"DICM"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_files_without_preamble_and_group_2_are_read(tmp_path, syntax):
    for path in series_in(tmp_path / "in"):
        bare(path, syntax)
    assert contains_dicom(tmp_path / "in")
    assert_is_phantom(read_whole(tmp_path / "in")[1])
    (series,) = find_series(tmp_path / "in")
    check_seg_source(series)
    assert read_grid(series).shape == SHAPE


@pytest.mark.parametrize("start", [b"\x08\x00", b"GIF89a", b"\x5c\x01\x00\x00", b"\x1f\x8b", bytes(200), b"hello" * 99])
def test_other_files_do_not_begin_as_dicom(tmp_path, start):
    (tmp_path / "file").write_bytes(start + b"x" * 300 if start != b"\x08\x00" else start)
    assert not headers.begins_as_dicom(tmp_path / "file")


def copies(paths, count, **tags):
    for number, path in enumerate(paths[:count]):
        copy = path.with_name(f"copy-{path.name}")
        copy.write_bytes(path.read_bytes())
        phantoms.change(copy, SOPInstanceUID=phantoms.uid("copy", number), InstanceNumber=100 + number, **tags)


@pytest.mark.parametrize("count", [1, 5, 39])
@pytest.mark.parametrize("tags", [{}, {"ContentTime": "111111", "AcquisitionTime": "111111"}])
def test_slices_sent_twice_with_new_uids_are_used_once(tmp_path, count, tags):
    copies(series_in(tmp_path / "in"), count, **tags)
    _, volume, warnings = read_whole(tmp_path / "in")
    assert_is_phantom(volume)
    files = "1 file has" if count == 1 else f"{count} files have"
    assert warnings == [
        f"Series 1 (t1_se_tra): {files} the same pixels as another at the same position; each image is used once."
    ]


def test_different_pixels_at_one_position_are_refused(tmp_path):
    paths = series_in(tmp_path / "in")
    copies(paths, 5)
    changed = next((tmp_path / "in").glob("copy-*"))
    phantoms.change(changed, PixelData=bytes([1, 0]) + pydicom.dcmread(changed).PixelData[2:])
    with pytest.raises(InputError, match=r"up to 2 images at one position .* their pixels differ"):
        read_whole(tmp_path / "in")


def test_empty_slices_of_two_echoes_are_no_copies(tmp_path):
    for number in (1, 2):
        voxels = VOXELS * number
        voxels[..., :3] = 0
        tags = {"EchoTime": 10 * number, "EchoNumbers": number}
        for path in phantoms.write_series(tmp_path / "in" / str(number), voxels, AFFINE, tags=tags):
            phantoms.change(path, SOPInstanceUID=phantoms.uid(path))
    assert [one.shape for one in find_series(tmp_path / "in")] == [SHAPE, SHAPE]


def test_empty_slices_of_two_time_points_are_no_copies(tmp_path):
    for number in (1, 2):
        voxels = VOXELS * number
        voxels[..., :3] = 0
        tags = {"AcquisitionTime": f"10000{number}"}
        for path in phantoms.write_series(tmp_path / "in" / str(number), voxels, AFFINE, tags=tags):
            phantoms.change(path, SOPInstanceUID=phantoms.uid(path))
    assert [one.shape for one in find_series(tmp_path / "in")] == [SHAPE, SHAPE]


def test_a_series_uid_for_each_slice_is_one_series(tmp_path):
    for number, description in ((1, "t1_se_tra"), (2, "t2_tse_tra")):
        paths = series_in(tmp_path / "in", number=number, description=description)
        for path in paths:
            phantoms.change(path, SeriesInstanceUID=phantoms.uid("own", path))
    with collected_warnings() as warnings:
        first, second = find_series(tmp_path / "in")
    assert (first.shape, second.shape) == (SHAPE, SHAPE)
    assert warnings[0] == "39 files of series 1 have a SeriesInstanceUID each; they are read as slices of one series."
    assert_is_phantom(read_series(first))
    with pytest.raises(InputError, match="39 different SeriesInstanceUIDs"):
        check_seg_source(first)


def test_a_study_uid_for_each_series_is_one_study(tmp_path):
    for number, description in ((1, "t1_se_tra"), (2, "t2_tse_tra"), (3, "t2_tirm_tra_dark-fluid")):
        series_in(tmp_path / "in", number=number, description=description, study=f"own {number}")
    with collected_warnings() as warnings:
        found = find_series(tmp_path / "in")
    assert (len(found), len({one.study for one in found})) == (3, 1)
    assert warnings == [
        "3 StudyInstanceUIDs, one for each series, of one visit by the other attributes: its images are read as one "
        "study."
    ]


def test_series_folders_with_a_study_uid_each_are_one_study(tmp_path, monkeypatch):
    monkeypatch.setattr(study_folders, "run_sandboxed", run_here)
    monkeypatch.setattr(study_folders, "confine", lambda *_: None)
    for number, description in ((1, "t1_se_tra"), (2, "t2_tse_tra")):
        series_in(tmp_path / "in" / description, number=number, description=description, study=f"own {number}")
    assert study_folders.find_study_folders(tmp_path / "in") == [tmp_path / "in"]
    other = phantoms.Person(name="PANZAXX^SANCHO", id="PIDXX0002")
    series_in(tmp_path / "in" / "other", number=3, study="own 3", person=other)
    assert len(study_folders.find_study_folders(tmp_path / "in")) == 3


@pytest.mark.parametrize(
    "second",
    [
        {"number": 1},
        {"number": 2, "tags": {"StudyDate": "20250101"}},
        {"number": 2, "tags": {"StudyTime": "120000"}, "frame_of_reference": "2"},
    ],
)
def test_two_visits_stay_two(tmp_path, second):
    series_in(tmp_path / "in", study="1")
    series_in(tmp_path / "in" / "second", study="2", **second)
    assert len({one.study for one in find_series(tmp_path / "in")}) == 2


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"])
@pytest.mark.parametrize("vr", ["LO"])
def test_decimal_commas_are_named_with_their_tag(tmp_path, keyword, vr):
    for path in series_in(tmp_path / "in"):
        dataset = pydicom.dcmread(path)
        text = "\\".join(f"{float(part):.3f}" for part in dataset[keyword].value).replace(".", ",")
        tag = dataset[keyword].tag
        dataset.add_new(tag, vr, text)
        dataset.save_as(path)
        # pydicom writes no such DS. Its bytes are those of an LO.
        mark = tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little")
        path.write_bytes(path.read_bytes().replace(mark + vr.encode(), mark + b"DS"))
    (series,) = find_series(tmp_path / "in")
    with pytest.raises(InputError, match=rf"Its {keyword} is .*,000.* with decimal commas"):
        read_series(series)


def test_a_missing_frame_of_reference_is_found_before_anything_is_written(tmp_path):
    for path in series_in(tmp_path / "in"):
        phantoms.change(path, FrameOfReferenceUID=None)
    (series,) = find_series(tmp_path / "in")
    with pytest.raises(InputError, match="has no FrameOfReferenceUID"):
        check_seg_source(series)


DIXON = {"W": "W", "F": "F", "IP": "IN_PHASE", "OP": "OPP_PHASE"}


@pytest.fixture
def dixon(tmp_path):
    """Folder with the four images of a Dixon scan after contrast agent, in one series."""
    for number, (name, kind) in enumerate(DIXON.items()):
        voxels = VOXELS + 7 * number
        tags = {
            "ImageType": ["DERIVED", "PRIMARY", kind, kind, "DERIVED"], "RepetitionTime": 5.9, "EchoTime": 2.5,
            "FlipAngle": 9, "ScanningSequence": "GR", "ContrastBolusAgent": "Gadovist",
        }  # fmt: skip
        description = "t1_vibe_dixon_tra_KM"
        for path in phantoms.write_series(tmp_path / "in" / name, voxels, AFFINE, description=description, tags=tags):
            phantoms.change(path, SOPInstanceUID=phantoms.uid(path))
    return tmp_path / "in"


def test_of_a_dixon_scan_in_one_series_the_water_image_is_taken(dixon):
    found = identify(dixon)
    assert list(found.chosen) == [Modality.T1C]
    assert "W" in found.chosen[Modality.T1C].image_type
    assert_is_phantom(read_series(found.chosen[Modality.T1C]))


def test_the_other_images_of_a_dixon_scan_are_named(dixon, caplog):
    caplog.set_level(logging.WARNING)
    for name in ("IP",):
        for path in (dixon / name).iterdir():
            os.unlink(path)
    given = input_from_images({Modality.T1C: dixon})
    assert "W" in given.series[Modality.T1C].image_type
    assert caplog.text.count("was left out: image type") == 2


# Real series

SERIES = {
    # name: files, modality of the frames, slices, spacing, plane, sequence by its header
    "ge_001": (4, "sagittal", (256, 256, 4), (1, 1, 1), None),
    "generic_001": (2, "sagittal", (256, 256, 2), (1, 1, 1), None),
    "generic_002_non_isotropic": (4, "axial", (64, 28, 4), (6.39996, 4, 0.5), None),
    "hitachi_001": (4, "oblique", (64, 64, 4), (2.34375, 2.34375, 4), None),
    "hyperfine_001": (1, "axial", (112, 138, 8), (1.59, 1.61, 5), Modality.FLAIR),
    "philips_001": (4, "coronal", (240, 240, 4), (1.04167, 1.04167, 0.6), None),
    "philips_enhanced_001": (1, "sagittal", (256, 256, 8), (1, 1, 1.2), None),
    "siemens_001": (4, "sagittal", (256, 256, 4), (1, 1, 1), None),
    "siemens_multiframe_001": (1, "axial", (256, 256, 8), (0.9375, 0.9375, 0.9), None),
}


@pytest.mark.skipif(not REAL.is_dir(), reason="no real series beside the checkout")
@pytest.mark.parametrize("name", SERIES)
def test_a_real_series_is_read_as_its_headers_say(name):
    files, plane, shape, spacing, sequence = SERIES[name]
    series, volume, warnings = read_whole(REAL / name)
    assert (len(series.files), series.plane, series.shape) == (files, plane, shape)
    assert series.spacing_mm == pytest.approx(spacing, abs=1e-4)
    assert volume.grid.spacing_mm == pytest.approx(spacing, abs=1e-4)
    assert warnings == []
    assert list(identify(REAL / name).chosen) == ([sequence] if sequence else [])
    _assert_voxels_lie_where_headers_say(series, volume)


def _assert_voxels_lie_where_headers_say(series, volume):
    """Compare positions and pixels of every slice with its header, by the formula of DICOM (C.7.6.2.1.1)."""
    to_index = np.linalg.inv(volume.affine)
    for path in series.files:
        dataset = pydicom.dcmread(path)
        pixels_of = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
        for number, frame in enumerate(pixels_of):
            place, cosines, spacing = (np.array(part, float) for part in _frame_header(dataset, number))
            for row, column in ((0, 0), (dataset.Rows - 1, 0), (0, dataset.Columns - 1)):
                lps = place + cosines[:3] * spacing[1] * column + cosines[3:] * spacing[0] * row
                index = (to_index @ [-lps[0], -lps[1], lps[2], 1])[:3]
                assert np.abs(index - np.rint(index)).max() < 0.02
                i, j, k = np.rint(index).astype(int)
                assert frame[row, column] * _slope(dataset, number)[0] + _slope(dataset, number)[1] == pytest.approx(
                    float(volume.voxels[i, j, k]), rel=1e-5, abs=1e-3
                )


def _frame_header(dataset, number):
    if not geometry.is_enhanced(dataset):
        return dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing
    own, shared = dataset.PerFrameFunctionalGroupsSequence[number], _shared(dataset)

    def item(group):
        return (own if group in own else shared)[group].value[0]

    return (
        item("PlanePositionSequence").ImagePositionPatient,
        item("PlaneOrientationSequence").ImageOrientationPatient,
        item("PixelMeasuresSequence").PixelSpacing,
    )


def _shared(dataset):
    return dataset.get("SharedFunctionalGroupsSequence", [pydicom.Dataset()])[0]


def _slope(dataset, number):
    places = [dataset]
    if geometry.is_enhanced(dataset):
        own, shared = dataset.PerFrameFunctionalGroupsSequence[number], _shared(dataset)
        places = [
            group.PixelValueTransformationSequence[0]
            for group in (own, shared)
            if "PixelValueTransformationSequence" in group
        ] or places
    return float(places[0].get("RescaleSlope", 1)), float(places[0].get("RescaleIntercept", 0))


@pytest.mark.skipif(not REAL.is_dir(), reason="no real series beside the checkout")
def test_magnitude_and_phase_of_a_real_series_are_two_stacks():
    found = find_series(REAL / "philips_002")
    assert [(one.shape, len(one.files)) for one in found] == [((768, 768, 4), 4)] * 2
    for one in found:
        assert read_series(one).grid.spacing_mm == pytest.approx((0.299479, 0.299479, 1), abs=1e-4)
