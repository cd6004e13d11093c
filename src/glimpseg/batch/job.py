"""One study of a batch, segmented and written, in whichever process does it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.data.layouts import write_derivative
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import Modality, parse
from glimpseg.model.expectations import EXPECTATIONS
from glimpseg.model.folder import WEIGHTS
from glimpseg.model.loading import Model
from glimpseg.region import Region
from glimpseg.segmentation.inputs import Item, opened
from glimpseg.segmentation.predict import Raw, Read, read, segment_read
from glimpseg.segmentation.result import RECORD, Segmentation, volumes_in_words
from glimpseg.segmentation.uncertainty import Level
from glimpseg.version import __version__

BIDS = "bids"
"""The output type that is a data set of all studies together, under `derivatives/`."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How each study is segmented and what is written of it."""

    labels: str = "brats2024"
    types: tuple[str, ...] = ("nifti",)
    grid: Modality | None = None
    probabilities: bool = False
    deidentify: bool = False
    """Output folders are numbered and DICOM files name no patient; what leads back stands beside the output folder."""
    raw: Raw = "auto"
    uncertainty: Level = "quick"

    def plan(self, model: Model) -> dict[str, Any]:
        """What makes two batches the same; --continue compares it."""
        return {
            "glimpseg": __version__,
            "model": model.provenance["sha256"][WEIGHTS],
            **({"choices": model.chosen} if model.chosen else {}),
            "backend": f"{model.computed_by} {model.precision}",  # masks of two backends differ by some voxels
            "labels": self.labels,
            "types": sorted(self.types),
            "grid": None if self.grid is None else self.grid.key,
            "probabilities": self.probabilities,
            "deidentify": self.deidentify,
            "raw": self.raw,
            "uncertainty": self.uncertainty,
            "expectations": model.provenance["sha256"].get(EXPECTATIONS),
        }


@dataclass(frozen=True)
class Written:
    """What is told of a study whose folder stands."""

    study: str
    seconds: float
    used: Modality
    volumes: str
    outlook: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Work:
    """What is done with one study after another, in whichever process."""

    model: Model
    output: Path
    wanted: Wanted
    names: Mapping[str, str]
    """The output folder of each item, by its id."""
    pseudonyms: Pseudonyms | None

    def read(self, item: Item) -> tuple[Read, ExitStack]:
        """A study's voxels, and what has to stay open until it is written."""
        with ExitStack() as stack:
            visit = stack.enter_context(opened(item))
            return read(visit, self.model, self.wanted.grid, self.wanted.raw), stack.pop_all()
        raise AssertionError

    def segment(self, done: Read) -> Segmentation:
        """What the network finds."""
        return segment_read(
            done, self.model, probabilities=self.wanted.probabilities, uncertainty=self.wanted.uncertainty
        )

    def write(self, item: Item, found: Segmentation, held: ExitStack) -> Written:
        """A study's folder, and what there is to tell of it."""
        name = self.names[item.id]
        with held:
            found.save(
                self.output / name,
                labels=self.wanted.labels,
                types=[kind for kind in self.wanted.types if kind != BIDS],
                pseudonyms=self.pseudonyms,
            )
            if BIDS in self.wanted.types:
                digest = self.model.provenance["sha256"][WEIGHTS]
                write_derivative(self.output, name, found.labels, model=self.model.name, version=digest[:12])
        volumes = volumes_in_words(found.volumes_ml)
        return Written(name, sum(found.seconds.values()), found.used, volumes, tuple(found.outlook))

    def whole(self, item: Item) -> Written:
        """All of it for one study. One whose folder stands is not done again, so that whoever was killed before telling
        of it may ask once more."""
        name = self.names[item.id]
        if (self.output / name / RECORD).is_file():
            return self._told_by(self.output / name)
        clear(self.output, [name])
        done, held = self.read(item)
        try:
            found = self.segment(done)
        except BaseException:
            held.close()
            raise
        return self.write(item, found, held)

    def reason(self, item: Item, error: Exception) -> str:
        """Why a study could not be segmented, as `failures.json` says it."""
        known = isinstance(error, InputError | UsageError)
        reason = str(error) if known else f"unexpected error ({type(error).__name__}: {error})"
        return _without_names(reason, item, self.names[item.id]) if self.wanted.deidentify else reason

    @staticmethod
    def _told_by(folder: Path) -> Written:
        """What the files of a study say that was written before."""
        record = json.loads((folder / RECORD).read_text("utf-8"))
        statistics = json.loads((folder / "statistics.json").read_text("utf-8"))
        volumes = volumes_in_words({Region[name]: values["volume_ml"] for name, values in statistics.items()})
        used = parse("+".join(record["sequences"]["used"]))
        return Written(folder.name, sum(record["seconds"].values()), used, volumes)


def clear(output: Path, names: Iterable[str]) -> None:
    """Temporary folders of these studies, which a kill has left."""
    for name in names:
        for left in output.glob(f".{_escaped(name)}.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _without_names(reason: str, item: Item, name: str) -> str:
    """A message with neither the study's name nor the folders that it lies in."""
    words = reason.replace(item.id, name).split(" ")
    return " ".join(Path(word).name or word if word.startswith(os.sep) else word for word in words)
