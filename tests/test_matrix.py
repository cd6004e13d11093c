"""The matrix of Pythons and dependencies: every extra has a row and a check, and a check fails where it should."""

import importlib.util
import json
import sys
import tomllib
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


matrix, checks = tool("matrix"), tool("matrix_checks")


def test_every_extra_has_rows_and_checks():
    rows = matrix.rows_of(PROJECT)
    assert len({row.name for row in rows}) == len(rows)
    for extra in PROJECT["optional-dependencies"]:
        assert {"lowest", "newest"} <= {row.dependencies for row in rows if row.extra == extra}
        assert set(matrix.CHECKS.get(extra, (extra,))) <= set(checks.EXTRAS)
    for python in ("3.11", "3.12", "3.13", "3.14"):
        assert f"{python} lowest" in [row.name for row in rows]


def test_all_brings_every_optional_library():
    (text,) = PROJECT["optional-dependencies"]["all"]
    assert set(text.removeprefix("glimpseg[").removesuffix("]").split(",")) == set(matrix.SINGLE)


def test_an_extra_without_a_row_is_an_error():
    with pytest.raises(matrix.RowError, match="novel"):
        matrix.rows_of({"optional-dependencies": {**PROJECT["optional-dependencies"], "novel": ["six"]}})


def test_a_missing_interpreter_is_said_and_is_no_failure(tmp_path):
    row = matrix.Row("3.14", "newest")
    result = {**matrix.tried(row, None, tmp_path / "wheel", tmp_path, keep=False), "seconds": 0}
    assert not result["failed"]
    assert "| 3.14 | newest | - | no interpreter here |" in matrix.table([row], {row.name: result}, PROJECT)


def test_the_table_names_the_versions_and_the_failure():
    row = matrix.Row("3.11", "lowest", "fast")
    result = {
        "versions": {"edt": "3.0.0", "connected-components-3d": "3.20.0", "isal": "1.6.0"},
        "checks": {"fast": {"ok": False, "note": "a score\n differs", "seconds": 1}},
        "failed": "fast: a score differs",
        "seconds": 7,
    }
    line = matrix.table([row], {row.name: result}, PROJECT).splitlines()[-1]
    assert line == (
        "| 3.11 | lowest | fast | edt 3.0.0, connected-components-3d 3.20.0, isal 1.6.0 | - | - | - | - "
        "| FAILED: a score differs | 7 |"
    )


def test_results_of_other_rows_stay(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "3.11 newest.json").write_text(json.dumps({"failed": ""}))
    assert matrix.read_results(tmp_path) == {"3.11 newest": {"failed": ""}}


@pytest.mark.parametrize(
    ("module", "category", "fails"),
    [
        ("glimpseg.volume", DeprecationWarning, True),
        ("glimpseg", FutureWarning, True),
        ("glimpseg.volume", UserWarning, False),
        ("glimpsegx.volume", DeprecationWarning, False),
        ("torch.nn", DeprecationWarning, False),
    ],
)
def test_only_deprecated_calls_of_our_modules_are_errors(module, category, fails):
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        exec(matrix.WARNINGS, {}, {})  # as site.py does: two scopes
        if not fails:
            warnings.warn_explicit("old", category, "file.py", 1, module=module)
            return
        with pytest.raises(category):
            warnings.warn_explicit("old", category, "file.py", 1, module=module)


def written(path, labels):
    nibabel.save(nibabel.Nifti1Image(np.array(labels, np.uint8).reshape(-1, 1, 1), np.eye(4)), path)
    return path


def test_label_maps_of_two_environments_may_differ_by_rounding_only(tmp_path):
    expected = written(tmp_path / "a.nii", [1] * 100 + [2] * 200 + [0] * 100)
    assert checks.agreement(written(tmp_path / "b.nii", [1] * 100 + [2] * 200 + [0] * 100), expected) == "same voxels"
    # Label 1: 99 of 100 voxels in common with 99; Dice 2 * 99 / 199. Label 2: Dice 400 / 401.
    moved = written(tmp_path / "c.nii", [1] * 99 + [2] * 201 + [0] * 100)
    assert checks.agreement(moved, expected) == f"1 voxels, Dice {198 / 199:.4f}"
    # Dice 2 * 98 / 198 = 0.9899.
    with pytest.raises(checks.CheckError, match=r"2 voxels differ; least Dice of a label 0\.9899"):
        checks.agreement(written(tmp_path / "d.nii", [1] * 98 + [2] * 202 + [0] * 100), expected)
    with pytest.raises(checks.CheckError, match="no label"):
        checks.agreement(moved, written(tmp_path / "e.nii", [0] * 400))
