"""MST-KDNet: comparison with the authors' numbers, and tests of our changes."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from conformance import mstkdnet_reference, reference
from conftest import small_recipe
from glimpseg import methods
from glimpseg.data.crops import Batch
from glimpseg.data.layouts import find_studies
from glimpseg.errors import ModelError, UsageError
from glimpseg.evaluation.evaluate import evaluate
from glimpseg.evaluation.options import EvaluationOptions
from glimpseg.method import Progress
from glimpseg.methods import mstkdnet
from glimpseg.methods.mstkdnet import objective
from glimpseg.methods.mstkdnet.network import NetworkOutput
from glimpseg.methods.mstkdnet.objective import (
    attention_distance,
    gram_distance,
    label_maps,
    logit_divergence,
    prediction_weight,
    scale_distance,
    squared_dice,
)
from glimpseg.modality import ALL, Modality
from glimpseg.model import importing
from glimpseg.model.folder import PROVENANCE, save_model
from glimpseg.model.loading import load_model
from glimpseg.nets.authors import authors_name
from glimpseg.region import Label, Region
from glimpseg.report import write_html
from glimpseg.training import loop
from glimpseg.training.options import TrainOptions

STEP_GIB = 10
"""Memory that is enough for one step of the official networks at 64^3."""


def gib_free():
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


@pytest.fixture(scope="module")
def stored():
    return dict(np.load(reference.HERE / "mstkdnet.npz"))


def of(kind, found):
    return {name: value for name, value in found.items() if name.startswith(kind)}


# The authors' numbers


@pytest.fixture(scope="module")
def cube(stored):
    return mstkdnet_reference.cube(stored)


@pytest.fixture(scope="module")
def seeded(stored):
    return mstkdnet_reference.seeded(stored)


@pytest.mark.numerics
def test_both_networks_compute_what_the_authors_do(cube):
    maps = of("map", cube)
    assert len(maps) == 24
    assert not reference.beyond("mstkdnet", maps)


@pytest.mark.numerics
def test_every_term_of_both_objectives_is_the_authors(cube, stored):
    losses = of("loss", cube)
    named = {name for name in stored if name.startswith("net64/loss/")}
    # The stored step's objective is not one that our losses know; its sum is compared with the step.
    assert len(losses) == len(named) - 1
    assert not reference.beyond("mstkdnet", losses)


@pytest.mark.numerics
def test_losses_of_seeded_tensors_and_their_gradients_are_the_authors(seeded):
    assert {kind: len(of(kind, seeded)) for kind in ("loss", "map", "gradient", "moved")} == {
        "loss": 5 + 2, "map": 2, "gradient": 9, "moved": 1,
    }  # fmt: skip
    assert not reference.beyond("mstkdnet", seeded)


@pytest.mark.slow
@pytest.mark.numerics
def test_one_step_leaves_the_authors_gradients_weights_and_statistics(stored):
    if gib_free() < STEP_GIB:
        pytest.skip(f"two networks of 154 million parameters need about {STEP_GIB} GiB of free memory")
    assert not reference.beyond("mstkdnet", mstkdnet_reference.step(stored))


def test_the_weight_of_predictions_rises_as_the_authors(stored):
    ours = [10 * prediction_weight(epoch / 100, 0.2) for epoch in range(31)]
    assert np.allclose(ours, stored["sched/consistency_weight_ep0-30"], rtol=1e-6)


# Terms


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen(seed, batch=2, tokens=6):
    """Return a network output with random values in every field."""
    layers = [randn(seed + i, batch, 8, 4, 4, 4) for i in range(3)]
    scales = [randn(seed + 10 + i, batch, 2 + i, 3, 3, 3) for i in range(4)]
    attentions = [randn(seed + 20 + i, batch, 2, tokens, tokens).softmax(-1) for i in range(4)]
    return NetworkOutput(randn(seed + 30, batch, 4, 8, 8, 8), *layers, scales, attentions)


def one_of(whole, place):
    """Return one sample of an output."""
    parts = [value[place : place + 1] for value in whole[:4]]
    return NetworkOutput(*parts, *([value[place : place + 1] for value in values] for values in whole[4:]))


def needing_gradients(whole):
    for value in (*whole[:4], *whole.scales, *whole.attentions):
        value.requires_grad_()
    return whole


@pytest.fixture(scope="module")
def learner():
    torch.manual_seed(0)
    return methods.build(small_recipe("mstkdnet"))


TARGET = label_maps(torch.arange(2 * 512).reshape(2, 8, 8, 8) % 4, (1, 2, 3))
BOTH, FIRST, NONE = (torch.tensor(flags) for flags in ([True, True], [True, False], [False, False]))
DISTANCES = (
    scale_distance,
    attention_distance,
    gram_distance,
    lambda one, other: logit_divergence(one.logits, other.logits, 7.0),
    lambda one, other: logit_divergence(one.logits, other.logits, 7.0, "class"),
)


@pytest.mark.numerics
@pytest.mark.parametrize("distance", DISTANCES)
def test_samples_of_a_batch_do_not_mix(distance):
    teacher, student = seen(0), seen(100)
    together = distance(teacher, student)
    alone = [distance(one_of(teacher, place), one_of(student, place)) for place in range(2)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5)


@pytest.mark.numerics
@pytest.mark.parametrize("distance", DISTANCES)
def test_what_is_alike_is_at_no_distance(distance):
    assert distance(seen(0), seen(0)).abs().max() < 1e-6
    assert distance(seen(0), seen(100)).min() > 1e-4


def attention_pass(at_once, monkeypatch, tokens=24):
    """Return the distance, its gradients, and the bytes kept for them besides the attentions."""
    monkeypatch.setattr(objective, "ENTRIES_AT_ONCE", at_once)
    teacher, student = (needing_gradients(seen(seed, tokens=tokens)) for seed in (0, 100))
    given = [*teacher.attentions, *student.attentions]
    own, kept = {value.untyped_storage().data_ptr() for value in given}, {}

    def note(value):
        if value.untyped_storage().data_ptr() not in own:
            kept[value.untyped_storage().data_ptr()] = (value.untyped_storage().nbytes(), value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        distance = attention_distance(teacher, student)
    bytes_kept = sum(size for size, _ in kept.values())
    return distance, torch.autograd.grad(distance.sum(), given), bytes_kept, sum(4 * value.numel() for value in given)


@pytest.mark.numerics
@pytest.mark.parametrize("rows", [1, 5, 7, 24])  # 5 and 7 leave a remainder
def test_attention_compared_in_rows_is_the_same_distance_with_the_same_gradients(rows, monkeypatch):
    whole, gradients, _, _ = attention_pass(2**23, monkeypatch)
    entries = 2 * 4 * 2 * 2 * 24  # networks, layers, samples, heads, columns
    parts, of_parts, _, _ = attention_pass(rows * entries, monkeypatch)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=0)
    for one, other in zip(of_parts, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_attention_compared_in_rows_keeps_nothing_of_the_matrices_size(monkeypatch):
    _, _, whole, matrices = attention_pass(2**23, monkeypatch)
    _, _, parts, _ = attention_pass(1000, monkeypatch)
    assert whole > 3 * matrices
    assert parts < 0.01 * matrices


def test_the_released_crop_is_compared_in_one_piece():
    config = mstkdnet.Config()
    tokens = int(np.prod(config.grid))
    assert tokens == 120
    assert 2 * 4 * config.heads * tokens**2 <= objective.ENTRIES_AT_ONCE


@pytest.mark.numerics
def test_attention_is_weighed_alike_for_any_number_of_tokens():
    teacher, student = seen(0), seen(100)
    split = [
        whole._replace(attentions=[torch.kron(value, torch.full((2, 2), 0.5)) for value in whole.attentions])
        for whole in (teacher, student)
    ]  # each token as two that share its attention
    assert torch.allclose(attention_distance(*split), attention_distance(teacher, student), rtol=1e-5)


@pytest.mark.numerics
def test_styles_are_weighed_alike_for_crops_of_any_size():
    teacher, student = seen(0), seen(100)
    twice = [
        whole._replace(**{part: torch.cat([getattr(whole, part)] * 2, 2) for part in ("entry", "style", "content")})
        for whole in (teacher, student)
    ]
    assert torch.allclose(gram_distance(*twice), gram_distance(teacher, student), rtol=1e-5)


def scaled(whole, factor):
    """Return outputs whose styles are scaled."""
    return whole._replace(**{part: factor * getattr(whole, part) for part in ("entry", "style", "content")})


@pytest.mark.numerics
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_styles_are_weighed_alike_however_strong_the_features_are(factor):
    teacher, student = seen(0), seen(100)
    exact = gram_distance(teacher, student)
    assert (exact > 0).all()
    assert torch.allclose(gram_distance(scaled(teacher, factor), scaled(student, factor)), exact, rtol=1e-4)
    assert torch.allclose(gram_distance(teacher, scaled(student, factor)), exact, rtol=1e-4)


def test_styles_that_are_opposite_in_every_channel_are_as_far_apart_as_can_be():
    same = NetworkOutput(*[torch.zeros(0)] * 4, [], [])._replace(entry=torch.ones(1, 8, 4, 4, 4))
    teacher = same._replace(style=same.entry, content=same.entry)
    # Signs so that one of the three products stays as it is.
    student = same._replace(style=-same.entry, content=same.entry)
    assert gram_distance(teacher, teacher).item() == 0
    assert gram_distance(teacher, student).item() == pytest.approx(2 * 4)


@pytest.mark.numerics
def test_a_study_that_lacks_a_sequence_teaches_nothing(learner):
    teacher, student = needing_gradients(seen(0)), seen(100)
    terms = learner.terms(teacher, student, TARGET, FIRST, 1.0)
    alone = learner.terms(one_of(teacher, 0), one_of(student, 0), TARGET[:1], FIRST[:1], 1.0)
    for name in terms.keys() - {"segment/student"}:  # half of the samples teach
        assert torch.allclose(terms[name], alone[name] / 2, rtol=1e-5), name
    sum(terms.values()).backward()
    for value in (*teacher[:4], *teacher.scales, *teacher.attentions):
        assert value.grad[0].any()
        assert not value.grad[1].any()


@pytest.mark.numerics
def test_a_sample_teaches_alike_however_its_batch_is_divided(learner):
    teacher, student = seen(0), seen(100)
    whole = learner.terms(teacher, student, TARGET, FIRST, 1.0)
    parts = [
        learner.terms(
            one_of(teacher, place), one_of(student, place), TARGET[place : place + 1], FIRST[place : place + 1], 1.0
        )
        for place in range(2)
    ]
    for name in whole.keys() - {"segment/student"}:  # its Dice is the whole part's
        assert torch.allclose(whole[name], sum(part[name] for part in parts) / 2, rtol=1e-5), name


def test_without_any_complete_study_in_the_batch_only_the_student_is_trained(learner):
    terms = learner.terms(seen(0), seen(100), TARGET, NONE, 1.0)
    assert {name for name, value in terms.items() if value} == {"segment/student"}


@pytest.mark.parametrize("detach", [False, True])
def test_distillation_goes_both_ways_unless_the_teacher_is_detached(learner, detach):
    changed = replace(learner.config, detach_teacher=detach)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "config", changed)
        teacher, student = needing_gradients(seen(0)), needing_gradients(seen(100))
        terms = learner.terms(teacher, student, TARGET, BOTH, 1.0)
    both_sides = {"teacher": teacher, "student": student}
    reached = {
        who: {
            name
            for name, value in terms.items()
            if any(
                gradient is not None and gradient.any()
                for gradient in torch.autograd.grad(
                    value,
                    [*whole[:4], *whole.scales, *whole.attentions],
                    allow_unused=True,
                    retain_graph=True,
                )
            )
        }
        for who, whole in both_sides.items()
    }
    assert reached["student"] == terms.keys() - {"segment/teacher"}
    assert reached["teacher"] == ({"segment/teacher"} if detach else terms.keys() - {"segment/student"})


SWITCHES = {
    "teacher": ["segment/teacher"],
    "student": ["segment/student"],
    "content": ["content"],
    "features": ["mstkd/features"],
    "attention": ["mstkd/attention"],
    "prediction": ["dmld/prediction"],
    "logits": ["dmld/logits"],
    "gram": ["gsme/gram"],
    "adversary": ["gsme/adversary"],
}


@pytest.mark.parametrize("weight", SWITCHES)
def test_each_weight_switches_its_term_alone(weight):
    recipe = small_recipe("mstkdnet", **{f"config__{weight}": 0.0})
    batch = Batch(
        image=randn(0, 1, 4, 16, 16, 16),
        available=torch.ones(1, 4, dtype=torch.bool),
        target=(randn(1, 1, 16, 16, 16) > 1).long(),
        study=["S"],
    )
    # One token of 16^3 attends to itself, whatever the network: 32^3 it is.
    batch.image = torch.cat([batch.image] * 2, 2)
    batch.target = torch.cat([batch.target] * 2, 1)
    torch.manual_seed(0)
    terms = methods.build(recipe).losses(batch, Progress(5, 10))
    assert [name for name, value in terms.items() if not value] == SWITCHES[weight]


def test_the_adversary_moves_the_student_and_not_its_judge(learner):
    width = learner.config.widths[-1]
    styles = [randn(seed, 2, width, 4, 4, 4).requires_grad_() for seed in (0, 1)]
    teacher, student = (NetworkOutput(*[torch.zeros(0)] * 2, style, torch.zeros(0), [], []) for style in styles)
    terms = learner.adversaries(teacher, student, BOTH)
    terms["gsme/adversary"].backward()
    assert styles[1].grad.any()
    assert styles[0].grad is None
    assert all(p.grad is None for p in learner.discriminator.parameters())
    styles[1].grad = None
    terms["gsme/discriminator"].backward()
    assert styles[0].grad is None
    assert styles[1].grad is None
    assert all(p.grad.any() for p in learner.discriminator.parameters())
    learner.zero_grad()


@pytest.mark.numerics
def test_one_summed_backward_has_the_gradients_of_the_authors_two(learner):
    """The authors' order: the student's term with the discriminator's weights fixed, then the discriminator's terms."""
    width = learner.config.widths[-1]
    styles = [randn(seed, 2, width, 4, 4, 4) for seed in (0, 1)]

    def gradients(alternate):
        teacher, student = (
            NetworkOutput(*[torch.zeros(0)] * 2, style.clone().requires_grad_(), torch.zeros(0), [], [])
            for style in styles
        )
        learner.zero_grad()
        if alternate:
            learner.discriminator.requires_grad_(False)
            logits = learner.discriminator(student.style)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.zeros(2))
            (learner.config.adversary * loss).backward()
            learner.discriminator.requires_grad_(True)
            for style, label in ((teacher.style, 0.0), (student.style, 1.0)):
                logits = learner.discriminator(style.detach())
                torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.full((2,), label)).backward()
        else:
            sum(learner.adversaries(teacher, student, BOTH).values()).backward()
        return [student.style.grad, *(p.grad for p in learner.discriminator.parameters())]

    for ours, theirs in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-9)


@pytest.mark.numerics
def test_styles_are_compared_in_fp32_under_autocast():
    layers = {part: 5 + randn(i, 1, 8, 8, 8, 8) for i, part in enumerate(("entry", "style", "content"))}
    teacher = seen(0)._replace(**layers)
    student = teacher._replace(style=teacher.style * 1.001)
    exact = gram_distance(teacher, student)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gram_distance(teacher, student), exact)


@pytest.mark.numerics
def test_squared_dice_of_a_perfect_and_an_opposite_prediction():
    assert squared_dice(TARGET, TARGET).abs().max() < 1e-6
    assert torch.equal(squared_dice(1 - TARGET, TARGET), torch.ones(4))


# Labels


def test_a_label_that_is_not_told_apart_is_in_no_map():
    maps = label_maps(torch.tensor([0, 1, 2, 3, 4]).reshape(1, 5, 1, 1), (1, 2, 3))
    assert maps[0, :, :, 0, 0].T.tolist() == [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_decoded_labels_have_the_regions_of_the_authors_thresholds(learner):
    probabilities = torch.rand((1, 4, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = learner.decode(probabilities).numpy()
    net, snfh, et, _ = (probabilities > 0.5).numpy().swapaxes(0, 1)
    found = learner.region_probabilities(probabilities)
    for region, wanted in ((Region.WT, net | snfh | et), (Region.TC, net | et), (Region.ET, et)):
        assert (region.mask(labels) == wanted).all()
        assert ((found[region] > 0.5).numpy() == wanted).all()


def test_a_cavity_is_a_label_like_another_and_in_no_region_of_tumour():
    network = methods.build(small_recipe("mstkdnet", labels=["NCR", "ED", "ET", "RC"]))
    probabilities = torch.zeros(1, 5, 2, 1, 1)
    probabilities[0, 3] = 0.9
    probabilities[0, 1, 1] = 0.8
    assert network.decode(probabilities).flatten().tolist() == [Label.RC, Label.ED]


# Networks


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ramp", -1), ("ramp", 2), ("temperature", 0), ("scale_width", 1), ("scale_width", 3), ("layers", 0),
        ("layers", 6), ("heads", 0), ("heads", 5), ("groups", 3), ("blocks", (1, 1)), ("crop", (32, 32, 40)),
    ],
)  # fmt: skip
def test_a_config_that_cannot_work_is_refused_by_its_field(field, value):
    with pytest.raises(ValueError, match=rf"should.*\b{field}\b|\b{field}\b.*should"):
        mstkdnet.Config(**{field: value})


def test_without_a_ramp_predictions_weigh_all_from_the_beginning():
    assert prediction_weight(0.0, 0.0) == 1


def test_attention_is_kept_only_for_a_term_that_needs_it(learner, monkeypatch):
    asked = []
    honest = mstkdnet.objective.Network.forward

    def forward(self, image, keep_attention=False):
        asked.append(keep_attention)
        return honest(self, image, keep_attention)

    monkeypatch.setattr(mstkdnet.objective.Network, "forward", forward)
    complete, target = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 16, 16, 16).long()
    batch = Batch(randn(0, 1, 4, 16, 16, 16), complete, target, ["S"])
    for weight in (0.0, 1.0):
        monkeypatch.setattr(learner, "config", replace(learner.config, attention=weight))
        learner.losses(batch, Progress(0, 1))
    assert asked == [False, False, True, True]


@pytest.mark.numerics
def test_attention_is_the_same_whether_it_is_kept_or_not(learner):
    image = randn(0, 1, 4, 32, 32, 32)
    with torch.inference_mode():
        kept, not_kept = (learner.eval().student(image, keep) for keep in (True, False))
    learner.train()
    assert torch.allclose(kept.logits, not_kept.logits, atol=1e-5)
    assert len(kept.attentions) == 4
    assert not not_kept.attentions


@pytest.mark.numerics
def test_a_judge_of_the_released_crop_pools_nothing():
    judge = mstkdnet.objective.Discriminator(2, 2)
    style = randn(0, 1, 2, 20, 24, 16)
    x = style
    for down in judge.down:
        x = torch.nn.functional.leaky_relu(down(x), 0.2)
    assert torch.equal(judge(style), judge.judge(x).flatten())


@pytest.mark.numerics
def test_a_model_folder_holds_the_student_alone_and_segments_like_the_whole(tmp_path):
    recipe = small_recipe("mstkdnet")
    torch.manual_seed(0)
    whole = methods.build(recipe).eval()
    save_model(tmp_path / "m", whole.kept, recipe, {})
    alone = load_model(tmp_path / "m").network
    assert alone.teacher is None
    assert alone.discriminator is None
    image, available = randn(0, 1, 4, 16, 16, 16), torch.tensor([[True, False, True, True]])
    with torch.inference_mode():
        assert torch.equal(alone(image, available), whole(image, available))


# Archives


def test_an_archive_without_a_complete_study_is_refused_before_anything_is_written(archive, tmp_path):
    shutil.copytree(archive, tmp_path / "studies")
    for path in tmp_path.glob("studies/*/*t1c*"):
        path.unlink()
    with pytest.raises(UsageError, match="none of these 4"):
        loop.train(
            small_recipe("mstkdnet"),
            tmp_path / "run",
            TrainOptions(data=tmp_path / "studies", device=torch.device("cpu"), quiet=True),
        )
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert not (tmp_path / "run" / "cache").exists()


def test_the_run_says_how_many_studies_teach(archive, tmp_path):
    studies = tmp_path / "studies"
    shutil.copytree(archive, studies)
    next(studies.glob("S0/*t1c*")).unlink()
    recipe = small_recipe("mstkdnet", optim__steps=2)
    folder = loop.train(recipe, tmp_path / "run", TrainOptions(data=studies, device=torch.device("cpu"), quiet=True))
    record = json.loads((folder / PROVENANCE).read_text())
    assert record["dataset"].startswith("3 of 4 studies have all four sequences and teach")
    assert ALL.key in record["data"]["available"]
    evaluated = evaluate(
        load_model(folder), find_studies(studies), tmp_path / "ev", EvaluationOptions(subsets=(Modality.FLAIR,))
    )
    page = write_html(evaluated.folder).read_text("utf-8")
    assert "3 of 4 studies have all four sequences and teach; the others train the student alone" in page


# The authors' weights


@pytest.fixture(scope="module")
def authors():
    """Return the authors' three state dicts, with few channels, and with the unused tensors of their networks."""
    narrow = {"width": 8, "token_width": 12, "mlp_width": 8, "scale_width": 2, "style_width": 2}
    config = replace(mstkdnet.OFFICIAL, **narrow, crop=(64, 64, 64))
    torch.manual_seed(0)
    network = mstkdnet.METHOD(config, (Label.NCR, Label.ED, Label.ET)).eval()
    tree = {part: {} for part in mstkdnet.authors.PARTS}
    for name, value in network.state_dict().items():
        part, _, key = authors_name(name, mstkdnet.NAMES).partition(".")
        theirs = value[:, [list(Modality).index(m) for m in mstkdnet.ORDER]] if key == "conv1a.weight" else value
        tree[part][key] = theirs
    for part in ("model_missing", "model_full"):
        tree[part]["Unetr.transformer.encoder_norm.weight"] = torch.ones(12)
        tree[part]["Unetr.decoder9.block.2.running_var"] = torch.ones(16)
        tree[part]["Unetr.decoder9.block.2.num_batches_tracked"] = torch.tensor(7)
    return config, network, tree


@pytest.fixture
def of_few_channels(authors, monkeypatch):
    monkeypatch.setattr(mstkdnet.authors, "OFFICIAL", authors[0])
    return authors[1:]


def flat(tree, prefix=""):
    return {f"{part}.{prefix}{key}": value for part, values in tree.items() for key, value in values.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_all_three_networks_of_the_authors_are_taken(of_few_channels, prefix):
    network, tree = of_few_channels
    taken = mstkdnet.from_authors(flat(tree, prefix)).state_dict()
    assert all(torch.equal(taken[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "held",
    [
        lambda tree: tree["model_missing"],
        lambda tree: {f"module.{key}": value for key, value in tree["model_missing"].items()},
        lambda tree: flat({part: tree[part] for part in ("model_missing", "d_style")}),
        lambda tree: flat({part: tree[part] for part in ("model_missing", "model_full")}),
    ],
)
def test_the_student_is_enough_to_segment(of_few_channels, held):
    network, tree = of_few_channels
    alone = mstkdnet.from_authors(held(tree)).eval()
    assert alone.teacher is None
    image, available = randn(0, 1, 4, 64, 64, 64), torch.tensor([[True, False, True, False]])
    with torch.inference_mode():
        assert torch.equal(alone(image, available), network(image, available))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {"module.model_missing.convc.bias": torch.zeros(64), **weights}, "twice"),
        (lambda weights: {k: v for k, v in weights.items() if not k.startswith("model_missing")}, "the student"),
        (lambda weights: {k: v for k, v in weights.items() if "position" not in k}, "position_embeddings"),
        (lambda weights: {k: v for k, v in weights.items() if k != "model_full.convc.bias"}, "1 tensors are missing"),
        (lambda weights: {**weights, "model_missing.convc.bias": torch.full((64,), torch.nan)}, "not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(of_few_channels, change, message):
    with pytest.raises(ModelError, match=message):
        mstkdnet.from_authors(change(flat(of_few_channels[1])))


def test_weights_of_something_else_are_refused():
    with pytest.raises(ModelError, match="position_embeddings in it, are missing"):
        mstkdnet.from_authors({"conv1a.weight": torch.zeros(16, 4, 3, 3, 3)})


def test_a_checkpoint_of_three_state_dicts_is_read_with_their_names():
    tree = {
        "epoch": 99,
        "model_missing": {"a": torch.ones(1)},
        "model_full": {"a": torch.zeros(1)},
        "optimizer": {"state": {}, "param_groups": []},
    }
    found = importing.state_dict(tree)
    assert set(found) == {"model_missing.a", "model_full.a"}
    assert found["model_missing.a"] == 1
