"""Rules for `identify`: words, parameter ranges and image types with their points; also a user's own words."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from glimpseg.errors import UsageError
from glimpseg.runtime.documents import DocumentError, read_yaml

Vote: TypeAlias = Literal["t1", "t2", "flair", "drop", "contrast", "plain", "second"]
"""Conclusion that evidence supports. `t1`, `t2`, `flair`: the weighting. `drop`: not a structural image of a head.
`contrast`, `plain`: with or without contrast agent. `second`: made from another series."""

PACKAGED = Path(__file__).with_name("rules.yaml")
"""File with the packaged rules."""
JOINT = r"[\s_.,:/-]*"
"""Pattern of the characters that may separate two words of a rule."""
EXTRA_POINTS = 12.0
"""Points for a user's own word: more than a packaged word, less than a certain sign such as a b-value."""
EXTRA_BYTES = 1 << 20
"""Largest file with a user's own words."""
EXTRA_KINDS: Mapping[str, Mapping[Vote, float]] = {
    "t1": {"t1": EXTRA_POINTS, "plain": EXTRA_POINTS},
    "t1c": {"t1": EXTRA_POINTS, "contrast": EXTRA_POINTS},
    "t2": {"t2": EXTRA_POINTS},
    "flair": {"flair": EXTRA_POINTS},
    "contrast": {"contrast": EXTRA_POINTS},
    "plain": {"plain": EXTRA_POINTS},
    "drop": {"drop": 2 * EXTRA_POINTS},
}
"""Keys of a user's file of words, with the votes of each."""
_STRICT = ConfigDict(extra="forbid")


@validated(frozen=True, kw_only=True, config=_STRICT)
class WordRule:
    """Rule for words of a description: patterns and their votes."""

    words: tuple[str, ...]
    votes: Mapping[Vote, float] | None = None
    because: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """Regular expression that matches any of the words."""
        return _compiled(self.words)


@validated(frozen=True, kw_only=True, config=_STRICT)
class NumberRule:
    """Rule for acquisition parameters: ranges and their votes. All conditions must hold."""

    between: Mapping[str, tuple[float, float]] | None = None
    """Range of each parameter, by DICOM keyword or `Slices`; both ends included."""
    absent: tuple[str, ...] = ()
    """Parameters that must be missing or 0."""
    echo: tuple[str, ...] = ()
    """Values of ScanningSequence, one of which must be present."""
    never: tuple[str, ...] = ()
    """Values of ScanningSequence that must not be present."""
    votes: Mapping[Vote, float]
    because: str


@validated(frozen=True, kw_only=True, config=_STRICT)
class TypeRule:
    """Rule for elements of ImageType, or for kinds of contrast: values and their votes."""

    any: tuple[str, ...]
    votes: Mapping[Vote, float]
    because: str


@validated(frozen=True, kw_only=True, config=_STRICT)
class Rules:
    """Complete table of rules, in the order in which they are tried."""

    words: tuple[WordRule, ...]
    pulses: tuple[WordRule, ...]
    numbers: tuple[NumberRule, ...]
    types: tuple[TypeRule, ...]
    contrasts: tuple[TypeRule, ...]


@cache
def packaged_rules() -> Rules:
    """Return the rules of the package; they are read at the first call and kept in memory."""
    return TypeAdapter(Rules).validate_python(yaml.safe_load(PACKAGED.read_text("utf-8")))


def rules_with(extra: Path | None) -> Rules:
    """Return the packaged rules, preceded by a user's own words if a file is given.

    The file is YAML: lists of plain words under `t1`, `t1c`, `t2`, `flair`, `contrast`, `plain` or `drop`.

    Raises: UsageError when it cannot be read or says something else.
    """
    rules = packaged_rules()
    if extra is None:
        return rules
    own = tuple(
        WordRule(words=tuple(map(_literal, words)), votes=EXTRA_KINDS[kind], because=f"your word for {kind}")
        for kind, words in _read_extra(extra).items()
    )
    return replace(rules, words=own + rules.words)


def folded(text: str) -> str:
    """Normalise a text: no accents, lower case, and one space for each run of underscores and white space."""
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(character for character in decomposed if not unicodedata.combining(character))
    return re.sub(r"[\s_]+", " ", bare).casefold().replace("\u0131", "i").strip()


def _read_extra(path: Path) -> Mapping[str, list[str]]:
    wanted = f"lists of words under {', '.join(EXTRA_KINDS)}"
    try:
        if path.stat().st_size > EXTRA_BYTES:
            raise UsageError(f"{path.name} is longer than a table of words can be. Give {wanted}.")
        content = read_yaml(path)
    except (OSError, DocumentError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"The table of words {path.name} cannot be read ({said}). Give YAML: {wanted}.") from error
    try:
        given = TypeAdapter(dict[str, list[str]]).validate_python(content)
    except ValidationError as error:
        raise UsageError(f"{path.name} is no table of words. Give {wanted}, as in 'flair: [dunkelfluid]'.") from error
    for kind, words in given.items():
        if kind not in EXTRA_KINDS:
            raise UsageError(f"{path.name} has words for '{kind}', which is no sequence. Give {wanted}.")
        if not all(folded(word) for word in words):
            raise UsageError(f"{path.name} has an empty word for '{kind}'. Take it out.")
    return given


def _literal(word: str) -> str:
    """Pattern for a user's word: its characters are literal, but any separator may stand between its parts."""
    return " ".join(re.escape(part) for part in re.split(r"[\s_.,:/-]+", folded(word)) if part) or re.escape(word)


@cache
def _compiled(words: tuple[str, ...]) -> re.Pattern[str]:
    joined = "|".join(_loose(unicodedata.normalize("NFKD", word)) for word in words)
    edge = "[a-z0-9\u0430-\u044f]"
    return re.compile(f"(?<!{edge})(?:{joined})(?!{edge})")


def _loose(word: str) -> str:
    """Replace each space, with its quantifier, by any separator or none; remove accents, as in the text."""
    bare = "".join(character for character in word if not unicodedata.combining(character))
    return re.sub(r" [?*]?", lambda _: JOINT, bare)


def in_words(value: float) -> str:
    """Format a parameter value with four significant digits; an infinite one as "any"."""
    return "any" if math.isinf(value) else f"{value:.4g}"
