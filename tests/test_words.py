"""Modalities, subsets, labels, regions and conventions."""

import itertools

import numpy as np
import pytest

from glimpseg.errors import InputError, UsageError
from glimpseg.modality import ALL, SUBSETS, Modality, from_flags, parse, subsets_of, to_flags
from glimpseg.region import CONVENTIONS, Label, Region, detect_convention, whole_numbers


def test_the_fifteen_subsets_are_all_there_is():
    every = {ALL & ~sum_of(left_out) for n in range(4) for left_out in itertools.combinations(Modality, n)}
    assert set(SUBSETS) == every
    assert len(SUBSETS) == 15


def sum_of(modalities):
    total = Modality(0)
    for modality in modalities:
        total |= modality
    return total


def test_singles_come_first_and_all_last():
    assert [len(subset) for subset in SUBSETS] == [1] * 4 + [2] * 6 + [3] * 4 + [4]


@pytest.mark.parametrize("subset", SUBSETS)
def test_key_and_mask_name_the_same_subset(subset):
    assert parse(subset.key) == from_flags(to_flags(subset)) == subset


@pytest.mark.parametrize(
    ("text", "subset"),
    [("T1ce, FLAIR", Modality.T1C | Modality.FLAIR), ("t2f+t1n", Modality.T1 | Modality.FLAIR), ("all", ALL)],
)
def test_every_spelling_of_the_releases_is_understood(text, subset):
    assert parse(text) == subset


@pytest.mark.parametrize("text", ["", "t3", "t1+", "flair+dwi"])
def test_a_word_that_is_no_sequence_is_refused(text):
    with pytest.raises(UsageError, match="not an MRI sequence"):
        parse(text)


@pytest.mark.parametrize("available", SUBSETS)
def test_a_study_allows_exactly_the_subsets_of_what_it_has(available):
    assert len(subsets_of(available)) == 2 ** len(available) - 1


def test_whole_tumour_is_everything_but_the_cavity():
    assert Region.WT.mask(np.array([0, 1, 2, 3, 4])).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("numbers", "layout", "name"),
    [
        ({1, 2, 4}, "brats2021", "brats2021"),
        ({1, 2}, "brats2021", "brats2021"),
        ({1, 2, 3}, "brats2023", "brats2023"),
        ({1, 2, 3, 4}, "brats2023", "brats2024"),
        ({1, 2}, None, "brats2021"),
    ],
)
def test_a_convention_is_read_from_labels_and_layout(numbers, layout, name):
    found = detect_convention(numbers, layout)
    assert {n: found.meaning[n] for n in numbers} == {n: CONVENTIONS[name].meaning[n] for n in numbers}


@pytest.mark.parametrize(
    ("numbers", "layout"), [({1, 2, 4}, None), ({1, 2, 3}, None), ({1, 2, 3, 4}, None), ({1, 2, 4}, "brats2023")]
)
def test_labels_that_could_mean_two_things_are_not_guessed(numbers, layout):
    with pytest.raises(InputError, match="Name the convention"):
        detect_convention(numbers, layout)


def test_a_convention_with_two_numbers_for_a_label_is_not_written():
    with pytest.raises(InputError, match="can only be read"):
        CONVENTIONS["brats2015"].write(np.array([1]))


def test_a_number_outside_every_convention_is_named():
    with pytest.raises(InputError, match=r"\[5\]"):
        detect_convention({5}, None)


def test_four_is_tumour_in_2021_and_cavity_in_2024():
    four = np.array([4])
    assert CONVENTIONS["brats2021"].read(four)[0] == Label.ET
    assert CONVENTIONS["brats2024"].read(four)[0] == Label.RC


def test_non_enhancing_core_of_2015_joins_necrosis():
    assert CONVENTIONS["brats2015"].read(np.array([1, 2, 3, 4])).tolist() == [1, 2, 1, 3]


@pytest.mark.parametrize("name", ["brats2021", "brats2023", "brats2024"])
def test_labels_survive_being_written_and_read(name):
    convention = CONVENTIONS[name]
    labels = np.array([0, *sorted(set(convention.meaning.values()))], np.uint8)
    assert convention.read(convention.write(labels)).tolist() == labels.tolist()


def test_a_label_without_a_number_is_refused():
    with pytest.raises(InputError, match="RC has no number"):
        CONVENTIONS["brats2021"].write(np.array([4]))


@pytest.mark.parametrize("value", [0.5, 3.9, np.nan, 1e9])
def test_interpolated_labels_are_refused(value):
    with pytest.raises(InputError, match="whole numbers"):
        whole_numbers(np.array([0.0, value]))


def test_labels_stored_as_floats_are_accepted_within_a_thousandth():
    assert whole_numbers(np.array([0.9995, 2.0])).tolist() == [1, 2]
