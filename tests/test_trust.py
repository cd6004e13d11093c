"""What to expect of a model, its temperatures, and how sure one segmentation is: by hand, and against other ways."""

import dataclasses
import json
import logging
import math
import shutil

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special
from typer.testing import CliRunner

import glimpseg
from conftest import AFFINE, WORDS, head, small_recipe, write_head
from glimpseg import methods, metrics
from glimpseg.batch.folder import STATISTICS
from glimpseg.batch.job import BatchOptions
from glimpseg.batch.tree import segment_tree
from glimpseg.cli.app import app
from glimpseg.data.layouts import find_studies
from glimpseg.data.preprocess import prepare
from glimpseg.errors import InputError, ModelError, UsageError
from glimpseg.evaluation import calibrate as module
from glimpseg.evaluation import counts as counts_module
from glimpseg.evaluation import histogram
from glimpseg.evaluation.calibrate import calibrate, write_calibrated
from glimpseg.evaluation.counts import read_counts
from glimpseg.evaluation.evaluate import evaluate
from glimpseg.evaluation.histogram import Histogram, fit_temperatures
from glimpseg.evaluation.options import EvaluationOptions
from glimpseg.modality import ALL, Modality, parse, subsets_of
from glimpseg.model.checkpoint import SavedState, checkpoint_folder, save_checkpoint
from glimpseg.model.digests import sha256_of
from glimpseg.model.expectations import EXPECTATIONS, Expectations, Expected, Gain
from glimpseg.model.folder import save_model
from glimpseg.region import Label, Region
from glimpseg.results.statistics import Interval
from glimpseg.segmentation import inference, predict
from glimpseg.segmentation.inputs import study_entries
from glimpseg.segmentation.options import InferenceOptions
from glimpseg.segmentation.passes import mirrored
from glimpseg.segmentation.uncertainty import DiceEstimate, calibrated, estimated_dice, uncertainty_of
from glimpseg.study import Study
from glimpseg.version import NOT_A_DEVICE
from glimpseg.volume import Volume

pytestmark = pytest.mark.usefixtures("no_pictures")

REGIONS = (Region.WT, Region.TC, Region.ET)
TWO = parse("t1c+flair")
THREE = parse("t1c+t2+flair")
PATCH = [24, 48, 40]
"""Two windows of a head: one alone falls to a slow kernel."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """An untrained small network that sees half a head at once, as a model on disk."""
    folder = tmp_path_factory.mktemp("model") / "model"
    recipe = small_recipe(config__width=4, config__blocks=[1, 1], config__heads=1, data__sampling__patch=PATCH)
    torch.manual_seed(0)
    save_model(folder, methods.build(recipe).state_dict(), recipe, {"steps": 0})
    return folder


@pytest.fixture(scope="module")
def model(model_folder):
    return predict.load(model_folder, "cpu")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Four studies of three sequences: seven subsets."""
    folder = tmp_path_factory.mktemp("archive")
    for seed in range(4):
        write_head(folder, f"S{seed}", seed, modalities=tuple(THREE))
    return folder


@pytest.fixture(scope="module")
def studies(archive):
    return find_studies(archive)


@pytest.fixture(scope="module")
def calibrated_folder(model, studies, tmp_path_factory):
    """The untrained model and what four studies say of it."""
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    calibrate(model, studies, folder, population="balls in ellipsoids")
    return folder


@pytest.fixture(scope="module")
def told(calibrated_folder):
    return predict.load(calibrated_folder, "cpu").expectations


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_head(tmp_path_factory.mktemp("study"))


def paths(study, subset=TWO):
    return {m.name.lower(): study / f"{study.name}-{WORDS[m]}.nii.gz" for m in subset}


# Temperature


def counted(probability, truth):
    """A histogram of a mask where the probability is above one half."""
    return Histogram.from_voxels(probability, truth=truth, mask=probability > 0.5)


def forecast(temperature, seed=0, voxels=40_000):
    """Logits of a model that is too sure by a factor, and what came of them."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-4, 4, voxels)
    return special.expit(logit).astype(np.float32), rng.uniform(size=voxels) < special.expit(logit / temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_that_of_the_voxels_themselves(temperature):
    probability, truth = forecast(temperature)
    logit = special.logit(probability.astype(np.float64))

    def loss(log_t):
        return -special.log_expit(np.where(truth, logit, -logit) / np.exp(log_t)).mean()

    expected = np.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8}).x)
    assert counted(probability, truth).temperature() == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(temperature, rel=0.05)


def test_studies_added_up_give_the_temperature_of_all_voxels():
    one, other = forecast(1.5, 1, 3000), forecast(3.0, 2, 7000)
    together = counted(*(np.concatenate(parts) for parts in zip(one, other, strict=True)))
    added = counted(*one) + counted(*other)
    assert added.temperature() == pytest.approx(together.temperature(), rel=1e-9)
    assert added.studies == 2


def test_a_region_that_never_occurs_has_no_temperature():
    probability, truth = forecast(2.0)
    assert counted(probability, np.zeros_like(truth)).temperature() == 1


def test_a_model_that_is_never_wrong_gets_the_coldest_temperature_there_is():
    probability, _ = forecast(1.0)
    assert counted(probability, probability > 0.5).temperature() == histogram.COLDEST


def test_probabilities_of_exactly_0_and_1_are_counted():
    probability = np.array([0, 0, 1, 1], np.float32)
    assert 0 < counted(probability, np.array([False, True, True, True])).temperature() <= histogram.HOTTEST


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_calibration_error_from_bins_is_that_of_the_voxels(temperature):
    probability, truth = forecast(2.0)
    found = counted(probability, truth).reliability(temperature)
    after = calibrated(probability, temperature)
    assert found.ece == pytest.approx(metrics.ece(after, truth), abs=1e-3)
    assert found.brier == pytest.approx(metrics.brier(after, truth), abs=1e-4)


def test_a_fitted_temperature_lowers_the_calibration_error_of_other_voxels():
    one, other = counted(*forecast(3.0, 1)), counted(*forecast(3.0, 2))
    assert other.reliability(one.temperature()).ece < 0.2 * other.reliability().ece


def test_four_to_one_at_temperature_two_is_two_to_one():
    found = calibrated(np.array([0.0, 0.2, 0.5, 0.8, 1.0]), 2.0)  # odds 1/4 become 1/2, 4 become 2
    np.testing.assert_allclose(found, [0, 1 / 3, 0.5, 2 / 3, 1])


@given(st.floats(0, 1, width=32), st.floats(0.05, 20))
def test_no_voxel_changes_sides_by_a_temperature(probability, temperature):
    after = calibrated(np.array([probability]), temperature)[0]
    assert np.sign(after - 0.5) * np.sign(probability - 0.5) >= 0


# The Dice of one segmentation


def test_the_estimated_dice_is_as_by_hand():
    # 2 * (0.9 + 0.6) / (0.9 + 0.6 + 0.2 + 2)
    probability, mask = np.array([0.9, 0.6, 0.2]), np.array([True, True, False])
    assert estimated_dice(probability, mask) == pytest.approx(3 / 3.7)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_estimate_from_bins_is_that_of_the_voxels(temperature):
    probability, truth = forecast(2.5)
    expected = estimated_dice(calibrated(probability, temperature), probability > 0.5)
    assert counted(probability, truth).estimated_dice(temperature) == pytest.approx(expected, rel=1e-3)


def test_of_nothing_found_no_dice_is_estimated():
    assert math.isnan(estimated_dice(np.array([0.1]), np.array([False])))


def test_calibrated_probabilities_foretell_the_dice():
    probability, truth = forecast(2.5, voxels=400_000)
    mask = probability > 0.5
    true = metrics.dice(mask, truth)
    assert estimated_dice(calibrated(probability, 2.5), mask) == pytest.approx(true, abs=0.005)
    assert estimated_dice(probability, mask) > true + 0.05  # too sure, as the network was


def cube(side):
    """ET of side^3 voxels of 1 ml in a corner of 4 x 4 x 4."""
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[:side, :side, :side] = Label.ET
    return Volume(labels, np.diag([10.0, 10, 10, 1]))


def test_range_and_agreement_of_members_are_as_by_hand():
    found = uncertainty_of(
        cube(2), {Region.ET: 0.8}, [("larger", cube(3)), ("none", cube(0))], level="full", calibrated=True
    )
    one = found.regions[Region.ET]
    assert one.spread_ml == pytest.approx((0, 27))
    assert one.agreement == pytest.approx((2 * 8 / (8 + 27) + 0) / 2)
    assert one.estimated_dice == 0.8


def test_voxels_outside_the_brain_say_nothing_of_the_dice():
    everywhere, brain = {Region.ET: np.full((4, 4, 4), 0.6, np.float32)}, cube(3).voxels > 0
    estimate = DiceEstimate()
    estimate.add(cube(2).voxels, everywhere, brain)
    assert estimate.dice[Region.ET] == pytest.approx(2 * 0.6 * 8 / (0.6 * 27 + 8))


@pytest.mark.parametrize("cut", [1, 3])
def test_the_dice_estimated_part_by_part_is_that_of_the_whole(cut):
    probability = np.random.default_rng(0).random((4, 4, 4)).astype(np.float32)
    labels, estimate = cube(2).voxels, DiceEstimate()
    for part in (slice(None, cut), slice(cut, None)):
        estimate.add(labels[part], {Region.ET: probability[part]}, np.ones_like(labels[part], bool))
    assert estimate.dice[Region.ET] == pytest.approx(estimated_dice(probability, labels > 0))


# Mirrors


@pytest.mark.parametrize("axes", [(0,), (1, 2)], ids=["left-right", "front-back and up-down"])
def test_a_mirrored_pass_is_that_of_a_mirrored_patient_turned_back(model, axes):
    images, _ = head()
    plain = Study("S", {m: Volume(images[m], AFFINE) for m in TWO})
    turned = Study("S", {m: Volume(np.flip(images[m], axes).copy(), AFFINE) for m in TWO})
    settings = model.recipe.data.preprocess
    (expected,) = inference.infer(prepare(turned, settings), model, [TWO], keep_probabilities=True)
    look = mirrored(prepare(plain, settings), axes)
    (found,) = inference.infer(look, model, [TWO], keep_probabilities=True)
    for region in REGIONS:
        by_hand = np.flip(expected.probabilities[region].voxels, axes)
        np.testing.assert_allclose(found.probabilities[region].voxels, by_hand, atol=1e-5)


def test_a_mirrored_pass_returns_to_a_grid_of_another_spacing_and_order(model):
    images, _ = head()
    affine = AFFINE @ np.diag([-1, 1, 1, 1])
    affine[:3, :3] *= 0.9
    plain = Study("S", {m: Volume(images[m], affine) for m in TWO})
    prepared = prepare(plain, model.recipe.data.preprocess)
    look = mirrored(mirrored(prepared, (0,)), (0,))
    (twice,) = inference.infer(look, model, [TWO], keep_probabilities=True)
    (once,) = inference.infer(prepared, model, [TWO], keep_probabilities=True)
    np.testing.assert_allclose(twice.probabilities[Region.WT].voxels, once.probabilities[Region.WT].voxels, atol=1e-6)


def test_every_level_gives_the_labels_of_the_plain_pass(model, study):
    found = {
        level: glimpseg.segment(**paths(study), model=model, options=InferenceOptions(uncertainty=level))
        for level in ("none", "quick", "full")
    }
    for level in ("quick", "full"):
        assert np.array_equal(found[level].labels.voxels, found["none"].labels.voxels)
    assert found["none"].uncertainty is None
    names = [member.name for member in found["full"].uncertainty.members]
    assert names[0] == "mirrored left-right"
    assert names[6:] == ["mirrored left-right and front-back and up-down", "without T1c", "without FLAIR"]
    assert len(found["quick"].uncertainty.members) == 1


def test_a_left_out_sequence_is_the_segmentation_without_it(model, study):
    whole = glimpseg.segment(**paths(study), model=model, options=InferenceOptions(uncertainty="full"))
    less = glimpseg.segment(flair=paths(study)["flair"], model=model, options=InferenceOptions(grid="flair"))
    (member,) = [one for one in whole.uncertainty.members if one.name == "without T1c"]
    assert member.volumes_ml == pytest.approx(less.volumes_ml, rel=1e-6)


def test_a_single_sequence_cannot_be_left_out(model, study):
    found = glimpseg.segment(
        t2=study / f"{study.name}-{WORDS[Modality.T2]}.nii.gz",
        model=model,
        options=InferenceOptions(uncertainty="full"),
    )
    assert len(found.uncertainty.members) == 7


def test_an_unknown_level_is_refused():
    with pytest.raises(UsageError, match="none, quick, full"):
        InferenceOptions(uncertainty="some")


# What to expect


def interval(mean, half=0.01, cases=64):
    return Interval(mean, mean - half, mean + half, cases)


def expected(dice=0.9, temperature=2.0):
    return Expected(
        dice=interval(dice), tenth=dice - 0.2, temperature=temperature, pooled=False,
        ece_before=0.02, ece_after=0.01, estimate_error=0.04,
    )  # fmt: skip


def by_hand(gains, available=TWO):
    """A table in which one more sequence adds so many points of Dice."""
    return Expectations(
        population="phantoms of held-out settings",
        studies=64,
        fitted_on=32,
        subsets={available: dict.fromkeys(REGIONS, expected())},
        gains={
            available: tuple(
                Gain(sequence=sequence, mean=mean, regions=dict.fromkeys(REGIONS, mean))
                for sequence, mean in gains.items()
            )
        },
    )


def test_the_most_helpful_sequence_is_the_one_with_the_largest_gain():
    told = by_hand({Modality.T1: interval(0.02), Modality.T2: interval(0.05)})
    assert told.most_helpful(TWO).sequence is Modality.T2


@pytest.mark.parametrize(
    "gain",
    [interval(0.05, half=0.06), interval(0.005, half=0.001), interval(-0.05), Interval(0.1, math.nan, math.nan, 5)],
    ids=["chance", "less than a point", "a loss", "too few cases"],
)
def test_a_gain_that_is_not_shown_helps_nobody(gain):
    assert by_hand({Modality.T1: gain}).most_helpful(TWO) is None


def test_where_nothing_is_absent_nothing_helps():
    assert by_hand({}, ALL).most_helpful(ALL) is None


def test_expectations_survive_being_written_and_read():
    told = by_hand({Modality.T1: interval(0.02), Modality.T2: Interval(0.1, math.nan, math.nan, 5)})
    again = Expectations.from_tree(json.loads(json.dumps(told.as_tree())))
    assert again.as_tree() == told.as_tree()
    assert again.most_helpful(TWO) == told.most_helpful(TWO)


def test_the_sentences_name_population_intervals_and_the_sequence_that_helps():
    text = "\n".join(by_hand({Modality.T2: interval(0.05)}).sentences(TWO))
    assert "Expected performance with T1c + FLAIR, measured on phantoms of held-out settings (64 studies):" in text
    assert "WT: mean Dice 90.0 % (95 % interval 89.0 to 91.0); one case in ten had 70 % or less." in text
    assert "T2 would help most: +5.0 (+4.0 to +6.0) points of mean Dice (WT +5.0 (+4.0 to +6.0), TC" in text


@pytest.mark.parametrize(
    ("gains", "available", "words"),
    [({Modality.T2: interval(-0.1)}, TWO, "No absent sequence was shown"), ({}, TWO, "not measured"), ({}, ALL, "WT")],
    ids=["measured", "not measured", "nothing absent"],
)
def test_whether_more_sequences_were_measured_is_said(gains, available, words):
    text = "\n".join(by_hand(gains, available).sentences(available))
    assert words in text
    assert ("further sequence" in text or "absent" in text) == (available != ALL)


def test_how_wrong_estimates_were_is_said_with_the_estimate(knowing, study):
    found = glimpseg.segment(**paths(study), model=predict.load(knowing, "cpu"))
    doubted = {Region.WT: dataclasses.replace(found.uncertainty.regions[Region.WT], estimated_dice=0.87)}
    known = dataclasses.replace(found, uncertainty=dataclasses.replace(found.uncertainty, regions=doubted))
    assert "  WT: estimated Dice 87 % (such estimates were 4 points off on average); " in "\n".join(known.trust)


def test_a_subset_that_nobody_measured_is_called_unknown():
    (sentence,) = by_hand({}).sentences(Modality.T1)
    assert "not known" in sentence


# Calibrating


def test_dice_and_gains_are_those_of_an_evaluation(model, studies, told, tmp_path):
    scores = evaluate(model, studies, tmp_path / "e", EvaluationOptions(metrics=["dice"])).scores
    column = {name: i for i, name in enumerate(scores.subsets)}
    assert list(told.subsets) == list(subsets_of(THREE))
    for subset in subsets_of(THREE):
        for region in REGIONS:
            mean = scores.array("dice", region.name)[:, column[subset.key]].mean()
            assert told.of(subset)[region].dice.mean == pytest.approx(mean, abs=1e-5)
    (gain,) = [one for one in told.gains[TWO] if one.sequence is Modality.T2]
    for region in REGIONS:
        dice = scores.array("dice", region.name)
        change = dice[:, column["t1c+t2+flair"]] - dice[:, column["t1c+flair"]]
        assert gain.regions[region].mean == pytest.approx(change.mean(), abs=1e-5)
    assert gain.mean.mean == pytest.approx(np.mean([one.mean for one in gain.regions.values()]), abs=1e-5)


def test_temperatures_and_calibration_are_of_different_halves(model, studies, told):
    assert (told.studies, told.fitted_on) == (4, 2)
    fitting = sorted(studies, key=module._random_order)[:2]
    total = Histogram.empty()
    for study in fitting:
        prepared = prepare(study, model.recipe.data.preprocess)
        brain = np.any([np.asarray(nibabel.load(path).dataobj) != 0 for path in study.images.values()], axis=0)
        for found in inference.infer(prepared, model, subsets_of(THREE), keep_probabilities=True):
            truth = Region.ET.mask(prepared.reference.voxels)[brain]
            total += counted(found.probabilities[Region.ET].voxels[brain], truth)
    one = told.of(TWO)[Region.ET]
    assert one.pooled  # two studies are too few for fifteen temperatures
    assert one.temperature == pytest.approx(total.temperature(), rel=1e-3)


def test_enough_studies_give_each_subset_its_own_temperature():
    fitted = {}
    for subset, temperature in ((TWO, 2.0), (ALL, 3.0)):
        parts = [counted(*forecast(temperature, seed)) for seed in range(8)]
        fitted[subset, Region.WT] = sum(parts, Histogram.empty())
    found = fit_temperatures(fitted)
    assert found[TWO, Region.WT].value == pytest.approx(2, rel=0.05)
    assert found[ALL, Region.WT].value == pytest.approx(3, rel=0.05)
    assert found[Modality.T1, Region.WT].pooled


def test_one_study_gives_no_temperature(model, studies, tmp_path):
    told = calibrate(model, studies[:1], tmp_path / "m", population="one")
    assert told.of(THREE)[Region.WT].temperature == 1
    assert math.isnan(told.of(THREE)[Region.WT].ece_after)


def test_a_model_of_labels_is_calibrated_by_its_regions(studies, tmp_path):
    recipe = small_recipe("rfnet", data__sampling__patch=PATCH)
    torch.manual_seed(0)
    save_model(tmp_path / "m", methods.build(recipe).state_dict(), recipe, {"steps": 0})
    single = [study.restricted_to(Modality.T2) for study in studies]
    told = calibrate(predict.load(tmp_path / "m", "cpu"), single, tmp_path / "n", population="four")
    assert list(told.subsets) == [Modality.T2]
    # Untrained, each of four classes has about a quarter: WT, of three classes and rare, should be less sure, ET more.
    assert told.of(Modality.T2)[Region.WT].temperature > 1 > told.of(Modality.T2)[Region.ET].temperature
    for region in (Region.WT, Region.ET):
        assert told.of(Modality.T2)[region].ece_after < told.of(Modality.T2)[region].ece_before


def test_the_copy_segments_as_the_model_does(model, calibrated_folder, study):
    plain = glimpseg.segment(**paths(study), model=model)
    copy = glimpseg.segment(**paths(study), model=predict.load(calibrated_folder, "cpu"))
    assert np.array_equal(plain.labels.voxels, copy.labels.voxels)
    assert copy.uncertainty.calibrated
    assert not plain.uncertainty.calibrated


def test_studies_that_cannot_be_read_are_left_out(model, archive, tmp_path, caplog):
    shutil.copytree(archive, tmp_path / "data")
    (tmp_path / "data" / "S1" / "S1-t1c.nii.gz").write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING):
        told = calibrate(model, find_studies(tmp_path / "data")[:3], tmp_path / "m", population="some")
    assert told.studies == 2
    assert "S1 is left out" in caplog.text


def test_without_references_nothing_is_measured(model, studies, tmp_path):
    bare = [dataclasses.replace(study, reference=None) for study in studies]
    with pytest.raises(InputError, match="No study has a reference"):
        calibrate(model, bare, tmp_path / "m", population="none")


def test_an_interrupted_calibration_leaves_what_was_there(model, studies, model_folder, tmp_path, monkeypatch):
    shutil.copytree(model_folder, tmp_path / "m")
    before = sorted((path.name, path.read_bytes()) for path in (tmp_path / "m").iterdir())

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("glimpseg.model.copying.sha256_of", stopped)  # while the copy is being written
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, studies[:1], tmp_path / "m", population="some", overwrite=True)
    assert sorted((path.name, path.read_bytes()) for path in (tmp_path / "m").iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.parts"]


def test_a_calibration_that_was_killed_goes_on_and_comes_to_the_same(model, studies, told, tmp_path, monkeypatch):
    whole, calls = module.count_study, []

    def counting(model, study):
        calls.append(study.id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(model, study)

    monkeypatch.setattr(module, "count_study", counting)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, studies, tmp_path / "m", population="balls in ellipsoids")
    assert not (tmp_path / "m").exists()
    again = calibrate(model, studies, tmp_path / "m", population="balls in ellipsoids")
    assert len(calls) == 5  # two done, one cut short and done again, one more
    assert again.as_tree() == told.as_tree()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_counts_that_are_damaged_are_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"half a file")
    with pytest.raises(InputError, match="does not hold counts"):
        read_counts(tmp_path / "x.npz")


def test_a_folder_with_files_is_refused_before_anything_is_computed(model, studies, tmp_path, monkeypatch):
    (tmp_path / "note.txt").write_text("mine")
    monkeypatch.setattr(counts_module, "infer", None)
    with pytest.raises(UsageError, match="already holds files"):
        calibrate(model, studies, tmp_path, population="some")


def test_documents_of_a_model_travel_with_it_and_training_state_does_not(model_folder, tmp_path):
    recipe = small_recipe()
    weights = methods.build(recipe).state_dict()
    save_checkpoint(tmp_path, weights, recipe, {}, state=SavedState(0, weights, {}))
    (checkpoint_folder(tmp_path, 0) / "MODEL_CARD.md").write_text("Trained on phantoms.")
    write_calibrated(predict.load(tmp_path, "cpu"), by_hand({}), tmp_path / "n")
    assert {path.name for path in (tmp_path / "n").iterdir()} == {
        "weights.safetensors", "recipe.yaml", "provenance.json", "expectations.json", "MODEL_CARD.md",
    }  # fmt: skip


def test_damaged_expectations_are_refused(model, tmp_path):
    write_calibrated(model, by_hand({}), tmp_path / "m")
    text = (tmp_path / "m" / EXPECTATIONS).read_text()
    (tmp_path / "m" / EXPECTATIONS).write_text(text.replace("2.0", "3.0", 1))
    with pytest.raises(ModelError, match="checksum"):
        predict.load(tmp_path / "m", "cpu")


@pytest.mark.parametrize(
    "change", [{"format": 2}, {"subsets": {"t9": {}}}, {"gains": None}], ids=["format", "sequence", "missing"]
)
def test_expectations_of_another_form_are_refused(model, tmp_path, change):
    told = by_hand({})
    tree = {**told.as_tree(), **change}
    write_calibrated(model, by_hand({}), tmp_path / "m")
    (tmp_path / "m" / EXPECTATIONS).write_text(json.dumps(tree))
    provenance = tmp_path / "m" / "provenance.json"
    record = json.loads(provenance.read_text())
    record["sha256"][EXPECTATIONS] = sha256_of(tmp_path / "m" / EXPECTATIONS)
    provenance.write_text(json.dumps(record))
    with pytest.raises(ModelError, match="glimpseg calibrate"):
        predict.load(tmp_path / "m", "cpu")


def test_expectations_of_another_use_of_the_model_do_not_count(model, tmp_path):
    write_calibrated(model, dataclasses.replace(by_hand({}), choices={"branch": 1}), tmp_path / "m")
    assert predict.load(tmp_path / "m", "cpu").expectations is None


# What is said and written


@pytest.fixture
def knowing(model, tmp_path):
    """A model of which a table by hand is known."""
    write_calibrated(model, by_hand({Modality.T2: interval(0.05)}), tmp_path / "knowing")
    return tmp_path / "knowing"


def test_probabilities_are_written_at_the_models_temperature(model, knowing, study, tmp_path):
    plain = glimpseg.segment(**paths(study), model=model, options=InferenceOptions(probabilities=True))
    found = glimpseg.segment(
        **paths(study), model=predict.load(knowing, "cpu"), options=InferenceOptions(probabilities=True)
    )
    found.save(tmp_path / "out")
    written = nibabel.load(tmp_path / "out" / "probabilities_TC.nii.gz").get_fdata()
    before = plain.probabilities[Region.TC].voxels.astype(np.float64)
    inside = before > 0
    odds = np.sqrt(before[inside] / (1 - before[inside]))  # temperature 2
    np.testing.assert_allclose(written[inside], odds / (1 + odds), atol=1e-4)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["probabilities"] == "calibrated"


def test_run_and_statistics_hold_the_numbers(knowing, study, tmp_path):
    found = glimpseg.segment(**paths(study), model=predict.load(knowing, "cpu"))
    found.save(tmp_path / "out")
    trust = json.loads((tmp_path / "out" / "run.json").read_text())["trust"]
    assert trust["expected"]["population"] == "phantoms of held-out settings"
    assert trust["expected"]["regions"]["WT"]["dice"]["low"] == pytest.approx(0.89)
    assert trust["most_helpful"]["sequence"] == "t2"
    assert trust["uncertainty"]["members"][0]["name"] == "mirrored left-right"
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    doubt = found.uncertainty.regions[Region.WT]
    assert statistics["WT"]["estimated_dice"] == pytest.approx(doubt.estimated_dice, abs=1e-4)
    assert statistics["WT"]["volume_low_ml"] <= statistics["WT"]["volume_ml"] <= statistics["WT"]["volume_high_ml"]


def test_a_model_without_expectations_says_how_to_get_them(model, study, tmp_path):
    found = glimpseg.segment(**paths(study), model=model)
    assert "glimpseg calibrate MODEL --data STUDIES" in found.trust[0]
    assert found.trust[-1] == NOT_A_DEVICE
    assert "uncalibrated" in "".join(found.trust)
    assert "points off" not in "".join(found.trust)
    found.save(tmp_path / "out")
    trust = json.loads((tmp_path / "out" / "run.json").read_text())["trust"]
    assert trust["expected"] is None
    assert trust["most_helpful"] is None


def test_a_tree_gets_the_numbers_in_its_table(knowing, archive, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        segment_tree(study_entries(archive)[:2], predict.load(knowing, "cpu"), tmp_path / "out", BatchOptions())
    header, *rows = (tmp_path / "out" / STATISTICS).read_text().splitlines()
    assert header == "study,sequences,region,volume_ml,lesions,estimated_dice,volume_low_ml,volume_high_ml,agreement"
    assert len(rows) == 6
    assert caplog.text.count("The performance with T1c + T2 + FLAIR is not known") == 1  # once for both studies
    assert NOT_A_DEVICE in caplog.text


def test_the_commands_calibrate_and_then_say_what_to_expect(model_folder, archive, study, tmp_path, caplog):
    data = tmp_path / "data"
    shutil.copytree(archive / "S0", data / "S0")
    shutil.copytree(archive / "S1", data / "S1")
    with caplog.at_level(logging.INFO):
        done = CliRunner().invoke(
            app, ["calibrate", str(model_folder), "--data", str(data), "-o", str(tmp_path / "m"), "--population", "two"]
        )
        assert done.exit_code == 0, done.exception
        named = [word for m in TWO for word in (f"--{m.key}", str(paths(study)[m.key]))]
        done = CliRunner().invoke(
            app, ["segment", *named, "-m", str(tmp_path / "m"), "-o", str(tmp_path / "out"), "--uncertainty", "full"]
        )
    assert done.exit_code == 0, done.exception
    assert "Expected performance with T1c + FLAIR, measured on two (2 studies):" in done.output
    assert "without FLAIR" in done.output
    assert NOT_A_DEVICE in done.output


def test_no_patient_and_no_folder_is_named_in_expectations(calibrated_folder):
    text = (calibrated_folder / EXPECTATIONS).read_text()
    assert "S0" not in text
    assert "/" not in text
