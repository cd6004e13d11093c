import csv
import json
import os
import shutil
import signal
import stat
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from conftest import write_head
from glimpseg.batch import job
from glimpseg.batch import tree as batch_tree
from glimpseg.batch import tree as tree_module
from glimpseg.batch.folder import PLAN, STATISTICS
from glimpseg.batch.job import BatchOptions
from glimpseg.batch.progress import FAILURES, STUDY_LOG, Shard
from glimpseg.batch.tree import _segment_all, segment_tree
from glimpseg.cli import app
from glimpseg.errors import InputError, OutputError, Preempted, UsageError
from glimpseg.modality import Modality
from glimpseg.runtime.preemption import StopRequest
from glimpseg.segmentation import passes, predict
from glimpseg.segmentation.inputs import UNUSED, StudyEntry, study_entries, tree_contents
from glimpseg.segmentation.options import InferenceOptions, OutputOptions
from glimpseg.segmentation.result import RECORD, Segmentation

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def model(model_folder):
    return predict.load(model_folder, "cpu")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Five studies, of which the second is cut short and the fourth has a single sequence."""
    folder = tmp_path_factory.mktemp("tree")
    for seed in range(5):
        write_head(folder, f"P{seed}", seed, modalities=[Modality.FLAIR] if seed == 3 else tuple(Modality))
    cut = folder / "P1" / "P1-t1n.nii.gz"
    cut.write_bytes(cut.read_bytes()[:4000])
    return folder


@pytest.fixture(scope="module")
def whole(tree, model, tmp_path_factory):
    """A finished batch, to look at, and what was told of it."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return output, segment_tree(study_entries(tree), model, output, BatchOptions())


@pytest.fixture
def finished(whole, tmp_path):
    """A finished batch, to go on with."""
    return shutil.copytree(whole[0], tmp_path / "out")


def studies_in(output):
    return sorted(path.parent.name for path in output.glob(f"*/{RECORD}"))


def failures(output, name=FAILURES):
    return {entry["study"]: entry["reason"] for entry in json.loads((output / name).read_text())["failed"]}


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def journal(output):
    return [json.loads(line)["study"] for path in output.glob("batch*.jsonl") for line in path.read_text().splitlines()]


def test_a_study_that_cannot_be_read_stops_no_other(whole):
    output, outcome = whole
    assert studies_in(output) == sorted(outcome.done) == ["P0", "P2", "P3", "P4"]
    assert list(outcome.failed) == list(failures(output)) == ["P1"]
    assert "P1-t1n.nii.gz is damaged" in failures(output)["P1"]


def test_results_are_those_of_each_study_by_itself(tree, model, whole):
    output, _ = whole
    alone = predict.segment(flair=tree / "P3" / "P3-t2f.nii.gz", model=model)
    found = nibabel.load(output / "P3" / "seg.nii.gz")
    assert np.array_equal(np.asarray(found.dataobj), alone.labels.voxels)
    assert json.loads((output / "P3" / RECORD).read_text())["sequences"]["used"] == ["flair"]


def test_going_on_segments_nothing_twice_and_tries_failures_again(tree, model, finished, tmp_path):
    own = tmp_path / "tree"
    shutil.copytree(tree, own)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob(f"*/{RECORD}")}
    shutil.rmtree(own / "P1")
    write_head(own, "P1", 1)
    outcome = segment_tree(study_entries(own), model, tmp_path / "out", BatchOptions(), resume=True)
    assert outcome.done == ("P1",)
    assert sorted(outcome.kept) == ["P0", "P2", "P3", "P4"]
    assert not failures(tmp_path / "out")
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert sorted(journal(tmp_path / "out")) == ["P0", "P1", "P2", "P3", "P4"]


def test_a_finished_batch_is_not_begun_again_without_being_told(tree, model, finished):
    with pytest.raises(UsageError, match="--resume"):
        segment_tree(study_entries(tree), model, finished, BatchOptions())


def test_a_batch_goes_on_only_as_it_was_begun(tree, model, finished):
    with pytest.raises(UsageError, match=r"batch in .* was begun otherwise \(labels: .brats2024., now .brats2021.\)"):
        segment_tree(
            study_entries(tree), model, finished, BatchOptions(outputs=OutputOptions(labels="brats2021")), resume=True
        )


def test_a_folder_of_something_else_is_left_alone(tree, model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(UsageError):
            segment_tree(study_entries(tree), model, tmp_path / "out", BatchOptions(), overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years"


def test_parts_share_a_tree_without_meeting(tree, model, tmp_path):
    outcomes = [
        segment_tree(study_entries(tree), model, tmp_path / "out", BatchOptions(), shard=Shard(number=n, of=3))
        for n in range(3)
    ]
    assert [sorted((*one.done, *one.failed)) for one in outcomes] == [["P0", "P3"], ["P1", "P4"], ["P2"]]
    assert list(failures(tmp_path / "out", "failures-1-of-3.json")) == ["P1"]
    rows = table(tmp_path / "out" / STATISTICS)
    assert sorted({row["study"] for row in rows}) == ["P0", "P2", "P3", "P4"]


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "1/0", "a/b", "1/2/3"])
def test_a_part_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="--shard"):
        Shard.parse(text)


def test_the_table_of_volumes_has_a_line_for_each_region(whole):
    output, _ = whole
    rows = table(output / STATISTICS)
    assert [row["region"] for row in rows if row["study"] == "P3"] == ["WT", "TC", "ET"]
    assert {row["sequences"] for row in rows if row["study"] == "P3"} == {"flair"}
    own = json.loads((output / "P3" / "statistics.json").read_text())
    assert [float(row["volume_ml"]) for row in rows if row["study"] == "P3"] == [own[r]["volume_ml"] for r in own]


def test_after_sigterm_whole_studies_are_there_and_the_rest_can_follow(tree, model, tmp_path, monkeypatch):
    save = Segmentation.save

    def stopping(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Segmentation, "save", stopping)
    with pytest.raises(Preempted, match="--resume"):
        segment_tree(study_entries(tree), model, tmp_path / "out", BatchOptions())
    monkeypatch.undo()
    some = studies_in(tmp_path / "out")
    assert 0 < len(some) < 4
    segment_tree(study_entries(tree), model, tmp_path / "out", BatchOptions(), resume=True)
    assert studies_in(tmp_path / "out") == ["P0", "P2", "P3", "P4"]
    assert sorted(journal(tmp_path / "out")) == ["P0", "P2", "P3", "P4"]


def test_what_a_kill_left_half_written_is_cleared(tree, model, finished):
    out = finished
    shutil.rmtree(out / "P0")
    (out / ".P0.tmp-abc").mkdir()
    (out / ".P0.tmp-abc" / "seg.nii.gz").write_bytes(b"half")
    segment_tree(study_entries(tree), model, out, BatchOptions(), resume=True)
    assert not list(out.glob(".*.tmp-*"))
    assert "P0" in studies_in(out)


def test_a_study_that_was_written_but_not_logged_gets_its_line(tree, model, finished):
    log = finished / STUDY_LOG
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:10])  # a kill, or a full disk, after the third study's folder
    segment_tree(study_entries(tree), model, finished, BatchOptions(), resume=True)
    assert sorted(journal(finished)) == ["P0", "P2", "P3", "P4"]


@pytest.mark.parametrize("name", [RECORD, "statistics.json"])
def test_a_batch_with_a_damaged_study_is_refused_before_anything_is_segmented(
    tree, model_folder, finished, name, monkeypatch
):
    path = finished / "P0" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    shutil.rmtree(finished / "P2")
    words = ["segment", "-i", str(tree), "-m", str(model_folder), "-o", str(finished), "--resume", "--device", "cpu"]
    ended = CliRunner().invoke(app, words)
    assert isinstance(ended.exception, InputError)
    assert str(path) in str(ended.exception)
    assert not (finished / "P2").exists()
    shutil.rmtree(finished / "P0")  # what the message says
    ended = CliRunner().invoke(app, words)
    said = "4 of 5 studies are there; 1 could not be segmented"  # P1 is cut short
    assert str(ended.exception).startswith(said)
    assert studies_in(finished) == ["P0", "P2", "P3", "P4"]
    assert path.read_bytes()[: len(whole) // 8] == whole[: len(whole) // 8]


def test_damaged_failures_of_a_shard_are_refused_when_shards_are_combined(tree, model, finished):
    (finished / "failures-0-of-2.json").write_text('{"failed": [{"study"')
    entries = study_entries(tree)
    job = tree_module.begin(entries, model, finished, BatchOptions(), resume=True)
    with pytest.raises(InputError, match=r"failures-0-of-2\.json is damaged .* Delete it and run again with --resume"):
        tree_module.combine(job, entries)


def test_a_folder_that_another_batch_has_taken_meanwhile_is_left_alone(tree, model, tmp_path, monkeypatch):
    begin, out = batch_tree.begin, tmp_path / "out"

    def late(*args, **kwargs):
        begun = begin(*args, **kwargs)
        plan = json.loads((out / PLAN).read_text())
        (out / PLAN).write_text(json.dumps({**plan, "model": "theirs"}))  # by --overwrite of another process
        return begun

    monkeypatch.setattr(batch_tree, "begin", late)
    with pytest.raises(UsageError, match="begun otherwise"):
        segment_tree(study_entries(tree), model, out, BatchOptions())
    assert studies_in(out) == []


def test_a_kill_between_the_two_outputs_of_a_study_loses_none(tree, model, tmp_path, monkeypatch):
    bids = BatchOptions(outputs=OutputOptions(types=("nifti", "bids")))

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(job, "write_derivative", killed)
        with pytest.raises(KeyboardInterrupt):
            segment_tree(study_entries(tree), model, tmp_path / "out", bids)
    segment_tree(study_entries(tree), model, tmp_path / "out", bids, resume=True)
    assert len(list((tmp_path / "out" / "derivatives").rglob("*dseg.nii.gz"))) == len(studies_in(tmp_path / "out")) == 4


def test_a_full_disk_of_temporary_files_is_the_reason_and_no_unexpected_error(tree, model, whole):
    batch = job.StudyJob(model=model, output=whole[0], options=BatchOptions(), names={"P0": "P0"}, pseudonyms=None)
    assert batch.reason(StudyEntry("P0"), OutputError(28, "no room in TMPDIR")) == "no room in TMPDIR"


def test_a_full_disk_stops_the_batch(tree, model, tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OutputError(28, "the disk is full")

    monkeypatch.setattr(Segmentation, "save", full)
    with pytest.raises(OutputError):
        segment_tree(study_entries(tree), model, tmp_path / "out", BatchOptions())


def test_an_unexpected_error_in_the_network_costs_one_study(tree, model, tmp_path, monkeypatch):
    whole = passes.segment_prepared

    def fragile(done, *args, **kwargs):
        if done.study_input.study.id == "P2":
            raise RuntimeError("boom")
        return whole(done, *args, **kwargs)

    monkeypatch.setattr(job, "segment_prepared", fragile)
    outcome = segment_tree(study_entries(tree), model, tmp_path / "out", BatchOptions())
    assert sorted(outcome.failed) == ["P1", "P2"]
    assert outcome.failed["P2"] == "unexpected error (RuntimeError: boom)"
    assert sorted(outcome.done) == ["P0", "P3", "P4"]


def test_deidentified_results_name_no_study_and_no_folder(tree, model, tmp_path):
    own = tmp_path / "MUSTERMANN"
    for seed in range(5):
        shutil.copytree(tree / f"P{seed}", own / f"MUSTERMANN{seed}")
    out = tmp_path / "out"
    segment_tree(study_entries(own), model, out, BatchOptions(outputs=OutputOptions(deidentify=True)))
    assert len(studies_in(out)) == 4
    assert all(name.startswith("study-0000") for name in studies_in(out))
    for path in out.rglob("*"):
        assert "MUSTERMANN" not in str(path.relative_to(tmp_path))
        assert path.is_dir() or b"MUSTERMANN" not in path.read_bytes(), path
    key = tmp_path / "out.key.json"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(json.loads(key.read_text())["studies"].values()) == [f"MUSTERMANN{n}" for n in range(5)]


@pytest.fixture
def doubtful(tmp_path):
    """Two studies with an image that is not used; in the second, T2 lies on another grid."""
    for seed in range(2):
        folder = write_head(tmp_path / "doubtful", f"P{seed}", seed, modalities=(Modality.T1C, Modality.T2))
        shutil.copy(folder / f"P{seed}-t1c.nii.gz", folder / f"P{seed}-adc.nii.gz")
    path = tmp_path / "doubtful" / "P1" / "P1-t2w.nii.gz"
    nibabel.save(nibabel.load(path).slicer[2:], path)
    return tmp_path / "doubtful"


def test_warnings_and_notes_are_in_the_table_the_journal_and_the_record(doubtful, model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(passes, "_reviewed", lambda *_: None)  # the result of an untrained network is doubtful
    out = tmp_path / "out"
    with caplog.at_level("INFO", "glimpseg"):
        segment_tree(tree_contents(doubtful), model, out, BatchOptions(inference=InferenceOptions(raw="no")))
    unused = [f"P{n}-adc.nii.gz is not used: 'adc' in its name: diffusion imaging." for n in range(2)]
    rows = [(row["study"], row["kind"], row["text"]) for row in table(out / "notes.csv")]
    assert rows[:3] == [("", "note", unused[0]), ("", "note", unused[1]), ("P0", "note", unused[0])]
    assert [(study, kind) for study, kind, _ in rows[3:]] == [("P1", "warning"), ("P1", "note")]
    assert rows[3][2].startswith("P1: T2 lies on another grid")
    lines = [json.loads(line) for line in (out / STUDY_LOG).read_text().splitlines()]
    assert [(line["study"], line["warnings"], line["notes"]) for line in lines] == [("P0", 0, 1), ("P1", 1, 1)]
    record = json.loads((out / "P1" / RECORD).read_text())
    assert (record["warnings"], record["notes"]) == ([rows[3][2]], [unused[1]])
    assert caplog.messages.count(unused[1]) == 1  # for the tree, and not again for the study
    assert "1 of 2 studies have warnings; notes.csv lists them." in caplog.messages


def test_what_a_tree_does_not_use_is_written_before_any_study_is_read(doubtful, model, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    monkeypatch.setattr(tree_module, "_segment_all", lambda *given: seen.append((out / UNUSED).is_file()))
    segment_tree(tree_contents(doubtful), model, out, BatchOptions())
    assert seen == [True]
    for path in doubtful.rglob("*adc.nii.gz"):
        path.unlink()
    segment_tree(tree_contents(doubtful), model, out, BatchOptions(), resume=True)
    assert not (out / UNUSED).exists()


def test_warnings_of_a_study_that_fails_are_told(doubtful, model, tmp_path, monkeypatch, caplog):
    def fails(*given):
        raise RuntimeError("boom")

    monkeypatch.setattr(job, "segment_prepared", fails)
    outcome = segment_tree(
        study_entries(doubtful), model, tmp_path / "out", BatchOptions(inference=InferenceOptions(raw="no"))
    )
    assert sorted(outcome.failed) == ["P0", "P1"]
    assert [text for text in caplog.messages if text.startswith("P1: T2 lies on another grid")]


def test_the_command_says_how_many_failed_and_where_to_look(tree, model_folder, tmp_path):
    done = CliRunner().invoke(app, ["segment", "-i", str(tree), "-m", str(model_folder), "-o", str(tmp_path / "out")])
    assert "4 of 5 studies are there; 1 could not be segmented, and" in str(done.exception)
    assert FAILURES in str(done.exception)


def test_images_and_a_tree_at_once_are_refused(tree, model_folder, tmp_path):
    flair = tree / "P3" / "P3-t2f.nii.gz"
    arguments = ["segment", "-i", str(tree), "--flair", str(flair), "-m", str(model_folder), "-o", str(tmp_path / "o")]
    assert "Give one of them" in str(CliRunner().invoke(app, arguments).exception)


def test_a_plan_marks_the_folder(whole):
    assert {PLAN, FAILURES, STUDY_LOG, STATISTICS} <= {path.name for path in whole[0].iterdir()}


def test_a_batch_does_not_go_on_with_another_backend(tree, model, finished):
    with pytest.raises(UsageError, match="backend"):
        segment_tree(study_entries(tree), replace(model, computed_by="openvino"), finished, BatchOptions(), resume=True)


class Shown:
    """Stands for a study in memory; counts how many there are."""

    alive, most = 0, 0

    def __init__(self):
        Shown.alive += 1
        Shown.most = max(Shown.most, Shown.alive)

    def __del__(self):
        Shown.alive -= 1


class StandIn:
    """A job whose steps take a moment and hold one `Shown` for each study, as a real one holds voxels."""

    def __init__(self, names, fails=()):
        self.names, self.fails, self.closed, self.written = {name: name for name in names}, fails, [], []

    def prepare(self, entry):
        time.sleep(0.005)
        if ("prepare", entry.id) in self.fails:
            raise InputError("unreadable")
        held = ExitStack()
        held.callback(self.closed.append, entry.id)
        return SimpleNamespace(voxels=Shown()), held

    def segment(self, prepared):
        time.sleep(0.005)
        return SimpleNamespace(voxels=prepared.voxels)

    def write(self, entry, segmentation, held):
        with held:
            time.sleep(0.02)
            if ("write", entry.id) in self.fails:
                raise self.fails["write", entry.id]
            self.written.append(entry.id)
        return entry.id

    def reason(self, entry, error):
        return str(error)


class Kept:
    """Stands for `BatchProgress`."""

    def __init__(self):
        self.done, self.failed = [], {}

    def add(self, written):
        self.done.append(written)

    def fail(self, name, reason):
        self.failed[name] = reason


def worked(fails=(), stop_after=None, count=8):
    names = [f"S{number}" for number in range(count)]
    job, progress, stopped = StandIn(names, fails), Kept(), StopRequest()
    if stop_after is not None:
        segment, seen = job.segment, []

        def stopping(prepared):
            seen.append(None)
            if len(seen) == stop_after:
                stopped.receive(signal.SIGTERM, None)
            return segment(prepared)

        job.segment = stopping
    with suppress(OutputError):
        _segment_all(job, progress, [StudyEntry(name) for name in names], stopped)
    return job, progress


def test_at_most_three_studies_are_in_memory():
    Shown.alive = Shown.most = 0
    _, progress = worked(count=12)
    assert len(progress.done) == 12
    assert Shown.most == 3
    assert Shown.alive == 0


def test_every_file_is_closed_whatever_fails():
    fails = {("prepare", "S1"): None, ("write", "S3"): RuntimeError("boom")}
    job, progress = worked(fails)
    assert progress.failed == {"S1": "unreadable", "S3": "boom"}
    assert sorted(job.closed) == sorted(set(job.names) - {"S1"})
    assert job.written == progress.done == ["S0", "S2", "S4", "S5", "S6", "S7"]


def test_nothing_is_written_after_the_disk_has_refused():
    job, _ = worked({("write", "S2"): OutputError(28, "full")})
    assert job.written == ["S0", "S1"]
    assert {"S0", "S1", "S2", "S3"} <= set(job.closed)
    assert set(job.closed) <= {"S0", "S1", "S2", "S3", "S4", "S5"}


def test_after_a_stop_the_study_in_the_network_is_written_and_no_other():
    job, progress = worked(stop_after=3)
    assert progress.done == ["S0", "S1", "S2"]
    assert set(job.closed) >= {"S0", "S1", "S2", "S3"}
    assert "S6" not in job.closed


@pytest.mark.parametrize(("new", "old"), [("--shard", "--part"), ("--resume", "--continue"), ("--backend", "--engine")])
def test_old_flags_are_aliases_of_the_new_ones(new, old):
    command = typer.main.get_command(app).commands["segment"]
    assert any({new, old} <= set(option.opts) for option in command.params)


def test_old_flags_of_other_verbs_are_aliases_too():
    commands = typer.main.get_command(app).commands
    options = {name: [set(one.opts) for one in commands[name].params] for name in ("train", "pretrain", "evaluate")}
    assert all({"--resume", "--continue"} in found for found in options.values())
    assert {"--transfer", "--part"} in options["train"]
    assert {"--backend", "--engine"} in options["evaluate"]
    assert {"--shards", "--parts"} in [set(one.opts) for one in commands["on"].commands["slurm"].params]
