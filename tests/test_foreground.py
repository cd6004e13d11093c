"""The brain is found whatever the air holds: one value, noise, ringing, a ghost, another constant, nothing."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from glimpseg.data.brains import SeenBrains
from glimpseg.data.notices import collected_warnings
from glimpseg.data.preprocess import Preprocess, prepare
from glimpseg.foreground import air_level, find_foreground, foreground
from glimpseg.modality import Modality
from glimpseg.study import Study
from glimpseg.volume import Volume

SIDE, RADIUS = 36, 12.0
DISTANCE = np.linalg.norm(np.indices((SIDE,) * 3) - (SIDE - 1) / 2, axis=0)
SEEDS = st.integers(0, 10**6)


def ball(seed, *, air=0.0, spread=0.15, radius=RADIUS):
    """Return a ball of tissue around 100, with smooth texture, and its mask."""
    inside = radius > DISTANCE
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=inside.shape), 1.5)
    tissue = 100 * (1 + spread * np.clip(texture / texture.std(), -2.5, 2.5))
    return np.where(inside, tissue, air).astype(np.float32), inside


def within_a_voxel(mask, truth):
    """True if a mask lies between the truth without its outermost voxels and the truth with one voxel more."""
    cube = np.ones((3, 3, 3), bool)
    return bool(
        mask[ndimage.binary_erosion(truth, cube)].all() and not mask[~ndimage.binary_dilation(truth, cube)].any()
    )


@given(seed=SEEDS, air=st.sampled_from([0, -1000, -3.25, 0.1, 500]), radius=st.floats(4, 17))
def test_clean_air_gives_every_voxel_that_is_not_air(seed, air, radius):
    image, truth = ball(seed, air=air, radius=radius)
    found = find_foreground(image)
    assert found.exact
    assert found.background == np.float32(air)
    assert np.array_equal(found.mask, truth)


@given(seed=SEEDS, level=st.floats(-4.5, -1.5), offset=st.sampled_from([0, -1000, 500]), rician=st.booleans())
def test_a_ball_in_noise_is_found_within_a_voxel(seed, level, offset, rician):
    image, truth = ball(seed)
    draw, sigma = np.random.default_rng(seed), 100 * 10**level
    noisy = image + draw.normal(0, sigma, image.shape)
    noisy = np.hypot(noisy, draw.normal(0, sigma, image.shape)) if rician else noisy
    noisy = (noisy + offset).astype(np.float32)
    assert within_a_voxel(foreground(noisy), truth)
    assert abs(air_level(noisy) - offset) <= 2 * sigma + 1e-3


@given(seed=SEEDS, shift=st.floats(0.1, 0.5), order=st.sampled_from([2, 3, 4, 5]), air=st.sampled_from([0, -1000, 300]))
def test_a_ball_with_ringing_is_found_within_a_voxel(seed, shift, order, air):
    image, truth = ball(seed)
    rung = ndimage.shift(image, shift, order=order).astype(np.float32) + np.float32(air)
    assert within_a_voxel(foreground(rung), truth)


@given(seed=SEEDS, share=st.floats(0.01, 0.08))
def test_a_ghost_is_not_brain(seed, share):
    image, truth = ball(seed, radius=9)
    ghost = image + share * np.roll(image, SIDE // 2, axis=1)
    assert within_a_voxel(foreground(ghost.astype(np.float32)), truth)


@given(seed=SEEDS)
def test_an_image_cut_within_the_brain_is_all_brain(seed):
    image, _ = ball(seed, radius=40)
    assert foreground(image).all()


@given(seed=SEEDS, radius=st.floats(15, 25))
def test_a_brain_that_touches_the_border_keeps_its_air(seed, radius):
    image, truth = ball(seed, radius=radius)
    assert np.array_equal(foreground(image), truth)


@given(seed=SEEDS)
def test_a_dark_border_that_is_partly_constant_is_air(seed):
    image, truth = ball(seed)
    noisy = np.abs(image + np.random.default_rng(seed).normal(0, 1, image.shape)).astype(np.float32)
    noisy[:4] = 0
    assert within_a_voxel(foreground(noisy), truth)


def test_ventricles_as_dark_as_noisy_air_are_brain():
    image, truth = ball(1)
    image[DISTANCE < 4] = 0
    noisy = image + np.random.default_rng(1).normal(0, 1, image.shape).astype(np.float32)
    assert within_a_voxel(foreground(noisy), truth)


def study(**images):
    return Study(id="S", images={Modality[name]: Volume(voxels, np.eye(4)) for name, voxels in images.items()})


def test_a_sequence_with_noise_takes_the_brain_of_a_clean_one():
    clean, truth = ball(1)
    noisy = ball(2)[0] + np.random.default_rng(3).normal(0, 2, clean.shape).astype(np.float32)
    prepared = prepare(study(T1C=noisy, FLAIR=clean), Preprocess())
    t1c, flair = (prepared.inside[list(Modality).index(m)] for m in (Modality.T1C, Modality.FLAIR))
    assert np.array_equal(t1c, flair)
    assert t1c.sum() == truth.sum()
    assert any(
        re.match("S: T1c: the air is not one value.*taken from FLAIR.*--brain-mask", w) for w in prepared.warnings
    )


def test_the_brain_of_a_clean_sequence_elsewhere_is_not_taken():
    clean, noisy = (np.roll(ball(seed)[0], shift, axis=0) for seed, shift in ((1, 8), (2, -8)))
    noisy = noisy + np.random.default_rng(3).normal(0, 2, clean.shape).astype(np.float32)
    seen, volumes = SeenBrains(), {Modality.T1: clean, Modality.T2: noisy}
    with collected_warnings() as warnings:
        for modality, voxels in volumes.items():
            seen.add(modality, Volume(voxels, np.diag([-1.0, -1, 1, 1])), "name")
        mask = seen.brain(Modality.T2, "S: T2").mask
    assert within_a_voxel(mask, np.roll(DISTANCE, -8, axis=0) < RADIUS)
    assert "threshold" in warnings[0]


def test_no_air_at_all_is_reported():
    prepared = prepare(study(T1=ball(1, radius=40)[0]), Preprocess())
    assert any(re.match("S: T1: no air was found.*--brain-mask", text) for text in prepared.warnings)


@pytest.mark.parametrize("offset", [-1000, 500])
@pytest.mark.parametrize("spacing", [1.0, 2.0])
@pytest.mark.parametrize("scale", ["zscore", "minmax", "bytes"])
def test_a_constant_added_to_the_whole_image_changes_nothing(offset, spacing, scale):
    image, _ = ball(1)
    one, other = (
        prepare(study(T1=np.rint(voxels)), Preprocess(spacing_mm=spacing, scale=scale))
        for voxels in (image, image + offset)
    )
    assert np.array_equal(one.inside, other.inside)
    assert np.abs(one.image - other.image).max() <= (1 if scale == "bytes" else 1e-3)


def test_noisy_air_becomes_zero_as_clean_air_does():
    image, _ = ball(1)
    noisy = image - 1000 + np.random.default_rng(3).normal(0, 1, image.shape).astype(np.float32)
    prepared = prepare(study(T1=noisy.astype(np.float32)), Preprocess())
    assert (prepared.image[~prepared.inside] == 0).all()
