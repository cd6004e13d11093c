"""Dice and HD95 against independent implementations, and the rules for empty masks."""

import medpy.metric.binary
import numpy as np
import pytest
import surface_distance
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage

from glimpseg import metrics
from glimpseg.errors import InputError

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=9))
pairs = hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=9).flatmap(
    lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
)
spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 2.0, 3.3])] * 3)


def blobs(seed, shape=(30, 34, 28)):
    rng = np.random.default_rng(seed)
    return [ndimage.gaussian_filter(rng.normal(size=shape), 3) > 0.05 for _ in range(2)]


def directed_percentiles(a, b, spacing):
    """95th percentiles of both directed surface distances, by scipy alone."""

    def surface(mask):
        return mask & ~ndimage.binary_erosion(mask)

    distances = []
    for one, other in ((a, b), (b, a)):
        field = ndimage.distance_transform_edt(~surface(other), sampling=spacing)
        distances.append(np.percentile(field[surface(one)], 95))
    return distances


@given(pairs)
def test_dice_is_what_its_formula_says(pair):
    a, b = pair
    expected = 1.0 if not (a.any() or b.any()) else 2 * (a & b).sum() / (a.sum() + b.sum())
    assert metrics.dice(a, b) == pytest.approx(expected)


@given(pairs)
def test_dice_does_not_care_which_is_the_reference(pair):
    assert metrics.dice(*pair) == metrics.dice(*pair[::-1])


@given(pairs)
def test_dice_agrees_with_medpy_where_medpy_is_defined(pair):
    a, b = pair
    if a.any() and b.any():
        assert metrics.dice(a, b) == pytest.approx(medpy.metric.binary.dc(a, b))


@settings(max_examples=60)
@given(pairs, spacings)
def test_hd95_is_the_larger_directed_percentile(pair, spacing):
    a, b = pair
    if a.any() and b.any():
        assert metrics.hd95(a, b, spacing) == pytest.approx(max(directed_percentiles(a, b, spacing)), rel=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_hd95_is_close_to_deepminds_on_smooth_masks(seed):
    a, b = blobs(seed)
    theirs = surface_distance.compute_robust_hausdorff(surface_distance.compute_surface_distances(a, b, (1, 1, 1)), 95)
    # Theirs places the surface between voxels and weighs it by area.
    assert metrics.hd95(a, b, (1, 1, 1)) == pytest.approx(theirs, abs=1.0)


@pytest.mark.parametrize("seed", range(8))
def test_hd95_is_never_below_medpys_pooled_percentile_by_definition(seed):
    a, b = blobs(seed)
    pooled = medpy.metric.binary.hd95(a, b)
    assert metrics.hd95(a, b, (1, 1, 1)) >= pooled - 1e-5


@settings(max_examples=40)
@given(pairs, spacings, st.integers(0, 4))
def test_empty_surroundings_change_nothing(pair, spacing, margin):
    a, b = (np.pad(mask, margin) for mask in pair)
    if a.any() and b.any():
        assert metrics.hd95(a, b, spacing) == pytest.approx(metrics.hd95(*pair, spacing))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("seed", range(4))
def test_hd95_is_monais(seed):
    a, b = blobs(seed)
    theirs = compute_hausdorff_distance(
        *(torch.from_numpy(mask)[None, None] for mask in (a, b)), percentile=95, include_background=True
    )
    assert metrics.hd95(a, b, (1, 1, 1)) == pytest.approx(float(theirs), rel=1e-5)


def test_two_empty_masks_agree_perfectly():
    empty = np.zeros((4, 4, 4), bool)
    assert (metrics.dice(empty, empty), metrics.hd95(empty, empty, (1, 1, 1))) == (1, 0)


@pytest.mark.parametrize("swap", [False, True])
def test_a_missed_tumour_costs_the_diagonal(swap):
    pair = [np.zeros((240, 240, 155), bool), np.zeros((240, 240, 155), bool)]
    pair[swap][100, 100, 100] = True
    assert metrics.dice(*pair) == 0
    assert metrics.hd95(*pair, (1.0, 1.0, 1.0)) == pytest.approx(373.13, abs=0.005)


def test_masks_of_other_shapes_are_refused():
    with pytest.raises(InputError, match="shapes"):
        metrics.dice(np.zeros((3, 3, 3), bool), np.zeros((3, 3, 4), bool))


def test_lesions_that_touch_at_a_corner_are_one():
    mask = np.zeros((6, 6, 6), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[5, 5, 5] = True
    assert metrics.lesion_count(mask) == 2
