"""Scenes of warnings and notes: each runs the command line on input that gives reason for some of them.

A scene is a function of a `Stage`. It returns what stood on the terminal, and the texts of all records that were
written: `run.json`, `unused.json`, `notes.csv`, `series.json`.
"""

import csv
import io
import json
import os
import shutil
import sys
import tarfile
import types
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import ndimage

from conftest import AFFINE, command_line, head, small, write_head
from glimpseg import phantom
from glimpseg.data.nifti import write_image
from glimpseg.modality import Modality
from glimpseg.phantom.dataset import as_study
from glimpseg.segmentation.result import Segmentation
from glimpseg.volume import Volume

T1, T1C, T2, FLAIR = Modality
FLAGS = {T1: "--t1", T1C: "--t1c", T2: "--t2", FLAIR: "--flair"}
PLAIN = ("--uncertainty", "none", "--raw", "no")


@dataclass(frozen=True)
class Told:
    """What a scene told: on the terminal, and in the records."""

    terminal: list[str]
    """Lines of stderr."""
    recorded: list[str]
    """Texts of all warnings and notes in the records."""


@dataclass(frozen=True)
class Stage:
    """A folder, a model, and changes that are undone after the scene."""

    place: Path
    model: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def out(self):
        return self.place / "out"

    def run(self, *arguments, code=0, cwd=None):
        """Run a verb; return what it told."""
        done = command_line(*arguments, cwd=cwd)
        assert done.returncode == code, done.stderr
        return Told(done.stderr.splitlines(), recorded(self.place))

    def segment(self, *arguments, options=PLAIN, code=0, cwd=None, model=None):
        """Run `segment` into the folder `out`."""
        return self.run("segment", *arguments, *options, "-m", model or self.model, "-o", self.out, code=code, cwd=cwd)

    def images(self, images, **options):
        """Write images, by modality, and segment them as one study."""
        arguments = []
        for modality, image in images.items():
            path = self.place / f"{modality.key}.nii.gz"
            write_image(path, image) if isinstance(image, Volume) else nibabel.save(image, path)
            arguments += [FLAGS[modality], path]
        return self.segment(*arguments, **options)


def recorded(folder):
    """Return the texts of all warnings and notes in the records below a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.name in ("run.json", "unused.json", "series.json"):
            tree = json.loads(path.read_text("utf-8"))
            found += [*tree["warnings"], *tree["notes"], *tree.get("ties", ())]
        if path.name == "notes.csv":
            found += [row["text"] for row in csv.DictReader(io.StringIO(path.read_text("utf-8")))]
    return found


def nifti(voxels, sform=AFFINE, qform=None, codes=(1, 0)):
    image = nibabel.Nifti1Image(np.asarray(voxels, np.float32), sform)
    image.set_sform(sform, codes[0])
    image.set_qform(sform if qform is None else qform, codes[1])
    return image


# NIfTI, spikes and brains


def headers(stage):
    images, _ = head()
    hollow = images[T1].copy()
    hollow[0, 0, :3] = np.nan
    moved = AFFINE.copy()
    moved[:3, 3] += 10
    flair = stage.place / "flair.nii"
    nibabel.save(nifti(images[FLAIR]), stage.place / "packed.nii.gz")
    (stage.place / "packed.nii.gz").rename(flair)
    shown = {
        T1: nifti(hollow[..., None]),
        T1C: nifti(images[T1C], qform=moved, codes=(1, 1)),
        T2: nibabel.Nifti1Image(images[T2], None),
    }
    shown[T2].header.set_zooms((3.0, 3.0, 3.0))
    for modality, image in shown.items():
        nibabel.save(image, stage.place / f"{modality.key}.nii.gz")
    paths = [(FLAGS[modality], stage.place / f"{modality.key}.nii.gz") for modality in shown]
    return stage.segment(*(part for pair in paths for part in pair), "--flair", flair)


def disturbed(stage):
    images, _ = head()
    spoiled = {modality: image.copy() for modality, image in images.items()}
    inside = np.argwhere(images[T1] > 0)
    spoiled[T1][tuple(inside[::9000].T)] *= 1000
    high = np.rint(100 * images[T1C])
    spoiled[T1C] = np.where(high > 32_767, high - 65_536, high)
    spoiled[FLAIR] = images[FLAIR] + np.random.default_rng(3).normal(0, 2, images[FLAIR].shape)
    spoiled[T2] = np.where(images[T2] == 0, 190 + np.random.default_rng(1).normal(0, 8, images[T2].shape), images[T2])
    return stage.images({modality: nifti(voxels) for modality, voxels in spoiled.items()})


def noisy_slab(stage):
    voxels = head()[0][FLAIR][:, :, 12:18]
    return stage.images({FLAIR: nifti(voxels + np.random.default_rng(3).normal(0, 2, voxels.shape))})


def swapped(stage):
    images = as_study(phantom.generate(60001, phantom.Settings.at_spacing(4.0))).images
    return stage.images({T1: images[T2]})


def out_of_memory(stage):
    from glimpseg.segmentation import inference

    real, calls = inference.averaged, []

    def averaged(*given, **named):
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return real(*given, **named)

    stage.monkeypatch.setattr(inference, "averaged", averaged)
    return stage.images({T1C: nifti(head()[0][T1C])})


# Registration and the brain of a raw head


AUTO = ("--uncertainty", "none")


def found_misaligned(stage):
    """Every check finds images misaligned, without the time that it takes."""
    from glimpseg.data.raw import preparation
    from glimpseg.data.raw.check import RawCheck, Verdict

    check = RawCheck(verdict=Verdict.YES, evidence=("it is said so",))
    stage.monkeypatch.setattr(preparation, "check_alignment", lambda fixed, moving: check)
    stage.monkeypatch.setattr(preparation, "_share_grid_and_mask", lambda *given: False)


def moved_by(stage, mm):
    """Two images, and a registration that finds the second moved along x, without the time that it takes."""
    from glimpseg.data.raw import preparation

    found_misaligned(stage)
    found = np.eye(4)
    found[0, 3] = mm
    stage.monkeypatch.setattr(preparation, "register_rigidly", lambda fixed, moving, within: found)
    images, _ = head()
    return stage.images({m: nifti(images[m]) for m in (T1C, FLAIR)}, options=AUTO)


def sheared(stage):
    """A registration of SimpleITK of an image whose axes are not quite perpendicular."""
    pytest.importorskip("SimpleITK")
    found_misaligned(stage)
    images, _ = head()
    affine = AFFINE.copy()
    affine[0, 1] += 0.006 * 3
    return stage.images({T1C: nifti(images[T1C]), FLAIR: nifti(images[FLAIR], affine)}, options=AUTO)


def within_a_voxel(stage):
    return moved_by(stage, 0.5)


def moved(stage):
    stage.monkeypatch.setattr("glimpseg.data.raw.preparation.similarity_of_motion", lambda *given: None)
    return moved_by(stage, 6.0)


def far_away(stage):
    stage.monkeypatch.setattr("glimpseg.data.raw.preparation.similarity_of_motion", lambda *given: None)
    return moved_by(stage, 33.0)


def not_better(stage):
    return moved_by(stage, 6.0)


class SmallBrain:
    """Replacement of deepbet: a ball in the middle of the bright voxels."""

    def __init__(self, no_gpu):
        assert no_gpu

    def run(self, image):
        bright = np.asarray(image.dataobj) > 500
        middle = ndimage.center_of_mass(bright)
        far = np.sqrt(((np.indices(bright.shape).T - middle) ** 2).sum(-1)).T * image.header.get_zooms()[0]
        mask = (far < 45).astype(np.uint8)
        return image, nibabel.Nifti1Image(mask, image.affine), mask.sum()


def raw_head(stage):
    from test_raw import with_head

    module = types.ModuleType("deepbet")
    module.BrainExtraction = SmallBrain
    stage.monkeypatch.setitem(sys.modules, "deepbet", module)
    image = as_study(phantom.generate(21, phantom.Settings.at_spacing(3.0))).images[T1]
    return stage.images({T1: with_head(image, T1)}, options=AUTO)


# DICOM

SERIES = {
    "t1c": ("t1_se_tra_km", {"RepetitionTime": 550, "EchoTime": 12, "ContrastBolusAgent": "Gadovist"}),
    "flair": ("t2_tirm_tra_dark-fluid", {"RepetitionTime": 9000, "EchoTime": 100, "InversionTime": 2500}),
}


def write_dicom(folder, key, number, **changes):
    from dicom_phantoms import write_series

    description, tags = SERIES[key]
    tags = {"ScanningSequence": "SE", **tags}
    voxels = np.clip(head()[0][Modality[key.upper()]], 0, 4000).astype(np.uint16) + np.uint16(number)
    return write_series(folder, voxels, AFFINE, number=number, description=description, tags=tags, **changes)


def readers_here(stage):
    """Read DICOM in this process, as the fixture of that name."""
    from conftest import run_here

    for name in ("find", "read", "study_folders"):
        stage.monkeypatch.setattr(f"glimpseg.data.dicom.{name}.run_sandboxed", run_here)
    for name in ("stacks", "pixels", "study_folders"):
        stage.monkeypatch.setattr(f"glimpseg.data.dicom.{name}.confine", lambda *_: None)
    # A reader silences the loggers of its process. Here the terminal of other threads would miss lines.
    stage.monkeypatch.setattr("logging.disable", lambda *_: None)


def dicom_tree(stage):
    """Two studies and a folder without images; in the first: copies, foreign and damaged files, a tie, other UIDs."""
    pytest.importorskip("highdicom")
    from dicom_phantoms import Person, change, uid

    readers_here(stage)
    one, two = stage.place / "tree" / "A", stage.place / "tree" / "B"
    files = write_dicom(one, "t1c", 1)
    write_dicom(one, "t1c", 3)
    for path in write_dicom(one, "flair", 2):
        change(path, SeriesInstanceUID=uid("own", path))
    shutil.copyfile(files[3], one / "copy.dcm")
    (one / "readme.txt").write_text("not DICOM")
    (one / "damaged.dcm").write_bytes(bytes(128) + b"DICM\x02\x00")
    other = write_dicom(two, "t1c", 1, study="2", person=Person(name="PANZAXX^SANCHO", id="PIDXX0002"))
    change(other[0], Rows=7, PixelData=bytes(2 * 7 * 40))
    (stage.place / "tree" / "letters").mkdir()
    (stage.place / "tree" / "letters" / "letter.pdf").write_bytes(b"%PDF")
    return stage.segment("-i", stage.place / "tree")


def dixon(stage):
    """One series of water and fat in two studies of a patient, given as T1c."""
    pytest.importorskip("highdicom")
    from dicom_phantoms import change, uid, write_series

    readers_here(stage)
    for number, kind in enumerate(("W", "F")):
        tags = {
            "ImageType": ["DERIVED", "PRIMARY", kind, kind, "DERIVED"], "RepetitionTime": 5.9, "EchoTime": 2.5,
            "FlipAngle": 9, "ScanningSequence": "GR", "ContrastBolusAgent": "Gadovist", "StudyDate": f"2024010{number}",
        }  # fmt: skip
        voxels = head()[0][T1C].astype(np.int16) + 7 * number
        description = "t1_vibe_dixon_tra_KM"
        for path in write_series(
            stage.place / "in" / kind, voxels, AFFINE, description=description, tags=tags, study=str(number)
        ):
            change(path, SOPInstanceUID=uid(path))
    return stage.segment("--t1c", stage.place / "in")


def no_dicom_output(stage):
    pytest.importorskip("highdicom")
    from dicom_phantoms import change

    readers_here(stage)
    for path in write_dicom(stage.place / "in", "t1c", 1):
        change(path, FrameOfReferenceUID=None)
    return stage.segment("--t1c", stage.place / "in", options=(*PLAIN, "--output-type", "nifti,dicom-seg"))


def late_refusal(stage):
    pytest.importorskip("highdicom")
    from glimpseg.errors import InputError
    from glimpseg.segmentation import result

    def refused(*_, **__):
        raise InputError("The writer refuses.")

    readers_here(stage)
    stage.monkeypatch.setattr(result, "write_seg", refused)
    write_dicom(stage.place / "in", "t1c", 1)
    return stage.segment("--t1c", stage.place / "in", options=(*PLAIN, "--output-type", "nifti,dicom-seg"))


def invalid_attributes(stage):
    pytest.importorskip("highdicom")
    import pydicom

    from dicom_phantoms import change

    readers_here(stage)
    with pydicom.config.disable_value_validation():
        for path in write_dicom(stage.place / "in", "t1c", 1):
            change(path, StudyDate="29 Feb 24")
    return stage.segment("--t1c", stage.place / "in", options=(*PLAIN, "--output-type", "nifti,dicom-seg"))


def identified(stage):
    pytest.importorskip("highdicom")
    readers_here(stage)
    write_dicom(stage.place / "in", "t1c", 1)
    return stage.run("identify", stage.place / "in", "-o", stage.place / "series.json")


# Archives and trees


def archive(stage):
    """A tar with a link, a sidecar that is no JSON, and an image that is none."""
    place = write_head(stage.place / "in", "S1", modalities=(T1C, FLAIR), reference=False)
    (place / "S1-t1c.json").write_text("{")
    (place / "S1-t2w.nii.gz").write_bytes(b"no image")
    nibabel.save(nifti(head(1)[0][T1C]), place / "S1-t1c_repeat.nii.gz")
    nibabel.save(nifti(head(2)[0][T1C]), place / "S1-adc.nii.gz")
    with tarfile.open(stage.place / "S1.tar", "w") as file:
        for path in sorted(place.iterdir()):
            file.add(path, f"S1/{path.name}")
        link = tarfile.TarInfo("S1/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    shutil.rmtree(stage.place / "in")
    return stage.segment("-i", stage.place / "S1.tar")


def tree(stage):
    """Studies of BraTS 2023: an image of another kind, a link without a target, a closed folder, derived images."""
    place = stage.place / "tree"
    for seed, name in enumerate(("S1", "S2")):
        write_head(place, name, seed, modalities=(T1C, FLAIR))
    nibabel.save(nifti(head()[0][T1]), place / "S1" / "S1-adc.nii.gz")
    (place / "S2" / "S2-t1n.nii.gz").symlink_to(place / "nowhere.nii.gz")
    (place / "closed").mkdir()
    shutil.copytree(place / "S1", place / "S1" / "SegmentationsForQC" / "one")
    scandir = os.scandir

    def closed(path="."):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    stage.monkeypatch.setattr(os, "scandir", closed)
    return stage.segment("-i", place)


def patients(stage):
    """Two patients with folders of the same time point."""
    for seed, patient in enumerate(("P1", "P2")):
        (stage.place / "tree" / patient / "week01").mkdir(parents=True)
        nibabel.save(nifti(head(seed)[0][T1C]), stage.place / "tree" / patient / "week01" / "t1c.nii.gz")
    return stage.segment("-i", stage.place / "tree")


def manifest(stage, text, encoding="utf-8"):
    images, _ = head()
    for modality in (T1C, FLAIR):
        nibabel.save(nifti(images[modality]), stage.place / f"{modality.key}.nii.gz")
    table = stage.place / "studies.csv"
    table.write_bytes(text.encode(encoding))
    return stage.segment("-i", table)


def unused_columns(stage):
    return manifest(stage, "study,t1c,flair,site\nA,t1c.nii.gz,flair.nii.gz,Jena\n")


def other_encoding(stage):
    return manifest(stage, "study,t1c,t2\nA,.\\t1c.nii.gz,NA\n", "utf-16")


def other_channels(stage):
    """A dataset of nnU-Net with a channel of another kind."""
    place = stage.place / "Dataset001"
    (place / "imagesTr").mkdir(parents=True)
    names = {"0": "T1c", "1": "ADC"}
    description = {"channel_names": names, "labels": {"background": 0}, "numTraining": 1, "file_ending": ".nii.gz"}
    (place / "dataset.json").write_text(json.dumps(description))
    for number, modality in enumerate((T1C, T2)):
        nibabel.save(nifti(head()[0][modality]), place / "imagesTr" / f"S1_000{number}.nii.gz")
    return stage.segment("-i", place)


# Evaluation, calibration, training


def studies(stage):
    """S0 whole, S1 without a reference, S2 with T1 alone; an image that is not used, a sequence on another grid."""
    place = stage.place / "data"
    write_head(place, "S0", 0)
    write_head(place, "S1", 1, reference=False)
    write_head(place, "S2", 2, modalities=(T1,))
    nibabel.save(nifti(head()[0][T1]), place / "S0" / "S0-adc.nii.gz")
    images, _ = head(0)
    nibabel.save(nifti(images[T2][:-2]), place / "S0" / "S0-t2w.nii.gz")
    return place


EVALUATE = ("--subsets", "t1c,t2", "--metrics", "dice")


def evaluated(stage):
    place = studies(stage)
    told = stage.run("evaluate", stage.model, "--data", place, *EVALUATE, "-o", stage.out)
    page = (stage.out / "report.html").read_text("utf-8")
    return Told(told.terminal, [*told.recorded, page])


def evaluated_again(stage):
    place = studies(stage)
    stage.run("evaluate", stage.model, "--data", place, *EVALUATE, "-o", stage.out)
    record = json.loads((stage.out / "evaluation.json").read_text("utf-8"))
    (stage.out / "evaluation.json").write_text(json.dumps({**record, "finished": False}))
    nibabel.save(nifti(head(5)[0][T1C]), place / "S0" / "S0-t1c.nii.gz")
    return stage.run("evaluate", stage.model, "--data", place, *EVALUATE, "-o", stage.out, "--resume")


def reported(stage):
    place = studies(stage)
    stage.run("evaluate", stage.model, "--data", place, *EVALUATE, "-o", stage.out)
    shutil.rmtree(place)
    return stage.run("report", stage.out)


def part_of_a_list(stage):
    write_head(stage.place / "data", "BraTS20_Training_001", 0)
    wanted = ("--data", stage.place / "data", "--split", "brats2020/test", *EVALUATE)
    return stage.run("evaluate", stage.model, *wanted, "-o", stage.out)


def calibrated(stage):
    place = stage.place / "data"
    write_head(place, "S1", 1, reference=False)
    write_head(place, "S2", 2, modalities=(T1,))
    return stage.run("calibrate", stage.model, "--data", place, "-o", stage.out)


def trained(stage):
    place = studies(stage)
    changes = [part for path, value in small().items() for part in ("--set", f"{path}={value}")]
    changes += ["--set", "optim.steps=2"]
    return stage.run("train", "unet/phantom", "--data", place, "-o", stage.out, *changes)


def prepared(stage):
    return stage.run("prepare", studies(stage), "-o", stage.out, "--recipe", "unet/phantom")


# Models


def box(stage):
    """A folder called `box` beside the model that comes with the package."""
    shutil.copytree(stage.model, stage.place / "weights" / "box")
    stage.monkeypatch.setattr("glimpseg.model.shipped.WEIGHTS_FOLDER", stage.place / "weights")
    (stage.place / "box").mkdir()
    nibabel.save(nifti(head()[0][T1C]), stage.place / "t1c.nii.gz")
    return stage.segment("--t1c", stage.place / "t1c.nii.gz", cwd=stage.place, model="box")


def changed_method(stage):
    """A model whose method is said to have changed since it was trained."""
    from glimpseg.model.folder import StoredModel

    stage.monkeypatch.setattr(StoredModel, "changed_methods", ["mine"])
    return stage.images({T1C: nifti(head()[0][T1C])})


SCENES = {
    scene.__name__: scene
    for scene in (
        headers, disturbed, noisy_slab, swapped, out_of_memory, sheared, within_a_voxel, moved,
        far_away, not_better, raw_head, dicom_tree,
        dixon, no_dicom_output, late_refusal, invalid_attributes, identified, archive, tree, patients, unused_columns,
        other_encoding, other_channels, evaluated, evaluated_again, reported, part_of_a_list, calibrated, trained,
        prepared, box, changed_method,
    )
}  # fmt: skip


def play(name, place, model):
    """Run one scene in a new folder. Pictures are not drawn."""
    place.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Segmentation, "_preview", lambda *_: Figure(figsize=(1, 1)))
        if name != "swapped":  # an untrained network gives reasons to look in every scene
            monkeypatch.setattr("glimpseg.segmentation.passes._reviewed", lambda *_: None)
        monkeypatch.setattr("glimpseg.training.logger.TrainingLogger.draw", lambda logger: None)
        return SCENES[name](Stage(place, model, monkeypatch))
