"""Registry of methods. A module or package in this folder is a method; it has the members of `MethodModule`.

Methods of your own may be in other folders: name these in the environment variable `GLIMPSEG_METHODS` (separated as in
`PATH`), or call `add_folder`.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import yaml

from glimpseg.errors import ModelError, UsageError

if TYPE_CHECKING:  # the names of the methods are listed without torch
    from torch import Tensor

    from glimpseg.method import Learner, Segmenter
    from glimpseg.recipe import Recipe

OWN_FOLDERS = "GLIMPSEG_METHODS"
"""Environment variable with the folders of a user's own methods. Code is loaded from nowhere else."""


def add_folder(folder: str | Path) -> None:
    """Register the methods in a folder of your own, for this process. A folder that is registered already is skipped.

    Raises: UsageError if the folder does not exist, or has a method whose name is taken.
    """
    place = Path(folder).resolve()
    if not place.is_dir():
        raise UsageError(f"The folder of methods {place} does not exist. Correct {OWN_FOLDERS}, or make the folder.")
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
    """
    files = (Path(folder, file) for folder in __path__ for file in (f"{name}.py", f"{name}/__init__.py"))
    tree = ast.parse(next(file for file in files if file.exists()).read_text("utf-8"))
    recipes: list[str] = []
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "RECIPES" and isinstance(node.value, ast.Dict):  # type: ignore[attr-defined]
            recipes = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]  # type: ignore[attr-defined,misc]
    return (ast.get_docstring(tree) or "").split("\n")[0], recipes


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
    """Return the module of a method. Raises: ModelError if there is no such method."""
    if name not in names():
        raise ModelError(f"There is no method '{name}' in this version of glimpseg; it has {', '.join(names())}.")
    return cast("MethodModule", importlib.import_module(f"{__name__}.{name}"))


def authors_module(name: str) -> AuthorsModule | None:
    """Return the module of a method if it can import authors' weights, else None.

    Raises: ModelError if there is no such method.
    """
    found = module(name)
    return cast("AuthorsModule", found) if hasattr(found, "from_authors") else None


def build(recipe: Recipe) -> Learner:
    """Return the learner of a recipe, with random weights drawn from torch's global generator.

    Raises: ModelError if there is no such method, or no such method of the backbone; UsageError for labels, or a
        backbone, that the class of the method refuses.
    """
    method = module(recipe.method).METHOD
    if recipe.backbone is None:
        return method(recipe.config, recipe.label_values)
    return method(recipe.config, module(recipe.backbone.method).METHOD(recipe.backbone.config, recipe.label_values))


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
            tree = _upgraded(yaml.safe_load(Path(name).read_text("utf-8")))
        except (OSError, yaml.YAMLError) as error:
            raise UsageError(f"The recipe {name} cannot be read: {error}") from error
    else:
        method, _, key = name.partition("/")
        if method not in names() or key not in module(method).RECIPES:
            known = [f"{m}/{r}" for m in names() for r in summary(m)[1]]
            raise UsageError(f"'{name}' is not a recipe.{_nearest(name, known)} Known: {', '.join(known)}.")
        tree = as_tree(module(method).RECIPES[key])
    if backbone is not None:
        tree = as_tree(with_backbone(from_tree(tree), backbone))
    return from_tree(_changed(tree, changes or {}))


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
    place = ""
    try:
        recipe = TypeAdapter(Recipe).validate_python({"config": {}, **_upgraded(tree)})
        config: Any = TypeAdapter(module(recipe.method).Config).validate_python(recipe.config)
        backbone = recipe.backbone
        _refuse_wrong_kind(recipe.method, None if backbone is None else backbone.method)
        if backbone is not None:
            place = "backbone.config."
            own: Any = TypeAdapter(module(backbone.method).Config).validate_python(backbone.config)
            backbone = replace(backbone, config=own)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"Recipe field '{place}{'.'.join(map(str, first['loc']))}': {first['msg']}.") from error
    return replace(recipe, config=config, backbone=backbone)


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
    add_folder(_folder)
