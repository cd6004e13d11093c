"""Memory check: estimate what a study needs before its voxels are read, and compare it with the free memory.

The free memory is read on Linux only (`/proc/meminfo`, and the limit of a container or batch job). On other systems
nothing is compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from glimpseg.data import nifti
from glimpseg.errors import InputError
from glimpseg.study import Study
from glimpseg.volume import LARGE_VOXELS, SLAB_VOXELS, Grid, Volume

log = logging.getLogger(__name__)

MEMINFO = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
SURE = 0.8
"""Share of the estimate below which the free memory is clearly too small."""
MODALITIES = 4
READ_BYTES = 12
"""Bytes per voxel of the image that is being read: float32, the mask of its air, and the numbers of its components."""
RESULT_BYTES = 10
"""Bytes per voxel of the result: two label maps, masks, and the numbers of the lesions."""
WORKING_BYTES = 5 * MODALITIES
"""Bytes per voxel of the working grid: the images in float32, and their tissue masks."""


def refuse_if_memory_short(study: Study, spacing_mm: float, channels: int) -> None:
    """Raise InputError if a study clearly needs more memory than is free: if `SURE` times the estimate exceeds it.

    Nothing is compared where the system does not report its free memory, or for a study without images.

    Args:
        study: The study; headers of its files are read.
        spacing_mm: Voxel side of the working grid of the model.
        channels: Number of probability maps of the model, background included.

    Raises:
        InputError: The memory is short, or a header cannot be read.
    """
    free = available_bytes()
    if free is None or not study.images:
        return
    known = {m: image.grid for m, image in study.images.items() if isinstance(image, Volume)}
    unread = {m: nifti.claimed_grid(image) for m, image in study.images.items() if not isinstance(image, Volume)}
    grids = [*known.values(), *unread.values()]
    needed = preview_bytes(unread.values()) + needed_bytes(grids, spacing_mm, channels)
    log.debug("%s: about %d MB of memory are needed, %d MB are free.", study.id, needed >> 20, free >> 20)
    if SURE * needed > free:
        largest = max(grids, key=_voxels)
        shape, side = "x".join(map(str, largest.shape)), "x".join(f"{mm:.2g}" for mm in largest.spacing_mm)
        raise InputError(
            f"Study {study.id} needs about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free. Its "
            f"largest image has {shape} voxels of {side} mm. Close other programs, give the job more memory, resample "
            "the images to larger voxels, or take a model that works on larger voxels."
        )


def preview_bytes(grids: Iterable[Grid]) -> int:
    """Return the bytes of the images that the preview is drawn from, for files with these grids.

    Ordinary images are kept until then. Large ones are read again and thinned.
    """
    return sum(4 * min(n, LARGE_VOXELS) for n in map(_voxels, grids))


def needed_bytes(grids: Iterable[Grid], spacing_mm: float, channels: int) -> int:
    """Return an estimate of the further bytes that a study takes, if its label map lies on the largest grid.

    Together with `preview_bytes` it lay between 14 % below and 7 % above the measured peak, for four sequences of 256
    and 512 cubed and networks that work on 2 and 1 mm. The network's activations are not counted: they are freed before
    the result is made.
    """
    sides = list(grids)
    largest = max(map(_voxels, sides))
    working = WORKING_BYTES * max(_voxels(grid.at_spacing(spacing_mm)) for grid in sides)
    part = largest if largest <= LARGE_VOXELS else SLAB_VOXELS
    reading = READ_BYTES * largest + 8 * part
    # The probabilities twice, while they are stacked; then the largest of them as a number of 8 bytes, and its label.
    result = RESULT_BYTES * largest + (8 * channels + 16) * part
    return working + max(reading, result)


def available_bytes() -> int | None:
    """Return the bytes that this process may still take, within the limits of its control groups.

    None where the system reports neither its free memory nor a limit.
    """
    known = [n for n in (_free_bytes(), *_left_in_groups()) if n is not None]
    return min(known) if known else None


def _free_bytes() -> int | None:
    for line in _lines(MEMINFO):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _left_in_groups() -> Iterable[int | None]:
    """Yield what is left in the control group of this process and in all above it, for cgroup versions 1 and 2."""
    for line in _lines(OWN_GROUPS):
        number, names, place = line.split(":", 2)
        if number == "0":
            root, limit, usage, file = GROUPS, "memory.max", "memory.current", "inactive_file"
        elif names == "memory":
            root, limit = GROUPS / "memory", "memory.limit_in_bytes"
            usage, file = "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        inside = Path(place.strip("/"))
        for above in (inside, *inside.parents):  # a container sees its own group as the root
            yield _left(root / above, limit, usage, file)


def _left(group: Path, limit: str, usage: str, file: str) -> int | None:
    numbers = [line for name in (limit, usage) for line in _lines(group / name)]
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        return None  # no such group, or `max`
    freed = sum(int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith(f"{file} "))
    return max(int(numbers[0]) - int(numbers[1]) + freed, 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").splitlines()
    except OSError:
        return []


def _voxels(grid: Grid) -> int:
    x, y, z = grid.shape
    return x * y * z
