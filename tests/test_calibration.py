"""Reliability, calibration error and Brier score by hand and against MONAI."""

import warnings

import numpy as np
import pytest
import torch

from glimpseg import metrics


@pytest.fixture(scope="module")
def monai_metrics():
    """MONAI is imported when its numbers are wanted: that takes seconds, and it warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import monai.metrics
    return monai.metrics


def forecast(seed, voxels=5000):
    """Probabilities, and what came of them: more often than foretold."""
    rng = np.random.default_rng(seed)
    probability = rng.uniform(size=voxels).astype(np.float32)
    return probability, rng.uniform(size=voxels) < probability**0.7


def test_certain_and_right_is_calibrated():
    truth = np.array([True, False, True])
    assert (metrics.ece(truth.astype(float), truth), metrics.brier(truth.astype(float), truth)) == (0, 0)


def test_certain_and_wrong_is_the_worst():
    truth = np.array([True, False, True])
    assert (metrics.ece(1.0 - truth, truth), metrics.brier(1.0 - truth, truth)) == (1, 1)


def test_a_half_for_a_mask_that_is_true_by_half_is_calibrated_but_says_little():
    half, truth = np.full((4, 4), 0.5, np.float32), np.indices((4, 4))[0] < 2
    assert (metrics.ece(half, truth), metrics.brier(half, truth)) == (0, 0.25)


def test_calibration_of_four_voxels_is_as_by_hand():
    # Two bins. Below a half: mean 0.2, none true. Above: mean 0.8, a half true. 2/4 * 0.2 + 2/4 * 0.3.
    probability, truth = np.array([0.1, 0.3, 0.7, 0.9]), np.array([False, False, True, False])
    assert metrics.ece(probability, truth, bins=2) == pytest.approx(0.25)
    # (0.01 + 0.09 + 0.09 + 0.81) / 4.
    assert metrics.brier(probability, truth) == pytest.approx(0.25)


def test_errors_in_two_bins_do_not_make_up_for_each_other():
    assert metrics.ece(np.array([0.2, 0.8]), np.array([True, False]), bins=2) == pytest.approx(0.8)


@pytest.mark.parametrize("bins", [10, 15, 20])
@pytest.mark.parametrize("seed", range(5))
def test_ece_is_monais(monai_metrics, seed, bins):
    probability, truth = forecast(seed)
    theirs = monai_metrics.CalibrationErrorMetric(num_bins=bins)
    theirs(*(torch.from_numpy(values).float()[None, None] for values in (probability, truth)))
    assert metrics.ece(probability, truth, bins) == pytest.approx(theirs.aggregate().item(), rel=1e-4)


def test_the_curve_has_a_point_for_each_bin_that_holds_a_voxel():
    found = metrics.reliability(np.array([0.1, 0.2, 0.9]), np.array([True, False, True]), bins=4)
    np.testing.assert_allclose(found.curve, [[0.15, 0.9], [0.5, 1.0]])


def test_a_probability_of_one_belongs_to_the_last_bin():
    found = metrics.reliability(np.array([0.0, 1.0]), np.array([False, True]), bins=5)
    assert found.voxels.tolist() == [1, 0, 0, 0, 1]


def test_cases_added_up_are_the_voxels_of_all():
    one, other = forecast(1, 300), forecast(2, 700)
    together = metrics.reliability(*(np.concatenate(parts) for parts in zip(one, other, strict=True)))
    added = metrics.reliability(*one) + metrics.reliability(*other)
    assert flat(added) == pytest.approx(flat(together))


def test_a_reliability_survives_being_written_and_read():
    found = metrics.reliability(*forecast(3))
    assert flat(metrics.Reliability.from_lists(found.as_lists())) == flat(found)


def flat(reliability):
    return np.concatenate([np.ravel(values) for values in reliability.as_lists().values()]).tolist()


def test_there_is_no_calibration_without_voxels():
    nothing = np.zeros(0), np.zeros(0, bool)
    assert np.isnan([metrics.ece(*nothing), metrics.brier(*nothing)]).all()
