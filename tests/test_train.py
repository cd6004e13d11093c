"""Training that can be killed, resumed, shared among ranks, and stopped with a reason."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from conftest import NETWORKS, command_line, made_once, needs_loopback, small, small_recipe, write_head
from glimpseg import methods
from glimpseg.errors import InputError, ModelError, Preempted, TrainingError, UsageError
from glimpseg.method import Learner, Progress
from glimpseg.methods.unet import UNet
from glimpseg.modality import Modality
from glimpseg.model.checkpoint import STATE, checkpoints, load_state, newest_valid
from glimpseg.model.digests import weights_digest
from glimpseg.model.folder import WEIGHTS, save_model
from glimpseg.model.loading import load_model
from glimpseg.recipe import Optim
from glimpseg.training.loop import train
from glimpseg.training.options import TrainOptions
from glimpseg.training.state import TrainingState

pytestmark = pytest.mark.usefixtures("no_pictures")

CPU = torch.device("cpu")


REFINING = {"config__refinement": 1, "config__agreement": 1, "config__start": 0, "data__prior__kind": "synthetic"}
"""SMML with all of its parts."""


def weights(run):
    return weights_digest(load_file(Path(run) / "model" / WEIGHTS))


@pytest.fixture(scope="module")
def undisturbed(archive, tmp_path_factory):
    """A whole run. Who is refused to train in it takes its lock, so that each process of the tests has a copy."""
    run = made_once(
        tmp_path_factory, "run", lambda folder: train(small_recipe(), folder, TrainOptions(data=archive, device=CPU))
    )
    return shutil.copytree(run, tmp_path_factory.mktemp("run") / "whole")


def command(archive, run, *more, method="unet"):
    changes = [f"--set={name}={json.dumps(value)}" for name, value in small(method).items()]
    return ["train", f"{method}/phantom", *changes, "--data", str(archive), "-o", str(run), "--device", "cpu", *more]


def glimpseg(*arguments, **options):
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()}); from glimpseg.cli import main; main()"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True, **options)


def test_a_run_leaves_what_a_person_looks_for(undisturbed):
    names = {path.name for path in undisturbed.iterdir()}
    assert {"model", "checkpoints", "recipe.yaml", "metrics.jsonl", "progress.png", "cache"} <= names
    assert {p.name for p in (undisturbed / "model").iterdir()} == {
        "weights.safetensors",
        "recipe.yaml",
        "provenance.json",
    }


def test_only_the_last_two_checkpoints_stay(undisturbed):
    assert [p.name for p in checkpoints(undisturbed)] == ["step-00000012", "step-00000010"]


def test_the_record_says_what_share_of_a_step_was_waiting(undisturbed):
    records = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 6, 8, 10, 12]
    assert all(0 <= record["waiting"] <= 1 for record in records)
    assert records[0]["loss"] == pytest.approx(records[0]["loss/dice"] + records[0]["loss/cross_entropy"], abs=1e-5)


def test_the_model_knows_its_data(undisturbed):
    record = load_model(undisturbed).provenance
    assert record["data"]["studies"] == 4
    assert record["data"]["labels"] == "brats2023"


def test_two_runs_of_one_recipe_are_one(archive, undisturbed, tmp_path):
    train(small_recipe(), tmp_path / "again", TrainOptions(data=archive, device=CPU))
    assert weights(tmp_path / "again") == weights(undisturbed)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_activations_train_the_same_weights(archive, tmp_path, precision):
    """In bf16, too: coarse convolutions are in fp32 both times."""
    for again in (False, True):
        recipe = small_recipe(optim__recompute=again, optim__precision=precision, optim__steps=4)
        train(recipe, tmp_path / str(again), TrainOptions(data=archive, device=CPU))
    assert weights(tmp_path / "True") == weights(tmp_path / "False")


def test_a_run_begun_before_a_field_existed_is_resumed(archive, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(checkpoints(run)[0])
    shutil.rmtree(run / "model")
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    for field in ("compile", "recompute"):
        del tree["optim"][field]
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    train(small_recipe(), run, TrainOptions(data=archive, device=CPU, resume=True))
    assert weights(run) == weights(undisturbed)
    with pytest.raises(UsageError, match=r"begun otherwise \(optim\.recompute: false, now true\)"):
        train(small_recipe(optim__recompute=True), run, TrainOptions(data=archive, device=CPU, resume=True))


OLD_RECIPE = """
method: unet
config: {width: 4, blocks: [1, 1, 1], heads: 2}
init:
  weights: pretrained
  part: encoder+decoder
"""
"""As a run folder of version 0.1 holds it: `init.transfer` was `init.part`."""


def test_a_recipe_with_an_old_field_name_is_read(tmp_path):
    init = methods.from_tree(yaml.safe_load(OLD_RECIPE)).init
    assert (init.weights, init.transfer) == ("pretrained", "encoder+decoder")
    (tmp_path / "recipe.yaml").write_text(OLD_RECIPE)
    recipe = methods.find_recipe(str(tmp_path / "recipe.yaml"), {"init.transfer": "whole"})
    assert recipe.init.transfer == "whole"


def test_a_run_with_an_old_field_name_is_resumed(archive, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    tree = yaml.safe_load((run / "recipe.yaml").read_text())
    tree["init"] = {"weights": None, "part": tree["init"]["transfer"]}
    (run / "recipe.yaml").write_text(yaml.safe_dump(tree))
    train(small_recipe(), run, TrainOptions(data=archive, device=CPU, resume=True))
    assert weights(run) == weights(undisturbed)


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("on", True), ("false", False)])
def test_compile_is_written_as_yaml_writes_truth(text, value):
    assert methods.find_recipe("unet/phantom", {"optim.compile": yaml.safe_load(text)}).optim.compile == value


def test_another_seed_is_another_run(archive, undisturbed, tmp_path):
    train(small_recipe(seed=1), tmp_path / "other", TrainOptions(data=archive, device=CPU))
    assert weights(tmp_path / "other") != weights(undisturbed)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_failed_midway_resumes_to_the_same_weights(archive, tmp_path, monkeypatch, precision):
    recipe = small_recipe(optim__precision=precision, optim__steps=4)
    train(recipe, tmp_path / "whole", TrainOptions(data=archive, device=CPU))
    honest = Learner.after_step

    def break_down(self, progress):
        if progress.step == 2:  # the third; the recipe saves after the second
            raise KeyboardInterrupt
        honest(self, progress)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Learner, "after_step", break_down)
        train(recipe, tmp_path / "broken", TrainOptions(data=archive, device=CPU))
    assert newest_valid(tmp_path / "broken").name == "step-00000002"
    train(recipe, tmp_path / "broken", TrainOptions(data=archive, device=CPU, resume=True))
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("voxunet", {}),  # batch norms count what they see
        ("mstkdnet", {}),  # a discriminator is trained beside the networks
        ("smml", REFINING),  # refiners are trained beside the branches
    ],
)
def test_what_a_method_keeps_beside_its_network_is_resumed_too(archive, tmp_path, method, changes):
    """RFNet and mmFormer keep nothing; Vox-MMSD has a test of its own."""
    recipe = small_recipe(method, **changes, optim__steps=3, optim__save_every=1)
    run = tmp_path / "run"
    train(recipe, run, TrainOptions(data=archive, device=CPU))
    whole = weights(run)
    shutil.rmtree(checkpoints(run)[0])
    shutil.rmtree(run / "model")
    assert newest_valid(run).name == "step-00000002"
    train(recipe, run, TrainOptions(data=archive, device=CPU, resume=True))
    assert weights(run) == whole


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(archive, undisturbed, tmp_path):
    run = shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(run / "model")
    newest = checkpoints(run)[0] / STATE
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    assert newest_valid(run).name == "step-00000010"
    train(small_recipe(), run, TrainOptions(data=archive, device=CPU, resume=True))
    assert weights(run) == weights(undisturbed)


def test_sigterm_saves_and_a_resumed_run_is_the_undisturbed_one(archive, undisturbed, tmp_path, monkeypatch):
    honest = Learner.after_step

    def interrupted(self, progress):
        if progress.step == 4:  # the fifth: no step at which the recipe saves
            os.kill(os.getpid(), signal.SIGTERM)
        honest(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "after_step", interrupted)
        done = command_line(*command(archive, tmp_path / "run"))
    assert done.returncode == 75
    assert "Stopped by SIGTERM after step 5, state saved. Go on with --resume." in done.stderr
    assert newest_valid(tmp_path / "run").name == "step-00000005"
    assert command_line(*command(archive, tmp_path / "run", "--resume")).returncode == 0
    assert weights(tmp_path / "run") == weights(undisturbed)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_is_the_same_run(archive, undisturbed, tmp_path):
    """Its quick sibling fails midway, in this process."""
    run, rng = tmp_path / "killed", random.Random(4)
    for _ in range(2):
        process = glimpseg(*command(archive, run, *(["--resume"] if (run / "recipe.yaml").exists() else [])))
        limit = time.time() + 60
        seen = len(list((run / "checkpoints").glob("step-*")))
        while process.poll() is None and time.time() < limit:  # at least one step further, then any moment
            if len(list((run / "checkpoints").glob("step-*"))) != seen:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        process.communicate()
    assert command_line(*command(archive, run, "--resume")).returncode == 0
    assert weights(run) == weights(undisturbed)


@pytest.mark.slow
def test_a_process_that_gets_sigterm_saves_and_exits_with_75(archive, tmp_path):
    run = tmp_path / "stopped"
    process = glimpseg(*command(archive, run, "--set=optim.steps=4000"))
    limit = time.time() + 60
    while not list((run / "checkpoints").glob("step-*")) and time.time() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, text = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "Go on with --resume" in text
    assert newest_valid(run) is not None


EQUAL = ("unet",)
"""Methods of which two ranks make the same bits as one."""


@needs_loopback
@pytest.mark.parametrize(
    "method", [method if method in EQUAL else pytest.param(method, marks=pytest.mark.slow) for method in NETWORKS]
)
def test_two_ranks_compute_what_one_does_that_accumulates(tmp_path, method):
    """Also where each sees another sequence, and in most steps none all of them. Apart from what ranks gather: SMML's
    relations are among all samples, however they are divided.

    With two ranks it is a matter of bits: the loss is halved before the backward pass in one process and the gradient
    after it in two, which is the same for a power of two, and a sum of two gradients has no order. Batch norms keep
    their running statistics from the first rank's crops alone, so that a file with those has another digest.
    """
    archive = tmp_path / "archive"
    write_head(archive, "S0", 0, (Modality.T1C,))
    write_head(archive, "S1", 1, (Modality.T2, Modality.FLAIR))
    write_head(archive, "S2", 2)
    code = "import torch; torch.set_num_threads(1); from glimpseg.cli import main; main()"
    script = tmp_path / "go.py"
    script.write_text(code)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    refined = {"config.refinement": 1, "config.agreement": 1, "data.prior.kind": "synthetic", "config.feature": 0}
    apart = refined if method == "smml" else {}
    changed = {**apart, "optim.steps": 4}
    recipe = methods.find_recipe(f"{method}/phantom", {**small(method), **changed, "optim.accumulate": 2})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(recipe, alone, TrainOptions(data=archive, device=CPU))
    finally:
        torch.set_num_threads(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run(
        [
            *torchrun,
            *command(archive, shared, *(f"--set={name}={value}" for name, value in changed.items()), method=method),
        ],
        check=True,
        capture_output=True,
        env=environment,
    )
    first, second = (load_file(run / "model" / WEIGHTS) for run in (alone, shared))
    # A batch norm's running statistics are of the first rank's crops alone.
    learned = [name for name in first if "running_" not in name and "num_batches" not in name]
    assert all(torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-6) for name in learned)
    if method in EQUAL:
        assert weights(alone) == weights(shared)


GATHERING = """
from pathlib import Path
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from glimpseg.methods.smml import objective
from glimpseg.runtime.distributed import gather_from_ranks, process_group, rank_and_world

def related(network, part):
    own = objective.Nodes(network(seen[part]), present[part], entropy[part])
    return objective.relation_distance(own, objective.Nodes(peer[part], present[part], entropy[part]))

def compare(layer, alone, wanted):
    rank, world = rank_and_world()
    spread = DistributedDataParallel(layer)
    value = related(spread, slice(2 * rank, 2 * rank + 2))
    value.backward()
    assert world == 2
    assert torch.allclose(value, alone, rtol=1e-5)
    for p, exact in zip(layer.parameters(), wanted):
        assert exact.any()
        assert torch.allclose(p.grad, exact, rtol=1e-4, atol=1e-7), (p.grad, exact)

def threads():
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}

torch.manual_seed(0)
layer, seen, peer = nn.Linear(3, 2), torch.randn(4, 5, 3), torch.randn(4, 5, 2)
present, entropy = torch.rand(4, 5) > 0.3, torch.rand(4, 5)
objective.gather_from_ranks = lambda values: values
alone = related(layer, slice(0, 4))
alone.backward()
wanted = [p.grad.clone() for p in layer.parameters()]
layer.zero_grad()
objective.gather_from_ranks = gather_from_ranks
with process_group(torch.device("cpu")):
    compare(layer, alone.detach(), wanted)
    assert "pt_gloo_runloop" in threads() or not threads()
# A thread that outlives the group may still need Python when there is none any more, and abort the process.
assert not any("gloo" in name for name in threads()), threads()
"""


@needs_loopback
@pytest.mark.slow
def test_what_ranks_gather_has_the_gradient_of_one_process(tmp_path):
    script = tmp_path / "go.py"
    script.write_text(GATHERING)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(torchrun, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def rank_of(torchrun, number):
    """The process of a rank, once there is one."""
    while torchrun.poll() is None:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
                known = folder.joinpath("environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent == torchrun.pid and f"RANK={number}".encode() in known:
                return int(folder.name)
        time.sleep(0.1)
    raise AssertionError(torchrun.stderr.read())


@needs_loopback
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the rank in /proc")
def test_a_rank_that_is_killed_ends_the_others_with_its_name_and_cause(archive, tmp_path):
    run = tmp_path / "run"
    script = tmp_path / "go.py"
    script.write_text("import torch; torch.set_num_threads(1); from glimpseg.cli import main; main()")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*torchrun, *command(archive, run, "--set=optim.steps=4000")],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    begun = time.time()
    while not list((run / "checkpoints").glob("step-*")) and process.poll() is None:
        time.sleep(0.05)
    os.kill(rank_of(process, 1), signal.SIGKILL)
    # Half a minute; where the machine is so busy that the start took longer, the end may, too.
    _, text = process.communicate(timeout=max(30, time.time() - begun))
    assert process.returncode == 1
    assert "rank      : 1" in text
    assert "Signal 9 (SIGKILL)" in text
    assert "Rank 0 lost the connection to another rank" in text
    newest = newest_valid(run)
    step = load_state(newest)[0].step
    again = glimpseg(*command(archive, run, "--set=optim.steps=4000", "--resume"))
    while checkpoints(run)[:1] == [newest] and again.poll() is None:
        time.sleep(0.05)
    again.send_signal(signal.SIGTERM)
    assert f"Resumed from {newest}" in again.communicate()[1]
    assert again.returncode == 75
    assert load_state(newest_valid(run))[0].step > step


def test_a_run_is_not_overwritten(archive, undisturbed):
    with pytest.raises(UsageError, match="Add --resume"):
        train(small_recipe(), undisturbed, TrainOptions(data=archive, device=CPU))


def test_a_run_is_not_resumed_under_another_recipe(archive, undisturbed):
    with pytest.raises(UsageError, match=r"begun otherwise \(seed: 0, now 9\)"):
        train(small_recipe(seed=9), undisturbed, TrainOptions(data=archive, device=CPU, resume=True))


def test_a_run_whose_recipe_file_is_gone_is_still_not_resumed_under_another(archive, undisturbed, tmp_path):
    moved = shutil.copytree(undisturbed, tmp_path / "moved")
    (moved / "recipe.yaml").unlink()
    with pytest.raises(UsageError, match=r"begun otherwise \(seed: 0, now 9\)"):
        train(small_recipe(seed=9), moved, TrainOptions(data=archive, device=CPU, resume=True))


def test_a_run_is_not_resumed_on_other_data(archive, undisturbed, tmp_path):
    write_head(tmp_path / "other", "S9", 9)
    with pytest.raises(UsageError, match="other data"):
        train(small_recipe(), undisturbed, TrainOptions(data=tmp_path / "other", device=CPU, resume=True))


def test_a_published_list_chooses_what_is_learned_from(tmp_path):
    for name in ("BraTS20_Training_002", "BraTS20_Training_001"):  # of the lists for training and for test
        write_head(tmp_path / "data", name)
    recipe = small_recipe(optim__steps=1)
    model = train(recipe, tmp_path / "run", TrainOptions(data=tmp_path / "data", split="brats2020/train", device=CPU))
    described = json.loads((model / "provenance.json").read_text())["data"]
    assert (described["studies"], described["split"]) == (1, "brats2020/train")


def test_only_one_process_trains_in_a_run(archive, tmp_path):
    from filelock import FileLock

    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(UsageError, match="Another process"):
        train(small_recipe(), tmp_path / "run", TrainOptions(data=archive, device=CPU))


def test_a_loss_that_is_nan_stops_with_its_name_and_its_batch(archive, tmp_path, monkeypatch):
    honest = UNet.losses

    def poisoned(self, batch, progress):
        terms = honest(self, batch, progress)
        return terms | ({"cross_entropy": terms["cross_entropy"] * torch.nan} if progress.step == 5 else {})

    monkeypatch.setattr(UNet, "losses", poisoned)
    with pytest.raises(TrainingError, match="'cross_entropy' is nan at step 5"):
        train(small_recipe(), tmp_path / "run", TrainOptions(data=archive, device=CPU))
    saved = load_file(tmp_path / "run" / "failed" / "step-00000005.safetensors")
    assert saved["image"].shape == (2, 4, 16, 16, 16)
    assert newest_valid(tmp_path / "run").name == "step-00000004"


def test_a_study_that_cannot_be_read_is_named(tmp_path):
    write_head(tmp_path / "data", "S0")
    broken = write_head(tmp_path / "data", "S1", 1) / "S1-t2f.nii.gz"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"1 of 2 studies cannot be used(.|\n)*S1"):
        train(small_recipe(), tmp_path / "run", TrainOptions(data=tmp_path / "data", device=CPU))


@pytest.mark.parametrize("method", NETWORKS)
def test_studies_that_lack_sequences_train_too(tmp_path, method):
    write_head(tmp_path / "data", "S0", 0, (Modality.T1C,))
    write_head(tmp_path / "data", "S1", 1, (Modality.T2, Modality.FLAIR))
    write_head(tmp_path / "data", "S2", 2)
    train(small_recipe(method, optim__steps=2), tmp_path / "run", TrainOptions(data=tmp_path / "data", device=CPU))
    counts = load_model(tmp_path / "run").provenance["data"]["available"]
    assert counts == {"t1c": 1, "t2+flair": 1, "t1+t1c+t2+flair": 1}


def test_without_data_the_recipes_phantoms_are_learned_from(tmp_path):
    train(small_recipe(optim__steps=2, data__stream__crops=2), tmp_path / "run", TrainOptions(device=CPU))
    assert load_model(tmp_path / "run").provenance["data"] == {"stream": "phantom-1"}


def test_a_recipe_without_a_stream_asks_for_data(tmp_path):
    with pytest.raises(UsageError, match="--data"):
        train(small_recipe(data__stream=None), tmp_path / "run", TrainOptions(device=CPU))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optim.step", 3, "Did you mean 'steps'"),
        ("config.widht", 8, "Did you mean 'width'"),
        ("config.width", 6, "multiple of channels_per_group"),
        ("optim.learning_rate", "fast", "valid number"),
        ("data.sampling.batch", 0, "at least 1"),
    ],
)
def test_a_recipe_field_that_is_wrong_is_named(path, value, message):
    with pytest.raises(UsageError, match=message):
        methods.find_recipe("unet/phantom", {path: value})


@pytest.mark.parametrize("patch", [[16, 16, 18], [2, 16, 16]])
def test_a_crop_that_the_network_cannot_take_is_refused_before_training(archive, tmp_path, patch):
    with pytest.raises(UsageError, match="multiples of 4 and at least 4"):
        train(small_recipe(data__sampling__patch=patch), tmp_path / "run", TrainOptions(data=archive, device=CPU))


@pytest.mark.parametrize("optimizer", ["adam", "amsgrad"])
def test_adams_decay_is_coupled_and_no_gradient_is_clipped(optimizer):
    """Coupled, decay alone makes a step of the whole learning rate, whatever its size; decoupled it would not."""
    optim = Optim(optimizer=optimizer, learning_rate=0.01, weight_decay=1e-3, max_norm=None, warmup=0, steps=10, ema=0)

    class One(Learner):
        def __init__(self):
            super().__init__()
            self.still = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
            self.pulled = torch.nn.Parameter(torch.tensor([0.0]))

        def losses(self, batch, progress):
            return {"one": 1e4 * self.pulled.sum() + 0 * self.still.sum()}

    learner = One()
    training = TrainingState.begin(learner, optim, CPU)
    sum(learner.losses(None, None).values()).backward()
    assert training.step(optim, Progress(0, 10))["gradient_norm"] == pytest.approx(1e4)
    assert learner.still.tolist() == pytest.approx([1.99, -2.99], abs=1e-5)
    moments = training.optimizer.state[learner.pulled]
    assert float(moments["exp_avg"]) == pytest.approx(1e3)  # a tenth of the whole gradient
    assert ("max_exp_avg_sq" in moments) is (optimizer == "amsgrad")


def test_a_gradient_that_is_not_finite_stops_before_the_weights(archive, tmp_path, monkeypatch):
    honest = UNet.losses

    def infinite(self, batch, progress):
        terms = honest(self, batch, progress)
        if progress.step == 5:
            weight = next(self.parameters())
            terms["dice"] = terms["dice"] + (weight - weight.detach()).abs().sqrt().sum()  # 0, its slope is not
        return terms

    monkeypatch.setattr(UNet, "losses", infinite)
    with pytest.raises(TrainingError, match="norm is nan at step 5, though every loss term is finite"):
        train(small_recipe(), tmp_path / "run", TrainOptions(data=archive, device=CPU))
    state, _ = load_state(newest_valid(tmp_path / "run"))
    assert state.step == 4
    assert all(torch.isfinite(value).all() for value in state.tensors.values())


def test_each_group_is_clipped_by_itself():
    class Two(Learner):
        def __init__(self):
            super().__init__()
            self.calm, self.wild = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))

        def losses(self, batch, progress):
            return {"calm": 0.5 * self.calm.sum(), "wild": 1e3 * self.wild.sum()}

        def parameter_groups(self):
            return [{"params": [self.calm]}, {"params": [self.wild], "scale": 0.1}]

    optim = Optim(optimizer="sgd", learning_rate=1.0, weight_decay=0, max_norm=1.0, warmup=0, steps=10, ema=0)
    learner = Two()
    training = TrainingState.begin(learner, optim, CPU)
    sum(learner.losses(None, None).values()).backward()
    assert training.step(optim, Progress(0, 10))["gradient_norm"] == pytest.approx(np.hypot(0.5, 1e3))
    # Nesterov's first step is 1.99 times the gradient.
    assert learner.calm.item() == pytest.approx(-1.99 * 0.5)
    assert learner.wild.item() == pytest.approx(-1.99 * 0.1, rel=1e-4)


def test_the_released_schedule_has_one_rate_an_epoch_and_keeps_its_largest_moments(archive, tmp_path):
    changes = {"optimizer": "amsgrad", "epoch": 3, "max_norm": None, "warmup": 0, "log_every": 1, "learning_rate": 2e-4}
    recipe = small_recipe(**{f"optim__{name}": value for name, value in changes.items()})
    train(recipe, tmp_path / "run", TrainOptions(data=archive, device=CPU))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [2e-4 * (1 - step // 3 / 4) ** 0.9 for step in range(12)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected, abs=1e-6)
    state, _ = load_state(checkpoints(tmp_path / "run")[0])
    assert any(name.endswith("max_exp_avg_sq") for name in state.tensors)


def test_a_recipe_is_read_from_the_yaml_a_run_wrote(undisturbed):
    assert methods.find_recipe(str(undisturbed / "recipe.yaml")) == small_recipe()


def test_numbers_that_yaml_takes_for_text_are_numbers():
    assert (
        methods.find_recipe("unet/phantom", {"optim.learning_rate": yaml.safe_load("2e-4")}).optim.learning_rate == 2e-4
    )


# Models that must not be loaded


def copied(model_folder, tmp_path):
    import shutil

    return Path(shutil.copytree(model_folder, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["weights.safetensors", "recipe.yaml"])
def test_a_flipped_bit_in_a_model_is_noticed(model_folder, tmp_path, name):
    path = copied(model_folder, tmp_path) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ModelError, match="checksum differs"):
        load_model(path.parent)


@pytest.mark.parametrize("name", ["weights.safetensors", "recipe.yaml", "provenance.json"])
def test_a_model_that_lacks_a_file_is_refused(model_folder, tmp_path, name):
    folder = copied(model_folder, tmp_path)
    (folder / name).unlink()
    with pytest.raises(ModelError, match=name):
        load_model(folder)


def test_a_model_of_another_format_is_refused(model_folder, tmp_path):
    path = copied(model_folder, tmp_path) / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(ModelError, match="format 99"):
        load_model(path.parent)


def test_a_model_of_an_unknown_method_is_refused(tmp_path):
    recipe = small_recipe()
    save_model(tmp_path / "m", methods.build(recipe).state_dict(), recipe, {})
    _rewrite(tmp_path / "m", lambda tree: tree | {"method": "telepathy"})
    with pytest.raises(ModelError, match="no method 'telepathy'"):
        load_model(tmp_path / "m")


def test_weights_that_do_not_fit_the_recipe_are_refused(tmp_path):
    recipe = small_recipe()
    save_model(tmp_path / "m", methods.build(recipe).state_dict(), recipe, {})
    _rewrite(tmp_path / "m", lambda tree: tree | {"config": tree["config"] | {"width": 16}})
    with pytest.raises(ModelError, match="do not fit"):
        load_model(tmp_path / "m")


def _rewrite(folder, change):
    """Changes the recipe and its checksum, as another version of glimpseg might have written them."""
    import hashlib

    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text()))))
    record = json.loads((folder / "provenance.json").read_text())
    record["sha256"]["recipe.yaml"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "provenance.json").write_text(json.dumps(record))


def test_a_pickle_is_never_opened(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path(tmp_path / "canary").touch, ())

    (tmp_path / "m").mkdir()
    torch.save(Payload(), tmp_path / "m" / "weights.safetensors")
    torch.save(Payload(), tmp_path / "m" / "weights.pt")
    with pytest.raises(ModelError):
        load_model(tmp_path / "m")
    assert not (tmp_path / "canary").exists()


def test_preemption_is_its_own_error():
    assert not issubclass(Preempted, TrainingError)
