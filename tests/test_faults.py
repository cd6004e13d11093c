"""Files and circumstances that go wrong: every row of the fault table, without a process for each."""

import contextlib
import gzip
import importlib
import json
import logging
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from conftest import WORDS, write_head
from glimpseg.cli import entry
from glimpseg.data import nifti
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality
from glimpseg.runtime.atomic import atomic_folder
from glimpseg.runtime.preemption import exit_on_sigterm

pytestmark = pytest.mark.usefixtures("no_pictures")

ROBUSTNESS = Path(__file__).parent / "robustness"
sys.path.insert(0, str(ROBUSTNESS))
fault_files = importlib.import_module("fault_files")
fuzz_files = importlib.import_module("fuzz_files")
fuzz_makers = importlib.import_module("fuzz_makers")
fault_sources = importlib.import_module("fault_sources")
sys.path.remove(str(ROBUSTNESS))

ERRORS = {code: kind for kind, code in reversed(entry.EXIT_CODES.items())}
SOME_AXES = ("RAS", "LPS", "PIR", "SAL", "AIL", "IRP")
"""test_end_to_end.py has all 48."""
SOME_DICOM = ("DICOM: two patients in one folder", "DICOM: tags that name paths")
"""The others belong to reading DICOM, and each starts two processes: the table has them all."""
ROWS = [fault for fault in fault_files.FAULTS if not fault.group or fault.name in SOME_AXES]
ROWS += [fault for fault in fault_sources.DICOM if fault.name in SOME_DICOM]
ROWS += [fault for fault in fault_sources.ARCHIVES if fault.code or "NIfTI" in fault.name]


@pytest.fixture(autouse=True)
def logger():
    """The command line sets up the package's log; the next test finds it as it was."""
    log = logging.getLogger("glimpseg")
    handlers, level = log.handlers, log.level
    yield log
    for handler in log.handlers:
        if handler not in handlers:
            handler.close()
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
    if fault in fault_sources.DICOM or "no MR" in fault.says:
        pytest.importorskip("highdicom", reason="needs the extra dicom")
    words = fault.make(tmp_path, scans)
    output, message = tmp_path / "out", fault_files.whole_message(fault, tmp_path, scans)
    command = fault_files.command(words, model_folder, output)
    if fault.code:
        with pytest.raises(ERRORS[fault.code]) as caught:
            entry.app(command, standalone_mode=False)
        assert message.fullmatch(str(caught.value)), (str(caught.value), message.pattern)
        assert fault.code != 3 or words[0] == "evaluate" or not output.exists()
        return
    entry.app(command, standalone_mode=False)
    ours = [record for record in caplog.records if record.name.startswith("glimpseg")]
    texts = [record.getMessage() for record in ours if record.levelno >= logging.WARNING]
    # An untrained network gives reasons to look at its result, whatever the file.
    warnings = "\n".join(text for text in texts if "Look at this one: " not in text)
    assert message.fullmatch(warnings), (warnings, message.pattern)
    if fault.same:
        found = labels_of(output)
        assert np.array_equal(found.dataobj, good[len(words)].dataobj)
        assert np.allclose(found.affine, good[len(words)].affine, atol=1e-4)


@pytest.mark.parametrize("fault", [fault for fault in fault_files.DAMAGED if "GB" in fault.name or "MB" in fault.name])
def test_a_bomb_is_refused_without_the_memory_it_asks_for(fault, scans, tmp_path):
    path = fault.make(tmp_path, scans)[2]
    tracemalloc.start()
    try:
        with contextlib.suppress(InputError):
            nifti.read_volume(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_log_file_on_a_full_disk_ends_with_one_warning(logger, tmp_path, capsys):
    if not Path("/dev/full").exists():
        pytest.skip("Linux has /dev/full")
    (tmp_path / "log.txt").symlink_to("/dev/full")
    entry.app(["--log-file", str(tmp_path / "log.txt"), "methods"], standalone_mode=False)
    for number in range(3):
        logger.warning("line %d", number)
    said = capsys.readouterr().err
    assert [line for line in said.splitlines() if "line" in line] == ["line 0", "line 1", "line 2"]
    assert said.count("ends here: it could not be written (No space left on device)") == 1
    assert "Traceback" not in said


# Circumstances: the whole list is run by tests/robustness/fault_table.py, each in a process


def test_two_runs_into_one_folder_do_not_overwrite_each_other(tmp_path):
    with pytest.raises(UsageError, match="already holds files"), atomic_folder(tmp_path / "out") as slow:
        with atomic_folder(tmp_path / "out") as quick:
            (quick / "a.txt").write_text("quick")
        (slow / "a.txt").write_text("slow")
    assert (tmp_path / "out" / "a.txt").read_text() == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_sigterm_leaves_no_half_written_output(tmp_path, kind):
    code = textwrap.dedent(f"""
        import pathlib, time
        from glimpseg.runtime.atomic import atomic_{kind}
        with atomic_{kind}(pathlib.Path({str(tmp_path / "out")!r})) as temporary:
            (temporary if temporary.is_file() else temporary / "seg").write_text("half")
            print("now", flush=True)
            for _ in range(600):  # a signal just before a sleep is seen after it
                time.sleep(0.1)
    """)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == "now"
        assert len(list(tmp_path.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    assert not list(tmp_path.iterdir())


def test_whoever_handles_sigterm_already_keeps_doing_so():
    def mine(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with exit_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_labels_read_back_alike_everywhere(good, scans, model_folder, tmp_path):
    """Row 18: uint8, unscaled, for nibabel, for ITK and for whoever reads the bytes."""
    output = tmp_path / "out"
    words = fault_files.segment(fault_files.plain(tmp_path, scans))
    entry.app(fault_files.command(words, model_folder, output), standalone_mode=False)
    image = nibabel.load(output / "seg.nii.gz")
    raw = gzip.decompress((output / "seg.nii.gz").read_bytes())
    assert struct.unpack("<ff", raw[112:120]) == (1, 0)
    start = int(struct.unpack("<f", raw[108:112])[0])
    stored = np.frombuffer(raw[start:], np.uint8).reshape(image.shape, order="F")
    itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(output / "seg.nii.gz"))).T
    assert np.array_equal(stored, image.get_fdata())
    assert np.array_equal(stored, itk)
    assert stored.any()


# What nobody has to know

CANARIES = ("CANARYdescrip", "CANARYname", "CANARYaux", "CANARYextension", "CANARYfile", "CANARYfolder", "CANARYintent")


def _telling(path, scan):
    """A file whose header and names tell of somebody, and that gives reason for warnings."""
    voxels = fault_files.voxels(scan)
    voxels[0, 0, 0] = np.nan
    image = nibabel.Nifti1Image(voxels, scan.affine)
    image.set_qform(scan.affine @ np.diag([2, 2, 2, 1]), 1)
    image.header["descrip"], image.header["db_name"], image.header["aux_file"] = CANARIES[:3]
    image.header["intent_name"] = CANARIES[6]
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", CANARIES[3].encode()))
    path.parent.mkdir(exist_ok=True)
    nibabel.save(image, path)
    return path


def told(content):
    """The canaries in bytes, as they are or packed."""
    plain = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    return [canary for canary in CANARIES for part in (content, plain) if canary.lower().encode() in part.lower()]


def test_nothing_that_is_written_tells_what_headers_and_names_told(scans, model_folder, tmp_path, monkeypatch):
    place, output = tmp_path / "CANARYfolder", tmp_path / "out"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    words = ["segment"]
    for flag in ("t1c", "flair"):
        words += [f"--{flag}", _telling(place / f"CANARYfile-{flag}.nii.gz", scans[flag])]
    command = ["--debug", "--log-file", str(tmp_path / "log.txt"), *fault_files.command(words, model_folder, output)]
    entry.app([*command, "--probabilities"], standalone_mode=False)
    written = [path for path in output.rglob("*") if path.is_file()]
    assert len(written) == 9
    record = json.loads((output / "run.json").read_text())
    assert any("T1c: sform and qform differ" in warning for warning in record["warnings"])
    for path in [*written, tmp_path / "log.txt"]:
        assert not told(path.read_bytes()), path.name
        assert not told(path.name.encode())
    assert not list(scratch.iterdir())


def test_a_tree_of_studies_tells_of_no_headers(scans, model_folder, tmp_path):
    place, output = tmp_path / "tree" / "S1", tmp_path / "out"
    place.parent.mkdir()
    _telling(place / "S1-t1c.nii.gz", scans["t1c"])
    log = tmp_path / "log.txt"
    command = ["--debug", "--log-file", str(log), "segment", "-i", str(place.parent), "-m", str(model_folder)]
    entry.app([*command, "-o", str(output)], standalone_mode=False)
    for path in [*(path for path in output.rglob("*") if path.is_file()), log]:
        assert not told(path.read_bytes()), path.name


# Some hundred of the fuzzer's files

COUNTS = {
    "nifti": 60, "pair": 60, "metaimage": 60, "archive": 60, "dataset": 60, "manifest": 60, "result": 60, "weights": 40,
    "model": 20, "recipe": 20, "dicom": 8,
}  # fmt: skip
"""Files of each kind; the slow kinds have fewer, since the whole should take some seconds."""


def test_every_kind_of_damaged_file_is_tried():
    assert COUNTS.keys() == fuzz_makers.MAKERS.keys() == fuzz_makers.READERS.keys()


@pytest.mark.parametrize(("kind", "count"), COUNTS.items())
def test_damaged_files_are_read_or_refused_and_nothing_else(kind, count):
    if fuzz_makers.missing(kind):
        pytest.skip(fuzz_makers.missing(kind))
    tally = fuzz_files.fuzz(kind, range(count), seed=7)
    assert tally.findings == []
    assert tally.outcomes.total() == count
    assert 0 < tally.outcomes["refused"] < count
    assert tally.peak_mb < 1500


@pytest.mark.parametrize(
    ("text", "unfit"),
    [
        ("t1c.nii has 3 voxels. Export it again.\nAnd a second line.", False),
        ("caf\udce9.nii is damaged", False),
        ("<Series object at 0x7f12aa34>", True),
        ("in <class 'int'>", True),
        ("PosixPath('/data/x')", True),
        ("Traceback (most recent call last)", True),
        ("a\x1b[31mb", True),
        ("x" * 2001, True),
    ],
)
def test_the_fuzzer_knows_words_that_nobody_should_see(text, unfit):
    assert fuzz_files.is_unfit(text) is unfit
