"""What the pages claim: which case is the worst, which run is better, and in which order rows stand."""

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest

from glimpseg.errors import InputError
from glimpseg.evaluation.published import PublishedTable
from glimpseg.modality import SUBSETS, Modality
from glimpseg.report import comparison, evaluation, figures, write_html
from glimpseg.report.comparison import COLOURS
from glimpseg.results.comparison import ComparedRun, Comparison, LeftOut, PairedTest, write_comparison
from glimpseg.results.folder import Evaluation
from glimpseg.results.scores import METRICS, Score, Scores, write_scores
from glimpseg.results.summary import summary
from glimpseg.results.tables import Cell

NBSP = "\u00a0"


def scores_of(table):
    """Scores from {metric: {region: {study: {subset: value}}}}; 1 ml predicted, 2 ml there."""
    return Scores(
        [
            Score(study, subset, region, metric, "clinical", value, 1.0, 2.0)
            for metric, regions in table.items()
            for region, studies in regions.items()
            for study, row in studies.items()
            for subset, value in row.items()
        ]
    )


def evaluated(scores, record=None, folder=Path("none"), **parts):
    """An evaluation with the summary of its scores, of which single parts may be given."""
    return Evaluation(folder, scores, {**summary(scores, {}), **parts}, record or {"cases": []})


def texts(rows):
    return [[cell.text for cell in row] for row in rows]


# One evaluation: the cases that are shown

DICE = {  # by study: from T1c, and from T1c + FLAIR
    "A": {"t1c": 0.90, "t1c+flair": 0.80},  # mean 0.85
    "B": {"t1c": 0.20, "t1c+flair": 0.40},  # mean 0.30, the worst
    "C": {"t1c": 0.50, "t1c+flair": 0.75},  # mean 0.625
    "D": {"t1c": 0.60, "t1c+flair": 0.40},  # mean 0.50
    "E": {"t1c": 1.00, "t1c+flair": 0.90},  # mean 0.95, the best
}


def shown(table):
    """Title, study and subset of the cases on a page."""
    return [(case["title"], case["study"], case["subset"]) for case in evaluation._cases(evaluated(scores_of(table)))]


def test_the_worst_case_has_the_lowest_dice_and_the_best_the_highest():
    assert shown({"dice": {"WT": DICE}}) == [
        ("worst case", "B", "T1c + FLAIR"),
        ("worst case, its worst subset", "B", "T1c"),
        ("poor case", "D", "T1c + FLAIR"),
        ("poor case", "C", "T1c + FLAIR"),
        ("best case", "E", "T1c + FLAIR"),
    ]


def test_the_worst_case_is_so_over_all_regions_but_post_processed_et():
    # WT and ET together: F (0.5 + 0.5) / 2 = 0.5, G (0.9 + 0.3) / 2 = 0.6. ET alone would name G, and so would ET_pp.
    wt, et = {"F": {"t1c": 0.5}, "G": {"t1c": 0.9}}, {"F": {"t1c": 0.5}, "G": {"t1c": 0.3}}
    post = {"F": {"t1c": 1.0}, "G": {"t1c": 0.0}}
    table = {"dice": {"WT": wt, "ET": et, "ET_pp": post}}
    assert shown(table) == [("worst case", "F", "T1c"), ("best case", "G", "T1c")]


def test_a_case_is_shown_with_the_dice_of_its_subset_in_per_cent():
    table = {"dice": {"WT": DICE, "ET": {study: {s: v / 2 for s, v in row.items()} for study, row in DICE.items()}}}
    worst, subset, *_ = evaluation._cases(evaluated(scores_of(table)))
    assert worst["dice"] == pytest.approx({"WT": 40, "ET": 20})
    assert subset["dice"] == pytest.approx({"WT": 20, "ET": 10})


def test_a_case_that_lacks_subsets_is_judged_and_shown_by_those_it_has():
    # B has T1c alone, 0.5; A 0.25 and 0.75: 0.5 too, and stands first. C from both: 0.25.
    table = {"A": {"t1c": 0.25, "t1c+flair": 0.75}, "B": {"t1c": 0.5}, "C": {"t1c": 0.125, "t1c+flair": 0.375}}
    assert shown({"dice": {"WT": table}}) == [
        ("worst case", "C", "T1c + FLAIR"),
        ("worst case, its worst subset", "C", "T1c"),
        ("poor case", "A", "T1c + FLAIR"),
        ("best case", "B", "T1c"),
    ]


def test_the_worst_subset_of_a_case_is_among_those_it_has():
    table = {"A": {"t1c": 0.5, "flair": 0.25}, "B": {"t2": 1.0, "t1c": 1.0, "flair": 1.0}}
    assert ("worst case, its worst subset", "A", "FLAIR") in shown({"dice": {"WT": table}})


def test_equal_cases_stand_in_their_order():
    table = {f"S{i:02d}": {"t1c": 0.5} for i in range(40)}
    assert [study for _, study, _ in shown({"dice": {"WT": table}})] == ["S00", "S01", "S02", "S39"]


def test_each_case_is_drawn_from_its_own_evaluation_study_and_subset(monkeypatch):
    monkeypatch.setattr(evaluation, "_picture", lambda *which: which)
    of = evaluated(scores_of({"dice": {"WT": DICE}}))
    pictures = [case["picture"] for case in evaluation._cases(of)]
    assert pictures[:3] == [(of, "B", "t1c+flair"), (of, "B", "t1c"), (of, "D", "t1c+flair")]


def test_one_case_is_the_worst_and_not_the_best_too():
    assert shown({"dice": {"WT": {"A": {"t1c": 0.5}}}}) == [("worst case", "A", "T1c")]


def test_without_dice_no_case_is_called_anything():
    assert shown({"hd95": {"WT": {"A": {"t1c": 5.0}}}}) == []


def test_a_picture_shows_the_subset_its_label_map_and_the_reference(tmp_path, monkeypatch):
    """The largest value of each file says which one was read."""

    def write(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        voxels = np.zeros((4, 4, 4), np.uint8)
        voxels[1:3, 1:3, 1:3] = value
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
        return str(path)

    images = {m.key: write(tmp_path / f"{m.key}.nii.gz", 10 * (i + 1)) for i, m in enumerate(Modality)}
    write(tmp_path / "labels" / "B" / "t1+flair.nii.gz", 2)
    write(tmp_path / "labels" / "B" / "t1.nii.gz", 1)
    # 4 is enhancing tumour in BraTS 2021; inside, that is 3.
    case = {"id": "B", "images": images, "reference": write(tmp_path / "seg.nii.gz", 4), "labels": "brats2021"}
    record = {"cases": [{"id": "A"}, case]}
    calls = []
    monkeypatch.setattr(evaluation, "preview", lambda *volumes: calls.append(volumes))
    monkeypatch.setattr(evaluation, "png", lambda figure: "data:")
    of = evaluated(scores_of({"dice": {"WT": {"B": {"t1": 0.5}}}}), record, tmp_path)
    assert evaluation._picture(of, "B", "t1+flair") == "data:"
    [(pictures, labels, reference)] = calls
    assert {m: volume.voxels.max() for m, volume in pictures.items()} == {Modality.T1: 10, Modality.FLAIR: 40}
    assert (labels.voxels.max(), reference.voxels.max()) == (2, 3)


def test_a_case_whose_files_are_gone_has_no_picture(caplog):
    found = evaluation._cases(evaluated(scores_of({"dice": {"WT": {"A": {"t1c": 0.5}}}})))
    assert found[0]["picture"] is None
    assert "No picture of A" in caplog.text


# One evaluation: its tables

HALF = {f"S{i}": {"t1c": float(i < 4), "flair": 0.25} for i in range(8)}
"""T1c: 1 in 4 of 8 cases, else 0, so a mean of 0.5 from 1/8 to 7/8 (see test_statistics). FLAIR: always 0.25."""


@pytest.fixture
def shares(monkeypatch):
    """Colours as the share they stand for: 0 bad, 1 good."""
    monkeypatch.setattr(evaluation, "colour", lambda share: f"{share:.3f}")


def test_a_table_has_a_row_for_each_subset_and_a_column_for_each_region(shares):
    found = evaluation.metric_table(evaluated(scores_of({"dice": {"WT": HALF, "ET": HALF}})), METRICS["dice"])
    assert found.name == "table-dice"
    assert found.title == "Dice (%, mean over cases)"
    assert found.columns == ["FLAIR", "T1", "T1c", "T2", "WT", "ET", "cases"]
    assert (found.note, found.small) == ("Both empty 1, one empty 0", "95 % interval")
    assert texts(found.rows) == [
        ["○", "○", "●", "○", "50.0", "50.0", "8"],
        ["●", "○", "○", "○", "25.0", "25.0", "8"],
    ]
    assert texts([found.footer]) == [["", "", "", "mean", "37.5", "37.5", ""]]  # (50 + 25) / 2


def test_a_mean_carries_its_interval_and_a_colour_by_its_share_of_the_best(shares):
    found = evaluation.metric_table(evaluated(scores_of({"dice": {"WT": HALF}})), METRICS["dice"])
    assert [row[4] for row in found.rows] == [
        Cell("50.0", 50.0, "12.5 to 87.5", {"low": 12.5, "high": 87.5}, "0.500"),
        Cell("25.0", 25.0, "25.0 to 25.0", {"low": 25.0, "high": 25.0}, "0.250"),
    ]
    assert [row[5].value for row in found.rows] == [8, 8]
    # Half way between the two: (12.5 + 25) / 2 to (87.5 + 25) / 2.
    assert found.footer[4] == Cell("37.5", 37.5, "18.8 to 56.2", {"low": 18.75, "high": 56.25}, "")


def test_hd95_carries_the_share_of_missed_tumours_and_less_is_better(shares):
    # With T1c three of four are missed: 0 of 2 ml found. The mean is (2 + 2 + 2 + 14) / 4 = 5 mm; with FLAIR 10 mm.
    lines = [
        Score(f"S{i}", "t1c", "WT", "hd95", "clinical", 14.0 if i == 3 else 2.0, float(i < 1), 2.0) for i in range(4)
    ]
    lines += [Score(f"S{i}", "flair", "WT", "hd95", "clinical", 10.0, 1.0, 2.0) for i in range(4)]
    found = evaluation.metric_table(evaluated(Scores(lines)), METRICS["hd95"])
    # Against the worst of the table, 10 mm: 1 - 5 / 10 and 1 - 10 / 10.
    assert [row[4] for row in found.rows] == [
        Cell("5.0", 5.0, "75 % missed", {"low": None, "high": None, "missed": 0.75}, "0.500"),
        Cell("10.0", 10.0, "0 % missed", {"low": None, "high": None, "missed": 0.0}, "0.000"),
    ]
    assert found.title == "HD95 (mm, mean over cases)"
    assert found.small == "share of cases missed; 95 % interval of the mean"
    assert found.footer[4].text == "7.5"
    assert found.note.startswith("Larger of the two directed 95th percentiles")


def test_a_volume_error_is_better_the_nearer_it_is_to_0(shares):
    table = {"S1": {"t2": -4.0, "t1c": 1.0, "flair": 2.0}}
    found = evaluation.metric_table(evaluated(scores_of({"volume_error": {"WT": table}})), METRICS["volume_error"])
    # Against the largest, 4 ml: 1 - 4/4, 1 - 1/4, 1 - 2/4.
    assert [(row[4].text, row[4].colour) for row in found.rows] == [
        ("−4.0", "0.000"),
        ("1.0", "0.750"),
        ("2.0", "0.500"),
    ]


def test_a_table_of_errors_that_are_all_0_is_all_good(shares):
    found = evaluation.metric_table(evaluated(scores_of({"hd95": {"WT": {"S1": {"t1c": 0.0}}}})), METRICS["hd95"])
    assert found.rows[0][4].colour == "1.000"


def test_where_a_metric_is_not_defined_there_is_a_dash(shares):
    # Sensitivity of WT: only with T1c. Of RC: nowhere, so it has no column.
    values = {
        "WT": {"S1": {"t1c": 0.5, "flair": math.nan}, "S2": {"t1c": 0.5}},
        "ET": {"S1": {"t1c": 0.5, "flair": 0.25}},
        "RC": {"S1": {"t1c": math.nan, "flair": math.nan}},
    }
    of = evaluated(scores_of({"sensitivity": values}))
    found = evaluation.metric_table(of, METRICS["sensitivity"])
    assert found.columns[4:] == ["WT", "ET", "cases"]
    assert texts(row[4:] for row in found.rows) == [["50.0", "50.0", "2"], ["–", "25.0", "1"]]
    assert texts([found.footer[4:]]) == [["50.0", "37.5", ""]]


def test_a_subset_without_any_value_counts_no_case(shares):
    values = {"S1": {"t1c": 0.5, "flair": math.nan}}
    found = evaluation.metric_table(evaluated(scores_of({"sensitivity": {"WT": values}})), METRICS["sensitivity"])
    assert texts(row[4:] for row in found.rows) == [["50.0", "1"], ["–", "0"]]


def test_good_is_green_and_bad_is_red():
    found = evaluation.metric_table(
        evaluated(scores_of({"dice": {"WT": {"S1": {"t1c": 1.0, "flair": 0.0}}}})), METRICS["dice"]
    )
    # The ends of ColorBrewer's RdYlGn are #006837 and #a50026; 45 % of that and 55 % white, so 0.45 x + 140.25.
    good, bad = (tuple(bytes.fromhex(row[4].colour[1:])) for row in found.rows)
    assert good == pytest.approx((140, 187, 165), abs=1)
    assert bad == pytest.approx((214, 140, 157), abs=1)


def test_the_terminal_shows_the_first_metric_with_its_title():
    found = evaluation.text_table(evaluated(scores_of({"hd95": {"WT": {"S1": {"t1c": 5.0}}}, "dice": {"WT": HALF}})))
    assert found.split("\n")[0] == "Dice (%, mean over cases)"
    assert found.split("\n")[1].split() == ["FLAIR", "T1", "T1c", "T2", "WT", "cases"]


def test_the_headline_is_the_mean_dice_of_each_region():
    # ET has HD95 alone, so no tile.
    of = evaluated(scores_of({"dice": {"WT": HALF}, "hd95": {"ET": HALF}}))
    assert evaluation._headline(of) == [{"region": "WT", "value": "37.5", "interval": "18.8 to 56.2"}]


def entry(mean, low=None, high=None, cases=9):
    return {"mean": mean, "low": low, "high": high, "cases": cases}


VALUE = {
    "WT": {
        "cases": 9,
        "nothing": 0.125,
        "all": 0.875,
        "sequences": {"t1": entry(0.05, -0.01, 0.1), "t1c": entry(0.1), "t2": entry(0.2), "flair": entry(0.4)},
    },
    "ET": {
        "cases": 9,
        "nothing": 0.25,
        "all": 0.5,
        "sequences": {"t1": entry(-0.05), "t1c": entry(0.3), "t2": entry(0.0), "flair": entry(0.0)},
    },
}


def test_the_table_of_sequence_values_leads_from_no_sequence_to_all():
    [_, found] = evaluation.all_tables(evaluated(scores_of({"dice": {"WT": HALF}}), sequence_value=VALUE)).values()
    assert found.name == "table-sequence-value"
    assert found.title == "Value of each sequence (Dice points, 9 cases with all 15 subsets)"
    assert found.columns == ["sequence", "WT", "ET"]
    # In the columns of the field's tables: FLAIR, T1, T1c, T2. WT: 12.5 + 40 + 5 + 10 + 20 = 87.5.
    assert texts(found.lines) == [
        ["no sequence", "12.5", "25.0"],
        ["FLAIR", "+40.0", "+0.0"],
        ["T1", "+5.0", "−5.0"],
        ["T1c", "+10.0", "+30.0"],
        ["T2", "+20.0", "+0.0"],
        ["all four", "87.5", "50.0"],
    ]
    assert found.footer[1] == Cell("87.5", 87.5)
    assert found.rows[2][1] == Cell("+5.0", 5.0, "−1.0 to 10.0", {"low": -1.0, "high": 10.0})
    assert found.small == "95 % interval"
    assert found.note == (
        "Shapley value: the gain by a sequence, averaged over all orders in which the four can be added. Without any "
        "sequence nothing is found; this is right where the region is empty. Each column adds up to its last row"
    )


def test_tables_hold_four_decimals_of_a_per_cent():
    third = {"WT": {"cases": 9, "nothing": 1 / 3, "all": 2 / 3, "sequences": dict.fromkeys(
        ("t1", "t1c", "t2", "flair"), entry(1 / 3, 1 / 3, 2 / 3)
    )}}  # fmt: skip
    [_, found] = evaluation.all_tables(evaluated(scores_of({"dice": {"WT": HALF}}), sequence_value=third)).values()
    assert (found.rows[0][1].value, found.footer[1].value) == (33.3333, 66.6667)
    assert (found.rows[1][1].value, found.rows[1][1].parts) == (33.3333, {"low": 33.3333, "high": 66.6667})


def added(worse, notably, mean, pairs=7):
    return {"pairs": pairs, "worse": worse, "notably_worse": notably, "mean_change": mean}


def test_the_table_of_monotonicity_gives_shares_of_losses():
    changes = {
        "WT": {"t1c": added(None, None, None, 0), "flair": added(1 / 3, 0.75, 0.4)},
        "TC": {},
        "ET": {"t1c": added(0.25, 0.125, -0.03), "flair": added(1.0, 0.0, -0.005)},
    }
    of = evaluated(scores_of({"dice": {"WT": HALF}}), monotonicity=changes)
    found = evaluation.all_tables(of)["table-monotonicity"]
    assert found.title == "How often one more sequence made a case worse"
    assert found.columns == ["added", "WT", "ET"]
    parts = ("notably_worse", "mean_change", "pairs")
    assert found.rows == [
        [
            Cell("FLAIR"),
            Cell("33 %", 0.333333, "75 % by over a point; mean +40.0", dict(zip(parts, (0.75, 0.4, 7), strict=True))),
            Cell("100 %", 1.0, "0 % by over a point; mean −0.5", dict(zip(parts, (0.0, -0.005, 7), strict=True))),
        ],
        [
            Cell("T1c"),
            Cell("–", ""),
            Cell("25 %", 0.25, "12 % by over a point; mean −3.0", dict(zip(parts, (0.125, -0.03, 7), strict=True))),
        ],
    ]
    assert found.note == (
        "Share of all pairs of a case and a subset in which Dice fell when the sequence was added to the subset"
    )
    assert found.small == "of which notable; mean change"


def test_tables_stand_in_the_order_of_metrics_and_only_where_there_is_something():
    table = {"hd95": {"WT": HALF}, "dice": {"WT": HALF}}
    assert list(evaluation.all_tables(evaluated(scores_of(table), sequence_value=VALUE))) == [
        "table-dice", "table-hd95", "table-sequence-value",
    ]  # fmt: skip
    both = {"dice": {"WT": {"S1": {"t1c": 0.5, "t1c+flair": 0.75}}}}
    assert list(evaluation.all_tables(evaluated(scores_of(both)))) == ["table-dice", "table-monotonicity"]


def test_reliability_curves_are_those_of_a_region_by_subset():
    curves = {"t1c": {"WT": 1, "ET": 2}, "flair": {"WT": 3}, "t2": {"WT": 4}}
    of = evaluated(scores_of({"dice": {"WT": HALF}}), reliability=curves)
    assert evaluation._curves(of, "WT") == {"t1c": 1, "flair": 3}  # T2 was not scored
    assert evaluation._curves(of, "ET") == {"t1c": 2}


# One evaluation: the page

RECIPE = {"seed": 7, "method": "unet"}
RECORD = {
    "finished": True, "recipe": RECIPE, "model": {"name": "m"}, "protocol": "clinical", "split": None, "cases": [],
    "studies": ["A", "B"], "failed": {}, "without_reference": [], "without_subset": [], "incomplete": 0, "rules": {},
    "data": "00", "computed": {}, "seconds": 1, "glimpseg": "0",
}  # fmt: skip


def write_evaluation(folder, scores, **parts):
    write_scores(folder / "scores.csv", scores.lines)
    digest = hashlib.sha256((folder / "scores.csv").read_bytes()).hexdigest()
    (folder / "summary.json").write_text(json.dumps({**summary(scores, {}), **parts}))
    (folder / "evaluation.json").write_text(json.dumps({**RECORD, "scores": digest}))


def figures_of(monkeypatch, module):
    """Figures stay numbers: what would be drawn, in the order of drawing."""
    drawn = []
    for name in ("strips", "heat_map", "sequence_values", "reliability"):
        monkeypatch.setattr(
            module.figures, name, lambda *values, kind=name: drawn.append((kind, *values)) or f"<{kind}>"
        )
    monkeypatch.setattr(module, "svg", lambda figure: figure)
    return drawn


def test_the_page_names_the_worst_case_and_its_dice(tmp_path, monkeypatch):
    figures_of(monkeypatch, evaluation)
    write_evaluation(tmp_path, scores_of({"dice": {"WT": DICE}}))
    page = write_html(tmp_path).read_text("utf-8")
    captions = [" ".join(text.split()) for text in re.findall(r"<figcaption>(.*?)</figcaption>", page, re.S)]
    assert captions[-5:] == [
        "Worst case: B, from T1c + FLAIR. Dice WT 40",
        "Worst case, its worst subset: B, from T1c. Dice WT 20",
        "Poor case: D, from T1c + FLAIR. Dice WT 40",
        "Poor case: C, from T1c + FLAIR. Dice WT 75",
        "Best case: E, from T1c + FLAIR. Dice WT 90",
    ]
    assert "<h1>unet, seed 7: 2 subsets, 5 cases</h1>" in page
    # From T1c (90 + 20 + 50 + 60 + 100) / 5 = 64, from both (80 + 40 + 75 + 40 + 90) / 5 = 65.
    assert "<span>WT Dice, mean over subsets</span><b>64.5</b><span>one case</span>" in page


def test_the_page_draws_dice_in_per_cent_of_every_region_but_post_processed_et(tmp_path, monkeypatch):
    drawn = figures_of(monkeypatch, evaluation)
    curves = {"t1c": {"WT": {"ece": 0.5}}}
    table = {"dice": {region: {"S1": {"t1c": 0.5}, "S2": {"t1c": 0.25}} for region in ("WT", "ET", "ET_pp")}}
    write_evaluation(tmp_path, scores_of(table), reliability=curves, sequence_value=VALUE)
    write_html(tmp_path)
    assert [(d[0], *d[2:]) for d in drawn if d[0] in ("strips", "heat_map")] == [
        ("strips", ["t1c"], "WT Dice in %", (0, 100)),
        ("strips", ["t1c"], "ET Dice in %", (0, 100)),
        ("heat_map", ["t1c"], "WT Dice in %"),
        ("heat_map", ["t1c"], "ET Dice in %"),
    ]
    assert all(d[1].tolist() == [[50], [25]] for d in drawn if d[0] in ("strips", "heat_map"))
    assert [d for d in drawn if d[0] in ("sequence_values", "reliability")] == [
        ("sequence_values", VALUE),
        ("reliability", {"t1c": {"ece": 0.5}}),
    ]
    assert sorted(path.name for path in (tmp_path / "tables").glob("*.csv")) == [
        "table-dice.csv", "table-sequence-value.csv",
    ]  # fmt: skip


def test_the_page_goes_where_it_is_wanted_and_its_tables_beside_the_scores(tmp_path, monkeypatch):
    figures_of(monkeypatch, evaluation)
    write_evaluation(tmp_path, scores_of({"hd95": {"WT": {"S1": {"t1c": 5.0}}}}))
    assert write_html(tmp_path) == tmp_path / "report.html"
    assert write_html(tmp_path, tmp_path / "other.html") == tmp_path / "other.html"
    pages = [(tmp_path / name).read_text("utf-8") for name in ("report.html", "other.html")]
    assert pages[0] == pages[1]
    assert "seed: 7\nmethod: unet\n" in pages[0]  # as it was written
    assert "Worst and best cases" not in pages[0]
    assert (tmp_path / "tables" / "table-hd95.tex").exists()


def test_tables_of_dice_and_hd95_open_the_page_and_the_others_fold(tmp_path, monkeypatch):
    figures_of(monkeypatch, evaluation)
    row = {"S1": {"t1c": 0.5}}
    write_evaluation(tmp_path, scores_of({name: {"WT": row} for name in ("dice", "hd95", "brier", "sensitivity")}))
    page = write_html(tmp_path).read_text("utf-8")
    assert re.findall(r"<h3>(.*?) \(", page) == ["Dice", "HD95"]
    assert re.findall(r"<summary>(.*?) \(", page) == ["Sensitivity", "Brier score"]


def test_the_page_lists_fifty_warnings_and_counts_the_rest(tmp_path, monkeypatch):
    figures_of(monkeypatch, evaluation)
    cases = [{"id": f"S{number:02d}", "warnings": [f"odd {number}"]} for number in range(60)]
    monkeypatch.setitem(RECORD, "cases", [*cases, {"id": "T"}])
    monkeypatch.setitem(RECORD, "notices", {"warnings": ["<x> is closed."], "notes": ["adc is not used."]})
    write_evaluation(tmp_path, scores_of({"hd95": {"WT": {"S1": {"t1c": 5.0}}}}))
    page = write_html(tmp_path).read_text("utf-8")
    rows = re.findall(r'<tr><td class="word">(.*?)</td><td class="word">(.*?)</td></tr>', page)
    assert rows == [("(no single study)", "&lt;x&gt; is closed."), *((f"S{n:02d}", f"odd {n}") for n in range(49))]
    assert "... and 11 more: notes.csv has all of them." in page


def test_a_page_without_warnings_has_no_table_of_them(tmp_path, monkeypatch):
    figures_of(monkeypatch, evaluation)
    write_evaluation(tmp_path, scores_of({"hd95": {"WT": {"S1": {"t1c": 5.0}}}}))
    assert "<h2>Warnings</h2>" not in write_html(tmp_path).read_text("utf-8")


# A comparison

RUNS = {
    letter: ComparedRun(
        folder="", model=f"model-{letter}", method=method, seed=seed, changes={}, trained=f"seed {seed}", commit=None,
        split=None, data="00", cases=8, left_out=[],
    )
    for letter, method, seed in (("A", "unet", 0), ("B", "rfnet", 1), ("C", "unet", 2))
}  # fmt: skip
BETTER, WORSE = COLOURS[1], COLOURS[-1]


def result(b="B", subset="mean", region="WT", metric="dice", **changes):
    """A test: by default B better by 2 points of Dice in 6 of 8 cases, p adjusted 0.03."""
    test = PairedTest(
        a="A", b=b, metric=metric, region=region, subset=subset, cases=8, mean_a=0.80, mean_b=0.82, difference=0.02,
        low=0.005, high=0.0351234, wins=6, losses=2, p=0.01, p_holm=0.03, effect=0.75,
    )  # fmt: skip
    return dataclasses.replace(test, **changes)


def compared(tests=(), cases=(), letters="AB", **parts):
    known = {
        "glimpseg": "0", "runs": {letter: RUNS[letter] for letter in letters}, "studies": ["S1", "S2"],
        "subsets": ["t1c", "t1c+flair"], "metrics": ["dice"], "published": None, "protocol": "clinical",
        "family_sizes": {"dice": 4, "hd95": 6, "volume_error": 2}, "tests": list(tests),
        "left_out": LeftOut(metrics=[], subsets=[], regions=[]), **parts,
    }  # fmt: skip
    values = {}
    for one in cases:
        shape = len(known["studies"]), len(known["subsets"])
        runs = values.setdefault(
            (one["metric"], one["region"]), {letter: np.full(shape, math.nan) for letter in known["runs"]}
        )
        for letter, array in runs.items():
            array[known["studies"].index(one["study"]), known["subsets"].index(one["subset"])] = one[letter]
    return Comparison(**known, case_values=values)


WORSE_LINE = {"difference": -0.02, "low": -0.03, "high": -0.01, "wins": 2, "losses": 6, "effect": -0.75}


@pytest.mark.parametrize(
    ("changes", "colour"),
    [
        ({}, BETTER),
        (WORSE_LINE, WORSE),
        ({"p_holm": 0.05}, ""),  # not below the level
        ({"p_holm": 0.0499}, BETTER),
        ({"difference": -0.02}, ""),  # the ranks say better, the mean worse
        ({"effect": -0.75}, ""),
        ({"difference": 0}, ""),
        # Of distances less is better: 2 mm less with the ranks in favour is better, 2 mm more is worse.
        ({"metric": "hd95", "difference": -2}, BETTER),
        ({"metric": "hd95", "difference": 2, "effect": -0.75}, WORSE),
        ({"metric": "hd95", "difference": 2}, ""),
        # Of volume errors the absolute values are compared, so less is better too.
        ({"metric": "volume_error", "difference": -2}, BETTER),
        ({"metric": "volume_error", "difference": 2, "effect": -0.75}, WORSE),
    ],
)
def test_a_difference_is_green_if_b_is_better_and_red_if_it_is_worse(changes, colour):
    assert (BETTER, WORSE) == ("#cfe8cf", "#f5cfc9")  # pale green, pale red
    found = comparison.difference_table(compared([result(**changes)]), ("A", "B"), changes.get("metric", "dice"))
    assert found.footer[4].colour == colour


def test_a_difference_is_b_minus_a_with_interval_test_and_wins():
    found = comparison.difference_table(compared([result(subset="t1c")]), ("A", "B"), "dice")
    assert found.rows[0][4] == Cell(
        "+2.0",
        2.0,
        f"+0.5{NBSP}to{NBSP}+3.5 p{NBSP}0.030 r{NBSP}+0.75 6:2",
        {"low": 0.5, "high": 3.5123, "p": 0.01, "p_holm": 0.03, "effect": 0.75, "wins": 6, "losses": 2},
        BETTER,
    )


def test_a_loss_has_a_minus_sign_everywhere():
    cell = comparison._difference(result(**WORSE_LINE), 100)
    assert (cell.text, cell.value) == ("−2.0", -2.0)
    assert cell.small == f"−3.0{NBSP}to{NBSP}−1.0 p{NBSP}0.030 r{NBSP}−0.75 2:6"


def test_a_difference_of_few_cases_has_no_interval():
    cell = comparison._difference(result(low=math.nan, high=math.nan), 100)
    assert cell.small.startswith("no interval p")
    assert (cell.parts["low"], cell.parts["high"]) == (None, None)


def test_a_small_p_is_not_shown_as_0():
    assert comparison._p(result(p_holm=0.00099)) == "<0.001"
    assert comparison._p(result(p_holm=0.001)) == "0.001"
    assert comparison._p(result(p_holm=1.0)) == "1.000"


def test_rows_are_subsets_columns_regions_and_the_mean_stands_last():
    lines = [
        result(subset="t1c+flair", difference=0.01, cases=7), result(subset="t1c", difference=0.03),
        result(subset="t1c", region="ET", difference=-0.04, cases=9), result(region="ET", difference=-0.05),
        result(difference=0.02), result(b="C", subset="t1c", difference=0.5), result(metric="hd95", difference=7),
    ]  # fmt: skip
    found = comparison.difference_table(compared(lines), ("A", "B"), "dice")
    assert found.name == "difference-A-B-dice"
    assert found.title == "B minus A: Dice (%)"
    assert found.columns == ["FLAIR", "T1", "T1c", "T2", "WT", "ET", "cases"]
    assert texts(found.lines) == [
        ["○", "○", "●", "○", "+3.0", "−4.0", "9"],  # the larger of 8 and 9 cases
        ["●", "○", "●", "○", "+1.0", "–", "7"],
        ["", "", "", "mean", "+2.0", "−5.0", ""],
    ]
    assert [row[-1].value for row in found.rows] == [9, 7]


def test_a_subset_without_a_test_has_dashes_and_no_case():
    found = comparison.difference_table(compared([result(subset="t1c")]), ("A", "B"), "dice")
    assert texts(row[4:] for row in found.lines) == [["+2.0", "8"], ["–", "0"], ["–", ""]]


def test_the_note_says_which_run_is_better_and_over_how_many_tests():
    found = comparison.difference_table(compared([result()]), ("A", "B"), "dice")
    assert found.note == (
        "Difference of the means over cases. p and r are computed from ranks and may disagree with it. Green: B is "
        "better at the 5 % level after Holm's correction over the 4 tests of this metric. Red: worse. No colour: no "
        "difference was shown, or mean and ranks disagree. r: matched-pairs rank-biserial correlation, above 0 where "
        "B is better"
    )
    assert found.small == "95 % interval, not adjusted; adjusted p, r, wins:losses"
    found = comparison.difference_table(compared([result(metric="volume_error")]), ("A", "B"), "volume_error")
    assert "over the 2 tests" in found.note
    assert found.note.endswith("where B is better. Of volume errors the absolute values are compared")


def test_each_run_stands_beside_the_first_with_its_own_mean():
    lines = [
        result(mean_a=0.80, mean_b=0.82),
        result(b="C", mean_a=0.80, mean_b=0.78, **WORSE_LINE),
        result(region="ET", mean_a=0.5, mean_b=0.5, difference=0.0, p_holm=1.0, effect=0.0),
        result(subset="t1c", mean_a=0.1, mean_b=0.2),
        result(metric="hd95", mean_a=9, mean_b=8),
    ]
    found = comparison.mean_table(compared(lines, letters="ABC"), "dice")
    assert found.name == "means-dice"
    assert found.title == "Dice (%), mean over cases and subsets"
    assert found.columns == ["run", "model", "WT", "ET"]
    assert texts(found.rows) == [
        ["A", "model-A, seed 0", "80.0", "50.0"],
        ["B", "model-B, seed 1", "82.0", "50.0"],
        ["C", "model-C, seed 2", "78.0", "–"],
    ]
    assert found.rows[0][2] == Cell("80.0", 80.0)
    assert found.rows[1][2] == Cell(
        "82.0", 82.0, f"+2.0 (+0.5{NBSP}to{NBSP}+3.5) p{NBSP}0.030",
        {"low": 0.5, "high": 3.5123, "p": 0.01, "p_holm": 0.03, "effect": 0.75, "wins": 6, "losses": 2}, BETTER,
    )  # fmt: skip
    assert found.rows[2][2].small == f"−2.0 (−3.0{NBSP}to{NBSP}−1.0) p{NBSP}0.030"
    assert [row[2].colour for row in found.rows] == ["", BETTER, WORSE]
    assert found.rows[1][3].colour == ""
    assert found.note == (
        "Over the common cases that have every subset. Intervals are not adjusted. Green: better than the first run at "
        "the 5 % level after Holm's correction over the regions and runs of this table; red: worse"
    )
    assert found.small == "difference from the first run with 95 % interval, adjusted p"


def case(study, subset, a, b, region="WT", metric="dice"):
    return {"study": study, "subset": subset, "region": region, "metric": metric, "A": a, "B": b}


CASES = [
    case("S2", "t1c", 0.1, 0.4), case("S1", "t1c+flair", 0.2, 0.5), case("S1", "t1c", 0.3, 0.9),
    case("S2", "t1c", 7, 8, metric="hd95"), case("S2", "t1c+flair", 0.6, 0.7, region="ET"),
]  # fmt: skip


def test_values_stand_in_the_row_of_their_study_and_the_column_of_their_subset():
    found = compared([], CASES)
    np.testing.assert_array_equal(found.values("A", "dice", "WT"), [[0.3, 0.2], [0.1, math.nan]])
    np.testing.assert_array_equal(found.values("B", "dice", "WT"), [[0.9, 0.5], [0.4, math.nan]])
    np.testing.assert_array_equal(found.values("B", "hd95", "WT"), [[math.nan, math.nan], [8, math.nan]])
    np.testing.assert_array_equal(found.values("A", "dice", "ET"), [[math.nan, math.nan], [math.nan, 0.6]])


def test_pairs_and_regions_are_those_that_were_tested():
    found = compared([result(region="RC"), result(b="C", region="WT"), result(region="ET", metric="hd95"), result()])
    assert found.pairs == [("A", "B"), ("A", "C")]
    assert (found.regions("dice"), found.regions("hd95")) == (["WT", "RC"], ["ET"])


def test_dots_lie_on_the_right_where_b_gained(monkeypatch):
    drawn = figures_of(monkeypatch, comparison)
    comparison._difference_strips(compared([], CASES), ("A", "B"), "WT")
    [(_, values, subsets, label)] = drawn
    # 0.9 - 0.3, 0.5 - 0.2, 0.4 - 0.1, in points of Dice.
    np.testing.assert_allclose(values, [[60, 30], [30, math.nan]])
    assert (subsets, label) == (["t1c", "t1c+flair"], "WT: Dice points, B minus A")


def published(method, values, doubtful=()):
    """Dice of WT from T1c, T1c + FLAIR and T2, which stands for all."""
    return PublishedTable(
        dataset="BraTS2020", method=method, split="219/50/100", source=f"{method} paper",
        protocol={"scored on": f"box of {method}"}, cautions=(), doubtful=frozenset(doubtful),
        values={("dice", "WT", subset): x for subset, x in zip(("t1c", "t1c+flair", "t2"), values, strict=True)},
    )  # fmt: skip


def test_published_dice_stands_beside_ours_in_per_cent():
    tables = [published("RFNet", (70.25, 80.5, 60.0)), published("mmFormer", (71, 82, 0), {("dice", "WT")})]
    found = comparison.published_table(compared([result()], CASES), tables, "WT")
    assert found.name == "published-WT"
    assert found.title == "WT Dice (%) as published on BraTS2020, and runs A, B"
    assert found.columns == ["FLAIR", "T1", "T1c", "T2", "RFNet", "mmFormer", "A", "B"]
    # Ours over cases: T1c (0.3 + 0.1) / 2 and (0.9 + 0.4) / 2; T1c + FLAIR of S1 alone.
    assert texts(found.lines) == [
        ["○", "○", "●", "○", "70.25", "71.00†", "20.0", "65.0"],
        ["●", "○", "●", "○", "80.50", "82.00†", "20.0", "50.0"],
        ["", "", "", "mean", "75.38", "76.50", "20.00", "57.50"],  # over the two rows: (70.25 + 80.5) / 2 = 75.375
    ]
    assert [cell.value for cell in found.rows[0][4:]] == pytest.approx([70.25, 71, 20, 65])
    assert [cell.value for cell in found.footer[4:]] == pytest.approx([75.375, 76.5, 20, 57.5])
    assert found.note == (
        "The columns were made under different protocols: read the table of protocols first. †: the source "
        "contradicts itself, see the cautions"
    )


def test_tables_of_a_comparison_hold_four_decimals():
    # Ours from T1c 1 / 3 and 2 / 3, from both 2 / 3: over the two rows 1 / 2 and 2 / 3.
    cases = [case("S1", "t1c", 1 / 3, 2 / 3), case("S1", "t1c+flair", 2 / 3, 2 / 3)]
    tables = [published("RFNet", (70, 80.3333333, 60))]
    found = comparison.published_table(compared([result()], cases), tables, "WT")
    assert found.title == "WT Dice (%) as published on BraTS2020, and runs A, B"
    assert [cell.value for cell in found.rows[0][5:]] == [33.3333, 66.6667]
    assert [cell.value for cell in found.footer[4:]] == [75.1667, 50.0, 66.6667]  # (70 + 80.3333333) / 2
    assert comparison._difference(result(difference=1 / 3), 100).value == 33.3333


def test_a_region_that_nobody_published_or_that_we_lack_has_no_table():
    tables = [published("RFNet", (70, 80, 60))]
    assert comparison.published_table(compared([result(region="ET")], CASES), tables, "ET") is None
    assert comparison.published_table(compared([result(region="ET")], CASES), tables, "WT") is None
    assert comparison.published_table(compared([result()], CASES), [], "WT") is None


def test_each_column_of_published_tables_has_its_protocol():
    tables = [published("RFNet", (1, 1, 1)), dataclasses.replace(published("X", (1, 1, 1)), protocol={"other": "y"})]
    runs = {"A": dataclasses.replace(RUNS["A"], split="brats2020-1/test"), "B": RUNS["B"]}
    found = comparison.protocol_table(compared(runs=runs), tables)
    assert (found.name, found.title) == ("published-protocols", "The protocol each column was made under")
    assert found.columns == ["method", "split", "scored on", "other", "source"]
    assert texts(found.rows) == [
        ["RFNet", "219/50/100", "box of RFNet", "not stated", "RFNet paper"],
        ["X", "219/50/100", "not stated", "y", "X paper"],
        ["A", "brats2020-1/test", "the whole volume", "not stated", "this comparison, protocol clinical"],
        ["B", "no list, 2 cases", "the whole volume", "not stated", "this comparison, protocol clinical"],
    ]


def test_runs_are_named_by_method_and_seed_or_by_model_where_those_are_equal():
    a, b, c = RUNS.values()
    assert comparison._run_names([a, b]) == ["unet (seed 0)", "rfnet (seed 1)"]
    assert comparison._run_names([a, dataclasses.replace(a, model="other"), c]) == ["model-A", "other", "model-C"]


def test_the_heading_names_two_runs_or_counts_the_others():
    assert comparison._title(["x", "y"]) == "x against y"
    assert comparison._title(["x", "y", "z"]) == "x against 2 others"


def test_the_smallest_p_of_n_cases_is_two_of_all_their_signs():
    # Two of the 2^n ways to give n differences a sign: 2 / 2^5 = 0.0625, 2 / 2^10 = 0.00195, 2 / 2^11 = 0.000977.
    assert [comparison._smallest_p(n) for n in (5, 10, 11)] == ["0.062", "0.002", "9.8e-04"]


# A comparison: the page


LINES = [result(), result(region="ET_pp"), result(metric="hd95", difference=-2), result(b="C")]


def test_the_page_of_a_comparison_holds_every_pair_metric_and_region(tmp_path, monkeypatch):
    drawn = figures_of(monkeypatch, comparison)
    parts = {
        "metrics": ["dice", "hd95"],
        "runs": {**{x: RUNS[x] for x in "AB"}, "C": dataclasses.replace(RUNS["C"], changes={"seed": [0, 2]})},
    }
    write_comparison(tmp_path, compared(LINES, [{**line, "C": 0.5} for line in CASES], **parts))
    assert write_html(tmp_path) == tmp_path / "report.html"
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<h1>unet (seed 0) against 2 others</h1>" in page
    assert re.findall(r"<h3>(.*?)</h3>", page) == [
        "Dice (%), mean over cases and subsets", "HD95 (mm), mean over cases and subsets",
        "B minus A: Dice (%)", "B minus A: HD95 (mm)", "C minus A: Dice (%)", "C minus A: HD95 (mm)",
    ]  # fmt: skip
    assert re.findall(r"<figcaption>(.*?)</figcaption>", page) == ["B minus A, WT", "C minus A, WT"]
    assert [label for *_, label in drawn] == ["WT: Dice points, B minus A", "WT: Dice points, C minus A"]
    assert "no single p value can be below 0.500 before adjustment" in page  # 2 cases: 2 / 2^2
    assert "C and the first run are trainings of one recipe that differ in the seed alone." in page
    assert "Published tables" not in page
    assert sorted(path.stem for path in (tmp_path / "tables").glob("*.csv")) == [
        "difference-A-B-dice", "difference-A-B-hd95", "difference-A-C-dice", "difference-A-C-hd95", "means-dice",
        "means-hd95",
    ]  # fmt: skip


def test_published_tables_stand_beside_a_comparison_with_their_protocols(tmp_path, monkeypatch):
    figures_of(monkeypatch, comparison)
    runs = {"A": dataclasses.replace(RUNS["A"], split="brats2020-1/test"), "B": RUNS["B"]}
    subsets = [subset.key for subset in SUBSETS]
    cases = [case(study, subset, 0.5, 0.25) for study in ("S1", "S2") for subset in subsets]
    write_comparison(tmp_path, compared([result()], cases, runs=runs, subsets=subsets, published="BraTS2020"))
    target = write_html(tmp_path, tmp_path / "elsewhere.html")
    assert target == tmp_path / "elsewhere.html"
    page = target.read_text("utf-8")
    assert "The protocol each column was made under" in page
    assert "WT Dice (%) as published on BraTS2020, and runs A, B" in page
    assert "B was not evaluated on a published list of BraTS2020" in page
    assert "<h3>Cautions</h3>" in page
    assert sorted(path.stem for path in (tmp_path / "tables").glob("*.csv")) == [
        "difference-A-B-dice", "means-dice", "published-WT", "published-protocols",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["comparison.json", "comparisons.csv", "cases.csv"])
def test_a_folder_that_lacks_a_file_is_no_comparison(tmp_path, name):
    write_comparison(tmp_path, compared([result()], CASES))
    (tmp_path / name).unlink()
    with pytest.raises(InputError) as caught:
        comparison.write_html(tmp_path)
    reason = "No such file or directory"
    if name != "comparison.json":
        reason = f"[Errno 2] {reason}: '{tmp_path / name}'"
    assert str(caught.value) == f"{tmp_path} is not a comparison ({reason}). Make one with `glimpseg compare`."


# Figures: what is drawn where


def bars_of(axes):
    """The vertical bars of the medians: (place, row)."""
    lines = (line.get_data() for line in axes.lines if len(line.get_xdata()) == 2)
    return [(x[0], (y[0] + y[1]) / 2) for x, y in lines if x[0] == x[1] and y[0] != y[1]]


def test_each_case_is_a_dot_in_the_row_of_its_subset_with_the_median_as_a_bar():
    # Medians of 10 20 90 and of 40 60: 20 and 50.
    values = np.array([[10.0, 40.0], [90.0, math.nan], [20.0, 60.0]])
    axes = figures.strips(values, ["t1c", "flair"], "Dice", (0, 100)).axes[0]
    dots = [collection.get_offsets().data for collection in axes.collections]
    assert [sorted(row[:, 0]) for row in dots] == [[10, 20, 90], [40, 60]]
    assert all(abs(row[:, 1] - i).max() < 0.5 for i, row in enumerate(dots))
    assert bars_of(axes) == [(20, 0), (50, 1)]
    assert axes.get_xlim() == (-2, 102)  # 2 % more than the range at each end
    assert axes.get_ylim() == (1.5, -0.5)  # the first subset on top
    assert axes.get_xlabel() == "Dice"


def test_differences_lie_around_a_line_at_0():
    axes = figures.strips(np.array([[-5.0], [5.0]]), ["t1c"], "Dice").axes[0]
    at_zero = [list(line.get_ydata()) for line in axes.lines if list(line.get_xdata()) == [0, 0]]
    assert at_zero == [[-0.38, 0.38], [0, 1]]  # the median of -5 and 5, and the line over the whole height


def test_a_subset_without_a_case_has_no_bar():
    axes = figures.strips(np.array([[math.nan, 5.0]]), ["t1c", "flair"], "Dice", (0, 100)).axes[0]
    assert bars_of(axes) == [(5, 1)]


def test_a_heat_map_has_the_best_case_on_the_left_and_a_row_for_each_subset():
    # Means of the cases: 30, 80 and 50 (one subset alone).
    values = np.array([[20.0, 40.0], [70.0, 90.0], [50.0, math.nan]])
    axes = figures.heat_map(values, ["t1c", "flair"], "Dice").axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(shown, math.nan), [[70, 50, 20], [90, math.nan, 40]])
    assert axes.images[0].get_clim() == (0, 100)
    assert axes.get_xlabel() == "3 cases, best first"


def test_bars_stand_for_sequences_in_the_order_of_the_tables():
    axes = figures.sequence_values(VALUE).axes[0]
    # Each sequence is drawn for WT and ET in turn: FLAIR, T1, T1c, T2.
    heights = [patch.get_height() for patch in axes.patches]
    assert heights == pytest.approx([40, 0, 5, -5, 10, 30, 20, 0])
    middles = [patch.get_x() + patch.get_width() / 2 for patch in axes.patches]
    assert middles == pytest.approx([-0.3, 0.7, -0.1, 0.9, 0.1, 1.1, 0.3, 1.3])  # around 0 and 1, 0.2 apart
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["FLAIR", "T1", "T1c", "T2"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["WT", "ET"]
    # The one interval, of T1 in WT: -1 to 10.
    [interval] = [line.get_data() for line in axes.lines if line.get_xdata()[0] == pytest.approx(-0.1)]
    assert interval[1] == pytest.approx([-1, 10])


def test_a_reliability_curve_is_observed_over_predicted_in_bins_of_100_voxels():
    # Bins of 100, 99 and 200 voxels: the middle one is left out. Predicted 10 / 100 and 150 / 200, observed 20 and 100.
    curve = {"voxels": [100, 99, 200], "predicted": [10.0, 50.0, 150.0], "observed": [20, 50, 100]}
    axes = figures.reliability({"t1c": curve, "t1c+flair": curve, "t1+t1c+t2+flair": curve}).axes[0]
    diagonal, *curves = [line.get_xydata().tolist() for line in axes.lines]
    assert diagonal == [[0, 0], [1, 1]]
    assert curves == [[[0.1, 0.2], [0.75, 0.5]]] * 3
    # Single sequences and all four are named; the others are grey.
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["T1c", "all four"]
    assert [line.get_color() for line in axes.lines[1:]] == ["#d55e00", "#c3ccd4", "#1c2733"]


def test_filled_dots_are_the_sequences_of_a_subset():
    axes = figures.strips(np.array([[5.0, 5.0]]), ["t1c+flair", "t1"], "Dice", (0, 100)).axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    # Columns FLAIR, T1, T1c, T2 from left to right; in each the rows of both subsets.
    filled = {(line.get_xdata()[0], line.get_ydata()[0]): line.get_markerfacecolor() != "none" for line in dots}
    columns = sorted({x for x, _ in filled})
    assert [filled[x, 0] for x in columns] == [True, False, True, False]
    assert [filled[x, 1] for x in columns] == [False, True, False, False]
    titles = sorted((text.get_position()[0], text.get_text()) for text in axes.texts)
    assert [text for _, text in titles] == ["FLAIR", "T1", "T1c", "T2"]
