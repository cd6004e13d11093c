"""Mutation tests: which small faults in the numeric modules do the fast tests not notice?

    python tools/mutants.py [MODULE ...] [--tests NAME,NAME] [--jobs 2] [--survivors]

mutmut changes one operator, number, word or argument at a time. A mutant is killed if a test of its module fails. Each
module has its own short list of test files in MODULES. A table goes to the terminal. The differences that no test saw
are in `.mutants/MODULE/survivors.diff`; with one module, or with `--survivors`, they are printed too.

mutmut changes bodies of functions only: constants of a module need tests of their own. It leaves out functions with a
decorator, so this script writes a property as `name = property(name)` behind its function.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import re
import shutil
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = ROOT / ".mutants"
RESULT = "result.json"


@dataclass(frozen=True)
class Module:
    """Source file, and the test files that must notice its faults."""

    path: str
    tests: tuple[str, ...]
    functions: tuple[str, ...] = ()
    """Only these are changed; all if empty. A method is written `Class.name`, all methods `Class.*`."""


MODULES = {
    "method": Module("method.py", ("ema", "method", "unet")),
    "unet": Module("methods/unet.py", ("unet",)),
    "region": Module("region.py", ("regions",)),
    "losses": Module("losses.py", ("losses",)),
    "summary": Module("results/summary.py", ("summary",)),
    "statistics": Module("results/statistics.py", ("statistics",)),
    "scores": Module("results/scores.py", ("scores",)),
    "tables": Module("results/tables.py", ("tables",)),
    "scoring": Module("evaluation/scoring.py", ("scoring",)),
    "evaluation": Module("report/evaluation.py", ("report",)),
    "comparison": Module("report/comparison.py", ("report",)),
    "picture": Module("picture.py", ("pictures",)),
    "volume": Module("volume.py", ("volume",)),
    "expectation": Module("model/expectations.py", ("expectation",)),
    "uncertainty": Module("segmentation/uncertainty.py", ("uncertainty",)),
    "calibration": Module("metrics/calibration.py", ("calibration",)),
    "histogram": Module("evaluation/histogram.py", ("calibration", "expectation")),
    "conclusion": Module("evaluation/conclusion.py", ("calibration", "expectation"), ("_estimate_errors", "_gains")),
    "calibrate": Module("evaluation/calibrate.py", ("calibration", "expectation"), ("_random_order",)),
    "protocol": Module("evaluation/protocol.py", ("protocol",)),
    "augment": Module("data/augment.py", ("augment",)),
    "recipe": Module("recipe.py", ("schedule",)),
    "train": Module("training/state.py", ("ema", "schedule"), ("TrainingState.step", "TrainingState.model_weights")),
    "provenance": Module("model/provenance.py", ("provenance",)),
    "digests": Module("model/digests.py", ("provenance",)),
}

NO_FAULTS = {
    "a zip of lists that are equally long by construction": re.compile(r"strict=(True|False|None)"),
    "the name of the UTF-8 encoding in capitals": re.compile(r"(?i:\"utf-8\")"),
    "UTF-8 is the platform's encoding too": re.compile(
        r"encoding=(\"utf-8\"|None)|(?<=read_text\()(\"utf-8\"|None)?(?=\))"
    ),
    "lines end alike on every platform that the tests run on": re.compile(r"newline=(\"\"|None)"),
    "the words of an assertion of our own": re.compile(r"(?<=, )f?\"[^\"]*\"$"),
}
"""Changes that no test of behaviour can notice, with the reason. A mutant is left out if its old and new lines are
equal without what the pattern matches. The last pattern counts in lines with `assert` alone."""


def main() -> int:
    """Run the mutants of the modules named; 0 whatever survives, 1 if a run fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--tests", help="test files in place of those in MODULES: volume,nifti")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--survivors", action="store_true", help="print what survived")
    options = parser.parse_args()
    unknown = [name for name in options.modules if name not in MODULES]
    if unknown:
        parser.error(f"'{unknown[0]}' is not a module. Choose among {', '.join(MODULES)}.")
    names = options.modules or list(MODULES)
    tests = tuple(options.tests.split(",")) if options.tests else ()
    _load_libraries()
    began = time.monotonic()
    at_once = min(options.jobs, len(names))
    with ThreadPoolExecutor(at_once) as pool:
        found = pool.map(lambda name: _run(name, tests or MODULES[name].tests, options.jobs // at_once), names)
        results = dict(zip(names, found, strict=True))
    if options.survivors or len(names) == 1:
        for name in names:
            print((SCRATCH / name / "survivors.diff").read_text("utf-8") if results[name] else "")
    print(_table(results))
    print(f"{time.monotonic() - began:.0f} s")
    return 0 if all(results.values()) else 1


def _load_libraries() -> None:
    """Import slow libraries once, before the processes of the modules are forked. One thread: OpenMP's threads do
    not survive a fork. Run-time type checks are off: a mutant must be killed by a test's expected value."""
    os.environ |= {"OMP_NUM_THREADS": "1", "GLIMPSEG_TEST_THREADS": "1", "GLIMPSEG_TYPECHECK": "0"}
    import jaxtyping
    import matplotlib
    import nibabel  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch

    matplotlib.use("agg")
    torch.set_num_threads(1)
    torch.set_num_threads = lambda _: None  # a test's set-up would start threads
    jaxtyping.install_import_hook = lambda *_: contextlib.nullcontext()


def _run(name: str, tests: tuple[str, ...], jobs: int) -> dict[str, int] | None:
    """Counts of one module's mutants by outcome, None if its run failed; works in a forked process."""
    folder = SCRATCH / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    process = os.fork()
    if not process:
        code = 1
        try:
            _mutate(MODULES[name], tests, folder, jobs)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.waitpid(process, 0)
    result = folder / RESULT
    return json.loads(result.read_text("utf-8")) if result.exists() else None


def _mutate(module: Module, tests: tuple[str, ...], folder: Path, jobs: int) -> None:
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    Path("tests").symlink_to(ROOT / "tests")
    shutil.copytree(ROOT / "src", "src", ignore=shutil.ignore_patterns("__pycache__"))
    source = Path("src/glimpseg", module.path)
    source.write_text(_undecorated(source.read_text("utf-8")), "utf-8")
    files = [f"tests/test_{test}.py" for test in tests if (ROOT / f"tests/test_{test}.py").exists()]
    if not files:
        Path(RESULT).write_text("{}", "utf-8")
        Path("survivors.diff").write_text("no test file\n", "utf-8")
        return
    settings = f"only_mutate = {json.dumps([f'src/glimpseg/{module.path}'])}\n"
    settings += f"pytest_add_cli_args_test_selection = {json.dumps(files)}\n"
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    Path("pyproject.toml").write_text(project.replace("[tool.mutmut]\n", f"[tool.mutmut]\n{settings}"), "utf-8")

    from mutmut.__main__ import cli  # it reads the settings on import

    dotted = "glimpseg." + module.path.removesuffix(".py").replace("/", ".")
    cli(["run", "--max-children", str(jobs), *(_pattern(dotted, f) for f in module.functions)], standalone_mode=False)
    _write_result(f"src/glimpseg/{module.path}")


def _undecorated(source: str) -> str:
    """Source with `name = decorator(name)` behind each function in place of a decorator before it."""
    lines = source.split("\n")
    tree = ast.parse(source)
    bodies = [tree.body, *(node.body for node in tree.body if isinstance(node, ast.ClassDef))]
    functions = [node for body in bodies for node in body if isinstance(node, ast.FunctionDef)]
    for node in sorted(functions, key=lambda node: node.lineno, reverse=True):
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        if not decorators or {"staticmethod", "classmethod", "overload"} & set(decorators):
            continue
        assert not any(text.endswith((".setter", ".getter", ".deleter")) for text in decorators), "not known here"
        call = node.name
        for text in reversed(decorators):
            call = f"{text}({call})"
        lines.insert(node.end_lineno or 0, f"{' ' * node.col_offset}{node.name} = {call}")
        del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "\n".join(lines)


def _pattern(dotted: str, function: str) -> str:
    owner, _, name = function.rpartition(".")
    return f"{dotted}.xǁ{owner}ǁ{name}*" if owner else f"{dotted}.x_{name}*"


def _write_result(path: str) -> None:
    """Count the outcomes and write the differences of the survivors."""
    from mutmut.mutation.data import MutantLineSpans, SourceFileMutationData
    from mutmut.stats import status_by_exit_code

    found = SourceFileMutationData(path=Path(path))
    found.load()
    spans = MutantLineSpans.load(Path(path))
    assert spans is not None, "mutmut writes where each function stands"
    counts = dict.fromkeys(("mutants", "killed", "survived", "timeout", "not covered", "left out"), 0)
    survivors = []
    for mutant, code in found.exit_code_by_key.items():
        if code is None:
            continue
        name = mutant.rpartition(".")[2]
        original = name.rpartition("__mutmut_")[0] + "__mutmut_orig"
        old, new = spans.read_function_sources([original, name])
        difference = list(unified_diff(old.splitlines(), new.replace(name, original).splitlines(), n=1, lineterm=""))[
            2:
        ]
        if _is_no_fault(difference):
            counts["left out"] += 1
            continue
        status = status_by_exit_code[code]
        outcome = {"no tests": "not covered", "segfault": "killed"}.get(status, status)
        counts["mutants"] += 1
        counts[outcome] = counts.get(outcome, 0) + 1
        if outcome not in ("killed", "timeout"):
            survivors.append("\n".join([f"# {mutant}: {outcome}", *(x for x in difference if x[:2] != "@@")]))
    Path("survivors.diff").write_text("\n\n".join(survivors) + "\n", "utf-8")
    Path(RESULT).write_text(json.dumps(counts), "utf-8")


def _is_no_fault(difference: list[str]) -> bool:
    old, new = ("\n".join(line[1:].rstrip() for line in difference if line.startswith(sign)) for sign in "-+")
    for reason, pattern in NO_FAULTS.items():
        if "assertion" in reason and not old.lstrip().startswith("assert "):
            continue
        if _without(pattern, old) == _without(pattern, new):
            return True
    return False


def _without(pattern: re.Pattern[str], text: str) -> str:
    """Text without what the pattern matches, and without the comma that an argument leaves."""
    text = re.sub(r",\s*(?=,|\))", "", pattern.sub("", text))
    return re.sub(r"\(\s*,\s*", "(", text)


def _table(results: dict[str, dict[str, int] | None]) -> str:
    columns = ("mutants", "killed", "survived", "timeout", "not covered", "left out")
    lines = [f"{'module':<12}" + "".join(f"{column:>12}" for column in columns) + f"{'percent':>10}"]
    whole = dict.fromkeys(columns, 0)
    for name, counts in results.items():
        if not counts:
            why = "the run failed: see" if counts is None else "no test file yet;"
            lines.append(f"{name:<12} {why} .mutants/{name}/log.txt")
            continue
        whole = {column: whole[column] + counts[column] for column in columns}
        lines.append(_row(name, counts, columns))
    return "\n".join([*lines, _row("all", whole, columns)] if len(results) > 1 else lines)


def _row(name: str, counts: dict[str, int], columns: tuple[str, ...]) -> str:
    percent = 100 * (counts["killed"] + counts["timeout"]) / max(counts["mutants"], 1)
    return f"{name:<12}" + "".join(f"{counts[column]:>12}" for column in columns) + f"{percent:>10.1f}"


if __name__ == "__main__":
    sys.exit(main())
