"""A tree of studies on Slurm and Ray: every study once, whatever is killed, and the same files as on one machine."""

import importlib.util
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from conftest import as_it_was, command_line, write_head
from glimpseg.batch import tree as batch
from glimpseg.batch.folder import PLAN, STATISTICS
from glimpseg.batch.job import BatchOptions, StudyJob, WrittenStudy
from glimpseg.batch.job_spec import JobSpec
from glimpseg.batch.on_ray import _Dispatcher
from glimpseg.batch.on_slurm import ShardTask
from glimpseg.batch.progress import FAILURES, BatchProgress, Outcome, Shard
from glimpseg.batch.tree import begin, combine, segment_tree
from glimpseg.cli import app
from glimpseg.cli.options import changes_of
from glimpseg.data.notices import Notices
from glimpseg.errors import UsageError
from glimpseg.modality import Modality
from glimpseg.segmentation import predict
from glimpseg.segmentation.inputs import StudyEntry, study_entries
from glimpseg.segmentation.options import PLAIN, InferenceOptions, OutputOptions
from glimpseg.segmentation.result import RECORD

needs_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="needs glimpseg[slurm]")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs glimpseg[ray]")
needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")
STUDIES = ["P0", "P1", "P2", "P3", "P4"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Five studies, of which the second is cut short."""
    folder = tmp_path_factory.mktemp("tree")
    for seed, name in enumerate(STUDIES):
        write_head(folder, name, seed)
    cut = folder / "P1" / "P1-t1n.nii.gz"
    cut.write_bytes(cut.read_bytes()[:4000])
    return folder


@pytest.fixture(scope="module")
def undisturbed(tree, model_folder, tmp_path_factory):
    """What one process makes of it, with one thread."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    command = ["segment", "-i", tree, "-o", output, "-m", model_folder, "--device", "cpu", "--backend", "torch"]
    with as_it_was():
        torch.set_num_threads(1)
        assert command_line(*command).returncode == 3
    return output


def alone(command, code, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **options)
    assert done.returncode == code, done.stderr
    return done


def told(output):
    """Every file of every study: bytes, but of run.json what does not depend on the day."""
    found = {}
    for path in sorted(output.glob("[!.]*/*")):  # parts keep their locks in hidden folders
        if path.name == RECORD:
            found[path.parent.name, path.name] = {**json.loads(path.read_text()), "seconds": None}
        else:
            found[path.parent.name, path.name] = path.read_bytes()
    return found


def studies_in_journals(output):
    journals = [path.read_text() for path in output.glob("batch*.jsonl")]
    return sorted(json.loads(line)["study"] for text in journals for line in text.splitlines())


def same_batch(output, undisturbed):
    assert told(output) == told(undisturbed)
    assert studies_in_journals(output) == ["P0", "P2", "P3", "P4"]
    assert (output / STATISTICS).read_bytes() == (undisturbed / STATISTICS).read_bytes()
    plans = [{**json.loads((folder / PLAN).read_text()), "backend": None} for folder in (output, undisturbed)]
    assert plans[0] == plans[1]
    assert json.loads((output / FAILURES).read_text()) == json.loads((undisturbed / FAILURES).read_text())
    assert not list(output.glob(".*.tmp-*"))


# What travels, and what comes together


def test_the_options_are_those_of_segment(tmp_path, model_folder, monkeypatch):
    given = []
    monkeypatch.setattr(
        "glimpseg.batch.on_slurm.segment_on_slurm", lambda *one, **more: given.append((one, more)) or DONE
    )
    words = ["-i", tmp_path, "-o", "out", "-m", model_folder, "--labels", "brats2021", "--output-type", "bids,nifti"]
    more = ["--uncertainty", "none", "--grid", "t2", "--device", "cpu", "--backend", "torch", "--shards", "3"]
    old = ["--continue", "--slurm", "mem_gb=8"]
    done = CliRunner().invoke(app, ["on", "slurm", *map(str, words), *more, *old], catch_exceptions=False)
    assert done.exit_code == 0
    options = BatchOptions(
        inference=InferenceOptions(uncertainty="none", grid=Modality.T2),
        outputs=OutputOptions(labels="brats2021", types=("bids", "nifti")),
    )
    (((spec, jobs), how),) = given
    place = Path("out").absolute()
    assert spec == JobSpec(source=tmp_path, output=place, model=str(model_folder), options=options, device="cpu")
    assert (jobs.shards, jobs.options) == (3, {"mem_gb": 8})
    assert how == {"resume": True, "overwrite": False}


DONE = Outcome(done=(), kept=(), failed={})


@pytest.mark.parametrize("text", ["optim.steps", "optim.steps=[1", "optim.steps={"])
def test_a_change_that_cannot_be_read_is_a_wrong_command(text):
    with pytest.raises(UsageError, match=r"--set .*takes"):
        changes_of([text])


@pytest.mark.parametrize("words", [["--t1", "a.nii.gz"], [], ["-i", "tree", "--shard", "1/2"]])
@pytest.mark.parametrize("cluster", ["slurm", "ray"])
def test_what_is_no_tree_for_a_cluster_is_refused(cluster, words):
    assert CliRunner().invoke(app, ["on", cluster, "-o", "out", *words]).exit_code == 2


def test_an_option_that_segment_does_not_know_is_refused_before_anything_is_submitted(tmp_path):
    done = CliRunner().invoke(app, ["on", "slurm", "-i", str(tmp_path), "-o", str(tmp_path / "out"), "--nonsense"])
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_parts_that_have_ended_are_brought_together(tree, model_folder, tmp_path):
    model, output = predict.load(model_folder, "cpu"), tmp_path / "out"
    for number in (0, 1):
        segment_tree(
            study_entries(tree), model, output, BatchOptions(inference=PLAIN), shard=Shard(number=number, of=3)
        )
    job = begin(study_entries(tree), model, output, BatchOptions(inference=PLAIN))
    outcome = combine(job, study_entries(tree))
    assert outcome.kept == ("P0", "P3", "P4")
    assert "P1-t1n.nii.gz is damaged" in outcome.failed["P1"]
    assert outcome.failed["P2"] == batch.UNREACHED
    listed = json.loads((output / FAILURES).read_text())["failed"]
    assert [entry["study"] for entry in listed] == ["P1", "P2"]


def test_parts_may_begin_at_the_same_moment(tree, model_folder, tmp_path):
    """Each makes the folder or finds it made; all have one key."""
    model, errors = predict.load(model_folder, "cpu"), []
    jobs: list[StudyJob] = []

    def one(number):
        try:
            shard = Shard(number=number, of=8)
            jobs.append(
                begin(
                    study_entries(tree),
                    model,
                    tmp_path / "out",
                    BatchOptions(outputs=OutputOptions(deidentify=True)),
                    shard=shard,
                )
            )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len({job.pseudonyms.key for job in jobs}) == 1


def test_a_job_joins_the_batch_though_its_machine_has_another_backend(tree, model_folder, tmp_path, monkeypatch):
    """`auto` and the precision depend on the machine; the one that submits need not be like those that work."""
    spec = JobSpec(source=tree, output=tmp_path / "out", model=str(model_folder), backend="auto")
    begin(spec.contents(), spec.load_for_reading(), spec.output, spec.batch_options)
    monkeypatch.setattr(JobSpec, "load", lambda self: replace(self.load_for_reading(), computed_by="openvino"))
    monkeypatch.setattr("glimpseg.batch.on_slurm._log_to_stderr", lambda: None)
    monkeypatch.setattr(batch, "_segment_all", lambda *given: None)
    assert ShardTask(spec)(Shard(number=0, of=2)) == DONE
    with pytest.raises(UsageError, match="backend"):
        begin(spec.contents(), spec.load(), spec.output, replace(spec, backend="torch").batch_options, resume=True)


def test_notices_of_a_worker_are_told_where_the_batch_was_begun(tmp_path, caplog):
    """What a worker logs stays on its machine: the process that began the batch tells it, within ten lines."""
    said = Notices(["P0: T1 is odd."], [f"note {number}" for number in range(11)])
    written = WrittenStudy(study="P0", seconds=1.0, used=Modality.T1, volumes="WT 1.0 ml", notices=said)
    ray = SimpleNamespace(get=lambda answer: answer, exceptions=SimpleNamespace(RayError=KeyError))
    progress = BatchProgress(tmp_path, Shard(), [], 1)
    with caplog.at_level("INFO", "glimpseg"):
        _Dispatcher(ray, {"P0": "P0"}, progress)._record(written, StudyEntry("P0"))
    assert caplog.messages == [
        "P0: T1 is odd.", *(f"P0: note {number}" for number in range(9)),
        "P0: ... and 2 more: run.json has all of them.", "P0: used T1. WT 1.0 ml.",
    ]  # fmt: skip


def test_a_study_whose_folder_stands_is_told_of_and_not_done_again(tree, model_folder, tmp_path, monkeypatch):
    job = begin(study_entries(tree), predict.load(model_folder, "cpu"), tmp_path / "out", BatchOptions(inference=PLAIN))
    first = job.run(study_entries(tree)[0])
    monkeypatch.setattr(StudyJob, "prepare", None)
    again = job.run(study_entries(tree)[0])
    assert (again.study, again.used, again.volumes) == (first.study, first.used, first.volumes)
    assert again.seconds == pytest.approx(first.seconds, abs=0.02)


# Slurm, by submitit


@needs_submitit
def test_without_slurm_submitit_says_so(tree, model_folder, tmp_path, monkeypatch):
    from glimpseg.batch.on_slurm import Jobs, segment_on_slurm

    monkeypatch.setenv("PATH", "")
    spec = JobSpec(source=tree, output=tmp_path / "out", model=str(model_folder), device="cpu")
    with pytest.raises(UsageError, match="srun"):
        segment_on_slurm(spec, Jobs())
    assert not (tmp_path / "out").exists()


SUBMIT = """
import sys
from pathlib import Path
from glimpseg.batch.on_slurm import Jobs, segment_on_slurm
from glimpseg.batch.job_spec import JobSpec
tree, output, model = sys.argv[1:]
spec = JobSpec(source=Path(tree), output=Path(output), model=model, device="cpu")
outcome = segment_on_slurm(spec, Jobs(shards=2, cluster="local", options={"timeout_min": 60}))
assert sorted(outcome.failed) == ["P1"], outcome
"""


def jobs_below(process, phrase):
    """The descendants of a process whose command line holds a phrase."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            lines[int(folder.name)] = folder.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    below = {process}
    for _ in range(8):
        below |= {child for child, parent in parents.items() if parent in below}
    return sorted(number for number in below - {process} if phrase in lines.get(number, ""))


def holds(process, ending):
    """Whether a process has a file open."""
    return any(os.readlink(one).endswith(ending) for one in Path(f"/proc/{process}/fd").iterdir() if one.is_symlink())


@pytest.mark.slow
@needs_submitit
@needs_proc
def test_a_job_that_is_stopped_goes_on_and_results_are_those_of_one_process(tree, model_folder, undisturbed, tmp_path):
    """SIGTERM to a job after its first study: it is put back into the queue and does the rest."""
    output, script = tmp_path / "out", tmp_path / "submit.py"
    script.write_text(SUBMIT)
    process = subprocess.Popen(
        [sys.executable, script, tree, output, model_folder],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(output.glob(".P0.tmp-*")) and process.poll() is None:  # of the first part: P0, P2 and P4
        time.sleep(0.01)
    stopped = [job for job in jobs_below(process.pid, "submitit.core._submit") if holds(job, "/.shard-0-of-2/.lock")]
    for job in stopped:
        os.kill(job, signal.SIGTERM)
    _, text = process.communicate()
    assert process.returncode == 0, text
    logs = "".join(path.read_text() for path in tmp_path.glob("out.jobs/*log*"))
    assert len(stopped) == 1
    assert "Requeued job" in logs
    same_batch(output, undisturbed)


# Ray

ON_RAY = """
import os, signal, sys, threading, time
from glimpseg.batch.on_ray import Workers, segment_on_ray
from glimpseg.batch.job_spec import JobSpec
tree, output, model, how = sys.argv[1:5]
killed, over = [], []

def kill():
    while not over:
        working = jobs_below(os.getpid(), "ray::Worker.segment")
        first = how == "once" and any(Path(output).glob("*/run.json"))
        if working and (first or how == "always"):
            os.kill(working[0], signal.SIGKILL)
            killed.append(working[0])
            if how == "once":
                return
        time.sleep(0.02)

watch = threading.Thread(target=kill)
watch.start()
spec = JobSpec(source=Path(tree), output=Path(output), model=model, device="cpu")
try:
    outcome = segment_on_ray(spec, Workers(count=2))
finally:
    over.append(True)
    watch.join()
print(len(set(killed)), sorted(outcome.done), sorted(outcome.failed.items()))
"""


def on_ray(tree, output, model, how, tmp_path):
    script = tmp_path / "on_ray.py"
    script.write_text(f"from pathlib import Path\n{inspect.getsource(jobs_below)}{ON_RAY}")
    return alone([sys.executable, script, tree, output, model, how], 0).stdout.splitlines()[-1]


@pytest.mark.slow
@needs_ray
@needs_proc
def test_a_killed_worker_costs_no_study_and_changes_no_byte(tree, model_folder, undisturbed, tmp_path):
    output = tmp_path / "out"
    text = on_ray(tree, output, model_folder, "once", tmp_path)
    assert text.startswith("1 ['P0', 'P2', 'P3', 'P4'] [('P1', ")
    same_batch(output, undisturbed)


@pytest.mark.slow
@needs_ray
@needs_proc
def test_a_study_that_kills_every_worker_is_given_up(model_folder, tmp_path):
    write_head(tmp_path / "tree", "P0")
    text = on_ray(tmp_path / "tree", tmp_path / "out", model_folder, "always", tmp_path)
    assert text.startswith("3 [] [('P0', 'its worker was killed 3 times")


def test_an_order_asks_for_the_model_of_its_own_machine(model_folder, tmp_path):
    spec = JobSpec(source=tmp_path, output=tmp_path / "out", model=str(model_folder), device="cpu")
    assert str(spec.load().device) == "cpu"
    with pytest.raises(UsageError, match="cuda:99"):
        replace(spec, device="cuda:99").load()
    assert str(replace(spec, device="cuda:99").load_for_reading().device) == "cpu"
