"""Time a whole study, from four NIfTI files to a label file, against the way of other tools (peer).

    python benchmarks/whole_case.py MODEL [--repeat 3] [--backends torch openvino onnx] [--seed 4] [--record FILE]

Each contestant runs in a process of its own, in turns; measured are the time from opening the
first file until the labels are on disk, with the model loaded before, and the peak memory of the process.

- peer: files as float64 (nibabel's `get_fdata`), each image normalised over its non-zero voxels and resampled to the
  network's spacing on the whole grid, MONAI's sliding window over all of it at half overlap in fp32, labels back on the
  file's grid, written by nibabel.
- torch, openvino, onnx: `predict.segment_study` with that backend, one plain pass, written as `segment` writes it.

Both start from stripped and registered images. Each round has a phantom of 1 mm of its own. Dice of WT, TC and ET
with the truth is printed for each contestant, with the difference between peer and the first backend and its standard
error over the phantoms: a faster way must not be a worse one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

import nibabel
import numpy as np
import torch
from nibabel.processing import resample_from_to, resample_to_output

from glimpseg import metrics
from glimpseg.cli.malloc import keep_freed_memory
from glimpseg.data.layouts import find_studies
from glimpseg.model.loading import Model
from glimpseg.phantom import Settings
from glimpseg.phantom.dataset import write_phantoms
from glimpseg.region import Region
from glimpseg.segmentation.options import InferenceOptions
from glimpseg.segmentation.predict import load, segment_study
from turns import Contest, add_options, tell

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what MONAI's imports say of themselves
    from monai.inferers import SlidingWindowInferer

PEER = "peer"
WORDS = ("t1n", "t1c", "t2w", "t2f")
"""Words in file names, in the order of the network's channels."""
REGIONS = (Region.WT, Region.TC, Region.ET)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="box")
    parser.add_argument("--backends", nargs="+", default=["torch", "openvino", "onnx"])
    parser.add_argument("--seed", type=int, default=4, help="of the first phantom; the others follow")
    parser.add_argument("--share", nargs=3, metavar=("WHO", "STUDY", "OUTPUT"), help="one process's share of the work")
    add_options(parser, repeat=3)
    wanted = parser.parse_args()
    if wanted.share:
        who, study, output = wanted.share
        print(json.dumps(run(who, wanted.model, Path(study), Path(output))))
        return
    names = [*wanted.backends, PEER]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    dice: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(wanted.repeat):
        first = number % len(names)
        with tempfile.TemporaryDirectory() as folder:
            (study,) = write_phantoms(Path(folder) / "archive", [wanted.seed + number], Settings(), "brats2023")
            truth = np.asarray(nibabel.load(study / f"{study.name}-seg.nii.gz").dataobj)
            for name in names[first:] + names[:first]:
                output = Path(folder) / f"{name}.nii.gz"
                share = [sys.executable, __file__, wanted.model, "--share", name, str(study), str(output)]
                done = subprocess.run(share, check=True, capture_output=True, text=True).stdout
                found[name].append(json.loads(done.splitlines()[-1]))
                dice[name].append(_dice(np.asarray(nibabel.load(output).dataobj), truth))
    setting = (
        f"{wanted.model}, phantoms of {' x '.join(map(str, truth.shape))} voxels of 1 mm, four sequences, "
        f"{torch.get_num_threads()} threads, {wanted.repeat} processes each"
    )
    tell(
        [
            Contest(
                question=question,
                setting=setting,
                unit=unit,
                ours=names[0],
                rounds={name: [share[key] for share in shares] for name, shares in found.items()},
                agreement=_told(dice, names[0]),
            )
            for key, unit, question in (
                ("seconds", "s", "A whole study, files in, file out"),
                ("peak", "GiB", "A whole study: most memory held"),
            )
        ],
        wanted.record,
    )


def run(who: str, model: str, folder: Path, output: Path) -> dict[str, float]:
    """Measurement in one process."""
    if who != PEER:
        keep_freed_memory()  # as the command line does
    loaded = load(model, "cpu", backend="torch" if who == PEER else who)
    begun = time.perf_counter()
    (as_peers if who == PEER else as_here)(loaded, folder, output)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def as_here(model: Model, folder: Path, output: Path) -> None:
    """Segment with one plain pass, as `glimpseg segment --uncertainty none`."""
    (study,) = find_studies(folder.parent)
    found = segment_study(study, model, InferenceOptions(raw="no", uncertainty="none")).labels
    nibabel.save(nibabel.Nifti1Image(found.voxels, found.affine), output)


def as_peers(model: Model, folder: Path, output: Path) -> None:
    """Segment with the same network in a pipeline of nibabel and MONAI."""
    preparation, patch = model.recipe.data.preprocess, model.recipe.data.sampling.patch
    files = [nibabel.load(next(folder.glob(f"*-{word}.nii.gz"))) for word in WORDS]
    own = files[0]
    channels = [_normalised(image.get_fdata()) for image in files]
    if preparation.spacing_mm != 1:
        turned = [nibabel.Nifti1Image(values, own.affine) for values in channels]
        files = [resample_to_output(image, (preparation.spacing_mm,) * 3, order=1) for image in turned]
        channels = [image.get_fdata() for image in files]
    image = torch.from_numpy(np.stack(channels).astype(np.float32))[None]
    everything = torch.ones(1, len(WORDS), dtype=torch.bool)
    inferer = SlidingWindowInferer(patch, 2, 0.5, "gaussian")
    with torch.inference_mode():
        found = inferer(image, lambda windows: model.network(windows, everything.expand(len(windows), -1)))
        if preparation.spacing_mm != 1:
            back = [
                resample_from_to(nibabel.Nifti1Image(values.numpy(), files[0].affine), own, order=1).get_fdata()
                for values in found[0]
            ]
            found = torch.from_numpy(np.stack(back).astype(np.float32))[None]
        labels = model.network.decode(found)[0].numpy().astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, own.affine), output)


def _normalised(values: np.ndarray) -> np.ndarray:
    inside = values != 0
    return np.where(inside, (values - values[inside].mean()) / values[inside].std(), 0)


def _told(dice: dict[str, list[list[float]]], ours: str) -> str:
    """Mean Dice of each contestant, and the difference of the peer's."""
    said = ", ".join(f"{name} {'/'.join(f'{100 * v:.2f}' for v in np.mean(each, 0))}" for name, each in dice.items())
    more = 100 * (np.array(dice[PEER]) - dice[ours])
    error = more.std(0, ddof=1) / len(more) ** 0.5 if len(more) > 1 else np.full(len(REGIONS), np.nan)
    away = "/".join(f"{mean:+.2f} +- {around:.2f}" for mean, around in zip(more.mean(0), error, strict=True))
    return f"Dice of WT/TC/ET with the truth: {said}; {PEER} less {ours}: {away} points"


def _dice(found: np.ndarray, truth: np.ndarray) -> list[float]:
    return [metrics.dice(region.mask(found), region.mask(truth)) for region in REGIONS]


if __name__ == "__main__":
    main()
