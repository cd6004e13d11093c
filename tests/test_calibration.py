"""Reliability, calibration error and Brier score by hand and against MONAI; temperatures and expectations by hand."""

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import optimize, special

from glimpseg import metrics
from glimpseg.errors import InputError
from glimpseg.evaluation import calibrate, conclusion
from glimpseg.evaluation.counts import Counts, read_counts, write_counts
from glimpseg.evaluation.histogram import Histogram, Temperature, fit_temperatures
from glimpseg.modality import SUBSETS, Modality, parse
from glimpseg.model.loading import Model
from glimpseg.region import Region
from glimpseg.results.scores import Score, Scores
from glimpseg.results.statistics import Bootstrap
from glimpseg.study import Study


@pytest.fixture(scope="module")
def monai_metrics():
    """MONAI is imported when its numbers are wanted: that takes seconds, and it warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import monai.metrics
    return monai.metrics


def forecast(seed, voxels=5000):
    """Probabilities, and what came of them: more often than foretold."""
    rng = np.random.default_rng(seed)
    probability = rng.uniform(size=voxels).astype(np.float32)
    return probability, rng.uniform(size=voxels) < probability**0.7


def test_certain_and_right_is_calibrated():
    truth = np.array([True, False, True])
    assert (metrics.ece(truth.astype(float), truth), metrics.brier(truth.astype(float), truth)) == (0, 0)


def test_certain_and_wrong_is_the_worst():
    truth = np.array([True, False, True])
    assert (metrics.ece(1.0 - truth, truth), metrics.brier(1.0 - truth, truth)) == (1, 1)


def test_a_half_for_a_mask_that_is_true_by_half_is_calibrated_but_says_little():
    half, truth = np.full((4, 4), 0.5, np.float32), np.indices((4, 4))[0] < 2
    assert (metrics.ece(half, truth), metrics.brier(half, truth)) == (0, 0.25)


def test_calibration_of_four_voxels_is_as_by_hand():
    # Two bins. Below a half: mean 0.2, none true. Above: mean 0.8, a half true. 2/4 * 0.2 + 2/4 * 0.3.
    probability, truth = np.array([0.1, 0.3, 0.7, 0.9]), np.array([False, False, True, False])
    assert metrics.ece(probability, truth, bins=2) == pytest.approx(0.25)
    # (0.01 + 0.09 + 0.09 + 0.81) / 4.
    assert metrics.brier(probability, truth) == pytest.approx(0.25)


def test_errors_in_two_bins_do_not_make_up_for_each_other():
    assert metrics.ece(np.array([0.2, 0.8]), np.array([True, False]), bins=2) == pytest.approx(0.8)


@pytest.mark.parametrize("bins", [10, 15, 20])
@pytest.mark.parametrize("seed", range(5))
def test_ece_is_monais(monai_metrics, seed, bins):
    probability, truth = forecast(seed)
    theirs = monai_metrics.CalibrationErrorMetric(num_bins=bins)
    theirs(*(torch.from_numpy(values).float()[None, None] for values in (probability, truth)))
    assert metrics.ece(probability, truth, bins) == pytest.approx(theirs.aggregate().item(), rel=1e-4)


def test_the_curve_has_a_point_for_each_bin_that_holds_a_voxel():
    found = metrics.reliability(np.array([0.1, 0.2, 0.9]), np.array([True, False, True]), bins=4)
    np.testing.assert_allclose(found.curve, [[0.15, 0.9], [0.5, 1.0]])


def test_a_probability_of_one_belongs_to_the_last_bin():
    found = metrics.reliability(np.array([0.0, 1.0]), np.array([False, True]), bins=5)
    assert found.voxels.tolist() == [1, 0, 0, 0, 1]


def test_cases_added_up_are_the_voxels_of_all():
    one, other = forecast(1, 300), forecast(2, 700)
    together = metrics.reliability(*(np.concatenate(parts) for parts in zip(one, other, strict=True)))
    added = metrics.reliability(*one) + metrics.reliability(*other)
    assert flat(added) == pytest.approx(flat(together))


def test_a_reliability_survives_being_written_and_read():
    found = metrics.reliability(*forecast(3))
    assert flat(metrics.Reliability.from_lists(found.as_lists())) == flat(found)


def flat(reliability):
    return np.concatenate([np.ravel(values) for values in reliability.as_lists().values()]).tolist()


def test_there_is_no_calibration_without_voxels():
    nothing = np.zeros(0), np.zeros(0, bool)
    assert np.isnan([metrics.ece(*nothing), metrics.brier(*nothing)]).all()


def test_the_mean_probability_of_a_bin_counts_and_not_its_middle():
    # One bin of 0.1 and 0.4: mean 0.25, none true.
    assert metrics.ece(np.array([0.1, 0.4]), np.array([False, False]), bins=2) == pytest.approx(0.25)


def test_by_default_there_are_fifteen_bins_each_with_its_lower_end():
    # A bin is 1/15 wide: 0.0666 lies in the first, 0.0667 in the second, 2/15 = 0.1334 in the third.
    found = metrics.reliability(np.array([0.0, 0.0666, 0.0667, 0.1334, 0.999]), np.array([0, 0, 1, 1, 1], bool))
    assert found.voxels.tolist() == [2, 1, 1, *[0] * 11, 1]
    assert found.observed.tolist() == [0, 1, 1, *[0] * 11, 1]
    assert found.predicted == pytest.approx([0.0666, 0.0667, 0.1334, *[0] * 11, 0.999])
    assert metrics.reliability(np.array([0.5]), np.array([True]), bins=2).voxels.tolist() == [0, 1]
    few = metrics.reliability(np.array([0.1, 0.1]), np.array([True, False]), bins=4)
    assert (few.voxels.tolist(), few.observed.tolist()) == ([2, 0, 0, 0], [1, 0, 0, 0])


def test_the_squared_error_is_summed_in_double_precision():
    # 1 and four times 2^-26, of which float32 would lose each beside the 1.
    found = metrics.reliability(np.array([1, *[2.0**-13] * 4], np.float32), np.zeros(5, bool))
    assert found.squared_error == 1 + 2.0**-24


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(InputError) as caught:
        metrics.reliability(np.zeros((2, 3)), np.zeros((3, 2), bool))
    assert str(caught.value) == (
        "Two masks are compared voxel by voxel, but their shapes are (2, 3) and (3, 2). Bring them to one grid first."
    )


def test_a_reliability_is_kept_as_plain_numbers():
    found = metrics.reliability(np.array([0.25, 0.75]), np.array([False, True]), bins=2).as_lists()
    assert json.loads(json.dumps(found)) == {
        "voxels": [1, 1], "predicted": [0.25, 0.75], "observed": [0, 1], "squared_error": 0.125,
    }  # fmt: skip


# Histograms of logits


def odds(value, count, true, found=0):
    """A histogram of voxels of one probability, given as odds; so many belong to the region, so many were found."""
    order = np.arange(count)
    return Histogram.from_voxels(
        np.full(count, value / (1 + value), np.float64), truth=order < true, mask=order < found
    )


def logit_bin(logit):
    """The bin of a logit: 64 to a unit, from -32."""
    return math.floor((logit + 32) * 64)


def test_voxels_are_counted_in_bins_of_a_64th_of_a_logit():
    # Logits 0 (bin 2048), ln 3 = 1.0986 (2118.3) and ln 1/3 (1977.7).
    probability = np.array([0.5, 0.75, 0.25, 0.75])
    found = Histogram.from_voxels(
        probability, truth=np.array([True, True, False, False]), mask=np.array([False, True, False, True])
    )
    assert len(found.voxels) == 49 * 64
    assert dict(zip(*np.unique(np.repeat(np.arange(3136), found.voxels), return_counts=True), strict=True)) == {
        1977: 1, 2048: 1, 2118: 2,
    }  # fmt: skip
    assert [int(found.positives[i]) for i in (1977, 2048, 2118)] == [0, 1, 1]
    assert [int(found.predicted[i]) for i in (1977, 2048, 2118)] == [0, 0, 2]
    assert [float(found.logits[i]) for i in (1977, 2048, 2118)] == pytest.approx([-math.log(3), 0, 2 * math.log(3)])
    assert found.logits.dtype == np.float64
    assert found.studies == 1


def test_certain_voxels_lie_at_the_ends_of_the_range():
    found = Histogram.from_voxels(np.array([0.0, 1.0, 1.0]), truth=np.zeros(3, bool), mask=np.ones(3, bool))
    assert (found.voxels[0], found.voxels[-1]) == (1, 2)
    assert (found.logits[0], found.logits[-1]) == (-32, 34)  # 2 * 17
    assert len(found.voxels) == len(found.logits) == 49 * 64
    assert found.studies == 0  # the region is nowhere


def test_histograms_add_up_bin_by_bin():
    total = odds(3, 4, 1, 2) + odds(3, 2, 2, 1) + odds(1, 5, 0)
    three, even = logit_bin(math.log(3)), logit_bin(0)
    assert (total.voxels[three], total.positives[three], total.predicted[three]) == (6, 3, 3)
    assert (total.voxels[even], total.positives[even], total.predicted[even]) == (5, 0, 0)
    assert total.logits[three] == pytest.approx(6 * math.log(3))
    assert total.studies == 2
    nothing = Histogram.empty()
    assert (nothing.voxels.sum(), nothing.logits.sum(), nothing.positives.sum(), nothing.studies) == (0, 0, 0, 0)
    assert (nothing + odds(3, 4, 1)).temperature() == odds(3, 4, 1).temperature()


@pytest.mark.parametrize(
    ("value", "true", "temperature"),
    [
        (9, 6, math.log(9) / math.log(1.5)),  # 90 % foretold, 6 of 10 true: odds 9 have to become 6 / 4
        (9, 9, 1.0),
        (1.5, 9, math.log(1.5) / math.log(9)),  # not sure enough
        (1 / 9, 4, math.log(9) / math.log(1.5)),  # 10 % foretold, 4 of 10 true: odds 1/9 become 4 / 6
        (99, 5.75, math.log(99) / math.log(5.75 / 4.25)),  # 15.2, not far from the hottest
    ],
)
def test_a_temperature_makes_the_mean_probability_the_share_that_is_true(value, true, temperature):
    assert odds(value, 1000, 100 * true).temperature() == pytest.approx(temperature, rel=1e-6)


def test_the_temperature_of_two_groups_is_the_maximum_of_the_likelihood():
    # By another way: the likelihood itself, of logits ln 9 (6 of 10 true), -ln 4 (3 of 20) and ln 2 (one, not true).
    groups = ((math.log(9), 10, 6), (-math.log(4), 20, 3), (math.log(2), 1, 0))

    def loss(log_t):
        inverse = math.exp(-log_t)
        return -sum(
            k * special.log_expit(inverse * logit) + (n - k) * special.log_expit(-inverse * logit)
            for logit, n, k in groups
        )

    expected = math.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x)
    assert (odds(9, 10, 6) + odds(1 / 4, 20, 3) + odds(2, 1, 0)).temperature() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("true", "temperature"), [(1, 20.0), (4, 20.0), (5, 20.0), (0, 1.0), (10, 1.0)])
def test_a_model_that_knows_nothing_gets_the_hottest_temperature(true, temperature):
    # At 90 % a half or less is true: the hotter the better. All or none true: nothing can be said.
    assert odds(9, 10, true).temperature() == temperature


def test_a_model_that_is_nearly_always_right_gets_the_coldest_temperature():
    # Odds of 1.1 with 96 of 100 true would need ln 1.1 / ln 24 = 0.03.
    assert odds(1.1, 100, 96).temperature() == 0.05


def test_probabilities_of_bins_are_at_the_temperature_and_0_where_nothing_is():
    found = odds(9, 10, 6).probabilities(2.0)
    assert found[logit_bin(math.log(9))] == pytest.approx(0.75)  # odds 9 become 3
    assert found.sum() == pytest.approx(0.75)
    assert odds(9, 10, 6).probabilities()[logit_bin(math.log(9))] == pytest.approx(0.9)


def test_reliability_at_a_temperature_is_as_by_hand():
    found = (odds(9, 10, 6) + odds(1 / 9, 30, 3)).reliability(2.0)
    # Odds 9 and 1/9 become 3 and 1/3: 0.75 (bin 11 of 15) and 0.25 (bin 3).
    assert {int(i): int(found.voxels[i]) for i in np.flatnonzero(found.voxels)} == {3: 30, 11: 10}
    assert (found.observed[3], found.observed[11]) == (3, 6)
    assert (found.predicted[3], found.predicted[11]) == (pytest.approx(7.5), pytest.approx(7.5))
    # |7.5 - 3| + |7.5 - 6| of 40.
    assert found.ece == pytest.approx(6 / 40)
    # 6 of 0.25^2, 4 of 0.75^2, 3 of 0.75^2, 27 of 0.25^2.
    assert found.squared_error == pytest.approx(33 * 0.0625 + 7 * 0.5625)
    plain = (odds(9, 10, 6) + odds(1 / 9, 30, 3)).reliability()
    assert plain.ece == pytest.approx((3 + 0) / 40)  # |9 - 6| + |3 - 3|
    assert (plain.voxels.dtype, plain.observed.dtype) == (np.int64, np.int64)
    assert len(plain.voxels) == 15


def test_certainty_belongs_to_the_last_bin_of_a_reliability():
    certain = Histogram.from_voxels(np.array([1.0]), truth=np.array([True]), mask=np.array([True]))
    assert certain.reliability().voxels.tolist() == [0] * 14 + [1]


def test_the_dice_estimated_from_bins_is_as_by_hand():
    # 10 voxels of 0.75 of which 8 were found, 20 of 0.25 of which 1 was: 2 (6 + 0.25) / (7.5 + 5 + 9).
    found = odds(3, 10, 0, 8) + odds(1 / 3, 20, 0, 1)
    assert found.estimated_dice() == pytest.approx(12.5 / 21.5)
    # At temperature 1/2 odds 3 become 9: 0.9 and 0.1. 2 (7.2 + 0.1) / (9 + 2 + 9).
    assert found.estimated_dice(0.5) == pytest.approx(14.6 / 20)
    assert math.isnan(odds(3, 10, 5).estimated_dice())


# Which temperature counts


T1, T2, FLAIR = Modality.T1, Modality.T2, Modality.FLAIR


def of_studies(number, value, true):
    """What a number of studies say together, each of 10 voxels."""
    return sum((odds(value, 10, true) for _ in range(number)), Histogram.empty())


def test_a_subset_of_eight_studies_has_its_own_temperature_and_one_of_seven_that_of_all():
    found = fit_temperatures(
        {(T1, Region.WT): of_studies(8, 9, 6), (T2, Region.WT): of_studies(7, 9, 9), (T1, Region.ET): odds(9, 10, 6)}
    )
    own = found[T1, Region.WT]
    assert (own.value, own.pooled) == (pytest.approx(math.log(9) / math.log(1.5), rel=1e-6), False)
    # All: 8 * 6 + 7 * 9 = 111 of 150 true, odds 111 / 39.
    pooled = math.log(9) / math.log(111 / 39)
    for subset in (T2, FLAIR):
        one = found[subset, Region.WT]
        assert (one.value, one.pooled) == (pytest.approx(pooled, rel=1e-6), True)
    assert {subset for subset, region in found if region is Region.WT} == set(SUBSETS)
    # One study says nothing of the next.
    assert found[T1, Region.ET] == Temperature(1.0, True)


def test_two_studies_are_enough_for_the_temperature_of_all():
    found = fit_temperatures({(T1, Region.ET): of_studies(2, 9, 6)})
    assert found[T2, Region.ET].value == pytest.approx(math.log(9) / math.log(1.5), rel=1e-6)


def line(study, subset, region, value):
    return Score(study, subset, region, "dice", "clinical", value, 1.0, 1.0)


def test_the_error_of_an_estimate_is_its_distance_from_the_true_dice():
    # 10 voxels at odds 9 (0.9), all found: 18 / (9 + 10). At temperature 2 they are at 0.75: 15 / (7.5 + 10).
    counts = Counts(
        [line("a", "t1", "WT", 0.5), line("a", "t2", "WT", 1.0), line("a", "t1", "ET", 0.0)],
        {
            (T1, Region.WT): odds(9, 10, 5, 10),
            (T2, Region.WT): odds(9, 10, 5, 10),
            (T1, Region.ET): odds(9, 10, 5, 0),  # not found: no estimate
        },
    )
    found = conclusion._estimate_errors(counts, {(T1, Region.WT): Temperature(2.0, False)})
    assert found == {
        (T1, Region.WT): pytest.approx(15 / 17.5 - 0.5),
        (T2, Region.WT): pytest.approx(1 - 18 / 19),
    }


def test_gains_are_paired_over_the_cases_and_averaged_over_the_regions():
    # WT and ET go from 0.5 to 0.6 and 0.2 to 0.5 in study a, 0.7 to 0.6 and not at all in b, 0.1 to 0.4 and not in c.
    values = {
        ("a", "t1"): (0.5, 0.2), ("a", "t1+t2"): (0.6, 0.5),
        ("b", "t1"): (0.7, 0.4), ("b", "t1+t2"): (0.6, 0.4),
        ("c", "t1"): (0.1, 0.9), ("c", "t1+t2"): (0.4, 0.9),
    }  # fmt: skip
    lines = [
        line(*key, region, v) for key, pair in values.items() for region, v in zip(("WT", "ET"), pair, strict=True)
    ]
    found = conclusion._gains(Scores(lines), [Region.WT, Region.ET], Bootstrap(3))
    assert list(found) == [T1]  # T2 alone was not measured
    (gain,) = found[T1]
    assert gain.sequence is T2
    assert gain.regions[Region.WT].mean == pytest.approx(0.1)  # (0.1 - 0.1 + 0.3) / 3
    assert gain.regions[Region.ET].mean == pytest.approx(0.1)  # (0.3 + 0 + 0) / 3
    assert gain.mean.mean == pytest.approx(0.1)
    assert gain.mean.cases == 3


def test_a_subset_names_the_gain_of_each_sequence_that_it_lacks():
    lines = [line("a", subset.key, "WT", 0.1 * len(subset)) for subset in SUBSETS]
    found = conclusion._gains(Scores(lines), [Region.WT], Bootstrap(1))
    assert {s: [g.sequence for g in gains] for s, gains in found.items()} == {
        subset: [one for one in Modality if one not in subset] for subset in SUBSETS if len(subset) < 4
    }


def test_half_of_the_studies_give_temperatures_and_the_others_say_what_they_are_worth(tmp_path):
    model = Model(SimpleNamespace(regions=(Region.WT,), choices=()), SimpleNamespace(config=None), {}, Path("m"))
    # Three studies, of which two fit: 90 % foretold and 6 of 10 true, so that 0.9 becomes 0.6. The third has 5 of 10.
    dice, files = (0.2, 0.8, 0.5), []
    for number, (value, true) in enumerate(zip(dice, (6, 6, 5), strict=True)):
        counts = Counts([line(f"S{number}", "t1", "WT", value)], {(T1, Region.WT): odds(9, 10, true, 10)})
        files.append(tmp_path / f"{number}.npz")
        write_counts(files[-1], counts)
    told = conclusion.expectations_from(model, files, "three")
    assert (told.population, told.studies, told.fitted_on) == ("three", 3, 2)
    one = told.of(T1)[Region.WT]
    assert one.temperature == pytest.approx(math.log(9) / math.log(1.5), rel=1e-6)
    assert one.pooled
    assert (one.dice.mean, one.dice.cases) == (pytest.approx(0.5), 3)
    assert one.tenth == pytest.approx(0.26)  # a fifth of the way from 0.2 to 0.5
    assert one.ece_before == pytest.approx(0.4)  # 0.9 for 0.5
    assert one.ece_after == pytest.approx(0.1)  # 0.6 for 0.5
    assert one.estimate_error == pytest.approx(12 / 16 - 0.5)  # 2 * 6 / (6 + 10)
    assert told.gains == {}
    assert dict(told.choices) == {}


def test_counts_are_read_as_they_were_written(tmp_path):
    counts = Counts(
        [line("a", "t1", "WT", 0.25), line("a", "t1+t2", "ET", 1.0)],
        {(T1, Region.WT): odds(9, 10, 4, 3), (parse("t1+t2"), Region.ET): odds(1 / 3, 6, 0, 2)},
    )
    write_counts(tmp_path / "x.npz", counts)
    found = read_counts(tmp_path / "x.npz")
    assert found.lines == counts.lines
    assert set(found.histograms) == set(counts.histograms)
    for key, one in counts.histograms.items():
        other = found.histograms[key]
        assert other.studies == one.studies
        for name in ("voxels", "logits", "positives", "predicted"):
            assert np.array_equal(getattr(other, name), getattr(one, name)), name
            assert getattr(other, name).dtype == getattr(one, name).dtype


def test_which_half_a_study_belongs_to_follows_from_its_name_alone():
    # The SHA-256 of "abc", from the standard (FIPS 180-4).
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert calibrate._random_order(Study("abc", {})) == expected
    assert len(calibrate._random_order(Study("caf\udce9", {}))) == 64  # a name that is no UTF-8 has its place, too
