"""Read the name of an image: the sequence that its words say, or the reason why they say none.

The words are those of `rules.yaml` and `spellings.py`, which series descriptions are read with, too. A name is read
more strictly than a description, because nothing else says what the image is: doubt is never decided.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from glimpseg.data.identify.evidence import LONGEST, matching_rules
from glimpseg.data.identify.rules import folded, packaged_rules
from glimpseg.data.identify.spellings import NEUTRAL, separated
from glimpseg.modality import ALIASES, Modality

_ENTITY = re.compile(r"(?<![A-Za-z0-9])(?:sub|ses|run|task|dir|space|echo|part|chunk|tpl)-[A-Za-z0-9]+", re.IGNORECASE)
"""BIDS entities whose values say nothing of the sequence: `ses-post`, `space-T1w`."""
_REFERENCE = re.compile(r"(?<![^\W_])segm?(?:entations?)?(?![^\W_])", re.IGNORECASE)
_REFERENCE_LAST = re.compile(r"(?<![^\W_])segm?$", re.IGNORECASE)
_WEIGHTS = {"t1": "T1", "t2": "T2", "flair": "FLAIR"}
_T1_WORD = re.compile(r"(?<![a-z0-9])(?:t1(?![0-9])|unit1)")
_WEIGHTING_WORDS = re.compile(r"(?<![a-z0-9])(?:t[12](?:wi?)?|flair)(?![a-z0-9])")
_INVERSION = "T1-weighted inversion recovery"
_BOTH = "both with and without contrast agent"
_DARK_FLUID = re.compile(r"flair|dark ?-?fl|fluid")
_CHANGED = re.compile(r"(?<![a-z0-9])(?:synth\w*|symri|magic)(?![a-z0-9])")
NOT_NAMED = "its name says no sequence"


@dataclass(frozen=True, kw_only=True)
class NameReading:
    """Sequence that a name says, or the reason why it says none."""

    sequence: Modality | None = None
    why: str = ""
    """Reason why the image is not used; "" if the name says a sequence. It quotes no word that is not in the table."""
    doubtful: bool = False
    """True if the name speaks of a sequence, but not clearly of one."""
    ends: bool = False
    """True if no other word follows the sequence."""

    @property
    def sequence_title(self) -> str:
        """Title of the sequence, or "no sequence"."""
        return "no sequence" if self.sequence is None else self.sequence.title


def read_name(name: str, study: str = "") -> NameReading:
    """Return the sequence that the name of an image says.

    Words that are not in the table are ignored wherever they stand. A word counts only with borders: `patient1` is
    not T1. T1 with a word for contrast agent is T1c.

    Args:
        name: file name without its ending.
        study: name of the study's folder. Where `name` begins with it, the rest is read alone if it says a sequence.
    """
    if study and name.lower().startswith(study.lower()) and re.match(r"[\W_]", name[len(study) :]):
        rest = _read(name[len(study) :])
        if rest.sequence is not None or rest.doubtful:
            return rest
    return _read(name)


def names_reference(name: str, *, last: bool = True) -> bool:
    """True if a name says that the image is a segmentation: it ends in `seg` or `segm`; or has this word anywhere."""
    return bool((_REFERENCE_LAST if last else _REFERENCE).search(name))


def says_nothing_else(name: str) -> bool:
    """True if a name consists of the words of one sequence, or of a segmentation; planes and numbers may be there."""
    if re.fullmatch(r"segm?(?:entations?)?s?", name, re.IGNORECASE):
        return True
    if _read(name).sequence is None:
        return False
    rest = separated(folded(name))
    for _, _, matched in matching_rules(rest, packaged_rules().words):
        rest = rest.replace(matched, " ")
    return all(word in NEUTRAL or word.isdecimal() for word in re.findall(r"[^\W_]+", rest))


@lru_cache(maxsize=65536)
def _read(name: str) -> NameReading:
    exact = ALIASES.get(name.strip("-_. ").lower())
    if exact is not None:
        return NameReading(sequence=exact, ends=True)
    text = separated(folded(_ENTITY.sub(" ", name)[-LONGEST:]))
    votes = dict.fromkeys(("t1", "t2", "flair", "drop", "contrast", "plain"), 0.0)
    reasons: dict[str, str] = {}
    because: set[str] = set()
    last = ""
    for rule, quoted, matched in matching_rules(text, packaged_rules().words):
        because.add(rule.because)
        for vote, points in (rule.votes or {}).items():
            votes[vote] = votes.get(vote, 0.0) + points
            reasons.setdefault(vote, f"'{quoted}' in its name: {rule.because}")
        if rule.votes and "drop" not in rule.votes and text.rstrip(" _.-").endswith(matched.strip(" _.-")):
            last = matched
    weights = [weight for weight in _WEIGHTS if votes[weight] > 0]
    if votes["drop"] >= max(votes[weight] for weight in _WEIGHTS) and votes["drop"]:
        return NameReading(why=reasons["drop"])
    if not weights:
        return NameReading(why=NOT_NAMED)
    doubt = _doubt(text, votes, weights, because)
    if doubt:
        return NameReading(why=doubt, doubtful=True)
    if weights[-1] != "t1":
        sequence = Modality.FLAIR if "flair" in weights else Modality.T2
    else:
        sequence = Modality.T1C if votes["contrast"] else Modality.T1
    return NameReading(sequence=sequence, ends=bool(last))


def _doubt(text: str, votes: dict[str, float], weights: list[str], because: set[str]) -> str:
    """Return why the words leave the sequence open; "" if they do not."""
    if any(reason.startswith(_INVERSION) for reason in because):
        return "its name says T1 and FLAIR"
    if "t1" in weights and len(weights) > 1:
        return f"its name says {' and '.join(_WEIGHTS[weight] for weight in weights)}"
    words = [word.rstrip("wi") for word in _WEIGHTING_WORDS.findall(text)]
    if words.count("t1") > 1 or words.count("t2") > 1:
        return f"its name says {'T1' if words.count('t1') > 1 else 'T2'} twice, which may mean a time point"
    if _CHANGED.search(text):
        return "it seems to be synthetic"
    if weights == ["t1"]:
        if (votes["contrast"] and votes["plain"]) or _BOTH in because:
            return "its name says with and without contrast agent"
        if not votes["contrast"] and not votes["plain"] and not _T1_WORD.search(text):
            return "its name says T1-weighted, but not whether T1 or T1c"
    if weights == ["flair"] and not _DARK_FLUID.search(text) and "fat is suppressed" in because:
        return "an inversion recovery with fat suppression: STIR or FLAIR"
    if max(votes[weight] for weight in weights) < 4:
        return "too little in its name for a sequence"
    return ""
