"""Time the loading of one training crop: from the cache of `glimpseg train`, against other file formats.

    python benchmarks/loading.py [--crop 128] [--repeat 7] [--record FILE]

- cache: a crop of 128^3 of four modalities and its target, from the study's file in the cache.
- files: the five `.nii.gz` as float64 (nibabel's `get_fdata`), then the same crop, as released codes load each sample.
- files, whole numbers: the same without conversion to float64 (`dataobj`).
- npz: the prepared study in float32, packed, as nnU-Net writes it.
- npy: the same unpacked and mapped into memory, as nnU-Net keeps it until its version 2.5.
- blosc2, where that package is installed: the same in blocks of 32 KiB, as nnU-Net keeps it since.

The study is a phantom of 1 mm, 240 x 240 x 155 voxels; files lie in the page cache. Normalisation
is not timed: the cached crop and nnU-Net's are normalised already, the NIfTI files are not.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from glimpseg.data.cache import CachedCase, cache_study
from glimpseg.data.layouts import find_studies
from glimpseg.data.preprocess import Preprocess
from glimpseg.phantom import Settings
from glimpseg.phantom.dataset import write_phantoms
from turns import Contest, add_options, in_turns, tell

SEED = 4
SETTINGS = Preprocess(spacing_mm=1.0, scale="zscore", clip=None)


def main() -> None:
    """Measure and print. Raises: SystemExit if the crops differ in place."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop", type=int, default=128)
    add_options(parser, repeat=7)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder) / "archive", [SEED], Settings(), "brats2023")
        (study,) = find_studies(Path(folder) / "archive")
        case = CachedCase(cache_study(study, SETTINGS, Path(folder) / "cache"))
        files = sorted((Path(folder) / "archive").rglob("*.nii.gz"))
        size = tuple(min(wanted.crop, side) for side in case.shape)
        start = [(side - n) // 2 for side, n in zip(case.shape, size, strict=True)]

        def from_files(whole_numbers: bool) -> np.ndarray:
            images = [nibabel.load(path) for path in files]
            voxels = [np.asarray(image.dataobj) if whole_numbers else image.get_fdata() for image in images]
            middle = [slice((side - n) // 2, (side + n) // 2) for side, n in zip(voxels[0].shape, size, strict=True)]
            return np.stack([values[tuple(middle)] for values in voxels])

        place = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
        theirs = as_nnunet(case, Path(folder), place)
        contestants = {
            "cache": lambda: case.crop(start, size),
            "files": lambda: from_files(False),
            "files, whole numbers": lambda: from_files(True),
            **theirs,
        }
        found = {name: run() for name, run in contestants.items()}
        cut = found["cache"].image.astype(np.float32)
        if not all(np.array_equal(found[name][0], cut) for name in theirs):
            raise SystemExit("The crops of the cache and of nnU-Net's files differ.")
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


def as_nnunet(case: CachedCase, folder: Path, place: tuple[slice, ...]) -> dict[str, Callable[[], Any]]:
    """Functions that read image and target at a place: the study written as nnU-Net's versions write it."""
    whole = case.crop((0, 0, 0), case.shape)
    study = {"data": whole.image.astype(np.float32), "seg": whole.target.astype(np.int16)[None]}
    np.savez_compressed(folder / "study.npz", **study)
    for name, values in study.items():
        np.save(folder / f"{name}.npy", values)

    def packed() -> list[np.ndarray]:
        with np.load(folder / "study.npz") as arrays:
            return [arrays[name][:, *place].copy() for name in study]

    def mapped() -> list[np.ndarray]:
        return [np.load(folder / f"{name}.npy", mmap_mode="r")[:, *place].copy() for name in study]

    ways: dict[str, Callable[[], Any]] = {"npz": packed, "npy": mapped}
    if find_spec("blosc2"):
        import blosc2

        parameters = {"codec": blosc2.Codec.ZSTD, "clevel": 8}
        for name, values in study.items():
            blocks, chunks = (len(values), 8, 16, 16), (len(values), 32, 64, 64)
            file = str(folder / f"{name}.b2nd")
            blosc2.asarray(values, urlpath=file, blocks=blocks, chunks=chunks, cparams=parameters)

        def blocked() -> list[np.ndarray]:
            files = (str(folder / f"{name}.b2nd") for name in study)
            return [blosc2.open(file, mode="r", dparams={"nthreads": 1}, mmap_mode="r")[:, *place] for file in files]

        ways["blosc2"] = blocked
    return ways


if __name__ == "__main__":
    main()
