"""Phantoms beyond the standard population: each field has its effect, and none where it is 0."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from glimpseg.data.preprocess import Preprocess, prepare
from glimpseg.modality import Modality
from glimpseg.phantom import SHIFTED, STANDARD, WIDE, Settings, Variety, draw_plan, generate, render
from glimpseg.phantom.artefacts import axis_matrices, ghost_matrix, ringing_matrix, slice_sampling_matrix
from glimpseg.phantom.dataset import as_study
from glimpseg.phantom.draw_standard import draw_standard_plan
from glimpseg.phantom.draw_variety import DEVIATE_LIMIT, Draws, apply_variety
from glimpseg.phantom.lattice import gaussian_matrix
from glimpseg.region import Label

T1, T1C, T2, FLAIR = range(4)


def settings(spacing_mm=3.0, **variety):
    return Settings.at_spacing(spacing_mm, variety=Variety(**variety))


NOTHING = settings(outer=1.0)
"""A variety without any effect that a test looks for."""


def high_grade(**variety):
    """The first seed whose tumour is of high grade, and its plan."""
    return next(
        plan
        for plan in (draw_plan(seed, settings(**variety)) for seed in range(20))
        if plan.tumour.kind == "high-grade"
    )


def share_enhancing(plan):
    labels = render(plan).labels
    return float((labels == Label.ET).sum() / torch.isin(labels, torch.tensor([1, 3])).sum())


def test_the_standard_population_is_left_as_it_is():
    plan = draw_standard_plan(3, Settings.at_spacing(3.0))
    assert apply_variety(plan) is plan


@pytest.mark.parametrize("field", [field.name for field in fields(Variety)])
def test_a_variety_says_which_field_is_no_share(field):
    with pytest.raises(ValueError, match=field):
        Variety(**{field: 1.5})


@pytest.mark.parametrize("variety", [WIDE, SHIFTED], ids=["wide", "shifted"])
def test_a_wide_case_is_reproduced_by_its_seed(variety):
    wanted = Settings.at_spacing(4.0, variety=variety)
    one, other = generate(5, wanted), generate(5, wanted)
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("variety", [WIDE, SHIFTED], ids=["wide", "shifted"])
def test_wide_cases_can_be_prepared_like_any_study(variety):
    for seed in range(6):
        case = generate(seed, Settings.at_spacing(4.0, variety=variety, healthy=0.1, post_operative=0.1))
        prepared = prepare(as_study(case), Preprocess(spacing_mm=4.0))
        assert np.isfinite(prepared.image).all()
        assert not case.labels[(case.images == 0).all(0)].any()
        assert torch.equal(case.images, case.images.to(torch.int16).float())


def test_a_wide_description_can_be_written_as_json():
    text = json.dumps(generate(1, Settings.at_spacing(4.0, variety=WIDE)).description, allow_nan=False)
    assert json.loads(text)["settings"]["variety"]["tissue"] == WIDE.tissue


def test_scattered_tumours_have_more_foci():
    assert all(len(draw_plan(seed, settings(scattered=1.0)).tumour.foci) >= 2 for seed in range(20))


def test_a_crossing_tumour_lies_in_both_hemispheres():
    crossing = 0
    for seed in range(8):
        labels = generate(seed, settings(crossing=1.0)).labels.numpy()
        x = np.argwhere(np.isin(labels, (1, 2, 3)))[:, 0] - (labels.shape[0] - 1) / 2
        crossing += min((x < -2).sum(), (x > 2).sum()) > 0.05 * len(x)
    assert crossing >= 5


def test_lopsided_oedema_lies_to_the_side_that_was_drawn():
    def shift(lopsided):
        """Distance from the core's centre to that of the oedema, in mm, along the direction of the asymmetry."""
        (focus,) = (plan := high_grade(lopsided=lopsided)).tumour.foci
        (leaning,) = high_grade(lopsided=1.0).tumour.foci
        labels, towards = render(plan).labels, np.array(leaning.lean)
        core, oedema = (
            np.argwhere(np.isin(labels.numpy(), wanted)).mean(0) for wanted in ((Label.NCR, Label.ET), (Label.ED,))
        )
        assert any(focus.lean) == (lopsided > 0)
        return float(3.0 * (oedema - core) @ towards / np.linalg.norm(towards))

    assert shift(1.0) > shift(0.0) + 3


def test_a_tiny_core_is_tiny():
    for seed in range(6):
        plan = draw_plan(seed, replace(settings(tiny=1.0), second_focus=0.0))
        assert plan.tumour.foci[0].core_ml <= 2
        labels = render(plan).labels
        assert 0 < torch.isin(labels, torch.tensor([1, 2, 3])).sum() * 0.027 < 30


def test_a_cyst_is_more_like_fluid_than_dead_tissue_is():
    solid, cyst = high_grade(), high_grade(cystic=1.0)
    assert solid.seed == cyst.seed
    assert cyst.scanner.tissues["necrosis"].t1_ms > 1.2 * solid.scanner.tissues["necrosis"].t1_ms
    assert cyst.scanner.tissues["necrosis"].t1_ms <= cyst.scanner.tissues["cavity"].t1_ms * (1 + 1e-9)


def test_a_compact_core_enhances_more_and_a_dull_one_hardly():
    usual = share_enhancing(high_grade())
    assert share_enhancing(high_grade(compact=1.0)) > max(usual, 0.97)
    assert share_enhancing(high_grade(dull=1.0)) < 0.05


def test_an_infarct_is_bright_on_flair_and_carries_no_label():
    brighter = []
    for seed in range(4):
        plain, ill = generate(seed, NOTHING), generate(seed, settings(infarct=1.0, outer=1.0))
        assert torch.equal(plain.labels, ill.labels)
        changed = (ill.images[FLAIR] / plain.images[FLAIR].clamp(min=1))[plain.labels == 0]
        brighter.append(int((changed > 1.15).sum()))
    assert np.median(brighter) > 20


def test_age_makes_white_matter_bright_where_no_tumour_is():
    plain, aged = generate(2, NOTHING), generate(2, settings(aged=1.0, outer=1.0))
    assert torch.equal(plain.labels, aged.labels)
    assert (aged.images[FLAIR] > 1.1 * plain.images[FLAIR])[plain.labels == 0].sum() > 100


def test_a_slab_has_its_tumour_and_nothing_above():
    plans = [draw_plan(seed, settings(coverage=1.0)) for seed in range(12)]
    slabs = [plan for plan in plans if plan.coverage is not None]
    assert slabs
    for case in map(render, slabs):
        planes = (case.images > 0).any(0).any(0).any(0).sum()
        assert 13 <= planes <= 31  # 40 to 90 mm
        assert case.labels.any()


def test_errors_of_skull_stripping_move_the_brains_border():
    plain, stripped = generate(1, settings()), generate(1, settings(strip=1.0))
    assert ((plain.images[0] > 0) != (stripped.images[0] > 0)).sum() > 50


@pytest.mark.parametrize("name", ["tissue", "contrast", "histogram", "texture"])
def test_outer_widths_begin_where_the_others_end(name):
    inner = [Draws(draw_plan(seed, settings(tissue=0.1)), name).deviate() for seed in range(200)]
    outer = [Draws(draw_plan(seed, settings(tissue=0.1, outer=1.0)), name).deviate() for seed in range(200)]
    assert max(map(abs, inner)) <= DEVIATE_LIMIT < min(map(abs, outer))


def test_outer_strengths_begin_where_the_others_end():
    inner = [Draws(draw_plan(seed, settings(tissue=0.1)), "any").strength(1.0, 3.0) for seed in range(100)]
    outer = [Draws(draw_plan(seed, settings(outer=1.0)), "any").strength(1.0, 3.0) for seed in range(100)]
    assert min(inner) >= 1
    assert max(inner) <= 3 <= min(outer)


@pytest.mark.parametrize(
    "matrix",
    [slice_sampling_matrix(40, 2.7), ghost_matrix(40, 0.2, 7.3), ghost_matrix(40, 0.2, -7.3), ringing_matrix(40, 1.6)],
    ids=["slices", "ghost", "ghost backwards", "ringing"],
)
def test_a_constant_stays_constant_under_every_artefact(matrix):
    assert matrix.sum(1) == pytest.approx(1)


def test_interpolated_slices_keep_a_line():
    line = np.arange(40.0)
    assert (slice_sampling_matrix(40, 2.7) @ line)[3:-3] == pytest.approx(line[3:-3])


def test_a_ghost_is_a_copy_at_its_distance():
    impulse = np.zeros(40)
    impulse[10] = 1
    seen = ghost_matrix(40, 0.25, 6.0) @ impulse
    assert seen[10] == pytest.approx(0.8)
    assert seen[4] == pytest.approx(0.2)


def test_ringing_overshoots_at_an_edge():
    edge = (np.arange(60) >= 30).astype(float)
    assert (ringing_matrix(60, 2.0) @ edge).max() > 1.05


def test_a_shift_of_more_than_the_blur_leaves_no_row_empty():
    assert np.isfinite(gaussian_matrix(20, 0.2, 1.4)).all()


def test_matrices_of_a_scan_keep_constants():
    for seed in range(10):
        plan = draw_plan(seed, Settings.at_spacing(3.0, variety=WIDE))
        for acquisition in plan.scanner.acquisitions:
            for matrix in axis_matrices(acquisition, (40, 44, 36), 3.0):
                assert matrix.sum(1) == pytest.approx(1)


def test_other_kinds_of_sequences_are_drawn():
    kinds = {
        type(draw_plan(seed, settings(sequences=1.0)).scanner.acquisitions[channel].sequence).__name__
        for seed in range(30)
        for channel in (T1, T2, FLAIR)
    }
    assert kinds == {
        "InversionSpinEcho", "VolumeSpinEcho", "SpinEcho", "GradientEcho", "VolumeInversionSpinEcho",
    }  # fmt: skip


def test_the_named_varieties_differ_from_the_standard():
    assert Variety() == STANDARD
    assert STANDARD.is_standard
    assert not WIDE.is_standard
    assert SHIFTED.outer > 0
    assert WIDE.outer == 0
    assert len(Modality) == 4


def test_every_shifted_case_has_something_that_no_wide_one_has():
    for seed in range(30):
        wide, shifted = (
            draw_plan(seed, Settings.at_spacing(3.0, variety=v)) for v in (WIDE, replace(WIDE, outer=0.15))
        )
        assert wide != shifted


def test_flatness_takes_contrast_from_lesions_darker_than_white_matter():
    plan = high_grade()

    def darkness(channel, flatness):
        """Darkness of necrosis, relative to bright white matter."""
        acquisitions = tuple(replace(one, flatness=flatness) for one in plan.scanner.acquisitions)
        case = render(replace(plan, scanner=replace(plan.scanner, acquisitions=acquisitions)))
        image, brain = case.images[channel], (case.images[channel] > 0) & (case.labels == 0)
        return float(1 - image[case.labels == Label.NCR].mean() / image[brain].quantile(0.8))

    for channel in (T1, T1C):
        assert darkness(channel, 0.5) < darkness(channel, 1.0) < darkness(channel, 1.3)


def test_flatness_takes_contrast_between_grey_and_white_matter():
    def contrast(case):
        image, white = case.images[T2].numpy(), case.images[T1].numpy()
        brain = (case.images[0] > 0).numpy() & (case.labels == 0).numpy()
        low, high = np.quantile(white[brain], [0.5, 0.8])
        return image[brain & (white < low)].mean() / image[brain & (white > high)].mean()

    plain, flat = generate(4, settings()), generate(4, settings(flatness=0.3))
    assert contrast(flat) < contrast(plain)
