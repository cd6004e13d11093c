"""Raw scans: skull-strip check, registration check, registration, and the brain mask."""

import logging
import sys
import types

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff
from scipy import ndimage
from scipy.spatial.transform import Rotation

from conftest import ORIENTATIONS
from glimpseg import phantom
from glimpseg.data.preprocess import Preprocess, prepare
from glimpseg.data.raw.alignment import check_alignment
from glimpseg.data.raw.check import Verdict
from glimpseg.data.raw.head import check_head, check_study_head, measure_head
from glimpseg.data.raw.itk import as_itk, ras_matrix
from glimpseg.data.raw.preparation import add_brain_mask, check_study, read_unchanged, register, register_and_strip
from glimpseg.data.raw.register import displacement_mm, register_rigidly, shift_mm, turn_degrees
from glimpseg.data.raw.strip import brain_mask, skull_strip_source
from glimpseg.errors import InputError, UsageError
from glimpseg.foreground import foreground
from glimpseg.modality import Modality
from glimpseg.phantom.dataset import as_study
from glimpseg.study import Study
from glimpseg.volume import Volume, resample, resample_labels, same_grid

T1, T1C, T2, FLAIR = Modality
CENTRE = np.array([-119.5, 119.5, 77.0])

SHELLS = {T1: (0.3, 1.5, 0.6), T1C: (0.3, 1.5, 0.7), T2: (1.9, 1.0, 0.3), FLAIR: (0.15, 0.8, 0.4)}
"""Signal of fluid, fat and muscle, relative to the brain."""


@pytest.fixture(scope="module")
def sitk():
    return pytest.importorskip("SimpleITK", reason="the extra [register] is not installed")


@pytest.fixture(scope="module")
def study():
    """A stripped phantom at 3 mm."""
    return as_study(phantom.generate(21, phantom.Settings.at_spacing(3.0)))


@pytest.fixture(scope="module")
def raw(study):
    """The same with the head around the brain, in noisy air."""
    return Study("raw", {m: with_head(image, m) for m, image in study.images.items()})


def with_head(image, modality, seed=0, clipped=False):
    """Fluid, skull and scalp around a stripped brain, a neck with an air cavity, Rician noise."""
    rng, side = np.random.default_rng(seed), image.grid.spacing_mm[0]
    margins = [(round(a / side), round(b / side)) for a, b in ((5, 5), (15, 10), (30, 25))]
    voxels, affine = np.pad(image.voxels, margins), image.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [before for before, _ in margins]
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(voxels > 0, iterations=max(round(4 / side), 1)))
    out, place = ndimage.distance_transform_edt(~brain, sampling=side), np.indices(voxels.shape) * side
    low, high = (np.argwhere(brain) * side).min(0), (np.argwhere(brain) * side).max(0)
    x, y, z = (p - c for p, c in zip(place, [*((low + high) / 2)[:2].tolist(), low[2]], strict=True))
    soft = (out < 15) | ((np.hypot(x / 60, (y + 10) / 65) < 1) & (z < 30))
    fluid, fat, muscle = SHELLS[modality]
    signal = np.where(soft, muscle, 0.0)
    signal[soft & (ndimage.distance_transform_edt(soft, sampling=side) < 7)] = fat
    signal[out < 8.5] = 0.08
    signal[out < 2] = fluid
    signal[brain] = np.where(voxels > 0, voxels / np.median(voxels[voxels > 0]), fluid)[brain]
    signal[np.hypot(x / 12, (y - 40) / 25) ** 2 + (z / 25) ** 2 < 1] *= (
        out[np.hypot(x / 12, (y - 40) / 25) ** 2 + (z / 25) ** 2 < 1] < 4
    )
    noise = rng.normal(0, 0.04, (2, *voxels.shape))
    seen = np.hypot(signal + noise[0], noise[1])
    return Volume((1000 * np.where(clipped & ~soft, 0, seen)).astype(np.float32), affine)


def motion(degrees=(0, 0, 0), mm=(0, 0, 0)):
    """Turned about the middle of the phantom, then shifted."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = CENTRE - matrix[:3, :3] @ CENTRE + mm
    return matrix


def elsewhere(image, matrix):
    return Volume(image.voxels, matrix @ image.affine)


def slab(image, low, high):
    x, y, _ = image.voxels.shape
    box = (slice(0, x), slice(0, y), slice(low, high))
    return Volume(image.voxels[box], image.grid.crop(box).affine)


# Skull-strip check.


@pytest.mark.parametrize("modality", Modality, ids=lambda m: m.key)
def test_a_stripped_brain_has_no_head(study, modality):
    assert check_head(study.images[modality]).verdict is Verdict.NO


@pytest.mark.parametrize("modality", Modality, ids=lambda m: m.key)
def test_a_head_in_noisy_air_is_a_head(raw, modality):
    check = check_head(raw.images[modality])
    assert check.verdict is Verdict.YES
    assert "no constant background" in check.text


@pytest.mark.parametrize("modality", Modality, ids=lambda m: m.key)
def test_a_head_whose_air_was_cut_off_is_still_a_head(study, modality):
    check = check_head(with_head(study.images[modality], modality, clipped=True))
    assert check.verdict is Verdict.YES
    assert check.text.startswith("yes: constant background")


def test_a_slab_of_a_stripped_brain_has_no_head(study):
    assert check_head(slab(study.images[T1], 20, 36)).verdict is Verdict.NO


def test_a_slab_of_a_head_has_one(raw):
    assert check_head(slab(raw.images[T1], 25, 42)).verdict is Verdict.YES


@pytest.mark.parametrize("outside", [-0.4, 0.0], ids=["the darkest", "the brain's mean"])
def test_scores_with_any_background_have_no_head(study, outside):
    voxels = study.images[FLAIR].voxels
    brain = voxels > 0
    score = (voxels - voxels[brain].mean()) / voxels[brain].std()
    scores = np.where(brain, score - (score[brain].min() if outside else 0), outside).astype(np.float32)
    assert check_head(Volume(scores, study.images[FLAIR].affine)).verdict is Verdict.NO


def test_a_brain_in_noise_is_unsure(study):
    image = study.images[T2]
    noise = np.random.default_rng(0).normal(
        0, 0.03 * np.median(image.voxels[image.voxels > 0]), (2, *image.voxels.shape)
    )
    noisy = Volume(np.hypot(image.voxels + noise[0], noise[1]).astype(np.float32), image.affine)
    assert check_head(noisy).verdict is Verdict.UNSURE


def test_the_volume_of_a_ball_is_measured(study):
    radius = 60.0
    place = np.stack(np.meshgrid(*[np.arange(60) * 3.0 - 88.5] * 3, indexing="ij"))
    ball = Volume(((place**2).sum(0) < radius**2).astype(np.float32), np.diag([3.0, 3.0, 3.0, 1.0]))
    found = measure_head(ball)
    assert found.volume_ml == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.03)
    assert found.section_cm2 == pytest.approx(np.pi * radius**2 / 100, rel=0.03)
    assert found.ring == 0


def test_one_head_among_the_images_is_enough(study, raw):
    assert check_study_head([study.images[T1], raw.images[T2]]).verdict is Verdict.YES
    assert check_study_head([study.images[T1], study.images[T2]]).verdict is Verdict.NO


# Conversion between NIfTI and ITK.


OBLIQUE = motion((7, -11, 20), (3, 5, -8)) @ np.array([[1.0, 0, 0, -9], [0, 2.0, 0, 4], [0, 0, 3.0, 7], [0, 0, 0, 1]])


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_voxel_lies_where_itk_reads_it(codes, sitk, tmp_path):
    voxels = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    turn = axcodes2ornt(codes)
    given = Volume(apply_orientation(voxels, turn), OBLIQUE @ inv_ornt_aff(turn, voxels.shape))
    nibabel.save(nibabel.Nifti1Image(given.voxels, given.affine), tmp_path / "image.nii")
    read, ours = sitk.ReadImage(str(tmp_path / "image.nii")), as_itk(given)
    there = sitk.Resample(read, ours, sitk.Transform(), sitk.sitkNearestNeighbor, -99.0)
    assert np.array_equal(sitk.GetArrayFromImage(there), sitk.GetArrayFromImage(ours))
    index = (1, 2, 3)
    world = given.affine @ (*index, 1)
    assert ours[ours.TransformPhysicalPointToIndex((-world[0], -world[1], world[2]))] == given.voxels[index]


def test_a_sheared_lattice_is_refused(sitk):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[1, 2] = 0.1
    with pytest.raises(InputError, match=r"5\.7 degrees from perpendicular"):
        as_itk(Volume(np.zeros((4, 4, 4), np.float32), affine))


def test_axes_that_are_nearly_perpendicular_are_made_so_with_a_warning(sitk, caplog):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[1, 2] = 0.01
    with caplog.at_level(logging.WARNING):
        image = as_itk(Volume(np.zeros((4, 4, 101), np.float32), affine))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    assert np.allclose(direction.T @ direction, np.eye(3), atol=1e-12)
    assert "0.25 mm" in caplog.text  # half the angle at half the length


def test_a_header_in_single_precision_raises_no_warning(sitk, caplog):
    as_itk(Volume(np.zeros((4, 4, 4), np.float32), OBLIQUE.astype(np.float32).astype(float)))
    assert not caplog.records


def test_a_transform_of_itk_maps_points_in_our_world(sitk):
    transform = sitk.Euler3DTransform((10.0, -20.0, 30.0), 0.1, -0.2, 0.3, (4.0, 5.0, 6.0))
    point = np.array([12.0, 34.0, 56.0])
    x, y, z = transform.TransformPoint((-point[0], -point[1], point[2]))
    assert np.allclose(ras_matrix(transform) @ (*point, 1), (-x, -y, z, 1))


def test_without_simpleitk_the_command_is_named(monkeypatch, study):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(UsageError, match=r"pip install 'glimpseg\[register\]'"):
        register(read_unchanged(study))


# Registration check.


def test_registered_sequences_lie_at_one_place(study, sitk):
    check = check_alignment(study.images[T1C], study.images[FLAIR])
    assert check.verdict is Verdict.NO
    assert check.shift_mm < 1


@pytest.mark.parametrize(("degrees", "mm"), [((0, 0, 0), (0, 0, 4.0)), ((0, 5.0, 0), (0, 0, 0))], ids=["4 mm", "5 deg"])
@pytest.mark.parametrize("common", [False, True], ids=["stripped apart", "stripped in common"])
def test_a_shift_or_turn_is_seen_and_measured(study, sitk, degrees, mm, common):
    first, second = study.images[T1C], elsewhere(study.images[FLAIR], motion(degrees, mm))
    if common:
        second = Volume(np.where(foreground(first.voxels), resample(second, first.grid).voxels, 0), first.affine)
    check = check_alignment(first, second)
    assert check.verdict is Verdict.YES
    assert check.shift_mm == pytest.approx(np.linalg.norm(mm), abs=1)
    assert check.turn_degrees == pytest.approx(max(degrees), abs=1)


def test_images_without_a_common_place_are_misaligned(study, sitk):
    check = check_alignment(study.images[T1C], elsewhere(study.images[T1], motion(mm=(0, 900, 0))))
    assert check.verdict is Verdict.YES
    assert "cannot be registered" in check.text


def test_without_simpleitk_a_large_shift_is_seen_and_none_is_unsure(monkeypatch, study):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    far = check_alignment(study.images[T1C], elsewhere(study.images[FLAIR], motion(mm=(0, 9.0, 0))))
    near = check_alignment(study.images[T1C], study.images[FLAIR])
    assert (far.verdict, near.verdict) == (Verdict.YES, Verdict.UNSURE)
    assert far.shift_mm == pytest.approx(9, abs=2)
    assert "glimpseg[register]" in near.text


# Registration.


def test_displacement_is_that_of_a_ball_of_eighty_millimetres():
    rng = np.random.default_rng(0)
    points = rng.uniform(-80, 80, (200_000, 3))
    points = points[np.linalg.norm(points, axis=1) < 80] + CENTRE
    matrix = motion((3, -2, 4), (4, -6, 3))
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    by_points = np.sqrt(((moved - points) ** 2).sum(1).mean())
    assert displacement_mm(matrix, CENTRE) == pytest.approx(by_points, rel=0.01)


ONE = (FLAIR, "moved far")
"""The only case of the quick part of the suite."""
MOTIONS = {
    "moved": ((3, -2, 4), (4, -6, 3)),
    "moved far": ((10, 5, -12), (20, -30, 25)),
    "headers lost": ((0, 0, 0), (90, 120, -70)),
}
EACH_MOTION = [
    pytest.param(modality, *values, id=f"{modality.key}-{name}", marks=[pytest.mark.slow] * ((modality, name) != ONE))
    for modality in (T1, T2, FLAIR)
    for name, values in MOTIONS.items()
]


@pytest.fixture(scope="module")
def finer():
    """Images of a stripped phantom at 2 mm."""
    return as_study(phantom.generate(22, phantom.Settings.at_spacing(2.0))).images


@pytest.mark.parametrize(("modality", "degrees", "mm"), EACH_MOTION)
def test_a_known_motion_is_found_within_half_a_millimetre_and_half_a_degree(sitk, finer, modality, degrees, mm):
    truth = motion(degrees, mm)
    rest = np.linalg.inv(truth) @ register_rigidly(finer[T1C], elsewhere(finer[modality], truth))
    assert shift_mm(rest, CENTRE) < 0.5
    assert turn_degrees(rest) < 0.5


def test_registration_gives_the_same_bits_twice(study, sitk):
    second = elsewhere(study.images[T2], motion((3, -2, 4), (4, -6, 3)))
    assert np.array_equal(register_rigidly(study.images[T1C], second), register_rigidly(study.images[T1C], second))
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() > 0


# Preparation of a raw study.


@pytest.fixture(scope="module")
def misaligned(study):
    """A study whose FLAIR is moved by 20 mm and 12 degrees."""
    matrix = motion((0, 0, 12), (10, -15, 8))
    return Study("misaligned", {T1C: study.images[T1C], FLAIR: elsewhere(study.images[FLAIR], matrix)})


@pytest.fixture(scope="module")
def aligned(misaligned, sitk):
    """The misaligned study after registration."""
    return register_and_strip(misaligned)


def test_misaligned_sequences_are_registered(study, aligned):
    back = aligned.study.images[FLAIR]
    assert np.array_equal(back.voxels, study.images[FLAIR].voxels)  # no voxel was interpolated
    assert np.abs(back.grid.corners_mm() - study.images[FLAIR].grid.corners_mm()).max() < 2
    assert same_grid(aligned.study.images[T1C].grid, study.images[T1C].grid)
    assert any(note.startswith("FLAIR was registered to T1c") for note in aligned.notes)


def test_a_registered_study_is_prepared_like_one_that_was_never_moved(study, misaligned, aligned):
    settings = Preprocess(spacing_mm=3.0)
    with pytest.raises(InputError, match="turned by 12"):
        prepare(misaligned, settings)
    together = prepare(aligned.study, settings)
    never = prepare(study.restricted_to(T1C | FLAIR), settings)
    whole = [np.zeros(never.own.shape), np.zeros(never.own.shape)]
    for values, case in zip(whole, (together, never), strict=True):
        start = np.rint(np.linalg.solve(never.own.affine, case.grid.affine)[:3, 3]).astype(int)
        values[tuple(slice(s, s + n) for s, n in zip(start, case.image.shape[1:], strict=True))] = case.image[3]
    assert np.corrcoef(whole[0].ravel(), whole[1].ravel())[0, 1] > 0.97
    assert not together.warnings


def test_sequences_at_one_place_are_left_as_they_are(study, sitk):
    pair = study.restricted_to(T1C | T2)
    aligned = register_and_strip(pair)
    assert all(aligned.study.images[m].affine is pair.images[m].affine for m in (T1C, T2))
    assert aligned.study.brain is None
    assert len(aligned.checks) == 2
    assert aligned.notes == ()


def test_labels_come_back_to_the_grid_of_every_sequence(study, misaligned, aligned):
    labels = study.reference
    assert np.array_equal(aligned.labels_on_given_grid(labels).voxels, labels.voxels)  # the reference's own grid
    there = aligned.labels_on_given_grid(labels, FLAIR)
    assert same_grid(there.grid, misaligned.images[FLAIR].grid)
    both = (there.voxels > 0) & (labels.voxels > 0)  # FLAIR's voxels are the phantom's own
    assert 2 * both.sum() / ((there.voxels > 0).sum() + (labels.voxels > 0).sum()) > 0.95


def test_values_come_back_by_interpolation(study, misaligned):
    aligned = read_unchanged(misaligned)
    there = aligned.values_on_given_grid(study.images[T1C], FLAIR)
    expected = resample(study.images[T1C], misaligned.images[FLAIR].grid)
    assert np.array_equal(there.voxels, expected.voxels)


def test_a_sequence_that_is_not_there_gets_no_labels(study, misaligned):
    with pytest.raises(UsageError, match=r"no T2 .* one of T1c \+ FLAIR"):
        read_unchanged(misaligned).labels_on_given_grid(study.reference, T2)
    with pytest.raises(UsageError, match="no T2 to register to"):
        read_unchanged(misaligned, T2)


def test_a_mask_goes_with_the_sequence_it_was_drawn_on(study, misaligned, sitk):
    image = misaligned.images[FLAIR]
    mask = Volume(foreground(image.voxels).astype(np.uint8), image.affine)
    aligned = register(read_unchanged(Study("masked", misaligned.images, brain=mask)))
    assert same_grid(aligned.study.brain.grid, aligned.study.images[FLAIR].grid)
    assert check_study(Study("masked", {T1C: misaligned.images[T1C]}, brain=mask)).head is None


# Brain mask by deepbet.


class FakeExtraction:
    """Replacement of deepbet: the largest object brighter than half of the usual brain signal."""

    def __init__(self, no_gpu):
        assert no_gpu

    def run(self, image):
        parts, _ = ndimage.label(ndimage.binary_erosion(np.asarray(image.dataobj) > 500))
        mask = (parts == np.bincount(parts[parts > 0]).argmax()).astype(np.uint8)
        return image, nibabel.Nifti1Image(mask, image.affine), mask.sum()


@pytest.fixture
def deepbet(monkeypatch):
    module = types.ModuleType("deepbet")
    module.BrainExtraction = FakeExtraction
    monkeypatch.setitem(sys.modules, "deepbet", module)
    return module


def test_a_raw_study_gets_a_brain_for_every_sequence(study, raw, deepbet, sitk):
    pair = raw.restricted_to(T1 | T2)
    aligned = register_and_strip(pair)
    assert "deepbet found the brain in T1" in aligned.notes[-1]
    prepared = prepare(aligned.study, Preprocess(spacing_mm=3.0))
    brain = aligned.study.brain
    for channel in (0, 2):
        assert prepared.inside[channel].sum() == pytest.approx(brain.voxels.sum(), rel=0.05)
    there = resample_labels(brain, study.images[T1].grid).voxels > 0
    assert (study.images[T1].voxels[there] > 0).mean() > 0.95


def test_without_deepbet_the_command_is_named(monkeypatch, raw):
    monkeypatch.setitem(sys.modules, "deepbet", None)
    with pytest.raises(UsageError, match=r"pip install 'glimpseg\[skullstrip\]'.*--brain-mask"):
        add_brain_mask(read_unchanged(raw))


def test_a_head_without_t1_asks_for_a_mask(raw):
    with pytest.raises(InputError, match="--brain-mask"):
        add_brain_mask(read_unchanged(raw.restricted_to(T2 | FLAIR)))


def test_t1c_is_stripped_where_only_it_has_thin_slices(study):
    thick = study.images[T1].affine @ np.diag([1, 1, 3, 1])
    coarse = Volume(study.images[T1].voxels[:, :, ::3], thick)
    assert skull_strip_source({T1: study.images[T1], T1C: study.images[T1C]}) is T1
    assert skull_strip_source({T1: coarse, T1C: study.images[T1C]}) is T1C


@pytest.mark.parametrize(("fails", "says"), [(ValueError("attempt to get argmax"), "no brain"), (None, "0 ml")])
def test_a_brain_that_deepbet_cannot_find_is_said(deepbet, raw, monkeypatch, fails, says):
    def run(self, image):
        if fails:
            raise fails
        return image, nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), 0

    monkeypatch.setattr(FakeExtraction, "run", run)
    with pytest.raises(InputError, match=says):
        brain_mask(raw.images[T1])


@pytest.mark.slow
def test_deepbet_itself_finds_the_brain_of_a_synthetic_head(study, raw):
    pytest.importorskip("deepbet", reason="the extra [skullstrip] is not installed")
    mask = brain_mask(raw.images[T1]).voxels > 0
    brain = resample(
        Volume((study.images[T1].voxels > 0).astype(np.float32), study.images[T1].affine), raw.images[T1].grid
    )
    truth = ndimage.binary_fill_holes(ndimage.binary_closing(brain.voxels > 0.5, iterations=2))
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.9
