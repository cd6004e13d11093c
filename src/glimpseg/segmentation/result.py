"""The segmentation of one study: labels, volumes, uncertainty, and its output folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glimpseg import metrics
from glimpseg.data import nifti
from glimpseg.data.dicom.pseudonyms import Pseudonyms
from glimpseg.data.dicom.seg import SegmentationType, write_seg
from glimpseg.data.dicom.sr import write_sr
from glimpseg.data.notices import StudyNotices, warn
from glimpseg.data.series import Series
from glimpseg.errors import InputError, UsageError
from glimpseg.modality import ALL, Modality
from glimpseg.model.loading import Model
from glimpseg.region import Region, convention_named
from glimpseg.runtime.atomic import atomic_folder
from glimpseg.segmentation import record
from glimpseg.segmentation.inputs import ImageLike, volume_of
from glimpseg.segmentation.options import DICOM_TYPES, refuse_unknown_types
from glimpseg.segmentation.preparation import NO_SERIES, no_dicom_output
from glimpseg.segmentation.quality.finding import Review
from glimpseg.segmentation.uncertainty import Uncertainty
from glimpseg.version import NOT_A_DEVICE
from glimpseg.volume import Volume, downsample_large, resample

RECORD = "run.json"
"""File that says what was used and how. A folder that holds it may be overwritten."""
UNMEASURED = (
    "The performance with {} is not known for this model, which has no expectations.json for this use. Make a copy "
    "that has one from labelled studies: glimpseg calibrate MODEL --data STUDIES -o NEW_MODEL"
)
PREVIEW_DPI = 110
THUMBNAIL = "thumbnail.jpg"
"""Picture of one slice, at most 15 kB."""


def volumes_in_words(volumes_ml: Mapping[Region, float]) -> str:
    """Return volumes as text, in millilitres with one decimal: `WT 43.7 ml, TC 14.9 ml, ET 7.3 ml`."""
    return ", ".join(f"{region.name} {volume:.1f} ml" for region, volume in volumes_ml.items())


@dataclass(frozen=True, eq=False, kw_only=True)
class Segmentation:
    """The segmentation of one study, with the model and the images that it comes from."""

    labels: Volume
    """`Label` values, uint8, on the native grid of the study."""
    used: Modality
    """Sequences that it was made from."""
    model: Model
    """Model that made it."""
    images: Mapping[Modality, ImageLike] = field(repr=False)
    """Images of the study by sequence, for the preview."""
    probabilities: Mapping[Region, Volume] | None = None
    """Probability map of each region, calibrated if `calibrated` is true; None if not asked for."""
    uncertainty: Uncertainty | None = None
    """Uncertainty of each region; None if not asked for."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Time of each step in seconds: `reading`, `network`, `review`, and `uncertainty` if it was asked for."""
    notices: StudyNotices = field(default_factory=StudyNotices, repr=False)
    """Warnings and notes about the study, from its first file on. Writing the output folder may add some."""
    checks: tuple[str, ...] = ()
    """Results of the checks for raw images."""
    unused: tuple[str, ...] = ()
    """Images that were found and not used, each with the reason."""
    series: Series | None = field(default=None, repr=False)
    """DICOM series on whose grid the labels lie; None for a NIfTI image, an image in memory, or an archive of one
    series."""
    review: Review | None = None
    """Reasons to look at the result; None for a segmentation that was made without rules."""
    backend: Mapping[str, str] | None = None
    """Record of the inference backend that computed the network (`Backend.record`); None for the model's own as it is
    now."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what is doubtful, so that a person should look."""
        return tuple(self.notices.warnings)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what was done, moved or left out: series, unused images, registration, skull stripping."""
        return tuple(self.notices.notes)

    @property
    def absent(self) -> Modality:
        """Sequences that were not given."""
        return ALL & ~self.used

    @property
    def regions(self) -> tuple[Region, ...]:
        """Regions that the model delineates."""
        return self.model.network.regions

    @property
    def volumes_ml(self) -> dict[Region, float]:
        """Volume of each region in millilitres."""
        voxel = self.labels.grid.voxel_ml
        return {region: metrics.volume_ml(region.mask(self.labels.voxels), voxel) for region in self.regions}

    @property
    def lesions(self) -> dict[Region, int]:
        """Number of 26-connected components of each region."""
        return {region: metrics.lesion_count(region.mask(self.labels.voxels)) for region in self.regions}

    @property
    def calibrated(self) -> bool:
        """True if the model has temperatures for the sequences `used`: probabilities and estimates are calibrated."""
        return self.model.expectations is not None and bool(self.model.expectations.of(self.used))

    @property
    def outlook(self) -> list[str]:
        """Sentences on the expected performance with the sequences `used`, and on the absent one that would help most.

        If the performance was not measured for this use of the model, one sentence says so.
        """
        expected = self.model.expectations
        return expected.sentences(self.used) if expected else [UNMEASURED.format(self.used.title)]

    @property
    def trust(self) -> list[str]:
        """The outlook, sentences on the uncertainty if it was estimated, and the notice on medical devices."""
        return [*self.outlook, *(self.uncertainty.sentences if self.uncertainty else ()), NOT_A_DEVICE]

    def save(
        self,
        folder: str | Path,
        *,
        labels: str = "brats2024",
        types: Collection[str] = ("nifti",),
        pseudonyms: Pseudonyms | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the output folder, whole or not at all, and return its path.

        Always written: `seg.nii.gz`, `seg.json`, `statistics.json`, `preview.png`, `thumbnail.jpg`, `run.json`. If
        probabilities were kept: `probabilities_<region>.nii.gz`.

        Args:
            folder: Folder to make.
            labels: Label convention of `seg.nii.gz`, as for `convention_named`.
            types: Output types of `options.STUDY_TYPES`. Each DICOM type adds `seg.dcm`, in the geometry of the series
                on whose grid the labels lie (`dicom-labelmap`: one plane per slice for all labels). `dicom-sr` also
                adds the volumes as `measurements.dcm`.
            pseudonyms: With them, DICOM files name no patient.
            overwrite: Replace a folder that glimpseg wrote.

        Raises:
            UsageError: If the folder holds files (without `overwrite`, or of something else), for unknown `labels` or
                `types`, or for DICOM output of images that came as NIfTI. Headers that allow no DICOM output give a
                warning.
            InputError: If the convention has no number for a label that was found, or two numbers for one label.
            OutputError: When the disk refuses.
        """
        convention = convention_named(labels)
        self._refuse_types(types)
        numbers = {number: label for number, label in convention.meaning.items() if label in self.model.network.labels}
        with atomic_folder(folder, overwrite=overwrite, mark=RECORD) as place:
            values = Volume(convention.write(self.labels.voxels), self.labels.affine)
            nifti.write_labels(place / "seg.nii.gz", values, {number: label.name for number, label in numbers.items()})
            for region, volume in (self.probabilities or {}).items():
                nifti.write_image(place / f"probabilities_{region.name}.nii.gz", volume)
            if set(types) & DICOM_TYPES:
                with self.notices.open():
                    self._write_dicom(place, types, pseudonyms)
            record.write_tree(place / "seg.json", record.label_names(labels, numbers, self.regions))
            record.write_tree(place / record.STATISTICS, self._statistics())
            record.write_tree(place / RECORD, self._record(labels))
            volumes, shown = self._drawn()
            self._preview(volumes, shown).savefig(place / "preview.png", dpi=PREVIEW_DPI)
            _write_thumbnail(place / THUMBNAIL, volumes, shown)
        return Path(folder)

    def preview(self) -> Any:
        """Return the matplotlib figure of `preview.png`: three planes of each sequence, in radiological view.

        Files of images are read again. Raises: InputError if that fails.
        """
        return self._preview(*self._drawn())

    def _drawn(self) -> tuple[dict[Modality, Volume], Volume]:
        """Return the images and the labels on the grid of the pictures; files are read again."""
        labels = downsample_large(self.labels)
        return {
            m: resample(volume_of(self.images[m], m.title), labels.grid) for m in Modality if m in self.used
        }, labels

    def _preview(self, volumes: Mapping[Modality, Volume], labels: Volume) -> Any:
        from glimpseg.picture import preview  # matplotlib, for whoever draws

        absent = f"   absent: {self.absent.title}" if self.absent else ""
        return preview(volumes, labels, title=f"{self.used.title}{absent}   ({self.model.name})")

    def _refuse_types(self, types: Collection[str]) -> None:
        refuse_unknown_types(tuple(types))
        if set(types) & DICOM_TYPES and self.series is None:
            raise UsageError(NO_SERIES)

    def _write_dicom(self, place: Path, types: Collection[str], pseudonyms: Pseudonyms | None) -> None:
        """Write the DICOM output. If the headers do not allow it, there is a warning and no file."""
        assert self.series is not None
        segmentation, model = place / "seg.dcm", self.model.name
        kind: SegmentationType = "LABELMAP" if "dicom-labelmap" in types else "BINARY"
        target, regions = place / "measurements.dcm", self.regions
        try:
            write_seg(segmentation, self.labels, self.series, kind=kind, model=model, pseudonyms=pseudonyms)
            if "dicom-sr" in types:
                write_sr(
                    target, self.labels, segmentation, self.series, model=model, regions=regions, pseudonyms=pseudonyms
                )
        except InputError as error:
            for path in (segmentation, target):
                path.unlink(missing_ok=True)
            warn(no_dicom_output(error))

    def _statistics(self) -> dict[str, Any]:
        return record.statistics(self.volumes_ml, self.lesions, self.uncertainty)

    def _record(self, labels: str) -> dict[str, Any]:
        backend = self.backend or self.model.backend.record
        kept = self.probabilities and ("calibrated" if self.calibrated else "as the network gives them")
        return {
            **record.model_used(self.model),
            "sequences": {"used": [m.key for m in self.used], "absent": [m.key for m in self.absent]},
            "grid": record.grid(self.labels.grid),
            "labels": labels,
            "probabilities": kept,
            "trust": record.trust(self.model.expectations, self.used, self.uncertainty),
            "review": self.review and self.review.as_tree(),
            **record.machine(self.model, backend),
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            **({"checks": list(self.checks)} if self.checks else {}),
            **({"unused": list(self.unused)} if self.unused else {}),
            **self.notices.as_tree(),
        }


def _write_thumbnail(path: Path, volumes: Mapping[Modality, Volume], labels: Volume) -> None:
    """Write the slice with most tumour of one sequence as a small picture, for the contact sheet of a batch."""
    from glimpseg.picture import THUMBNAIL_ORDER, thumbnail, write_thumbnail  # matplotlib, for whoever draws

    image = volumes[next(modality for modality in THUMBNAIL_ORDER if modality in volumes)].ras()
    write_thumbnail(path, thumbnail(image.voxels, labels.ras().voxels, image.grid.spacing_mm))
