"""From evidence to a verdict on each series, and from the verdicts of a study to one series for each sequence."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from glimpseg.data.identify.evidence import AGENT_POINTS, AGENT_SAID, Evidence, evidence_of, named_agent, slices, total
from glimpseg.data.identify.rules import Rules, Vote, folded
from glimpseg.data.series import Series
from glimpseg.modality import Modality

MINIMUM = 4.0
"""Points a weighting needs before a series is named at all: one plain word, or one range of parameters."""
MARGIN = 1.0
"""Points by which it has to lead; nearer ones leave the series unnamed."""
WHOLE_HEAD_MM = 100.0
"""Slices that span less are a slab: orbits, sella, a part of the head."""
SAID = 2
"""Pieces of evidence that the table shows; series.json has all."""
SHARED_BY = 3
"""Series of different descriptions with one protocol name: then it names the examination."""
AROUND_POINTS = 3.0
"""For a beginning after another series that shows the agent; what comes before one is worth a point."""
MANY_VOLUMES = 4
"""Stacks of one series from which on it is a dynamic one; two or three may be echoes."""
CERTAIN = 20.0
"""Points of what no word outweighs."""
_DYNAMIC = re.compile(r"perf|dsc|dce|dyn|pwi|twist|grasp")
_WEIGHTINGS: tuple[tuple[Vote, str], ...] = (("t1", "T1"), ("t2", "T2"), ("flair", "FLAIR"))


@dataclass(frozen=True, kw_only=True)
class SeriesVerdict:
    """The verdict on one series."""

    series: Series
    sequence: Modality | None
    """What it shows; None if it is dropped or not known."""
    why: str
    """A sentence or two: the strongest evidence, or why it has no sequence."""
    score: float
    """Points for the sequence; 0 without one."""
    second: bool = False
    """Made from another series: taken only where there is no original."""
    contrast: float = 0.0
    """Points for contrast agent less those against."""
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tie:
    """More than one series fits a sequence."""

    sequence: Modality
    taken: Series
    others: tuple[Series, ...]
    because: str
    """The rule that decided between the first two."""


def judge_series(study: Sequence[Series], rules: Rules) -> tuple[SeriesVerdict, ...]:
    """A verdict for each series of one study, in their order; what one says of contrast agent counts for others."""
    exams = _examination_names(study)
    first = [
        evidence_of(series, rules, protocol_tells=series.words.get("ProtocolName", "") not in exams) for series in study
    ]
    alike = Counter(map(_stack, study))
    own = [e + _volumes(s, alike[_stack(s)]) for s, e in zip(study, _without_empty_agents(study, first), strict=True)]
    shown = _first_shown(study, own)
    return tuple(_verdict(s, e + _around(s, shown)) for s, e in zip(study, own, strict=True))


def choose_series(judged: Sequence[SeriesVerdict]) -> tuple[dict[Modality, Series], tuple[Tie, ...]]:
    """One series for each sequence that has any, by a stated order, and where it had to decide."""
    chosen: dict[Modality, Series] = {}
    ties = []
    for modality in Modality:
        fitting = sorted((f for f in judged if f.sequence is modality), key=_rank)
        if fitting:
            chosen[modality] = fitting[0].series
        rivals = [f for f in fitting[1:] if f.second == fitting[0].second]
        if rivals:
            others = tuple(rival.series for rival in rivals)
            because = _difference(fitting[0], rivals[0])
            ties.append(Tie(sequence=modality, taken=fitting[0].series, others=others, because=because))
    return chosen, tuple(ties)


def _verdict(series: Series, evidence: tuple[Evidence, ...]) -> SeriesVerdict:
    ranked = sorted(((total(evidence, vote), vote, name) for vote, name in _WEIGHTINGS), key=lambda entry: -entry[0])
    (best, vote, name), (next_best, _, next_name) = ranked[:2]
    dropped = total(evidence, "drop")
    verdict = SeriesVerdict(
        series=series,
        sequence=None,
        why="",
        score=0.0,
        second=total(evidence, "second") > 0,
        contrast=_agent(evidence),
        evidence=evidence,
    )
    if dropped and dropped >= best:
        return replace(verdict, why=_strongest(evidence, "drop"))
    if best < MINIMUM:
        return replace(verdict, why="nothing tells its sequence" if not best else f"too little tells of {name}")
    if best - next_best < MARGIN:
        return replace(verdict, why=f"as much tells of {name} as of {next_name}; name it yourself")
    if vote != "t1":
        sequence = Modality.T2 if vote == "t2" else Modality.FLAIR
        return replace(verdict, sequence=sequence, why=_strongest(evidence, vote, SAID), score=best)
    return _with_contrast(replace(verdict, score=best, why=_strongest(evidence, "t1", SAID)))


def _with_contrast(verdict: SeriesVerdict) -> SeriesVerdict:
    """A T1-weighted series is T1 or T1c; where its headers contradict each other, neither."""
    for_agent, against = total(verdict.evidence, "contrast"), total(verdict.evidence, "plain")
    if for_agent and against and abs(verdict.contrast) < MARGIN:
        why = "T1-weighted, but its header contradicts itself on contrast agent; name it yourself"
        return replace(verdict, why=why, score=0.0)
    if verdict.contrast > 0:
        return replace(
            verdict, sequence=Modality.T1C, why=_joined(verdict.why, _strongest(verdict.evidence, "contrast"))
        )
    said = _strongest(verdict.evidence, "plain") if against else "nothing tells of contrast agent"
    return replace(verdict, sequence=Modality.T1, why=_joined(verdict.why, said))


def _joined(why: str, more: str) -> str:
    """One word can tell both the weighting and the agent; it is quoted once."""
    return why if more in why else f"{why}; {more}"


def _strongest(evidence: Sequence[Evidence], vote: Vote, count: int = 1) -> str:
    """The sentences of most weight."""
    pieces = [piece for piece in evidence if piece.vote == vote and piece.points]
    return "; ".join(piece.because for piece in sorted(pieces, key=lambda piece: -piece.points)[:count])


def _examination_names(study: Sequence[Series]) -> frozenset[str]:
    """Protocol names that series of different kinds share."""
    seen: dict[str, set[str]] = {}
    for series in study:
        name = series.words.get("ProtocolName", "")
        seen.setdefault(name, set()).add(series.words.get("SeriesDescription", ""))
    return frozenset(name for name, descriptions in seen.items() if name and len(descriptions) >= SHARED_BY)


def _without_empty_agents(
    study: Sequence[Series], evidence: Sequence[tuple[Evidence, ...]]
) -> list[tuple[Evidence, ...]]:
    """The agent in the header counts for nothing in a study where a series before the injection has it, too."""
    if not any(named_agent(s) and total(e, "plain") for s, e in zip(study, evidence, strict=True)):
        return list(evidence)
    because = f"{AGENT_SAID}, but here even series before it do"
    return [
        tuple(replace(p, points=0.0, because=because) if p.because == AGENT_SAID else p for p in pieces)
        for pieces in evidence
    ]


def _stack(series: Series) -> tuple[object, ...]:
    return (series.numbers.get("SeriesNumber"), series.words.get("SeriesDescription"), series.plane, series.shape)


def _volumes(series: Series, alike: int) -> tuple[Evidence, ...]:
    """A series of many volumes comes as as many series, alike in number and geometry."""
    if "SeriesNumber" not in series.numbers or series.source != "dicom" or alike < MANY_VOLUMES:
        return ()
    return (Evidence(vote="drop", points=CERTAIN, because=f"one of {alike} volumes of a series"),)


def _first_shown(study: Sequence[Series], evidence: Sequence[tuple[Evidence, ...]]) -> float | None:
    """When the first series began that shows contrast agent, by more than an entry in its header, or its passage; None
    if there is none, or if the clocks contradict the words."""
    times = [(s, e, s.acquired_s) for s, e in zip(study, evidence, strict=True) if s.acquired_s is not None]
    shown = [at for s, e, at in times if _agent(e) > AGENT_POINTS or _is_dynamic(s, e)]
    plain = [at for _, e, at in times if _agent(e) < 0]
    return None if not shown or (plain and max(plain) > min(shown)) else min(shown)


def _agent(evidence: tuple[Evidence, ...]) -> float:
    return total(evidence, "contrast") - total(evidence, "plain")


def _around(series: Series, first_shown: float | None) -> tuple[Evidence, ...]:
    """What the times of other series tell: after a perfusion series or one with contrast agent, there is agent."""
    if series.acquired_s is None or first_shown is None or series.acquired_s == first_shown:
        return ()
    if series.acquired_s > first_shown:
        because = "begun after a series that shows contrast agent or its passage"
        return (Evidence(vote="contrast", points=AROUND_POINTS, because=because),)
    return (Evidence(vote="plain", points=1.0, because="begun before every series that shows contrast agent"),)


def _is_dynamic(series: Series, evidence: tuple[Evidence, ...]) -> bool:
    text = folded(series.words.get("SeriesDescription", ""))
    return total(evidence, "drop") > 0 and _DYNAMIC.search(text) is not None and "asl" not in text


@dataclass(frozen=True)
class _TieRule:
    """One rule of the order among candidates."""

    rule: str
    rank: Callable[[SeriesVerdict], float]
    """Lower is taken first."""
    shown: Callable[[SeriesVerdict], str] | None = None


def _thickness(verdict: SeriesVerdict) -> float:
    spacing = verdict.series.spacing_mm
    return math.inf if spacing is None else round(max(spacing), 1)


def _is_slab(verdict: SeriesVerdict) -> bool:
    shape, spacing = verdict.series.shape, verdict.series.spacing_mm
    if shape is None or spacing is None:
        return False
    return min(n * size for n, size in zip(shape, spacing, strict=True)) < WHOLE_HEAD_MM


def _turn(verdict: SeriesVerdict) -> float:
    """What comes later is the better repetition; but a later T1 may be after contrast agent without saying so."""
    return 1.0 if verdict.sequence is Modality.T1 else -1.0


def _number(verdict: SeriesVerdict) -> float:
    return verdict.series.numbers.get("SeriesNumber", 0.0)


_TIE_RULES = (
    _TieRule("an original before what was made from one", lambda f: f.second),
    _TieRule("the whole head before a slab", _is_slab),
    _TieRule("one that nothing speaks against", lambda f: total(f.evidence, "drop") > 0),
    _TieRule(
        "before contrast agent first",
        lambda f: f.sequence in Modality.T2 | Modality.FLAIR and f.contrast > 0,  # type: ignore[operator]
    ),
    _TieRule("thinner slices", _thickness, lambda f: f"{_thickness(f):g} mm"),
    _TieRule("more slices", lambda f: -(slices(f.series) or 0), lambda f: str(slices(f.series) or "unknown")),
    _TieRule("T1 acquired earlier, any other later", lambda f: _turn(f) * (f.series.acquired_s or 0)),
    _TieRule("T1 with the lower series number, any other the higher", lambda f: _turn(f) * _number(f)),
)
"""The order among series that fit one sequence."""

TIE_RULES: tuple[str, ...] = tuple(step.rule for step in _TIE_RULES)
"""The rules of that order in words."""


def _rank(verdict: SeriesVerdict) -> tuple[float, ...]:
    return tuple(float(step.rank(verdict)) for step in _TIE_RULES)


def _difference(first: SeriesVerdict, second: SeriesVerdict) -> str:
    """The rule that puts the first before the second, with both values where that helps."""
    for step in _TIE_RULES:
        if step.rank(first) != step.rank(second):
            return step.rule + (f" ({step.shown(first)} against {step.shown(second)})" if step.shown else "")
    return "the first found, as no rule tells them apart"
