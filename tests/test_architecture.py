"""Imports run downwards, in no circle, and naming the package costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import glimpseg

ROOT = Path(glimpseg.__file__).parent

FLOORS = (
    ("errors", "version", "losses"),
    ("modality", "region", "volume", "foreground", "runtime"),
    ("study", "metrics", "nets", "picture"),
    ("results",),
    ("data",),
    ("method", "phantom", "priors"),
    ("recipe",),
    ("methods",),
    ("model",),
    ("segmentation", "training"),
    ("batch", "evaluation"),
    ("report",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
"""From the ground up; docs/architecture.md shows the same list."""

FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def modules():
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
        if path != ROOT / "__init__.py"
    }


def imports(path):
    """Every module of the package that a file imports, also inside functions."""
    known = modules()
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        inside = {name.removeprefix("glimpseg.") for name in names if name.startswith("glimpseg.")}
        # `from glimpseg.data import nifti` names the package, but means the module.
        exact = {name for name in inside if name in known}
        found |= {name for name in exact if not any(other.startswith(name + ".") for other in exact)}
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_never_go_up(module):
    here = FLOOR[module.split(".")[0]]
    above = {name for name in imports(modules()[module]) if FLOOR[name.split(".")[0]] > here}
    assert not above


def test_imports_make_no_circle():
    graph = {name: imports(path) - {name} for name, path in modules().items()}
    # A package's __init__ hands on names of its own modules; that is no circle.
    done, active = set(), []

    def visit(name):
        assert name not in active, " -> ".join([*active[active.index(name) :], name])
        if name in done:
            return
        active.append(name)
        for below in graph.get(name, ()):
            visit(below)
        active.pop()
        done.add(name)

    for name in graph:
        visit(name)


def test_papers_never_import_papers():
    papers = {name for name in modules() if name.startswith("methods.")}
    for paper in papers:
        family = ".".join(paper.split(".")[:2])  # a paper may be a folder
        others = {name for name in papers if ".".join(name.split(".")[:2]) != family}
        assert not imports(modules()[paper]) & others


def test_every_module_says_what_it_is_in_its_first_line():
    for name, path in modules().items():
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        assert docstring, f"{name} has no docstring"


HEAVY = {"monai", "transformers", "SimpleITK", "matplotlib", "ray", "onnx", "onnxruntime", "openvino", "highdicom"}
"""What a segmentation loads only when it needs it, if at all."""


def test_segment_is_reached_without_heavy_imports():
    code = f"import glimpseg, sys; glimpseg.segment; print(({HEAVY} | {{'scipy.stats'}}) & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_naming_the_package_imports_neither_torch_nor_numpy():
    code = "import glimpseg, sys; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_the_command_line_names_its_verbs_without_torch():
    code = "import glimpseg.cli, sys; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_the_architecture_page_shows_these_floors():
    page = (ROOT.parents[1] / "docs" / "architecture.md").read_text("utf-8")
    for floor in FLOORS:
        for name in floor:
            assert f"`{name}`" in page or f"`{name}/`" in page, f"docs/architecture.md does not mention {name}"
