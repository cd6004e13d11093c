"""Where a model comes from: the commit of the code, digests of files and weights, and what a damaged folder is told."""

import hashlib
import json
import platform
import re
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import glimpseg
from conftest import small_recipe
from glimpseg.errors import ModelError
from glimpseg.model import provenance
from glimpseg.model.checkpoint import (
    SavedState,
    checkpoint_folder,
    checkpoints,
    drop_old,
    load_state,
    newest_valid,
    save_checkpoint,
)
from glimpseg.model.copying import save_copy
from glimpseg.model.digests import sha256_of, weights_digest
from glimpseg.model.folder import StoredModel, save_model, verified
from glimpseg.model.halving import halved, save_halved, trained_digest
from glimpseg.model.loading import Model, stored_model
from glimpseg.version import __version__

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of the three letters abc, from the standard (FIPS 180-4)."""
MODULE = "version.py"
"""A file of the package."""


# The commit


@pytest.fixture
def git(monkeypatch):
    """Runs git in a folder, without settings of the user or of a hook that runs the tests."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def run(folder, *words):
        identity = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
        subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)

    return run


@pytest.fixture
def repository(git, tmp_path):
    """A repository of one commit, with a package as a checkout of glimpseg has it."""
    place = tmp_path / "checkout"
    code = place / "src" / "glimpseg" / MODULE
    code.parent.mkdir(parents=True)
    code.write_text("pass\n")
    git(place, "init", "-q", "-b", "main")
    git(place, "add", ".")
    git(place, "commit", "-q", "-m", "One file")
    return place


def head_of(repository):
    """The commit, from git's own file."""
    return (repository / ".git" / "refs" / "heads" / "main").read_text().strip()


look_up = provenance.commit_of.__wrapped__
"""The search for the commit without the memory of the process."""


def test_a_package_in_a_checkout_has_the_commit_of_the_checkout(repository, monkeypatch):
    found = look_up(repository / "src" / "glimpseg")
    assert re.fullmatch("[0-9a-f]{40}", found)
    assert found == head_of(repository)


def test_a_tracked_file_that_was_changed_is_said_with_the_commit(repository, monkeypatch):
    package = repository / "src" / "glimpseg"
    (package / "notes.txt").write_text("git does not know of this file")
    assert look_up(package) == head_of(repository)
    (package / MODULE).write_text("changed\n")
    assert look_up(package) == head_of(repository) + "+changes"


def test_a_changed_file_elsewhere_in_the_checkout_is_a_change_too(repository, git, monkeypatch):
    (repository / "setup.txt").write_text("one")
    git(repository, "add", "setup.txt")
    assert look_up(repository / "src" / "glimpseg") == head_of(repository) + "+changes"


def test_a_linked_worktree_is_a_checkout(repository, git, tmp_path, monkeypatch):
    # There .git is a file.
    git(repository, "worktree", "add", "-q", "-b", "other", str(tmp_path / "linked"))
    found = look_up(tmp_path / "linked" / "src" / "glimpseg")
    assert found == head_of(repository)


@pytest.mark.parametrize(
    "place",
    [".venv/lib/python3.11/site-packages/glimpseg", "vendored/src/glimpseg", "glimpseg"],
)
def test_a_package_that_was_installed_into_another_repository_has_no_commit(repository, monkeypatch, place):
    (repository / place).mkdir(parents=True)
    assert look_up(repository / place) is None


def test_a_checkout_without_a_commit_has_none(git, tmp_path, monkeypatch):
    package = tmp_path / "new" / "src" / "glimpseg"
    package.mkdir(parents=True)
    git(tmp_path / "new", "init", "-q")
    assert look_up(package) is None


def test_without_git_there_is_no_commit(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look_up(repository / "src" / "glimpseg") is None


# Digests


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == ABC


def test_the_digest_of_weights_is_of_names_types_shapes_and_bytes_in_order_of_names():
    weights = {"b": torch.tensor([1, -2], dtype=torch.int8), "a": torch.tensor([[0.5], [2.0]])}
    content = b"a torch.float32 (2, 1)" + struct.pack("<ff", 0.5, 2.0) + b"b torch.int8 (2,)" + b"\x01\xfe"
    assert weights_digest(weights) == hashlib.sha256(content).hexdigest()


def test_how_weights_lie_in_memory_changes_no_digest():
    # The transpose of [[1, 3], [2, 4]] is [[1, 2], [3, 4]].
    turned = torch.tensor([[1.0, 3], [2, 4]], requires_grad=True).T
    plain = torch.tensor([[1.0, 2], [3, 4]])
    assert weights_digest({"w": turned}) == weights_digest({"w": plain})


@pytest.mark.parametrize(
    "other",
    [
        {"v": torch.tensor([1.0, 2])},
        {"w": torch.tensor([1.0, 2.0000002])},
        {"w": torch.tensor([[1.0, 2]])},
        {"w": torch.tensor([1.0, 2]).view(torch.int32)},
        {"w": torch.tensor([1.0, 2]), "x": torch.zeros(0)},
    ],
    ids=["name", "value", "shape", "type", "one more"],
)
def test_weights_that_differ_in_anything_have_another_digest(other):
    assert weights_digest(other) != weights_digest({"w": torch.tensor([1.0, 2])})


def test_halves_are_known_by_the_digest_of_what_was_trained():
    whole = {"sha256": {"weights.safetensors": "aa"}}
    assert trained_digest(whole) == "aa"
    assert trained_digest({**whole, "halved_from": "bb"}) == "bb"


def test_the_package_is_where_the_commit_is_looked_for():
    assert Path(glimpseg.__file__).parent == provenance.PACKAGE


def test_git_is_started_once_a_process(repository, monkeypatch):
    package = repository / "src" / "glimpseg"
    first = provenance.commit_of(package)
    monkeypatch.setattr(provenance, "subprocess", None)
    assert provenance.commit_of(package) == first


def test_a_model_is_called_by_its_method_and_the_beginning_of_its_digest():
    record = {"sha256": {"weights.safetensors": ABC}}
    assert Model(SimpleNamespace(), SimpleNamespace(method="rfnet"), record, Path("m")).name == "rfnet-ba7816bf"


# The folder


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two weights."""
    state = SavedState(7, {"adam/w": torch.tensor([9.0])}, {"seed": 3})
    weights = {"w": torch.tensor([1.0, 2.0]), "seen": torch.tensor(5)}
    save_checkpoint(tmp_path, weights, small_recipe(), {"glimpseg": "not this one"}, state=state)
    return checkpoint_folder(tmp_path, 7)


def record_of(folder):
    return json.loads((folder / "provenance.json").read_text())


def test_provenance_names_the_code_the_machine_and_every_file(folder, monkeypatch):
    record = record_of(folder)
    files = ("recipe.yaml", "state.json", "state.safetensors", "weights.safetensors")
    assert record["sha256"] == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    assert list(record["sha256"]) == list(files)
    del record["sha256"]
    assert record == {
        "format": 1,
        "method": "unet",
        "steps": 7,
        "glimpseg": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.machine(),
        "threads": torch.get_num_threads(),
        "commit": provenance.commit_of(provenance.PACKAGE),
        "channels": ["t1", "t1c", "t2", "flair"],
    }


def test_the_commit_of_the_checkout_stands_in_provenance(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGE", repository / "src" / "glimpseg")
    save_model(tmp_path / "m", {"w": torch.zeros(1)}, small_recipe(), {})
    assert record_of(tmp_path / "m")["commit"] == head_of(repository)


@pytest.mark.parametrize("content", ["{}", "[]", '{"step": "x"}', '{"step": ' + "9" * 5000 + "}", "[" * 100_000])
def test_a_state_that_is_none_is_refused_also_if_it_is_vouched_for(folder, content):
    (folder / "state.json").write_text(content)
    digests = {**record_of(folder)["sha256"], "state.json": sha256_of(folder / "state.json")}
    _changed(sha256=digests)(folder)
    with pytest.raises(ModelError, match=r"The state in .* is damaged"):
        load_state(folder)


def test_a_checkpoint_holds_state_and_step(folder):
    state, record = load_state(folder)
    assert (state.step, state.scalars) == (7, {"seed": 3})
    assert state.tensors["adam/w"].tolist() == [9.0]
    assert record == record_of(folder)


def test_a_copy_has_other_files_notes_and_no_training_state(folder, tmp_path):
    source = stored_model(folder)
    texts = {"MODEL_CARD.md": "For people."}
    save_copy(source, tmp_path / "copy", {"expectations.json": b"abc"}, {"steps": 8}, texts=texts)
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {
        "weights.safetensors", "recipe.yaml", "provenance.json", "expectations.json", "MODEL_CARD.md",
    }  # fmt: skip
    before, after = record_of(folder)["sha256"], record_of(tmp_path / "copy")["sha256"]
    assert after == {
        "expectations.json": ABC,
        "recipe.yaml": before["recipe.yaml"],
        "weights.safetensors": before["weights.safetensors"],
    }
    assert list(after) == sorted(after)
    assert record_of(tmp_path / "copy") == {**record_of(folder), "steps": 8, "sha256": after}
    assert (tmp_path / "copy" / "MODEL_CARD.md").read_text() == "For people."


def test_a_file_that_was_damaged_before_it_was_copied_is_noticed_in_the_copy(folder, tmp_path):
    source = stored_model(folder)
    (folder / "recipe.yaml").write_text("method: other\n")
    save_copy(source, tmp_path / "copy", {}, {})
    with pytest.raises(ModelError, match=r"recipe\.yaml is damaged: its checksum differs"):
        verified(tmp_path / "copy")


def test_halved_weights_name_what_they_were_made_of(folder, tmp_path):
    save_halved(stored_model(folder), tmp_path / "half", {"README.md": "Half."})
    record = record_of(tmp_path / "half")
    assert record["halved_from"] == record_of(folder)["sha256"]["weights.safetensors"]
    assert record["halved_by"] == __version__
    kept = load_file(tmp_path / "half" / "weights.safetensors")
    assert (kept["w"].dtype, kept["seen"].dtype) == (torch.float16, torch.int64)
    again = stored_model(tmp_path / "half").weights
    assert (again["w"].dtype, again["w"].tolist(), again["seen"].item()) == (torch.float32, [1, 2], 5)
    assert (tmp_path / "half" / "README.md").read_text() == "Half."


def test_a_weight_beyond_half_precision_is_named():
    # fp16 ends at 65504.
    message = (
        "The weights w reach 70000, and fp16 holds up to 65504. Keep this model in fp32, or train it with more weight "
        "decay."
    )
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        halved({"w": torch.tensor([1.0, -70000])})


def _changed(**changes):
    def change(folder):
        (folder / "provenance.json").write_text(json.dumps({**record_of(folder), **changes}))

    return change


def _without_digest(folder):
    digests = record_of(folder)["sha256"]
    _changed(sha256={name: digests[name] for name in ("state.json", "recipe.yaml")})(folder)


def _damaged(folder):
    (folder / "weights.safetensors").write_bytes(b"abc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "provenance.json").unlink(),
            "{m} is not a glimpseg model: it has no provenance.json. Give the folder that `train` wrote.",
        ),
        (
            lambda folder: (folder / "provenance.json").write_text('{"format": 1}'),
            "{m}/provenance.json is damaged ('sha256'). Copy the model again.",
        ),
        (
            lambda folder: (folder / "provenance.json").write_text("{"),
            "{m}/provenance.json is damaged (Expecting property name enclosed in double quotes: line 1 column 2 "
            "(char 1)). Copy the model again.",
        ),
        (
            _changed(format=2, glimpseg="9.9"),
            "{m} has the format 2; glimpseg {version} reads format 1. Use the version that wrote it (9.9) or train "
            "again.",
        ),
        (
            lambda folder: (folder / "provenance.json").write_text('{"sha256": {}}'),
            "{m} has the format None; glimpseg {version} reads format 1. Use the version that wrote it (unknown) or "
            "train again.",
        ),
        (lambda folder: (folder / "recipe.yaml").unlink(), "{m} lacks recipe.yaml. Copy the model again, whole."),
        (_changed(sha256={"../w": "00"}), "{m} lacks ../w. Copy the model again, whole."),
        (
            _damaged,
            "{m}/weights.safetensors is damaged: its checksum differs from provenance.json. Copy the model again.",
        ),
        (
            _changed(sha256={}),
            "{m}/provenance.json does not vouch for recipe.yaml, weights.safetensors. Copy the model again.",
        ),
        (_without_digest, "{m}/provenance.json does not vouch for weights.safetensors. Copy the model again."),
    ],
    ids=[
        "no provenance", "no digests", "no JSON", "format", "no format", "lacking", "outside", "damaged", "no vouching",
        "no vouching for one",
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused_with_what_to_do(folder, change, message):
    (folder.parent / "w").write_text("beside the model")
    change(folder)
    expected = message.format(m=folder, version=__version__)
    with pytest.raises(ModelError, match=f"^{re.escape(expected)}$"):
        verified(folder)


# Checkpoints of a run


def test_a_run_loads_its_newest_whole_checkpoint(tmp_path):
    assert checkpoint_folder(tmp_path, 12) == tmp_path / "checkpoints" / "step-00000012"
    assert newest_valid(tmp_path) is None
    for step in (9, 100, 20):
        save_model(checkpoint_folder(tmp_path, step), {"w": torch.zeros(1)}, small_recipe(), {})
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step-00000100", "step-00000020", "step-00000009",
    ]  # fmt: skip
    assert stored_model(tmp_path).path.name == "step-00000100"
    (tmp_path / "checkpoints" / "step-00000100" / "weights.safetensors").unlink()
    assert newest_valid(tmp_path).name == "step-00000020"
    assert stored_model(tmp_path).path.name == "step-00000020"


def test_of_old_checkpoints_two_stay_and_nothing_that_a_killed_save_left(tmp_path):
    for step in (1, 2, 3):
        checkpoint_folder(tmp_path, step).mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-00000004.tmp-x").mkdir()
    drop_old(tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]


def test_a_finished_model_is_preferred_to_checkpoints(tmp_path):
    for place in (tmp_path / "model", checkpoint_folder(tmp_path, 5)):
        save_model(place, {"w": torch.zeros(1)}, small_recipe(), {})
    assert stored_model(tmp_path).path == tmp_path / "model"


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["checkpoints"], "The run {r} has no whole checkpoint yet. Wait for its first, or train on."),
        ([], "{r} is not a folder. Give a model or run folder with -m; `glimpseg train` makes one."),
    ],
)
def test_a_place_without_a_model_says_what_to_give(tmp_path, folders, message):
    for name in folders:
        (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(ModelError, match=f"^{re.escape(message.format(r=tmp_path / 'run'))}$"):
        stored_model(tmp_path / "run")


def test_weights_of_another_format_do_not_fit(folder):
    digests = record_of(folder)["sha256"] | {"weights.safetensors": ABC}
    (folder / "weights.safetensors").write_bytes(b"abc")
    _changed(sha256=digests, glimpseg="0.0.9")(folder)
    message = (
        f"The weights of {folder} do not fit the method unet of glimpseg {__version__} (they were written by 0.0.9): "
    )
    with pytest.raises(ModelError, match=f"^{re.escape(message)}"):
        stored_model(folder)


def test_what_is_stored_says_from_where(folder):
    found = stored_model(folder)
    assert isinstance(found, StoredModel)
    assert (found.path, found.recipe) == (folder, small_recipe())
    assert found.provenance == record_of(folder)
    assert {name: value.tolist() for name, value in found.weights.items()} == {"w": [1, 2], "seen": 5}
