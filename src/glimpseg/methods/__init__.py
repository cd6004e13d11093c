"""Registry of methods. A module or package in this folder is a method; it has the members of `MethodModule`.

Methods of your own may be in other folders: name these in the environment variable `GLIMPSEG_METHODS` (separated as in
`PATH`), or call `add_folder`.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, get_args, get_type_hints

from glimpseg.errors import ModelError, UsageError
from glimpseg.runtime.documents import DocumentError, read_yaml

if TYPE_CHECKING:  # the names of the methods are listed without torch
    from pydantic import ValidationError
    from torch import Tensor

    from glimpseg.method import Learner, Segmenter
    from glimpseg.recipe import Recipe

OWN_FOLDERS = "GLIMPSEG_METHODS"
"""Environment variable with the folders of a user's own methods. Code is loaded from nowhere else."""
MEMBERS = ("Config", "METHOD", "RECIPES")
"""Names that every method's file has."""
_PACKAGE = Path(__file__).parent
_digests: dict[str, str] = {}
"""SHA-256 of the source of each own method that was imported, by name, as it was at that moment."""


def add_folder(folder: str | Path) -> None:
    """Register the methods in a folder of your own, for this process. A folder that is registered already is skipped.

    Raises: UsageError if the folder does not exist, or has a method whose name is taken.
    """
    _add(folder, "the path given to add_folder")


def _add(folder: str | Path, source: str) -> None:
    """Register a folder. `source`: origin of the path, for the message if the folder does not exist."""
    place = Path(folder).resolve()
    if not place.is_dir():
        raise UsageError(f"The folder of methods {place} does not exist. Correct {source}, or make the folder.")
    if str(place) in __path__:
        return
    taken = sorted(set(names()) & set(_names_in([str(place)])))
    if taken:
        raise UsageError(f"{place} has a method '{taken[0]}', and glimpseg has one of this name. Rename the file.")
    __path__.append(str(place))


def names() -> list[str]:
    """Return the names of all methods, sorted. A name is that of a module or package; no method is imported."""
    return sorted(_names_in(__path__))


def _names_in(folders: Iterable[str]) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_")]


def summary(name: str) -> tuple[str, list[str]]:
    """Return the first line of a method's docstring and its recipes' names, from the source; nothing is imported.

    The name has to be one of `names()`. Only recipes whose names are literal keys of `RECIPES` are found.

    Raises: UsageError if the file cannot be parsed; the message names file and line.
    """
    file = _source_file(name)
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(_unreadable(file, error)) from error
    recipes: list[str] = []
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "RECIPES" and isinstance(node.value, ast.Dict):  # type: ignore[attr-defined]
            recipes = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]  # type: ignore[attr-defined,misc]
    return (ast.get_docstring(tree) or "").split("\n")[0], recipes


def is_own(name: str) -> bool:
    """True if a method lies in a folder of the user's own, not in the package; False for an unknown name."""
    return name in names() and not _source_file(name).is_relative_to(_PACKAGE)


def own_digests(recipe: Recipe) -> dict[str, str]:
    """Return the SHA-256 of the source of each own method that a recipe names; empty for methods of the package.

    The source is that of the moment when the method was imported.
    """
    used = [recipe.method, *([] if recipe.backbone is None else [recipe.backbone.method])]
    own = [name for name in used if is_own(name)]
    for name in own:
        module(name)
    return {name: _digests[name] for name in own}


def _source_file(name: str) -> Path:
    """Return the file of a method; of a package its `__init__.py`."""
    files = (Path(folder, file) for folder in __path__ for file in (f"{name}/__init__.py", f"{name}.py"))
    return next(file for file in files if file.exists())


def _source_digest(name: str) -> str:
    """Return the SHA-256 of a method's file; of a package, that of the digests of all its Python files."""
    file = _source_file(name)
    if file.name != "__init__.py":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    files = sorted(file.parent.rglob("*.py"))
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def _unreadable(file: Path, error: Exception) -> str:
    """Return the message for a method's file that is no Python source; it names the line where it is known."""
    line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
    return f"{file}{line}: {error.msg if isinstance(error, SyntaxError) else error}. Correct the file."


class MethodModule(Protocol):
    """Protocol of a method's module: the members that each of them has."""

    Config: type
    """Configuration of the method: a validated dataclass."""
    METHOD: type[Learner]
    """Class of the learner: a `Segmenter`, called with a `Config` and the labels; or a pretraining, which is called
    with a `Config` and the network that it trains."""
    RECIPES: Mapping[str, Recipe]
    """Recipes by name."""


class AuthorsModule(MethodModule, Protocol):
    """Protocol of a method's module that can also import the weights of the paper's authors.

    It may have `CHECKPOINTS`, the number of files that make one model. Default: 1.
    """

    def from_authors(self, weights: Mapping[str, Tensor]) -> Segmenter:
        """Return the official network with the authors' weights. Raises: ModelError if they do not fit."""

    def authors_recipe(self, network: Segmenter) -> Recipe:
        """Return the recipe of a network that `from_authors` made."""


def module(name: str) -> MethodModule:
    """Return the module of a method.

    Raises: ModelError if there is no such method; UsageError if a file of the user's own cannot be imported, or lacks
        something that each method has.
    """
    if name not in names():
        known = ", ".join(names())
        raise ModelError(f"There is no method '{name}' in this version of glimpseg; it has {known}.{_own_hint()}")
    return _own_module(name) if is_own(name) else importlib.import_module(f"{__name__}.{name}")  # type: ignore[return-value]


def _own_module(name: str) -> MethodModule:
    """Import a method of the user's own, and check that it is one. Raises: UsageError if not."""
    from pydantic import ValidationError

    from glimpseg.method import Learner

    file, full = _source_file(name), f"{__name__}.{name}"
    if full not in sys.modules:
        _digests[name] = _source_digest(name)
    try:
        found: Any = importlib.import_module(full)
    except SyntaxError as error:
        raise UsageError(_unreadable(Path(error.filename or file), error)) from error
    except ValidationError as error:
        raise UsageError(f"{file}{_line(error, file)}: {_wrong_field(error, f'{error.title}.')}") from error
    except Exception as error:
        raise UsageError(f"{file}{_line(error, file)}: {type(error).__name__}: {error}") from error
    lacking = [member for member in MEMBERS if not hasattr(found, member)]
    if lacking:
        needs = "a method's file needs Config, METHOD and RECIPES"
        raise UsageError(f"{file.name} lacks {' and '.join(lacking)}; {needs}.")
    if not (isinstance(found.METHOD, type) and issubclass(found.METHOD, Learner)):
        raise UsageError(f"METHOD in {file.name} should be a class that inherits from glimpseg.method.Segmenter.")
    if not isinstance(found.RECIPES, Mapping):
        raise UsageError(f"RECIPES in {file.name} should be a dict of recipes by name.")
    return cast("MethodModule", found)


def _line(error: BaseException, file: Path) -> str:
    """Return the last line of a file in the traceback of an error, as `, line 7`; empty if it is not there."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""


def _own_hint() -> str:
    """Return a sentence about `GLIMPSEG_METHODS` where no folder of the user's own is registered, else nothing."""
    return "" if len(__path__) > 1 else f" If it is your own, set {OWN_FOLDERS} to its folder."


def authors_module(name: str) -> AuthorsModule | None:
    """Return the module of a method if it can import authors' weights, else None.

    Raises: ModelError if there is no such method.
    """
    found = module(name)
    return cast("AuthorsModule", found) if hasattr(found, "from_authors") else None


def build(recipe: Recipe) -> Learner:
    """Return the learner of a recipe, with random weights drawn from torch's global generator.

    Raises: ModelError if there is no such method, or no such method of the backbone; UsageError for labels, or a
        backbone, that the class of the method refuses, and for a class that does not call `super().__init__(labels)`.
    """
    if recipe.backbone is None:
        return _built(module(recipe.method).METHOD, recipe.config, recipe.label_values)
    backbone = _built(module(recipe.backbone.method).METHOD, recipe.backbone.config, recipe.label_values)
    return _built(module(recipe.method).METHOD, recipe.config, backbone)


def _built(method: Any, config: Any, argument: Any) -> Any:
    """Return a learner of a class. Raises: UsageError if its constructor does not call that of its base class."""
    from glimpseg.method import Segmenter

    begin = "super().__init__(labels)" if issubclass(method, Segmenter) else "super().__init__()"
    learner = method.__new__(method)
    try:
        learner.__init__(config, argument)
    except (AttributeError, TypeError) as error:
        if _is_begun(learner):
            raise
        raise UsageError(f"{method.__name__}.__init__ should begin with {begin}.") from error
    if not _is_begun(learner):
        raise UsageError(f"{method.__name__}.__init__ should begin with {begin}.")
    return learner


def _is_begun(learner: Any) -> bool:
    """True if the constructors of a learner's base classes ran."""
    from glimpseg.method import Segmenter

    return "_modules" in vars(learner) and (not isinstance(learner, Segmenter) or hasattr(learner, "labels"))


def with_backbone(recipe: Recipe, name: str) -> Recipe:
    """Return a pretraining recipe for the network of the recipe `name`, with that recipe's labels and preprocessing.

    The fine-tuning will have the same preprocessing.

    Raises: UsageError or ModelError as `find_recipe`; UsageError if `recipe` is no pretraining, or `name` is one.
    """
    other = find_recipe(name)
    _refuse_wrong_kind(recipe.method, other.method)
    assert recipe.backbone is not None, "a pretraining has a backbone"
    backbone = replace(recipe.backbone, method=other.method, config=other.config)
    data = replace(recipe.data, preprocess=other.data.preprocess)
    return replace(recipe, backbone=backbone, labels=other.labels, data=data)


def find_recipe(name: str, changes: Mapping[str, Any] | None = None, backbone: str | None = None) -> Recipe:
    """Return a recipe by name or from a file, with some fields changed.

    Args:
        name: `method/recipe`, or the path of a YAML file (`.yaml` or `.yml`).
        changes: New values by dotted path: `{"optim.steps": 20}`. They come after `backbone`.
        backbone: Name of the recipe whose network a pretraining trains; see `with_backbone`.

    Raises: UsageError for an unknown name or field (the message names a similar one, if there is one), a value that a
        field cannot have, or a file that cannot be read; ModelError for a file or a change that names an unknown
        method.
    """
    if name.endswith((".yaml", ".yml")):
        try:
            tree = _upgraded(read_yaml(Path(name)))
        except DocumentError as error:
            raise UsageError(f"The recipe {name} cannot be read ({error}). Correct it, or copy it again.") from error
    else:
        method, _, key = name.partition("/")
        if method not in names() or key not in module(method).RECIPES:
            known = [f"{m}/{r}" for m in names() for r in _recipe_names(m)]
            hint = "" if method in names() else _own_hint()
            raise UsageError(f"'{name}' is not a recipe.{_nearest(name, known)} Known: {', '.join(known)}.{hint}")
        tree = as_tree(_recipe_in_file(method, key))
    if backbone is not None:
        tree = as_tree(with_backbone(from_tree(tree), backbone))
    return from_tree(_changed(tree, changes or {}))


def _recipe_names(name: str) -> list[str]:
    """Return the recipes of `summary`, none for a file that cannot be parsed."""
    try:
        return summary(name)[1]
    except UsageError:
        return []


def _recipe_in_file(method: str, key: str) -> Recipe:
    """Return a recipe of a method's file. Raises: UsageError if it is no recipe, or names another method."""
    from glimpseg.recipe import Recipe

    recipe, file = module(method).RECIPES[key], _source_file(method).name
    if not isinstance(recipe, Recipe):
        raise UsageError(f"The recipe '{key}' in {file} should be a glimpseg.recipe.Recipe.")
    if recipe.method != method:
        raise UsageError(f"The recipe '{key}' in {file} says method='{recipe.method}'; it must be '{method}'.")
    return recipe


def with_choices(recipe: Recipe, choices: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a trained model with other values of the fields in its method's `choices`.

    Without changes it is the recipe itself.

    Args:
        recipe: The recipe.
        choices: New values by dotted path, such as `config.NAME`.

    Raises: UsageError for another field, or a value that it cannot have.
    """
    if not choices:
        return recipe
    able = [f"config.{name}" for name in getattr(module(recipe.method).METHOD, "choices", ())]
    for path in choices:
        if path not in able:
            can = f"Of this {recipe.method} one may choose {', '.join(able)}" if able else "It has no choices"
            raise UsageError(f"'{path}' was settled when this {recipe.method} was trained. {can}.")
    return from_tree(_changed(as_tree(recipe), choices))


def as_tree(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values, as its YAML file holds them."""
    from pydantic import TypeAdapter

    tree: dict[str, Any] = TypeAdapter(type(recipe)).dump_python(recipe, mode="json")
    return tree


def from_tree(tree: Any) -> Recipe:
    """Return a recipe from plain values; `config` and `backbone.config` become the `Config` of their methods.

    A missing `config` is an empty one.

    Raises: UsageError if `tree` is no mapping, for an unknown or missing field or a wrong value (the message names the
        field), and for a backbone that the method does not have, or lacks; ModelError for an unknown method.
    """
    from pydantic import TypeAdapter, ValidationError

    from glimpseg.recipe import Recipe

    if not isinstance(tree, dict):
        raise UsageError("A recipe should be a mapping with 'method', 'data', 'optim' and others.")
    tree, place = _upgraded(tree), ""
    _refuse_unknown_fields(Recipe, tree)
    try:
        recipe = TypeAdapter(Recipe).validate_python({"config": {}, **tree})
        place = "config."
        _refuse_unknown_fields(module(recipe.method).Config, recipe.config, place)
        config: Any = TypeAdapter(module(recipe.method).Config).validate_python(recipe.config)
        backbone = recipe.backbone
        _refuse_wrong_kind(recipe.method, None if backbone is None else backbone.method)
        if backbone is not None:
            place = "backbone.config."
            _refuse_unknown_fields(module(backbone.method).Config, backbone.config, place)
            own: Any = TypeAdapter(module(backbone.method).Config).validate_python(backbone.config)
            backbone = replace(backbone, config=own)
    except ValidationError as error:
        raise UsageError(f"Recipe field {_wrong_field(error, place)}") from error
    except ArithmeticError as error:  # of a check in `__post_init__`
        raise UsageError(
            f"Recipe field '{place or 'config.'}': its numbers do not suit each other ({error})."
        ) from error
    return replace(recipe, config=config, backbone=backbone)


def _wrong_field(error: ValidationError, place: str) -> str:
    """Return the path of the first field that pydantic refuses, after `place`, and the reason."""
    first = error.errors()[0]
    return f"'{(place + '.'.join(map(str, first['loc']))).rstrip('.')}': {first['msg'].rstrip('.')}."


def _refuse_unknown_fields(kind: Any, tree: Any, place: str = "") -> None:
    """Raise UsageError if plain values name a field that a dataclass, or one inside it, does not have.

    pydantic ignores such names for a plain dataclass. `place`: beginning of the path of a field, such as `config.`.
    """
    if not (is_dataclass(kind) and isinstance(tree, dict)):
        return
    known = [field.name for field in fields(kind)]
    try:
        hints = get_type_hints(kind)
    except NameError:  # a type that is imported for type checkers alone
        hints = {}
    for name, value in tree.items():
        if name not in known:
            close = _nearest(str(name), known)
            raise UsageError(f"The recipe has no field '{place}{name}'.{close} Here: {', '.join(known)}.")
        for inner in _dataclasses_in(hints.get(name)):
            _refuse_unknown_fields(inner, value, f"{place}{name}.")


def _dataclasses_in(hint: Any) -> Iterator[Any]:
    """Yield a type annotation if it is a dataclass, or the dataclass in `X | None`; nothing for several."""
    found = [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)]
    if len(found) == 1 and (found[0] is hint or type(None) in get_args(hint)):
        yield found[0]


def _upgraded(tree: Any) -> Any:
    """Return plain values with today's field names. In recipes of version 0.1 `init.transfer` was `init.part`."""
    if not isinstance(tree, dict) or not isinstance(tree.get("init"), dict) or "part" not in tree["init"]:
        return tree
    init = {"transfer" if name == "part" else name: value for name, value in tree["init"].items()}
    return {**tree, "init": init}


def _refuse_wrong_kind(method: str, backbone: str | None) -> None:
    from glimpseg.method import Segmenter

    segments = issubclass(module(method).METHOD, Segmenter)
    if segments and backbone is not None:
        raise UsageError(f"Recipe field 'backbone': {method} segments by itself and has none. Leave it out (null).")
    if not segments and (backbone is None or not issubclass(module(backbone).METHOD, Segmenter)):
        raise UsageError(
            f"Recipe field 'backbone': {method} is pretraining and needs a method that segments, not {backbone}. "
            "Name a recipe of one with --backbone METHOD/RECIPE."
        )


def _changed(tree: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for path, value in changes.items():
        _change(tree, path, value)
    return tree


def _change(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node = tree
    for word in [*parents, last]:
        if not isinstance(node, dict) or word not in node:
            known = list(node) if isinstance(node, dict) else []
            raise UsageError(f"The recipe has no field '{path}'.{_nearest(word, known)} Here: {', '.join(known)}.")
        if word is not last:
            node = node[word]
    node[last] = value


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


for _folder in filter(None, os.environ.get(OWN_FOLDERS, "").split(os.pathsep)):
    _add(_folder, OWN_FOLDERS)
