"""How sure one segmentation is: estimates, ranges, mirrors and sentences, by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from glimpseg.data.preprocess import Prepared
from glimpseg.modality import ALL, Modality, parse
from glimpseg.region import Label, Region
from glimpseg.segmentation.passes import leave_one_out, mirrored, mirrored_inputs
from glimpseg.segmentation.uncertainty import (
    DiceEstimate,
    Member,
    RegionUncertainty,
    Uncertainty,
    calibrated,
    estimated_dice,
    region_tree,
    uncertainty_of,
)
from glimpseg.volume import Grid, Volume

NAN = math.nan
TENTH_ML = np.diag([10.0, 5, 2, 1])
"""Voxels of 100 mm^3, 0.1 ml."""


def labels(*values):
    """A label map of one row of voxels."""
    return Volume(np.array(values, np.uint8).reshape(-1, 1, 1), TENTH_ML)


# Temperature


@pytest.mark.parametrize(
    ("probability", "temperature", "after"),
    [
        (0.8, 2.0, 2 / 3),  # odds 4 become 2
        (0.8, 0.5, 16 / 17),  # odds 4 become 16
        (0.1, 2.0, 1 / 4),  # odds 1/9 become 1/3
        (0.5, 7.0, 0.5),
        (0.0, 3.0, 0.0),
        (1.0, 3.0, 1.0),
        (0.8, 1.0, 0.8),
    ],
)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_odds_become_their_root_by_temperature(probability, temperature, after, kind):
    found = calibrated(np.array([probability], kind), temperature)
    assert found.dtype == kind
    assert found[0] == pytest.approx(after, rel=1e-6)


def test_at_temperature_one_not_a_bit_changes():
    probability = np.array([0.1, 0.7], np.float32)
    assert calibrated(probability, 1.0) is probability


# The estimated Dice


def test_the_dice_to_expect_is_that_of_the_probabilities_with_the_mask():
    # 2 (0.9 + 0.5) / (0.9 + 0.5 + 0.4 + 0.1 + 2) = 2.8 / 3.9
    probability, mask = np.array([[0.9, 0.4], [0.5, 0.1]]), np.array([[True, False], [True, False]])
    assert estimated_dice(probability, mask) == pytest.approx(2.8 / 3.9)


def test_many_small_probabilities_are_summed_exactly():
    # 2^24 is where float32 stops counting by ones: 1 + 2^-25 + 2^-25 would stay 1.
    probability = np.array([1, 2.0**-25, 2.0**-25], np.float32)
    assert estimated_dice(probability, np.array([True, False, False])) == 2 / (2 + 2.0**-24)


def test_an_estimate_adds_up_parts_of_every_region():
    estimate = DiceEstimate()
    brain = np.array([1, 1, 0], bool).reshape(3, 1, 1)
    first = labels(Label.ET, Label.NCR, 0).voxels
    inside = {
        Region.ET: np.array([0.9, 0.3, 0.5], np.float32).reshape(3, 1, 1),
        Region.TC: np.array([0.8, 0.6, 0.5], np.float32).reshape(3, 1, 1),
    }
    estimate.add(first, inside, brain)
    # ET: 2 * 0.9 / (0.9 + 0.3 + 1). TC, of ET and NCR: 2 (0.8 + 0.6) / (0.8 + 0.6 + 2).
    assert estimate.dice == {Region.ET: pytest.approx(1.8 / 2.2), Region.TC: pytest.approx(2.8 / 3.4)}
    second = labels(0, 0, Label.ET).voxels
    estimate.add(second, inside, brain)
    # The third voxel is beyond the brain but in the mask, so that it counts.
    # ET: 2 (0.9 + 0.5) / (0.9 + 0.3 + 0.9 + 0.3 + 0.5 + 2). TC: 2 (1.4 + 0.5) / (1.4 + 1.9 + 3).
    assert estimate.dice == {Region.ET: pytest.approx(2.8 / 4.9), Region.TC: pytest.approx(3.8 / 6.3)}


def test_parts_are_summed_in_double_precision():
    # In float32 the 2^-25 would be lost beside the 1.
    probability = np.array([1, 2.0**-25, 2.0**-25], np.float32).reshape(3, 1, 1)
    estimate = DiceEstimate()
    estimate.add(labels(Label.ET, 0, 0).voxels, {Region.ET: probability}, np.ones((3, 1, 1), bool))
    assert estimate.dice[Region.ET] == 2 / (2 + 2.0**-24)


def test_of_a_region_that_was_not_found_no_dice_is_estimated():
    estimate = DiceEstimate()
    probability = np.full((2, 1, 1), 0.3, np.float32)
    estimate.add(labels(0, Label.ED).voxels, {Region.ET: probability}, np.ones((2, 1, 1), bool))
    assert math.isnan(estimate.dice[Region.ET])


# Mirrors and left-out sequences


def prepared(shape=(2, 3, 4)):
    """A study of which every voxel is another, on a turned grid."""
    image = np.arange(4 * math.prod(shape), dtype=np.float32).reshape(4, *shape)
    affine = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, 6], [0, 0, 4.0, 7], [0, 0, 0, 1]])
    target = np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)
    return Prepared("S", image, image % 3 == 0, ALL, target, Grid(shape, affine), Grid(shape, affine))


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_a_mirrored_study_has_every_voxel_at_the_place_where_it_was(axes):
    plain = prepared()
    look = mirrored(plain, axes)
    for place in np.ndindex(2, 3, 4):
        # Voxel i of n along a mirrored axis is number n - 1 - i.
        there = tuple(
            n - 1 - i if axis in axes else i for axis, (i, n) in enumerate(zip(place, (2, 3, 4), strict=True))
        )
        assert np.array_equal(look.image[:, *there], plain.image[:, *place])
        assert np.array_equal(look.inside[:, *there], plain.inside[:, *place])
        assert look.target[there] == plain.target[place]
        assert np.array_equal(look.grid.affine @ (*there, 1), plain.grid.affine @ (*place, 1))
    assert look.grid.shape == (2, 3, 4)
    assert look.own is plain.own
    assert look.image.flags.c_contiguous
    assert look.inside.flags.c_contiguous
    assert look.target.flags.c_contiguous


def test_a_study_without_a_reference_is_mirrored_too():
    bare = prepared()
    object.__setattr__(bare, "target", None)
    assert mirrored(bare, (0,)).target is None


def test_the_passes_of_a_level_are_every_mirror_once():
    plain = prepared()
    assert list(mirrored_inputs(plain, "none")) == []
    ((name, look),) = mirrored_inputs(plain, "quick")
    assert name == "mirrored left-right"
    assert np.array_equal(look.image, plain.image[:, ::-1])
    found = dict(mirrored_inputs(plain, "full"))
    assert list(found) == [
        "mirrored left-right",
        "mirrored front-back",
        "mirrored up-down",
        "mirrored left-right and front-back",
        "mirrored left-right and up-down",
        "mirrored front-back and up-down",
        "mirrored left-right and front-back and up-down",
    ]
    assert np.array_equal(found["mirrored front-back and up-down"].image, plain.image[:, :, ::-1, ::-1])


def test_each_sequence_is_left_out_once_if_another_remains():
    three = parse("t1+t2+flair")
    assert leave_one_out(three, "full") == {
        parse("t2+flair"): "without T1",
        parse("t1+flair"): "without T2",
        parse("t1+t2"): "without FLAIR",
    }
    assert leave_one_out(three, "quick") == {}
    assert leave_one_out(Modality.T2, "full") == {}
    assert len(leave_one_out(parse("t1+t2"), "full")) == 2


# Range and agreement


def test_the_range_and_the_agreement_are_those_of_all_passes():
    # The result has ET in 2 voxels and necrosis in one. One pass finds ET in 3, of which 2 are shared, and necrosis
    # elsewhere; one finds nothing.
    result = labels(Label.NCR, 0, Label.ET, Label.ET, 0, 0)
    one = labels(0, 0, Label.ET, Label.ET, Label.ET, Label.NCR)
    nothing = labels(0, 0, 0, 0, 0, 0)
    found = uncertainty_of(
        result,
        {Region.ET: 0.8, Region.WT: NAN},
        [("first", one), ("second", nothing)],
        level="full",
        calibrated=True,
    )
    assert (found.level, found.calibrated) == ("full", True)
    first, second = found.members
    assert (first.name, second.name) == ("first", "second")
    assert first.volumes_ml == pytest.approx({Region.ET: 0.3, Region.WT: 0.4})
    assert first.dice == pytest.approx({Region.ET: 4 / 5, Region.WT: 4 / 7})  # 2 * 2 / (2 + 3), 2 * 2 / (3 + 4)
    assert second.volumes_ml == {Region.ET: 0, Region.WT: 0}
    assert second.dice == {Region.ET: 0, Region.WT: 0}
    et, wt = found.regions[Region.ET], found.regions[Region.WT]
    assert (et.spread_ml, wt.spread_ml) == (pytest.approx((0, 0.3)), pytest.approx((0, 0.4)))
    assert (et.agreement, wt.agreement) == (pytest.approx(0.4), pytest.approx(2 / 7))  # means with 0
    assert et.estimated_dice == 0.8
    assert math.isnan(wt.estimated_dice)


def test_passes_that_find_nothing_either_agree():
    nothing = labels(0, 0)
    found = uncertainty_of(nothing, {Region.ET: NAN}, [("one", nothing)], level="quick", calibrated=False)
    assert found.regions[Region.ET].agreement == 1
    assert not found.calibrated


def test_without_other_passes_the_range_is_one_volume_and_nothing_agrees():
    found = uncertainty_of(labels(Label.ET, Label.ET), {Region.ET: 0.7}, [], level="none", calibrated=False)
    one = found.regions[Region.ET]
    assert one.spread_ml == pytest.approx((0.2, 0.2))
    assert math.isnan(one.agreement)


# Words and numbers


def doubt(estimated=0.874, low=1.24, high=3.26, agreement=0.554):
    return RegionUncertainty(estimated_dice=estimated, lowest_ml=low, highest_ml=high, agreement=agreement)


def uncertainty(calibrated=True):
    members = tuple(
        Member(name=name, volumes_ml={Region.WT: volume}, dice={Region.WT: dice})
        for name, volume, dice in (("mirrored left-right", 1.23456, 0.98765), ("without T2", 3.0, 0.5))
    )
    regions = {
        Region.WT: replace(doubt(), estimate_error=0.12),
        Region.TC: doubt(agreement=NAN),
        Region.ET: doubt(estimated=NAN, low=0, high=0.04),
    }
    return Uncertainty(level="full", calibrated=calibrated, regions=regions, members=members)


def test_the_sentences_of_a_study():
    assert uncertainty().sentences == [
        "This study, by calibrated probabilities and 3 passes (plain, mirrored left-right, without T2):",
        "  WT: estimated Dice 87 % (such estimates were 12 points off on average); 1.2 to 3.3 ml, agreement of the "
        "passes: Dice 55 %.",
        "  TC: estimated Dice 87 %; 1.2 to 3.3 ml.",
        "  ET: not found, so no Dice is estimated; 0.0 to 0.0 ml, agreement of the passes: Dice 55 %.",
    ]


def test_an_estimate_is_withheld_where_such_estimates_were_too_far_off():
    labels = Volume(np.full((2, 2, 2), Label.ET, np.uint8), np.eye(4))
    estimates, errors = {Region.WT: 0.8, Region.TC: 0.7, Region.ET: 0.6}, {Region.WT: 0.12, Region.ET: 0.131}
    found = uncertainty_of(labels, estimates, [], level="quick", calibrated=True, errors=errors)
    assert {region: one.withheld for region, one in found.regions.items()} == {
        Region.WT: False, Region.TC: False, Region.ET: True
    }  # fmt: skip
    assert [one.estimated_dice for one in found.regions.values()] == [0.8, 0.7, pytest.approx(NAN, nan_ok=True)]
    assert found.as_tree()["regions"]["ET"]["estimated_dice"] is None
    assert found.sentences[1:] == [
        "  WT: estimated Dice 80 % (such estimates were 12 points off on average); 0.0 to 0.0 ml.",
        "  TC: estimated Dice 70 %; 0.0 to 0.0 ml.",
        "  ET: no estimated Dice, because such estimates were 13 points off on average; 0.0 to 0.0 ml.",
    ]


def test_uncalibrated_probabilities_are_called_so():
    alone = Uncertainty(level="none", calibrated=False, regions={}, members=())
    assert alone.sentences == ["This study, by the network's own, uncalibrated probabilities and 1 passes (plain):"]


def test_the_numbers_are_kept_to_four_decimals_and_null_for_what_is_not_known():
    wt = {"estimated_dice": 0.874, "volume_low_ml": 1.24, "volume_high_ml": 3.26, "agreement": 0.554}
    tree = uncertainty(calibrated=False).as_tree()
    assert tree == {
        "level": "full",
        "calibrated": False,
        "regions": {
            "WT": wt,
            "TC": {**wt, "agreement": None},
            "ET": {**wt, "estimated_dice": None, "volume_low_ml": 0, "volume_high_ml": 0.04},
        },
        "members": [
            {"name": "mirrored left-right", "volume_ml": {"WT": 1.2346}, "dice": {"WT": 0.9877}},
            {"name": "without T2", "volume_ml": {"WT": 3.0}, "dice": {"WT": 0.5}},
        ],
    }
    assert region_tree(doubt(estimated=0.12346, low=2 / 3, high=NAN, agreement=1)) == {
        "estimated_dice": 0.1235, "volume_low_ml": 0.6667, "volume_high_ml": None, "agreement": 1,
    }  # fmt: skip
