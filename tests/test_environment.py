"""Environments: a user id that the system does not know, no home, a home that cannot be written, read-only input."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import glimpseg
from conftest import write_archive, write_model
from glimpseg.runtime.environment import CACHES, complete_environment

UNKNOWN = 54321
"""A user id without an entry in the password database."""


def others_may_read(path):
    """True if users without rights of their own can read a file, and open all folders above it."""
    path = Path(path).resolve()
    return bool(path.stat().st_mode & 0o004) and all(above.stat().st_mode & 0o001 for above in path.parents)


def runs_for_others():
    base = Path(sys.base_prefix)
    return others_may_read(sys.executable) and others_may_read(glimpseg.__file__) and others_may_read(base / "bin")


needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root can take another user id (with setpriv)",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Studies and a model that everybody may read and nobody else may write; and a folder `out` for everybody."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="glimpseg-env-"))
    folder.chmod(0o755)
    write_archive(folder / "data")
    write_model(folder / "model")
    (folder / "home").mkdir(mode=0o555)
    (folder / "out").mkdir()
    (folder / "out").chmod(0o777)
    for path in (folder / "data").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (folder / "data").chmod(0o555)
    for path in (folder / "model").rglob("*"):
        path.chmod(0o444)
    (folder / "model").chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_unknown(place, *arguments, code=None, **environment):
    """Run glimpseg, or a line of Python, as a user without a name, with these variables alone."""
    # The tool keeps the right to open the interpreter, which may lie in root's home; glimpseg itself has none.
    keep = [] if runs_for_others() else ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    command = ["setpriv", "--reuid", str(UNKNOWN), "--regid", str(UNKNOWN), "--clear-groups", *keep, sys.executable]
    source = str(Path(glimpseg.__file__).parents[1])
    return subprocess.run(
        [*command, *(["-m", "glimpseg"] if code is None else ["-c", code]), *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=place,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": source, **environment},
    )  # fmt: skip


ENVIRONMENTS = {
    "no home": {},
    "a home that is not there": {"HOME": "/nowhere"},
    "a read-only home": {"HOME": "home"},
    "no place for temporary files": {"HOME": "/nowhere", "TMPDIR": "/nowhere"},
}


@needs_root
@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_segment_works_for_a_user_without_a_name(place, case):
    variables = {name: str(place / value) for name, value in ENVIRONMENTS[case].items()}
    output = place / "out" / case.replace(" ", "-")
    study = place / "data" / "S0"
    done = as_unknown(
        place, "segment", "--t1c", study / "S0-t1c.nii.gz", "--flair", study / "S0-t2f.nii.gz",
        "-m", place / "model", "-o", output, **variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (output / "seg.nii.gz").stat().st_uid == UNKNOWN
    assert "atplotlib" not in done.stderr
    assert not (place / "~").exists()


@needs_root
def test_a_tree_that_cannot_be_written_is_segmented(place):
    done = as_unknown(place, "segment", "-i", place / "data", "-m", place / "model", "-o", place / "out" / "tree")
    assert done.returncode == 0, done.stderr
    assert len(list((place / "out" / "tree").glob("*/seg.nii.gz"))) == 4


@needs_root
@pytest.mark.parametrize("module", ["glimpseg.segmentation.predict", "torch._dynamo", "SimpleITK", "highdicom"])
def test_what_asks_for_the_user_at_import_finds_one(place, module):
    if "." not in module:
        pytest.importorskip(module)
    code = f"import glimpseg; glimpseg.load; import getpass; getpass.getuser(); import {module}"
    done = as_unknown(place, code=code)
    assert done.returncode == 0, done.stderr


def test_a_known_user_and_a_home_stay_as_they_are(tmp_path):
    with mock.patch.dict(os.environ, {"HOME": str(tmp_path), "USER": "somebody"}, clear=True):
        complete_environment()
        assert dict(os.environ) == {"HOME": str(tmp_path), "USER": "somebody"}


def test_caches_lie_in_a_temporary_folder_without_a_home(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with mock.patch.dict(os.environ, {"HOME": "/nowhere"}, clear=True):
        complete_environment()
        assert {Path(os.environ[name]).parent.parent for name in CACHES} == {tmp_path}
        assert os.environ["HOME"] == "/nowhere"
