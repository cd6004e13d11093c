"""Layouts, preprocessing, cache, augmentation and the order of crops."""

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from conftest import AFFINE, WORDS, head, write_head
from glimpseg.data import augment, loader, preprocess
from glimpseg.data.augment import Augment
from glimpseg.data.cache import CachedCase, cache_key, cache_study, in_memory
from glimpseg.data.layouts import find_studies
from glimpseg.data.loader import CachedStudies, Sampling
from glimpseg.data.preprocess import Preprocess, prepare, reference_on
from glimpseg.errors import InputError
from glimpseg.evaluation.protocol import PROTOCOLS
from glimpseg.modality import SUBSETS, Modality
from glimpseg.study import Study, parse_image
from glimpseg.volume import SAME_GRID_MM, SAME_GRID_VOXELS, Grid, Volume

SETTINGS = Preprocess(spacing_mm=3.0)


def study(seed=0, modalities=tuple(Modality), affine=AFFINE):
    images, labels = head(seed)
    return Study("S", {m: Volume(images[m], affine) for m in modalities}, Volume(labels, affine))


# Layouts


def test_a_folder_of_2023_is_read_with_its_labels(archive):
    studies = find_studies(archive)
    assert [s.id for s in studies] == ["S0", "S1", "S2", "S3"]
    assert studies[0].convention.name == "brats2023"


@pytest.mark.parametrize("subset", SUBSETS)
def test_a_missing_file_is_normal(tmp_path, subset):
    write_head(tmp_path, modalities=tuple(subset))
    assert find_studies(tmp_path)[0].available == subset


def test_names_of_2020_are_read_as_2020(tmp_path):
    images, labels = head()
    place = tmp_path / "BraTS20_001"
    place.mkdir()
    for word, voxels in (("t1ce", images[Modality.T1C]), ("seg", np.where(labels == 3, 4, labels).astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), place / f"BraTS20_001_{word}.nii.gz")
    (found,) = find_studies(tmp_path)
    assert (found.available, found.convention.name) == (Modality.T1C, "brats2021")


def test_two_images_of_one_sequence_in_a_folder_are_refused(tmp_path):
    place = write_head(tmp_path)
    (place / "S1-t1ce.nii.gz").write_bytes((place / "S1-t1c.nii.gz").read_bytes())
    with pytest.raises(InputError, match="two T1c images"):
        find_studies(tmp_path)


def test_two_studies_of_one_name_are_refused(tmp_path):
    write_head(tmp_path / "a", "S1", 0)
    write_head(tmp_path / "b", "S1", 1)
    with pytest.raises(InputError, match="Two studies are called S1"):
        find_studies(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="No study was found"):
        find_studies(tmp_path)


# Preparing


@pytest.mark.parametrize("subset", SUBSETS)
def test_an_absent_file_shapes_nothing(subset):
    alone = prepare(study(modalities=tuple(subset)), SETTINGS)
    blanked = prepare(study(), SETTINGS).restricted_to(subset)
    assert np.array_equal(alone.image, blanked.image)
    assert np.array_equal(alone.target, blanked.target)
    assert alone.available == blanked.available == subset


def test_intensities_are_standard_inside_the_brain():
    made = prepare(study(), dataclasses.replace(SETTINGS, clip=100.0))
    for channel, inside in zip(made.image, made.inside, strict=True):
        assert channel[inside].mean() == pytest.approx(0, abs=0.05)
        assert channel[inside].std() == pytest.approx(1, abs=0.05)
        assert not channel[~inside].any()


def test_a_shifted_background_is_what_zero_became_and_absent_channels_stay_zero():
    settings = dataclasses.replace(SETTINGS, background="shifted", clip=None)
    made = prepare(study(), settings).restricted_to(Modality.T1 | Modality.FLAIR)
    plain = prepare(study(), SETTINGS)
    for channel, modality in enumerate(Modality):
        inside, values = made.inside[channel], made.image[channel]
        if modality in made.available:
            level = values[~inside]
            assert level.std() < 1e-4
            assert level.mean() < -3  # the brain is about 200 +- 40, the background 0
        else:
            assert not values.any()
    assert plain.image.shape == made.image.shape


def test_minmax_runs_from_0_to_1_over_the_whole_volume():
    settings = dataclasses.replace(SETTINGS, scale="minmax", background="shifted", clip=None)
    made, (images, _) = prepare(study(), settings), head()
    for channel, modality in enumerate(Modality):
        whole = images[modality]
        assert made.image[channel].min() == 0
        assert made.image[channel].max() == pytest.approx(1)
        wanted = (whole[20, 24, 18] - whole.min()) / (whole.max() - whole.min())
        assert np.abs(made.image[channel] - wanted).min() < 1e-6


def test_a_constant_image_is_level_under_either_scale():
    images = {Modality.T1: Volume(np.full((24, 24, 24), 7.0, np.float32), AFFINE)}
    brain = Volume(np.pad(np.ones((16, 16, 16), np.uint8), 4), AFFINE)
    for scale in ("zscore", "minmax"):
        made = prepare(Study("S", images, brain=brain), dataclasses.replace(SETTINGS, scale=scale))
        inside = made.inside[0]
        assert np.isfinite(made.image).all()
        assert np.ptp(made.image[0][inside]) < 1e-6


def test_rfnets_intensities_from_present_sequences_are_theirs_where_all_share_a_brain():
    """Inside the joint crop; it alone, and so what lies outside, needs all four."""
    settings = dataclasses.replace(preprocess.RFNET, spacing_mm=3.0)
    whole, theirs = prepare(study(), settings), PROTOCOLS["rfnet"].prepare(study(), settings)
    place = np.round(np.linalg.inv(whole.grid.affine) @ theirs.grid.affine @ [0, 0, 0, 1]).astype(int)[:3]
    low = np.maximum(place, 0)
    high = np.minimum(place + theirs.image.shape[1:], whole.image.shape[1:])
    ours = whole.image[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    low, high = low - place, high - place
    assert ours.size > 0.8 * whole.image.size
    assert np.allclose(ours, theirs.image[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]], atol=1e-4)


def test_scanner_units_do_not_matter():
    images, _ = head()
    scaled = {m: Volume(image * (3.7 + i), AFFINE) for i, (m, image) in enumerate(images.items())}
    assert np.allclose(prepare(Study("S", scaled), SETTINGS).image, prepare(study(), SETTINGS).image, atol=1e-4)


def test_a_background_that_is_not_zero_is_still_background():
    images, _ = head()
    shifted = {m: Volume(image - 5, AFFINE) for m, image in images.items()}
    assert np.allclose(prepare(Study("S", shifted), SETTINGS).image, prepare(study(), SETTINGS).image, atol=1e-4)


def test_a_sequence_on_a_finer_grid_is_resampled_and_reported():
    images, _ = head()
    finer = np.repeat(images[Modality.T2], 2, axis=2)
    affine = AFFINE @ np.diag([1, 1, 0.5, 1])
    affine[2, 3] -= 0.75
    mixed = Study("S", {Modality.T1: Volume(images[Modality.T1], AFFINE), Modality.T2: Volume(finer, affine)})
    made = prepare(mixed, SETTINGS)
    expected = prepare(study(modalities=(Modality.T1, Modality.T2)), SETTINGS)
    assert np.corrcoef(made.image[2].ravel(), expected.image[2].ravel())[0, 1] > 0.85
    assert "T2 lies on another grid" in made.warnings[0]


@pytest.mark.parametrize("fault", ["turned", "apart"])
def test_grids_that_cannot_belong_together_are_refused(fault):
    images, _ = head()
    affine = AFFINE.copy()
    if fault == "turned":
        c, s = np.cos(np.radians(8)), np.sin(np.radians(8))
        affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    else:
        affine[0, 3] += 500
    odd = {Modality.T1: Volume(images[Modality.T1], AFFINE), Modality.T2: Volume(images[Modality.T2], affine)}
    with pytest.raises(InputError, match="Register the sequences"):
        prepare(Study("S", odd), SETTINGS)


def test_a_copy_under_another_name_is_refused():
    image = Volume(head()[0][Modality.T1], AFFINE)
    with pytest.raises(InputError, match="same voxels"):
        prepare(Study("S", {Modality.T1: image, Modality.T1C: image}), SETTINGS)


def test_a_study_without_sequences_is_refused():
    with pytest.raises(InputError, match="no MRI sequence"):
        prepare(Study("S", {}), SETTINGS)


def test_a_reference_on_another_grid_is_refused():
    moved = AFFINE.copy()
    moved[2, 3] += 3
    images, labels = head()
    odd = Study("S", {Modality.T1: Volume(images[Modality.T1], AFFINE)}, Volume(labels, moved))
    with pytest.raises(InputError, match="reference lies on another grid"):
        prepare(odd, SETTINGS)


@given(share=st.floats(0, 0.98), axis=st.integers(0, 2), along=st.integers(0, 3))
@example(share=0.1, axis=0, along=1)
def test_a_reference_whose_affine_differs_by_rounding_is_taken_voxel_by_voxel(share, axis, along):
    images, labels = head()
    sizes = np.linalg.norm(AFFINE[:3, :3], axis=0)
    moved = AFFINE.copy()
    limit = min(SAME_GRID_VOXELS * sizes[axis], SAME_GRID_MM)
    moved[:3, along] += AFFINE[:3, axis] / sizes[axis] * share * limit / (1 if along == 3 else labels.shape[along] - 1)
    found = Study("S", {Modality.T1: Volume(images[Modality.T1], AFFINE)}, Volume(labels, moved))
    assert np.array_equal(reference_on(found, Grid(labels.shape, AFFINE)).voxels, labels)


@pytest.mark.parametrize("shift", [1.1, 2.0, 5.0])
def test_a_reference_that_lies_elsewhere_is_refused_with_the_distance(shift):
    images, labels = head()
    moved = AFFINE.copy()
    moved[2, 3] += shift
    odd = Study("S", {Modality.T1: Volume(images[Modality.T1], AFFINE)}, Volume(labels, moved))
    with pytest.raises(InputError, match=f"corners up to {shift:.2f} mm apart"):
        prepare(odd, SETTINGS)


def test_a_study_of_three_slices_is_warned_of():
    images, _ = head()
    middle = images[Modality.T1].shape[2] // 2
    few = Study("S", {Modality.T1: Volume(images[Modality.T1][:, :, middle : middle + 3], AFFINE)})
    (warning,) = prepare(few, SETTINGS).warnings
    assert warning.startswith("S: T1 has 3 slices along one axis")
    assert "The result may be empty or wrong" in warning


# Cache


def test_a_cached_study_gives_the_crops_of_one_in_memory(archive, tmp_path):
    (first, *_) = find_studies(archive)
    stored = CachedCase(cache_study(first, SETTINGS, tmp_path))
    held = in_memory(prepare(first, SETTINGS))
    for start in ((0, 0, 0), (-5, 3, 20), (60, 0, 0)):
        for a, b in zip(stored.crop(start, (16, 16, 16)), held.crop(start, (16, 16, 16)), strict=True):
            assert np.array_equal(a, b)


def test_the_key_follows_content_and_settings(archive, tmp_path):
    (first, second, *_) = find_studies(archive)
    renamed = dataclasses.replace(second, id=first.id)
    keys = {
        cache_key(first, SETTINGS),
        cache_key(renamed, SETTINGS),
        cache_key(first, Preprocess(spacing_mm=2.0)),
        cache_key(first.restricted_to(Modality.T1), SETTINGS),
    }
    assert len(keys) == 4


def test_a_flipped_bit_in_the_cache_is_noticed(archive, tmp_path):
    path = cache_study(find_studies(archive)[0], SETTINGS, tmp_path)
    content = bytearray(path.read_bytes())
    content[-5000] ^= 16
    path.write_bytes(content)
    with pytest.raises(InputError, match="checksum differs"):
        CachedCase(path)


def rewritten(path, name, **changes):
    """Change the header of one array in a safetensors file: 8 bytes of length, JSON, then the data."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header[name].update(changes)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return header[name]["shape"]


@pytest.mark.parametrize(
    ("name", "kind"), [("image", "BF16"), ("image", "I16"), ("target", "I8"), ("levels", "I32"), ("seeds", "F32")]
)
def test_another_type_of_number_in_the_cache_is_noticed(archive, tmp_path, name, kind):
    """The bytes are the same, and so is their digest; numpy has no bfloat16."""
    path = cache_study(find_studies(archive)[0], SETTINGS, tmp_path)
    rewritten(path, name, dtype=kind)
    with pytest.raises(InputError, match="is damaged"):
        CachedCase(path)


@pytest.mark.parametrize("name", ["image", "target", "seeds"])
def test_another_shape_in_the_cache_is_noticed(archive, tmp_path, name):
    path = cache_study(find_studies(archive)[0], SETTINGS, tmp_path)
    shape = rewritten(path, name)
    rewritten(path, name, shape=[shape[1], shape[0], *shape[2:]] if name != "target" else [*shape, 1])
    with pytest.raises(InputError, match="is damaged"):
        CachedCase(path)


def test_a_frame_has_a_decimal_number():
    assert str(parse_image("a.nii#2")) == "a.nii#2"
    assert parse_image("a.nii#2").number == 2
    assert parse_image("a.nii#²") == Path("a.nii#²")


def test_a_file_without_metadata_is_no_cache_entry(tmp_path):
    arrays = {name: np.zeros((1, 2, 2, 2), np.float16) for name in ("image", "target", "levels", "seeds")}
    save_file(arrays, tmp_path / "case.safetensors")
    with pytest.raises(InputError, match="is damaged"):
        CachedCase(tmp_path / "case.safetensors")


# Augmentation


OFF = ("rotation", "zooming", "noise", "blur", "brightness", "contrast", "low_resolution", "gamma")
QUIET = dict.fromkeys(OFF, 0.0)


def transform(**changes):
    still = augment.sample(Augment(**QUIET, mirror=(False,) * 3), np.random.default_rng(0))
    return dataclasses.replace(still, **changes)


def crop(seed=0, shape=(10, 12, 14)):
    rng = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 4, *shape, generator=rng)
    return image, (image[:, 0] > 0.5).long()


def test_no_augmentation_changes_nothing():
    image, target = crop()
    changed, same = augment.apply([transform()], image, target)
    assert torch.equal(changed, image)
    assert torch.equal(same, target)


@pytest.mark.parametrize("axes", [a for n in (1, 2, 3) for a in itertools.combinations(range(3), n)])
def test_mirroring_is_torch_flip(axes):
    image, target = crop()
    matrix = np.diag([-1.0 if axis in axes else 1.0 for axis in range(3)])
    changed, flipped = augment.apply([transform(matrix=matrix)], image, target)
    assert torch.allclose(changed, image.flip([axis + 2 for axis in axes]), atol=1e-5)
    assert torch.equal(flipped, target.flip([axis + 1 for axis in axes]))


def test_a_quarter_turn_is_torch_rot90():
    image, target = crop(shape=(12, 12, 14))
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    changed, turned = augment.apply([transform(matrix=quarter)], image, target)
    expected = torch.rot90(image, -1, (2, 3))
    assert torch.allclose(changed, expected, atol=1e-5)
    assert torch.equal(turned, torch.rot90(target, -1, (1, 2)))


def test_a_rotation_of_an_oblong_crop_keeps_lengths():
    image = torch.zeros(1, 4, 32, 48, 40)
    image[:, :, 12:20, 20:28, 16:24] = 1
    c, s = np.cos(0.5), np.sin(0.5)
    changed, _ = augment.apply([transform(matrix=np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]))], image, None)
    assert changed[0, 0].sum() == pytest.approx(512, rel=0.02)


@pytest.mark.parametrize(
    "change",
    [
        {"noise_sd": 0.3},
        {"blur_voxels": np.full(4, 0.8)},
        {"gain": np.full(4, 1.2)},
        {"contrast": np.full(4, 0.8)},
        {"resolution": np.full(4, 0.5)},
        {"exponent": np.full(4, 1.4)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_change_of_intensity_changes_and_leaves_background(change):
    image, _ = crop()
    image[:, :, :4] = 0
    changed, _ = augment.apply([transform(**change)], image, None)
    assert not changed[:, :, :4].any()
    assert (changed[:, :, 4:] != image[:, :, 4:]).float().mean() > 0.9


def family(seed):
    return augment.sample(augment.RFNET, np.random.default_rng(seed))


def test_rfnets_rotations_are_whole_degrees_in_one_plane():
    found = set()
    for seed in range(300):
        turn = family(seed).matrix @ np.diag(np.sign(np.diag(family(seed).matrix)))  # mirroring undone
        angles = [np.degrees(np.arcsin(turn[two, one])) for one, two in ((0, 1), (1, 2), (2, 0))]
        assert sum(abs(angle) > 1e-6 for angle in angles) <= 1
        assert np.allclose(angles, np.round(angles), atol=1e-6)
        found.add(round(sum(angles)))
    assert (min(found), max(found), len(found)) == (-10, 9, 20)


def test_rfnets_rotations_fill_images_with_minus_one_and_labels_with_background():
    image, target = crop(shape=(16, 16, 16))
    c, s = np.cos(np.radians(9)), np.sin(np.radians(9))
    turned = transform(nearest=True, matrix=np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]))
    changed, labels = augment.apply_spatial([turned], image + 5, target + 1)
    outside = labels[:, None].expand_as(changed) == 0
    assert outside.any()
    assert torch.equal(changed[outside], torch.full_like(changed[outside], -1))
    assert changed[~outside].min() > 0  # nearest neighbour: nothing in between


def test_rfnets_jitter_is_one_gain_and_level_for_each_plane_and_modality():
    image, _ = crop()
    ones, twos = (augment.apply([transform(plane_jitter=0.1)], torch.full_like(image, v), None)[0] for v in (1.0, 2.0))
    gain = twos - ones
    level = ones - gain
    for drawn, centre in ((gain, 1), (level, 0)):
        assert (drawn - drawn[:, :, :, :1, :1]).abs().max() < 1e-5
        assert ((drawn - centre).abs() <= 0.1 + 1e-5).all()
        assert len(drawn[0, :, :, 0, 0].round(decimals=5).unique()) == 4 * image.shape[2]


def test_a_transform_can_be_replayed():
    image, target = crop()
    drawn = augment.sample(Augment(noise=1, blur=1, gamma=1, rotation=1), np.random.default_rng(3))
    first, second = (augment.apply([drawn], image.clone(), target)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_what_is_drawn_later_does_not_depend_on_what_came_before():
    ends = []
    for noise in (0.0, 1.0):
        rng = np.random.default_rng(5)
        augment.sample(Augment(noise=noise), rng)
        ends.append(rng.random())
    assert ends[0] == ends[1]


# Order of crops


CROPS = SimpleNamespace(view=loader.random_crop, collate=loader.collate)


def all_batches(archive_paths, threads=1, steps=range(6), parts=(range(2),)):
    source = CachedStudies(archive_paths)
    sampling = Sampling(patch=(16, 16, 16), batch=2)
    schedule = loader.Schedule(sampling=sampling, seed=7, steps=steps, shares=parts)
    return list(loader.batches(source, CROPS, schedule, device=torch.device("cpu"), threads=threads))


@pytest.fixture(scope="module")
def paths(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return [cache_study(s, SETTINGS, folder) for s in find_studies(archive)]


def test_the_number_of_threads_changes_no_crop(paths):
    for one, many in zip(all_batches(paths, 1), all_batches(paths, 3), strict=True):
        assert torch.equal(one[0].image, many[0].image)


def test_a_loader_started_late_gives_what_it_would_have_given(paths):
    whole, late = all_batches(paths), all_batches(paths, steps=range(4, 6))
    assert torch.equal(whole[4][0].image, late[0][0].image)


def test_parts_of_a_batch_are_the_batch(paths):
    (whole,), *_ = all_batches(paths)
    first, second = all_batches(paths, parts=(range(1), range(1, 2)))[0]
    assert torch.equal(whole.image, torch.cat([first.image, second.image]))


def test_an_epoch_visits_every_study_once(paths):
    source = CachedStudies(paths)
    for epoch in range(3):
        assert {source.case(4 * epoch + n, seed=1).id for n in range(4)} == {"S0", "S1", "S2", "S3"}


def test_epochs_differ_in_order(paths):
    source = CachedStudies(paths)
    orders = {tuple(source.case(4 * epoch + n, seed=1).id for n in range(4)) for epoch in range(8)}
    assert len(orders) > 1


def test_tumour_crops_hold_tumour(paths):
    sampling = Sampling(patch=(16, 16, 16), tumour_share=1.0)
    case = CachedCase(paths[0])
    for seed in range(20):
        assert loader.random_crop(case, sampling, np.random.default_rng(seed)).target.any()


def test_a_study_smaller_than_the_crop_is_padded_with_air(tmp_path):
    settings = dataclasses.replace(preprocess.RFNET, spacing_mm=3.0)
    made = prepare(study(modalities=(Modality.T1, Modality.T2)), settings)
    for case in (
        in_memory(made),
        CachedCase(cache_study(study(modalities=(Modality.T1, Modality.T2)), settings, tmp_path)),
    ):
        image = case.crop([-2, 0, 0], [4, 8, 8]).image
        for channel, modality in enumerate(Modality):
            expected = made.levels[channel] if modality in made.available else 0
            assert np.allclose(image[channel, :2], expected, atol=0.01)
    assert made.levels[0] < -3


def test_a_study_smaller_than_the_crop_is_padded(paths):
    case = CachedCase(paths[0])
    sampling = Sampling(patch=(64, 64, 64), tumour_share=0.0)
    made = loader.random_crop(case, sampling, np.random.default_rng(0))
    whole = case.crop((0, 0, 0), case.shape).image
    assert np.count_nonzero(made.image) == np.count_nonzero(whole)


def test_files_of_each_modality_have_their_own_word():
    assert len(set(WORDS.values())) == 4
