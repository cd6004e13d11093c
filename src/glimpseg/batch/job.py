"""Segmentation job for one study of a batch: prepare, segment, write."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from glimpseg.segmentation.inputs import StudyEntry, opened_entry
from glimpseg.segmentation.options import BIDS, InferenceOptions, OutputOptions
from glimpseg.segmentation.passes import segment_prepared
from glimpseg.segmentation.preparation import PreparedInput, prepare_input
from glimpseg.segmentation.record import STATISTICS
from glimpseg.segmentation.result import RECORD, Segmentation, volumes_in_words
from glimpseg.version import __version__


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Inference and output options of a batch, the same for each study."""

    inference: InferenceOptions = field(default_factory=InferenceOptions)
    outputs: OutputOptions = field(default_factory=OutputOptions)

    def fingerprint(self, model: Model) -> dict[str, Any]:
        """Return the settings of a batch that all its studies share. A batch resumes only with the same settings."""
        inference, outputs = self.inference, self.outputs
        return {
            "glimpseg": __version__,
            "model": model.provenance["sha256"][WEIGHTS],
            **({"choices": model.chosen} if model.chosen else {}),
            "backend": f"{model.computed_by} {model.precision}",  # masks of two backends differ by some voxels
            "labels": outputs.labels,
            "types": sorted(outputs.types),
            "grid": None if inference.grid_sequence is None else inference.grid_sequence.key,
            "probabilities": inference.probabilities,
            "deidentify": outputs.deidentify,
            "raw": inference.raw,
            "uncertainty": inference.uncertainty,
            "expectations": model.provenance["sha256"].get(EXPECTATIONS),
        }


@dataclass(frozen=True, kw_only=True)
class WrittenStudy:
    """Summary of a study whose output folder is written, for the log."""

    study: str
    seconds: float
    used: Modality
    volumes: str
    """Volumes in words."""
    outlook: tuple[str, ...] = ()
    """Sentences on the expected performance."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyJob:
    """Steps that segment one study of a batch. The same object serves all studies of a process."""

    model: Model
    output: Path
    options: BatchOptions
    names: Mapping[str, str]
    """Name of the output folder of each entry, by its id."""
    pseudonyms: Pseudonyms | None

    def prepare(self, entry: StudyEntry) -> tuple[PreparedInput, ExitStack]:
        """Return a prepared study, and the files that have to stay open until its results are written."""
        with ExitStack() as stack:
            study_input = stack.enter_context(opened_entry(entry))
            return prepare_input(study_input, self.model, self.options.inference), stack.pop_all()
        raise AssertionError

    def segment(self, prepared: PreparedInput) -> Segmentation:
        """Segment a prepared study."""
        return segment_prepared(prepared, self.model, self.options.inference)

    def write(self, entry: StudyEntry, segmentation: Segmentation, held: ExitStack) -> WrittenStudy:
        """Write the output folder of a study, close its files, and return its summary."""
        name, outputs = self.names[entry.id], self.options.outputs
        with held:
            segmentation.save(
                self.output / name, labels=outputs.labels, types=outputs.study_types, pseudonyms=self.pseudonyms
            )
            if BIDS in outputs.types:
                digest = self.model.provenance["sha256"][WEIGHTS]
                write_derivative(self.output, name, segmentation.labels, model=self.model.name, version=digest[:12])
        return WrittenStudy(
            study=name,
            seconds=sum(segmentation.seconds.values()),
            used=segmentation.used,
            volumes=volumes_in_words(segmentation.volumes_ml),
            outlook=tuple(segmentation.outlook),
        )

    def run(self, entry: StudyEntry) -> WrittenStudy:
        """Run all steps for one study. A study whose folder is there already is only read back.

        A process that was killed before it could report the study may therefore ask for it again.
        """
        name = self.names[entry.id]
        if (self.output / name / RECORD).is_file():
            return self._read_back(self.output / name)
        remove_temporary(self.output, [name])
        prepared, held = self.prepare(entry)
        try:
            segmentation = self.segment(prepared)
        except BaseException:
            held.close()
            raise
        return self.write(entry, segmentation, held)

    def reason(self, entry: StudyEntry, error: Exception) -> str:
        """Return why a study could not be segmented, as written to `failures.json`."""
        known = isinstance(error, InputError | UsageError)
        reason = str(error) if known else f"unexpected error ({type(error).__name__}: {error})"
        if not self.options.outputs.deidentify:
            return reason
        return _without_names(reason, entry, self.names[entry.id])

    @staticmethod
    def _read_back(folder: Path) -> WrittenStudy:
        """Return the summary of a study that was written before, from its files."""
        run = json.loads((folder / RECORD).read_text("utf-8"))
        statistics = json.loads((folder / STATISTICS).read_text("utf-8"))
        return WrittenStudy(
            study=folder.name,
            seconds=sum(run["seconds"].values()),
            used=parse("+".join(run["sequences"]["used"])),
            volumes=volumes_in_words({Region[name]: values["volume_ml"] for name, values in statistics.items()}),
        )


def remove_temporary(output: Path, names: Iterable[str]) -> None:
    """Remove the temporary folders of these studies that a killed process has left."""
    for name in names:
        for left in output.glob(f".{_escaped(name)}.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _without_names(reason: str, entry: StudyEntry, name: str) -> str:
    """Return a message without the study's name and the folders that it lies in."""
    words = reason.replace(entry.id, name).split(" ")
    return " ".join(Path(word).name or word if word.startswith(os.sep) else word for word in words)
