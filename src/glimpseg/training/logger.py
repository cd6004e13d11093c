"""What a run tells while it trains: `metrics.jsonl`, `progress.png`, a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from glimpseg.runtime.atomic import atomic_file, write_text

log = logging.getLogger(__name__)

LINES = 20
"""Log lines over a whole run where there is no terminal."""
PICTURE_EVERY = 5
"""Records between redrawings of `progress.png`: a drawing costs a fifth of a second."""


class Journal:
    """One run's record. On resuming, records beyond the checkpoint are dropped: those steps are done again."""

    def __init__(self, run: Path, *, step: int, steps: int, tensorboard: bool = False, quiet: bool = False) -> None:
        self.run = run
        self.steps = steps
        self.path = run / "metrics.jsonl"
        self.records = [record for record in _read(self.path) if record["step"] <= step]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._board = _board(run) if tensorboard else None
        self._bar = _bar() if sys.stderr.isatty() and not quiet else None
        self._task = self._bar.add_task("training", total=steps, completed=step) if self._bar else None

    def __enter__(self) -> Journal:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if self._board:
            self._board.close()
        self.draw()

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one record: the mean of each value since the last one."""
        record = {"step": step, **{name: round(value, 6) for name, value in values.items()}}
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step, description=f"loss {values['loss']:.3f}")
        elif _crosses(step, self.steps, self._previous_step()):
            log.info("%s", self._line(record))
        if len(self.records) % PICTURE_EVERY == 1:
            self.draw()

    def draw(self) -> None:
        """Redraws `progress.png`: every loss term over the steps, and the time of a step."""
        if not self.records:
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5), layout="constrained")
        losses, time = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        steps = [record["step"] for record in self.records]
        for name in self.records[-1]:
            if name == "loss" or name.startswith("loss/"):
                values = [record.get(name, float("nan")) for record in self.records]
                losses.plot(steps, values, label=name.removeprefix("loss/"), linewidth=2 if name == "loss" else 1)
        losses.set(ylabel="loss")
        losses.legend(loc="upper right", frameon=False)
        time.plot(steps, [record["seconds_per_step"] for record in self.records], color="0.4")
        time.set(xlabel="step", ylabel="s per step", ylim=(0, None))
        for axes in (losses, time):
            axes.spines[["top", "right"]].set_visible(False)
        with atomic_file(self.run / "progress.png") as temporary:
            figure.savefig(temporary, dpi=100)

    def _line(self, record: Mapping[str, Any]) -> str:
        terms = ", ".join(f"{k.removeprefix('loss/')} {v:.3f}" for k, v in record.items() if k.startswith("loss/"))
        return (
            f"step {record['step']}/{self.steps}: loss {record['loss']:.3f} ({terms}), "
            f"{record['seconds_per_step']:.2f} s a step, {100 * record['waiting']:.1f} % of it waiting for data"
        )

    def _previous_step(self) -> int:
        return int(self.records[-2]["step"]) if len(self.records) > 1 else 0


@dataclass
class Meter:
    """Means of the loss terms since the last record, and the share of the time spent waiting for data."""

    totals: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    count: int = 0
    steps: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the request for a step's batches: cutting that is not done yet, the move to the device, augmenting."""
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun
        self.steps += 1

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Takes in the terms of one backward pass."""
        for name, value in terms.items():
            self.totals[name] += float(value.detach())
        self.count += 1

    def means(self, **others: float) -> dict[str, float]:
        """The means since the last call, with `others` at the end."""
        elapsed = time.perf_counter() - self.since
        terms = {f"loss/{name}": total / self.count for name, total in self.totals.items()}
        record = {
            "loss": sum(terms.values()),
            **terms,
            "seconds_per_step": elapsed / self.steps,
            "waiting": self.waited / elapsed,
            **others,
        }
        self.totals.clear()
        self.count = self.steps = 0
        self.waited, self.since = 0.0, time.perf_counter()
        return record


def _crosses(step: int, steps: int, previous: int) -> bool:
    """Whether a twentieth of the run was completed since `previous`."""
    return step * LINES // steps > previous * LINES // steps


def _bar() -> Progress:
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _board(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        from glimpseg.errors import UsageError

        raise UsageError("TensorBoard is not installed. Run: pip install 'glimpseg[tensorboard]'") from error
    return SummaryWriter(run / "tensorboard")


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a record file; a line cut short by a kill is dropped."""
    records = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records
