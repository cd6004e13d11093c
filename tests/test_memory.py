"""Large studies: one sequence at a time, results slab by slab, and a word before the memory ends."""

import gc
import itertools
import weakref

import nibabel
import numpy as np
import pytest
import torch

from conftest import AFFINE, WORDS, head, write_head
from glimpseg import volume as volumes
from glimpseg.data import nifti
from glimpseg.data.preprocess import Preprocess, prepare
from glimpseg.data.raw.preparation import register_and_strip
from glimpseg.errors import InputError
from glimpseg.modality import ALL, Modality
from glimpseg.model.loading import load_model
from glimpseg.region import Region
from glimpseg.segmentation import inference, memory, predict
from glimpseg.segmentation.options import InferenceOptions
from glimpseg.study import Study
from glimpseg.volume import Grid, Volume

SETTINGS = Preprocess(spacing_mm=3.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of one study."""
    place = write_head(tmp_path_factory.mktemp("studies"))
    return {modality: place / f"{place.name}-{word}.nii.gz" for modality, word in WORDS.items()}


@pytest.fixture(scope="module")
def model(model_folder):
    return load_model(model_folder, torch.device("cpu"))


@pytest.fixture
def small_parts(monkeypatch):
    """Cuts from some thousand voxels on instead of 34 million: a `head` has 69,120."""
    monkeypatch.setattr(volumes, "LARGE_VOXELS", 20_000)
    monkeypatch.setattr(volumes, "SLAB_VOXELS", 10_000)


# One sequence at a time


@pytest.mark.parametrize("brought", [False, True], ids=["as they are", "looked at before"])
def test_of_large_files_one_sequence_is_held_at_a_time(files, small_parts, monkeypatch, brought):
    held, read = [], nifti.read_volume

    def watched(*arguments):
        gc.collect()
        assert not any(array() is not None for array in held), "an earlier image is still in memory"
        volume = read(*arguments)
        held.append(weakref.ref(volume.voxels))
        return volume

    monkeypatch.setattr(nifti, "read_volume", watched)
    study = Study("S", files)
    prepare(register_and_strip(study).study if brought else study, SETTINGS)
    assert len(held) == 4 + 4 * brought


def test_the_working_grid_is_the_same_whichever_file_is_read_first(files):
    volumes_of = {modality: nifti.read_volume(path) for modality, path in files.items()}
    one, two = prepare(Study("S", files), SETTINGS), prepare(Study("S", volumes_of), SETTINGS)
    assert np.array_equal(one.image, two.image)


@pytest.mark.parametrize(
    "pair", list(itertools.combinations(Modality, 2)), ids=lambda pair: "+".join(m.key for m in pair)
)
def test_one_image_given_twice_is_refused_whichever_is_read_first(pair):
    images = {modality: Volume(voxels, AFFINE) for modality, voxels in head()[0].items()}
    images[pair[1]] = Volume(images[pair[0]].voxels.copy(), AFFINE)
    with pytest.raises(InputError, match=f"given as {pair[0].title} and {pair[1].title} hold the same voxels"):
        prepare(Study("S", images), SETTINGS)


def test_images_that_differ_in_one_voxel_are_two():
    images = {modality: Volume(voxels, AFFINE) for modality, voxels in head()[0].items()}
    images[Modality.T2] = Volume(images[Modality.T1].voxels.copy(), AFFINE)
    images[Modality.T2].voxels[21, 23, 17] += 1
    assert prepare(Study("S", images), SETTINGS).available == ALL


def test_a_large_study_that_is_looked_at_comes_back_as_files(files, small_parts):
    brought = register_and_strip(Study("S", files))
    assert dict(brought.study.images) == files
    assert all(grid.shape == (40, 48, 36) for grid in brought.grids.values())


def test_a_large_sequence_that_lies_apart_is_moved_with_all_its_voxels(files, small_parts, tmp_path):
    image = nibabel.load(files[Modality.T2])
    away = image.affine.copy()
    away[:3, 3] += (9, -6, 6)
    path = tmp_path / "t2.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), away), path)
    study = Study("S", {**{m: files[m] for m in (Modality.T1C, Modality.T1)}, Modality.T2: path})
    brought = register_and_strip(study)
    moved = brought.study.images[Modality.T2]
    assert brought.study.images[Modality.T1C] == files[Modality.T1C]
    assert np.array_equal(moved.voxels, nifti.read_volume(path).voxels)
    assert np.abs(moved.affine - image.affine)[:3, 3].max() < 3


# Results slab by slab


@pytest.fixture(
    params=[AFFINE, AFFINE @ np.array([[0, 0, -1, 35], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])],
    ids=["RAS", "other axes"],
)
def own(request):
    """Grids that are twice as fine as the working grid."""
    fine = request.param @ np.diag([0.5, 0.5, 0.5, 1])
    return Grid((80, 96, 72), fine)


def test_labels_and_probabilities_are_the_same_slab_by_slab(model, own, monkeypatch):
    images = {modality: volumes.resample(Volume(voxels, AFFINE), own) for modality, voxels in head()[0].items()}
    prepared = prepare(Study("S", images), SETTINGS)
    told = {Region.WT: 1.7}
    (whole,) = inference.infer(prepared, model, [ALL], keep_probabilities=True, temperatures=told)
    monkeypatch.setattr(volumes, "LARGE_VOXELS", 20_000)
    monkeypatch.setattr(volumes, "SLAB_VOXELS", 10_000)
    (parts,) = inference.infer(prepared, model, [ALL], keep_probabilities=True, temperatures=told)
    assert len(set(np.unique(whole.labels.voxels))) > 1
    assert np.array_equal(parts.labels.voxels, whole.labels.voxels)
    assert parts.estimates == pytest.approx(whole.estimates, nan_ok=True)
    for region, volume in whole.probabilities.items():
        assert np.abs(parts.probabilities[region].voxels - volume.voxels).max() < 1e-6


def test_probabilities_that_nobody_asked_for_are_not_kept(model, files):
    prepared = prepare(Study("S", files), SETTINGS)
    (found,) = inference.infer(prepared, model, [ALL], temperatures={})
    assert found.probabilities is None
    assert set(found.estimates) == set(model.network.regions)


# What there is, and what is needed


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A system that says of its memory what a test writes."""
    for name, path in (("MEMINFO", "meminfo"), ("OWN_GROUPS", "cgroup"), ("GROUPS", "groups")):
        monkeypatch.setattr(memory, name, tmp_path / path)

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    return write


def test_a_system_that_says_nothing_is_not_asked_again(machine):
    assert memory.available_bytes() is None


def test_free_memory_is_what_the_kernel_calls_available(machine):
    machine("meminfo", "MemTotal:  9 kB\nMemFree: 3 kB\nMemAvailable:    2000 kB\n")
    assert memory.available_bytes() == 2000 * 1024


def test_the_limit_of_a_group_counts_less_what_it_uses_and_could_drop(machine):
    machine("meminfo", "MemAvailable: 900000 kB\n")
    machine("cgroup", "0::/jobs/seven\n")
    machine("groups/jobs/seven/memory.max", "5000\n")
    machine("groups/jobs/seven/memory.current", "3000\n")
    machine("groups/jobs/seven/memory.stat", "anon 2000\ninactive_file 700\n")
    assert memory.available_bytes() == 5000 - 3000 + 700


def test_a_limit_further_up_counts_and_one_that_is_none_does_not(machine):
    machine("cgroup", "0::/jobs/seven\n")
    machine("groups/jobs/seven/memory.max", "max\n")
    machine("groups/jobs/seven/memory.current", "3000\n")
    machine("groups/jobs/memory.max", "9000\n")
    machine("groups/jobs/memory.current", "4000\n")
    assert memory.available_bytes() == 5000


def test_a_group_of_the_first_version_is_read_too(machine):
    machine("cgroup", "9:cpu:/\n4:memory:/docker/abc\n")
    machine("groups/memory/memory.limit_in_bytes", "8000\n")  # as seen from inside a container
    machine("groups/memory/memory.usage_in_bytes", "6000\n")
    machine("groups/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 500\n")
    assert memory.available_bytes() == 2500


def test_a_study_that_needs_much_more_than_there_is_is_refused_before_it_is_read(machine, files, model, monkeypatch):
    machine("meminfo", "MemAvailable: 1000 kB\n")
    monkeypatch.setattr(nifti, "read_volume", None)
    with pytest.raises(InputError, match=r"needs about .* GB of memory, and 0\.0 GB are free.*40x48x36 voxels"):
        predict.segment(t1c=files[Modality.T1C], t2=files[Modality.T2], model=model)


def test_a_study_that_fits_is_read(machine, files, model):
    machine("meminfo", "MemAvailable: 8000000 kB\n")
    assert (
        predict.segment(t1c=files[Modality.T1C], model=model, options=InferenceOptions(raw="no")).used == Modality.T1C
    )


def test_a_large_study_needs_less_than_four_gigabytes_beside_two_thirds_of_one():
    grid = Grid((512, 512, 512), np.diag([0.5, 0.5, 0.5, 1.0]))
    assert memory.needed_bytes([grid] * 4, 1.0, 4) + memory.preview_bytes([grid] * 4) < 3.33e9
    assert memory.preview_bytes([grid] * 4) <= 4 * 512**3  # as much as a single image of four bytes a voxel takes whole


@pytest.mark.parametrize("spacing_mm", [1.0, 2.0])
def test_finer_images_and_finer_working_voxels_need_more(spacing_mm):
    coarse, fine = (Grid((side,) * 3, np.diag([256 / side] * 3 + [1.0])) for side in (256, 400))
    assert memory.needed_bytes([coarse], spacing_mm, 4) < memory.needed_bytes([fine], spacing_mm, 4)
    assert memory.needed_bytes([fine], spacing_mm, 4) < memory.needed_bytes([fine], spacing_mm / 2, 4)
