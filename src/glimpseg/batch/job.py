"""Segmentation job for one study of a batch: prepare, segment, write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glimpseg.batch.written import read_study_folder
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.data.layouts import write_derivative
from glimpseg.data.notices import Notices, StudyNotices
from glimpseg.errors import InputError, OutputError, UsageError
from glimpseg.modality import Modality
from glimpseg.model.expectations import EXPECTATIONS
from glimpseg.model.folder import WEIGHTS
from glimpseg.model.loading import Model
from glimpseg.runtime.atomic import remove_unfinished
from glimpseg.segmentation.inputs import StudyEntry, opened_entry
from glimpseg.segmentation.options import BIDS, InferenceOptions, OutputOptions
from glimpseg.segmentation.passes import segment_prepared
from glimpseg.segmentation.preparation import PreparedInput, prepare_input, warn_of_output
from glimpseg.segmentation.result import RECORD, Segmentation, volumes_in_words
from glimpseg.study import without_folders
from glimpseg.version import __version__


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Inference and output options of a batch, the same for each study."""

    inference: InferenceOptions = field(default_factory=InferenceOptions)
    outputs: OutputOptions = field(default_factory=OutputOptions)
    backend: str | None = None
    """Inference backend that the fingerprint names. None: the backend and the precision that the model uses."""

    def fingerprint(self, model: Model) -> dict[str, Any]:
        """Return the fingerprint of a batch: plain values that must be equal for the batch to be resumed.

        These are the options that decide the results, the version of glimpseg, the checksums of the model's weights and
        expectations, the choices of the model, and the inference backend with its precision.
        """
        inference, outputs = self.inference, self.outputs
        return {
            "glimpseg": __version__,
            "model": model.provenance["sha256"][WEIGHTS],
            **({"choices": model.chosen} if model.chosen else {}),
            # Masks of two backends differ by some voxels.
            "backend": self.backend or f"{model.computed_by} {model.precision}",
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
    """Name of its output folder."""
    seconds: float
    """Time of all steps together, in seconds."""
    used: Modality
    """Sequences that it was segmented from."""
    volumes: str
    """Volume of each region, in words."""
    outlook: tuple[str, ...] = ()
    """Sentences on the expected performance; none for a study that an earlier run wrote."""
    notices: Notices = field(default_factory=Notices)
    """Its warnings and notes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StudyJob:
    """Steps that segment one study of a batch. The same object serves all studies of a process."""

    model: Model
    output: Path
    """Output folder of the batch."""
    options: BatchOptions
    names: Mapping[str, str]
    """Name of the output folder of each entry, by its id."""
    pseudonyms: Pseudonyms | None
    """Pseudonyms for the DICOM files; None without de-identification."""

    def prepare(self, entry: StudyEntry) -> tuple[PreparedInput, ExitStack]:
        """Read and prepare a study; return it with the files that must stay open until its results are written.

        Raises: InputError if it cannot be read or prepared; UsageError if something needed is not installed, or if the
            study lacks the sequence of the option `grid`; OutputError if an archive cannot be unpacked.
        """
        notices = self._notices_of(entry)
        with ExitStack() as stack:
            stack.callback(notices.finish)
            study_input = stack.enter_context(opened_entry(entry, notices))
            prepared = prepare_input(study_input, self.model, self.options.inference)
            warn_of_output(prepared, self.options.outputs.study_types)
            notices.tell()
            return prepared, stack.pop_all()
        raise AssertionError

    def _notices_of(self, entry: StudyEntry) -> StudyNotices:
        """Return an object for the notices of a study, which begin with the name of its output folder."""
        name, deidentify = self.names[entry.id], self.options.outputs.deidentify
        hidden = {entry.id: name} if deidentify else {}
        return StudyNotices(name=name, where=f"{RECORD} has all of them", hidden=hidden)

    def segment(self, prepared: PreparedInput) -> Segmentation:
        """Segment a prepared study. Raises: InputError if the memory does not suffice."""
        return segment_prepared(prepared, self.model, self.options.inference)

    def write(self, entry: StudyEntry, segmentation: Segmentation, held: ExitStack) -> WrittenStudy:
        """Write the output folder of a study, and return a summary of the study.

        With the output type `bids`, the label map is also added to the BIDS derivative of the batch, before the folder:
        a study whose folder is there is not written again.

        Args:
            entry: The study.
            segmentation: Its segmentation.
            held: The open files that `prepare` returned. They are closed at the end, also if writing fails.

        Raises: as `Segmentation.save`.
        """
        name, outputs = self.names[entry.id], self.options.outputs
        with held:
            if BIDS in outputs.types:
                digest = self.model.provenance["sha256"][WEIGHTS]
                write_derivative(self.output, name, segmentation.labels, model=self.model.name, version=digest[:12])
            segmentation.save(
                self.output / name, labels=outputs.labels, types=outputs.study_types, pseudonyms=self.pseudonyms
            )
        return WrittenStudy(
            study=name,
            seconds=sum(segmentation.seconds.values()),
            used=segmentation.used,
            volumes=volumes_in_words(segmentation.volumes_ml),
            outlook=tuple(segmentation.outlook),
            notices=segmentation.notices.as_copy(),
        )

    def run(self, entry: StudyEntry) -> WrittenStudy:
        """Run all steps for one study. A study whose folder holds `run.json` is not segmented again but read back.

        A process that was killed before it could report a written study is asked for that study again. Temporary
        folders of the study that a killed process left are removed first.

        Raises: as `prepare`, `segment` and `write`.
        """
        name = self.names[entry.id]
        if (self.output / name / RECORD).is_file():
            return self.read_back(name)
        remove_unfinished(self.output, [name])
        prepared, held = self.prepare(entry)
        try:
            segmentation = self.segment(prepared)
        except BaseException:
            held.close()
            raise
        return self.write(entry, segmentation, held)

    def reason(self, entry: StudyEntry, error: Exception) -> str:
        """Return why a study could not be segmented, as written to `failures.json`.

        This is the message of an InputError, UsageError or OutputError. Any other error is called unexpected, with its
        type and message. With de-identification, the study's id becomes the name of its output folder, and each
        absolute path is cut to its last part.
        """
        if isinstance(error, OutputError):  # of an archive, or of DICOM: the disk of temporary files refused
            reason = error.strerror or str(error)
        elif isinstance(error, InputError | UsageError):
            reason = str(error)
        else:
            reason = f"unexpected error ({type(error).__name__}: {error})"
        if entry.study is not None:
            reason = without_folders(reason, entry.study)
        if entry.place is not None:
            reason = reason.replace(f"{entry.place.parent}{os.sep}", "")
        if not self.options.outputs.deidentify:
            return reason
        return _without_names(reason, entry, self.names[entry.id])

    def read_back(self, name: str) -> WrittenStudy:
        """Return the summary of a study that was written before, from its files. It has no outlook.

        Args:
            name: Name of its output folder.

        Raises: InputError if a file of the folder is damaged.
        """
        written = read_study_folder(self.output / name)
        return WrittenStudy(
            study=written.name,
            seconds=written.seconds,
            used=written.used,
            volumes=volumes_in_words(written.volumes_ml),
            notices=written.notices,
        )


def _without_names(reason: str, entry: StudyEntry, name: str) -> str:
    """Return a message with `name` in place of the study's id, and each absolute path cut to its last part."""
    words = reason.replace(entry.id, name).split(" ")
    return " ".join(Path(word).name or word if word.startswith(os.sep) else word for word in words)
