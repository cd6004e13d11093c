"""Statistics of normal brain: tissues, texture, and normal structures that enhance."""

from __future__ import annotations

import itertools
import math

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from glimpseg.modality import Modality
from likeness.cases import FAR_MM, Case, Image, Mask, bounding_box
from likeness.lesions import Statistics, restricted_blur

SHADING_MM = 20.0
"""Standard deviation of the blur that leaves the coils' shading."""
DEEP_WHITE_MM = 5.0
"""White matter is looked for so far below the surface of the brain."""
CORTEX_MM = (2.0, 15.0)
"""Cortex is looked for at such depths below the surface of the brain."""
FEWEST_VOXELS = 300
"""Fewest voxels of a tissue that is described."""
LEAST_CONTRAST = 0.5
"""Smallest difference of cortex and white matter whose sharpness is measured, in units of normal brain."""
MAD_TO_SD = 1.4826
"""Standard deviation of a normal distribution with median absolute deviation 1."""
ENHANCES = (3.0, 4.5)
"""T1c of structures that enhance, in units of normal brain."""
DEPTHS_MM = {"0-3 mm": (0.0, 3.0), "3-8 mm": (3.0, 8.0), "deeper": (8.0, math.inf)}
"""Depths below the surface of the brain mask."""
MIDLINE_MM = 8.0
"""The midline is closer than this to the plane between the hemispheres."""
CUBE_MM, CUBE_STEP_MM, WHITE_SHARE = 16.0, 8.0, 0.7
"""Side of the cubes whose spectrum is measured, their distance, and the smallest share of white matter in them."""
WAVES_MM = (2.5, 10.0)
"""Wavelengths between which the slope of the spectrum is fitted; up to four voxels if voxels are larger."""


def normal_statistics(case: Case) -> Statistics:
    """Measure normal brain, with names `kind/what/sequence`.

    Returns:
        `tissue`: mean of white matter, cortex and fluid, and cortex less white matter; `white`: spread, coarse, fine,
        noise, slope of the spectrum, roughness across slices; `sharpness`: gradient between grey and white matter (a
        mm, as a share of their difference); `enhancing`: millilitres a litre, and mean of the other sequences there.
    """
    found: Statistics = {"shape/brain ml": float(case.brain.sum()) * case.millilitres}
    white, cortex, fluid = tissues(case)
    border = grey_white_border(white, cortex)
    for modality, image in case.images.items():
        title, level = modality.title, {}
        for name, mask in (("white", white), ("cortex", cortex), ("fluid", fluid)):
            if mask.sum() >= FEWEST_VOXELS:
                level[name] = float(np.median(image[mask]))
                found[f"tissue/{name}/{title}"] = level[name]
        if {"white", "cortex"} <= set(level):
            difference = level["cortex"] - level["white"]
            found[f"tissue/cortex-white/{title}"] = difference
            found[f"sharpness/grey-white/{title}"] = sharpness(image, border, difference, case.spacing_mm)
        if white.sum() >= FEWEST_VOXELS:
            found |= {f"white/{name}/{title}": value for name, value in texture(image, white, case.spacing_mm).items()}
    if case.whole and Modality.T1C in case.images:
        found |= enhancement(case)
    return {name: value for name, value in found.items() if math.isfinite(value)}


# Tissues


def tissues(case: Case) -> tuple[Mask, Mask, Mask]:
    """Return masks of the inner parts of normal white matter, of cortex, and of fluid.

    The intensity of T1 (T1c, if there is no T1), without shading, is split into three classes. Fluid must also be
    brighter than normal brain on T2 if there is T2, and white matter and fluid must be one voxel inside their class.
    """
    guide = case.images.get(Modality.T1, case.images.get(Modality.T1C))
    if guide is None:
        empty = np.zeros(case.brain.shape, bool)
        return empty, empty, empty
    normal = case.normal
    flat = guide - restricted_blur(guide, normal, case.spacing_mm, SHADING_MM)
    smooth = restricted_blur(flat, normal, case.spacing_mm, 0.7)
    low, high = three_classes(smooth[normal])
    inner, spacing = ndimage.generate_binary_structure(3, 1), case.spacing_mm
    white = ndimage.binary_erosion(normal & (smooth > high), inner) & (case.depth_mm > DEEP_WHITE_MM)
    middle = normal & (smooth > low) & (smooth <= high)
    cortex = middle & (case.depth_mm > max(CORTEX_MM[0], spacing)) & (case.depth_mm < CORTEX_MM[1])
    fluid = normal & (smooth <= low) & (case.depth_mm > CORTEX_MM[0])
    if Modality.T2 in case.images:
        fluid &= case.images[Modality.T2] > 1
    return white, cortex, ndimage.binary_erosion(fluid, inner)


def three_classes(values: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """Split values into three classes by Lloyd's algorithm, started at the quantiles 0.1, 0.4 and 0.75.

    Returns: the two limits between the classes.
    """
    sample = values[:: max(len(values) // 200_000, 1)]
    centres = np.percentile(sample, (10, 40, 75))
    for _ in range(50):
        limits = (centres[:-1] + centres[1:]) / 2
        member = np.digitize(sample, limits)
        centres = np.array([sample[member == k].mean() if (member == k).any() else centres[k] for k in range(3)])
    return float(limits[0]), float(limits[1])


def grey_white_border(white: Mask, cortex: Mask) -> Mask:
    """Return the voxels within two steps of white matter and one step of cortex, white matter excepted."""
    near = ndimage.binary_dilation(white, iterations=2) & ~white
    return near & ndimage.binary_dilation(cortex, iterations=1)


def sharpness(image: Image, border: Mask, difference: float, spacing_mm: float) -> float:
    """Return the median gradient at the border of grey and white matter, a millimetre, as a share of their difference.

    NaN if the border has too few voxels, or the two differ by less than `LEAST_CONTRAST`.
    """
    if border.sum() < FEWEST_VOXELS or abs(difference) < LEAST_CONTRAST:
        return math.nan
    slope = np.sqrt(sum(part**2 for part in np.gradient(image, spacing_mm)))
    return float(np.median(slope[border])) / abs(difference)


# Texture


def texture(image: Image, white: Mask, spacing_mm: float) -> Statistics:
    """Measure the texture of white matter.

    Returns:
        `spread`, `coarse` and `fine`: as in regions of tumour; `noise`: standard deviation of white noise with the
        same median absolute Laplacian; `rough x` to `rough z`: half the mean square of differences of neighbours along
        an axis; `slope`: of the logarithm of power over that of spatial frequency.
    """
    blurred = restricted_blur(image, white, spacing_mm)
    # 6 neighbours, and the voxel itself 6 times: the variance of the Laplacian of white noise is 6 + 36.
    laplacian = ndimage.laplace(image)[white] / math.sqrt(42)
    found = {
        "spread": float(image[white].std()),
        "coarse": float(blurred[white].std()),
        "fine": float((image - blurred)[white].std()),
        "noise": MAD_TO_SD * float(np.median(np.abs(laplacian - np.median(laplacian)))),
        "slope": spectrum_slope(image, white, spacing_mm),
    }
    for axis, name in enumerate("xyz"):
        both = white & np.roll(white, -1, axis)
        step = (image - np.roll(image, -1, axis))[both]
        found[f"rough {name}"] = float((step**2).mean() / 2) if len(step) else math.nan
    return found


def spectrum_slope(image: Image, white: Mask, spacing_mm: float) -> float:
    """Return the slope of log power over log frequency of white matter, from cubes that hold mostly white matter.

    Voxels of other tissue have the mean of the cube's white matter. A plane is removed and a Hann window applied.
    White noise has slope 0; smooth images have negative slopes. NaN if no cube has enough white matter.
    """
    side, step = round(CUBE_MM / spacing_mm), max(round(CUBE_STEP_MM / spacing_mm), 1)
    window = np.hanning(side + 2)[1:-1]
    window = window[:, None, None] * window[None, :, None] * window[None, None, :]
    grid = np.stack(np.meshgrid(*(np.arange(side) - (side - 1) / 2,) * 3, indexing="ij"), -1).reshape(-1, 3)
    total, count = np.zeros((side,) * 3), 0
    for corner in itertools.product(*(range(0, extent - side + 1, step) for extent in image.shape)):
        box = tuple(slice(at, at + side) for at in corner)
        inside = white[box]
        if inside.mean() < WHITE_SHARE:
            continue
        design = np.column_stack([grid, np.ones(len(grid))])
        plane, *_ = np.linalg.lstsq(design[inside.ravel()], image[box][inside], rcond=None)
        rest = np.where(inside, image[box] - (design @ plane).reshape(inside.shape), 0)
        total += np.abs(np.fft.fftn(rest * window)) ** 2
        count += 1
    if not count:
        return math.nan
    frequency = np.fft.fftfreq(side, spacing_mm)
    radius = np.sqrt(sum(np.meshgrid(*(frequency**2,) * 3, indexing="ij")))
    low, high = 1 / WAVES_MM[1], 1 / max(WAVES_MM[0], 2.5 * spacing_mm)
    edges = np.geomspace(low, high, 7)
    centres, powers = [], []
    for one, two in itertools.pairwise(edges):
        ring = (radius >= one) & (radius < two)
        if ring.any():
            centres.append(math.log(float(radius[ring].mean())))
            powers.append(math.log(float(total[ring].mean()) + 1e-12))
    return float(np.polyfit(centres, powers, 1)[0]) if len(centres) > 2 else math.nan


# Normal structures that enhance


def enhancement(case: Case) -> Statistics:
    """Measure brain far from every label that is bright on T1c, by threshold, place and depth.

    Returns:
        `enhancing/>3/PLACE/DEPTH`: millilitres a litre of brain that far from labels; `enhancing/>3/PLACE/SEQUENCE`:
        mean of the other sequences there; `enhancing/>3/all/gain`: share of it whose T1c exceeds T1 by 2 or more.
    """
    far = case.brain & (case.apart_mm >= FAR_MM)
    litres = float(far.sum()) * case.millilitres / 1000
    image, found = case.images[Modality.T1C], {}
    everywhere = places(case.brain, case.spacing_mm)
    for least in ENHANCES:
        bright = far & (image > least)
        for place, within in everywhere.items():
            there = bright & within
            for depth, (low, high) in DEPTHS_MM.items():
                count = (there & (case.depth_mm > low) & (case.depth_mm <= high)).sum()
                found[f"enhancing/>{least:g}/{place}/{depth}"] = float(count) * case.millilitres / litres
            found[f"enhancing/>{least:g}/{place}/total"] = float(there.sum()) * case.millilitres / litres
            if there.sum() * case.millilitres >= 0.1:
                for modality in case.images:
                    found[f"enhancing/>{least:g}/{place}/{modality.title}"] = float(case.images[modality][there].mean())
        if Modality.T1 in case.images and bright.any():
            gain = (image - case.images[Modality.T1])[bright]
            found[f"enhancing/>{least:g}/all/gain"] = float((gain > 2).mean())
    return found


def places(brain: Mask, spacing_mm: float) -> dict[str, Bool[np.ndarray, "x y z"]]:
    """Divide a brain into `all`, `midline`, `lateral`, `below midline` and `below lateral`.

    `below` is the lower posterior quarter of the brain's box: cerebellum, and the sinuses around it.
    """
    _, front, height = bounding_box(brain)
    x, y, z = np.ogrid[tuple(slice(extent) for extent in brain.shape)]
    below = (y < (front.start + front.stop) / 2) & (z < (height.start + height.stop) / 2) & np.ones_like(brain)
    near = np.abs(x - middle_plane(brain)) * spacing_mm < MIDLINE_MM
    return {
        "all": brain,
        "midline": brain & near & ~below,
        "lateral": brain & ~near & ~below,
        "below midline": brain & near & below,
        "below lateral": brain & ~near & below,
    }


def middle_plane(brain: Mask) -> Float[np.ndarray, "1 y z"]:
    """Return the x of the plane between the hemispheres: fitted to the middles of the brain's rows along x."""
    some = brain.any(0)
    left, right = np.argmax(brain, axis=0), brain.shape[0] - 1 - np.argmax(brain[::-1], axis=0)
    width = right - left + 1
    y, z = np.meshgrid(*(np.arange(extent) for extent in some.shape), indexing="ij")
    design = np.column_stack([y[some], z[some], np.ones(some.sum())])
    middle = ((left + right) / 2)[some]
    weight = np.sqrt(width[some])  # short rows lie at the edge, where stripping decides
    for _ in range(3):
        plane, *_ = np.linalg.lstsq(design * weight[:, None], middle * weight, rcond=None)
        apart = np.abs(middle - design @ plane)
        weight = np.sqrt(width[some]) * (apart <= np.percentile(apart, 80))
    return (plane[0] * y + plane[1] * z + plane[2])[None]
