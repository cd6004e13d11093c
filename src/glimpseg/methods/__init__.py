"""One paper, one file. A file in this folder is a method: it has a `Config`, a `METHOD` and `RECIPES`.

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
from types import ModuleType
from typing import Any

import yaml

from glimpseg.errors import ModelError, UsageError

OWN_FOLDERS = "GLIMPSEG_METHODS"
"""Environment variable with the folders of a user's own methods. Code is loaded from nowhere else."""


def add_folder(folder: str | Path) -> None:
    """Register the methods in a folder of your own, for this process.

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
    """Return the names of all methods, sorted. A name is a file's name; nothing is imported."""
    return sorted(_names_in(__path__))


def _names_in(folders: Iterable[str]) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_")]


def summary(name: str) -> tuple[str, list[str]]:
    """First line of a method's docstring and the names of its recipes, read from the source, not imported."""
    files = (Path(folder, file) for folder in __path__ for file in (f"{name}.py", f"{name}/__init__.py"))
    tree = ast.parse(next(file for file in files if file.exists()).read_text("utf-8"))
    recipes: list[str] = []
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "RECIPES" and isinstance(node.value, ast.Dict):  # type: ignore[attr-defined]
            recipes = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]  # type: ignore[attr-defined,misc]
    return (ast.get_docstring(tree) or "").split("\n")[0], recipes


def module(name: str) -> ModuleType:
    """A method's module. Raises: ModelError if there is no such method."""
    if name not in names():
        raise ModelError(f"There is no method '{name}' in this version of glimpseg; it has {', '.join(names())}.")
    return importlib.import_module(f"{__name__}.{name}")


def build(recipe: Any) -> Any:
    """The learner that a recipe describes, freshly initialised from the global generator."""
    made = module(recipe.method).METHOD
    if recipe.backbone is None:
        return made(recipe.config, recipe.label_values)
    return made(recipe.config, module(recipe.backbone.method).METHOD(recipe.backbone.config, recipe.label_values))


def with_backbone(recipe: Any, name: str) -> Any:
    """A pretraining of another network: that of the recipe `name`, with its preparation of the data, which the
    fine-tuning will have, too.

    Raises: UsageError as `find_recipe`, or if either recipe is of the other kind.
    """
    other = find_recipe(name)
    _refuse_wrong_kind(recipe.method, other.method)
    backbone = replace(recipe.backbone, method=other.method, config=other.config)
    data = replace(recipe.data, preprocess=other.data.preprocess)
    return replace(recipe, backbone=backbone, labels=other.labels, data=data)


def find_recipe(name: str, changes: Mapping[str, Any] | None = None, backbone: str | None = None) -> Any:
    """A recipe by `method/recipe` or from a YAML file, with fields changed by dotted path. A pretraining may be given
    the network of another recipe, `backbone`, whose preparation of the data it then shares.

    Raises: UsageError for an unknown name, field or value, with the nearest that exists.
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


def chosen(recipe: Any, choices: Mapping[str, Any]) -> Any:
    """A trained model's recipe with another way of segmenting: fields that its method names in `choices`.

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


def as_tree(recipe: Any) -> dict[str, Any]:
    """A recipe as plain values, as its YAML holds them."""
    from pydantic import TypeAdapter

    return TypeAdapter(type(recipe)).dump_python(recipe, mode="json")


def from_tree(tree: Any) -> Any:
    """A recipe from plain values, `config` as the method's own type. Raises: UsageError naming the field."""
    from pydantic import TypeAdapter, ValidationError

    from glimpseg.recipe import Recipe

    if not isinstance(tree, dict):
        raise UsageError("A recipe should be a mapping with 'method', 'data', 'optim' and others.")
    place = ""
    try:
        recipe = TypeAdapter(Recipe).validate_python({"config": {}, **_upgraded(tree)})
        config = TypeAdapter(module(recipe.method).Config).validate_python(recipe.config)
        backbone = recipe.backbone
        _refuse_wrong_kind(recipe.method, None if backbone is None else backbone.method)
        if backbone is not None:
            place = "backbone.config."
            own = TypeAdapter(module(backbone.method).Config).validate_python(backbone.config)
            backbone = replace(backbone, config=own)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"Recipe field '{place}{'.'.join(map(str, first['loc']))}': {first['msg']}.") from error
    return replace(recipe, config=config, backbone=backbone)


def _upgraded(tree: Any) -> Any:
    """A recipe's plain values with today's field names; `init.transfer` was `init.part` until version 0.1."""
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
