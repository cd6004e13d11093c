"""Scores of a whole evaluation: what is scored, under which rules, and what happens when it is killed."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from conftest import AFFINE, head, write_head
from glimpseg import metrics
from glimpseg.data.layouts import find_studies
from glimpseg.data.loader import Sampling
from glimpseg.data.preprocess import Preprocess, prepare
from glimpseg.errors import InputError, UsageError
from glimpseg.evaluation import evaluate as module
from glimpseg.evaluation.evaluate import evaluate
from glimpseg.evaluation.options import EvaluationOptions
from glimpseg.evaluation.protocol import PROTOCOLS
from glimpseg.evaluation.rfnet_preprocessing import rfnet_box
from glimpseg.evaluation.scoring import Reference
from glimpseg.method import Segmenter, blanked
from glimpseg.modality import ALL, SUBSETS, Modality, parse
from glimpseg.model.loading import Model
from glimpseg.region import Label, Region
from glimpseg.results.folder import read_evaluation
from glimpseg.results.scores import METRICS, read_scores
from glimpseg.runtime.atomic import folder_lock
from glimpseg.segmentation import inference, predict
from glimpseg.study import Study
from glimpseg.volume import Volume

FEW = (parse("t1c"), parse("flair"), parse("t1c+flair"))
REGIONS = (Region.WT, Region.TC, Region.ET)


@pytest.fixture(scope="module")
def model(model_folder):
    return predict.load(model_folder, "cpu")


@pytest.fixture(scope="module")
def studies(archive):
    return find_studies(archive)


@pytest.fixture(scope="module")
def whole(model, studies, tmp_path_factory):
    """An evaluation that nothing disturbed."""
    return evaluate(model, studies, tmp_path_factory.mktemp("whole") / "e", EvaluationOptions(subsets=FEW))


# What is scored


def test_every_study_subset_region_and_metric_has_a_line(whole):
    masks = len(METRICS) - 2  # ET_pp has no probabilities of its own
    assert len(whole.scores.lines) == 4 * 3 * (3 * len(METRICS) + masks)


def test_a_line_says_under_which_protocol_it_was_made(whole):
    with (whole.folder / "scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == [
        "study", "subset", "region", "metric", "protocol", "value", "predicted_ml", "reference_ml",
    ]  # fmt: skip
    assert {line["protocol"] for line in lines} == {"clinical"}


def test_scores_are_those_of_the_label_maps_that_lie_beside_them(whole, studies):
    for study in studies:
        reference = np.asarray(nibabel.load(study.reference).dataobj)
        for column, subset in enumerate(whole.scores.subsets):
            labels = np.asarray(nibabel.load(whole.folder / "labels" / study.id / f"{subset}.nii.gz").dataobj)
            row = whole.scores.studies.index(study.id)
            for region in REGIONS:
                masks = region.mask(labels), region.mask(reference)
                expected = {
                    "dice": metrics.dice(*masks),
                    "hd95": metrics.hd95(*masks, (3.0, 3.0, 3.0)),
                    "hd95_pooled": metrics.hd95_pooled(*masks, (3.0, 3.0, 3.0)),
                    "surface_dice_2mm": metrics.surface_dice(*masks, (3.0, 3.0, 3.0), 2),
                    "specificity": metrics.specificity(*masks),
                    "lesion_dice": metrics.lesion_wise(*masks, (3.0, 3.0, 3.0)).dice,
                    "volume_error": metrics.volume_error_ml(*masks, 0.027),
                }
                for metric, value in expected.items():
                    found = whole.scores.array(metric, region.name)[row, column]
                    assert found == pytest.approx(value, abs=1e-6), (metric, region)


def test_calibration_is_that_of_the_probabilities_in_the_brain(model, studies, whole):
    prepared = prepare(studies[0], model.recipe.data.preprocess)
    (found,) = inference.infer(prepared, model, [FEW[0]], keep_probabilities=True)
    images, labels = head(0)
    brain = np.any([image != 0 for image in images.values()], axis=0)
    expected = metrics.ece(found.probabilities[Region.WT].voxels[brain], labels[brain] > 0)
    column = whole.scores.subsets.index(FEW[0].key)
    assert whole.scores.array("ece", "WT")[0, column] == pytest.approx(expected, abs=1e-3)


def reference_and_prediction(predicted_et):
    """A cube of ET in the reference, and one of some voxels in the prediction, both inside oedema."""
    labels, found = np.zeros((2, 24, 24, 24), np.uint8)
    labels[4:16, 4:16, 4:16] = found[4:16, 4:16, 4:16] = Label.ED
    labels[6:14, 6:14, 6:14] = Label.ET
    found.reshape(-1)[np.flatnonzero(labels == Label.ET)[:predicted_et]] = Label.ET
    image = np.ones((24, 24, 24), np.float32)
    image[0] = 0
    affine = np.eye(4)
    study = Study("S", {Modality.T1: Volume(image * np.arange(24)[:, None, None], affine)}, Volume(labels, affine))
    prepared = prepare(study, Preprocess())
    return Reference(prepared, REGIONS, ["dice", "hd95"]), Volume(found, affine)


@pytest.mark.parametrize(("voxels", "dice"), [(499, 0.0), (500, 2 * 500 / (500 + 512))])
def test_fewer_than_500_voxels_of_enhancement_count_as_none_in_et_pp_alone(voxels, dice):
    reference, found = reference_and_prediction(voxels)
    rated = {one.name: one.values for one in reference.score(found, None)}
    assert rated["ET_pp"]["dice"] == pytest.approx(dice)
    assert rated["ET"]["dice"] == pytest.approx(2 * voxels / (voxels + 512))
    assert rated["WT"]["dice"] == 1


def test_removed_enhancement_costs_the_diagonal():
    reference, found = reference_and_prediction(100)
    rated = {one.name: one for one in reference.score(found, None)}
    assert rated["ET_pp"].values["hd95"] == pytest.approx(24 * 3**0.5)
    assert rated["ET_pp"].predicted_ml == 0


def test_a_study_that_lacks_sequences_is_scored_where_it_can_and_counted(model, tmp_path):
    write_head(tmp_path / "data", "S0", 0)
    write_head(tmp_path / "data", "S1", 1, (Modality.T1C, Modality.FLAIR))
    found = evaluate(model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(metrics=["dice"]))
    assert len([line for line in found.scores.lines if line.study == "S1" and line.region == "WT"]) == 3
    assert found.record["incomplete"] == 1
    assert found.summary["subsets"]["t1c+flair"]["WT"]["dice"]["cases"] == 2
    assert found.summary["subsets"]["t2"]["WT"]["dice"]["cases"] == 1
    assert found.summary["sequence_value"]["WT"]["cases"] == 1


def test_only_the_metrics_asked_for_are_there(model, studies, tmp_path):
    found = evaluate(model, studies[:1], tmp_path / "e", EvaluationOptions(subsets=FEW[:1], metrics=["hd95"]))
    assert found.scores.metrics == ["hd95"]


def test_the_summary_holds_no_nan(whole):
    json.loads((whole.folder / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))


# Networks that encode once for all subsets


class Late(Segmenter):
    """One feature for each modality, summed over those that are there."""

    def __init__(self):
        super().__init__((Label.NCR, Label.ED, Label.ET))
        self.head = torch.nn.Conv3d(1, 4, 3, padding=1)
        self.encoded = 0

    def losses(self, batch, progress):
        raise NotImplementedError

    def encode(self, image, available):
        self.encoded += 1
        return torch.tanh(image * 3)

    def fuse(self, features, available):
        return self.head(blanked(features, available).sum(1, keepdim=True)).softmax(1)

    def forward(self, image, available):
        return self.fuse(self.encode(image, available), available)


class Early(Late):
    """The same network, which does not say that it shares."""

    encode = Segmenter.encode
    fuse = Segmenter.fuse

    def forward(self, image, available):
        return Late.fuse(self, torch.tanh(image * 3), available)


def with_network(model, network):
    torch.manual_seed(0)
    made = network().eval()
    return Model(made, model.recipe, model.provenance, model.path), made


class Whole(Late):
    """It looks at what windows it is shown."""

    fixed_windows = True

    def encode(self, image, available):
        self.shown = image
        return super().encode(image, available)


@pytest.mark.parametrize("kind", [Late, Whole])
def test_windows_shrink_to_a_small_study_unless_the_network_forbids_it(model, studies, kind):
    recipe = replace(model.recipe, data=replace(model.recipe.data, sampling=Sampling(patch=(64, 64, 64))))
    network = kind().eval()
    prepared = prepare(studies[0], replace(recipe.data.preprocess, background="shifted", clip=None))
    (found,) = inference.infer(prepared, Model(network, recipe, model.provenance, model.path), [parse("t1c+t2")])
    assert found.labels.grid.shape == prepared.own.shape
    if kind is Whole:
        assert network.shown.shape[2:] == (64, 64, 64)
        corner = network.shown[0, :, 0, 0, 0].numpy()
        assert np.allclose(corner, prepared.restricted_to(parse("t1c+t2")).levels, atol=1e-5)
        assert corner[1] < -3  # air, not the brain's mean
        assert corner[0] == 0  # absent


@pytest.mark.parametrize(("reach", "most", "whole"), [(1.0, 1 << 21, False), (2.0, 1 << 21, True), (2.0, 1000, False)])
def test_a_brain_larger_than_a_crop_is_seen_in_one_piece_where_the_network_can(
    model, studies, monkeypatch, reach, most, whole
):
    prepared = prepare(studies[0], model.recipe.data.preprocess)
    longest = max(prepared.image.shape[1:])
    patch = (longest // 2 + 4,) * 3
    monkeypatch.setattr(Late, "whole_up_to", reach)
    monkeypatch.setattr(inference, "WHOLE_VOXELS", most)
    recipe = replace(model.recipe, data=replace(model.recipe.data, sampling=Sampling(patch=patch)))
    network = Late().eval()
    (found,) = inference.infer(prepared, Model(network, recipe, model.provenance, model.path), [ALL])
    assert found.labels.grid.shape == prepared.own.shape
    assert (network.encoded == 1) is whole


def test_shared_work_changes_no_label_and_no_probability(model, studies):
    prepared = prepare(studies[0], model.recipe.data.preprocess)
    results = []
    for network in (Late, Early):
        one, _ = with_network(model, network)
        found = {f.subset: f for f in inference.infer(prepared, one, SUBSETS, keep_probabilities=True)}
        results.append(found)
    for subset in SUBSETS:
        late, early = (found[subset] for found in results)
        assert np.array_equal(late.labels.voxels, early.labels.voxels)
        assert np.array_equal(late.probabilities[Region.WT].voxels, early.probabilities[Region.WT].voxels)


def test_a_window_is_encoded_once_for_all_subsets(model, studies):
    prepared = prepare(studies[0], model.recipe.data.preprocess)
    one, late = with_network(model, Late)
    list(inference.infer(prepared, one, SUBSETS[:1]))
    single, late.encoded = late.encoded, 0
    list(inference.infer(prepared, one, SUBSETS))
    assert late.encoded == single


def test_subsets_that_see_another_box_are_encoded_apart(model, studies):
    images = dict(studies[0].images)
    full = nibabel.load(images[Modality.T2])
    part = np.asarray(full.dataobj).copy()
    part[:, :, :12] = 0
    images[Modality.T2] = Volume(part.astype(np.float32), full.affine)
    prepared = prepare(replace(studies[0], images=images), model.recipe.data.preprocess)
    one, _ = with_network(model, Late)
    other, _ = with_network(model, Early)
    shared = {f.subset: f.labels.voxels for f in inference.infer(prepared, one, SUBSETS)}
    for found in inference.infer(prepared, other, SUBSETS):
        assert np.array_equal(shared[found.subset], found.labels.voxels), found.subset


# Killed and resumed


def files(folder):
    return {name: (folder / name).read_bytes() for name in ("scores.csv", "summary.json")}


class Stopped(BaseException):
    """Stands for a kill: no code of ours catches it."""


def stop_after(monkeypatch, predictions):
    """Lets `evaluate` see so many predictions and then dies."""
    real, count = inference.infer, [0]

    def infer(*arguments, **options):
        for found in real(*arguments, **options):
            if count[0] == predictions:
                raise Stopped
            count[0] += 1
            yield found

    monkeypatch.setattr(module, "infer", infer)
    return count


def test_a_stopped_evaluation_resumes_to_the_same_scores(model, studies, whole, tmp_path, monkeypatch):
    for predictions in (1, 4, 5):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            stop_after(patch, predictions)
            evaluate(model, studies, tmp_path / "e", EvaluationOptions(subsets=FEW), resume=True)
        assert not (tmp_path / "e" / "scores.csv").exists()
    evaluate(model, studies, tmp_path / "e", EvaluationOptions(subsets=FEW), resume=True)
    assert files(tmp_path / "e") == files(whole.folder)


def test_what_is_done_is_not_done_again(model, studies, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 7)  # two studies whole, the third begun
        evaluate(model, studies, tmp_path / "e", EvaluationOptions(subsets=FEW))
    count = stop_after(monkeypatch, -1)
    evaluate(model, studies, tmp_path / "e", EvaluationOptions(subsets=FEW), resume=True)
    assert count[0] == 2 * 3


def test_a_study_whose_files_changed_is_scored_again(model, tmp_path, monkeypatch, caplog):
    for seed in range(2):
        write_head(tmp_path / "data", f"S{seed}", seed)
    studies = find_studies(tmp_path / "data")
    evaluate(model, studies, tmp_path / "e", EvaluationOptions(subsets=FEW, metrics=["dice"]))
    labels = head(0)[1].copy()
    labels[labels == 2] = 0
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), tmp_path / "data" / "S0" / "S0-seg.nii.gz")
    count = stop_after(monkeypatch, -1)
    evaluate(model, studies, tmp_path / "e", EvaluationOptions(subsets=FEW, metrics=["dice"]), resume=True)
    assert count[0] == 3
    assert "S0 have changed" in caplog.text


def test_a_damaged_study_file_is_made_again(model, studies, whole, tmp_path):
    evaluate(model, studies, tmp_path / "e", EvaluationOptions(subsets=FEW))
    path = tmp_path / "e" / "studies" / "S1.json"
    path.write_bytes(path.read_bytes()[:500])
    evaluate(model, studies, tmp_path / "e", EvaluationOptions(subsets=FEW), resume=True)
    assert files(tmp_path / "e") == files(whole.folder)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_an_evaluation_killed_three_times_gives_the_same_files(model_folder, archive, whole, tmp_path):
    def start():
        command = [sys.executable, "-m", "glimpseg", "-q", "evaluate", model_folder, "--data", archive]
        options = ["--subsets", ",".join(subset.key for subset in FEW), "--device", "cpu", "--resume"]
        return subprocess.Popen([*map(str, command), *options, "-o", str(tmp_path / "e")], stdout=subprocess.DEVNULL)

    place = tmp_path / "e" / "studies"
    for kill in range(1, 4):
        process = start()
        while process.poll() is None and len(list(place.glob("[!.]*.json"))) < kill:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start().wait() == 0
    assert (tmp_path / "e" / "scores.csv").read_bytes() == (whole.folder / "scores.csv").read_bytes()


def test_an_unfinished_evaluation_is_neither_read_nor_overwritten_unasked(model, studies, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 4)
        evaluate(model, studies, tmp_path / "e", EvaluationOptions(subsets=FEW))
    with pytest.raises(InputError, match="not finished"):
        read_evaluation(tmp_path / "e")
    with pytest.raises(UsageError, match="--resume"):
        evaluate(model, studies, tmp_path / "e", EvaluationOptions(subsets=FEW))


def test_resuming_under_other_rules_is_refused(model, studies, whole):
    with pytest.raises(UsageError, match="begun otherwise"):
        evaluate(model, studies, whole.folder, EvaluationOptions(subsets=FEW, metrics=["dice"]), resume=True)


def test_a_finished_evaluation_is_left_alone(model, studies, whole):
    with pytest.raises(UsageError, match="already holds an evaluation"):
        evaluate(model, studies, whole.folder, EvaluationOptions(subsets=FEW))


# Bad input


def test_a_reference_on_another_grid_fails_alone(model, tmp_path):
    for seed in range(3):
        write_head(tmp_path / "data", f"S{seed}", seed)
    moved = AFFINE.copy()
    moved[0, 3] += 3
    nibabel.save(nibabel.Nifti1Image(head(1)[1], moved), tmp_path / "data" / "S1" / "S1-seg.nii.gz")
    found = evaluate(
        model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(subsets=FEW, metrics=["dice"])
    )
    assert found.scores.studies == ["S0", "S2"]
    assert "lies on another grid" in found.record["failed"]["S1"]


def test_studies_without_a_reference_are_left_out_and_named(model, tmp_path, caplog):
    write_head(tmp_path / "data", "S0", 0)
    write_head(tmp_path / "data", "S1", 1, reference=False)
    found = evaluate(
        model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(subsets=FEW, metrics=["dice"])
    )
    assert found.record["without_reference"] == ["S1"]
    assert "S1 has no reference" in caplog.text


def test_nothing_to_score_against_is_refused(model, tmp_path):
    write_head(tmp_path / "data", reference=False)
    with pytest.raises(InputError, match="No study has a reference"):
        evaluate(model, find_studies(tmp_path / "data"), tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_subsets_that_no_study_has_are_refused(model, tmp_path):
    write_head(tmp_path / "data", "S0", 0, (Modality.T1,))
    with pytest.raises(InputError, match="any subset asked for"):
        evaluate(model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(subsets=FEW))


def test_an_evaluation_that_another_process_writes_is_left_alone(model, studies, whole):
    before = files(whole.folder)
    with folder_lock(whole.folder), pytest.raises(UsageError, match="Another process"):
        evaluate(model, studies, whole.folder, EvaluationOptions(subsets=FEW), overwrite=True)
    assert files(whole.folder) == before


def test_studies_that_have_none_of_the_subsets_are_left_out_and_named(model, tmp_path, caplog):
    write_head(tmp_path / "data", "S0", 0)
    write_head(tmp_path / "data", "S1", 1, (Modality.T1,))
    found = evaluate(
        model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(subsets=FEW, metrics=["dice"])
    )
    assert found.record["without_subset"] == ["S1"]
    assert (found.record["incomplete"], found.scores.studies) == (0, ["S0"])
    assert "S1 has the sequences of none" in caplog.text


@pytest.mark.parametrize("protocol", ["clinical", "rfnet"])
def test_an_evaluation_that_comes_to_nothing_overwrites_none(model, whole, tmp_path, protocol):
    shutil.copytree(whole.folder, tmp_path / "e")
    write_head(tmp_path / "data", "S0", 0, (Modality.T1,))
    subsets = FEW if protocol == "clinical" else SUBSETS  # none that S0 has; or one, but the protocol needs all four
    with pytest.raises(InputError):
        studies = find_studies(tmp_path / "data")
        evaluate(model, studies, tmp_path / "e", EvaluationOptions(protocol=protocol, subsets=subsets), overwrite=True)
    assert files(tmp_path / "e") == files(whole.folder)
    assert read_evaluation(tmp_path / "e").scores.studies == whole.scores.studies


def test_an_evaluation_is_overwritten_when_the_new_one_is_done(model, studies, whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "e")
    evaluate(model, studies[:1], tmp_path / "e", EvaluationOptions(subsets=FEW, metrics=["dice"]), overwrite=True)
    assert read_evaluation(tmp_path / "e").scores.studies == ["S0"]
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_a_folder_of_results_among_the_studies_is_no_study(model, tmp_path):
    write_head(tmp_path / "data", "S0", 0)
    evaluate(
        model,
        find_studies(tmp_path / "data"),
        tmp_path / "data" / "e",
        EvaluationOptions(subsets=FEW, metrics=["dice"]),
    )
    assert [study.id for study in find_studies(tmp_path / "data")] == ["S0"]


def test_a_study_in_the_current_folder_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(write_head(tmp_path, "S0", 0))
    assert [study.id for study in find_studies(".")] == ["S0"]


def test_scores_that_were_cut_are_refused(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "e")
    lines = (tmp_path / "e" / "scores.csv").read_text().splitlines(keepends=True)
    (tmp_path / "e" / "scores.csv").write_text("".join(lines[:20]))
    with pytest.raises(InputError, match="checksum differs"):
        read_evaluation(tmp_path / "e")


def test_a_damaged_record_is_refused(model, studies, whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "e")
    (tmp_path / "e" / "evaluation.json").write_text('{"finished": tr')
    for resume in (False, True):
        with pytest.raises(InputError, match="damaged"):
            evaluate(model, studies, tmp_path / "e", EvaluationOptions(subsets=FEW), resume=resume)


def test_labels_of_two_conventions_are_refused(tmp_path):
    write_head(tmp_path / "data", "S0", 0)
    place = write_head(tmp_path / "data", "S1", 1)
    labels = head(1)[1].copy()
    labels[labels == 3] = 4
    nibabel.save(nibabel.Nifti1Image(labels, AFFINE), place / "S1-seg.nii.gz")
    with pytest.raises(InputError, match="two conventions"):
        find_studies(tmp_path / "data")
    assert find_studies(tmp_path / "data", labels="brats2024")[0].convention.name == "brats2024"


def test_damaged_scores_are_refused(whole, tmp_path):
    (tmp_path / "scores.csv").write_text((whole.folder / "scores.csv").read_text().replace("dice", "dice,x", 1))
    with pytest.raises(InputError, match="does not hold scores"):
        read_scores(tmp_path / "scores.csv")


# The protocol of the RFNet family


def stack(low, high, shape=(200, 200, 155)):
    values = np.zeros((4, *shape), np.float32)
    values[0][tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 7
    return values


def test_the_crop_ends_before_the_last_plane_of_brain():
    box = rfnet_box(stack((10, 20, 5), (150, 170, 145)))
    assert [(s.start, s.stop) for s in box] == [(10, 149), (20, 169), (5, 144)]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (50, 151, (36, 165)),  # 100 to the last voxel: 14 on each end and one more
        (50, 150, (36, 164)),  # 99: half of 29 is 14, and one more: 128
        (5, 55, (0, 128)),  # 49: 39 on each end and one more is -34 to 94; all moves up by 34
        (150, 199, (110, 200)),  # 48: 40 on each end, cut off where the array ends
    ],
)
def test_short_sides_grow_to_128(low, high, expected):
    box = rfnet_box(stack((low, 0, 0), (high, 200, 155)))
    assert (box[0].start, box[0].stop) == expected


def test_under_rfnet_absent_sequences_shape_crop_and_normalisation(archive):
    study = find_studies(archive)[0]
    prepared = PROTOCOLS["rfnet"].prepare(study, Preprocess(spacing_mm=3.0))
    one = prepared.restricted_to(Modality.T1)
    assert one.grid.shape == prepared.grid.shape
    images, _ = head(0)
    assert prepared.image.shape[1:] == prepared.own.shape  # smaller than 128, so that nothing is cut off
    t1 = images[Modality.T1]
    brain = sum(images.values()) > 0
    inside = prepared.inside.any(0)
    expected = (t1[brain] - t1[brain].mean()) / t1[brain].std()
    assert np.allclose(np.sort(one.image[0][inside]), np.sort(expected), atol=1e-4)
    assert np.allclose(one.image[0][~inside], -t1[brain].mean() / t1[brain].std(), atol=1e-4)


def test_rfnet_scores_on_the_own_grid_what_lies_in_the_crop(model, studies, tmp_path):
    found = evaluate(
        model, studies[:1], tmp_path / "e", EvaluationOptions(protocol="rfnet", subsets=FEW, metrics=["dice", "hd95"])
    )
    assert {line.protocol for line in found.scores.lines} == {"rfnet"}
    labels = nibabel.load(tmp_path / "e" / "labels" / "S0" / "t1c.nii.gz")
    assert labels.shape == head()[1].shape
    dice = metrics.dice(np.asarray(labels.dataobj) > 0, head(0)[1] > 0)  # no tumour lies in the last plane here
    assert found.scores.array("dice", "WT")[0, 0] == pytest.approx(dice, abs=1e-6)


def test_rfnet_refuses_studies_that_lack_a_sequence(model, tmp_path):
    write_head(tmp_path / "data", "S0", 0, (Modality.T1, Modality.FLAIR))
    with pytest.raises(InputError, match="T1c \\+ T2 is missing"):
        evaluate(model, find_studies(tmp_path / "data"), tmp_path / "e", EvaluationOptions(protocol="rfnet"))


def test_rfnet_resamples_nothing(studies):
    with pytest.raises(InputError, match="resamples nothing"):
        PROTOCOLS["rfnet"].prepare(studies[0], Preprocess(spacing_mm=1.0))


def test_an_unknown_protocol_is_refused(model, studies, tmp_path):
    with pytest.raises(UsageError, match="clinical, rfnet"):
        evaluate(model, studies, tmp_path / "e", EvaluationOptions(protocol="rfnett"))


def test_all_is_every_sequence():
    assert SUBSETS[-1] == ALL
