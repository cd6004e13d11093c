"""Small studies, models and runs for the tests; with GLIMPSEG_TYPECHECK=1, shapes and types are checked as well."""

import contextlib
import importlib
import io
import itertools
import logging
import os
import shutil
import signal
import socket
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from filelock import FileLock
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it, before torch is imported
# Processes side by side have a core each, and so have the processes that they start.
THREADS = int(os.environ.get("GLIMPSEG_TEST_THREADS") or (1 if "PYTEST_XDIST_WORKER" in os.environ else 2))
os.environ["OMP_NUM_THREADS"] = str(THREADS)

CHECKED = [
    f"glimpseg.{name}"
    for name in (
        "data.atlas", "data.augment", "data.cache", "data.crops", "data.identify", "data.identify.appearance",
        "data.layouts", "data.loader", "data.metaimage", "data.nifti", "data.preprocess", "data.prior_cache",
        "data.raw", "evaluation.calibrate", "evaluation.histogram", "losses", "method", "methods.mmformer",
        "methods.mstkdnet",
        "methods.rfnet", "methods.smml", "methods.unet", "methods.voxmmsd", "methods.voxunet",
        "model.expectations", "model.transfer", "nets.attention", "nets.positions", "nets.pyramid",
        "nets.token_fusion", "phantom", "picture", "priors", "segmentation.passes", "segmentation.predict",
        "segmentation.preparation", "segmentation.uncertainty", "study", "volume",
    )
]  # fmt: skip
if os.environ.get("GLIMPSEG_TYPECHECK") == "1":
    install_import_hook(CHECKED, "typecheck.checked")

import nibabel  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from glimpseg import cli, methods  # noqa: E402
from glimpseg.modality import Modality  # noqa: E402
from glimpseg.model.folder import save_model  # noqa: E402
from glimpseg.runtime.sandbox import SandboxError  # noqa: E402
from glimpseg.segmentation.result import Segmentation  # noqa: E402
from glimpseg.training.logger import TrainingLogger  # noqa: E402

torch.set_num_threads(THREADS)
# A busy machine is no failure, and the same commit gives the same verdict twice.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

NETWORKS = {
    "unet": {"width": 4, "blocks": [1, 1, 1], "heads": 2},
    "rfnet": {"width": 4, "levels": 3, "coarse_width": 4, "gate_width": 8},
    "mstkdnet": {
        "width": 8, "groups": 4, "blocks": [1, 1, 1], "token_width": 16, "heads": 2, "mlp_width": 32, "layers": 4,
        "scale_width": 4, "style_width": 4, "crop": [16, 16, 16],
    },
    "smml": {
        "network.width": 4, "network.levels": 3, "network.token_width": 16, "network.heads": 2,
        "network.mlp_width": 32, "network.crop": [16, 16, 16],
    },
    "voxunet": {"width": 4, "dropout": [0, 0, 0.2], "heads": 2},
    "mmformer": {"width": 4, "levels": 3, "token_width": 16, "heads": 2, "mlp_width": 32, "crop": [16, 16, 16]},
}  # fmt: skip
"""Configs of a second's work."""


def small(method="unet"):
    """Changes that make a phantom recipe a matter of seconds."""
    return {
        **{f"config.{field}": value for field, value in NETWORKS[method].items()},
        "data.sampling.patch": [16, 16, 16],
        "optim.steps": 12,
        "optim.save_every": 2,
        "optim.log_every": 2,
        "optim.precision": "fp32",
    }


def reaches_itself():
    """Whether processes of this machine can connect to each other, by the loopback address and by the host's name."""
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        try:
            for host in ("127.0.0.1", socket.gethostname()):
                socket.create_connection((host, server.getsockname()[1]), timeout=2).close()
        except OSError:
            return False
    return True


needs_loopback = pytest.mark.skipif(not reaches_itself(), reason="this machine does not reach itself by network")
"""For processes that train together, and for servers."""

ORIENTATIONS = [
    "".join(codes) for axes in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*axes)
]
"""The 48 orders in which a file can store its axes."""


def small_recipe(method="unet", **changes):
    changed = {path.replace("__", "."): value for path, value in changes.items()}
    return methods.find_recipe(f"{method}/phantom", {**small(method), **changed})


def head(seed=0, shape=(40, 48, 36)):
    """Four images of an ellipsoid brain with a ball of tumour, and its labels; RAS arrays."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    brain = (place**2).sum(0) < 0.8
    centre = rng.uniform(-0.3, 0.3, 3)
    distance = np.sqrt(((place - centre[:, None, None, None]) ** 2).sum(0))
    labels = np.select([distance < 0.12, distance < 0.22, distance < 0.35], [1, 3, 2], 0).astype(np.uint8)
    contrast = {
        Modality.T1: (0, -30, -10, 0),
        Modality.T1C: (0, -20, 0, 120),
        Modality.T2: (0, 80, 60, 50),
        Modality.FLAIR: (0, 40, 90, 60),
    }
    images = {
        modality: np.where(brain, 200 + np.array(by_label)[labels] + rng.normal(0, 10, shape), 0).astype(np.float32)
        for modality, by_label in contrast.items()
    }
    return images, np.where(brain, labels, 0).astype(np.uint8)


AFFINE = np.array([[3.0, 0, 0, -60], [0, 3.0, 0, -70], [0, 0, 3.0, -50], [0, 0, 0, 1]])
WORDS = {Modality.T1: "t1n", Modality.T1C: "t1c", Modality.T2: "t2w", Modality.FLAIR: "t2f"}


def write_head(folder, name="S1", seed=0, modalities=tuple(Modality), affine=AFFINE, reference=True):
    """A study folder in the layout of BraTS 2023."""
    images, labels = head(seed)
    place = folder / name
    place.mkdir(parents=True)
    for modality in modalities:
        nibabel.save(nibabel.Nifti1Image(images[modality], affine), place / f"{name}-{WORDS[modality]}.nii.gz")
    if reference:
        nibabel.save(nibabel.Nifti1Image(labels, affine), place / f"{name}-seg.nii.gz")
    return place


@pytest.fixture
def no_pictures(monkeypatch):
    """`preview.png` is an empty figure and `progress.png` is not drawn, for tests that do not look at them: pictures
    take two thirds of the time of a small study, and two fifths of that of a short training."""
    monkeypatch.setattr(Segmentation, "_preview", lambda *_: Figure(figsize=(1, 1)))
    monkeypatch.setattr(TrainingLogger, "draw", lambda logger: None)


# The command line


@dataclass(frozen=True)
class Done:
    """What a command left behind, under the names that `subprocess.run` gives them."""

    returncode: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def as_it_was():
    """Logger, handler of SIGTERM, environment and threads of this process are restored at the end."""
    log, number = logging.getLogger("glimpseg"), torch.get_num_threads()
    handlers, level, stop = log.handlers, log.level, signal.getsignal(signal.SIGTERM)
    try:
        with mock.patch.dict(os.environ):
            yield
    finally:
        for handler in log.handlers:
            if handler not in handlers:
                handler.close()
        log.handlers, log.level = handlers, level
        signal.signal(signal.SIGTERM, stop)
        torch.set_num_threads(number)


def command_line(*arguments, cwd=None):
    """Run `glimpseg` with its own entry and exit codes, but in this process: nothing is started or imported again."""
    out, err = io.StringIO(), io.StringIO()
    with (
        as_it_was(),
        mock.patch.object(sys, "argv", ["glimpseg", *map(str, arguments)]),
        mock.patch.dict(os.environ, GLIMPSEG_MALLOPT="0"),  # the allocator would stay changed
        contextlib.chdir(cwd or os.curdir),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    return Done(ended.value.code or 0, out.getvalue(), err.getvalue())


READERS = {
    "glimpseg.data.dicom.stacks": "main",
    "glimpseg.data.dicom.pixels": "main",
    "glimpseg.data.dicom.study_folders": "_main",
    "glimpseg.model.importing": "_read",
}
"""Modules that open foreign files in a process of their own, and what that process does."""


def run_here(module, arguments, *, seconds):
    """What `sandbox.run_sandboxed` does, without a process, and without its limits of memory and time."""
    read = getattr(importlib.import_module(module), READERS[module])
    with warnings.catch_warnings():
        try:
            read(*map(Path, arguments))
        except SystemExit as error:
            raise SandboxError(str(error.code)) from None
        finally:
            logging.disable(logging.NOTSET)


@contextlib.contextmanager
def files_of_at_most(size):
    """Let the system refuse files beyond `size` bytes, as a full disk does, here and in processes that are started."""
    resource = pytest.importorskip("resource", reason="limits of POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def readers_here(monkeypatch):
    """Foreign files are read in this process, which saves a second or two for each. Tests of the process go without."""
    for name in ("find", "read", "study_folders"):
        monkeypatch.setattr(f"glimpseg.data.dicom.{name}.run_sandboxed", run_here)
    for name in ("stacks", "pixels", "study_folders"):
        monkeypatch.setattr(f"glimpseg.data.dicom.{name}.confine", lambda *_: None)
    monkeypatch.setattr("glimpseg.model.importing.run_sandboxed", run_here)
    monkeypatch.setattr("glimpseg.model.importing.confine", lambda *_: None)


# Made once a run


def made_once(tmp_path_factory, name, make):
    """A folder that the first process of the run to ask for it makes, and that all read and none changes."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # of all processes of this run
    folder = place / name
    with FileLock(place / f"{name}.lock"):
        if not folder.exists():
            making = place / f"{name}.making"
            shutil.rmtree(making, ignore_errors=True)  # of a test that failed
            make(making)
            making.rename(folder)
    return folder


def write_archive(folder):
    for seed in range(4):
        write_head(folder, f"S{seed}", seed)


def write_model(folder):
    recipe = small_recipe(data__sampling__patch=[24, 24, 24])
    torch.manual_seed(0)
    save_model(folder, methods.build(recipe).state_dict(), recipe, {"steps": 0})


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """Four complete studies."""
    return made_once(tmp_path_factory, "archive", write_archive)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """An untrained small network, as a model on disk; it sees a `head` in one piece."""
    return made_once(tmp_path_factory, "model", write_model)
