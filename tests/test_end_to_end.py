"""Every command, with good input and with bad: most in this process, a few in one of their own."""

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

import glimpseg
from conftest import AFFINE, ORIENTATIONS, WORDS, command_line, head, write_head
from glimpseg.errors import InputError
from glimpseg.modality import SUBSETS, Modality
from glimpseg.segmentation.options import PLAIN, InferenceOptions
from glimpseg.segmentation.predict import load
from glimpseg.volume import Volume

FLAGS = {Modality.T1: "--t1", Modality.T1C: "--t1c", Modality.T2: "--t2", Modality.FLAIR: "--flair"}


def process(*arguments, **options):
    """The command line in a process of its own: what it imports, its exit code, limits of the system."""
    command = [sys.executable, "-m", "glimpseg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_head(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def model(model_folder):
    return load(model_folder, "cpu")


def paths(study, subset):
    return {m.name.lower(): study / f"{study.name}-{WORDS[m]}.nii.gz" for m in subset}


def flags(study, subset):
    return [word for m in subset for word in (FLAGS[m], study / f"{study.name}-{WORDS[m]}.nii.gz")]


# Good input


def test_help_names_every_verb_and_the_notice():
    text = process("--help").stdout
    for verb in (
        "segment",
        "phantom",
        "prepare",
        "train",
        "evaluate",
        "calibrate",
        "compare",
        "report",
        "methods",
        "doctor",
        "demo",
        "demo-train",
    ):
        assert verb in text
    assert "not a medical device" in text


def test_the_version_is_the_packages():
    assert command_line("--version").stdout.strip() == f"glimpseg {glimpseg.__version__}"


def test_doctor_and_methods_speak_json():
    assert json.loads(command_line("doctor", "--json").stdout)["glimpseg"] == glimpseg.__version__
    assert "phantom" in json.loads(command_line("methods", "--json").stdout)["unet"]["recipes"]


def test_segment_writes_the_files_that_it_promises(study, model_folder, tmp_path):
    out = tmp_path / "out"
    done = command_line("segment", *flags(study, SUBSETS[9]), "-m", model_folder, "-o", out, "--probabilities")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out / "seg.nii.gz")
    assert {path.name for path in out.iterdir()} == {
        "seg.nii.gz", "seg.json", "statistics.json", "preview.png", "thumbnail.jpg", "run.json",
        "probabilities_WT.nii.gz", "probabilities_TC.nii.gz", "probabilities_ET.nii.gz",
    }  # fmt: skip
    record = json.loads((out / "run.json").read_text())
    assert record["sequences"] == {"used": ["t1c", "flair"], "absent": ["t1", "t2"]}


def test_the_command_and_the_function_give_the_same_labels(study, model_folder, tmp_path):
    done = process("segment", *flags(study, SUBSETS[0]), "-m", model_folder, "-o", tmp_path / "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    found = glimpseg.segment(**paths(study, SUBSETS[0]), model=load(model_folder, "cpu"))
    assert np.array_equal(nibabel.load(tmp_path / "out" / "seg.nii.gz").get_fdata(), found.labels.voxels)


def test_the_numbers_in_the_file_follow_the_convention_that_was_asked_for(study, model, tmp_path):
    found = glimpseg.segment(**paths(study, SUBSETS[-1]), model=model)
    labels = np.zeros_like(found.labels.voxels)
    labels[20, 20, 20], labels[21, 20, 20] = 1, 3
    drawn = dataclasses.replace(found, labels=Volume(labels, found.labels.affine))
    drawn.save(tmp_path / "out", labels="brats2021")
    written = np.asarray(nibabel.load(tmp_path / "out" / "seg.nii.gz").dataobj)
    assert (written[20, 20, 20], written[21, 20, 20]) == (1, 4)
    assert json.loads((tmp_path / "out" / "statistics.json").read_text())["ET"]["volume_ml"] == pytest.approx(0.027)


@pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: subset.key)
def test_every_subset_of_a_study_is_segmented_on_its_own_grid(study, model, subset):
    found = glimpseg.segment(**paths(study, subset), model=model, options=PLAIN)
    assert found.used == subset
    assert found.labels.voxels.shape == head()[0][Modality.T1].shape
    assert np.array_equal(found.labels.affine, AFFINE)


@pytest.fixture(scope="module")
def plain_labels(model):
    """Labels of the study stored in RAS order."""
    plain = {m.name.lower(): nibabel.Nifti1Image(image, AFFINE) for m, image in head()[0].items()}
    return glimpseg.segment(**plain, model=model, options=PLAIN).labels.voxels


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_orientation_changes_where_labels_are_stored_not_where_they_are(model, plain_labels, axes):
    images, _ = head()
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    stored = {
        m.name.lower(): nibabel.Nifti1Image(
            np.ascontiguousarray(apply_orientation(image, turn)), AFFINE @ inv_ornt_aff(turn, image.shape)
        )
        for m, image in images.items()
    }
    found = glimpseg.segment(**stored, model=model, options=PLAIN).labels
    assert found.grid.axes == axes
    assert np.array_equal(found.ras().voxels, plain_labels)


def test_order_of_names_does_not_matter(study, model):
    named = paths(study, SUBSETS[-1])
    backwards = dict(reversed(named.items()))
    one, two = (glimpseg.segment(**order, model=model).labels.voxels for order in (named, backwards))
    assert np.array_equal(one, two)


def test_probabilities_lie_between_zero_and_one(study, model):
    found = glimpseg.segment(**paths(study, SUBSETS[-1]), model=model, options=InferenceOptions(probabilities=True))
    for volume in found.probabilities.values():
        assert volume.voxels.shape == found.labels.voxels.shape
        assert 0 <= volume.voxels.min() <= volume.voxels.max() <= 1


def test_a_brain_mask_stands_in_for_a_background_that_is_not_constant(study, model):
    rng = np.random.default_rng(1)
    image = head()[0][Modality.T2]
    air = np.where(image == 0, rng.uniform(1, 9, image.shape), image).astype(np.float32)
    mask = nibabel.Nifti1Image((image > 0).astype(np.uint8), AFFINE)
    masked = glimpseg.segment(t2=nibabel.Nifti1Image(air, AFFINE), brain_mask=mask, model=model)
    plain = glimpseg.segment(t2=nibabel.Nifti1Image(image, AFFINE), model=model)
    assert np.array_equal(masked.labels.voxels, plain.labels.voxels)


def test_the_whole_way_from_phantom_to_report(tmp_path):
    for folder, seed, extra in (("train", 0, ["--incomplete", "0.5"]), ("test", 100, [])):
        made = command_line("phantom", "-o", tmp_path / folder, "--count", 2, "--seed", seed, "--spacing", 4.0, *extra)
        assert made.returncode == 0, made.stderr
        assert len(made.stdout.split()) == 2
    small = [
        "--set=config.width=4",
        "--set=data.preprocess.spacing_mm=6",  # a brain in few windows
        "--set=data.sampling.patch=[16,16,16]",
        "--set=optim.steps=4",
    ]
    trained = command_line("train", "unet/phantom", *small, "--data", tmp_path / "train", "-o", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    scored = command_line("evaluate", tmp_path / "run", "--data", tmp_path / "test", "-o", tmp_path / "eval")
    assert scored.returncode == 0, scored.stderr
    lines = (tmp_path / "eval" / "scores.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 15 * (3 * 12 + 10)  # ET_pp has no probabilities, thus two metrics less
    page = (tmp_path / "eval" / "report.html").read_text()
    rows = re.findall(r"<tr>(<td class=\"dot\">[●○]</td>){4}", page)
    assert len(rows) == 12 * 15  # a table for each metric
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    again = command_line("report", tmp_path / "eval", "-o", tmp_path / "again.html")
    assert again.returncode == 0
    assert (tmp_path / "again.html").read_text() == page
    compared = command_line("compare", tmp_path / "eval", tmp_path / "eval" / ".." / "eval2", "-o", tmp_path / "c")
    assert compared.returncode == 3  # there is no second evaluation
    assert "not an evaluation" in compared.stderr


def test_prepare_says_what_it_found(tmp_path):
    write_head(tmp_path / "data", "S0", 0, (Modality.T1C,))
    write_head(tmp_path / "data", "S1", 1)
    done = command_line("prepare", tmp_path / "data", "-o", tmp_path / "cache", "--recipe", "unet/phantom")
    assert done.returncode == 0, done.stderr
    assert "2, 2 with a reference" in done.stderr
    assert "brats2023: 1 NCR, 2 ED, 3 ET" in done.stderr
    assert "2  prepared" in done.stderr
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_phantom_release_is_read_back_as_that_release(tmp_path):
    from glimpseg.data.layouts import find_studies
    from glimpseg.phantom import Settings
    from glimpseg.phantom.dataset import write_phantoms

    settings = Settings.at_spacing(4.0, post_operative=1.0, low_grade=0.0)
    write_phantoms(tmp_path, range(3), settings, "brats2024")
    studies = find_studies(tmp_path)
    assert studies[0].convention.name == "brats2024"
    assert nibabel.load(studies[0].images[Modality.T1]).header.get_data_dtype() == np.int16
    assert "".join(nibabel.aff2axcodes(nibabel.load(studies[0].reference).affine)) == "LPS"


def test_some_phantoms_of_an_incomplete_archive_lack_sequences():
    from glimpseg.phantom.dataset import kept_sequences

    kept = [kept_sequences(seed, 1 / 3) for seed in range(300)]
    assert 70 < sum(subset != SUBSETS[-1] for subset in kept) < 130


# Bad input: exit code, message, nothing written


def refused(tmp_path, code, message, *arguments):
    out = tmp_path / "out"
    done = command_line(*arguments, "-o", out)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


def bad_image(tmp_path, voxels, affine=AFFINE):
    path = tmp_path / "bad.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def test_no_sequence_is_refused(model_folder, tmp_path):
    refused(tmp_path, 3, "No MRI sequence was given", "segment", "-m", model_folder)


def test_a_process_ends_with_the_code_of_its_error(tmp_path):
    done = process("segment", "-m", tmp_path / "nothing", "-o", tmp_path / "out")
    assert done.returncode == 3
    assert done.stderr.startswith("glimpseg: No MRI sequence was given. Give one of --t1,")


def test_one_file_for_two_sequences_is_refused(study, model_folder, tmp_path):
    path = paths(study, Modality.T1)["t1"]
    refused(tmp_path, 3, "given both as T1 and as T2", "segment", "--t1", path, "--t2", path, "-m", model_folder)


def test_a_series_of_volumes_is_refused(model_folder, tmp_path):
    path = bad_image(tmp_path, np.random.default_rng(0).random((8, 8, 8, 3), np.float32))
    refused(tmp_path, 3, "three-dimensional", "segment", "--t1", path, "-m", model_folder)


def test_a_truncated_file_is_refused(study, model_folder, tmp_path):
    path = tmp_path / "cut.nii.gz"
    path.write_bytes(paths(study, Modality.T1)["t1"].read_bytes()[:3000])
    refused(tmp_path, 3, "is damaged", "segment", "--t1", path, "-m", model_folder)


def test_a_constant_image_is_refused(model_folder, tmp_path):
    path = bad_image(tmp_path, np.zeros((20, 20, 20), np.float32))
    refused(tmp_path, 3, "Leave this sequence out", "segment", "--t1", path, "-m", model_folder)


def test_nan_in_the_brain_is_refused(model_folder, tmp_path):
    voxels = head()[0][Modality.T1].copy()
    voxels[20, 24, 18] = np.nan
    refused(tmp_path, 3, "inside the brain", "segment", "--t1", bad_image(tmp_path, voxels), "-m", model_folder)


def test_a_singular_affine_is_refused(study, model_folder, tmp_path):
    image = nibabel.load(paths(study, Modality.T1)["t1"])
    header = image.header.copy()
    for row in ("srow_x", "srow_y", "srow_z"):
        header[row] = (1, 1, 1, 0)
    header["sform_code"] = 1
    path = tmp_path / "bad.nii"
    raw = header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes(order="F")
    path.write_bytes(raw)
    refused(tmp_path, 3, "places no voxel", "segment", "--t1", path, "-m", model_folder)


def test_grids_that_cannot_belong_together_are_refused(study, model_folder, tmp_path):
    far = AFFINE.copy()
    far[:3, 3] += 900
    path = bad_image(tmp_path, head(3)[0][Modality.T2], far)
    t1 = paths(study, Modality.T1)["t1"]
    arguments = ("segment", "--t1", t1, "--t2", path, "-m", model_folder, "--raw", "no")
    refused(tmp_path, 3, "Register the sequences", *arguments)


def test_labels_outside_the_convention_are_refused(model_folder, tmp_path):
    place = write_head(tmp_path / "data")
    labels = head()[1].copy()
    labels[0, 0, 0] = 9
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), place / "S1-seg.nii.gz")
    refused(tmp_path, 3, "no convention", "evaluate", model_folder, "--data", tmp_path / "data")


def test_a_missing_model_is_refused(study, tmp_path):
    refused(tmp_path, 4, "not a folder", "segment", *flags(study, SUBSETS[0]), "-m", tmp_path / "nothing")


def test_a_folder_that_is_no_model_is_refused(study, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path, 4, "not a glimpseg model", "segment", *flags(study, SUBSETS[0]), "-m", tmp_path / "empty")


def test_an_unknown_recipe_is_refused(tmp_path):
    refused(tmp_path, 2, "Did you mean 'unet/phantom'", "train", "unet/fantom")


def test_an_unknown_layout_is_refused(tmp_path):
    refused(tmp_path, 2, "brats2020, brats2023, brats2024", "phantom", "--count", 1, "--layout", "brats1999")


def test_a_device_that_is_not_there_is_refused(study, model_folder, tmp_path):
    refused(tmp_path, 2, "--device cpu", "segment", *flags(study, SUBSETS[0]), "-m", model_folder, "--device", "cuda:7")


def test_an_output_folder_in_use_is_left_alone(study, model_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    done = command_line("segment", *flags(study, SUBSETS[0]), "-m", model_folder, "-o", out)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    assert [path.name for path in out.iterdir()] == ["precious.txt"]


def test_overwrite_replaces_the_output_folder(study, model_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    (out / "run.json").write_text("{}")
    done = command_line("segment", *flags(study, SUBSETS[0]), "-m", model_folder, "-o", out, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "old.txt" not in {path.name for path in out.iterdir()}


def test_overwrite_spares_a_folder_that_glimpseg_did_not_make(study, model_folder):
    before = sorted(path.name for path in study.iterdir())
    done = command_line("segment", *flags(study, SUBSETS[0]), "-m", model_folder, "-o", study, "--overwrite")
    assert done.returncode == 2
    assert "only a folder that glimpseg made" in done.stderr
    assert sorted(path.name for path in study.iterdir()) == before


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes then fail as on a full disk


def test_a_full_disk_leaves_nothing_half_written(study, model_folder, tmp_path):
    out = tmp_path / "out"
    done = process(
        "segment", *flags(study, SUBSETS[-1]), "-m", model_folder, "-o", out, "--probabilities",
        preexec_fn=limit_file_size, env={**os.environ, "MPLCONFIGDIR": str(tmp_path / "mpl")},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "could not be written" in done.stderr
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


def test_python_raises_what_the_command_line_reports(model, study):
    with pytest.raises(InputError, match="at least one"):
        glimpseg.segment(model=model)
