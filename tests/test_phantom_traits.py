"""phantom-2: heads of individuals, real shapes, enhancing structures, measured signal; each trait has its effect."""

import json
import math
from dataclasses import asdict, fields, replace

import nibabel
import numpy as np
import pytest
import torch

from conftest import command_line
from glimpseg.errors import InputError
from glimpseg.phantom import POPULATIONS, STANDARD, Settings, Traits, draw_plan, generate, render
from glimpseg.phantom.anatomy import build_brain, draw_warp
from glimpseg.phantom.artefacts import axis_matrices
from glimpseg.phantom.atlas import PARTS, load_atlas
from glimpseg.phantom.draw_traits import apply_traits
from glimpseg.phantom.growth import grow
from glimpseg.phantom.individuals import CLASSES, load_individual, load_label_map
from glimpseg.phantom.lattice import Fields, Lattice
from glimpseg.phantom.looks import apply_looks, robust_scale
from glimpseg.phantom.measured import LOOKS
from glimpseg.phantom.plan import Look, Placement
from glimpseg.phantom.scan import brain_signal
from glimpseg.phantom.shapes import load_shape, place_shape
from glimpseg.phantom.structures import STRUCTURES, structure_shares
from glimpseg.phantom.training_stream import Stream
from glimpseg.phantom.tumour import make_lesion
from glimpseg.region import Label
from label_maps import head, tumour, write_head, write_tumour

T1, T1C, T2, FLAIR = range(4)
CPU = torch.device("cpu")
NOTHING = Traits()
FULL = Traits(**{field.name: 1.0 for field in fields(Traits)})
"""Every trait at its strongest."""


@pytest.fixture(scope="module")
def anatomies(tmp_path_factory):
    return write_head(tmp_path_factory.mktemp("maps") / "anatomies")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_tumour(tmp_path_factory.mktemp("maps") / "shapes")


def settings(spacing_mm=4.0, *, anatomies=None, shapes=None, traits=NOTHING, **changes):
    folders = {"anatomies": str(anatomies) if anatomies else None, "shapes": str(shapes) if shapes else None}
    return Settings.at_spacing(spacing_mm, traits=traits, **folders, **changes)


def fields_of(plan):
    return Fields(plan.seed, plan.settings.extent_mm, CPU)


def brain_of(plan):
    return build_brain(plan, draw_warp(plan), fields_of(plan))


# ---- phantom-1 stays what it is


def test_phantom_1_has_no_part_of_phantom_2():
    plan = draw_plan(3, Settings.at_spacing(4.0))
    assert apply_traits(plan) is plan
    assert (plan.structures, plan.head.anatomy, plan.tumour.placement, plan.tumour.looks) == (None, None, None, {})
    assert brain_of(plan).regional is None
    assert plan.settings.name == "phantom-1"
    assert set(plan.settings.record()).isdisjoint({"traits", "anatomies", "shapes"})


def test_traits_of_no_strength_change_only_size_and_the_named_corrections():
    plain, plan = draw_plan(3, Settings.at_spacing(4.0)), draw_plan(3, settings())
    assert plan.settings.name == "phantom-2"
    assert plan.tumour == plain.tumour
    assert plan.head == replace(plain.head, scales=plan.head.scales, angles_degrees=plan.head.angles_degrees)
    assert np.allclose(np.array(plan.head.scales) / plain.head.scales, 1.05)
    assert (plan.structures.sinus_mm, plan.structures.dura_mm, plan.structures.sheets) == (0, 0, 0)


# ---- heads of individuals


def test_the_classes_of_a_label_map(anatomies):
    drawn = load_label_map(str(anatomies / "head.nii.gz"))
    numbers = head()
    for label, members in (("white", (2, 41)), ("nuclei", (10, 49)), ("lesions", (25, 57)), ("plexus", (136, 163))):
        assert (drawn.classes == CLASSES.index(label)).sum() == np.isin(numbers, members).sum()
    # Bone is outside; the ventricles are fluid.
    assert (drawn.classes == CLASSES.index("fluid")).sum() == np.isin(numbers, (4, 43)).sum()


def test_the_frame_of_a_label_map(anatomies):
    drawn = load_label_map(str(anatomies / "head.nii.gz"))
    # The crop begins 10 voxels before the brain's first voxel.
    brain = np.argwhere((head() > 0) & (head() < 500))
    corner = np.maximum(brain.min(0) - 10, 0)
    assert drawn.midline[0] + corner[0] == pytest.approx(79.5, abs=0.3)
    assert drawn.midline[1:] == pytest.approx((0, 0), abs=0.01)
    assert drawn.centre[1] + corner[1] == pytest.approx((brain[:, 1].min() + brain[:, 1].max()) / 2, abs=1)
    low, high = brain[:, 2].max() - 2 * 58, brain[:, 2].max()
    assert low < drawn.centre[2] + corner[2] < high


def test_depth_is_the_distance_from_the_surface(anatomies):
    atlas = load_individual(anatomies, "head.nii.gz", pool=1)
    depth = atlas.maps[0]
    # The shortest half axis of the brain is 58 mm.
    assert float(depth.max()) == pytest.approx(58, abs=2)
    slope = torch.stack(torch.gradient(depth)).norm(dim=0)
    shell = (depth > 5) & (depth < 20)
    assert float(slope[shell].median()) == pytest.approx(1, abs=0.05)


def test_the_shares_of_an_individual_sum_to_one(anatomies):
    plan = draw_plan(1, settings(2.0, anatomies=anatomies, traits=Traits(individuals=1.0)))
    assert plan.head.anatomy == "head.nii.gz"
    brain = brain_of(plan)
    assert torch.allclose(brain.normal.sum(0), torch.ones(len(brain.inside)), atol=1e-5)
    assert float(brain.normal.min()) >= 0
    parts = brain.regional.parts
    assert bool((parts.sum(0) <= 1.0001).all())
    # Cerebellum and brainstem of the map measure 80 + 12 ml of ellipsoids in a brain of 1174 ml.
    share = float(parts[1:3].sum() / len(brain.inside))
    assert share == pytest.approx((4 / 3 * math.pi * 40 * 24 * 20) / (4 / 3 * math.pi * 62 * 78 * 58), rel=0.35)


def test_a_mirrored_head_is_the_mirror_image(anatomies):
    plan = draw_plan(1, settings(anatomies=anatomies, traits=Traits(individuals=1.0)))
    straight = replace(plan.head, mirrored=False, angles_degrees=(0, 0, 0), shift_mm=(0, 0, 0))
    one = draw_warp(replace(plan, head=straight))
    other = draw_warp(replace(plan, head=replace(straight, mirrored=True)))
    assert np.allclose(one.matrix[0], -other.matrix[0])
    assert np.allclose(one.matrix[1:], other.matrix[1:])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({2: 0, 41: 0}, "no white matter"),
        ({4: 0, 43: 0}, "no lateral ventricles"),
        ({7: 0, 8: 0, 46: 0, 47: 0}, "no cerebellum"),
        ({16: 99}, "99"),
        ({16: -4}, "from 0 on"),
    ],
)
def test_a_map_that_is_no_head_is_refused_with_the_reason(tmp_path, changes, words):
    write_head(tmp_path, numbers=head(changes))
    with pytest.raises(InputError, match=words) as error:
        load_label_map(str(tmp_path / "head.nii.gz"))
    assert str(tmp_path) not in str(error.value)


def test_a_map_in_the_wrong_unit_is_refused_by_its_volume(tmp_path):
    small = head()[::4, ::4, ::4]
    write_head(tmp_path, numbers=small)
    with pytest.raises(InputError, match="700 to 2200 ml"):
        load_label_map(str(tmp_path / "head.nii.gz"))


def test_parcels_count_as_cortex(tmp_path):
    numbers = head({3: 1003, 42: 2003})
    write_head(tmp_path, numbers=numbers)
    drawn = load_label_map(str(tmp_path / "head.nii.gz"))
    assert (drawn.classes == CLASSES.index("grey")).sum() == np.isin(numbers, (1003, 2003)).sum()


def test_an_interpolated_map_is_refused(tmp_path):
    nibabel.save(nibabel.Nifti1Image(head().astype(np.float32) + 0.25, np.eye(4)), tmp_path / "head.nii.gz")
    with pytest.raises(InputError, match="whole numbers"):
        load_label_map(str(tmp_path / "head.nii.gz"))


def test_other_axes_give_the_same_head(tmp_path, anatomies):
    turned = np.ascontiguousarray(head()[::-1].transpose(0, 2, 1))
    affine = np.array([[-1, 0, 0, 159], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    write_head(tmp_path, numbers=turned, affine=affine)
    one, other = (load_label_map(str(f / "head.nii.gz")) for f in (anatomies, tmp_path))
    assert np.array_equal(one.classes, other.classes)
    assert one.size == pytest.approx(other.size)


# ---- real shapes


def placement(**changes):
    return Placement(
        **{"name": "tumour.nii.gz", "mirrored": False, "angles_degrees": (0, 0, 0), "scale": 1.0, "shift_mm": (0, 0, 0)}
        | changes
    )


def shares_of(folder, **changes):
    fields = Fields(5, (240.0, 240.0, 155.0), CPU)
    lattice = Lattice.over((240.0, 240.0, 155.0), 2.0)
    return place_shape(folder, placement(**changes), fields).shares(lattice, CPU), lattice


def centroid(share, lattice):
    grid = torch.meshgrid(*(torch.from_numpy(axis).float() for axis in lattice.axes), indexing="ij")
    return [float((share * axis).sum() / share.sum()) for axis in grid]


def test_a_shape_keeps_volume_and_place(shapes):
    shares, lattice = shares_of(shapes)
    ball = 4 / 3 * math.pi * 20**3 / 1000
    assert float(shares.sum()) * 8 / 1000 == pytest.approx(ball, rel=0.08)
    assert float(shares[Label.ET - 1].sum()) * 8 / 1000 == pytest.approx(ball * (1 / 8 - 1 / 64), rel=0.2)
    # Voxel (150, 125, 90) lies (30.5, 5.5, 13) mm from the middle of 240 x 240 x 155.
    assert centroid(shares.sum(0), lattice) == pytest.approx([30.5, 5.5, 13.0], abs=2.5)


def test_a_shape_is_scaled_mirrored_and_moved(shapes):
    (plain, lattice), (large, _) = shares_of(shapes), shares_of(shapes, scale=1.2)
    assert float(large.sum() / plain.sum()) == pytest.approx(1.2**3, rel=0.06)
    moved, _ = shares_of(shapes, mirrored=True, shift_mm=(0, 10, 0))
    assert centroid(moved.sum(0), lattice) == pytest.approx([-30.5, 15.5, 13.0], abs=2.5)


def test_three_and_four_are_enhancing_tumour_but_not_together(tmp_path):
    for number in (3, 4):
        write_tumour(tmp_path, f"{number}.nii.gz", tumour(enhancing=number))
        assert load_shape(str(tmp_path / f"{number}.nii.gz")).volumes_ml[Label.ET] > 3
    both = tumour(enhancing=3)
    both[0, 0, 0] = 4
    write_tumour(tmp_path, "both.nii.gz", both)
    with pytest.raises(InputError, match="3 and 4"):
        load_shape(str(tmp_path / "both.nii.gz"))


def test_a_map_without_a_tumour_is_no_shape(tmp_path):
    write_tumour(tmp_path, "none.nii.gz", np.zeros((240, 240, 155), np.uint8))
    with pytest.raises(InputError, match=r"0\.2 ml"):
        load_shape(str(tmp_path / "none.nii.gz"))


def test_a_phantom_takes_the_shapes_parts(shapes):
    made = generate(2, settings(2.0, shapes=shapes, traits=Traits(real_shapes=1.0)))
    volumes = made.description["volumes_ml"]
    # Oedema of the shape: a ball of 20 mm less one of 10 mm; fluid and the surface take some of it.
    assert 0.5 * 29.3 < volumes["ED"] < 1.2 * 29.3 * 1.7
    assert volumes["ET"] > volumes["NCR"] > 0


def test_a_shape_that_begins_outside_the_brain_is_moved_into_it(tmp_path):
    write_tumour(tmp_path, numbers=tumour(centre=(30, 125, 120), radius=15.0))
    plan = draw_plan(2, settings(3.0, shapes=tmp_path, traits=Traits(real_shapes=1.0)))
    labels = render(plan).labels
    whole = float((labels > 0).sum()) * 27 / 1000
    assert whole > 0.6 * 14.1 * plan.tumour.placement.scale**3


def test_surgery_grows_its_own_tumour(shapes):
    wanted = settings(shapes=shapes, traits=Traits(real_shapes=1.0), post_operative=1.0)
    assert draw_plan(2, wanted).tumour.placement is None


# ---- enhancing structures


@pytest.fixture(scope="module")
def vessels(anatomies):
    plan = draw_plan(1, settings(2.0, anatomies=anatomies, traits=FULL, healthy=1.0))
    plan = replace(plan, structures=replace(plan.structures, cortical_veins=0.0, remains_mm=0.0, dura_kept=-9.0))
    brain = brain_of(plan)
    return plan, brain, structure_shares(plan, brain, fields_of(plan))


def test_structures_never_take_more_than_a_voxel(vessels):
    _, _, shares = vessels
    assert float(shares.min()) >= 0
    assert float(shares.sum(0).max()) <= 1 + 1e-5


def test_sinuses_lie_at_the_midline_or_at_the_tentorium(vessels):
    _, brain, shares = vessels
    sinus = shares[STRUCTURES.index("sinus")] > 0.5
    assert int(sinus.sum()) > 50
    x = brain.regional.at_mm[0, sinus].abs()
    # The widest sinus has a half width of 7 mm and wanders; deep veins lie within 15 mm of the midline.
    near = (x < 16) | (brain.regional.tentorium_mm[sinus].abs() < 10)
    assert bool(near.all())


def test_the_sagittal_sinus_becomes_wider_backwards(vessels):
    _, brain, shares = vessels
    share, (x, y, _) = shares[0], brain.regional.at_mm
    top = (x.abs() < 10) & (brain.depth_mm < 4) & (brain.regional.tentorium_mm > 6)
    front, back = (float(share[top & part].mean()) for part in ((y > 20) & (y < 55), (y < -20) & (y > -60)))
    assert back > 1.3 * front > 0


def test_dura_lies_at_the_surface_and_sheets_between_the_halves(vessels):
    _, brain, shares = vessels
    dura = shares[STRUCTURES.index("dura")]
    deep = (dura > 0.2) & (brain.depth_mm > 5)
    x = brain.regional.at_mm[0].abs()
    assert int(deep.sum()) > 20
    assert bool(((x[deep] < 3) | (brain.regional.tentorium_mm[deep].abs() < 3)).all())
    surface = brain.depth_mm < 1.0
    assert float(dura[surface].mean()) > 3 * float(dura[~surface].mean())


def test_structures_take_up_contrast_agent_and_carry_no_label(anatomies):
    plan = draw_plan(1, settings(2.0, anatomies=anatomies, traits=Traits(individuals=1.0, sinuses=1.0), healthy=1.0))
    t1, t1c, *rest = plan.scanner.acquisitions
    same = replace(t1c, sequence=t1.sequence, gains={}, flatness=1.0)
    plan = replace(plan, scanner=replace(plan.scanner, acquisitions=(replace(t1, gains={}, flatness=1.0), same, *rest)))
    brain = brain_of(plan)
    sinus = structure_shares(plan, brain, fields_of(plan))[0] > 0.8
    signal = brain_signal(plan, brain, None, fields_of(plan))
    assert int(sinus.sum()) > 20
    # The two scans differ by the contrast agent alone: at least 0.4 mM in the sinus, at most 0.012 in white matter.
    assert float((signal[T1C] - signal[T1])[sinus].mean()) > 0.3
    white = (brain.normal[0] > 0.95) & (structure_shares(plan, brain, fields_of(plan)).sum(0) == 0)
    assert abs(float((signal[T1C] - signal[T1])[white].mean())) < 0.02
    assert not render(plan).labels.any()


def test_remains_lie_outside_the_brain(anatomies):
    plan = draw_plan(1, settings(2.0, anatomies=anatomies, healthy=1.0))
    more = replace(plan, structures=replace(plan.structures, remains_mm=5.0))
    one, other = brain_of(plan), brain_of(more)
    assert len(other.inside) > len(one.inside)
    assert float(other.depth_mm.min()) < float(one.depth_mm.min())


# ---- measured signal


@pytest.fixture(scope="module")
def lesion():
    plan = next(
        plan
        for plan in (draw_plan(seed, settings(2.0, traits=Traits(looks=1.0, spread=1.0))) for seed in range(30))
        if plan.tumour.kind == "high-grade"
    )
    fields, warp = fields_of(plan), draw_warp(plan)
    growth = grow(plan, warp)
    brain = build_brain(plan, warp.displaced(growth.push_mm), fields)
    return plan, brain, make_lesion(plan, growth, brain, fields), fields


IDENTITY = tuple(tuple(float(i == k) for k in range(4)) for i in range(4))


def looked_at(lesion, look, labels=(Label.ED,)):
    """Signal of a brain whose normal voxels are N(1, 0.1), with one look; and the robust unit."""
    plan, brain, drawn, fields = lesion
    rng = np.random.default_rng(0)
    signal = torch.from_numpy(rng.normal(1, 0.1, (4, len(brain.inside))).astype(np.float32))
    signal[:, drawn.touched] = 1.0
    plan = replace(plan, tumour=replace(plan.tumour, looks=dict.fromkeys(labels, look)))
    return apply_looks(plan, brain, drawn, signal=signal, fields=fields), drawn


def test_a_region_gets_the_measured_mean_and_spread(lesion):
    look = Look(means=(-1.0, 0.5, 2.0, 3.0), coarse=(0.3, 0.3, 0.6, 0.6), fine=(0.2, 0.2, 0.4, 0.4), together=IDENTITY)
    signal, drawn = looked_at(lesion, look)
    here = signal[:, drawn.labels == Label.ED]
    for channel in range(4):
        # The unit is 0.1: the standard deviation of the normal brain.
        assert float(here[channel].mean()) == pytest.approx(1 + 0.1 * look.means[channel], abs=0.05)
        wanted = 0.1 * math.hypot(look.coarse[channel], look.fine[channel])
        assert float(here[channel].std()) == pytest.approx(wanted, rel=0.45)


def test_sequences_vary_together_as_measured(lesion):
    together = ((1, 0.9, 0, 0), (0.9, 1, 0, 0), (0, 0, 1, -0.9), (0, 0, -0.9, 1))
    look = Look(means=(0, 0, 0, 0), coarse=(1, 1, 1, 1), fine=(1, 1, 1, 1), together=together)
    signal, drawn = looked_at(lesion, look)
    found = torch.corrcoef(signal[:, drawn.labels == Label.ED])
    assert float(found[T1, T1C]) > 0.7
    assert float(found[T2, FLAIR]) < -0.7
    assert abs(float(found[T1, T2])) < 0.5


def test_a_look_changes_its_region_alone(lesion):
    look = Look(means=(5, 5, 5, 5), coarse=(0, 0, 0, 0), fine=(0, 0, 0, 0), together=IDENTITY)
    signal, drawn = looked_at(lesion, look)
    untouched = torch.ones(signal.shape[1], dtype=torch.bool)
    untouched[drawn.touched] = False
    assert float(signal[:, untouched].max()) < 1.6
    # Five units are 1.5 of the normal brain; no region is brighter than the limit, 1.3 on T1.
    assert float(signal[T1, drawn.labels == Label.ED].mean()) == pytest.approx(1.3, abs=0.06)


def test_robust_scale_is_the_standard_deviation_of_a_normal_distribution():
    values = torch.from_numpy(np.random.default_rng(1).normal(3, 2, (2, 50_000)).astype(np.float32))
    middle, scale = robust_scale(values)
    assert middle.tolist() == pytest.approx([3, 3], abs=0.05)
    assert scale.tolist() == pytest.approx([2, 2], abs=0.05)


@pytest.mark.parametrize("key", LOOKS, ids=str)
def test_measured_correlations_can_be_drawn_from(key):
    for matrix in (LOOKS[key].correlation, LOOKS[key].together):
        found = np.array(matrix, float)
        assert np.array_equal(found, found.T)
        assert np.allclose(np.diag(found), 1)
        assert np.linalg.eigvalsh(found).min() > 0.01


# ---- scans


def test_a_gap_lengthens_the_step_between_slices():
    acquisition = draw_plan(0, Settings.at_spacing(2.0)).scanner.acquisitions[0]
    acquisition = replace(acquisition, sampled=True, slice_axis=2, slice_mm=4.0)
    ranks = [
        np.linalg.matrix_rank(axis_matrices(replace(acquisition, gap_mm=gap), (20, 20, 25), 2.0)[2])
        for gap in (0.0, 4.0)
    ]
    # Over the 48 mm between the first and the last voxel there are 13 slices of 4 mm, or 7 with gaps of 4 mm.
    assert ranks == [13, 7]


# ---- grey matter


def test_grey_matter_is_uneven_alike_on_both_sides_and_white_matter_is_not():
    plan = draw_plan(2, settings(2.0, traits=Traits(looks=1.0), healthy=1.0))
    brain = brain_of(plan)
    even, uneven = (
        brain_signal(replace(plan, head=replace(plan.head, uneven_grey=sd)), brain, None, fields_of(plan))
        for sd in (0.0, 0.1)
    )
    change = uneven / even - 1
    white, grey = brain.normal[0], brain.normal[1]
    assert change[:, white > 0.99].abs().max() < 0.003
    pure = grey > 0.99
    assert 0.06 < change[FLAIR, pure].std() < 0.14
    for channel, share in ((T2, 0.8), (T1, -0.3), (T1C, -0.3)):
        assert torch.allclose(change[channel, pure], share * change[FLAIR, pure], atol=1e-5)
    volume = brain.scatter((change[FLAIR] * pure).float())
    x, y, z = torch.nonzero(volume, as_tuple=True)
    opposite = {round(float(at), 3): n for n, at in enumerate(brain.lattice.axes[0])}
    pairs = [
        (volume[a, b, c], volume[opposite[-at], b, c])
        for a, b, c in zip(x.tolist(), y.tolist(), z.tolist(), strict=True)
        if (at := round(float(brain.lattice.axes[0][a]), 3)) and -at in opposite
    ]
    both = np.array([(float(one), float(other)) for one, other in pairs if other])
    assert len(both) > 500
    # Vessels and white-matter lesions in a few of them are not alike on both sides.
    assert np.quantile(np.abs(both[:, 0] - both[:, 1]), 0.9) < 0.004


def test_the_cerebellum_differs_from_the_cerebrum_on_t2_and_flair():
    gains = [
        [a.gains for a in draw_plan(seed, settings(traits=Traits(uneven_grey=1.0))).scanner.acquisitions]
        for seed in range(200)
    ]
    for channel in (T2, FLAIR):
        logs = np.log([one[channel]["cerebellar_white"] for one in gains])
        assert abs(logs.mean()) < 0.03
        assert 0.08 < logs.std() < 0.12
    assert all("cerebellar_white" not in one[T1] for one in gains)


# ---- every knob


CHANGES = {
    "individuals": "images", "real_shapes": "labels", "regions": "images", "uneven_grey": "images",
    "sinuses": "images", "dura": "images", "sheets": "images", "veins": "images",
    "plexus": "images", "remains": "images", "lesions": "images",
    "looks": "images", "spread": "images", "unevenness": "images", "patchy": "images", "filling": "labels",
    "planes": "images", "gaps": "images", "unsuppressed": "images", "twice": "images", "coarse_numbers": "images",
}  # fmt: skip
"""What each trait changes."""


@pytest.mark.parametrize("field", [field.name for field in fields(Traits)])
def test_every_trait_changes_the_phantom(field, anatomies, shapes):
    on = replace(FULL, real_shapes=0.0, individuals=1.0) if field in ("filling", "lesions") else FULL
    off = replace(on, **{field: 0.0})
    low = 1.0 if field == "filling" else 0.22
    one, other = (
        settings(4.0, anatomies=anatomies, shapes=shapes, traits=traits, low_grade=low) for traits in (on, off)
    )
    pairs = ((draw_plan(seed, one), draw_plan(seed, other)) for seed in range(1, 12))
    changed = [(a, b) for a, b in pairs if replace(a, settings=one) != replace(b, settings=one)]
    # One plan may change by less than a voxel shows; of three, one does not.
    assert any(
        not torch.equal(getattr(render(first), CHANGES[field]), getattr(render(second), CHANGES[field]))
        for first, second in changed[:3]
    )


@pytest.mark.parametrize("field", [field.name for field in fields(Traits)])
def test_traits_say_which_field_is_no_share(field):
    with pytest.raises(ValueError, match=field):
        Traits(**{field: -0.1})


def test_coarse_numbers_leave_few_grey_levels():
    made = generate(3, settings(traits=Traits(coarse_numbers=1.0)))
    assert int(made.images[T1].max()) < 400


# ---- settings, description, command line


def test_folders_need_phantom_2(anatomies):
    with pytest.raises(ValueError, match="phantom-2"):
        Settings.at_spacing(4.0, anatomies=str(anatomies))


@pytest.mark.parametrize("name", ["anatomies", "shapes"])
def test_a_folder_without_maps_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="has none"):
        settings(**{name: tmp_path})
    with pytest.raises(InputError, match="no such folder"):
        settings(**{name: tmp_path / "absent"})


def test_a_description_names_no_folder(anatomies, shapes):
    made = generate(1, settings(anatomies=anatomies, shapes=shapes, traits=FULL))
    text = json.dumps(made.description)
    assert str(anatomies) not in text
    assert str(shapes) not in text
    assert made.description["name"] == "phantom-2"
    assert made.description["settings"]["anatomies"]["files"] == 1
    assert (made.description["anatomy"], made.description["shape"]) == ("head.nii.gz", "tumour.nii.gz")
    # What a grown tumour would have measured is not the shape's volume.
    assert [set(focus) for focus in made.description["foci"]] == [{"position_mm"}]
    assert "anatomy" not in generate(1, Settings.at_spacing(4.0)).description


@pytest.mark.parametrize("population", ["patients", "beyond"])
def test_a_population_works_without_any_folder(population):
    one, other = (generate(4, Settings.at_spacing(4.0, **POPULATIONS[population])) for _ in range(2))
    assert torch.equal(one.images, other.images)
    assert one.description["name"] == "phantom-2"


def test_populations_of_phantom_1_have_no_traits():
    assert POPULATIONS["standard"] == {"variety": STANDARD}
    assert all("traits" not in POPULATIONS[name] for name in ("standard", "wide", "shifted"))


def test_the_command_line_draws_from_folders(tmp_path, anatomies, shapes):
    arguments = ["phantom", "--count", "1", "--seed", "3", "--spacing", "4", "--population", "patients"]
    folders = ["--anatomies", str(anatomies), "--shapes", str(shapes)]
    done = command_line(*arguments, *folders, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "phantoms.json").read_text())
    assert manifest["generator"] == "phantom-2"
    assert str(anatomies) not in json.dumps(manifest)


def test_a_stream_draws_what_its_fields_say(anatomies):
    stream = Stream(anatomies=str(anatomies), **POPULATIONS["patients"])
    assert stream.settings(4.0) == Settings.at_spacing(4.0, anatomies=str(anatomies), **POPULATIONS["patients"])
    assert stream.name == "phantom-2"
    assert Stream().name == "phantom-1"
    assert asdict(stream)["traits"]["sinuses"] == POPULATIONS["patients"]["traits"].sinuses


def test_the_average_brain_knows_its_parts():
    plan = draw_plan(1, settings(2.0))
    brain = brain_of(plan)
    x, y, z = brain.regional.at_mm
    cerebellum = brain.regional.parts[PARTS.index("cerebellar_grey")] > 0.3
    # The cerebellum lies behind and below the middle, on both sides.
    assert bool((y[cerebellum] < 0).all())
    assert bool((z[cerebellum] < 5).all())
    assert 0.3 < float((x[cerebellum] > 0).float().mean()) < 0.7
    litres = float(brain.regional.parts[1:3].sum()) / float(brain.normal[:2].sum())
    # The cerebellum holds about a tenth of the brain's volume.
    assert 0.05 < litres < 0.18
    assert load_atlas(CPU).parts is None
