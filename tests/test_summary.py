"""The numbers of `summary.json`, worked out by hand from a few scores."""

import math

import numpy as np
import pytest

from glimpseg.metrics import Reliability
from glimpseg.modality import SUBSETS, Modality, parse
from glimpseg.results.scores import Score, Scores
from glimpseg.results.summary import monotonicity, sequence_value, summary


def line(study, subset, value, region="WT", metric="dice", predicted_ml=1.0, reference_ml=1.0):
    return Score(study, subset, region, metric, "clinical", value, predicted_ml, reference_ml)


def dice_scores(table, region="WT"):
    """Scores from a Dice by study and subset: {"S1": {"t1c": 0.5}}."""
    return Scores([line(study, subset, value, region) for study, row in table.items() for subset, value in row.items()])


# Monotonicity: how often one more sequence made a case worse


def test_only_a_loss_of_dice_counts_as_worse():
    # FLAIR added to T1c: +0.25, -0.25, 0. One case of three is worse; the mean change is 0.
    table = {
        "gain": {"t1c": 0.50, "t1c+flair": 0.75},
        "loss": {"t1c": 0.50, "t1c+flair": 0.25},
        "same": {"t1c": 0.50, "t1c+flair": 0.50},
    }
    expected = {"pairs": 3, "worse": pytest.approx(1 / 3), "notably_worse": pytest.approx(1 / 3), "mean_change": 0.0}
    assert monotonicity(dice_scores(table), "WT") == {"flair": expected}


def test_a_loss_of_exactly_one_point_is_worse_but_not_notably():
    # Losses of 0.01 and 0.02: both worse, one of two by more than 0.01; mean -0.015.
    table = {"S1": {"t1c": 0.01, "t1c+flair": 0.0}, "S2": {"t1c": 0.02, "t1c+flair": 0.0}}
    found = monotonicity(dice_scores(table), "WT")["flair"]
    assert (found["worse"], found["notably_worse"]) == (1.0, 0.5)
    assert found["mean_change"] == pytest.approx(-0.015)


def test_the_change_belongs_to_the_sequence_that_was_added():
    # Both together 0.625. FLAIR to T1c (0.5): +0.125. T1c to FLAIR (0.75): -0.125.
    found = monotonicity(dice_scores({"S1": {"t1c": 0.5, "flair": 0.75, "t1c+flair": 0.625}}), "WT")
    assert found == {
        "flair": {"pairs": 1, "worse": 0.0, "notably_worse": 0.0, "mean_change": 0.125},
        "t1c": {"pairs": 1, "worse": 1.0, "notably_worse": 1.0, "mean_change": -0.125},
    }


def test_each_sequence_is_added_to_seven_subsets_of_the_other_three():
    # Dice is the number of sequences / 8, so every addition gains 1/8.
    table = {f"S{i}": {subset.key: len(subset) / 8 for subset in SUBSETS} for i in range(2)}
    found = monotonicity(dice_scores(table), "WT")
    assert {key: entry["pairs"] for key, entry in found.items()} == {"t1": 14, "t1c": 14, "t2": 14, "flair": 14}
    assert {(entry["worse"], entry["mean_change"]) for entry in found.values()} == {(0.0, 0.125)}


def test_a_case_without_one_of_the_two_subsets_is_no_pair():
    table = {"S1": {"t1c": 0.5, "t1c+flair": 0.25}, "S2": {"t1c": 0.5}, "S3": {"t1c+flair": 0.5}}
    expected = {"pairs": 1, "worse": 1.0, "notably_worse": 1.0, "mean_change": -0.25}
    assert monotonicity(dice_scores(table), "WT") == {"flair": expected}


def test_without_any_pair_nothing_is_claimed():
    found = monotonicity(dice_scores({"S1": {"t1c": 0.5}, "S2": {"t1c+flair": 0.25}}), "WT")["flair"]
    assert found.pop("pairs") == 0
    assert set(found) == {"worse", "notably_worse", "mean_change"}
    assert all(math.isnan(value) for value in found.values())


def test_monotonicity_is_of_dice_alone_and_of_the_region_asked_for():
    lines = [
        line("S1", "t1c", 0.5, "WT"), line("S1", "t1c+flair", 0.75, "WT"),
        line("S1", "t1c", 0.5, "ET"), line("S1", "t1c+flair", 0.25, "ET"),
    ]  # fmt: skip
    assert monotonicity(Scores(lines), "ET")["flair"]["mean_change"] == -0.25
    assert monotonicity(Scores([line("S1", "t1c", 9.0, metric="hd95")]), "WT") == {}


# The value of each sequence


def two_sequences(subset):
    """A Dice that T1 and T2 do not change: 0.4 with T1c, 0.2 with FLAIR, 0.8 with both, else 0."""
    return {
        (False, False): 0.0,
        (True, False): 0.4,
        (False, True): 0.2,
        (True, True): 0.8,
    }[Modality.T1C in subset, Modality.FLAIR in subset]


def test_shapley_values_are_the_mean_over_the_two_orders():
    # T1c first 0.4, second 0.8 - 0.2 = 0.6: mean 0.5. FLAIR first 0.2, second 0.8 - 0.4 = 0.4: mean 0.3.
    table = {"S1": {subset.key: two_sequences(subset) for subset in SUBSETS}}
    found = sequence_value(dice_scores(table))["WT"]
    assert {key: entry["mean"] for key, entry in found["sequences"].items()} == pytest.approx(
        {"t1": 0, "t1c": 0.5, "t2": 0, "flair": 0.3}
    )
    assert (found["nothing"], found["all"], found["cases"]) == (0.0, 0.8, 1)


def test_nothing_is_right_where_the_reference_is_empty_whatever_was_predicted():
    # In `there` the reference has 5 ml, although T2 alone finds nothing: without any sequence Dice is 0.
    # In `gone` the reference is empty: without any sequence Dice is 1, and T1c, which invents 3 ml, loses it.
    lines = []
    for subset in SUBSETS:
        with_t1c = Modality.T1C in subset
        lines.append(line("there", subset.key, 0.5 * with_t1c, predicted_ml=4.0 * with_t1c, reference_ml=5.0))
        lines.append(line("gone", subset.key, 1.0 - with_t1c, predicted_ml=3.0 * with_t1c, reference_ml=0.0))
    found = sequence_value(Scores(lines))["WT"]
    assert found["nothing"] == 0.5  # (0 + 1) / 2
    assert found["all"] == 0.25  # (0.5 + 0) / 2
    # T1c adds 0.5 in one case and -1 in the other, in every order: mean -0.25.
    assert {key: entry["mean"] for key, entry in found["sequences"].items()} == pytest.approx(
        {"t1": 0, "t1c": -0.25, "t2": 0, "flair": 0}
    )


def test_only_cases_that_have_all_15_subsets_tell_the_value_of_a_sequence():
    table = {"whole": {subset.key: two_sequences(subset) for subset in SUBSETS}, "part": {"t1c": 1.0}}
    found = sequence_value(dice_scores(table))["WT"]
    assert (found["cases"], found["all"]) == (1, 0.8)
    assert found["sequences"]["t1c"]["mean"] == pytest.approx(0.5)


def test_each_region_has_its_own_sequence_values():
    lines = [line("S1", s.key, float(Modality.T1C in s), "ET") for s in SUBSETS]
    lines += [line("S1", s.key, float(Modality.FLAIR in s), "WT") for s in SUBSETS]
    found = sequence_value(Scores(lines))
    worth = {region: [key for key, x in found[region]["sequences"].items() if x["mean"] > 0.5] for region in found}
    assert worth == {"WT": ["flair"], "ET": ["t1c"]}


def test_the_interval_of_a_sequence_value_is_that_of_resampled_cases():
    # T1c is worth 1 in 4 of 8 cases, else 0. The mean of 8 draws is B(8, 1/2) / 8. P(B = 0) = 0.4 %, P(B <= 1) = 3.5 %:
    # the 2.5 % quantile is 1/8, by symmetry the 97.5 % quantile 7/8.
    table = {f"S{i}": {s.key: float(i < 4 and Modality.T1C in s) for s in SUBSETS} for i in range(8)}
    found = sequence_value(dice_scores(table))["WT"]["sequences"]["t1c"]
    assert found == pytest.approx({"mean": 0.5, "low": 0.125, "high": 0.875, "cases": 8})


def test_there_is_no_sequence_value_without_all_subsets_complete_cases_or_dice():
    whole = {subset.key: 0.5 for subset in SUBSETS}
    assert sequence_value(dice_scores({"S1": {key: 0.5 for key in whole if key != "t1"}})) == {}
    halves = {"S1": {key: 0.5 for key in whole if key != "t1"}, "S2": {"t1": 0.5}}
    assert sequence_value(dice_scores(halves)) == {}
    assert sequence_value(Scores([line("S1", key, 9.0, metric="hd95") for key in whole])) == {}


# The whole tree


def test_a_summary_is_this_tree():
    """Two cases, two subsets, two regions. S1 lacks T1c + FLAIR; in S2 the ET is invented with T1c alone."""
    lines = [
        line("S1", "t1c", 0.50, "WT", predicted_ml=4.0, reference_ml=8.0),
        line("S1", "t1c", 6.00, "WT", "hd95", predicted_ml=4.0, reference_ml=8.0),
        line("S1", "t1c", 0.00, "ET", predicted_ml=0.0, reference_ml=2.0),
        line("S1", "t1c", math.nan, "ET", "hd95", predicted_ml=0.0, reference_ml=2.0),
        line("S2", "t1c", 0.25, "WT", predicted_ml=1.0, reference_ml=2.0),
        line("S2", "t1c", 2.00, "WT", "hd95", predicted_ml=1.0, reference_ml=2.0),
        line("S2", "t1c", 0.00, "ET", predicted_ml=1.0, reference_ml=0.0),
        line("S2", "t1c", math.nan, "ET", "hd95", predicted_ml=1.0, reference_ml=0.0),
        line("S2", "t1c+flair", 0.75, "WT", predicted_ml=2.0, reference_ml=2.0),
        line("S2", "t1c+flair", 1.00, "WT", "hd95", predicted_ml=2.0, reference_ml=2.0),
        line("S2", "t1c+flair", 1.00, "ET", predicted_ml=0.0, reference_ml=0.0),
        line("S2", "t1c+flair", math.nan, "ET", "hd95", predicted_ml=0.0, reference_ml=0.0),
    ]
    curve = Reliability(np.array([4, 4]), np.array([1.0, 3.0]), np.array([2, 3]), 2.0)
    found = summary(Scores(lines), {("t1c", "WT"): curve})

    def mean(value, cases):  # fewer than 8 cases have no interval
        return {"mean": value, "low": None, "high": None, "cases": cases}

    assert found == {
        "protocol": ["clinical"],
        "studies": 2,
        "complete_studies": 1,
        "confidence": 0.95,
        "resamples": 10_000,
        "subsets": {
            # WT: Dice (0.5 + 0.25) / 2, HD95 (6 + 2) / 2. HD95 of ET was computed for no case.
            "t1c": {"WT": {"dice": mean(0.375, 2), "hd95": mean(4.0, 2)}, "ET": {"dice": mean(0.0, 2)}},
            "t1c+flair": {"WT": {"dice": mean(0.75, 1), "hd95": mean(1.0, 1)}, "ET": {"dice": mean(1.0, 1)}},
        },
        # Over cases first: WT Dice (0.375 + 0.75) / 2, HD95 (4 + 1) / 2, ET Dice (0 + 1) / 2. The fewest cases are 1.
        "mean": {"WT": {"dice": mean(0.5625, 1), "hd95": mean(2.5, 1)}, "ET": {"dice": mean(0.5, 1)}},
        "empty": {
            # ET with T1c: S1 missed (0 of 2 ml), S2 invented (1 of 0 ml). S1 does not count where it was not scored.
            "t1c": {
                "WT": {"predicted": 0.0, "reference": 0.0, "missed": 0.0, "invented": 0.0},
                "ET": {"predicted": 0.5, "reference": 0.5, "missed": 0.5, "invented": 0.5},
            },
            "t1c+flair": {
                "WT": {"predicted": 0.0, "reference": 0.0, "missed": 0.0, "invented": 0.0},
                "ET": {"predicted": 1.0, "reference": 1.0, "missed": 0.0, "invented": 0.0},
            },
        },
        "sequence_value": {},
        "monotonicity": {
            # S2 alone has both subsets. WT: 0.75 - 0.25. ET: 1 - 0.
            "WT": {"flair": {"pairs": 1, "worse": 0.0, "notably_worse": 0.0, "mean_change": 0.5}},
            "ET": {"flair": {"pairs": 1, "worse": 0.0, "notably_worse": 0.0, "mean_change": 1.0}},
        },
        "reliability": {
            "t1c": {
                "WT": {
                    "voxels": [4, 4],
                    "predicted": [1.0, 3.0],
                    "observed": [2, 3],
                    "squared_error": 2.0,
                    "ece": 0.125,  # (|1 - 2| + |3 - 3|) / 8
                    "brier": 0.25,  # 2 / 8
                }
            }
        },
    }


def test_missed_and_invented_are_told_apart():
    # Predicted and reference in ml: 0 of 5 missed, 5 of 0 invented, 0 of 0, and 5 of 5 three times.
    volumes = [(0.0, 5.0), (5.0, 0.0), (0.0, 0.0), (5.0, 5.0), (5.0, 5.0), (5.0, 5.0), (0.0, 5.0), (0.0, 5.0)]
    lines = [line(f"S{i}", "t1c", 0.5, predicted_ml=p, reference_ml=r) for i, (p, r) in enumerate(volumes)]
    # Of 8: nothing predicted 4, nothing there 2, missed 3, invented 1.
    expected = {"predicted": 0.5, "reference": 0.25, "missed": 0.375, "invented": 0.125}
    assert summary(Scores(lines), {})["empty"] == {"t1c": {"WT": expected}}


def test_intervals_of_subsets_and_of_their_mean_are_written():
    # Dice with T1c is 1 in 4 of 8 cases, else 0; with FLAIR always 0.5. As above: 1/8 to 7/8 for T1c, no width for
    # FLAIR; for the mean of both (1/8 + 1/2) / 2 to (7/8 + 1/2) / 2.
    table = {f"S{i}": {"t1c": float(i < 4), "flair": 0.5} for i in range(8)}
    found = summary(dice_scores(table), {})
    assert found["subsets"]["t1c"]["WT"]["dice"] == {"mean": 0.5, "low": 0.125, "high": 0.875, "cases": 8}
    assert found["subsets"]["flair"]["WT"]["dice"] == {"mean": 0.5, "low": 0.5, "high": 0.5, "cases": 8}
    assert found["mean"]["WT"]["dice"] == {"mean": 0.5, "low": 0.3125, "high": 0.6875, "cases": 8}


def test_numbers_that_are_not_defined_are_null_in_lists_too():
    curve = Reliability(np.array([0, 0]), np.array([0.0, math.nan]), np.array([0, 0]), 0.0)
    found = summary(dice_scores({"S1": {"t1c": 0.5}}), {("t1c", "WT"): curve, ("flair", "WT"): curve})
    assert list(found["reliability"]) == ["t1c", "flair"]
    entry = found["reliability"]["flair"]["WT"]
    assert (entry["predicted"], entry["ece"], entry["brier"]) == ([0.0, None], None, None)


def test_regions_of_one_subset_share_its_reliability():
    curve = Reliability(np.array([1]), np.array([0.5]), np.array([1]), 0.25)
    found = summary(dice_scores({"S1": {"t1c": 0.5}}), {("t1c", "WT"): curve, ("t1c", "TC"): curve})
    assert {subset: list(regions) for subset, regions in found["reliability"].items()} == {"t1c": ["WT", "TC"]}


def test_every_protocol_in_the_scores_is_named_once():
    lines = [line("S1", "t1c", 0.5), Score("S2", "t1c", "WT", "dice", "rfnet", 0.5, 1.0, 1.0), line("S3", "t1c", 0.5)]
    assert summary(Scores(lines), {})["protocol"] == ["clinical", "rfnet"]


def test_subsets_stand_in_the_order_of_the_tables():
    found = summary(dice_scores({"S1": {parse("all").key: 0.5, "t1": 0.5, "t2": 0.5}}), {})
    assert list(found["subsets"]) == ["t2", "t1", "t1+t1c+t2+flair"]
