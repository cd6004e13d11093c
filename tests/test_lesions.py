"""Lesion-wise scores against the rules of BraTS 2023, drawn by hand and read one by one."""

import sys

import numpy as np
import pytest
from scipy import ndimage

from glimpseg import metrics
from glimpseg.metrics import lesions as module

MM = (1.0, 1.0, 1.0)


def box(shape, *sides):
    """A block of the grid, given by (start, stop) on each axis."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def directed_distances(a, b):
    """Between surfaces on a 1 mm grid, in both directions, by scipy's transform of the whole array."""
    one, other = (mask & ~ndimage.binary_erosion(mask) for mask in (a, b))
    return [ndimage.distance_transform_edt(~to)[at] for at, to in ((one, other), (other, one))]


def test_lesions_that_touch_at_a_corner_are_one():
    mask = np.zeros((6, 6, 6), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[5, 5, 5] = True
    assert metrics.lesion_count(mask) == 2


def bar(*sides, thickness=4):
    """Voxels from (start, stop) along x, 4 x 4 in y and z; grids leave room for every dilation."""
    return np.logical_or.reduce([box((44, 12, 12), side, (4, 8), (4, 4 + thickness)) for side in sides])


NOTHING = bar((0, 0))
DRAWINGS = {
    # Found voxel by voxel.
    "perfect": (bar((4, 8), (24, 28)), bar((4, 8), (24, 28)), metrics.LesionWise(1.0, 0.0, 2, 0, 0)),
    # Dice (1 + 0) / 2, HD95 (0 + 374) / 2.
    "one missed": (bar((4, 8)), bar((4, 8), (24, 28)), metrics.LesionWise(0.5, 187.0, 2, 1, 0)),
    # One lesion and one invented: Dice (1) / (1 + 1), HD95 (0 + 374) / (1 + 1).
    "one invented": (bar((4, 8), (24, 28)), bar((4, 8)), metrics.LesionWise(0.5, 187.0, 1, 0, 1)),
    # 6 voxels between: each part grows by 3 and they meet, so one lesion of 128 voxels, of which 64 were found: Dice
    # 128 / 192. The second part's surface is 56 of 112 voxels, 16 of them 10 mm from the first, ranks 96 to 111; the
    # 95th percentile is rank 105.45.
    "joined by dilation": (bar((4, 8)), bar((4, 8), (14, 18)), metrics.LesionWise(2 / 3, 10.0, 1, 0, 0)),
    # 7 voxels between: two lesions, the second out of the prediction's reach.
    "just not joined": (bar((4, 8)), bar((4, 8), (15, 19)), metrics.LesionWise(0.5, 187.0, 2, 1, 0)),
    # One part of 15 x 16 = 240 voxels is scored against both: Dice 128 / 304 each. Its surface has 188 voxels: 52 on
    # the lesion's, then 12 at each of 1 to 10 mm, 16 at 11 mm (ranks 172 to 187); the 95th percentile is rank 177.65.
    "one part for two lesions": (bar((4, 19)), bar((4, 8), (15, 19)), metrics.LesionWise(8 / 19, 11.0, 2, 0, 0)),
    # Two parts of 64 voxels are united against 192: Dice 256 / 320. Of the lesion's surface of 152 voxels, 24 are
    # 2 mm away, ranks 128 to 151; the 95th percentile is rank 143.45. The way back has ones at most.
    "two parts for one lesion": (bar((4, 8), (12, 16)), bar((4, 16)), metrics.LesionWise(0.8, 2.0, 1, 0, 0)),
    # 2 voxels between, the prediction begins at the third: within reach, so neither missed nor invented, but Dice 0.
    # Surfaces of 56, the last 16 of them 6 mm away, ranks 40 to 55; the 95th percentile is rank 52.25.
    "beside the lesion": (bar((10, 14)), bar((4, 8)), metrics.LesionWise(0.0, 6.0, 1, 0, 0)),
    # 3 voxels between: missed and invented, (0 + 0) / 2 and (374 + 374) / 2.
    "just out of reach": (bar((11, 15)), bar((4, 8)), metrics.LesionWise(0.0, 374.0, 1, 1, 1)),
    # 48 mm3 do not count, and what was found of them is not invented: nothing is left to be wrong.
    "too small to count": (bar((4, 8), thickness=3), bar((4, 8), thickness=3), metrics.LesionWise(1.0, 0.0, 0, 0, 0)),
    "small and missed": (NOTHING, bar((4, 8), thickness=3), metrics.LesionWise(1.0, 0.0, 0, 0, 0)),
    # The small one drops out, the large one is perfect: (1) / 1.
    "small beside large": (bar((4, 8), (24, 27)), bar((4, 8), (24, 27)), metrics.LesionWise(1.0, 0.0, 1, 0, 0)),
    "neither": (NOTHING, NOTHING, metrics.LesionWise(1.0, 0.0, 0, 0, 0)),
    # However small: 1 voxel.
    "only invented": (box((44, 12, 12), (5, 6), (5, 6), (5, 6)), NOTHING, metrics.LesionWise(0.0, 374.0, 0, 0, 1)),
    "all missed": (NOTHING, bar((4, 8)), metrics.LesionWise(0.0, 374.0, 1, 1, 0)),
}


@pytest.mark.parametrize(("predicted", "reference", "expected"), DRAWINGS.values(), ids=DRAWINGS)
def test_a_drawing_is_scored_lesion_by_lesion_as_by_hand(predicted, reference, expected):
    found = metrics.lesion_wise(predicted, reference, MM)
    assert vars(found) == pytest.approx(vars(expected))


@pytest.mark.parametrize(("voxels", "lesions"), [(50, 0), (51, 1)])
def test_a_lesion_counts_above_50_voxels_of_1_mm(voxels, lesions):
    reference = np.zeros((20, 20, 20), bool)
    reference[8:12, 8:12, 8:12] = (np.arange(64) < voxels).reshape(4, 4, 4)
    assert metrics.lesion_wise(reference, reference, MM).lesions == lesions


@pytest.mark.parametrize(("voxels", "lesions"), [(6, 0), (7, 1)])  # 48 and 56 mm3
def test_a_lesion_counts_above_50_mm3_on_a_coarse_grid(voxels, lesions):
    reference = box((20, 20, 20), (5, 5 + voxels), (5, 6), (5, 6))
    assert metrics.lesion_wise(reference, reference, (2.0, 2.0, 2.0)).lesions == lesions


def by_the_rules(predicted, reference):
    """(Dice, HD95, lesions, missed, invented), the rules of BraTS 2023 for 1 mm, one lesion and one part at a time."""
    corners, edges = (ndimage.generate_binary_structure(3, rank) for rank in (3, 2))
    parts, n_parts = ndimage.label(predicted, corners)
    grown, n_lesions = ndimage.label(ndimage.binary_dilation(reference, edges, 3), corners)
    dices, distances, touched, missed = [], [], set(), 0
    for number in range(1, n_lesions + 1):
        lesion = reference & (grown == number)
        reach = ndimage.binary_dilation(lesion, edges, 3)
        meeting = [part for part in range(1, n_parts + 1) if (reach & (parts == part)).any()]
        touched.update(meeting)
        if lesion.sum() <= 50:
            continue
        if not meeting:
            missed += 1
            dices.append(0.0)
            distances.append(374.0)
            continue
        united = np.logical_or.reduce([parts == part for part in meeting])
        dices.append(2 * (united & lesion).sum() / (united.sum() + lesion.sum()))
        distances.append(max(np.percentile(d, 95) for d in directed_distances(united, lesion)))
    invented = n_parts - len(touched)
    total = len(dices) + invented
    if not total:
        return 1.0, 0.0, 0, 0, 0
    return sum(dices) / total, (sum(distances) + 374 * invented) / total, len(dices), missed, invented


def foci(number):
    """Up to eight balls of 1 to 4.5 mm in the reference, some of them found, moved, and a few more predicted."""
    rng = np.random.default_rng(number)
    place = np.stack(np.indices((48, 44, 40)))
    predicted, reference = np.zeros((2, 48, 44, 40), bool)
    for _ in range(rng.integers(2, 9)):
        centre, radius = rng.uniform(2, 42, 3), rng.uniform(1, 4.5)
        for mask in (predicted, reference):
            at = centre + rng.normal(0, 1.5, 3)
            if rng.uniform() < 0.75:
                mask |= ((place - at[:, None, None, None]) ** 2).sum(0) < radius**2
    return predicted, reference


@pytest.mark.parametrize("number", range(30))
def test_lesion_wise_scores_follow_the_rules_read_one_by_one(number):
    predicted, reference = foci(number)
    assert tuple(vars(metrics.lesion_wise(predicted, reference, MM)).values()) == pytest.approx(
        by_the_rules(predicted, reference)
    )


def test_the_reference_is_scored_against_many_as_against_one():
    lesions = metrics.Lesions(foci(0)[1], MM)
    predictions = [foci(number)[0] for number in range(5)]
    assert [lesions.score(p) for p in predictions] == [metrics.lesion_wise(p, foci(0)[1], MM) for p in predictions]


@pytest.mark.parametrize("number", range(0, 30, 5))
def test_the_fast_labelling_finds_the_same_lesions(number, monkeypatch):
    pytest.importorskip("cc3d")
    fast = metrics.lesion_wise(*foci(number), MM)
    monkeypatch.setitem(sys.modules, "cc3d", None)
    assert vars(metrics.lesion_wise(*foci(number), MM)) == pytest.approx(vars(fast))


def test_at_1_mm_the_reach_is_three_dilations():
    point = box((9, 9, 9), (4, 5), (4, 5), (4, 5))
    dilated = ndimage.binary_dilation(point, ndimage.generate_binary_structure(3, 2), iterations=3)
    assert np.array_equal(ndimage.binary_dilation(point, module._structuring_element(MM)), dilated)


@pytest.mark.parametrize(
    ("spacing", "reach"),
    [((0.5, 0.5, 5.0), (6, 6, 0)), ((2.0, 2.0, 2.0), (1, 1, 1)), ((3.0, 0.9375, 1.5), (1, 3, 2))],
)
def test_on_other_grids_the_reach_is_3_mm_along_each_axis(spacing, reach):
    assert module._structuring_element(spacing).shape == tuple(2 * voxels + 1 for voxels in reach)
