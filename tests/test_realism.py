"""The comparison of phantoms with patients (`benchmarks/realism.py`): statistics, the test on patches, false tumour."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from glimpseg import Modality
from glimpseg.data.preprocess import Prepared
from glimpseg.errors import InputError
from glimpseg.phantom import Settings, generate
from glimpseg.region import Label
from glimpseg.volume import Grid

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
from likeness import cases, comparison, far, lesions, normal, outlines, patches, pictures  # noqa: E402

sys.path.remove(BENCHMARKS)


def ball(shape, centre, radius):
    """Voxels at most `radius` from `centre`."""
    return sum((axis - at) ** 2 for axis, at in zip(np.indices(shape), centre, strict=True)) <= radius**2


def block_case(images=None, labels=None, *, side=40, spacing_mm=1.0):
    """A cube of brain with a margin of air of 2 voxels."""
    brain = np.zeros((side + 4,) * 3, bool)
    brain[2:-2, 2:-2, 2:-2] = True
    labels = np.zeros(brain.shape, np.uint8) if labels is None else labels
    images = {Modality.T1C: np.zeros(brain.shape)} if images is None else images
    return cases.Case("cube", images, brain, labels, spacing_mm, tumour=bool(labels.any()))


# Units


def test_units_are_median_and_interquartile_range_of_normal_brain():
    image = np.arange(101.0).reshape(101, 1, 1)
    z = cases.robust_z(image, np.ones(image.shape, bool))
    # Median 50, quartiles 25 and 75: one unit is 0.7413 * 50 = 37.065.
    assert z[50, 0, 0] == 0
    assert z[100, 0, 0] == pytest.approx(50 / 37.065)


def test_tumour_does_not_change_the_units():
    rng = np.random.default_rng(0)
    shape = (40, 40, 40)
    labels = np.where(ball(shape, (20, 20, 20), 6), Label.ED, 0).astype(np.uint8)
    image = rng.normal(100, 20, shape)
    inside = np.ones((1, *shape), bool)
    dark, bright = (
        cases.in_units_of_normal(
            Prepared(
                id="one",
                image=np.stack([np.where(labels > 0, value, image)] * 4),
                inside=np.repeat(inside, 4, 0),
                available=Modality.FLAIR,
                target=labels,
                grid=Grid(shape, np.eye(4)),
                own=Grid(shape, np.eye(4)),
            ),
            name="one",
        )
        for value in (100.0, 900.0)
    )
    outside = labels == 0
    assert np.array_equal(dark.images[Modality.FLAIR][outside], bright.images[Modality.FLAIR][outside])
    assert bright.images[Modality.FLAIR][20, 20, 20] == pytest.approx(800 / 20, rel=0.05)  # 800 above, SD 20


def test_normal_brain_keeps_its_distance_from_labels():
    labels = np.zeros((44,) * 3, np.uint8)
    labels[20, 20, 20] = Label.ET
    assert block_case(labels=labels).normal[25, 20, 20]
    assert not block_case(labels=labels).normal[24, 20, 20]


# Regions


def test_level_of_a_region_is_its_mean():
    labels = np.where(ball((44,) * 3, (22, 22, 22), 8), Label.ED, 0).astype(np.uint8)
    found = lesions.lesion_statistics(block_case({Modality.FLAIR: np.where(labels > 0, 2.5, 0.0)}, labels))
    assert found["level/ED/FLAIR"] == 2.5
    assert found["spread/ED/FLAIR"] == 0
    assert found["AUC/ED:brain/FLAIR"] == 1
    assert "level/ET/FLAIR" not in found


def test_slow_waves_are_coarse_and_noise_is_fine():
    shape = (44,) * 3
    labels = np.zeros(shape, np.uint8)
    labels[6:-6, 6:-6, 6:-6] = Label.ET
    wave = np.broadcast_to(np.sin(np.arange(44) * 2 * np.pi / 32)[:, None, None], shape)
    noise = np.random.default_rng(0).normal(0, 1, shape)
    found = lesions.lesion_statistics(block_case({Modality.T1: wave, Modality.T2: noise}, labels))
    assert found["coarse/ET/T1"] > 3 * found["fine/ET/T1"]
    # A blur with a standard deviation of s voxels leaves of noise a share of (2 s sqrt(pi))^-1.5: at 3, 0.029.
    assert found["coarse/ET/T2"] < 0.1
    assert found["fine/ET/T2"] == pytest.approx(1, abs=0.05)


def test_unevenness_of_two_sequences_is_correlated_if_it_is_shared():
    shape = (44,) * 3
    labels = np.zeros(shape, np.uint8)
    labels[6:-6, 6:-6, 6:-6] = Label.ED
    x, y, _ = np.indices(shape) * 2 * np.pi / 32
    found = lesions.lesion_statistics(
        block_case({Modality.T1: -np.sin(x), Modality.T2: np.sin(x), Modality.FLAIR: np.sin(y)}, labels)
    )
    assert found["together/ED/T1-T2"] == pytest.approx(-1)
    assert found["together/ED/T2-FLAIR"] == pytest.approx(0, abs=1e-6)


def test_the_two_largest_foci_are_kept():
    labels = np.zeros((30, 5, 5), np.uint8)
    labels[0:9], labels[10:16], labels[20:22] = 1, 2, 3
    kept = lesions.largest_foci(labels)
    assert kept[5, 0, 0] == 1
    assert kept[12, 0, 0] == 2
    assert not kept[20:].any()


@pytest.mark.parametrize(
    ("one", "two", "area"),
    [([2.0, 3.0], [0.0, 1.0], 1.0), ([0.0], [0.0, 1.0], 0.25), ([1.0, 1.0], [1.0], 0.5)],
)
def test_area_counts_pairs_and_ties_half(one, two, area):
    assert lesions.area_under_curve(np.array(one), np.array(two)) == area


def test_edge_of_a_step_has_its_height():
    labels = np.zeros((44,) * 3, np.uint8)
    labels[12:32, 12:32, 12:32] = Label.ED
    found = outlines.outline_statistics(block_case({Modality.T2: np.where(labels > 0, 3.0, 1.0)}, labels))
    assert found["edge/WT step/T2"] == 2
    assert found["edge/WT slope/T2"] == 1  # half of the step on either side of it, in voxels of 1 mm
    assert found["shape/WT ml"] == 8
    # A cube of side a has 6 a^2 faces; a ball of its volume has (36 pi)^(1/3) a^2.
    assert found["shape/WT compactness"] == pytest.approx((36 * np.pi) ** (1 / 3) / 6)
    assert found["shape/WT parts"] == 1


# Normal brain


def three_tissues():
    """Layers along x, again and again: white matter 10 mm, cortex 5, fluid 5, cortex 5; noise of 0.05."""
    case = block_case(side=60)
    layers = np.repeat([1.0, -0.5, -2.5, -0.5], [10, 5, 5, 5])
    levels = np.broadcast_to(np.tile(layers, 3)[:64, None, None], case.brain.shape)
    noise = np.random.default_rng(0).normal(0, 0.05, levels.shape)
    return replace(case, images={Modality.T1: levels + noise, Modality.T1C: 0.1 * levels})


def test_contrast_of_cortex_to_white_matter():
    found = normal.normal_statistics(three_tissues())
    assert found["tissue/cortex-white/T1"] == pytest.approx(-1.5, abs=0.05)
    assert found["tissue/cortex-white/T1c"] == pytest.approx(-0.15, abs=0.01)
    assert found["tissue/fluid/T1"] == pytest.approx(-2.5, abs=0.05)
    assert found["white/noise/T1"] == pytest.approx(0.05, rel=0.1)


def test_sharpness_is_measured_where_there_is_contrast():
    found = normal.normal_statistics(three_tissues())
    assert found["sharpness/grey-white/T1"] == pytest.approx(0.5, abs=0.06)  # a step: half of it a millimetre
    assert "sharpness/grey-white/T1c" not in found


def test_rough_along_the_axis_that_varies():
    image = np.broadcast_to(np.arange(30.0)[:, None, None] % 2, (30, 30, 30))
    found = normal.texture(image, np.ones((30,) * 3, bool), 1.0)
    assert found["rough y"] == 0
    assert found["rough x"] == 0.5  # neighbours differ by 1; half of the square


def test_spectrum_of_noise_is_flat_and_of_blurred_noise_steep():
    white = np.ones((32,) * 3, bool)
    noise = np.random.default_rng(0).normal(size=white.shape)
    assert normal.spectrum_slope(noise, white, 1.0) == pytest.approx(0, abs=0.4)
    smooth = lesions.restricted_blur(noise, white, 1.0, 1.5)
    assert normal.spectrum_slope(smooth, white, 1.0) < -2


def test_enhancement_has_its_volume_depth_and_place():
    shape = (44,) * 3
    bright, flair = np.zeros(shape), np.zeros(shape)
    # Brain: voxels 2 to 41 along each axis; its middle plane lies at 21.5. The lower posterior quarter: y, z below 22.
    bright[2:4, 30:40, 30:40] = 4.0  # lateral, 0 to 2 mm deep: 200 voxels
    bright[21:23, 24:34, 30:32] = 5.0  # midline, more than 8 mm deep: 40 voxels
    flair[bright > 0] = -3.0
    found = normal.enhancement(block_case({Modality.T1C: bright, Modality.FLAIR: flair}))
    litres = 40**3 / 1e6
    assert found["enhancing/>3/lateral/0-3 mm"] == pytest.approx(0.2 / litres)
    assert found["enhancing/>3/midline/deeper"] == pytest.approx(0.04 / litres)
    assert found["enhancing/>4.5/all/total"] == pytest.approx(0.04 / litres)
    assert found["enhancing/>3/below lateral/total"] == 0
    assert found["enhancing/>3/lateral/FLAIR"] == -3


def test_enhancement_near_a_label_is_not_normal():
    shape = (44,) * 3
    labels, bright = np.zeros(shape, np.uint8), np.zeros(shape)
    labels[10:14, 20:24, 20:24] = Label.ET
    bright[14:34, 21, 21] = 4.0  # voxels 14 to 33; those from 23 on are 10 mm or more from the label
    found = normal.enhancement(block_case({Modality.T1C: bright}, labels))
    far_away = block_case(labels=labels).apart_mm >= 10
    litres = float((far_away & block_case().brain).sum()) / 1e6
    assert found["enhancing/>3/all/total"] == pytest.approx(0.011 / litres)


def test_middle_plane_follows_a_turned_head():
    x, y, z = np.indices((80, 70, 60))
    brain = ((x - 40 - 0.1 * (y - 35)) / 30) ** 2 + ((y - 35) / 32) ** 2 + ((z - 30) / 28) ** 2 < 1
    plane = normal.middle_plane(brain)
    assert plane[0, 35, 30] == pytest.approx(40, abs=0.3)
    assert plane[0, 55, 30] - plane[0, 15, 30] == pytest.approx(4, abs=0.3)


# Comparison


def measured(name, values, spacing_mm=1.0):
    return comparison.Measured(name, spacing_mm, {f"{name} {k}": {"level/ED/T2": v} for k, v in enumerate(values)})


def test_distance_and_coverage():
    row = comparison.compared(measured("real", [4.0, 4.0, 1.0]), measured("wide", [0.0, 1.0, 2.0]))[0]
    assert row.z == pytest.approx(2**0.5)  # means 3 and 1, variances 3 and 1
    assert row.covered == pytest.approx(1 / 3)
    assert row.row == "| level/ED/T2 | 3.00 +- 1.73 | 3 | 1.00 +- 1.00 | 3 | +1.4 | 33 % |"


def test_measured_statistics_survive_a_file(tmp_path):
    written = measured("wide", [1.0, 2.0])
    written.write(tmp_path / "wide.json", {"commit": "none"})
    assert comparison.Measured.read(tmp_path / "wide.json") == written


def test_spacings_must_agree():
    with pytest.raises(InputError, match=r"measured at 1 mm and wide at 2 mm\. Measure both at the same spacing"):
        comparison.compared(measured("real", [1.0] * 3), measured("wide", [1.0] * 3, 2.0))


def test_another_file_is_refused(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(InputError, match=r"`realism\.py measure` wrote"):
        comparison.Measured.read(tmp_path / "other.json")


# Patches


def some_patches(phantoms, patients, number=6):
    """Patches of six cases each; the arguments give the values of a case's patches."""
    rng = np.random.default_rng(1)
    values = [draw(rng, (number, 8, 8, 8)).astype(np.float32) for draw in [patients] * 6 + [phantoms] * 6]
    case = np.repeat(np.arange(12), number)
    return patches.Patches(np.concatenate(values), case, case >= 6)


TRAINING = patches.Training(folds=2, epochs=8, rate=1e-2)


def noisy(rng, shape):
    return rng.normal(0, 3, shape)


def smooth(rng, shape):
    return np.broadcast_to(rng.normal(0, 3, (shape[0], 1, 1, 1)), shape)


def test_patches_that_differ_are_told_apart():
    verdict = patches.judge(some_patches(noisy, smooth), TRAINING, seed=0)
    assert verdict.accuracy > 0.95
    assert verdict.area > 0.98
    assert verdict.case_area == 1
    assert verdict.cases == (6, 6)


def test_halves_of_one_population_are_not_told_apart():
    areas = [patches.judge(some_patches(noisy, noisy), TRAINING, seed=seed).area for seed in range(2)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.12)


def test_a_case_is_never_in_training_and_test():
    # Each case has a level of its own, so a network that had seen a case would know its side.
    def level_of_case(rng, shape):
        return np.broadcast_to(rng.normal(0, 3), shape)

    areas = [patches.judge(some_patches(level_of_case, level_of_case), TRAINING, seed=seed).area for seed in range(2)]
    assert np.mean(areas) < 0.75


def test_easiest_patches_come_from_different_cases():
    given = some_patches(noisy, smooth, number=2)
    logits = np.where(given.phantom, 1.0, -1.0)
    logits[12:14] = 3.0, 2.0  # both patches of case 6
    assert patches.Verdict(logits, given).easiest(phantom=True, count=2) == [12, 14]


def test_patches_are_cut_where_their_kind_is():
    labels = np.where(ball((84,) * 3, (42, 42, 42), 11), Label.ET, 0).astype(np.uint8)
    case = block_case({Modality.T1: np.where(labels > 0, 4.0, 0.0)}, labels, side=80)
    rng = np.random.default_rng(0)
    tumour, empty, border = (patches.cut(case, kind, 5, rng)[Modality.T1] for kind in ("tumour", "normal", "border"))
    assert tumour.shape == (5, 24, 24, 24)
    assert ((tumour == 4).mean((1, 2, 3)) > 0.2).all()
    assert (empty == 0).mean() > 0.95  # the rest is air
    outside = (border == patches.OUTSIDE).mean((1, 2, 3))
    assert ((outside >= 0.3) & (outside <= 0.7)).all()


def test_no_patches_of_tumour_without_tumour_and_none_of_the_border_of_a_slab():
    rng = np.random.default_rng(0)
    assert not patches.cut(block_case(side=60), "tumour", 3, rng)
    assert not patches.cut(replace(block_case(side=60), whole=False), "border", 3, rng)


# Pictures and false tumour


def test_blind_slices_show_the_tumour():
    labels = np.zeros((44,) * 3, np.uint8)
    labels[10:20, 10:20, 20:24] = 2
    labels[10:30, 10:20, 22] = 2
    labels[10:12, 10:12, 34] = 2
    assert pictures.slices(block_case(labels=labels)) == (22, 34)


def test_far_tumour_is_measured_from_labels():
    labels = np.zeros((50, 10, 10), np.uint8)
    labels[0:5] = Label.NCR
    predicted = np.zeros(labels.shape, bool)
    predicted[:30] = True
    # 10 mm from the label at 4 is 14, so 15 to 29 lie farther: 15 planes of 100 voxels of 1 x 2 x 0.5 mm.
    assert far.volumes(predicted, labels, (1.0, 2.0, 0.5)) == pytest.approx((3.0, 1.5))
    assert far.volumes(predicted, np.zeros_like(labels), (1.0, 2.0, 0.5)) == pytest.approx((3.0, 3.0))


def test_false_tumour_table_keeps_tumour_free_cases_apart():
    found = [
        far.FarTumour("free", Modality.T2, 4.0, 4.0, tumour=False),
        far.FarTumour("one", Modality.T2, 50.0, 1.0, tumour=True),
        far.FarTumour("two", Modality.T2, 60.0, 2.0, tumour=True),
    ]
    assert "| T2 | 4.0 | 1.5 | 1.5 | 2.0 | 2 |" in far.table(found)
    assert far.single_table(found).splitlines()[-1] == "| two | 60.0 (2.0) |"


def test_a_phantom_is_measured_and_drawn_like_a_patient(tmp_path):
    torch.set_num_threads(1)
    settings = Settings.at_spacing(4.0)
    case = next(cases.phantom_cases(lambda seed: generate(seed, settings), 1, first_seed=7))
    assert set(case.images) == set(Modality)
    assert abs(np.median(case.images[Modality.T2][case.normal])) < 1e-6
    found = normal.normal_statistics(case) | lesions.lesion_statistics(case)
    assert found["level/ED/FLAIR"] > 1
    assert all(np.isfinite(value) for value in found.values())
    pictures.draw_blind([case], tmp_path / "blind.png")
    assert (tmp_path / "blind.png").read_bytes().startswith(b"\x89PNG")
