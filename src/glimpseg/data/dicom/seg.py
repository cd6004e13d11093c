"""DICOM segmentations (SEG): write and read label maps in the geometry of a series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import nibabel
import numpy as np

from glimpseg.data.dicom import codes, libraries
from glimpseg.data.dicom.attributes import inherited_headers
from glimpseg.data.dicom.geometry import ras_grid
from glimpseg.data.dicom.pseudonyms import Pseudonyms, mark_pseudonymous
from glimpseg.data.dicom.read import decode, series_title, source_geometry, source_headers
from glimpseg.data.series import Series
from glimpseg.errors import InputError, OutputError, UsageError
from glimpseg.region import COLOURS, Label
from glimpseg.runtime.atomic import atomic_file
from glimpseg.version import __version__
from glimpseg.volume import Grid, Volume, resample_labels

if TYPE_CHECKING:
    import highdicom
    from pydicom.dataset import Dataset

SegmentationType = Literal["BINARY", "LABELMAP"]
"""Type of a SEG.

Every viewer reads BINARY (one bit plane per segment). LABELMAP (2024) holds all segments in one image.
"""

SERIES_OFFSET = 1000
"""Number added to the source's series number; the SR gets one more."""
LONGEST_NAME = 64
"""Largest number of characters of a DICOM LO value."""


def write_seg(
    path: str | Path,
    labels: Volume,
    source: Series,
    *,
    kind: SegmentationType = "BINARY",
    model: str,
    pseudonyms: Pseudonyms | None = None,
) -> None:
    """Write a label map as a segmentation that refers to the slices of `source`.

    On the source's grid voxels are copied, in any order of axes. A label map on another grid is resampled once
    (`resample_labels`). Only labels that occur are described. An empty label map has one segment without voxels.

    Args:
        path: file to write.
        labels: `Label` values, 0 elsewhere.
        source: series whose geometry, patient and study are used.
        kind: BINARY or LABELMAP.
        model: name of the algorithm.
        pseudonyms: replaces or empties all identifiers (see `inherited_headers`), and marks the file as de-identified;
            None keeps the patient's name and identifiers.

    Raises:
        InputError: if the source cannot be read, forms no volume, or lacks valid attributes such as UIDs; or if
            `labels` holds values that are no labels.
        OutputError: if writing fails.
        UsageError: without the extra `dicom`.
    """
    libraries.require()
    headers = source_headers(source)
    geometry = source_geometry(source, headers)
    with libraries.silenced():
        with hide_library_errors(source):
            images = inherited_headers(headers, pseudonyms)
            placed = onto_source(labels, source, geometry)
            dataset = _build_segmentation(placed, geometry, images, kind=kind, model=model)
        write_derived(path, dataset, source, pseudonyms)


def check_seg_source(source: Series) -> None:
    """Check, from headers alone, that a segmentation can refer to a series. Raises: InputError if it cannot."""
    libraries.require()
    headers = source_headers(source)
    source_geometry(source, headers)
    images = inherited_headers(headers)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        count = len({getattr(image, keyword) for image in images})
        if count > 1:
            raise InputError(
                f"The slices of {series_title(source)} have {count} different {keyword}s, and a DICOM SEG refers to "
                "one. Correct the UIDs of the series (dcmodify)."
            )


def read_seg(path: str | Path, grid: Grid | None = None) -> Volume:
    """Read the `Label` values of a segmentation, uint8.

    Labels are known by the coded types of the segments (`codes.LABELS`).

    Args:
        path: file to read.
        grid: grid of the result. None returns the segmentation's own grid, which may end at the last slice that holds a
            segment.

    Raises:
        InputError: if there is no file or it is no segmentation, voxels are in a segment of unknown type, segments
            overlap, the frames form no volume, or the pixels cannot be decoded.
        UsageError: without the extra `dicom`.
    """
    libraries.require()
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path.name} is not a file. Give a DICOM segmentation.")
    voxels, affine = decode("segmentation", [path], (), path.name)
    labels = Volume(voxels, affine)
    return labels if grid is None else resample_labels(labels, grid)


def onto_source(labels: Volume, source: Series, geometry: highdicom.VolumeGeometry) -> highdicom.Volume:
    """Return a label map in the order of slices, rows and columns of `source`.

    Raises: InputError for values that are no labels.
    """
    import highdicom

    unknown = sorted(set(np.unique(labels.voxels).tolist()) - {0, *Label})
    if unknown:
        raise InputError(f"A label map of {series_title(source)} should hold Label values and holds {unknown}.")
    placed = resample_labels(labels, ras_grid(geometry))
    image = nibabel.Nifti1Image(placed.voxels.astype(np.uint8), placed.affine)
    volume = highdicom.Volume.from_nibabel(image, frame_of_reference_uid=geometry.frame_of_reference_uid)
    return volume.match_geometry(geometry)


@contextmanager
def hide_library_errors(source: Series) -> Iterator[None]:
    """Convert a library's error about a source to an InputError without its text, which may quote the header."""
    try:
        yield
    except (InputError, OutputError, UsageError):
        raise
    except Exception as error:
        raise InputError(
            f"From the headers of {series_title(source)} nothing can be derived ({type(error).__name__}): an attribute "
            "is missing or wrong. Write NIfTI instead, or export the series again."
        ) from None


def write_derived(path: str | Path, dataset: Dataset, source: Series, pseudonyms: Pseudonyms | None) -> None:
    """Write a derived object atomically. Raises: OutputError if writing fails; InputError if it cannot be encoded."""
    from pydicom.filebase import DicomBytesIO

    with hide_library_errors(source):
        if pseudonyms:
            mark_pseudonymous(dataset)
        buffer = DicomBytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def series_number(images: Sequence[Dataset], offset: int) -> int:
    """Return the series number of a derived series: the source's number plus `offset`."""
    return int(images[0].get("SeriesNumber") or 0) % 1_000_000 + offset


def _build_segmentation(
    labels: highdicom.Volume,
    geometry: highdicom.VolumeGeometry,
    images: Sequence[Dataset],
    kind: SegmentationType,
    model: str,
) -> highdicom.seg.Segmentation:
    import highdicom

    present = [label for label in Label if (labels.array == label).any()]
    numbers = np.zeros(max(Label) + 1, np.uint8)
    numbers[present] = range(1, len(present) + 1)  # segment numbers are consecutive
    volume = highdicom.Volume(
        numbers[labels.array],
        affine=geometry.affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=images[0].FrameOfReferenceUID,
    )
    dataset = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=volume,
        segmentation_type=kind,
        segment_descriptions=_segment_descriptions(present, model),
        series_instance_uid=highdicom.UID(),
        series_number=series_number(images, SERIES_OFFSET),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="glimpseg",
        manufacturer_model_name=model[:LONGEST_NAME],
        software_versions=__version__,
        device_serial_number=__version__,
        content_label="BRAIN_TUMOUR",
        content_description="Brain tumour, segmented without supervision",
        series_description="Brain tumour segmentation",
    )
    if Label.RC in present:
        dataset.CodingSchemeIdentificationSequence = [codes.private_scheme_item()]
    return dataset


def _segment_descriptions(present: Sequence[Label], model: str) -> list[highdicom.seg.SegmentDescription]:
    import highdicom
    from pydicom.sr.codedict import codes as dictionary

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=model[:LONGEST_NAME], family=dictionary.cid7162.ArtificialIntelligence, version=__version__
    )
    terms = [(codes.LABELS[label], COLOURS[label], label.name) for label in present]
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=term.title,
            segmented_property_category=codes.CATEGORY.concept(),
            segmented_property_type=term.concept(),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            anatomic_regions=[codes.BRAIN.concept()],
            tracking_uid=highdicom.UID(),
            tracking_id=f"glimpseg {name}",
            display_color=highdicom.color.CIELabColor.from_string(colour),
        )
        for number, (term, colour, name) in enumerate(terms or [(codes.NO_TUMOUR, "#ffffff", "none")], 1)
    ]
