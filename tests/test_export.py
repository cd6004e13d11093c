"""A written network runs without glimpseg, says what it needs, and is kept only if it agrees with torch."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from conftest import files_of_at_most, small, small_recipe
from glimpseg import methods
from glimpseg.cli import app
from glimpseg.cli.entry import EXIT_CODES
from glimpseg.errors import OutputError, UsageError
from glimpseg.modality import ALL, parse, to_flags
from glimpseg.model import backend
from glimpseg.model import export as module
from glimpseg.model.export import channels_of_regions, export
from glimpseg.model.folder import save_model
from glimpseg.model.loading import load_model

FORMATS = {"pt2": "net.pt2", "onnx": "net.onnx", "openvino": "net"}
INSTALLED = {to: to == "pt2" or not backend.missing(to) for to in FORMATS}
SIDE = tuple(small()["data.sampling.patch"])
EACH = [
    pytest.param(to, marks=pytest.mark.skipif(not there, reason=f"the extra [{to}] is not installed"))
    for to, there in INSTALLED.items()
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """An untrained small network, as a model on disk."""
    folder = tmp_path_factory.mktemp("model") / "model"
    torch.manual_seed(0)
    save_model(folder, methods.build(small_recipe()).state_dict(), small_recipe(), {"steps": 0})
    return folder


@pytest.fixture(scope="module")
def model(model_folder):
    return load_model(model_folder)


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """Each format that can be written here, verified."""
    folder = tmp_path_factory.mktemp("written")
    agreements = {}
    for to, there in INSTALLED.items():
        if there:
            agreements[to] = export(model, folder / FORMATS[to], to, verify=True)
    return folder, agreements


def onnx_of(path):
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    shapes = {port.name: port.shape for port in (*session.get_inputs(), *session.get_outputs())}
    told = {entry.key: entry.value for entry in onnx.load(path).metadata_props}["glimpseg"]
    return shapes, told, lambda image, there: session.run(["probabilities"], {"image": image, "available": there})[0]


def openvino_of(path):
    import openvino

    read = openvino.Core().read_model(path / "network.xml")
    shapes = {port.get_any_name(): list(port.shape) for port in (*read.inputs, *read.outputs)}
    compiled = openvino.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    told = read.get_rt_info(["glimpseg"]).astype(str)
    return shapes, told, lambda image, there: compiled({"image": image, "available": there})["probabilities"]


def pt2_of(path):
    files = {"glimpseg": ""}
    program = torch.export.load(path, extra_files=files)
    shapes = dict(zip(("image", "available"), (list(one.shape) for one in program.example_inputs[0]), strict=True))
    run = program.module()
    shapes["probabilities"] = [1, 3, *SIDE]
    return (
        shapes,
        files["glimpseg"],
        lambda image, there: run(torch.from_numpy(image), torch.from_numpy(there)).detach().numpy(),
    )


OPENED = {"onnx": onnx_of, "openvino": openvino_of, "pt2": pt2_of}


@pytest.mark.parametrize("to", EACH)
def test_a_written_network_runs_in_its_own_runtime(written, model, to):
    folder, _ = written
    shapes, _, run = OPENED[to](folder / FORMATS[to])
    assert shapes == {"image": [1, 4, *SIDE], "available": [1, 4], "probabilities": [1, 3, *SIDE]}
    image = torch.randn(1, 4, *SIDE, generator=torch.Generator().manual_seed(5))
    for subset in (ALL, parse("t2")):
        with torch.inference_mode():
            expected = model.network(image, to_flags(subset)[None]).numpy()
        assert np.abs(run(image.numpy(), to_flags(subset)[None].numpy()) - expected).max() < 1e-5


@pytest.mark.parametrize("to", EACH)
def test_the_file_says_what_a_reader_has_to_know(written, model, to):
    folder, _ = written
    told = json.loads(OPENED[to](folder / FORMATS[to])[1])
    assert told["notice"].startswith("Research software, not a medical device")
    assert told["model"]["sha256"] == model.provenance["sha256"]["weights.safetensors"]
    assert told["sequences"] == ["t1", "t1c", "t2", "flair"]
    assert told["window"] == list(SIDE)
    assert told["overlap"] == 0.5
    assert told["preprocess"]["spacing_mm"] == 3.0
    assert told["labels"] == {"NCR": 1, "ED": 2, "ET": 3}
    assert told["regions"]["TC"] == ["NCR", "ET"]
    assert told["channels_of_regions"] == {"WT": [0], "TC": [1], "ET": [2]}
    assert "regions above one half" in told["decode"]


@pytest.mark.parametrize("to", EACH)
def test_verifying_tells_how_well_it_agrees(written, to):
    _, agreements = written
    assert agreements[to].changed == 0
    assert agreements[to].largest < 1e-5


def test_a_softmax_networks_regions_are_sums_of_its_labels_channels():
    network = methods.build(small_recipe("voxunet"))
    assert channels_of_regions(network, 4) == {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3]}


@pytest.mark.parametrize("to", EACH)
def test_a_file_that_gives_other_labels_is_not_kept(model_folder, tmp_path, monkeypatch, to):
    monkeypatch.setitem(module._READERS, to, lambda place: lambda image, there: np.ones((1, 3, *SIDE), np.float32))
    target = tmp_path / FORMATS[to]
    done = CliRunner().invoke(app, ["export", str(model_folder), "--to", to, "-o", str(target), "--verify"])
    assert isinstance(done.exception, OutputError)
    assert EXIT_CODES[OutputError] == 1
    assert "another label than torch" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_the_verb_writes_and_says_where(model_folder, tmp_path, caplog):
    target = tmp_path / "net.pt2"
    words = ["export", str(model_folder), "--to", "pt2", "-o", str(target), "--verify"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout.strip() == str(target)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, UsageError)
    assert "exists. Add --overwrite" in str(refused.exception)


@pytest.mark.parametrize(
    ("to", "name", "sentence"),
    [
        ("tflite", "net", "'tflite' is no format to export to. Choose of onnx, openvino, pt2."),
        ("onnx", "net.onnx", "onnx needs onnxruntime and onnx and onnxscript, not installed here"),
        ("openvino", "net", "openvino needs openvino, not installed here: pip install 'glimpseg[openvino]'."),
        ("pt2", "net.onnx", "A file of pt2 ends in .pt2, and this is net.onnx."),
    ],
)
def test_what_cannot_be_written_is_refused(model, tmp_path, monkeypatch, to, name, sentence):
    monkeypatch.setattr(backend, "find_spec", lambda package: None)
    with pytest.raises(UsageError) as caught:
        export(model, tmp_path / name, to)
    assert str(caught.value).startswith(sentence)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_export_is_not_replaced_by_a_folder(model, tmp_path):
    if find_spec("openvino") is None:
        pytest.skip("the extra [openvino] is not installed")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "letter.txt").write_text("mine")
    with pytest.raises(UsageError):
        export(model, tmp_path / "net", "openvino", overwrite=True)
    assert (tmp_path / "net" / "letter.txt").read_text() == "mine"


@pytest.mark.parametrize("to", EACH)
def test_a_full_disk_is_an_output_error_in_every_format(to, model, tmp_path):
    with files_of_at_most(20_000), pytest.raises(OutputError, match="could not be written"):
        export(model, tmp_path / FORMATS[to], to)
    assert not list(tmp_path.iterdir())
