"""Comparisons of evaluations, from the tests to the page."""

import csv
import json
import re
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from scipy import stats

from conftest import AFFINE, head, small_recipe, write_head
from glimpseg import methods
from glimpseg.cli.entry import app
from glimpseg.data.layouts import find_studies
from glimpseg.errors import InputError, OutputError, UsageError
from glimpseg.evaluation.compare import compare
from glimpseg.evaluation.evaluate import evaluate
from glimpseg.evaluation.options import EvaluationOptions
from glimpseg.modality import Modality, parse
from glimpseg.model.folder import save_model
from glimpseg.report import comparison_text, write_html
from glimpseg.results.comparison import read_comparison
from glimpseg.results.folder import read_evaluation
from glimpseg.segmentation import predict

SUBSETS = (parse("t1c"), parse("flair"), parse("t1c+flair"))
METRICS = ["dice", "hd95", "ece"]
IN_ONE_PIECE = {"data__sampling__patch": [24, 24, 24]}
"""A head is seen without windows."""


@pytest.fixture(scope="module")
def runs(archive, tmp_path_factory):
    """Two evaluations of untrained networks, of seeds 0 and 1."""
    place = tmp_path_factory.mktemp("runs")
    studies = find_studies(archive)
    for seed in range(2):
        recipe = small_recipe(seed=seed, **IN_ONE_PIECE)
        torch.manual_seed(seed)
        save_model(place / f"model{seed}", methods.build(recipe).state_dict(), recipe, {"steps": 0})
        model = predict.load(place / f"model{seed}", "cpu")
        evaluate(model, studies, place / f"run{seed}", EvaluationOptions(subsets=SUBSETS, metrics=METRICS))
    return [place / "run0", place / "run1"]


@pytest.fixture(scope="module")
def model(runs):
    return predict.load(runs[0].parent / "model0", "cpu")


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_report_that_the_disk_refuses_leaves_no_comparison_in_the_way(runs, tmp_path, monkeypatch):
    def full(*args):
        raise OutputError(28, "full")

    words = ["compare", *map(str, runs), "--metrics", "dice", "-o", str(tmp_path / "out")]
    with monkeypatch.context() as patched, pytest.raises(OutputError):
        patched.setattr("glimpseg.report.write_html", full)
        app(words, standalone_mode=False)
    assert not list(tmp_path.iterdir())
    app(words, standalone_mode=False)
    assert {"comparison.json", "report.html"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_a_model_of_imported_weights_is_reported_and_compared_as_such(runs, archive, tmp_path):
    recipe = small_recipe(**IN_ONE_PIECE)
    torch.manual_seed(5)
    imported = {"imported": {"file": "model_last.pth", "sha256": "00" * 32}}
    save_model(tmp_path / "m", methods.build(recipe).state_dict(), recipe, imported)
    studies = find_studies(archive)
    evaluate(
        predict.load(tmp_path / "m", "cpu"),
        studies,
        tmp_path / "e",
        EvaluationOptions(subsets=SUBSETS, metrics=METRICS),
    )
    compare([runs[0], tmp_path / "e"], tmp_path / "c", metrics=METRICS)
    for page in (write_html(tmp_path / "e"), write_html(tmp_path / "c")):
        assert "weights imported from model_last.pth" in page.read_text("utf-8")


def test_of_two_methods_only_what_both_have_is_said_to_differ(runs, archive, tmp_path):
    recipe = small_recipe("rfnet", seed=3, **IN_ONE_PIECE)
    torch.manual_seed(5)
    save_model(tmp_path / "m", methods.build(recipe).state_dict(), recipe, {"steps": 0})
    studies = find_studies(archive)
    evaluate(
        predict.load(tmp_path / "m", "cpu"),
        studies,
        tmp_path / "e",
        EvaluationOptions(subsets=SUBSETS[:1], metrics=["dice"]),
    )
    compare([*runs, tmp_path / "e"], tmp_path / "c", metrics=["dice"])
    changes = json.loads((tmp_path / "c" / "comparison.json").read_text())["runs"]["C"]["changes"]
    assert {"method", "seed"} <= set(changes)
    assert not any(name.startswith("config.") for name in changes)
    assert "against 2 others</h1>" in write_html(tmp_path / "c").read_text("utf-8")


# Numbers


def test_every_subset_region_and_mean_is_compared(runs, tmp_path):
    lines = compare(runs, tmp_path / "c", metrics=METRICS).tests
    keys = {(line.metric, line.region, line.subset) for line in lines}
    assert len(lines) == len(keys) == 4 * (4 + 4 + 3)  # 3 subsets and their mean; ET_pp has no calibration


def test_differences_are_those_of_the_scores(runs, tmp_path):
    lines = compare(runs, tmp_path / "c").tests
    a, b = (read_evaluation(run).scores.array("hd95", "TC") for run in runs)
    line = next(x for x in lines if (x.metric, x.region, x.subset) == ("hd95", "TC", "t1c"))
    column = read_evaluation(runs[0]).scores.subsets.index("t1c")
    assert line.difference == pytest.approx((b - a)[:, column].mean())
    mean = next(x for x in lines if (x.metric, x.region, x.subset) == ("hd95", "TC", "mean"))
    assert mean.difference == pytest.approx((b - a).mean())


def test_p_values_are_scipys_and_adjusted_over_the_family(runs, tmp_path):
    lines = [x for x in compare(runs, tmp_path / "c").tests if x.metric == "dice" and x.subset != "mean"]
    a, b = (read_evaluation(run).scores for run in runs)
    for line in lines:
        column = a.subsets.index(line.subset)
        gain = (b.array("dice", line.region) - a.array("dice", line.region))[:, column]
        expected = stats.wilcoxon(gain[gain != 0]).pvalue if (gain != 0).any() else 1.0
        assert line.p == pytest.approx(expected)
    smallest = min(lines, key=lambda x: x.p)
    assert smallest.p_holm == pytest.approx(min(1, smallest.p * len(lines)))


def test_a_run_against_its_copy_differs_in_nothing(runs, model, archive, tmp_path):
    evaluate(model, find_studies(archive), tmp_path / "copy", EvaluationOptions(subsets=SUBSETS, metrics=METRICS))
    lines = compare([runs[0], tmp_path / "copy"], tmp_path / "c").tests
    assert {(line.difference, line.p, line.effect) for line in lines} == {(0.0, 1.0, 0.0)}


def test_the_tests_of_means_are_shown_as_text(runs, tmp_path):
    comparison = compare(runs, tmp_path / "c", metrics=["dice"])
    title, head, *lines = comparison_text(comparison).splitlines()
    assert title == "Dice (%), mean over cases and subsets"
    assert "difference 95 % interval" in " ".join(head.split())
    assert [line.split()[:4] for line in lines] == [["B", "minus", "A", x] for x in comparison.regions("dice")]
    assert all("no interval" in line for line in lines)  # fewer than 8 cases


def test_swapping_the_runs_turns_the_signs(runs, tmp_path):
    one = compare(runs, tmp_path / "c").tests
    other = compare(runs[::-1], tmp_path / "d").tests
    for a, b in zip(one, other, strict=True):
        assert (a.difference, a.effect, a.wins) == pytest.approx((-b.difference, -b.effect, b.losses))
        assert a.p == pytest.approx(b.p)


def test_cases_lie_side_by_side(runs, tmp_path):
    compare(runs, tmp_path / "c", metrics=["dice"])
    lines = rows(tmp_path / "c" / "cases.csv")
    assert len(lines) == 4 * 3 * 4
    scores = read_evaluation(runs[1]).scores
    line = next(x for x in lines if (x["study"], x["subset"], x["region"]) == ("S2", "flair", "WT"))
    assert float(line["B"]) == pytest.approx(scores.array("dice", "WT")[2, scores.subsets.index("flair")], rel=1e-5)


# Runs that do not quite match


def test_other_cases_are_left_out_and_named(runs, model, tmp_path, caplog):
    for seed in (1, 2, 7):
        write_head(tmp_path / "data", f"S{seed}", seed)
    evaluate(
        model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(subsets=SUBSETS, metrics=METRICS)
    )
    lines = compare([runs[0], tmp_path / "e"], tmp_path / "c").tests
    assert {line.cases for line in lines} == {2}
    record = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert record["studies"] == ["S1", "S2"]
    assert record["runs"]["A"]["left_out"] == ["S0", "S3"]
    assert "2 are common to all" in caplog.text
    assert "scored on different cases" in write_html(tmp_path / "c").read_text()


def test_a_case_that_lacks_a_subset_counts_in_the_others(model, runs, tmp_path):
    for seed, sequences in ((0, "t1c"), (1, "t1c+flair"), (2, "t1c+flair")):
        write_head(tmp_path / "data", f"S{seed}", seed, tuple(parse(sequences)))
    evaluate(
        model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(subsets=SUBSETS, metrics=METRICS)
    )
    lines = compare([runs[1], tmp_path / "e"], tmp_path / "c", metrics=["dice"]).tests
    cases = {line.subset: line.cases for line in lines}
    assert cases == {"t1c": 3, "flair": 2, "t1c+flair": 2, "mean": 2}


def test_a_case_without_any_common_subset_keeps_its_place(model, tmp_path):
    # Run B is on flair alone, which S0 lacks: S1 and S2 must not slide into its row.
    for seed, sequences in ((0, "t1c"), (1, "t1c+flair"), (2, "t1c+flair")):
        write_head(tmp_path / "data", f"S{seed}", seed, tuple(parse(sequences)))
    studies = find_studies(tmp_path / "data")
    write_head(tmp_path / "more", "S0", 0, (Modality.FLAIR,))
    evaluate(model, studies, tmp_path / "a", EvaluationOptions(subsets=SUBSETS, metrics=["dice"]))
    both = [*find_studies(tmp_path / "more"), *studies[1:]]
    evaluate(model, both, tmp_path / "b", EvaluationOptions(subsets=[parse("flair")], metrics=["dice"]))
    lines = compare([tmp_path / "a", tmp_path / "b"], tmp_path / "c", metrics=["dice"]).tests
    assert {(line.subset, line.cases, line.difference) for line in lines} == {("flair", 2, 0.0), ("mean", 2, 0.0)}


def test_fewer_than_two_cases_are_refused(runs, model, tmp_path):
    write_head(tmp_path / "data", "S1", 1)
    evaluate(
        model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(subsets=SUBSETS, metrics=METRICS)
    )
    with pytest.raises(InputError, match="at least two cases"):
        compare([runs[0], tmp_path / "e"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_other_protocols_are_refused(runs, model, archive, tmp_path):
    evaluate(
        model,
        find_studies(archive),
        tmp_path / "e",
        EvaluationOptions(protocol="rfnet", subsets=SUBSETS, metrics=METRICS),
    )
    with pytest.raises(InputError, match="A was made under clinical, B was made under rfnet"):
        compare([runs[0], tmp_path / "e"], tmp_path / "c")


def test_other_references_are_refused(runs, model, tmp_path):
    for seed in range(2):
        place = write_head(tmp_path / "data", f"S{seed}", seed)
    labels = head(1)[1].copy()
    labels[labels == 2] = 0
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), place / "S1-seg.nii.gz")
    evaluate(
        model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(subsets=SUBSETS, metrics=METRICS)
    )
    with pytest.raises(InputError, match="S1 was scored against different references"):
        compare([runs[0], tmp_path / "e"], tmp_path / "c")


def test_references_of_equal_volume_are_told_apart(runs, model, tmp_path):
    for seed in range(2):
        place = write_head(tmp_path / "data", f"S{seed}", seed)
    nibabel.save(nibabel.Nifti1Image(head(1)[1][::-1].copy(), AFFINE), place / "S1-seg.nii.gz")
    evaluate(
        model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(subsets=SUBSETS, metrics=METRICS)
    )
    with pytest.raises(InputError, match="S1 was scored against different references"):
        compare([runs[0], tmp_path / "e"], tmp_path / "c")


def test_other_rules_are_refused(runs, tmp_path):
    shutil.copytree(runs[1], tmp_path / "e")
    path = tmp_path / "e" / "evaluation.json"
    record = json.loads(path.read_text())
    record["rules"]["hd95"] = "another definition"
    path.write_text(json.dumps(record))
    assert compare([runs[0], tmp_path / "e"], tmp_path / "c", metrics=["dice"])
    with pytest.raises(InputError, match="B: another definition"):
        compare([runs[0], tmp_path / "e"], tmp_path / "d")


def test_what_is_not_compared_is_said(runs, model, archive, tmp_path, caplog):
    evaluate(model, find_studies(archive), tmp_path / "e", EvaluationOptions(subsets=SUBSETS[:2], metrics=["dice"]))
    compare([runs[0], tmp_path / "e"], tmp_path / "c")
    assert "HD95 is not compared: B lacks it" in caplog.text
    record = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert record["left_out"] == {"metrics": ["hd95"], "subsets": ["t1c+flair"], "regions": []}
    assert "Not compared" in write_html(tmp_path / "c").read_text()


def test_a_test_has_no_verdict_where_mean_and_ranks_disagree(runs, tmp_path):
    # Many cases a little nearer, one missed: the ranks say better, the mean worse.
    test = replace(compare(runs, tmp_path / "c").tests[0], metric="hd95", p_holm=0.001, effect=0.87, difference=11.7)
    assert test.verdict == 0
    assert replace(test, difference=-1.0).verdict == 1
    assert replace(test, metric="dice").verdict == 1


def test_a_comparison_is_read_as_it_was_made(runs, tmp_path):
    made = compare(runs, tmp_path / "c")
    found = read_comparison(tmp_path / "c")
    assert (found.runs, found.studies, found.subsets) == (made.runs, made.studies, made.subsets)
    assert (found.metrics, found.left_out, found.family_sizes) == (made.metrics, made.left_out, made.family_sizes)
    assert [test.p for test in found.tests] == pytest.approx([test.p for test in made.tests], rel=1e-5)
    for metric, region in (("dice", "WT"), ("hd95", "ET")):
        values = (one.values("B", metric, region) for one in (found, made))
        np.testing.assert_allclose(*values, rtol=1e-5)


def test_evaluations_can_be_given_instead_of_their_folders(runs, tmp_path):
    compare(runs, tmp_path / "c")
    compare([read_evaluation(run) for run in runs], tmp_path / "d")
    for name in ("comparison.json", "comparisons.csv", "cases.csv"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()


def test_published_means_are_over_the_rows_that_are_shown(runs, tmp_path):
    compare(runs, tmp_path / "c", published="BraTS2020")
    write_html(tmp_path / "c")
    table = rows(tmp_path / "c" / "tables" / "published-WT.csv")
    assert float(table[-1]["RFNet"]) == pytest.approx(np.mean([float(row["RFNet"]) for row in table[:-1]]), abs=1e-3)


def test_one_run_is_no_comparison(runs, tmp_path):
    with pytest.raises(UsageError, match="at least two"):
        compare(runs[:1], tmp_path / "c")


def test_a_run_given_twice_is_refused(runs, tmp_path):
    with pytest.raises(UsageError, match="given twice"):
        compare([runs[0], runs[0].parent / "." / "run0"], tmp_path / "c")


def test_a_folder_that_is_no_evaluation_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="not an evaluation"):
        compare([runs[0], tmp_path], tmp_path / "c")


def test_metrics_that_were_not_computed_are_refused(runs, tmp_path):
    with pytest.raises(InputError, match="lesion_dice"):
        compare(runs, tmp_path / "c", metrics=["lesion_dice"])


# Pages and tables


def test_the_page_stands_alone(runs, tmp_path):
    compare(runs, tmp_path / "c")
    page = write_html(tmp_path / "c").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_two_seeds_of_one_recipe_are_called_what_they_are(runs, tmp_path):
    compare(runs, tmp_path / "c")
    record = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert record["runs"]["B"]["changes"] == {"seed": [0, 1]}
    assert "spread between trainings" in write_html(tmp_path / "c").read_text()


def test_published_tables_come_with_their_protocols_and_cautions(runs, tmp_path):
    compare(runs, tmp_path / "c", published="brats2020")
    page = write_html(tmp_path / "c").read_text()
    for text in ("DeMoSeg", "8-fold mirroring", "DC-Seg (reproduced)", "219/50/100", "last epoch"):
        assert text in page
    line = rows(tmp_path / "c" / "tables" / "published-ET_pp.csv")[1]
    assert set(line) == {"FLAIR", "T1", "T1c", "T2", "DC-Seg (reproduced)", "A", "B"}


def test_published_tables_follow_the_list_that_was_evaluated(runs, model, archive, tmp_path):
    evaluate(
        model,
        find_studies(archive),
        tmp_path / "e",
        EvaluationOptions(subsets=SUBSETS, metrics=["dice"], split="brats2018-2/test"),
    )
    compare([tmp_path / "e", runs[1]], tmp_path / "c", metrics=["dice"])
    assert json.loads((tmp_path / "c" / "comparison.json").read_text())["published"] == "BraTS2018"


def test_no_published_table_is_shown_unasked(runs, tmp_path):
    compare(runs, tmp_path / "c")
    assert "DeMoSeg" not in write_html(tmp_path / "c").read_text()


def test_an_unknown_published_dataset_is_refused(runs, tmp_path):
    with pytest.raises(UsageError, match="BraTS2024"):
        compare(runs, tmp_path / "c", published="brats1999")


def test_tables_on_disk_are_the_means_of_the_scores(runs):
    write_html(runs[0])
    scores = read_evaluation(runs[0]).scores
    table = rows(runs[0] / "tables" / "table-dice.csv")
    assert [row["cases"] for row in table] == ["4", "4", "4", ""]
    for column, row in enumerate(table[:-1]):
        assert float(row["WT"]) == pytest.approx(100 * scores.array("dice", "WT")[:, column].mean(), abs=1e-3)
        dots = {m for m, title in (("flair", "FLAIR"), ("t1", "T1"), ("t1c", "T1c"), ("t2", "T2")) if row[title] == "1"}
        assert dots == set(scores.subsets[column].split("+"))
    assert float(table[-1]["WT"]) == pytest.approx(100 * scores.array("dice", "WT").mean(), abs=1e-3)


def test_latex_has_a_row_for_each_subset_and_escapes_what_it_must(runs):
    write_html(runs[0])
    text = (runs[0] / "tables" / "table-dice.tex").read_text()
    body = text[text.index(r"\begin{tabular}") :]
    assert body.count(r"\\") == 1 + 3 + 1
    assert r"ET\_pp" in body
    assert body.count(r"$\bullet$") == 1 + 1 + 2
    assert not re.search(r"(?<!\\)%", body)


def test_a_page_of_an_evaluation_says_what_failed_and_what_was_left_out(model, tmp_path):
    write_head(tmp_path / "data", "S0", 0)
    write_head(tmp_path / "data", "S1<b>", 1, reference=False)
    place = write_head(tmp_path / "data", "S2", 2)
    nibabel.save(nibabel.Nifti1Image(head(2)[1], np.eye(4)), place / "S2-seg.nii.gz")
    evaluate(
        model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(subsets=SUBSETS, metrics=["dice"])
    )
    page = write_html(tmp_path / "e").read_text()
    assert "could not be scored" in page
    assert "S1&lt;b&gt;" in page
    assert "S1<b>" not in page


def test_the_same_evaluation_gives_the_same_page(runs):
    assert write_html(runs[0]).read_bytes() == write_html(runs[0]).read_bytes()
