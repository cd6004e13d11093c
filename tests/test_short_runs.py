"""State that is carried between short runs in small files: all of it arrives, or nothing does."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from conftest import small_recipe
from glimpseg.errors import InputError
from glimpseg.model.checkpoint import newest_valid
from glimpseg.training.loop import train
from glimpseg.training.options import TrainOptions

SCRIPT = Path(__file__).parents[1] / "tools" / "short_runs.py"
MOST = 100_000


@pytest.fixture(scope="module")
def short_runs():
    spec = importlib.util.spec_from_file_location("short_runs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run_folder(archive, tmp_path_factory):
    """A run of two steps."""
    run = tmp_path_factory.mktemp("run") / "run"
    train(
        small_recipe(optim__steps=2, optim__save_every=1),
        run,
        TrainOptions(data=archive, device=torch.device("cpu"), quiet=True),
    )
    return run


@pytest.fixture
def pieces(short_runs, run_folder, tmp_path):
    short_runs.split(run_folder, tmp_path / "pieces", MOST)
    return tmp_path / "pieces"


def test_no_piece_is_larger_than_it_may_be(short_runs, pieces):
    sizes = [path.stat().st_size for path in pieces.glob("piece-*")]
    assert len(sizes) > 1
    assert max(sizes) <= MOST


def test_what_was_split_is_what_is_joined(short_runs, run_folder, pieces, tmp_path):
    short_runs.join(pieces, tmp_path / "again")
    before, after = newest_valid(run_folder), newest_valid(tmp_path / "again")
    assert before.name == after.name
    assert all((after / path.name).read_bytes() == path.read_bytes() for path in before.iterdir())
    assert short_runs.step_in(pieces) == short_runs.newest_step(run_folder)


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_piece_that_did_not_arrive_is_named_and_nothing_is_written(short_runs, pieces, tmp_path, how):
    last = sorted(pieces.glob("piece-*"))[-1]
    last.unlink() if how == "missing" else last.write_bytes(b"x" + last.read_bytes()[1:])
    with pytest.raises(InputError, match=last.name):
        short_runs.join(pieces, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_manifest_is_written_last_and_names_every_piece(pieces):
    named = json.loads((pieces / "pieces.json").read_text())["sha256"]
    assert sorted(named) == sorted(path.name for path in pieces.glob("piece-*"))


def test_a_training_that_fails_leaves_the_pieces_as_they_were(short_runs, pieces, tmp_path, monkeypatch):
    before = (pieces / "pieces.json").read_text()
    words = ["short_runs.py", "unet/nothing", "-o", str(tmp_path / "other"), "--pieces", str(pieces)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="exit code 2"):
        short_runs.main()
    assert (pieces / "pieces.json").read_text() == before
