"""Contract tests, run for every method in `methods/`; a new method is tested without new tests."""

import ast
import hashlib
import importlib
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

import glimpseg
from glimpseg import methods
from glimpseg.cli.entry import app
from glimpseg.data.cache import in_memory
from glimpseg.data.preprocess import prepare
from glimpseg.errors import ModelError, UsageError
from glimpseg.method import Progress, Segmenter, draw_subsets, frozen
from glimpseg.modality import SUBSETS, to_flags
from glimpseg.model.folder import save_model
from glimpseg.model.loading import load_model
from glimpseg.nets.recompute import recompute
from glimpseg.phantom import Settings, generate
from glimpseg.phantom.dataset import as_study
from glimpseg.segmentation.inference import infer
from glimpseg.training.loop import train
from glimpseg.training.options import TrainOptions
from glimpseg.training.state import TrainingState

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
    first, last = np.mean(history[:3]), np.mean(history[-3:])
    assert last < 0.8 * first, (
        f"12 steps of AdamW (learning rate 2e-3) on one batch should lower the loss by a fifth; it went from "
        f"{first:.3g} (mean of the first 3 steps) to {last:.3g} (mean of the last 3)"
    )


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
    if methods.is_own(recipe.method) and not methods.build(recipe).stages:
        pytest.skip("the method has no stages, so optim.recompute has no effect")
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
    source = Path(methods.__file__).with_name("unet.py").read_text("utf-8")
    (tmp_path / "mine.py").write_text(source.replace('method="unet"', 'method="mine"'), "utf-8")
    monkeypatch.setattr(methods, "__path__", list(methods.__path__))
    yield tmp_path
    sys.modules.pop("glimpseg.methods.mine", None)


def test_a_method_in_a_folder_of_your_own_is_found(own_folder):
    methods.add_folder(own_folder)
    assert methods.names() == sorted([*NAMES, "mine"])
    assert methods.summary("mine") == methods.summary("unet")
    assert methods.find_recipe("mine/phantom").method == "mine"
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
    with pytest.raises(UsageError, match=r"nowhere does not exist\. Correct the path given to add_folder"):
        methods.add_folder(tmp_path / "nowhere")
    command = [sys.executable, "-c", "from glimpseg import methods"]
    environment = {**os.environ, methods.OWN_FOLDERS: str(tmp_path / "nowhere")}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert f"Correct {methods.OWN_FOLDERS}" in done.stderr


# The tutorial's method, with mistakes that a newcomer makes

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorials" / "add_a_method.md"


def tutorial_source():
    """Return the method's file of the tutorial."""
    return TUTORIAL.read_text("utf-8").split("%%writefile my_methods/mean_variance.py\n")[1].split("```")[0]


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """Function that writes the tutorial's method as `NAME.py` with some text replaced, and registers its folder."""
    written = []

    def write(*changes, name="mean_variance"):
        source = tutorial_source()
        for old, new in changes:
            assert old in source
            source = source.replace(old, new)
        (tmp_path / f"{name}.py").write_text(source, "utf-8")
        written.append(name)
        sys.modules.pop(f"glimpseg.methods.{name}", None)
        importlib.invalidate_caches()
        methods.add_folder(tmp_path)
        return tmp_path / f"{name}.py"

    monkeypatch.setattr(methods, "__path__", list(methods.__path__))
    yield write
    for name in written:
        sys.modules.pop(f"glimpseg.methods.{name}", None)


SMALL = {"config.width": 4, "data.sampling.patch": [16, 16, 16]}


def saved(folder, changes=SMALL):
    """Write a model of the tutorial's method with random weights; return its folder."""
    recipe = methods.find_recipe("mean_variance/phantom", changes)
    save_model(folder, methods.build(recipe).state_dict(), recipe, {})
    return folder


def test_a_misspelt_field_of_a_plain_config_is_named(newcomer, tmp_path):
    newcomer()
    tree = methods.as_tree(methods.find_recipe("mean_variance/phantom"))
    message = r"no field 'config\.widht'\. Did you mean 'width'\? Here: width\."
    with pytest.raises(UsageError, match=message):
        methods.from_tree({**tree, "config": {"widht": 8}})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**tree, "config": {"widht": 8}}), "utf-8")
    with pytest.raises(UsageError, match=message):
        methods.find_recipe(str(tmp_path / "r.yaml"))
    with pytest.raises(UsageError, match=r"Recipe field 'config\.width': Input should be a valid integer"):
        methods.from_tree({**tree, "config": {"width": "wide"}})


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_field_is_named_wherever_it_is(name):
    tree = methods.as_tree(methods.find_recipe(f"{name}/phantom"))
    for place in ("config", "optim", "data"):
        with pytest.raises(UsageError, match=rf"no field '{place}\.lables'"):
            methods.from_tree({**tree, place: {**tree[place], "lables": 1}})
    with pytest.raises(UsageError, match=r"no field 'data\.sampling\.pach'\. Did you mean 'patch'\?"):
        methods.from_tree({**tree, "data": {"sampling": {"pach": [16, 16, 16]}}})


def test_a_saved_model_whose_method_renamed_a_field_is_refused(newcomer, tmp_path):
    newcomer()
    model = saved(tmp_path / "m")
    newcomer(("width: int", "breadth: int"), ("config.width", "config.breadth"))
    with pytest.raises(ModelError, match=r"no field 'config\.width'"):
        load_model(model)


def test_a_recipe_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"method: \xff\xfe\n")
    with pytest.raises(UsageError, match=r"r\.yaml cannot be read"):
        methods.find_recipe(str(tmp_path / "r.yaml"))


def test_a_file_with_a_syntax_error_is_named_and_hides_no_other(newcomer, monkeypatch):
    file = newcomer(("METHOD = MeanVariance", "METHOD = = MeanVariance"), name="broken")
    line = 1 + tutorial_source().split("METHOD = ")[0].count("\n")
    where = re.escape(f"{file}, line {line}: ")
    done = CliRunner().invoke(app, ["methods"])
    assert done.exit_code == 0
    assert re.search(rf"broken +cannot be read\. {where}", done.stdout)
    assert "unet" in done.stdout
    with pytest.raises(UsageError, match=where):
        methods.module("broken")
    with pytest.raises(UsageError, match="unet/phantom"):  # the list of known recipes
        methods.find_recipe("unet/fantom")


@pytest.mark.parametrize("member", methods.MEMBERS)
def test_what_a_methods_file_lacks_is_named(newcomer, member):
    newcomer(("log_every=50),\n    )\n}\n", f"log_every=50),\n    )\n}}\ndel {member}\n"))
    message = rf"mean_variance\.py lacks {member}; a method's file needs Config, METHOD and RECIPES\."
    with pytest.raises(UsageError, match=message):
        methods.module("mean_variance")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("METHOD = MeanVariance", "METHOD = block", "METHOD in mean_variance.py should be a class"),
        ("optim=Optim(", "optim=Optim(stepz=1, ", r"line \d+: 'Optim.stepz': Unexpected keyword argument"),
        ("METHOD = MeanVariance", "METHOD = Nothing", r"line \d+: NameError: name 'Nothing' is not defined"),
    ],
)
def test_a_file_that_is_no_method_is_refused_in_words(newcomer, old, new, message):
    newcomer((old, new))
    with pytest.raises(UsageError, match=message):
        methods.module("mean_variance")


@pytest.mark.parametrize("instead", ["", "super().__init__()", "nn.Module.__init__(self)"])
def test_a_forgotten_constructor_is_named(newcomer, instead):
    newcomer(("        super().__init__(labels)\n", f"        {instead}\n"))
    recipe = methods.find_recipe("mean_variance/phantom")
    with pytest.raises(UsageError, match=r"MeanVariance.__init__ should begin with super\(\).__init__\(labels\)"):
        methods.build(recipe)


def test_a_recipe_of_another_method_is_refused(newcomer):
    newcomer(name="b_wrongname")
    message = "The recipe 'phantom' in b_wrongname.py says method='mean_variance'; it must be 'b_wrongname'."
    with pytest.raises(UsageError, match=re.escape(message)):
        methods.find_recipe("b_wrongname/phantom")


def test_an_unknown_method_may_be_in_a_folder_that_is_not_named(newcomer, monkeypatch):
    monkeypatch.setattr(methods, "__path__", methods.__path__[:1])
    hint = r"If it is your own, set GLIMPSEG_METHODS to its folder\.$"
    for search in (lambda: methods.module("telepathy"), lambda: methods.find_recipe("telepathy/phantom")):
        with pytest.raises((ModelError, UsageError), match=hint):
            search()
    newcomer()
    with pytest.raises(UsageError, match=r"unet/phantom, [^.]*\.$"):
        methods.find_recipe("telepathy/phantom")


def test_weights_that_do_not_fit_are_named(newcomer, tmp_path):
    newcomer()
    model = saved(tmp_path / "m")
    newcomer(("self.decoder", "self.head"), ("block(width, width))", "block(width, width), block(width, width))"))
    message = r"missing: encoders\.0\.2\.0\.weight.* and \d+ more; unexpected: decoder\.0\.0\.bias.* and \d+ more\.$"
    with pytest.raises(ModelError, match=message):
        load_model(model)


def small_run(folder, changes):
    """Train the tutorial's method for one step on a small phantom stream; return the model folder."""
    more = {**SMALL, "optim.steps": 1, "optim.warmup": 0, **changes}
    recipe = methods.find_recipe("mean_variance/phantom", {**more, "data.stream": {}})
    return train(recipe, folder, TrainOptions(device=torch.device("cpu")))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '        return {\n            "dice"',
            '        return [] or {}\n        return {\n            "dice"',
            "an empty dict",
        ),
        (
            '        return {\n            "dice"',
            '        return 1.0\n        return {\n            "dice"',
            "not float",
        ),
        ("functional.cross_entropy(logits, target)", "logits", r"'cross_entropy' .* not shape \(2, 4,"),
    ],
)
def test_losses_that_are_no_dict_of_numbers_are_refused(newcomer, tmp_path, old, new, message):
    newcomer((old, new))
    with pytest.raises(UsageError, match=f"losses of MeanVariance.*{message}"):
        small_run(tmp_path / "run", {})


def test_recomputing_without_stages_is_reported(newcomer, caplog):
    newcomer(("    def stages(self)", "    def parts(self)"))
    recipe = methods.find_recipe("mean_variance/phantom", {**SMALL, "optim.recompute": True})
    with caplog.at_level(logging.WARNING, "glimpseg"):
        TrainingState.begin(methods.build(recipe), recipe.optim, torch.device("cpu"))
    assert "optim.recompute has no effect: MeanVariance has no `stages`." in caplog.text


@pytest.mark.parametrize("subsets", [SUBSETS[-1:], SUBSETS], ids=["one", "all"])
@pytest.mark.parametrize(
    ("new", "message"),
    [
        (".logits(features, available)", "the values reach from|the sums"),
        (".logits(features, available).sigmoid()", "the sums over the channels reach from"),
        (".logits(features, available).softmax(1)[:, 1:]", r"the shape is \(\d, 3, .*, not \(\d, 4, "),
        (".logits(features, available).softmax(1) / 0 * 0", "not finite"),
        (".labels", "returns tuple"),
    ],
)
def test_a_forward_that_gives_no_probabilities_is_refused(newcomer, tmp_path, new, message, subsets):
    newcomer(("self.logits(features, available).softmax(1)", f"self{new}"))
    model = load_model(saved(tmp_path / "m"))
    prepared = prepare(as_study(generate(5, Settings.at_spacing(4.0))), model.recipe.data.preprocess)
    with pytest.raises(
        UsageError, match=rf"forward \(or fuse\) of MeanVariance should return probabilities, .*({message})"
    ):
        list(infer(prepared, model, subsets))


def test_channels_of_another_meaning_may_have_another_sum(newcomer, tmp_path):
    sums = "    def decode(self, probabilities):\n        return probabilities.argmax(1)\n\n    def forward("
    newcomer(
        ("self.logits(features, available).softmax(1)", "self.logits(features, available).sigmoid()"),
        ("    def forward(", sums),
    )
    model = load_model(saved(tmp_path / "m"))
    prepared = prepare(as_study(generate(5, Settings.at_spacing(4.0))), model.recipe.data.preprocess)
    assert len(list(infer(prepared, model, SUBSETS[-1:]))) == 1


def test_a_model_records_the_source_of_its_method(newcomer, tmp_path, caplog):
    file = newcomer()
    model = saved(tmp_path / "m")
    provenance = json.loads((model / "provenance.json").read_text("utf-8"))
    assert provenance["own_methods"] == {"mean_variance": hashlib.sha256(file.read_bytes()).hexdigest()}
    with caplog.at_level(logging.WARNING, "glimpseg"):
        load_model(model)
        assert not caplog.text
        newcomer(("Mean and variance of", "The mean and variance of"))
        load_model(model)
    assert f"The source of the method mean_variance has changed since {model} was trained." in caplog.text


def test_a_model_of_a_method_of_the_package_records_no_source(tmp_path):
    recipe = methods.find_recipe("unet/phantom")
    save_model(tmp_path / "m", methods.build(recipe).state_dict(), recipe, {})
    assert "own_methods" not in json.loads((tmp_path / "m" / "provenance.json").read_text("utf-8"))
