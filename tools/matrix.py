"""Install glimpseg with the lowest and the newest dependencies on every Python, and try each environment.

    python tools/matrix.py -o DIR [--python PATH ...] [--only REGEX] [--keep]

For each Python of `PYTHONS`: the lowest version of each direct dependency in pyproject.toml that the registry has for
this Python, then the newest; without extras, with the extra `test` (which runs tests of the core), and the newest of
`all`. On the lowest Python: each extra alone, and the lowest of `all`. The reference is one more row: the lowest Python
with constraints.txt. uv resolves and installs; `tools/matrix_checks.py` runs in each environment, which is removed
afterwards. Warnings that glimpseg's modules cause by deprecated calls are errors. An interpreter that is missing gives
a row that says so, and no failure.

Writes DIR/results/ROW.json, and after each row the table of all results, DIR/matrix.md; with `--only`, the results of
other rows stay. The exit code is 1 if a row failed. DIR also holds uv's cache: 25 GB for the whole matrix on Linux,
where torch comes with CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LOWEST, NEWEST, TESTED = "lowest", "newest", "constraints.txt"
RESOLUTION = {LOWEST: "lowest-direct", NEWEST: "highest", TESTED: "highest"}
WITHOUT_WHEEL = {"medpy": PYTHONS, "surface-distance": PYTHONS, "pyjpegls": ("3.14",)}
"""Packages without a wheel, and for which Pythons; pyjpegls, which highdicom needs, takes a compiler. Of all others
only wheels are taken: a release without one for a Python is older than it."""
WARNINGS = "; ".join(
    [
        "import warnings",
        *(
            f'warnings.filterwarnings("error", category={kind}, module=r"glimpseg(\\.|$)")'
            for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")
        ),
    ]
)
"""Line of a .pth file: each process of the environment takes deprecated calls in glimpseg for errors. Before Python
3.12 a comprehension in such a line does not see what the line imported."""
SINGLE = ("dicom", "sam", "onnx", "openvino", "register", "skullstrip", "fast", "tensorboard", "slurm", "ray")
"""Extras that `all` brings together."""
CHECKS = {"all": SINGLE}
"""Checks of an extra, where they are not the one of its name."""
ABSENT = "no interpreter here"


@dataclass(frozen=True)
class Row:
    """One environment."""

    python: str
    dependencies: str
    extra: str = ""

    @property
    def name(self) -> str:
        """Name that `--only` is compared with: `3.11 lowest dicom`."""
        return f"{self.python} {self.dependencies} {self.extra}".strip()

    @property
    def folder(self) -> str:
        """Folder of the environment. Rows that have most packages in common share it, and so the compiled modules."""
        return f"{self.python}-{self.dependencies}"


class RowError(Exception):
    """An environment that cannot be installed or tried."""


def main() -> int:
    """Run the rows, write the table after each; return 1 if one of them failed."""
    given = _arguments()
    place = given.output.absolute()
    prepare_environment(place)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    rows = rows_of(project)
    chosen = [row for row in rows if re.search(given.only, row.name)]
    if not (place / "reference" / "evaluate").exists() and rows[0] not in chosen:
        chosen.insert(0, rows[0])
    found, failed = interpreters(given.python), 0
    with tempfile.TemporaryDirectory(dir=place) as folder:
        wheel = built(Path(folder))
        for row in chosen:
            begun = time.perf_counter()
            result = tried(row, found.get(row.python), wheel, place, keep=given.keep)
            result["seconds"] = round(time.perf_counter() - begun)
            (place / "results" / f"{row.name}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
            text = table(rows, read_results(place), project)
            (place / "matrix.md").write_text(text, "utf-8")
            print(table([row], {row.name: result}, project).splitlines()[-1], flush=True)
            failed += bool(result["failed"])
    return 1 if failed else 0


def prepare_environment(place: Path) -> None:
    """Make the folders, and set what every process of the matrix needs."""
    (place / "results").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("UV_CACHE_DIR", str(place / "cache"))
    os.environ.update(UV_PYTHON_DOWNLOADS="never", PYTHONNOUSERSITE="1", PYTHONPYCACHEPREFIX=str(place / "compiled"))
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):  # compiling torch again takes longer than the checks
        os.environ.pop(name, None)


def rows_of(project: dict[str, Any]) -> list[Row]:
    """Return all rows, the reference first. Raises: RowError if an extra has no row."""
    first = PYTHONS[0]
    rows = [Row(first, TESTED)]
    for python in PYTHONS:
        rows += [Row(python, which, extra) for which in (LOWEST, NEWEST) for extra in ("", "test")]
        rows.append(Row(python, NEWEST, "all"))
    rows += [Row(first, which, extra) for extra in (*SINGLE, "docs", "dev") for which in (LOWEST, NEWEST)]
    rows.append(Row(first, LOWEST, "all"))
    forgotten = project["optional-dependencies"].keys() - {row.extra for row in rows}
    if forgotten:
        raise RowError(f"extras without a row: {', '.join(sorted(forgotten))}")
    return rows


def interpreters(given: list[Path]) -> dict[str, Path]:
    """Return the Pythons of this machine by version: those given, in PATH, and pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [*given]
    for version in PYTHONS:
        candidates += sorted(pyenv.glob(f"{version}.*/bin/python{version}"))
        candidates += [Path(path) for path in [shutil.which(f"python{version}")] if path]
    found: dict[str, Path] = {}
    for path in candidates:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0:  # a shim of pyenv fails
            found.setdefault(done.stdout.strip(), path)
    return found


def tried(row: Row, interpreter: Path | None, wheel: Path, place: Path, *, keep: bool) -> dict[str, Any]:
    """Return what became of a row: installed versions, checks, and what failed."""
    if interpreter is None:
        return {"versions": {}, "checks": {}, "failed": "", "absent": True}
    folder = place / "rows" / row.folder
    shutil.rmtree(folder, ignore_errors=True)
    environment = folder / "env"
    result: dict[str, Any] = {"versions": {}, "checks": {}, "failed": ""}
    try:
        install(row, interpreter, wheel, environment)
        result["versions"] = versions(environment)
        result["checks"] = checked(row, environment, folder / "files", place / "reference")
        bad = [f"{name}: {one['note']}" for name, one in result["checks"].items() if not one["ok"]]
        result["failed"] = "; ".join(bad)
    except (RowError, subprocess.TimeoutExpired) as error:
        result["failed"] = str(error)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def install(row: Row, interpreter: Path, wheel: Path, environment: Path) -> None:
    """Make the environment: dependencies from pyproject.toml, then the wheel. Raises: RowError."""
    uv("venv", "--quiet", "--python", interpreter, environment)
    sources = [name for name, pythons in WITHOUT_WHEEL.items() if row.python in pythons]
    binaries = [word for name in sources for word in ("--no-binary", name)]
    words = ["--resolution", RESOLUTION[row.dependencies], "--only-binary", ":all:", *binaries]
    words += ["--extra", row.extra] if row.extra else []
    words += ["--constraint", ROOT / "constraints.txt"] if row.dependencies == TESTED else []
    uv(
        "pip",
        "install",
        "--quiet",
        "--python",
        python_of(environment),
        "--requirement",
        ROOT / "pyproject.toml",
        *words,
    )
    uv("pip", "install", "--quiet", "--python", python_of(environment), "--no-deps", wheel)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "glimpseg_warnings.pth").write_text(f"{WARNINGS}\n", "utf-8")


def checked(row: Row, environment: Path, files: Path, reference: Path) -> dict[str, Any]:
    """Run tools/matrix_checks.py in the environment and return its results. Raises: RowError."""
    script = [python_of(environment), ROOT / "tools" / "matrix_checks.py", "-o", files, "--reference", reference]
    names = CHECKS.get(row.extra, (row.extra,) if row.extra else ())
    words = [word for name in names for word in ("--extra", name)]
    done = subprocess.run([*script, *words], capture_output=True, text=True, cwd=environment, check=False)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, json.JSONDecodeError):
        raise RowError(f"the checks ended with {done.returncode}: {done.stderr.strip()[-1500:]}") from None


def versions(environment: Path) -> dict[str, str]:
    """Return the installed versions by normalised name."""
    listed = json.loads(uv("pip", "list", "--python", python_of(environment), "--format", "json"))
    return {canonicalize_name(entry["name"]): entry["version"] for entry in listed}


def built(folder: Path) -> Path:
    """Build the wheel and return its path."""
    uv("build", "--quiet", "--wheel", "--out-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def uv(*words: object) -> str:
    """Run uv and return what it printed. Raises: RowError."""
    command = [sys.executable, "-m", "uv", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RowError(f"uv {words[0]} ended with {done.returncode}: {done.stderr.strip()[-1500:]}")
    return done.stdout


def python_of(environment: Path) -> Path:
    """Return the Python of an environment."""
    return environment / "bin" / "python"


# The table

COLUMNS = (
    "Python",
    "dependencies",
    "extra",
    "installed",
    "import",
    "phantom",
    "segment",
    "evaluate",
    "extra used",
    "s",
)


def table(rows: list[Row], results: dict[str, Any], project: dict[str, Any]) -> str:
    """Return the rows that have a result as a table in Markdown."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS)]
    lines += [cells(row, results[row.name], project) for row in rows if row.name in results]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cells(row: Row, result: dict[str, Any], project: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of one row."""
    head = (row.python, row.dependencies, row.extra or "-")
    if result.get("absent"):
        return (*head, ABSENT, *["-"] * 5, "0")
    checks = result["checks"]
    installed = ", ".join(f"{name} {result['versions'].get(name, '?')}" for name in names_of(row, project))
    if not checks:
        return (*head, f"FAILED: {in_a_line(result['failed'])}", *["-"] * 5, str(result["seconds"]))
    core = [said(checks[name]) if name in checks else "-" for name in ("import", "phantom", "segment", "evaluate")]
    used = "; ".join(
        said(one) if len(checks) == 1 else f"{name}: {said(one)}"
        for name, one in checks.items()
        if name not in ("import", "phantom", "segment", "evaluate")
    )
    return (*head, installed, *core, used or "-", str(result["seconds"]))


def said(check: dict[str, Any]) -> str:
    """Return the note of a check; a failure begins with FAILED."""
    return str(check["note"]) if check["ok"] else f"FAILED: {in_a_line(check['note'])}"


def in_a_line(text: str) -> str:
    """Return the end of a message as the cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "/")[-300:]


def names_of(row: Row, project: dict[str, Any]) -> list[str]:
    """Return the direct dependencies that a row is about: the extra's own, or the package's."""
    given = project["optional-dependencies"][row.extra] if row.extra else project["dependencies"]
    names = [canonicalize_name(Requirement(text).name) for text in given]
    return [name for name in names if name != project["name"]] or ["torch", "numpy"]


def read_results(place: Path) -> dict[str, Any]:
    """Return the results that are there, those of earlier runs too, by row."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in (place / "results").glob("*.json")}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--python", type=Path, action="append", default=[], help="an interpreter; can be repeated")
    parser.add_argument("--only", default="", help="rows to run: a regular expression, as '3.11 lowest'")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    given = parser.parse_args()
    if missing := [str(path) for path in given.python if shutil.which(path) is None]:
        parser.error(f"--python: no program at {', '.join(missing)}; give the path of an interpreter")
    return given


if __name__ == "__main__":
    sys.exit(main())
