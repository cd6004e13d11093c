"""Writes RESULTS.md from what the benchmarks recorded.

    python benchmarks/loading.py --record benchmarks/measured/loading.json
    python benchmarks/results.py

Every record in `benchmarks/measured/` becomes a section, in the order of its file's name, which begins with the name of
its script; `sharing-rfnet.json` is one of `sharing.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from glimpseg.runtime.atomic import write_text
from turns import Contest

FOLDER = Path(__file__).parent
RECORDS = FOLDER / "measured"
RESULTS = FOLDER / "RESULTS.md"
HEAD = """# Results

Written by `benchmarks/results.py` from `benchmarks/measured/`; how each is measured stands in its script. A ratio says
how many times as much a contestant takes as the first: the median of the rounds, and in brackets the least and the most
of any round. Absolute numbers are of the machine named and mean little elsewhere.
"""


def main() -> None:
    """Reads the records and writes the page. Raises: SystemExit without a record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    paths = sorted(RECORDS.glob("*.json"))
    if not paths:
        raise SystemExit(f"{RECORDS} holds no record. Make one: python benchmarks/loading.py --record FILE.")
    parts = [HEAD]
    for path in paths:
        record = json.loads(path.read_text("utf-8"))
        parts += [_section(Contest(**contest)) for contest in record["contests"]]
        parts.append(_foot(path.stem, record))
    write_text(RESULTS, "\n".join(parts))


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
