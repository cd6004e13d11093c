"""What the headers of one series say, piece by piece: each with its points and a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from glimpseg.data.identify.rules import NumberRule, Rules, TypeRule, Vote, WordRule, folded, in_words
from glimpseg.data.series import Series

FREE_TEXT = {"SeriesDescription": "description", "FileName": "file name", "ProtocolName": "protocol"}
"""Where people write, the most telling first."""
PULSE_TEXT = {
    "SequenceName": "sequence name",
    "PulseSequenceName": "sequence name",
    "PulseSequenceDetails": "sequence name",
}
PROTOCOL_SHARE = 0.5
"""Of a word's points when only the protocol has it: some scanners keep the name of another scan there."""
LONGEST = 200
"""Characters of a text that are looked at; DICOM allows 64."""
AGENT_POINTS = 3.0
"""For a contrast agent in the header: sites often enter it for scans before the injection, too."""
AGENT_SAID = "the header names a contrast agent"
TIME_POINTS = 3.0
"""For a beginning before or after the injection."""
BODY_POINTS = 12.0
OTHER_BODY = re.compile(r"spine|abdom|pelvi|knee|chest|breast|heart|prostat|liver|shoulder|thorax|foot|hand|hip|ankle")
NO_AGENT = re.compile(r"(none|no|n|n/a|na|nil|null|0|-+|ohne|without|unenhanced|keine?s?|non|false|unknown)?\.?")
CONTRAST_FIELDS = ("ContrastBolusAgent", "ContrastBolusIngredient")
SENTENCE_NUMBERS = {
    "RepetitionTime": "TR",
    "EchoTime": "TE",
    "InversionTime": "TI",
    "FlipAngle": "flip angle",
    "DiffusionBValue": "b",
    "NumberOfTemporalPositions": "volumes",
    "Slices": "slices",
}

_GLUED = (
    # A weighting written onto a plane or a prefix: axt1, sT1W, 3dt1; and with more behind it, as in t1post, t13d.
    (re.compile(r"(?<![a-z0-9])((?:(?:ax|tra|sag|cor|cr|obl)[a-z]*|[23]d|[a-z])?)(t[12])(?!\d(?!d))"), r"\1 \2 "),
    (re.compile(r"(mprage|flair|bravo|e?f?spgr)"), r" \1 "),
    (re.compile(r"(?<![a-z0-9])([23]d)(?=[a-z])"), r"\1 "),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One piece: what it speaks for, how strongly, and why."""

    vote: Vote
    points: float
    because: str
    """A sentence for the screen. What it quotes of a header is already free of names."""

    def __str__(self) -> str:
        return f"{self.because} ({self.points:+g} {self.vote})"


def evidence_of(series: Series, rules: Rules, *, protocol_tells: bool = True) -> tuple[Evidence, ...]:
    """All that one series says of itself, in the order of the rules.

    `protocol_tells`: whether the protocol's name belongs to the series; else it names the examination.
    """
    pieces = [
        *_words(series, rules.words, protocol_tells),
        *_pulses(series, rules.pulses),
        *(piece for rule in rules.numbers for piece in _number(series, rule)),
        *(piece for rule in rules.types for piece in _type("image type", series.image_type, rule)),
        *(piece for rule in rules.contrasts for piece in _type("header", _contrasts(series), rule)),
        *_modality(series),
        *_body(series),
        *_agent(series),
        *_timing(series),
    ]
    return tuple(dict.fromkeys(pieces))


def total(evidence: Iterable[Evidence], vote: Vote) -> float:
    """The points for one thing."""
    return sum(piece.points for piece in evidence if piece.vote == vote)


def unglued(text: str) -> str:
    """A folded text with words apart that people write together: `axt1post` becomes `ax t1 post`."""
    for pattern, apart in _GLUED:
        text = pattern.sub(apart, text)
    return re.sub(r" +", " ", text).strip()


def slices(series: Series) -> int | None:
    """How many slices it has; None if the header does not say."""
    return None if series.shape is None else series.shape[2]


def _words(series: Series, rules: tuple[WordRule, ...], protocol_tells: bool) -> Iterator[Evidence]:
    found: dict[int, list[Evidence]] = {}
    for keyword, place in FREE_TEXT.items():
        hits = dict(_hits(series.words.get(keyword, ""), rules))
        if keyword == "ProtocolName" and not (protocol_tells and _is_needed(found.values())):
            continue
        share = PROTOCOL_SHARE if keyword == "ProtocolName" else 1.0
        for number, quoted in hits.items():
            votes = rules[number].votes or {}
            because = f"'{quoted}' in the {place}: {rules[number].because}"
            pieces = [Evidence(vote=vote, points=points * share, because=because) for vote, points in votes.items()]
            found.setdefault(number, pieces)
    yield from (piece for pieces in found.values() for piece in pieces)


def _is_needed(found: Iterable[list[Evidence]]) -> bool:
    """Whether description and file name tell neither a weighting nor a reason to drop the series."""
    return not any(piece.vote in ("t1", "t2", "flair", "drop") for pieces in found for piece in pieces)


def _hits(text: str, rules: tuple[WordRule, ...]) -> Iterator[tuple[int, str]]:
    """Numbers of rules with what they matched; what is matched is out of reach for the next."""
    rest = unglued(folded(text[:LONGEST]))
    for number, rule in enumerate(rules):
        match = rule.pattern.search(rest)
        if match is not None:
            yield number, match.group().strip(" _.,:/-") or match.group()
            rest = rule.pattern.sub(" | ", rest)


def _pulses(series: Series, rules: tuple[WordRule, ...]) -> Iterator[Evidence]:
    texts = [(folded(series.words.get(keyword, "")[:LONGEST]), place) for keyword, place in PULSE_TEXT.items()]
    for rule in rules:
        for text, place in texts:
            match = rule.pattern.search(text.lstrip("*"))
            if match is not None:
                because = f"'{match.group()}' in the {place}: {rule.because}"
                for vote, points in (rule.votes or {}).items():
                    yield Evidence(vote=vote, points=points, because=because)
                break


def _number(series: Series, rule: NumberRule) -> Iterator[Evidence]:
    numbers = dict(series.numbers)
    count = slices(series)
    if count is not None:
        numbers["Slices"] = count
    ranges = rule.between or {}
    if not all(name in numbers and low <= numbers[name] <= high for name, (low, high) in ranges.items()):
        return
    if any(numbers.get(name, 0) for name in rule.absent):
        return
    echoes = set(re.split(r"[^A-Z]+", series.words.get("ScanningSequence", "").upper()))
    if (rule.echo and not echoes & set(rule.echo)) or echoes & set(rule.never):
        return
    said = ", ".join(f"{SENTENCE_NUMBERS.get(name, name)} {in_words(numbers[name])}" for name in ranges)
    for vote, points in rule.votes.items():
        yield Evidence(vote=vote, points=points, because=f"{said}: {rule.because}" if said else rule.because)


def _type(place: str, elements: Iterable[str], rule: TypeRule) -> Iterator[Evidence]:
    has = [element for element in elements if element.strip().upper() in rule.any]
    for vote, points in rule.votes.items() if has else ():
        yield Evidence(vote=vote, points=points, because=f"{place} {has[0]}: {rule.because}")


def _contrasts(series: Series) -> tuple[str, ...]:
    """What enhanced DICOM says of the kind of image in words of its own."""
    return tuple(series.words.get(keyword, "") for keyword in ("AcquisitionContrast", "ComplexImageComponent"))


def _modality(series: Series) -> Iterator[Evidence]:
    modality = series.words.get("Modality", "").strip().upper()
    if modality not in ("", "MR"):
        yield Evidence(vote="drop", points=100.0, because="not magnetic resonance imaging")


def _body(series: Series) -> Iterator[Evidence]:
    part = OTHER_BODY.search(folded(series.words.get("BodyPartExamined", "")))
    if part is not None:
        yield Evidence(vote="drop", points=BODY_POINTS, because=f"body part '{part.group()}': no head")


def named_agent(series: Series) -> bool:
    """Whether the header names a contrast agent, and not its absence."""
    values = (folded(series.words.get(keyword, "")) for keyword in CONTRAST_FIELDS)
    return any(not NO_AGENT.fullmatch(value) for value in values)


def _agent(series: Series) -> Iterator[Evidence]:
    if named_agent(series):
        yield Evidence(vote="contrast", points=AGENT_POINTS, because=AGENT_SAID)


def _timing(series: Series) -> Iterator[Evidence]:
    if series.acquired_s is None or series.injected_s is None:
        return
    minutes = (series.acquired_s - series.injected_s) / 60
    when = f"begun {abs(minutes):.0f} min {'after' if minutes >= 0 else 'before'} the injection in its header"
    yield Evidence(vote="contrast" if minutes >= 0 else "plain", points=TIME_POINTS, because=when)
