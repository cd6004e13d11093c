"""Metrics against independent programs and numbers worked out by hand; their rules for empty masks."""

import sys
import warnings

import medpy.metric.binary
import numpy as np
import pytest
import surface_distance
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from glimpseg import metrics
from glimpseg.errors import InputError, UsageError
from glimpseg.metrics import surface

MM = (1.0, 1.0, 1.0)
SPACINGS = (MM, (0.9375, 0.9375, 1.2), (0.5, 0.5, 3.0), (2.0, 1.1, 3.3), (0.2, 0.7, 1.0))

shapes = hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=9)
pairs = shapes.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))
filled_pairs = pairs.filter(lambda pair: pair[0].any() and pair[1].any())
spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 3.3])] * 3)

EMPTY, LARGE, SMALL, VOXEL = 9.0, -0.02, 0.05, None
KINDS = [
    (SMALL, SMALL), (LARGE, LARGE), (0.0, SMALL), (LARGE, SMALL), (0.02, 0.02),
    (VOXEL, SMALL), (LARGE, VOXEL), (VOXEL, VOXEL), (0.03, LARGE), (EMPTY, SMALL),
]  # fmt: skip
"""Thresholds of two smoothed noises; large ones reach the array's border on all sides."""


def drawn(number):
    """Pair `number` of masks and its spacing: every kind meets every spacing."""
    rng = np.random.default_rng(number)
    masks = []
    for threshold in KINDS[number % len(KINDS)]:
        noise = ndimage.gaussian_filter(rng.normal(size=(30, 34, 28)), 3)
        masks.append(noise == noise.max() if threshold is VOXEL else noise > threshold)
    return *masks, SPACINGS[number // len(KINDS)]


NUMBERS = range(len(KINDS) * len(SPACINGS))
FILLED = [number for number in NUMBERS if EMPTY not in KINDS[number % len(KINDS)]]
ONE_EMPTY = [number for number in NUMBERS if number not in FILLED]


@pytest.fixture(scope="module")
def monai_metrics():
    """MONAI is imported when its numbers are wanted: that takes seconds, and it warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import monai.metrics
    return monai.metrics


def as_monai(*masks):
    return [torch.from_numpy(mask)[None, None] for mask in masks]


def directed_distances(a, b, spacing):
    """Between surfaces, in both directions, by scipy's transform of the whole array."""
    one, other = (mask & ~ndimage.binary_erosion(mask) for mask in (a, b))
    return [ndimage.distance_transform_edt(~to, sampling=spacing)[at] for at, to in ((one, other), (other, one))]


def box(shape, *sides):
    """A block of the grid, given by (start, stop) on each axis."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


# Overlap and volume


@given(pairs)
def test_dice_is_what_its_formula_says(pair):
    a, b = pair
    expected = 1.0 if not (a.any() or b.any()) else 2 * (a & b).sum() / (a.sum() + b.sum())
    assert metrics.dice(a, b) == pytest.approx(expected)


@given(pairs)
def test_dice_does_not_care_which_is_the_reference(pair):
    assert metrics.dice(*pair) == metrics.dice(*pair[::-1])


@given(filled_pairs)
def test_dice_agrees_with_medpy_where_medpy_is_defined(pair):
    assert metrics.dice(*pair) == pytest.approx(medpy.metric.binary.dc(*pair))


@given(pairs.filter(lambda pair: pair[1].any()))
def test_sensitivity_agrees_with_medpy_where_medpy_is_defined(pair):
    assert metrics.sensitivity(*pair) == pytest.approx(medpy.metric.binary.sensitivity(*pair))


@given(pairs.filter(lambda pair: not pair[1].all()))
def test_specificity_agrees_with_medpy_where_medpy_is_defined(pair):
    assert metrics.specificity(*pair) == pytest.approx(medpy.metric.binary.specificity(*pair))


PREDICTED, REFERENCE = box((4, 5, 5), (0, 2), (0, 1), (0, 5)), box((4, 5, 5), (0, 4), (0, 1), (0, 1))
"""10 and 4 voxels of 100; they share 2."""


def test_dice_of_a_drawing_is_as_by_hand():
    assert metrics.dice(PREDICTED, REFERENCE) == 2 * 2 / (10 + 4)


def test_sensitivity_of_a_drawing_is_as_by_hand():
    assert metrics.sensitivity(PREDICTED, REFERENCE) == 2 / 4


def test_specificity_of_a_drawing_is_as_by_hand():
    # 96 voxels are no tumour; 8 of them were predicted.
    assert metrics.specificity(PREDICTED, REFERENCE) == pytest.approx(88 / 96)


def test_specificity_of_a_crop_counts_the_whole_grid():
    assert metrics.specificity(PREDICTED, REFERENCE, voxels=1000) == pytest.approx(988 / 996)


def test_specificity_of_a_crop_is_that_of_the_padded_masks():
    whole = [np.pad(mask, 3) for mask in (PREDICTED, REFERENCE)]
    assert metrics.specificity(PREDICTED, REFERENCE, whole[0].size) == metrics.specificity(*whole)


@pytest.mark.parametrize("predicted", [np.zeros((2, 2, 2), bool), np.ones((2, 2, 2), bool)])
def test_there_is_no_sensitivity_without_a_reference(predicted):
    assert np.isnan(metrics.sensitivity(predicted, np.zeros((2, 2, 2), bool)))


def test_there_is_no_specificity_where_all_is_tumour():
    assert np.isnan(metrics.specificity(PREDICTED, np.ones_like(PREDICTED)))


def test_a_missed_tumour_has_no_sensitivity_left_but_all_specificity():
    empty = np.zeros_like(REFERENCE)
    assert (metrics.sensitivity(empty, REFERENCE), metrics.specificity(empty, REFERENCE)) == (0, 1)


@pytest.mark.parametrize(
    ("predicted", "reference", "millilitres"),
    [(PREDICTED, REFERENCE, 48.0), (REFERENCE, PREDICTED, -48.0), (PREDICTED & False, REFERENCE & False, 0.0)],
)
def test_the_error_of_volume_is_signed(predicted, reference, millilitres):
    # 6 voxels of 2 cm.
    assert metrics.volume_error_ml(predicted, reference, 8.0) == millilitres


@pytest.mark.parametrize(
    ("voxel_ml", "voxels", "left"), [(0.001, 499, 0), (0.001, 500, 500), (0.008, 62, 0), (0.008, 63, 63)]
)
def test_enhancement_below_half_a_millilitre_is_taken_for_none(voxel_ml, voxels, left):
    predicted = (np.arange(1000) < voxels).reshape(10, 10, 10)
    assert metrics.without_small_enhancement(predicted, voxel_ml).sum() == left


@pytest.mark.parametrize(
    "metric",
    [
        metrics.dice,
        metrics.sensitivity,
        metrics.specificity,
        metrics.brier,
        lambda a, b: metrics.volume_error_ml(a, b, 1.0),
        lambda a, b: metrics.hd95(a, b, MM),
        lambda a, b: metrics.hd95_pooled(a, b, MM),
        lambda a, b: metrics.surface_dice(a, b, MM, 1.0),
        lambda a, b: metrics.lesion_wise(a, b, MM),
    ],
)
def test_masks_of_other_shapes_are_refused(metric):
    with pytest.raises(InputError, match="shapes"):
        metric(np.zeros((3, 3, 3), bool), np.zeros((3, 3, 4), bool))


# Surfaces


@settings(max_examples=60)
@given(filled_pairs, spacings)
def test_hd95_is_the_larger_directed_percentile(pair, spacing):
    expected = max(np.percentile(d, 95) for d in directed_distances(*pair, spacing))
    assert metrics.hd95(*pair, spacing) == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("number", FILLED)
def test_hd95_is_monais(monai_metrics, number):
    a, b, spacing = drawn(number)
    theirs = monai_metrics.compute_hausdorff_distance(
        *as_monai(a, b), percentile=95, include_background=True, spacing=spacing
    )
    assert metrics.hd95(a, b, spacing) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize("number", FILLED)
def test_pooled_hd95_is_medpys(number):
    a, b, spacing = drawn(number)
    assert metrics.hd95_pooled(a, b, spacing) == pytest.approx(
        medpy.metric.binary.hd95(a, b, voxelspacing=spacing), abs=1e-5
    )


@pytest.mark.parametrize("number", FILLED)
def test_hd95_lies_about_a_voxel_at_most_from_deepminds(number):
    a, b, spacing = drawn(number)
    theirs = surface_distance.compute_robust_hausdorff(surface_distance.compute_surface_distances(b, a, spacing), 95)
    # Theirs has surfaces at corners of voxels, half a diagonal from ours at both ends: one in all, 0.56 measured. It
    # also weighs by area, which counts where distances spread as widely as they do to a single voxel: 1.10 measured.
    diagonals = 1.25 if VOXEL in KINDS[number % len(KINDS)] else 1.0
    assert metrics.hd95(a, b, spacing) == pytest.approx(theirs, abs=diagonals * np.linalg.norm(spacing))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("tolerance_mm", [1.0, 2.2])
@pytest.mark.parametrize("number", FILLED)
def test_surface_dice_is_monais(monai_metrics, number, tolerance_mm):
    a, b, spacing = drawn(number)
    theirs = monai_metrics.compute_surface_dice(
        *as_monai(a, b), class_thresholds=[tolerance_mm], include_background=True, spacing=spacing, use_subvoxels=False
    )
    assert metrics.surface_dice(a, b, spacing, tolerance_mm) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("number", ONE_EMPTY)
def test_drawn_pairs_with_an_empty_mask_have_the_diagonal(number):
    a, b, spacing = drawn(number)
    x, y, z = spacing
    assert metrics.hd95(a, b, spacing) == pytest.approx(((30 * x) ** 2 + (34 * y) ** 2 + (28 * z) ** 2) ** 0.5)


SURFACE_METRICS = {
    "hd95": metrics.hd95,
    "hd95_pooled": metrics.hd95_pooled,
    "surface_dice": lambda a, b, spacing: metrics.surface_dice(a, b, spacing, 1.0),
}
surface_metrics = pytest.mark.parametrize("metric", SURFACE_METRICS.values(), ids=SURFACE_METRICS)


@surface_metrics
@settings(max_examples=40)
@given(filled_pairs, spacings, st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 3))
def test_empty_surroundings_change_nothing(metric, pair, spacing, margins):
    a, b = (np.pad(mask, margins) for mask in pair)
    assert metric(a, b, spacing) == pytest.approx(metric(*pair, spacing))


@surface_metrics
@pytest.mark.parametrize("number", FILLED)
def test_a_distance_transform_finds_what_the_search_tree_finds(metric, number, monkeypatch):
    by_tree = metric(*drawn(number))
    monkeypatch.setattr(surface, "MANY_POINTS", 0)
    assert metric(*drawn(number)) == pytest.approx(by_tree, rel=1e-6)  # single precision where `edt` is installed


@surface_metrics
@pytest.mark.parametrize("number", FILLED[::5])
def test_the_fast_distance_transform_finds_what_scipys_finds(metric, number, monkeypatch):
    pytest.importorskip("edt")
    monkeypatch.setattr(surface, "MANY_POINTS", 0)
    fast = metric(*drawn(number))
    monkeypatch.setitem(sys.modules, "edt", None)
    assert metric(*drawn(number)) == pytest.approx(fast, rel=1e-6)


@surface_metrics
def test_order_in_memory_changes_nothing(metric):
    a, b, spacing = drawn(0)
    turned = [mask[::-1].transpose(2, 0, 1) for mask in (np.asfortranarray(a), b)]
    assert metric(*turned, (spacing[2], *spacing[:2])) == pytest.approx(metric(a, b, spacing))


@pytest.mark.parametrize("offset", range(12))
def test_a_surface_at_just_the_tolerance_is_within_it_wherever_it_lies(offset):
    # In floats, 3 * 1.1 - 2 * 1.1 is above 1.1.
    a, b = (box((20, 4, 4), (start, start + 4), (0, 4), (0, 4)) for start in (offset, offset + 1))
    assert metrics.surface_dice(a, b, (1.1, 1.1, 1.1), 1.1) == 1


def test_surface_dice_of_a_drawing_is_as_by_hand():
    # Two cubes of 3, all voxels but the middle on the surface, one moved by 2. On both sides the 9 voxels of the
    # shared layer are on both surfaces, but for its middle, which is 1 away; the next 8 are 1 away, the last 9 are 2.
    a, b = (box((9, 5, 5), (start, start + 3), (1, 4), (1, 4)) for start in (1, 3))
    assert metrics.surface_dice(a, b, MM, 1.0) == (9 + 8) / 26


@settings(max_examples=200)
@given(filled_pairs, spacings)
def test_pooled_hd95_is_never_above_hd95_but_for_interpolation(pair, spacing):
    bound = max(np.percentile(d, 95, method="higher") for d in directed_distances(*pair, spacing))
    assert metrics.hd95_pooled(*pair, spacing) <= bound + 1e-6


@pytest.mark.parametrize("number", FILLED)
def test_pooled_hd95_of_more_than_a_few_voxels_is_not_above_hd95(number):
    assert metrics.hd95_pooled(*drawn(number)) <= metrics.hd95(*drawn(number)) + 1e-9


def test_pooled_hd95_of_two_voxels_can_be_above_hd95():
    # Distances 1 and 0 on both sides: 0.95 of the way from 0 to 1; of 0, 0, 1, 1 the rank is 0.95 * 3 = 2.85, a 1.
    a, b = box((3, 1, 1), (0, 2), (0, 1), (0, 1)), box((3, 1, 1), (1, 3), (0, 1), (0, 1))
    assert (metrics.hd95(a, b, MM), metrics.hd95_pooled(a, b, MM)) == pytest.approx((0.95, 1.0))


def test_a_cropped_surface_that_says_where_it_begins_is_the_whole_one():
    mask, _, spacing = drawn(10)
    cropped = metrics.Surface(mask[5:25, 3:30], spacing, start=(5, 3, 0))
    whole = metrics.Surface(box(mask.shape, (5, 25), (3, 30), (0, 28)) & mask, spacing)
    np.testing.assert_array_equal(cropped.points_mm, whole.points_mm)


# Empty masks


def test_two_empty_masks_agree_perfectly():
    empty = np.zeros((4, 4, 4), bool)
    assert (metrics.dice(empty, empty), metrics.hd95(empty, empty, MM), metrics.surface_dice(empty, empty, MM, 1)) == (
        1,
        0,
        1,
    )


@pytest.mark.parametrize("swap", [False, True])
def test_a_missed_tumour_costs_the_diagonal(swap):
    pair = [np.zeros((240, 240, 155), bool), np.zeros((240, 240, 155), bool)]
    pair[swap][100, 100, 100] = True
    assert (metrics.dice(*pair), metrics.surface_dice(*pair, MM, 1.0)) == (0, 0)
    assert metrics.hd95(*pair, MM) == pytest.approx(373.13, abs=0.005)


@pytest.mark.parametrize("metric", [metrics.hd95, metrics.hd95_pooled])
@pytest.mark.parametrize(
    ("rule", "both", "one"),
    [
        ("diagonal", 0, 13),  # of 3 x 4 x 12 voxels
        ("brats2023", 0, 374),
        ("m2ftrans", 0, 1),
        ("mst-kdnet", 0, 0),
        ("demoseg", np.nan, np.nan),
    ],
)
def test_every_rule_for_empty_masks_is_that_of_its_source(metric, rule, both, one):
    empty, full = np.zeros((3, 4, 12), bool), np.ones((3, 4, 12), bool)
    found = [metric(a, b, MM, rule) for a, b in ((empty, empty), (empty, full), (full, empty))]
    assert found == pytest.approx([both, one, one], nan_ok=True)


def test_every_rule_for_empty_masks_is_tested():
    assert set(metrics.EMPTY_RULES) == {"diagonal", "brats2023", "m2ftrans", "mst-kdnet", "demoseg"}


def test_an_unknown_rule_for_empty_masks_is_refused():
    empty = np.zeros((2, 2, 2), bool)
    with pytest.raises(UsageError, match="Choose one of diagonal"):
        metrics.hd95(empty, empty, MM, "worst")
