"""Layouts: trees written by other programs are read back exactly, and unclear trees are refused."""

import contextlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import layout_trees as trees
from conftest import ORIENTATIONS
from glimpseg.data import nifti
from glimpseg.data.cache import cache_key
from glimpseg.data.layouts import (
    LAYOUTS,
    convention_named,
    find_studies,
    find_usable,
    survey,
    write_derivative,
    write_manifest,
    write_studies,
)
from glimpseg.data.layouts.label_names import convention_of_labels, convention_of_regions
from glimpseg.data.preprocess import Preprocess
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import ALL, SUBSETS, Modality
from glimpseg.region import CONVENTIONS, Label
from glimpseg.study import Frame, Study
from glimpseg.volume import Volume, same_grid

T1, T1C, T2, FLAIR = Modality
VALIDATOR = shutil.which(
    "bids-validator-deno", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
)
needs_validator = pytest.mark.skipif(VALIDATOR is None, reason="pip install bids-validator-deno")
EVERY_LAYOUT = pytest.mark.parametrize("layout", trees.TREES)


def tree(folder, layout, studies=None):
    """Write a tree of a layout; return the studies in it by their expected ids."""
    studies = trees.kept_by(layout, studies or trees.made_studies())
    folder.mkdir(exist_ok=True)
    trees.TREES[layout](folder, studies)
    return {trees.id_in(layout, number, study): study for number, study in enumerate(studies)}


def assert_same(found, expected):
    """Compare ids, sequences, voxels, labels and grids."""
    assert [study.id for study in found] == sorted(expected)
    for study in found:
        wanted = expected[study.id]
        assert study.available == wanted.available
        assert (study.reference is None) == (wanted.reference is None)
        for modality, image in study.images.items():
            volume = nifti.read_volume(image)
            assert np.array_equal(volume.voxels, wanted.images[modality].voxels)
            assert same_grid(volume.grid, wanted.images[modality].grid)
        if study.reference is not None:
            labels = nifti.read_labels(study.reference, study.convention)
            assert np.array_equal(labels.voxels, wanted.reference.voxels)
            assert same_grid(labels.grid, wanted.reference.grid)


# Reading


@EVERY_LAYOUT
@pytest.mark.parametrize("seed", [1, 2])
def test_a_tree_with_sequences_removed_at_random_is_found_again_exactly(tmp_path, layout, seed):
    expected = tree(tmp_path / "tree", layout, trees.made_studies(6, seed))
    assert_same(find_studies(tmp_path / "tree"), expected)


@EVERY_LAYOUT
def test_a_named_layout_finds_what_auto_finds_and_no_other_layout_does(tmp_path, layout):
    expected = tree(tmp_path / "tree", layout)
    assert_same(find_studies(tmp_path / "tree", layout=layout), expected)
    assert survey(tmp_path / "tree").layout == layout
    others = set(trees.TREES) - {layout}
    if layout == "manifest":
        others -= {"brats2021", "brats2023"}
    for other in others:
        with pytest.raises(InputError, match=r"No study was found.*" + other):
            find_studies(tmp_path / "tree", layout=other)


@EVERY_LAYOUT
def test_a_tree_two_folders_down_with_spaces_in_their_names_is_found(tmp_path, layout):
    (tmp_path / "all of it").mkdir()
    expected = tree(tmp_path / "all of it" / "the data", layout)
    assert_same(find_studies(tmp_path), expected)


@pytest.mark.parametrize("name", ["brats", "BIDS", ""])
def test_an_unknown_layout_is_refused_by_name(tmp_path, name):
    if name == "brats":
        tree(tmp_path / "tree", "brats2021")
        assert len(find_studies(tmp_path, layout=name)) == 6
        return
    with pytest.raises(UsageError, match=r"is not a layout\. Choose one of auto, manifest"):
        find_studies(tmp_path, layout=name)


def test_two_layouts_in_one_tree_are_refused_and_either_can_be_named(tmp_path):
    expected = {layout: tree(tmp_path / layout, layout) for layout in ("nnunet", "msd")}
    with pytest.raises(InputError, match=r"several layouts were found: msd in .*; nnunet in "):
        find_studies(tmp_path)
    for layout, studies in expected.items():
        assert_same(find_studies(tmp_path, layout=layout), studies)


def test_a_folder_that_looks_like_two_data_sets_is_refused(tmp_path):
    tree(tmp_path / "tree", "nnunet")
    tree(tmp_path / "tree", "bids")
    with pytest.raises(InputError, match="looks like the layouts nnunet and bids"):
        find_studies(tmp_path)


def test_what_is_no_layout_at_all_says_what_was_expected(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=r"No study was found.*ID-t1c\.nii\.gz.*sub-01_T1w.*imagesTr/ID_0000"):
        find_studies(tmp_path)


@EVERY_LAYOUT
def test_references_can_be_required_or_ignored(tmp_path, layout):
    expected = tree(tmp_path / "tree", layout)
    with_one = sorted(name for name, study in expected.items() if study.reference is not None)
    assert [s.id for s in find_studies(tmp_path, references="required")] == with_one
    ignored = find_studies(tmp_path, references="ignored")
    assert len(ignored) == 6
    assert not any(study.reference or study.convention for study in ignored)


# Damaged and ambiguous trees


@EVERY_LAYOUT
def test_links_in_circles_end(tmp_path, layout):
    expected = tree(tmp_path / "tree", layout)
    (tmp_path / "tree" / "again").symlink_to(tmp_path / "tree", target_is_directory=True)
    (tmp_path / "tree" / "itself").symlink_to("itself")
    assert_same(find_studies(tmp_path / "tree"), expected)


@pytest.mark.parametrize("layout", ["brats2023", "nnunet", "bids"])
def test_a_link_that_leads_nowhere_is_a_missing_file_and_is_told(tmp_path, layout, caplog):
    tree(tmp_path / "tree", layout, [trees.made_study("A", (T1, T2)), trees.made_study("B", (T1, T2))])
    path = find_studies(tmp_path)[0].images[T2]
    path.unlink()
    path.symlink_to("../.git/annex/objects/gone")
    with caplog.at_level(logging.WARNING):
        found = find_studies(tmp_path)
    assert [study.available for study in found] == [T1, T1 | T2]
    assert f"1 files are links without a target ({path.name})" in caplog.text


@pytest.mark.parametrize("layout", ["brats2023", "bids", "manifest"])
def test_twins_are_refused_and_the_others_can_be_used(tmp_path, layout):
    for half in "ab":
        tree(tmp_path / half, layout, [trees.made_study("A", (T1,)), trees.made_study(f"B{half}", (T1,))])
    twin = "sub-A" if layout == "bids" else "A"
    with pytest.raises(InputError, match=f"Two studies are called {twin}"):
        find_studies(tmp_path)
    good, bad = find_usable(tmp_path)
    assert [study.id[-2:] for study in good] == ["Ba", "Bb"]
    assert list(bad) == [twin]


def test_names_that_are_no_text_become_ids_that_are(tmp_path):
    name = os.fsdecode(b"Mus\xe9e \x1b[2J")
    trees.brats2023(tmp_path, [trees.made_study("A", (T1,))])
    (tmp_path / "A").rename(tmp_path / name)
    (tmp_path / name / os.fsdecode(b"\xff.nii.gz")).write_bytes(b"")
    told = survey(tmp_path)
    assert told.studies[0].id == "Mus_xe9e _x1b[2J"
    assert told.text().encode()
    assert "_xff.nii.gz" in told.text()
    assert cache_key(told.studies[0], Preprocess())


def test_a_folder_that_is_closed_to_us_is_told(tmp_path, caplog, monkeypatch):
    tree(tmp_path / "tree", "brats2021")
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("S00"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with caplog.at_level(logging.WARNING):
        assert len(find_studies(tmp_path)) == 5
    assert "S00 could not be opened (Permission denied)" in caplog.text


MUTATED = {
    "nnunet": "dataset.json",
    "msd": "dataset.json",
    "bids": "derivatives/masks/desc-tumor_dseg.tsv",
    "manifest": "studies.csv",
    "brats2015": "**/*MR_T1*/*.mha",
}
ODDITIES = (b'"', b"{", b"[", b"0", b"9999999999", b"-1", b"null", b"\0", b",", b"\n", b"\t", b"1e999", b"NaN", b"\xff")


def mutated(content, rng):
    """Change, remove, insert or cut off a few bytes."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place, kind = rng.randrange(len(content) + 1), rng.random()
        if kind < 0.4:
            content[place : place + 1] = bytes([rng.randrange(256)])
        elif kind < 0.6:
            del content[place : place + rng.randrange(1, 9)]
        elif kind < 0.95:
            content[place:place] = rng.choice(ODDITIES)
        else:
            del content[place:]
    return bytes(content)


@pytest.mark.parametrize("layout", MUTATED)
def test_a_mutated_file_is_read_or_refused_in_words(tmp_path, layout, caplog):
    caplog.set_level(logging.CRITICAL)
    tree(tmp_path / "tree", layout, trees.made_studies(2, 7))
    path = next((tmp_path / "tree").glob(MUTATED[layout]))
    content, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(25):
        path.write_bytes(mutated(content, rng))
        try:
            for study in find_studies(tmp_path):
                for image in study.images.values():
                    nifti.read_volume(image)
        except (InputError, UsageError):
            refused += 1
        with contextlib.suppress(InputError):
            survey(tmp_path, labels="brats2023").text().encode()
    assert 0 < refused < 25


# Labels


def test_the_decathlons_numbers_are_its_own(tmp_path):
    tree(tmp_path / "tree", "msd")
    convention = find_studies(tmp_path)[0].convention
    assert convention.name == "msd"
    assert dict(convention.meaning) == {1: Label.ED, 2: Label.NCR, 3: Label.ET}


@pytest.mark.parametrize(
    ("ids", "numbers", "name"),
    [
        ("BraTS-GLI-0000{}-000", {1, 2, 3}, "brats2023"),
        ("BraTS-SSA-0000{}-000", {1, 2, 3}, "brats2023"),
        ("BraTS-MET-0000{}-000", {1, 2, 3}, "brats2023"),
        ("BraTS-MET-0000{}-001", {1, 2, 3, 4}, "brats2024"),
        ("BraTS-GLI-0000{}-100", {1, 2, 3, 4}, "brats2024"),
        ("BraTS-PED-0000{}-000", {1, 2, 3, 4}, "pediatric2024"),
    ],
)
def test_each_release_of_brats_has_its_convention(tmp_path, ids, numbers, name):
    numbered(tmp_path, ids, numbers)
    assert {study.convention.name for study in find_studies(tmp_path)} == {name}


def numbered(folder, ids, numbers):
    """Write two studies whose references hold the given label numbers."""
    labels = np.resize(np.array([0, *sorted(numbers)], np.uint8), trees.SHAPE)
    for number in range(2):
        name = ids.format(number)
        trees.brats2023(folder, [trees.made_study(name, (T1C,), reference=False)])
        trees.save(folder / name / f"{name}-seg.nii.gz", labels)


def test_children_of_2023_and_2024_have_other_meanings_for_the_same_numbers_and_are_asked_about(tmp_path):
    numbered(tmp_path, "BraTS-PED-0000{}-000", {1, 2, 3})
    with pytest.raises(InputError, match=r"brats2023 and pediatric2024. Name the convention"):
        find_studies(tmp_path)
    assert find_studies(tmp_path, labels="pediatric2024")[0].convention.meaning[1] == Label.ET


def test_children_and_adults_in_one_folder_are_asked_about(tmp_path):
    numbered(tmp_path, "BraTS-PED-0000{}-000", {1, 2, 3, 4})
    numbered(tmp_path, "BraTS-GLI-0000{}-000", {1, 2, 3, 4})
    with pytest.raises(InputError, match="mixes the layouts brats2023, pediatric"):
        find_studies(tmp_path)


def test_references_that_mix_conventions_are_refused(tmp_path):
    trees.brats2023(tmp_path, [trees.made_study("A", (T1,))])
    labels = np.resize(np.array([0, 1, 2, 4], np.uint8), trees.SHAPE)
    trees.brats2023(tmp_path, [trees.made_study("B", (T1,), reference=False)])
    trees.save(tmp_path / "B" / "B-seg.nii.gz", labels)
    with pytest.raises(InputError, match="seem to mix two conventions"):
        find_studies(tmp_path)


def test_a_convention_can_be_spelled_out_and_is_known_by_its_meaning():
    assert convention_named("3=ET, 1=ED,2=NCR") == CONVENTIONS["msd"]
    spelled = convention_named("1=ET,7=RC")
    assert spelled.read(np.array([0, 1, 7])).tolist() == [0, Label.ET, Label.RC]
    assert convention_named(spelled.name) == spelled


@pytest.mark.parametrize("name", ["brats", "1=XX", "0=ET", "a=ET", "1", "1=ET,", "300=ET"])
def test_a_convention_that_says_nothing_is_refused(name):
    with pytest.raises(UsageError, match="not a label convention"):
        convention_named(name)


@pytest.mark.parametrize(
    ("names", "meaning"),
    [
        ({1: "necrotic tumor core", 2: "Peritumoral Oedema", 3: "GD-enhancing tumour"}, "1=NCR,2=ED,3=ET"),
        ({0: "background", 1: "NETC", 2: "SNFH", 3: "ET", 4: "RC"}, "1=NCR,2=ED,3=ET,4=RC"),
        ({1: "ET", 2: "NET", 3: "CC", 4: "ED"}, "1=ET,2=NCR,3=NCR,4=ED"),
        ({1: "edema", 2: "necrotic and non-enhancing tumor", 4: "enhancing_tumor"}, "1=ED,2=NCR,4=ET"),
    ],
)
def test_names_of_labels_say_what_their_numbers_mean(names, meaning):
    assert convention_of_labels(names) == convention_named(meaning)


def test_labels_of_something_else_are_no_tumour():
    assert convention_of_labels({1: "Left-Hippocampus", 2: "CSF"}) is None


def test_labels_of_which_some_are_a_tumours_are_refused():
    with pytest.raises(InputError, match="'vessel', which are no parts of a tumour"):
        convention_of_labels({1: "edema", 2: "vessel"})


def test_regions_are_read_as_what_each_leaves():
    regions = {"whole tumor": [1, 2, 3, 4], "tumor core": [2, 3], "ET": [3], "RC": [4]}
    order = {"whole tumor": 1, "tumor core": 2, "ET": 3, "RC": 4}
    assert convention_of_regions(regions, order) == convention_named("1=ED,2=NCR,3=ET,4=RC")


@pytest.mark.parametrize(
    ("regions", "order", "why"),
    [
        ({"whole tumor": [1, 2], "enhancing tumor": [2]}, (1, 2), "1 may be more than one part"),
        ({"whole tumor": [1, 2], "tumor core": [2]}, (1, 2), "2 may be more than one part"),
        ({"whole tumor": [1, 2, 3], "core": [2, 3], "ET": [3]}, (2, 1, 3), "writes 2 where the regions say 1"),
        ({"whole tumor": [1, 2], "lesion": [2]}, (1, 2), "names the regions lesion"),
    ],
)
def test_regions_that_leave_a_doubt_are_refused(regions, order, why):
    with pytest.raises(InputError, match=why):
        convention_of_regions(regions, dict(zip(regions, order, strict=True)))


# MetaImage


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_an_mha_lies_where_simpleitk_puts_it(tmp_path, axes):
    """Compare with SimpleITK's NIfTI of the same image, read by nibabel; the image is turned by 20 degrees."""
    c, s = np.cos(0.35), np.sin(0.35)
    turn = np.array([[c, -s, 0, 3], [s, c, 0, -5], [0, 0, 1, 7], [0, 0, 0, 1]])
    order = nibabel.orientations.axcodes2ornt(axes)
    voxels = np.random.default_rng(0).integers(1, 99, trees.SHAPE).astype(np.int16)
    affine = turn @ np.diag([1.5, 2, 3, 1]) @ nibabel.orientations.inv_ornt_aff(order, trees.SHAPE)
    image = trees.as_sitk(nibabel.orientations.apply_orientation(voxels, order), affine)
    for name in ("a.mha", "a.nii.gz"):
        sitk.WriteImage(image, str(tmp_path / name))
    ours, theirs = nifti.read_volume(tmp_path / "a.mha"), nibabel.load(tmp_path / "a.nii.gz")
    assert np.array_equal(ours.voxels, theirs.get_fdata())
    assert np.abs(ours.affine - theirs.affine).max() < 1e-4
    assert np.allclose(ours.affine, affine, atol=1e-6)
    assert same_grid(nifti.read_header(tmp_path / "a.mha"), ours.grid)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("deflated", [True, False])
def test_an_mha_of_any_type_holds_what_simpleitk_wrote(tmp_path, kind, deflated):
    voxels = np.random.default_rng(0).integers(0, 99, trees.SHAPE).astype(kind)
    sitk.WriteImage(trees.as_sitk(voxels), str(tmp_path / "a.mha"), useCompression=deflated)
    assert np.array_equal(nifti.read_volume(tmp_path / "a.mha").voxels, voxels.astype(np.float32))


def mha(path, voxels=b"", deflate=False, **changes):
    """Write a MetaImage by hand: 2 x 3 x 4 bytes with the values 0 to 23."""
    header = {
        "ObjectType": "Image", "NDims": "3", "CompressedData": str(deflate), "TransformMatrix": "0 1 0 -1 0 0 0 0 1",
        "Offset": "10 20 30", "ElementSpacing": "1 2 3", "DimSize": "2 3 4", "ElementType": "MET_UCHAR",
    }  # fmt: skip
    header.update(changes)
    text = "".join(f"{key} = {value}\n" for key, value in header.items() if value is not None)
    content = voxels or bytes(range(24))
    content = zlib.compress(content) if deflate else content
    data = "" if "ElementDataFile" in changes else "ElementDataFile = LOCAL\n"
    path.write_bytes((text + data).encode() + content)
    return path


@pytest.mark.parametrize("deflate", [True, False])
def test_an_mha_is_read_as_its_format_says(tmp_path, deflate):
    """Expected values by hand: rows of the matrix are axes, in LPS; the first index runs fastest."""
    volume = nifti.read_volume(mha(tmp_path / "a.mha", deflate=deflate))
    assert volume.voxels[1, 0, 0] == 1
    assert volume.voxels[0, 1, 0] == 2
    assert volume.voxels[0, 0, 1] == 6
    assert np.array_equal(volume.affine, [[0, 2, 0, -10], [-1, 0, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ElementDataFile": "/etc/passwd"}, "only 'local' is read"),
        ({"NDims": "2"}, "NDims is '2'"),
        ({"BinaryData": "False"}, "BinaryData is 'False'"),
        ({"ElementNumberOfChannels": "3"}, "ElementNumberOfChannels is '3'"),
        ({"ElementToIntensityFunctionSlope": "2"}, "Slope is '2'"),
        ({"DimSize": "2 3"}, "DimSize should be 3 numbers"),
        ({"DimSize": "2 3 -4"}, "DimSize should be 3 numbers"),
        ({"DimSize": "60000 3 4"}, "does not fit"),
        ({"DimSize": "2000 3 4"}, "at most 1024 along an axis"),
        ({"DimSize": "2 3 5"}, "ends after 24 of 30 bytes"),
        ({"DimSize": None}, "DimSize is 'not there'"),
        ({"ElementType": "MET_STRING"}, "ElementType is 'MET_STRING'"),
        ({"ElementSpacing": "1 0 3"}, "singular"),
        ({"ElementSpacing": None}, "ElementSpacing is 'not there'"),
        ({"TransformMatrix": None}, "TransformMatrix is 'not there'"),
        ({"TransformMatrix": "1 0 0 0 1 0 nan 0 1"}, "not finite"),
        ({"Offset": "1 2"}, "Offset should be 3 numbers"),
        ({"NDims\nNDims": "3"}, "none of a MetaImage"),
        ({"voxels": bytes(2000)}, "goes on after the last voxel"),
        ({"voxels": bytes(2000), "deflate": True}, "goes on after the last voxel"),
        ({"CompressedData": "True"}, "failed"),
        ({"ElementSpacing": "1e-200 1e-200 1e-200"}, "singular"),
        ({"TransformMatrix": "inf 0 0 0 1 0 0 0 1"}, "not finite"),
    ],
)
def test_an_mha_that_is_rare_or_broken_is_refused(tmp_path, changes, why):
    with pytest.raises(InputError, match=why):
        nifti.read_volume(mha(tmp_path / "a.mha", **changes))


@pytest.mark.parametrize("content", [b"", b"hello", bytes(100), b"ObjectType = Image\n" * 2, b"a = b\n"])
def test_what_is_no_mha_is_refused(tmp_path, content):
    (tmp_path / "a.mha").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as MetaImage"):
        nifti.read_volume(tmp_path / "a.mha")


def test_an_mha_that_was_cut_anywhere_is_refused(tmp_path):
    sitk.WriteImage(trees.as_sitk(np.arange(210, dtype=np.int16).reshape(trees.SHAPE)), str(tmp_path / "a.mha"), True)
    content = (tmp_path / "a.mha").read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "a.mha").write_bytes(content[:length])
        with pytest.raises(InputError):
            nifti.read_volume(tmp_path / "a.mha")


def test_both_grades_may_have_a_patient_of_one_name(tmp_path):
    for grade in ("HGG", "LGG"):
        trees.brats2015(tmp_path / "one", [trees.made_study("brats_2013_pat0001_1", (T1, FLAIR))])
        shutil.move(tmp_path / "one" / "BRATS2015_Training" / "LGG", tmp_path / "training" / grade)
        shutil.rmtree(tmp_path / "one")
    assert [s.id for s in find_studies(tmp_path)] == ["HGG_brats_2013_pat0001_1", "LGG_brats_2013_pat0001_1"]


# Four dimensions


def series(folder, dtype=np.float32):
    voxels = np.random.default_rng(0).integers(1, 99, (*trees.SHAPE, 3)).astype(dtype)
    trees.save(folder / "a.nii.gz", voxels)
    trees.save(folder / "a.nii", voxels)
    return voxels


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_frame_is_one_volume_of_its_file(tmp_path, name):
    voxels = series(tmp_path)
    for number in range(3):
        frame = nifti.read_volume(Frame(tmp_path / name, number))
        assert np.array_equal(frame.voxels, voxels[..., number])
        assert same_grid(frame.grid, nifti.read_header(Frame(tmp_path / name, number)))


@pytest.mark.parametrize("number", [3, -1])
def test_a_frame_that_is_not_there_is_refused(tmp_path, number):
    series(tmp_path)
    with pytest.raises(InputError, match=r"shape is \(6, 7, 5, 3\)"):
        nifti.read_volume(Frame(tmp_path / "a.nii.gz", number))


def test_a_scaled_frame_is_scaled(tmp_path):
    image = nibabel.Nifti1Image(np.arange(420, dtype=np.int16).reshape(6, 7, 5, 2), trees.AFFINE)
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "a.nii.gz")
    expected = nibabel.load(tmp_path / "a.nii.gz").get_fdata()
    assert np.array_equal(nifti.read_volume(Frame(tmp_path / "a.nii.gz", 1)).voxels, expected[..., 1])


def test_frames_of_one_file_are_different_entries_of_the_cache(tmp_path):
    series(tmp_path)
    keys = {cache_key(Study("A", {T1: Frame(tmp_path / "a.nii.gz", n)}), Preprocess()) for n in range(3)}
    assert len(keys) == 3


# nnU-Net


def with_tree(folder, **changes):
    """Write two studies in nnU-Net's layout with changes to dataset.json."""
    trees.nnunet(folder, [trees.made_study("A", ALL), trees.made_study("B", (T1,))])
    told = json.loads((folder / "dataset.json").read_text())
    told.update(changes)
    (folder / "dataset.json").write_text(json.dumps({key: value for key, value in told.items() if value is not None}))


def test_plain_labels_of_nnunet_are_read_by_their_names(tmp_path):
    with_tree(tmp_path, labels={"background": 0, "NCR": 2, "ED": 1, "ET": 3}, regions_class_order=None)
    assert find_studies(tmp_path)[0].convention.name == "msd"


def test_the_first_version_of_nnunet_is_read(tmp_path):
    labels = {"0": "background", "1": "edema", "2": "non-enhancing", "3": "enhancing"}
    modality = {"0": "T1ce", "1": "FLAIR", "2": "T2", "3": "T1"}
    with_tree(tmp_path, labels=labels, modality=modality, channel_names=None, regions_class_order=None)
    found = find_studies(tmp_path)
    assert [study.available for study in found] == [ALL, T1]
    assert found[0].convention.name == "msd"


def test_a_channel_that_is_no_sequence_of_ours_is_left_aside_and_told(tmp_path):
    with_tree(tmp_path, channel_names={"0": "T1ce", "1": "ADC", "2": "T2", "3": "T1"})
    told = survey(tmp_path)
    assert told.studies[0].available == T1C | T2 | T1
    assert "were ignored: ADC" in told.text()
    assert [path.name for path in told.ignored] == ["A_0001.nii.gz"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"channel_names": {"0": "CT"}}, "CT, none of which is T1"),
        ({"channel_names": {"0": "T1", "1": "t1w"}}, "two channels for T1"),
        ({"channel_names": None}, "should name its channels"),
        ({"file_ending": ".png"}, "end in '.png' are not read"),
        ({"labels": {"background": 0, "tumor": 1}}, "names the labels 'background', 'tumor'.*--labels 1=NCR"),
        ({"labels": None}, "does not name its labels"),
        ({"labels": {"background": 0, "ET": "x"}}, "not a number"),
        ({"regions_class_order": None}, "need a 'regions_class_order'"),
        ({"regions_class_order": [2, 1, 3]}, "writes 2 where the regions say 1"),
    ],
)
def test_a_description_that_leaves_a_doubt_is_refused(tmp_path, changes, why):
    with_tree(tmp_path, **changes)
    with pytest.raises(InputError, match=why):
        find_studies(tmp_path)


def test_labels_in_doubt_matter_only_where_they_are_used(tmp_path):
    with_tree(tmp_path, labels={"background": 0, "tumor": 1})
    assert len(find_studies(tmp_path, references="ignored")) == 2
    assert find_studies(tmp_path, labels="1=ED,2=NCR,3=ET")[0].convention.name == "msd"
    assert len(find_usable(tmp_path)[0]) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"labels": 1, "labels": 2}',
        b'{"numTraining": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_broken_dataset_json_is_refused(tmp_path, content):
    tree(tmp_path / "tree", "nnunet")
    (tmp_path / "tree" / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as JSON"):
        find_studies(tmp_path)


def test_a_listed_file_with_a_name_that_no_file_can_have_is_a_problem_of_its_study(tmp_path):
    with_tree(tmp_path, dataset={"S1": {"images": ["x" * 300 + ".nii.gz"]}})
    _, problems = find_usable(tmp_path)
    assert "which is not there" in problems["S1"]


def test_a_channel_of_a_long_name_is_shortened_in_the_log(tmp_path, caplog):
    with_tree(tmp_path, channel_names={"0": "T1", "1": "y" * 5000})
    find_usable(tmp_path)
    assert f"were ignored: {'y' * 100}..." in caplog.text
    assert "y" * 101 not in caplog.text


# BIDS


def test_sessions_are_studies(tmp_path):
    for session in ("_ses-pre", "_ses-post"):
        trees.bids(tmp_path, [trees.made_study("01", (T1C, FLAIR))], session)
    assert [s.id for s in find_studies(tmp_path)] == ["sub-01_ses-post", "sub-01_ses-pre"]
    assert {s.reference.parents[1].name for s in find_studies(tmp_path)} == {"ses-post", "ses-pre"}


def test_what_glimpseg_wrote_is_no_reference(tmp_path):
    study = trees.made_study("01", (T1C, FLAIR))
    trees.bids(tmp_path, [Study("01", study.images)])
    write_derivative(tmp_path, "sub-01", study.reference, model="unet", version="1")
    assert find_studies(tmp_path)[0].reference is None
    assert "derivatives/glimpseg/sub-01/anat" in survey(tmp_path).text()


def test_an_anatomical_label_map_is_no_reference(tmp_path):
    study = trees.made_study("01", (T1,))
    trees.bids(tmp_path, [study])
    place = tmp_path / "derivatives" / "freesurfer" / "sub-01" / "anat"
    trees.save(place / "sub-01_desc-aseg_dseg.nii.gz", study.reference.voxels)
    (place / "sub-01_desc-aseg_dseg.tsv").write_text("index\tname\n1\tLeft-Hippocampus\n2\tCSF\n")
    assert "masks" in str(find_studies(tmp_path)[0].reference)
    assert list(survey(tmp_path).ignored.values()) == ["a label map whose names are no parts of a tumour"]


def test_two_references_of_a_study_are_refused_only_where_one_is_needed(tmp_path):
    study = trees.made_study("01", (T1,))
    trees.bids(tmp_path, [study])
    trees.save(tmp_path / "derivatives/second/sub-01/anat/sub-01_dseg.nii.gz", study.reference.voxels)
    with pytest.raises(InputError, match=r"sub-01 has two references.*manifest"):
        find_studies(tmp_path)
    assert len(find_studies(tmp_path, references="ignored")) == 1


def test_the_nearest_table_speaks_for_a_label_map(tmp_path):
    trees.bids(tmp_path, [trees.made_study("01", (T1,)), trees.made_study("02", (T1,))])
    place = tmp_path / "derivatives/masks/sub-01/anat"
    rows = "index\tabbreviation\tname\n1\tET\tbright\n2\tED\tswollen\n3\tNCR\tdead\n"
    (place / "sub-01_desc-tumor_dseg.tsv").write_text(rows)
    assert [s.convention.name for s in find_studies(tmp_path)] == ["1=ET,2=ED,3=NCR", "msd"]


@pytest.mark.parametrize("table", ["name\nedema\n", "index\tname\nx\tedema\n", "index\tname\n1\tedema\n2\tvessel\n"])
def test_a_table_that_says_too_little_leaves_the_labels_in_doubt(tmp_path, table):
    trees.bids(tmp_path, [trees.made_study("01", (T1,))])
    (tmp_path / "derivatives/masks/desc-tumor_dseg.tsv").write_text(table)
    with pytest.raises(InputError, match=r"dseg\.tsv"):
        find_studies(tmp_path)
    assert find_studies(tmp_path, labels="msd")[0].convention.name == "msd"


def test_a_label_map_without_a_table_is_read_by_its_numbers_or_not_at_all(tmp_path):
    trees.bids(tmp_path, [trees.made_study("01", (T1,))])
    (tmp_path / "derivatives/masks/desc-tumor_dseg.tsv").unlink()
    with pytest.raises(InputError, match="Name the convention"):
        find_studies(tmp_path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sub-01_run-2_T2w", "two T2 images: sub-01_T2w.nii.gz and sub-01_run-2"),
        ("sub-01_acq-postGd_T1w", "acq-postGd"),
    ],
)
def test_an_image_that_may_be_another_one_is_not_chosen(tmp_path, name, why):
    trees.bids(tmp_path, [trees.made_study("01", (T2,)), trees.made_study("02", (T2,))])
    trees.save(tmp_path / "sub-01" / "anat" / f"{name}.nii.gz", np.ones(trees.SHAPE, np.float32))
    with pytest.raises(InputError, match=r"sub-01.*(manifest)") as refused:
        find_studies(tmp_path)
    assert why.split(":")[0] in str(refused.value)
    good, bad = find_usable(tmp_path)
    assert ([s.id for s in good], list(bad)) == (["sub-02"], ["sub-01"])


def test_other_images_of_a_study_are_ignored(tmp_path):
    trees.bids(tmp_path, [trees.made_study("01", (T1,))])
    for name in ("sub-01_T2starw", "sub-01_PDw", "holiday_T1w", "sub-01_desc-brain_mask"):
        trees.save(tmp_path / "sub-01" / "anat" / f"{name}.nii.gz", np.ones(trees.SHAPE, np.float32))
    assert find_studies(tmp_path)[0].available == T1
    assert len(survey(tmp_path).ignored) == 4


# Manifests


def table(folder, text, name="studies.csv"):
    """Write a manifest beside two images."""
    for number in range(2):
        trees.save(folder / f"{number}.nii.gz", np.random.default_rng(number).random(trees.SHAPE).astype(np.float32))
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "study,t1,flair\nA,0.nii.gz,1.nii.gz\n\n",
        "\ufeffID;T1n;T2f\r\nA;0.nii.gz;1.nii.gz\r\n",
        "case\tt1\tt1c\tfla\nA\t0.nii.gz\t\t 1.nii.gz \n",
        "study,note,t1,flair\nA,\"says: a, b\",0.nii.gz,./1.nii.gz",
        "sep=;\r\nstudy;t1;flair\r\nA;0.nii.gz;1.nii.gz\r\n",
        "study,t1,flair\nA,.\\0.nii.gz,1.nii.gz\n",
        "study,t1,t1c,t2,flair\nA,0.nii.gz,NA,n/a,1.nii.gz\n",
        "study\tt1\tflair\r\nA\t0.nii.gz\t1.nii.gz\r\n".encode("utf-16"),
        "study,t1,flair\nA,0.nii.gz,1.nii.gz\n".encode("utf-16-le"),
        "study,t1,flair\nA,0.nii.gz,1.nii.gz\n".encode("utf-16-be"),
        "study,note,t1,flair\nA,M\u00fcller,0.nii.gz,1.nii.gz\n".encode("latin-1"),
    ],
)  # fmt: skip
def test_a_manifest_is_read_however_it_was_saved(tmp_path, text):
    (found,) = find_studies(table(tmp_path, text))
    assert (found.id, found.available) == ("A", T1 | FLAIR)
    assert [s.id for s in find_studies(tmp_path)] == ["A"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("study,t1\nA,2.nii.gz\n", r"row 2: '2.nii.gz' is no file"),
        ("study,t1\nA,\n", "row 2: it names no image"),
        ("study,t1\n../../A,0.nii.gz\n", "cannot be a study's id"),
        ("study,t1\n,0.nii.gz\n", "cannot be a study's id"),
        ("study,t1,convention\nA,0.nii.gz,brats1999\n", "row 2: 'brats1999' is not a label convention"),
        ("study,t1,t1w\nA,0.nii.gz,1.nii.gz\n", "two columns for T1"),
        ("study,scan\nA,0.nii.gz\n", "has the columns study, scan. A manifest has"),
        ("t1\n0.nii.gz\n", "A manifest has the columns study"),
        ("", "is empty"),
        ("study,t1\nA,0.nii.gz\nA,1.nii.gz\n", "Two studies are called A"),
        (b"\xff\xfes\0t\0u\0d\0y\0", "A manifest has|cannot be read as a table"),
        ('study,t1\nA,"0.nii.gz\n', "cannot be read as a table"),
        ("study,t1" + "," * 999 + "\nA,0.nii.gz\n", "has 1,001 columns; at most 1000 are read"),
        ("study,t1\n=1+1,0.nii.gz\n", "would take it for a formula"),
        ("study,t1\n@SUM(1),0.nii.gz\n", "would take it for a formula"),
        ("study,t1\nA," + "x" * 300 + ".nii.gz\n", "is no file"),
    ],
)
def test_a_manifest_that_is_wrong_says_where(tmp_path, text, why):
    with pytest.raises(InputError, match=why):
        find_studies(table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("study,t1\nA,0.nii.gz\n".encode("utf-16"), "studies.csv is in UTF-16; it was read as such."),
        ("study,t1,note\nA,0.nii.gz,\u00fc\n".encode("latin-1"), "studies.csv is in Latin-1 (Windows-1252); it was"),
        ("study,t1,t2\nA,0.nii.gz,NA\nB,1.nii.gz,n/a\n", "studies.csv has 2 cells with NA, n/a; they count as blank."),
        ("study,t1\nA,.\\0.nii.gz\n", "studies.csv has paths with backslashes; they were read as slashes."),
    ],
)
def test_what_was_recognised_in_a_manifest_is_told(tmp_path, caplog, text, note):
    find_studies(table(tmp_path, text))
    assert note in caplog.text


def test_a_manifest_in_latin_1_names_files_and_studies_in_letters(tmp_path):
    trees.save(tmp_path / "M\u00fcller.nii.gz", np.ones(trees.SHAPE, np.float32))
    (found,) = find_studies(table(tmp_path, "study,t1\nM\u00fcller,M\u00fcller.nii.gz\n".encode("latin-1")))
    assert (found.id, found.images[T1].name) == ("M\u00fcller", "M\u00fcller.nii.gz")


def test_rows_are_numbered_from_the_first_line_of_the_file(tmp_path):
    _, bad = find_usable(table(tmp_path, "sep=,\nstudy,t1\nA,0.nii.gz\nB,C:\\scans\\1.nii.gz\n"))
    assert "row 4: 'C:\\scans\\1.nii.gz' is a path of Windows" in bad["row-4"]


def test_a_wrong_row_does_not_stop_the_others(tmp_path):
    good, bad = find_usable(table(tmp_path, "study,t1\nA,0.nii.gz\nB,gone.nii.gz\nC,1.nii.gz\n"))
    assert [study.id for study in good] == ["A", "C"]
    assert "'gone.nii.gz' is no file" in bad["row-3"]


def test_two_manifests_in_a_folder_are_refused(tmp_path):
    for name in ("train.csv", "test.tsv"):
        table(tmp_path, "study,t1\nA,0.nii.gz\n", name)
    with pytest.raises(InputError, match=r"2 manifests: test\.tsv, train\.csv"):
        find_studies(tmp_path)


def test_a_table_of_something_else_is_no_manifest(tmp_path):
    tree(tmp_path / "tree", "brats2021")
    (tmp_path / "tree" / "survival.csv").write_text("id,age,t1,t2\nS00,61,812.5,93.1\n")
    assert len(find_studies(tmp_path)) == 6


def test_a_thousand_columns_are_read_and_the_first_unused_are_named(tmp_path, caplog):
    names = ",".join(f"c{n}" for n in range(998))
    assert [study.id for study in find_studies(table(tmp_path, f"study,t1,{names}\nA,0.nii.gz\n"))] == ["A"]
    assert "c18, c19 and 978 more" in caplog.text


def test_columns_that_were_not_used_are_named(tmp_path):
    assert "unused columns: t1cc" in survey(table(tmp_path, "study,t1,t1cc\nA,0.nii.gz,1.nii.gz\n")).text()


def test_a_brain_mask_and_a_convention_may_stand_in_a_manifest(tmp_path):
    trees.save(tmp_path / "seg.nii.gz", np.resize(np.array([0, 1, 2, 3], np.uint8), trees.SHAPE))
    text = "study,t1,seg,brain,convention\nA,0.nii.gz,seg.nii.gz,1.nii.gz,msd\nB,1.nii.gz,seg.nii.gz,,1=NCR,\n"
    good, _ = find_usable(table(tmp_path, text))
    assert good[0].brain.name == "1.nii.gz"
    with pytest.raises(InputError, match="B"):
        find_studies(table(tmp_path, text + "B,0.nii.gz,,,\n"))


@pytest.mark.parametrize("name", ["all.csv", "all.tsv"])
def test_a_written_manifest_is_read_again(tmp_path, name):
    folder = tmp_path / os.fsdecode(b'R\xe9sultats, "2024"')
    expected = tree(folder, "brats2023")
    write_manifest(folder / name, find_studies(folder))
    write_manifest(tmp_path / name, find_studies(folder))
    assert_same(find_studies(folder / name), expected)
    assert_same(find_studies(tmp_path / name), expected)


def test_a_manifest_may_name_volumes_of_a_series_and_leave_some_out(tmp_path):
    expected = tree(tmp_path / "set", "msd")
    write_manifest(tmp_path / "all.csv", find_studies(tmp_path / "set"))
    assert_same(find_studies(tmp_path / "all.csv"), expected)
    (tmp_path / "few.csv").write_text("study,flair\nA,set/imagesTr/S00.nii.gz#0\n")
    assert find_studies(tmp_path / "few.csv")[0].images == {FLAIR: Frame(tmp_path / "set/imagesTr/S00.nii.gz", 0)}


# Survey


@EVERY_LAYOUT
def test_a_survey_tells_what_is_there(tmp_path, layout):
    expected = tree(tmp_path / "tree", layout)
    told = survey(tmp_path / "tree")
    assert not told.problems
    assert dict(told.subsets) == {s: sum(study.available == s for study in expected.values()) for s in SUBSETS}
    ((grid, count),) = told.grids.items()
    assert (grid.shape, grid.spacing_mm, grid.axes) == (trees.SHAPE, (1.5, 2, 3), "LPS")
    assert count == sum(len(study.images) for study in expected.values())
    lines = told.text().splitlines()
    assert "studies     6, 5 with a reference" in lines
    for name, study in expected.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        wanted = ["yes" if m in study.available else "-" for m in Modality]
        assert line.split() == [name, *wanted, "yes" if study.reference is not None else "-"]


def test_a_survey_reads_headers_alone_where_names_tell_the_labels(tmp_path):
    tree(tmp_path / "tree", "nnunet")
    for path in (tmp_path / "tree").rglob("*.nii.gz"):
        content = nibabel.load(path).header.binaryblock + b"\0\0\0\0"
        path.unlink()
        (path.parent / path.name).write_bytes(__import__("gzip").compress(content))
    assert not survey(tmp_path).problems
    with pytest.raises(InputError, match="damaged"):
        nifti.read_volume(next(iter(find_studies(tmp_path)[0].images.values())))


def test_a_survey_lists_what_cannot_be_read_and_goes_on(tmp_path):
    trees.brats2023(tmp_path, [trees.made_study("A", (T1, T2)), trees.made_study("B", (T1, T2))])
    (tmp_path / "A" / "A-t1n.nii.gz").write_bytes(b"no image")
    (tmp_path / "A" / "A-adc.nii.gz").write_bytes(b"another")
    told = survey(tmp_path)
    assert sum(told.grids.values()) == 3
    assert [path.name for path in told.ignored] == ["A-adc.nii.gz"]
    assert "A-t1n.nii.gz cannot be read" in told.problems[0]


def test_a_survey_tells_labels_in_doubt(tmp_path):
    numbered(tmp_path, "BraTS-PED-0000{}-000", {1, 2, 3})
    told = survey(tmp_path)
    assert told.labels == "unclear, see below"
    assert "Name the convention" in told.text()
    assert survey(tmp_path, labels="brats2023").labels == "brats2023: 1 NCR, 2 ED, 3 ET"


def test_a_long_survey_is_cut(tmp_path):
    text = "study,t1\n" + "".join(f"S{n:03d},0.nii.gz\n" for n in range(100))
    assert "... and 60 more" in survey(table(tmp_path, text)).text()


# Writing


WRITTEN = sorted(name for name, layout in LAYOUTS.items() if layout.write)


@st.composite
def datasets(draw):
    """Draw a few studies with any sequences, with or without a reference."""
    letters = st.text("ABCxyz019", min_size=1, max_size=6)
    names = draw(st.lists(letters, min_size=1, max_size=3, unique_by=str.lower))
    return [
        trees.made_study(name, draw(st.sampled_from(SUBSETS)), draw(st.integers(0, 99)), draw(st.booleans()))
        for name in names
    ]


@pytest.mark.parametrize("layout", WRITTEN)
@given(studies=datasets())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_what_is_written_is_read_again(tmp_path_factory, layout, studies):
    folder = tmp_path_factory.mktemp("written") / "set"
    assert write_studies(folder, studies, layout) == folder
    expected = {f"sub-{s.id}" if layout == "bids" else s.id: s for s in studies}
    assert_same(find_studies(folder), expected)
    assert survey(folder).layout == layout


def test_layouts_that_are_written_are_these():
    assert WRITTEN == ["bids", "brats2021", "brats2023", "nnunet"]


@pytest.mark.parametrize("source", trees.TREES)
@pytest.mark.parametrize("layout", WRITTEN)
def test_every_layout_can_be_written_as_any_other(tmp_path, source, layout):
    expected = tree(tmp_path / "tree", source)
    write_studies(tmp_path / "out", find_studies(tmp_path / "tree"), layout)
    if layout == "bids":
        expected = {f"sub-{name.removeprefix('sub-').replace('_', '')}": study for name, study in expected.items()}
    assert_same(find_studies(tmp_path / "out"), expected)


def test_values_that_are_not_whole_keep_their_bits(tmp_path):
    values = np.random.default_rng(0).normal(size=trees.SHAPE).astype(np.float32)
    write_studies(tmp_path / "out", [Study("A", {T2: Volume(values, trees.AFFINE)})], "nnunet")
    assert np.array_equal(nibabel.load(tmp_path / "out/imagesTs/A_0002.nii.gz").get_fdata(), values)


def test_nnunets_own_words_are_written(tmp_path):
    study = trees.made_study("A", (T1C,))
    write_studies(tmp_path / "out", [study], "nnunet")
    told = json.loads((tmp_path / "out/dataset.json").read_text())
    assert told["channel_names"] == {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"}
    assert told["labels"] == {"background": 0, "NCR": 1, "ED": 2, "ET": 3}
    assert (told["numTraining"], told["file_ending"]) == (1, ".nii.gz")
    assert [path.name for path in (tmp_path / "out/imagesTr").iterdir()] == ["A_0001.nii.gz"]


def test_a_cavity_is_written_and_read(tmp_path):
    labels = np.resize(np.arange(5, dtype=np.uint8), trees.SHAPE)
    study = Study("A", trees.made_study("A", (T1C,)).images, Volume(labels, trees.AFFINE))
    for layout in ("nnunet", "bids", "brats2023"):
        write_studies(tmp_path / layout, [study], layout)
        (found,) = find_studies(tmp_path / layout)
        assert np.array_equal(nifti.read_labels(found.reference, found.convention).voxels, labels)


def test_a_layout_that_is_only_read_is_not_written(tmp_path):
    with pytest.raises(UsageError, match=r"msd is read only. Write one of .*nnunet"):
        write_studies(tmp_path / "out", [trees.made_study("A", (T1,))], "msd")


@pytest.mark.parametrize(("layout", "names"), [("bids", ("A-1", "A1")), ("nnunet", ("A", "A")), ("bids", ("--", "A"))])
def test_names_that_cannot_be_told_apart_are_refused_before_anything_is_written(tmp_path, layout, names):
    with pytest.raises(UsageError, match="Give"):
        write_studies(tmp_path / "out", [trees.made_study(name, (T1,)) for name in names], layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../A", "", ".", "a/b", "a\nb"])
def test_an_id_that_is_a_path_is_not_written(tmp_path, name):
    with pytest.raises(InputError, match="cannot be a study's id"):
        write_studies(tmp_path / "out", [trees.made_study(name, (T1,))], "nnunet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", WRITTEN)
def test_a_study_that_cannot_be_read_leaves_nothing_written(tmp_path, layout):
    expected = tree(tmp_path / "tree", "brats2021")
    next(iter(find_studies(tmp_path / "tree")[-1].images.values())).write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be read"):
        write_studies(tmp_path / "out", find_studies(tmp_path / "tree"), layout)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
    assert len(expected) == 6


# Derivatives


def derivative(folder, study="sub-01_ses-2", **changes):
    made = trees.made_study("01", (T1C, FLAIR))
    return made, write_derivative(folder, study, made.reference, **{"model": "unet", "version": "9f3a", **changes})


def test_a_derivative_holds_the_labels_and_says_what_they_mean(tmp_path):
    made, path = derivative(tmp_path)
    assert path == tmp_path / "derivatives/glimpseg/sub-01/ses-2/anat/sub-01_ses-2_space-orig_desc-tumor_dseg.nii.gz"
    assert np.array_equal(nibabel.load(path).get_fdata(), made.reference.voxels)
    rows = [line.split("\t") for line in path.with_name(path.name.replace(".nii.gz", ".tsv")).read_text().splitlines()]
    assert rows[0][:3] == ["index", "abbreviation", "name"]
    assert [(int(row[0]), row[1]) for row in rows[1:]] == [(int(label), label.name) for label in Label]
    assert convention_of_labels({int(row[0]): row[2] for row in rows[1:]}) == CONVENTIONS["brats2024"]
    told = json.loads((tmp_path / "derivatives/glimpseg/dataset_description.json").read_text())
    assert [(maker["Name"], maker["Version"]) for maker in told["GeneratedBy"]][1] == ("unet", "9f3a")
    assert told["GeneratedBy"][0]["Name"] == "glimpseg"


def test_the_results_of_two_models_do_not_mix(tmp_path):
    derivative(tmp_path)
    derivative(tmp_path, "sub-02")
    with pytest.raises(UsageError, match="another model"):
        derivative(tmp_path, "sub-03", version="0000")
    assert not (tmp_path / "derivatives/glimpseg/sub-03").exists()


def test_ids_that_are_not_bidss_become_theirs(tmp_path):
    _, path = derivative(tmp_path, "BraTS-GLI-00005-100")
    assert path.name.startswith("sub-BraTSGLI00005100_space-orig")


# BIDS validator


def validated(folder):
    done = subprocess.run(
        [VALIDATOR, "--format", "json", str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    issues = json.loads(done.stdout)["issues"]["issues"]
    return done.returncode, sorted({issue["code"] for issue in issues if issue["severity"] == "error"})


@needs_validator
def test_the_validator_passes_our_raw_data_sets_and_their_references(tmp_path):
    write_studies(tmp_path / "set", [*trees.made_studies(), trees.made_study("sub-x_ses-1", ALL)], "bids")
    assert validated(tmp_path / "set") == (0, [])
    assert validated(tmp_path / "set/derivatives/reference") == (0, [])


@needs_validator
def test_the_validator_passes_our_derivatives(tmp_path):
    write_studies(tmp_path / "set", [trees.made_study("sub-01_ses-2", ALL)], "bids")
    derivative(tmp_path / "set", sources=["sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"])
    assert validated(tmp_path / "set") == (0, [])
    assert validated(tmp_path / "set/derivatives/glimpseg") == (0, [])


@needs_validator
def test_the_validator_would_not_pass_just_anything(tmp_path):
    _, path = derivative(tmp_path)
    path.rename(path.with_name("seg.nii.gz"))
    assert validated(tmp_path / "derivatives/glimpseg")[0] != 0
