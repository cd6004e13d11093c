"""Grids, orientations and resampling."""

import re

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from scipy.spatial.transform import Rotation

from conftest import ORIENTATIONS
from glimpseg import volume as volumes
from glimpseg.errors import InputError
from glimpseg.volume import (
    Grid,
    Volume,
    angle_degrees,
    axis_slices,
    background_value,
    bounding_box,
    connected_to_border,
    downsample_large,
    foreground,
    overlap,
    resample,
    resample_labels,
    same_grid,
    slabs,
)


def oriented(volume, axes):
    """The same voxels stored in another order."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    voxels = apply_orientation(volume.voxels, turn)
    return Volume(np.ascontiguousarray(voxels), volume.affine @ inv_ornt_aff(turn, volume.voxels.shape))


def ras_volume(shape=(5, 6, 7), spacing=(1.0, 2.0, 3.0)):
    rng = np.random.default_rng(0)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-10, 20, 30)
    return Volume(rng.normal(size=shape).astype(np.float32), affine)


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_every_orientation_becomes_the_same_ras_volume(axes):
    volume = ras_volume()
    again = oriented(volume, axes).ras()
    assert np.array_equal(again.voxels, volume.voxels)
    assert np.allclose(again.affine, volume.affine)


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_labels_return_to_the_grid_they_came_from(axes):
    volume = ras_volume()
    stored = oriented(volume, axes)
    back = resample(volume, stored.grid)
    assert np.array_equal(back.voxels, stored.voxels)
    assert np.array_equal(back.affine, stored.affine)


def test_a_grid_names_its_axes_and_spacing():
    grid = oriented(ras_volume(), "LPS").grid
    assert grid.axes == "LPS"
    assert grid.spacing_mm == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("spacing", [0.7, 1.0, 2.0, 3.0])
def test_a_working_grid_keeps_the_centre_of_the_field_of_view(spacing):
    grid = ras_volume((20, 30, 10)).grid
    made = grid.at_spacing(spacing)
    assert np.allclose(made.corners_mm().mean(0), grid.corners_mm().mean(0))
    assert made.spacing_mm == pytest.approx((spacing,) * 3)
    assert (np.array(made.shape) * spacing >= np.array(grid.shape) * grid.spacing_mm - 1e-6).all()


def test_resampling_puts_a_linear_ramp_where_it_belongs():
    grid = Grid((20, 20, 20), np.eye(4))
    x, y, z = np.meshgrid(*[np.arange(20.0)] * 3, indexing="ij")
    ramp = Volume((x + 2 * y - z).astype(np.float32), grid.affine)
    finer = Grid((10, 10, 10), np.array([[0.5, 0, 0, 4], [0, 0.5, 0, 5.2], [0, 0, 0.5, 6.3], [0, 0, 0, 1]]))
    world = finer.affine[:3, :3] @ np.array([3, 4, 5]) + finer.affine[:3, 3]
    assert resample(ramp, finer).voxels[3, 4, 5] == pytest.approx(world[0] + 2 * world[1] - world[2], abs=1e-4)


def test_oblique_and_diagonal_resampling_agree():
    volume = ras_volume((20, 20, 20), (1, 1, 1))
    tiny = np.eye(4)
    tiny[0, 1] = 1e-7  # just enough to leave scipy's separable way
    straight = Grid((12, 12, 12), volume.affine @ np.diag([1.5, 1.5, 1.5, 1]))
    oblique = Grid((12, 12, 12), straight.affine @ tiny)
    assert np.allclose(resample(volume, straight).voxels, resample(volume, oblique).voxels, atol=1e-4)


def test_a_thin_label_survives_coarser_voxels_where_it_is_most():
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[2:10, 2:10, 2:10] = 2
    labels[4:7, 4:7, 4:7] = 3
    coarse = resample_labels(Volume(labels, np.eye(4)), Grid((12, 12, 12), np.eye(4)).at_spacing(2.0))
    assert set(np.unique(coarse.voxels)) == {0, 2, 3}


def test_label_volume_is_kept_by_resampling():
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[10:31, 10:31, 10:31] = 1
    there = resample_labels(Volume(labels, np.eye(4)), Grid((40, 40, 40), np.eye(4)).at_spacing(3.0))
    assert there.voxels.sum() * 27 == pytest.approx(labels.sum(), rel=0.1)


def test_a_rotation_of_ten_degrees_is_measured():
    turned = np.eye(4)
    c, s = np.cos(np.radians(10)), np.sin(np.radians(10))
    turned[:2, :2] = [[c, -s], [s, c]]
    assert angle_degrees(Grid((9, 9, 9), np.eye(4)), Grid((9, 9, 9), turned)) == pytest.approx(10)


def test_fields_of_view_that_are_apart_do_not_overlap():
    far = np.eye(4)
    far[0, 3] = 100
    assert overlap(Grid((9, 9, 9), np.eye(4)), Grid((9, 9, 9), far)) == 0


def test_half_a_voxel_is_another_grid():
    shifted = np.eye(4)
    shifted[2, 3] = 0.5
    assert not same_grid(Grid((9, 9, 9), np.eye(4)), Grid((9, 9, 9), shifted))


@pytest.mark.parametrize("value", [0.0, -3.5, np.nan])
def test_the_constant_border_is_the_background(value):
    voxels = np.full((9, 9, 9), value, np.float32)
    voxels[3:6, 3:6, 3:6] = 7
    assert np.array_equal(background_value(voxels), value, equal_nan=True)


def test_holes_inside_the_brain_are_brain():
    voxels = np.zeros((9, 9, 9), np.float32)
    voxels[2:7, 2:7, 2:7] = 5
    voxels[4, 4, 4] = 0
    assert foreground(voxels)[4, 4, 4]
    assert not foreground(voxels)[0, 0, 0]


# Grids by hand


def placed(*rows):
    """An affine from its three rows."""
    return np.array([*rows, (0, 0, 0, 1)], float)


def test_spacing_is_the_length_of_a_step_along_each_axis_of_the_array():
    # Steps (3, 4, 0), (0, 0, 2) and (12, 0, 5): lengths 5, 2 and 13.
    assert Grid((4, 4, 4), placed((3, 0, 12, 0), (4, 0, 0, 0), (0, 2, 5, 0))).spacing_mm == (5, 2, 13)


@pytest.mark.parametrize(
    ("affine", "millilitres"),
    [
        (np.diag([2.0, 3, 5, 1]), 0.03),  # 30 mm^3
        (np.diag([-2.0, 3, 5, 1]), 0.03),
        (placed((2, 0, 0, 9), (0, 3, 1, 9), (0, 0, 5, 9)), 0.03),  # sheared: base and height stay
        (placed((0, 10, 0, 0), (10, 0, 0, 0), (0, 0, 10, 0)), 1.0),
    ],
    ids=["straight", "mirrored", "sheared", "exchanged"],
)
def test_a_voxel_has_the_millilitres_of_its_cell(affine, millilitres):
    assert Grid((2, 2, 2), affine).voxel_ml == pytest.approx(millilitres)


def test_the_closest_ras_of_a_grid_stored_back_down_right():
    # Axis 0 runs back in steps of 2, axis 1 down in steps of 3, axis 2 to the right in steps of 4 mm. So x is axis 2,
    # y is axis 0 from its end (3 steps back from 7: 1), z is axis 1 from its end (4 steps down from 50: 38).
    grid = Grid((4, 5, 6), placed((0, 0, 4, -10), (-2, 0, 0, 7), (0, -3, 0, 50))).ras()
    assert grid.shape == (6, 4, 5)
    assert grid.affine.tolist() == placed((4, 0, 0, -10), (0, 2, 0, 1), (0, 0, 3, 38)).tolist()
    assert grid.axes == "RAS"


def test_a_volume_in_ras_order_has_its_voxels_in_one_piece():
    volume = Volume(np.arange(24.0).reshape(2, 3, 4), np.diag([-1.0, -1, 1, 1]))
    found = volume.ras()
    assert found.voxels.flags.c_contiguous
    assert found.voxels[1, 2].tolist() == [0, 1, 2, 3]  # what was first along x and y is last


def test_a_working_grid_is_as_many_whole_voxels_as_the_field_of_view_needs():
    # 5 voxels of 2 mm are 10 mm: 4 of 3 mm, 12 mm. The centre is at 0 + 2 * 2 = 4: the first voxel at 4 - 1.5 * 3.
    made = Grid((5, 5, 5), np.diag([2.0, 2, 2, 1])).at_spacing(3.0)
    assert made.shape == (4, 4, 4)
    assert made.affine.tolist() == placed((3, 0, 0, -0.5), (0, 3, 0, -0.5), (0, 0, 3, -0.5)).tolist()


@pytest.mark.parametrize(
    ("voxels", "old", "new", "expected"),
    [
        (10, 0.3, 1.0, 3),  # 3.0000000000000004 mm by floating point
        (10, 0.3001, 1.0, 3),  # 3.001 mm: a thousandth of a voxel is no voxel
        (10, 0.302, 1.0, 4),  # 3.02 mm
        (1, 0.01, 20.0, 1),  # never none
        (7, 1.0, 2.0, 4),  # 7 mm
    ],
)
def test_a_field_of_view_is_rounded_up_to_whole_voxels(voxels, old, new, expected):
    assert Grid((voxels, 40, 40), np.diag([old, 1, 1, 1.0])).at_spacing(new).shape[0] == expected


@pytest.mark.parametrize(("spacing", "kept"), [(1.0009, True), (1.0011, False)])
def test_a_grid_within_a_micrometre_of_the_spacing_stays_as_it_is(spacing, kept):
    grid = Grid((9, 9, 9), np.diag([1.0, 1, spacing, 1]))
    assert (grid.at_spacing(1.0).affine.tolist() == grid.affine.tolist()) == kept


def test_a_cropped_grid_begins_where_the_box_does():
    # 2 steps of -2 from 5, 1 of 3 from 6, 4 of 4 from 7, with a shear of 1 mm in x for each step in y.
    grid = Grid((9, 9, 9), placed((-2, 1, 0, 5), (0, 3, 0, 6), (0, 0, 4, 7)))
    found = grid.crop((slice(2, 6), slice(1, 9), slice(4, 5)))
    assert found.shape == (4, 8, 1)
    assert found.affine.tolist() == placed((-2, 1, 0, 2), (0, 3, 0, 9), (0, 0, 4, 23)).tolist()
    assert grid.affine[:3, 3].tolist() == [5, 6, 7]


def test_corners_are_the_centres_of_the_eight_outermost_voxels():
    found = {tuple(corner) for corner in Grid((2, 3, 4), np.diag([10.0, 1, -1, 1])).corners_mm().tolist()}
    assert found == {(x, y, z) for x in (0, 10) for y in (0, 2) for z in (0, -3)}


@pytest.mark.parametrize(("shift", "same"), [(0.0009, True), (-0.0009, True), (0.0011, False), (-0.0011, False)])
def test_grids_are_the_same_within_a_micrometre(shift, same):
    moved = np.eye(4)
    moved[1, 3] = shift
    assert same_grid(Grid((3, 3, 3), np.eye(4)), Grid((3, 3, 3), moved)) == same


def test_a_grid_of_another_shape_is_another():
    assert not same_grid(Grid((3, 3, 3), np.eye(4)), Grid((3, 3, 4), np.eye(4)))


def test_the_order_of_a_file_and_its_spacing_are_no_rotation():
    other = oriented(ras_volume(), "PIL").grid
    assert angle_degrees(Grid((9, 9, 9), np.eye(4)), other) == pytest.approx(0, abs=1e-5)
    coarse = Grid((9, 9, 9), turned(10, (2.0, 3.0, 4.0)))
    assert angle_degrees(Grid((9, 9, 9), np.eye(4)), coarse) == pytest.approx(10)


def test_no_grid_is_turned_against_itself():
    # By rounding the cosine of some is a little more than 1, of which there is no angle.
    for step in range(200):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_rotvec(np.array([1, 2, 3]) * step / 600).as_matrix() * (0.7, 0.9, 1.1)
        grid = Grid((9, 9, 9), affine)
        assert angle_degrees(grid, grid) == pytest.approx(0, abs=1e-5)


def test_half_a_turn_in_the_plane_is_only_another_order_of_the_file():
    assert angle_degrees(Grid((9, 9, 9), np.eye(4)), Grid((9, 9, 9), np.diag([-1.0, -1, 1, 1]))) == 0


@pytest.mark.parametrize(
    ("shape", "shift", "expected"),
    [
        ((9, 9, 9), 3.0, 6 / 9),  # boxes of 9 mm
        ((9, 9, 9), -3.0, 6 / 9),
        ((3, 9, 9), 2.0, 1.0),  # x from 1.5 to 4.5 lies within
        ((3, 9, 9), 7.0, 2 / 3),  # x from 6.5 to 9.5, of which 8.5 is the end
        ((9, 9, 9), 9.0, 0.0),
    ],
)
def test_overlap_is_the_shared_part_of_the_smaller_field_of_view(shape, shift, expected):
    moved = np.eye(4)
    moved[0, 3] = shift
    one, other = Grid((9, 9, 9), np.eye(4)), Grid(shape, moved)
    assert overlap(one, other) == pytest.approx(expected)
    assert overlap(other, one) == pytest.approx(expected)


# Background, border and box


def test_more_than_half_of_the_outermost_voxels_make_the_background():
    # In 2 x 2 x 2 voxels each belongs to three of the six faces: 4 of 8 are half, 5 are more.
    half = np.array([-3, -3, -3, -3, 1, 2, 4, 5], np.float32).reshape(2, 2, 2)
    assert background_value(half) == 0
    more = np.array([-3, -3, -3, -3, -3, 2, 4, 5], np.float32).reshape(2, 2, 2)
    assert background_value(more) == -3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_both_faces_of_every_axis_tell_of_the_background(axis):
    # In a row of four voxels each belongs to the two faces of both short axes, and the first and last to one of the
    # long axis: 5, 4, 4 and 5 of 18. First and last are 10, more than half; the first two are 9, half.
    shape = [1, 1, 1]
    shape[axis] = 4
    assert background_value(np.array([-3, 1, 2, -3], np.float32).reshape(shape)) == -3
    assert background_value(np.array([-3, -3, 1, 2], np.float32).reshape(shape)) == 0


def test_air_reaches_the_border_through_faces_only():
    # One hole touches the air by an edge, the other by a face.
    outside = np.zeros((5, 5, 5), bool)
    outside[0] = True
    outside[1, 2, 2] = outside[2, 3, 2] = True
    found = connected_to_border(outside)
    assert found.shape == (5, 5, 5)
    assert found[1, 2, 2]
    assert not found[2, 3, 2]
    assert found.sum() == 26


def test_an_array_that_is_nowhere_air_is_all_foreground():
    voxels = np.arange(27, dtype=np.float32).reshape(3, 3, 3) + 1
    assert foreground(voxels).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_bounding_box_holds_every_voxel_and_no_more(order):
    mask = np.zeros((6, 7, 8), bool, order=order)
    mask[1, 2, 5] = mask[4, 3, 5] = mask[2, 6, 7] = True
    assert bounding_box(mask) == (slice(1, 5), slice(2, 7), slice(5, 8))


def test_an_empty_mask_has_no_bounding_box():
    assert bounding_box(np.zeros((2, 3, 4), bool)) is None


# Resampling by hand


def shifted(x=0.0, y=0.0, z=0.0, scale=(1.0, 1.0, 1.0)):
    """An affine along the axes."""
    return placed((scale[0], 0, 0, x), (0, scale[1], 0, y), (0, 0, scale[2], z))


def test_another_window_of_the_lattice_is_copied_bit_for_bit():
    image = Volume(np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32), np.eye(4))
    found = resample(image, Grid((4, 3, 4), shifted(-2, 1, 2))).voxels
    # x -2 to 1: two voxels of nothing, then 0 and 1. y 1 to 3. z 2 to 5: one voxel beyond the last.
    expected = np.zeros((4, 3, 4), np.float32)
    for x, y, z in np.ndindex(2, 3, 3):
        expected[x + 2, y, z] = image.voxels[x, y + 1, z + 2]
    assert np.array_equal(found, expected)
    assert found.dtype == np.float32


@pytest.mark.parametrize("shift", [(3, 0, 0), (-3, 0, 0), (0, 9, 0), (0, 0, -9)])
def test_a_window_beside_the_image_is_empty(shift):
    image = Volume(np.ones((3, 3, 3), np.float32), np.eye(4))
    assert not resample(image, Grid((3, 3, 3), shifted(*shift))).voxels.any()


def test_a_place_between_voxels_has_their_weighted_mean():
    # A quarter of the way from 10 to 50 along x: 20. Beyond the outermost centres nothing is known: 0.
    image = Volume(np.full((2, 3, 3), 10, np.float32), np.eye(4))
    image.voxels[1] = 50
    found = resample(image, Grid((3, 3, 3), shifted(-0.75))).voxels  # x -0.75, 0.25, 1.25
    assert found[:, 1, 1].tolist() == [0, 20, 0]


def test_a_thousandth_of_a_voxel_is_interpolated_and_a_rounding_error_is_not():
    image = Volume(np.arange(8, dtype=np.float32).reshape(8, 1, 1) * 1000, np.eye(4))
    assert resample(image, Grid((2, 1, 1), shifted(0.001))).voxels.ravel() == pytest.approx([1, 1001], abs=1e-3)
    assert resample(image, Grid((2, 1, 1), shifted(0.00001))).voxels.ravel().tolist() == [0, 1000]


def gaussian(sigma, places):
    """Weights of a Gaussian of unit sum over whole voxels, truncated at four sigmas."""
    reach = int(4 * sigma + 0.5)
    return [np.exp(-(x**2) / (2 * sigma**2)) / sum(np.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1))
            if abs(x) <= reach else 0.0 for x in places]  # fmt: skip


def test_a_coarser_grid_sees_a_point_as_wide_as_its_voxel():
    # A point spread of 1 voxel (full width at half maximum) becomes one of 3 along x, 2 along y, and stays along z.
    # Widths add as squares: 3^2 - 1^2 = 8, 2^2 - 1^2 = 3. A Gaussian is 2.3548 sigma wide at half its maximum.
    image = np.zeros((25, 25, 9), np.float32)
    image[12, 12, 4] = 1
    grid = Grid((7, 11, 9), shifted(3, 2, 0, scale=(3.0, 2.0, 1.0)))
    found = resample(Volume(image, np.eye(4)), grid).voxels
    x = gaussian(np.sqrt(8) / 2.354820045, 3 + 3 * np.arange(7) - 12)
    y = gaussian(np.sqrt(3) / 2.354820045, 2 + 2 * np.arange(11) - 12)
    z = np.arange(9) == 4
    np.testing.assert_allclose(found, np.einsum("x,y,z->xyz", x, y, z), atol=1e-7)


def test_a_finer_grid_is_not_smoothed():
    # Half way between the point and its neighbours along x: a half. 1 voxel is 2 steps.
    image = np.zeros((5, 5, 5), np.float32)
    image[2, 2, 2] = 1
    found = resample(Volume(image, np.eye(4)), Grid((9, 5, 5), shifted(scale=(0.5, 1, 1)))).voxels
    assert found[:, 2, 2].tolist() == [0, 0, 0, 0.5, 1, 0.5, 0, 0, 0]
    assert found.sum() == 2


def test_a_step_that_is_hardly_longer_is_not_smoothed():
    # Steps of 1.01 voxels: sigma is sqrt(0.0201) / 2.355 = 0.06 voxels, below a tenth.
    image = np.zeros((5, 5, 5), np.float32)
    image[2, 2, 2] = 1
    found = resample(Volume(image, np.eye(4)), Grid((1, 1, 1), shifted(2, 2, 2, scale=(1.01, 1.01, 1.01)))).voxels
    assert found.item() == 1
    # Steps of 1.2: 0.28 voxels.
    found = resample(Volume(image, np.eye(4)), Grid((1, 1, 1), shifted(2, 2, 2, scale=(1.2, 1, 1)))).voxels
    assert found.item() == pytest.approx(gaussian(np.sqrt(1.2**2 - 1) / 2.354820045, [0])[0])
    assert found.item() < 0.998


@pytest.mark.parametrize(
    ("corners", "label"),
    [
        # Shares of the corners at 0.4 along x and y: 0.36, 0.24 (y + 1), 0.24 (x + 1), 0.16 (both).
        ([0, 1, 2, 2], 2),  # 2 has 0.40, nothing 0.36, 1 has 0.24; the nearest voxel holds nothing
        ([0, 2, 1, 1], 1),
        ([0, 1, 2, 3], 0),  # nothing has most
        ([3, 1, 1, 0], 1),  # 1 has 0.48
        ([3, 1, 2, 0], 3),
    ],
)
def test_the_label_with_the_largest_share_wins(corners, label):
    labels = Volume(np.array(corners, np.uint8).reshape(2, 2, 1), np.eye(4))
    found = resample_labels(labels, Grid((1, 1, 1), shifted(0.4, 0.4))).voxels
    assert found.dtype == np.uint8
    assert found.item() == label


def test_a_label_with_half_of_a_voxel_does_not_win_over_nothing():
    labels = Volume(np.array([0, 4], np.uint8).reshape(2, 1, 1), np.eye(4))
    assert resample_labels(labels, Grid((1, 1, 1), shifted(0.5))).voxels.item() == 0
    assert resample_labels(labels, Grid((1, 1, 1), shifted(0.625))).voxels.item() == 4


def test_an_image_without_a_place_is_refused():
    image = Volume(np.ones((3, 3, 3), np.float32), np.diag([1.0, 1, 0, 1]))
    message = "The affine of the image is singular: it gives no place to its voxels."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        volumes._interpolate_linearly(image, Grid((3, 3, 3), np.eye(4)))


# Large volumes, part by part


@pytest.fixture
def small_parts(monkeypatch):
    """Process volumes in slabs from a few hundred voxels on instead of 34 million."""
    monkeypatch.setattr(volumes, "LARGE_VOXELS", 500)
    monkeypatch.setattr(volumes, "SLAB_VOXELS", 300)


def turned(degrees, spacing, shift=0.3):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    affine = np.array([[c, -s, 0, shift], [s, c, 0, -shift], [0, 0, 1, 0.2], [0, 0, 0, 1.0]])
    return affine @ np.diag([*spacing, 1.0])


TARGETS = [
    Grid((9, 11, 8), turned(0, (2.0, 2.0, 2.0))),
    Grid((9, 11, 8), turned(5, (2.1, 1.9, 2.0))),
    Grid((17, 20, 15), turned(40, (1.0, 1.0, 1.0))),
    Grid((24, 9, 20), turned(0, (0.7, 2.0, 0.8), -3.0)),
    Grid((8, 9, 11), turned(0, (2.0, 2.0, 2.0))[:, [2, 0, 1, 3]]),
    Grid((6, 6, 6), turned(0, (2.0, 2.0, 2.0), 500.0)),
]


@pytest.mark.parametrize("grid", TARGETS, ids=["coarser", "oblique", "turned", "finer", "other axes", "elsewhere"])
def test_a_large_image_is_resampled_in_parts_to_the_same_voxels(grid, small_parts, monkeypatch):
    image = ras_volume((19, 22, 17), (1, 1, 1))
    image = Volume(image.voxels, np.eye(4))
    in_parts = resample(image, grid).voxels
    assert in_parts.dtype == np.float32
    monkeypatch.setattr(volumes, "LARGE_VOXELS", 10**9)
    assert np.abs(in_parts - resample(image, grid).voxels).max() < 1e-5


@pytest.mark.parametrize("grid", TARGETS[:5], ids=["coarser", "oblique", "turned", "finer", "other axes"])
def test_large_labels_are_resampled_in_parts_to_the_same_labels(grid, small_parts, monkeypatch):
    labels = Volume(np.random.default_rng(0).integers(0, 3, (19, 22, 17)).astype(np.uint8), np.eye(4))
    in_parts = resample_labels(labels, grid).voxels
    monkeypatch.setattr(volumes, "LARGE_VOXELS", 10**9)
    assert np.array_equal(in_parts, resample_labels(labels, grid).voxels)


@pytest.mark.parametrize("grid", TARGETS, ids=["coarser", "oblique", "turned", "finer", "other axes", "elsewhere"])
def test_slabs_of_a_grid_are_filled_as_the_whole_is(grid, small_parts):
    image = Volume(ras_volume((7, 8, 6)).voxels, np.diag([3.0, 3, 3, 1]))
    whole, count = np.full(grid.shape, np.nan, np.float32), 0
    for box in slabs(grid):
        whole[box], count = resample(image, grid.crop(box)).voxels, count + 1
    assert count > 1 or np.prod(grid.shape) <= 500
    assert np.abs(whole - resample(image, grid).voxels).max() < 1e-5


def test_an_axis_is_cut_into_parts_of_about_the_voxels_of_a_slab(small_parts):
    # Large from 501 voxels on; parts of 300: 10 * 300 // 501 = 5 of 10 slices, 10 * 300 // 1000 = 3.
    def ends(length, voxels):
        return [(part.start, part.stop) for part in axis_slices(length, voxels)]

    assert ends(10, 500) == [(0, 10)]
    assert ends(10, 501) == [(0, 5), (5, 10)]
    assert ends(10, 1000) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert ends(3, 9000) == [(0, 1), (1, 2), (2, 3)]  # a slice at least


def test_slabs_are_cut_along_the_first_axis(small_parts):
    # 4 * 5 * 30 = 600 voxels: 4 * 300 // 600 = 2 slices.
    whole = (slice(0, 5), slice(0, 30))
    assert list(slabs(Grid((4, 5, 30), np.eye(4)))) == [(slice(0, 2), *whole), (slice(2, 4), *whole)]


def test_only_the_part_that_shapes_a_target_is_read():
    # Places 4 to 10 along x; a Gaussian of 0.5 reaches 2 voxels, and 2 more for interpolation: 0 to 14. Along y 3.5 to
    # 4.5 and 2 more: 1 to 7. Along z 18 to 19 of 20, and no further than the array.
    scale, offset = np.diag([2.0, 1, 1]), np.array([4.0, 3.5, 18])
    found = volumes._source_box(scale, offset, (4, 2, 2), sigma=np.array([0.5, 0, 0]), sides=(30, 30, 20))
    assert found == (slice(0, 15), slice(1, 8), slice(16, 20))


@pytest.mark.parametrize("place", [-9.0, 40.0])
def test_nothing_is_read_for_a_target_beside_the_image(place):
    offset = np.array([place, 0, 0])
    assert volumes._source_box(np.eye(3), offset, (4, 2, 2), sigma=np.zeros(3), sides=(30, 30, 20)) is None


def test_a_head_of_one_millimetre_is_one_slab():
    assert len(list(slabs(Grid((256, 256, 256), np.eye(4))))) == 1


def test_no_slab_is_much_larger_than_it_should_be():
    sizes = [(box[0].stop - box[0].start) * 512 * 512 for box in slabs(Grid((512, 512, 512), np.eye(4)))]
    assert sum(sizes) == 512**3
    assert max(sizes) <= volumes.SLAB_VOXELS


def test_a_thinned_volume_has_every_second_voxel_where_it_was(small_parts):
    whole = Volume(ras_volume((10, 11, 12)).voxels, turned(20, (0.5, 0.5, 2.0)))
    fewer = downsample_large(whole)
    assert fewer.voxels.shape == (5, 6, 12)
    assert np.array_equal(fewer.voxels, whole.voxels[::2, ::2])
    assert np.allclose(fewer.affine @ (2, 3, 4, 1), whole.affine @ (4, 6, 4, 1))


def test_a_volume_is_thinned_until_it_is_no_longer_large(small_parts):
    # 9 x 9 x 27 = 2187 voxels of 1 x 1 x 3 mm: 5 x 9 x 27 = 1215, then 5 x 5 x 27 = 675, of 2 x 2 x 3 mm; then x again.
    whole = Volume(np.arange(2187.0).reshape(9, 9, 27), np.diag([1.0, 1, 3, 1]))
    fewer = downsample_large(whole)
    assert np.array_equal(fewer.voxels, whole.voxels[::4, ::2])
    assert np.array_equal(fewer.affine, np.diag([4.0, 2, 3, 1]))
    assert fewer.voxels.base is None  # a copy, so that the whole can go


def test_a_volume_is_large_from_one_voxel_more_on(small_parts):
    volume = Volume(np.zeros((5, 10, 10)), np.eye(4))
    assert downsample_large(volume) is volume
    assert downsample_large(Volume(np.zeros((501, 1, 1)), np.eye(4))).voxels.shape == (251, 1, 1)


def test_a_small_volume_is_not_thinned():
    volume = ras_volume()
    assert downsample_large(volume) is volume
