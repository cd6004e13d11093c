"""The table of rules: which words, numbers and image types speak for which sequence; and a user's own words."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from glimpseg.errors import UsageError

Vote: TypeAlias = Literal["t1", "t2", "flair", "drop", "contrast", "plain", "second"]
"""What evidence can speak for: a weighting, against the series, contrast agent or none, that it is no original."""

PACKAGED = Path(__file__).with_name("rules.yaml")
JOINT = r"[\s_.,:/-]*"
"""What may stand between two words of a rule."""
EXTRA_POINTS = 12.0
"""For a user's own word: it outweighs a packaged one, but no certain sign such as a b-value."""
EXTRA_BYTES = 1 << 20
"""A table of words is no longer than this."""
EXTRA_KINDS: Mapping[str, Mapping[Vote, float]] = {
    "t1": {"t1": EXTRA_POINTS, "plain": EXTRA_POINTS},
    "t1c": {"t1": EXTRA_POINTS, "contrast": EXTRA_POINTS},
    "t2": {"t2": EXTRA_POINTS},
    "flair": {"flair": EXTRA_POINTS},
    "contrast": {"contrast": EXTRA_POINTS},
    "plain": {"plain": EXTRA_POINTS},
    "drop": {"drop": 2 * EXTRA_POINTS},
}
"""What a user's file may say of a word."""
_STRICT = ConfigDict(extra="forbid")


@validated(frozen=True, kw_only=True, config=_STRICT)
class WordRule:
    """Words of a description and what they speak for."""

    words: tuple[str, ...]
    votes: Mapping[Vote, float] | None = None
    because: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """Any of the words, for `re`."""
        return _compiled(self.words)


@validated(frozen=True, kw_only=True, config=_STRICT)
class NumberRule:
    """Ranges of parameters and what they speak for."""

    between: Mapping[str, tuple[float, float]] | None = None
    """By DICOM keyword, or Slices; both ends included."""
    absent: tuple[str, ...] = ()
    """Parameters that the header lacks or gives as 0."""
    echo: tuple[str, ...] = ()
    """ScanningSequence names one of these."""
    never: tuple[str, ...] = ()
    """ScanningSequence names none of these."""
    votes: Mapping[Vote, float]
    because: str


@validated(frozen=True, kw_only=True, config=_STRICT)
class TypeRule:
    """Elements of ImageType, or kinds of contrast, and what they speak for."""

    any: tuple[str, ...]
    votes: Mapping[Vote, float]
    because: str


@validated(frozen=True, kw_only=True, config=_STRICT)
class Rules:
    """The whole table, in the order in which it is tried."""

    words: tuple[WordRule, ...]
    pulses: tuple[WordRule, ...]
    numbers: tuple[NumberRule, ...]
    types: tuple[TypeRule, ...]
    contrasts: tuple[TypeRule, ...]


@cache
def packaged_rules() -> Rules:
    """The table that comes with the package."""
    return TypeAdapter(Rules).validate_python(yaml.safe_load(PACKAGED.read_text("utf-8")))


def rules_with(extra: Path | None) -> Rules:
    """The packaged table with a user's words before all others; the table alone for None.

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
    """Without accents and dots, in small letters, with single spaces for underscores and gaps."""
    apart = unicodedata.normalize("NFKD", text)
    bare = "".join(character for character in apart if not unicodedata.combining(character))
    return re.sub(r"[\s_]+", " ", bare).casefold().replace("\u0131", "i").strip()


def _read_extra(path: Path) -> Mapping[str, list[str]]:
    wanted = f"lists of words under {', '.join(EXTRA_KINDS)}"
    try:
        if path.stat().st_size > EXTRA_BYTES:
            raise UsageError(f"{path.name} is longer than a table of words can be. Give {wanted}.")
        content: Any = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
    """A user's word as a pattern: nothing in it means more than itself, but joints are free."""
    return " ".join(re.escape(part) for part in re.split(r"[\s_.,:/-]+", folded(word)) if part) or re.escape(word)


@cache
def _compiled(words: tuple[str, ...]) -> re.Pattern[str]:
    joined = "|".join(_loose(unicodedata.normalize("NFKD", word)) for word in words)
    edge = "[a-z0-9\u0430-\u044f]"
    return re.compile(f"(?<!{edge})(?:{joined})(?!{edge})")


def _loose(word: str) -> str:
    """A space becomes any joint or none, however it is quantified; accents go, as they do in the text."""
    bare = "".join(character for character in word if not unicodedata.combining(character))
    return re.sub(r" [?*]?", lambda _: JOINT, bare)


def in_words(value: float) -> str:
    """A parameter as people write it."""
    return "any" if math.isinf(value) else f"{value:.4g}"
