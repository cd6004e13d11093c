"""Privacy: nothing that is written or printed has a path of the input, a patient's name, or the repr of an object."""

import gzip
import json
import re
import zipfile

import nibabel
import numpy as np
import pytest

from conftest import command_line, head, small, write_head
from dicom_phantoms import Acquisition, Person, write_series

WORD = "Zyxwvutna"
"""Name of the input's folder, of the patient, and of people in headers. No other word contains it."""
REPR = re.compile(r"<[\w.]+ object at|PosixPath\(|WindowsPath\(|\w+\((?:\w+=|')[^)]*/")
"""Text that Python makes of an object: a path object, a dataclass with a path in it."""


def leaks(*texts):
    """Return the lines that name the input or show an object."""
    return [line for text in texts for line in text.splitlines() if WORD.lower() in line.lower() or REPR.search(line)]


def files_that_name(folder):
    """Return the files below a folder whose name or content has the word; gz files are unpacked."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        inside = str(path.relative_to(folder)).encode() + content
        if WORD.lower().encode() in inside.lower():
            found.append(path.relative_to(folder).as_posix())
    return found


@pytest.fixture
def tree(tmp_path):
    """Two studies below a folder with the patient's name, in headers and sidecars, too; with unused images."""
    place = tmp_path / f"{WORD}_DATA"
    for seed, name in enumerate(("S1", "S2")):
        folder = write_head(place, name, seed)
        for path in sorted(folder.glob("*.nii.gz")):
            image = nibabel.load(path)
            image.header["descrip"], image.header["db_name"] = WORD.encode(), WORD.encode()
            image.to_filename(path)
            if "seg" not in path.name:
                path.with_name(path.name.replace(".nii.gz", ".json")).write_text(
                    json.dumps({"PatientName": f"{WORD}^ERIKA", "SeriesDescription": f"t1 {WORD} scan"})
                )
        nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), folder / f"{name}-adc.nii.gz")
    return place


@pytest.fixture
def dicom(tmp_path):
    """A DICOM study of T1c, FLAIR, and T1c again, in a folder with the patient's name."""
    images, _ = head(3)
    by_key = {modality.key: voxels for modality, voxels in images.items()}
    place = tmp_path / "in" / f"{WORD}_EXPORT"
    person = Person(name=f"{WORD.upper()}^ERIKA", id=f"{WORD}4711")
    for number, (description, key) in enumerate(
        (("t1_se_tra_km", "t1c"), ("t2_flair_tra", "flair"), ("t1_se_tra_km", "t1c")), 1
    ):
        affine = np.diag([3.0, 3.0, 3.0, 1.0])
        acquisition = Acquisition(description=f"{description} {WORD}", number=number, person=person)
        write_series(place / str(number), np.rint(by_key[key]).astype(np.int16) + number, affine, acquisition)
    return place


def run(tmp_path, *arguments, code=0):
    """Run a verb with a log file, and return what it printed and logged."""
    log = tmp_path / "verb.log"
    log.unlink(missing_ok=True)
    done = command_line("--log-file", log, *arguments)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr, log.read_text("utf-8")


def test_segmenting_a_tree_names_nothing(tree, tmp_path, model_folder, no_pictures):
    texts = run(tmp_path, "segment", "-i", tree, "-m", model_folder, "-o", tmp_path / "out")
    assert not leaks(*texts)
    assert not files_that_name(tmp_path / "out")
    assert "S1-adc.nii.gz is not used: 'adc' in its name: diffusion imaging." in texts[1]
    assert json.loads((tmp_path / "out" / "S1" / "run.json").read_text())["unused"] == [
        "S1-adc.nii.gz is not used: 'adc' in its name: diffusion imaging."
    ]
    assert len(json.loads((tmp_path / "out" / "unused.json").read_text())["unused"]) == 2


def test_segmenting_one_study_names_nothing(tree, tmp_path, model_folder, no_pictures):
    place = tree / "S1"
    texts = run(
        tmp_path, "segment", "--t1c", place / "S1-t1c.nii.gz", "--flair", place / "S1-t2f.nii.gz", "-m", model_folder,
        "-o", tmp_path / "out",
    )  # fmt: skip
    assert not leaks(*texts)
    assert not files_that_name(tmp_path / "out")


def test_deidentified_results_of_dicom_name_nothing(dicom, tmp_path, model_folder, no_pictures, readers_here):
    texts = run(
        tmp_path, "segment", "-i", dicom.parent, "-m", model_folder, "-o", tmp_path / "out", "--deidentify",
        "--output-type", "nifti,dicom-seg",
    )  # fmt: skip
    assert not leaks(*texts)
    assert not files_that_name(tmp_path / "out")
    assert "series" in texts[1]
    assert "is not used" in texts[1]


def test_deidentified_names_of_unused_images_are_left_out(tree, tmp_path, model_folder, no_pictures):
    for path in sorted(tree.glob("*/*adc.nii.gz")):
        path.rename(path.with_name(f"{WORD}_adc.nii.gz"))
    for folder in ("S1", "S2"):
        (tree / folder).rename(tree / f"{WORD}_{folder}")
    texts = run(tmp_path, "segment", "-i", tree, "-m", model_folder, "-o", tmp_path / "out", "--deidentify")
    assert not leaks(*texts)
    assert not files_that_name(tmp_path / "out")
    assert "an image is not used: 'adc' in its name: diffusion imaging." in texts[1]


def test_deidentified_warnings_name_the_number_of_the_study(tree, tmp_path, model_folder, no_pictures):
    for folder in ("S1", "S2"):
        image = nibabel.load(tree / folder / f"{folder}-t2w.nii.gz")
        nibabel.save(image.slicer[2:], tree / folder / f"{folder}-t2w.nii.gz")
        (tree / folder).rename(tree / f"{WORD}_{folder}")
    texts = run(
        tmp_path, "segment", "-i", tree, "-m", model_folder, "-o", tmp_path / "out", "--deidentify", "--raw", "no"
    )
    assert not leaks(*texts)
    assert not files_that_name(tmp_path / "out")
    for number in ("study-00001", "study-00002"):
        assert f"{number}: T2 lies on another grid" in texts[1]
        warnings = json.loads((tmp_path / "out" / number / "run.json").read_text())["warnings"]
        assert warnings[0].startswith(f"{number}: T2 lies on another grid")
        assert all(text.startswith("Look at this one: ") for text in warnings[1:])
        assert f"{number},warning,{number}: T2" in (tmp_path / "out" / "notes.csv").read_text().replace('"', "")


def test_deidentified_results_of_an_archive_name_no_image(tree, tmp_path, model_folder, no_pictures):
    place = tree / "S1"
    for path in sorted(place.iterdir()):
        path.rename(path.with_name(path.name.replace("S1", WORD)))
    (place / f"{WORD}-t1n.nii.gz").write_bytes(b"no image")
    for path in place.glob("*.json"):
        path.unlink()
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / f"{WORD}.zip", "w") as archive:
        for path in sorted(place.iterdir()):
            archive.write(path, f"{WORD}/{path.name}")
    texts = run(tmp_path, "segment", "-i", tmp_path / "in", "-m", model_folder, "-o", tmp_path / "out", "--deidentify")
    assert not leaks(*texts)
    assert not files_that_name(tmp_path / "out")
    assert "study-00001: an image was left out: it cannot be read as NIfTI" in texts[1]
    assert "study-00001: series an image is not used: 'adc' in the file name" in texts[1]


def test_a_study_that_fails_names_nothing(tree, tmp_path, model_folder, no_pictures):
    (tree / "S2" / "S2-t1c.nii.gz").write_bytes(b"no image")
    texts = run(tmp_path, "segment", "-i", tree, "-m", model_folder, "-o", tmp_path / "out", code=3)
    assert not leaks(*texts)
    assert not files_that_name(tmp_path / "out")


@pytest.mark.parametrize("verb", ["evaluate", "calibrate", "prepare", "convert", "train", "identify"])
def test_no_other_verb_names_the_input(tree, tmp_path, model_folder, no_pictures, verb):
    out = tmp_path / "out"
    changes = [part for path, value in small().items() for part in ("--set", f"{path}={value}")]
    arguments = {
        "evaluate": ("evaluate", model_folder, "--data", tree, "--subsets", "t1c", "--metrics", "dice", "-o", out),
        "calibrate": ("calibrate", model_folder, "--data", tree, "-o", out),
        "prepare": ("prepare", tree, "-o", out, "--recipe", "unet/phantom"),
        "convert": ("convert", tree, "--to", "bids", "-o", out),
        "train": ("train", "unet/phantom", "--data", tree, "-o", out, *changes, "--set", "optim.steps=2"),
        "identify": ("identify", tree / "S1", "-o", tmp_path / "series.json"),
    }[verb]
    texts = run(tmp_path, *arguments)
    assert not leaks(*texts)
    # The record of an evaluation names the files, from which the report draws its pictures.
    assert verb == "identify" or files_that_name(out) == (["evaluation.json"] if verb == "evaluate" else [])


@pytest.mark.parametrize("verb", ["evaluate", "prepare", "segment"])
def test_messages_about_a_tree_that_cannot_be_read_name_no_folder_above(tmp_path, model_folder, verb):
    place = tmp_path / WORD / "below"
    place.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), place / "scan.nii.gz")
    arguments = {
        "evaluate": ("evaluate", model_folder, "--data", place, "-o", tmp_path / "out"),
        "prepare": ("prepare", place, "-o", tmp_path / "out"),
        "segment": ("segment", "-i", place, "-m", model_folder, "-o", tmp_path / "out"),
    }[verb]
    assert not leaks(*run(tmp_path, *arguments, code=3))
