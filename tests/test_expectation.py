"""What a model's expectations say and hold: every sentence whole, every number written out."""

import json
import math
import re

import pytest

from glimpseg.errors import ModelError, UsageError
from glimpseg.modality import ALL, Modality, parse
from glimpseg.model.expectations import EXPECTATIONS, Expectations, Expected, Gain, OnPatients, read_expectations
from glimpseg.region import Region
from glimpseg.results.statistics import Interval

NAN = math.nan
TWO = parse("t1c+flair")
T1, T2 = Modality.T1, Modality.T2


def interval(mean, low=None, high=None, cases=64):
    """By default one that reaches a hundredth to each side."""
    return Interval(mean, mean - 0.01 if low is None else low, mean + 0.01 if high is None else high, cases)


def expected(**changes):
    settled = {
        "dice": interval(0.9), "tenth": 0.704, "temperature": 2.0, "pooled": False,
        "ece_before": 0.02, "ece_after": 0.01, "estimate_error": 0.04,
    }  # fmt: skip
    return Expected(**{**settled, **changes})


def gain(sequence, mean, regions=None):
    return Gain(sequence=sequence, mean=mean, regions=regions or {Region.WT: mean})


def told(gains=None, subsets=None, **changes):
    """A record of T1c and FLAIR, in which further sequences add so much."""
    subsets = {TWO: {Region.WT: expected()}} if subsets is None else subsets
    record = {
        "population": "phantoms", "studies": 64, "fitted_on": 30, "subsets": subsets, "gains": gains or {}, **changes
    }  # fmt: skip
    return Expectations(**record)


# Which sequence helps


@pytest.mark.parametrize(
    ("mean", "low", "shown"),
    [
        (0.01, 0.001, True),  # a point of Dice, and more than chance
        (0.0099, 0.001, False),
        (0.05, 0.0, False),  # the interval touches nothing
        (0.05, -0.001, False),
        (0.05, NAN, False),  # too few cases
        (-0.05, -0.06, False),
    ],
)
def test_a_gain_counts_from_a_point_of_dice_whose_interval_lies_above_nothing(mean, low, shown):
    assert gain(T1, Interval(mean, low, 0.2, 9)).shown == shown


def test_of_the_gains_that_count_the_largest_helps_most():
    # T2 adds most, but by chance; of the others T1's mean is larger, though FLAIR's interval begins higher.
    gains = {
        Modality.T1C: (
            gain(Modality.FLAIR, interval(0.03, 0.025)),
            gain(T1, interval(0.04, 0.01)),
            gain(T2, interval(0.09, -0.01)),
        )
    }
    assert told(gains).most_helpful(Modality.T1C).sequence is T1
    assert told(gains).most_helpful(Modality.T2) is None  # not measured


def test_temperatures_are_those_of_the_subset():
    record = told(subsets={TWO: {Region.WT: expected(), Region.ET: expected(temperature=0.5)}, T1: {}})
    assert record.temperatures(TWO) == {Region.WT: 2.0, Region.ET: 0.5}
    assert record.temperatures(ALL) == {}
    assert record.of(ALL) == {}


# Sentences


def test_the_sentences_of_a_subset_with_a_helpful_sequence():
    few = expected(dice=Interval(0.8, NAN, NAN, 5))
    best = gain(
        T2,
        interval(0.5, 0.44, 0.56),
        {Region.WT: interval(0.06, 0.044, 0.071), Region.ET: interval(-0.002, -0.01, 0.006)},
    )
    subsets = {TWO: {Region.WT: expected(dice=interval(0.8996, 0.8931, 0.9049)), Region.ET: few}}
    assert told({TWO: (best, gain(T1, interval(0.02)))}, subsets).sentences(TWO) == [
        "Expected performance with T1c + FLAIR, measured on phantoms (64 studies):",
        # 89.96 % is 90.0, 89.31 is 89.3, 90.49 is 90.5; 70.4 % is 70.
        "  WT: mean Dice 90.0 % (95 % interval 89.3 to 90.5); one case in ten had 70 % or less.",
        "  ET: mean Dice 80.0 % (5 cases, too few for an interval).",
        "Adding T2 would help most: +50.0 (+44.0 to +56.0) points of mean Dice "
        "(WT +6.0 (+4.4 to +7.1), ET -0.2 (-1.0 to +0.6)).",
    ]


HEAD = [
    "Expected performance with T1c + FLAIR, measured on phantoms (64 studies):",
    "  WT: mean Dice 90.0 % (95 % interval 89.0 to 91.0); one case in ten had 70 % or less.",
]


@pytest.mark.parametrize(
    ("gains", "last"),
    [
        (
            {TWO: (gain(T1, interval(0.005)),)},
            "No absent sequence was shown to add a point of mean Dice.",
        ),
        ({}, "The gain from a further sequence was not measured."),
        ({T1: (gain(T2, interval(0.5)),)}, "The gain from a further sequence was not measured."),
    ],
    ids=["none shown", "none measured", "measured for another subset"],
)
def test_the_last_sentence_says_what_is_known_of_further_sequences(gains, last):
    assert told(gains).sentences(TWO) == [*HEAD, last]


def test_of_all_four_sequences_nothing_more_is_said():
    assert told(subsets={ALL: {Region.WT: expected()}}).sentences(ALL) == [
        "Expected performance with T1 + T1c + T2 + FLAIR, measured on phantoms (64 studies):",
        HEAD[1],
    ]


def test_patients_are_told_apart_from_the_studies_and_without_t1c_enhancing_tumour_is_called_a_guess():
    subsets = {T2: {Region.WT: on_patients(0.804, 9, 0.06), Region.TC: expected(), Region.ET: on_patients(0.55, 7)}}
    assert told(subsets=subsets, patients="nine patients").sentences(T2) == [
        "Expected performance with T2, measured on phantoms (64 studies):",
        *(HEAD[1].replace("WT", name) for name in ("WT", "TC", "ET")),
        "On nine patients (in brackets how many): mean Dice WT 80 % (9), ET 55 % (7).",
        "Without T1c, the enhancing tumour is a guess: only a contrast agent shows what enhances.",
        "The gain from a further sequence was not measured.",
    ]


def on_patients(dice, patients, error=NAN):
    return expected(on_patients=OnPatients(dice=dice, patients=patients, estimate_error=error))


def test_patients_decide_what_is_expected_and_how_far_an_estimate_is_off():
    assert (on_patients(0.5, 6).mean_dice, expected().mean_dice) == (0.5, 0.9)
    assert [one.usual_error for one in (on_patients(0.5, 6), on_patients(0.5, 6, 0.3), on_patients(0.5, 6, 0.01))] == [
        0.04, 0.3, 0.01,
    ]  # fmt: skip
    assert math.isnan(expected(estimate_error=NAN).usual_error)


def test_what_was_measured_on_patients_is_written_and_read():
    subsets = {TWO: {Region.WT: on_patients(0.5, 6, 0.3), Region.ET: on_patients(0.25, 4)}}
    tree = json.loads(json.dumps(told(subsets=subsets, patients="six patients").as_tree()))
    assert tree["patients"] == "six patients"
    assert tree["subsets"]["t1c+flair"]["WT"]["on_patients"] == {"dice": 0.5, "patients": 6, "estimate_error": 0.3}
    assert tree["subsets"]["t1c+flair"]["ET"]["on_patients"]["estimate_error"] is None
    again = Expectations.from_tree(tree)
    assert again.patients == "six patients"
    assert again.of(TWO)[Region.WT] == subsets[TWO][Region.WT]
    assert again.of(TWO)[Region.ET].on_patients.patients == 4


def test_a_subset_that_no_study_had_is_not_known():
    assert told().sentences(T1) == ["The performance with T1 is not known: no study of phantoms had these."]


def test_a_temperature_below_one_and_a_measured_error_are_read():
    tree = changed((*WT, "temperature"), 0.05)
    tree["subsets"]["t1c+flair"]["WT"]["ece_after"] = 0.011
    found = Expectations.from_tree(tree).subsets[TWO][Region.WT]
    assert (found.temperature, found.ece_after) == (0.05, 0.011)


# The file


TREE = {
    "format": 1,
    "population": "phantoms",
    "studies": 64,
    "confidence": 0.95,
    "resamples": 10_000,
    "calibration": {
        "fitted_on": 30,
        "measured_on": 34,  # 64 - 30
        "rule": "temperatures are fitted on the brain's voxels of one half of the studies, ece_before, ece_after and "
        "estimate_error are of the other half, Dice is of all",
    },
    "choices": {"branch": 1},
    "subsets": {
        "t1c+flair": {
            "WT": {
                "dice": {"mean": 0.9, "low": 0.89, "high": 0.91235, "cases": 64},  # 0.9123456 to five decimals
                "tenth": 0.704,
                "temperature": 2.0,
                "pooled": True,
                "ece_before": 0.02,
                "ece_after": None,  # not known
                "estimate_error": 0.04,
            }
        }
    },
    "gains": {
        "t1c+flair": {
            "t2": {
                "mean": {"mean": 0.1, "low": None, "high": None, "cases": 5},
                "regions": {"ET": {"mean": -0.2, "low": -0.21, "high": -0.19, "cases": 64}},
            },
            "t1": {"mean": {"mean": 0.3, "low": 0.29, "high": 0.31, "cases": 64}, "regions": {}},
        }
    },
}


def record():
    """The expectations that TREE holds."""
    one = expected(dice=interval(0.9, 0.89, 0.9123456), pooled=True, ece_after=NAN)
    gains = (
        Gain(sequence=T2, mean=Interval(0.1, NAN, NAN, 5), regions={Region.ET: interval(-0.2, -0.21, -0.19)}),
        Gain(sequence=T1, mean=interval(0.3, 0.29, 0.31), regions={}),
    )
    return told({TWO: gains}, {TWO: {Region.WT: one}}, choices={"branch": 1})


def test_the_file_holds_numbers_to_five_decimals_and_null_for_what_is_not_known():
    assert record().as_tree() == TREE
    json.dumps(TREE, allow_nan=False)


def test_the_file_is_read_as_it_was_written(tmp_path):
    (tmp_path / EXPECTATIONS).write_text(json.dumps(TREE))
    found = read_expectations(tmp_path)
    assert (found.population, found.studies, found.fitted_on) == ("phantoms", 64, 30)
    assert dict(found.choices) == {"branch": 1}
    one = found.subsets[TWO][Region.WT]
    assert one.dice == Interval(0.9, 0.89, 0.91235, 64)
    assert (one.tenth, one.temperature, one.pooled) == (0.704, 2.0, True)
    assert (one.ece_before, one.estimate_error) == (0.02, 0.04)
    assert math.isnan(one.ece_after)
    first, second = found.gains[TWO]
    assert (first.sequence, second.sequence) == (T2, T1)
    assert (first.mean.mean, first.mean.cases) == (0.1, 5)
    assert math.isnan(first.mean.low)
    assert math.isnan(first.mean.high)
    assert first.regions == {Region.ET: Interval(-0.2, -0.21, -0.19, 64)}
    assert second == Gain(sequence=T1, mean=Interval(0.3, 0.29, 0.31, 64), regions={})


def changed(path, value):
    """TREE with another value at a path, or without it."""
    tree = json.loads(json.dumps(TREE))
    place = tree
    for name in path[:-1]:
        place = place[name]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return tree


WT = ("subsets", "t1c+flair", "WT")


@pytest.mark.parametrize(
    ("path", "value", "kind", "why"),
    [
        (("format",), 2, ValueError, "format 2, this version reads 1"),
        ((*WT, "temperature"), 0, ValueError, "temperature 0.0"),
        ((*WT, "temperature"), -1.5, ValueError, "temperature -1.5"),
        ((*WT, "temperature"), math.inf, ValueError, "temperature inf"),
        ((*WT, "temperature"), NAN, ValueError, "temperature nan"),
        (("gains",), None, KeyError, "'gains'"),
        (("choices",), None, KeyError, "'choices'"),
        (("calibration", "fitted_on"), None, KeyError, "'fitted_on'"),
        (("subsets",), {"t1c": {"XX": {}}}, KeyError, "'XX'"),
        (
            ("subsets",), {"t9": {}}, UsageError,
            "'t9' is not an MRI sequence. Name them as t1, t1c, t2, flair, joined by '+', or 'all'.",
        ),
    ],
)  # fmt: skip
def test_a_file_of_another_form_is_refused_with_what_is_wrong(tmp_path, path, value, kind, why):
    tree = changed(path, value)
    with pytest.raises(kind, match=f"^{re.escape(why)}$"):
        Expectations.from_tree(tree)
    (tmp_path / EXPECTATIONS).write_text(json.dumps(tree))
    number = isinstance(value, float) and not math.isfinite(value)
    why = f"it has the number {value}; numbers are finite here" if number else why
    message = f"{tmp_path / EXPECTATIONS} cannot be used ({why}). Make it again with `glimpseg calibrate`."
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        read_expectations(tmp_path)


def test_a_file_that_is_not_there_or_no_tree_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"cannot be used \(No such file"):
        read_expectations(tmp_path)
    (tmp_path / EXPECTATIONS).write_text("[]")
    with pytest.raises(ModelError, match="cannot be used"):
        read_expectations(tmp_path)
