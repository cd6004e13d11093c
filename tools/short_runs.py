"""Train in short runs on machines that are available for minutes, and carry the state between them in small files.

    python tools/short_runs.py unet/box-crops -o RUN --pieces PIECES [--minutes 9] [--device auto] [--set seed=1]

Each call takes up the state in PIECES (if RUN has none that is newer), trains for some minutes, and puts the newest
state back into PIECES: files of at most 16 MiB and a manifest with their checksums. Call it again, here or on another
machine that was given PIECES, until it says that the run has ended. The weights are those of one long run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from glimpseg.errors import InputError
from glimpseg.model.checkpoint import newest_valid
from glimpseg.runtime.atomic import atomic_folder

PIECE_BYTES = 16 * 2**20
MANIFEST = "pieces.json"
GO_ON = 75
"""Exit code of a run that was stopped and goes on."""
GRACE_S = 60
"""Seconds that a run may take to save its state."""


def main() -> int:
    """Train for one short run. Returns 0 if training has ended, 75 if it must go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--pieces", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", action="append", default=[])
    chosen = parser.parse_args()

    if (chosen.pieces / MANIFEST).is_file() and newest_step(chosen.output) < step_in(chosen.pieces):
        join(chosen.pieces, chosen.output)
    train_for(chosen.minutes, chosen)
    count = split(chosen.output, chosen.pieces)
    ended = (chosen.output / "model").is_dir()
    print(f"step {newest_step(chosen.output)}: {count} pieces in {chosen.pieces}; {'ended' if ended else 'call again'}")
    return 0 if ended else GO_ON


def train_for(minutes: float, chosen: argparse.Namespace) -> None:
    """Run `glimpseg train`, and stop it with its state saved when the time is over."""
    command = [sys.executable, "-m", "glimpseg", "train", chosen.recipe, "-o", str(chosen.output)]
    command += ["--device", chosen.device, *(word for change in chosen.set for word in ("--set", change))]
    resume = ["--resume"] if newest_valid(chosen.output) else []
    process = subprocess.Popen([*command, *resume])
    try:
        process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait(GRACE_S)
    if process.returncode not in (0, GO_ON):
        raise SystemExit(
            f"Training failed with exit code {process.returncode}; see above. The pieces stay as they were."
        )


def newest_step(run: Path) -> int:
    """Step of a run's newest whole checkpoint; -1 without any."""
    newest = newest_valid(run) if run.is_dir() else None
    return -1 if newest is None else int(newest.name.removeprefix("step-"))


def step_in(pieces: Path) -> int:
    """Step of the state in a folder of pieces."""
    return int(json.loads((pieces / MANIFEST).read_text("utf-8"))["step"])


def split(run: Path, pieces: Path, most: int = PIECE_BYTES) -> int:
    """Write recipe, log, newest checkpoint and model of a run into files of at most `most` bytes; returns how many."""
    newest = newest_valid(run)
    kept = [run / name for name in ("recipe.yaml", "metrics.jsonl", "model")]
    kept += [] if newest is None else [newest]
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for path in kept:
                if path.exists():
                    archive.add(path, arcname=str(path.relative_to(run)))
        whole.seek(0)
        names = {}
        with atomic_folder(pieces, overwrite=True, mark=MANIFEST) as place:
            while part := whole.read(most):
                name = f"piece-{len(names):03d}"
                (place / name).write_bytes(part)
                names[name] = hashlib.sha256(part).hexdigest()
            record = {"step": newest_step(run), "sha256": names}
            (place / MANIFEST).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    return len(names)


def join(pieces: Path, run: Path) -> None:
    """Restore a split run. Raises: InputError if a piece is missing or damaged; then nothing is written."""
    whole = io.BytesIO()
    for name, digest in json.loads((pieces / MANIFEST).read_text("utf-8"))["sha256"].items():
        part = (pieces / name).read_bytes() if (pieces / name).is_file() else b""
        if hashlib.sha256(part).hexdigest() != digest:
            raise InputError(f"{pieces / name} is missing or damaged. Copy the pieces again, all of them.")
        whole.write(part)
    whole.seek(0)
    with tempfile.TemporaryDirectory(dir=pieces.parent) as place:
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(place, filter="data")
        shutil.copytree(place, run, dirs_exist_ok=True)


if __name__ == "__main__":
    sys.exit(main())
