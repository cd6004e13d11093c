"""Contract tests, run for every method in `methods/`; a new method is tested without new tests."""

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

import glimpseg
from glimpseg import methods
from glimpseg.data.cache import in_memory
from glimpseg.data.preprocess import prepare
from glimpseg.errors import UsageError
from glimpseg.method import Progress, Segmenter, draw_subsets, frozen
from glimpseg.modality import SUBSETS, to_flags
from glimpseg.model.folder import save_model
from glimpseg.model.loading import load_model
from glimpseg.nets.recompute import recompute
from glimpseg.phantom import Settings, generate
from glimpseg.phantom.dataset import as_study

NAMES = methods.names()
SEGMENTERS = [name for name in NAMES if issubclass(methods.module(name).METHOD, Segmenter)]
segmenters = pytest.mark.parametrize("recipe", SEGMENTERS, indirect=True, scope="module")
"""Methods that segment; a pretraining does not."""
DOCS = Path(__file__).parents[1] / "docs" / "methods"
PATCH = [16, 16, 16]
LONGER = {"mstkdnet": [32, 16, 16]}
"""Crops of methods for which 16 voxels a side are a single token, where attention has nothing to learn."""


@pytest.fixture(scope="module", params=NAMES)
def recipe(request):
    return methods.find_recipe(f"{request.param}/phantom", {"data.sampling.patch": LONGER.get(request.param, PATCH)})


@pytest.fixture(scope="module")
def learner(recipe):
    torch.manual_seed(1)
    return methods.build(recipe).eval()


@pytest.fixture(scope="module")
def batch(recipe, learner):
    """Two crops of one phantom, one of them around its tumour."""
    spacing = recipe.data.preprocess.spacing_mm
    made = prepare(as_study(generate(5, Settings.at_spacing(spacing))), recipe.data.preprocess)
    case, rng = in_memory(made), np.random.default_rng(0)
    return learner.collate([learner.view(case, recipe.data.sampling, rng) for _ in range(2)])[0].to(torch.device("cpu"))


def test_there_is_at_least_the_baseline():
    assert "unet" in NAMES


@segmenters
@pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: subset.key)
def test_every_subset_gives_finite_probabilities(learner, batch, subset):
    with torch.inference_mode():
        probabilities = learner(batch.image, to_flags(subset).expand(2, -1))
    assert probabilities.shape[2:] == batch.image.shape[2:]
    assert torch.isfinite(probabilities).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


@segmenters
@pytest.mark.parametrize("subset", SUBSETS[:-1], ids=lambda subset: subset.key)
def test_an_absent_modality_never_reaches_the_output(learner, batch, subset):
    available = to_flags(subset).expand(2, -1)
    broken = torch.where(available[:, :, None, None, None], batch.image, torch.nan)
    with torch.inference_mode():
        assert torch.equal(learner(batch.image, available), learner(broken, available))


@pytest.mark.parametrize("subset", SUBSETS[:-1:3], ids=lambda subset: subset.key)
def test_what_a_study_lacks_never_reaches_the_loss(recipe, batch, subset):
    torch.manual_seed(0)
    learner = methods.build(recipe)
    available = torch.stack([to_flags(subset), to_flags(SUBSETS[-1])] * (len(batch.image) // 2))
    absent = ~available[:, :, None, None, None]
    told = []
    for filling in (7.0, torch.nan):  # a factor of 0 would hide the first, a replaced NaN the second
        torch.manual_seed(1)
        told.append(
            learner.losses(
                replace(batch, image=batch.image.masked_fill(absent, filling), available=available), Progress(0, 1)
            )
        )
    sum(told[1].values()).backward()
    assert all(torch.equal(told[0][name], told[1][name]) for name in told[0])
    assert all(p.grad.isfinite().all() for p in learner.parameters() if p.grad is not None)


@segmenters
@pytest.mark.parametrize("subset", SUBSETS, ids=lambda subset: subset.key)
def test_work_that_is_shared_between_subsets_changes_no_bit(learner, batch, subset):
    available = to_flags(subset).expand(2, -1)
    with torch.inference_mode():
        assert torch.equal(
            learner.fuse(learner.encode(batch.image, batch.available), available), learner(batch.image, available)
        )


@segmenters
def test_a_modality_that_is_there_changes_the_output(learner, batch):
    with torch.inference_mode():
        present = learner(batch.image, to_flags(SUBSETS[-1]).expand(2, -1))
        absent = learner(batch.image, (to_flags(SUBSETS[-1]) & ~to_flags(SUBSETS[1])).expand(2, -1))
    assert (present - absent).abs().max() > 1e-4


@segmenters
def test_crops_may_have_any_sides_that_the_network_says_it_takes(learner):
    sides = (learner.smallest, learner.smallest + learner.stride, learner.smallest)
    with torch.inference_mode():
        output = learner(torch.rand(1, 4, *sides), torch.ones(1, 4, dtype=torch.bool))
    assert output.shape[2:] == sides
    assert torch.isfinite(output).all()


@segmenters
def test_labels_and_regions_have_their_places(learner, batch):
    with torch.inference_mode():
        probabilities = learner(batch.image, batch.available)
    assert set(learner.decode(probabilities).unique().tolist()) <= {0, *learner.labels}
    assert set(learner.region_probabilities(probabilities)) == set(learner.regions)


def test_every_parameter_is_trained(recipe, batch):
    torch.manual_seed(0)
    learner = methods.build(recipe)
    grouped = {id(p) for group in learner.parameter_groups() for p in group["params"]}
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    for _ in range(8):  # draws of subsets, so that every modality is seen
        sum(learner.losses(batch, Progress(0, 1)).values()).backward()
        if all(parameter.grad is not None and parameter.grad.any() for parameter in trained):
            break
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            assert id(parameter) in grouped, f"{name} is in no group"
            assert parameter.grad is not None, f"{name} got no gradient"
            assert parameter.grad.any(), f"{name} got no gradient but 0"


def test_the_loss_falls_on_one_batch(recipe, batch):
    torch.manual_seed(0)
    learner = methods.build(recipe)
    optimizer = torch.optim.AdamW(learner.parameter_groups(), 2e-3)
    history = []
    for step in range(12):
        torch.manual_seed(step % 3)  # the same three draws of subsets over and over
        terms = learner.losses(batch, Progress(step, 12))
        loss = sum(terms.values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(Progress(step, 12))
        # What it costs to agree with a teacher that moves has no fixed goal; what is restored has.
        history.append(float(terms.get("restoration", loss).detach()))
    assert np.mean(history[-3:]) < 0.8 * np.mean(history[:3])


def one_pass(recipe, batch, again):
    """Return bytes kept for the backward pass, the gradients, and the state that a checkpoint would hold."""
    torch.manual_seed(0)
    learner = methods.build(recipe)
    if again:
        recompute(learner.stages)
    own, kept = {p.data_ptr() for p in learner.parameters()}, {}

    def note(tensor):
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        terms = learner.losses(batch, Progress(1, 2))
    total = sum(kept.values())
    sum(terms.values()).backward()
    learner.after_step(Progress(1, 2))
    return total, {name: p.grad for name, p in learner.named_parameters()}, learner.state_dict()


def test_recomputing_keeps_less_and_changes_no_bit(recipe, batch):
    """Dropout and the statistics of norms do not change either."""
    whole, gradients, state = one_pass(recipe, batch, again=False)
    less, again, after = one_pass(recipe, batch, again=True)
    assert less < 0.6 * whole
    assert gradients.keys() == again.keys()
    for name, gradient in gradients.items():
        assert (gradient is None) == (again[name] is None)
        assert gradient is None or torch.equal(gradient, again[name]), name
    assert state.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in state.items())


@segmenters
def test_a_saved_model_gives_the_same_bits(recipe, learner, batch, tmp_path):
    save_model(tmp_path / "m", learner.state_dict(), recipe, {})
    again = load_model(tmp_path / "m").network
    with torch.inference_mode():
        assert torch.equal(learner(batch.image, batch.available), again(batch.image, batch.available))


def test_the_recipe_survives_its_yaml(recipe):
    assert methods.from_tree(methods.as_tree(recipe)) == recipe


def test_the_terms_are_those_of_the_doc_page(recipe, learner, batch):
    page = (DOCS / f"{recipe.method}.md").read_text("utf-8")
    terms = page.split("## Terms")[1].split("\n## ")[0]
    named = set(re.findall(r"^\W*`([a-z_/]+)`", terms, re.MULTILINE))
    assert named == set(learner.losses(batch, Progress(0, 1)))


@cache
def functions_of_the_package():
    defined = set()
    for path in Path(glimpseg.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        defined |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return defined


def test_equations_of_the_page_name_functions_of_the_code(recipe):
    page = (DOCS / f"{recipe.method}.md").read_text("utf-8")
    rows = [line.split("|") for line in page.splitlines() if re.match(r"\|\s*\(?\d+", line)]
    assert rows, "the page has no equation table"
    defined = functions_of_the_package()
    for row in rows:
        names = re.findall(r"`(?:[\w.]*\.)?(\w+)`", row[3])
        assert names, f"equation {row[1].strip()} names no function"
        assert set(names) <= defined, f"equation {row[1].strip()} names {set(names) - defined}"


def sources(method):
    """Return the files of a method, first the one with the method's docstring."""
    place = Path(methods.__path__[0]) / method
    return sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def own_functions(method):
    """Yield the functions of a method's files by qualified name, such as `RegionFusion.forward`."""
    for node in chain.from_iterable(ast.parse(path.read_text("utf-8")).body for path in sources(method)):
        for part in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(part, ast.FunctionDef):
                yield (f"{node.name}.{part.name}" if isinstance(node, ast.ClassDef) else part.name), part


def test_equations_of_the_code_are_those_of_the_page(recipe):
    """Checked in both directions for functions of the method's own files; shared functions are on several pages."""
    page = (DOCS / f"{recipe.method}.md").read_text("utf-8")
    rows = re.findall(r"^\|\s*\((\d+)\)\s*\|.*\|\s*`([\w.]+)`\s*\|[^|]*\|$", page, re.MULTILINE)
    functions = dict(own_functions(recipe.method))
    claimed = {
        (number, name)
        for name, node in functions.items()
        for number in re.findall(r"Eq\. \((\d+)\)", ast.get_docstring(node) or "")
    }
    stated = set()
    for number, name in rows:
        meant = [own for own in functions if own == name or own.endswith(f".{name}")]
        assert len(meant) < 2, f"equation {number} may mean {meant}: name the class"
        stated |= {(number, own) for own in meant}
    assert claimed
    assert claimed == stated


def departures(text):
    """Return the cells of a Departures table, by row."""
    rows = [line.split("|")[1:-1] for line in text.split("Departures")[1].split("\n## ")[0].splitlines() if "|" in line]
    return [tuple(re.sub(r"[$`\\{}]", "", cell).strip() for cell in row[:3]) for row in rows[2:]]


def test_departures_stand_in_the_docstring_as_on_the_page(recipe):
    """The page may have a further column with reasons."""
    source = ast.get_docstring(ast.parse(sources(recipe.method)[0].read_text("utf-8")))
    there, here = departures((DOCS / f"{recipe.method}.md").read_text("utf-8")), departures(source)
    assert here
    assert here == there


def test_summaries_are_read_without_importing():
    for name in NAMES:
        line, recipes = methods.summary(name)
        assert line
        assert "phantom" in recipes


# Tools that methods share


@pytest.mark.parametrize("available", SUBSETS, ids=lambda subset: subset.key)
def test_drawn_subsets_are_never_empty_and_never_more_than_there_is(available):
    torch.manual_seed(0)
    mask = to_flags(available).expand(200, -1)
    drawn = draw_subsets(mask)
    assert drawn.any(1).all()
    assert not (drawn & ~mask).any()
    assert len(drawn.unique(dim=0)) == 2 ** len(available) - 1


def test_all_fifteen_subsets_are_drawn_equally_often():
    torch.manual_seed(0)
    drawn = draw_subsets(torch.ones(15_000, 4, dtype=torch.bool))
    _, counts = drawn.unique(dim=0, return_counts=True)
    # Expected 1000 each, standard deviation 31.
    assert counts.min() > 850
    assert counts.max() < 1150


def test_a_frozen_module_passes_gradients_to_its_input_alone():
    judge = torch.nn.Linear(3, 1)
    feature = torch.randn(2, 3, requires_grad=True)
    frozen(judge)(feature).sum().backward()
    assert feature.grad is not None
    assert judge.weight.grad is None


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Folder with a user's own method: a copy of the baseline."""
    shutil.copy(Path(methods.__file__).with_name("unet.py"), tmp_path / "mine.py")
    monkeypatch.setattr(methods, "__path__", list(methods.__path__))
    yield tmp_path
    sys.modules.pop("glimpseg.methods.mine", None)


def test_a_method_in_a_folder_of_your_own_is_found(own_folder):
    methods.add_folder(own_folder)
    assert methods.names() == sorted([*NAMES, "mine"])
    assert methods.summary("mine") == methods.summary("unet")
    assert methods.find_recipe("mine/phantom").method != "mine"  # as the copy says
    assert methods.module("mine").__file__ == str(own_folder / "mine.py")


def test_the_environment_names_folders_of_your_own(own_folder):
    code = "from glimpseg import methods; print(*methods.names())"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, methods.OWN_FOLDERS: str(own_folder)}
    assert "mine" in subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.split()


def test_a_method_of_your_own_may_not_hide_another(own_folder):
    (own_folder / "mine.py").rename(own_folder / "unet.py")
    with pytest.raises(UsageError, match="has a method 'unet', and glimpseg has one of this name"):
        methods.add_folder(own_folder)


def test_a_folder_of_methods_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        methods.add_folder(tmp_path / "nowhere")
