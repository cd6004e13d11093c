"""Grids, orientations and resampling."""

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from conftest import ORIENTATIONS
from glimpseg.volume import (
    Grid,
    Volume,
    angle_degrees,
    background_value,
    foreground,
    labels_onto,
    onto,
    overlap,
    same_grid,
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
    back = onto(volume, stored.grid)
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
    assert onto(ramp, finer).voxels[3, 4, 5] == pytest.approx(world[0] + 2 * world[1] - world[2], abs=1e-4)


def test_oblique_and_diagonal_resampling_agree():
    volume = ras_volume((20, 20, 20), (1, 1, 1))
    tiny = np.eye(4)
    tiny[0, 1] = 1e-7  # just enough to leave scipy's separable way
    straight = Grid((12, 12, 12), volume.affine @ np.diag([1.5, 1.5, 1.5, 1]))
    oblique = Grid((12, 12, 12), straight.affine @ tiny)
    assert np.allclose(onto(volume, straight).voxels, onto(volume, oblique).voxels, atol=1e-4)


def test_a_thin_label_survives_coarser_voxels_where_it_is_most():
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[2:10, 2:10, 2:10] = 2
    labels[4:7, 4:7, 4:7] = 3
    coarse = labels_onto(Volume(labels, np.eye(4)), Grid((12, 12, 12), np.eye(4)).at_spacing(2.0))
    assert set(np.unique(coarse.voxels)) == {0, 2, 3}


def test_label_volume_is_kept_by_resampling():
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[10:31, 10:31, 10:31] = 1
    there = labels_onto(Volume(labels, np.eye(4)), Grid((40, 40, 40), np.eye(4)).at_spacing(3.0))
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
