"""Times the loading of one training crop: from five NIfTI files, against the cache that `glimpseg train` makes.

    python benchmarks/loading.py [--crop 128] [--repeat 7] [--record FILE]

- cache: a crop of 128^3 of four modalities and its target, from the study's file in the cache.
- files: the five `.nii.gz` as float64 (nibabel's `get_fdata`), then the same crop, as released codes load each sample.
- files, whole numbers: the same without the detour over float64 (`dataobj`).

The study is a phantom of 1 mm, 240 x 240 x 155 voxels; files lie in the page cache. Normalisation, which the cached
crop has behind it and the files' has not, is not timed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nibabel
import numpy as np

from glimpseg.data.cache import CachedCase, cached
from glimpseg.data.layouts import find_studies
from glimpseg.data.phantom import Settings
from glimpseg.data.phantom_archive import write_phantoms
from glimpseg.data.preprocess import Preprocess
from turns import Contest, add_options, in_turns, tell

SEED = 4
SETTINGS = Preprocess(spacing_mm=1.0, scale="zscore", clip=None)


def main() -> None:
    """Measures and tells. Raises: SystemExit if the crops are not of the same place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=128)
    add_options(parser, repeat=7)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder) / "archive", [SEED], Settings(), "brats2023")
        (study,) = find_studies(Path(folder) / "archive")
        case = CachedCase(cached(study, SETTINGS, Path(folder) / "cache"))
        files = sorted((Path(folder) / "archive").rglob("*.nii.gz"))
        size = tuple(min(wanted.crop, side) for side in case.shape)
        start = [(side - n) // 2 for side, n in zip(case.shape, size, strict=True)]

        def from_files(whole_numbers: bool) -> np.ndarray:
            images = [nibabel.load(path) for path in files]
            voxels = [np.asarray(image.dataobj) if whole_numbers else image.get_fdata() for image in images]
            middle = [slice((side - n) // 2, (side + n) // 2) for side, n in zip(voxels[0].shape, size, strict=True)]
            return np.stack([values[tuple(middle)] for values in voxels])

        contestants = {
            "cache": lambda: case.crop(start, size),
            "files": lambda: from_files(False),
            "files, whole numbers": lambda: from_files(True),
        }
        found = {name: run() for name, run in contestants.items()}
        if not np.array_equal(found["files"], found["files, whole numbers"]):
            raise SystemExit("The two readings of the files differ.")
        seconds = in_turns(contestants, wanted.repeat)
    tell(
        [
            Contest(
                question="Loading a training crop",
                setting=f"A crop of {' x '.join(map(str, size))} voxels, four modalities and the target, one thread",
                unit="s",
                ours="cache",
                rounds=seconds,
                agreement="Files hold raw intensities, the cache normalised ones",
            )
        ],
        wanted.record,
    )


if __name__ == "__main__":
    main()
