"""Read JSON and YAML that a person or another program may have written: plain values only, with limits.

Everything that makes a document unusable is told in one line: a wrong encoding, a name that stands twice in a table, a
number that is none, aliases of YAML that stand for millions of values, a tag that asks for an object of Python.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

MOST_BYTES = 64 << 20
"""Longest JSON file: room for a list of half a million files."""
MOST_YAML_BYTES = 256 << 10
"""Longest YAML. Recipes have 2 kB; a longer one takes seconds to read."""
MOST_VALUES = 100_000
"""Most values of a YAML document after its aliases are put in."""
DEEPEST = 64
"""Most lists and tables in each other."""
MOST_DIGITS = 100
"""Most digits of a whole number. A longer one is no number of ours, and no float."""

_HALVES = re.compile("[\ud800-\udfff]")
"""Halves of characters (surrogates), which no file can hold."""
_HALVES_BUT_BYTES = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""The same without those that stand for a byte of a file name."""


class DocumentError(ValueError):
    """Document that cannot be used; the message is one line and says why."""


Value = TypeVar("Value", bound=dict[str, Any] | list[Any] | str | float)

_KINDS = {dict: "a table", list: "a list", str: "text", float: "a number", bool: "true or false"}

BROKEN = (DocumentError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)
"""Errors of reading a document, and of using content that is not what it should be."""


def read_json(path: Path, *, most_bytes: int = MOST_BYTES, finite: bool = True, names_files: bool = False) -> Any:
    """Return the content of a JSON file in UTF-8.

    Args:
        path: The file.
        most_bytes: Longest file that is read.
        finite: False also allows NaN and infinite numbers, which JSON does not have but our own files may hold.
        names_files: True also allows file names that are no UTF-8, as Python holds them (surrogates).

    Raises: DocumentError if the file cannot be read, or is no such JSON.
    """
    return parse_json(_text(path, most_bytes), finite=finite, names_files=names_files)


def parse_json(text: str, *, finite: bool = True, names_files: bool = False) -> Any:
    """Return the content of a JSON text. Raises: DocumentError as `read_json`."""
    try:
        tree = json.loads(text, object_pairs_hook=_table, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise DocumentError(str(error)) from error
    except RecursionError as error:
        raise DocumentError(_too_deep()) from error
    _check(tree, finite=finite, letters=_HALVES_BUT_BYTES if names_files else _HALVES)
    return tree


def field_of(tree: Any, name: str, kind: type[Value], default: Value | None = None) -> Value:
    """Return a field of a table in a document that was read.

    Args:
        tree: The table.
        name: Name of the field.
        kind: What the field holds. `float` stands for any number, and not for true or false.
        default: Value of a field that is not there, or null. None: the field has to be there.

    Raises: DocumentError if `tree` is no table, or if the field lacks or holds something else.
    """
    if not isinstance(tree, dict):
        raise DocumentError(f"there should be a table with '{name}', not {_kind_of(tree)}")
    value: Any = tree.get(name)
    if value is None and default is not None:
        return default
    if name not in tree:
        raise DocumentError(f"it lacks '{name}'")
    if _kind_of(value) != _KINDS[kind]:
        raise DocumentError(f"'{name}' should be {_KINDS[kind]}, not {_kind_of(value)}")
    return value


def texts_of(tree: Any, name: str, default: list[str] | None = None) -> list[str]:
    """Return a field that holds a list of texts. Raises: DocumentError as `field_of`, and for any other value in it."""
    texts = field_of(tree, name, list, default)
    for text in texts:
        if not isinstance(text, str):
            raise DocumentError(f"'{name}' should hold text, not {_kind_of(text)}")
    return texts


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    return _KINDS[bool if isinstance(value, bool) else float if isinstance(value, int) else type(value)]


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file in UTF-8, with the values of JSON only.

    Raises: DocumentError if the file cannot be read, or is no such YAML.
    """
    return parse_yaml(_text(path, MOST_YAML_BYTES))


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML text. Raises: DocumentError as `read_yaml`."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_aliases(node)
        tree = loader.construct_document(node)
    except DocumentError:
        raise
    except RecursionError as error:
        raise DocumentError(_too_deep()) from error
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise DocumentError(f"{error.problem or error.context}{place}") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise DocumentError(str(error).splitlines()[0]) from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise DocumentError(f"a value is not of the type that it says ({error})") from error
    _check(tree, finite=True, letters=_HALVES)
    return tree


def _text(path: Path, most_bytes: int) -> str:
    try:
        if path.stat().st_size > most_bytes:
            raise DocumentError(f"it is longer than {most_bytes:,} bytes")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DocumentError(error.strerror or type(error).__name__) from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not in UTF-8 (byte {error.start:,} is {error.object[error.start]:#04x})") from error


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises: DocumentError for a name that comes again with another value."""
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table and table[name] != value:
            raise DocumentError(f"'{_short(name)}' stands there twice, with different values")
        table[name] = value
    return table


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise DocumentError(f"it has a number of {len(digits):,} digits")
    return int(digits)


class _Loader(yaml.SafeLoader):
    """YAML loader that refuses a name that stands twice in a table, and whole numbers of too many digits."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a table. Raises: DocumentError for a name that stands twice."""
        if isinstance(node, yaml.MappingNode):
            names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode) and name.value != "<<"]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise DocumentError(f"'{_short(twice)}' stands there twice, near line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_int(self, node: Any) -> int:
        """Return a whole number. Raises: DocumentError for one of too many digits."""
        if len(node.value) > MOST_DIGITS:
            raise DocumentError(f"it has a number of {len(node.value):,} digits")
        return super().construct_yaml_int(node)

    def construct_undefined(self, node: Any) -> NoReturn:
        """Refuse a tag for which there is no plain value."""
        raise DocumentError(f"line {node.start_mark.line + 1} asks for '{_short(node.tag)}', which is no plain value")


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor(None, _Loader.construct_undefined)


def _check_aliases(node: Any) -> None:
    """Count the values that a YAML document stands for. Raises: DocumentError for too many, or for a circle."""
    sizes: dict[int, int] = {}
    active: set[int] = set()

    def size(node: Any) -> int:
        key = id(node)
        if key in sizes:
            return sizes[key]
        if key in active:
            raise DocumentError("an alias stands for a value that holds the alias itself")
        active.add(key)
        if len(active) > DEEPEST:
            raise DocumentError(_too_deep())
        sizes[key] = 1 + sum(size(inner) for inner in _inside(node))
        active.discard(key)
        if sizes[key] > MOST_VALUES:
            raise DocumentError(f"it stands for more than {MOST_VALUES:,} values")
        return sizes[key]

    size(node)


def _inside(node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair


def _check(tree: Any, *, finite: bool, letters: re.Pattern[str]) -> None:
    """Check the values of a document.

    Raises: DocumentError for a value that JSON does not have, for deep nesting, and for a text with one of the letters.
    """
    level = [tree]
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                for name in value:
                    if not isinstance(name, str):
                        raise DocumentError(f"'{_short(str(name))}' should be a name, which is text")
                    _check_text(name, letters)
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
            else:
                _check_plain(value, finite, letters)
        if not inner:
            return
        level = inner
    raise DocumentError(_too_deep())


def _check_plain(value: Any, finite: bool, letters: re.Pattern[str]) -> None:
    if isinstance(value, str):
        _check_text(value, letters)
    elif isinstance(value, float):
        if finite and not math.isfinite(value):
            raise DocumentError(f"it has the number {value}; numbers are finite here")
    elif not (value is None or isinstance(value, bool | int)):
        raise DocumentError(f"it has a value of the kind '{type(value).__name__}', which is neither text nor number")


def _check_text(text: str, letters: re.Pattern[str]) -> None:
    if not text.isascii() and letters.search(text):
        raise DocumentError("it has half of a character (a surrogate)")


def _too_deep() -> str:
    return f"its lists and tables lie more than {DEEPEST} deep in each other"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
