"""Published tables are carried as printed, each with the protocol it was made under."""

import pytest

from glimpseg.errors import UsageError
from glimpseg.evaluation import published
from glimpseg.modality import SUBSETS

TABLES = [table for dataset in published.datasets() for table in published.tables(dataset)]


def table(dataset, method):
    return next(one for one in published.tables(dataset) if one.method == method)


def test_all_1770_values_are_there():
    assert sum(len(one.values) for one in TABLES) == 1770


@pytest.mark.parametrize("one", TABLES, ids=lambda one: f"{one.dataset}-{one.method}")
def test_every_row_of_every_table_is_there(one):
    rows = {(metric, region) for metric, region, _ in one.values}
    assert {("dice", region) for region in ("WT", "TC", "ET")} <= rows
    assert set(one.values) == {(*row, subset.key) for row in rows for subset in SUBSETS}


@pytest.mark.parametrize("one", TABLES, ids=lambda one: f"{one.dataset}-{one.method}")
def test_every_table_says_where_it_is_from_and_how_it_was_made(one):
    assert one.source
    assert one.split
    assert {"ET post-processing", "test-time augmentation", "HD95 for an empty mask", "model kept"} <= set(one.protocol)


@pytest.mark.parametrize(
    ("dataset", "method", "key", "value"),
    [
        ("BraTS2020", "RFNet", ("dice", "WT", "t2"), 86.05),
        ("BraTS2020", "RFNet", ("dice", "WT", "flair"), 87.32),
        ("BraTS2024", "mmFormer", ("dice", "ET", "t1+t1c+flair"), 63.0),
        ("FeTS2024", "RA-HVED", ("hd95", "TC", "t1"), 40.2),
    ],
)
def test_values_are_the_printed_ones(dataset, method, key, value):
    assert table(dataset, method).values[key] == value


@pytest.mark.parametrize(
    ("dataset", "method", "means"),
    [
        ("BraTS2020", "DeMoSeg", (88.90, 81.58, 69.71)),
        ("BraTS2018", "DeMoSeg", (87.96, 79.79, 64.90)),
        ("BraTS2024", "MST-KDNet", (81.78, 59.69, 60.07)),
        ("FeTS2024", "MST-KDNet", (88.4, 84.3, 73.4)),
    ],
)
def test_means_of_the_15_are_those_the_sources_print(dataset, method, means):
    found = table(dataset, method)
    assert [found.mean("dice", region) for region in ("WT", "TC", "ET")] == pytest.approx(means, abs=0.06)


def test_post_processing_is_worth_five_points_of_et_where_both_are_printed():
    found = table("BraTS2020", "DC-Seg (reproduced)")
    assert found.mean("dice", "ET_pp") - found.mean("dice", "ET") == pytest.approx(4.96, abs=0.01)


def test_rows_that_contradict_themselves_are_marked():
    # In these the place of all four sequences holds the mean of the row, below three sequences.
    for method in ("RA-HVED", "RMBTS", "mmFormer", "M2FTrans", "ACN", "SMU-Net"):
        found = table("BraTS2024", method)
        assert ("dice", "WT") in found.doubtful
        assert abs(found.values["dice", "WT", SUBSETS[-1].key] - found.mean("dice", "WT")) < 0.6
    assert not table("BraTS2024", "MST-KDNet").doubtful


def test_a_dataset_is_found_however_it_is_written():
    assert published.tables("brats2020") == published.tables("BraTS2020")


def test_a_dataset_without_tables_is_refused():
    with pytest.raises(UsageError, match="BraTS2018"):
        published.tables("brats1999")
