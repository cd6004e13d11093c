"""DICOM, archives and odd trees through the command line, to the files that come out."""

import json
import shutil
import zipfile

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("highdicom", reason="the extra dicom is not installed")

from conftest import AFFINE, head
from dicom_phantoms import Person, change, uid, write_series
from glimpseg.batch.job import BatchOptions
from glimpseg.batch.tree import segment_tree
from glimpseg.cli import app
from glimpseg.data.dicom.seg import read_seg
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
from glimpseg.segmentation import passes, predict
from glimpseg.segmentation.inputs import study_entries
from glimpseg.segmentation.options import InferenceOptions, OutputOptions
from glimpseg.volume import Volume, resample

pytestmark = pytest.mark.usefixtures("no_pictures")

SERIES = {
    Modality.T1: ("t1_se_tra", {"RepetitionTime": 550, "EchoTime": 12, "ScanningSequence": "SE"}),
    Modality.T1C: (
        "t1_se_tra_km",
        {"RepetitionTime": 550, "EchoTime": 12, "ScanningSequence": "SE", "ContrastBolusAgent": "Gadovist"},
    ),
    Modality.T2: ("t2_tse_tra", {"RepetitionTime": 5500, "EchoTime": 100, "ScanningSequence": "SE"}),
    Modality.FLAIR: (
        "t2_tirm_tra_dark-fluid",
        {"RepetitionTime": 9000, "EchoTime": 100, "InversionTime": 2500, "ScanningSequence": ["SE", "IR"]},
    ),
}


def write_visit(folder, seed=0, modalities=tuple(Modality), person=None):
    """A DICOM study in a folder, its series mixed; the arrays that were written."""
    images, _ = head(seed)
    written = {}
    for number, modality in enumerate(modalities, 1):
        description, tags = SERIES[modality]
        written[modality] = np.clip(images[modality], 0, 4000).astype(np.uint16)
        changes = {"person": person} if person else {}
        write_series(
            folder, written[modality], AFFINE, number=number, description=description, tags=tags, study=str(folder),
            **changes,
        )  # fmt: skip
    return written


@pytest.fixture(scope="module")
def model(model_folder):
    return predict.load(model_folder, "cpu")


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dicom") / "visit"
    return folder, write_visit(folder, modalities=(Modality.T1C, Modality.FLAIR))


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_a_folder_of_dicom_becomes_a_mask_a_seg_and_measurements(visit, model_folder, tmp_path):
    folder, _ = visit
    types = "nifti,dicom-seg,dicom-sr"
    run("segment", "-i", folder, "-m", model_folder, "-o", tmp_path / "out", "--output-type", types)
    place = tmp_path / "out" / "visit"
    record = json.loads((place / "run.json").read_text())
    assert record["sequences"] == {"used": ["t1c", "flair"], "absent": ["t1", "t2"]}
    mask = nibabel.load(place / "seg.nii.gz")
    labels = Volume(np.asarray(mask.dataobj).astype(np.uint8), mask.affine)
    assert labels.voxels.any()
    assert np.array_equal(read_seg(place / "seg.dcm", labels.grid).voxels, labels.voxels)
    assert (place / "measurements.dcm").stat().st_size > 1000


@pytest.mark.usefixtures("readers_here")
def test_the_mask_of_dicom_is_that_of_the_same_voxels_as_nifti(visit, model, tmp_path):
    folder, written = visit
    segment_tree(study_entries(folder), model, tmp_path / "out", BatchOptions())
    named = {m.key: nibabel.Nifti1Image(voxels.astype(np.float32), AFFINE) for m, voxels in written.items()}
    expected = predict.segment(**named, model=model).labels
    found = nibabel.load(tmp_path / "out" / "visit" / "seg.nii.gz")
    back = resample(Volume(np.asarray(found.dataobj).astype(np.float32), found.affine), expected.grid)
    assert np.array_equal(back.voxels, expected.voxels)


@pytest.mark.usefixtures("readers_here")
def test_the_result_lies_on_the_grid_that_is_asked_for(tmp_path, model, visit):
    folder, _ = visit
    segment_tree(
        study_entries(folder), model, tmp_path / "out", BatchOptions(inference=InferenceOptions(grid=Modality.FLAIR))
    )
    with pytest.raises(UsageError, match="T2"):
        predict.segment(
            flair=nibabel.Nifti1Image(head()[0][Modality.FLAIR], AFFINE),
            model=model,
            options=InferenceOptions(grid="t2"),
        )
    assert (tmp_path / "out" / "visit" / "seg.nii.gz").is_file()


@pytest.mark.usefixtures("readers_here")
def test_an_archive_is_a_study(visit, model_folder, tmp_path):
    folder, _ = visit
    archive = tmp_path / "STUDY.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in folder.iterdir():
            packed.write(path, f"export/{path.name}")
    arguments = ("segment", "-i", archive, "-m", model_folder, "-o", tmp_path / "out", "--output-type", "dicom-seg")
    run(*arguments)
    assert (tmp_path / "out" / "STUDY" / "seg.dcm").is_file()


@pytest.mark.usefixtures("readers_here")
def test_in_a_tree_of_dicom_each_folder_and_archive_is_a_study(model, tmp_path):
    tree = tmp_path / "tree"
    for seed, name in enumerate(("one", "two")):
        write_visit(tree / name, seed, [Modality.FLAIR])
    shutil.make_archive(str(tree / "three"), "zip", tree / "two")
    write_visit(tree / "mixed", 3, [Modality.FLAIR])
    write_visit(tree / "mixed" / "other", 4, [Modality.T2], person=Person(name="Other^Person", id="4711"))
    outcome = segment_tree(study_entries(tree), model, tmp_path / "out", BatchOptions())
    assert sorted(outcome.done) == ["one", "three", "two"]
    assert "more than one patient" in outcome.failed["mixed"]
    assert "4711" not in outcome.failed["mixed"]


@pytest.mark.usefixtures("readers_here")
def test_series_folders_of_one_study_are_one_study(model, tmp_path):
    images, _ = head()
    for number, modality in enumerate((Modality.T1, Modality.T2), 1):
        description, tags = SERIES[modality]
        voxels = np.clip(images[modality], 0, 4000).astype(np.uint16)
        write_series(
            tmp_path / "visit" / f"series{number}", voxels, AFFINE, number=number, description=description, tags=tags,
            study="one",
        )  # fmt: skip
    (item,) = study_entries(tmp_path / "visit")
    segment_tree([item], model, tmp_path / "out", BatchOptions())
    record = json.loads((tmp_path / "out" / "visit" / "run.json").read_text())
    assert record["sequences"]["used"] == ["t1", "t2"]


@pytest.mark.usefixtures("readers_here")
def test_an_edited_series_json_has_the_last_word(visit, model_folder, tmp_path):
    folder, _ = visit
    run("identify", folder, "-o", tmp_path / "series.json")
    tree = json.loads((tmp_path / "series.json").read_text())
    for entry in tree["series"]:
        entry["sequence"] = {"t1c": "t1", "flair": None}[entry["sequence"]]
    (tmp_path / "series.json").write_text(json.dumps(tree))
    run("segment", "--series", tmp_path / "series.json", "-m", model_folder, "-o", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["sequences"]["used"] == ["t1"]


@pytest.mark.usefixtures("readers_here")
def test_one_series_can_be_given_by_its_folder(model, model_folder, tmp_path):
    write_visit(tmp_path / "flair", 0, [Modality.FLAIR])
    arguments = ("-m", model_folder, "-o", tmp_path / "out", "--output-type", "dicom-seg")
    run("segment", "--flair", tmp_path / "flair", *arguments)
    assert (tmp_path / "out" / "seg.dcm").is_file()


@pytest.mark.usefixtures("readers_here")
def test_a_folder_of_two_series_is_no_single_image(visit, model):
    folder, _ = visit
    with pytest.raises(UsageError, match="holds 2 series"):
        predict.segment(flair=folder, model=model)


@pytest.mark.usefixtures("readers_here")
def test_images_that_came_as_nifti_have_no_dicom_geometry(model_folder, tmp_path):
    nibabel.save(nibabel.Nifti1Image(head()[0][Modality.FLAIR], AFFINE), tmp_path / "f.nii.gz")
    with pytest.raises(UsageError, match="geometry of a DICOM series"):
        run(
            "segment", "--flair", tmp_path / "f.nii.gz", "-m", model_folder, "-o", tmp_path / "o",
            "--output-type", "dicom-seg",
        )  # fmt: skip
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("readers_here")
def test_deidentified_outputs_name_nobody(model, tmp_path):
    person = Person(name="Canary^Carla", id="CANARY-77")
    write_visit(tmp_path / "tree" / "CANARY-77", 0, [Modality.FLAIR], person=person)
    write_visit(tmp_path / "tree" / "other", 1, [Modality.FLAIR])
    types = ("nifti", "dicom-seg", "dicom-sr")
    segment_tree(
        study_entries(tmp_path / "tree"),
        model,
        tmp_path / "out",
        BatchOptions(outputs=OutputOptions(types=types, deidentify=True)),
    )
    for path in (tmp_path / "out").rglob("*"):
        assert "CANARY" not in path.name
        assert path.is_dir() or b"canary" not in path.read_bytes().lower(), path


@pytest.mark.usefixtures("readers_here")
def test_a_tree_without_studies_says_what_was_expected(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(InputError, match="No study"):
        study_entries(tmp_path)


@pytest.mark.usefixtures("readers_here")
def test_a_tree_of_dicom_without_mr_images_is_refused(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "text.dcm").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(InputError, match="No study was found"):
        study_entries(tmp_path)


@pytest.mark.usefixtures("readers_here")
def test_a_brain_mask_for_a_whole_tree_is_refused(visit, model_folder, tmp_path):
    folder, _ = visit
    with pytest.raises(UsageError, match="--brain-mask is of one study"):
        run("segment", "-i", folder, "--brain-mask", tmp_path / "m.nii.gz", "-m", model_folder, "-o", tmp_path / "o")


@pytest.mark.usefixtures("readers_here")
def test_what_makes_a_seg_impossible_is_told_before_the_network_runs_and_nifti_is_written(
    model_folder, tmp_path, monkeypatch, caplog
):
    folder = tmp_path / "visit"
    write_visit(folder, modalities=[Modality.T1C])
    for path in folder.iterdir():
        change(path, FrameOfReferenceUID=None)
    told = []
    real = passes.segment_prepared
    monkeypatch.setattr(passes, "segment_prepared", lambda *args: told.append(caplog.text) or real(*args))
    output = tmp_path / "out"
    run("segment", "--t1c", folder, "-m", model_folder, "-o", output, "--output-type", "nifti,dicom-seg,dicom-sr")
    assert "No DICOM output is written, only NIfTI: The source series has no FrameOfReferenceUID" in told[0]
    assert sorted(path.suffix for path in output.iterdir() if path.suffix == ".dcm") == []
    assert (output / "seg.nii.gz").is_file()
    warning, *reasons = json.loads((output / "run.json").read_text())["warnings"]
    assert warning.startswith("No DICOM output is written")
    assert all(reason.startswith("Look at this one: ") for reason in reasons)  # the network is untrained


def test_a_seg_of_nifti_is_refused_before_the_network_runs(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "segment_prepared", lambda *_: pytest.fail("the network ran"))
    image = tmp_path / "t1c.nii.gz"
    nibabel.save(nibabel.Nifti1Image(head()[0][Modality.T1C], AFFINE), image)
    with pytest.raises(UsageError, match="A DICOM SEG lies in the geometry of a DICOM series"):
        run("segment", "--t1c", image, "-m", model_folder, "-o", tmp_path / "out", "--output-type", "dicom-seg")


@pytest.mark.usefixtures("readers_here")
def test_what_dicom_warned_of_stands_in_the_record(model_folder, tmp_path):
    folder = tmp_path / "visit"
    write_visit(folder, modalities=[Modality.T1C])
    first = sorted(folder.iterdir())[12]
    copy = folder / "copy.dcm"
    copy.write_bytes(first.read_bytes())
    change(copy, SOPInstanceUID=uid("copy"))
    run("segment", "--t1c", folder, "-m", model_folder, "-o", tmp_path / "out")
    warning, *reasons = json.loads((tmp_path / "out" / "run.json").read_text())["warnings"]
    assert "1 file has the same pixels as another at the same position" in warning
    assert all(reason.startswith("Look at this one: ") for reason in reasons)  # the network is untrained
