"""README and documentation: the tree is complete, commands exist, links lead to files."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import typer

import glimpseg
from glimpseg.cli.app import app
from glimpseg.cli.entry import main  # noqa: F401  (verbs join the application when it is imported)

PACKAGE = Path(glimpseg.__file__).parent
ROOT = PACKAGE.parents[1]
README = ROOT / "README.md"
PAGES = sorted(
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"))
    if "_build" not in page.parts
)


def tree_lines():
    """Entries of the tree in the README: those of the repository, and those of the package."""
    block = README.read_text("utf-8").split("## The tree")[1].split("```")[1]
    entries = [line.split()[0] for line in block.splitlines() if line.strip()]
    top = [line.split()[0] for line in block.splitlines() if line and not line.startswith(" ")]
    return top, [entry for entry in entries if entry not in top]


@cache
def files():
    """Files of the project; those that a checkout's user has made do not count."""
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [Path(line) for line in listed.splitlines()]


def names(below):
    """Folders (with a slash) and files directly below a folder."""
    inside = [path.relative_to(below) for path in files() if path.is_relative_to(below)]
    return {path.parts[0] + ("/" if len(path.parts) > 1 else "") for path in inside}


def test_the_tree_lists_every_folder_of_the_repository():
    top, _ = tree_lines()
    there = {name for name in names(".") if name.endswith("/") and not name.startswith(".")}
    assert sorted(top) == sorted(there - {"src/"} | {"src/glimpseg/"})


def test_the_tree_lists_every_folder_and_module_of_the_package():
    _, inside = tree_lines()
    assert sorted(inside) == sorted(names("src/glimpseg") - {"py.typed"})


def test_the_readme_is_short():
    assert len(README.read_text("utf-8").splitlines()) <= 150


def test_commands_of_the_readme_exist():
    command = typer.main.get_command(app)
    for words in re.findall(r"glimpseg ([a-z].*?)(?:`|$|  )", README.read_text("utf-8"), re.MULTILINE):
        verb, *rest = words.split()
        found = command.commands[verb]
        if hasattr(found, "commands"):
            found = found.commands[rest[0]]
        known = {option for parameter in found.params for option in parameter.opts} | {"--help"}
        assert {word for word in rest if word.startswith("-")} <= known, words


def headings(page):
    """Anchors of a page's headings, as GitHub and the documentation's build name them."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)", text, re.MULTILINE)
    }


def is_broken(page, link):
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    return not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)[^)]*\)", text)
    assert [link for link in links if "://" not in link and is_broken(page, link)] == []
