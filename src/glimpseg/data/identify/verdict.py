"""Judge each series of a study by its evidence, and choose one series for each sequence."""

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
"""Fewest points for a weighting: one clear word, or one range of parameters. With fewer the series stays unnamed."""
MARGIN = 1.0
"""Fewest points between the best and the next weighting. With fewer the series stays unnamed."""
WHOLE_HEAD_MM = 100.0
"""Smallest extent of a whole head. A smaller stack is a slab: orbits, sella, a part of the head."""
SHOWN_PIECES = 2
"""Most pieces of evidence in the table on the screen; series.json has all."""
SHARED_BY = 3
"""Number of different descriptions with one protocol name from which on that name describes the whole examination."""
AROUND_POINTS = 3.0
"""Points for contrast agent if a series was acquired after one that shows it. Before it: one point against."""
MANY_VOLUMES = 4
"""Number of stacks from which on a series is dynamic; two or three stacks may be echoes."""
CERTAIN = 20.0
"""Points of evidence that no word outweighs."""
IN_PHASE = frozenset({"IP", "IN_PHASE", "INPHASE", "IN-PHASE"})
"""Elements of ImageType of an image in which water and fat are in phase."""
_DYNAMIC = re.compile(r"perf|dsc|dce|dyn|pwi|twist|grasp")
_WEIGHTINGS: tuple[tuple[Vote, str], ...] = (("t1", "T1"), ("t2", "T2"), ("flair", "FLAIR"))


@dataclass(frozen=True, kw_only=True)
class SeriesVerdict:
    """Verdict on one series: its sequence, the reason and all evidence."""

    series: Series
    sequence: Modality | None
    """Sequence that it shows; None if it is dropped or unknown."""
    why: str
    """Strongest evidence, or the reason why it has no sequence."""
    score: float
    """Points for the sequence; 0 without one."""
    second: bool = False
    """True if it was made from another series; it is then chosen only if there is no original."""
    contrast: float = 0.0
    """Points for contrast agent minus points against it."""
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tie:
    """Sequence that more than one series fits, with the rule that decided."""

    sequence: Modality
    taken: Series
    """Chosen series."""
    others: tuple[Series, ...]
    """Other series that fit."""
    because: str
    """Rule that decided between the chosen series and the next one."""


def judge_series(study: Sequence[Series], rules: Rules) -> tuple[SeriesVerdict, ...]:
    """Judge every series of one study, in the given order.

    Evidence about contrast agent in one series also counts for the series before and after it.
    """
    exams = _examination_names(study)
    from_headers = [
        evidence_of(series, rules, protocol_tells=series.words.get("ProtocolName", "") not in exams) for series in study
    ]
    alike = Counter(map(_stack, study))
    corrected = _without_unreliable_agents(study, from_headers)
    single = [e + _many_volumes(s, alike[_stack(s)]) for s, e in zip(study, corrected, strict=True)]
    agent_s = _first_agent_s(study, single)
    return tuple(_verdict(s, e + _agent_by_time(s, agent_s)) for s, e in zip(study, single, strict=True))


def choose_series(judged: Sequence[SeriesVerdict]) -> tuple[dict[Modality, Series], tuple[Tie, ...]]:
    """Choose one series for each sequence, by the order of `TIE_RULES`.

    Returns:
        The chosen series, and a tie for each sequence that other series fit, too. If an original is chosen, only other
        originals count.
    """
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
        return replace(verdict, why="no evidence for any sequence" if not best else f"too little evidence for {name}")
    if best - next_best < MARGIN:
        return replace(verdict, why=f"as much evidence for {name} as for {next_name}; name it yourself")
    if vote != "t1":
        sequence = Modality.T2 if vote == "t2" else Modality.FLAIR
        return replace(verdict, sequence=sequence, why=_strongest(evidence, vote, SHOWN_PIECES), score=best)
    return _with_contrast(replace(verdict, score=best, why=_strongest(evidence, "t1", SHOWN_PIECES)))


def _with_contrast(verdict: SeriesVerdict) -> SeriesVerdict:
    """Name a T1-weighted series T1 or T1c; neither if its header contradicts itself."""
    for_agent, against = total(verdict.evidence, "contrast"), total(verdict.evidence, "plain")
    if for_agent and against and abs(verdict.contrast) < MARGIN:
        why = "T1-weighted, but its header contradicts itself on contrast agent; name it yourself"
        return replace(verdict, why=why, score=0.0)
    if verdict.contrast > 0:
        return replace(
            verdict, sequence=Modality.T1C, why=_joined(verdict.why, _strongest(verdict.evidence, "contrast"))
        )
    reason = _strongest(verdict.evidence, "plain") if against else "no sign of contrast agent"
    return replace(verdict, sequence=Modality.T1, why=_joined(verdict.why, reason))


def _joined(why: str, more: str) -> str:
    """Join two reasons. One word can indicate both the weighting and the agent; it is then quoted once."""
    return why if more in why else f"{why}; {more}"


def _strongest(evidence: Sequence[Evidence], vote: Vote, count: int = 1) -> str:
    """Reasons with the most points for a vote."""
    pieces = [piece for piece in evidence if piece.vote == vote and piece.points]
    return "; ".join(piece.because for piece in sorted(pieces, key=lambda piece: -piece.points)[:count])


def _examination_names(study: Sequence[Series]) -> frozenset[str]:
    """Protocol names that describe the examination, since series of different descriptions share them."""
    seen: dict[str, set[str]] = {}
    for series in study:
        name = series.words.get("ProtocolName", "")
        seen.setdefault(name, set()).add(series.words.get("SeriesDescription", ""))
    return frozenset(name for name, descriptions in seen.items() if name and len(descriptions) >= SHARED_BY)


def _without_unreliable_agents(
    study: Sequence[Series], evidence: Sequence[tuple[Evidence, ...]]
) -> list[tuple[Evidence, ...]]:
    """Set the points for agents in headers to 0 if the header of a series before the injection names one, too."""
    if not any(named_agent(s) and total(e, "plain") for s, e in zip(study, evidence, strict=True)):
        return list(evidence)
    because = f"{AGENT_SAID}, but so do series before the injection"
    return [
        tuple(replace(p, points=0.0, because=because) if p.because == AGENT_SAID else p for p in pieces)
        for pieces in evidence
    ]


def _stack(series: Series) -> tuple[object, ...]:
    # The images of a Dixon scan differ in ImageType and are no volumes of a dynamic series.
    numbers, words = series.numbers, series.words
    return numbers.get("SeriesNumber"), words.get("SeriesDescription"), series.image_type, series.plane, series.shape


def _many_volumes(series: Series, alike: int) -> tuple[Evidence, ...]:
    """Evidence against a dynamic series: its volumes arrive as series of equal number and geometry."""
    if "SeriesNumber" not in series.numbers or series.source != "dicom" or alike < MANY_VOLUMES:
        return ()
    return (Evidence(vote="drop", points=CERTAIN, because=f"one of {alike} volumes of a series"),)


def _first_agent_s(study: Sequence[Series], evidence: Sequence[tuple[Evidence, ...]]) -> float | None:
    """Acquisition time of the first series with contrast agent, in seconds of the day.

    An entry in the header alone is not enough; a perfusion series counts. None if there is no such series, or if a
    series without agent was acquired later, so that the times contradict the words.
    """
    times = [(s, e, s.acquired_s) for s, e in zip(study, evidence, strict=True) if s.acquired_s is not None]
    with_agent = [at for s, e, at in times if _agent(e) > AGENT_POINTS or _is_dynamic(s, e)]
    plain = [at for _, e, at in times if _agent(e) < 0]
    return None if not with_agent or (plain and max(plain) > min(with_agent)) else min(with_agent)


def _agent(evidence: tuple[Evidence, ...]) -> float:
    return total(evidence, "contrast") - total(evidence, "plain")


def _agent_by_time(series: Series, first_agent_s: float | None) -> tuple[Evidence, ...]:
    """Evidence from times: after a perfusion series, or a series with contrast agent, there is agent."""
    if series.acquired_s is None or first_agent_s is None or series.acquired_s == first_agent_s:
        return ()
    if series.acquired_s > first_agent_s:
        because = "acquired after a series that shows contrast agent or its passage"
        return (Evidence(vote="contrast", points=AROUND_POINTS, because=because),)
    return (Evidence(vote="plain", points=1.0, because="acquired before every series that shows contrast agent"),)


def _is_dynamic(series: Series, evidence: tuple[Evidence, ...]) -> bool:
    text = folded(series.words.get("SeriesDescription", ""))
    return total(evidence, "drop") > 0 and _DYNAMIC.search(text) is not None and "asl" not in text


@dataclass(frozen=True)
class _TieRule:
    """One rule of the order among series that fit one sequence."""

    name: str
    rank: Callable[[SeriesVerdict], float]
    """Rank of a series; the lower one is chosen."""
    shown: Callable[[SeriesVerdict], str] | None = None
    """Text of the compared value, for the screen."""


def _thickness(verdict: SeriesVerdict) -> float:
    spacing = verdict.series.spacing_mm
    return math.inf if spacing is None else round(max(spacing), 1)


def _is_slab(verdict: SeriesVerdict) -> bool:
    shape, spacing = verdict.series.shape, verdict.series.spacing_mm
    if shape is None or spacing is None:
        return False
    return min(n * size for n, size in zip(shape, spacing, strict=True)) < WHOLE_HEAD_MM


def _is_in_phase(verdict: SeriesVerdict) -> bool:
    text = folded(verdict.series.words.get("SeriesDescription", "")).replace("-", " ")
    return not IN_PHASE.isdisjoint(verdict.series.image_type) or "in phase" in text


def _time_sign(verdict: SeriesVerdict) -> float:
    """Sign of the time in the order: -1 prefers later repetitions. +1 for T1, where a later one may have agent."""
    return 1.0 if verdict.sequence is Modality.T1 else -1.0


def _number(verdict: SeriesVerdict) -> float:
    return verdict.series.numbers.get("SeriesNumber", 0.0)


_TIE_RULES = (
    _TieRule("an original before a series made from one", lambda f: f.second),
    _TieRule("the whole head before a slab", _is_slab),
    _TieRule("one without evidence against it", lambda f: total(f.evidence, "drop") > 0),
    _TieRule("any other before the in-phase image of a Dixon scan, such as its water image", _is_in_phase),
    _TieRule(
        "before contrast agent first",
        lambda f: f.sequence in Modality.T2 | Modality.FLAIR and f.contrast > 0,  # type: ignore[operator]
    ),
    _TieRule("thinner slices", _thickness, lambda f: f"{_thickness(f):g} mm"),
    _TieRule("more slices", lambda f: -(slices(f.series) or 0), lambda f: str(slices(f.series) or "unknown")),
    _TieRule("T1 acquired earlier, any other later", lambda f: _time_sign(f) * (f.series.acquired_s or 0)),
    _TieRule("T1 with the lower series number, any other the higher", lambda f: _time_sign(f) * _number(f)),
)
"""Rules of the order among series that fit one sequence, the most important first."""

TIE_RULES: tuple[str, ...] = tuple(rule.name for rule in _TIE_RULES)
"""Names of these rules, for documentation."""


def _rank(verdict: SeriesVerdict) -> tuple[float, ...]:
    return tuple(float(rule.rank(verdict)) for rule in _TIE_RULES)


def _difference(first: SeriesVerdict, second: SeriesVerdict) -> str:
    """Name of the rule that ranks the first before the second, with both values if they are texts."""
    for rule in _TIE_RULES:
        if rule.rank(first) != rule.rank(second):
            return rule.name + (f" ({rule.shown(first)} against {rule.shown(second)})" if rule.shown else "")
    return "the first found, as no rule distinguishes them"
