"""Augmentation: what each change does, by hand or by scipy, and how often it is drawn."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage
from scipy.spatial.transform import Rotation
from scipy.stats import norm

from glimpseg.data import augment
from glimpseg.data.augment import Augment, Transform

STILL = Transform(
    matrix=np.eye(3), nearest=False, noise_sd=0.0, noise_seed=0, plane_jitter=0.0, blur_voxels=np.zeros(4),
    gain=np.ones(4), contrast=np.ones(4), resolution=np.ones(4), exponent=np.ones(4),
)  # fmt: skip
CHANGES = ("rotation", "zooming", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma")
OFF = Augment(**dict.fromkeys(CHANGES, 0.0), mirror=(False, False, False))


def drawn(count=1, **settings):
    """So many transforms under these settings, all else off."""
    rng = np.random.default_rng(0)
    return [augment.sample(replace(OFF, **settings), rng) for _ in range(count)]


def along_x(*values, width=1):
    """An image whose four modalities hold these values along x."""
    return torch.tensor(values, dtype=torch.float32)[None, None, :, None, None].repeat(1, 4, 1, width, width)


def applied(image, labels=None, **changes):
    return augment.apply([replace(STILL, **changes)], image, labels)


def coloured(values, **changes):
    """The first two modalities after a change, along x."""
    changed, _ = applied(along_x(*values), **changes)
    assert changed.shape == (1, 4, len(values), 1, 1)
    return changed[0, :2, :, 0, 0].tolist()


# Zoom


def zoomed(scale):
    return drawn(zooming=1.0, zoom=(scale, scale))[0].matrix


def test_a_scale_of_two_makes_things_twice_as_long():
    labels = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    labels[:, 3:5, 3:5, 3:5] = 3
    _, larger = applied(along_x(*range(8), width=8), labels, matrix=zoomed(2.0))
    # Voxel i shows i / 2 + 1.75: 2 shows 2.75, 5 shows 4.25; 1 and 6 lie outside.
    expected = torch.zeros_like(labels)
    expected[:, 2:6, 2:6, 2:6] = 3
    assert torch.equal(larger, expected)


def test_a_scale_of_one_half_shows_more_and_fills_with_background():
    image, labels = along_x(*[5.0] * 8, width=8), torch.full((1, 8, 8, 8), 2)
    smaller, found = applied(image, labels, matrix=zoomed(0.5))
    # Voxel i shows 2i - 3.5: 2 shows 0.5, 5 shows 6.5; 1 would show -1.5.
    expected = torch.zeros_like(labels)
    expected[:, 2:6, 2:6, 2:6] = 2
    assert torch.equal(found, expected)
    assert torch.allclose(smaller, 2.5 * expected[:, None].float(), atol=1e-5)


def test_images_are_interpolated_linearly():
    changed, _ = applied(along_x(*range(1, 9), width=8), matrix=zoomed(2.0))
    assert changed[0, 0, :, 3, 4].tolist() == pytest.approx([2.75 + i / 2 for i in range(8)])


# Rotation


@pytest.mark.parametrize("angles", [(90, 0, 0), (0, 90, 0), (0, 0, 90), (10, -20, 30)])
def test_rotations_are_right_handed_about_x_then_y_then_z(angles):
    expected = Rotation.from_euler("XYZ", angles, degrees=True).as_matrix()
    assert np.allclose(augment._rotation(np.radians(angles)), expected)


def test_the_largest_angle_is_a_setting():
    angles = [Rotation.from_matrix(t.matrix).magnitude() for t in drawn(50, rotation=1.0, rotation_degrees=2.0)]
    assert np.radians(1.5) < max(angles) < np.radians(2 * 3**0.5)


@pytest.mark.parametrize("nearest", [False, True])
def test_an_oblique_crop_is_scipys(nearest):
    """Rotated about all axes, zoomed and mirrored, of unequal sides; outside it is 0, or -1 by nearest neighbour."""
    rng = np.random.default_rng(0)
    matrix = Rotation.from_euler("XYZ", (20, -35, 50), degrees=True).as_matrix() @ np.diag([1, -1, 1]) / 0.8
    image, labels = rng.normal(size=(1, 4, 9, 12, 7)).astype(np.float32), rng.integers(0, 5, (1, 9, 12, 7))
    changed, found = applied(torch.from_numpy(image), torch.from_numpy(labels), matrix=matrix, nearest=nearest)

    centre = (np.array(labels.shape[1:]) - 1) / 2
    there = partial(ndimage.affine_transform, matrix=matrix, offset=centre - matrix @ centre, mode="grid-constant")
    expected = np.stack([there(channel, order=1 - nearest, cval=-float(nearest)) for channel in image[0]])
    assert np.allclose(changed[0], expected, atol=2e-5)
    assert np.array_equal(found[0], there(labels[0], order=0, cval=0))


# Mirrors


def test_each_axis_that_may_be_mirrored_is_half_of_the_time():
    signs = np.array([np.diag(transform.matrix) for transform in drawn(200, mirror=(True, False, True))])
    # Expected 100 of 200, standard deviation 7.
    assert np.abs((signs[:, [0, 2]] == -1).sum(0) - 100).max() < 30
    assert (signs[:, 1] == 1).all()
    assert 26 < ((signs[:, 0] == -1) & (signs[:, 2] == -1)).sum() < 74  # apart from each other


# Batches and maps


def test_images_stay_in_single_precision():
    changes = {name: np.full(4, 0.9) for name in ("blur_voxels", "gain", "contrast", "resolution", "exponent")}
    changed, _ = applied(along_x(1.0, 2.0, 3.0), noise_sd=0.1, plane_jitter=0.1, **changes)
    assert changed.dtype == torch.float32


def test_each_sample_has_its_own_transform():
    image = along_x(1.0, 2.0, 3.0).repeat(2, 1, 1, 1, 1)
    flipped = replace(STILL, matrix=np.diag([-1.0, 1, 1]), gain=np.full(4, 2.0))
    changed, _ = augment.apply([STILL, flipped], image, None)
    assert changed[:, 0, :, 0, 0].tolist() == [pytest.approx([1, 2, 3]), pytest.approx([6, 4, 2])]


def test_what_was_given_stays_as_it_was():
    for changes in ({}, {"matrix": np.diag([-1.0, 1, 1])}):
        image = along_x(1.0, 2.0, 3.0)
        applied(image, gain=np.full(4, 2.0), blur_voxels=np.full(4, 0.5), resolution=np.full(4, 0.5), **changes)
        assert image[0, 0, :, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_several_label_maps_of_one_sample_move_alike(dtype):
    labels = torch.tensor([[0, 1, 4], [3, 0, 2]], dtype=dtype)[None, :, :, None, None]  # b n x y z
    _, found = applied(along_x(1.0, 2.0, 3.0), labels, matrix=np.diag([-1.0, 1, 1]))
    assert found[0, :, :, 0, 0].tolist() == [[4, 1, 0], [2, 0, 3]]
    assert (found.dtype, found.shape) == (dtype, labels.shape)


def test_labels_keep_their_values_between_voxels():
    labels = torch.tensor([0, 0, 3, 3, 1, 1])[None, :, None, None].expand(1, 6, 6, 6)
    _, found = applied(along_x(*range(6), width=6), labels, matrix=zoomed(1.25))
    # Voxel i shows 0.8 i + 0.5: 0.5, 1.3, 2.1, 2.9, 3.7, 4.5, none of which is a mean of labels.
    assert found[0, 1:5, 3, 3].tolist() == [0, 3, 3, 1]


# Intensities


def test_gain_multiplies_each_modality_by_its_own_number():
    assert coloured((1, 2, 4), gain=np.array([2.0, 0.5, 1, 1])) == [[2, 4, 8], [0.5, 1, 2]]


def test_contrast_scales_deviations_from_the_mean():
    # Mean 4: 4 - 3/2, 4 - 1/2, ...; and 4 - 6, 4 - 2, ...
    changed = coloured((1, 3, 5, 7), contrast=np.array([0.5, 2.0, 1, 1]))
    assert changed == [[2.5, 3.5, 4.5, 5.5], [-2, 2, 6, 10]]


def test_background_takes_part_in_the_mean_and_stays_zero():
    # Mean 3 of 0, 2, 4, 6: 3 - 1/2, 3 + 1/2, 3 + 3/2.
    assert coloured((0, 2, 4, 6), contrast=np.full(4, 0.5))[0] == [0, 2.5, 3.5, 4.5]


def test_each_modality_has_its_own_mean():
    image = along_x(1.0, 3.0) * torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None, None, None]
    changed, _ = applied(image, contrast=np.full(4, 0.5))
    # Means 2, 20, 200 and 2000.
    assert changed[0, :, :, 0, 0].tolist() == [[1.5, 2.5], [15, 25], [150, 250], [1500, 2500]]


@pytest.mark.parametrize("unit", [1, 0.01])
def test_a_gamma_curve_keeps_mean_and_deviation(unit):
    changed = coloured((1 * unit, 3 * unit, 5 * unit), exponent=np.array([2.0, 1, 1, 1]))
    # (0, 1/2, 1) squared, times 4, plus 1: 1, 2, 5. Mean 8/3, deviation sqrt(13/3); before: 3 and 2.
    expected = [unit * (3 + (value - 8 / 3) * 2 / (13 / 3) ** 0.5) for value in (1, 2, 5)]
    assert changed[0] == pytest.approx(expected, rel=1e-5)
    assert changed[1] == pytest.approx([1 * unit, 3 * unit, 5 * unit])


def test_an_exponent_below_one_bends_the_other_way():
    changed = coloured((2, 3, 6), exponent=np.array([0.5, 1, 1, 1]))[0]
    # (0, 1/4, 1) become 0, 1/2, 1: evenly spaced.
    assert changed[1] - changed[0] == pytest.approx(changed[2] - changed[1], rel=1e-5)
    assert np.mean(changed) == pytest.approx(11 / 3)


@pytest.mark.parametrize("change", ["exponent", "contrast"])
def test_an_image_of_one_value_stays(change):
    assert coloured((2, 2, 2), **{change: np.full(4, 1.4)})[0] == pytest.approx([2, 2, 2])


def test_low_resolution_takes_nearest_voxels_and_interpolates_between_them():
    # Half of 4 is 2: voxels 0 and 2, seen at -1/4, 1/4, 3/4 and 5/4 of their distance.
    changed = coloured((1, 2, 5, 9), resolution=np.array([0.5, 1, 1, 1]))
    assert changed == [pytest.approx([1, 2, 4, 5]), [1, 2, 5, 9]]


def test_the_number_of_coarse_voxels_is_rounded():
    # 0.55 of 5 is 2.75, so 3: voxels 0, 1 and 3, seen at -0.2, 0.4, 1, 1.6 and 2.2.
    expected = [1, 0.6 * 1 + 0.4 * 2, 2, 0.4 * 2 + 0.6 * 6, 6]
    assert coloured((1, 2, 4, 6, 9), resolution=np.array([0.55, 1, 1, 1]))[0] == pytest.approx(expected)


def test_there_is_at_least_one_coarse_voxel():
    # Half of 2 is 1: the first voxel everywhere. Half of 1 is 0.5, so rounded 0, but an image keeps a voxel.
    assert coloured((1, 5), resolution=np.array([0.5, 1, 1, 1]))[0] == [1, 1]
    assert coloured((3,), resolution=np.array([0.5, 1, 1, 1]))[0] == [3]


def kernel(sd):
    """The Gaussian's integral over each voxel, up to four standard deviations."""
    edges = np.arange(-int(4 * sd + 0.5), int(4 * sd + 0.5) + 2) - 0.5
    return np.diff(norm.cdf(edges / sd))


def test_blur_spreads_a_voxel_by_the_gaussians_integral_over_each():
    flat = torch.ones(1, 4, 11, 11, 11)
    bright = flat.clone()
    bright[:, :, 5, 5, 5] = 2
    sd = np.array([0.5, 0.75, 1.0, 0.0])
    difference = applied(bright, blur_voxels=sd)[0] - applied(flat, blur_voxels=sd)[0]
    for channel in range(3):
        profile = np.zeros(11)
        reach = len(kernel(sd[channel])) // 2
        profile[5 - reach : 6 + reach] = kernel(sd[channel])
        expected = profile[:, None, None] * profile[:, None] * profile
        assert np.allclose(difference[0, channel], expected, atol=1e-6)
        assert not difference[0, channel][expected == 0].any()  # beyond four deviations
    assert torch.equal(difference[0, 3], (bright - flat)[0, 3])


def test_blur_sees_air_outside_the_crop():
    changed, _ = applied(torch.ones(1, 4, 11, 11, 11), blur_voxels=np.full(4, 0.5))
    # In the middle of a face the half of the kernel that lies inside; whole kernels along the other two axes.
    inside = kernel(0.5)[2:].sum()
    assert changed[0, 0, 5, 5, 5] == pytest.approx(1, abs=1e-4)
    assert changed[0, 0, 0, 5, 5] == pytest.approx(inside, abs=1e-4)
    assert changed[0, 0, 5, 0, 10] == pytest.approx(inside**2, abs=1e-4)


def test_noise_is_gaussian_of_its_deviation_and_follows_its_seed():
    image = torch.full((1, 4, 16, 16, 16), 5.0)
    first, same, other = (applied(image, noise_sd=0.3, noise_seed=seed)[0] - image for seed in (1, 1, 2))
    # 16,384 draws: standard errors 0.0023 of the mean, 0.0017 of the deviation.
    assert float(first.mean()) == pytest.approx(0, abs=0.01)
    assert float(first.std()) == pytest.approx(0.3, abs=0.007)
    assert float((first.abs() < 0.3).float().mean()) == pytest.approx(0.683, abs=0.015)  # within one deviation
    assert torch.equal(first, same)
    assert abs(float((first * other).mean())) < 0.005
    assert abs(float((first[0, 0] * first[0, 1]).mean())) < 0.01  # each modality has its own


def test_noise_comes_before_blur_and_blur_before_gain():
    image = torch.full((1, 4, 12, 12, 12), 5.0)
    noisy, _ = applied(image, noise_sd=0.3, noise_seed=1)
    both, _ = applied(image, noise_sd=0.3, noise_seed=1, blur_voxels=np.full(4, 0.6))
    assert torch.allclose(both, applied(noisy, blur_voxels=np.full(4, 0.6))[0])


def test_the_contrast_is_changed_before_the_resolution_and_the_resolution_before_gamma():
    changes = [{"contrast": np.full(4, 0.8)}, {"resolution": np.full(4, 0.5)}, {"exponent": np.full(4, 1.4)}]
    image = along_x(1.0, 2.0, 4.0, 8.0, 3.0, 2.0)
    step_by_step = image
    for change in changes:
        step_by_step, _ = applied(step_by_step, **change)
    at_once, _ = applied(image, **changes[0], **changes[1], **changes[2])
    assert torch.allclose(at_once, step_by_step, atol=1e-6)


def test_planes_are_multiplied_and_raised_up_to_the_jitter():
    one, two = (applied(along_x(*[value] * 500), plane_jitter=0.2)[0] for value in (1.0, 2.0))
    gain, level = (two - one).flatten(), (2 * one - two).flatten()
    # 2000 planes, uniform from -0.2 to 0.2: deviation 0.2 / sqrt(3).
    for found, centre in ((gain, 1), (level, 0)):
        assert (float(found.min()), float(found.max())) == pytest.approx((centre - 0.2, centre + 0.2), abs=0.003)
        assert float(found.std()) == pytest.approx(0.2 / 3**0.5, abs=0.005)
    assert abs(float(torch.corrcoef(torch.stack([gain, level]))[0, 1])) < 0.1


# How often, and how much

SHARES = {name: (n + 1) / 10 for n, name in enumerate(CHANGES)}
"""A probability of its own for each change, so that no two can be taken for each other."""


def always(count=150):
    return drawn(count, **dict.fromkeys(CHANGES, 1.0), zoom=(0.5, 2.0))


def test_each_change_is_drawn_as_often_as_its_setting_says():
    many = drawn(500, **SHARES)
    turned = [not np.allclose(t.matrix, t.matrix[0, 0] * np.eye(3)) for t in many]
    scaled = [abs(np.linalg.det(t.matrix) - 1) > 1e-9 for t in many]
    found = {
        "rotation": turned,
        "zooming": scaled,
        "noise": [t.noise_sd > 0 for t in many],
        "brightness": [(t.gain != 1).all() for t in many],
        "contrast": [(t.contrast != 1).all() for t in many],
        "gamma": [(t.exponent != 1).all() for t in many],
        # Half of the modalities: none of the four in one of sixteen.
        "blur": [(t.blur_voxels != 0).any() for t in many],
        "low_resolution": [(t.resolution != 1).any() for t in many],
    }
    expected = {name: p * (15 / 16 if name in ("blur", "low_resolution") else 1) for name, p in SHARES.items()}
    # The standard deviation is at most 0.022; two settings are 0.1 apart.
    assert {name: np.mean(drawn) for name, drawn in found.items()} == pytest.approx(expected, abs=0.045)


@pytest.mark.parametrize(("parameter", "still"), [("blur_voxels", 0), ("resolution", 1)])
def test_blur_and_low_resolution_fall_on_half_of_the_modalities(parameter, still):
    fallen = np.array([getattr(transform, parameter) != still for transform in always()])
    # The standard deviation is 0.04; how many of the four varies as of four coins: variance 1.
    assert fallen.mean(0) == pytest.approx([0.5] * 4, abs=0.16)
    assert fallen.sum(1).var() == pytest.approx(1, abs=0.45)


@pytest.mark.parametrize("parameter", ["gain", "contrast", "exponent"])
def test_brightness_contrast_and_gamma_fall_on_all_modalities_or_none(parameter):
    sometimes = drawn(40, **dict.fromkeys(CHANGES, 0.5))
    fallen = np.array([getattr(transform, parameter) != 1 for transform in sometimes])
    assert (fallen.all(1) == fallen.any(1)).all()
    assert 0 < fallen.mean() < 1


def check_uniform(values, low, high):
    """The ends are reached within a twentieth of the range, the mean is in the middle."""
    span = high - low
    assert (np.min(values), np.max(values)) == pytest.approx((low, high), abs=0.05 * span)
    assert low - 1e-9 <= np.min(values)
    assert np.max(values) <= high + 1e-9
    # The standard error of the mean of 150 draws is 0.024 of the range.
    assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.1 * span)


def test_zoom_is_uniform_over_its_range():
    check_uniform([np.linalg.det(transform.matrix) ** (-1 / 3) for transform in always()], 0.5, 2.0)


def test_angles_are_uniform_up_to_the_largest_about_each_axis():
    angles = np.array([Rotation.from_matrix(t.matrix).as_euler("XYZ", True) for t in always()])
    for about in angles.T:
        check_uniform(about, -30, 30)
    assert np.abs(np.corrcoef(angles.T) - np.eye(3)).max() < 0.3


def test_the_variance_of_noise_is_uniform_up_to_a_tenth():
    check_uniform([transform.noise_sd**2 for transform in always()], 0, 0.1)


@pytest.mark.parametrize(
    ("parameter", "low", "high"),
    [
        ("blur_voxels", 0.5, 1.0),
        ("gain", 0.75, 1.25),
        ("contrast", 0.75, 1.25),
        ("resolution", 0.5, 1.0),
        ("exponent", 0.7, 1.5),
    ],
)
def test_changes_are_uniform_over_their_range_and_differ_between_modalities(parameter, low, high):
    rows = np.array([getattr(transform, parameter) for transform in always()])
    values = rows[(rows != 0) & (rows != 1)]
    check_uniform(values, low, high)
    assert len(np.unique(values)) == len(values) > 200


def test_noise_has_another_seed_each_time():
    seeds = {transform.noise_seed for transform in drawn(20)}
    assert len(seeds) == 20
    assert max(seeds).bit_length() > 50  # not a few of them


def test_unless_one_plane_is_asked_for_images_are_interpolated():
    assert [drawn(one_plane=plane)[0].nearest for plane in (False, True)] == [False, True]
    assert drawn(plane_jitter=0.1)[0].plane_jitter == 0.1


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_one_plane_turns_by_whole_degrees_with_the_probability_of_a_rotation(probability):
    transforms = drawn(150, one_plane=True, rotation=probability, rotation_degrees=3.0)
    angles = np.array([Rotation.from_matrix(t.matrix).as_euler("XYZ", True) for t in transforms]).round(6)
    turned = angles[angles.any(1)]
    assert set(turned.sum(1)) == {-3, -2, -1, 1, 2}
    assert ((turned != 0).sum(1) == 1).all()
    # Of 150 that share, and five of six of these: 62.5 or 125, standard deviation 6 or 5; of each plane's third 5 or 4.
    assert len(turned) == pytest.approx(125 * probability, abs=18)
    assert (turned != 0).sum(0) == pytest.approx([len(turned) / 3] * 3, abs=18)


@pytest.mark.parametrize(("degrees", "one_plane"), [(0.5, True), (0.0, True)])
def test_whole_degrees_below_one_are_refused(degrees, one_plane):
    with pytest.raises(ValidationError, match=f"rotation_degrees should be at least 1 with one_plane, not {degrees}"):
        Augment(rotation_degrees=degrees, one_plane=one_plane)


@pytest.mark.parametrize(("degrees", "one_plane"), [(1.0, True), (0.5, False)])
def test_other_angles_are_allowed(degrees, one_plane):
    assert Augment(rotation_degrees=degrees, one_plane=one_plane).rotation_degrees == degrees


def test_the_defaults_are_nnunets():
    """nnU-Net v2's default trainer for 3-D crops."""
    settings = Augment()
    assert (settings.rotation_degrees, settings.rotation) == (30, 0.2)
    assert (settings.zoom, settings.zooming) == ((0.7, 1.4), 0.2)
    assert (settings.noise, settings.blur, settings.brightness, settings.contrast) == (0.1, 0.2, 0.15, 0.15)
    assert (settings.low_resolution, settings.gamma) == (0.25, 0.3)
    assert settings.mirror == (True, True, True)
    assert (settings.one_plane, settings.plane_jitter) == (False, 0)


def test_rfnets_settings_are_those_of_its_code():
    """Turns by up to 10 degrees in one plane, flips, `RandomIntensityChange((0.1, 0.1))`; nothing else."""
    settings = augment.RFNET
    assert (settings.rotation_degrees, settings.rotation, settings.one_plane) == (10, 1, True)
    assert settings.plane_jitter == 0.1
    assert settings.mirror == (True, True, True)
    assert all(getattr(settings, name) == 0 for name in CHANGES if name != "rotation")
