"""Pretraining: views, objective, resuming, and transferred weights."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from conformance import reference, voxmmsd_reference
from conftest import as_it_was, needs_loopback, small_recipe, write_head
from glimpseg import methods
from glimpseg.cli import app
from glimpseg.data.cache import in_memory
from glimpseg.data.layouts import find_studies
from glimpseg.data.preprocess import RFNET, Preprocess, prepare
from glimpseg.errors import InputError, ModelError, UsageError
from glimpseg.method import Progress, Segmenter, names_by_role
from glimpseg.methods.voxmmsd import views
from glimpseg.methods.voxmmsd.config import OFFICIAL, Config, Intensities
from glimpseg.methods.voxmmsd.intensities import apply_change, random_change
from glimpseg.methods.voxmmsd.objective import VoxMMSD, distillation_loss, voxel_features
from glimpseg.methods.voxunet import blended, cross_entropy
from glimpseg.modality import ALL, Modality
from glimpseg.model.checkpoint import STATE, checkpoints, newest_valid
from glimpseg.model.folder import PROVENANCE, WEIGHTS, StoredModel
from glimpseg.model.loading import load_model, stored_model
from glimpseg.model.transfer import transfer
from glimpseg.phantom.training_stream import PhantomStream, Stream
from glimpseg.recipe import Init, Optim
from glimpseg.training.dataset import labelled_share
from glimpseg.training.loop import train
from glimpseg.training.options import TrainOptions
from glimpseg.training.state import TrainingState

pytestmark = pytest.mark.usefixtures("no_pictures")

CPU = torch.device("cpu")
SEGMENTERS = [name for name in methods.names() if issubclass(methods.module(name).METHOD, Segmenter)]
SMALL = {
    "config.block": 8, "config.voxels": 16, "config.embedding": 16, "data.sampling.patch": [16, 16, 16],
    "optim.steps": 8, "optim.save_every": 2, "optim.warmup": 0, "optim.log_every": 2, "optim.precision": "fp32",
}  # fmt: skip
TINY = {"backbone.config.width": 4, "backbone.config.dropout": [0, 0, 0.2], "backbone.config.heads": 2}


def pretraining(**changes):
    changed = {path.replace("__", "."): value for path, value in changes.items()}
    return methods.find_recipe("voxmmsd/phantom", {**SMALL, **TINY, **changed})


@pytest.fixture(scope="module")
def case():
    recipe = pretraining()
    return PhantomStream(recipe.data.stream, recipe.data.preprocess).case(0, 0)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Finished run on studies without references; one study lacks sequences."""
    place = tmp_path_factory.mktemp("pretrained")
    write_head(place / "data", "S0", 0, reference=False)
    write_head(place / "data", "S1", 1, (Modality.T1C, Modality.FLAIR), reference=False)
    write_head(place / "data", "S2", 2, (Modality.T2,), reference=False)
    train(pretraining(), place / "run", TrainOptions(data=place / "data", device=CPU))
    return place


# The authors' numbers


@pytest.fixture(scope="module")
def stored():
    return dict(np.load(reference.HERE / "voxmmsd.npz"))


@pytest.fixture(scope="module")
def differences(stored):
    return voxmmsd_reference.differences(stored)


@pytest.fixture(scope="module")
def numbers(stored):
    return voxmmsd_reference.numbers(stored)


@pytest.mark.numerics
@pytest.mark.parametrize(("family", "count"), [
    ("sched", 5), ("norm", 1), ("mask", 9), ("aug", 21), ("view", 30), ("net", 8), ("step", 4), ("ft", 4), ("prep", 2),
])  # fmt: skip
def test_draws_views_and_structure_are_the_authors(differences, family, count):
    found = {name: value for name, value in differences.items() if name.startswith(f"{family}/")}
    assert len(found) == count
    assert all(value <= voxmmsd_reference.TOLERANCES.get(family, 0.0) for value in found.values())


@pytest.mark.numerics
@pytest.mark.parametrize(("family", "count"), [("dino", 3), ("mae", 1), ("net", 16), ("step", 234), ("ft", 3)])
def test_every_number_of_the_networks_is_the_authors(numbers, family, count):
    found = {name: value for name, value in numbers.items() if name.startswith(f"{family}/")}
    assert len(found) == count
    assert not reference.beyond("voxmmsd", found)


# Views

STILL = Intensities(noise_sd=0, blur=0, gain=0, shift=0, contrast=0, gamma=0)
"""Settings without intensity changes."""


def test_rows_of_both_views_are_one_place_of_the_patient(case):
    config = Config(block=8, voxels=64, intensities=STILL)
    pair = views.view_pair(case, (32, 32, 32), config, np.random.default_rng(0))
    first, second = (whole[(slice(None), *voxels.T)] for whole, voxels in zip(pair.whole, pair.voxels, strict=True))
    assert np.array_equal(first, second)
    assert len(np.unique(pair.voxels[0], axis=0)) == 64


def test_each_voxel_is_seen_in_both_views(case):
    config = Config(block=8, voxels=64, intensities=STILL)
    pair = views.view_pair(case, (32, 32, 32), config, np.random.default_rng(1))
    for seen, voxels in zip(pair.seen, pair.voxels, strict=True):
        assert (seen[(slice(None), *voxels.T)] != 0).any(0).all()


def test_a_view_is_made_again_from_its_number(case):
    one, again, other = (
        views.view_pair(case, (32, 32, 32), Config(block=8), np.random.default_rng(seed)) for seed in (3, 3, 4)
    )
    assert all(np.array_equal(getattr(one, name), getattr(again, name)) for name in ("seen", "whole", "voxels"))
    assert not np.array_equal(one.voxels, other.voxels)


def test_an_eighth_of_the_blocks_of_each_modality_is_shown():
    uniforms = np.random.default_rng(0).random((4, 12, 12, 12))
    kept = views.blocks_to_voxels(uniforms <= 1 - Config().hidden, (192, 192, 192), Config())
    assert np.allclose(kept.mean((1, 2, 3)), 0.125, atol=0.03)


@pytest.mark.parametrize("side", [16, 32, 48, 96])
def test_uniform_blocks_are_alike(side):
    shown = np.arange(side // 16)[None, :, None, None] * np.ones((1, 1, side // 16, side // 16), int)
    counts = np.bincount(views.blocks_to_voxels(shown, (side,) * 3, Config())[0, :, 0, 0])
    assert set(counts.tolist()) == {16}


def test_what_is_hidden_last_is_0_when_it_is_seen(case):
    pair = views.view_pair(case, (32, 32, 32), Config(block=8, hide_last=True), np.random.default_rng(0))
    hidden = (pair.seen == 0).mean()
    assert 0.8 < hidden < 0.95


@pytest.mark.parametrize("available", [Modality.T2, Modality.T1 | Modality.FLAIR, ALL])
def test_absent_modalities_are_neither_drawn_nor_shown(available, tmp_path, monkeypatch):
    write_head(tmp_path, "S0", 0, tuple(available))
    made = in_memory(prepare(find_studies(tmp_path)[0], pretraining().data.preprocess))
    drawn, honest = [], views.visible_in_both

    def watched(visible, where, starts, modalities):
        drawn.append(modalities)
        return honest(visible, where, starts, modalities)

    monkeypatch.setattr(views, "visible_in_both", watched)
    pair = views.view_pair(made, (16, 16, 16), Config(block=4, voxels=32), np.random.default_rng(0))
    has = [number for number, modality in enumerate(Modality) if modality in available]
    assert set(np.unique(np.concatenate([one.ravel() for one in drawn])).tolist()) == set(has)
    absent = [number for number in range(4) if number not in has]
    assert not pair.seen[:, absent].any()


def test_a_study_that_shows_nothing_is_named(case, monkeypatch):
    monkeypatch.setattr(views, "visible_in_both", lambda visible, where, *_: np.zeros(len(where), bool))
    with pytest.raises(InputError, match=rf"{case.id} shows no voxel"):
        views.view_pair(case, (16, 16, 16), Config(block=8), np.random.default_rng(0))


@pytest.mark.parametrize(
    "preparation", [Preprocess(spacing_mm=3), replace(RFNET, spacing_mm=3)], ids=["zero", "shifted"]
)
def test_air_is_never_drawn_also_around_a_study_smaller_than_the_crop(preparation):
    """Also where the value of air is not 0."""
    case = PhantomStream(Stream(), preparation).case(0, 0)
    side = max(case.shape) // 8 * 8 + 16
    pair = views.view_pair(case, (side,) * 3, Config(block=8, voxels=256), np.random.default_rng(0))
    air = np.array([case.level(modality) for modality in Modality])[:, None]
    for whole, voxels in zip(pair.whole, pair.voxels, strict=True):
        assert (whole[(slice(None), *voxels.T)] != air).any(0).all()


def test_a_crop_of_two_blocks_a_side_shows_something_whatever_is_drawn(tmp_path):
    write_head(tmp_path, "S0", 0, (Modality.T2,))
    made = in_memory(prepare(find_studies(tmp_path)[0], pretraining().data.preprocess))
    for seed in range(30):
        assert views.view_pair(made, (16, 16, 16), Config(block=8, voxels=16), np.random.default_rng(seed)).voxels.any()


@pytest.mark.numerics
def test_changes_are_in_units_of_the_crops_range():
    """An image of z-scores and one of bytes change in the same way."""
    rng = np.random.default_rng(0)
    image = rng.random((4, 8, 8, 8), dtype=np.float32)
    change = random_change(Intensities(), image.shape, rng)
    ones = np.ones(4, np.float32)
    assert np.allclose(
        apply_change(change, image * 250, 250 * ones), 250 * apply_change(change, image, ones), atol=1e-2
    )


def test_draws_are_as_many_whatever_they_come_to():
    ends = []
    for strength in (0.0, 1.0):
        rng = np.random.default_rng(0)
        random_change(Intensities(blur=strength, gain=strength, gamma=strength), (4, 4, 4, 4), rng)
        ends.append(rng.random())
    assert ends[0] == ends[1]


# Objective


@pytest.mark.numerics
def test_coarse_features_are_those_of_the_cell_that_holds_the_voxel():
    fine = torch.arange(8**3, dtype=torch.float32).reshape(1, 1, 8, 8, 8)
    coarse = torch.arange(4**3, dtype=torch.float32).reshape(1, 1, 4, 4, 4)
    found = voxel_features([fine, coarse], torch.tensor([[[0, 0, 0], [7, 5, 3]]]), (8, 8, 8))
    assert found.tolist() == [[0, 0], [7 * 64 + 5 * 8 + 3, 3 * 16 + 2 * 4 + 1]]


@pytest.mark.numerics
def test_distillation_is_cross_entropy_with_the_other_view():
    teacher, student = torch.randn(4, 5), torch.randn(4, 5)
    centre, swapped = torch.randn(1, 5), teacher[[2, 3, 0, 1]]
    wanted = ((swapped - centre) / 0.05).softmax(1)
    by_hand = -(wanted * (student / 0.1).log_softmax(1)).sum() / 4
    assert torch.isclose(distillation_loss(student, teacher, centre, (0.1, 0.05)), by_hand)


@pytest.mark.numerics
def test_the_teacher_gets_no_gradient_and_follows():
    torch.manual_seed(0)
    learner = methods.build(pretraining())
    before = [p.clone() for p in learner.teacher.parameters()]
    with torch.no_grad():
        for parameter in learner.student.parameters():
            parameter += 1
    learner._rows.append(torch.ones(1, 16))
    learner.after_step(Progress(0, 100))
    assert not any(p.requires_grad for p in learner.teacher.parameters())
    moved = [(new - old).mean().item() for new, old in zip(learner.teacher.parameters(), before, strict=True)]
    assert np.allclose(moved, 1 - learner.config.momentum, atol=1e-5)
    assert torch.allclose(learner.centre, torch.full((1, 16), 1 - learner.config.centre_momentum))


def test_the_released_heads_learn_nothing_and_ours_do():
    for config, trained in ((replace(OFFICIAL, embedding=16), False), (Config(embedding=16), True)):
        learner = VoxMMSD(config, methods.build(small_recipe("voxunet")))
        grouped = {id(p) for group in learner.parameter_groups() for p in group["params"]}
        heads = [*learner.projector.parameters(), *learner.restorer.parameters()]
        assert all((id(p) in grouped) == trained for p in heads)


def test_norms_and_biases_do_not_decay():
    decayed, spared = methods.build(pretraining()).parameter_groups()
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() == 1 for p in spared["params"])
    assert spared["weight_decay"] == 0


def test_the_decay_that_rises_leaves_alone_what_does_not_decay():
    optim = Optim(steps=10, weight_decay=1e-5, weight_decay_to=1e-4, cosine_to=1e-4, ema=0)
    training = TrainingState.begin(methods.build(pretraining()), optim, CPU)
    for p in training.learner.parameters():
        p.grad = torch.zeros_like(p)
    training.learner._rows.append(torch.zeros(1, 16))
    training.step(optim, Progress(9, 10))
    assert [group["weight_decay"] for group in training.optimizer.param_groups] == [optim.decay(9), 0.0]
    assert optim.decay(9) > 9e-5


@pytest.mark.parametrize("backbone", SEGMENTERS)
def test_every_methods_network_can_be_pretrained(backbone):
    """Every trained parameter gets a gradient, also from a study with a single sequence."""
    crop = {"data.sampling.patch": [48, 48, 32] if backbone == "mstkdnet" else [16, 16, 16]}
    recipe = methods.find_recipe("voxmmsd/phantom", {**SMALL, **crop}, f"{backbone}/phantom")
    torch.manual_seed(0)
    learner = methods.build(recipe)
    cases = PhantomStream(recipe.data.stream, recipe.data.preprocess)
    batch, _ = learner.collate(
        [learner.view(cases.case(0, 0), recipe.data.sampling, np.random.default_rng(n)) for n in (0, 1)]
    )
    terms = learner.losses(batch, Progress(0, 10))
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert set(learner.kept) == set(names_by_role(methods.build(methods.find_recipe(f"{backbone}/phantom"))))


# Runs


def test_a_run_that_failed_midway_resumes_to_the_same_student_teacher_and_centre(pretrained, tmp_path, monkeypatch):
    honest, steps = VoxMMSD.after_step, iter(range(100))

    def break_down(self, progress):
        if next(steps) == 5:
            raise KeyboardInterrupt
        honest(self, progress)

    monkeypatch.setattr(VoxMMSD, "after_step", break_down)
    with pytest.raises(KeyboardInterrupt):
        train(pretraining(), tmp_path / "run", TrainOptions(data=pretrained / "data", device=CPU))
    monkeypatch.setattr(VoxMMSD, "after_step", honest)
    train(pretraining(), tmp_path / "run", TrainOptions(data=pretrained / "data", device=CPU, resume=True))
    ends = [load_file(newest_valid(run) / STATE) for run in (tmp_path / "run", pretrained / "run")]
    assert set(ends[0]) == set(ends[1])
    assert {"learner/centre", "learner/projector.0.weight", "learner/teacher.decoder.levels.0.narrow.weight"} <= set(
        ends[0]
    )
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_references_are_never_read(tmp_path):
    """Neither broken references, nor references of several conventions."""
    for seed, number in ((0, 3), (1, 9)):
        place = write_head(tmp_path / "data", f"S{seed}", seed)
        (place / f"S{seed}-seg.nii.gz").write_bytes(b"no image" * number)
    train(pretraining(optim__steps=1), tmp_path / "run", TrainOptions(data=tmp_path / "data", device=CPU))
    record = stored_model(tmp_path / "run").provenance
    assert record["data"]["studies"] == 2
    assert record["data"]["labels"] is None


def test_a_mixed_collection_is_learned_from(pretrained):
    record = stored_model(pretrained / "run").provenance
    assert record["data"]["available"] == {"t2": 1, "t1c+flair": 1, "t1+t1c+t2+flair": 1}


def test_a_pretraining_segments_nothing(pretrained):
    with pytest.raises(ModelError, match=r"pretraining.*--init"):
        load_model(pretrained / "run")


def test_each_verb_has_its_recipes(tmp_path):
    said = [
        CliRunner().invoke(app, [verb, recipe, "-o", str(tmp_path / "run")])
        for verb, recipe in (("train", "voxmmsd/phantom"), ("pretrain", "unet/phantom"))
    ]
    assert all(isinstance(one.exception, UsageError) for one in said)
    assert "glimpseg pretrain" in str(said[0].exception)
    assert "glimpseg train" in str(said[1].exception)


@pytest.mark.parametrize(("recipe", "changes", "backbone", "words"), [
    ("voxmmsd/phantom", {}, "voxmmsd/phantom", "needs a method that segments, not voxmmsd"),
    ("voxmmsd/phantom", {"backbone": None}, None, "needs a method that segments, not None"),
    ("unet/phantom", {}, "rfnet/phantom", "unet segments by itself"),
    ("unet/phantom", {"backbone": {"method": "rfnet"}}, None, "unet segments by itself"),
    ("voxmmsd/phantom", {"backbone.config": {"depth": 3}}, None, "backbone.config.depth"),
])  # fmt: skip
def test_a_backbone_is_a_method_that_segments(recipe, changes, backbone, words):
    with pytest.raises(UsageError, match=words):
        methods.find_recipe(recipe, changes, backbone)


def test_a_part_is_of_something(tmp_path):
    said = CliRunner().invoke(app, ["train", "unet/phantom", "-o", str(tmp_path / "run"), "--transfer=encoder"])
    assert "--init" in str(said.exception)


def test_another_preparation_and_an_unfinished_run_are_said(pretrained, archive, tmp_path, caplog):
    shutil.copytree(pretrained / "run", tmp_path / "pretrained")
    shutil.rmtree(tmp_path / "pretrained" / "model")
    shutil.rmtree(checkpoints(tmp_path / "pretrained")[0])
    recipe = small_recipe(
        "voxunet", init__weights=str(tmp_path / "pretrained"), data__preprocess__clip=3.0, optim__steps=1
    )
    with caplog.at_level("WARNING"):
        train(recipe, tmp_path / "run", TrainOptions(data=archive, device=CPU))
    assert "6 of 8 steps" in caplog.text
    assert "another preprocessing" in caplog.text
    assert load_model(tmp_path / "run").provenance["init"]["steps"] == 6


def test_the_cache_that_prepare_fills_is_pretrainings(archive, tmp_path):
    recipe = pretraining(optim__steps=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(methods.as_tree(recipe)))
    cache = tmp_path / "cache"
    prepared = CliRunner().invoke(
        app,
        ["prepare", str(archive), "-o", str(cache), "--recipe", str(tmp_path / "recipe.yaml")],
        catch_exceptions=False,
    )
    assert prepared.exit_code == 0
    before = sorted(cache.iterdir())
    train(recipe, tmp_path / "run", TrainOptions(data=archive, cache=cache, device=CPU))
    assert sorted(cache.iterdir()) == before


@needs_loopback
@pytest.mark.slow
def test_two_ranks_pretrain_as_one_does_that_accumulates(pretrained, tmp_path):
    """The centre, too, comes from the rows of all ranks and passes."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(methods.as_tree(pretraining(optim__steps=3))))
    script = tmp_path / "go.py"
    script.write_text("import torch; torch.set_num_threads(1); from glimpseg.cli import main; main()")
    with as_it_was():
        torch.set_num_threads(1)
        alone = pretraining(optim__steps=3, optim__accumulate=2)
        train(alone, tmp_path / "one", TrainOptions(data=pretrained / "data", device=CPU))
    command = ["pretrain", str(tmp_path / "recipe.yaml"), "--data", str(pretrained / "data"), "--device=cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    two = [*torchrun, *command, "-o", str(tmp_path / "two")]
    subprocess.run(two, check=True, capture_output=True, env=environment)
    first, second = (load_file(newest_valid(tmp_path / name) / STATE) for name in ("one", "two"))
    learned = [
        name for name in first if name.startswith("learner/") and "running_" not in name and "num_batches" not in name
    ]
    assert first["learner/centre"].any()
    assert all(torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-6) for name in learned)


def test_a_backbone_brings_its_preparation():
    recipe = methods.find_recipe("voxmmsd/phantom", backbone="unet/phantom")
    assert recipe.data.preprocess == methods.find_recipe("unet/phantom").data.preprocess
    assert methods.from_tree(yaml.safe_load(yaml.safe_dump(methods.as_tree(recipe)))) == recipe


# What is carried over


def found_in(pretrained):
    return stored_model(pretrained / "run")


@pytest.mark.parametrize(("part", "parts"), [("encoder", {"encoder"}), ("encoder+decoder", {"encoder", "decoder"})])
def test_the_wanted_parts_are_carried_over_whole(pretrained, part, parts):
    network = methods.build(small_recipe("voxunet"))
    taken = transfer(network, found_in(pretrained), Init(transfer=part))
    assert {name for name, (done, _) in taken.parts.items() if done} == parts
    assert all(done == of for name, (done, of) in taken.parts.items() if name in parts)


def test_training_begins_with_them_and_says_so(pretrained, archive, tmp_path):
    begin = {"init__weights": str(pretrained / "run"), "init__transfer": "encoder+decoder"}
    recipe = small_recipe("voxunet", **begin, optim__steps=1, optim__learning_rate=0.0, optim__ema=0)
    train(recipe, tmp_path / "run", TrainOptions(data=archive, device=CPU))
    found, weights = found_in(pretrained), load_file(tmp_path / "run" / "model" / WEIGHTS)
    counted = ("running_mean", "running_var", "num_batches_tracked")  # these follow the data at any rate
    learned = [name for name in weights if not name.startswith("heads") and not name.endswith(counted)]
    assert all(torch.equal(weights[name], found.weights[name]) for name in learned)
    record = json.loads((tmp_path / "run" / "model" / PROVENANCE).read_text())
    assert record["init"]["weights"] == found.provenance["sha256"][WEIGHTS]
    assert record["init"]["taken"] == {"encoder": [42, 42], "decoder": [32, 32]}


def test_a_resumed_run_needs_no_pretraining_any_more(pretrained, archive, tmp_path):
    shutil.copytree(pretrained / "run", tmp_path / "pretrained")
    recipe = small_recipe("voxunet", init__weights=str(tmp_path / "pretrained"), optim__steps=4)
    train(recipe, tmp_path / "run", TrainOptions(data=archive, device=CPU))
    shutil.rmtree(tmp_path / "pretrained")
    shutil.rmtree(tmp_path / "run" / "model")
    train(recipe, tmp_path / "run", TrainOptions(data=archive, device=CPU, resume=True))
    assert load_model(tmp_path / "run").provenance["init"]["of"] == "voxunet"


def test_nothing_that_fits_is_an_error_before_anything_is_written(pretrained, archive, tmp_path):
    recipe = small_recipe("rfnet", init__weights=str(pretrained / "run"))
    with pytest.raises(ModelError, match=r"Nothing of .* fits into this RFNet: it comes from voxunet"):
        train(recipe, tmp_path / "run", TrainOptions(data=archive, device=CPU))
    assert not (tmp_path / "run").exists()


def test_both_branches_begin_with_what_one_network_learned():
    """Copies with the same role get the same weights."""
    recipe = methods.find_recipe("voxmmsd/phantom", backbone="mmformer/phantom")
    found = StoredModel(methods.build(recipe).kept, recipe, {}, Path())
    network = methods.build(methods.find_recipe("smml/phantom"))
    taken = transfer(network, found, Init())
    assert {name.split(".")[1] for name in taken.weights} == {"0", "1"}
    one, other = (taken.weights[f"branches.{n}.encoders.t2.stages.1.entry.conv.weight"] for n in (0, 1))
    assert torch.equal(one, other)


def test_a_trained_model_can_be_begun_with_too(model_folder):
    network = methods.build(small_recipe())
    found = stored_model(model_folder)
    taken = transfer(network, found, Init(transfer="encoder+decoder"))
    assert all(torch.equal(taken.weights[name], found.weights[name]) for name in taken.weights)
    assert len(taken.weights) > 20


def test_the_whole_of_a_trained_model_is_trained_further(model_folder, archive, tmp_path):
    begin = {"init__weights": str(model_folder), "init__transfer": "whole"}
    still = {"optim__steps": 1, "optim__learning_rate": 0.0, "optim__ema": 0}
    train(small_recipe(**begin, **still), tmp_path / "run", TrainOptions(data=archive, device=CPU))
    before, after = (stored_model(place).weights for place in (model_folder, tmp_path / "run"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ("NCR", "ED", "ET", "RC")},
        {"labels": ("ED", "NCR", "ET")},
        {"config__width": 16},
        {"method": "voxunet"},
    ],
)
def test_the_whole_of_another_network_is_refused(model_folder, archive, tmp_path, change):
    recipe = small_recipe(
        change.pop("method", "unet"), **change, init__weights=str(model_folder), init__transfer="whole"
    )
    with pytest.raises(ModelError, match="Take over encoder\\+decoder"):
        train(recipe, tmp_path / "run", TrainOptions(data=archive, device=CPU))
    assert not (tmp_path / "run").exists()


def test_weights_of_another_shape_are_left_with_all_that_their_norms_counted():
    recipe = pretraining()
    found = StoredModel(methods.build(recipe).kept, recipe, {}, Path())
    network = methods.build(small_recipe("voxunet", config__width=8))
    taken = transfer(network, found, Init())
    assert not taken.weights
    assert len(taken.unlike) == 42


def test_shares_are_nested_and_fixed(tmp_path):
    write_head(tmp_path, "S", 0)
    studies = [replace(find_studies(tmp_path)[0], id=f"S{n}") for n in range(40)]
    for seed in range(3):
        sets = [{study.id for study in labelled_share(studies, share, seed)} for share in (0.05, 0.1, 0.25, 1.0)]
        assert [len(one) for one in sets] == [2, 4, 10, 40]
        assert sets[0] < sets[1] < sets[2] < sets[3]
    assert labelled_share(studies, 0.1, 0) != labelled_share(studies, 0.1, 1)


def test_a_share_of_an_endless_stream_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--data"):
        train(small_recipe(data__labelled=0.5), tmp_path / "run", TrainOptions(device=CPU))


# The fine-tuning


def test_blended_batches_are_mixed_as_their_labels_are():
    torch.manual_seed(0)
    image = torch.tensor([0.0, 1.0, 5.0])[:, None, None, None, None].expand(3, 4, 2, 2, 2)
    mixed, target = blended(image, image[:, :3])
    assert torch.equal(mixed[:, :3], target)
    assert 0 <= mixed.min() <= mixed.max() <= 5


@pytest.mark.numerics
def test_a_confident_mistake_costs_no_more_than_a_bound():
    wrong = torch.zeros(1, 2, 1, 1, 1)
    wrong[:, 0] = 1
    assert torch.isclose(cross_entropy(wrong, wrong.flip(1)), -torch.tensor(5e-4).log())
