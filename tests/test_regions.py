"""Regions and the numbers of label files, as the releases' own pages describe them."""

import numpy as np
import pytest

from glimpseg.errors import InputError, UsageError
from glimpseg.region import (
    CONVENTIONS,
    Convention,
    Label,
    Region,
    convention_named,
    convention_of,
    detect_convention,
    whole_numbers,
)

NCR, ED, ET, RC = Label.NCR, Label.ED, Label.ET, Label.RC


def test_labels_have_the_numbers_of_brats_2024():
    assert [(label.name, int(label)) for label in Label] == [("NCR", 1), ("ED", 2), ("ET", 3), ("RC", 4)]


@pytest.mark.parametrize(
    ("region", "title", "inside"),
    #                                    0  1  2  3  4
    [
        (Region.WT, "whole tumour", [False, True, True, True, False]),
        (Region.TC, "tumour core", [False, True, False, True, False]),
        (Region.ET, "enhancing tumour", [False, False, False, True, False]),
        (Region.RC, "resection cavity", [False, False, False, False, True]),
    ],
)
def test_a_region_is_the_union_of_its_labels(region, title, inside):
    assert region.mask(np.array([[0, 1, 2, 3, 4]])).tolist() == [inside]
    assert region.title == title


# Conventions

RELEASES = {
    # BraTS 2013 to 2016: necrosis, oedema, non-enhancing and enhancing tumour.
    "brats2015": {1: NCR, 2: ED, 3: NCR, 4: ET},
    # BraTS 2017 to 2021, FeTS: necrosis with non-enhancing tumour, oedema, enhancing tumour.
    "brats2021": {1: NCR, 2: ED, 4: ET},
    # BraTS 2023: NCR, SNFH, ET.
    "brats2023": {1: NCR, 2: ED, 3: ET},
    # BraTS 2024 after treatment: NETC, SNFH, ET, RC.
    "brats2024": {1: NCR, 2: ED, 3: ET, 4: RC},
    # BraTS-PEDs 2024: ET, NET, cyst, oedema.
    "pediatric2024": {1: ET, 2: NCR, 3: NCR, 4: ED},
    # Decathlon, task 1: oedema, non-enhancing tumour, enhancing tumour.
    "msd": {1: ED, 2: NCR, 3: ET},
}


@pytest.mark.parametrize("name", RELEASES)
def test_numbers_mean_what_the_release_says(name):
    assert dict(CONVENTIONS[name].meaning) == RELEASES[name]
    numbers = np.array([[0, *RELEASES[name]]])
    labels = CONVENTIONS[name].read(numbers)
    assert labels.tolist() == [[0, *RELEASES[name].values()]]
    assert labels.dtype == np.uint8


def test_every_convention_is_found_under_its_name():
    assert {name: convention.name for name, convention in CONVENTIONS.items()} == {name: name for name in RELEASES}


@pytest.mark.parametrize(
    ("name", "regions"),
    [("brats2021", ["WT", "TC", "ET"]), ("brats2024", ["WT", "TC", "ET", "RC"]), ("msd", ["WT", "TC", "ET"])],
)
def test_regions_that_can_occur_are_those_whose_labels_have_a_number(name, regions):
    assert [region.name for region in CONVENTIONS[name].regions] == regions


def test_without_oedema_there_is_no_whole_tumour():
    assert convention_of({1: NCR, 2: ET}).regions == (Region.TC, Region.ET)


@pytest.mark.parametrize(
    ("name", "numbers"), [("brats2021", [0, 1, 2, 4]), ("brats2023", [0, 1, 2, 3]), ("msd", [0, 2, 1, 3])]
)
def test_labels_are_written_by_the_releases_numbers(name, numbers):
    written = CONVENTIONS[name].write(np.array([[0, NCR, ED, ET]]))
    assert written.tolist() == [numbers]
    assert written.dtype == np.uint8


def test_a_number_that_is_unknown_is_refused_with_all_that_are_known():
    with pytest.raises(InputError) as refused:
        CONVENTIONS["brats2021"].read(np.array([0, 3, 1, 5]), "seg.nii.gz")
    assert str(refused.value) == (
        "seg.nii.gz holds the labels [3, 5], which brats2021 does not know (it has [1, 2, 4]). Name the right "
        "convention: brats2015, brats2021, brats2023, brats2024, pediatric2024, msd."
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("brats2015", "brats2015 has two numbers for one label, so it can only be read. Choose another."),
        ("brats2023", "RC has no number under brats2023. Choose another layout."),
    ],
)
def test_labels_that_cannot_be_written_are_refused(name, message):
    with pytest.raises(InputError) as refused:
        CONVENTIONS[name].write(np.array([0, 1, 4]))
    assert str(refused.value) == message


# Conventions by name


@pytest.mark.parametrize("name", RELEASES)
def test_a_known_convention_is_named(name):
    assert convention_named(name) is CONVENTIONS[name]


@pytest.mark.parametrize("text", ["7=RC,1=ED,255=NCR", " 1=ED , 255=NCR, 7=RC "])
def test_a_convention_can_be_spelled_out(text):
    found = convention_named(text)
    assert dict(found.meaning) == {1: ED, 7: RC, 255: NCR}
    assert (found.name, found.layouts) == ("1=ED,7=RC,255=NCR", ())


def test_a_spelled_convention_that_is_a_known_one_has_its_name():
    assert convention_named("3=ET,2=ED,1=NCR") is CONVENTIONS["brats2023"]


@pytest.mark.parametrize(
    "text", ["brats2022", "0=ED", "256=ED", "1=WT", "1", "x=ED", "-1=ED", "1=ED,", "1=ED;2=NCR", "1=ed", ""]
)
def test_a_text_that_is_no_convention_is_refused(text):
    with pytest.raises(UsageError) as refused:
        convention_named(text)
    assert str(refused.value) == (
        f"'{text}' is not a label convention. Choose one of brats2015, brats2021, brats2023, brats2024, pediatric2024, "
        "msd, or say what each number means, such as 1=ED,2=NCR,3=ET."
    )


# Whole numbers


def test_integers_are_taken_as_they_are():
    found = whole_numbers(np.array([300, -1], np.int16))
    assert (found.tolist(), found.dtype) == ([300, -1], np.int64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_rounded_within_a_thousandth(dtype):
    found = whole_numbers(np.array([0.9995, 2.0005, -0.0005, 255.0], dtype))
    assert (found.tolist(), found.dtype) == ([1, 2, 0, 255], np.int64)


@pytest.mark.parametrize(
    ("values", "worst"),
    [
        ([0, 1.25, 2.1, 5.0011], "1.25"),  # the farthest from a whole number
        ([0, 0.998], "0.998"),
        ([0, np.nan], "NaN or infinity"),
        ([0, -np.inf], "NaN or infinity"),
    ],
)
def test_values_between_whole_numbers_are_refused(values, worst):
    with pytest.raises(InputError) as refused:
        whole_numbers(np.array(values), "seg.nii.gz")
    assert str(refused.value) == (
        f"seg.nii.gz should hold whole numbers but holds {worst}. Was it interpolated, or is it an image? "
        "Resample label maps with nearest neighbour."
    )


@pytest.mark.parametrize("value", [256.0, -256.0])
def test_floats_beyond_a_byte_are_an_image(value):
    with pytest.raises(InputError, match="is it an image"):
        whole_numbers(np.array([0, value]))


@pytest.mark.parametrize("read", [whole_numbers, CONVENTIONS["msd"].read])
def test_a_file_is_named_where_its_name_is_known(read):
    with pytest.raises(InputError, match=r"^the label map should hold whole numbers but holds 0\.5"):
        read(np.array([0.5]))
    with pytest.raises(InputError, match=r"^seg\.nii\.gz should hold whole numbers but holds 0\.5"):
        read(np.array([0.5]), "seg.nii.gz")


def test_numbers_without_a_file_are_those_of_the_label_map():
    with pytest.raises(InputError, match=r"^the label map holds the labels "):
        CONVENTIONS["msd"].read(np.array([9]))
    with pytest.raises(InputError, match=r"^the label map holds the labels "):
        detect_convention({9}, "msd")


def test_an_empty_array_is_a_label_map_of_nothing():
    assert whole_numbers(np.zeros(0)).tolist() == []


# Conventions from labels and layout


@pytest.mark.parametrize(
    ("numbers", "layout", "name"),
    [
        ({0, 1, 2, 3}, "brats2023", "brats2023"),
        ({1, 2, 3}, "msd", "msd"),
        ({1, 2, 3, 4}, "brats2015", "brats2015"),
        ({1, 2, 4}, "brats2015", "brats2015"),
        # Children's: a 4 exists in 2024 alone.
        ({1, 4}, "pediatric", "pediatric2024"),
        # Nothing but background: of two that know three numbers, the layout's own.
        ({0}, "brats2023", "brats2023"),
        (set(), "brats2021", "brats2021"),
        # 1 and 2 mean the same wherever BraTS is meant.
        ({2}, None, "brats2021"),
    ],
)
def test_a_convention_follows_from_numbers_and_layout(numbers, layout, name):
    assert detect_convention(numbers, layout).name == name


def test_the_first_and_the_second_release_for_children_are_not_told_apart_by_a_1():
    with pytest.raises(InputError) as refused:
        detect_convention({1}, "pediatric", "The archive")
    assert str(refused.value) == (
        "The archive holds the labels [1], which mean different things under brats2023 and pediatric2024. Name the "
        "convention (--labels)."
    )


@pytest.mark.parametrize(
    ("numbers", "layout", "message"),
    [
        (
            {9, 5},
            "msd",
            "The archive holds the labels [5, 9], which no convention of the layout msd explains (msd: [1, 2, 3]). "
            "Correct the file or name the convention.",
        ),
        (
            {5},
            None,
            "The archive holds the labels [5], which no convention known here explains (brats2015: [1, 2, 3, 4]; "
            "brats2021: [1, 2, 4]; brats2023: [1, 2, 3]; brats2024: [1, 2, 3, 4]). Correct the file or name the "
            "convention.",
        ),
    ],
)
def test_numbers_that_nothing_explains_are_listed(numbers, layout, message):
    with pytest.raises(InputError) as refused:
        detect_convention(numbers, layout, "The archive")
    assert str(refused.value) == message


def test_a_convention_of_ones_own_reads_and_writes():
    own = Convention("own", {5: ET, 6: RC}, ())
    assert own.read(np.array([0.0, 5.0, 6.0])).tolist() == [0, 3, 4]
    assert own.write(np.array([0, 3, 4])).tolist() == [0, 5, 6]
