"""Label maps as DICOM segmentations, in the geometry of the series that they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import nibabel
import numpy as np

from glimpseg.data.dicom import codes, libraries
from glimpseg.data.dicom.attributes import inherited_headers
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
"""BINARY is what every viewer reads: one bit plane for each segment. LABELMAP (2024) holds them in one image."""

SERIES_OFFSET = 1000
"""Added to the number of the source series; the measurements get one more."""
LONGEST_NAME = 64
"""Characters of a DICOM LO."""


def write_seg(
    path: str | Path,
    labels: Volume,
    source: Series,
    *,
    kind: SegmentationType = "BINARY",
    model: str,
    pseudonyms: Pseudonyms | None = None,
) -> None:
    """Writes a label map (`Label` values, 0 elsewhere) as a segmentation that refers to the slices of `source`.

    On the lattice of `source`, in whatever order of axes, voxels are copied; from another they are resampled once
    (`resample_labels`). Only labels that occur are described; an empty map has one segment without voxels. `model`
    names the algorithm. With `pseudonyms` nobody is named in the file (see `sources`).

    Raises: InputError if the source cannot be read, makes up no volume, or has UIDs that are none; OutputError when the
        disk refuses; UsageError without the extra `dicom`.
    """
    libraries.require_libraries()
    headers = source_headers(source)
    geometry = source_geometry(source, headers)
    with libraries.silence_libraries():
        with hide_library_errors(source):
            images = inherited_headers(headers, pseudonyms)
            dataset = _segmentation(onto_source(labels, source, geometry), geometry, images, kind, model)
        write_derived(path, dataset, source, pseudonyms)


def read_seg(path: str | Path, grid: Grid | None = None) -> Volume:
    """The `Label` values of a segmentation, uint8; put on `grid` if one is given.

    Without `grid` the lattice is the segmentation's own, which need not reach beyond the slices that hold a segment.
    Segments are told by their coded type (`codes.LABELS`).

    Raises: InputError if the file is no segmentation, if a segment is of no type that is known here or segments
        overlap, if its frames make up no volume, or if its pixels cannot be decoded.
    """
    libraries.require_libraries()
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path.name} is not a file. Give a DICOM segmentation.")
    voxels, affine = decode("segmentation", [path], (), path.name)
    labels = Volume(voxels, affine)
    return labels if grid is None else resample_labels(labels, grid)


def onto_source(labels: Volume, source: Series, geometry: highdicom.VolumeGeometry) -> highdicom.Volume:
    """A label map in the order of slices, rows and columns of `source`. Raises: InputError for values that are none."""
    import highdicom

    from glimpseg.data.dicom.geometry import grid

    unknown = sorted(set(np.unique(labels.voxels).tolist()) - {0, *Label})
    if unknown:
        raise InputError(f"A label map of {series_title(source)} should hold Label values and holds {unknown}.")
    placed = resample_labels(labels, grid(geometry))
    image = nibabel.Nifti1Image(placed.voxels.astype(np.uint8), placed.affine)
    volume = highdicom.Volume.from_nibabel(image, frame_of_reference_uid=geometry.frame_of_reference_uid)
    return volume.match_geometry(geometry)


@contextmanager
def hide_library_errors(source: Series) -> Iterator[None]:
    """What a library says of a source that it cannot use, without its words: they may quote the header."""
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
    """Writes an object whole or not at all. Raises: OutputError; InputError if it cannot be encoded."""
    from pydicom.filebase import DicomBytesIO

    with hide_library_errors(source):
        if pseudonyms:
            mark_pseudonymous(dataset)
        buffer = DicomBytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def series_number(images: Sequence[Dataset], offset: int) -> int:
    """Of a derived series: recognisable beside the source's."""
    return int(images[0].get("SeriesNumber") or 0) % 1_000_000 + offset


def _segmentation(
    labels: highdicom.Volume,
    geometry: highdicom.VolumeGeometry,
    images: Sequence[Dataset],
    kind: SegmentationType,
    model: str,
) -> highdicom.seg.Segmentation:
    import highdicom

    present = [label for label in Label if (labels.array == label).any()]
    numbers = np.zeros(max(Label) + 1, np.uint8)
    numbers[present] = range(1, len(present) + 1)  # segments count without gaps
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
        segment_descriptions=_descriptions(present, model),
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


def _descriptions(present: Sequence[Label], model: str) -> list[highdicom.seg.SegmentDescription]:
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
