"""Review of a segmentation: each rule on small arrays with values worked out by hand; tables and pages of a batch."""

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from conftest import write_head
from glimpseg.batch.folder import pseudonyms_of
from glimpseg.batch.job import BatchOptions
from glimpseg.batch.progress import Shard
from glimpseg.batch.review import PAGE, REVIEW, reviewed_studies, write_review
from glimpseg.batch.tree import segment_tree
from glimpseg.data.brains import CHECK
from glimpseg.data.identify.appearance import AppearanceModel
from glimpseg.modality import Modality
from glimpseg.model.expectations import Expected, OnPatients
from glimpseg.model.training_volumes import largest_volumes
from glimpseg.region import Label, Region
from glimpseg.results.statistics import Interval
from glimpseg.segmentation import predict
from glimpseg.segmentation.inputs import study_entries
from glimpseg.segmentation.options import InferenceOptions, OutputOptions
from glimpseg.segmentation.quality import alignment, image_rules, result_rules, trust_rules
from glimpseg.segmentation.quality.evidence import Evidence
from glimpseg.segmentation.quality.finding import HIGHEST_SCORE, Finding, finding, review_of
from glimpseg.segmentation.result import RECORD, THUMBNAIL
from glimpseg.segmentation.uncertainty import RegionUncertainty, Uncertainty
from glimpseg.training.dataset import largest_in_cache, prepare_studies

T1, T1C, T2, FLAIR = Modality


def box(shape, *slices):
    """A mask that is true in one box."""
    mask = np.zeros(shape, bool)
    mask[slices] = True
    return mask


def evidence(tumour, brain, images=(), *, spacing=10.0, inside=None, **more):
    """Evidence of one FLAIR of zeros, or of other images. With voxels of 10 mm, each has 1 ml."""
    images = dict(images) or {FLAIR: np.zeros(brain.shape, np.float32)}
    return Evidence(
        labels=np.where(tumour, Label.ED, 0).astype(np.uint8),
        images={m: image.astype(np.float32) for m, image in images.items()},
        inside=inside or dict.fromkeys(images, brain),
        spacing_mm=spacing,
        **more,
    )


def scores(found):
    """Scores of the findings of a rule."""
    assert not isinstance(found, str), found
    return [one.score for one in found]


WHOLE = (slice(None),) * 3
SHAPE = (12, 12, 12)
BRAIN = box(SHAPE, slice(1, 11), slice(1, 11), slice(1, 11))
NOTHING = np.zeros(SHAPE, bool)


# Findings and reviews


def test_a_review_without_findings_gives_no_reason_to_look():
    review = review_of({"one": [finding("one", 0.4, "a")], "two": "no FLAIR"})
    assert not review.look
    assert review.sentences == []
    assert review.score == 0.4
    assert review.as_tree() == {
        "look": False, "score": 0.4, "findings": [], "scores": {"one": 0.4}, "not_judged": {"two": "no FLAIR"},
    }  # fmt: skip


def test_findings_at_their_threshold_are_sorted_and_said():
    review = review_of(
        {"a": [finding("a", 1.0, "first reason"), finding("a", 0.9, "less")], "b": [finding("b", 2, "x")]}
    )
    assert [one.code for one in review.findings] == ["b", "a"]
    assert review.sentences == ["Look at this one: x.", "Look at this one: first reason."]
    assert review.scores == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize(("value", "score"), [(-1, 0), (0.5, 0.5), (1e9, HIGHEST_SCORE)])
def test_scores_have_limits(value, score):
    assert finding("a", value, "") == Finding(code="a", score=score, sentence="")


# Rules on the result


def test_a_quarter_of_the_tumour_outside_the_brain():
    tumour = box(SHAPE, slice(9, 12), slice(5, 9), 5)  # planes 9, 10 in the brain, 11 outside
    tumour[9, 5:9, 6] = True  # 16 voxels, 4 outside
    found = result_rules.outside_brain(evidence(tumour, BRAIN))
    assert scores(found) == [pytest.approx(0.25 / result_rules.OUTSIDE_SHARE)]
    assert found[0].sentence == "4.0 ml of the tumour (25 %) lie outside the brain"


@pytest.mark.parametrize("rule", [result_rules.outside_brain, result_rules.brain_border, result_rules.coverage_edge,
                                  result_rules.far_parts, result_rules.unsupported])  # fmt: skip
def test_rules_on_shares_do_not_judge_an_empty_result(rule):
    assert rule(evidence(NOTHING, BRAIN)) == result_rules.TOO_SMALL


def test_half_of_the_tumour_at_the_edge_of_the_brain():
    brain = box((24, 24, 24), slice(2, 22), slice(2, 22), slice(2, 22))
    # Voxels of 2 mm: the first two layers are 2 and 4 mm deep, the next two 6 and 8 mm. The tumour has all four.
    tumour = box(brain.shape, slice(2, 6), slice(8, 16), slice(8, 16))
    found = result_rules.brain_border(evidence(tumour, brain, spacing=2.0))
    assert scores(found) == [pytest.approx(0.5 / result_rules.BORDER_SHARE)]


def test_a_ball_ends_flat_nowhere_and_a_block_everywhere():
    place = np.indices((40, 40, 40)) - 19.5
    ball = (place**2).sum(0) < 18**2
    assert result_rules.flat_sides(ball, 2.0) == {}  # its outermost planes have less than 600 mm2
    block = box((40, 40, 40), slice(5, 35), slice(5, 35), slice(5, 35))  # sides of 30 x 30 voxels, 3,600 mm2
    assert result_rules.flat_sides(block, 2.0) == {(a, e): (5, 34)[e] for a in range(3) for e in range(2)}


def test_the_images_end_in_the_tumour():
    block = box((40, 40, 40), slice(0, 30), slice(5, 35), slice(5, 35))
    tumour = box(block.shape, slice(0, 5), slice(10, 20), slice(10, 20))  # 10 x 10 voxels of 4 mm2 on the left side
    found = result_rules.coverage_edge(evidence(tumour, block, spacing=2.0))
    worst = max(found, key=lambda one: one.score)
    assert worst.score == pytest.approx(400 / result_rules.CUT_MM2)
    assert worst.sentence == "the images end in the tumour: it reaches their left edge with 4.0 cm2"
    assert sorted(scores(found))[-2] == 0  # no other side


def test_a_tumour_of_a_fifth_of_the_brain():
    tumour = box(SHAPE, slice(1, 3), slice(1, 11), slice(1, 11))  # 200 of 1,000 voxels
    found = result_rules.brain_share(evidence(tumour, BRAIN))
    assert scores(found) == [pytest.approx(0.2 / result_rules.BRAIN_SHARE)]
    assert found[0].sentence == "the tumour takes 20 % of the brain (200 of 1000 ml)"


LONG = (30, 12, 12)
LONG_BRAIN = box(LONG, slice(1, 29), slice(1, 11), slice(1, 11))
MAIN, FAR = box(LONG, slice(3, 7), slice(3, 9), slice(3, 9)), box(LONG, slice(20, 23), slice(4, 7), slice(4, 7))


def bright_at(*masks):
    """A FLAIR of 0 to 1 (uniform), and 5 in the masks and one voxel around them."""
    image = np.random.default_rng(0).random(LONG)
    for mask in masks:
        grown = np.argwhere(mask)
        low, high = grown.min(0) - 1, grown.max(0) + 2
        image[tuple(map(slice, low, high))] = 5
    return image


def test_a_far_part_that_is_not_bright():
    found = result_rules.far_parts(evidence(MAIN | FAR, LONG_BRAIN, {FLAIR: bright_at(MAIN)}))
    assert scores(found) == [pytest.approx(27 / result_rules.FAR_ML)]  # 3 x 3 x 3 voxels of 1 ml
    assert found[0].sentence == (
        "27 ml of the tumour lie more than 20 mm from the largest part and are not bright in FLAIR"
    )


def test_a_far_part_that_is_bright_in_one_sequence_has_support():
    images = {FLAIR: bright_at(MAIN), T2: bright_at(MAIN, FAR)}
    assert scores(result_rules.far_parts(evidence(MAIN | FAR, LONG_BRAIN, images))) == [0]


def test_a_near_part_is_not_far():
    near = box(LONG, slice(8, 11), slice(4, 7), slice(4, 7))  # its first plane is 2 voxels, 20 mm, from the main part
    assert scores(result_rules.far_parts(evidence(MAIN | near, LONG_BRAIN, {FLAIR: bright_at(MAIN)}))) == [0]


def test_without_t2_and_flair_more_is_needed():
    found = result_rules.far_parts(evidence(MAIN | FAR, LONG_BRAIN, {T1: bright_at(MAIN)}))
    assert scores(found) == [pytest.approx(27 / result_rules.FAR_UNSEEN_ML)]
    assert found[0].sentence.endswith("and there is no T2 or FLAIR to support them")


def test_a_tumour_without_support():
    both = evidence(MAIN | FAR, LONG_BRAIN, {FLAIR: bright_at(FAR)})
    share = 144 / 171  # the main part has 4 x 6 x 6 voxels and is not bright, up to chance
    assert scores(result_rules.unsupported(both)) == [pytest.approx(share / result_rules.UNSUPPORTED_SHARE, abs=0.1)]
    assert result_rules.unsupported(evidence(MAIN, LONG_BRAIN, {T1C: bright_at(MAIN)})).startswith("there is neither")


def test_bright_tissue_that_is_not_called():
    # Deep voxels are those more than 4.5 mm from the outside: all of the brain, in voxels of 10 mm.
    image = bright_at(FAR)  # 5 x 5 x 5 voxels of 5, against a median of 0.5 and a sigma of about 0.4
    empty = result_rules.missed(evidence(np.zeros(LONG, bool), LONG_BRAIN, {FLAIR: image}))
    # The opening of a cube by the cross of 7 voxels removes its edges: 5^3 - 8 corners - 12 edges of 3 voxels.
    assert scores(empty) == [HIGHEST_SCORE]
    assert empty[0].sentence == "no tumour was found, and 81 ml that are bright in FLAIR are not called tumour"
    assert scores(result_rules.missed(evidence(FAR, LONG_BRAIN, {FLAIR: image}))) == [0]
    assert result_rules.missed(evidence(FAR, LONG_BRAIN, {T2: image})) == "there is no FLAIR"


def test_volumes_beyond_those_of_training():
    volumes, largest = {Region.WT: 300.0, Region.ET: 10.0}, {Region.WT: 200.0, Region.ET: 40.0, Region.RC: 0.0}
    assert scores(result_rules.volume_range(volumes, largest)) == [
        pytest.approx(1.5 / 1.25),
        pytest.approx(0.25 / 1.25),
    ]
    assert result_rules.volume_range(volumes, None) == "the volumes in the model's training are not known"


# Largest volumes of a training


def test_the_training_of_own_models_names_its_largest_volumes():
    assert largest_volumes({"largest_ml": {"WT": 12.5, "ET": 3}}) == {Region.WT: 12.5, Region.ET: 3.0}
    assert largest_volumes({"data": {"studies": 3}}) is None
    assert largest_volumes({"data": {"stream": "phantom-99"}}) is None


def test_the_shipped_stream_has_volumes():
    found = largest_volumes({"data": {"stream": "phantom-1"}})
    assert found is not None
    assert found[Region.WT] > found[Region.TC] > found[Region.ET] > 0


def test_largest_volumes_are_read_from_the_cache(tmp_path, archive):
    from conftest import head, small_recipe
    from glimpseg.data.layouts import find_studies

    studies = find_studies(archive)
    found = largest_in_cache(prepare_studies(studies, small_recipe(), tmp_path))
    counts = [np.isin(head(seed)[1], [1, 3]).sum() for seed in range(4)]  # core of each study, voxels of 27 mm3
    assert found["TC"] == pytest.approx(max(counts) * 27e-3, abs=0.06)
    assert "RC" not in found


# Rules on trust


def uncertain(estimate=0.9, agreement=0.95, low=20.0, high=22.0):
    region = RegionUncertainty(estimated_dice=estimate, lowest_ml=low, highest_ml=high, agreement=agreement)
    return Uncertainty(level="quick", calibrated=True, regions={Region.WT: region}, members=())


def expected(mean):
    interval = Interval(mean, mean - 0.05, mean + 0.05, 60)
    return {
        Region.WT: Expected(
            dice=interval, tenth=0.3, temperature=2.0, pooled=False, ece_before=0.1, ece_after=0.05, estimate_error=0.1
        )
    }


def test_a_low_estimate_is_judged_against_the_mean_with_these_sequences():
    least = 0.85 - trust_rules.BELOW_EXPECTED
    found = trust_rules.estimated_dice(uncertain(estimate=0.7), expected(0.85))
    assert scores(found) == [pytest.approx(0.3 / (1 - least))]
    assert found[0].sentence == "the estimated Dice of the whole tumour is 70 % (mean with these sequences: 85 %)"
    for weak in ({}, expected(0.3)):
        assert scores(trust_rules.estimated_dice(uncertain(estimate=0.7), weak)) == [
            pytest.approx(0.3 / (1 - trust_rules.LEAST_ESTIMATE))
        ]
    assert trust_rules.estimated_dice(uncertain(estimate=np.nan), {}) == result_rules.TOO_SMALL
    assert "not estimated" in trust_rules.estimated_dice(None, {})
    withheld = uncertain(estimate=np.nan)
    region = replace(withheld.regions[Region.WT], estimate_error=0.3)
    assert "too far off" in trust_rules.estimated_dice(replace(withheld, regions={Region.WT: region}), {})


def test_passes_that_disagree():
    found = trust_rules.passes_disagree(uncertain(agreement=0.5, low=3, high=19))
    assert scores(found) == [pytest.approx(0.5 / (1 - trust_rules.LEAST_AGREEMENT))]
    assert found[0].sentence == "the passes disagree about the whole tumour: 3.0 to 19.0 ml, Dice 50 %"
    assert trust_rules.passes_disagree(uncertain(low=0, high=0.5)) == result_rules.TOO_SMALL
    assert trust_rules.passes_disagree(None) == trust_rules.NO_PASSES


def test_sequences_from_which_little_is_found():
    found = trust_rules.weak_sequences(T1, expected(0.3))
    assert scores(found) == [pytest.approx(0.7 / (1 - trust_rules.LEAST_EXPECTED))]
    assert "with T1 alone" in found[0].sentence
    patients = OnPatients(dice=0.2, patients=6)
    known = {Region.WT: replace(expected(0.9)[Region.WT], on_patients=patients)}
    assert scores(trust_rules.weak_sequences(T1, known)) == [pytest.approx(0.8 / (1 - trust_rules.LEAST_EXPECTED))]
    assert "not measured" in trust_rules.weak_sequences(T1, {})


# Rules on the images


def test_brains_that_are_too_small_or_too_large():
    least, most = image_rules.BRAIN_ML
    small = scores(image_rules.brain_volume(evidence(NOTHING, BRAIN)))  # 1,000 ml, and a field of view of a head
    assert small == [pytest.approx(max(least / 1000, 1000 / most))]
    assert "no whole head" in image_rules.brain_volume(evidence(NOTHING, BRAIN, extent_mm=(240.0, 240.0, 60.0)))


def test_half_a_brain_is_too_short_along_one_axis():
    half = box((24, 24, 24), slice(2, 9), slice(2, 18), slice(2, 15))  # 70, 160, 130 mm
    found = image_rules.brain_shape(evidence(np.zeros(half.shape, bool), half))
    assert scores(found) == [pytest.approx(105 / 70), pytest.approx(135 / 160), pytest.approx(130 / 165)]
    assert found[0].sentence.startswith("the brain mask is 70 mm long left-right")


def test_a_mask_that_was_found_by_a_threshold_is_doubtful():
    warning = f"P1: FLAIR: the air is not one value (noise, ringing or ghosts). {CHECK}"
    (found,) = image_rules.doubtful_mask(evidence(NOTHING, BRAIN, warnings=("P1: other", warning)))
    assert found.look
    assert found.sentence == "the brain mask of FLAIR is doubtful: its air is not one value"
    assert not image_rules.doubtful_mask(evidence(NOTHING, BRAIN, warnings=("P1: other",)))[0].look


def test_a_sequence_that_shows_half_of_the_brain():
    half = box(SHAPE, slice(1, 6), slice(1, 11), slice(1, 11))
    tumour = box(SHAPE, slice(5, 9), slice(4, 8), slice(4, 8))  # one plane of four in the half
    images = {T2: np.zeros(SHAPE), FLAIR: np.zeros(SHAPE)}
    found = image_rules.sequence_coverage(evidence(tumour, BRAIN, images, inside={T2: BRAIN, FLAIR: half}))
    unit = 1 - image_rules.LEAST_COVERED
    assert scores(found) == [0, 0, pytest.approx(0.5 / unit), pytest.approx(0.75 / unit)]
    assert found[3].sentence == "FLAIR shows 25 % of the tumour only"


def test_noise_is_measured_against_the_spread_of_the_tissue():
    rng = np.random.default_rng(0)
    deep = np.ones((30, 30, 30), bool)
    smooth = np.broadcast_to(np.linspace(0, 8, 30)[:, None, None], deep.shape)  # IQR 4
    noisy = smooth + rng.normal(0, 0.4, deep.shape)
    # A voxel against the mean of six others: sigma times the root of 1 + 1/6.
    spread = np.subtract(*np.percentile(noisy, (75, 25)))
    assert image_rules.noise_level(noisy, deep) == pytest.approx(0.4 * np.sqrt(7 / 6) / spread, rel=0.05)
    assert image_rules.noise_level(smooth, deep) < 1e-3


def test_equal_neighbours_are_counted_along_the_first_axis():
    image = np.zeros((5, 1, 4))
    image[:, 0] = np.array([0.0, 0, 1, 2, 2])[:, None] + np.array([0.0, 3, 6, 9])  # steps 0, 1, 1, 0
    assert image_rules.equal_neighbours(image, np.ones(image.shape, bool)) == 0.5


def test_a_linear_trend_is_a_share_of_the_variance_of_the_ranks():
    where = np.ones((20, 4, 5), bool)
    ramp = np.broadcast_to(np.arange(20.0)[:, None, None], where.shape) + np.linspace(0, 0.5, 20).reshape(1, 4, 5)
    assert image_rules.linear_trend(ramp**3, where) > 0.99  # ranks do not feel the third power
    noise = np.random.default_rng(0).normal(size=where.shape)
    assert image_rules.linear_trend(noise, where) < 0.05
    assert image_rules.linear_trend(noise, where & (np.arange(20) < 2)[:, None, None]) == 0  # 40 voxels are too few


def test_the_rank_of_the_rim_is_among_all_tissue():
    image, inside = np.arange(101.0).reshape(101, 1, 1), np.ones((101, 1, 1), bool)
    assert image_rules.rim_rank(image, inside, image >= 98) == pytest.approx(0.99)
    assert image_rules.rim_rank(image, inside, image < 3) == pytest.approx(0.01)


def test_scalp_around_the_brain_is_bright():
    head = box((24, 24, 24), slice(2, 22), slice(2, 22), slice(2, 22))
    brain = box(head.shape, slice(4, 20), slice(4, 20), slice(4, 20))
    image = np.where(head & ~brain, 9.0, np.random.default_rng(0).random(head.shape))
    nothing = np.zeros(head.shape, bool)
    (found,) = image_rules.bright_rim(evidence(nothing, head, {T1: image}, spacing=2.0))
    # The rim has 20^3 - 16^3 = 3,904 of 8,000 voxels. Its median rank is 1 - 1,952 / 8,000 = 0.756.
    assert found.score == pytest.approx(0.756 / image_rules.BRIGHTEST_RIM, abs=1e-3)
    assert found.sentence == "the edge of the brain is bright in T1: skull or scalp"
    (dark,) = image_rules.bright_rim(evidence(nothing, head, {T1: -image}, spacing=2.0))
    assert not dark.look
    assert isinstance(image_rules.bright_rim(evidence(nothing, head, {T2: image})), str)


def test_an_image_that_looks_like_another_sequence():
    warning = "P1: The image named T1c looks like FLAIR. Check it; the study is segmented anyway."
    images = {T1: np.zeros(SHAPE), T1C: np.zeros(SHAPE)}
    (found,) = image_rules.sequence_name(evidence(NOTHING, BRAIN, images, warnings=(warning,)))
    assert found.look
    assert found.sentence == "the voxels of T1c look like another sequence than the name says"
    assert not image_rules.sequence_name(evidence(NOTHING, BRAIN, images))[0].look


def test_the_distance_of_a_histogram_is_in_standard_deviations():
    known = AppearanceModel(
        mean=np.zeros((3, 4)), covariance=np.stack([np.diag([1.0, 4, 9, 16])] * 3), pair_mean=np.zeros((3, 3)),
        pair_deviation=np.ones((3, 3)),
    )  # fmt: skip
    assert image_rules.histogram_distance(np.array([2.0, 4, 6, 8]), FLAIR, known) == 2  # each 2 deviations away
    assert image_rules.histogram_distance(np.array([np.nan, np.nan, 6, 8]), T1, known) == 2
    assert image_rules.histogram_distance(np.full(4, np.nan), T2, known) == 0


# Alignment


def edges(seed=0, shape=(40, 44, 36)):
    """A map of edges without likeness to any other, positive and negative."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def test_equal_maps_match_at_no_displacement():
    found = alignment.match(edges(), edges(), 4.0)
    assert found.direct == found.best == pytest.approx(1, abs=1e-4)
    assert found.displaced_mm == 0
    assert abs(found.mirrored) < 0.05


def test_a_moved_map_is_found_with_its_distance():
    moved = np.roll(edges(), (3, 0, -4), (0, 1, 2))  # 5 voxels of 4 mm
    moved[:3], moved[..., -4:] = 0, 0
    found = alignment.match(edges(), moved, 4.0)
    assert found.displaced_mm == pytest.approx(20)
    assert found.best == pytest.approx(1, abs=1e-3)
    assert abs(found.direct) < 0.05


def test_a_mirrored_map_is_found():
    found = alignment.match(edges(), np.flip(edges(), 0), 4.0)
    assert found.mirrored == pytest.approx(1, abs=1e-4)
    assert found.best < 0.1


def test_correlations_of_displaced_maps_are_those_of_the_common_voxels():
    one, two = edges(1, (8, 9, 7)), edges(2, (8, 9, 7))
    one[:2], two[..., 5:] = 0, 0
    table = alignment.displaced_correlations(one, two, 2)
    # Moved by one voxel along the first axis and by two along the last: one[x + 1, y, z + 2] against two[x, y, z].
    first, second = one[1:, :, 2:], two[:-1, :, :-2]
    common = (first != 0) & (second != 0)
    a, b = first[common].astype(float), second[common].astype(float)
    assert table[3, 2, 4] == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), abs=1e-4)


def smooth_image(seed):
    from scipy import ndimage

    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(48, 56, 44)), 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda image: image, None),
        (lambda image: np.roll(image, 4, 1), "displaced by about 12 mm"),
        (lambda image: np.flip(image, 0), "fit better if one of them is mirrored"),
        (lambda image: smooth_image(9), "another patient, or not registered"),
    ],
)
def test_one_sequence_that_does_not_fit(change, words):
    brain = box((48, 56, 44), slice(2, 46), slice(2, 54), slice(2, 42))
    image = smooth_image(0)
    images = {T1: image, T2: -image, FLAIR: change(image)}
    found = alignment.alignment(evidence(np.zeros(brain.shape, bool), brain, images, spacing=3.0))
    looks = [one.sentence for one in found if one.look]
    assert all("FLAIR" in sentence for sentence in looks)
    assert any(words in sentence for sentence in looks) if words else not looks


def test_one_sequence_alone_cannot_be_compared():
    assert alignment.alignment(evidence(NOTHING, BRAIN)) == "there is one sequence"


# A segmentation, and a batch


@pytest.fixture(scope="module")
def model(model_folder):
    return predict.load(model_folder, "cpu")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Three studies; the last has half a FLAIR."""
    import nibabel

    folder = tmp_path_factory.mktemp("tree")
    for seed in range(3):
        write_head(folder, f"Müller {seed}", seed)
    path = folder / "Müller 2" / "Müller 2-t2f.nii.gz"
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[:20] = 0
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
    return folder


@pytest.fixture(scope="module")
def whole(tree, model, tmp_path_factory):
    """A finished batch."""
    output = tmp_path_factory.mktemp("whole") / "out"
    segment_tree(study_entries(tree), model, output, BatchOptions(inference=InferenceOptions(raw="no")))
    return output


def table(output):
    with (output / REVIEW).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Cards(HTMLParser):
    """Names, links and pictures of the cards of a page."""

    def __init__(self, page):
        super().__init__()
        self.links, self.pictures, self.cards = [], [], 0
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.cards += "card" in (given.get("class") or "").split()
        if tag == "a":
            self.links.append(given["href"])
        if tag == "img":
            self.pictures.append((given["src"], given["alt"]))


def test_the_review_of_a_study_is_in_its_record(whole):
    run = json.loads((whole / "Müller 2" / RECORD).read_text("utf-8"))
    review = run["review"]
    assert review["look"]
    said = [f"Look at this one: {one['sentence']}." for one in review["findings"]]
    assert [text for text in run["warnings"] if text.startswith("Look at this one")] == said
    assert any("FLAIR shows" in one["sentence"] for one in review["findings"])
    assert review["score"] == max(review["scores"].values())
    assert "not known" in review["not_judged"]["volume_range"]  # the model of the tests names no volumes


def test_python_has_the_review(tree, model):
    found = predict.segment(flair=tree / "Müller 2" / "Müller 2-t2f.nii.gz", model=model)
    assert found.review is not None
    assert found.review.not_judged["sequence_coverage"] == "there is one sequence"
    assert "review" in found.seconds


def test_the_most_doubtful_study_comes_first(whole):
    rows = table(whole)
    assert sorted(row["study"] for row in rows) == ["Müller 0", "Müller 1", "Müller 2"]
    order = [(row["look"] != "yes", -float(row["score"]), row["study"]) for row in rows]
    assert order == sorted(order)
    numbers = json.loads((whole / rows[0]["study"] / "statistics.json").read_text("utf-8"))
    assert float(rows[0]["WT_volume_ml"]) == numbers["WT"]["volume_ml"]


def record_of(folder, name, review):
    """A folder of a study as `write_review` reads it."""
    place = folder / name
    place.mkdir(parents=True)
    run = {"sequences": {"used": ["t1c", "flair"]}, **({} if review is None else {"review": review.as_tree()})}
    (place / RECORD).write_text(json.dumps(run), "utf-8")
    (place / "statistics.json").write_text(json.dumps({"WT": {"volume_ml": 4.0, "estimated_dice": None}}), "utf-8")


def test_studies_are_sorted_by_look_then_score_then_name(tmp_path):
    doubtful = review_of({"a": [finding("a", 1.5, "first")], "b": [finding("b", 1.2, "second")]})
    record_of(tmp_path, "d", doubtful)
    record_of(tmp_path, "c", doubtful)
    record_of(tmp_path, "b", review_of({"a": [finding("a", 0.9, "none")]}))
    record_of(tmp_path, "a", None)
    record_of(tmp_path, "e", review_of({"a": [finding("a", 3.0, "worst")]}))
    write_review(tmp_path)
    rows = table(tmp_path)
    assert [row["study"] for row in rows] == ["e", "c", "d", "b", "a"]
    assert [row["look"] for row in rows] == ["yes", "yes", "yes", "no", ""]
    assert rows[1]["reasons"] == "first; second"
    assert rows[1]["rules"] == "a b"
    assert rows[0]["WT_volume_ml"] == "4.0"
    assert rows[0]["WT_estimated_dice"] == ""
    page = (tmp_path / PAGE).read_text("utf-8")
    assert "<h1>3 of 5 studies have a reason to look at them</h1>" in page
    assert "written without a review" in page


def test_the_page_has_one_card_a_study_and_needs_nothing_else(whole):
    page = (whole / PAGE).read_text("utf-8")
    cards = Cards(page)
    assert cards.cards == len(cards.pictures) == 3
    assert sorted(cards.links) == [f"M%C3%BCller%20{n}/" for n in range(3)]
    assert all(source.startswith("data:image/jpeg;base64,") and alt for source, alt in cards.pictures)
    assert str(whole.parent) not in page
    assert not re.search(r"https?://|src=\"/|href=\"/", page)


def test_thumbnails_are_small(whole):
    sizes = [path.stat().st_size for path in whole.glob(f"*/{THUMBNAIL}")]
    assert len(sizes) == 3
    assert max(sizes) <= 15_000


def test_names_of_studies_are_escaped(tmp_path):
    record_of(tmp_path, "<b>&", review_of({"a": [finding("a", 2.0, "<i>x</i>")]}))
    write_review(tmp_path)
    page = (tmp_path / PAGE).read_text("utf-8")
    assert "<b>" not in page
    assert "<i>" not in page
    assert 'href="%3Cb%3E%26/"' in page


def test_resumed_batches_and_shards_show_every_study(tree, model, whole, tmp_path):
    output, options = tmp_path / "out", BatchOptions(inference=InferenceOptions(raw="no"))
    for number in range(2):
        segment_tree(study_entries(tree), model, output, options, shard=Shard(number=number, of=2))
    assert table(output) == table(whole)
    shutil.rmtree(output / "Müller 1")
    (output / REVIEW).unlink()
    segment_tree(study_entries(tree), model, output, options, resume=True)
    assert table(output) == table(whole)
    assert [study.name for study in reviewed_studies(output)] == [row["study"] for row in table(whole)]


def test_deidentified_reviews_name_nobody(tree, model, tmp_path):
    options = BatchOptions(inference=InferenceOptions(raw="no"), outputs=OutputOptions(deidentify=True))
    segment_tree(study_entries(tree), model, tmp_path / "out", options)
    assert pseudonyms_of(tmp_path / "out", {})
    for name in (REVIEW, PAGE):
        text = (tmp_path / "out" / name).read_text("utf-8")
        assert "ller" not in text
        assert "study-00001" in text
