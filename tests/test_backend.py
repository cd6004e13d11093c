"""What another runtime computes is what torch computes, or torch computes it."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from conftest import small_recipe
from glimpseg import methods
from glimpseg.cli import app
from glimpseg.data.layouts import find_studies
from glimpseg.data.preprocess import prepare
from glimpseg.errors import InputError, UsageError
from glimpseg.evaluation.evaluate import evaluate
from glimpseg.evaluation.options import EvaluationOptions
from glimpseg.method import Segmenter
from glimpseg.modality import ALL, parse, to_flags
from glimpseg.model import backend as module
from glimpseg.model.backend import Backend, changed_labels, exported, resolved_backend
from glimpseg.segmentation import inference, predict

CPU = torch.device("cpu")
SIDE = (16, 16, 16)
SEGMENTERS = [name for name in methods.names() if issubclass(methods.module(name).METHOD, Segmenter)]


def needs(name):
    absent = [package for package in module.NEEDS[name] if find_spec(package) is None]
    return pytest.mark.skipif(bool(absent), reason=f"the extra [{name}] is not installed")


ENGINES = [pytest.param(name, marks=needs(name)) for name in ("openvino", "onnx")]


SHALLOW = {
    "rfnet": {"config__levels": 2},
    "mmformer": {"config__levels": 2},
    "smml": {"config__network__levels": 2, "config__branch": 1},
}
"""Fewer levels convert faster."""


def network_of(method, **changes):
    torch.manual_seed(0)
    network = methods.build(small_recipe(method, **changes)).eval()
    network.drop_training_parts()
    return network


def windows(seed=0, count=1):
    return torch.randn(count, 4, *SIDE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet():
    return network_of("unet")


@pytest.fixture(scope="module")
def model(model_folder):
    return predict.load(model_folder, "cpu")


@pytest.fixture(scope="module")
def study(archive):
    return find_studies(archive)[0]


def imitation(network, change=lambda probabilities, precision: probabilities):
    """A maker of copies that are the network itself, but for `change`."""

    def make(_, shape, precision):
        def program(image, available):
            with torch.inference_mode():
                found = network(torch.from_numpy(image), torch.from_numpy(available))
            return change(found, precision).numpy().copy()

        return program

    return make


def upside_down(probabilities, precision):
    return 1 - probabilities


@pytest.fixture
def instead(monkeypatch):
    """Puts another maker in openvino's place, whether it is installed or not."""

    def put(make):
        monkeypatch.setattr(module, "MAKERS", {"openvino": make})
        monkeypatch.setattr(module, "version", lambda package: "0")

    return put


# Copies


@pytest.mark.parametrize("name", SEGMENTERS)
def test_one_copy_gives_the_labels_of_torch_for_every_subset(name):
    network = network_of(name, **SHALLOW.get(name, {}))
    program, made = exported(network, SIDE), []
    if not module.missing("openvino"):
        made.append(module.openvino_program(module.to_openvino(program), "fp32"))
    if not module.missing("onnx"):
        made.append(module.onnx_program(module.to_onnx(program).model_proto.SerializeToString()))
    if not made:
        pytest.skip("neither the extra [openvino] nor [onnx] is installed")
    for subset in (ALL, parse("t1c+flair"), parse("t2")):
        there = to_flags(subset)[None]
        image = torch.where(there[:, :, None, None, None], windows(), torch.nan)
        with torch.inference_mode():
            expected = network(image, there)
        for copy in made:
            found = torch.from_numpy(copy(image.numpy(), there.numpy()).copy())
            assert changed_labels(network, found, expected) == 0
            assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize("name", ENGINES)
def test_a_backend_takes_several_windows_each_with_its_own_subset(unet, name):
    there = torch.stack([to_flags(parse("t1c")), to_flags(ALL)])
    backend = Backend(unet, name, "fp32", CPU)
    with torch.inference_mode():
        found, expected = backend(windows(count=2), there), unet(windows(count=2), there)
    assert torch.allclose(found, expected, atol=1e-5)
    assert backend.record["name"] == name
    assert backend.record["precision"] == "fp32"
    assert "note" not in backend.record


@needs("openvino")
def test_a_study_gets_torchs_labels_and_a_record_of_the_backend(model_folder, study, tmp_path):
    plain = predict.segment_study(study, predict.load(model_folder, "cpu"))
    other = predict.segment_study(study, predict.load(model_folder, "cpu", backend="openvino"))
    assert (plain.labels.voxels != other.labels.voxels).mean() <= module.TOLERANCE
    record = json.loads((other.save(tmp_path / "o") / "run.json").read_text())
    assert record["backend"]["name"] == "openvino"
    assert record["backend"]["precision"] == record["precision"] == "fp32"
    assert json.loads((plain.save(tmp_path / "p") / "run.json").read_text())["backend"]["name"] == "torch"


@needs("openvino")
def test_openvino_computes_in_the_precision_that_was_asked_for(unet):
    xml = module.to_openvino(exported(unet, SIDE))
    there = to_flags(ALL)[None].numpy()
    image = windows().numpy()
    found = {p: module.openvino_program(xml, p)(image, there).copy() for p in ("fp32", "bf16")}
    with torch.inference_mode():
        expected = unet(windows(), to_flags(ALL)[None]).numpy()
    assert np.abs(found["fp32"] - expected).max() < 1e-5
    if torch.cpu._is_avx512_bf16_supported():
        assert np.abs(found["bf16"] - expected).max() > 1e-5


# Trust


@pytest.mark.parametrize(("everywhere", "times"), [(0.0, module.COMPARED), (1.0, 1)])
def test_a_copy_is_compared_until_a_window_shows_a_label(instead, everywhere, times):
    network, calls = network_of("unet"), []
    network.fuse = lambda *_: calls.append(1) or torch.full((1, 3, *SIDE), everywhere)
    instead(lambda *_: lambda image, available: np.full((1, 3, *SIDE), everywhere, np.float32))
    backend = Backend(network, "openvino", "fp32", CPU)
    for _ in range(5):
        backend(windows(), to_flags(ALL)[None])
    assert len(calls) == times
    assert backend.name == "openvino"


def test_torch_takes_over_from_a_copy_that_gives_other_labels(unet, instead, caplog):
    instead(imitation(unet, upside_down))
    backend = Backend(unet, "openvino", "fp32", CPU)
    with torch.inference_mode():
        found, expected = backend(windows(), to_flags(ALL)[None]), unet(windows(), to_flags(ALL)[None])
    assert torch.equal(found, expected)
    assert backend.record["name"] == "torch"
    assert "another label" in backend.record["note"]
    assert [record.getMessage() for record in caplog.records] == [backend.note]


def test_torch_takes_over_where_no_copy_can_be_made(unet, instead, caplog):
    def make(*_):
        raise NotImplementedError("no such operator\nand a long trace")

    instead(make)
    backend = Backend(unet, "openvino", "bf16", CPU)
    with torch.inference_mode():
        found = backend(windows(), to_flags(ALL)[None])
        with module.precision_context("bf16", CPU):
            expected = unet(windows(), to_flags(ALL)[None])
    assert torch.equal(found, expected)
    assert backend.record["precision"] == "bf16"
    assert backend.note == "torch computes, not openvino: no such operator."
    assert caplog.messages == [backend.note]


def test_a_copy_whose_bf16_gives_other_labels_computes_in_fp32(unet, instead, caplog):
    instead(imitation(unet, lambda p, precision: 1 - p if precision == "bf16" else p))
    backend = Backend(unet, "openvino", "bf16", CPU)
    with torch.inference_mode():
        backend(windows(), to_flags(ALL)[None])
    assert (backend.name, backend.precision) == ("openvino", "fp32")
    assert backend.note.startswith("openvino computes in fp32, not bf16: in bf16 it gives")
    assert caplog.messages == [backend.note]


@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf])
def test_what_is_not_finite_or_of_another_shape_counts_as_changed(unet, spoilt):
    right = torch.zeros(1, 3, *SIDE)
    wrong = right.clone()
    wrong[0, 0, 0, 0, 0] = spoilt
    assert changed_labels(unet, wrong, right) == 1
    assert changed_labels(unet, right[:, :2], right) == 1


def test_shapes_that_were_not_seen_for_long_are_forgotten(unet, instead):
    made = []

    def make(network, shape, precision):
        made.append(shape)
        return imitation(unet)(network, shape, precision)

    instead(make)
    backend = Backend(unet, "openvino", "fp32", CPU)
    sides = [8, 12, 16, 20, 24][: module.KEPT + 1]
    with torch.inference_mode():
        for side in [*sides, sides[-1], sides[0]]:
            backend(torch.zeros(1, 4, side, 8, 8), to_flags(ALL)[None])
    assert [shape[0] for shape in made] == [*sides, sides[0]]


# Choosing


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        (("openvino", "onnxruntime", "onnx", "onnxscript"), "openvino"),
        (("onnxruntime", "onnx", "onnxscript"), "onnx"),
        (("onnxruntime", "onnx"), "torch"),
        ((), "torch"),
    ],
)
def test_auto_takes_the_best_that_is_installed(monkeypatch, installed, expected):
    monkeypatch.setattr(module, "find_spec", lambda name: name in (*installed, "torch") or None)
    assert resolved_backend("auto", CPU, 1.0) == expected
    assert resolved_backend("auto", CPU, 2.0) == "torch"
    assert resolved_backend("auto", CPU, 1.0, 2.0) == "torch"
    assert resolved_backend("auto", torch.device("cuda"), 1.0) == "torch"


@pytest.mark.parametrize(
    ("wanted", "device", "sentence"),
    [
        ("tensorrt", "cpu", "'tensorrt' is no backend. Choose of auto, torch, openvino, onnx."),
        ("onnx", "cpu", "onnx needs onnxruntime and onnxscript, not installed here: pip install 'glimpseg[onnx]'."),
        ("openvino", "cuda", "The backend openvino computes on the processor, and the device is cuda."),
    ],
)
def test_a_backend_that_cannot_be_used_is_refused(monkeypatch, wanted, device, sentence):
    monkeypatch.setattr(module, "find_spec", lambda name: name in ("torch", "onnx", "openvino") or None)
    with pytest.raises(UsageError) as caught:
        resolved_backend(wanted, torch.device(device), 1.0)
    assert str(caught.value).startswith(sentence)


def test_a_model_is_computed_by_torch_unless_another_backend_is_named(model):
    assert model.backend.record["name"] == "torch"


def test_the_command_line_names_what_is_missing(monkeypatch, model_folder, archive, tmp_path):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    image = str(next((archive / "S0").glob("*t1c.nii.gz")))
    words = ["segment", "--t1c", image, "-m", str(model_folder), "-o", str(tmp_path / "o"), "--device", "cpu"]
    done = CliRunner().invoke(app, [*words, "--backend", "openvino"])
    assert isinstance(done.exception, UsageError)
    assert "pip install 'glimpseg[openvino]'" in str(done.exception)


# Where backends are used


def test_several_subsets_of_a_network_that_shares_are_torchs_work(study, instead, model):
    network = network_of("rfnet")
    instead(imitation(network))
    sharing = replace(model, network=network, recipe=small_recipe("rfnet"), computed_by="openvino")
    prepared = prepare(study, model.recipe.data.preprocess)
    list(inference.infer(prepared, sharing, [parse("t1c"), parse("flair")]))
    assert not sharing.backend._programs
    list(inference.infer(prepared, sharing, [parse("t1c")]))
    assert sharing.backend._programs


def test_an_evaluation_says_what_computed_it(model, study, instead, tmp_path, caplog):
    instead(imitation(model.network, upside_down))
    with caplog.at_level(logging.WARNING):
        done = evaluate(
            replace(model, computed_by="openvino"),
            [study],
            tmp_path / "e",
            EvaluationOptions(subsets=[parse("t1c")], metrics=["dice"]),
        )
    assert done.record["computed"]["backend"] == "openvino"
    assert done.record["backend"]["name"] == "torch"
    assert done.record["backend"]["note"] in caplog.messages


# Memory


def starved(model, monkeypatch, enough, error):
    """The model on a machine where only so many windows at once find memory; the numbers of windows it was shown."""
    shown, original = [], model.network.encode

    def encode(image, available):
        shown.append(len(image))
        if len(image) > enough:
            raise error
        return original(image, available)

    monkeypatch.setattr(model.network, "encode", encode)
    return shown


@pytest.fixture
def many(model, study):
    """A study that is seen in several windows."""
    sampling = replace(model.recipe.data.sampling, patch=(16, 16, 16))
    recipe = replace(model.recipe, data=replace(model.recipe.data, sampling=sampling))
    network = network_of("unet")
    network.__class__ = type("Narrow", (type(network),), {"whole_up_to": 1.0})
    return replace(model, recipe=recipe, network=network), prepare(study, model.recipe.data.preprocess)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
    ids=["python", "cuda", "linux", "windows"],
)
def test_windows_go_one_by_one_where_two_find_no_memory(many, monkeypatch, error):
    model, prepared = many
    (expected,) = inference.infer(prepared, model, [ALL])
    shown = starved(model, monkeypatch, 1, error)
    (found,) = inference.infer(prepared, model, [ALL])
    assert shown[:2] == [2, 1]
    assert set(shown[1:]) == {1}
    assert (found.labels.voxels != expected.labels.voxels).mean() < 1e-3


def test_a_brain_is_seen_through_windows_where_one_piece_finds_no_memory(many, monkeypatch):
    model, prepared = many
    side = 8 * -(-max(prepared.image.shape[1:]) // 16)
    sampling = replace(model.recipe.data.sampling, patch=(side, side, side))
    recipe = replace(model.recipe, data=replace(model.recipe.data, sampling=sampling))
    (expected,) = inference.infer(prepared, replace(model, recipe=recipe), [ALL])
    whole = replace(model, recipe=recipe, network=network_of("unet"))
    shown, original = [], whole.network.encode

    def encode(image, available):
        shown.append(image.shape[2:])
        if max(image.shape[2:]) > side:
            raise MemoryError
        return original(image, available)

    monkeypatch.setattr(whole.network, "encode", encode)
    (found,) = inference.infer(prepared, whole, [ALL])
    assert max(shown[0]) > side
    assert max(max(shape) for shape in shown[1:]) == side
    assert np.array_equal(found.labels.voxels, expected.labels.voxels)


def test_where_no_window_finds_memory_the_message_says_what_was_needed(many, monkeypatch):
    model, prepared = many
    shown = starved(model, monkeypatch, 0, MemoryError())
    with pytest.raises(InputError, match=r"does not suffice for one window of 16x16x16 voxels .* another --device"):
        list(inference.infer(prepared, model, [ALL]))
    assert shown == [2, 1]


def test_another_error_is_not_taken_for_one_of_memory(many, monkeypatch):
    model, prepared = many
    starved(model, monkeypatch, 0, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(inference.infer(prepared, model, [ALL]))


# The allocator

KEEP = "from glimpseg.cli.malloc import keep_freed_memory; print(keep_freed_memory())"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(("switch", "expected"), [({}, "True"), ({"GLIMPSEG_MALLOPT": "0"}, "False")])
def test_pages_are_kept_on_glibc_unless_switched_off(switch, expected):
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path), **switch}
    assert subprocess.check_output([sys.executable, "-c", KEEP], text=True, env=environment).strip() == expected


def test_importing_the_library_leaves_the_allocator_alone():
    code = "import glimpseg, glimpseg.data.nifti, sys; print([n for n in sys.modules if n.startswith('glimpseg.cli')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
