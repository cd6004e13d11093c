"""Every metric of a few voxels, worked out by hand."""

import math

import numpy as np
import pytest

from glimpseg.data.preprocess import Prepared, brain_of
from glimpseg.evaluation.scoring import Reference
from glimpseg.modality import Modality
from glimpseg.region import Region
from glimpseg.results.scores import METRICS
from glimpseg.volume import Grid, Volume

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
SHAPE = (12, 10, 8)
"""Voxels of 1 x 2 x 3 mm, so 0.006 ml; 960 of them."""
DIAGONAL_MM = math.sqrt(12**2 + 20**2 + 24**2)
NCR, ED, ET = 1, 2, 3
REGIONS = (Region.WT, Region.TC, Region.ET)
ALL_BUT_CALIBRATION = [name for name in METRICS if name not in ("ece", "brier")]


def volume(*parts, dtype=np.uint8, affine=AFFINE):
    """A volume of (place, value) pairs, 0 elsewhere."""
    voxels = np.zeros(SHAPE, dtype)
    for place, value in parts:
        voxels[place] = value
    return Volume(voxels, affine)


def prepared(reference, inside=None, corner=(0, 0, 0), shape=SHAPE):
    """A study whose working grid is a window of its own grid."""
    affine = AFFINE.copy()
    affine[:3, 3] = AFFINE[:3, :3] @ np.array(corner)
    return Prepared(
        id="S1",
        image=np.zeros((4, *shape), np.float32),
        inside=np.ones((4, *shape), bool) if inside is None else inside,
        available=Modality.T1C,
        target=None,
        grid=Grid(shape, affine),
        own=Grid(SHAPE, AFFINE),
        reference=reference,
    )


def rated(reference, predicted, wanted=ALL_BUT_CALIBRATION, probabilities=None, **place):
    case = Reference(prepared(reference, **place), REGIONS, wanted)
    return {found.name: found for found in case.score(predicted, probabilities)}


# A row of voxels along x, 1 mm apart: the reference has ET at 3 4 5 6 and NCR at 7 8, the prediction ET at 5 6 7 8.
ROW = volume((np.s_[3:7, 3, 3], ET), (np.s_[7:9, 3, 3], NCR))
SHIFTED = volume((np.s_[5:9, 3, 3], ET))


def test_every_metric_of_a_region_that_was_found_in_part():
    # WT: 4 of 6 found, nothing beside. Distances from the prediction: 0 0 0 0; from the reference: 2 1 0 0 0 0.
    found = rated(ROW, SHIFTED)["WT"]
    assert found.values == pytest.approx(
        {
            "dice": 0.8,  # 2 x 4 / (4 + 6)
            "hd95": 1.75,  # of 0 0 0 0 1 2 at place 0.95 x 5 = 4.75
            "hd95_pooled": 1.55,  # of eight 0, 1 and 2 at place 0.95 x 9 = 8.55
            "surface_dice_1mm": 0.9,  # all but the one at 2 mm
            "surface_dice_2mm": 1.0,
            "lesion_dice": 1.0,  # 6 x 6 mm3 is below 50: no lesion, and nothing false
            "lesion_hd95": 0.0,
            "volume_error": -0.012,  # 2 voxels of 0.006 ml too few
            "sensitivity": 4 / 6,
            "specificity": 1.0,
        }
    )
    assert (found.predicted_ml, found.reference_ml) == pytest.approx((0.024, 0.036))
    assert found.reliability is None


def test_every_metric_of_a_region_that_was_moved():
    # ET: 3 4 5 6 against 5 6 7 8. Distances 0 0 1 2 in both directions.
    found = rated(ROW, SHIFTED)["ET"]
    assert found.values == pytest.approx(
        {
            "dice": 0.5,  # 2 x 2 / (4 + 4)
            "hd95": 1.85,  # of 0 0 1 2 at place 0.95 x 3 = 2.85
            "hd95_pooled": 2.0,  # of 0 0 0 0 1 1 2 2 at place 0.95 x 7 = 6.65
            "surface_dice_1mm": 0.75,  # 6 of 8
            "surface_dice_2mm": 1.0,
            "lesion_dice": 1.0,
            "lesion_hd95": 0.0,
            "volume_error": 0.0,
            "sensitivity": 0.5,
            "specificity": 1 - 2 / 956,  # 2 of the 960 - 4 voxels that are no ET
        }
    )
    assert (found.predicted_ml, found.reference_ml) == pytest.approx((0.024, 0.024))


def test_distances_are_in_millimetres_of_the_own_grid():
    # One voxel along z is 3 mm.
    found = rated(volume((np.s_[3, 3, 3], ET)), volume((np.s_[3, 3, 4], ET)))["ET"].values
    assert (found["hd95"], found["surface_dice_1mm"], found["surface_dice_2mm"]) == (3.0, 0.0, 0.0)


def test_lesions_count_alike():
    # Two lesions of 9 voxels, 54 mm3 each, apart by 10 mm along y: one found whole (Dice 1, 0 mm), one missed (0, 374).
    lesions = volume((np.s_[0:3, 0:3, 1], ET), (np.s_[9:12, 7:10, 6], ET))
    found = rated(lesions, volume((np.s_[0:3, 0:3, 1], ET)), ["lesion_dice", "lesion_hd95"])["ET"].values
    assert found == pytest.approx({"lesion_dice": 0.5, "lesion_hd95": 187.0})


def test_the_distance_of_a_lesion_is_in_millimetres():
    # 9 voxels in a plane, found one plane higher: 3 mm, no voxel in common.
    found = rated(volume((np.s_[4:7, 4:7, 3], ET)), volume((np.s_[4:7, 4:7, 4], ET)), ["lesion_dice", "lesion_hd95"])
    assert found["ET"].values == pytest.approx({"lesion_dice": 0.0, "lesion_hd95": 3.0})


EMPTY = volume()


def test_nothing_where_nothing_is_is_right():
    found = rated(EMPTY, EMPTY)["ET"].values
    assert math.isnan(found.pop("sensitivity"))
    assert found == {
        "dice": 1.0, "hd95": 0.0, "hd95_pooled": 0.0, "surface_dice_1mm": 1.0, "surface_dice_2mm": 1.0,
        "lesion_dice": 1.0, "lesion_hd95": 0.0, "volume_error": 0.0, "specificity": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("reference", "predicted"), [(ROW, EMPTY), (EMPTY, ROW)], ids=["missed", "invented"])
def test_one_empty_mask_is_as_far_as_the_grid_is_long(reference, predicted):
    found = rated(reference, predicted)["ET"].values
    assert (found["hd95"], found["hd95_pooled"]) == pytest.approx((DIAGONAL_MM, DIAGONAL_MM))
    assert (found["dice"], found["surface_dice_1mm"], found["surface_dice_2mm"]) == (0.0, 0.0, 0.0)


def test_only_what_was_asked_for_is_scored():
    assert set(rated(ROW, SHIFTED, ["dice"])["WT"].values) == {"dice"}
    assert set(rated(ROW, SHIFTED, ["hd95", "lesion_dice"])["WT"].values) == {"hd95", "lesion_dice"}
    assert set(rated(ROW, SHIFTED, ["surface_dice_2mm"])["WT"].values) == {"surface_dice_2mm"}
    assert set(rated(ROW, SHIFTED, ["lesion_hd95"])["WT"].values) == {"lesion_hd95"}
    assert set(rated(ROW, SHIFTED, ["hd95_pooled"])["WT"].values) == {"hd95_pooled"}
    assert set(rated(ROW, SHIFTED, ["surface_dice_1mm"])["WT"].values) == {"surface_dice_1mm"}


def test_regions_come_in_the_order_given_and_et_twice():
    case = Reference(prepared(ROW), (Region.ET, Region.WT), ["dice"])
    assert [found.name for found in case.score(SHIFTED, None)] == ["ET", "ET_pp", "WT"]


# ET after post-processing: below 0.5 ml (84 voxels of 0.006 ml) none


def test_little_predicted_et_counts_as_none_in_et_pp_alone():
    found = rated(ROW, SHIFTED)
    post = found["ET_pp"]
    assert (post.values["dice"], post.values["sensitivity"], post.values["specificity"]) == (0.0, 0.0, 1.0)
    assert post.values["volume_error"] == pytest.approx(-0.024)
    assert post.values["hd95"] == pytest.approx(DIAGONAL_MM)
    assert (post.predicted_ml, post.reference_ml) == pytest.approx((0.0, 0.024))
    assert post.reliability is None
    assert found["ET"].values["dice"] == 0.5


def test_little_et_where_none_is_is_forgiven_in_et_pp():
    found = rated(EMPTY, SHIFTED)
    assert (found["ET"].values["dice"], found["ET_pp"].values["dice"]) == (0.0, 1.0)


def test_much_predicted_et_stays_in_et_pp():
    # 12 x 7 x 1 = 84 voxels are 0.504 ml, 12 of them in a row of the reference.
    much = volume((np.s_[:, 0:7, 3], ET))
    found = rated(volume((np.s_[:, 0, 3], ET)), much)
    assert found["ET_pp"].values == found["ET"].values
    assert found["ET_pp"].values["dice"] == pytest.approx(2 * 12 / (84 + 12))
    assert (found["ET_pp"].predicted_ml, found["ET_pp"].reference_ml) == pytest.approx((0.504, 0.072))


def test_nothing_predicted_is_the_same_after_post_processing():
    found = rated(ROW, EMPTY)
    assert found["ET_pp"].values == found["ET"].values
    assert (found["ET_pp"].predicted_ml, found["ET_pp"].reference_ml) == pytest.approx((0.0, 0.024))


# Calibration


def calibration(wanted, labels=ROW):
    """Probabilities of ET in a brain of four voxels: 0.25 and 0.25 where no ET is, 0.75 where it is, 0.75 where not."""
    inside = np.zeros((4, *SHAPE), bool)
    inside[1, 1:3, 3, 3] = inside[3, 6:8, 3, 3] = True
    shown = volume((np.s_[:], 0.9), (np.s_[1:3, 3, 3], 0.25), (np.s_[6:8, 3, 3], 0.75), dtype=np.float32)
    return rated(ROW, labels, wanted, dict.fromkeys(REGIONS, shown), inside=inside)


def test_calibration_is_of_the_brain_alone():
    # ECE: bin of 0.25 |0.5 - 0| + bin of 0.75 |1.5 - 1|, over 4. Brier: (2 x 0.25^2 + 0.25^2 + 0.75^2) / 4.
    found = calibration(["dice", "ece", "brier"])["ET"]
    assert found.values == pytest.approx({"dice": 1.0, "ece": 0.25, "brier": 0.1875})
    assert found.reliability.voxels.sum() == 4
    assert found.reliability.observed.sum() == 1


def test_each_region_is_calibrated_against_its_own_reference():
    # WT holds both voxels at 0.75 (ET at 6, NCR at 7): |0.5 - 0| + |1.5 - 2|, over 4; (2 x 0.25^2 + 2 x 0.25^2) / 4.
    found = calibration(["ece", "brier"])["WT"]
    assert found.values == pytest.approx({"ece": 0.25, "brier": 0.0625})


def test_one_measure_of_calibration_may_be_asked_for_alone():
    assert set(calibration(["ece"])["WT"].values) == {"ece"}
    assert set(calibration(["brier"])["WT"].values) == {"brier"}


def test_probabilities_are_not_looked_at_unasked():
    found = calibration(["dice"])["WT"]
    assert (set(found.values), found.reliability) == ({"dice"}, None)


def test_calibration_without_probabilities_is_left_out():
    found = rated(ROW, SHIFTED, ["dice", "ece"])["WT"]
    assert (found.values, found.reliability) == ({"dice": 0.8}, None)


def test_et_after_post_processing_has_no_calibration():
    # Not where the rule changes nothing, because nothing was predicted, nor where it empties the mask.
    assert set(calibration(["dice", "ece", "brier"], EMPTY)["ET_pp"].values) == {"dice"}
    found = calibration(["dice", "ece", "brier"])["ET_pp"]
    assert (set(found.values), found.reliability) == ({"dice"}, None)


# The part of the grid that is worked on


def test_a_reference_beyond_the_working_grid_counts_as_missed():
    # The working grid holds x 4 to 11; the reference at x 3 lies outside. ET 4 5 6 found of 3 4 5 6.
    found = rated(ROW, volume((np.s_[4:7, 3, 3], ET)), corner=(4, 1, 1), shape=(8, 8, 6))["ET"]
    assert found.values["dice"] == pytest.approx(6 / 7)
    assert found.values["specificity"] == 1.0
    assert found.reference_ml == pytest.approx(0.024)


def test_every_label_of_a_reference_beyond_the_working_grid_counts():
    # The one voxel of NCR at the corner of the own grid is missed.
    reference = volume((np.s_[0, 0, 0], NCR), (np.s_[5, 3, 3], ET))
    found = rated(reference, volume((np.s_[5, 3, 3], ET)), corner=(4, 1, 1), shape=(8, 8, 6))["WT"]
    assert found.values["dice"] == pytest.approx(2 / 3)
    assert found.reference_ml == pytest.approx(0.012)


def test_a_prediction_at_the_edge_of_the_working_grid_counts():
    # x 11, y 8, z 6 is the last voxel of the working grid; the reference is far from it.
    found = rated(ROW, volume((np.s_[11, 8, 6], ET)), corner=(4, 1, 1), shape=(8, 8, 6))["ET"].values
    assert found["dice"] == 0.0
    assert found["specificity"] == pytest.approx(1 - 1 / 956)


def test_a_prediction_beyond_the_working_grid_is_an_error_of_ours():
    with pytest.raises(AssertionError, match="no prediction beyond what was shown"):
        rated(ROW, volume((np.s_[0, 0, 0], ET)), corner=(4, 1, 1), shape=(8, 8, 6))


def test_a_study_without_a_reference_is_not_scored():
    with pytest.raises(AssertionError, match="only studies with a reference are scored"):
        Reference(prepared(None), REGIONS, ["dice"])


def test_the_brain_is_what_any_sequence_shows():
    inside = np.zeros((4, 2, 2, 2), bool)
    inside[0, 0, 0, 0] = inside[3, 1, 1, 1] = True
    study = prepared(ROW, inside, corner=(4, 1, 1), shape=(2, 2, 2))
    assert np.argwhere(brain_of(study)).tolist() == [[4, 1, 1], [5, 2, 2]]
    assert brain_of(study).shape == SHAPE
    assert np.argwhere(brain_of(study, study.grid)).tolist() == [[0, 0, 0], [1, 1, 1]]
