"""The model that comes with the package: what `box` means, fp16, shipping, real cases, the demo; and the weights
themselves, where the checkout has them."""

import json
import math
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import glimpseg
import label_maps
from conftest import small_recipe, write_head
from glimpseg import demo, methods, phantom
from glimpseg.cli.app import app
from glimpseg.cli.entry import main  # noqa: F401  (verbs join the application when it is imported)
from glimpseg.data.layouts import find_studies
from glimpseg.errors import InputError, ModelError, UsageError
from glimpseg.evaluation.calibrate import calibrate
from glimpseg.evaluation.evaluate import evaluate
from glimpseg.evaluation.options import EvaluationOptions
from glimpseg.metrics import dice
from glimpseg.modality import ALL, SUBSETS, Modality
from glimpseg.model import shipped
from glimpseg.model.digests import sha256_of
from glimpseg.model.expectations import Expectations, Expected
from glimpseg.model.folder import PROVENANCE, WEIGHTS, save_model
from glimpseg.model.halving import halved, save_halved
from glimpseg.model.loading import load_model, stored_model
from glimpseg.phantom import Traits
from glimpseg.phantom.dataset import as_study, write_phantoms
from glimpseg.region import Region
from glimpseg.results.statistics import Interval
from glimpseg.segmentation.options import InferenceOptions
from glimpseg.segmentation.predict import load, segment_study

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import real_cases
import ship

BOX = shipped.WEIGHTS_FOLDER / shipped.BOX
in_the_box = pytest.mark.skipif(not BOX.is_dir(), reason="this checkout does not hold the shipped weights")


@pytest.fixture
def package(model_folder, tmp_path, monkeypatch):
    """A package that came with a small untrained model."""
    place = tmp_path / "package" / shipped.BOX
    save_halved(stored_model(model_folder), place)
    monkeypatch.setattr(shipped, "WEIGHTS_FOLDER", place.parent)
    return place


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory of its own."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of 16 steps on phantoms that has no weights but those it began with, and its log."""
    folder = tmp_path_factory.mktemp("run")
    recipe = small_recipe(optim__steps=16, seed=5, data__sampling__patch=[48, 48, 40])  # a brain in few windows
    torch.manual_seed(0)
    record = {"steps": 16, "seed": 5, "device": "cpu", "data": {"stream": "phantom-1"}}
    save_model(folder / "model", methods.build(recipe).state_dict(), recipe, record)
    lines = [{"step": n, "loss": 2.0 - n / 16, "loss/dice": 1.0, "seconds_per_step": 90.0} for n in (8, 16)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def flair(study):
    return study / f"{study.name}-t2f.nii.gz"


def shipping(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ship.py", *map(str, arguments)])
    return ship.main()


# fp16


def test_weights_are_stored_in_half_the_bytes(package, model_folder):
    stored = load_file(package / WEIGHTS)
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.float16}
    halved, whole = ((place / WEIGHTS).stat().st_size for place in (package, model_folder))
    assert halved < 0.6 * whole


def test_weights_are_fp32_again_when_they_are_loaded_and_nearest_to_what_they_were(package, model_folder):
    before, after = stored_model(model_folder).weights, stored_model(package).weights
    assert {name: value.dtype for name, value in after.items()} == {name: v.dtype for name, v in before.items()}
    for name, value in before.items():
        expected = value.numpy().astype(np.float16).astype(value.numpy().dtype)
        assert np.array_equal(after[name].numpy(), expected)


def test_the_network_computes_in_fp32(package):
    assert {value.dtype for value in load_model(package).network.parameters()} == {torch.float32}


def test_an_ordinary_model_keeps_its_bits(model_folder):
    assert all(
        torch.equal(value, stored_model(model_folder).weights[name])
        for name, value in load_file(model_folder / WEIGHTS).items()
    )


def test_a_weight_beyond_fp16_is_refused_by_its_name():
    with pytest.raises(ModelError, match=r"stem\.weight reach 70000.*65504"):
        halved({"stem.weight": torch.tensor([1.0, -70_000.0])})


def test_the_largest_number_of_fp16_is_not_refused():
    assert halved({"w": torch.tensor([65_504.0])})["w"].item() == 65_504


def test_counts_are_not_halved():
    assert halved({"seen": torch.tensor(70_001)})["seen"].item() == 70_001


def test_provenance_says_what_the_weights_were_made_of(package, model_folder):
    before, after = (json.loads((place / PROVENANCE).read_text()) for place in (model_folder, package))
    assert after["halved_from"] == before["sha256"][WEIGHTS]
    kept = before.keys() - {"sha256"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}


def test_a_damaged_shipped_file_is_noticed(package):
    path = package / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        load("box", "cpu")


# Its name


def test_box_is_the_model_in_the_package(package, elsewhere):
    assert load("box", "cpu").path == package
    assert load(device="cpu").path == package


def test_a_folder_called_box_is_meant_by_its_path(package, model_folder, elsewhere):
    shutil.copytree(model_folder, elsewhere / "box")
    for named in ("./box", Path("box"), str(elsewhere / "box")):
        assert load(named, "cpu").path.resolve() == elsewhere / "box"


def test_a_folder_called_box_does_not_go_unnoticed(package, model_folder, elsewhere, caplog):
    shutil.copytree(model_folder, elsewhere / "box")
    assert load("box", "cpu").path == package
    assert "./box" in caplog.text


def test_an_installation_without_it_says_what_to_do(tmp_path, monkeypatch, elsewhere):
    monkeypatch.setattr(shipped, "WEIGHTS_FOLDER", tmp_path / "nothing")
    study = write_head(tmp_path)
    with pytest.raises(ModelError, match=r"Install glimpseg from its wheel.*-m or model="):
        glimpseg.segment(flair=flair(study))


def test_segment_without_a_model_takes_it(package, tmp_path, elsewhere):
    study = write_head(tmp_path)
    found = glimpseg.segment(flair=flair(study), model=load("box", "cpu"))
    again = glimpseg.segment(flair=flair(study), model=load(package, "cpu"))
    assert found.model.path == package
    assert np.array_equal(found.labels.voxels, again.labels.voxels)


def test_the_command_line_needs_no_model_and_names_the_one_it_took(package, tmp_path, elsewhere):
    study = write_head(tmp_path)
    done = CliRunner().invoke(app, ["segment", "--flair", str(flair(study)), "-o", "out"], catch_exceptions=False)
    assert done.exit_code == 0
    record = json.loads(Path("out/run.json").read_text())
    assert record["model"]["sha256"] == sha256_of(package / WEIGHTS)
    assert record["model"]["name"] == f"unet-{record['model']['sha256'][:8]}"


def test_evaluate_takes_it_by_name(package, tmp_path, elsewhere):
    write_head(tmp_path / "data")
    words = ["evaluate", "box", "--data", str(tmp_path / "data"), "-o", "e", "--subsets", "flair", "--metrics", "dice"]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    weights = json.loads(Path("e/evaluation.json").read_text())["model"]["weights"]
    assert weights == sha256_of(package / WEIGHTS)


# Shipping


def test_the_card_tells_what_the_run_told(run_folder, tmp_path, monkeypatch):
    shipping(monkeypatch, run_folder, "--target", tmp_path / "box", "--spacing", 4)
    card = (tmp_path / "box" / "MODEL_CARD.md").read_text()
    digest = sha256_of(tmp_path / "box" / WEIGHTS)
    assert f"| SHA-256 | `{digest}` |" in card
    assert "| seed | 5 |" in card
    assert "| steps | 16 |" in card
    assert "16 steps in 0.40 hours" in card  # 16 steps of 90 s
    assert "4 digital phantoms of the generator `phantom-1`" in card  # 16 steps of 2 crops, 8 crops a phantom
    assert "seeds\n1000000 to 1000003" in card
    assert "`optim.steps=16`" in card
    assert "| 16 | 1.0000 | 1.0000 | 90.00 |" in card
    assert "Not a medical device" in card
    assert "Not measured for this file" in card


def test_expectations_are_shipped_and_their_calibration_stands_in_the_card(run_folder, archive, tmp_path, monkeypatch):
    model = load(run_folder, "cpu")
    studies = [study.restricted_to(Modality.FLAIR) for study in find_studies(archive)[:2]]
    told = calibrate(model, studies, tmp_path / "calibrated", population="two balls")
    arguments = ("--run", run_folder, "--target", tmp_path / "box", "--spacing", 4)
    shipping(monkeypatch, tmp_path / "calibrated", *arguments)
    card = (tmp_path / "box" / "MODEL_CARD.md").read_text()
    assert load(tmp_path / "box", "cpu").expectations.as_tree() == told.as_tree()
    before = 100 * told.of(Modality.FLAIR)[Region.WT].ece_before
    row = next(line for line in card.splitlines() if line.startswith("| ● | ○ | ○ | ○ |"))
    assert row.split(" | ")[4] == f"{before:.1f}"
    assert "two balls (2 studies: 1 gave the" in card


def test_the_card_holds_the_tables_of_an_evaluation_of_these_weights(run_folder, archive, tmp_path, monkeypatch):
    studies = find_studies(archive)[:2]
    done = evaluate(
        load(run_folder, "cpu"),
        studies,
        tmp_path / "e",
        EvaluationOptions(subsets=(Modality.T2, ALL), metrics=["dice"]),
    )
    shipping(monkeypatch, run_folder, "--evaluation", tmp_path / "e", "--target", tmp_path / "box", "--spacing", 4)
    card = (tmp_path / "box" / "MODEL_CARD.md").read_text()
    (shown,) = (line for line in card.splitlines() if line.startswith("| ○ | ○ | ○ | ● |"))
    assert shown.split(" | ")[4].startswith(f"{100 * done.scores.array('dice', 'WT')[:, 0].mean():.1f}")


def test_an_evaluation_of_other_weights_is_refused(run_folder, model_folder, archive, tmp_path, monkeypatch):
    other = tmp_path / "other"
    recipe = small_recipe()
    torch.manual_seed(1)
    save_model(other, methods.build(recipe).state_dict(), recipe, {"steps": 0})
    studies = find_studies(archive)[:1]
    evaluate(load(other, "cpu"), studies, tmp_path / "e", EvaluationOptions(subsets=(ALL,), metrics=["dice"]))
    with pytest.raises(InputError, match="Evaluate this model"):
        shipping(monkeypatch, run_folder, "--evaluation", tmp_path / "e", "--target", tmp_path / "box")
    assert not (tmp_path / "box").exists()


def shipped_with_phantoms(seed, run_folder, tmp_path, monkeypatch):
    """Ships the run, which has seen the phantoms 1000000 to 1000003, with an evaluation on the phantom of a seed."""
    write_phantoms(tmp_path / "ph", [seed], phantom.Settings.at_spacing(4.0, healthy=0.25), "brats2023")
    studies = find_studies(tmp_path / "ph")
    evaluate(load(run_folder, "cpu"), studies, tmp_path / "e", EvaluationOptions(subsets=(ALL,), metrics=["dice"]))
    words = ["--evaluation", tmp_path / "e", "--phantoms", tmp_path / "ph", "--target", tmp_path / "box"]
    shipping(monkeypatch, run_folder, *words, "--spacing", 4)


def test_the_card_says_what_held_out_phantoms_were_drawn_from(run_folder, tmp_path, monkeypatch):
    shipped_with_phantoms(1_000_004, run_folder, tmp_path, monkeypatch)
    card = (tmp_path / "box" / "MODEL_CARD.md").read_text()
    assert "seeds 1000004 to 1000004, none of which it was trained on" in card
    assert "differs from the training's in: shape (60, 60, 39), spacing_mm 4.0, healthy 0.25." in card


def test_phantoms_that_were_trained_on_are_refused(run_folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="trained on"):
        shipped_with_phantoms(1_000_003, run_folder, tmp_path, monkeypatch)
    assert not (tmp_path / "box").exists()


def going_on(folder, before, first_seed):
    """A run that began with the model of the run `before`."""
    recipe = small_recipe(optim__steps=4, data__stream__first_seed=first_seed)
    begun = {"weights": stored_model(before).provenance["sha256"][WEIGHTS]}
    record = {"steps": 4, "device": "cpu", "data": {"stream": "phantom-1"}, "init": begun}
    torch.manual_seed(first_seed)
    save_model(folder / "model", methods.build(recipe).state_dict(), recipe, record)
    return folder


@pytest.fixture
def second_folder(run_folder, tmp_path):
    return going_on(tmp_path / "second", run_folder, 2_000_000)


def test_the_card_tells_what_the_training_began_with(run_folder, second_folder, tmp_path, monkeypatch):
    third = going_on(tmp_path / "third", second_folder, 3_000_000)
    words = ["--begun", run_folder, second_folder, "--target", tmp_path / "box", "--spacing", 4]
    shipping(monkeypatch, third, *words)
    card = (tmp_path / "box" / "MODEL_CARD.md").read_text()
    first, second = (line for line in card.splitlines() if line.startswith("| begun with |"))
    assert "4 phantoms from seed 1000000; 16 steps in 0.40 hours" in first
    assert "1 phantoms from seed 2000000; not recorded: no log" in second
    assert "seeds\n3000000 to 3000000" in card
    with pytest.raises(InputError, match="another model"):
        shipping(monkeypatch, third, "--begun", second_folder, run_folder, "--target", tmp_path / "box")
    with pytest.raises(InputError, match="Name its run"):
        shipping(monkeypatch, third, "--begun", second_folder, "--target", tmp_path / "box")


def test_a_training_whose_beginning_is_not_named_is_not_shipped(run_folder, second_folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="Name its run"):
        shipping(monkeypatch, second_folder, "--target", tmp_path / "box")
    with pytest.raises(InputError, match="another model"):
        shipping(monkeypatch, second_folder, "--begun", second_folder, "--target", tmp_path / "box")
    with pytest.raises(InputError, match="began with no other"):
        shipping(monkeypatch, run_folder, "--begun", second_folder, "--target", tmp_path / "box")
    assert not (tmp_path / "box").exists()


def test_a_training_that_began_with_the_packages_model_takes_the_beginnings_from_its_card(
    run_folder, second_folder, tmp_path, monkeypatch
):
    place = tmp_path / "package" / shipped.BOX
    shipping(monkeypatch, second_folder, "--begun", run_folder, "--target", place, "--spacing", 4)
    monkeypatch.setattr(shipped, "WEIGHTS_FOLDER", place.parent)
    third = going_on(tmp_path / "third", place, 3_000_000)
    with pytest.raises(InputError, match="The card of box names"):
        shipping(monkeypatch, third, "--begun", run_folder, "box", "--target", tmp_path / "new")
    shipping(monkeypatch, third, "--begun", "box", "--target", tmp_path / "new", "--spacing", 4)
    card = (tmp_path / "new" / "MODEL_CARD.md").read_text()
    first, second = (line for line in card.splitlines() if line.startswith("| begun with |"))
    assert "4 phantoms from seed 1000000; 16 steps in 0.40 hours" in first
    assert "1 phantoms from seed 2000000; not recorded: no log" in second


def test_the_source_of_label_maps_has_to_be_given(tmp_path, monkeypatch):
    recipe = small_recipe(data__stream__traits=Traits(), data__stream__anatomies="maps", data__stream__shapes="tumours")
    torch.manual_seed(0)
    record = {"steps": 1, "device": "cpu", "data": {"stream": "phantom-2"}}
    save_model(tmp_path / "model", methods.build(recipe).state_dict(), recipe, record)
    words = [tmp_path / "model", "--target", tmp_path / "box", "--spacing", 4, "--material", "20 maps, Apache-2.0"]
    with pytest.raises(InputError, match=r"2 folders of label maps .maps, tumours., and --material was given 1 times"):
        shipping(monkeypatch, *words)
    assert not (tmp_path / "box").exists()


def test_weights_beyond_the_limit_are_not_shipped(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ship, "LIMIT_MB", 0.001)
    with pytest.raises(ModelError, match=r"0\.001 MB is the limit"):
        shipping(monkeypatch, run_folder, "--target", tmp_path / "box")
    assert not (tmp_path / "box").exists()


# Real cases


def scored(monkeypatch, folder, model_folder, *arguments):
    words = ["real_cases.py", model_folder, "--cases", folder, *arguments]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    return real_cases.main()


@pytest.fixture
def cases(tmp_path):
    """A case with two sequences whose reference glimpseg would not take by itself, described in a manifest."""
    folder = tmp_path / "cases"
    write_head(folder, "P1", modalities=(Modality.T1C, Modality.FLAIR))
    (folder / "P1" / "P1-seg.nii.gz").rename(folder / "P1" / "drawn.nii.gz")
    (tmp_path / "manifest.json").write_text(json.dumps({"P1": {"labels": "brats2023", "reference": "drawn.nii.gz"}}))
    return folder


def test_every_subset_of_a_real_case_is_scored_by_the_packages_metrics(cases, model_folder, tmp_path, monkeypatch):
    scored(monkeypatch, cases, model_folder, "--manifest", tmp_path / "manifest.json", "-o", tmp_path / "out")
    entries = real_cases.read_log(tmp_path / "out" / "real_cases.csv")
    assert {entry.sequences for entry in entries} == {"t1c", "flair", "t1c+flair"}
    found = segment_study(
        find_studies(cases)[0].restricted_to(Modality.FLAIR),
        load(model_folder, "cpu"),
        InferenceOptions(raw="no", uncertainty="none"),
    )
    truth = np.asarray(nibabel.load(cases / "P1" / "drawn.nii.gz").dataobj)
    (entry,) = (entry for entry in entries if (entry.sequences, entry.region) == ("flair", "WT"))
    assert entry.dice == pytest.approx(dice(found.labels.voxels > 0, truth > 0), abs=1e-4)
    assert entry.reference_ml == pytest.approx((truth > 0).sum() * 0.027, abs=0.01)


def test_every_entry_is_added_to_the_log(cases, model_folder, tmp_path, monkeypatch):
    common = ("--manifest", tmp_path / "manifest.json", "--log", tmp_path / "real_log.csv")
    for candidate in ("first", "second"):
        out = tmp_path / candidate
        scored(monkeypatch, cases, model_folder, *common, "-o", out, "--candidate", candidate)
    entries = real_cases.read_log(tmp_path / "real_log.csv")
    assert [entry.candidate for entry in entries] == ["first"] * 9 + ["second"] * 9


def test_only_what_is_covered_is_scored(cases, model_folder, tmp_path, monkeypatch):
    image = nibabel.load(cases / "P1" / "drawn.nii.gz")
    truth = np.asarray(image.dataobj)
    half = np.zeros(image.shape, np.uint8)
    half[:, :, : int(np.argwhere(truth)[:, 2].mean())] = 1  # the plane goes through the tumour
    nibabel.save(nibabel.Nifti1Image(half, image.affine), cases / "P1" / "covered.nii.gz")
    entry = {"labels": "brats2023", "reference": "drawn.nii.gz", "covered": "covered.nii.gz"}
    (tmp_path / "manifest.json").write_text(json.dumps({"P1": entry}))
    scored(monkeypatch, cases, model_folder, "--manifest", tmp_path / "manifest.json", "-o", tmp_path / "out")
    entries = real_cases.read_log(tmp_path / "out" / "real_cases.csv")
    (entry,) = (entry for entry in entries if (entry.sequences, entry.region) == ("flair", "WT"))
    found = segment_study(
        find_studies(cases)[0].restricted_to(Modality.FLAIR),
        load(model_folder, "cpu"),
        InferenceOptions(raw="no", uncertainty="none"),
    )
    assert entry.reference_ml == pytest.approx(((truth > 0) & (half > 0)).sum() * 0.027, abs=0.01)
    assert entry.predicted_ml == pytest.approx(((found.labels.voxels > 0) & (half > 0)).sum() * 0.027, abs=0.01)


def test_what_is_found_in_a_head_without_a_tumour_is_told_in_ml(cases, model_folder, tmp_path, monkeypatch, capsys):
    (cases / "P1" / "drawn.nii.gz").unlink()
    (tmp_path / "manifest.json").write_text(json.dumps({"P1": {"reference": None, "truth": "no tumour"}}))
    scored(monkeypatch, cases, model_folder, "--manifest", tmp_path / "manifest.json", "-o", tmp_path / "out")
    entries = real_cases.read_log(tmp_path / "out" / "real_cases.csv")
    assert {entry.reference_ml for entry in entries} == {0.0}
    (entry,) = (entry for entry in entries if (entry.sequences, entry.region) == ("flair", "WT"))
    assert entry.predicted_ml > 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["P1", "flair"])
    assert line.split()[2] == f"{entry.predicted_ml:.1f}ml"


def test_a_picture_is_drawn_of_each_case_and_subset(cases, model_folder, tmp_path, monkeypatch):
    common = ("--manifest", tmp_path / "manifest.json", "-o", tmp_path / "out", "--previews")
    scored(monkeypatch, cases, model_folder, *common)
    names = {path.name for path in (tmp_path / "out" / "previews").iterdir()}
    assert names == {"P1-t1c.png", "P1-flair.png", "P1-t1c+flair.png"}


def test_a_folder_without_known_cases_is_refused(cases, model_folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="TCGA-DU-7294"):
        scored(monkeypatch, cases, model_folder, "-o", tmp_path / "out")


def test_entries_at_these_weights_stand_in_the_card_and_others_in_its_log(run_folder, tmp_path, monkeypatch):
    digest = sha256_of(run_folder / "model" / WEIGHTS)
    entry = real_cases.LogEntry(
        date="2030-01-02", candidate="wide", weights=digest, case="P1", truth="expert", sequences="flair", region="WT",
        dice=0.8125, hd95_mm=7.5, predicted_ml=30.0, reference_ml=31.0,
    )  # fmt: skip
    earlier = real_cases.replace(entry, date="2030-01-01", candidate="narrow", weights="0" * 64, dice=0.5)
    (tmp_path / "real_log.csv").write_text(real_cases.as_csv([earlier, entry]))
    shipping(
        monkeypatch, run_folder, "--real", tmp_path / "real_log.csv", "--target", tmp_path / "box", "--spacing", 4
    )  # fmt: skip
    card = (tmp_path / "box" / "MODEL_CARD.md").read_text()
    assert "| P1 | expert | ● | ○ | ○ | ○ | 81.2 | 7.5 |" in card
    assert "| 2030-01-01 | narrow | `00000000` | P1 | WT 50.0 |  |" in card
    assert f"| 2030-01-02 | wide | `{digest[:8]}` | P1 | WT 81.2 | this model |" in card


def real(case, region, dice, estimate=math.nan, **changes):
    settled = {
        "date": "2030-01-02", "candidate": "wide", "weights": "d" * 64, "case": case, "truth": "expert",
        "sequences": "t2", "region": region, "dice": dice, "hd95_mm": 7.5, "predicted_ml": 30.0, "reference_ml": 31.0,
        "estimated_dice": estimate,
    }  # fmt: skip
    return real_cases.LogEntry(**{**settled, **changes})


def test_what_was_reached_on_patients_is_added_to_the_expectations(monkeypatch):
    interval = Interval(0.9, 0.8, 0.95, 64)
    one = Expected(
        dice=interval, tenth=0.7, temperature=2.0, pooled=False, ece_before=0.1, ece_after=0.1, estimate_error=0.04
    )
    subsets = {subset: {Region.WT: one, Region.ET: one} for subset in (Modality.T2, Modality.T1)}
    told = Expectations(population="phantoms", studies=64, fitted_on=32, subsets=subsets)
    entries = [
        real("P1", "WT", 0.1, 0.9),  # replaced by a later one
        real("P1", "WT", 0.8, 0.9),
        real("P2", "WT", 0.6, 0.5),
        real("P3", "WT", 1.0, 0.2, weights="0" * 64),  # of another model
        real("P1", "ET", 0.5, 0.7),
        real("P2", "ET", 0.0, 0.4, reference_ml=0.0),  # has none: what was found there is false
        real("healthy", "WT", 0.0, 0.9, reference_ml=0.0),
        real("healthy", "ET", 0.0, 0.9, reference_ml=0.0),
    ]
    few = ship.with_patients(told, entries, "d" * 64).of(Modality.T2)[Region.WT].on_patients
    assert few.patients == 2
    assert math.isnan(few.estimate_error)
    monkeypatch.setattr(ship, "ESTIMATES", 2)
    found = ship.with_patients(told, entries, "d" * 64)
    assert found.patients == "2 labelled patients, results on whom guided choices"
    wt, et = (found.of(Modality.T2)[region].on_patients for region in (Region.WT, Region.ET))
    assert (wt.dice, wt.patients, wt.estimate_error) == pytest.approx((0.7, 2, 0.1))
    assert (et.dice, et.patients, et.estimate_error) == pytest.approx((0.5, 1, 0.3))
    assert found.of(Modality.T1) == told.of(Modality.T1)
    assert ship.with_patients(told, [], "d" * 64) == told


def test_earlier_runs_stay_in_the_log_of_a_card(run_folder, tmp_path, monkeypatch):
    place = tmp_path / "package" / shipped.BOX
    words = ["--target", place, "--spacing", 4, "--real", tmp_path / "real_log.csv"]
    digest = sha256_of(run_folder / "model" / WEIGHTS)
    (tmp_path / "real_log.csv").write_text(real_cases.as_csv([real("P1", "WT", 0.5, weights=digest)]))
    shipping(monkeypatch, run_folder, *words)
    monkeypatch.setattr(shipped, "WEIGHTS_FOLDER", place.parent)
    second = going_on(tmp_path / "second", place, 2_000_000)
    digest = sha256_of(second / "model" / WEIGHTS)
    entry = real("P1", "WT", 0.75, candidate="more", weights=digest, date="2030-01-03")
    (tmp_path / "real_log.csv").write_text(real_cases.as_csv([entry]))
    shipping(monkeypatch, second, "--begun", "box", *words)
    log = (place / "MODEL_CARD.md").read_text().partition("### Log of runs")[2]
    first, last = (line for line in log.splitlines() if line.startswith("| 2030"))
    assert first.startswith("| 2030-01-02 | wide | `")
    assert first.endswith("` | P1 | WT 50.0 |  |")
    assert last == f"| 2030-01-03 | more | `{digest[:8]}` | P1 | WT 75.0 | this model |"


def test_a_shipped_recipe_does_not_tell_where_label_maps_lay(tmp_path, monkeypatch):
    places = {
        "data__stream__anatomies": str(label_maps.write_head(tmp_path / "maps")),
        "data__stream__shapes": str(label_maps.write_tumour(tmp_path / "tumours")),
        "init__weights": str(tmp_path / "first"),
    }
    recipe = small_recipe(data__stream__traits=Traits(), **places)
    torch.manual_seed(0)
    record = {"steps": 1, "device": "cpu", "data": {"stream": "phantom-2"}}
    save_model(tmp_path / "model", methods.build(recipe).state_dict(), recipe, record)
    texts = ["20 maps, Apache-2.0", "42 shapes, CC BY 4.0"]
    shipping(monkeypatch, tmp_path / "model", "--target", tmp_path / "box", "--spacing", 4, "--material", *texts)
    assert load_model(tmp_path / "box").recipe.data.stream.anatomies == "maps"
    written = "".join(path.read_text() for path in (tmp_path / "box").iterdir() if path.name != WEIGHTS)
    assert str(tmp_path) not in written
    assert "| anatomies.files | 1 |" in written


# The demo


def test_the_demo_segments_a_phantom_and_a_study_of_the_users(package, tmp_path, elsewhere):
    study = write_head(tmp_path / "mine", modalities=(Modality.T1C, Modality.T2))
    lines = list(demo.show("demo", study=study.parent, spacing_mm=4.0))
    for picture in ("preview-t1c+flair.png", "preview-t1+t1c+t2+flair.png", "study/preview.png"):
        assert Path("demo", picture).is_file()
    assert json.loads(Path("demo/study/run.json").read_text())["sequences"]["used"] == ["t1c", "t2"]
    assert Path("demo/evaluation/report.html").is_file()
    assert any("reference of the phantom:\nDice (%" in line for line in lines)


def test_the_demo_shows_a_cavity_that_the_model_finds(tmp_path, monkeypatch, elsewhere):
    recipe = small_recipe(labels=["NCR", "ED", "ET", "RC"])
    weights = {name: torch.zeros_like(value) for name, value in methods.build(recipe).state_dict().items()}
    for name in weights:
        if name.endswith(".head.bias"):
            weights[name][3] = 5.0  # the logit of RC; those of the tumour's regions are 0, so the cavity is everywhere
    save_model(tmp_path / "model", weights, recipe, {"steps": 0})
    list(demo.show("demo", model=str(tmp_path / "model"), spacing_mm=4.0))
    labels = nibabel.load(next(Path("demo/evaluation/labels").rglob("t1c+flair.nii.gz")))
    assert 4 in np.asarray(labels.dataobj)
    assert Path("demo/preview-t1c+flair.png").is_file()


def test_the_demo_segments_one_study_and_not_an_archive(package, archive, elsewhere):
    with pytest.raises(UsageError, match="holds 4"):
        list(demo.show("demo", study=archive, spacing_mm=4.0))
    assert not Path("demo").exists()


def test_the_demo_says_when_there_is_no_model_before_it_makes_anything(tmp_path, monkeypatch, elsewhere):
    monkeypatch.setattr(shipped, "WEIGHTS_FOLDER", tmp_path / "nothing")
    with pytest.raises(ModelError):
        list(demo.show("demo"))
    assert not Path("demo").exists()


# The weights


@in_the_box
def test_the_shipped_file_has_at_most_24_megabytes():
    assert (BOX / WEIGHTS).stat().st_size <= 24e6


@in_the_box
def test_the_shipped_model_is_whole_and_comes_of_phantoms_alone():
    model = load("box", "cpu")
    assert model.provenance["data"]["stream"].startswith("phantom-")
    assert model.provenance["steps"] > 0


@in_the_box
def test_the_shipped_model_tells_what_to_expect_from_every_subset():
    told = load("box", "cpu").expectations
    assert told is not None
    assert set(told.subsets) == set(SUBSETS)


@in_the_box
def test_the_card_is_of_the_shipped_file():
    card = (BOX / ship.CARD).read_text("utf-8")
    assert f"`{sha256_of(BOX / WEIGHTS)}`" in card
    assert "Not a medical device" in card
    assert "Not scored with this file" not in card


@in_the_box
@pytest.mark.slow
@pytest.mark.parametrize("subset", [ALL, Modality.FLAIR], ids=lambda subset: subset.key)
def test_the_shipped_model_finds_the_tumour_of_a_phantom_it_never_saw(subset):
    made = as_study(phantom.generate(900_301, phantom.Settings.at_spacing(2.0)))
    found = segment_study(
        made.restricted_to(subset), load("box", "cpu"), InferenceOptions(raw="no", uncertainty="none")
    )
    assert dice(found.labels.voxels > 0, made.reference.voxels > 0) > 0.8
