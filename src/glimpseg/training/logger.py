"""Training logger: `metrics.jsonl`, `progress.png`, a progress bar on a terminal, log lines elsewhere."""

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
from glimpseg.runtime.json_lines import append_json_line, read_json_lines

log = logging.getLogger(__name__)

METRICS, PICTURE = "metrics.jsonl", "progress.png"
LINES = 20
"""Number of log lines of a whole run, about, where there is no terminal."""
PICTURE_EVERY = 5
"""Records between two drawings of `progress.png`. A drawing takes 0.2 s."""


class TrainingLogger:
    """Log of one run, a context manager. At the end of the block it closes its files and draws `progress.png`.

    On resuming, records of steps after the checkpoint are dropped, because those steps are made again.

    Args:
        run: The run folder.
        steps: Numbers of the steps to make, counted from 0.
        tensorboard: Also write TensorBoard files.
        quiet: Show no progress bar.

    Raises: UsageError if TensorBoard is asked for and not installed; OutputError when the disk refuses.
    """

    def __init__(self, run: Path, steps: range, *, tensorboard: bool = False, quiet: bool = False) -> None:
        self.run = run
        self.steps = steps.stop
        self.path = run / METRICS
        before = range(steps.start + 1)
        self.records = [record for record in read_json_lines(self.path) if record.get("step") in before]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._board = _tensorboard_writer(run) if tensorboard else None
        self._bar = _progress_bar() if sys.stderr.isatty() and not quiet else None
        self._task = self._bar.add_task("training", total=steps.stop, completed=steps.start) if self._bar else None

    def __enter__(self) -> TrainingLogger:
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
        """Append one record to `metrics.jsonl`, rounded to six decimals, and show it where that is due.

        Args:
            step: Number of steps done.
            values: Mean of each value since the last record, as from `StepAverages.means`.

        Raises: OutputError when the disk refuses.
        """
        record = {"step": step, **{name: round(value, 6) for name, value in values.items()}}
        self.records.append(record)
        append_json_line(self.path, record)
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step, description=f"loss {values['loss']:.3f}")
        elif _completes_twentieth(step, self.steps, self._previous_step()):
            log.info("%s", self._line(record))
        if len(self.records) % PICTURE_EVERY == 1:
            self.draw()

    def draw(self) -> None:
        """Draw `progress.png`: every loss term over the steps, and the time of a step. Nothing without a record."""
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
        with atomic_file(self.run / PICTURE) as temporary:
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
class StepAverages:
    """Means since the last record: the loss terms, the time of a step, and the share of it spent waiting for data."""

    totals: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    count: int = 0
    steps: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Measure the block as time spent waiting for a step's batches, and count one step.

        This time is cutting, the move to the device, and augmentation.
        """
        begun = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begun
        self.steps += 1

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the loss terms of one backward pass."""
        for name, value in terms.items():
            self.totals[name] += float(value.detach())
        self.count += 1

    def means(self, **others: float) -> dict[str, float]:
        """Return the means since the last call, with `others` at the end, and begin anew.

        Keys: `loss` (sum of the terms), `loss/<term>`, `seconds_per_step`, and `waiting`, the share of the time spent
        waiting.
        """
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


def _completes_twentieth(step: int, steps: int, previous: int) -> bool:
    """True if the run went past a multiple of a twentieth of its steps after the step `previous`."""
    return step * LINES // steps > previous * LINES // steps


def _progress_bar() -> Progress:
    from rich.console import Console

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _tensorboard_writer(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        from glimpseg.errors import UsageError

        raise UsageError("TensorBoard is not installed. Run: pip install 'glimpseg[tensorboard]'") from error
    return SummaryWriter(run / "tensorboard")
