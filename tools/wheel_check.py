"""Build the wheel, install it into an empty environment, and segment without a network.

    python tools/wheel_check.py -o DIR --t1 T1 --t1c T1C --t2 T2 --flair FLAIR [--brain-mask MASK] [--model MODEL]

`glimpseg segment` runs with all the given images, with two and with one of them, and with the model in the wheel.
Prints wall time, peak memory of the process, volumes and the preview's path. DIR
keeps the wheel, the environment (`env`, made anew unless `--keep` says to use the one that is there) and the results.
The network is cut off by a namespace without interfaces (`unshare -n`), which needs root or user namespaces; without
them nothing is run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

SEQUENCES = ("t1c", "flair", "t2", "t1")
"""Sequences, in the order in which they are kept if there are fewer."""
ROOT = Path(__file__).parents[1]
THREADS = "2"
"""Number of threads, as on a small laptop."""
PROBE = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=3)"
"""Program that fails at once if there is no interface. 192.0.2.0/24 belongs to nobody (RFC 5737)."""


def main() -> int:
    """Print one line for each number of sequences; the exit code says whether all of them were segmented."""
    arguments = _arguments()
    given = {name: path for name in SEQUENCES if (path := getattr(arguments, name))}
    if not given:
        sys.exit("Give at least one of --t1, --t1c, --t2, --flair.")
    alone = isolated()
    place = arguments.output.absolute()
    wheel = built(place / "wheel")
    binaries = environment(place / "env", wheel, keep=arguments.keep)
    counts = sorted({len(given), min(2, len(given)), 1}, reverse=True)
    return max(segmented(alone, binaries, chosen(given, count), place, arguments) for count in counts)


def built(folder: Path) -> Path:
    """Build the wheel with pip; print its size and its model."""
    shutil.rmtree(folder, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps", "-w"]
    run([*pip, str(folder), str(ROOT)])
    (wheel,) = folder.glob("glimpseg-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = [entry for entry in archive.infolist() if "/weights/" in entry.filename]
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB")
    for entry in inside:
        print(f"  {entry.filename}: {entry.file_size / 1e6:.3f} MB")
    if not inside:
        print("  no weights: pass --model, or run tools/ship.py first")
    return wheel


def environment(folder: Path, wheel: Path, *, keep: bool) -> Path:
    """Folder of programs of an environment with only the wheel and its dependencies."""
    binaries = folder / "bin"
    pip = [str(binaries / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--constraint", str(ROOT / "constraints.txt")]
    if not (keep and binaries.is_dir()):
        shutil.rmtree(folder, ignore_errors=True)
        run([sys.executable, "-m", "venv", str(folder)])
        run([*pip, "torch"])  # first and alone: a resolver that meets it among others may take a build with CUDA
    run([*pip, str(wheel)])
    run([*pip, "--force-reinstall", "--no-deps", str(wheel)])
    return binaries


def isolated() -> list[str]:
    """Command that runs another one without a network. Ends the script if there is none, or if it leaks."""
    for command in (["unshare", "-n"], ["unshare", "-r", "-n"]):
        if (
            shutil.which("unshare")
            and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode
        ):
            probe = subprocess.run([*command, sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
            if "unreachable" in probe.stderr:
                return command
    sys.exit("The network cannot be cut off here: `unshare -n` needs Linux, and root or user namespaces.")


def chosen(given: dict[str, Path], count: int) -> dict[str, Path]:
    """First `count` images; a single one is the FLAIR if there is one."""
    if count == 1 and "flair" in given:
        return {"flair": given["flair"]}
    return dict(list(given.items())[:count])


def segmented(
    alone: Sequence[str], binaries: Path, images: dict[str, Path], place: Path, arguments: argparse.Namespace
) -> int:
    """Run the command and return its exit code."""
    out = place / "-".join(images)
    shutil.rmtree(out, ignore_errors=True)
    command = [*alone, str(binaries / "glimpseg"), "segment", "-o", str(out)]
    command += [word for name, path in images.items() for word in (f"--{name}", str(path.absolute()))]
    command += ["--brain-mask", str(arguments.brain_mask.absolute())] if arguments.brain_mask else []
    command += ["-m", str(arguments.model.absolute())] if arguments.model else []
    begun = time.perf_counter()
    # An empty folder as home and as working directory: nothing of the checkout or of a cache is at hand.
    home = place / "home"
    home.mkdir(exist_ok=True)
    kept = {"PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": THREADS}
    process = subprocess.Popen(
        command, env=kept, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    code, seconds = os.waitstatus_to_exitcode(status), time.perf_counter() - begun
    print(f"{' + '.join(images)}: exit code {code}, {seconds:.1f} s, {used.ru_maxrss / 1024:.0f} MiB at most", end="")
    if code:
        print(f"\n{said.strip()}")
        return 1
    found = json.loads((out / "statistics.json").read_text("utf-8"))
    record = json.loads((out / "run.json").read_text("utf-8"))
    volumes = ", ".join(f"{region} {entry['volume_ml']:.1f} ml" for region, entry in found.items())
    print(f", {record['model']['name']} in {record['seconds']}, {volumes}, {out / 'preview.png'}")
    return 0


def run(command: Sequence[str]) -> None:
    """Run a command that must succeed."""
    subprocess.run(command, check=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    for name in SEQUENCES:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--brain-mask", type=Path)
    parser.add_argument("--model", type=Path, help="a model folder, in place of the one in the wheel")
    parser.add_argument("--keep", action="store_true", help="use the environment that is there, with the new wheel")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
