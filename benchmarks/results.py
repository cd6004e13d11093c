"""Write RESULTS.md from the recorded measurements.

    python benchmarks/loading.py --record benchmarks/measured/loading.json
    python benchmarks/results.py

The page opens with one table, `HIGHLIGHTS`. Below it, every record in `benchmarks/measured/` has a section for each of
its measurements, in the order of the file names. A file's name begins with the name of its script:
`sharing-rfnet.json` is a record of `sharing.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimpseg.runtime.atomic import write_text
from turns import Contest

FOLDER = Path(__file__).parent
RECORDS = FOLDER / "measured"
RESULTS = FOLDER / "RESULTS.md"
HEAD = """# Results

How fast and how small glimpseg is, compared with other ways to do the same. **A ratio above 1 is good for glimpseg**:
2.0 means twice as fast, or half the memory. A ratio below 1 means that glimpseg is slower or larger; it is marked.

- The ratio is the median of the rounds; the range is the least and the most of any round.
- A row about several methods or sizes shows the median over them; its range is over all of them and all rounds.
- *peer* is the way of other tools: MONAI's windows over the whole grid, in fp32. *authors* is the order of operations
  of a paper's released code (`unet`: nnU-Net's), with the same network; in fp32 unless the row says otherwise.
- Measured on two cores of a server processor. The seconds mean little on another machine; the ratios mean more.
  One round can tell about ten percent.
"""
DETAILS = """## Details

Each section shows one measurement with all its contestants. Here a ratio says how many times as much a contestant takes
as the first one in the table, with the range of the rounds in brackets. The docstring of each script says how it
measures. Written by `benchmarks/results.py` from `benchmarks/measured/`.
"""
EQUAL = 0.995
"""A ratio below this is marked as worse; from here to 1 it is printed as 1.00."""
METHODS = ("rfnet", "mmformer", "smml", "unet", "voxunet")
STEPS = tuple(f"method_steps-{method}" for method in METHODS)


@dataclass(frozen=True, kw_only=True)
class Highlight:
    """One row of the opening table: one contest, or similar contests together."""

    question: str
    measured: tuple[tuple[str, str], ...]
    """File name in `measured/` without its ending, and the end of the contest's question there."""
    ours: str
    theirs: str
    theirs_in_words: str = ""
    """Name of the other way in the table. Default: `theirs`."""


HIGHLIGHTS = (
    Highlight(
        question="Segment a study with a network that works on 1 mm: time",
        measured=(("whole_case", "A whole study, files in, file out"),),
        ours="torch",
        theirs="peer",
    ),
    Highlight(
        question="the same: memory",
        measured=(("whole_case", "A whole study: most memory held"),),
        ours="torch",
        theirs="peer",
    ),
    Highlight(
        question="Segment a study with the shipped model (2 mm): time",
        measured=(("whole_case-box", "A whole study, files in, file out"),),
        ours="torch",
        theirs="peer",
    ),
    Highlight(
        question="the same: memory",
        measured=(("whole_case-box", "A whole study: most memory held"),),
        ours="torch",
        theirs="peer",
    ),
    Highlight(
        question="Segment a study of 512 x 512 x 512 voxels: memory",
        measured=(("memory-box", "box, 2 mm"),),
        ours="glimpseg",
        theirs="peer",
    ),
    Highlight(
        question="Segment all 15 subsets of a study (rfnet, mmformer, smml; all in bf16): time of a window",
        measured=(
            ("sharing-rfnet", "/brats2020"),
            ("sharing-mmformer", "/brats2020"),
            ("sharing-smml", "/brats2020"),
        ),
        ours="shared",
        theirs="authors",
    ),
    Highlight(
        question="Dice and HD95 of 3 regions in 15 subsets: time",
        measured=(("metrics", "15 subsets"),),
        ours="glimpseg, as `evaluate`: the brain's box, the reference's surface kept",
        theirs="MONAI, `compute_dice` and `compute_hausdorff_distance`",
        theirs_in_words="MONAI",
    ),
    Highlight(
        question="Load a training crop: time",
        measured=(("loading", "Loading a training crop"),),
        ours="cache",
        theirs="files",
        theirs_in_words="NIfTI files",
    ),
    Highlight(
        question="the same, against nnU-Net's format of today",
        measured=(("loading", "Loading a training crop"),),
        ours="cache",
        theirs="blosc2",
    ),
    Highlight(
        question="the same, against nnU-Net's unpacked format",
        measured=(("loading", "Loading a training crop"),),
        ours="cache",
        theirs="npy",
        theirs_in_words="mapped npy",
    ),
    Highlight(
        question="Augment a training batch: time",
        measured=(("augmentation", "training batch"),),
        ours="glimpseg",
        theirs="MONAI",
    ),
    Highlight(
        question="A training step as `train` runs it, in bf16 (5 methods): time",
        measured=tuple((step, ": a training step") for step in STEPS),
        ours="bf16",
        theirs="authors",
    ),
    Highlight(
        question="the same: memory",
        measured=tuple((step, ": most memory held") for step in STEPS),
        ours="bf16",
        theirs="authors",
    ),
    Highlight(
        question="A training step, both in fp32 (5 methods): time",
        measured=tuple((step, ": a training step") for step in STEPS),
        ours="fp32",
        theirs="authors",
    ),
    Highlight(
        question="the same: memory",
        measured=tuple((step, ": most memory held") for step in STEPS),
        ours="fp32",
        theirs="authors",
    ),
    Highlight(
        question="A training step of MST-KDNet, both in fp32: time",
        measured=(("training_step", ": a training step"),),
        ours="summed",
        theirs="alternating",
        theirs_in_words="authors",
    ),
    Highlight(
        question="the same: memory",
        measured=(("training_step", ": most memory held"),),
        ours="summed",
        theirs="alternating",
        theirs_in_words="authors",
    ),
    Highlight(
        question="MST-KDNet's attention distance (120, 512, 960 tokens): time",
        measured=tuple(("distillation", f"{tokens} tokens: forward and backward") for tokens in (120, 512, 960)),
        ours="in rows",
        theirs="at once",
        theirs_in_words="whole matrices",
    ),
    Highlight(
        question="the same: memory",
        measured=tuple(
            ("distillation", f"{tokens} tokens: most memory held, beside the matrices") for tokens in (120, 512, 960)
        ),
        ours="in rows",
        theirs="at once",
        theirs_in_words="whole matrices",
    ),
    Highlight(
        question="A pair of pretraining views (Vox-MMSD): time",
        measured=(("pretraining_step", ": seconds a pair"),),
        ours="ours",
        theirs="authors",
    ),
    Highlight(
        question="the same: memory",
        measured=(("pretraining_step", ": MiB at most"),),
        ours="ours",
        theirs="authors",
    ),
    Highlight(
        question="A pretraining step (Vox-MMSD): time",
        measured=(("pretraining_step", ": seconds a step"),),
        ours="ours",
        theirs="authors",
    ),
    Highlight(
        question="the same: memory",
        measured=(("pretraining_step", ": GiB at most"),),
        ours="ours",
        theirs="authors",
    ),
)


def main() -> None:
    """Read the records and write the page. Raises: SystemExit without a record, or if a row of the table has none."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    records = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(RECORDS.glob("*.json"))}
    if not records:
        raise SystemExit(f"{RECORDS} holds no record. Make one: python benchmarks/loading.py --record FILE.")
    parts = [HEAD, _table(records), DETAILS]
    for stem, record in records.items():
        parts += [_section(Contest(**contest)) for contest in record["contests"]]
        parts += [f"## {page['heading']}\n\n{page['text']}" for page in record.get("pages", [])]
        parts.append(_foot(stem, record))
    write_text(RESULTS, "\n".join(parts))


def _table(records: Mapping[str, Any]) -> str:
    heads = ("question", "glimpseg", "the other way", "times as fast or as small", "range", "rounds", "commit")
    lines = [f"| {' | '.join(heads)} |", "|---|--:|--:|--:|--:|--:|---|"]
    return "\n".join([*lines, *(_highlight(row, records) for row in HIGHLIGHTS), ""])


def _highlight(row: Highlight, records: Mapping[str, Any]) -> str:
    contests = [_contest(row, name, ending, records) for name, ending in row.measured]
    ours, theirs = ([statistics.median(one.rounds[name]) for one in contests] for name in (row.ours, row.theirs))
    each = [[b / a for a, b in zip(one.rounds[row.ours], one.rounds[row.theirs], strict=True)] for one in contests]
    ratio = statistics.median(statistics.median(ratios) for ratios in each)
    every = [value for ratios in each for value in ratios]
    unit = contests[0].unit
    rounds = sorted({len(ratios) for ratios in each})
    cells = (
        row.question,
        f"{_span(ours)} {unit}",
        f"{_span(theirs)} {unit} ({row.theirs_in_words or row.theirs})",
        f"**{_short(ratio)}**" if ratio >= EQUAL else f"**{_short(ratio)}: worse**",
        f"{_short(min(every))} to {_short(max(every))}" if len(every) > 1 else "",
        " or ".join(map(str, rounds)) + (" each" if len(contests) > 1 else ""),
        ", ".join(dict.fromkeys(records[name]["commit"] for name, _ in row.measured)),
    )
    return f"| {' | '.join(cells)} |"


def _contest(row: Highlight, name: str, ending: str, records: Mapping[str, Any]) -> Contest:
    for contest in records.get(name, {"contests": []})["contests"]:
        if contest["question"].endswith(ending) and {row.ours, row.theirs} <= set(contest["rounds"]):
            return Contest(**contest)
    raise SystemExit(f"The row '{row.question}' needs '{ending}' in measured/{name}.json. Measure it again.")


def _span(values: list[float]) -> str:
    least, most = (f"{end:.0f}" if end >= 100 else f"{end:.3g}" for end in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def _section(contest: Contest) -> str:
    first = [contest.ours, *(name for name in contest.rounds if name != contest.ours)]
    lines = [f"## {contest.question}", "", f"{contest.setting}. {contest.agreement}.", ""]
    lines += [f"| | median {contest.unit} | ratio |", "|---|--:|--:|"]
    for name in first:
        middle, low, high = contest.ratio(name)
        ratio = "1" if name == contest.ours else f"{_short(middle)} ({_short(low)} to {_short(high)})"
        lines.append(f"| {name} | {statistics.median(contest.rounds[name]):.3g} | {ratio} |")
    return "\n".join([*lines, ""])


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.1f}" if ratio >= 5 else f"{ratio:.2f}"


def _foot(script: str, record: dict[str, Any]) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in record["versions"].items() if version != "not installed"
    )
    name = script.split("-")[0]
    return (
        f"`benchmarks/{name}.py`, {record['date']}, commit {record['commit']}: {record['cores']} threads on "
        f"{record['processor']}, Python {record['python']}, {versions}.\n"
    )


if __name__ == "__main__":
    main()
