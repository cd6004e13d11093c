"""Files and circumstances that go wrong: every row of the fault table, without a process for each."""

import importlib
import logging
import re
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from conftest import WORDS, write_head
from glimpseg.cli import entry
from glimpseg.modality import Modality

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
fault_files = importlib.import_module("fault_files")
fuzz_files = importlib.import_module("fuzz_files")
sys.path.remove(str(SCRIPTS))

ERRORS = {code: kind for kind, code in reversed(entry.EXIT_CODES.items())}
SOME_AXES = ("RAS", "LPS", "PIR", "SAL", "AIL", "IRP")
"""test_end_to_end.py has all 48."""
ROWS = [fault for fault in fault_files.FAULTS if not fault.group or fault.name in SOME_AXES]


@pytest.fixture(autouse=True)
def logger():
    """The command line sets up the package's log; the next test finds it as it was."""
    log = logging.getLogger("glimpseg")
    handlers, level = log.handlers, log.level
    yield log
    log.handlers, log.level = handlers, level


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A good study, its voxels whole numbers."""
    place = write_head(tmp_path_factory.mktemp("study"))
    found = {m.name.lower(): nibabel.load(place / f"S1-{WORDS[m]}.nii.gz") for m in Modality}
    return {**found, "seg": nibabel.load(place / "S1-seg.nii.gz")}


def labels_of(output):
    return nibabel.as_closest_canonical(nibabel.load(output / "seg.nii.gz"))


@pytest.fixture(scope="module")
def good(scans, model_folder, tmp_path_factory):
    """Labels of the good study from T1c, and from T1c and FLAIR."""
    place = tmp_path_factory.mktemp("good")
    one = fault_files.segment(fault_files.plain(place, scans))
    two = [
        *one,
        "--flair",
        fault_files.save(place / "f.nii", fault_files.voxels(scans["flair"]), scans["flair"].affine),
    ]
    found = {}
    for words in (one, two):
        output = place / str(len(words))
        entry.app(fault_files.command(words, model_folder, output), standalone_mode=False)
        found[len(words)] = labels_of(output)
    return found


@pytest.mark.parametrize("fault", ROWS, ids=lambda fault: fault.name)
def test_a_fault_ends_as_the_table_says(fault, scans, good, model_folder, tmp_path, caplog):
    words = fault.make(tmp_path, scans)
    output = tmp_path / "out"
    command = fault_files.command(words, model_folder, output)
    if fault.code:
        with pytest.raises(ERRORS[fault.code]) as caught:
            entry.app(command, standalone_mode=False)
        assert re.search(fault.says, str(caught.value))
        assert fault.code != 3 or words[0] == "evaluate" or not output.exists()
        return
    entry.app(command, standalone_mode=False)
    assert re.search(fault.says, caplog.text)
    if fault.same:
        found = labels_of(output)
        assert np.array_equal(found.dataobj, good[len(words)].dataobj)
        assert np.allclose(found.affine, good[len(words)].affine, atol=1e-4)
