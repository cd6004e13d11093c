"""Derive the phantom's atlas file from the ICBM 152 average inside the nilearn wheel.

`python tools/derive/atlas.py [folder with mni_icbm152_*.nii.gz] [-o mni152.npz]`. Deterministic: the same
wheel gives the same bytes. Needs nilearn only to find its folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import zipfile
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

TARGET = Path(__file__).parents[2] / "src/glimpseg/data/atlas/mni152.npz"
PARTS = {"grey": "gm", "white": "wm", "t1": "t1"}
MIDLINE = 98
"""Index of the slice x = 0 mm; the average is symmetric about it."""
BOX = (slice(MIDLINE, 173), slice(26, 210), slice(0, 158))
"""Box of the right half of the brain; even starts, so that the 2 mm grid falls on the 1 mm one."""
CENTRE = (MIDLINE, 117, 77)
"""Voxel of the whole array near the middle of the brain."""
VENTRICLE_DEPTH_MM = 22
"""Depth below which CSF is ventricle; sulci and cisterns are shallower."""


def main() -> None:
    """Read the three maps, derive depth and ventricles, write the archive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where the maps are; nilearn's own data by default")
    parser.add_argument("-o", "--output", type=Path, default=TARGET)
    arguments = parser.parse_args()
    arrays = derive(arguments.folder or nilearn_folder())
    write_archive(arguments.output, arrays)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB")


def nilearn_folder() -> Path:
    """Folder of the maps in the installed nilearn."""
    found = importlib.util.find_spec("nilearn")
    if found is None or found.origin is None:
        raise SystemExit("nilearn is needed to derive the atlas and is not installed: pip install nilearn")
    return Path(found.origin).parent / "datasets" / "data"


def derive(folder: Path) -> dict[str, np.ndarray]:
    """Arrays of the archive, as the atlas' README describes them."""
    maps = {name: load(folder / f"mni_icbm152_{key}_tal_nlin_sym_09a_converted.nii.gz") for name, key in PARTS.items()}
    for name, values in maps.items():
        if not np.array_equal(values[: 2 * MIDLINE + 1], values[: 2 * MIDLINE + 1][::-1]):
            raise SystemExit(f"The {name} map should be symmetric about x = 0 and is not. Use the 2009a symmetric one.")
    brain = ndimage.binary_fill_holes(maps["t1"] > 0)
    depth = ndimage.distance_transform_edt(brain) - ndimage.distance_transform_edt(~brain)
    free = brain * (255.0 - maps["grey"] - maps["white"])
    # The smallest differences are noise of the average: fewer levels halve the file.
    return {
        "grey": (maps["grey"] * brain // 2)[BOX].astype(np.uint8),
        "white": (maps["white"] * brain // 2)[BOX].astype(np.uint8),
        "t1": (maps["t1"] // 4)[BOX].astype(np.uint8),
        "depth": np.clip(np.rint(10 * (depth + 2)), 0, 255)[BOX].astype(np.uint8),
        "ventricles": ventricles(free > 127.5, depth)[tuple(slice(s.start // 2, (s.stop + 1) // 2) for s in BOX)],
        "centre": np.array([172 - MIDLINE, CENTRE[1] - BOX[1].start, CENTRE[2] - BOX[2].start], np.uint8),
    }


def load(path: Path) -> np.ndarray:
    """Load one map as it is stored: uint8 x y z, RAS."""
    return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]


def ventricles(fluid: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """The three largest deep pools of fluid on the 2 mm grid, smoothed over 8 mm, 0 to 255."""
    pools, count = ndimage.label(fluid[::2, ::2, ::2] & (depth[::2, ::2, ::2] > VENTRICLE_DEPTH_MM))
    sizes = ndimage.sum_labels(np.ones(pools.shape), pools, range(1, count + 1))
    kept = np.isin(pools, 1 + np.argsort(sizes)[-3:]).astype(np.float64)
    return np.rint(255 * ndimage.gaussian_filter(kept, 4)).astype(np.uint8)


def write_archive(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a compressed npz without dates, so that equal arrays are equal files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, values in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(values), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, buffer.getvalue(), compresslevel=9)


if __name__ == "__main__":
    main()
