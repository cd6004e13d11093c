"""Growth of the tumour: Fisher-Kolmogorov invasion and spreading oedema.

The growth lattice has a spacing of 2.5 mm, or that of the grid if it is coarser. All of it runs on the CPU. The arrays
are small, and the tumour is then the same on every device that renders the case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage
from torch import Tensor

from glimpseg.phantom.anatomy import Warp
from glimpseg.phantom.atlas import interpolate
from glimpseg.phantom.lattice import Box, Fields, Lattice, blur, enlarge, signed_distance
from glimpseg.phantom.plan import Focus, Placement, Plan
from glimpseg.phantom.shapes import PlacedShape, place_shape
from glimpseg.region import Label

SPACING_MM = 2.5
BRAIN_DEPTH_MM = 0.5
"""Smallest depth of a brain voxel."""
DEPTHS_MM = (9.0, 45.0)
"""Smallest and largest depth of a tumour's origin below the brain surface; origins lie in white matter."""
EDGE_MM = 8.0
"""Smallest distance of a tumour's origin from the edge of the field of view, where the edge cuts the brain."""
INFRATENTORIAL = 0.04
"""Relative frequency of tumours in the cerebellum and brain stem."""
SATELLITE_MM = 30.0
"""Standard deviation of the distance of a second focus from the first."""
MIDLINE_MM = 3.5
"""Standard deviation of the distance from the midline of a tumour that crosses it."""
DROPLET_MM = 3.0
"""Standard deviation of the initial cell density around the origin."""
VISIBLE = 0.3
"""Cell density, relative to the capacity, at which tissue counts as core."""
GREY_DIFFUSION = 0.12
"""Diffusion in grey matter relative to white matter."""
OEDEMA_REACH_MM = 14.0
OUTSIDE_MM, DRY = -40.0, -5.0
"""Core distance and oedema level far from any tumour."""
OEDEMA_PER_MM = 0.05
"""Oedema level of a real shape for each millimetre inside its border."""
HELD = 0.8
"""Share of a real shape's volume that has to lie in white and grey matter at its place."""
SIDE_MM = 25.0
"""Distance from the midline of the place towards which a real shape is moved until enough of it lies in the brain."""
MAXIMAL_STEPS = 1500
OEDEMA_STEPS = 160


@dataclass(frozen=True, eq=False)
class Growth:
    """Grown tumour on the growth lattice."""

    lattice: Lattice
    core_mm: Float[Tensor, "x y z"]
    """Signed distance to the surface of the core; positive inside."""
    oedema: Float[Tensor, "x y z"]
    """Half the logarithm of the oedema's strength relative to its border; positive inside."""
    origins_mm: tuple[tuple[float, float, float], ...]
    """Position of each focus's origin, from the middle of the field of view."""
    push_mm: Float[Tensor, "3 i j k"]
    """Displacement of the head (mass effect), on the lattice of the warp."""
    shape: PlacedShape | None = None
    """Real shape at its place; None for a grown tumour."""


@dataclass(frozen=True, eq=False)
class _Medium:
    """Tissue that a tumour grows in, on the growth lattice."""

    lattice: Lattice
    white: Float[Tensor, "x y z"]
    grey: Float[Tensor, "x y z"]
    passable: Bool[Tensor, "x y z"]
    """True where a tumour can grow: neither fluid nor outside the brain."""
    depth_mm: Float[Tensor, "x y z"]
    eligible: Float[Tensor, "x y z"]
    """Unnormalised probability that a tumour begins in the voxel."""
    near_midline: Float[Tensor, "x y z"]
    """Unnormalised probability for a tumour that begins near the midline."""

    def crop(self, box: Box) -> _Medium:
        return _Medium(
            lattice=self.lattice.crop(box),
            white=self.white[box],
            grey=self.grey[box],
            passable=self.passable[box],
            depth_mm=self.depth_mm[box],
            eligible=self.eligible[box],
            near_midline=self.near_midline[box],
        )


def grow(plan: Plan, warp: Warp) -> Growth | None:
    """Grow the plan's tumour in the head.

    Args:
        plan: Random decisions of the case.
        warp: Deformation of the head without the tumour.

    Returns:
        The grown tumour, or None for a healthy head.

    Raises:
        ValueError: The field of view holds no white matter in which a tumour can begin.
    """
    tumour = plan.tumour
    if tumour is None:
        return None
    medium = _make_medium(plan, warp)
    if tumour.placement is not None:
        return _place_real_shape(plan, tumour.placement, medium, warp)
    core = torch.full(medium.lattice.shape, OUTSIDE_MM)
    oedema = torch.full(medium.lattice.shape, DRY)
    origins: list[tuple[int, int, int]] = []
    for number, focus in enumerate(tumour.foci):
        origin = _origin(medium, focus, origins)
        origins.append(origin)
        box, focus_core, focus_oedema = _grow_focus(plan, medium, focus, origin=origin, number=number)
        core[box] = torch.maximum(core[box], focus_core)
        oedema[box] = torch.maximum(oedema[box], focus_oedema)
    push = _mass_effect(plan, medium, core, warp.lattice)
    return Growth(
        lattice=medium.lattice,
        core_mm=core,
        oedema=_move_with_brain(oedema, medium.lattice, push, warp.lattice),
        origins_mm=tuple(_position_mm(medium.lattice, origin) for origin in origins),
        push_mm=push,
    )


def _place_real_shape(plan: Plan, placement: Placement, medium: _Medium, warp: Warp) -> Growth:
    """Return the tumour whose shape a label map gives."""
    assert plan.settings.shapes is not None
    cpu, h = torch.device("cpu"), medium.lattice.spacing_mm
    shape = place_shape(plan.settings.shapes, placement, Fields(plan.seed, plan.settings.extent_mm, cpu))
    shape = _moved_inside(shape, medium)
    shares = shape.shares(medium.lattice, cpu)
    core_share = shares[Label.NCR - 1] + shares[Label.ET - 1] + shares[Label.RC - 1]
    core = core_share > min(0.5, 0.9 * float(core_share.max()))
    whole = core | (shares.sum(0) > 0.5)
    core_mm = blur(signed_distance(core), 0.8) * h if core.any() else torch.full(medium.lattice.shape, OUTSIDE_MM)
    push = _mass_effect(plan, medium, core_mm, warp.lattice)
    return Growth(
        lattice=medium.lattice,
        core_mm=core_mm,
        oedema=OEDEMA_PER_MM * h * blur(signed_distance(whole), 0.5),
        origins_mm=(shape.origin_mm,),
        push_mm=push,
        shape=shape,
    )


def _moved_inside(placed: PlacedShape, medium: _Medium) -> PlacedShape:
    """Return the shape at the nearest place, on the way to the middle of the white matter, that holds enough of it."""
    cpu = torch.device("cpu")
    axes = torch.meshgrid(*(torch.from_numpy(axis.astype(np.float32)) for axis in medium.lattice.axes), indexing="ij")
    weight = medium.white / medium.white.sum()
    side = torch.sign(torch.tensor(placed.origin_mm[0])) * SIDE_MM
    middle = [float((axis * weight).sum()) + (float(side) if k == 0 else 0.0) for k, axis in enumerate(axes)]
    tissue = (medium.white + medium.grey).clamp(0, 1)
    best, most = placed, -1.0
    for way in np.arange(0, 0.9, 0.15):
        origin = tuple(float(o + way * (m - o)) for o, m in zip(placed.origin_mm, middle, strict=True))
        moved = replace(placed, origin_mm=(origin[0], origin[1], origin[2]))
        share = moved.shares(medium.lattice, cpu).sum(0)
        held = float((share * tissue).sum()) / max(float(placed.volume_ml) * 1000 / medium.lattice.spacing_mm**3, 1e-6)
        if held > most:
            best, most = moved, held
        if held > HELD:
            break
    return best


def _make_medium(plan: Plan, warp: Warp) -> _Medium:
    cpu = torch.device("cpu")
    lattice = Lattice.over(plan.settings.extent_mm, max(SPACING_MM, plan.settings.spacing_mm))
    at = warp.coordinates(lattice, cpu)
    atlas = warp.atlas
    depth, grey, white, _ = atlas.sample(atlas.maps, at.flatten(1)).reshape(4, *lattice.shape)
    brain = depth > BRAIN_DEPTH_MM
    below = torch.from_numpy(ndimage.distance_transform_edt(brain.numpy()).astype(np.float32)) * lattice.spacing_mm
    x, y, z = (at[k] - float(c) for k, c in enumerate(atlas.centre))
    low = ((y < -20) & (z < -20)) | ((x.abs() < 18) & (z < -12) & (y < 12))
    eligible = white * brain * (below > DEPTHS_MM[0]) * (below < DEPTHS_MM[1])
    eligible = torch.where(low, INFRATENTORIAL * eligible, eligible) * _inside_margin(plan, lattice)
    # The corpus callosum lies deeper than the usual origins of tumours.
    middle = white * brain * (below > DEPTHS_MM[0]) * ~low * torch.exp(-((x / MIDLINE_MM) ** 2) / 2)
    fluid = (1 - white - grey).clamp(0, 1)
    return _Medium(
        lattice=lattice,
        white=white * brain,
        grey=grey * brain,
        passable=brain & (fluid < 0.5),
        depth_mm=below,
        eligible=eligible,
        near_midline=middle * _inside_margin(plan, lattice),
    )


def _inside_margin(plan: Plan, lattice: Lattice) -> Bool[Tensor, "x y z"]:
    """Return the voxels that are not at the edge of the field of view."""
    sides = [
        torch.from_numpy(np.abs(axis) < extent / 2 - EDGE_MM)
        for axis, extent in zip(lattice.axes, plan.settings.extent_mm, strict=True)
    ]
    return sides[0][:, None, None] & sides[1][:, None] & sides[2]


def _origin(medium: _Medium, focus: Focus, before: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Return the voxel where a focus begins; a focus with `begins="near"` begins near the first one."""
    weight = (medium.near_midline if focus.begins == "midline" else medium.eligible).double().numpy()
    if focus.begins == "near":
        squares = [
            ((axis - axis[i]) ** 2).reshape([-1 if k == other else 1 for other in range(3)])
            for k, (axis, i) in enumerate(zip(medium.lattice.axes, before[0], strict=True))
        ]
        weight = weight * np.exp(-(squares[0] + squares[1] + squares[2]) / (2 * SATELLITE_MM**2))
    total = np.cumsum(weight.ravel())
    if total[-1] <= 0:
        raise ValueError(
            "The field of view must hold white matter some 9 mm below the brain's surface, and holds none. "
            "Enlarge Settings.shape."
        )
    x, y, z = np.unravel_index(int(np.searchsorted(total, focus.place * total[-1], side="right")), weight.shape)
    return int(x), int(y), int(z)


def _position_mm(lattice: Lattice, voxel: tuple[int, int, int]) -> tuple[float, float, float]:
    x, y, z = (float(axis[i]) for axis, i in zip(lattice.axes, voxel, strict=True))
    return x, y, z


def _grow_focus(
    plan: Plan, medium: _Medium, focus: Focus, *, origin: tuple[int, int, int], number: int
) -> tuple[Box, Tensor, Tensor]:
    """Return the box around one focus, and in it the core distance (mm) and the oedema level."""
    h = medium.lattice.spacing_mm
    reach = math.ceil((1.6 * _radius_mm(focus.core_ml + focus.oedema_ml) + 14.0) / h)
    sides = [slice(max(i - reach, 0), i + reach + 1) for i in origin]
    box = (sides[0], sides[1], sides[2])
    near = medium.crop(box)
    fields = Fields(plan.seed, plan.settings.extent_mm, torch.device("cpu"))
    diffusion_factor = (
        torch.exp((0.5 * fields.on(near.lattice, f"diffusion {number}", 14.0)).clamp(-1, 0.8)) * near.passable
    )
    fibre = _fibres(near.white)
    proliferation_factor = torch.exp(0.35 * fields.on(near.lattice, f"growth {number}", 18.0))
    start = [i - side.start for i, side in zip(origin, box, strict=True)]
    core = _grow_core(
        near,
        focus,
        diffusion_factor=diffusion_factor,
        fibre=fibre,
        proliferation_factor=proliferation_factor,
        start=start,
    )
    uneven = torch.exp(0.35 * fields.on(near.lattice, f"oedema {number}", 12.0))
    if any(focus.lean):
        uneven = uneven * _one_sided_factor(near.lattice, _position_mm(medium.lattice, origin), focus)
    oedema = _spread_oedema(near, diffusion_factor, fibre, core) * uneven
    oedema[core] = 2.0  # above any oedema, because the volume below counts the core first
    count = min(int((focus.core_ml + focus.oedema_ml) * 1000 / h**3), oedema.numel() - 1)
    border = max(float(oedema.flatten().sort(descending=True).values[count]), 0.02)
    return (
        box,
        blur(signed_distance(core), 0.8) * h,
        0.5 * torch.log(oedema.clamp(min=1e-4) / border),
    )


def _one_sided_factor(lattice: Lattice, origin_mm: tuple[float, float, float], focus: Focus) -> Float[Tensor, "x y z"]:
    """Return the factor by which oedema is stronger to one side of the core than to the other."""
    x, y, z = (
        torch.from_numpy((part * (axis - place)).astype(np.float32))
        for part, axis, place in zip(focus.lean, lattice.axes, origin_mm, strict=True)
    )
    along = (x[:, None, None] + y[:, None] + z) / _radius_mm(focus.core_ml + focus.oedema_ml)
    return torch.exp(along.clamp(-2.5, 2.5))


def _radius_mm(volume_ml: float) -> float:
    return (3000 * volume_ml / (4 * math.pi)) ** (1 / 3)


def _fibres(white: Float[Tensor, "x y z"]) -> Float[Tensor, "3 x y z"]:
    """Return the share of fibres along each axis (sum 1): they run where the white matter does not change."""
    slopes = np.stack(np.gradient(blur(white, 1.0).numpy()))
    across = blur(torch.from_numpy(slopes.astype(np.float32)) ** 2, 2.0) + 1e-6
    return (1 - across / across.sum(0)) / 2


def _grow_core(
    medium: _Medium,
    focus: Focus,
    *,
    diffusion_factor: Tensor,
    fibre: Tensor,
    proliferation_factor: Tensor,
    start: list[int],
) -> Bool[Tensor, "x y z"]:
    """Return the core: the voxels that reach the visible cell density first, up to the focus's volume.

    The cell density u follows du/dt = div(D grad u) + rho u (1 - u).
    """
    h = medium.lattice.spacing_mm
    faces = _face_diffusion((medium.white + GREY_DIFFUSION * medium.grey) * diffusion_factor * (0.45 + 1.65 * fibre))
    rho = ((h / focus.front_mm) ** 2 * proliferation_factor * (medium.white + medium.grey)).numpy()
    step = np.float32(0.9 / (2 * _largest_outflow(faces) + float(rho.max())))
    u = _droplet(rho.shape, start, DROPLET_MM / h) * medium.passable.numpy()
    arrival = np.where(u > VISIBLE, np.float32(0), np.float32(np.inf))
    core_voxels = focus.core_ml * 1000 / h**3
    for time in range(1, MAXIMAL_STEPS):
        before = u
        u = before + step * (_divergence(before, faces) + rho * before * (1 - before))
        new = np.isinf(arrival) & (u >= VISIBLE)
        # Interpolate the time within the step, so that voxels of one step are ordered, too.
        arrival[new] = time - (u[new] - VISIBLE) / np.maximum(u[new] - before[new], 1e-6)
        if np.isfinite(arrival).sum() >= 1.1 * core_voxels + 4:
            break
    order = np.sort(arrival[np.isfinite(arrival)])
    return torch.from_numpy(arrival <= order[min(int(core_voxels), len(order) - 1)])


def _droplet(shape: tuple[int, ...], start: list[int], sigma: float) -> np.ndarray:
    """Return a Gaussian of `sigma` voxels with value 1 at voxel `start`."""
    x, y, z = (np.exp(-(((np.arange(n) - i) / sigma) ** 2) / 2) for n, i in zip(shape, start, strict=True))
    return (x[:, None, None] * y[:, None] * z).astype(np.float32)


def _spread_oedema(medium: _Medium, diffusion_factor: Tensor, fibre: Tensor, core: Tensor) -> Float[Tensor, "x y z"]:
    """Return the oedema: it flows from the core (where it is 1) through white matter and is absorbed on the way."""
    faces = _face_diffusion((medium.white + 0.06 * medium.grey) * diffusion_factor * (0.35 + 1.95 * fibre))
    uptake = np.float32((medium.lattice.spacing_mm / OEDEMA_REACH_MM) ** 2)
    step = np.float32(0.9 / (2 * _largest_outflow(faces)))
    source = core.numpy()
    u = source.astype(np.float32)
    for _ in range(OEDEMA_STEPS):
        u += step * (_divergence(u, faces) - uptake * u)
        u[source] = 1
    return torch.from_numpy(u)


def _face_diffusion(diffusion: Float[Tensor, "3 x y z"]) -> list[np.ndarray]:
    """Return the diffusion through the faces between neighbouring voxels, along each axis."""
    along = [np.moveaxis(part.numpy(), k, 0) for k, part in enumerate(diffusion)]
    return [np.ascontiguousarray(np.moveaxis((a[1:] + a[:-1]) / 2, 0, k)) for k, a in enumerate(along)]


def _largest_outflow(faces: list[np.ndarray]) -> float:
    """Return an upper bound of the flow through a voxel's faces, one per axis; it limits the time step."""
    return max(sum(float(face.max()) for face in faces), 1e-3)


def _divergence(u: np.ndarray, faces: list[np.ndarray]) -> np.ndarray:
    """Return the net flow into each voxel.

    Numpy is used here and in the callers. Threads that synchronise after each small operation would cost more than they
    save, and many times more beside another busy process.
    """
    total = np.zeros_like(u)
    for k, face in enumerate(faces):
        flow = face * np.diff(u, axis=k)
        np.moveaxis(total, k, 0)[:-1] += np.moveaxis(flow, k, 0)
        np.moveaxis(total, k, 0)[1:] -= np.moveaxis(flow, k, 0)
    return total


def _mass_effect(plan: Plan, medium: _Medium, core_mm: Tensor, target: Lattice) -> Float[Tensor, "3 i j k"]:
    """Return the displacement (mm) away from the core; it decreases with distance and towards the skull."""
    assert plan.tumour is not None
    width = plan.tumour.mass_effect_width_mm / target.spacing_mm
    bulk = blur(enlarge((core_mm > 0).float(), medium.lattice, target), width)
    away = -torch.from_numpy(np.stack(np.gradient(bulk.numpy())))
    away = away * (enlarge(medium.depth_mm, medium.lattice, target) / 12).clamp(0, 1)
    return away * (plan.tumour.mass_effect_mm / away.norm(dim=0).max().clamp(min=1e-6))


def _move_with_brain(oedema: Tensor, lattice: Lattice, push: Tensor, source: Lattice) -> Float[Tensor, "x y z"]:
    """Return the oedema after it has moved with the brain tissue around it."""
    moved = enlarge(push, source, lattice) / lattice.spacing_mm
    index = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in lattice.shape), indexing="ij"))
    return interpolate(oedema[None], (index - moved).flatten(1), fill=DRY).reshape(lattice.shape)
