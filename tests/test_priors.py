"""Priors: how they are made, that no reference leaks into them, and that they are cropped with the image."""

import json
import logging
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from conftest import small, small_recipe, write_head
from glimpseg import methods
from glimpseg.cli import app
from glimpseg.data import loader
from glimpseg.data.augment import RFNET, Augment
from glimpseg.data.cache import CachedCase
from glimpseg.data.layouts import find_studies
from glimpseg.data.loader import CachedStudies, Sampling
from glimpseg.data.preprocess import Preprocess
from glimpseg.data.prior_cache import SUFFIX, open_case, write_prior
from glimpseg.errors import InputError, ModelError, UsageError
from glimpseg.evaluation.evaluate import evaluate
from glimpseg.evaluation.options import EvaluationOptions
from glimpseg.modality import ALL, Modality
from glimpseg.model.checkpoint import checkpoints, save_checkpoint
from glimpseg.model.folder import WEIGHTS
from glimpseg.phantom.training_stream import PhantomStream, Stream
from glimpseg.priors import crossfit, decoder, sam
from glimpseg.priors.making import make_priors, phantom_prior, refuse_held_out
from glimpseg.priors.settings import Prior
from glimpseg.priors.synthetic import perturbed_reference
from glimpseg.region import Label, Region
from glimpseg.segmentation.predict import load, segment_study
from glimpseg.training.dataset import prepare, prepare_studies
from glimpseg.training.loop import train
from glimpseg.training.options import TrainOptions

pytestmark = pytest.mark.usefixtures("no_pictures")

CPU = torch.device("cpu")
LABELS = (Label.NCR, Label.ED, Label.ET)
SPOILED = Prior(kind="synthetic")


def recipe_with(prior, **changes):
    changed = {f"data__prior__{name}": value for name, value in prior.items()}
    return small_recipe("smml", config__refinement=1.0, config__agreement=1.0, **changed, **changes)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def cases(archive, tmp_path_factory):
    """Return four prepared studies and their folder."""
    folder = tmp_path_factory.mktemp("cases")
    return prepare_studies(find_studies(archive), small_recipe("smml"), folder), folder


def held(path):
    with safe_open(path, "np") as file:
        return file.get_tensor("prior")


def record_of(path):
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["record"])


# Moving with the image


@pytest.mark.parametrize("augment", [Augment(rotation=1, zooming=1), RFNET], ids=["nnU-Net", "RFNet"])
def test_a_prior_that_is_the_reference_is_the_reference_after_any_transform(cases, tmp_path, augment):
    made = [CachedCase(path).crop((0, 0, 0), CachedCase(path).shape) for path in cases[0]]
    files = [tmp_path / f"{number}{SUFFIX}" for number in range(len(made))]
    for path, crop in zip(files, made, strict=True):
        write_prior(path, np.stack([crop.target] * 4).astype(np.uint8), {"study": f"S{files.index(path)}"})
    sampling = Sampling(patch=(24, 24, 24), tumour_share=1.0, augment=augment)
    schedule = loader.Schedule(sampling=sampling, seed=0, steps=range(8), shares=[range(2)])
    crops = SimpleNamespace(view=loader.random_crop, collate=loader.collate)
    feed = loader.batches(CachedStudies(cases[0], files), crops, schedule, device=CPU)
    tumour = 0
    for (batch,) in feed:
        for channel in range(4):
            assert torch.equal(batch.prior[:, channel], batch.target)
        tumour += int(batch.target.any())
    assert tumour == 8


def test_outside_a_study_and_of_an_absent_sequence_nothing_is_supposed(tmp_path):
    write_head(tmp_path / "archive", "S0", 0, (Modality.T1C, Modality.FLAIR))
    (path,) = prepare_studies(find_studies(tmp_path / "archive"), small_recipe("smml"), tmp_path / "cache")
    shape = CachedCase(path).shape
    write_prior(tmp_path / "p", np.full((2, *shape), Label.ED, np.uint8), {"study": "S0"})
    crop = open_case(path, tmp_path / "p").crop((-4, 0, 0), (8, 8, 8))
    assert (crop.prior[[1, 3], 4:] == Label.ED).all()
    assert not crop.prior[:, :4].any()
    assert not crop.prior[[0, 2]].any()


@pytest.mark.parametrize("damage", ["flipped", "cut", "another", "size"])
def test_a_damaged_or_foreign_prior_is_refused(cases, tmp_path, damage):
    shape = CachedCase(cases[0][0]).shape
    size = (4, *shape) if damage != "size" else (4, *shape[:2], shape[2] + 1)
    write_prior(tmp_path / "p", np.zeros(size, np.uint8), {"study": "S1" if damage == "another" else "S0"})
    content = bytearray((tmp_path / "p").read_bytes())
    if damage == "flipped":
        content[-100] ^= 1
    (tmp_path / "p").write_bytes(content[: 50 if damage == "cut" else None])
    words = {"flipped": "checksum", "cut": "damaged", "another": "belongs to another", "size": "belongs to another"}
    with pytest.raises(InputError, match=words[damage]):
        open_case(cases[0][0], tmp_path / "p")


# Synthetic


def reference(side=24):
    place = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"))
    distance = np.sqrt(((place - side / 2) ** 2).sum(0))
    return np.select([distance < 3, distance < 5, distance < 9], [1, 3, 2], 0).astype(np.uint8)


def test_a_spoiled_reference_is_near_the_reference_and_not_it():
    truth, rng = reference(), np.random.default_rng(0)
    found = perturbed_reference(truth, 1.0, Prior(kind="synthetic", boundary_mm=1.0, dropped=0.0), rng)
    whole, wrong = Region.WT.mask(truth), Region.WT.mask(truth) ^ Region.WT.mask(found)
    assert 0 < wrong.sum() < 0.5 * whole.sum()
    assert set(np.unique(found)) <= {0, 1, 2, 3}
    exact = perturbed_reference(truth, 1.0, Prior(kind="synthetic", boundary_mm=0.0, dropped=0.0), rng)
    assert np.array_equal(exact, truth)


def test_every_sequence_is_spoiled_in_its_own_way_and_always_the_same(cases, tmp_path):
    given = (cases[0], SPOILED, LABELS, 3.0)
    first, second = (make_priors(*given, tmp_path / name, CPU) for name in "ab")
    for path, again in zip(first, second, strict=True):
        maps = held(path)
        assert np.array_equal(maps, held(again))
        assert len({channel.tobytes() for channel in maps}) == len(maps) == 4
        assert record_of(path)["uses_reference"] is True
    assert make_priors(cases[0], replace(SPOILED, seed=1), LABELS, 3.0, tmp_path / "a", CPU) != first


def test_phantoms_of_a_stream_have_a_prior_too():
    settings = Preprocess(spacing_mm=3.0)
    phantoms = PhantomStream(Stream(), settings, phantom_prior(SPOILED, 3.0))
    crop = phantoms.case(0, 0).crop((0, 0, 0), phantoms.case(0, 0).shape)
    assert crop.prior.shape == crop.image.shape
    overlap = (crop.prior > 0) & (crop.target > 0)
    assert overlap.any()


# What is refused


@pytest.mark.parametrize("kind", ["sam", "synthetic"])
@pytest.mark.parametrize("split", ["brats2020/val", "brats2020/test"])
def test_no_prior_is_made_for_a_list_to_validate_or_test_on(archive, tmp_path, kind, split):
    prior = Prior(kind=kind)
    with pytest.raises(UsageError, match="a list to validate or test on"):
        refuse_held_out(prior, split)
    with pytest.raises(UsageError, match="a list to validate or test on"):
        prepare(find_studies(archive), recipe_with({"kind": kind}), tmp_path / "c", device=CPU, split=split)
    refuse_held_out(prior, "brats2020/train")
    refuse_held_out(prior, None)
    refuse_held_out(Prior(), split)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("smml", {"config__refinement": 1.0}, "learns from a prior and the recipe has none"),
        ("smml", {"data__prior__kind": "synthetic"}, "does not use the prior synthetic"),
        ("unet", {"data__prior__kind": "synthetic"}, "does not use the prior synthetic"),
    ],
)
def test_a_prior_that_is_missing_or_for_nothing_is_refused(archive, tmp_path, method, changes, message):
    recipe = small_recipe(method, **changes)
    with pytest.raises(UsageError, match=message):
        train(recipe, tmp_path / "run", TrainOptions(data=archive, device=CPU))
    with pytest.raises(UsageError, match=message):
        prepare(find_studies(archive), recipe, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()


def test_sam_needs_a_list_of_studies_and_weights_before_anything_is_made(transformers, archive, tmp_path, folder):
    recipe = recipe_with({"kind": "sam"})
    with pytest.raises(UsageError, match="a stream of phantoms has none"):
        train(recipe_with({"kind": "sam", "weights": str(folder)}), tmp_path / "run", TrainOptions(device=CPU))
    with pytest.raises(UsageError, match=re.escape("--set data.prior.weights=FOLDER")):
        train(recipe, tmp_path / "run", TrainOptions(data=archive, device=CPU))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match=re.escape("--set data.prior.weights=FOLDER")):
        prepare(find_studies(archive), recipe, tmp_path / "c", device=CPU)
    assert not (tmp_path / "c").exists()
    gone = recipe_with({"kind": "sam", "weights": str(tmp_path / "gone")})
    with pytest.raises(UsageError, match="Nothing is downloaded"):
        prepare(find_studies(archive), gone, tmp_path / "c", device=CPU)


# A model that learned from the references themselves says so wherever it goes


def test_a_synthetic_prior_is_named_in_every_output(archive, tmp_path, caplog):
    recipe = recipe_with({"kind": "synthetic"}, optim__steps=2)
    with caplog.at_level(logging.WARNING, "glimpseg"):
        train(recipe, tmp_path / "run", TrainOptions(data=archive, device=CPU))
    assert "what comes of it is no result" in caplog.text
    model = load(tmp_path / "run", "cpu")
    assert model.provenance["data"]["prior"].items() >= {"kind": "synthetic", "uses_reference": True}.items()
    (study, *_) = find_studies(archive)
    segment_study(study, model).save(tmp_path / "s")
    assert json.loads((tmp_path / "s" / "run.json").read_text())["model"]["prior"]["uses_reference"] is True
    done = evaluate(model, [study], tmp_path / "e", EvaluationOptions(subsets=[ALL], metrics=["dice"]))
    assert "an upper bound, no result" in done.trained


# SAM


def tiny(transformers, side=64, seed=0):
    """Return a SAM of 94 thousand random weights."""
    vision = transformers.SamVisionConfig(
        hidden_size=32, output_channels=32, num_hidden_layers=2, num_attention_heads=2, image_size=side, patch_size=16,
        window_size=2, global_attn_indexes=[1], num_pos_feats=16, mlp_dim=64,
    )  # fmt: skip
    prompts = transformers.SamPromptEncoderConfig(hidden_size=32, image_size=side, patch_size=16, mask_input_channels=4)
    masks = transformers.SamMaskDecoderConfig(
        hidden_size=32, mlp_dim=64, num_hidden_layers=2, num_attention_heads=2, iou_head_hidden_dim=32
    )
    config = transformers.SamConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompts.to_dict(), mask_decoder_config=masks.to_dict()
    )
    torch.manual_seed(seed)
    network = transformers.SamModel(config).eval()
    for value in network.parameters():  # transformers begins at 0 or 1e-10
        if value.dim() > 1:
            torch.nn.init.normal_(value, std=0.2)
    return network


@pytest.fixture(scope="module")
def folder(transformers, tmp_path_factory):
    """Folder of weights in Hugging Face's layout."""
    place = tmp_path_factory.mktemp("sam")
    tiny(transformers).save_pretrained(place)
    return place


ORIGINAL = (
    ("vision_encoder.", "image_encoder."), ("layers.", "blocks."), ("layer_norm1.", "norm1."),
    ("layer_norm2.", "norm2."), ("patch_embed.projection.", "patch_embed.proj."),
    ("neck.conv1.", "neck.0."), ("neck.norm1.", "neck.1."), ("neck.conv2.", "neck.2."), ("neck.norm2.", "neck.3."),
)  # fmt: skip
"""Replacements, in this order, that turn transformers' names into the original ones."""


@pytest.fixture(scope="module")
def original(transformers, tmp_path_factory):
    """File with the same weights under the original names."""
    weights = {"pixel_mean": torch.zeros(3, 1, 1), "prompt_encoder.no_mask_embed.weight": torch.zeros(1, 32)}
    for name, value in tiny(transformers).vision_encoder.state_dict().items():
        own = f"vision_encoder.{name}"
        for theirs, word in ORIGINAL:
            own = own.replace(theirs, word)
        weights[own] = value
    path = tmp_path_factory.mktemp("original") / "sam_vit_tiny.pth"
    torch.save(weights, path)
    return path


def test_folder_and_original_file_are_the_same_encoder(transformers, folder, original):
    """They are also equal to the model that the weights were saved from."""
    pictures = np.random.default_rng(0).random((3, 64, 64), np.float32)
    found = [sam.Encoder(Prior(kind="sam", weights=str(path), side=64), CPU).features(pictures)
             for path in (folder, original)]  # fmt: skip
    assert np.array_equal(*found)
    assert found[0].std(0).min() > 0.01
    mean, deviation = (torch.tensor(values)[:, None, None] for values in sam.IMAGENET)
    images = (torch.from_numpy(pictures)[:, None].expand(-1, 3, -1, -1) - mean) / deviation
    with torch.inference_mode():
        expected = tiny(transformers).get_image_embeddings(images)
    assert np.allclose(found[0], expected.numpy(), atol=5e-3)


def test_weights_of_half_precision_are_used_in_single(transformers, tmp_path):
    tiny(transformers).half().save_pretrained(tmp_path)
    found = sam.Encoder(Prior(kind="sam", weights=str(tmp_path), side=64), CPU).features(
        np.zeros((1, 64, 64), np.float32)
    )
    assert np.isfinite(found).all()
    assert len(sam.Encoder(Prior(kind="sam", weights=str(tmp_path), side=64), CPU).features(np.zeros((0, 64, 64)))) == 0


def test_a_folder_whose_weights_are_cut_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "w")
    content = (tmp_path / "w" / "model.safetensors").read_bytes()
    (tmp_path / "w" / "model.safetensors").write_bytes(content[:1000])
    with pytest.raises(ModelError, match="Hugging Face's layout"):
        sam.read_encoder(tmp_path / "w")


@pytest.mark.parametrize("left", [1, 3, -1])
def test_a_file_with_some_of_the_encoder_alone_is_refused(original, tmp_path, left):
    weights = torch.load(original)
    names = ["image_encoder.pos_embed", *(name for name in weights if name.startswith("image_encoder."))]
    torch.save({name: weights[name] for name in names[:left]}, tmp_path / "part.pth")
    with pytest.raises(ModelError, match=r"lacks weights of SAM's image encoder|do not fit"):
        sam.read_encoder(tmp_path / "part.pth")


def test_another_side_interpolates_the_positions_alone(transformers, folder):
    network = sam.read_encoder(folder)
    wider = sam.resized_encoder(network, 128)
    before, after = network.state_dict(), wider.state_dict()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed == {
        name for name in before if name.endswith("pos_embed") or (".layers.1." in name and "rel_pos" in name)
    }
    assert all(torch.equal(before[name], after[name]) for name in set(before) - changed)
    assert torch.equal(sam.resized_encoder(network, 64).state_dict()[min(changed)], before[min(changed)])
    with torch.inference_mode():
        assert wider(pixel_values=torch.zeros(1, 3, 128, 128)).last_hidden_state.shape == (1, 32, 8, 8)


@pytest.mark.parametrize("content", ["nothing", "text", "other", "half"])
def test_other_weights_than_sams_are_refused(transformers, folder, original, tmp_path, content):
    path = tmp_path / "w.pth"
    if content == "nothing":
        path.mkdir()
    elif content == "text":
        path.write_text("no weights")
    elif content == "other":
        torch.save({"a": torch.ones(2)}, path)
    else:
        weights = torch.load(original, weights_only=True)
        torch.save({name: value for name, value in weights.items() if "blocks.0.mlp.lin2" not in name}, path)
    with pytest.raises(ModelError, match=re.escape(str(path))):
        sam.read_encoder(path)


def test_without_transformers_the_error_names_the_extra(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=re.escape("glimpseg[sam]")):
        sam.read_encoder(folder)


def test_slices_run_from_0_to_1_in_the_brain_and_lack_those_without():
    image = np.random.default_rng(0).normal(3, 2, (20, 30, 6)).astype(np.float32)
    brain = np.zeros(image.shape, bool)
    brain[2:18, 3:25, 1:5] = True
    brain[2:4, 3:4, 0] = True
    pictures, places = sam.brain_slices(image, brain, 1.0)
    assert places == [1, 2, 3, 4]
    assert pictures.shape == (4, 30, 30)
    assert pictures.min() == 0
    assert pictures.max() == 1
    assert not pictures[:, 20:].any()
    again, _ = sam.brain_slices(7 * image - 4, brain, 1.0)
    assert np.allclose(pictures, again, atol=1e-4)


def test_a_patient_is_in_one_part_and_two_are_needed():
    studies = [f"BraTS-GLI-{patient:05}-{visit:03}" for patient in range(7) for visit in range(1 + patient % 3)]
    parts = crossfit.folds(studies, 3)
    by_patient = {crossfit.patient_of(study): part for study, part in zip(studies, parts, strict=True)}
    assert [by_patient[crossfit.patient_of(study)] for study in studies] == parts
    assert len(by_patient) == 7
    assert crossfit.patient_of("HG_brats_tcia_pat171_0200") == crossfit.patient_of("HG_brats_tcia_pat171_0355")
    assert crossfit.patient_of("brats_2013_pat0001_1") != crossfit.patient_of("brats_2013_pat0002_1")
    assert crossfit.patient_of("BraTS20_Training_001") == "BraTS20_Training_001"
    assert set(parts) == {0, 1, 2}
    with pytest.raises(UsageError, match="at least two patients, not 1"):
        crossfit.folds(["BraTS-GLI-00001-000", "BraTS-GLI-00001-001"], 5)


SMALL_SAM = {"kind": "sam", "side": 64, "folds": 2, "steps": 3}


@pytest.fixture(scope="module")
def crossfitted(transformers, cases, folder, tmp_path_factory):
    """Return cases, settings, folder, and the cases' priors from SAM."""
    place = tmp_path_factory.mktemp("crossfitted")
    settings = Prior(weights=str(folder), **SMALL_SAM)
    return cases[0], settings, place, make_priors(cases[0], settings, LABELS, 3.0, place, CPU)


def test_no_prior_comes_from_a_decoder_that_saw_its_reference(crossfitted, monkeypatch, tmp_path):
    cases, settings, _, _ = crossfitted
    learned, used = [], []
    honest_training, honest_use = crossfit.train_decoder, crossfit.decoded_labels

    def training(studies, *rest, **options):
        made = honest_training(studies, *rest, **options)
        learned.append((made.state_dict(), {one.study.id for one in studies}))
        return made

    def use(network, one, *rest):
        used.append((network.state_dict(), one.study.id))
        return honest_use(network, one, *rest)

    monkeypatch.setattr(crossfit, "train_decoder", training)
    monkeypatch.setattr(crossfit, "decoded_labels", use)
    make_priors(cases, settings, LABELS, 3.0, tmp_path, CPU)
    assert len(used) == 4 * 4
    for network, study in used:
        (saw,) = [names for made, names in learned if all(torch.equal(made[name], network[name]) for name in made)]
        assert saw
        assert study not in saw


def test_crossfitted_priors_are_found_again_and_named_by_what_made_them(crossfitted, folder, monkeypatch):
    cases, settings, place, found = crossfitted
    assert not list(place.glob("*.features.safetensors"))
    record = record_of(found[0])
    assert record["uses_reference"] is False
    assert record["weights"] == sam.weights_digest(folder)
    monkeypatch.setattr(crossfit, "train_decoder", None)
    assert make_priors(cases, settings, LABELS, 3.0, place, CPU) == found
    others = [priors_names(cases, replace(settings, **change)) for change in ({"steps": 4}, {"seed": 1}, {"folds": 3})]
    assert len({*others, priors_names(cases, settings)}) == 4
    assert priors_names(cases[:3], settings) != priors_names(cases, settings)[:3]


def priors_names(cases, settings):
    """Return the file names of the priors."""
    return tuple(path.name for path in crossfit.prior_paths(cases, settings, LABELS, cases[0].parent)[0])


def test_what_was_made_before_a_kill_is_not_made_again(crossfitted, monkeypatch, tmp_path):
    cases, settings, _, found = crossfitted
    calls = []
    honest = crossfit.train_decoder

    def killed(*given, **options):
        calls.append(given)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return honest(*given, **options)

    monkeypatch.setattr(crossfit, "train_decoder", killed)
    with pytest.raises(KeyboardInterrupt):
        make_priors(cases, settings, LABELS, 3.0, tmp_path, CPU)
    made = make_priors(cases, settings, LABELS, 3.0, tmp_path, CPU)
    assert len(calls) == 8 + 1  # a decoder for each of 2 parts and 4 sequences, one of them begun twice
    for one, other in zip(made, found, strict=True):
        assert np.array_equal(held(one), held(other))


class Answer(decoder.Features):
    """Features that contain the labels, one channel for each label."""

    def __init__(self, truth):
        self.truth, self.shape = truth, truth.shape
        self.places = range(truth.shape[2])
        self.tumour = np.flatnonzero(truth.any((0, 1))).tolist()

    def read(self, chosen):
        coarse = self.truth[2::4, 2::4, chosen.start : chosen.stop].transpose(2, 0, 1)
        return np.stack([coarse == label for label in range(4)], 1).astype(np.float16)

    def reference(self, chosen):
        return self.truth[:, :, chosen.start : chosen.stop].transpose(2, 0, 1)


@pytest.mark.slow
def test_a_decoder_finds_in_another_and_longer_study_what_its_features_show():
    """Fewer steps are not enough to learn. The tests above use decoders of few steps."""
    shown = [Answer(np.pad(reference(), ((0, 0), (0, 0), (more, 0)))) for more in (0, 20)]
    made = decoder.train_decoder(shown, 4, LABELS, steps=80, seed=0, device=CPU)
    truth = np.pad(np.roll(reference(), 3, axis=0), ((0, 0), (0, 0), (30, 0)))
    found = decoder.decoded_labels(made, Answer(truth), LABELS, CPU)
    both = (found > 0) & (truth > 0)
    assert 2 * both.sum() / ((found > 0).sum() + (truth > 0).sum()) > 0.8


@pytest.mark.parametrize("count", range(30))
def test_every_slice_is_answered_for_once_and_not_at_the_edge_of_a_slab(count):
    found = decoder.slabs(count)
    assert [number for _, kept in found for number in kept] == list(range(count))
    for slab, kept in found:
        assert len(slab) == min(decoder.SLAB, count)
        assert set(kept) <= set(slab)
        for number in kept:
            assert number - slab.start >= decoder.EDGE or slab.start == 0
            assert slab.stop - 1 - number >= decoder.EDGE or slab.stop == count


def test_a_study_without_brain_in_any_slice_has_an_empty_prior():
    nothing = Answer(np.zeros((8, 8, 0), np.uint8))
    assert not decoder.decoded_labels(decoder.Decoder(4, 4), nothing, LABELS, CPU).any()


def test_two_processes_share_what_one_of_them_makes(crossfitted, tmp_path):
    """Both start with an empty folder; neither deletes the other's features."""
    cases, settings, _, found = crossfitted
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: make_priors(cases, settings, LABELS, 3.0, tmp_path, CPU), range(2)))
    assert both[0] == both[1]
    for one, other in zip(both[0], found, strict=True):
        assert np.array_equal(held(one), held(other))


def test_a_prior_that_was_deleted_is_made_again_from_its_own_decoders(crossfitted, monkeypatch):
    cases, settings, _, found = crossfitted
    before, looked = held(found[0]), []
    honest = crossfit._CachedStudy.write_features
    monkeypatch.setattr(
        crossfit._CachedStudy, "write_features", lambda self, encoder: looked.append(self.id) or honest(self, encoder)
    )
    monkeypatch.setattr(crossfit, "train_decoder", None)
    found[0].unlink()
    again = make_priors(cases, settings, LABELS, 3.0, found[0].parent, CPU)
    assert np.array_equal(held(again[0]), before)
    assert looked == ["S0"]


def test_ranks_do_not_wait_for_priors(cases, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(crossfit, "rank_and_world", lambda: (0, 2))
    with pytest.raises(UsageError, match="Make them with `glimpseg prepare` first"):
        make_priors(cases[0], Prior(weights=str(folder), **SMALL_SAM), LABELS, 3.0, tmp_path, CPU)


def interrupted_after(save):
    """Replacement for saving that raises KeyboardInterrupt."""

    def saved(*arguments, **options):
        save(*arguments, **options)
        raise KeyboardInterrupt

    return saved


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folder", "original"])
def test_sam_goes_the_whole_way(transformers, archive, folder, original, tmp_path, monkeypatch, layout):
    """Prepare on the command line, train from that cache, stop, resume, then segment without prior and cache."""
    weights = folder if layout == "folder" else original
    changes = [f"--set=data.prior.{name}={value}" for name, value in (SMALL_SAM | {"weights": weights}).items()]
    changes += ["--set=config.refinement=1", "--set=config.agreement=1"]
    short = small("smml") | {"optim.steps": 4}
    changes += [f"--set={path}={json.dumps(value)}" for path, value in short.items()]
    prepared = CliRunner().invoke(
        app,
        ["prepare", str(archive), "-o", str(tmp_path / "cache"), "--recipe=smml/phantom", "--prior=sam", *changes],
    )
    assert prepared.exit_code == 0, prepared.output
    files = sorted((tmp_path / "cache").glob(f"*{SUFFIX}"))
    assert len(files) == 4
    written = {path: path.stat().st_mtime_ns for path in files}
    command = ["train", "smml/phantom", "--data", str(archive), "--cache", str(tmp_path / "cache"), *changes]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert CliRunner().invoke(app, [*command, "-o", str(whole)]).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in files} == written
    with monkeypatch.context() as patch:
        patch.setattr("glimpseg.training.loop.save_checkpoint", interrupted_after(save_checkpoint))
        assert CliRunner().invoke(app, [*command, "-o", str(parts)]).exit_code == 130
    assert len(checkpoints(parts)) == 1
    assert not (parts / "model").exists()
    assert CliRunner().invoke(app, [*command, "-o", str(parts), "--resume"]).exit_code == 0
    first, second = (load_file(run / "model" / WEIGHTS) for run in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    shutil.rmtree(tmp_path / "cache")
    assert methods.find_recipe(str(whole / "recipe.yaml")).data.prior.kind == "sam"
    assert load(whole, "cpu").network.refiners is None
