"""Smoke test of one environment: `tools/matrix.py` runs this file with the environment's own Python.

    python tools/matrix_checks.py -o DIR --reference DIR [--extra NAME ...]

Without extras: the version, the import of every public module, a phantom, its segmentation by the shipped model, an
evaluation and a report. Phantom, labels and scores are compared with those in the reference folder; if that folder has
none, they are written there and are the reference. With extras: one use of each. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import pkgutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT_S = 3600
"""Seconds until a command is given up; it takes one minute on a machine that does nothing else."""
SEQUENCES = {"t1": "t1n", "t1c": "t1c", "t2": "t2w", "flair": "t2f"}
"""Option of each sequence, and its word in the file names of BraTS 2023."""
LEAST_DICE = 0.99
"""Least Dice, for each label, between the labels of two environments. Rounding moves single voxels of a small label."""
LARGEST_SCORE_CHANGE = 0.005
"""Largest difference of a Dice between two environments' evaluations (0 to 1)."""
LARGEST_SIGNAL_CHANGE = 1e-3
"""Largest difference of a phantom's signal, relative to its maximum: files hold whole numbers, up to about 1,000."""


class CheckError(Exception):
    """An environment that does not do what it should."""


def main() -> int:
    """Print the result of each check as JSON; the exit code says whether all of them went well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder for this environment's files")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--extra", action="append", default=[], choices=sorted(EXTRAS))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    checks = {name: EXTRAS[name] for name in given.extra} or CORE
    results = {name: outcome(check, given.output, given.reference) for name, check in checks.items()}
    print(json.dumps(results))
    return 0 if all(result["ok"] for result in results.values()) else 1


def outcome(check: Callable[[Path, Path], str], output: Path, reference: Path) -> dict[str, object]:
    """Run one check; return whether it went well, a few words, and the seconds that it took."""
    begun = time.perf_counter()
    try:
        note, good = check(output, reference), True
    except (Exception, SystemExit) as error:
        note, good = f"{type(error).__name__}: {error}"[-2000:], False
    return {"ok": good, "note": note, "seconds": round(time.perf_counter() - begun, 1)}


def run(*words: object) -> str:
    """Run a program of the environment; return what it printed. Raises: CheckError."""
    program, *rest = map(str, words)
    command = [str(Path(sys.executable).with_name(program)), *rest]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-1500:]
        raise CheckError(f"`{program} {' '.join(rest[:3])} ...` ended with {done.returncode}: {said}")
    return done.stdout


def expect(true: bool, otherwise: str) -> None:
    """Raise CheckError with these words unless the condition holds."""
    if not true:
        raise CheckError(otherwise)


def images_of(reference: Path) -> dict[str, Path]:
    """Return the phantom's images by the option that takes them."""
    (study,) = [path for path in (reference / "phantom").iterdir() if path.is_dir()]
    return {name: study / f"{study.name}-{word}.nii.gz" for name, word in SEQUENCES.items()}


def options_of(images: dict[str, Path]) -> list[object]:
    """Return the images as options of `glimpseg segment`."""
    return [word for name, path in images.items() for word in (f"--{name}", path)]


# Core


def check_import(output: Path, reference: Path) -> str:
    """Compare the version of program and package; import every public module."""
    import glimpseg

    printed = run("glimpseg", "--version").split()[-1]
    expect(printed == glimpseg.__version__, f"`glimpseg --version` printed {printed}, not {glimpseg.__version__}")
    expect(
        ROOT / "src" not in Path(glimpseg.__file__).parents,
        "glimpseg was imported from the checkout, not from the wheel",
    )
    found = [module.name for module in pkgutil.walk_packages(glimpseg.__path__, "glimpseg.")]
    public = [name for name in found if not any(part.startswith("_") for part in name.split("."))]
    for name in public:
        importlib.import_module(name)
    return f"{len(public)} modules"


def check_phantom(output: Path, reference: Path) -> str:
    """Make a phantom of 4 mm and compare its voxels with the reference's."""
    import nibabel
    import numpy as np

    place = output / "phantom" if (reference / "phantom").exists() else reference / "phantom"
    run("glimpseg", "phantom", "-o", place, "--count", 1, "--spacing", 4, "--seed", 3)
    expected = sorted((reference / "phantom").rglob("*.nii.gz"))
    largest = 0.0
    for path in expected:
        first, second = (
            np.asarray(nibabel.load(one).dataobj, np.float64)  # type: ignore[attr-defined]
            for one in (path, place / path.relative_to(reference / "phantom"))
        )
        change = float(np.abs(first - second).max() / first.max())
        expect(change == 0 or "-seg" not in path.name, f"{path.name} has other labels")
        largest = max(largest, change)
    expect(largest <= LARGEST_SIGNAL_CHANGE, f"the signal differs by {largest:.2g} of its maximum")
    return "same voxels" if not largest else f"signal within {largest:.0e}"


def check_segment(output: Path, reference: Path) -> str:
    """Segment the reference's phantom with the shipped model and compare the labels with the reference's."""
    place = output / "segment" if (reference / "segment").exists() else reference / "segment"
    run("glimpseg", "segment", "-o", place, "--device", "cpu", *options_of(images_of(reference)))
    for name in ("preview.png", "run.json", "statistics.json"):
        expect((place / name).stat().st_size > 0, f"{name} is empty")
    return agreement(place / "seg.nii.gz", reference / "segment" / "seg.nii.gz")


def check_evaluate(output: Path, reference: Path) -> str:
    """Evaluate two subsets and compare the Dice; write the report again."""
    place = output / "evaluate" if (reference / "evaluate").exists() else reference / "evaluate"
    words = ["--data", reference / "phantom", "--subsets", "t1c+flair,t1+t1c+t2+flair", "--device", "cpu"]
    run("glimpseg", "evaluate", "box", "-o", place, *words)
    first, second = (dice_of(folder / "scores.csv") for folder in (place, reference / "evaluate"))
    expect(first.keys() == second.keys(), "scores.csv has other rows")
    largest = max(abs(first[key] - second[key]) for key in first)
    expect(largest <= LARGEST_SCORE_CHANGE, f"a Dice differs by {largest:.4f}")
    (place / "report.html").unlink()
    run("glimpseg", "report", place)
    expect("<svg" in (place / "report.html").read_text("utf-8"), "the report has no figure")
    return f"{len(first)} Dice the same" if not largest else f"Dice within {largest:.1e}"


def agreement(path: Path, expected: Path) -> str:
    """Return how far two label maps agree. Raises: CheckError if they disagree by more than rounding."""
    import nibabel
    import numpy as np

    first, second = (np.asarray(nibabel.load(one).dataobj) for one in (path, expected))  # type: ignore[attr-defined]
    expect(bool((second > 0).sum()), f"{expected} has no label")
    different = int((first != second).sum())
    if not different:
        return "same voxels"
    numbers = np.union1d(np.unique(first), np.unique(second))
    scores = [
        2 * ((first == number) & (second == number)).sum() / ((first == number).sum() + (second == number).sum())
        for number in numbers[numbers > 0]
    ]
    expect(min(scores) >= LEAST_DICE, f"{different} voxels differ; least Dice of a label {min(scores):.4f}")
    return f"{different} voxels, Dice {min(scores):.4f}"


def dice_of(path: Path) -> dict[tuple[str, ...], float]:
    """Return the Dice of a scores.csv by study, subset and region."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "dice"]
    expect(bool(rows), f"{path} has no Dice")
    return {(row["study"], row["subset"], row["region"]): float(row["value"]) for row in rows}


# Extras


def use_dicom(output: Path, reference: Path) -> str:
    """Segment two DICOM series, one of them compressed, and compare the DICOM SEG with the NIfTI."""
    import nibabel
    import numpy as np
    import pydicom

    sys.path.insert(0, str(ROOT / "tests"))
    from dicom_phantoms import write_series

    folders = {}
    for number, name in enumerate(("t1c", "flair"), start=1):
        image = nibabel.load(images_of(reference)[name])  # type: ignore[attr-defined]
        voxels = np.asarray(image.dataobj).round().astype(np.int16)  # type: ignore[attr-defined]
        folders[name] = output / "series" / name
        files = write_series(folders[name], voxels, image.affine, description=name, number=number)  # type: ignore[attr-defined]
        for path in files if name == "flair" else []:
            run("gdcmconv", "--j2k", path, path.with_suffix(".packed"))
            path.with_suffix(".packed").replace(path)
    place = output / "dicom"
    words = ["--raw", "no", "--device", "cpu", "--output-type", "nifti,dicom-seg,dicom-sr"]
    run("glimpseg", "segment", "-o", place, *words, *options_of(folders))
    labels = np.asarray(nibabel.load(place / "seg.nii.gz").dataobj)  # type: ignore[attr-defined]
    read = [pydicom.dcmread(path) for path in sorted(place.rglob("*.dcm"))]
    kinds = sorted(dataset.Modality for dataset in read)
    expect(kinds == ["SEG", "SR"], f"wrote {kinds}")
    (made,) = [dataset for dataset in read if dataset.Modality == "SEG"]
    counted = int((made.pixel_array > 0).sum())
    expect(counted == (labels > 0).sum() > 0, f"{counted} voxels in the SEG, {(labels > 0).sum()} in the NIfTI")
    return f"JPEG 2000 read; {counted} voxels in SEG and NIfTI"


def use_sam(output: Path, reference: Path) -> str:
    """Save an encoder of random weights with transformers, read it again, and compute features."""
    import numpy as np
    import torch
    import transformers

    from glimpseg.priors import sam
    from glimpseg.priors.settings import Prior

    vision = {"hidden_size": 32, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 64, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 16,
              "mlp_dim": 64}  # fmt: skip
    prompts = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    masks = {"hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SamConfig(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config={**masks, "iou_head_hidden_dim": 32}
    )
    network = transformers.SamModel(config)
    for value in network.parameters():  # transformers begins at 0 or 1e-10
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=0.2)
    network.save_pretrained(output / "sam")
    encoder = sam.Encoder(Prior(kind="sam", weights=str(output / "sam"), side=64), torch.device("cpu"))
    found = encoder.features(np.random.default_rng(0).random((2, 64, 64), np.float32))
    expect(bool(np.isfinite(found).all()) and found.std() > 0, "the features are not numbers, or all the same")
    return f"features {'x'.join(map(str, found.shape))}"


def use_onnx(output: Path, reference: Path) -> str:
    """Export the shipped model to ONNX, run it, and segment with onnxruntime."""
    run("glimpseg", "export", "box", "--to", "onnx", "-o", output / "box.onnx", "--verify")
    return segmented_by("onnx", output, reference)


def use_openvino(output: Path, reference: Path) -> str:
    """Export the shipped model to OpenVINO, run it, and segment with OpenVINO."""
    run("glimpseg", "export", "box", "--to", "openvino", "-o", output / "box.openvino", "--verify")
    return segmented_by("openvino", output, reference)


def segmented_by(backend: str, output: Path, reference: Path) -> str:
    """Segment with an inference backend and compare with torch."""
    words = ["--device", "cpu", "--backend", backend]
    run("glimpseg", "segment", "-o", output / backend, *words, *options_of(images_of(reference)))
    return "export verified; " + agreement(output / backend / "seg.nii.gz", reference / "segment" / "seg.nii.gz")


def use_register(output: Path, reference: Path) -> str:
    """Turn the FLAIR by 5 degrees, shift it by 4 mm, and compare the motion that the registration finds."""
    import nibabel
    import numpy as np

    from glimpseg.data.raw.preparation import register_and_strip
    from glimpseg.data.raw.register import displacement_mm
    from glimpseg.modality import Modality
    from glimpseg.study import Study
    from glimpseg.volume import Volume

    images = {}
    for name, modality in (("t1c", Modality.T1C), ("flair", Modality.FLAIR)):
        image = nibabel.as_closest_canonical(nibabel.load(images_of(reference)[name]))  # type: ignore[attr-defined]
        images[modality] = Volume(np.asarray(image.dataobj, np.float32), image.affine)
    fixed, moved = images[Modality.T1C], images[Modality.FLAIR]
    centre = (fixed.affine @ [*(np.array(fixed.voxels.shape) / 2), 1])[:3]
    angle = np.deg2rad(5)
    truth = np.eye(4)
    truth[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    truth[:3, 3] = centre - truth[:3, :3] @ centre + [4, 0, 0]
    images[Modality.FLAIR] = Volume(moved.voxels, truth @ moved.affine)
    found = register_and_strip(Study("pair", images)).motions[Modality.FLAIR]
    left = displacement_mm(np.linalg.inv(found) @ np.linalg.inv(truth), centre)
    left = min(left, displacement_mm(np.linalg.inv(truth) @ found, centre))
    expect(left < 2, f"{left:.1f} mm are left after registration")  # half a voxel
    return f"{left:.2f} mm left of {displacement_mm(truth, centre):.1f}"


def use_skullstrip(output: Path, reference: Path) -> str:
    """Compare the brain that deepbet finds in the T1 with the phantom's."""
    import nibabel
    import numpy as np
    from scipy import ndimage

    from glimpseg.data.raw.strip import brain_mask
    from glimpseg.volume import Volume

    image = nibabel.as_closest_canonical(nibabel.load(images_of(reference)["t1"]))  # type: ignore[attr-defined]
    volume = Volume(np.asarray(image.dataobj, np.float32), image.affine)
    mask = brain_mask(volume).voxels > 0
    truth = ndimage.binary_fill_holes(volume.voxels > 0)
    dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    expect(dice > 0.9, f"deepbet's brain has a Dice of {dice:.3f}")
    return f"brain Dice {dice:.3f}"


def use_fast(output: Path, reference: Path) -> str:
    """Evaluate with edt and cc3d, read with isal, and compare with the reference, which has neither."""
    from glimpseg.data import gunzip  # noqa: F401

    place = output / "fast"
    words = ["--data", reference / "phantom", "--subsets", "t1+t1c+t2+flair", "--device", "cpu"]
    run("glimpseg", "evaluate", "box", "-o", place, *words)
    used = json.loads((place / "evaluation.json").read_text("utf-8"))
    for name in ("edt", "cc3d"):
        expect(f'"{name}"' in json.dumps(used), f"evaluation.json does not name {name}")
    kept = {}
    for folder in (place, reference / "evaluate"):
        with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
            kept[folder] = {(row["subset"], row["region"], row["metric"]): row["value"] for row in csv.DictReader(file)}
    first, second = kept.values()
    pairs = [(float(first[key] or 0), float(second[key] or 0)) for key in first]
    largest = max(abs(a - b) / max(abs(b), 1) for a, b in pairs if a == a and b == b)
    expect(largest <= LARGEST_SCORE_CHANGE, f"a score differs by {largest:.4f}")
    return f"{len(pairs)} scores within {largest:.0e}"


def use_tensorboard(output: Path, reference: Path) -> str:
    """Train three steps of a small network and read the loss back from TensorBoard's file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small = ["config.width=4", "config.blocks=[1,1,1]", "config.heads=2", "data.sampling.patch=[16,16,16]"]
    small += ["optim.steps=3", "optim.save_every=3", "optim.log_every=1", "optim.precision=fp32"]
    changes = [word for change in small for word in ("--set", change)]
    run("glimpseg", "train", "unet/phantom", "-o", output / "run", "--tensorboard", "--device", "cpu", *changes)
    events = EventAccumulator(str(output / "run" / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    expect(bool(names), "no scalar was logged")
    return f"{len(names)} curves"


def use_slurm(output: Path, reference: Path) -> str:
    """Segment the phantom by a job of submitit on this machine."""
    from glimpseg.batch.job_spec import JobSpec
    from glimpseg.batch.on_slurm import Jobs, segment_on_slurm

    spec = JobSpec(source=reference / "phantom", output=output / "slurm", model="box", device="cpu", backend="torch")
    segment_on_slurm(spec, Jobs(shards=1, cluster="local", options={"timeout_min": 15}))
    return only_labels(output / "slurm", reference)


def use_ray(output: Path, reference: Path) -> str:
    """Segment the phantom by a worker of Ray on this machine."""
    words = ["-i", reference / "phantom", "-o", output / "ray", "--workers", 1, "--device", "cpu", "--backend", "torch"]
    run("glimpseg", "on", "ray", *words)
    return only_labels(output / "ray", reference)


def only_labels(folder: Path, reference: Path) -> str:
    """Compare the only label map of a batch with the reference's."""
    maps = list(folder.glob("*/seg.nii.gz"))
    expect(len(maps) == 1, f"{folder} has {len(maps)} label maps")
    return agreement(maps[0], reference / "segment" / "seg.nii.gz")


TEST_FILES = ("volume", "nifti", "metrics", "layers", "losses", "method", "schedule", "regions", "scores")


def use_test(output: Path, reference: Path) -> str:
    """Run the quick tests of the core."""
    files = [ROOT / "tests" / f"test_{name}.py" for name in TEST_FILES]
    # Warnings of other packages about each other are not errors here, as an old one may warn of a new one.
    filters = "\n".join(["default", *(f"error::{name}:glimpseg.*" for name in ("DeprecationWarning", "FutureWarning"))])
    words = ["-q", "-p", "no:cacheprovider", "-m", "not slow", "-o", f"filterwarnings={filters}"]
    said = run("python", "-m", "pytest", *words, *files)
    return said.strip().splitlines()[-1].strip("= ")


def use_docs(output: Path, reference: Path) -> str:
    """Build the documentation without running its tutorials, with warnings as errors.

    What is not run names no language, of which myst-nb warns.
    """
    quiet = ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=myst-nb.lexer", "--quiet"]
    run(
        "sphinx-build",
        *quiet,
        "--fail-on-warning",
        "--keep-going",
        "-b",
        "html",
        "-d",
        output / "doctrees",
        ROOT / "docs",
        output / "html",
    )
    return f"{len(list((output / 'html').rglob('*.html')))} pages"


def use_dev(output: Path, reference: Path) -> str:
    """Run the linter and ask the other tools for their version."""
    run("ruff", "check", "--no-cache", ROOT / "src")
    for words in (("mypy", "--version"), ("pre-commit", "--version"), ("mutmut", "--version")):
        run(*words)
    return "ruff finds nothing"


CORE: dict[str, Callable[[Path, Path], str]] = {
    "import": check_import,
    "phantom": check_phantom,
    "segment": check_segment,
    "evaluate": check_evaluate,
}
EXTRAS: dict[str, Callable[[Path, Path], str]] = {
    name.removeprefix("use_"): function for name, function in list(globals().items()) if name.startswith("use_")
}


if __name__ == "__main__":
    sys.exit(main())
