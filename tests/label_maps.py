"""Label maps of a simple head and of simple tumours, for tests of phantoms that are drawn from them."""

import nibabel
import numpy as np

SHAPE = (160, 190, 160)
"""Voxels of 1 mm; axes RAS."""
CENTRE = (80.0, 95.0, 85.0)
"""The midline lies at x = 79.5, between voxels 79 and 80."""
AXES = (62.0, 78.0, 58.0)
"""Half axes of the brain in mm."""


def ellipsoid(centre, axes, shape=SHAPE):
    x, y, z = np.ogrid[tuple(slice(0, n) for n in shape)]
    return ((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2 + ((z - centre[2]) / axes[2]) ** 2 <= 1


def head(changes=None):
    """Numbers of a head: cortex of 4 mm around white matter, ventricles, deep grey matter, cerebellum, brainstem.

    `changes` maps numbers to others.
    """
    left = np.broadcast_to(np.arange(SHAPE[0])[:, None, None] < 79.5, SHAPE)
    numbers = np.where(ellipsoid(CENTRE, [a + 8 for a in AXES]), 515, 0)
    brain = ellipsoid(CENTRE, AXES)
    inner = ellipsoid(CENTRE, [a - 4 for a in AXES])
    numbers[brain] = np.where(left, 3, 42)[brain]
    numbers[inner] = np.where(left, 2, 41)[inner]
    for side, white in ((-1, 10), (1, 49)):
        numbers[ellipsoid((79.5 + side * 14, 95, 88), (7, 12, 7))] = white
        numbers[ellipsoid((79.5 + side * 12, 95, 103), (5, 22, 7))] = 4 if side < 0 else 43
        numbers[ellipsoid((79.5 + side * 12, 75, 103), (2, 4, 2))] = 136 if side < 0 else 163
        numbers[ellipsoid((79.5 + side * 30, 120, 105), (4, 4, 4))] = 25 if side < 0 else 57
    cerebellum = ellipsoid((79.5, 50, 42), (40, 24, 20))
    numbers[cerebellum] = np.where(left, 8, 47)[cerebellum]
    core = ellipsoid((79.5, 50, 42), (30, 16, 12))
    numbers[core] = np.where(left, 7, 46)[core]
    numbers[ellipsoid((79.5, 82, 48), (10, 10, 30))] = 16
    for old, new in (changes or {}).items():
        numbers[numbers == old] = new
    return numbers.astype(np.int16)


def write_head(folder, name="head.nii.gz", numbers=None, affine=None):
    folder.mkdir(exist_ok=True)
    numbers = head() if numbers is None else numbers
    nibabel.save(nibabel.Nifti1Image(numbers, np.eye(4) if affine is None else affine), folder / name)
    return folder


def tumour(enhancing=4, centre=(150, 125, 90), radius=20.0):
    """Numbers of a tumour: a ball of oedema (2), in it a ball of half the radius that enhances, in it necrosis (1)."""
    shape = (240, 240, 155)
    numbers = np.zeros(shape, np.uint8)
    for r, number in ((radius, 2), (radius / 2, enhancing), (radius / 4, 1)):
        numbers[ellipsoid(centre, (r, r, r), shape)] = number
    return numbers


def write_tumour(folder, name="tumour.nii.gz", numbers=None):
    folder.mkdir(exist_ok=True)
    numbers = tumour() if numbers is None else numbers
    nibabel.save(nibabel.Nifti1Image(numbers, np.eye(4)), folder / name)
    return folder
