"""Scores as a file and as arrays; what each metric is."""

import math

import numpy as np
import pytest

from glimpseg.errors import InputError, UsageError
from glimpseg.modality import SUBSETS
from glimpseg.results.scores import METRICS, REGIONS, Score, Scores, metrics_named, read_scores, write_scores

HEADER = "study,subset,region,metric,protocol,value,predicted_ml,reference_ml"


def line(study="S1", subset="t1c", region="WT", metric="dice", value=0.5, predicted_ml=1.0, reference_ml=2.0):
    return Score(study, subset, region, metric, "clinical", value, predicted_ml, reference_ml)


# What each metric is


def test_each_metric_has_its_unit_and_its_better_side():
    # Shares are shown in %, so times 100; distances and volumes as they are. Of errors and distances less is better.
    assert {name: (metric.unit, metric.factor, metric.better) for name, metric in METRICS.items()} == {
        "dice": ("%", 100, 1),
        "hd95": ("mm", 1, -1),
        "hd95_pooled": ("mm", 1, -1),
        "surface_dice_1mm": ("%", 100, 1),
        "surface_dice_2mm": ("%", 100, 1),
        "lesion_dice": ("%", 100, 1),
        "lesion_hd95": ("mm", 1, -1),
        "volume_error": ("ml", 1, 0),
        "sensitivity": ("%", 100, 1),
        "specificity": ("%", 100, 1),
        "ece": ("%", 100, -1),
        "brier": ("%", 100, -1),
    }


def test_each_metric_is_found_under_its_own_name():
    assert all(name == metric.name for name, metric in METRICS.items())


# Arrays


def test_a_value_stands_in_the_row_of_its_study_and_the_column_of_its_subset():
    scores = Scores(
        [
            line("S2", "t1c", value=0.1, predicted_ml=1.0, reference_ml=7.0),
            line("S1", "flair", value=0.2, predicted_ml=2.0, reference_ml=8.0),
            line("S1", "t2", value=0.3, predicted_ml=3.0, reference_ml=9.0),
            line("S1", "t2", "ET", value=0.4, predicted_ml=4.0, reference_ml=6.0),
        ]
    )
    nan = math.nan
    # Studies in the order of the lines; subsets in that of the field's tables: T2, T1c, FLAIR.
    assert (scores.studies, scores.subsets) == (["S2", "S1"], ["t2", "t1c", "flair"])
    np.testing.assert_array_equal(scores.array("dice", "WT"), [[nan, 0.1, nan], [0.3, nan, 0.2]])
    np.testing.assert_array_equal(scores.array("dice", "ET"), [[nan, nan, nan], [0.4, nan, nan]])
    predicted, reference = scores.volumes_ml("WT")
    np.testing.assert_array_equal(predicted, [[nan, 1.0, nan], [3.0, nan, 2.0]])
    np.testing.assert_array_equal(reference, [[nan, 7.0, nan], [9.0, nan, 8.0]])


def test_metrics_do_not_share_an_array():
    scores = Scores([line(metric="dice", value=0.5), line(metric="hd95", value=3.0), line(region="TC", value=0.25)])
    assert scores.array("dice", "WT").tolist() == [[0.5]]
    assert scores.array("hd95", "WT").tolist() == [[3.0]]
    assert scores.array("dice", "TC").tolist() == [[0.25]]
    np.testing.assert_array_equal(scores.array("hd95", "TC"), [[math.nan]])


def test_regions_and_metrics_stand_in_the_order_of_tables_and_unknown_ones_behind():
    lines = [line(region=region) for region in ("Z", "RC", "ET_pp", "A", "ET", "TC", "WT")]
    lines += [line(metric=metric) for metric in ("zz", "brier", "aa", "hd95", "dice")]
    scores = Scores(lines)
    assert scores.regions == ["WT", "TC", "ET", "ET_pp", "RC", "A", "Z"]
    assert scores.metrics == ["dice", "hd95", "brier", "aa", "zz"]
    assert REGIONS == ("WT", "TC", "ET", "ET_pp", "RC")


def test_all_subsets_stand_in_the_order_of_tables():
    keys = [subset.key for subset in SUBSETS]
    assert Scores([line(subset=key) for key in reversed(keys)]).subsets == keys


def test_rows_and_columns_are_those_that_are_asked_for():
    lines = [line(study, subset) for study in ("S1", "S2", "S3") for subset in ("t2", "t1c", "flair")]
    values = [replaced(entry, 10 * int(entry.study[1]) + len(entry.subset)) for entry in lines]
    found = Scores(values).restricted_to(["S3", "S1"], ["flair", "t2"])
    assert (found.studies, found.subsets) == (["S3", "S1"], ["flair", "t2"])
    # flair has 5 letters, t2 has 2.
    assert found.array("dice", "WT").tolist() == [[35, 32], [15, 12]]
    assert {(entry.study, entry.subset) for entry in found.lines} == {
        ("S1", "t2"), ("S1", "flair"), ("S3", "t2"), ("S3", "flair"),
    }  # fmt: skip


def replaced(entry, value):
    return line(entry.study, entry.subset, value=value)


def test_a_study_without_a_line_keeps_its_row():
    found = Scores([line("S1")]).restricted_to(["S0", "S1"], ["t1c"])
    np.testing.assert_array_equal(found.array("dice", "WT"), [[math.nan], [0.5]])


def test_complete_are_the_studies_scored_on_every_subset_whatever_came_out():
    lines = [
        line("whole", "t1c"), line("whole", "flair", value=math.nan),
        line("part", "t1c"),
        line("also", "flair"), line("also", "t1c"),
    ]  # fmt: skip
    assert Scores(lines).complete == ["whole", "also"]


# The file


def test_the_file_is_a_line_for_each_score_with_six_decimals(tmp_path):
    lines = [
        line("S1", "t1+t1c", "WT", "dice", 1 / 3, 12.3456789, 2.0),
        line("S, 2", "flair", "ET_pp", "hd95", math.nan, 0.0, 0.0000004),
    ]
    write_scores(tmp_path / "scores.csv", lines)
    assert (tmp_path / "scores.csv").read_bytes().decode() == (
        f'{HEADER}\nS1,t1+t1c,WT,dice,clinical,0.333333,12.345679,2.0\n"S, 2",flair,ET_pp,hd95,clinical,nan,0.0,0.0\n'
    )


def test_what_was_written_is_read(tmp_path):
    lines = [line("Ü, 1", "t1c+flair", "ET", "ece", 0.125, 0.5, 4.0), line("S2", value=2.0)]
    write_scores(tmp_path / "scores.csv", lines)
    assert read_scores(tmp_path / "scores.csv").lines == lines


def test_columns_are_read_by_their_names(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(
        "value,reference_ml,predicted_ml,protocol,metric,region,subset,study\n0.5,3,2,rfnet,hd95,TC,flair,S9\n"
    )
    assert read_scores(path).lines == [Score("S9", "flair", "TC", "hd95", "rfnet", 0.5, 2.0, 3.0)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{HEADER.replace(',value', '')}\nS1,t1c,WT,dice,clinical,1,2\n", "'value'"),
        (f"{HEADER}\nS1,t1c,WT,dice,clinical,high,1,2\n", "could not convert string to float: 'high'"),
        (
            f"{HEADER}\nS1,t1c,WT,dice,clinical,0.5,1\n",
            "float() argument must be a string or a real number, not 'NoneType'",
        ),
        (f"{HEADER}\n{'S' * 140_000},t1c,WT,dice,clinical,0.5,1,2\n", "field larger than field limit (131072)"),
    ],
    ids=["a column is missing", "a word for a number", "a line is cut", "a cell without end"],
)
def test_a_damaged_file_is_refused(tmp_path, text, reason):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_scores(path)
    assert str(caught.value) == f"{path} does not hold scores ({reason}). Make them with `glimpseg evaluate`."


def test_a_file_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    with pytest.raises(InputError) as caught:
        read_scores(path)
    reason = f"[Errno 2] No such file or directory: '{path}'"
    assert str(caught.value) == f"{path} does not hold scores ({reason}). Make them with `glimpseg evaluate`."


def test_a_file_without_a_line_is_refused(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(f"{HEADER}\n")
    with pytest.raises(InputError) as caught:
        read_scores(path)
    assert str(caught.value) == f"{path} has no score. Run `glimpseg evaluate` again."


# Names on the command line


def test_metrics_are_named_in_any_order_and_come_in_that_of_tables():
    assert metrics_named(" brier, dice ,hd95") == ("dice", "hd95", "brier")
    assert metrics_named("dice,dice") == ("dice",)


def test_all_are_twelve_metrics():
    assert metrics_named("all") == tuple(METRICS)
    assert len(METRICS) == 12


NAMES = (
    "dice, hd95, hd95_pooled, surface_dice_1mm, surface_dice_2mm, lesion_dice, lesion_hd95, volume_error, sensitivity, "
    "specificity, ece, brier"
)


def test_the_first_unknown_metric_is_named():
    with pytest.raises(UsageError) as caught:
        metrics_named("dice,jaccard,iou")
    assert str(caught.value) == f"'jaccard' is not a metric. Choose among {NAMES}, or all."


@pytest.mark.parametrize("text", ["", "  "])
def test_no_metric_is_refused(text):
    with pytest.raises(UsageError) as caught:
        metrics_named(text)
    assert str(caught.value) == f"--metrics names none. Choose among {NAMES}, or all."
