"""Peak memory of segmenting a large study, against the way of other tools (peer).

    python benchmarks/memory.py [--side 512] [--models box fine] [--repeat 1] [--record FILE]

The study is a phantom whose field of view of 256 mm is resampled to `--side` voxels along each axis, int16. Each
contestant is a process of its own. The number is its peak memory, as the system counts it.

- glimpseg: the command line with its default settings.
- peer: as in `whole_case.py`: files as float64, all of them at once, on the whole grid; the probabilities brought back
  to that grid together, one argmax over them.

`box` is the model of the package, which works on voxels of 2 mm, `fine` a network that works on 1 mm. That one is
untrained: its labels mean nothing, but take as much memory as any. Its windows are small, and the peer's way did not
get through them at 512 in twenty minutes of two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy import ndimage

from glimpseg import methods, metrics
from glimpseg.model.folder import save_model
from glimpseg.model.shipped import BOX
from glimpseg.phantom import Settings
from glimpseg.phantom.dataset import write_phantoms
from glimpseg.segmentation.predict import load
from turns import Contest, add_options, tell
from whole_case import REGIONS, WORDS, as_peers

FIELD_MM = 256
MODELS = {"box": "box, 2 mm", "fine": "an untrained unet, 1 mm"}
OURS, PEER = "glimpseg", "peer"
OPTIONS = ("t1", "t1c", "t2", "flair")
"""Options of the command line, in the order of `WORDS`."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="voxels along each axis")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seed", type=int, default=4, help="of the phantom")
    parser.add_argument("--make", type=Path, metavar="STUDY", help="one process's share of the work: the study")
    parser.add_argument("--peer", nargs=3, metavar=("MODEL", "STUDY", "OUTPUT"), help="the peer's share")
    add_options(parser, repeat=1)
    wanted = parser.parse_args()
    if wanted.make:
        make(wanted.make, wanted.side, wanted.seed)
    elif wanted.peer:
        model, study, output = wanted.peer
        as_peers(load(model, "cpu"), Path(study), Path(output))
    else:
        with tempfile.TemporaryDirectory() as folder:
            tell(list(contests(Path(folder), wanted)), wanted.record)


def contests(folder: Path, wanted: argparse.Namespace) -> list[Contest]:
    """One contest for each model."""
    side, seed, repeat = wanted.side, wanted.seed, wanted.repeat
    study, again = folder / "study", [sys.executable, __file__]
    peak_mib([*again, "--make", str(study), "--side", str(side), "--seed", str(seed)])
    files = {option: study / f"study-{word}.nii.gz" for option, word in zip(OPTIONS, WORDS, strict=True)}
    images = [part for option, path in files.items() for part in (f"--{option}", str(path))]
    made = []
    for name in wanted.models:
        model = BOX if name == "box" else str(fine_model(folder / "fine"))
        ours, theirs = folder / "ours", folder / "theirs.nii.gz"
        segment = [sys.executable, "-m", "glimpseg", "segment", "-m", model, *images, "-o", str(ours), "--overwrite"]
        commands = {
            OURS: [*segment, "--device", "cpu", "--backend", "torch"],
            PEER: [*again, "--peer", model, str(study), str(theirs)],
        }
        rounds: dict[str, list[float]] = {OURS: [], PEER: []}
        for number in range(repeat):
            for who in list(commands)[:: 1 if number % 2 == 0 else -1]:
                rounds[who].append(peak_mib(commands[who]))
        made.append(
            Contest(
                question=f"The most memory that a study of {side} x {side} x {side} voxels takes: {MODELS[name]}",
                setting=f"Four sequences, int16, {repeat} processes each",
                unit="MiB",
                ours=OURS,
                rounds=rounds,
                agreement=f"Dice between the two: {_agreement(ours / 'seg.nii.gz', theirs)}",
            )
        )
    return made


def make(folder: Path, side: int, seed: int) -> None:
    """Write the study."""
    step = FIELD_MM / side
    with tempfile.TemporaryDirectory() as place:
        (study,) = write_phantoms(Path(place) / "archive", [seed], Settings(), "brats2023")
        folder.mkdir(parents=True)
        for word in WORDS:
            image = nibabel.load(study / f"{study.name}-{word}.nii.gz")
            shift = (np.array(image.shape) - 1) / 2 - step * (side - 1) / 2
            voxels = np.asarray(image.dataobj, np.float32)
            finer = ndimage.affine_transform(voxels, np.full(3, step), shift, output_shape=(side,) * 3, order=1)
            affine = image.affine @ np.block([[np.eye(3) * step, shift[:, None]], [0, 0, 0, 1]])
            nibabel.save(nibabel.Nifti1Image(np.rint(finer).astype(np.int16), affine), folder / f"study-{word}.nii.gz")


def fine_model(folder: Path) -> Path:
    """Untrained model that works on 1 mm."""
    recipe = methods.find_recipe("unet/phantom", {"data.preprocess.spacing_mm": 1.0})
    torch.manual_seed(0)
    save_model(folder, methods.build(recipe).state_dict(), recipe, {"steps": 0})
    return folder


def peak_mib(command: list[str]) -> float:
    """Peak memory of one process in MiB. Raises: SystemExit with its output if it failed."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status) != 0:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {status}: {said.read()[-2000:]}")
    return usage.ru_maxrss / 1024


def _agreement(ours: Path, theirs: Path) -> str:
    one, two = (np.asarray(nibabel.load(path).dataobj) for path in (ours, theirs))
    return ", ".join(f"{region.name} {metrics.dice(region.mask(one), region.mask(two)):.4f}" for region in REGIONS)


if __name__ == "__main__":
    main()
