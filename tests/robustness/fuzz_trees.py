"""Damaged JSON, YAML and text: wrong types, wrong keys, wrong nesting, wrong encodings; see `fuzz_files.py`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import yaml
from fuzz_bytes import cut, flip, insert

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 1.5, 255, 1024, 10**6, -(10**6), 2**31, 2**63, 2**64, 10**40, 10**400, 1e-300,
    1e300, float("nan"), float("inf"), float("-inf"), "", " ", "x", "0", "1", "-1", "1e999", "nan", "null",
    "\u0661", "\u00b2",
    "a\0b", "\x1b[31mred\x1b[0m", "a\nb", "\u202e", "\ud800", "../../outside", "/outside", "C:\\outside", "~/x",
    "$HOME", "%s%n", "{x}", "{0.__class__}", "=1+1", "<b>", "y" * 5000, [], [None], [[]], [1, "a", None], {},
    {"": 0}, {"a": {}},
    {"x" * 300: 1}, ["z"] * 3000, "t1", "t1c", "T1", "unet", "2001-01-01", "1_000", "0b1", "off",
)  # fmt: skip
"""Values that a field should not hold, or that it should not hold there."""
KEYS = (
    "",
    "a",
    "A",
    "method",
    "config",
    "labels",
    "__class__",
    "0",
    "-1",
    "x" * 2000,
    "a\nb",
    "\x1b[1m",
    "a.b",
    "\ud800",
)
"""Names of keys that are not expected."""
DEPTHS = (30, 200, 1500, 100_000)
"""Numbers of lists or tables in each other."""


def damaged_tree(rng: np.random.Generator, tree: Any) -> Any:
    """Return a copy of a tree of plain values with none to three things changed in it."""
    found = copy.deepcopy(tree)
    for _ in range(int(rng.choice([0, 1, 1, 1, 2, 3]))):
        places = [place for place in _containers(found) if place]
        if not places or rng.random() < 0.03:
            return _value(rng)
        _damage(rng, places[int(rng.integers(len(places)))])
    return found


def _value(rng: np.random.Generator) -> Any:
    return copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])


def _containers(tree: Any) -> Iterator[Any]:
    """Yield all tables and lists of a tree."""
    if isinstance(tree, dict | list):
        yield tree
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(inner)


def _damage(rng: np.random.Generator, place: Any) -> None:
    """Change one table or list that is not empty."""
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    key = keys[int(rng.integers(len(keys)))]
    match int(rng.integers(8)):
        case 0 | 1 | 2:
            place[key] = _value(rng)
        case 3:
            del place[key]
        case 4 if isinstance(place, dict):
            place[str(KEYS[int(rng.integers(len(KEYS)))])] = _value(rng)
        case 4:
            place.insert(key, _value(rng))
        case 5:
            place[key] = [place[key]] if rng.random() < 0.5 else {"value": place[key]}
        case 6:
            place[key] = str(place[key]) if rng.random() < 0.5 else copy.deepcopy(place)
        case 7 if isinstance(place[key], int | float) and not isinstance(place[key], bool):
            place[key] = place[key] * float(rng.choice([-1, 0, 1e-9, 1e3, 1e9]))
        case _:
            place[key] = _value(rng)


def as_json(rng: np.random.Generator, tree: Any) -> bytes:
    """Return a tree as JSON text, in one case of four with something wrong in the text itself."""
    text = json.dumps(tree, indent=[None, 1][int(rng.integers(2))], ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.25:
        text = JSON_FAULTS[int(rng.integers(len(JSON_FAULTS)))](rng, text)
    return encoded(rng, text)


def as_yaml(rng: np.random.Generator, tree: Any) -> bytes:
    """Return a tree as YAML text, in one case of four with something wrong in the text itself."""
    try:
        text = yaml.safe_dump(tree, sort_keys=False)
    except (UnicodeEncodeError, yaml.YAMLError):
        text = json.dumps(tree)
    if rng.random() < 0.25:
        text = YAML_FAULTS[int(rng.integers(len(YAML_FAULTS)))](rng, text)
    return encoded(rng, text)


def encoded(rng: np.random.Generator, text: str) -> bytes:
    """Return the bytes of a text, in one case of five in another encoding, with other line ends, or damaged."""
    if rng.random() < 0.8:
        return text.encode("utf-8", "surrogatepass")
    plain = text.encode("utf-8", "replace")
    match int(rng.integers(10)):
        case 0:
            return b"\xef\xbb\xbf" + plain
        case 1:
            return text.encode("utf-16", "replace")
        case 2:
            return text.encode(str(rng.choice(["utf-16-le", "utf-16-be", "utf-32"])), "replace")
        case 3:
            return text.replace("a", "\u00e4", 3).encode("latin-1", "replace")
        case 4:
            return plain.replace(b"\n", [b"\r\n", b"\r", b"\n\r", b"\x0b", b"\0"][int(rng.integers(5))])
        case 5:
            return b""
        case 6:
            return plain + bytes([0] * int(rng.integers(1, 9)))
    content = bytearray(plain)
    (flip, cut, insert)[int(rng.integers(3))](rng, content)
    return bytes(content)


def _spliced(rng: np.random.Generator, text: str, *parts: str) -> str:
    """Return a text with one of the parts in the place of one of its plain values."""
    places = [at for at, letter in enumerate(text) if letter in ":[,"] or [0]
    at = places[int(rng.integers(len(places)))] + 1
    end = min((found for found in (text.find(stop, at) for stop in ",\n]}") if found >= 0), default=len(text))
    return f"{text[:at]} {parts[int(rng.integers(len(parts)))]}{text[end:]}"


def _twice(rng: np.random.Generator, text: str) -> str:
    """Return a JSON object whose first keys come again, with another value."""
    begin = text.find('"')
    end = text.find('"', begin + 1)
    return f"{text[: begin + 1]}{text[begin + 1 : end + 1]}: 7, {text[begin:]}" if 0 <= begin < end else text


def _deep(begin: str, end: str) -> Callable[[np.random.Generator, str], str]:
    def spliced(rng: np.random.Generator, text: str) -> str:
        depth = int(rng.choice(DEPTHS))
        return _spliced(rng, text, begin * depth + "0" + end * depth)

    return spliced


JSON_FAULTS: tuple[Callable[[np.random.Generator, str], str], ...] = (
    _twice,
    _deep("[", "]"),
    _deep('{"a":', "}"),
    lambda rng, text: _spliced(
        rng, text, "NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "-" + "9" * 400, "1.5e-400"
    ),
    lambda rng, text: _spliced(
        rng, text, "'x'", "undefined", "True", "0x10", "01", "+1", ".5", "1.", "// x", "/* x */"
    ),
    lambda rng, text: _spliced(rng, text, '"\\ud800"', '"\\x"', '"\\u00"', '"\t"', '"\0"'),
    lambda rng, text: text + text,
    lambda rng, text: text[:-1] + ",]}"[int(rng.integers(3))],
    lambda rng, text: f"[{text}]",
    lambda rng, text: json.dumps(text),
)


def _bomb(rng: np.random.Generator, text: str) -> str:
    """Return YAML whose aliases stand for 9 ^ n values ("billion laughs"),
    before the text or as one of its values."""
    levels = int(rng.integers(3, 25))
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    if rng.random() < 0.5:
        return "\n".join(["bomb:", *lines]) + "\n" + text
    flow = ", ".join(line[2:] for line in lines)
    return _spliced(rng, text, f"[{flow}]")


def _merge_bomb(rng: np.random.Generator, text: str) -> str:
    """Return YAML whose merge keys double a table many times."""
    levels = int(rng.integers(3, 40))
    lines = ["x0: &m0 {a0: 1}"]
    lines += [f"x{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}], a{n}: 1}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n" + text


TAGS = (
    "!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!python/object:os.PathLike {}",
    "!unknown x", "!!binary aGVsbG8=", "!!binary '*'", "!!set {a, b}", "!!omap [a: 1]",
    "!!timestamp 2001-13-45", "!!int x",
    "!!float x", "!!bool x", "!!null x", "!!str 1", "!!map [1]", "!!seq {a: 1}", "!<tag:yaml.org,2002:int> 9",
    "!!pairs [a]",
)  # fmt: skip

YAML_FAULTS: tuple[Callable[[np.random.Generator, str], str], ...] = (
    _bomb,
    _merge_bomb,
    _deep("[", "]"),
    _deep("{a: ", "}"),
    lambda rng, text: "".join(f"{' ' * n}a:\n" for n in range(int(rng.choice([50, 900])))) + text,
    lambda rng, text: "".join(f"{'- ' * int(rng.choice([50, 900, 5000]))}a\n"),
    lambda rng, text: _spliced(rng, text, *TAGS),
    lambda rng, text: _spliced(rng, text, *TAGS),
    lambda rng, text: text + text,
    lambda rng, text: f"{text}\n---\n{text}",
    lambda rng, text: _spliced(rng, text, "&a [*a]", "*nothing", "&a {<<: *a}", "&a x", "&a"),
    lambda rng, text: _spliced(
        rng, text, ".nan", ".inf", "-.inf", "1e999", "9" * 5000, "190:20:30", "0o17", "017", "0x_"
    ),
    lambda rng, text: _spliced(rng, text, "2001-01-01", "2001-99-01", "2001-12-14t21:59:43.10-05:00", "yes", "~", "="),
    lambda rng, text: _spliced(
        rng, text, "'x", '"\\xzz"', '"\\ud800"', "@x", "`x", "%x", "|", ">", "- -", "?", ": :", "{a"
    ),
    lambda rng, text: text.replace("  ", "\t", 1),
    lambda rng, text: "%YAML 9.9\n---\n" + text,
    lambda rng, text: (
        f"{{[a]: 1, {{b: 2}}: 3}}\n{text}" if rng.random() < 0.5 else "? [a, b]\n: 1\n? {c: d}\n: 2\n" + text
    ),
)
