"""Grids, orientations and resampling."""

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from conftest import ORIENTATIONS
from glimpseg import volume as volumes
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
    slabs,
    thinned,
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


# Large volumes, part by part


@pytest.fixture
def small_parts(monkeypatch):
    """What is cut from a few hundred voxels on instead of 34 million."""
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
    parts = onto(image, grid).voxels
    monkeypatch.setattr(volumes, "LARGE_VOXELS", 10**9)
    assert np.abs(parts - onto(image, grid).voxels).max() < 1e-5


@pytest.mark.parametrize("grid", TARGETS[:5], ids=["coarser", "oblique", "turned", "finer", "other axes"])
def test_large_labels_are_resampled_in_parts_to_the_same_labels(grid, small_parts, monkeypatch):
    labels = Volume(np.random.default_rng(0).integers(0, 3, (19, 22, 17)).astype(np.uint8), np.eye(4))
    parts = labels_onto(labels, grid).voxels
    monkeypatch.setattr(volumes, "LARGE_VOXELS", 10**9)
    assert np.array_equal(parts, labels_onto(labels, grid).voxels)


@pytest.mark.parametrize("grid", TARGETS, ids=["coarser", "oblique", "turned", "finer", "other axes", "elsewhere"])
def test_slabs_of_a_grid_are_filled_as_the_whole_is(grid, small_parts):
    image = Volume(ras_volume((7, 8, 6)).voxels, np.diag([3.0, 3, 3, 1]))
    whole, count = np.full(grid.shape, np.nan, np.float32), 0
    for box in slabs(grid):
        whole[box], count = onto(image, grid.crop(box)).voxels, count + 1
    assert count > 1 or np.prod(grid.shape) <= 500
    assert np.abs(whole - onto(image, grid).voxels).max() < 1e-5


def test_a_head_of_one_millimetre_is_one_slab():
    assert len(list(slabs(Grid((256, 256, 256), np.eye(4))))) == 1


def test_no_slab_is_much_larger_than_it_should_be():
    sizes = [(box[0].stop - box[0].start) * 512 * 512 for box in slabs(Grid((512, 512, 512), np.eye(4)))]
    assert sum(sizes) == 512**3
    assert max(sizes) <= volumes.SLAB_VOXELS


def test_a_thinned_volume_has_every_second_voxel_where_it_was(small_parts):
    whole = Volume(ras_volume((10, 11, 12)).voxels, turned(20, (0.5, 0.5, 2.0)))
    fewer = thinned(whole)
    assert fewer.voxels.shape == (5, 6, 12)
    assert np.array_equal(fewer.voxels, whole.voxels[::2, ::2])
    assert np.allclose(fewer.affine @ (2, 3, 4, 1), whole.affine @ (4, 6, 4, 1))


def test_a_small_volume_is_not_thinned():
    volume = ras_volume()
    assert thinned(volume) is volume
