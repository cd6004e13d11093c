"""Damaged model folders: refused in words, before the network of a damaged recipe takes memory."""

import hashlib
import json
import shutil
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from conftest import small_recipe
from glimpseg import methods
from glimpseg.errors import ModelError, UsageError
from glimpseg.model.importing import read_weights
from glimpseg.model.loading import load_model
from glimpseg.model.outline import MOST_MODULES, outline

FIRST = "network.encoder.conv_init.weight"


@pytest.fixture
def model(model_folder, tmp_path):
    """A copy of the model folder whose files may be changed: `vouch` renews the checksums."""
    return shutil.copytree(model_folder, tmp_path / "model")


def vouch(folder):
    record = json.loads((folder / "provenance.json").read_text())
    record["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in record["sha256"]}
    (folder / "provenance.json").write_text(json.dumps(record))
    return folder


def with_weights(folder, **changes):
    save_file({**load_file(folder / "weights.safetensors"), **changes}, folder / "weights.safetensors")
    return vouch(folder)


def with_config(folder, **changes):
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["config"].update(changes)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return vouch(folder)


def test_the_copy_loads(model):
    assert load_model(vouch(model)).recipe.method == "unet"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.float64])
def test_weights_that_are_not_finite_are_refused(model, value, kind):
    weights = load_file(model / "weights.safetensors")[FIRST].to(kind)
    weights.view(-1)[-1] = value
    with pytest.raises(ModelError, match=f"hold NaN or infinite values, first in {FIRST}"):
        load_model(with_weights(model, **{FIRST: weights}))
    save_file({"w": weights}, model / "w.safetensors")
    with pytest.raises(ModelError, match="hold NaN or infinite values, first in w"):
        read_weights(model / "w.safetensors")


def test_whole_numbers_are_no_weights(model):
    weights = load_file(model / "weights.safetensors")[FIRST].to(torch.int32)
    with pytest.raises(ModelError, match=f"do not fit the method unet.*of another type: {FIRST}"):
        load_model(with_weights(model, **{FIRST: weights}))


def test_a_network_that_does_not_fit_its_weights_is_built_without_memory_alone(model, monkeypatch):
    """1,024 channels: a convolution of the third level, of 4,096 channels, would take 27 * 2^24 * 4 bytes, 1.8 GB."""
    devices, build = [], methods.build
    monkeypatch.setattr(methods, "build", lambda recipe: devices.append(torch.empty(0).device.type) or build(recipe))
    with pytest.raises(ModelError, match=r"do not fit the method unet.*of another shape"):
        load_model(with_config(model, width=1 << 10))
    assert devices == ["meta"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 1 << 40}, "cannot be built|more than 20,000,000,000"),
        ({"blocks": [1, 10**9, 1]}, "more than 10,000 parts"),
        ({"blocks": [1] * 60}, "cannot be built|more than 20,000,000,000"),
        ({"width": 0}, "should be at least 1"),
        ({"width": -4}, "should be at least 1"),
        ({"channels_per_group": 0}, "should be at least 1"),
        ({"blocks": [1, 0, 1]}, "should be at least 1"),
    ],
)
def test_a_recipe_of_an_impossible_network_is_refused_soon(model, changes, said):
    begun = time.process_time()
    with pytest.raises(ModelError, match=said):
        load_model(with_config(model, **changes))
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    ("method", "field"), [("rfnet", "gate_width"), ("rfnet", "coarse_width"), ("voxunet", "width"), ("unet", "width")]
)
def test_no_method_has_layers_of_no_channels(method, field):
    with pytest.raises(UsageError, match="should be at least 1"):
        small_recipe(method, **{f"config__{field}": 0})


@pytest.mark.parametrize("method", ["rfnet", "mmformer"])
def test_a_network_has_ten_levels_at_most(method):
    """With 2^31 levels, the computation of the stride alone would take hours."""
    for levels in (1, 11, 1 << 31):
        with pytest.raises(UsageError, match=r"between 2 and 10"):
            small_recipe(method, config__levels=levels)


def test_heads_are_at_least_one():
    with pytest.raises(UsageError, match="heads should be at least 1"):
        small_recipe("mmformer", config__heads=0)


def test_an_outline_has_shapes_and_no_values():
    empty = outline(small_recipe())
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    assert sum(1 for _ in empty.modules()) < MOST_MODULES


def test_after_a_refusal_large_networks_are_built_again():
    with pytest.raises(UsageError, match="more than 10,000 parts"):
        outline(small_recipe(config__blocks=[1, 10**9, 1]))
    assert len(torch.nn.ModuleList(torch.nn.Identity() for _ in range(MOST_MODULES + 1))) == MOST_MODULES + 1
