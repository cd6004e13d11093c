"""Names of images: a table with answers worked out by hand, borders of words, and trees that list what they leave."""

import json
import logging
import shutil

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import layout_trees as trees
from glimpseg.data.identify.names import NOT_NAMED, names_reference, read_name, says_nothing_else
from glimpseg.data.identify.spellings import separated
from glimpseg.data.layouts import find_studies, find_usable, survey
from glimpseg.errors import InputError
from glimpseg.modality import Modality
from glimpseg.segmentation.inputs import study_entries, tree_contents

T1, T1C, T2, FLAIR = Modality

NAMES = {
    T1: (
        "t1 T1 t1n t1w T1WI ID_t1 ID-t1n BraTS-MET-00001-000-t1n sub-01_ses-post_T1w T1_pre T1_nativ nativT1 axT1 3DT1 "
        "t1_mprage_sag t1_mpr_ns_sag_p2_iso sT1W_3D_TFE T1_sans_gado T1_ohne_KM T1_without_contrast T1_unenhanced "
        "T1w_noncontrast preT1 PreContrast_T1 t1_non_contrast T1_senza_mdc T1_sin_contraste T1_zonder_contrast "
        "T1_uden_kontrast T1_utan_kontrast T1_ilman_kontrastia T1_fără_contrast T1_조영전 T1_비조영 "
        "T1_spin_echo T1W_SENSE patient1_t1 visit2_t1 T1_brain T1-weighted UNIT1 T1_se T1_FSE MPRAGE_pre t1_tse_tra"
    ),
    T1C: (
        "t1c T1c CT1 cT1 T1ce T1CE t1_ce T1gd "
        "t1-gd T1_Gd T1+C T1+Gd T1KM T1_KM KM_T1 T1post T1_post postT1 T1wCE T1wC T1w+C "
        "Gd_T1 gdT1 gad_t1 PostContrast_T1 axT1+Gd axT1post 3DT1post sagT1KM T1_mit_KM T1_nach_KM T1_avec_gado T1Gad "
        "T1_apres_injection T1_postcontrast T1_post_contrast T1_postgad t1_mprage_gd MPRAGE_KM mprage_post BRAVO+C "
        "FSPGR_post_gad T1_con_contrasto T1_con_contraste T1_dopo_mdc T1_met_contrast T1_com_contraste T1_contrast "
        "T1_enhanced ceT1 ceT1w CET1 T1wGd T1_gadolinium T1_Gadovist T1_po_kontraście T1_z_kontrastem T1_с_контрастом "
        "T1_조영 T1_조영후 T1WithContrast T1plusC T1_plus_C T1GdDTPA T1_med_kontrast T1_spin_echo_post T1W_SENSE_GD "
        "T1_增强 T1W_post t1_vibe_km sub-01_ce-gadolinium_T1w T1c_brain BraTS20_Training_001_t1ce TCGA-02-0003_t1Gd"
    ),
    T2: "t2 t2w T2 ID-t2w t2_tse axT2 sT2W T2_FSE T2_sag patient1_T2 T2-weighted t2_blade t2_space T2_post 3DT2",
    FLAIR: (
        "flair t2f fla FLAIR T2_FLAIR t2flair axFLAIR flair3d darkfluid t2_darkfluid dark-fluid t2_tirm_tra TIRM "
        "t2_tirm_tra_dark-fluid FLAIR_post ax_t2_flair_fs T2_dark_fluid subject_flair flairfs FLAIR_cor"
    ),
    None: (
        "patient1 patient2 visit1 visit2 subject2 subject1 subject_t1x T1x t1b at1 PT1 pat1 t2star T2* T2_star t2starw "
        "T1map T1_map mp2rage_T1map T1_mp2rage_T1 MP2RAGE_T1 t1_mp2rage_sag_p3_iso_T1_Images T2map T1rho dixon_fat "
        "T1c_dixon_fat fat_T1c t1_vibe_dixon_tra_F T1_fat_fraction image mprage MPRAGE vibe T1_FLAIR T1_T2 P_T1_t1c "
        "swi adc dwi seg t1_seg T1_mask T1c_brain_mask t1_pre_post T1_with_and_without_contrast T1_to_T2 R1 T1T2 CT "
        "T2*W T2*w_axial T1_relax t1_atlas t1_template T1_prob "
        "CT2 T12 t11 T1w_bias_field T1_csf_prob T1_INV1 T1_synth t1_phase count1 left1 weight1 shift2"
    ),
}
TABLE = [(name, sequence) for sequence, names in NAMES.items() for name in names.split()]
TABLE += [(name, T1C) for name in ("T1 mit KM", "T1 avec gado", "T1 with contrast", "T1 w/ contrast", "T1 c.m.")]
CLEAR = [(name, sequence) for name, sequence in TABLE if sequence is not None and not name.startswith("sub-")]


@pytest.mark.parametrize(("name", "sequence"), TABLE)
def test_a_name_says_what_it_says_and_nothing_else(name, sequence):
    found = read_name(name)
    assert found.sequence is sequence
    assert bool(found.why) is (sequence is None)


def test_the_table_is_large_enough():
    assert len(TABLE) >= 120


def is_known(word):
    return (
        read_name(word).why != NOT_NAMED
        or read_name(f"t1_{word}").sequence is not T1
        or names_reference(word, last=False)
    )


IDS = st.text("abdeghijlnoqruvxyz0123456789", min_size=4, max_size=9)


@given(
    before=st.lists(IDS, max_size=3),
    after=st.lists(IDS, max_size=2),
    joint=st.sampled_from("_-. "),
    one=st.sampled_from(CLEAR),
)
def test_words_around_a_spelling_never_change_what_it_is(before, after, joint, one):
    assume(not any(is_known(word) for word in (*before, *after)))
    name, sequence = one
    if after and name.lower() in ("fla", "t1n", "t2f"):  # short spellings that count at the end alone
        after = []
    assert read_name(joint.join([*before, name, *after])).sequence is sequence


@given(
    word=IDS.filter(lambda word: word[-1].isalpha()),
    spelling=st.sampled_from(["t1", "t2", "t1c", "flair", "t1ce", "t2w"]),
)
def test_a_spelling_inside_a_word_is_none(word, spelling):
    assume(not is_known(word))
    letters = word + spelling
    if separated(letters.lower()) == letters.lower():  # not made of known parts, as `postt1` would be
        assert read_name(letters).sequence is None


def test_the_reason_quotes_no_word_of_the_patient():
    for name in ("Erika_Mustermann_adc", "Mustermann_T1_FLAIR", "Mustermann", "Mustermann_T1_T1c"):
        assert "ustermann" not in read_name(name).why


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("T1", True),
        ("T1_post", True),
        ("axT1post", True),
        ("seg", True),
        ("scan_T1", False),
        ("SegmentationsForQC", False),
        ("data", False),
    ],
)
def test_the_name_of_a_folder_is_a_sequence_only_if_it_says_nothing_else(name, said):
    assert says_nothing_else(name) is said


# Trees


def image(path, seed=0):
    rng = np.random.default_rng([seed, *str(path.name).encode()])
    trees.save(path, rng.integers(1, 1000, trees.SHAPE).astype(np.float32))


def label(path):
    voxels = np.zeros(trees.SHAPE, np.uint8)
    voxels[0, 0, :4] = range(4)
    trees.save(path, voxels)


def test_patients_and_visits_are_no_sequences(tmp_path):
    for name in ("patient1", "patient2", "visit1", "subject2"):
        image(tmp_path / "study" / f"{name}.nii.gz")
    with pytest.raises(
        InputError, match=r"No study was found.*\n.*patient1.nii.gz is not used: its name says no sequence"
    ):
        find_studies(tmp_path)


@pytest.mark.parametrize(
    "name", ["CT1", "cT1", "postT1", "PostContrast_T1", "Gd_T1", "T1_Gd", "T1+C", "T1KM", "T1post", "T1wCE"]
)
def test_contrast_in_a_name_is_t1c_in_every_layout(tmp_path, name):
    image(tmp_path / "a" / "P" / f"P_{name}.nii.gz")
    (found,) = find_studies(tmp_path / "a")
    assert found.available == T1C
    image(tmp_path / "b" / "imagesTr" / "P_0000.nii.gz")
    (tmp_path / "b" / "dataset.json").write_text(json.dumps({"channel_names": {"0": name}, "labels": {}}))
    assert find_studies(tmp_path / "b", references="ignored")[0].available == T1C
    image(tmp_path / "c" / "x.nii.gz")
    (tmp_path / "c" / "table.csv").write_text(f"study,{name}\nP,x.nii.gz\n")
    assert find_studies(tmp_path / "c" / "table.csv")[0].available == T1C


@pytest.mark.parametrize(
    ("suffix", "sequence"), [("T1c", T1C), ("T1ce", T1C), ("T1gd", T1C), ("T1w", T1), ("FLAIR", FLAIR)]
)
def test_a_suffix_that_bids_does_not_know_is_read(tmp_path, suffix, sequence):
    image(tmp_path / "sub-01" / "anat" / f"sub-01_{suffix}.nii.gz")
    assert find_studies(tmp_path)[0].available == sequence


def test_a_fat_image_of_a_dixon_is_no_t1_in_bids(tmp_path):
    image(tmp_path / "sub-01" / "anat" / "sub-01_acq-dixonFat_T1w.nii.gz")
    image(tmp_path / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    assert find_studies(tmp_path)[0].available == T2
    assert "fat" in next(iter(survey(tmp_path).ignored.values()))


def test_a_name_that_ends_in_its_sequence_goes_before_one_that_goes_on(tmp_path):
    for name in ("t1", "t1_brain", "flair"):
        image(tmp_path / "P" / f"{name}.nii.gz")
    (found,) = find_studies(tmp_path)
    assert found.images[T1].name == "t1.nii.gz"
    assert list(survey(tmp_path).ignored) == [(tmp_path / "P" / "t1_brain.nii.gz").relative_to(tmp_path)]


def test_every_image_that_is_not_used_is_listed_with_its_reason(tmp_path, caplog):
    for name in ("t1c", "adc", "mprage", "T1_FLAIR", "patient1", "t1c_brain_mask"):
        image(tmp_path / "P" / f"{name}.nii.gz")
    with caplog.at_level(logging.INFO, "glimpseg"):
        contents = tree_contents(tmp_path)
    assert contents.unused == [
        "T1_FLAIR.nii.gz is not used: its name says T1 and FLAIR.",
        "adc.nii.gz is not used: 'adc' in its name: diffusion imaging.",
        "mprage.nii.gz is not used: its name says T1-weighted, but not whether T1 or T1c.",
        "patient1.nii.gz is not used: its name says no sequence.",
        "t1c_brain_mask.nii.gz is not used: 'brain mask' in its name: a mask or label map.",
    ]
    assert contents.entries[0].unused == tuple(contents.unused)
    assert [record.message for record in caplog.records] == contents.unused


def test_at_most_ten_are_listed_then_they_are_counted(tmp_path, caplog):
    image(tmp_path / "P" / "t1c.nii.gz")
    for number in range(23):
        shutil.copy(tmp_path / "P" / "t1c.nii.gz", tmp_path / "P" / f"unknown{number:02d}.nii.gz")
    with caplog.at_level(logging.INFO, "glimpseg"):
        assert len(tree_contents(tmp_path).unused) == 23
    assert len(caplog.records) == 11
    assert caplog.records[-1].message == "... and 13 more: unused.json has all of them."


# References


@pytest.mark.parametrize("labels", [None, "brats2023"])
@pytest.mark.parametrize("names", [("deepmedic_seg", "final_seg"), ("seg", "seg_v2"), ("P-seg", "P_segm")])
def test_two_segmentations_are_refused_also_if_the_convention_is_named(tmp_path, names, labels):
    image(tmp_path / "P" / "t1c.nii.gz")
    for name in names:
        label(tmp_path / "P" / f"{name}.nii.gz")
    with pytest.raises(InputError, match="holds two references"):
        find_studies(tmp_path, labels=labels)
    assert len(find_usable(tmp_path)[0]) == 1  # `segment` needs no reference


# Trees of patients


def test_a_folder_for_each_sequence_is_one_study(tmp_path):
    for name in ("T1", "T1_post", "FLAIR"):
        image(tmp_path / "P1" / name / "image.nii.gz", len(name))
    label(tmp_path / "P1" / "seg" / "image.nii.gz")
    (found,) = find_studies(tmp_path, labels="brats2023")
    assert (found.id, found.available) == ("P1", T1 | T1C | FLAIR)
    assert found.reference.parent.name == "seg"


def test_folders_with_other_sequences_in_them_are_time_points(tmp_path):
    for point in ("T1", "T2"):
        image(tmp_path / "P1" / point / "t1c.nii.gz", len(point))
        image(tmp_path / "P1" / point / "flair.nii.gz", len(point))
    assert [study.id for study in find_studies(tmp_path)] == ["P1_T1", "P1_T2"]


def test_two_patients_in_the_folder_of_a_sequence_are_refused(tmp_path):
    for name in ("T1", "T2"):
        for patient in "AB":
            image(tmp_path / name / f"{patient}.nii.gz")
    with pytest.raises(InputError, match="holds two T1 images"):
        find_studies(tmp_path)


def test_equal_time_points_get_the_name_of_the_patient(tmp_path):
    for patient in ("Patient-001", "Patient-002"):
        for point in ("week-000", "week-044"):
            image(tmp_path / patient / point / f"{patient}_{point}_t1c.nii.gz", len(point))
    assert [entry.id for entry in study_entries(tmp_path)] == [
        f"Patient-00{n}_week-0{w}" for n in (1, 2) for w in ("00", "44")
    ]


def test_a_time_point_of_one_patient_gets_the_name_too(tmp_path):
    for patient in "AB":
        image(tmp_path / patient / "scan" / "t1c.nii.gz")
    image(tmp_path / "A" / "followup" / "t1c.nii.gz")
    assert [study.id for study in find_studies(tmp_path)] == ["A_followup", "A_scan", "B_scan"]


def test_the_same_id_in_two_places_is_refused(tmp_path):
    for part in ("train", "val"):
        image(tmp_path / part / "BraTS-1" / "BraTS-1-t1c.nii.gz", len(part))
    with pytest.raises(InputError, match="Two studies are called BraTS-1: train/BraTS-1/"):
        find_studies(tmp_path)


def test_derived_files_below_a_study_are_left_aside_with_a_notice(tmp_path, caplog):
    for patient in "AB":
        for name in ("t1", "t1c", "flair"):
            image(tmp_path / patient / f"{patient}_{name}.nii.gz", len(name))
        for name in ("SegmentationsForQC/deep/one", "elsewhere"):
            image(tmp_path / patient / name / "_t1.nii.gz")
    with caplog.at_level(logging.WARNING, "glimpseg"):
        contents = tree_contents(tmp_path)
    assert [entry.id for entry in contents.entries] == ["A", "B"]
    assert not any(entry.problem for entry in contents.entries)
    assert "A: the images in SegmentationsForQC/deep/one are taken for derived files" in caplog.text
    assert contents.unused.count("_t1.nii.gz is not used: it lies in a folder below the study A.") == 2


def test_a_stray_image_above_studies_does_not_hide_them(tmp_path):
    image(tmp_path / "atlas_t1.nii.gz")
    for patient in "AB":
        image(tmp_path / patient / f"{patient}_t1.nii.gz")
    assert {study.id for study in find_studies(tmp_path)} >= {"A", "B"}


# dataset.json


def test_the_files_of_the_key_dataset_are_read(tmp_path):
    image(tmp_path / "scans" / "x1.nii.gz")
    image(tmp_path / "scans" / "x2.nii.gz")
    label(tmp_path / "scans" / "y.nii.gz")
    tree = {
        "channel_names": {"0": "FLAIR", "1": "T1w-Gd"},
        "labels": {"background": 0, "NCR": 1, "ED": 2, "ET": 3},
        "dataset": {"P1": {"images": ["scans/x1.nii.gz", "scans/x2.nii.gz"], "label": "scans/y.nii.gz"}},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(tree))
    (found,) = find_studies(tmp_path)
    assert (found.id, found.available, found.reference.name) == ("P1", T1C | FLAIR, "y.nii.gz")
    assert found.images[FLAIR].name == "x1.nii.gz"


@pytest.mark.parametrize(
    ("tree", "missing"),
    [
        ({"dataset": {"P": {"images": ["a.nii.gz"]}}}, "channel_names"),
        ({"channel_names": {"0": "T1"}, "cases": {}}, "the key 'dataset'"),
    ],
)
def test_a_key_that_is_missing_is_named(tmp_path, tree, missing):
    (tmp_path / "dataset.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=rf"dataset.json lacks.*{missing}"):
        find_studies(tmp_path)
