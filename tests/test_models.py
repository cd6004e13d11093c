"""Weights of others become models; what is not weights becomes an error, and is never run."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from conformance import reference
from glimpseg.cli import app
from glimpseg.errors import ModelError, UsageError
from glimpseg.model import importing
from glimpseg.model.loading import load_model

METHODS = ("rfnet", "mmformer")


@pytest.fixture(scope="module", params=METHODS)
def authors(request, tmp_path_factory):
    """A checkpoint as the authors' training writes it: `module.` before the keys, the optimiser beside."""
    stored = dict(np.load(reference.HERE / f"{request.param}.npz"))
    weights = reference.authors_weights(stored)
    path = tmp_path_factory.mktemp("authors") / "model_last.pth"
    rate = round(2e-4 * np.power(1 - np.float32(299) / np.float32(300), 0.9), 8)  # as their schedule leaves it
    assert isinstance(rate, np.floating)
    tree = {
        "epoch": 299,
        "state_dict": {f"module.{name}": value for name, value in weights.items()},
        "optim_dict": {"state": {}, "param_groups": [{"lr": rate, "params": [0]}]},
    }
    torch.save(tree, path)
    return request.param, stored, weights, path


@pytest.mark.usefixtures("readers_here")
def test_an_imported_model_gives_the_authors_outputs(authors, tmp_path):
    method, stored, _, path = authors
    done = CliRunner().invoke(app, ["models", "import", "--method", method, str(path), "-o", str(tmp_path / "m")])
    assert done.exit_code == 0, done.output
    model = load_model(tmp_path / "m")
    module, _ = reference.built(method, stored)
    with torch.inference_mode():
        output = model.network(reference.ours(stored["x"], module), torch.tensor([[False, True, False, False]]))
    found = reference.thinned(output, stored, "eval_0100") - torch.from_numpy(stored["eval_0100"])
    assert found.abs().max() < 1e-4
    assert model.provenance["imported"]["file"] == "model_last.pth"
    assert model.recipe.data.preprocess.background == "shifted"


def test_a_bare_state_dict_in_safetensors_will_do(authors, tmp_path):
    method, _, weights, _ = authors
    save_file(weights, tmp_path / "w.safetensors")
    importing.import_model(method, tmp_path / "w.safetensors", tmp_path / "m")
    assert load_model(tmp_path / "m").recipe.method == method


@pytest.mark.usefixtures("readers_here")
def test_numbers_as_numpy_1_wrote_them_are_read(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "lr": np.float64(0.5)}, tmp_path / "new.pth")
    # Both names are pickled with their length before them; a zip of stored files holds them as they are.
    old, new = b"cnumpy.core.multiarray\nscalar", b"cnumpy._core.multiarray\nscalar"
    with zipfile.ZipFile(tmp_path / "new.pth") as source, zipfile.ZipFile(tmp_path / "old.pth", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert new in content
                content = content.replace(new, old)
            target.writestr(name.replace("new/", "old/"), content)
    assert torch.equal(importing.read_weights(tmp_path / "old.pth")["a"], torch.ones(2))


@pytest.mark.usefixtures("readers_here")
def test_imported_weights_are_used_as_they_were_trained_in_fp32_and_whole_windows(authors, tmp_path):
    method, _, _, path = authors
    model = load_model(importing.import_model(method, path, tmp_path / "m"))
    assert model.precision == "fp32"
    assert model.network.fixed_windows is (method == "mmformer")


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path):
    """In true processes, as are files that a user gives. How they are read does not depend on the method."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    with (tmp_path / "trap.pth").open("wb") as file:
        pickle.dump({"state_dict": Trap()}, file)
    torch.save({"state_dict": Trap()}, tmp_path / "zipped.pth")
    with pytest.raises(ModelError, match="Nothing in it was run"):
        importing.import_model("rfnet", tmp_path / "trap.pth", tmp_path / "m")
    with pytest.raises(ModelError, match=r"it asks for \w+\.mkdir\)"):
        importing.import_model("mmformer", tmp_path / "zipped.pth", tmp_path / "m")
    assert not (tmp_path / "sprung").exists()
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("flair_encoder.e1_c1.conv.bias"), "1 tensors are missing"),
        (lambda weights: weights.update(surplus=torch.zeros(1)), "1 are unknown"),
        (lambda weights: weights.update({"decoder_sep.seg_layer.bias": torch.zeros(5)}), "other classes"),
        (lambda weights: weights["decoder_sep.seg_layer.bias"].fill_(torch.nan), "not finite"),
        (lambda weights: weights.update({"decoder_sep.seg_layer.bias": torch.zeros(4).int()}), "floating-point"),
        (lambda weights: weights.update({"module.decoder_sep.seg_layer.bias": torch.zeros(4)}), "twice"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message):
    stored = dict(np.load(reference.HERE / "rfnet.npz"))
    module, _ = reference.built("rfnet", stored)
    weights = reference.authors_weights(stored)
    change(weights)
    with pytest.raises(ModelError, match=message):
        module.from_authors(weights)


def test_one_methods_weights_are_not_anothers(tmp_path):
    stored = dict(np.load(reference.HERE / "rfnet.npz"))
    save_file(reference.authors_weights(stored), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="not the weights of the authors' mmFormer"):
        importing.import_model("mmformer", tmp_path / "w.safetensors", tmp_path / "m")


@pytest.mark.usefixtures("readers_here")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"hello"])
def test_a_broken_file_is_an_error_in_words(content, tmp_path):
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read as weights"):
        importing.import_model("rfnet", tmp_path / "broken.pth", tmp_path / "m")


def test_a_method_without_authors_weights_says_which_have_them(tmp_path):
    with pytest.raises(UsageError, match="mmformer, mstkdnet, rfnet"):
        importing.import_model("unet", tmp_path / "w.pth", tmp_path / "m")


def test_a_used_folder_is_not_overwritten(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine.txt").write_text("keep")
    stored = dict(np.load(reference.HERE / "rfnet.npz"))
    save_file(reference.authors_weights(stored), tmp_path / "w.safetensors")
    with pytest.raises(UsageError):
        importing.import_model("rfnet", tmp_path / "w.safetensors", tmp_path / "m", overwrite=True)
    assert (tmp_path / "m" / "mine.txt").read_text() == "keep"
