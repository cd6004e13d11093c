"""A few voxels do not decide the intensities: statistics with spikes are those without."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glimpseg.data.notices import collected
from glimpseg.data.preprocess import Preprocess, prepare
from glimpseg.data.spikes import Repaired, repair, warn_of_repair
from test_foreground import DISTANCE, SEEDS, ball, study


@given(seed=SEEDS, spread=st.floats(0, 0.3), offset=st.sampled_from([0, -100, 1e4]))
def test_a_clean_image_is_the_same_array(seed, spread, offset):
    image, inside = ball(seed, spread=spread)
    image = image + np.float32(offset)
    sound = repair(image, inside, float(offset))
    assert sound.voxels is image
    assert sound.inside is inside
    assert sound.spikes == sound.unwrapped == 0


@given(
    seed=SEEDS,
    count=st.integers(1, 60),
    factor=st.sampled_from([10, 110, 1000, 32767, 1e30, -100, -1e6]),
)
def test_statistics_with_spikes_equal_those_without(seed, count, factor):
    image, inside = ball(seed)
    places = np.argwhere(inside)
    chosen = tuple(places[np.random.default_rng(seed).choice(len(places), count, replace=False)].T)
    spiked = image.copy()
    spiked[chosen] = np.float32(100 * factor)
    sound = repair(spiked, inside, 0.0)
    assert sound.spikes >= 0.9 * count
    rest = np.ones_like(inside)
    rest[chosen] = False
    assert np.array_equal(sound.voxels[rest], image[rest])
    before, after = image[inside].astype(float), sound.voxels[sound.inside].astype(float)
    assert after.mean() == pytest.approx(before.mean(), rel=0.01)
    assert after.std() == pytest.approx(before.std(), rel=0.05)


def test_an_image_near_the_end_of_float32_is_repaired_as_the_same_image_of_usual_numbers():
    """A factor of 2^118 changes no digit of a float32; 1000 * 2^118 is 3.3e38, and float32 ends at 3.4e38."""
    image, inside = ball(0)
    image[tuple(np.argwhere(inside)[50])] = 1000
    usual, large = (repair(image * np.float32(factor), inside, 0.0) for factor in (1, 2.0**118))
    assert usual.spikes == large.spikes == 1
    assert np.array_equal(usual.voxels, large.voxels / np.float32(2.0**118))


@given(seed=SEEDS, radius=st.floats(1, 3), level=st.sampled_from([1e4, 3e6, -1e5]))
def test_a_group_of_spikes_is_filled_from_its_surroundings(seed, radius, level):
    image, inside = ball(seed)
    spiked = np.where(radius > DISTANCE, np.float32(level), image)
    sound = repair(spiked, inside, 0.0)
    assert sound.spikes == (radius > DISTANCE).sum()
    assert np.abs(sound.voxels[radius > DISTANCE] - 100).max() < 45


@given(seed=SEEDS, factor=st.sampled_from([12, 20, 40]))
def test_a_bright_group_side_by_side_does_not_decide_the_statistics(seed, factor):
    # The range of the tissue is at most 2.5 * 15, so that twelve times the median lies 29 ranges above it.
    image, inside = ball(seed)
    group = np.linalg.norm(np.indices(image.shape) - 17.5, axis=0) < 3
    sound = repair(np.where(group, np.float32(100 * factor), image), inside, 0.0)
    before, after = image[inside].astype(float), sound.voxels[sound.inside].astype(float)
    assert sound.spikes == group.sum()
    assert after.std() == pytest.approx(before.std(), rel=0.05)


@given(seed=SEEDS, count=st.integers(1, 20))
def test_spikes_in_the_air_are_no_brain(seed, count):
    image, inside = ball(seed)
    places = np.argwhere(DISTANCE > 15)
    image[tuple(places[np.random.default_rng(seed).choice(len(places), count, replace=False)].T)] = 32767
    sound = repair(image, image != 0, 0.0)
    assert np.array_equal(sound.inside, inside)
    assert (sound.voxels[~inside] == 0).all()


@given(seed=SEEDS, highest=st.integers(33_000, 50_000))
def test_values_that_wrapped_get_their_values_back(seed, highest):
    image, inside = ball(seed, spread=0.3)
    whole = np.rint(image * (highest / image.max()))
    wrapped = np.where(whole > 32_767, whole - 65_536, whole).astype(np.float32)
    sound = repair(wrapped, inside, 0.0)
    assert sound.unwrapped == (whole > 32_767).sum()
    assert np.array_equal(sound.voxels, whole)


@pytest.mark.parametrize("scale", ["zscore", "minmax", "bytes"])
@pytest.mark.parametrize("spacing", [1.0, 2.0])
def test_no_scale_is_moved_by_spikes(scale, spacing):
    settings = Preprocess(scale=scale, spacing_mm=spacing)
    image, inside = ball(1)
    places = np.argwhere(inside)[::350]
    spiked = image.copy()
    spiked[tuple(places.T)] = 32767
    one, other = (prepare(study(T1=voxels), settings) for voxels in (image, spiked))
    gap = np.abs(one.image - other.image) / (255 if scale == "bytes" else one.image.std())
    assert np.median(gap[one.inside]) < 0.01
    told = f"S: T1: {len(places)} intensities that no tissue has (spikes) were replaced by their neighbours."
    assert told in other.warnings
    assert told not in one.warnings


@pytest.mark.parametrize(
    ("spikes", "unwrapped", "told"),
    [
        (0, 0, []),
        (1, 0, ["T1: 1 intensity that no tissue has (a spike) was replaced by its neighbours."]),
        (0, 1, ["T1: 1 voxel was too bright for 16 bits and had become negative; repaired."]),
        (
            1200,
            2,
            [
                "T1: 2 voxels were too bright for 16 bits and had become negative; repaired.",
                "T1: 1,200 intensities that no tissue has (spikes) were replaced by their neighbours.",
            ],
        ),
    ],
)
def test_one_repaired_voxel_is_told_as_one(spikes, unwrapped, told):
    image, inside = ball(1)
    with collected() as notices:
        warn_of_repair(Repaired(voxels=image, inside=inside, spikes=spikes, unwrapped=unwrapped), "T1")
    assert notices.warnings == told
