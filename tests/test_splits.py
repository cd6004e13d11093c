"""The published lists are whole, disjoint and found under the names that releases give."""

import hashlib
from importlib import resources

import pytest

from glimpseg.data import splits
from glimpseg.errors import InputError, UsageError
from glimpseg.study import Study

COUNTS = {
    "brats2015": (242, 12, 20),
    "brats2018-1": (199, 29, 57),
    "brats2018-2": (199, 29, 57),
    "brats2018-3": (199, 29, 57),
    "brats2020": (219, 50, 100),
    "brats2021": (876, 125, 250),
    "brats2023-imfuse": (875, 125, 251),
}


def studies(*ids):
    return [Study(name, {}) for name in ids]


@pytest.mark.parametrize("split", splits.SPLITS)
def test_lists_have_the_published_lengths(split):
    assert tuple(len(splits.case_ids(f"{split}/{part}")) for part in splits.PARTS) == COUNTS[split]


@pytest.mark.parametrize("split", splits.SPLITS)
def test_no_case_is_in_two_parts_of_a_split(split):
    ids = [member for part in splits.PARTS for member in splits.case_ids(f"{split}/{part}")]
    assert len(set(ids)) == len(ids)


def test_the_test_lists_of_2018_hold_137_cases():
    ids = [member for fold in (1, 2, 3) for member in splits.case_ids(f"brats2018-{fold}/test")]
    assert (len(ids), len(set(ids))) == (171, 137)


def test_no_patient_of_2023_is_in_two_parts():
    patients = [{m.rsplit("-", 1)[0] for m in splits.case_ids(f"brats2023-imfuse/{part}")} for part in splits.PARTS]
    assert not (patients[0] & patients[1] | patients[0] & patients[2] | patients[1] & patients[2])


def test_every_list_has_a_checksum_and_no_other():
    place = resources.files("glimpseg.data.splits")
    files = {entry.name for entry in place.iterdir() if entry.name.endswith(".txt")}
    sums = dict(reversed(line.split()) for line in place.joinpath("SHA256SUMS").read_text().splitlines())
    assert set(sums) == files
    assert all(hashlib.sha256(place.joinpath(name).read_bytes()).hexdigest() == sums[name] for name in files)


def test_a_changed_list_is_noticed(monkeypatch):
    monkeypatch.setattr(splits, "_checksums", lambda: {"brats2020-test.txt": "0" * 64})
    with pytest.raises(InputError, match="checksum differs"):
        splits.case_ids("brats2020/test")


def test_an_unknown_list_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'brats2020/test'"):
        splits.case_ids("brats2020/tests")


def test_folders_are_found_without_the_grade_that_the_list_puts_before_them():
    wanted = splits.case_ids("brats2020/test")[0]
    assert wanted == "HG_BraTS20_Training_001"
    found = splits.select_studies(studies("BraTS20_Training_002", "BraTS20_Training_001"), "brats2020/test")
    assert [study.id for study in found] == ["BraTS20_Training_001"]


def test_cases_of_2015_that_share_a_number_are_told_apart_by_grade():
    everyone = studies(*(member for part in splits.PARTS for member in splits.case_ids(f"brats2015/{part}")))
    for part in splits.PARTS:
        wanted = splits.case_ids(f"brats2015/{part}")
        assert sorted(study.id for study in splits.select_studies(everyone, f"brats2015/{part}")) == sorted(wanted)


def test_a_number_that_two_patients_share_is_refused_without_a_grade():
    with pytest.raises(InputError, match=r"LG_brats_2013_pat0002_1 or HG_brats_2013_pat0002_1"):
        splits.select_studies(studies("brats_2013_pat0002_1"), "brats2015/test")


def test_a_grade_that_only_the_folder_has_does_not_matter():
    found = splits.select_studies(studies("HG_brats2021_00000"), "brats2021/test")
    assert [study.id for study in found] == ["HG_brats2021_00000"]


def test_missing_studies_are_counted(caplog):
    splits.select_studies(studies("BraTS20_Training_001"), "brats2020/test")
    assert "Only 1 of the 100 cases of brats2020/test were found" in caplog.text
    assert caplog.text.count("BraTS20_Training_") == 3


def test_a_whole_list_is_taken_without_a_word(caplog):
    ids = splits.case_ids("brats2021/val")
    assert len(splits.select_studies(studies(*reversed(ids)), "brats2021/val")) == 125
    assert not caplog.text


def test_nothing_of_a_list_is_an_error():
    with pytest.raises(InputError, match="BraTS2021_00000"):
        splits.select_studies(studies("PHANTOM-1"), "brats2021/test")
