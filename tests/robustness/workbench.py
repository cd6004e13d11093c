"""Parts that the scripts at scale share: phantoms of 4 mm, a model of few steps, commands in forked processes.

A forked process has the imports of this one already, so it starts in milliseconds, and can be killed like any other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Word = str | Path

PATIENCE_S = 1200.0
"""Longest time that a command may take, in seconds."""
SMALL = ("config.width=8", "data.sampling.patch=[32,32,32]", "optim.precision=fp32")
"""Changes to the recipe unet/phantom, for steps of a tenth of a second."""
WITH_PRIOR = ("config.refinement=1", "config.agreement=1", "config.feature=0", "data.prior.kind=synthetic")
"""Changes to the recipe smml/phantom, for prior maps that need no weights."""
TIMES = frozenset({"seconds", "seconds_per_step", "waiting", "at", "commit"})
"""Fields of JSON that hold times, or the commit of the source, which may move on while a script runs."""
LOCKS = (".lock",)
USUAL = ("Used ", "The performance with ", "Research software", "layout ")
"""Beginnings of lines that are no warning."""


@dataclass(frozen=True)
class Done:
    """Result of a finished command."""

    code: int
    """Exit code; 128 and the number of the signal for a process that died of one."""
    said: str
    """Text of standard error."""

    @property
    def message(self) -> str:
        """The line that says what was wrong, or the first warning; reasons to look at a result are left out."""
        lines = [line for line in self.said.splitlines() if line.strip() and "Look at this one: " not in line]
        errors = [line for line in lines if line.startswith("glimpseg: ")]
        return (errors or [line for line in lines if not line.startswith(USUAL)] or [""])[0]


class Forked:
    """The command line in a copy of this process.

    Args:
        words: The command, without `glimpseg`.
        environment: Variables to set.
    """

    def __init__(self, words: Iterable[Word], environment: Mapping[str, str] | None = None) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.environ.update(environment or {})
            _run_command([str(word) for word in words], self._said.fileno())

    def poll(self) -> int | None:
        """The exit code; None while the command runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else 128 - code  # as a shell has it
        return self._code

    def send(self, number: int) -> None:
        """Sends a signal, if the command still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def done(self, patience_s: float = PATIENCE_S) -> Done:
        """Waits for the end. Raises: TimeoutError after `patience_s` seconds; the command is killed then."""
        if not self.wait(patience_s):
            self.send(signal.SIGKILL)
            raise TimeoutError(f"a command went on for more than {patience_s:.0f} s")
        self._said.seek(0)
        assert self._code is not None
        return Done(self._code, self._said.read().decode("utf-8", "replace"))

    def wait(self, seconds: float) -> bool:
        """Waits for at most `seconds`; True if the command has ended."""
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                return False
            time.sleep(0.002)
        return True


def run(words: Iterable[Word], environment: Mapping[str, str] | None = None) -> Done:
    """Runs a command in a fork of this process."""
    return Forked(words, environment).done()


def imports() -> None:
    """Imports what the verbs import, once for all forks; one thread for torch, which forks of a quiet process allow."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MKL_NUM_THREADS", "1")
    import sympy  # noqa: F401  (torch imports it late)
    import torch.fx.experimental.symbolic_shapes

    from glimpseg import report  # noqa: F401
    from glimpseg.batch import tree  # noqa: F401
    from glimpseg.cli import entry  # noqa: F401
    from glimpseg.evaluation import calibrate, compare, evaluate  # noqa: F401
    from glimpseg.segmentation import predict  # noqa: F401
    from glimpseg.training import loop  # noqa: F401

    torch.set_num_threads(1)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Inputs of the commands below one folder. They are made once, and kept for the next script."""

    place: Path
    studies: int = 4
    """Number of phantoms."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """Folder of phantoms of 4 mm with references. Each has T1c and FLAIR: four sequences take twice the time."""
        folder = self.place / f"phantoms-{self.studies}"
        if not folder.exists():
            whole = folder.with_name(f"{folder.name}-whole")
            must(["-q", "phantom", "-o", whole, "--count", self.studies, "--spacing", "4", "--overwrite"])
            for path in [*whole.glob("*/*-t1n.nii.gz"), *whole.glob("*/*-t2w.nii.gz")]:
                path.unlink()
            whole.rename(folder)
        return folder

    @property
    def model(self) -> Path:
        """Folder of a model of six training steps."""
        return self.trained(0)

    def trained(self, seed: int) -> Path:
        """Folder of the model that this seed gives."""
        run_folder = self.place / f"run-{seed}"
        if not (run_folder / "model").exists():
            words: list[Word] = ["-q", "train", "unet/phantom", "--data", self.data, "-o", run_folder, "--resume"]
            must([*words, *settings(*SMALL, "optim.steps=6", f"seed={seed}"), "--device", "cpu"])
        return run_folder / "model"

    @property
    def study(self) -> list[Word]:
        """Options of `segment` that name two sequences of one study."""
        folder = next(path for path in sorted(self.data.iterdir()) if path.is_dir())
        return ["--t1c", folder / f"{folder.name}-t1c.nii.gz", "--flair", folder / f"{folder.name}-t2f.nii.gz"]

    def fresh(self, name: str) -> Path:
        """A path below the bench at which nothing is."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.place))
        folder.rmdir()
        return folder


def must(words: Iterable[Word]) -> None:
    """Runs a command that has to end well. Raises: RuntimeError with its words if it does not."""
    ended = run(words)
    if ended.code:
        raise RuntimeError(ended.said)


def settings(*changes: str) -> list[str]:
    """The options --set of a command."""
    return [word for change in changes for word in ("--set", change)]


def content(folder: Path, *, without: Callable[[Path], bool] = lambda path: False) -> dict[str, str]:
    """Digest of each file of a folder, by its path in it. JSON and JSON lines are compared without their times.

    Args:
        folder: The folder, or a file.
        without: True for the relative path of a file that is left out.
    """
    if folder.is_file():
        return {folder.name: digest(folder)}
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(LOCKS))
    found = {path.relative_to(folder): path for path in paths}
    return {name.as_posix(): digest(path) for name, path in found.items() if not without(name)}


def digest(path: Path) -> str:
    """SHA-256 of a file; of JSON and reports without their times, of a log of studies without their order."""
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(_timeless(json.loads(data))).encode()
    elif path.suffix == ".jsonl":
        lines = [json.dumps(_timeless(json.loads(line))) for line in data.decode().splitlines()]
        data = "\n".join(sorted(lines)).encode()
    elif path.suffix == ".html":
        data = re.sub(rb" [\d.]+ s; glimpseg", b"; glimpseg", data)
    elif path.suffix == ".safetensors":  # the order of the names in its header is random
        end = 8 + int.from_bytes(data[:8], "little")
        data = json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]
    elif path.suffix == ".dcm":
        data = _image_of(path)
    return hashlib.sha256(data).hexdigest()


def temporary_left(folder: Path) -> list[str]:
    """Files and folders, at any depth, whose names are those of unfinished writes."""
    marks = (".tmp-", ".old-")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*") if any(m in path.name for m in marks))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a Markdown table, each row as soon as it is there."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for row in rows:
        print("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |", flush=True)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser of options with -o, the folder of the inputs and outputs."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("-o", "--output", required=True, type=Path, help="Folder of inputs and outputs.")
    return options


def real_command(words: Iterable[Word]) -> list[str]:
    """The command line for a process of its own, by this Python."""
    return [sys.executable, "-m", "glimpseg", *map(str, words)]


def start_real(words: Iterable[Word], environment: Mapping[str, str], said: int) -> subprocess.Popen[bytes]:
    """The command line in a process of its own, its standard error in the open file `said`."""
    return subprocess.Popen(
        real_command(words), env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=said
    )


def _run_command(words: Sequence[str], said: int) -> None:
    """Becomes the command line, in a child process; never returns."""
    code: Any = 70
    try:
        from glimpseg.cli import entry

        tempfile.tempdir = None  # TMPDIR may be another
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", errors="backslashreplace")
        sys.argv = ["glimpseg", *words]
        entry.main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def _timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _timeless(value) for name, value in tree.items() if name not in TIMES}
    return [_timeless(value) for value in tree] if isinstance(tree, list) else tree


def _image_of(path: Path) -> bytes:
    """Pixels or content of a DICOM object, without the UIDs and dates that every object has of its own."""
    import pydicom

    dataset = pydicom.dcmread(path)
    return dataset.PixelData if "PixelData" in dataset else str(dataset.Modality).encode()
