"""The house style that a program can check: docstrings begin plainly, functions stay small in what they take."""

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import glimpseg

ROOT = Path(glimpseg.__file__).parent
QUESTIONS = re.compile(r"(What|Of|How|Whether|Where|Those)\b")
"""A first line should name the thing or say what is done; these words begin a riddle."""
FEWEST_DOCSTRINGS = 2_000
MOST_QUESTIONS = 24
MOST_PARAMETERS = 7
MOST_POSITIONAL = 4

SOURCES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def docstrings(tree: ast.AST) -> Iterator[str]:
    """First lines of the docstrings of a module, its classes, functions, and of attributes and constants."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if not isinstance(body, list):
            continue
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text.splitlines()[0]
        for before, after in itertools.pairwise(body):
            if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                value = after.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value.strip().splitlines()[0]


def parameters(function: ast.FunctionDef) -> int:
    """How many a caller may give; `self` and `cls` aside."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def test_docstrings_name_the_thing_or_say_what_is_done():
    lines = [(name, line) for name, tree in SOURCES.items() for line in docstrings(tree)]
    riddles = [f"{name}: {line}" for name, line in lines if QUESTIONS.match(line)]
    assert len(lines) > FEWEST_DOCSTRINGS, "are the docstrings still found?"
    assert len(riddles) <= MOST_QUESTIONS, "\n".join(riddles)


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.startswith("cli/")])
def test_functions_take_few_parameters(module):
    functions = (node for node in ast.walk(SOURCES[module]) if isinstance(node, ast.FunctionDef))
    many = {
        f"{function.name} ({parameters(function)})" for function in functions if parameters(function) > MOST_PARAMETERS
    }
    assert not many, "gather some of them in an options dataclass"


@pytest.mark.parametrize("module", SOURCES)
def test_calls_name_what_they_pass(module):
    calls = (node for node in ast.walk(SOURCES[module]) if isinstance(node, ast.Call))
    many = {
        f"line {call.lineno}: {ast.unparse(call.func)}"
        for call in calls
        if len([argument for argument in call.args if not isinstance(argument, ast.Starred)]) > MOST_POSITIONAL
    }
    assert not many, "pass them by keyword"
