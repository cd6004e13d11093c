"""Sliding windows: where they lie, what they weigh, what their average is. Values by hand."""

import math

import pytest
import torch

from glimpseg.segmentation.inference import averaged, window_boxes, window_weights

CPU = torch.device("cpu")


def test_windows_overlap_by_half_and_the_last_one_ends_at_the_edge():
    # 11 voxels, windows of 4: every 2 voxels while another fits before the edge, then at 11 - 4 = 7.
    boxes = window_boxes((11, 4, 5), (4, 4, 5))
    assert boxes == [(slice(x, x + 4), slice(0, 4), slice(0, 5)) for x in (0, 2, 4, 6, 7)]


def test_a_window_of_an_odd_side_moves_by_less_than_half():
    # Half of 5 is 2.5, so the step is 2: starts 0, 2 and 9 - 5 = 4.
    assert [box[1].start for box in window_boxes((5, 9, 5), (5, 5, 5))] == [0, 2, 4]


def test_the_last_axis_runs_fastest():
    starts = [tuple(side.start for side in box) for box in window_boxes((6, 4, 6), (4, 4, 4))]
    assert starts == [(0, 0, 0), (0, 0, 2), (2, 0, 0), (2, 0, 2)]


def test_a_window_of_one_voxel_visits_every_voxel():
    assert len(window_boxes((3, 1, 2), (1, 1, 1))) == 6


def test_gaussian_weights_have_a_standard_deviation_of_an_eighth_of_the_side():
    weights = window_weights((8, 16, 1), "gaussian", CPU)
    # Voxel centres lie half a voxel from the middle. SD 1 voxel along x, 2 along y; one voxel along z lies at 0.
    assert float(weights[3, 7, 0]) == pytest.approx(math.exp(-0.5 * 0.5**2) * math.exp(-0.5 * 0.25**2))
    assert float(weights[5, 7, 0]) == pytest.approx(math.exp(-0.5 * 1.5**2) * math.exp(-0.5 * 0.25**2))
    assert float(weights[4, 9, 0]) == pytest.approx(math.exp(-0.5 * 0.5**2) * math.exp(-0.5 * 0.75**2))


def test_no_voxel_weighs_less_than_a_thousandth():
    weights = window_weights((8, 8, 8), "gaussian", CPU)
    # The corner lies 3.5 SD off along each axis: exp(-18.4), about 1e-8.
    assert float(weights[0, 0, 0]) == float(weights.min()) == pytest.approx(1e-3)


def test_constant_weights_are_one():
    assert torch.equal(window_weights((2, 3, 4), "constant", CPU), torch.ones(2, 3, 4))


def test_where_windows_overlap_their_outputs_are_averaged():
    # Windows of 4 start at 0 and 2 of 6 voxels; each says its own first voxel's value everywhere.
    image = torch.arange(6.0)[None, :, None, None].expand(1, 6, 2, 2)
    (found,) = averaged(image, lambda w: (w[:, :, :1].expand_as(w),), (4, 2, 2), "constant", 1, CPU)
    assert found[0, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_gaussian_weights_favour_the_window_whose_centre_is_nearer():
    image = torch.arange(6.0)[None, :, None, None].expand(1, 6, 2, 2)
    (found,) = averaged(image, lambda w: (w[:, :, :1].expand_as(w),), (4, 2, 2), "gaussian", 1, CPU)
    # Voxel 2 lies 0.5 from the first window's centre (1.5) and 1.5 from the second's (3.5); SD is 4 / 8 = 0.5 voxel.
    near, far = math.exp(-0.5 * (0.5 / 0.5) ** 2), math.exp(-0.5 * (1.5 / 0.5) ** 2)
    # Across, the two voxels lie 2 SD of 0.25 off along each axis, alike in both windows; the least weight is 0.001.
    across = math.exp(-0.5 * 2**2) ** 2
    near, far = max(near * across, 1e-3), max(far * across, 1e-3)
    assert float(found[0, 2, 0, 0]) == pytest.approx(2 * far / (near + far))


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_how_many_windows_go_at_once_changes_nothing(at_once):
    image = torch.randn(2, 9, 7, 8, generator=torch.Generator().manual_seed(0))
    counts = []

    def network(windows):
        counts.append(len(windows))
        return (windows.exp(),)

    (found,) = averaged(image, network, (4, 4, 4), "gaussian", at_once, CPU)
    assert max(counts) == at_once
    assert sum(counts) == 4 * 3 * 3  # starts 0 2 4 5 along 9 voxels, 0 2 3 along 7, 0 2 4 along 8
    # A function of each voxel alone is its own average.
    torch.testing.assert_close(found, image.exp())
