"""Registration kept only where it helps: aligned pairs with cut coverage stay, moved pairs come back."""

import logging

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from glimpseg import phantom
from glimpseg.data.notices import collected
from glimpseg.data.raw.preparation import read_unchanged, register, register_and_strip
from glimpseg.data.raw.register import displacement_mm
from glimpseg.data.raw.similarity import mutual_information, similarity_of_motion
from glimpseg.modality import Modality
from glimpseg.phantom.dataset import as_study
from glimpseg.study import Study
from glimpseg.volume import Volume, resample

T1, T1C, T2, FLAIR = Modality
CENTRE = np.array([-119.5, 119.5, 77.0])
SPACING = 3.0
SEEDS = (400, 401, 402, 403)
PAIRS = [(seed, modality) for seed in SEEDS for modality in (T1, T2, FLAIR)]

pytest.importorskip("SimpleITK", reason="the extra [register] is not installed")


@pytest.fixture(scope="module")
def phantoms():
    return {seed: as_study(phantom.generate(seed, phantom.Settings.at_spacing(SPACING))) for seed in SEEDS}


def motion(degrees, mm):
    """Turned about the middle of the phantom, then shifted."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = CENTRE - matrix[:3, :3] @ CENTRE + mm
    return matrix


def cut(image, low, high, kind):
    """A slab of an image: as its own grid, filled up with zeros, or filled up and resampled."""
    if kind == "own grid":
        box = (slice(None), slice(None), slice(low, high))
        box = tuple(slice(*one.indices(n)) for one, n in zip(box, image.voxels.shape, strict=True))
        return Volume(image.voxels[box], image.grid.crop(box).affine)
    voxels = np.zeros_like(image.voxels)
    voxels[:, :, low:high] = image.voxels[:, :, low:high]
    filled = Volume(voxels, image.affine)
    return filled if kind == "zeros" else resample(filled, image.grid.at_spacing(4.0))


def left(moved, truth):
    """Displacement that is left after a registration, in mm."""
    return displacement_mm(np.linalg.inv(truth) @ moved, CENTRE)


def drawn(index):
    """Motion number `index`: 1 to 8 degrees about some axis, and 2 to 10 mm."""
    rng = np.random.default_rng(index)
    axis, way = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
    return motion(axis * (1 + 7 * index / 11), way * (10 - 8 * index / 11))


@pytest.mark.parametrize(
    "index", [pytest.param(n, marks=[] if n in (0, 5, 7) else pytest.mark.slow) for n in range(len(PAIRS))]
)
def test_aligned_images_of_smaller_coverage_stay_where_they_are(phantoms, index):
    seed, modality = PAIRS[index]
    rng = np.random.default_rng([7, index])
    low = int(rng.integers(6, 20))
    kind = ("zeros", "own grid", "resampled")[index % 3]
    images = phantoms[seed].images
    pair = {T1C: images[T1C], modality: cut(images[modality], low, low + int(rng.integers(12, 24)), kind)}
    found = register_and_strip(Study("pair", pair))
    assert np.array_equal(found.motions[modality], np.eye(4)), found.notes


@pytest.mark.parametrize(
    "index", [pytest.param(n, marks=[] if n in (0, 6, 11) else pytest.mark.slow) for n in range(len(PAIRS))]
)
def test_moved_images_come_back(phantoms, index, caplog):
    seed, modality = PAIRS[index]
    images, truth = phantoms[seed].images, drawn(index)
    elsewhere = Volume(images[modality].voxels, truth @ images[modality].affine)
    if index % 3 == 1:
        elsewhere = resample(elsewhere, images[modality].grid)
    if index % 3 == 2:
        elsewhere = cut(resample(elsewhere, images[modality].grid), 8, 42, "zeros")
    with caplog.at_level(logging.INFO, "glimpseg"):
        found = register_and_strip(Study("pair", {T1C: images[T1C], modality: elsewhere}))
    assert left(found.motions[modality], truth) < 1
    (said,) = [note for note in found.notes if "was registered to T1c" in note]
    assert said in caplog.messages


def test_a_registration_of_an_aligned_pair_is_not_kept_even_if_it_is_asked_for(phantoms):
    images = phantoms[SEEDS[0]].images
    pair = {T1C: images[T1C], FLAIR: cut(images[FLAIR], 10, 26, "zeros")}
    with collected() as said:
        found = register(read_unchanged(Study("pair", pair)))
    assert np.array_equal(found.motions[FLAIR], np.eye(4))
    assert "not moved" in said.notes[-1]


def test_similarity_is_measured_over_the_same_voxels(phantoms):
    images = phantoms[SEEDS[0]].images
    away = similarity_of_motion(images[T1C], images[FLAIR], motion((0, 0, 0), (0, 0, 8.0)))
    assert away.before > 1.5 * away.after
    assert not away.rises
    assert similarity_of_motion(images[T1C], images[FLAIR], motion((0, 0, 0), (0, 0, 500.0))) is None


def test_mutual_information_of_equal_halves_is_the_logarithm_of_two():
    values = np.repeat([0.0, 1.0], 500)
    assert mutual_information(values, values) == pytest.approx(np.log(2))
    assert mutual_information(values, np.tile([0.0, 1.0], 500)) == pytest.approx(0, abs=1e-9)
