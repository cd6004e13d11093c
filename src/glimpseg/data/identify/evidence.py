"""Evidence from the headers of one series: each piece has a vote, points and a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from glimpseg.data.identify.rules import NumberRule, Rules, TypeRule, Vote, WordRule, folded, in_words
from glimpseg.data.identify.spellings import separated
from glimpseg.data.series import Series

FREE_TEXT = {"SeriesDescription": "description", "FileName": "file name", "ProtocolName": "protocol"}
"""Free-text fields with their names on the screen, the most reliable first."""
PULSE_TEXT = {
    "SequenceName": "sequence name",
    "PulseSequenceName": "sequence name",
    "PulseSequenceDetails": "sequence name",
}
"""Fields with the name of the pulse sequence, and their names on the screen."""
PROTOCOL_SHARE = 0.5
"""Factor on the points of a word that only the protocol name has: some scanners keep the name of another scan there."""
LONGEST = 200
"""Most characters of a text that are read; DICOM allows 64."""
AGENT_POINTS = 3.0
"""Points for a contrast agent in the header. They are few, since sites often enter it for earlier scans, too."""
AGENT_SAID = "the header names a contrast agent"
TIME_POINTS = 3.0
"""Points for an acquisition before or after the injection."""
BODY_POINTS = 12.0
"""Points against a series of another part of the body."""
OTHER_BODY = re.compile(r"spine|abdom|pelvi|knee|chest|breast|heart|prostat|liver|shoulder|thorax|foot|hand|hip|ankle")
NO_AGENT = re.compile(r"(none|no|n|n/a|na|nil|null|0|-+|ohne|without|unenhanced|keine?s?|non|false|unknown)?\.?")
"""Entries of a contrast field that mean no agent."""
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


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One piece of evidence: its vote, its points and its reason."""

    vote: Vote
    points: float
    because: str
    """Reason for the screen. Quotations from the header contain no patient names."""

    def __str__(self) -> str:
        return f"{self.because} ({self.points:+g} {self.vote})"


def evidence_of(series: Series, rules: Rules, *, protocol_tells: bool = True) -> tuple[Evidence, ...]:
    """Collect the evidence from the headers of one series, in the order of the rules.

    Args:
        series: the series.
        rules: table of rules.
        protocol_tells: True if the protocol name describes the series, False if it names the examination.
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
    """Sum the points for one vote."""
    return sum(piece.points for piece in evidence if piece.vote == vote)


def slices(series: Series) -> int | None:
    """Return the number of slices; None if the header does not say."""
    return None if series.shape is None else series.shape[2]


def _words(series: Series, rules: tuple[WordRule, ...], protocol_tells: bool) -> Iterator[Evidence]:
    by_rule: dict[int, list[Evidence]] = {}
    for keyword, place in FREE_TEXT.items():
        hits = dict(_hits(series.words.get(keyword, ""), rules))
        if keyword == "ProtocolName" and not (protocol_tells and _is_needed(by_rule.values())):
            continue
        share = PROTOCOL_SHARE if keyword == "ProtocolName" else 1.0
        for number, quoted in hits.items():
            votes = rules[number].votes or {}
            because = f"'{quoted}' in the {place}: {rules[number].because}"
            pieces = [Evidence(vote=vote, points=points * share, because=because) for vote, points in votes.items()]
            by_rule.setdefault(number, pieces)
    yield from (piece for pieces in by_rule.values() for piece in pieces)


def _is_needed(by_rule: Iterable[list[Evidence]]) -> bool:
    """True if description and file name give neither a weighting nor a reason to drop the series."""
    return not any(piece.vote in ("t1", "t2", "flair", "drop") for pieces in by_rule for piece in pieces)


def matching_rules(text: str, rules: tuple[WordRule, ...]) -> Iterator[tuple[WordRule, str, str]]:
    """Yield matching rules with their words for the screen and the matched text, in the order of the rules.

    Args:
        text: normalised text with separated words (`rules.folded`, `spellings.separated`).
        rules: rules for words. Later rules do not see text that was matched.
    """
    for rule in rules:
        match = rule.pattern.search(text)
        if match is not None:
            yield rule, match.group().strip(" _.,:/-") or match.group(), match.group()
            text = rule.pattern.sub(" | ", text)


def _hits(text: str, rules: tuple[WordRule, ...]) -> Iterator[tuple[int, str]]:
    """Yield the numbers of matching rules with the matched text."""
    numbers = {id(rule): number for number, rule in enumerate(rules)}
    for rule, quoted, _ in matching_rules(separated(folded(text[:LONGEST])), rules):
        yield numbers[id(rule)], quoted


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
    """Fields of enhanced DICOM that describe the kind of image."""
    return tuple(series.words.get(keyword, "") for keyword in ("AcquisitionContrast", "ComplexImageComponent"))


def _modality(series: Series) -> Iterator[Evidence]:
    modality = series.words.get("Modality", "").strip().upper()
    if modality not in ("", "MR"):
        yield Evidence(vote="drop", points=100.0, because="not magnetic resonance imaging")


def _body(series: Series) -> Iterator[Evidence]:
    part = OTHER_BODY.search(folded(series.words.get("BodyPartExamined", "")))
    if part is not None:
        yield Evidence(vote="drop", points=BODY_POINTS, because=f"body part '{part.group()}', not the head")


def named_agent(series: Series) -> bool:
    """True if the header names a contrast agent; entries such as "none" do not count."""
    values = (folded(series.words.get(keyword, "")) for keyword in CONTRAST_FIELDS)
    return any(not NO_AGENT.fullmatch(value) for value in values)


def _agent(series: Series) -> Iterator[Evidence]:
    if named_agent(series):
        yield Evidence(vote="contrast", points=AGENT_POINTS, because=AGENT_SAID)


def _timing(series: Series) -> Iterator[Evidence]:
    if series.acquired_s is None or series.injected_s is None:
        return
    minutes = (series.acquired_s - series.injected_s) / 60
    when = f"acquired {abs(minutes):.0f} min {'after' if minutes >= 0 else 'before'} the injection in its header"
    yield Evidence(vote="contrast" if minutes >= 0 else "plain", points=TIME_POINTS, because=when)
