"""What was found in one study, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from glimpseg import metrics
from glimpseg.data import nifti
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.data.dicom.seg import SegmentationType, write_seg
from glimpseg.data.dicom.sr import write_sr
from glimpseg.data.layouts import convention_named
from glimpseg.data.series import Series
from glimpseg.errors import UsageError
from glimpseg.modality import ALL, Modality
from glimpseg.model.expectations import expected_tree, gain_tree
from glimpseg.model.folder import WEIGHTS
from glimpseg.model.loading import Model
from glimpseg.region import TITLES, Label, Region
from glimpseg.runtime.atomic import atomic_folder
from glimpseg.segmentation.inputs import ImageLike, volume_of
from glimpseg.segmentation.uncertainty import Uncertainty, doubt_tree
from glimpseg.version import NOT_A_DEVICE, __version__
from glimpseg.volume import Volume, downsample_large, resample

RECORD = "run.json"
"""What was used and how; also the mark of a folder that may be overwritten."""
UNMEASURED = (
    "What to expect from {} is not known of this model, which has no expectations.json for this use. Make a copy that "
    "has one from labelled studies: glimpseg calibrate MODEL --data STUDIES -o NEW_MODEL"
)
DICOM = frozenset({"dicom-seg", "dicom-labelmap", "dicom-sr"})
TYPES = ("nifti", *sorted(DICOM))
"""What can be written; NIfTI always is."""


def volumes_in_words(volumes_ml: Mapping[Region, float]) -> str:
    """`WT 43.7 ml, TC 14.9 ml, ET 7.3 ml`."""
    return ", ".join(f"{region.name} {volume:.1f} ml" for region, volume in volumes_ml.items())


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What was found in one study."""

    labels: Volume
    """`Label` values, uint8, on the study's own grid."""
    probabilities: Mapping[Region, Volume] | None
    """At the model's temperatures, if it has any (`calibrated`)."""
    used: Modality
    model: Model
    images: Mapping[Modality, ImageLike] = field(repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    series: Series | None = field(default=None, repr=False)
    """The DICOM series on whose grid the labels lie; None for NIfTI."""
    notes: tuple[str, ...] = ()
    """What was done to the images before: conversion, registration, skull stripping."""
    uncertainty: Uncertainty | None = None
    """How sure the result is, if that was asked for."""
    backend: Mapping[str, str] | None = None
    """What computed the network, and in which precision."""

    @property
    def absent(self) -> Modality:
        """The sequences that were not there."""
        return ALL & ~self.used

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions the model delineates."""
        return self.model.network.regions

    @property
    def volumes_ml(self) -> dict[Region, float]:
        """Millilitres of each region."""
        voxel = self.labels.grid.voxel_ml
        return {region: metrics.volume_ml(region.mask(self.labels.voxels), voxel) for region in self.regions}

    @property
    def lesions(self) -> dict[Region, int]:
        """Connected parts of each region."""
        return {region: metrics.lesion_count(region.mask(self.labels.voxels)) for region in self.regions}

    @property
    def calibrated(self) -> bool:
        """Whether the model has temperatures for these sequences, so that its probabilities are at them."""
        return self.model.expectations is not None and bool(self.model.expectations.of(self.used))

    @property
    def outlook(self) -> list[str]:
        """What to expect from these sequences, and which absent one would help most; for a person, line by line."""
        told = self.model.expectations
        return told.sentences(self.used) if told else [UNMEASURED.format(self.used.title)]

    @property
    def trust(self) -> list[str]:
        """The outlook, and how sure this very result is."""
        told = self.model.expectations.of(self.used) if self.model.expectations else {}
        errors = {region: expected.estimate_error for region, expected in told.items()}
        return [*self.outlook, *(self.uncertainty.sentences(errors) if self.uncertainty else ()), NOT_A_DEVICE]

    def save(
        self,
        folder: str | Path,
        *,
        labels: str = "brats2024",
        types: Collection[str] = ("nifti",),
        pseudonyms: Pseudonyms | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Writes `seg.nii.gz`, `seg.json`, `statistics.json`, `preview.png`, `run.json` and, if they were kept,
        `probabilities_<region>.nii.gz`; all of it or nothing. Of `TYPES`, `dicom-seg` adds `seg.dcm`, in the geometry
        of the series that gave the study its grid (`dicom-labelmap`: in one plane), and `dicom-sr` the volumes as
        `measurements.dcm`, too.

        `labels` names the convention of the numbers in `seg.nii.gz`. With `pseudonyms`, DICOM files name no
        patient.

        Raises: UsageError if the folder holds files (without `overwrite`), or for unknown `labels` or `types`, or
            DICOM output of images that came as NIfTI; InputError if the convention has no number for a label that was
            found; OutputError when the disk refuses.
        """
        convention = convention_named(labels)
        self._refuse_types(types)
        numbers = {number: label for number, label in convention.meaning.items() if label in self.model.network.labels}
        with atomic_folder(folder, overwrite=overwrite, mark=RECORD) as place:
            values = Volume(convention.write(self.labels.voxels), self.labels.affine)
            nifti.write_labels(place / "seg.nii.gz", values, {number: label.name for number, label in numbers.items()})
            for region, volume in (self.probabilities or {}).items():
                nifti.write_image(place / f"probabilities_{region.name}.nii.gz", volume)
            if set(types) & DICOM:
                self._write_dicom(place, types, pseudonyms)
            _write_json(place / "seg.json", self._names(labels, numbers))
            _write_json(place / "statistics.json", self._statistics())
            _write_json(place / RECORD, self._record(labels))
            self.preview().savefig(place / "preview.png", dpi=110)
        return Path(folder)

    def _refuse_types(self, types: Collection[str]) -> None:
        unknown = sorted(set(types) - set(TYPES))
        if unknown:
            raise UsageError(f"'{unknown[0]}' is no output type. Choose of {', '.join(TYPES)}.")
        if set(types) & DICOM and self.series is None:
            raise UsageError(
                "A DICOM SEG lies in the geometry of a DICOM series, and the image on whose grid the result lies came "
                "as NIfTI, or from an archive of one series. Give the study's DICOM with -i, or leave DICOM out of "
                "the output types."
            )

    def preview(self) -> Any:
        """The matplotlib figure of `preview.png`: three planes of each present sequence, radiological side."""
        from glimpseg.picture import preview  # matplotlib, for whoever draws

        labels = downsample_large(self.labels)
        volumes = {m: resample(volume_of(self.images[m], m.title), labels.grid) for m in Modality if m in self.used}
        absent = f"   absent: {self.absent.title}" if self.absent else ""
        return preview(volumes, labels, title=f"{self.used.title}{absent}   ({self.model.name})")

    def _write_dicom(self, place: Path, types: Collection[str], pseudonyms: Pseudonyms | None) -> None:
        assert self.series is not None
        segmentation, model = place / "seg.dcm", self.model.name
        kind: SegmentationType = "LABELMAP" if "dicom-labelmap" in types else "BINARY"
        write_seg(segmentation, self.labels, self.series, kind=kind, model=model, pseudonyms=pseudonyms)
        if "dicom-sr" in types:
            target, regions = place / "measurements.dcm", self.regions
            write_sr(
                target, self.labels, segmentation, self.series, model=model, regions=regions, pseudonyms=pseudonyms
            )

    def _names(self, convention: str, numbers: Mapping[int, Label]) -> dict[str, Any]:
        return {
            "convention": convention,
            "labels": {str(number): {"name": label.name, "title": TITLES[label]} for number, label in numbers.items()},
            "regions": {region.name: [label.name for label in region.value] for region in self.regions},
        }

    def _statistics(self) -> dict[str, Any]:
        lesions, doubted = self.lesions, self.uncertainty.regions if self.uncertainty else {}
        return {
            region.name: {
                "title": region.title,
                "volume_ml": round(volume, 4),
                "lesions": lesions[region],
                **(doubt_tree(doubted[region]) if region in doubted else {}),
            }
            for region, volume in self.volumes_ml.items()
        }

    def _trusted(self) -> dict[str, Any]:
        """What `trust` says, in numbers."""
        told = self.model.expectations
        best = told.most_helpful(self.used) if told else None
        return {
            "expected": told
            and {
                "population": told.population,
                "studies": told.studies,
                "regions": {region.name: expected_tree(one) for region, one in told.of(self.used).items()},
            },
            "most_helpful": best and {"sequence": best.sequence.key, **gain_tree(best)},
            "uncertainty": self.uncertainty and self.uncertainty.as_tree(),
        }

    def _record(self, labels: str) -> dict[str, Any]:
        grid = self.labels.grid
        prior = self.model.provenance.get("data", {}).get("prior")
        backend = self.backend or self.model.backend.record
        return {
            "glimpseg": __version__,
            "notice": NOT_A_DEVICE,
            "model": {
                "name": self.model.name,
                "method": self.model.recipe.method,
                "sha256": self.model.provenance["sha256"][WEIGHTS],
                "steps": self.model.provenance.get("steps"),
                "written_by": self.model.provenance.get("glimpseg"),
                **({"choices": self.model.chosen} if self.model.chosen else {}),
                **({"prior": prior} if prior else {}),
            },
            "sequences": {"used": [m.key for m in self.used], "absent": [m.key for m in self.absent]},
            "grid": {"shape": list(grid.shape), "spacing_mm": list(grid.spacing_mm), "axes": grid.axes},
            "labels": labels,
            "probabilities": self.probabilities and ("calibrated" if self.calibrated else "as the network gives them"),
            "trust": self._trusted(),
            "device": str(self.model.device),
            "backend": dict(backend),
            "precision": backend["precision"],
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            **({"notes": list(self.notes)} if self.notes else {}),
            "warnings": list(self.warnings),
        }


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=2) + "\n", "utf-8")
